"""query through its real host, over a real Redis and a real database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from hosting import SETTINGS, Hosted, Keeper, bearer, check_description, hosted
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import connect
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.callers import Caller
from leaderboard.fold import LogEntry
from leaderboard.model import TournamentId
from logs import END_MS, START_MS, TOMBSTONE_KEY, T, ended, joined, scheduled, scored, wagered
from ports import KnownTokens
from records import RecordedLog, engine_of, loaded

ALICE = bearer("alice", "player")
STAFF = bearer("op", "operator")
U = TournamentId("t2")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sa.Engine]:
    """A record that knows nothing yet."""
    with engine_of(loaded(f"sqlite:///{tmp_path}/record.sqlite")) as engine:
        yield engine


class Log:
    """What `on-wager` and `archive` do with the same log."""

    def __init__(self, redis_url: str, database: sa.Engine) -> None:
        self.redis = connect(redis_url)
        self.recorded = RecordedLog(database)
        directory = RedisDirectory(self.redis)
        self.keeper = Keeper(RedisBoard(self.redis, TOMBSTONE_KEY), directory, self.recorded)

    def say(self, tournament_id: TournamentId, entries: list[LogEntry]) -> None:
        """Both take it in."""
        self.keeper.apply(tournament_id, entries)

    def lose_board(self, tournament_id: TournamentId) -> None:
        for key in self.redis.scan_iter(match=f"{{{tournament_id}}}*"):
            self.redis.delete(key)


@pytest.fixture
def log(redis_url: str, database: sa.Engine) -> Log:
    connect(redis_url).flushall()
    log = Log(redis_url, database)
    players = [scored(10 + i, f"p{i:03d}", 1000 - i) for i in range(120)]
    log.say(T, [scheduled(0), joined(1, "alice", "Alice A"), scored(2, "alice", 950, 7)])
    log.say(T, players)
    log.say(U, [scheduled(5, U, starts_ms=START_MS - 1, scoring={"kind": "stake"})])
    return log


@pytest.fixture
def query(redis_url: str, log: Log, database: sa.Engine) -> Iterator[Hosted]:
    settings = {
        **SETTINGS,
        "REDIS_URL": redis_url,
        "DATABASE_URL": str(database.url),
        "PAGE_CONNECT_URL": "https://connect.example/base",
        "PAGE_TOKEN_URL": "https://issuer.example/token",
        "GATEWAY_CLIENT_URL": "wss://gateway.example/ws",
    }
    with hosted("query", settings) as one:
        one.main.tokens.put(KnownTokens())
        yield one


@pytest.fixture
def without_redis(query: Hosted, database: sa.Engine) -> Iterator[Hosted]:
    """The same, and nobody listens where Redis should be."""
    settings = {**SETTINGS, "DATABASE_URL": str(database.url)}
    with hosted("query", settings) as one:
        one.main.tokens.put(KnownTokens())
        yield one


@pytest.fixture
def without_record(redis_url: str, log: Log) -> Iterator[Hosted]:
    """The same, and nobody listens where the database should be."""
    with hosted("query", {**SETTINGS, "REDIS_URL": redis_url}) as one:
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


def test_subscore_is_shown_only_where_scores_have_one(query: Hosted, log: Log) -> None:
    log.say(U, [wagered(6, "alice", 300, tournament_id=U)])
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


def test_radius_is_50_at_most(query: Hosted) -> None:
    told = _get(query, "/v1/tournaments/t1/players/p055/around?radius=50")
    assert len(told["standings"]) == 101
    for radius in ("51", "100000", "-1", "x"):
        path = f"/v1/tournaments/t1/players/alice/around?radius={radius}"
        response = query.client.get(path, headers=ALICE)
        assert response.status_code == 400
        assert [one["field"] for one in response.get_json(force=True)["errors"]] == ["radius"]


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


def test_ended_tournament_is_still_read(query: Hosted, log: Log) -> None:
    log.say(T, [ended(500)])
    assert _get(query, "/v1/tournaments/t1")["state"] == "ended"
    assert [t["tournament_id"] for t in _get(query, "/v1/tournaments?state=ended")["tournaments"]]
    assert _get(query, "/v1/tournaments/t1/standings")["sequence"] == 500


def test_reads_are_only_reads(query: Hosted) -> None:
    for method in (query.client.post, query.client.put, query.client.delete):
        response = method("/v1/tournaments/t1", headers=STAFF)
        assert response.status_code == 405
        assert response.headers["Allow"] == "GET, HEAD"


# --- board and record ----------------------------------------------------------------------------

OF_BOARDS = ["/standings?limit=5&after_rank=48", "/players/alice", "/players/alice/around"]


@pytest.mark.parametrize("path", ["", *OF_BOARDS])
def test_record_answers_as_the_board_did_when_it_is_gone(
    query: Hosted, log: Log, path: str
) -> None:
    url = f"/v1/tournaments/t1{path}"
    before = _get(query, url, ALICE)
    log.lose_board(T)
    response = query.client.get(url, headers=ALICE)
    assert response.status_code == 200
    assert response.headers["ETag"] == '"129"'
    assert response.get_json() == (before if path == "" else before | {"source": "record"})
    again = query.client.get(url, headers={**ALICE, "If-None-Match": '"129"'})
    assert (again.status_code, again.data) == (304, b"")


def test_store_that_was_emptied_makes_no_tournament_unknown(query: Hosted, log: Log) -> None:
    before = _get(query, "/v1/tournaments")
    log.redis.flushall()
    assert _get(query, "/v1/tournaments") == before
    assert _get(query, "/v1/tournaments/t1/standings")["source"] == "record"
    assert query.client.get("/v1/tournaments/nowhere", headers=STAFF).status_code == 404


@pytest.mark.parametrize("path", ["", *OF_BOARDS])
def test_redis_away_is_answered_by_the_record(
    query: Hosted, without_redis: Hosted, path: str
) -> None:
    expected = _get(query, f"/v1/tournaments/t1{path}", ALICE)
    told = _get(without_redis, f"/v1/tournaments/t1{path}", ALICE)
    assert told == (expected if path == "" else expected | {"source": "record"})
    assert _get(without_redis, "/v1/tournaments") == _get(query, "/v1/tournaments")
    # The record alone can't say that there is no such tournament: it may not have come so far.
    response = without_redis.client.get("/v1/tournaments/nowhere", headers=STAFF)
    assert response.status_code == 503


def test_record_away_costs_nothing_that_boards_can_tell(
    query: Hosted, without_record: Hosted, log: Log
) -> None:
    for path in ["", *(f"/t1{path}" for path in ["", *OF_BOARDS])]:
        url = f"/v1/tournaments{path}"
        assert _get(without_record, url, ALICE) == _get(query, url, ALICE)
    log.lose_board(T)
    response = without_record.client.get("/v1/tournaments/t1", headers=STAFF)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")


def test_past_tournament_is_read_when_its_board_has_gone(query: Hosted, log: Log) -> None:
    log.say(T, [ended(500)])
    before = {path: _get(query, f"/v1/tournaments/t1{path}", ALICE) for path in ["", *OF_BOARDS]}
    listed = _get(query, "/v1/tournaments?state=ended")
    assert [one["tournament_id"] for one in listed["tournaments"]] == ["t1"]
    log.lose_board(T)
    RedisDirectory(log.redis).remove(T)
    assert _get(query, "/v1/tournaments?state=ended") == listed
    for path, told in before.items():
        now = _get(query, f"/v1/tournaments/t1{path}", ALICE)
        assert now == (told if path == "" else told | {"source": "record"})


def test_board_that_lost_its_tail_is_not_shown(query: Hosted, log: Log) -> None:
    """The record was two seconds further than the board is now."""
    path = "/v1/tournaments/t1/standings?limit=1"
    assert _get(query, path)["source"] == "board"
    log.recorded.take(T, [scored(300, "winner", 5000)])
    deadline = time.monotonic() + 10
    while (told := _get(query, path))["source"] == "board":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert told["sequence"] == 300
    assert told["standings"][0]["player_id"] == "winner"
    log.say(T, [scored(300, "winner", 5000)])
    assert _get(query, path) == told | {"source": "board"}


def test_both_away_is_503_and_not_ready() -> None:
    with hosted("query") as one:
        one.main.tokens.put(KnownTokens())
        for path in ("", "/t1", "/t1/standings", "/t1/players/alice", "/t1/players/alice/around"):
            response = one.client.get(f"/v1/tournaments{path}", headers=STAFF)
            assert response.status_code == 503
            assert response.content_type == "application/problem+json"
            assert response.headers["Retry-After"] == "1"
        ready = one.client.get("/readyz")
        assert (ready.status_code, ready.get_json()["ready"]) == (503, False)
        assert one.client.get("/healthz").status_code == 200


def test_world_is_told_that_query_is_not_ready_and_no_place() -> None:
    """As Knative's proxy hands requests on; `kubectl port-forward` comes without."""
    with hosted("query") as one:
        inside, outside = (
            one.client.get("/readyz", headers=headers)
            for headers in ({}, {"X-Forwarded-For": "203.0.113.7, 10.1.0.9"})
        )
        assert inside.status_code == outside.status_code == 503
        assert "127.0.0.1" in inside.text
        assert set(outside.get_json()["dependencies"].values()) == {"not ready"}
        assert one.client.get("/metrics", headers={"X-Forwarded-For": "::1"}).status_code == 404
        assert one.client.get("/metrics").status_code == 200


