"""on-wager: every event of a tournament's log, applied to its board, exactly once in effect.

For each tournament of a batch: one atomic board call, then what that call (and any call before it
that crashed too early) brought forth goes to `position-changes`, and only when Kafka has
acknowledged that is the input committed. The board compares offsets, so whatever is read again
has no effect; it keeps its changes until they are confirmed, so whatever was not emitted comes
again with the next call.

Two ways in. From Kafka: `python main.py`, a Deployment that KEDA scales. Over HTTP: a producer
posts a CloudEvent, it is checked the same way and produced to `wagers`; answered with 202.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from pydantic import BaseModel

from leaderboard import telemetry
from leaderboard.adapters import sql_engine, sql_migrations
from leaderboard.adapters.jwks_tokens import JwksTokens
from leaderboard.adapters.kafka_feed import KafkaFeed
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import check, connect
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.redis_erasures import RedisErasures
from leaderboard.adapters.redis_progress import RedisProgress
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.adapters.sql_snapshot import SqlSnapshots
from leaderboard.codec import decode_http
from leaderboard.errors import (
    BoardBehindError,
    Refusal,
    RefusedError,
    SettingsError,
    TransientError,
)
from leaderboard.events import WAGERS, PlayerErased, TournamentScheduled
from leaderboard.fold import LogEntry, decide
from leaderboard.hosts.first_use import FirstUse
from leaderboard.hosts.http import Answer, Call, HttpApp, Route
from leaderboard.hosts.kafka import Assignment, Batch, KafkaHost, Refused, ReplayError
from leaderboard.model import Disposition, Offset, Place, TournamentId
from leaderboard.ports import (
    BatchApplied,
    Board,
    Directory,
    Erasures,
    Feed,
    Outgoing,
    Progress,
    Record,
    Snapshots,
    Summary,
)
from leaderboard.rebuild import Rebuild
from leaderboard.settings import (
    ConsumerSettings,
    DatabaseSettings,
    KafkaSettings,
    RedisSettings,
    TokenSettings,
    TombstoneSettings,
    load,
)

if TYPE_CHECKING:
    from flask import Request, Response

NAME = "on-wager"
LOOK_SECONDS = 1.0
SWEEP_SECONDS = 5.0
"""How often quiet boards are compared with the record."""
ASKED_AT_A_LOOK = 32
"""How many quiet boards are asked where they stand at each look."""
KNOWN_SECONDS = 4.0
"""How long a wager over HTTP waits for a tournament whose schedule may be on its way."""
START: Final = Offset(0)
logger = logging.getLogger(NAME)


@dataclass(slots=True)
class _Owned:
    """What this process knows of a partition that it owns."""

    log_id: str
    low: Offset
    advanced: Offset | None
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


class OnWager:
    """The function. Safe to repeat with any batch, and to kill between any two lines."""

    def __init__(self, ports: Ports, clock: Callable[[], float] = time.monotonic) -> None:
        self._board = ports.board
        self._directory = ports.directory
        self._progress = ports.progress
        self._feed = ports.feed
        self._erasures = ports.erasures
        self._record = ports.record
        self._rebuild = Rebuild(ports.board, ports.directory, ports.erasures, ports.snapshots)
        self._clock = clock
        self._owned: dict[Place, _Owned] = {}
        self._looked_at = -math.inf
        self._swept_at = -math.inf

    def assigned(self, assignment: Assignment) -> Offset | None:
        """Where the boards stand, if that is before the group: then they have lost writes.

        Every board of the partition is compared with the record, which finds the quiet ones too.
        The witness beside the boards does for a start while the record is away, as long as it
        says that nothing is lost."""
        log_id, partition, low = assignment.log_id, assignment.partition, assignment.low
        told = self._progress.boards(log_id, partition)
        advanced = self._progress.read(log_id, partition)
        lost = self._lost(log_id, told)
        committed = low if assignment.committed is None else assignment.committed
        owned = self._owned[assignment.place] = _Owned(log_id, low, advanced, done=committed)
        owned.applied = {t: offset for t, offset in told.items() if t not in lost}
        start = committed
        if assignment.committed is not None:
            start = _after([advanced, *lost.values()]) or low
        try:
            restored = self._rebuild.restore(log_id, partition, committed)
        except TransientError:
            if start < committed:
                raise
            logger.warning("the record is away: boards not compared with it")
            return None
        if restored is not None:
            start = restored.upto if restored.made or start < committed else committed
            owned.applied = {**owned.applied, **restored.boards}
            if start < low:
                start = self._bridge(assignment, start)
        if start < committed:
            logger.warning(
                "the boards are behind the group",
                extra=telemetry.fields(partition=partition, boards=start, lost=len(lost)),
            )
            owned.done = start
            return start
        return None

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

    def revoked(self, place: Place) -> None:
        self._owned.pop(place, None)

    def handle(self, batch: Batch) -> Sequence[Refused]:
        """Apply one partition's batch, in order, tournament by tournament."""
        owned = self._owned[batch.place]
        refused: list[Refused] = []
        for tournament_id, entries in by_tournament(batch.entries).items():
            try:
                applied = self._apply(batch, owned, tournament_id, entries)
            except BoardBehindError as behind:
                logger.warning(
                    "a board has lost writes",
                    extra=telemetry.fields(tournament=tournament_id, stands_at=behind.stands_at),
                )
                raise self._behind(batch.place) from None
            if applied.unconfirmed:
                self._feed.publish_changes(applied.unconfirmed)
            refused += refusals(entries, applied)
            record_dispositions(tournament_id, entries, applied)
        return refused

    def _apply(
        self,
        batch: Batch,
        owned: _Owned,
        tournament_id: TournamentId,
        entries: Sequence[LogEntry],
    ) -> BatchApplied:
        after = owned.applied.get(tournament_id)
        if after is None:
            self._check_witness(batch, owned)
        try:
            applied = self._board.apply(
                tournament_id, batch.log_id, after, entries, owned.emitted.get(tournament_id)
            )
        except BoardBehindError as behind:
            if behind.stands_at is not None:
                raise
            applied = BatchApplied(None, Offset(0), None, False, (), ())
        if applied.terms is None:
            applied = self._without_board(batch, owned, tournament_id, entries, applied, after)
        if applied.terms is not None and applied.offset is not None:
            # Not by `terms_changed`: that is said once, and a process may die before the list.
            if owned.shown.get(tournament_id) != applied.terms.revision:
                self._directory.put(Summary(tournament_id, applied.terms))
                owned.shown[tournament_id] = applied.terms.revision
            owned.applied[tournament_id] = applied.offset
        for entry in entries:
            if isinstance(entry.event.data, PlayerErased):
                # Known already, unless a store that was emptied has forgotten who is forgotten.
                erasure_id = entry.event.data.erasure_id
                self._erasures.restore(erasure_id, tournament_id, entry.event.time_ms)
        return applied

    def _without_board(
        self,
        batch: Batch,
        owned: _Owned,
        tournament_id: TournamentId,
        entries: Sequence[LogEntry],
        applied: BatchApplied,
        after: Offset | None,
    ) -> BatchApplied:
        """Why there is no board: nobody scheduled the tournament; or it has been over for long,
        its board is gone, and the record alone goes on with it; or the board was lost.

        Raises BoardBehindError for a lost one."""
        try:
            known = self._record.find(tournament_id)
            wants = known is not None and self._rebuild.wants_board(batch.partition, tournament_id)
        except TransientError:
            if after is not None:
                raise
            # The witness has spoken for the store, so it is most likely nobody's. Were it long
            # over, its dead letter would be one too many; to wait would stop everybody else.
            return applied
        if known is None and after is None:
            return applied
        if known is None or wants:
            raise BoardBehindError(tournament_id, None)
        owned.applied.pop(tournament_id, None)
        verdicts: list[Disposition | Refusal] = []
        for entry in entries:
            verdict = decide(known.terms, entry).verdict
            # An action can only be an erasure here: the record does it.
            if not isinstance(verdict, Disposition | Refusal):
                verdict = Disposition.APPLIED
            verdicts.append(verdict)
        return BatchApplied(None, Offset(0), None, False, verdicts, ())

    def _check_witness(self, batch: Batch, owned: _Owned) -> None:
        """A tournament that is new to this process could be one whose board was lost. The boards'
        own progress tells an emptied store from a new tournament: no silent fresh start."""
        if owned.advanced is None:
            return
        stands_at = self._progress.read(batch.log_id, batch.partition)
        if stands_at is None or stands_at < owned.advanced:
            raise self._behind(batch.place)

    def _behind(self, place: Place) -> ReplayError:
        """The store has lost writes: from where every board of the partition has to read again.

        Not from where the one stands that showed it: a loss may cut a batch between two boards,
        and each shard of a cluster loses on its own. So all boards of the partition are compared
        with the record, and made anew where they are behind. Raises TransientError while the
        record is away: until then the log waits, and so do reads of these boards."""
        owned = self._owned[place]
        advanced = self._progress.read(owned.log_id, place.partition)
        restored = self._rebuild.restore(owned.log_id, place.partition, owned.done)
        if restored is None:
            # The record knows nothing of this log yet: the log itself has it all.
            lost = self._lost(owned.log_id, owned.applied)
            kept = {t: offset for t, offset in owned.applied.items() if t not in lost}
            start = _after([advanced, *lost.values()])
        else:
            kept, start = restored.boards, restored.upto
        done = owned.low if start is None else start
        self._owned[place] = _Owned(owned.log_id, owned.low, advanced, kept, done=done)
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

    def settle(self, batch: Batch) -> None:
        """Tell the boards how far they are, and remember what need not be emitted again.

        Their own progress shows a loss also where none of the batch's boards was hit."""
        owned = self._owned[batch.place]
        last = Offset(batch.next_offset - 1)
        known = owned.advanced
        named = {entry.event.tournament_id for entry in batch.entries}
        boards = {t: offset for t, offset in owned.applied.items() if t in named}
        stood = self._progress.advance(batch.log_id, batch.partition, known, last, boards)
        if known is not None and (stood is None or stood < known):
            logger.warning(
                "the boards have lost writes",
                extra=telemetry.fields(partition=batch.partition, stands_at=stood),
            )
            raise self._behind(batch.place)
        owned.advanced = last if stood is None else max(last, stood)
        owned.done = batch.next_offset
        for entry in batch.entries:
            tournament_id = entry.event.tournament_id
            if tournament_id is not None and tournament_id in owned.applied:
                owned.emitted[tournament_id] = max(
                    entry.offset, owned.emitted.get(tournament_id, Offset(-1))
                )

    def safe(self, place: Place, next_offset: Offset) -> Offset:
        return next_offset

    def tick(self) -> float:
        """Once a second: have the boards lost writes while nothing came? Quiet tournaments are
        missed like busy ones, and a producer over HTTP may be told that there are none."""
        now = self._clock()
        if now < self._looked_at + LOOK_SECONDS:
            return self._looked_at + LOOK_SECONDS - now
        for place, owned in self._owned.items():
            if owned.advanced is None:
                continue
            stands_at = self._progress.read(owned.log_id, place.partition)
            if stands_at is None or stands_at < owned.advanced:
                logger.warning(
                    "the boards have lost writes",
                    extra=telemetry.fields(partition=place.partition, stands_at=stands_at),
                )
                raise self._behind(place)
            self._ask_some(place, owned)
        if now >= self._swept_at + SWEEP_SECONDS:
            self._sweep()
            self._swept_at = now
        self._looked_at = now
        return LOOK_SECONDS

    def _sweep(self) -> None:
        """Compare quiet boards with the record: nobody else would miss what they have lost."""
        for place, owned in self._owned.items():
            try:
                behind = self._rebuild.behind(owned.log_id, place.partition, owned.done)
            except TransientError as error:
                logger.warning("boards not compared", extra=telemetry.fields(error=str(error)))
                return
            if behind:
                logger.warning(
                    "quiet boards have lost writes",
                    extra=telemetry.fields(partition=place.partition, boards=len(behind)),
                )
                raise self._behind(place)

    def _ask_some(self, place: Place, owned: _Owned) -> None:
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
                if behind.stands_at is None and self._is_let_go(place, tournament_id):
                    del owned.applied[tournament_id]
                    continue
                logger.warning(
                    "a quiet board has lost writes",
                    extra=telemetry.fields(tournament=tournament_id, stands_at=behind.stands_at),
                )
                raise self._behind(place) from None
            if found.terms is not None:
                self._directory.put(Summary(tournament_id, found.terms))

    def _is_let_go(self, place: Place, tournament_id: TournamentId) -> bool:
        """Whether the board is gone because its tournament has been over for long."""
        if self._record.find(tournament_id) is None:
            return False
        return not self._rebuild.wants_board(place.partition, tournament_id)


