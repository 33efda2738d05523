"""Every route of the functions that players reach declares its limit, and what becomes of requests
that nobody can count: a new route without a declaration fails."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from hosting import SETTINGS, bearer, hosted
from leaderboard.hosts.http import HttpApp, Route
from logs import T, joined, scheduled, scored
from ports import KnownTokens
from records import engine_of, fold_of, loaded, take

Declared = tuple[str, str] | None
ONE: Final = "/v1/tournaments/<tournament_id>"
OPEN: Final = ("requests", "open")
DECLARED: Final[dict[tuple[str, str, str], Declared]] = {
    ("query", "GET", "/v1/tournaments"): OPEN,
    ("query", "GET", ONE): OPEN,
    ("query", "GET", f"{ONE}/standings"): OPEN,
    ("query", "GET", f"{ONE}/players/<player_id>"): OPEN,
    ("query", "GET", f"{ONE}/players/<player_id>/around"): OPEN,
    ("query", "GET", "/v1/players/<player_id>/export"): OPEN,
    ("on-connect", "POST", f"{ONE}/connections"): ("connections", "closed"),
}
"""Routes with a token. What is open to everybody is the edge's to limit."""
AWAY: Final = {"open": 200, "closed": 503}


def declared(name: str, app: HttpApp) -> dict[tuple[str, str, str], Declared]:
    return {
        (name, route.method, route.path): (
            None if route.limit is None else (route.limit.quota.name, route.limit.when_away)
        )
        for route in app.routes
        if route.roles is not None
    }


@pytest.mark.parametrize("name", ["query", "on-connect"])
def test_every_route_that_players_reach_declares_its_limit(name: str) -> None:
    wanted = {key: limit for key, limit in DECLARED.items() if key[0] == name}
    with hosted(name) as one:
        app: HttpApp = one.main.app
        assert declared(name, app) == wanted
        # A route that somebody adds is found, with a limit or without.
        added = Route("GET", "/v1/new", "N.", app.routes[0].handler, frozenset({"player"}))
        app.routes = (*app.routes, added)
        assert declared(name, app) != wanted


@pytest.mark.parametrize("key", DECLARED, ids=lambda key: f"{key[1]} {key[2]}")
def test_route_does_what_it_declares_while_redis_is_away(
    key: tuple[str, str, str], tmp_path: Path
) -> None:
    """Nobody listens where Redis should be; the record is there, and knows the tournament."""
    name, method, path = key
    limit = DECLARED[key]
    assert limit is not None
    url = f"sqlite:///{tmp_path}/record.sqlite"
    settings = {**SETTINGS, "DATABASE_URL": url, "REQUESTS_PER_MINUTE": "1"}
    with engine_of(loaded(url)) as engine, hosted(name, settings) as one:
        take(fold_of(engine), [scheduled(0), joined(1, "alice", "A"), scored(2, "alice", 5)])
        one.main.tokens.put(KnownTokens())
        filled = path.replace("<tournament_id>", T).replace("<player_id>", "alice")
        for _ in range(3):
            answer = one.client.open(filled, method=method, headers=bearer("alice", "player"))
            assert answer.status_code == AWAY[limit[1]], answer.text
