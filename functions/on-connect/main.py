"""on-connect: decides every connection, and records every attempt.

A player shows a token and gets a ticket: good once, for 30 seconds. With it the player's socket
reaches the gateway, which asks here before it upgrades; the answer, not the client, names the
channels. One connection per player and tournament: the newest wins. A socket ends with the token
that opened it.

A way in is good from the address that asked for it. Who asks too often, and whom a tournament has
no room for, is told so.

Each decision, also a refusal, is on the topic `connections` before it takes effect. A tournament
that the list has lost, or that is long over, is asked for in the record before it is unknown.
Nobody who was forgotten gets in because the store has lost the request: see `is_forgotten`.
"""

from __future__ import annotations

import leaderboard.hosts.starting  # noqa: F401 - before all else: see there

# isort: split
import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from attempts import Attempt, now_ms
from flask import Request, Response
from pydantic import BaseModel

from leaderboard import telemetry
from leaderboard.adapters.kafka_feed import KafkaFeed
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import RedisClient, check, connect
from leaderboard.adapters.redis_connections import RedisConnections
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.redis_entrance import RedisEntrance
from leaderboard.adapters.web_pubsub_events import (
    Connected,
    Connecting,
    Disconnected,
    WebPubSubEvents,
    admission,
)
from leaderboard.callers import Limit, Quota, network_of
from leaderboard.errors import (
    ForbiddenError,
    LeaderboardError,
    NotFoundError,
    TooManyError,
    TransientError,
    UnauthenticatedError,
)
from leaderboard.events import format_time_ms
from leaderboard.frames import for_part, in_part, part_of, top_frame
from leaderboard.hosts.first_use import FirstUse
from leaderboard.hosts.framework import served
from leaderboard.hosts.http import ANY_ROLE, Answer, Call, HttpApp, ProblemError, Route
from leaderboard.hosts.readiness import Needs
from leaderboard.hosts.repeating import Repeating
from leaderboard.model import TOP_VISIBLE, PlayerId, TournamentId, is_id
from leaderboard.ports import (
    Board,
    Connections,
    Entrance,
    Feed,
    Frame,
    Gateway,
    Grant,
    Sight,
)
from leaderboard.reads import Tournaments
from leaderboard.settings import (
    DatabaseSettings,
    EntranceSettings,
    KafkaSettings,
    LimitSettings,
    OriginSettings,
    PlayersGatewaySettings,
    RedisSettings,
    TokenSettings,
    TombstoneSettings,
    load_or_exit,
)
from leaderboard.wiring import (
    door_of,
    engine_of,
    gateway_of,
    let_in_by,
    record_of,
    tokens_of,
    way_in_of,
)

TICKET_SECONDS: Final = 30
RECORD_SECONDS: Final = 2.0
LINGER_MS: Final = 10
"""Attempts at the same time share a request to the broker, which costs it more than they do."""
CLOSING_SECONDS: Final = 0.5
CLOSING_BATCH: Final = 500
EVENTS_PATH: Final = "/v1/web-pubsub/events"
logger = logging.getLogger("on-connect")


@dataclass(frozen=True)
class Ports:
    """What the decisions need."""

    connections: Connections
    tournaments: Tournaments
    entrance: Entrance
    board: Board
    feed: Feed
    gateway: Gateway
    way_in: Callable[[str], str]
    """The URL that a socket opens with this ticket."""
    entry: EntranceSettings = field(default_factory=EntranceSettings)


class WayIn(BaseModel):
    """`url` is good once, until `expires_at`."""

    url: str
    expires_at: str
    channels: list[str]


# --- a player asks for a way in ----------------------------------------------------------------


