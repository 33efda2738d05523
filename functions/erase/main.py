"""erase: forget a player everywhere, and show how far that is.

A request does, in this order: open it (from then on `on-connect` refuses the player), note the
places, publish `player.erased` to every tournament that the player is in or may still enter (an
event may be on its way) and to `gdpr-events`, close the player's sockets. Every step may be
repeated, with the same ids, so a request that broke off anywhere is completed by the same request
again; that also finds tournaments that began meanwhile. A board is done when it has applied the
erasure, and then only is it said.

The record knows the player in tournaments whose boards went long ago, too: each of them is told.
It is done when it has marked the player, applied every erasure and names the player nowhere. While
it is away nobody can say so, or whom to tell: then that is pending, and made good later. Whoever
asks for the state looks again, and so does this function every ten seconds.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from flask import Request, Response
from pydantic import BaseModel, ConfigDict

from leaderboard import telemetry
from leaderboard.adapters.kafka_feed import KafkaFeed
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import RedisClient, check, connect
from leaderboard.adapters.redis_connections import RedisConnections
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.redis_erasures import RedisErasures
from leaderboard.errors import NotFoundError, TransientError
from leaderboard.events import GDPR_EVENTS, WAGERS, Event, Id, PlayerErased, format_time_ms
from leaderboard.frames import PARTS, for_part, top_frame
from leaderboard.guard import Guard
from leaderboard.hosts.first_use import FirstUse
from leaderboard.hosts.http import Answer, Call, HttpApp, ProblemError, Route
from leaderboard.hosts.repeating import Repeating
from leaderboard.model import TOP_VISIBLE, PlayerId, State, TournamentId
from leaderboard.ports import (
    BOARD_PLACE,
    Board,
    BoardView,
    Connections,
    Directory,
    Erasure,
    Erasures,
    Feed,
    Gateway,
    Outgoing,
)
from leaderboard.record_ports import Record, Snapshots
from leaderboard.settings import (
    DatabaseSettings,
    EventSettings,
    GatewaySettings,
    KafkaSettings,
    OriginSettings,
    RedisSettings,
    TokenSettings,
    TombstoneSettings,
    load_or_exit,
)
from leaderboard.wiring import engine_of, gateway_of, record_of, snapshots_of, tokens_of

SOURCE: Final = "/erase"
PENDING: Final = "pending"
DONE: Final = "done"
OVER: Final = (State.ENDED, State.CANCELLED)
LIVE: Final = (State.SCHEDULED, State.RUNNING)
EVENTS_PLACE: Final = "gdpr-events"
SOCKETS_PLACE: Final = "sockets"
RECORD_PLACE: Final = "record"
RECORD_SECONDS: Final = 5.0
"""The longest that a question to the record takes."""
ACKNOWLEDGED_WITHIN_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 10.0
LOOKED_AFTER: Final = 10
"""How many of the oldest pending requests are gone on with at each look."""
ROLES: Final = frozenset({"operator", "service"})
REQUESTED: Final = "io.leaderboard.erasure.requested.v1"
"""A CloudEvent that asks to forget a player; its data are those of the request."""
logger = logging.getLogger("erase")
T = TypeVar("T")
_in_time = Guard("the record", seconds=RECORD_SECONDS, breaks=False)


@dataclass(frozen=True)
class Ports:
    """Everywhere that knows a player. The record is made with each call until that works."""

    board: Board
    directory: Directory
    record: Callable[[], Record]
    snapshots: Callable[[], Snapshots]
    erasures: Erasures
    feed: Feed
    connections: Connections
    gateway: Gateway


class ErasureRequest(BaseModel):
    """Whom to forget."""

    model_config = ConfigDict(strict=True)

    player_id: Id


class ErasureAccepted(BaseModel):
    erasure_id: str


class ErasureState(BaseModel):
    """How far the erasure is. A place is `sockets`, `gdpr-events`, `record` or
    `board:<tournament>`."""

    erasure_id: str
    requested_at: str
    state: Literal["pending", "done"]
    places: dict[str, Literal["pending", "done"]]


# --- what is done ------------------------------------------------------------------------------


def request_erasure(call: Call, ports: Ports) -> Answer:
    """Forget a player. The same again for the same player; repeat it after an error."""
    try:
        erasure = forget(PlayerId(call.body.player_id), ports)
    except NotFoundError:
        raise TransientError("the store has forgotten the request on its way; repeat it") from None
    headers = {"Location": f"/v1/erasures/{erasure.erasure_id}"}
    return Answer(ErasureAccepted(erasure_id=erasure.erasure_id), status=202, headers=headers)


def take_event(call: Call, ports: Ports) -> Answer:
    """Forget the player that a CloudEvent (binary mode) names; as harmless to repeat."""
    if call.headers.get("ce-type") != REQUESTED:
        raise ProblemError(422, f"only {REQUESTED} in binary mode is taken here")
    return request_erasure(call, ports)


def show_erasure(call: Call, ports: Ports) -> Answer:
    """How far an erasure is, place by place."""
    erasure = ports.erasures.find(call.path["erasure_id"])
    if erasure is None:
        raise NotFoundError("there is no such erasure")
    erasure = _made_good(erasure, ports)
    is_done = bool(erasure.places) and PENDING not in erasure.places.values()
    body = {
        "erasure_id": erasure.erasure_id,
        "requested_at": format_time_ms(erasure.requested_at_ms),
        "state": DONE if is_done else PENDING,
        "places": dict(erasure.places),
    }
    return Answer(body)


def forget(player_id: PlayerId, ports: Ports) -> Erasure:
    """Do all of it, or what is left of it. Safe to repeat, wherever it broke off before."""
    erasure = ports.erasures.begin(player_id, _now_ms())
    erasure_id = erasure.erasure_id
    recorded = _recorded(player_id, ports)
    listed = {one.tournament_id: one.terms.state for one in ports.directory.all()}
    if recorded is not None:
        # A list that was emptied: the record knows who is still to come back.
        listed = {**recorded.live, **listed}
    shown = {t: _is_shown(t, player_id, ports) for t in listed}
    # A board that is away can't be asked: it is noted as pending, and asked next time. One that
    # is not over may show the player later, by an event that is on its way: it has to hear of it.
    open_still = {t for t, state in listed.items() if state not in OVER}
    noted = {_place(t): PENDING for t, is_in in shown.items() if is_in is not False}
    noted |= {_place(t): PENDING for t in open_still}
    if recorded is not None:
        noted |= {_place(t): PENDING for t in recorded.knowing}
    noted |= dict.fromkeys((EVENTS_PLACE, SOCKETS_PLACE, RECORD_PLACE), PENDING)
    erasure = ports.erasures.mark(erasure_id, noted)
    if erasure.player_id is None:
        # The same request beside this one has just finished, and forgot whom it is about.
        erasure = ports.erasures.begin(player_id, _now_ms())
    # Who has neither a board nor a record of it would only refuse the event.
    told = {t for t in map(_tournament, _boards_pending(erasure)) if shown.get(t) is not None}
    if recorded is not None:
        told |= {t for t in recorded.live if _place(t) in _boards_pending(erasure)}
        told |= recorded.knowing
    _publish(player_id, erasure, sorted(told), ports)
    for tournament_id in shown.keys() | told:
        _close_sockets(tournament_id, player_id, ports)
    done = {SOCKETS_PLACE: DONE}
    if recorded is not None:
        done[EVENTS_PLACE] = DONE  # else there may be tournaments that have to be told yet
    erasure = ports.erasures.mark(erasure_id, done)
    if recorded is None and erasure.places.get(EVENTS_PLACE) == DONE:
        # Done by an earlier request, and it stays so: only who asks again can find what is new.
        raise TransientError("the record is away, and may know more than the request before")
    return _look_again(erasure, ports)


@dataclass(frozen=True)
class _Recorded:
    """What the record says of a player's tournaments."""

    knowing: frozenset[TournamentId]
    """Those that know the player, also past ones."""
    live: Mapping[TournamentId, State]
    """All that are not over."""


