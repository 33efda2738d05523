"""The way in over HTTP: a producer's CloudEvent is checked as the fold would, and put into the
log."""

from __future__ import annotations

import time
from typing import Final

from pydantic import BaseModel

from leaderboard.adapters.kafka_feed import KafkaFeed
from leaderboard.adapters.redis_client import BRIEF, check, connect
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.codec import decode_http
from leaderboard.errors import Refusal, RefusedError, TransientError
from leaderboard.events import WAGERS, TournamentScheduled
from leaderboard.hosts.first_use import FirstUse
from leaderboard.hosts.http import Answer, Call, HttpApp, Route
from leaderboard.hosts.readiness import Needs
from leaderboard.model import TournamentId
from leaderboard.ports import Feed, Outgoing
from leaderboard.reads import Tournaments
from leaderboard.settings import (
    DatabaseSettings,
    EventSettings,
    KafkaSettings,
    RedisSettings,
    TokenSettings,
)
from leaderboard.wiring import engine_of, let_in_by, record_of, tokens_of

KNOWN_SECONDS: Final = 4.0
"""How long a wager waits for a tournament whose schedule may be on its way."""


ATTRIBUTES: Final = tuple(
    f"ce-{name}" for name in ("specversion", "type", "source", "id", "time", "subject")
)
"""What a producer's request says of its event beside the data."""


class Accepted(BaseModel):
    """Which event was taken, and its offset in the tournament's log."""

    id: str
    source: str
    offset: int


class WagerIntake:
    """Takes a producer's events, one by one."""

    def __init__(
        self, tournaments: Tournaments, feed: Feed, known_seconds: float = KNOWN_SECONDS
    ) -> None:
        self._tournaments = tournaments
        self._feed = feed
        self._known_seconds = known_seconds

    def accept(self, call: Call) -> Answer:
        """202 with the event's place, once every replica in sync has it."""
        event = decode_http(call.headers, call.raw_body, WAGERS)
        tournament_id = event.tournament_id
        if tournament_id is None:
            raise AssertionError("the codec lets no event without a tournament into wagers")
        if not isinstance(event.data, TournamentScheduled) and not self._knows(tournament_id):
            raise RefusedError(Refusal.UNKNOWN_TOURNAMENT, "nobody has scheduled this tournament")
        offset = self._feed.publish([Outgoing(WAGERS, event)])[0]
        return Answer(Accepted(id=event.id, source=event.source, offset=offset), status=202)

    def _knows(self, tournament_id: TournamentId) -> bool:
        """Raises TransientError where nobody could tell: a list that was lost is no empty one."""
        until = time.monotonic() + self._known_seconds
        while True:
            is_last = time.monotonic() > until
            try:
                if self._tournaments.knows(tournament_id):
                    return True
            except TransientError:
                if is_last:
                    raise
            if is_last:
                return False
            time.sleep(0.1)


def app_of(
    name: str,
    kafka: KafkaSettings,
    redis: RedisSettings,
    tokens: TokenSettings,
    database: DatabaseSettings,
    events: EventSettings,
) -> HttpApp:
    """The app; it connects with the first request."""
    client = FirstUse(lambda: connect(redis.url, BRIEF))
    engine = engine_of(database)
    record = record_of(engine)
    tournaments = FirstUse(lambda: Tournaments(lambda: RedisDirectory(client()), record))
    feed = FirstUse(lambda: KafkaFeed(kafka, timeout_seconds=5))
    made = FirstUse(lambda: WagerIntake(tournaments(), feed()))
    route = Route(
        "POST",
        "/",
        "A producer's CloudEvent (binary or structured) for the topic `wagers`.",
        lambda call: made().accept(call),
        events.roles(frozenset({"service", "operator"})),
        answers={202: Accepted},
        problems=frozenset({400, 422}),
        headers=dict.fromkeys(ATTRIBUTES, "Of the event, in binary mode."),
    )
    ready = Needs(
        {
            "redis or database": lambda: tournaments().check(lambda: check(client())),
            "kafka": lambda: feed().check(),
        },
        stores={"redis": lambda: check(client()), "database": let_in_by(database, engine)},
    )
    return HttpApp(name, [route], tokens=tokens_of(tokens), ready=ready)