def open_way(call: Call, ports: Ports) -> Answer:
    """A single-use way in to a tournament's channels, for 30 seconds."""
    tournament_id = TournamentId(call.path["tournament_id"])
    caller = call.authenticated()
    attempt = _asked_for(call, tournament_id)
    if "player" not in caller.roles or not is_id(caller.subject):
        attempt.record(ports, "forbidden")
        raise ForbiddenError("only a player has a connection of their own")
    player_id = PlayerId(caller.subject)
    if caller.expires_at_ms <= now_ms():
        attempt.record(ports, "token_over")
        raise UnauthenticatedError("the token's time is over")
    seen = ports.entrance.look(tournament_id, player_id)
    if is_forgotten(seen, ports):
        attempt.record(ports, "player_erased")
        raise ForbiddenError("this player has been forgotten")
    if not ports.tournaments.knows(tournament_id):
        attempt.player_id = player_id
        attempt.record(ports, "unknown_tournament")
        raise NotFoundError("there is no such tournament")
    if not has_room(seen, tournament_id, ports):
        attempt.player_id = player_id
        attempt.record(ports, "full")
        raise ProblemError(503, "The tournament has as many connections as it may; come later.")
    is_bound = ports.entry.ticket_address == "same" and call.address
    network = network_of(call.address) if is_bound else None
    connection_id = secrets.token_hex(16)
    grant = Grant(tournament_id, player_id, connection_id, caller.expires_at_ms, network)
    ticket = ports.connections.issue(grant, TICKET_SECONDS)
    way = WayIn(
        url=ports.way_in(ticket),
        expires_at=format_time_ms(now_ms() + TICKET_SECONDS * 1000),
        channels=_shown_channels(grant),
    )
    return Answer(way, status=201)


def turned_away(call: Call, error: LeaderboardError, ports: Ports) -> None:
    """Record an attempt without a token, with one that proves nothing, or one too many."""
    if not isinstance(error, TransientError):
        attempt = _asked_for(call, TournamentId(call.path["tournament_id"]))
        is_too_many = isinstance(error, TooManyError)
        attempt.record(ports, "too_many" if is_too_many else "unauthenticated")


# --- the gateway asks about a ticket -----------------------------------------------------------


def authorize(call: Call, ports: Ports) -> Answer:
    """The gateway's question: 403, or which channels this socket gets."""
    # The gateway sets the first element; proxies between it and us append theirs.
    told = call.headers.get("X-Forwarded-For", "").partition(",")[0].strip()
    attempt = Attempt(told or call.address, call.headers.get("User-Agent", ""))
    entry = admitted(call.headers.get("X-Ticket", ""), attempt, ports)
    if entry is None:
        raise ForbiddenError("this ticket lets nobody in")
    channels = ",".join(entry.channels())
    return Answer(headers={"X-Accel-Redirect": "/subscribe", "X-Channels": channels})


@dataclass(frozen=True)
class Entry:
    """A player who was let in, and the part of the tournament's sockets that theirs is in."""

    grant: Grant
    part: int

    def channels(self) -> list[str]:
        """Those of the socket. The last one is its own: two sockets with one and the same list end
        Nchan's worker."""
        return [*_shown_channels(self.grant, self.part), f"conn.{self.grant.connection_id}"]


def admitted(ticket: str, attempt: Attempt, ports: Ports) -> Entry | None:
    """Who gets in with this ticket, with the lease; None where it was refused. Both are recorded;
    the client is told nothing about why."""
    grant = ports.connections.redeem(ticket)
    if grant is None:
        attempt.record(ports, "unknown_ticket" if ticket else "no_ticket")
        return None
    attempt.tournament_id = grant.tournament_id
    seen = ports.entrance.look(grant.tournament_id, grant.player_id)
    if is_forgotten(seen, ports):
        attempt.record(ports, "player_erased")
        return None
    attempt.player_id = grant.player_id
    if not attempt.comes_from(grant.network):
        # Taken from its player on the way. It is used up: they ask for another one.
        attempt.record(ports, "other_address")
        return None
    if not has_room(seen, grant.tournament_id, ports):
        attempt.record(ports, "full")
        return None
    if grant.expires_at_ms <= now_ms():
        attempt.record(ports, "token_over")
        return None
    attempt.record(ports, "allowed", allowed=True)
    own_news = f"me.{grant.tournament_id}.{grant.player_id}"
    if seen.holder is None:
        # A store that was emptied has forgotten whose sockets are open: they share this channel.
        # Before the lease: whoever gets theirs meanwhile is then the older of the two.
        _close_at_once(ports, own_news)
    entered = ports.entrance.enter(grant)
    if entered.before is not None:
        _close_at_once(ports, f"conn.{entered.before}")
    elif seen.holder is not None:
        # It was emptied since we looked.
        _close_at_once(ports, own_news)
    if entered.is_erased:
        # The erasure began while we decided, and may have looked for the lease before it stood.
        ports.connections.release(grant.tournament_id, grant.player_id)
        attempt.player_id = None
        attempt.record(ports, "player_erased")
        return None
    entry = Entry(grant, part_of(entered.sockets))
    if entry.part and part_of(entered.sockets - 1) != entry.part:
        _open_part(entry, ports)
    return entry