def _after(stood: Iterable[Offset | None]) -> Offset | None:
    """Where to read again: behind the lowest of these; None: as far back as it goes."""
    known = list(stood)
    lowest = min((offset for offset in known if offset is not None), default=None)
    return None if lowest is None or None in known else Offset(lowest + 1)


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
    return [
        Refused(entry.offset, RefusedError(verdict, DETAILS[verdict]))
        for entry, verdict in zip(entries, applied.verdicts, strict=True)
        if isinstance(verdict, Refusal)
    ]


DETAILS = {
    Refusal.UNKNOWN_TOURNAMENT: "no tournament.scheduled of this tournament came before",
    Refusal.SCORE_OUT_OF_RANGE: "the score would leave ±2^53",
}


def record_dispositions(
    tournament_id: TournamentId, entries: Sequence[LogEntry], applied: BatchApplied
) -> None:
    """A metric for all, a log line for each sound event that does not count."""
    for verdict, count in Counter(applied.verdicts).items():
        telemetry.EVENTS.labels(NAME, verdict.value).inc(count)
    for entry, verdict in zip(entries, applied.verdicts, strict=True):
        if verdict not in (Disposition.APPLIED, Disposition.SKIPPED):
            logger.info(
                "event does not count",
                extra=telemetry.fields(
                    tournament=tournament_id, offset=entry.offset, reason=verdict.value
                ),
            )


