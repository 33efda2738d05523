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
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from losses import Losses, Owned, Ports
from pydantic import BaseModel

from leaderboard import telemetry
from leaderboard.adapters import sql_engine, sql_migrations, sql_reading
from leaderboard.adapters.jwks_tokens import JwksTokens
from leaderboard.adapters.kafka_feed import KafkaFeed
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import BRIEF, check, connect
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
from leaderboard.fold import LogEntry
from leaderboard.hosts.first_use import FirstUse
from leaderboard.hosts.http import Answer, Call, HttpApp, Route
from leaderboard.hosts.kafka import Assignment, Batch, KafkaHost, Refused
from leaderboard.model import Disposition, Offset, Place, TournamentId
from leaderboard.ports import (
    BatchApplied,
    Feed,
    Outgoing,
    Summary,
)
from leaderboard.reads import Tournaments
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
KNOWN_SECONDS = 4.0
"""How long a wager over HTTP waits for a tournament whose schedule may be on its way."""
logger = logging.getLogger(NAME)


class OnWager:
    """The function. Safe to repeat with any batch, and to kill between any two lines."""

    def __init__(self, ports: Ports, losses: Losses | None = None) -> None:
        self._board = ports.board
        self._directory = ports.directory
        self._progress = ports.progress
        self._feed = ports.feed
        self._erasures = ports.erasures
        self._losses = losses or Losses(ports)
        self._owned: dict[Place, Owned] = {}

    def assigned(self, assignment: Assignment) -> Offset | None:
        owned, start = self._losses.take_over(assignment)
        self._owned[assignment.place] = owned
        return start

    def revoked(self, place: Place) -> None:
        self._owned.pop(place, None)

    def handle(self, batch: Batch) -> Sequence[Refused]:
        """Apply one partition's batch, in order, tournament by tournament."""
        owned = self._owned[batch.place]
        refused: list[Refused] = []
        for tournament_id, entries in by_tournament(batch.entries).items():
            try:
                applied = self._apply(owned, tournament_id, entries)
            except BoardBehindError as behind:
                logger.warning(
                    "a board has lost writes",
                    extra=telemetry.fields(tournament=tournament_id, stands_at=behind.stands_at),
                )
                raise self._losses.replay(owned) from None
            if applied.unconfirmed:
                self._feed.publish_changes(applied.unconfirmed)
            refused += refusals(entries, applied)
            record_dispositions(tournament_id, entries, applied)
        return refused

    def _apply(
        self, owned: Owned, tournament_id: TournamentId, entries: Sequence[LogEntry]
    ) -> BatchApplied:
        applied = self._apply_to_board(owned, tournament_id, entries)
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

    def _apply_to_board(
        self, owned: Owned, tournament_id: TournamentId, entries: Sequence[LogEntry]
    ) -> BatchApplied:
        after = owned.applied.get(tournament_id)
        if after is None:
            self._losses.check_witness(owned)
            over = self._losses.instead_of_beginning(owned, tournament_id, entries)
            if over is not None:
                return over
        try:
            applied = self._board.apply(
                tournament_id, owned.log_id, after, entries, owned.emitted.get(tournament_id)
            )
        except BoardBehindError as behind:
            if behind.stands_at is not None:
                raise
            applied = BatchApplied(None, Offset(0), None, False, (), ())
        if applied.terms is not None:
            return applied
        return self._losses.without_board(owned, tournament_id, entries, applied, after)

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
            raise self._losses.replay(owned)
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
        return self._losses.look(self._owned.values())


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

    def __init__(self, tournaments: Tournaments, feed: Feed) -> None:
        self._tournaments = tournaments
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
        """Raises TransientError where nobody could tell: a list that was lost is no empty one."""
        until = time.monotonic() + KNOWN_SECONDS
        while tournament_id not in self._known:
            is_last = time.monotonic() > until
            try:
                if self._tournaments.find(tournament_id) is not None:
                    self._known.add(tournament_id)
                    break
            except TransientError:
                if is_last:
                    raise
            if is_last:
                return False
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
    tokens, database = load(TokenSettings, os.environ), load(DatabaseSettings, os.environ)
    client = FirstUse(lambda: connect(redis.url, BRIEF))
    engine = FirstUse(lambda: sql_engine.connect(database.url))
    record = FirstUse(lambda: sql_reading.opened(engine()))
    tournaments = FirstUse(lambda: Tournaments(lambda: RedisDirectory(client()), record))
    feed = FirstUse(lambda: KafkaFeed(kafka, timeout_seconds=5))
    made = FirstUse(lambda: WagerIntake(tournaments(), feed()))
    route = Route(
        "POST",
        "/",
        "A producer's CloudEvent (binary or structured) for the topic `wagers`.",
        lambda call: made().accept(call),
        frozenset({"service", "operator"}),
        answers={202: Accepted},
    )
    ready = {
        "redis or database": lambda: tournaments().check(lambda: check(client())),
        "kafka": lambda: feed().check(),
    }
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