def test_one_of_the_two_is_enough_to_be_ready(
    without_redis: Hosted, without_record: Hosted
) -> None:
    for one in (without_redis, without_record):
        assert one.client.get("/readyz").status_code == 200


def test_database_without_the_schema_counts_as_away(
    redis_url: str, log: Log, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "REDIS_URL": redis_url, "DATABASE_URL": f"sqlite:///{tmp_path}/new"}
    with hosted("query", settings) as one:
        one.main.tokens.put(KnownTokens())
        assert _get(one, "/v1/tournaments/t1/standings")["source"] == "board"
        assert len(_get(one, "/v1/tournaments")["tournaments"]) == 2
        assert one.client.get("/v1/tournaments/nowhere", headers=STAFF).status_code == 503


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
        ("DATABASE_URL", None),
        ("DATABASE_URL", "mysql://127.0.0.1/x"),
        ("JWKS_URL", None),
        ("JWT_ISSUER", None),
        ("ALLOWED_ORIGINS", "play.example"),
        ("PAGE_CONNECT_URL", "connect.example"),
        ("REQUESTS_PER_MINUTE", "0"),
        ("FAILED_TOKENS_PER_MINUTE", "-1"),
        ("CLIENT_ADDRESS", "middle"),
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


# --- how often a player may ask ----------------------------------------------------------------


