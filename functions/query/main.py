"""query: what the boards say, and the page that shows it.

Anyone with a token reads the boards; a player reads only their own standing and neighbours,
staff read everyone's. Each answer is one board at one sequence, which is its ETag. It comes from
the board itself in one round trip; where that is away, missing or behind, and for tournaments long
over, the same comes from the record and says so (`source`). What nobody can tell is 503, never
empty. What is held on a player they get by `export`.
"""

from __future__ import annotations

import leaderboard.hosts.starting  # noqa: F401 - before all else: see there

# isort: split
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from export import ExportPage, ExportQuery, Exports, export
from flask import Request, Response
from pydantic import BaseModel, ConfigDict, Field

from leaderboard import telemetry
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import BRIEF, RedisClient, check, connect
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.callers import Limit, Quota
from leaderboard.errors import ForbiddenError, NotFoundError
from leaderboard.events import Rules, format_time_ms
from leaderboard.hosts.files import StaticFiles, matches
from leaderboard.hosts.first_use import FirstUse
from leaderboard.hosts.framework import served
from leaderboard.hosts.http import ANY_ROLE, STAFF, Answer, Call, HttpApp, Route
from leaderboard.hosts.readiness import Needs
from leaderboard.model import PlayerId, Standing, State, TournamentId, masked, percentile
from leaderboard.ports import BoardView
from leaderboard.reads import Reads, Seen
from leaderboard.record_ports import Holdings
from leaderboard.settings import (
    DatabaseSettings,
    HttpUrl,
    LimitSettings,
    OriginSettings,
    RedisSettings,
    SocketUrl,
    TokenSettings,
    load_or_exit,
)
from leaderboard.wiring import door_of, engine_of, holdings_of, let_in_by, record_of, tokens_of

MAX_RADIUS = 50


# --- what is asked and answered ----------------------------------------------------------------


class ListQuery(BaseModel):
    state: State | None = None


class StandingsQuery(BaseModel):
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    after_rank: Annotated[int, Field(ge=0, lt=2**53)] = 0


class AroundQuery(BaseModel):
    radius: Annotated[int, Field(ge=0, le=MAX_RADIUS)] = 5


class TournamentSummary(BaseModel):
    tournament_id: str
    name: str
    state: State
    starts_at: str
    ends_at: str


class TournamentList(BaseModel):
    tournaments: list[TournamentSummary]


class TournamentDetail(TournamentSummary):
    rules: Rules
    players: int
    sequence: int


class StandingRow(BaseModel):
    """`subscore` is there only in tournaments whose scores have one."""

    rank: int
    player_id: str
    display_name: str
    score: int
    subscore: int = 0


class _OfBoard(BaseModel):
    tournament_id: str
    sequence: int
    source: Literal["board", "record"]
    players: int


class StandingsPage(_OfBoard):
    standings: list[StandingRow]


class PlayerStanding(_OfBoard, StandingRow):
    """`distance` in points to the next rank up, null at the top."""

    distance: int | None
    percentile: float


class PageConfig(BaseModel):
    """Where the page asks for its way in and for a player's token; null: on its own origin."""

    connect_url: str | None
    token_url: str | None


# --- the answers -------------------------------------------------------------------------------


def tournaments(call: Call, reads: Reads) -> Answer:
    """Every tournament, also past ones, or those of one state, in order of start."""
    found = [_summary(one.tournament_id, one.terms) for one in reads.all(call.query.state)]
    return Answer({"tournaments": found})


def tournament(call: Call, reads: Reads) -> Answer:
    """One tournament with its rules."""
    view = _known(reads.top(_tournament(call), 1)).view
    body = {
        **_summary(view.tournament_id, view.terms),
        "rules": view.terms.rules.model_dump(mode="json", exclude_none=True),
        "players": view.players,
        "sequence": view.sequence,
    }
    return _at_sequence(call, view, body)


