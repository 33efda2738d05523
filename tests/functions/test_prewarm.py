"""tournament's floors, through its real host over a real Redis and a record, and its raising of
revisions over HTTP, against a server that answers as Kubernetes does."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from api_server import ApiServer, api_server
from hosting import FUNCTIONS, SETTINGS, Hosted, Keeper, bearer, check_description, hosted
from leaderboard import events as ev
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import RedisClient, connect
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.errors import TransientError
from leaderboard.fold import LogEntry, decide
from leaderboard.hosts.repeating import Repeating
from leaderboard.model import Offset, TournamentId
from leaderboard.ports import Summary
from leaderboard.prewarming import KNOWN, MIN_SCALE, RAISED
from leaderboard.reads import Reads
from leaderboard.stack.process import LOOPBACK, Process, accepts, free_port
from logs import TOMBSTONE_KEY, scheduled
from ports import KnownTokens, MemoryFeed
from records import RecordedLog, engine_of, loaded
from sockets import eventually

OPERATOR = bearer("olga", "operator")
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
OWN = {MIN_SCALE: "2", "autoscaling.knative.dev/max-scale": "50"}


@dataclass
class Stage:
    """The function, what applies its log to boards and record, and its clock."""

    one: Hosted
    keeper: Keeper
    feed: MemoryFeed
    redis: RedisClient
    now_ms: int

    def floor(self, function: str) -> int:
        """As KEDA reads it. Later moments forget what was read before."""
        self.one.main.floors._reading = None
        answer = self.one.client.get(f"/internal/v1/floors/{function}")
        assert answer.status_code == 200, answer.get_data(as_text=True)
        told = answer.get_json()
        assert told.keys() == {"floor"}
        assert type(told["floor"]) is int
        return int(told["floor"])

    def schedule(self, name: str, starts_in_ms: int, **changes: Any) -> Any:
        """Schedule an hour, `starts_in_ms` from the real now on."""
        self.one.main.floors._reading = None
        starts_ms = int(time.time() * 1000) + starts_in_ms
        body = {
            "tournament_id": name,
            "name": "Cup",
            "starts_at": ev.format_time_ms(starts_ms),
            "ends_at": ev.format_time_ms(starts_ms + HOUR_MS),
            "rules": {"scoring": {"kind": "stake"}},
            **changes,
        }
        return self.one.client.post("/v1/tournaments", json=body, headers=OPERATOR)


@pytest.fixture
def stage(redis_url: str, tmp_path: Path) -> Iterator[Stage]:
    redis = connect(redis_url)
    redis.flushall()
    board, directory = RedisBoard(redis, TOMBSTONE_KEY), RedisDirectory(redis)
    with ExitStack() as stack:
        engine = stack.enter_context(engine_of(loaded(f"sqlite:///{tmp_path}/record.sqlite")))
        keeper = Keeper(board, directory, RecordedLog(engine))
        feed = MemoryFeed(keeper)
        record = SqlRecord(engine)
        settings = {**SETTINGS, "REDIS_URL": redis_url, "DATABASE_URL": str(engine.url)}
        one = stack.enter_context(hosted("tournament", settings))
        one.main.tokens.put(KnownTokens())
        one.main.SHOWN_WITHIN_SECONDS = 0.5
        reads = Reads(lambda: board, lambda: directory, lambda: record)
        one.main.ports.put(one.main.Ports(reads, feed))
        found = Stage(one, keeper, feed, redis, int(time.time() * 1000))
        one.main.floors._clock = lambda: found.now_ms
        yield found
        redis.close()


# --- KEDA asks ---------------------------------------------------------------------------------


def test_tournament_lifts_the_floors_before_it_starts_and_lets_them_go(stage: Stage) -> None:
    assert {stage.floor(name) for name in KNOWN} == {2}
    assert stage.schedule("t1", 2 * HOUR_MS).status_code == 201
    start_ms = stage.now_ms + 2 * HOUR_MS
    seen = []
    for now_ms in (start_ms - 31 * MINUTE_MS, start_ms - 29 * MINUTE_MS, start_ms + HOUR_MS):
        stage.now_ms = now_ms
        seen.append({stage.floor(name) for name in KNOWN})
    assert seen == [{2}, {10}, {10}]
    stage.now_ms = start_ms + HOUR_MS + 2 * MINUTE_MS  # nobody wrote its end: not for ever
    assert stage.floor("on-wager") == 2


@pytest.mark.parametrize("verb", ["end", "cancel"])
def test_floor_is_let_go_as_soon_as_staff_end_or_cancel(stage: Stage, verb: str) -> None:
    stage.schedule("t1", 20 * MINUTE_MS)
    assert stage.floor("gateway") == 10
    stage.one.client.post(f"/v1/tournaments/t1/{verb}", headers=OPERATOR)
    assert stage.floor("gateway") == 2


def test_overlapping_tournaments_add_up_and_keep_to_the_ceiling(stage: Stage) -> None:
    stage.schedule("t1", 40 * MINUTE_MS)
    stage.schedule("t2", 40 * MINUTE_MS, prewarm={"expected_players": 12_345})
    stage.now_ms += 20 * MINUTE_MS
    assert (stage.floor("on-wager"), stage.floor("query")) == (25, 12)
    stage.schedule("t3", 40 * MINUTE_MS, prewarm={"floor": 45})
    assert (stage.floor("on-wager"), stage.floor("query")) == (50, 50)
    metrics = stage.one.client.get("/metrics").get_data(as_text=True)
    assert 'leaderboard_floor_replicas{function="query"} 50.0' in metrics
    assert "leaderboard_floor_claimed_replicas 57.0" in metrics


def test_claims_above_the_ceiling_are_logged_once(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("t1", "t2"):
        stage.schedule(name, 20 * MINUTE_MS, prewarm={"floor": 30})
    caplog.clear()
    for _ in range(3):
        stage.floor("on-wager")
    (line,) = (one for one in caplog.records if "ceiling" in one.message)
    assert line.fields == {"claimed": 60, "ceiling": 50}  # type: ignore[attr-defined]


def test_wishes_in_the_log_that_nobody_understands_do_no_harm(stage: Stage) -> None:
    now_ms = int(time.time() * 1000)
    one = scheduled(0, "t1", starts_ms=now_ms + MINUTE_MS, ends_ms=now_ms + HOUR_MS)
    data = one.event.data
    assert isinstance(data, ev.TournamentScheduled)
    odd = one.event._replace(data=data.model_copy(update={"prewarm": "as many as it takes"}))
    stage.keeper.apply(TournamentId("t1"), [LogEntry(Offset(0), now_ms, odd)])
    assert stage.floor("on-wager") == 10


@pytest.mark.parametrize("name", ["tournament", "nothing", "On-Wager"])
def test_function_that_has_no_floor_is_404(stage: Stage, name: str) -> None:
    answer = stage.one.client.get(f"/internal/v1/floors/{name}")
    assert (answer.status_code, answer.content_type) == (404, "application/problem+json")
    assert name in answer.get_json(force=True)["detail"]
    assert stage.one.client.get("/internal/v1/floors/a b").status_code == 404


def test_nobody_is_told_a_floor_while_nobody_knows_the_schedule() -> None:
    """503: KEDA keeps what runs. A floor of 2 would be a guess that costs a tournament."""
    with hosted("tournament") as one:
        answer = one.client.get("/internal/v1/floors/on-wager")
        assert (answer.status_code, answer.content_type) == (503, "application/problem+json")


def test_emptied_redis_makes_no_floor_smaller(stage: Stage) -> None:
    stage.schedule("t1", 20 * MINUTE_MS)
    stage.redis.flushall()
    assert stage.floor("on-wager") == 10


def test_function_describes_its_floors(stage: Stage) -> None:
    check_description(stage.one, {"/internal/v1/floors/{function}"})


# --- scheduling --------------------------------------------------------------------------------


def test_answer_says_since_when_a_tournament_is_prepared_for(stage: Stage) -> None:
    told = stage.schedule("t1", HOUR_MS, prewarm={"floor": 5, "lead_minutes": 45}).get_json()
    assert told["prewarm"]["replicas"] == 5
    assert told["prewarm"]["warnings"] == []
    begins_ms = ev.parse_time_ms(told["prewarm"]["begins_at"])
    assert abs(begins_ms - stage.now_ms - 15 * MINUTE_MS) < MINUTE_MS
    data = stage.feed.events(ev.WAGERS)[0].data
    assert isinstance(data, ev.TournamentScheduled)
    assert data.prewarm == {"floor": 5, "lead_minutes": 45}
    assert stage.schedule("t2", HOUR_MS, prewarm={"floor": 0}).get_json()["prewarm"] is None


def test_start_that_is_too_near_is_answered_and_logged(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    (warned,) = stage.schedule("t1", 5 * MINUTE_MS).get_json()["prewarm"]["warnings"]
    assert warned["reason"] == "too_late"
    assert "in 5 min" in warned["detail"]
    fields = [getattr(one, "fields", {}) for one in caplog.records]
    assert {"tournament": "t1", **warned} in fields
    metrics = stage.one.client.get("/metrics").get_data(as_text=True)
    assert 'leaderboard_prewarm_concerns_total{reason="too_late"}' in metrics


def test_two_tournaments_that_claim_more_than_the_ceiling_are_answered(stage: Stage) -> None:
    first = stage.schedule("t1", HOUR_MS, prewarm={"floor": 30}).get_json()
    assert first["prewarm"]["warnings"] == []
    second = stage.schedule("t2", HOUR_MS, prewarm={"expected_players": 300_000}).get_json()
    (warned,) = second["prewarm"]["warnings"]
    assert warned["reason"] == "above_ceiling"
    assert "60 replicas" in warned["detail"]
    assert "t1, t2" in warned["detail"]
    again = stage.schedule("t2", HOUR_MS, prewarm={"floor": 20}).get_json()
    assert again["prewarm"]["warnings"] == []


@pytest.mark.parametrize(
    ("prewarm", "field"),
    [
        ({"floor": 51}, "prewarm.floor"),
        ({"floor": "10"}, "prewarm.floor"),
        ({"floor": -1}, "prewarm.floor"),
        ({"lead_minutes": 1.5}, "prewarm.lead_minutes"),
        ({"expected_players": True}, "prewarm.expected_players"),
        ("lots", "prewarm"),
    ],
)
def test_wishes_that_can_not_be_are_refused_by_name(stage: Stage, prewarm: Any, field: str) -> None:
    answer = stage.schedule("t1", HOUR_MS, prewarm=prewarm)
    assert answer.status_code == 422
    (error,) = answer.get_json(force=True)["errors"]
    assert error["field"] == field
    assert stage.feed.events(ev.WAGERS) == []


def test_schedule_counts_though_nobody_can_tell_the_others_claims(stage: Stage) -> None:
    def away() -> Any:
        raise TransientError("away")

    stage.one.main.floors._tournaments = away
    answer = stage.schedule("t1", HOUR_MS)
    assert (answer.status_code, answer.get_json()["prewarm"]) == (201, None)


# --- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"PREWARM_FLOOR": "60"}, "PREWARM_FLOOR: 60 is above PREWARM_CEILING, which is 50"),
        ({"PREWARM_LEAST": "5", "PREWARM_CEILING": "4"}, "PREWARM_FLOOR: 10 is above"),
        (
            {"PREWARM_LEAST": "5", "PREWARM_CEILING": "4", "PREWARM_FLOOR": "4"},
            "PREWARM_LEAST: 5 is above PREWARM_CEILING, which is 4",
        ),
        ({"PREWARM_LEAD_MINUTES": "-1"}, "PREWARM_LEAD_MINUTES"),
        ({"PREWARM_PLAYERS_PER_REPLICA": "0"}, "PREWARM_PLAYERS_PER_REPLICA"),
        ({"PREWARM_SERVICES": "query,erase"}, "PREWARM_SERVICES: 'erase' is none of"),
        ({"PREWARM_SERVICES": "query"}, "PREWARM_SERVICES: is set, and there is no token in /var"),
        ({"KUBERNETES_API_URL": "kubernetes"}, "KUBERNETES_API_URL"),
    ],
)
def test_wrong_setting_stops_the_start_and_is_named(
    settings: dict[str, str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), hosted("tournament", {**SETTINGS, **settings}):
        pass
    assert told in capsys.readouterr().err


# --- revisions ---------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path / "account") as started:
        started.put("query-00001", "query", OWN, "reserve")
        started.put("query-00002", "query", OWN)
        started.put("on-connect-00001", "on-connect", {**OWN, MIN_SCALE: "12"})
        started.put("erase-00001", "erase", OWN)
        yield started


def raising(stage: Stage, server: ApiServer) -> Any:
    """One replica's own, over the real adapter."""
    main, services = stage.one.main, ("query", "on-connect")
    stage.one.main.floors._reading = None
    revisions = main.revisions_of(server.url, server.folder)
    return main.Raising(revisions, main.floors, services)


