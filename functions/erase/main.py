"""erase: forget a player everywhere, and show how far that is.

A request does, in this order: open it (from then on `on-connect` refuses the player), publish
`player.erased` to `gdpr-events` (from then on it is accepted: the log has it, and `archive` puts it
down in the record until it is done), note the places, publish the same to every tournament that the
player is in or may still enter (an event may be on its way), close the player's sockets. Every step
may be repeated, with the same ids. A request that broke off anywhere goes on by itself, from the
store where it is pending, or from the record where the store has lost it; the same request again
also finds tournaments that began meanwhile. A board is done when it has applied the erasure, and
then only is it said.

The record knows the player in tournaments whose boards went long ago, too: each of them is told.
It is done when it has marked the player, applied every erasure and names the player nowhere. While
it is away nobody can say so, or whom to tell: then that is pending, and made good later. Whoever
asks for the state looks again, and so does this function every ten seconds.
"""

from __future__ import annotations

import leaderboard.hosts.starting  # noqa: F401 - before all else: see there

# isort: split
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from flask import Request, Response
from places import (
    DONE,
    EVENTS_PLACE,
    LOOKED_AT,
    OVER,
    PENDING,
    PLACES,
    RECORD_PLACE,
    REQUEST_PLACE,
    SOCKETS_PLACE,
    TOURNAMENTS_PLACE,
    Ports,
    boards_pending,
    close_request,
    is_off_board,
    is_out_of_record,
    pending_of,
    place_of,
    reopen_request,
    said_by_record,
    tournament_of,
)
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
from leaderboard.hosts.first_use import FirstUse
from leaderboard.hosts.framework import served
from leaderboard.hosts.http import Answer, Call, HttpApp, ProblemError, Route
from leaderboard.hosts.readiness import Needs
from leaderboard.hosts.repeating import Repeating
from leaderboard.model import PlayerId, State, TournamentId
from leaderboard.ports import Erasure, Outgoing
from leaderboard.record_ports import Requested
from leaderboard.settings import (
    DatabaseSettings,
    ErasureSettings,
    EventSettings,
    GatewaySettings,
    KafkaSettings,
    OriginSettings,
    RedisSettings,
    TokenSettings,
    TombstoneSettings,
    load_or_exit,
)
from leaderboard.wiring import (
    engine_of,
    gateway_of,
    let_in_by,
    record_of,
    requests_of,
    snapshots_of,
    tokens_of,
)

SOURCE: Final = "/erase"
LIVE: Final = (State.SCHEDULED, State.RUNNING)
ACKNOWLEDGED_WITHIN_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 10.0
LOOKED_AFTER: Final = 10
"""How many of the oldest pending requests are gone on with at each look."""
TAKEN_UP: Final = 500
"""How many of the record's oldest are compared with the store at each look."""
ROLES: Final = frozenset({"operator", "service"})
REQUESTED: Final = "io.leaderboard.erasure.requested.v1"
"""A CloudEvent that asks to forget a player; its data are those of the request."""
logger = logging.getLogger("erase")


class ErasureRequest(BaseModel):
    """Whom to forget."""

    model_config = ConfigDict(strict=True)

    player_id: Id


class ErasureAccepted(BaseModel):
    erasure_id: str


class ErasureState(BaseModel):
    """How far the erasure is. A place is `gdpr-events`, `tournaments`, `sockets`, `record`,
    `request` or `board:<tournament>`; `done_at` has the time of each that is done, where it is
    known. What is pending at `due_at` is overdue."""

    erasure_id: str
    requested_at: str
    due_at: str
    state: Literal["pending", "done"]
    places: dict[str, Literal["pending", "done"]]
    done_at: dict[str, str]


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


def show_erasure(call: Call, ports: Ports, deadline_ms: int) -> Answer:
    """How far an erasure is, place by place."""
    erasure = _found(call.path["erasure_id"], ports)
    if erasure is None:
        raise NotFoundError("there is no such erasure")
    erasure = _made_good(erasure, ports)
    is_done = bool(erasure.places) and not pending_of(erasure)
    body = {
        "erasure_id": erasure.erasure_id,
        "requested_at": format_time_ms(erasure.requested_at_ms),
        "due_at": format_time_ms(erasure.opened_at_ms + deadline_ms),
        "state": DONE if is_done else PENDING,
        "places": dict(erasure.places),
        "done_at": {place: format_time_ms(at) for place, at in erasure.done_at_ms.items()},
    }
    return Answer(body)


