"""tournament through its real host, over a real Redis and a log in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from hosting import SETTINGS, Hosted, Keeper, bearer, check_description, hosted
from leaderboard import events as ev
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import BRIEF, RedisClient, connect
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.redis_replies import RedisReplies
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, TournamentId
from leaderboard.ports import Board, Outgoing
from leaderboard.reads import Reads
from logs import TOMBSTONE_KEY, T, scheduled, scored
from ports import Countdown, Interrupted, KnownTokens, MemoryFeed
from records import RecordedLog, engine_of, loaded

OPERATOR = bearer("olga", "operator")
NOW_MS = int(time.time() * 1000)
TICK = {"ce-type": "io.leaderboard.timer.ticked.v1", "ce-id": "1", "ce-source": "/timer"}


@dataclass(frozen=True)
class Stage:
    """The function, the log that it writes, and who applies the log to the boards."""

    hosted: Hosted
    feed: MemoryFeed
    keeper: Keeper
    board: RedisBoard
    redis: RedisClient
    record: SqlRecord

    def reads(self, board: Board | None = None) -> Reads:
        """Through this board, if one is given."""
        chosen, directory = board or self.board, RedisDirectory(self.redis)
        return Reads(lambda: chosen, lambda: directory, lambda: self.record)

    def post(self, path: str, body: Any = None, **headers: str) -> TestResponse:
        known = {**OPERATOR, **{name.replace("_", "-"): text for name, text in headers.items()}}
        return self.hosted.client.post(f"/v1/tournaments{path}", json=body, headers=known)

    def written(self) -> list[ev.Event]:
        return self.feed.events(ev.WAGERS)


@pytest.fixture
def stage(redis_url: str, tmp_path: Path) -> Iterator[Stage]:
    redis = connect(redis_url)
    redis.flushall()
    board, directory = RedisBoard(redis, TOMBSTONE_KEY), RedisDirectory(redis)
    with ExitStack() as stack:
        engine = stack.enter_context(engine_of(loaded(f"sqlite:///{tmp_path}/record.sqlite")))
        keeper = Keeper(board, directory, RecordedLog(engine))
        feed = MemoryFeed(keeper)
        settings = {**SETTINGS, "REDIS_URL": redis_url, "DATABASE_URL": str(engine.url)}
        one = stack.enter_context(hosted("tournament", settings))
        record = SqlRecord(engine)
        one.main.tokens.put(KnownTokens())
        one.main.SHOWN_WITHIN_SECONDS = 0.5  # what never shows is waited for so long
        stage = Stage(one, feed, keeper, board, redis, record)
        one.main.ports.put(one.main.Ports(stage.reads(), feed))
        yield stage


def _body(**changes: Any) -> dict[str, Any]:
    return {
        "tournament_id": "t1",
        "name": "Cup",
        "starts_at": ev.format_time_ms(NOW_MS + 3_600_000),
        "ends_at": ev.format_time_ms(NOW_MS + 7_200_000),
        "rules": {"scoring": {"kind": "stake"}},
        **changes,
    }


def test_schedule_makes_a_tournament_that_can_be_read_at_once(stage: Stage) -> None:
    response = stage.post("", _body(prizes=[{"rank": 1, "prize_minor": 5000}]))
    assert response.status_code == 201
    assert response.headers["Location"] == "/v1/tournaments/t1"
    told = response.get_json()
    event = stage.written()[0]
    assert (told["event_id"], told["offset"]) == (event.id, 0)
    assert event.source == "/tournament"
    assert event.subject is None
    assert isinstance(event.data, ev.TournamentScheduled)
    assert event.data.prizes == [{"rank": 1, "prize_minor": 5000}]
    view = stage.board.top(T, 1)
    assert view is not None
    assert view.sequence == 0


@pytest.mark.parametrize(
    "rules",
    [
        {"scoring": {"kind": "ratio"}},
        {"scoring": {"kind": "tiers", "tiers": []}},
        {"scoring": {"kind": "stake"}, "operator": "best_of", "best_of": 3},
    ],
)
def test_rules_that_can_not_be_folded_are_422_and_say_so(
    stage: Stage, rules: dict[str, Any]
) -> None:
    response = stage.post("", _body(rules=rules))
    assert response.status_code == 422
    assert response.get_json(force=True)["reason"] == "unsupported"
    assert "not supported yet" in response.get_json(force=True)["detail"]
    assert stage.written() == []


def test_schedule_whose_end_has_passed_is_422(stage: Stage) -> None:
    times = {
        "starts_at": ev.format_time_ms(NOW_MS - 7_200_000),
        "ends_at": ev.format_time_ms(NOW_MS - 1),
    }
    response = stage.post("", _body(**times))
    assert response.status_code == 422
    assert "ends_at" in response.get_json(force=True)["detail"]
    assert stage.written() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"tournament_id": "a b"},
        {"tournament_id": "x" * 65},
        {"name": ""},
        {"name": "line\nbreak"},
        {"starts_at": "tomorrow"},
        {"starts_at": 1_760_000_000},
        {"ends_at": "2000-01-01T00:00:00Z"},
        {"rules": {}},
        {"rules": {"scoring": {"kind": "luck"}}},
        {"rules": {"scoring": {"kind": "stake"}, "order": "sideways"}},
        {"rules": {"scoring": {"kind": "stake"}, "min_stake_minor": 1.5}},
        {"rules": None},
    ],
)
def test_schedule_that_is_wrong_is_422(stage: Stage, changes: dict[str, Any]) -> None:
    response = stage.post("", _body(**changes))
    assert response.status_code == 422
    assert response.content_type == "application/problem+json"
    assert stage.written() == []


def test_schedule_that_no_reader_could_take_is_refused(stage: Stage) -> None:
    response = stage.post("", _body(prizes="x" * 33_000))
    assert response.status_code == 413
    body = b'{"tournament_id": "t1", "name": NaN}'
    response = stage.hosted.client.post("/v1/tournaments", data=body, headers=OPERATOR)
    assert response.status_code in (400, 422)
    assert stage.post("", _body(), Idempotency_Key="x" * 600).status_code == 422
    assert stage.written() == []


def test_tournament_starts_and_ends_by_an_operator(stage: Stage) -> None:
    stage.post("", _body())
    for path, state in [("/t1/start", "running"), ("/t1/end", "ended")]:
        response = stage.post(path, {"reason": "as agreed"})
        assert response.status_code == 202
        event = stage.written()[-1]
        assert response.get_json() == {"event_id": event.id, "offset": len(stage.written()) - 1}
        assert isinstance(event.data, ev.TournamentStarted | ev.TournamentEnded)
        assert (event.data.decided_by, event.data.reason) == ("olga", "as agreed")
        view = stage.board.top(T, 1)
        assert view is not None
        assert view.terms.state == state


def test_decision_needs_no_body(stage: Stage) -> None:
    stage.post("", _body())
    assert (
        stage.hosted.client.post("/v1/tournaments/t1/cancel", headers=OPERATOR).status_code == 202
    )
    assert stage.post("/t2/cancel", {"reason": 5}).status_code == 422


@pytest.mark.parametrize(
    ("before", "then"),
    [
        (["start"], "start"),
        (["end"], "end"),
        (["end"], "start"),
        (["cancel"], "end"),
        (["cancel"], "cancel"),
        (["start", "end"], "cancel"),
    ],
)
def test_decision_in_the_wrong_state_is_409(stage: Stage, before: list[str], then: str) -> None:
    stage.post("", _body())
    for path in before:
        assert stage.post(f"/t1/{path}").status_code == 202
    written = len(stage.written())
    response = stage.post(f"/t1/{then}")
    assert response.status_code == 409
    assert response.get_json(force=True)["state"] in ("running", "ended", "cancelled")
    assert len(stage.written()) == written


def test_corrections_wait_for_the_start_and_stop_with_the_end(stage: Stage) -> None:
    stage.post("", _body())
    body = {"player_id": "alice", "delta": 5, "reason": "fault"}
    assert stage.post("/t1/adjustments", body).status_code == 409
    stage.post("/t1/start")
    assert stage.post("/t1/adjustments", body).status_code == 202
    stage.post("/t1/end")
    assert stage.post("/t1/adjustments", body).status_code == 409
    out = {"player_id": "alice", "reason": "cheating"}
    assert stage.post("/t1/disqualifications", out).status_code == 409
    assert stage.post("", _body()).status_code == 409


def test_adjustment_is_on_the_board_when_it_is_answered(stage: Stage) -> None:
    stage.post("", _body())
    stage.post("/t1/start")
    response = stage.post("/t1/adjustments", {"player_id": "a-1", "delta": -7, "reason": "r"})
    assert response.status_code == 202
    event = stage.written()[-1]
    assert event.subject == "a-1"
    assert isinstance(event.data, ev.ScoreAdjusted)
    assert (event.data.delta, event.data.decided_by) == (-7, "olga")
    view = stage.board.top(T, 5)
    assert view is not None
    assert [one.score.score for one in view.standings] == [-7]


def test_disqualified_player_leaves_the_board(stage: Stage) -> None:
    stage.post("", _body())
    stage.post("/t1/start")
    stage.post("/t1/adjustments", {"player_id": "alice", "delta": 9, "reason": "r"})
    out = {"player_id": "alice", "reason": "cheating"}
    assert stage.post("/t1/disqualifications", out).status_code == 202
    view = stage.board.top(T, 5)
    assert view is not None
    assert view.standings == ()


def _adjusted(stage: Stage, player_id: str, delta: int = 5) -> tuple[int, Any]:
    """An adjustment's status, and the reason of its refusal."""
    body = {"player_id": player_id, "delta": delta, "reason": "fault"}
    answer = stage.post("/t1/adjustments", body)
    return answer.status_code, answer.get_json(force=True).get("reason")