# --- the way in over HTTP ----------------------------------------------------------------------


class Accepted(BaseModel):
    """Which event was taken, and its offset in the tournament's log."""

    id: str
    source: str
    offset: int


class WagerIntake:
    """Checks a producer's event as the fold would and puts it into the log."""

    def __init__(self, directory: Directory, feed: Feed) -> None:
        self._directory = directory
        self._feed = feed
        self._known: set[TournamentId] = set()

    def accept(self, call: Call) -> Answer:
        """202 with the event's place, once every replica in sync has it."""
        event = decode_http(call.headers, call.raw_body, WAGERS)
        tournament_id = event.tournament_id
        if tournament_id is None:
            raise AssertionError("the codec lets no event without a tournament into wagers")
        if not isinstance(event.data, TournamentScheduled) and not self._knows(tournament_id):
            raise RefusedError(Refusal.UNKNOWN_TOURNAMENT, DETAILS[Refusal.UNKNOWN_TOURNAMENT])
        offset = self._feed.publish([Outgoing(WAGERS, event)])[0]
        return Answer(Accepted(id=event.id, source=event.source, offset=offset), status=202)

    def _knows(self, tournament_id: TournamentId) -> bool:
        until = time.monotonic() + KNOWN_SECONDS
        while tournament_id not in self._known:
            if self._directory.find(tournament_id) is not None:
                self._known.add(tournament_id)
            elif time.monotonic() > until:
                return False
            else:
                time.sleep(0.1)
        return True


