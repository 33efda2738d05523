"""`GET /v1/players/{p}/export` of query, through its real host, over a real Redis and record."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from hosting import SETTINGS, Hosted, Keeper, bearer, check_description, hosted
from leaderboard import events as ev
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import connect
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.model import TournamentId, erasure_id_of
from logs import ALICE, BOB, TOMBSTONE_KEY, T, entry, joined, scheduled, scored
from ports import KnownTokens
from records import RecordedLog, engine_of, loaded

OWN, OTHER = bearer("alice", "player"), bearer("bob", "player")
ROUTE = "/v1/players/alice/export"
PAST = TournamentId("t2")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    with engine_of(loaded(f"sqlite:///{tmp_path}/record.sqlite")) as engine:
        yield engine


@pytest.fixture
def keeper(redis_url: str, engine: sa.Engine) -> Keeper:
    redis = connect(redis_url)
    redis.flushall()
    keeper = Keeper(RedisBoard(redis, TOMBSTONE_KEY), RedisDirectory(redis), RecordedLog(engine))
    keeper.apply(T, [scheduled(0), joined(1, ALICE, "Alice A"), scored(2, ALICE, 950)])
    keeper.apply(T, [scored(10 + n, BOB, 10) for n in range(20)])
    keeper.apply(T, [scored(40 + n, ALICE, 1) for n in range(5)])
    over = ev.TournamentEnded(tournament_id=PAST, decided_by="op")
    keeper.apply(PAST, [scheduled(0, PAST), scored(1, BOB, 7, tournament_id=PAST)])
    keeper.apply(PAST, [scored(2, ALICE, 4, tournament_id=PAST), entry(3, over)])
    return keeper


@pytest.fixture
def query(redis_url: str, keeper: Keeper, engine: sa.Engine) -> Iterator[Hosted]:
    settings = {**SETTINGS, "REDIS_URL": redis_url, "DATABASE_URL": str(engine.url)}
    with hosted("query", settings) as one:
        one.main.tokens.put(KnownTokens())
        yield one


def page(query: Hosted, headers: dict[str, str], path: str = ROUTE) -> Any:
    answer = query.client.get(path, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    told = answer.get_json()
    sys.modules["export"].ExportPage.model_validate(told)
    return told


def whole(query: Hosted, headers: dict[str, str], limit: int = 100) -> list[Any]:
    things, path = [], f"{ROUTE}?limit={limit}"
    while True:
        told = page(query, headers, path)
        things += told["things"]
        if told["next"] is None:
            return things
        path = f"{ROUTE}?limit={limit}&after={told['next']}"


def test_player_gets_everything_that_is_held_on_them(query: Hosted) -> None:
    things = whole(query, OWN)
    tournaments = {one["tournament_id"]: one for one in things if one["kind"] == "tournament"}
    assert tournaments.keys() == {T, PAST}
    assert tournaments[T]["display_name"] == "Alice A"
    assert tournaments[T]["standing"] == {
        "rank": 1, "score": 955, "subscore": 0, "source": "board",
    }  # fmt: skip
    assert (tournaments[PAST]["state"], tournaments[PAST]["standing"]["rank"]) == ("ended", 2)
    events = [one for one in things if one["kind"] == "event"]
    assert len(events) == 8
    assert {one["data"]["player_id"] for one in events} == {"alice"}
    assert "bob" not in str(things)


@pytest.mark.parametrize("limit", [1, 3, 500])
def test_pages_of_every_size_are_the_same_together(query: Hosted, limit: int) -> None:
    assert whole(query, OWN, limit) == whole(query, OWN)


@pytest.mark.parametrize("role", ["operator", "auditor", "service"])
def test_staff_get_it_too(query: Hosted, role: str) -> None:
    assert whole(query, bearer("someone", role)) == whole(query, OWN)


def test_others_get_nothing(query: Hosted) -> None:
    refused = query.client.get(ROUTE, headers=OTHER)
    assert refused.status_code == 403
    assert refused.content_type == "application/problem+json"
    assert "Alice" not in refused.text
    assert query.client.get(ROUTE, headers=bearer("alice", "guest")).status_code == 403
    assert query.client.get(ROUTE).status_code == 401
    assert whole(query, OWN), "what could have been told"


def test_who_was_forgotten_gets_an_empty_page(query: Hosted, keeper: Keeper) -> None:
    erasure_id = erasure_id_of(TOMBSTONE_KEY, ALICE)
    for name in (T, PAST):
        gone = ev.PlayerErased(tournament_id=name, player_id=ALICE, erasure_id=erasure_id)
        keeper.apply(name, [entry(90, gone)])
    assert page(query, OWN) == {"player_id": "alice", "things": [], "next": None}
    gone = ev.PlayerErased(player_id=ALICE, erasure_id=erasure_id)
    keeper(ev.GDPR_EVENTS, entry(0, gone))
    (request,) = page(query, OWN)["things"]
    assert request["kind"] == "erasure_request", "until it is done everywhere"


def test_who_was_never_here_gets_an_empty_page(query: Hosted) -> None:
    told = page(query, bearer("nobody", "player"), "/v1/players/nobody/export")
    assert told == {"player_id": "nobody", "things": [], "next": None}


@pytest.mark.parametrize(
    "asked",
    ["limit=0", "limit=501", "limit=x", "after=x", f"after={'A' * 513}",
     "after=WyJldmVudHMiLDEsdHJ1ZV0"],
)  # fmt: skip
def test_bad_page_is_refused(query: Hosted, asked: str) -> None:
    answer = query.client.get(f"{ROUTE}?{asked}", headers=OWN)
    # Nobody has ever been given such a place to go on at.
    is_a_place = asked in {"after=x", "after=WyJldmVudHMiLDEsdHJ1ZV0"}
    assert answer.status_code == (404 if is_a_place else 400)
    assert answer.content_type == "application/problem+json"


def test_record_that_is_away_is_no_empty_page(redis_url: str, keeper: Keeper) -> None:
    with hosted("query", {**SETTINGS, "REDIS_URL": redis_url}) as one:
        one.main.tokens.put(KnownTokens())
        assert one.client.get(ROUTE, headers=OWN).status_code == 503


def test_export_is_described(query: Hosted) -> None:
    check_description(query, {"/v1/players/{player_id}/export"})