def test_correction_of_who_was_disqualified_is_409(stage: Stage) -> None:
    stage.post("", _body())
    stage.post("/t1/start")
    assert _adjusted(stage, "alice") == (202, None)
    for player_id in ("alice", "stranger"):
        out = {"player_id": player_id, "reason": "cheating"}
        assert stage.post("/t1/disqualifications", out).status_code == 202
        written = stage.written()
        assert _adjusted(stage, player_id) == (409, "player_disqualified")
        assert stage.written() == written
    assert _adjusted(stage, "bob") == (202, None), "others are not out"
    stage.redis.flushall()
    assert _adjusted(stage, "alice") == (409, "player_disqualified"), "the record knows as well"


def test_correction_of_who_has_not_joined_is_409_where_one_has_to(stage: Stage) -> None:
    stage.post("", _body(rules={"scoring": {"kind": "stake"}, "join": "required"}))
    stage.post("/t1/start")
    join = {"tournament_id": "t1", "player_id": "bob"}
    event = ev.Event("j1", "/games", NOW_MS, ev.PlayerJoined.model_validate(join), "bob")
    stage.feed.publish([Outgoing(ev.WAGERS, event)])
    assert _adjusted(stage, "alice") == (409, "not_joined")
    assert _adjusted(stage, "bob") == (202, None)
    stage.redis.flushall()
    assert _adjusted(stage, "alice") == (409, "not_joined")
    assert _adjusted(stage, "bob") == (202, None), "the record knows who has joined"