def scales(server: ApiServer) -> dict[str, str | None]:
    return {name: server.annotations(name).get(MIN_SCALE) for name in server.revisions}


def test_routed_revisions_are_raised_and_given_their_own_floor_back(
    stage: Stage, server: ApiServer
) -> None:
    before = {name: dict(server.annotations(name)) for name in server.revisions}
    replica = raising(stage, server)
    replica()
    assert server.patches() == []
    stage.schedule("t1", 20 * MINUTE_MS, prewarm={"floor": 10})
    raising(stage, server)()
    assert scales(server) == {
        "query-00001": "2",
        "query-00002": "10",
        "on-connect-00001": "12",
        "erase-00001": "2",
    }
    for _ in range(3):
        raising(stage, server)()
    assert server.patches() == ["query-00002"]
    stage.one.client.post("/v1/tournaments/t1/cancel", headers=OPERATOR)
    raising(stage, server)()
    assert {name: server.annotations(name) for name in server.revisions} == before
    assert server.patches() == ["query-00002"] * 2


def test_revision_that_is_rolled_out_meanwhile_is_raised_and_the_old_one_let_go(
    stage: Stage, server: ApiServer
) -> None:
    stage.schedule("t1", 20 * MINUTE_MS)
    raising(stage, server)()
    old = server.revisions["query-00002"]["metadata"]["labels"]
    old["serving.knative.dev/routingState"] = "reserve"
    server.put("query-00003", "query", OWN)
    raising(stage, server)()
    assert server.annotations("query-00002") == OWN
    assert server.annotations("query-00003")[MIN_SCALE] == "10"