def standings(call: Call, reads: Reads) -> Answer:
    """A page of the board."""
    return _page(call, reads.top(_tournament(call), call.query.limit, call.query.after_rank))


def player(call: Call, reads: Reads) -> Answer:
    """One player's standing."""
    player_id = _player_allowed(call)
    seen = _known(reads.player(_tournament(call), player_id))
    view = seen.view
    if not view.standings:
        raise NotFoundError("the player has no standing in this tournament")
    own = view.standings[0]
    body = {
        **_of_board(seen),
        **_row(view, own),
        "distance": view.distance,
        "percentile": percentile(own.rank, view.players),
    }
    return _at_sequence(call, view, body)


def around(call: Call, reads: Reads) -> Answer:
    """The standings centred on a player; none for a player without a standing."""
    player_id = _player_allowed(call)
    return _page(call, reads.around(_tournament(call), player_id, call.query.radius))


def _player_allowed(call: Call) -> PlayerId:
    """The player asked about, if the caller may: staff everyone, players themselves."""
    player_id = call.path["player_id"]
    caller = call.authenticated()
    if not caller.roles & STAFF and caller.subject != player_id:
        raise ForbiddenError("a player reads their own standing only")
    return PlayerId(player_id)


def _tournament(call: Call) -> TournamentId:
    return TournamentId(call.path["tournament_id"])


def _known(seen: Seen | None) -> Seen:
    if seen is None:
        raise NotFoundError("there is no such tournament")
    return seen


def _page(call: Call, found: Seen | None) -> Answer:
    seen = _known(found)
    rows = [_row(seen.view, one) for one in seen.view.standings]
    return _at_sequence(call, seen.view, {**_of_board(seen), "standings": rows})


def _at_sequence(call: Call, view: BoardView, body: dict[str, Any]) -> Answer:
    etag = f'"{view.sequence}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if matches(call.headers.get("If-None-Match", ""), etag):
        return Answer(status=304, headers=headers)
    return Answer(body, headers=headers)


def _summary(tournament_id: TournamentId, terms: Any) -> dict[str, Any]:
    return {
        "tournament_id": tournament_id,
        "name": terms.name,
        "state": terms.state.value,
        "starts_at": format_time_ms(terms.starts_at_ms),
        "ends_at": format_time_ms(terms.ends_at_ms),
    }


def _of_board(seen: Seen) -> dict[str, Any]:
    return {
        "tournament_id": seen.view.tournament_id,
        "sequence": seen.view.sequence,
        "source": seen.source.value,
        "players": seen.view.players,
    }


def _row(view: BoardView, standing: Standing) -> dict[str, Any]:
    name = standing.display_name
    row = {
        "rank": standing.rank,
        "player_id": standing.player_id,
        "display_name": masked(standing.player_id) if name is None else name,
        "score": standing.score.score,
    }
    if view.terms.has_subscores:
        row["subscore"] = standing.score.subscore
    return row


# --- wiring ------------------------------------------------------------------------------------


class PageSettings(BaseModel):
    """Where the page finds the rest of the platform."""

    model_config = ConfigDict(frozen=True)

    connect_url: HttpUrl | None = Field(None, alias="PAGE_CONNECT_URL")
    token_url: HttpUrl | None = Field(None, alias="PAGE_TOKEN_URL")
    gateway_url: SocketUrl | None = Field(None, alias="GATEWAY_CLIENT_URL")


def page_headers(page: PageSettings) -> dict[str, str]:
    """Security headers of the page: its scripts are ours, and reach what the settings name."""
    urls = [url for url in (page.connect_url, page.token_url, page.gateway_url) if url]
    origins = sorted({f"{parts.scheme}://{parts.netloc}" for parts in map(urlsplit, urls)})
    policy = [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        " ".join(["connect-src 'self'", *origins]),
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        # No text becomes markup: not by mistake either.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    return {
        "Content-Security-Policy": "; ".join(policy),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
        "Referrer-Policy": "no-referrer",
    }