def test_who_may_have_joined_behind_a_backlog_is_not_said_for_sure_not_to_have(
    stage: Stage,
) -> None:
    """Their first event is in the log, and nobody has read it yet."""
    stage.post("", _body(rules={"scoring": {"kind": "stake"}, "join": "required"}))
    stage.post("/t1/start")
    body = {"player_id": "late", "delta": 5, "reason": "fault"}
    told = stage.post("/t1/adjustments", body).get_json(force=True)
    assert (told["status"], told["reason"]) == (409, "not_joined")
    assert "as far as board and record have read" in told["detail"]
    assert "try again" in told["detail"]


def test_correction_that_leaves_the_range_of_scores_is_409(stage: Stage) -> None:
    stage.post("", _body())
    stage.post("/t1/start")
    assert _adjusted(stage, "alice", 2**53 - 1) == (202, None)
    assert _adjusted(stage, "alice", 1) == (409, "score_out_of_range")
    assert _adjusted(stage, "alice", -1) == (202, None)


def test_erased_player_is_not_told_apart_from_a_stranger(stage: Stage) -> None:
    """Who was erased only the key behind the tombstones tells. The fold records it, and counts
    nothing."""
    stage.post("", _body())
    stage.post("/t1/start")
    _adjusted(stage, "alice")
    gone = {"tournament_id": "t1", "player_id": "alice", "erasure_id": "er-1"}
    event = ev.Event("er-1/t1", "/erase", NOW_MS, ev.PlayerErased.model_validate(gone), "alice")
    stage.feed.publish([Outgoing(ev.WAGERS, event)])
    assert _adjusted(stage, "alice") == (202, None)
    view = stage.board.top(T, 5)
    assert view is not None
    assert view.standings == ()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("adjustments", {"player_id": "alice", "delta": 1}),
        ("adjustments", {"player_id": "alice", "delta": "1", "reason": "r"}),
        ("adjustments", {"player_id": "alice", "delta": 1.5, "reason": "r"}),
        ("adjustments", {"player_id": "alice", "delta": 2**53, "reason": "r"}),
        ("adjustments", {"player_id": "a b", "delta": 1, "reason": "r"}),
        ("adjustments", {"player_id": "alice", "delta": 1, "reason": ""}),
        ("disqualifications", {"player_id": "alice"}),
        ("disqualifications", {"reason": "r"}),
        ("disqualifications", []),
    ],
)
def test_correction_that_is_wrong_is_422(stage: Stage, path: str, body: Any) -> None:
    stage.post("", _body())
    stage.post("/t1/start")
    assert stage.post(f"/t1/{path}", body).status_code == 422
    assert (
        stage.hosted.client.post(
            f"/v1/tournaments/t1/{path}", data=b"{", headers=OPERATOR
        ).status_code
        == 400
    )
    assert len(stage.written()) == 2


