"""What boards hold of changes that have arrived, once somebody was erased: nothing.

A board keeps what it told until it hears that it arrived, which comes with its next batch. Where
nothing is played any more that may be never, and the player who was erased would stay there by
name. So after an erasure a board is told at once, without a batch. Until then the erasure does not
count as read: whoever takes over after a crash does it again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from losses import Owned

from leaderboard.errors import BoardBehindError
from leaderboard.events import PlayerErased
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, Place, TournamentId
from leaderboard.ports import Board


class _Due(NamedTuple):
    place: Place
    first: Offset
    """Of the erasures that the board has to be told after."""
    last: Offset
    """Up to where it has to be told."""


class Clearing:
    """For one process."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._due: dict[TournamentId, _Due] = {}

    def settled(
        self,
        place: Place,
        tournament_id: TournamentId,
        entries: Sequence[LogEntry],
        confirmed: Offset | None,
    ) -> None:
        """All that came of these entries has arrived. With them the board has heard of what came
        up to `confirmed`."""
        due = self._due.get(tournament_id)
        if due is not None and confirmed is not None and confirmed >= due.last:
            del self._due[tournament_id]
            due = None
        erased = [one.offset for one in entries if type(one.event.data) is PlayerErased]
        if erased:
            first = erased[0] if due is None else due.first
            self._due[tournament_id] = _Due(place, first, entries[-1].offset)

    def clear(self, owned: Mapping[Place, Owned], busy: Collection[TournamentId]) -> None:
        """Tell the boards, but for those that have a batch under way. Raises TransientError."""
        for tournament_id, due in list(self._due.items()):
            if tournament_id in busy:
                continue
            if (ours := owned.get(due.place)) is not None:
                after, emitted = ours.applied.get(tournament_id), ours.emitted.get(tournament_id)
                if after is not None:
                    # One that has lost writes is found with its next batch.
                    with suppress(BoardBehindError):
                        self._board.apply(tournament_id, ours.log_id, after, [], emitted, emitted)
            del self._due[tournament_id]

    def leave(self, place: Place) -> None:
        """Another process sees to it."""
        self._due = {name: due for name, due in self._due.items() if due.place != place}

    def safe(self, place: Place, next_offset: Offset) -> Offset:
        """How far the partition may be committed."""
        return min([next_offset, *(due.first for due in self._due.values() if due.place == place)])