def _listed(handler: Callable[[Call], Answer], limit: Limit) -> Route:
    return Route(
        "GET",
        "/v1/tournaments",
        tournaments.__doc__ or "",
        handler,
        ANY_ROLE,
        query=ListQuery,
        answers={200: TournamentList},
        limit=limit,
    )


def routes(
    reads: Callable[[], Reads],
    holdings: Callable[[], Holdings],
    page: PageSettings,
    a_minute: int,
) -> list[Route]:
    """The operations of this function; `reads` and `holdings` are called with each request. A
    player may call them `a_minute` times together. Where nobody can count they are let through:
    boards are read also while Redis is away, and the gateway's own limit still holds."""
    limit = Limit(Quota("requests", a_minute), when_away="open", meanwhile=True)

    def on(handler: Callable[[Call, Reads], Answer]) -> Callable[[Call], Answer]:
        return lambda call: handler(call, reads())

    config = {"connect_url": page.connect_url, "token_url": page.token_url}
    files = StaticFiles(Path(__file__).parent / "page", "page", page_headers(page))
    one, own = (
        "/v1/tournaments/<tournament_id>",
        "/v1/tournaments/<tournament_id>/players/<player_id>",
    )
    if_none_match = {"If-None-Match": "An ETag; 304 while the board stands at that sequence."}

    def read(
        path: str, handler: Callable[[Call, Reads], Answer], model: type[BaseModel], query: Any
    ) -> Route:
        return Route(
            "GET",
            path,
            handler.__doc__ or "",
            on(handler),
            ANY_ROLE,
            query=query,
            answers={200: model, 304: None},
            headers=if_none_match,
            limit=limit,
        )

    told = Route(
        "GET",
        "/page/config.json",
        "Where the page finds the rest.",
        lambda call: Answer(config),
        None,
        answers={200: PageConfig},
    )
    return [
        _listed(on(tournaments), limit),
        read(one, tournament, TournamentDetail, None),
        read(f"{one}/standings", standings, StandingsPage, StandingsQuery),
        read(own, player, PlayerStanding, None),
        read(f"{own}/around", around, StandingsPage, AroundQuery),
        Route(
            "GET",
            "/v1/players/<player_id>/export",
            export.__doc__ or "",
            lambda call: export(call, Exports(reads(), holdings)),
            ANY_ROLE,
            query=ExportQuery,
            answers={200: ExportPage},
            limit=limit,
        ),
        told,
        *files.routes(),
    ]


telemetry.log_json()
_redis_settings = load_or_exit(RedisSettings, os.environ)
_database_settings = load_or_exit(DatabaseSettings, os.environ)
_token_settings = load_or_exit(TokenSettings, os.environ)
_limits = load_or_exit(LimitSettings, os.environ)
_client: FirstUse[RedisClient] = FirstUse(lambda: connect(_redis_settings.url, BRIEF))
# Each on its own: either of them may be away when this process starts.
# Reading needs no tombstones, so this function does not get the key to them.
_board = FirstUse(lambda: RedisBoard(_client(), b""))
_engine = engine_of(_database_settings)
_record = record_of(_engine)
holdings = holdings_of(_engine)
reads = FirstUse(lambda: Reads(_board, lambda: RedisDirectory(_client()), _record))
tokens = tokens_of(_token_settings)


app = HttpApp(
    "query",
    routes(reads, holdings, load_or_exit(PageSettings, os.environ), _limits.requests),
    tokens=tokens,
    door=door_of(_client, _limits.failed_tokens),
    client_address=_limits.client_address,
    is_public=True,
    ready=Needs(
        {"redis or database": lambda: reads().check(lambda: check(_client()))},
        stores={
            "redis": lambda: check(_client()),
            "database": let_in_by(_database_settings, _engine),
        },
    ),
    origins=load_or_exit(OriginSettings, os.environ).origins(),
)


@served
def query(request: Request) -> Response:
    """The entry that functions-framework serves."""
    return app(request)