def _recorded(player_id: PlayerId, ports: Ports) -> _Recorded | None:
    """None while the record is away."""

    def ask() -> _Recorded:
        record = ports.record()
        live = {one.tournament_id: one.terms.state for s in LIVE for one in record.all(s)}
        return _Recorded(frozenset(record.tournaments_of(player_id)), live)

    try:
        return _in_time(ask)
    except TransientError as error:
        logger.warning("the record is away", extra=telemetry.fields(error=str(error)))
        return None


def _is_shown(tournament_id: TournamentId, player_id: PlayerId, ports: Ports) -> bool | None:
    """Whether the board knows the player; None when there is no board to ask."""
    view = ports.board.player(tournament_id, player_id)
    if view is None:
        return None
    return bool(view.standings) or ports.board.is_in(tournament_id, player_id)


def _publish(
    player_id: PlayerId, erasure: Erasure, tournaments: list[TournamentId], ports: Ports
) -> None:
    """One event for each tournament, then one for other systems: it comes last, so where it is
    done, the others are. Repeated ones have the same ids, and count once."""
    erasure_id, now_ms = erasure.erasure_id, _now_ms()

    def event(event_id: str, data: PlayerErased) -> Event:
        return Event(event_id, SOURCE, now_ms, data, subject=player_id)

    outgoing = [
        Outgoing(
            WAGERS,
            event(
                f"{erasure_id}/{tournament_id}",
                PlayerErased(
                    tournament_id=tournament_id, player_id=player_id, erasure_id=erasure_id
                ),
            ),
        )
        for tournament_id in tournaments
    ]
    ports.feed.publish(outgoing)
    # Also as long as the record does not say that it has it: a record that was set back, or was of
    # a version that marked nobody, has lost it.
    if {erasure.places.get(place) for place in (EVENTS_PLACE, RECORD_PLACE)} != {DONE}:
        data = PlayerErased(player_id=player_id, erasure_id=erasure_id)
        ports.feed.publish([Outgoing(GDPR_EVENTS, event(erasure_id, data))])


