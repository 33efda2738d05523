"""Board and record as one: reads that go on while either of them answers.

Boards answer first: they are fast, and ahead. The record answers where the board is away, missing
or *behind*: below the sequence that the record had when it was asked at least two seconds ago. A
board that is read is never shown older than that, nor older than the record was shown before: where
nobody can show it newer, it is not shown.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from leaderboard import telemetry
from leaderboard.errors import TransientError
from leaderboard.guard import Guard
from leaderboard.model import Offset, PlayerId, State, TournamentId
from leaderboard.ports import Board, BoardView, Directory, Summary
from leaderboard.record_ports import Member, Record

RECORD_SECONDS: Final = 2.0
"""The longest that a reader waits for the record; its slowest read takes a tenth of it."""
LIST_SECONDS: Final = 2.0
"""How old the record's list may be: it only adds what the directory no longer shows."""
KNOWN: Final = 10_000
"""So many tournaments are remembered to exist, then it begins anew."""
ASK_SECONDS: Final = 1.0
BEHIND_SECONDS: Final = 2.0
"""The record may be so far ahead of a sound board, which applies the same log on its own."""
READ_LATELY_SECONDS: Final = 60.0
FOLLOWED: Final = 2_000
"""The record is asked about so many tournaments at most, those read last."""
logger = logging.getLogger(__name__)


class Source(StrEnum):
    """Who answered."""

    BOARD = "board"
    RECORD = "record"


@dataclass(frozen=True, slots=True)
class Seen:
    """A board, and who showed it."""

    view: BoardView
    source: Source


