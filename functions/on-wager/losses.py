"""Boards that have lost writes: noticed, made anew, and read again from where they lack something.

Four comparisons find them: what this process saw applied against what a board says, at each call
and at each look around; the witness beside the boards; every board against that witness when a
partition is taken over; and every board against the record, then and while it is quiet.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from leaderboard import telemetry
from leaderboard.errors import BoardBehindError, Refusal, TransientError
from leaderboard.events import TournamentScheduled
from leaderboard.fold import LogEntry, Terms, decide
from leaderboard.hosts.kafka import Assignment, ReplayError
from leaderboard.model import Disposition, Offset, Place, TournamentId
from leaderboard.ports import BatchApplied, Board, Directory, Erasures, Feed, Progress, Summary
from leaderboard.rebuild import Rebuild
from leaderboard.record_ports import Record, Snapshots

LOOK_SECONDS = 1.0
SWEEP_SECONDS = 5.0
"""How often quiet boards are compared with the record."""
ASKED_AT_A_LOOK = 32
"""How many quiet boards are asked where they stand at each look."""
START: Final = Offset(0)
logger = logging.getLogger("on-wager")


@dataclass(frozen=True)
class Ports:
    """What the function works on."""

    board: Board
    directory: Directory
    progress: Progress
    feed: Feed
    erasures: Erasures
    record: Record
    snapshots: Snapshots


@dataclass(slots=True)
class Owned:
    """What this process knows of a partition that it owns."""

    place: Place
    log_id: str
    low: Offset
    advanced: Offset | None = None
    """The last offset whose effects the boards hold, as they said themselves."""
    applied: dict[TournamentId, Offset] = field(default_factory=dict)
    """The last offset that this process, or the witness before it, saw applied to each
    tournament."""
    emitted: dict[TournamentId, Offset] = field(default_factory=dict)
    """Up to here every change is in Kafka, and every dead letter."""
    shown: dict[TournamentId, int] = field(default_factory=dict)
    """The revision of the terms that this process put into the directory."""
    done: Offset = START
    """Everything below has had its effects, confirmed."""
    unasked: list[TournamentId] = field(default_factory=list)
    """Whose boards have still to be asked where they stand in this round."""

    def begin_again(
        self, advanced: Offset | None, applied: Mapping[TournamentId, Offset], done: Offset
    ) -> None:
        """Know no more than this: boards were lost."""
        self.advanced, self.applied, self.done = advanced, dict(applied), done
        self.emitted, self.shown, self.unasked = {}, {}, []


class Losses:
    """Finds boards that have lost writes, and says from where to read again. Safe to repeat."""

    def __init__(self, ports: Ports, clock: Callable[[], float] = time.monotonic) -> None:
        self._board = ports.board
        self._directory = ports.directory
        self._progress = ports.progress
        self._feed = ports.feed
        self._record = ports.record
        self._rebuild = Rebuild(ports.board, ports.directory, ports.erasures, ports.snapshots)
        self._clock = clock
        self._looked_at = -math.inf
        self._swept_at = -math.inf

    # when a partition is taken over

    def take_over(self, assignment: Assignment) -> tuple[Owned, Offset | None]:
        """Where the boards stand, if that is before the group: then they have lost writes.

        Every board of the partition is compared with the record, which finds the quiet ones too.
        The witness beside the boards does for a start while the record is away, as long as it
        says that nothing is lost."""
        log_id, partition, low = assignment.log_id, assignment.partition, assignment.low
        told = self._progress.boards(log_id, partition)
        advanced = self._progress.read(log_id, partition)
        lost = self._lost(log_id, told)
        committed = low if assignment.committed is None else assignment.committed
        owned = Owned(assignment.place, log_id, low, advanced, done=committed)
        owned.applied = {t: offset for t, offset in told.items() if t not in lost}
        start = committed
        if assignment.committed is not None:
            start = _after([advanced, *lost.values()]) or low
        try:
            restored = self._rebuild.restore(log_id, partition, committed)
        except TransientError:
            # A witness that says nothing of a partition that was read is one that was lost, also
            # where the log has nothing left to show it by.
            if start < committed or (advanced is None and committed > START):
                raise
            logger.warning("the record is away: boards not compared with it")
            return owned, None
        if restored is not None:
            start = restored.upto if restored.made or start < committed else committed
            owned.applied = {**owned.applied, **restored.boards}
            if start < low:
                start = owned.done = self._bridge(assignment, start)
        if start < committed:
            telemetry.BOARDS_BEHIND.inc()
            logger.warning(
                "the boards are behind the group",
                extra=telemetry.fields(partition=partition, boards=start, lost=len(lost)),
            )
            owned.done = start
            return owned, start
        return owned, None

    def _bridge(self, assignment: Assignment, start: Offset) -> Offset:
        """The log has dropped what the boards have not seen: the record still has it."""
        log_id, partition, low = assignment.log_id, assignment.partition, assignment.low
        reached = self._rebuild.bridge(log_id, partition, start, low, self._feed.publish_changes)
        if reached < low:
            logger.critical(
                "neither the log nor the record has what the boards lack",
                extra=telemetry.fields(partition=partition, reached=reached, oldest=low),
            )
        return low

    # when a call finds something

    def check_witness(self, owned: Owned) -> None:
        """A tournament that is new to this process could be one whose board was lost. The boards'
        own progress tells an emptied store from a new tournament: no silent fresh start.

        Raises ReplayError."""
        if owned.advanced is None:
            return
        partition = owned.place.partition
        stands_at = self._progress.read(owned.log_id, partition)
        if stands_at is None or stands_at < owned.advanced:
            logger.warning(
                "the boards have lost writes",
                extra=telemetry.fields(partition=partition, stands_at=stands_at),
            )
            raise self.replay(owned)

    def instead_of_beginning(
        self, owned: Owned, tournament_id: TournamentId, entries: Sequence[LogEntry]
    ) -> BatchApplied | None:
        """A schedule makes a board where none is, unless the record knows better: no silent fresh
        start. None where it may; else what becomes of the events of a tournament that has been
        over for long. Raises BoardBehindError where the board was lost.

        While the record is away it may, too: new tournaments don't wait for a database."""
        if not any(isinstance(entry.event.data, TournamentScheduled) for entry in entries):
            return None
        (stands_at,) = self._board.stands_at(owned.log_id, [tournament_id])
        if stands_at is not None:
            return None
        try:
            over = self._over_for_long(owned, tournament_id, entries)
        except TransientError as error:
            logger.warning("the record is away", extra=telemetry.fields(error=str(error)))
            return None
        return None if over is None else _of_the_record_alone(over, entries)

    def without_board(
        self,
        owned: Owned,
        tournament_id: TournamentId,
        entries: Sequence[LogEntry],
        applied: BatchApplied,
        after: Offset | None,
    ) -> BatchApplied:
        """Why there is no board: nobody scheduled the tournament; or it has been over for long,
        its board is gone, and the record alone goes on with it; or the board was lost.

        Raises BoardBehindError for a lost one."""
        try:
            over = self._over_for_long(owned, tournament_id, entries)
        except TransientError:
            if after is not None:
                raise
            # The witness has spoken for the store, so it is most likely nobody's. Were it long
            # over, its dead letter would be one too many; to wait would stop everybody else.
            return applied
        if over is not None:
            owned.applied.pop(tournament_id, None)
            return _of_the_record_alone(over, entries)
        if after is not None:
            raise BoardBehindError(tournament_id, None)
        return applied

    def _over_for_long(
        self, owned: Owned, tournament_id: TournamentId, entries: Sequence[LogEntry]
    ) -> Terms | None:
        """The last terms of a tournament that wants no board any more; None where nobody has
        scheduled it so far. The record may be further in the log than these entries.

        Raises BoardBehindError where there should be a board."""
        known = self._record.find(tournament_id)
        if known is None or known.terms.created > entries[-1].offset:
            return None
        if not self._rebuild.wants_board(owned.place.partition, tournament_id):
            return known.terms
        if known.terms.created >= entries[0].offset:
            return None
        raise BoardBehindError(tournament_id, None)

    def replay(self, owned: Owned) -> ReplayError:
        """The store has lost writes: from where every board of the partition has to read again.

        Not from where the one stands that showed it: a loss may cut a batch between two boards,
        and each shard of a cluster loses on its own. So all boards of the partition are compared
        with the record, and made anew where they are behind. Raises TransientError while the
        record is away: until then the log waits, and so do reads of these boards."""
        telemetry.BOARDS_BEHIND.inc()
        place = owned.place
        advanced = self._progress.read(owned.log_id, place.partition)
        restored = self._rebuild.restore(owned.log_id, place.partition, owned.done)
        if restored is None:
            # The record knows nothing of this log yet: the log itself has it all.
            lost = self._lost(owned.log_id, owned.applied)
            kept = {t: offset for t, offset in owned.applied.items() if t not in lost}
            start = _after([advanced, *lost.values()])
        else:
            kept, start = restored.boards, restored.upto
        owned.begin_again(advanced, kept, owned.low if start is None else start)
        return ReplayError(start, place)

    def _lost(
        self, log_id: str, stood: Mapping[TournamentId, Offset]
    ) -> dict[TournamentId, Offset | None]:
        """Those boards that stand below what is known of them, and where; None: it is gone."""
        lost: dict[TournamentId, Offset | None] = {}
        for tournament_id, after in stood.items():
            try:
                self._board.apply(tournament_id, log_id, after, (), None)
            except BoardBehindError as behind:
                stands_at = behind.stands_at
                lost[tournament_id] = None if stands_at is None else Offset(stands_at)
        return lost

    # while nothing comes

    def look(self, partitions: Iterable[Owned]) -> float:
        """Once a second: have the boards lost writes while nothing came? Quiet tournaments are
        missed like busy ones, and a producer over HTTP may be told that there are none.

        The seconds until the next look. Raises ReplayError, naming the partition."""
        now = self._clock()
        if now < self._looked_at + LOOK_SECONDS:
            return self._looked_at + LOOK_SECONDS - now
        owns = list(partitions)
        for owned in owns:
            self.check_witness(owned)
            self._ask_some(owned)
        if now >= self._swept_at + SWEEP_SECONDS:
            self._sweep(owns)
            self._swept_at = now
        self._looked_at = now
        return LOOK_SECONDS

    def _sweep(self, partitions: Iterable[Owned]) -> None:
        """Compare quiet boards with the record: nobody else would miss what they have lost."""
        for owned in partitions:
            partition = owned.place.partition
            try:
                behind = self._rebuild.behind(owned.log_id, partition, owned.done)
            except TransientError as error:
                logger.warning("boards not compared", extra=telemetry.fields(error=str(error)))
                return
            if behind:
                logger.warning(
                    "quiet boards have lost writes",
                    extra=telemetry.fields(partition=partition, boards=len(behind)),
                )
                raise self.replay(owned)

    def _ask_some(self, owned: Owned) -> None:
        """The next few of the partition's boards: each shard of a cluster loses on its own, so the
        witness may stand while a quiet board is behind, or while the directory has lost it."""
        if not owned.unasked:
            owned.unasked = list(owned.applied)
        asked, owned.unasked = owned.unasked[:ASKED_AT_A_LOOK], owned.unasked[ASKED_AT_A_LOOK:]
        for tournament_id in asked:
            after = owned.applied[tournament_id]
            try:
                found = self._board.apply(tournament_id, owned.log_id, after, (), None)
            except BoardBehindError as behind:
                if behind.stands_at is None:
                    try:
                        is_let_go = self._is_let_go(owned, tournament_id)
                    except TransientError as error:
                        # Nobody else's tournament waits for that: the next round asks again.
                        logger.warning("not asked", extra=telemetry.fields(error=str(error)))
                        continue
                    if is_let_go:
                        del owned.applied[tournament_id]
                        continue
                logger.warning(
                    "a quiet board has lost writes",
                    extra=telemetry.fields(tournament=tournament_id, stands_at=behind.stands_at),
                )
                raise self.replay(owned) from None
            if found.terms is not None:
                self._directory.put(Summary(tournament_id, found.terms))

    def _is_let_go(self, owned: Owned, tournament_id: TournamentId) -> bool:
        """Whether the board is gone because its tournament has been over for long."""
        if self._record.find(tournament_id) is None:
            return False
        return not self._rebuild.wants_board(owned.place.partition, tournament_id)


def _of_the_record_alone(terms: Terms, entries: Sequence[LogEntry]) -> BatchApplied:
    """What becomes of events whose tournament has no board any more."""
    verdicts: list[Disposition | Refusal] = []
    for entry in entries:
        verdict = decide(terms, entry).verdict
        # An action can only be an erasure here: the record does it.
        if not isinstance(verdict, Disposition | Refusal):
            verdict = Disposition.APPLIED
        verdicts.append(verdict)
    return BatchApplied(None, Offset(0), None, False, verdicts, ())


def _after(stood: Iterable[Offset | None]) -> Offset | None:
    """Where to read again: behind the lowest of these; None: as far back as it goes."""
    known = list(stood)
    lowest = min((offset for offset in known if offset is not None), default=None)
    return None if lowest is None or None in known else Offset(lowest + 1)