def _close_sockets(tournament_id: TournamentId, player_id: PlayerId, ports: Ports) -> None:
    """Close first, release then: a lease that is gone can't be found again after a crash.

    Also where none is held: one that has run out may still stand in the store, with the id."""
    holder = ports.connections.holder(tournament_id, player_id)
    if holder is not None:
        ports.gateway.close(f"conn.{holder}")
    released = ports.connections.release(tournament_id, player_id)
    if released not in (None, holder):
        ports.gateway.close(f"conn.{released}")


def look_after(ports: Ports) -> None:
    """Go on with what is pending, the oldest first, also where nobody asks; and tell how long the
    oldest has been waiting."""
    _, waiting = ports.erasures.pending(LOOKED_AFTER)
    for erasure in waiting:
        if erasure.player_id is not None and EVENTS_PLACE not in erasure.places:
            forget(erasure.player_id, ports)  # the request broke off before it had noted the places
        else:
            _made_good(erasure, ports)
    count, waiting = ports.erasures.pending(1)
    telemetry.ERASURES_OPEN.set(count)
    ages = [max(_now_ms() - one.requested_at_ms, 0) / 1000 for one in waiting]
    telemetry.ERASURE_OLDEST.set(max(ages, default=0.0))


def _made_good(erasure: Erasure, ports: Ports) -> Erasure:
    """Look again; and where not everyone was told, since the record was away, tell them now."""
    player_id = erasure.player_id
    is_whole = player_id is None or erasure.places.get(EVENTS_PLACE) != PENDING
    try:
        if player_id is not None and not is_whole and _recorded(player_id, ports) is not None:
            return forget(player_id, ports)
    except TransientError as error:
        logger.warning("can't go on with it yet", extra=telemetry.fields(error=str(error)))
    return _look_again(erasure, ports)


def _look_again(erasure: Erasure, ports: Ports) -> Erasure:
    """Mark the places that no longer show the player; forget the id once nothing is pending."""
    player_id = erasure.player_id
    if player_id is None:
        return erasure
    done: dict[str, str] = {}
    for place in _boards_pending(erasure):
        tournament_id = _tournament(place)
        if ports.board.is_erased(tournament_id, player_id):
            _show_anew(ports.board.top(tournament_id, TOP_VISIBLE), ports)
            done[place] = DONE
        elif (past := _past(tournament_id, erasure, ports)) is not None:
            _show_anew(past, ports)
            done[place] = DONE
    told_all = erasure.places.get(EVENTS_PLACE) == DONE
    is_asked = told_all and erasure.places.get(RECORD_PLACE) == PENDING
    if is_asked and _is_out_of_record(player_id, erasure, ports):
        done[RECORD_PLACE] = DONE
    return ports.erasures.mark(erasure.erasure_id, done)


def _past(tournament_id: TournamentId, erasure: Erasure, ports: Ports) -> BoardView | None:
    """The top by the record of a tournament whose board was let go after its end, without the
    player; None where it is not so (yet)."""
    if ports.directory.find(tournament_id) is not None:
        return None

    def ask() -> BoardView | None:
        # Asked first: what is read after it was applied does not show the player.
        if not _is_applied(tournament_id, erasure, ports):
            return None
        view = ports.record().top(tournament_id, TOP_VISIBLE)
        return view if view is not None and view.terms.state in OVER else None

    return _said_by_record(ask)


