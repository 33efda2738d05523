"""What the record holds on a player, page by page, and its requests to forget: every dialect."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from leaderboard import events as ev
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.adapters.sql_holdings import SqlHoldings
from leaderboard.adapters.sql_requests import SqlRequests
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, Place, PlayerId, erasure_id_of
from leaderboard.record_ports import Requested
from logs import (
    ALICE,
    BOB,
    CAROL,
    LOG,
    START_MS,
    TOMBSTONE_KEY,
    T,
    entry,
    joined,
    scheduled,
    scored,
)
from records import DIALECTS, engine_of, fresh_database, put_down

OTHER = "t2"
LETTERS = Place("wagers-dlq", 0)


@pytest.fixture(params=DIALECTS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    with fresh_database(request.param, request, tmp_path) as url, engine_of(url) as one:
        yield one


def changed(offset: int, player_id: str) -> LogEntry:
    told = {"tournament_id": T, "player_id": player_id, "sequence": offset, "old_rank": None}
    told |= {"new_rank": 1, "score": 5, "distance": None, "cause": {"source": "/t", "id": "e"}}
    return entry(offset, ev.PositionChanged.model_validate(told))


def attempt(offset: int, player_id: str | None) -> LogEntry:
    return entry(
        offset,
        ev.ConnectionDecided(
            tournament_id=T, player_id=player_id, allowed=True, reason="allowed",
            address="192.0.2.7", user_agent="a browser",
        ),
    )  # fmt: skip


def suspected(offset: int, player_id: str, **evidence: Any) -> LogEntry:
    told = {"tournament_id": T, "player_id": player_id, "rule": "velocity", "evidence": evidence}
    data = ev.FraudSuspected.model_validate(told)
    return entry(offset, data, event_id=f"{T}/{offset}/velocity")


def reviewed(offset: int, of: int) -> LogEntry:
    told = {"tournament_id": T, "alert_id": f"{T}/{of}/velocity", "decision": "dismissed"}
    told |= {"decided_by": "olga", "reason": "seen"}
    return entry(offset, ev.FraudReviewed.model_validate(told))


def letter(offset: int, value: object, subject: str | None = None) -> ev.Record:
    headers = [("dlq_reason", b"schema")]
    headers += [] if subject is None else [("ce_subject", subject.encode())]
    raw = json.dumps(value).encode()
    return ev.Record("wagers-dlq", T.encode(), raw, tuple(headers), 0, offset, START_MS)


def filled(engine: sa.Engine) -> SqlArchive:
    archive = SqlArchive(engine, TOMBSTONE_KEY, now_ms=lambda: START_MS)
    log = [
        scheduled(0), joined(1, ALICE, "Alice A"), scored(2, BOB, 10), scored(3, ALICE, 5),
        scored(4, BOB, 1), scored(5, ALICE, 7),
        scheduled(6, OTHER), scored(7, ALICE, 3, tournament_id=OTHER),
    ]  # fmt: skip
    archive.fold(Place("wagers", 0), LOG, put_down(log), Offset(8))
    changes = [changed(n, who) for n, who in enumerate([ALICE, BOB, ALICE])]
    archive.keep_changes(Place("position-changes", 0), "c/0", changes, Offset(3))
    attempts = [attempt(n, who) for n, who in enumerate([ALICE, BOB, None, ALICE])]
    archive.keep_attempts(Place("connections", 0), "a/0", attempts, Offset(4))
    alerts = [
        suspected(0, ALICE, wagers=101), suspected(1, BOB, wagers=102),
        suspected(2, BOB, with_player_id=ALICE), suspected(3, ALICE, with_player_id=BOB),
        *(reviewed(4 + n, of) for n, of in enumerate((0, 2))),
    ]  # fmt: skip
    archive.keep_alerts(Place("fraud-alerts", 0), "f/0", alerts, Offset(6))
    letters = [
        letter(0, {"player_id": ALICE, "stake_minor": -1}),
        letter(1, {"player_id": BOB, "stake_minor": -1}),
        letter(2, {"player_id": BOB, "friends": [ALICE], "stake_minor": -1}),
        letter(3, {"data": {"player_id": ALICE}}),
        letter(4, "nothing to read", subject=ALICE),
    ]
    archive.keep_dead_letters(LETTERS, "d/0", letters, Offset(5))
    return archive


def told(
    engine: sa.Engine, player_id: PlayerId, limit: int = 100, looked_at: int = 20_000
) -> tuple[list[Mapping[str, Any]], int]:
    """All things, and how many pages they took."""
    held, after, pages = SqlHoldings(engine, looked_at), None, 0
    things: list[Mapping[str, Any]] = []
    while True:
        page = held.page(player_id, after, limit)
        assert len(page.things) <= limit
        things += page.things
        pages += 1
        if (after := page.after) is None:
            return things, pages
        assert pages < 1000


def test_everything_that_names_the_player_is_told_and_nothing_of_others(engine: sa.Engine) -> None:
    filled(engine)
    things, pages = told(engine, ALICE)
    kinds = [one["kind"] for one in things]
    assert kinds == [
        *["tournament"] * 2, *["event"] * 4, *["position_change"] * 2,
        *["connection_attempt"] * 2, *["fraud_alert"] * 3, *["refused_event"] * 4,
    ]  # fmt: skip
    assert pages == 1
    assert things[0]["display_name"] == "Alice A"
    assert (things[0]["joined"], things[1]["joined"]) == (True, False)
    assert [one["data"].get("score") for one in things[2:6]] == [None, 5, 7, 3]
    assert {one["became"] for one in things[2:6]} == {"applied"}
    assert things[8]["address"] == "192.0.2.7"
    alerts = [(one["evidence"], one["state"], one["reason"]) for one in things[10:13]]
    assert alerts == [
        ({"wagers": 101}, "dismissed", "seen"),
        (None, "dismissed", None),
        (None, "open", None),
    ]
    values = [one["value"] for one in things[-4:]]
    assert [value is None for value in values] == [False, True, False, False], "whose is it?"
    assert BOB not in json.dumps(things)
    assert told(engine, CAROL) == ([], 1)
    json.dumps(things)


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
@pytest.mark.parametrize("looked_at", [1, 2, 3, 500])
def test_pages_of_any_size_tell_the_same_once(
    engine: sa.Engine, limit: int, looked_at: int
) -> None:
    filled(engine)
    whole, _ = told(engine, ALICE)
    parts, pages = told(engine, ALICE, limit, looked_at)
    assert parts == whole
    assert pages >= len(whole) // limit


def test_page_looks_at_a_bounded_number_of_rows(engine: sa.Engine) -> None:
    """A player of many tournaments, and others' events between theirs: no page goes on for ever."""
    filled(engine)
    log = [scored(10 + n, BOB, n) for n in range(50)]
    archive = SqlArchive(engine, TOMBSTONE_KEY, now_ms=lambda: START_MS)
    archive.fold(Place("wagers", 0), LOG, put_down(log), Offset(60))
    held, after, empty = SqlHoldings(engine, 10), None, 0
    while True:
        page = held.page(ALICE, after, 100)
        empty += not page.things
        if (after := page.after) is None:
            break
    assert empty > 0
    assert told(engine, ALICE, looked_at=10)[0] == told(engine, ALICE)[0]