def _found(erasure_id: str, ports: Ports) -> Erasure | None:
    """The request as the store has it; where that has lost it, or knows of it by the tournaments'
    logs alone, as the record has it."""
    erasure = ports.erasures.find(erasure_id)
    if erasure is not None and (erasure.player_id is not None or RECORD_PLACE in erasure.places):
        return erasure
    requested = ports.requests().find(erasure_id)
    if requested is None:
        return erasure
    if requested.player_id is not None:
        return _taken_up(requested, requested.player_id, ports)
    places = dict.fromkeys(requested.done_at_ms, DONE)
    at_ms = requested.requested_at_ms
    if not places:  # an older version has read of it
        return erasure
    return Erasure(erasure_id, at_ms, places, None, at_ms, requested.done_at_ms)


def forget(player_id: PlayerId, ports: Ports, requested_at_ms: int | None = None) -> Erasure:
    """Do all of it, or what is left of it. Safe to repeat, wherever it broke off before."""
    opened_at_ms = _now_ms() if requested_at_ms is None else requested_at_ms
    erasure = ports.erasures.begin(player_id, opened_at_ms)
    erasure_id = erasure.erasure_id
    _accept(player_id, erasure, ports)
    recorded = _recorded(player_id, erasure, ports)
    listed = {one.tournament_id: one.terms.state for one in ports.directory.all()}
    if recorded is not None:
        # A list that was emptied: the record knows who is still to come back.
        listed = {**recorded.live, **listed}
    shown = {t: _is_shown(t, player_id, ports) for t in listed}
    # A board that is away can't be asked: it is noted as pending, and asked next time. One that
    # is not over may show the player later, by an event that is on its way: it has to hear of it.
    open_still = {t for t, state in listed.items() if state not in OVER}
    noted = {place_of(t): PENDING for t, is_in in shown.items() if is_in is not False}
    noted |= {place_of(t): PENDING for t in open_still}
    if recorded is not None:
        noted |= {place_of(t): PENDING for t in recorded.knowing | recorded.erased}
    noted |= {**dict.fromkeys(PLACES, PENDING), EVENTS_PLACE: DONE}
    erasure = ports.erasures.mark(erasure_id, noted)
    if erasure.player_id is None:
        # The same request beside this one has just finished, and forgot whom it is about.
        erasure = ports.erasures.begin(player_id, opened_at_ms)
    # Who has neither a board nor a record of it would only refuse the event.
    pending = {tournament_of(place) for place in boards_pending(erasure)}
    told = {t for t in pending if shown.get(t) is not None}
    if recorded is not None:
        # One that is listed and not over has its schedule in the log, before this: its board was
        # just lost, and the record is behind. And also a stranger's: one whose board has just gone
        # was noted while it was in the list.
        told |= {t for t in pending - told if t in open_still or _is_on_record(t, ports)}
        told |= recorded.knowing
    _tell_tournaments(player_id, erasure, sorted(told), ports)
    for tournament_id in shown.keys() | told:
        _close_sockets(tournament_id, player_id, ports)
    done = {SOCKETS_PLACE: DONE}
    if recorded is not None:
        done[TOURNAMENTS_PLACE] = DONE  # else there may be some that have to be told yet
    erasure = ports.erasures.mark(erasure_id, done)
    if recorded is None and erasure.places.get(TOURNAMENTS_PLACE) == DONE:
        # Done by an earlier request, and it stays so: only who asks again can find what is new.
        raise TransientError("the record is away, and may know more than the request before")
    if pending and erasure.places.get(REQUEST_PLACE) == DONE:
        reopen_request(player_id, erasure, ports)
    return _look_again(erasure, ports)


@dataclass(frozen=True)
class _Recorded:
    """What the record says of a player's tournaments."""

    knowing: frozenset[TournamentId]
    """Those that know the player, also past ones."""
    erased: frozenset[TournamentId]
    """Those that have forgotten them already."""
    live: Mapping[TournamentId, State]
    """All that are not over."""


def _recorded(player_id: PlayerId, erasure: Erasure, ports: Ports) -> _Recorded | None:
    """None while the record is away."""

    def ask() -> _Recorded:
        record = ports.record()
        live = {one.tournament_id: one.terms.state for s in LIVE for one in record.all(s)}
        keys = record.pseudonyms(erasure.erasure_id)
        # Who has a key in the audit log has to be told, or it would stay for ever.
        keyed = {t for t, is_destroyed in keys.items() if t and not is_destroyed}
        knowing = frozenset(record.tournaments_of(player_id)) | keyed
        erased = frozenset(ports.requests().applied_in(erasure.erasure_id))
        return _Recorded(knowing, erased, live)

    return said_by_record(ask)