def test_revision_without_a_floor_of_its_own_is_left_alone_without_a_tournament(
    stage: Stage, server: ApiServer
) -> None:
    server.put("on-connect-00002", "on-connect", {})
    raising(stage, server)()
    assert server.patches() == []
    stage.schedule("t1", 20 * MINUTE_MS)
    raising(stage, server)()
    assert server.annotations("on-connect-00002")[MIN_SCALE] == "10"
    stage.one.client.post("/v1/tournaments/t1/cancel", headers=OPERATOR)
    raising(stage, server)()
    assert server.annotations("on-connect-00002") == {}


def test_two_replicas_at_once_change_a_revision_once(stage: Stage, server: ApiServer) -> None:
    """The second decides before the first one's change arrives, and is told."""
    stage.schedule("t1", 20 * MINUTE_MS)
    first, second = raising(stage, server), raising(stage, server)
    server.before_patch.append(first)
    second()
    assert server.patches() == ["query-00002"] * 2
    assert server.annotations("query-00002")[MIN_SCALE] == "10"
    assert '"own": "2"' in server.annotations("query-00002")[RAISED]
    stage.one.client.post("/v1/tournaments/t1/cancel", headers=OPERATOR)
    second = raising(stage, server)
    server.before_patch.append(raising(stage, server))
    second()
    assert server.annotations("query-00002") == OWN