class Tournaments:
    """Which tournaments there are: live ones from the directory, past ones from the record.

    The two are made on first use, also in every call again until that works. With `breaks`, who is
    away is not asked again by every caller (see `Guard`)."""

    def __init__(
        self,
        directory: Callable[[], Directory],
        record: Callable[[], Record],
        *,
        breaks: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._record = record
        self._clock = clock
        self._near = Guard("Redis", breaks=breaks)
        self._far = Guard(
            "the record",
            seconds=RECORD_SECONDS,
            breaks=breaks,
            trial=lambda: record().sequences([]),
        )
        self._listed: tuple[float, Sequence[Summary]] | None = None
        self._known: set[TournamentId] = set()

    def knows(self, tournament_id: TournamentId) -> bool:
        """Whether there is such a tournament; raises as `find`.

        One that was found is not asked for again: it never goes from both at once."""
        if tournament_id in self._known:
            return True
        if self.find(tournament_id) is None:
            return False
        if len(self._known) >= KNOWN:
            self._known.clear()
        self._known.add(tournament_id)
        return True

    def find(self, tournament_id: TournamentId) -> Summary | None:
        """One tournament, None where it is unknown to both.

        Raises TransientError where the one that answered does not know it and the other is away:
        a store that was emptied must not make known tournaments unknown."""
        away: TransientError | None = None
        try:
            shown = self._near(lambda: self._directory().find(tournament_id))
            if shown is not None:
                return shown
        except TransientError as error:
            away = error
        recorded = self._far(lambda: self._record().find(tournament_id))
        if recorded is None and away is not None:
            raise away
        return recorded

    def has_forgotten(self, erasure_id: str) -> bool:
        """Whether the record has read of this request to forget. Raises TransientError while the
        record is away: nobody else knows of all of them."""
        return self._far(lambda: self._record().is_forgotten(erasure_id))

    def all(self, state: State | None = None) -> Sequence[Summary]:
        """Every tournament (of this state), in order of start and id; of two versions the newer.

        While one of the two is away, what the other one knows. Raises TransientError when both
        are."""
        found: dict[TournamentId, Summary] = {}
        away: list[TransientError] = []
        for ask in (self._past, lambda: self._near(lambda: self._directory().all())):
            try:
                for one in ask():
                    known = found.get(one.tournament_id)
                    if known is None or one.terms.revision >= known.terms.revision:
                        found[one.tournament_id] = one
            except TransientError as error:
                away.append(error)
        if len(away) == 2:
            raise away[0]
        chosen = [one for one in found.values() if state in (None, one.terms.state)]
        return sorted(chosen, key=lambda one: (one.terms.starts_at_ms, one.tournament_id))

    def check(self, redis: Callable[[], object]) -> None:
        """Raises TransientError when neither `redis` (a check that raises) nor the record answers:
        either of them is enough to go on with."""
        try:
            redis()
        except TransientError:
            self.check_record()

    def check_record(self) -> None:
        """Raises TransientError unless the record answers."""
        self._far(lambda: self._record().sequences([]))

    def _past(self) -> Sequence[Summary]:
        now, kept = self._clock(), self._listed
        if kept is None or now >= kept[0] + LIST_SECONDS:
            kept = self._listed = (now, self._far(lambda: self._record().all()))
        return kept[1]


class Reads(Tournaments):
    """The boards as well. Reading a sound board costs no more than the board does."""

    def __init__(
        self,
        board: Callable[[], Board],
        directory: Callable[[], Directory],
        record: Callable[[], Record],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(directory, record, breaks=True, clock=clock)
        self._board = board
        self._floors = _Floors(self._sequences, clock)

    def top(self, tournament_id: TournamentId, limit: int, after_rank: int = 0) -> Seen | None:
        """Standings from `after_rank` + 1 on. As all reads of boards: None where neither knows the
        tournament; raises TransientError where nobody could tell, or show it as it has to be."""
        return self._read(tournament_id, lambda of: of.top(tournament_id, limit, after_rank))

    def player(self, tournament_id: TournamentId, player_id: PlayerId) -> Seen | None:
        """The player's own standing with `distance`; no standings if they have none."""
        return self._read(tournament_id, lambda of: of.player(tournament_id, player_id))

    def around(self, tournament_id: TournamentId, player_id: PlayerId, radius: int) -> Seen | None:
        """Standings centred on the player; empty if they have none."""
        return self._read(tournament_id, lambda of: of.around(tournament_id, player_id, radius))

    def member(self, tournament_id: TournamentId, player_id: PlayerId) -> Member:
        """What board and record know of the player in a tournament that one of the two has; on a
        board, who has a standing has joined. While one is away, what the other one knows; then
        nobody is said not to have joined, as it may be behind. Raises TransientError when both
        are."""
        found = Member(has_joined=False, is_disqualified=False)
        away: list[TransientError] = []
        try:
            is_in = self._near(lambda: self._board().is_in(tournament_id, player_id))
            found = found._replace(has_joined=is_in)
        except TransientError as error:
            away.append(error)
        try:
            recorded = self._far(lambda: self._record().member(tournament_id, player_id))
            is_in = found.has_joined or recorded.has_joined
            found = Member(is_in, recorded.is_disqualified)
        except TransientError as error:
            away.append(error)
        if len(away) == 2:
            raise away[0]
        return found._replace(has_joined=True) if away else found

    def ask_record(self) -> None:
        """Ask the record how far it is with what was read lately. A thread does it each second."""
        self._floors.ask()

    def _read(
        self, tournament_id: TournamentId, ask: Callable[[Board | Record], BoardView | None]
    ) -> Seen | None:
        away: TransientError | None = None
        shown: BoardView | None = None
        try:
            shown = self._near(lambda: ask(self._board()))
        except TransientError as error:
            away = error
        if shown is not None and not self._floors.is_below(tournament_id, shown.sequence):
            return self._seen(shown, Source.BOARD)
        recorded = self._far(lambda: ask(self._record()))
        if recorded is not None and (shown is None or recorded.sequence >= shown.sequence):
            return self._seen(recorded, Source.RECORD)
        if shown is not None:  # the record has gone back itself: a log that was made anew
            return self._seen(shown, Source.BOARD)
        if away is not None:
            raise away
        if self._near(lambda: self._directory().find(tournament_id)) is not None:
            raise TransientError(f"the board of {tournament_id} is being made anew")
        return None

    def _seen(self, view: BoardView, source: Source) -> Seen:
        self._floors.note(view.tournament_id, view.sequence if source is Source.RECORD else None)
        telemetry.READS.labels(source.value).inc()
        return Seen(view, source)

    def _sequences(self, some: Sequence[TournamentId]) -> Mapping[TournamentId, Offset]:
        return self._far(lambda: self._record().sequences(some))


class _Floors:
    """How far boards have to be at least, from what the record said two seconds ago and before.

    The record is asked in one call a second, by a thread that lives while there are readers;
    while it is away the last answer counts on."""

    def __init__(
        self,
        sequences: Callable[[Sequence[TournamentId]], Mapping[TournamentId, Offset]],
        clock: Callable[[], float],
    ) -> None:
        self._sequences = sequences
        self._clock = clock
        self._read_at: dict[TournamentId, float] = {}
        self._told: deque[tuple[float, Mapping[TournamentId, Offset]]] = deque()
        """What the record said and when it was asked, oldest first; only the first may be ripe."""
        self._floors: Mapping[TournamentId, Offset] = {}
        self._ripe_at = -math.inf
        """When the record was asked for those."""
        self._shown: dict[TournamentId, tuple[float, Offset]] = {}
        """What readers saw of the record, and when: not to step back before it is asked again."""
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def note(self, tournament_id: TournamentId, recorded: Offset | None) -> None:
        """The tournament is being read, from the record at this sequence or from its board.
        Costs next to nothing."""
        now = self._read_at[tournament_id] = self._clock()
        if recorded is not None:
            self._shown[tournament_id] = (now, recorded)
        if self._thread is None:
            self._start()

    def is_below(self, tournament_id: TournamentId, sequence: Offset) -> bool:
        """Whether a board at this sequence is behind. Costs next to nothing."""
        if self._told and self._clock() >= self._told[0][0] + BEHIND_SECONDS:
            self._ripen()
        shown_at, shown = self._shown.get(tournament_id, (-math.inf, None))
        if shown is not None and shown_at > self._ripe_at and sequence < shown:
            return True
        floor = self._floors.get(tournament_id)
        return floor is not None and sequence < floor

    def ask(self) -> None:
        """Ask the record once. Raises TransientError."""
        asked_at = self._clock()
        lately = self._lately(asked_at)
        if lately:
            told = self._sequences(lately)
            with self._lock:
                self._told.append((asked_at, told))

    def _ripen(self) -> None:
        """Make the newest answer that is old enough the one that counts."""
        with self._lock:
            while self._told and self._clock() >= self._told[0][0] + BEHIND_SECONDS:
                self._ripe_at, self._floors = self._told.popleft()

    def _lately(self, now: float) -> list[TournamentId]:
        read_at = dict(self._read_at)
        lately = [t for t, at in read_at.items() if now < at + READ_LATELY_SECONDS]
        lately = sorted(lately, key=lambda t: -read_at[t])[:FOLLOWED]
        for tournament_id in read_at.keys() - set(lately):
            self._read_at.pop(tournament_id, None)
            self._shown.pop(tournament_id, None)
        return lately

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="floors", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while self._read_at:
            try:
                self.ask()
            except TransientError:
                pass  # said by the guard, once; what was told before counts on
            except Exception:
                logger.exception("bug while asking the record how far it is")
            self._ripen()
            time.sleep(ASK_SECONDS)
        self._thread = None