def _is_out_of_record(player_id: PlayerId, erasure: Erasure, ports: Ports) -> bool:
    """Whether the record names the player nowhere, and never will: events of theirs that it has
    not read yet lie before the erasure in the log, so it has to have that of each tournament; in
    what lies beside them the mark keeps them out."""

    def ask() -> bool:
        record = ports.record()
        if not record.is_forgotten(erasure.erasure_id) or record.tournaments_of(player_id):
            return False
        told = [_tournament(p) for p in erasure.places if p.startswith(BOARD_PLACE)]
        return all(_is_applied(tournament_id, erasure, ports) for tournament_id in told)

    return _said_by_record(ask) or False


def _is_applied(tournament_id: TournamentId, erasure: Erasure, ports: Ports) -> bool:
    applied = ports.snapshots().erasures(tournament_id)
    return any(erasure_id == erasure.erasure_id for erasure_id, _ in applied)


def _said_by_record(ask: Callable[[], T]) -> T | None:
    """Never said by mistake: who is away says nothing."""
    try:
        return _in_time(ask)
    except TransientError as error:
        logger.warning("the record is away", extra=telemetry.fields(error=str(error)))
        return None


def _show_anew(view: BoardView | None, ports: Ports) -> None:
    """The gateway keeps the last `top` for who comes next, also for a day after the board was
    let go; nobody else renews that of a tournament that is over."""
    if view is not None:
        frame = top_frame(view)
        ports.gateway.publish([for_part(frame, part) for part in range(PARTS)])


def _boards_pending(erasure: Erasure) -> list[str]:
    places: Mapping[str, str] = erasure.places
    return [p for p, state in places.items() if p.startswith(BOARD_PLACE) and state == PENDING]


def _place(tournament_id: TournamentId) -> str:
    return f"{BOARD_PLACE}{tournament_id}"


def _tournament(place: str) -> TournamentId:
    return TournamentId(place.removeprefix(BOARD_PLACE))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# --- wiring ------------------------------------------------------------------------------------


def routes(ports: Callable[[], Ports], events: EventSettings) -> list[Route]:
    """The operations of this function; `ports` is called with each request."""
    return [
        Route(
            "POST",
            "/",
            take_event.__doc__ or "",
            lambda call: take_event(call, ports()),
            events.roles(ROLES),
            body=ErasureRequest,
            answers={202: ErasureAccepted},
        ),
        Route(
            "POST",
            "/v1/erasures",
            request_erasure.__doc__ or "",
            lambda call: request_erasure(call, ports()),
            ROLES,
            body=ErasureRequest,
            answers={202: ErasureAccepted},
        ),
        Route(
            "GET",
            "/v1/erasures/<erasure_id>",
            show_erasure.__doc__ or "",
            lambda call: show_erasure(call, ports()),
            ROLES,
            answers={200: ErasureState},
        ),
    ]


telemetry.log_json()
_redis_settings = load_or_exit(RedisSettings, os.environ)
_database_settings = load_or_exit(DatabaseSettings, os.environ)
_kafka_settings = load_or_exit(KafkaSettings, os.environ)
_token_settings = load_or_exit(TokenSettings, os.environ)
_gateway_settings = load_or_exit(GatewaySettings, os.environ)
_tombstone_settings = load_or_exit(TombstoneSettings, os.environ)
_client: FirstUse[RedisClient] = FirstUse(lambda: connect(_redis_settings.url))
_engine = engine_of(_database_settings)
_gateway = gateway_of(_gateway_settings)
_record = record_of(_engine)
_feed: FirstUse[KafkaFeed] = FirstUse(
    lambda: KafkaFeed(_kafka_settings, timeout_seconds=ACKNOWLEDGED_WITHIN_SECONDS)
)


def _connected() -> Ports:
    client, key = _client(), _tombstone_settings.bytes()
    return Ports(
        board=RedisBoard(client, key),
        directory=RedisDirectory(client),
        record=_record,
        snapshots=snapshots_of(_engine),
        erasures=RedisErasures(client, key),
        feed=_feed(),
        connections=RedisConnections(client),
        gateway=_gateway(),
    )


ports = FirstUse(_connected)
follower = Repeating(
    "follower", LOOK_SECONDS, lambda: look_after(ports()), "can't go on with erasures"
)
tokens = tokens_of(_token_settings)
app = HttpApp(
    "erase",
    routes(ports, load_or_exit(EventSettings, os.environ)),
    tokens=tokens,
    ready={"redis": lambda: check(_client()), "kafka": lambda: _feed().check()},
    origins=load_or_exit(OriginSettings, os.environ).origins(),
)
os.register_at_fork(after_in_child=follower.after_fork)


def erase(request: Request) -> Response:
    """The entry that functions-framework serves."""
    follower.start()
    return app(request)