def _cursor(*parts: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "after",
    [
        "", "x", "é", "!" * 9, "A" * 600, _cursor(), _cursor("nothing", 1), _cursor("events", 1),
        _cursor("events", 1, "2"), _cursor("events", 1, True), _cursor("events", 2**31, 1),
        _cursor("events", 1, 2**63), _cursor("events", -2, 1), _cursor("letters", "a\0", 1, 1),
        _cursor("letters", "x" * 300, 1, 1), _cursor("events", 1.5, 1),
        _cursor("alerts", 1), _cursor("alerts", "x" * 250),
        _cursor("tournaments", None), base64.urlsafe_b64encode(b'{"a": 1}').decode(),
        base64.urlsafe_b64encode(b"[" * 300).decode(),
    ],
)  # fmt: skip
def test_what_is_no_place_to_go_on_is_an_error(engine: sa.Engine, after: str) -> None:
    with pytest.raises(ValueError, match="no place to go on from"):
        SqlHoldings(engine).page(ALICE, after, 10)


def test_hostile_cursor_of_the_right_shape_is_harmless(engine: sa.Engine) -> None:
    filled(engine)
    for after in (
        _cursor("letters", "'; DROP TABLE players; --", 1, 1),
        _cursor("events", 2**31 - 1, 2**63 - 1),
        _cursor("attempts", 0, 2**63 - 1),
        _cursor("alerts", "' OR 1=1 --"),
    ):
        SqlHoldings(engine).page(ALICE, after, 10)
    assert told(engine, ALICE)[0]