# --- wiring ------------------------------------------------------------------------------------


def consume() -> None:
    """Run the Kafka host until it is told to stop."""
    kafka, consumer = load(KafkaSettings, os.environ), load(ConsumerSettings, os.environ)
    redis, tombstones = load(RedisSettings, os.environ), load(TombstoneSettings, os.environ)
    database = load(DatabaseSettings, os.environ)
    telemetry.log_json()
    client = FirstUse(lambda: connect(redis.url))
    engine = sql_engine.connect(database.url)
    feed = KafkaFeed(kafka)

    def function() -> OnWager:
        with suppress(TransientError):  # boards need no record until one of them is lost
            sql_migrations.check(engine)
        ports = Ports(
            board=RedisBoard(client(), tombstones.bytes()),
            directory=RedisDirectory(client()),
            progress=RedisProgress(client()),
            feed=feed,
            erasures=RedisErasures(client(), tombstones.bytes()),
            record=SqlRecord(engine),
            snapshots=SqlSnapshots(engine),
        )
        return OnWager(ports)

    ready = {"redis": lambda: check(client())}
    KafkaHost(NAME, WAGERS, function, feed, kafka, consumer, ready).run()


def intake() -> HttpApp:
    """The app of the way in over HTTP. Checks settings; connects with the first request."""
    kafka, redis = load(KafkaSettings, os.environ), load(RedisSettings, os.environ)
    tokens = load(TokenSettings, os.environ)
    client = FirstUse(lambda: connect(redis.url))
    feed = FirstUse(lambda: KafkaFeed(kafka, timeout_seconds=5))
    made = FirstUse(lambda: WagerIntake(RedisDirectory(client()), feed()))
    route = Route(
        "POST",
        "/",
        "A producer's CloudEvent (binary or structured) for the topic `wagers`.",
        lambda call: made().accept(call),
        frozenset({"service", "operator"}),
        answers={202: Accepted},
    )
    ready = {"redis": lambda: check(client()), "kafka": lambda: feed().check()}
    return HttpApp(NAME, [route], tokens=FirstUse(lambda: JwksTokens(tokens)), ready=ready)


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

    def on_wager(request: Request) -> Response:
        """The entry for functions-framework."""
        return app(request)