def _is_on_record(tournament_id: TournamentId, ports: Ports) -> bool:
    """Whether the record knows the tournament, for whomever."""
    return said_by_record(lambda: ports.record().find(tournament_id)) is not None


def _is_shown(tournament_id: TournamentId, player_id: PlayerId, ports: Ports) -> bool | None:
    """Whether the board knows the player; None when there is no board to ask."""
    view = ports.board.player(tournament_id, player_id)
    if view is None:
        return None
    if view.standings or ports.board.is_in(tournament_id, player_id):
        return True
    # It did: a request that the store has lost may not have seen to the last frame.
    return bool(ports.board.is_erased(tournament_id, player_id))


def _accept(player_id: PlayerId, erasure: Erasure, ports: Ports) -> None:
    """Put the request into the log, for the record and for other systems. Again with the same id
    as long as the record does not say that it has it: one that was set back has lost it."""
    if {erasure.places.get(p) for p in (EVENTS_PLACE, RECORD_PLACE, REQUEST_PLACE)} != {DONE}:
        data = PlayerErased(player_id=player_id, erasure_id=erasure.erasure_id)
        event = Event(erasure.erasure_id, SOURCE, _now_ms(), data, subject=player_id)
        ports.feed.publish([Outgoing(GDPR_EVENTS, event)])


def _tell_tournaments(
    player_id: PlayerId, erasure: Erasure, tournaments: list[TournamentId], ports: Ports
) -> None:
    """One event for each. Repeated ones have the same ids, and count once."""
    erasure_id, now_ms = erasure.erasure_id, _now_ms()

    def told(tournament_id: TournamentId) -> Event:
        data = PlayerErased(tournament_id=tournament_id, player_id=player_id, erasure_id=erasure_id)
        return Event(f"{erasure_id}/{tournament_id}", SOURCE, now_ms, data, subject=player_id)

    ports.feed.publish([Outgoing(WAGERS, told(one)) for one in tournaments])


def _close_sockets(tournament_id: TournamentId, player_id: PlayerId, ports: Ports) -> None:
    """Close first, release then: a lease that is gone can't be found again after a crash.

    Also where none is held: one that has run out may still stand in the store, with the id. The
    player's own channel last: a store that was emptied has forgotten whose sockets are open."""
    holder = ports.connections.holder(tournament_id, player_id)
    if holder is not None:
        ports.gateway.close(f"conn.{holder}")
    released = ports.connections.release(tournament_id, player_id)
    if released not in (None, holder):
        ports.gateway.close(f"conn.{released}")
    ports.gateway.close(f"me.{tournament_id}.{player_id}")


# --- what goes on by itself --------------------------------------------------------------------


def look_after(ports: Ports, deadline_ms: int) -> None:
    """Go on with what is pending, the oldest first, also where nobody asks; and tell how long the
    oldest has been waiting, and how many for too long."""
    _take_up(ports)
    _, waiting = ports.erasures.pending(LOOKED_AFTER)
    for erasure in waiting:
        _made_good(erasure, ports)
    count, waiting = ports.erasures.pending(1)
    telemetry.ERASURES_OPEN.set(count)
    ages = [max(_now_ms() - one.opened_at_ms, 0) / 1000 for one in waiting]
    telemetry.ERASURE_OLDEST.set(max(ages, default=0.0))
    telemetry.ERASURES_OVERDUE.set(ports.erasures.opened_before(_now_ms() - deadline_ms))


def _take_up(ports: Ports) -> None:
    """Open again what the record has and the store has lost, emptied or set back."""
    for one in said_by_record(lambda: ports.requests().pending(TAKEN_UP)) or ():
        if one.player_id is None:
            continue
        known = ports.erasures.find(one.erasure_id)
        if known is None or known.player_id is None:
            _taken_up(one, one.player_id, ports)
        else:
            # The list of what is open is one key, and is lost without the requests in it.
            ports.erasures.begin(one.player_id, known.opened_at_ms)


def _taken_up(requested: Requested, player_id: PlayerId, ports: Ports) -> Erasure:
    erasure = forget(player_id, ports, requested.requested_at_ms)
    # Done before, and the record had been set back: it has read of the request once more.
    _close_again(player_id, erasure, ports)
    return erasure


