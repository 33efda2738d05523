"""on-wager: every event of a tournament's log, applied to its board, exactly once in effect.

For each tournament of a batch: one atomic board call, then what that call (and any call before it
that crashed too early) brought forth goes to `position-changes`, and only when Kafka has
acknowledged that is the input committed. While the boards work on a batch, what they brought forth
of the one before is sent off. The board compares offsets, so whatever is read again
has no effect; it keeps its changes until they are confirmed, so whatever was not emitted comes
again with the next call.

Two ways in. From Kafka: `python main.py`, a Deployment that KEDA scales. Over HTTP: a producer
posts a CloudEvent, it is checked the same way and produced to `wagers`; answered with 202.
"""

from __future__ import annotations

import leaderboard.hosts.starting  # noqa: F401 - before all else: see there

# isort: split
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from clearing import Clearing
from losses import Losses, Owned, Ports
from suspicions import Suspicions, Unsuspecting

from leaderboard import telemetry
from leaderboard.adapters.kafka_feed import KafkaFeed
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import check, connect
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.redis_erasures import RedisErasures
from leaderboard.adapters.redis_progress import RedisProgress
from leaderboard.adapters.redis_watches import RedisWatches
from leaderboard.errors import (
    BoardBehindError,
    Refusal,
    RefusedError,
    SettingsError,
    TransientError,
)
from leaderboard.events import WAGERS, Event, PlayerErased
from leaderboard.fold import LogEntry
from leaderboard.hosts.first_use import FirstUse
from leaderboard.hosts.kafka import Assignment, Batch, KafkaHost, Refused, ReplayError
from leaderboard.hosts.tracing import tracing_of
from leaderboard.model import Disposition, Offset, Place, PositionChange, TournamentId
from leaderboard.ports import (
    Applied,
    Applying,
    BatchApplied,
    Summary,
)
from leaderboard.settings import (
    ConsumerSettings,
    DatabaseSettings,
    DetectionSettings,
    EventSettings,
    KafkaSettings,
    RedisSettings,
    TokenSettings,
    TombstoneSettings,
    TracingSettings,
    load,
)
from leaderboard.wiring import check_schema, engine_of, record_in, snapshots_of

if TYPE_CHECKING:
    from flask import Request, Response

    from leaderboard.hosts.http import HttpApp

NAME = "on-wager"
SPACING_SECONDS: Final = 0.01
"""At least between batches that are not full, see `KafkaHost`."""
logger = logging.getLogger(NAME)


LONGEST_AGE_MS: Final = 3_600_000
NO_BOARD: Final = BatchApplied(None, Offset(0), None, False, (), ())


@dataclass(slots=True)
class _Call:
    """A tournament's part of a batch: on its way to the board, then with what became of it."""

    tournament_id: TournamentId
    entries: Sequence[LogEntry]
    after: Offset | None
    applying: Applying | None
    applied: BatchApplied | None = None
    confirmed: Offset | None = None
    """Up to where the board hears with it that everything has arrived."""

    def result(self) -> BatchApplied:
        applying, self.applying = self.applying, None
        if applying is None:
            raise AssertionError("a call has one result")
        return applying.result()

    def abandon(self) -> None:
        applying, self.applying = self.applying, None
        if applying is not None:
            applying.abandon()


@dataclass(slots=True)
class _Work:
    """A batch that was begun."""

    calls: list[_Call] = field(default_factory=list)
    is_joined: bool = False
    emitting: int = 0


