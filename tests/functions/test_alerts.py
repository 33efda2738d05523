"""The operators' queue through `tournament`'s real host, over the record that `archive` writes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from hosting import SETTINGS, Hosted, Keeper, bearer, check_description, hosted
from leaderboard import events as ev
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import connect
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.sql_alerts import SqlAlerts
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.errors import TransientError
from leaderboard.fold import LogEntry
from leaderboard.fraud_rules import RULES
from leaderboard.model import Offset, Place
from leaderboard.reads import Reads
from logs import ALICE, BOB, START_MS, TOMBSTONE_KEY, T, ended, erased, scheduled, scored
from ports import KnownTokens, MemoryFeed
from records import RecordedLog, engine_of, loaded

OPERATOR, AUDITOR = bearer("olga", "operator"), bearer("ada", "auditor")
PLAYER = bearer("alice", "player")
NOW_MS = int(time.time() * 1000)
FAST = f"/v1/tournaments/{T}/fraud-alerts/7/velocity"
ALERT = f"{T}/7/velocity"


class Archiving:
    """Takes in what is published to `fraud-alerts`, as `archive` does, and hands on the rest."""

    def __init__(self, archive: SqlArchive, keeper: Keeper) -> None:
        self._archive = archive
        self._keeper = keeper

    def __call__(self, topic: str, entry: LogEntry) -> None:
        if topic == ev.FRAUD_ALERTS:
            after = Offset(entry.offset + 1)
            self._archive.keep_alerts(Place(topic, 0), "f/0", [entry], after)
        else:
            self._keeper(topic, entry)


@dataclass(frozen=True)
class Stage:
    hosted: Hosted
    feed: MemoryFeed
    board: RedisBoard
    archive: SqlArchive

    def get(self, path: str, **headers: str) -> TestResponse:
        return self.hosted.client.get(path, headers=headers or OPERATOR)

    def post(self, path: str, body: Any = None, **headers: str) -> TestResponse:
        return self.hosted.client.post(path, json=body, headers=headers or OPERATOR)

    def suspect(self, player: str, sequence: int = 7, rule: str = "velocity") -> None:
        data = ev.FraudSuspected(
            tournament_id=T,
            player_id=player,
            rule=rule,
            evidence={"sequence": sequence, "severity": 2.5, "wagers": 101},
        )
        event = ev.Event(f"{T}/{sequence}/{rule}", "/on-wager", START_MS + sequence, data, player)
        self.publish(ev.FRAUD_ALERTS, event)

    def publish(self, topic: str, event: ev.Event) -> None:
        self.feed.publish([self.outgoing(topic, event)])

    @staticmethod
    def outgoing(topic: str, event: ev.Event) -> Any:
        from leaderboard.ports import Outgoing

        return Outgoing(topic, event)


@pytest.fixture
def stage(redis_url: str, tmp_path: Path) -> Iterator[Stage]:
    redis = connect(redis_url)
    redis.flushall()
    board, directory = RedisBoard(redis, TOMBSTONE_KEY), RedisDirectory(redis)
    with ExitStack() as stack:
        engine = stack.enter_context(engine_of(loaded(f"sqlite:///{tmp_path}/record.sqlite")))
        archive = SqlArchive(engine, TOMBSTONE_KEY)
        feed = MemoryFeed(Archiving(archive, Keeper(board, directory, RecordedLog(engine))))
        settings = {**SETTINGS, "REDIS_URL": redis_url, "DATABASE_URL": str(engine.url)}
        one = stack.enter_context(hosted("tournament", settings))
        one.main.tokens.put(KnownTokens())
        one.main.SHOWN_WITHIN_SECONDS = 0.5
        one.main.queue.shown_within_seconds = 0.5
        reads = Reads(lambda: board, lambda: directory, lambda: SqlRecord(engine))
        one.main.ports.put(one.main.Ports(reads, feed))
        one.main.alerts.put(SqlAlerts(engine))
        stage = Stage(one, feed, board, archive)
        stage.publish(ev.WAGERS, scheduled(0, starts_ms=NOW_MS - 1, ends_ms=NOW_MS * 2).event)
        for offset, player in enumerate((ALICE, BOB), start=1):
            stage.publish(ev.WAGERS, scored(offset, player, 50, time_ms=NOW_MS).event)
        yield stage


def test_operators_see_the_queue_and_one_alert_with_its_evidence(stage: Stage) -> None:
    stage.suspect(ALICE)
    stage.suspect(BOB, 9, "rank_rise")
    told = stage.get("/v1/fraud-alerts?state=open").get_json()["alerts"]
    assert [one["alert_id"] for one in told] == [f"{T}/9/rank_rise", ALERT]
    one = stage.get(FAST, **AUDITOR).get_json()
    assert one == told[1]
    assert one == {
        "alert_id": ALERT, "tournament_id": T, "sequence": 7, "rule": "velocity",
        "player_id": ALICE, "time": ev.format_time_ms(START_MS + 7), "severity": 2.5,
        "evidence": {"sequence": 7, "severity": 2.5, "wagers": 101}, "state": "open",
        "decided_by": None, "decided_at": None, "reason": None,
    }  # fmt: skip


def test_the_queue_is_read_page_by_page(stage: Stage) -> None:
    for sequence in range(10, 17):
        stage.suspect(ALICE, sequence)
    page = stage.get("/v1/fraud-alerts?limit=4").get_json()["alerts"]
    assert [one["sequence"] for one in page] == [16, 15, 14, 13]
    rest = stage.get(f"/v1/fraud-alerts?limit=4&before={page[-1]['alert_id']}").get_json()
    assert [one["sequence"] for one in rest["alerts"]] == [12, 11, 10]
    assert stage.get("/v1/fraud-alerts?before=t1/99/velocity").status_code == 404


def test_a_confirmed_suspicion_takes_the_player_off_the_board(stage: Stage) -> None:
    stage.suspect(ALICE)
    answer = stage.post(f"{FAST}/confirm", {"reason": "three accounts"})
    assert answer.status_code == 202
    assert answer.get_json() == {
        "alert_id": ALERT, "decision": "confirmed", "disqualified": True,
    }  # fmt: skip
    out = stage.feed.events(ev.WAGERS)[-1]
    assert isinstance(out.data, ev.PlayerDisqualified)
    assert (out.data.player_id, out.data.reason, out.data.decided_by) == (ALICE, ALERT, "olga")
    view = stage.board.top(T, 10)
    assert view is not None
    assert [one.player_id for one in view.standings] == [BOB]
    shown = stage.get(FAST).get_json()
    assert (shown["state"], shown["decided_by"], shown["reason"]) == (
        "confirmed",
        "olga",
        "three accounts",
    )


def test_confirmed_twice_it_is_one_event_in_effect(stage: Stage) -> None:
    stage.suspect(ALICE)
    for _ in range(2):
        assert stage.post(f"{FAST}/confirm").status_code == 202
    outs = [one for one in stage.feed.events(ev.WAGERS) if isinstance(one.data,
            ev.PlayerDisqualified)]  # fmt: skip
    assert len({(one.source, one.id) for one in outs}) == 1


def test_a_dismissed_suspicion_changes_nobodys_rank_and_stays_in_the_record(stage: Stage) -> None:
    stage.suspect(ALICE)
    answer = stage.post(f"{FAST}/dismiss", {"reason": "our own load test"})
    assert (answer.status_code, answer.get_json()["disqualified"]) == (202, False)
    view = stage.board.top(T, 10)
    assert view is not None
    assert len(view.standings) == 2
    assert stage.get("/v1/fraud-alerts?state=open").get_json()["alerts"] == []
    (one,) = stage.get("/v1/fraud-alerts?state=dismissed").get_json()["alerts"]
    assert one["reason"] == "our own load test"
    # And the other way after all.
    assert stage.post(f"{FAST}/confirm").get_json()["disqualified"]
    assert stage.get(FAST).get_json()["state"] == "confirmed"


def test_of_a_tournament_that_is_over_the_decision_alone_is_put_down(stage: Stage) -> None:
    stage.suspect(ALICE)
    stage.publish(ev.WAGERS, ended(3).event)
    answer = stage.post(f"{FAST}/confirm")
    assert (answer.status_code, answer.get_json()["disqualified"]) == (202, False)
    assert not any(
        isinstance(one.data, ev.PlayerDisqualified) for one in stage.feed.events(ev.WAGERS)
    )
    assert stage.get(FAST).get_json()["state"] == "confirmed"


def test_who_was_forgotten_can_not_be_disqualified(stage: Stage) -> None:
    stage.suspect(ALICE)
    stage.archive.forget(Place("gdpr-events", 0), "g/0", [erased(0, ALICE)], Offset(1))
    assert stage.post(f"{FAST}/confirm").status_code == 409
    assert ALICE not in stage.get(FAST).get_data(as_text=True)
    assert stage.post(f"{FAST}/dismiss").status_code == 202


@pytest.mark.parametrize("verb", ["", "/confirm", "/dismiss"])
def test_what_is_not_there_is_404(stage: Stage, verb: str) -> None:
    ask = stage.post if verb else stage.get
    for path in ("8/velocity", "7/collusion", "7/veloc ity", "x/velocity"):
        assert ask(f"/v1/tournaments/{T}/fraud-alerts/{path}{verb}").status_code == 404
    assert stage.feed.events(ev.FRAUD_ALERTS) == []


def test_who_may_do_what(stage: Stage) -> None:
    stage.suspect(ALICE)
    assert stage.get("/v1/fraud-alerts", **AUDITOR).status_code == 200
    for path in ("/v1/fraud-alerts", FAST):
        assert stage.get(path, **PLAYER).status_code == 403
        assert stage.hosted.client.get(path).status_code == 401
    for verb in ("confirm", "dismiss"):
        assert stage.post(f"{FAST}/{verb}", **AUDITOR).status_code == 403
        assert stage.post(f"{FAST}/{verb}", **PLAYER).status_code == 403
        assert stage.hosted.client.post(f"{FAST}/{verb}").status_code == 401
    assert stage.get(FAST).get_json()["state"] == "open"


@pytest.mark.parametrize(
    ("query", "allowed"),
    [
        ("limit=0", ["1"]),
        ("limit=1001", ["1000"]),
        ("state=closed", ["open", "confirmed", "dismissed"]),
        ("rule=velocty", RULES),
        ("player_id=a/b", []),
        ("status=open", []),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(
    stage: Stage, query: str, allowed: Sequence[str]
) -> None:
    stage.suspect(ALICE)
    answer = stage.get(f"/v1/fraud-alerts?{query}")
    assert answer.status_code == 400
    (told,) = answer.get_json(force=True)["errors"]
    assert told["field"] == query.partition("=")[0]
    assert all(one in told["detail"] for one in allowed)


def test_with_the_record_away_it_is_503(stage: Stage) -> None:
    class Away:
        def __getattr__(self, name: str) -> Any:
            raise TransientError("the database is away")

    stage.hosted.main.alerts.put(Away())
    assert stage.get("/v1/fraud-alerts").status_code == 503
    assert stage.post(f"{FAST}/confirm").status_code == 503
    assert not any(
        isinstance(one.data, ev.PlayerDisqualified) for one in stage.feed.events(ev.WAGERS)
    )


@pytest.mark.parametrize(
    ("given", "status", "told"),
    [
        ({"velocity": {"wagers": 50}, "collusion": None}, 201, ""),
        ({"velocity": {"wagers": 0}}, 422, "rules.fraud.velocity.wagers"),
        ({"velocty": {}}, 422, "rules.fraud.velocty"),
        ("none", 422, "rules.fraud"),
    ],
)
def test_a_schedule_with_rules_of_fraud_that_nobody_understands_is_refused(
    stage: Stage, given: Any, status: int, told: str
) -> None:
    body = {
        "tournament_id": "t2",
        "name": "Cup",
        "starts_at": ev.format_time_ms(NOW_MS + 3_600_000),
        "ends_at": ev.format_time_ms(NOW_MS + 7_200_000),
        "rules": {"scoring": {"kind": "stake"}, "fraud": given},
    }
    answer = stage.post("/v1/tournaments", body)
    assert answer.status_code == status
    errors = answer.get_json(force=True).get("errors", [])
    assert [one["field"] for one in errors] == ([told] if told else [])


def test_the_description_is_true(stage: Stage) -> None:
    one = "/v1/tournaments/{tournament_id}/fraud-alerts/{sequence}/{rule}"
    check_description(stage.hosted, {"/v1/fraud-alerts", one, f"{one}/confirm", f"{one}/dismiss"})