def _open_part(entry: Entry, ports: Ports) -> None:
    """Put the top where the first socket of a part finds it: where nothing happens it would come
    in seconds only."""
    try:
        view = ports.board.top(entry.grant.tournament_id, TOP_VISIBLE)
        if view is not None:
            ports.gateway.publish([for_part(top_frame(view), entry.part)])
    except TransientError as error:
        logger.warning("a part begins without the top", extra=telemetry.fields(error=str(error)))


# --- Azure Web PubSub asks and tells -----------------------------------------------------------


def service_event(call: Call, ports: Ports, events: WebPubSubEvents) -> Answer:
    """What the service asks (`connect`) and tells of sockets. Only it can sign that."""
    event = events.read(call.headers, call.raw_body)
    if isinstance(event, Connecting):
        entry = admitted(event.ticket, Attempt(event.address, event.user_agent), ports)
        if entry is None:
            raise ForbiddenError("this ticket lets nobody in")
        body, headers = admission(entry.grant, entry.channels())
        return Answer(body, headers=headers)
    if isinstance(event, Connected):
        greet(event.grant, ports)
        return Answer(status=204)
    if isinstance(event, Disconnected):
        ports.connections.left(event.grant)
        return Answer(status=204)
    raise ForbiddenError("players listen")  # it cuts who speaks


def greet(grant: Grant, ports: Ports) -> None:
    """Show a new socket the top: this service keeps no last frame."""
    view = ports.board.top(grant.tournament_id, TOP_VISIBLE)
    if view is not None:
        ports.gateway.publish([Frame(f"conn.{grant.connection_id}", top_frame(view).body)])


def is_forgotten(seen: Sight, ports: Ports) -> bool:
    """Whether the player who was looked at has asked to be forgotten.

    The request is one key of the store, and a shard may lose its own. Then the tournament's board
    still has a tombstone, and the record a mark, which is asked where no board can tell. Raises
    TransientError where nobody can: never a way in by mistake."""
    if seen.is_asked:
        return True
    if seen.tombstone is not None:
        return seen.tombstone
    return ports.tournaments.has_forgotten(seen.erasure_id)


def has_room(seen: Sight, tournament_id: TournamentId, ports: Ports) -> bool:
    """Whether the tournament may have one more connection. Several at the same time may all find
    the last place free."""
    if seen.holder is not None or seen.sockets < ports.entry.sockets:
        return True
    return ports.connections.let_go(tournament_id) < ports.entry.sockets


def _shown_channels(grant: Grant, part: int = 0) -> list[str]:
    tournament_id = grant.tournament_id
    return [
        in_part(f"top.{tournament_id}", part),
        f"me.{tournament_id}.{grant.player_id}",
        in_part(f"curve.{tournament_id}", part),
    ]


def _asked_for(call: Call, tournament_id: TournamentId) -> Attempt:
    agent = call.headers.get("User-Agent", "")
    return Attempt(call.address, agent, tournament_id)


def _close_at_once(ports: Ports, channel: str) -> None:
    try:
        ports.gateway.close(channel)
    except TransientError as error:
        # It is due to be closed within a second, and again until that works.
        logger.warning("a socket stays open a little", extra=telemetry.fields(error=str(error)))


# --- closing what is due -----------------------------------------------------------------------


def close_due(ports: Ports, now_ms: int) -> int:
    """Close the connections whose time has come; how many. Doing it twice is harmless."""
    closed = 0
    while connection_ids := ports.connections.due(now_ms, CLOSING_BATCH):
        for connection_id in connection_ids:
            ports.gateway.close(f"conn.{connection_id}")
        ports.connections.closed(connection_ids)
        closed += len(connection_ids)
    return closed


def keep_connections(ports: Ports) -> None:
    """What is due by the clock: close what has to be closed, and tell how many there are."""
    close_due(ports, now_ms())
    telemetry.OPEN_CONNECTIONS.set(ports.connections.count())


# --- wiring ------------------------------------------------------------------------------------