def _erased(engine: sa.Engine, archive: SqlArchive) -> str:
    erasure_id = erasure_id_of(TOMBSTONE_KEY, ALICE)
    for n, tournament_id in enumerate((T, OTHER)):
        data = ev.PlayerErased(tournament_id=tournament_id, player_id=ALICE, erasure_id=erasure_id)
        archive.fold(Place("wagers", 0), LOG, put_down([entry(70 + n, data)]), Offset(71 + n))
    gone = ev.PlayerErased(player_id=ALICE, erasure_id=erasure_id)
    archive.forget(Place("gdpr-events", 0), "g/0", [entry(0, gone)], Offset(1))
    return erasure_id


def test_who_was_forgotten_is_held_by_nothing_but_the_request(engine: sa.Engine) -> None:
    archive = filled(engine)
    erasure_id = _erased(engine, archive)
    things, _ = told(engine, ALICE)
    assert [one["kind"] for one in things] == ["erasure_request"]
    assert SqlRequests(engine).close(erasure_id, {"record": START_MS}, START_MS)
    assert told(engine, ALICE) == ([], 1)
    assert told(engine, BOB)[0], "others are still there"


# --- requests ------------------------------------------------------------------------------------


def test_request_is_put_down_by_the_log_and_stays_until_it_is_closed(engine: sa.Engine) -> None:
    archive, requests = filled(engine), SqlRequests(engine)
    erasure_id = erasure_id_of(TOMBSTONE_KEY, ALICE)
    assert requests.find(erasure_id) is None
    assert not requests.close(erasure_id, {}, 1), "it may still come"
    assert _erased(engine, archive) == erasure_id
    (one,) = requests.pending(10)
    assert one == requests.find(erasure_id)
    assert (one.erasure_id, one.player_id, one.done_at_ms) == (erasure_id, ALICE, {})
    assert set(requests.applied_in(erasure_id)) == {T, OTHER}
    assert requests.applied_in("er-1") == []
    assert requests.close(erasure_id, {"record": 7}, 8)
    assert requests.close(erasure_id, {"record": 9}, 9), "harmless again"
    assert requests.find(erasure_id) == Requested(
        erasure_id, one.requested_at_ms, None, {"record": 7}
    )
    assert requests.pending(10) == []


def test_request_that_the_log_tells_again_is_not_opened_again(engine: sa.Engine) -> None:
    archive, requests = filled(engine), SqlRequests(engine)
    erasure_id = _erased(engine, archive)
    requests.close(erasure_id, {"record": 7}, 8)
    gone = ev.PlayerErased(player_id=ALICE, erasure_id=erasure_id)
    archive.forget(Place("gdpr-events", 0), "g/0", [entry(1, gone)], Offset(2))
    assert requests.pending(10) == []


def test_request_that_is_asked_again_is_open_until_it_is_closed_again(engine: sa.Engine) -> None:
    archive, requests = filled(engine), SqlRequests(engine)
    erasure_id = _erased(engine, archive)
    requests.reopen("er-1", BOB)
    assert requests.find("er-1") is None, "only what the log has told of"
    requests.close(erasure_id, {"record": 7}, 8)
    requests.reopen(erasure_id, ALICE)
    assert [one.player_id for one in requests.pending(10)] == [ALICE]
    assert requests.close(erasure_id, {"record": 9}, 9)
    assert requests.pending(10) == []
    again = requests.find(erasure_id)
    assert again is not None
    assert again.done_at_ms == {"record": 7}, "it was done then"


def test_oldest_requests_come_first(engine: sa.Engine) -> None:
    archive, requests = filled(engine), SqlRequests(engine)
    for offset, (who, at_ms) in enumerate([(BOB, 300), (ALICE, 100), (CAROL, 200)]):
        gone = ev.PlayerErased(player_id=who, erasure_id=erasure_id_of(TOMBSTONE_KEY, who))
        asked = [entry(offset, gone, time_ms=START_MS + at_ms)]
        archive.forget(Place("gdpr-events", 0), "g/0", asked, Offset(offset + 1))
    assert [one.player_id for one in requests.pending(2)] == [ALICE, CAROL]