@contextmanager
def limited(redis_url: str, database: sa.Engine, **settings: str) -> Iterator[Hosted]:
    """With few requests a minute."""
    given = {**SETTINGS, "REDIS_URL": redis_url, "DATABASE_URL": str(database.url), **settings}
    with hosted("query", {"REQUESTS_PER_MINUTE": "5", **given}) as one:
        one.main.tokens.put(KnownTokens())
        yield one


def test_player_asks_so_many_times_a_minute_on_all_routes_together(
    redis_url: str, log: Log, database: sa.Engine
) -> None:
    """And of all replicas: two of them here."""
    paths = [path for path in OF_ALICE + OPEN_TO_PLAYERS if "page" not in path][:5]
    with limited(redis_url, database) as one, limited(redis_url, database) as other:
        left, began = [], time.monotonic()
        for number, path in enumerate(paths):
            answer = (one, other)[number % 2].client.get(path, headers=ALICE)
            assert answer.status_code == 200, path
            assert answer.headers["RateLimit-Policy"] == '"requests";q=5;w=60'
            left.append(answer.headers["RateLimit"].split(";")[1])
        assert left == ["r=4", "r=3", "r=2", "r=1", "r=0"]
        for replica in (one, other, one):
            answer = replica.client.get(paths[0], headers=ALICE)
            assert answer.status_code == 429
            assert answer.content_type == "application/problem+json"
            assert answer.get_json()["status"] == 429
            passed = time.monotonic() - began
            assert 59 - passed <= int(answer.headers["Retry-After"]) <= 60
            assert answer.headers["RateLimit"].startswith('"requests";r=0;t=')
        assert other.client.get(paths[-1], headers=bearer("bob", "player")).status_code == 200
        for role in ("operator", "auditor", "service"):
            for _ in range(7):
                told = one.client.get(paths[0], headers=bearer("alice", role))
                assert (told.status_code, told.headers.get("RateLimit")) == (200, None)