BODIES = {
    "start": {},
    "end": {},
    "cancel": {},
    "adjustments": {"player_id": "alice", "delta": 1, "reason": "r"},
    "disqualifications": {"player_id": "alice", "reason": "r"},
}


@pytest.mark.parametrize("path", BODIES)
def test_unknown_tournament_is_404(stage: Stage, path: str) -> None:
    assert stage.post(f"/nowhere/{path}", BODIES[path]).status_code == 404
    assert stage.post(f"/{{t1}}/{path}", BODIES[path]).status_code == 404
    assert stage.written() == []


def _lose_board(stage: Stage) -> None:
    for key in stage.redis.scan_iter(match="{t1}*"):
        stage.redis.delete(key)


@pytest.mark.parametrize("path", BODIES)
def test_board_that_nobody_can_show_is_503(stage: Stage, path: str) -> None:
    stage.keeper.archive_is_away = True
    stage.post("", _body())
    _lose_board(stage)
    assert stage.post(f"/t1/{path}", BODIES[path]).status_code == 503
    assert len(stage.written()) == 1


@pytest.mark.parametrize("path", BODIES)
def test_tournament_whose_board_was_lost_goes_on_as_the_record_has_it(
    stage: Stage, path: str
) -> None:
    stage.post("", _body())
    if path != "start":
        stage.post("/t1/start")
    before = len(stage.written())
    stage.redis.flushall()
    stage.keeper.is_away = True
    assert stage.post(f"/t1/{path}", BODIES[path]).status_code == 202
    assert len(stage.written()) == before + 1


@pytest.mark.parametrize("path", BODIES)
def test_tournament_that_only_the_record_knows_is_over_all_the_same(
    stage: Stage, path: str
) -> None:
    stage.post("", _body())
    stage.post("/t1/end")
    stage.redis.flushall()
    answer = stage.post(f"/t1/{path}", BODIES[path])
    assert (answer.status_code, answer.get_json(force=True)["state"]) == (409, "ended")
    assert stage.post("", _body()).status_code == 409
    assert len(stage.written()) == 2


def test_nobody_knows_while_redis_and_database_are_away() -> None:
    with hosted("tournament") as one:
        one.main.tokens.put(KnownTokens())
        one.main.ports.put(one.main.Ports(one.main._reads(), MemoryFeed()))
        answer = one.client.post("/v1/tournaments/t1/end", headers=bearer("op", "operator"))
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