class OnWager:
    """The function. Safe to repeat with any batch, and to kill between any two lines."""

    def __init__(
        self,
        ports: Ports,
        losses: Losses | None = None,
        suspicions: Suspicions | Unsuspecting | None = None,
    ) -> None:
        self._board = ports.board
        self._directory = ports.directory
        self._progress = ports.progress
        self._feed = ports.feed
        self._erasures = ports.erasures
        self._losses = losses or Losses(ports)
        self._suspicions = suspicions
        self._clearing = Clearing(ports.board)
        self._owned: dict[Place, Owned] = {}
        self._work: dict[tuple[Place, Offset], _Work] = {}
        self._told: dict[TournamentId, Offset] = {}
        """Up to where the batch that is joined and not settled has what its boards told."""

    def assigned(self, assignment: Assignment) -> Offset | None:
        owned, start = self._losses.take_over(assignment)
        self._owned[assignment.place] = owned
        if self._suspicions is not None:
            self._suspicions.leave(assignment.log_id)
        return start

    def revoked(self, place: Place) -> None:
        owned = self._owned.pop(place, None)
        self._clearing.leave(place)
        if owned is not None and self._suspicions is not None:
            self._suspicions.leave(owned.log_id)

    def begin(self, batch: Batch) -> None:
        """Send one partition's batch to the boards, in order, tournament by tournament."""
        owned = self._owned[batch.place]
        work = self._work[_name_of(batch)] = _Work()
        try:
            for tournament_id, entries in by_tournament(batch.entries).items():
                work.calls.append(self._begin(owned, tournament_id, entries))
        except BoardBehindError as behind:
            raise self._replay(owned, batch, behind) from None

    def _begin(
        self, owned: Owned, tournament_id: TournamentId, entries: Sequence[LogEntry]
    ) -> _Call:
        after = owned.applied.get(tournament_id)
        if after is None:
            self._losses.check_witness(owned)
            over = self._losses.instead_of_beginning(owned, tournament_id, entries)
            if over is not None:
                return _Call(tournament_id, entries, after, None, over)
        confirmed, told = owned.emitted.get(tournament_id), self._told.get(tournament_id)
        try:
            applying = self._board.begin(
                tournament_id, owned.log_id, after, entries, confirmed, told
            )
        except BoardBehindError as behind:
            if behind.stands_at is not None:
                raise
            applying = Applied(NO_BOARD)
        return _Call(tournament_id, entries, after, applying, None, confirmed)

    def join(self, batch: Batch) -> None:
        """The boards hold the batch now. What they told is held until it is emitted."""
        owned, work = self._owned[batch.place], self._work[_name_of(batch)]
        if work.is_joined:
            return
        try:
            for call in work.calls:
                self._join(owned, call)
        except BoardBehindError as behind:
            raise self._replay(owned, batch, behind) from None
        work.is_joined = True
        self._told = {
            # Not beyond this batch: of the next one more is asked than its changes.
            call.tournament_id: min(call.applied.offset, call.entries[-1].offset)
            for call in work.calls
            if call.applied is not None and call.applied.offset is not None
        }

    def _join(self, owned: Owned, call: _Call) -> None:
        tournament_id, entries = call.tournament_id, call.entries
        applied = call.applied
        if applied is None:
            try:
                applied = call.result()
            except BoardBehindError as behind:
                if behind.stands_at is not None:
                    raise
                applied = NO_BOARD
            if applied.terms is None:
                applied = self._losses.without_board(
                    owned, tournament_id, entries, applied, call.after
                )
            call.applied = applied
        if applied.terms is not None and applied.offset is not None:
            # Not by `terms_changed`: that is said once, and a process may die before the list.
            if owned.shown.get(tournament_id) != applied.terms.revision:
                self._directory.put(Summary(tournament_id, applied.terms))
                owned.shown[tournament_id] = applied.terms.revision
            owned.applied[tournament_id] = applied.offset
        if applied.terms is not None and not applied.terms.stays_out:
            return
        for entry in entries:
            if isinstance(entry.event.data, PlayerErased):
                # Known already, unless a store that was emptied has forgotten who is forgotten.
                erasure_id = entry.event.data.erasure_id
                self._erasures.restore(erasure_id, entry.event.time_ms)

    def _replay(self, owned: Owned, batch: Batch, behind: BoardBehindError) -> ReplayError:
        logger.warning(
            "a board has lost writes",
            extra=telemetry.fields(tournament=behind.tournament_id, stands_at=behind.stands_at),
        )
        self.forget(batch)
        return self._losses.replay(owned)

    def handle(self, batch: Batch) -> Sequence[Refused]:
        """Emit what the boards told."""
        work, log_id = self._work[_name_of(batch)], batch.log_id
        refused: list[Refused] = []
        changes: list[PositionChange] = []
        alerts: list[Event] = []
        for call in work.calls:
            if call.applied is None:
                raise AssertionError("a batch is joined before it is handled")
            changes += call.applied.unconfirmed
            refused += refusals(call.entries, call.applied)
            record_dispositions(call.tournament_id, call.entries, call.applied)
            if self._suspicions is not None:
                alerts += self._suspicions.look(
                    log_id, call.tournament_id, call.entries, call.applied
                )
        work.emitting = self._feed.begin_changes(changes, taken_in_ms(work.calls), alerts)
        return refused

    def settle(self, batch: Batch) -> None:
        """Tell the boards how far they are, and remember what need not be emitted again.

        Their own progress shows a loss also where none of the batch's boards was hit."""
        owned, work = self._owned[batch.place], self._work[_name_of(batch)]
        self._feed.confirm_changes(work.emitting)
        last = Offset(batch.next_offset - 1)
        known = owned.advanced
        named = [call.tournament_id for call in work.calls]
        if self._suspicions is not None:
            self._suspicions.keep(named)
        boards = {t: owned.applied[t] for t in named if t in owned.applied}
        stood = self._progress.advance(batch.log_id, batch.partition, known, last, boards)
        if known is not None and (stood is None or stood < known):
            logger.warning(
                "the boards have lost writes",
                extra=telemetry.fields(partition=batch.partition, stands_at=stood),
            )
            self.forget(batch)
            raise self._losses.replay(owned)
        owned.advanced = last if stood is None else max(last, stood)
        owned.done = batch.next_offset
        for call in work.calls:
            if call.tournament_id in owned.applied:
                known_emitted = owned.emitted.get(call.tournament_id, Offset(-1))
                owned.emitted[call.tournament_id] = max(call.entries[-1].offset, known_emitted)
            self._clearing.settled(batch.place, call.tournament_id, call.entries, call.confirmed)
        del self._work[_name_of(batch)]
        self._told = {}

    def forget(self, batch: Batch) -> None:
        """What this process held of what boards told is not held any more: they tell it again."""
        self._told = {}
        work = self._work.pop(_name_of(batch), None)
        for call in () if work is None else work.calls:
            call.abandon()
            if self._suspicions is not None:
                self._suspicions.forget([call.tournament_id])

    def safe(self, place: Place, next_offset: Offset) -> Offset:
        return self._clearing.safe(place, next_offset)

    def tick(self) -> float:
        begun = {call.tournament_id for work in self._work.values() for call in work.calls}
        self._clearing.clear(self._owned, begun)
        return self._losses.look(self._owned.values())