def _close_again(player_id: PlayerId, erasure: Erasure, ports: Ports) -> None:
    """A request that was done before and is done once more is closed in the record as well; where
    that still names the player, by a later look."""
    if erasure.player_id is None and is_out_of_record(player_id, erasure, ports):
        close_request(erasure, _now_ms(), ports)


def _made_good(erasure: Erasure, ports: Ports) -> Erasure:
    """Look again; and where not everyone was told, since the request broke off, the record was
    away or nobody had read of a tournament yet, tell them now."""
    player_id = erasure.player_id
    try:
        if player_id is not None and _is_somebody_untold(player_id, erasure, ports):
            return forget(player_id, ports)
    except TransientError as error:
        logger.warning("can't go on with it yet", extra=telemetry.fields(error=str(error)))
    return _look_again(erasure, ports)


def _is_somebody_untold(player_id: PlayerId, erasure: Erasure, ports: Ports) -> bool:
    """Whether the request has to be gone through once more; not while it can't be done."""
    if EVENTS_PLACE not in erasure.places:
        return True
    recorded = _recorded(player_id, erasure, ports)
    if recorded is None:
        return False
    told_all = erasure.places.get(TOURNAMENTS_PLACE) == DONE and erasure.places.keys() >= {*PLACES}
    return not told_all or not erasure.places.keys() >= {*map(place_of, recorded.knowing)}


def _look_again(erasure: Erasure, ports: Ports) -> Erasure:
    """Mark the places that no longer know the player; forget the id once nothing is pending."""
    player_id, erasure_id = erasure.player_id, erasure.erasure_id
    if player_id is None:
        return erasure
    done = {
        place: DONE
        for place in boards_pending(erasure)
        if is_off_board(player_id, tournament_of(place), erasure, ports)
    }
    if erasure.places.get(TOURNAMENTS_PLACE) == DONE:
        for place, is_done in LOOKED_AT.items():
            if erasure.places.get(place) == PENDING and is_done(player_id, erasure, ports):
                done[place] = DONE
    was_done = erasure.places.get(REQUEST_PLACE) == DONE
    erasure = ports.erasures.mark(erasure_id, done)
    if was_done:
        _close_again(player_id, erasure, ports)
    elif pending_of(erasure) == [REQUEST_PLACE] and close_request(erasure, _now_ms(), ports):
        erasure = ports.erasures.mark(erasure_id, {REQUEST_PLACE: DONE})
    return erasure


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# --- wiring ------------------------------------------------------------------------------------


def routes(ports: Callable[[], Ports], events: EventSettings, deadline_ms: int) -> list[Route]:
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
            lambda call: show_erasure(call, ports(), deadline_ms),
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
_deadline_ms = load_or_exit(ErasureSettings, os.environ).deadline_seconds * 1000
_client: FirstUse[RedisClient] = FirstUse(lambda: connect(_redis_settings.url))
_engine = engine_of(_database_settings)
_gateway = gateway_of(_gateway_settings)
_record, _snapshots, _requests = record_of(_engine), snapshots_of(_engine), requests_of(_engine)
_feed: FirstUse[KafkaFeed] = FirstUse(
    lambda: KafkaFeed(_kafka_settings, timeout_seconds=ACKNOWLEDGED_WITHIN_SECONDS)
)


def _connected() -> Ports:
    client, key = _client(), _tombstone_settings.bytes()
    return Ports(
        board=RedisBoard(client, key),
        directory=RedisDirectory(client),
        record=_record,
        snapshots=_snapshots,
        requests=_requests,
        erasures=RedisErasures(client, key),
        feed=_feed(),
        connections=RedisConnections(client),
        gateway=_gateway(),
    )


ports = FirstUse(_connected)
follower = Repeating(
    "follower", LOOK_SECONDS, lambda: look_after(ports(), _deadline_ms), "can't go on with erasures"
)
tokens = tokens_of(_token_settings)
app = HttpApp(
    "erase",
    routes(ports, load_or_exit(EventSettings, os.environ), _deadline_ms),
    tokens=tokens,
    ready=Needs(
        {"redis": lambda: check(_client()), "kafka": lambda: _feed().check()},
        stores={"database": let_in_by(_database_settings, _engine)},
    ),
    origins=load_or_exit(OriginSettings, os.environ).origins(),
)
os.register_at_fork(after_in_child=follower.after_fork)


@served
def erase(request: Request) -> Response:
    """The entry that functions-framework serves."""
    follower.start()
    return app(request)