@pytest.mark.parametrize("path", ["", *(f"/t1/{path}" for path in BODIES)])
def test_only_operators_and_services_decide(stage: Stage, path: str) -> None:
    post = stage.hosted.client.post
    url = f"/v1/tournaments{path}"
    assert post(url, json={}).status_code == 401
    for role in ("player", "auditor", "stranger"):
        assert post(url, json={}, headers=bearer("x", role)).status_code == 403
    assert post(url, json={"x": 1}, headers=bearer("x", "service")).status_code not in (401, 403)


def test_same_request_with_a_key_counts_once(stage: Stage) -> None:
    stage.post("", _body(), Idempotency_Key="s1")
    stage.post("/t1/start", Idempotency_Key="b1")
    body = {"player_id": "alice", "delta": 5, "reason": "fault"}
    for _ in range(2):
        response = stage.post("/t1/adjustments", body, Idempotency_Key="k1")
        assert response.status_code == 202
        assert response.get_json()["event_id"] == "k1"
    view = stage.board.top(T, 1)
    assert view is not None
    assert view.standings[0].score.score == 5
    for _ in range(2):
        assert stage.post("/t1/end", Idempotency_Key="e1").status_code == 202
    assert stage.post("/t1/end").status_code == 409


def test_same_request_with_a_key_gets_the_same_answer(stage: Stage) -> None:
    asked: list[tuple[str, Any, str]] = [
        ("", _body(prewarm={"floor": 3, "lead_minutes": 90}), "s1"),
        ("/t1/start", {"reason": "as agreed"}, "b1"),
        ("/t1/adjustments", {"player_id": "alice", "delta": 5, "reason": "fault"}, "k1"),
        ("/t1/disqualifications", {"player_id": "bob", "reason": "cheating"}, "d1"),
        ("/t1/end", None, "e1"),
    ]
    first = [stage.post(path, body, Idempotency_Key=key) for path, body, key in asked]
    assert [one.status_code for one in first] == [201, 202, 202, 202, 202]
    written = stage.written()
    assert [one.get_json()["event_id"] for one in first] == [one.id for one in written]
    again = [stage.post(path, body, Idempotency_Key=key) for path, body, key in asked]
    assert [(one.status_code, one.data) for one in again] == [
        (one.status_code, one.data) for one in first
    ]
    assert again[0].headers["Location"] == "/v1/tournaments/t1"
    assert again[0].get_json()["prewarm"]["warnings"] == first[0].get_json()["prewarm"]["warnings"]
    assert stage.written() == written, "what was answered is not written again"


ADJUSTED = {"player_id": "alice", "delta": 5, "reason": "fault"}


@pytest.mark.parametrize(
    ("path", "body", "subject"),
    [
        ("/t1/adjustments", {**ADJUSTED, "delta": 6}, "olga"),
        ("/t1/adjustments", {**ADJUSTED, "player_id": "bob"}, "olga"),
        ("/t1/adjustments", {**ADJUSTED, "reason": "other"}, "olga"),
        ("/t1/disqualifications", {"player_id": "alice", "reason": "fault"}, "olga"),
        ("/t2/adjustments", ADJUSTED, "olga"),
        ("/t1/adjustments", ADJUSTED, "oscar"),
        ("/t1/end", None, "olga"),
    ],
)
def test_key_of_another_request_is_422_and_writes_nothing(
    stage: Stage, path: str, body: Any, subject: str
) -> None:
    for name in ("t1", "t2"):
        stage.post("", _body(tournament_id=name))
        stage.post(f"/{name}/start")
    assert stage.post("/t1/adjustments", ADJUSTED, Idempotency_Key="k1").status_code == 202
    written = stage.written()
    url, headers = f"/v1/tournaments{path}", bearer(subject, "operator")
    for _ in range(2):
        answer = stage.hosted.client.post(
            url, json=body, headers={**headers, "Idempotency-Key": "k1"}
        )
        assert answer.status_code == 422
        assert answer.content_type == "application/problem+json"
        told = answer.get_json(force=True)
        assert "Idempotency-Key" in told["detail"]
        assert [one["field"] for one in told["errors"]] == ["Idempotency-Key"]
    assert stage.written() == written
    assert stage.post(path, body, Idempotency_Key="k2").status_code in (202, 409)