def taken_in_ms(calls: Iterable[_Call]) -> int:
    """When Kafka took in the oldest event behind the changes of these calls; 0 without any. Of a
    change that is told again, by its event's own time: its place in the log lies before the batch.

    An hour ago at most, so that the changes don't grow too old for their topic at once."""
    oldest: list[int] = []
    for call in calls:
        if call.applied is not None and call.applied.unconfirmed:
            first, entry = call.applied.unconfirmed[0], call.entries[0]
            oldest.append(entry.logged_at_ms if first.sequence >= entry.offset else first.time_ms)
    return max(min(oldest), time.time_ns() // 1_000_000 - LONGEST_AGE_MS) if oldest else 0


def _name_of(batch: Batch) -> tuple[Place, Offset]:
    return batch.place, batch.next_offset


def by_tournament(entries: Iterable[LogEntry]) -> dict[TournamentId, list[LogEntry]]:
    """Entries by tournament, in log order; every event of `wagers` has a tournament."""
    grouped: dict[TournamentId, list[LogEntry]] = {}
    for entry in entries:
        tournament_id = entry.event.tournament_id
        if tournament_id is None:
            raise AssertionError("the codec lets no event without a tournament into wagers")
        grouped.setdefault(tournament_id, []).append(entry)
    return grouped


def refusals(entries: Sequence[LogEntry], applied: BatchApplied) -> list[Refused]:
    """What has to go to the dead-letter topic."""
    if _all_applied(applied):
        return []
    return [
        Refused(entry.offset, RefusedError(verdict, DETAILS[verdict]))
        for entry, verdict in zip(entries, applied.verdicts, strict=True)
        if isinstance(verdict, Refusal)
    ]


DETAILS = {
    Refusal.UNKNOWN_TOURNAMENT: "no tournament.scheduled of this tournament came before",
    Refusal.SCORE_OUT_OF_RANGE: "the score would leave ±2^53",
}


def _all_applied(applied: BatchApplied) -> bool:
    return applied.verdicts.count(Disposition.APPLIED) == len(applied.verdicts)


def record_dispositions(
    tournament_id: TournamentId, entries: Sequence[LogEntry], applied: BatchApplied
) -> None:
    """A metric for all, a log line for each sound event that does not count."""
    if _all_applied(applied):
        telemetry.EVENTS.labels(NAME, Disposition.APPLIED.value).inc(len(entries))
        return
    for verdict, count in Counter(applied.verdicts).items():
        telemetry.EVENTS.labels(NAME, verdict.value).inc(count)
    for entry, verdict in zip(entries, applied.verdicts, strict=True):
        if verdict not in (Disposition.APPLIED, Disposition.SKIPPED):
            logger.info(
                "event does not count",
                extra=telemetry.fields(
                    tournament=tournament_id,
                    offset=entry.offset,
                    reason=verdict.value,
                    trace_id=telemetry.trace_id_of(entry.event.traceparent),
                ),
            )


# --- wiring ------------------------------------------------------------------------------------


def consume() -> None:
    """Run the Kafka host until it is told to stop."""
    kafka, consumer = load(KafkaSettings, os.environ), load(ConsumerSettings, os.environ)
    redis, tombstones = load(RedisSettings, os.environ), load(TombstoneSettings, os.environ)
    database = load(DatabaseSettings, os.environ)
    detection = load(DetectionSettings, os.environ)
    tracing = tracing_of(NAME, load(TracingSettings, os.environ))
    telemetry.log_json()
    client = FirstUse(lambda: connect(redis.url))
    engine = engine_of(database)
    feed = KafkaFeed(kafka)

    def function() -> OnWager:
        with suppress(TransientError):  # boards need no record until one of them is lost
            check_schema(engine)
        ports = Ports(
            board=RedisBoard(client(), tombstones.bytes()),
            directory=RedisDirectory(client()),
            progress=RedisProgress(client()),
            feed=feed,
            erasures=RedisErasures(client(), tombstones.bytes()),
            record=record_in(engine),
            snapshots=snapshots_of(engine)(),
        )
        suspicions: Suspicions | Unsuspecting = Unsuspecting(RedisWatches(client()))
        if detection.is_on():
            suspicions = Suspicions(RedisWatches(client()))
        return OnWager(ports, suspicions=suspicions)

    ready = {"redis": lambda: check(client())}
    make = tracing.handler(function, WAGERS)
    with closing(tracing):
        KafkaHost(
            NAME, WAGERS, make, feed, kafka, consumer, ready, spacing_seconds=SPACING_SECONDS
        ).run()


def intake() -> HttpApp:
    """The app of the way in over HTTP. Checks settings; connects with the first request."""
    from intake import app_of  # noqa: PLC0415 - HTTP's imports are a fifth of the other way's start

    telemetry.log_json()
    return app_of(
        NAME,
        load(KafkaSettings, os.environ),
        load(RedisSettings, os.environ),
        load(TokenSettings, os.environ),
        load(DatabaseSettings, os.environ),
        load(EventSettings, os.environ),
    )


def refuse_to_start(error: SettingsError) -> NoReturn:
    print(f"{NAME}: {error}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    try:
        consume()
    except SettingsError as error:
        refuse_to_start(error)
else:
    try:
        app = intake()
    except SettingsError as error:
        refuse_to_start(error)

    from leaderboard.hosts.framework import served

    @served
    def on_wager(request: Request) -> Response:
        """The entry for functions-framework."""
        return app(request)