def test_default_is_a_hundred_a_minute(query: Hosted) -> None:
    for _ in range(100):
        assert query.client.get("/v1/tournaments", headers=ALICE).status_code == 200
    assert query.client.get("/v1/tournaments", headers=ALICE).status_code == 429


def test_anothers_standing_and_unknown_things_count_too(
    redis_url: str, log: Log, database: sa.Engine
) -> None:
    with limited(redis_url, database) as one:
        for path in ("t1/players/bob", "nowhere", "t1/standings?limit=0", "t1", "t1/players/bob"):
            assert one.client.get(f"/v1/tournaments/{path}", headers=ALICE).status_code != 429
        assert one.client.get("/v1/tournaments/t1", headers=ALICE).status_code == 429


def test_reads_go_on_uncounted_while_redis_is_away(without_redis: Hosted) -> None:
    for _ in range(120):
        answer = without_redis.client.get("/v1/tournaments/t1/standings", headers=ALICE)
        assert (answer.status_code, answer.get_json()["source"]) == (200, "record")
        assert "RateLimit" not in answer.headers


def test_address_whose_tokens_prove_nothing_is_told_to_wait(
    redis_url: str, log: Log, database: sa.Engine
) -> None:
    path = "/v1/tournaments"
    with limited(redis_url, database, FAILED_TOKENS_PER_MINUTE="3") as one:
        one.main.tokens.put(RemembersAlice())
        bad = {"Authorization": "Bearer nonsense", "X-Forwarded-For": "192.0.2.1, 2001:db8:1:2::7"}
        same = {**bad, "X-Forwarded-For": "192.0.2.9, 2001:db8:1:2:9::"}
        told = [one.client.get(path, headers=h).status_code for h in (bad, same, bad, same, bad)]
        assert told == [401, 401, 401, 429, 429]
        for headers, status in (
            ({**ALICE, "X-Forwarded-For": "2001:db8:1:2::7"}, 200),
            ({**bearer("bob", "player"), "X-Forwarded-For": "2001:db8:1:2::7"}, 429),
            ({**bearer("bob", "player"), "X-Forwarded-For": "2001:db8:1:3::7"}, 200),
            ({**bad, "X-Forwarded-For": "2001:db8:1:3::7"}, 401),
        ):
            assert one.client.get(path, headers=headers).status_code == status


class RemembersAlice(KnownTokens):
    def known(self, token: str) -> Caller | None:
        return self.verify(token) if token.startswith("alice") else None


# --- the page ----------------------------------------------------------------------------------


def test_page_is_open_to_all_and_runs_only_our_scripts(query: Hosted) -> None:
    response = query.client.get("/")
    assert response.status_code == 200
    assert response.content_type == "text/html; charset=utf-8"
    policy = response.headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; ")
    for part in ("frame-ancestors 'none'", "base-uri 'none'", "trusted-types 'none'"):
        assert part in policy
    assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "camera=()" in response.headers["Permissions-Policy"]
    assert (
        "connect-src 'self' https://connect.example https://issuer.example wss://gateway.example;"
        in policy
    )
    for inline in ("<script>", "<style", " style=", " onclick=", " onload=", "javascript:"):
        assert inline not in response.text


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