def test_same_request_may_be_spelled_otherwise(stage: Stage) -> None:
    stage.post("", _body())
    headers = {**OPERATOR, "Idempotency-Key": "b1"}
    post = stage.hosted.client.post
    first = post("/v1/tournaments/t1/start", headers=headers)
    again = post("/v1/tournaments/t1/start", data=b" {} ", headers=headers)
    assert (first.status_code, again.data) == (202, first.data)


@pytest.mark.parametrize("key", ["t1/ended", "t1/started", "t1/7/velocity"])
def test_a_key_that_is_the_id_of_an_event_of_our_own_is_refused(stage: Stage, key: str) -> None:
    """The timer's end would be taken for a repetition of it, and the tournament never ended."""
    stage.post("", _body())
    response = stage.post("/t1/start", Idempotency_Key=key)
    assert response.status_code == 422
    assert [one["field"] for one in response.get_json()["errors"]] == ["Idempotency-Key"]
    assert stage.post("/t1/start", Idempotency_Key=key.replace("t1", "t2")).status_code == 202


def test_key_of_a_request_that_was_refused_is_its_own(stage: Stage) -> None:
    stage.post("", _body())
    assert stage.post("/t1/adjustments", ADJUSTED, Idempotency_Key="k1").status_code == 409
    stage.post("/t1/start")
    other = {**ADJUSTED, "delta": 6}
    assert stage.post("/t1/adjustments", other, Idempotency_Key="k1").status_code == 422
    assert stage.post("/t1/adjustments", ADJUSTED, Idempotency_Key="k1").status_code == 202


def test_answer_that_was_lost_is_made_again_and_the_event_counts_once(stage: Stage) -> None:
    """Whoever handled it died between the log and the answer."""
    stage.post("", _body())
    stage.post("/t1/start")
    for _ in range(2):
        assert stage.post("/t1/adjustments", ADJUSTED, Idempotency_Key="k1").status_code == 202
        for key in stage.redis.scan_iter(match="request:*"):
            value = stage.redis.get(key)
            assert value is not None
            assert b"k1" not in value
            assert b"alice" not in value
            stage.redis.set(key, value[:64])
    assert [one.id for one in stage.written()].count("k1") == 2
    view = stage.board.top(T, 1)
    assert view is not None
    assert view.standings[0].score.score == 5


def test_operators_decide_while_nobody_can_tell_about_keys(stage: Stage) -> None:
    stage.post("", _body())
    stage.hosted.main.replies.put(RedisReplies(connect("redis://127.0.0.1:1", BRIEF)))
    for _ in range(2):
        assert stage.post("/t1/end", Idempotency_Key="e1").status_code == 202


def test_answer_waits_for_the_board_but_not_for_ever(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.hosted.main, "SHOWN_WITHIN_SECONDS", 0.2)
    stage.keeper.is_away = True
    started = time.monotonic()
    response = stage.post("", _body())
    assert response.status_code == 201
    assert 0.2 <= time.monotonic() - started < 2


def test_kafka_that_does_not_acknowledge_is_503(stage: Stage) -> None:
    stage.post("", _body())
    main = stage.hosted.main
    feed = Interrupted(stage.feed, Countdown(1))
    main.ports.put(main.Ports(stage.reads(), feed))
    assert stage.post("/t1/start").status_code == 503
    assert stage.post("/t1/start").status_code == 202


def test_board_that_goes_away_after_the_event_is_no_error(stage: Stage) -> None:
    stage.post("", _body())
    main = stage.hosted.main
    countdown = Countdown(3)  # the third step is the first look after publishing
    board: Any = Interrupted(stage.board, countdown)
    main.ports.put(main.Ports(stage.reads(board), stage.feed))
    assert stage.post("/t1/start").status_code == 202
    assert countdown.bit


# --- timer -------------------------------------------------------------------------------------


def _tick(stage: Stage, **headers: str) -> int:
    return stage.hosted.client.post("/", headers={**TICK, **headers}).status_code


def _put(stage: Stage, name: str, starts_ms: int, ends_ms: int, logged_at_ms: int) -> None:
    """A tournament on the boards, scheduled at `logged_at_ms`."""
    entry = scheduled(0, name, starts_ms=starts_ms, ends_ms=ends_ms)
    tournament_id = TournamentId(name)
    stage.keeper.apply(tournament_id, [LogEntry(entry.offset, logged_at_ms, entry.event)])