def test_what_is_refused_for_one_revision_stops_no_other(stage: Stage, server: ApiServer) -> None:
    stage.schedule("t1", 20 * MINUTE_MS, prewarm={"floor": 20})
    server.refusals["PATCH on-connect-00001"] = (403, "cannot patch resource")
    with pytest.raises(TransientError, match="on-connect-00001: 403: cannot patch resource"):
        raising(stage, server)()
    assert scales(server)["query-00002"] == "20"
    del server.refusals["PATCH on-connect-00001"]
    raising(stage, server)()
    assert scales(server)["on-connect-00001"] == "20"


def test_nothing_is_let_go_while_nobody_knows_the_schedule(stage: Stage, server: ApiServer) -> None:
    stage.schedule("t1", 20 * MINUTE_MS)
    raising(stage, server)()

    def away() -> Any:
        raise TransientError("away")

    replica = raising(stage, server)
    stage.one.main.floors._tournaments = away
    with pytest.raises(TransientError):
        replica()
    assert scales(server)["query-00002"] == "10"


def test_trouble_is_logged_once_until_it_is_over(
    stage: Stage, server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    stage.schedule("t1", 20 * MINUTE_MS)
    server.refusals["GET"] = (403, "cannot list resource")
    repeated = Repeating("raiser", 0.02, raising(stage, server), "can't set floors")
    repeated.start()
    try:
        eventually(lambda: len(server.requests) > 5, 10)
        lines = [one for one in caplog.records if one.message == "can't set floors"]
        assert len(lines) == 1
        assert lines[0].levelno == logging.WARNING
        assert "403: cannot list resource" in lines[0].fields["error"]  # type: ignore[attr-defined]
        server.refusals.clear()
        eventually(lambda: scales(server)["query-00002"] == "10", 10)
    finally:
        repeated.stop()


def test_forked_worker_raises_revisions_before_any_request(
    redis_url: str, server: ApiServer, tmp_path: Path
) -> None:
    """The real server: functions-framework under gunicorn, with Kafka and the record away."""
    redis = connect(redis_url)
    redis.flushall()
    now_ms = int(time.time() * 1000)
    planned = scheduled(0, "t1", starts_ms=now_ms + MINUTE_MS, ends_ms=now_ms + HOUR_MS)
    terms = decide(None, planned).terms
    assert terms is not None
    RedisDirectory(redis).put(Summary(TournamentId("t1"), terms))
    redis.close()
    port = free_port()
    settings = {
        **os.environ,
        **SETTINGS,
        "REDIS_URL": redis_url,
        "PREWARM_SERVICES": "query, on-connect",
        "KUBERNETES_API_URL": server.url,
        "KUBERNETES_ACCOUNT_FOLDER": str(server.folder),
        "HOST": LOOPBACK,
    }
    program = str(Path(sys.executable).with_name("functions-framework"))
    source = str(FUNCTIONS / "tournament" / "main.py")
    argv = [program, "--source", source, "--target", "tournament", "--port", str(port)]
    process = Process("tournament", argv, log_path=tmp_path / "f.log", environ=settings)
    process.start()
    try:
        eventually(lambda: scales(server)["query-00002"] == "10", 30)
        process.wait_until(lambda: accepts(port), 20)
        url = f"http://{LOOPBACK}:{port}/internal/v1/floors/on-wager"
        assert httpx.get(url, timeout=10).json() == {"floor": 10}
    finally:
        process.stop()
