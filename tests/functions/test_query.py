"""query through its real host, over a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hosting import SETTINGS, Hosted, Keeper, bearer, check_description, hosted
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import connect
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.model import TournamentId
from logs import END_MS, START_MS, TOMBSTONE_KEY, T, ended, joined, scheduled, scored, wagered
from ports import KnownTokens

ALICE = bearer("alice", "player")
STAFF = bearer("op", "operator")
U = TournamentId("t2")


@pytest.fixture
def query(redis_url: str) -> Iterator[Hosted]:
    client = connect(redis_url)
    client.flushall()
    keeper = Keeper(RedisBoard(client, TOMBSTONE_KEY), RedisDirectory(client))
    players = [scored(10 + i, f"p{i:03d}", 1000 - i) for i in range(120)]
    keeper.apply(T, [scheduled(0), joined(1, "alice", "Alice A"), scored(2, "alice", 950, 7)])
    keeper.apply(T, players)
    keeper.apply(U, [scheduled(5, U, starts_ms=START_MS - 1, scoring={"kind": "stake"})])
    settings = {
        **SETTINGS,
        "REDIS_URL": redis_url,
        "PAGE_CONNECT_URL": "https://connect.example/base",
        "PAGE_TOKEN_URL": "https://issuer.example/token",
        "GATEWAY_CLIENT_URL": "wss://gateway.example/ws",
    }
    with hosted("query", settings) as one:
        one.main.tokens.put(KnownTokens())
        yield one


def _get(query: Hosted, path: str, headers: dict[str, str] | None = None) -> Any:
    response = query.client.get(path, headers=STAFF if headers is None else headers)
    assert response.status_code == 200, response.text
    return response.get_json()


def test_list_shows_every_tournament_in_order_of_start(query: Hosted) -> None:
    told = _get(query, "/v1/tournaments", ALICE)["tournaments"]
    assert [one["tournament_id"] for one in told] == ["t2", "t1"]
    assert told[1] == {
        "tournament_id": "t1",
        "name": "Cup",
        "state": "running",
        "starts_at": "2025-10-09T08:53:20.000Z",
        "ends_at": "2025-10-09T09:53:20.000Z",
    }


def test_list_can_be_of_one_state(query: Hosted) -> None:
    told = _get(query, "/v1/tournaments?state=scheduled")["tournaments"]
    assert [one["tournament_id"] for one in told] == ["t2"]
    assert _get(query, "/v1/tournaments?state=ended")["tournaments"] == []
    response = query.client.get("/v1/tournaments?state=paused", headers=STAFF)
    assert response.status_code == 400


def test_tournament_shows_rules_and_sequence(query: Hosted) -> None:
    told = _get(query, "/v1/tournaments/t1", ALICE)
    assert told["state"] == "running"
    assert told["players"] == 121
    assert told["sequence"] == 129
    assert told["rules"]["scoring"] == {"kind": "submitted"}
    assert told["rules"]["order"] == "descending"
    assert (END_MS, told["ends_at"]) == (1_760_003_600_000, "2025-10-09T09:53:20.000Z")


def test_standings_are_a_page_of_the_board(query: Hosted) -> None:
    told = _get(query, "/v1/tournaments/t1/standings?limit=3&after_rank=49", ALICE)
    assert told | {"standings": None} == {
        "tournament_id": "t1",
        "sequence": 129,
        "source": "board",
        "players": 121,
        "standings": None,
    }
    assert told["standings"] == [
        {"rank": 50, "player_id": "p049", "display_name": "p***", "score": 951, "subscore": 0},
        {"rank": 51, "player_id": "alice", "display_name": "Alice A", "score": 950, "subscore": 7},
        {"rank": 52, "player_id": "p050", "display_name": "p***", "score": 950, "subscore": 0},
    ]


def test_standings_have_100_rows_unless_asked(query: Hosted) -> None:
    assert len(_get(query, "/v1/tournaments/t1/standings")["standings"]) == 100
    assert len(_get(query, "/v1/tournaments/t1/standings?limit=1000")["standings"]) == 121
    assert _get(query, "/v1/tournaments/t1/standings?after_rank=121")["standings"] == []
    assert _get(query, "/v1/tournaments/t2/standings")["standings"] == []


@pytest.mark.parametrize(
    "values",
    ["limit=0", "limit=1001", "limit=-1", "limit=ten", "after_rank=-1", "after_rank=1e3"],
)
def test_bad_page_is_400(query: Hosted, values: str) -> None:
    response = query.client.get(f"/v1/tournaments/t1/standings?{values}", headers=STAFF)
    assert response.status_code == 400
    assert response.get_json(force=True)["errors"][0]["field"] == values.partition("=")[0]


def test_subscore_is_shown_only_where_scores_have_one(query: Hosted, redis_url: str) -> None:
    client = connect(redis_url)
    keeper = Keeper(RedisBoard(client, TOMBSTONE_KEY), RedisDirectory(client))
    keeper.apply(U, [wagered(6, "alice", 300, tournament_id=U)])
    rows = _get(query, "/v1/tournaments/t2/standings")["standings"]
    assert rows == [{"rank": 1, "player_id": "alice", "display_name": "al***ce", "score": 300}]


@pytest.mark.parametrize(
    "path",
    ["", "/standings", "/standings?limit=5", "/players/alice", "/players/alice/around"],
)
def test_read_that_is_still_true_is_304(query: Hosted, path: str) -> None:
    url = f"/v1/tournaments/t1{path}"
    first = query.client.get(url, headers=ALICE)
    assert first.headers["ETag"] == '"129"'
    assert first.headers["Cache-Control"] == "private, no-cache"
    for tag in ('"129"', 'W/"129"', '"1", "129"', "*"):
        again = query.client.get(url, headers={**ALICE, "If-None-Match": tag})
        assert again.status_code == 304
        assert again.data == b""
        assert again.headers["ETag"] == '"129"'
    assert query.client.get(url, headers={**ALICE, "If-None-Match": '"128"'}).status_code == 200


def test_player_reads_their_own_standing(query: Hosted) -> None:
    assert _get(query, "/v1/tournaments/t1/players/alice", ALICE) == {
        "tournament_id": "t1",
        "sequence": 129,
        "source": "board",
        "players": 121,
        "rank": 51,
        "player_id": "alice",
        "display_name": "Alice A",
        "score": 950,
        "subscore": 7,
        "distance": 1,
        "percentile": 58.33,
    }


def test_leader_has_no_distance(query: Hosted) -> None:
    told = _get(query, "/v1/tournaments/t1/players/p000")
    assert (told["rank"], told["distance"], told["percentile"]) == (1, None, 100.0)


def test_around_is_centred_on_the_player(query: Hosted) -> None:
    told = _get(query, "/v1/tournaments/t1/players/alice/around?radius=2", ALICE)
    assert [row["rank"] for row in told["standings"]] == [49, 50, 51, 52, 53]
    assert len(_get(query, "/v1/tournaments/t1/players/alice/around")["standings"]) == 11
    told = _get(query, "/v1/tournaments/t1/players/alice/around?radius=0")
    assert [row["player_id"] for row in told["standings"]] == ["alice"]


def test_radius_is_capped_at_50(query: Hosted) -> None:
    told = _get(query, "/v1/tournaments/t1/players/p055/around?radius=100000")
    assert len(told["standings"]) == 101
    response = query.client.get("/v1/tournaments/t1/players/alice/around?radius=-1", headers=ALICE)
    assert response.status_code == 400


def test_player_without_a_standing_is_404_and_has_nobody_around(query: Hosted) -> None:
    ghost = bearer("ghost", "player")
    response = query.client.get("/v1/tournaments/t1/players/ghost", headers=ghost)
    assert response.status_code == 404
    assert _get(query, "/v1/tournaments/t1/players/ghost/around", ghost)["standings"] == []


OPEN_TO_PLAYERS = ["/v1/tournaments", "/v1/tournaments/t1", "/v1/tournaments/t1/standings"]
OF_ALICE = ["/v1/tournaments/t1/players/alice", "/v1/tournaments/t1/players/alice/around"]


@pytest.mark.parametrize("path", OPEN_TO_PLAYERS + OF_ALICE)
@pytest.mark.parametrize("role", ["operator", "auditor", "service"])
def test_staff_read_everything(query: Hosted, path: str, role: str) -> None:
    _get(query, path, bearer("someone", role))


@pytest.mark.parametrize("path", OPEN_TO_PLAYERS + OF_ALICE)
def test_nobody_reads_without_a_token_or_a_role(query: Hosted, path: str) -> None:
    assert query.client.get(path).status_code == 401
    assert query.client.get(path, headers=bearer("x", "stranger")).status_code == 403


@pytest.mark.parametrize("path", OF_ALICE)
def test_player_may_not_read_another(query: Hosted, path: str) -> None:
    for subject in ("bob", "ALICE", "alice2", ""):
        response = query.client.get(path, headers=bearer(subject, "player"))
        assert response.status_code == 403
    # Nor find out whether there is such a player or tournament.
    unknown = path.replace("t1", "nowhere").replace("alice", "nobody")
    assert query.client.get(unknown, headers=bearer("bob", "player")).status_code == 403


@pytest.mark.parametrize("path", OPEN_TO_PLAYERS[1:] + OF_ALICE)
def test_unknown_tournament_is_404(query: Hosted, path: str) -> None:
    for tournament in ("nowhere", "%7Bt1%7D", "t1:x", "a" * 65, "%00"):
        response = query.client.get(path.replace("t1", tournament), headers=ALICE)
        assert response.status_code == 404


@pytest.mark.parametrize("path", OPEN_TO_PLAYERS[1:] + OF_ALICE)
def test_board_that_is_gone_is_503_and_not_empty(query: Hosted, redis_url: str, path: str) -> None:
    client = connect(redis_url)
    for key in client.scan_iter(match="{t1}*"):
        client.delete(key)
    response = query.client.get(path, headers=ALICE)
    assert response.status_code == 503
    assert response.content_type == "application/problem+json"
    assert response.headers["Retry-After"]


def test_ended_tournament_is_still_read(query: Hosted, redis_url: str) -> None:
    client = connect(redis_url)
    keeper = Keeper(RedisBoard(client, TOMBSTONE_KEY), RedisDirectory(client))
    keeper.apply(T, [ended(500)])
    assert _get(query, "/v1/tournaments/t1")["state"] == "ended"
    assert [t["tournament_id"] for t in _get(query, "/v1/tournaments?state=ended")["tournaments"]]
    assert _get(query, "/v1/tournaments/t1/standings")["sequence"] == 500


def test_reads_are_only_reads(query: Hosted) -> None:
    for method in (query.client.post, query.client.put, query.client.delete):
        response = method("/v1/tournaments/t1", headers=STAFF)
        assert response.status_code == 405
        assert response.headers["Allow"] == "GET, HEAD"


def test_redis_away_is_503_and_not_ready() -> None:
    with hosted("query") as one:
        one.main.tokens.put(KnownTokens())
        response = one.client.get("/v1/tournaments/t1", headers=STAFF)
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "1"
        ready = one.client.get("/readyz")
        assert (ready.status_code, ready.get_json()["ready"]) == (503, False)
        assert one.client.get("/healthz").status_code == 200


def test_function_describes_itself(query: Hosted) -> None:
    assert query.client.get("/readyz").status_code == 200
    check_description(
        query,
        {
            "/v1/tournaments",
            "/v1/tournaments/{tournament_id}",
            "/v1/tournaments/{tournament_id}/standings",
            "/v1/tournaments/{tournament_id}/players/{player_id}",
            "/v1/tournaments/{tournament_id}/players/{player_id}/around",
        },
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", None),
        ("REDIS_URL", "http://127.0.0.1"),
        ("JWKS_URL", None),
        ("JWT_ISSUER", None),
        ("ALLOWED_ORIGINS", "play.example"),
        ("PAGE_CONNECT_URL", "connect.example"),
    ],
)
def test_wrong_setting_stops_the_start_and_is_named(
    name: str, value: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {k: v for k, v in SETTINGS.items() if k != name}
    if value is not None:
        settings[name] = value
    with pytest.raises(SystemExit) as stopped, hosted("query", settings):
        pass
    assert stopped.value.code == 2
    assert name in capsys.readouterr().err


# --- the page ----------------------------------------------------------------------------------


def test_page_is_open_to_all_and_runs_only_our_scripts(query: Hosted) -> None:
    response = query.client.get("/")
    assert response.status_code == 200
    assert response.content_type == "text/html; charset=utf-8"
    policy = response.headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert (
        "connect-src 'self' https://connect.example https://issuer.example wss://gateway.example;"
        in policy
    )
    assert "<script>" not in response.text
    assert " style=" not in response.text


def test_parts_of_the_page_have_their_types(query: Hosted) -> None:
    for name, content_type in [("page.js", "text/javascript"), ("style.css", "text/css")]:
        response = query.client.get(f"/page/{name}")
        assert response.status_code == 200
        assert response.content_type == f"{content_type}; charset=utf-8"
        assert response.headers["Cache-Control"] == "no-cache"
        tag = {"If-None-Match": response.headers["ETag"]}
        assert query.client.get(f"/page/{name}", headers=tag).status_code == 304


@pytest.mark.parametrize(
    "path",
    ["../main.py", "..%2fmain.py", "%2e%2e/main.py", "main.py", "", "nothing.js", "a/b.js"],
)
def test_nothing_but_the_page_is_served(query: Hosted, path: str) -> None:
    response = query.client.get(f"/page/{path}")
    assert response.status_code == 404
    assert "import" not in response.text


def test_page_learns_where_the_rest_is(query: Hosted) -> None:
    response = query.client.get("/page/config.json")
    assert response.get_json() == {
        "connect_url": "https://connect.example/base",
        "token_url": "https://issuer.example/token",
    }


def test_page_without_settings_asks_its_own_origin() -> None:
    with hosted("query") as one:
        told = one.client.get("/page/config.json").get_json()
        assert told == {"connect_url": None, "token_url": None}