def routes(
    make_ports: Callable[[], Ports], a_minute: int, events: WebPubSubEvents | None = None
) -> list[Route]:
    """The operations of this function; `make_ports` is called with each request. A player may ask
    for a way in `a_minute` times; not at all where nobody can count, since the tickets are in the
    same store. With `events`
    the gateway is Azure Web PubSub, which asks in its own way; else it is one that asks about
    tickets. Nobody but the gateway that is there is answered."""
    asks = _ticket_route(make_ports) if events is None else _event_routes(make_ports, events)
    return [
        Route(
            "POST",
            "/v1/tournaments/<tournament_id>/connections",
            open_way.__doc__ or "",
            lambda call: open_way(call, make_ports()),
            ANY_ROLE,
            answers={201: WayIn},
            refused=lambda call, error: turned_away(call, error, make_ports()),
            max_body_bytes=1024,
            limit=Limit(Quota("connections", a_minute), when_away="closed"),
        ),
        *asks,
    ]


def _ticket_route(make_ports: Callable[[], Ports]) -> list[Route]:
    return [
        Route(
            "GET",
            "/internal/authorize",
            authorize.__doc__ or "",
            lambda call: authorize(call, make_ports()),
            None,
            answers={200: None},
            headers={"X-Ticket": "What the player's socket brought."},
            problems=frozenset({403, 503}),
        ),
    ]


def _event_routes(make_ports: Callable[[], Ports], events: WebPubSubEvents) -> list[Route]:
    return [
        Route(
            "OPTIONS",
            EVENTS_PATH,
            "Whose events are taken (CloudEvents web hooks, abuse protection).",
            lambda call: Answer(headers=events.allowed_origin(call.headers)),
            None,
            answers={200: None},
        ),
        Route(
            "POST",
            EVENTS_PATH,
            service_event.__doc__ or "",
            lambda call: service_event(call, make_ports(), events),
            None,
            answers={200: None, 204: None},
            problems=frozenset({400, 401, 403, 422, 503}),
        ),
    ]


telemetry.log_json()
_redis_settings = load_or_exit(RedisSettings, os.environ)
_database_settings = load_or_exit(DatabaseSettings, os.environ)
_kafka_settings = load_or_exit(KafkaSettings, os.environ)
_token_settings = load_or_exit(TokenSettings, os.environ)
_tombstone_settings = load_or_exit(TombstoneSettings, os.environ)
_limits = load_or_exit(LimitSettings, os.environ)
_entry = load_or_exit(EntranceSettings, os.environ)
_gateway_settings = load_or_exit(PlayersGatewaySettings, os.environ)
_client: FirstUse[RedisClient] = FirstUse(lambda: connect(_redis_settings.url))
_engine = engine_of(_database_settings)
_record = record_of(_engine)
_feed = FirstUse(
    lambda: KafkaFeed(_kafka_settings, timeout_seconds=RECORD_SECONDS, linger_ms=LINGER_MS)
)
_gateway = gateway_of(_gateway_settings)
_way_in = FirstUse(lambda: way_in_of(_gateway_settings))
tokens = tokens_of(_token_settings)


def _make_ports() -> Ports:
    return Ports(
        connections=RedisConnections(_client()),
        tournaments=Tournaments(lambda: RedisDirectory(_client()), _record),
        entrance=RedisEntrance(_client(), _tombstone_settings.bytes()),
        board=RedisBoard(_client()),
        feed=_feed(),
        gateway=_gateway(),
        way_in=_way_in(),
        entry=_entry,
    )


ports: FirstUse[Ports] = FirstUse(_make_ports)
closer = Repeating(
    "closer", CLOSING_SECONDS, lambda: keep_connections(ports()), "can't close sockets"
)


_ready: dict[str, Callable[[], Any]] = {
    "redis": lambda: check(_client()),
    "kafka": lambda: _feed().check(),
    "gateway": lambda: _gateway().check(),
}
_events = (
    WebPubSubEvents(_gateway_settings.host, _gateway_settings.hub, _gateway_settings.keys())
    if _gateway_settings.kind == "web-pubsub"
    else None
)
app = HttpApp(
    "on-connect",
    routes(ports, _entry.connections, _events),
    tokens=tokens,
    door=door_of(_client, _limits.failed_tokens, answer_seconds=2.0),
    client_address=_limits.client_address,
    ready=Needs(_ready, stores={"database": let_in_by(_database_settings, _engine)}),
    origins=load_or_exit(OriginSettings, os.environ).origins(),
)
# The framework forks its workers after the import: each needs the thread, also before the first
# request. Without a fork (a test client, the debug server) the first request starts it.
os.register_at_fork(after_in_child=closer.after_fork)


@served
def on_connect(request: Request) -> Response:
    """The entry that functions-framework serves."""
    closer.start()
    return app(request)