def test_timer_writes_what_is_due_once(stage: Stage) -> None:
    hour, now_ms = 3_600_000, int(time.time() * 1000)
    for name, starts, ends in [
        ("later", now_ms + hour, now_ms + 2 * hour),
        ("runs", now_ms - hour, now_ms + hour),
        ("over", now_ms - hour, now_ms - 61_000),
        ("grace", now_ms - hour, now_ms - 1000),
    ]:
        _put(stage, name, starts, ends, starts)
    stage.keeper.is_away = True
    assert _tick(stage) == 204
    assert {(one.id, type(one.data).__name__) for one in stage.written()} == {
        ("runs/started", "TournamentStarted"),
        ("over/started", "TournamentStarted"),
        ("over/ended", "TournamentEnded"),
        ("grace/started", "TournamentStarted"),
    }
    assert {one.source for one in stage.written()} == {"/tournament"}
    assert [_tick(stage) for _ in range(3)] == [204] * 3
    assert len(stage.written()) == 4


def test_timer_leaves_finished_and_backfilled_tournaments_alone(stage: Stage) -> None:
    stage.post("", _body())
    stage.post("/t1/cancel")
    _put(stage, "old", NOW_MS - 9_000_000, NOW_MS - 8_000_000, NOW_MS)
    count = len(stage.written())
    assert _tick(stage) == 204
    assert len(stage.written()) == count


def test_timers_of_two_replicas_count_once(stage: Stage) -> None:
    _put(stage, "runs", NOW_MS - 1000, NOW_MS + 9_000_000, NOW_MS - 2000)
    main = stage.hosted.main
    stage.keeper.is_away = True
    for _ in range(2):
        main.Timer(main.ports, 60_000).tick(NOW_MS)
    events = stage.written()
    assert [one.id for one in events] == ["runs/started"] * 2
    for offset, event in enumerate(events, 5):
        stage.keeper.apply(TournamentId("runs"), [LogEntry(Offset(offset), NOW_MS, event)])
    view = stage.board.top(TournamentId("runs"), 1)
    assert view is not None
    assert (view.terms.state, view.sequence) == ("running", 5)


def test_timer_tries_again_what_kafka_did_not_take(stage: Stage) -> None:
    _put(stage, "runs", NOW_MS - 1000, NOW_MS + 9_000_000, NOW_MS - 2000)
    stage.keeper.is_away = True
    main = stage.hosted.main
    feed = Interrupted(stage.feed, Countdown(1))
    main.ports.put(main.Ports(stage.reads(), feed))
    assert _tick(stage) == 503
    assert _tick(stage) == 204
    assert [one.id for one in stage.written()] == ["runs/started"]


def test_timer_of_knative_is_one(stage: Stage) -> None:
    assert _tick(stage, **{"ce-type": "dev.knative.sources.ping"}) == 204


def test_other_events_are_no_timer(stage: Stage) -> None:
    assert _tick(stage, **{"ce-type": "io.leaderboard.tournament.ended.v1"}) == 422
    assert stage.hosted.client.post("/", data=b"{}").status_code == 422
    assert stage.hosted.client.get("/").status_code == 405


def test_function_describes_itself(stage: Stage) -> None:
    paths = {f"/v1/tournaments/{{tournament_id}}/{path}" for path in BODIES}
    check_description(stage.hosted, {"/v1/tournaments", *paths})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KAFKA_BOOTSTRAP_SERVERS", ""),
        ("END_GRACE_SECONDS", "-1"),
        ("REDIS_URL", "nowhere"),
        ("DATABASE_URL", "nowhere"),
    ],
)
def test_wrong_setting_stops_the_start_and_is_named(
    name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), hosted("tournament", {**SETTINGS, name: value}):
        pass
    assert name in capsys.readouterr().err


def test_scored_tournament_keeps_its_kind_of_scoring(stage: Stage) -> None:
    entries = [scheduled(0, ends_ms=NOW_MS + 9_000_000), scored(1, "alice", 5)]
    stage.keeper.apply(T, entries)
    response = stage.post("", _body())
    assert response.status_code == 422
    assert "running" in response.get_json(force=True)["detail"]
