"""Lost boards, made anew from the record.

A board is *behind* when it lacks an event that the record has and whose effects were confirmed: a
store that was emptied, a failover that lost its tail. It is put back as it stood after the last
confirmed event (or as far as the record has come), and the log is read from there. What comes after
is applied as if for the first time, so that changes which nobody had emitted yet are emitted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from leaderboard import telemetry
from leaderboard.model import Offset, PositionChange, TournamentId
from leaderboard.ports import Board, Directory, Erasures, Summary
from leaderboard.record_ports import Snapshots

ANY: Final = Offset(2**62)
"""Above every offset of a log."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Restored:
    """What a look at all boards of a partition came to."""

    upto: Offset
    """Every board holds everything below this, so the log has to be read from here on."""
    boards: dict[TournamentId, Offset]
    """Where they stand at least."""
    made: Sequence[TournamentId]
    """Those that were behind."""


class Rebuild:
    """Compares boards with the record, and makes those anew that are behind. Safe to repeat."""

    def __init__(
        self, board: Board, directory: Directory, erasures: Erasures, snapshots: Snapshots
    ) -> None:
        self._board = board
        self._directory = directory
        self._erasures = erasures
        self._snapshots = snapshots

    def restore(self, log_id: str, partition: int, before: Offset) -> Restored | None:
        """Make every board of the partition anew that is behind the record, looked at as far as
        `before`: the offset up to which effects are confirmed. None where the record knows
        nothing of this log. Raises TransientError and ForeignLogError."""
        reached = self._snapshots.reached(log_id, partition)
        if reached is None:
            return None
        upto = min(reached, before)
        boards, behind = self._look(log_id, partition, upto, quiet_only=False)
        for tournament_id in behind:
            self.make(tournament_id, upto)
        return Restored(upto, boards, behind)

    def behind(self, log_id: str, partition: int, before: Offset) -> Sequence[TournamentId]:
        """Which boards without an event since `before` are behind: those that no call of their
        own would find. One read of the record, one of the boards."""
        reached = self._snapshots.reached(log_id, partition)
        if reached is None:
            return ()
        return self._look(log_id, partition, min(reached, before), quiet_only=True)[1]

    def _look(
        self, log_id: str, partition: int, upto: Offset, *, quiet_only: bool
    ) -> tuple[dict[TournamentId, Offset], list[TournamentId]]:
        expected = dict(self._snapshots.expected(partition, upto, quiet_only=quiet_only))
        stand = self._board.stands_at(log_id, list(expected))
        behind = [
            tournament_id
            for (tournament_id, least), at in zip(expected.items(), stand, strict=True)
            if at is None or at < least
        ]
        return expected, behind

    def make(
        self,
        tournament_id: TournamentId,
        upto: Offset,
        *,
        force: bool = False,
        loaded: Callable[[int, int], None] = lambda rows, players: None,
    ) -> bool:
        """Put the board back as it stood after every event below `upto`, whatever is there
        (`force`) or where less is. Whether it was put. `loaded` is told of every chunk: its rows,
        and how many there will be."""
        with self._snapshots.taken(tournament_id, upto) as snapshot:
            if snapshot is None:
                return False
            players = snapshot.players
            put = self._board.restore(
                snapshot, force=force, loaded=lambda rows: loaded(rows, players)
            )
            self._directory.put(Summary(tournament_id, snapshot.terms))
        for erasure_id, requested_at_ms in self._snapshots.erasures(tournament_id):
            self._erasures.restore(erasure_id, requested_at_ms)
        if put:
            telemetry.REBUILDS.inc()
            logger.warning(
                "board rebuilt from the record",
                extra=telemetry.fields(
                    tournament=tournament_id, offset=snapshot.offset, players=players
                ),
            )
        return put

    def wants_board(self, partition: int, tournament_id: TournamentId) -> bool:
        """Whether the record would have a board there: it knows the tournament, and its end, if
        it has ended, is not long past."""
        return tournament_id in self._snapshots.expected(partition, ANY, quiet_only=True)

    def bridge(
        self,
        log_id: str,
        partition: int,
        start: Offset,
        end: Offset,
        publish: Callable[[Sequence[PositionChange]], None],
    ) -> Offset:
        """Apply what the log itself has dropped already, from `start` to below `end`, as the
        record keeps it; how far that reaches.

        A tournament that has forgotten somebody is put in place as it stands there, and what
        moved on the way is not told: the record can't say any more whom it moved."""
        reached = self._snapshots.reached(log_id, partition)
        until = min(end, reached or start)
        wanted = self._snapshots.expected(partition, ANY, quiet_only=True)
        for tournament_id, entries in self._snapshots.entries(partition, start, until):
            if tournament_id not in wanted:
                continue  # over for long, and its board with it
            if entries is None:
                self.make(tournament_id, until)
                continue
            applied = self._board.apply(tournament_id, log_id, None, entries, None)
            if applied.unconfirmed:
                publish(applied.unconfirmed)
            if applied.terms is not None:
                self._directory.put(Summary(tournament_id, applied.terms))
        return until
