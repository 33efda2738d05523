"""Suspicions in the record: kept once, decided, listed, and forgotten with the player. SQLite,
PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from leaderboard import events as ev
from leaderboard.adapters.sql_alerts import SqlAlerts
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.adapters.sql_fold import SqlFold
from leaderboard.fold import LogEntry
from leaderboard.fraud_ports import Alert, AlertFilter
from leaderboard.model import ERASED, Offset, Place
from logs import ALICE, BOB, CAROL, LOG, START_MS, TOMBSTONE_KEY, T, entry, erased, scheduled
from records import DIALECTS, dump, engine_of, fresh_database, put_down

PLACE = Place("fraud-alerts", 0)


@pytest.fixture(params=DIALECTS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    with fresh_database(request.param, request, tmp_path) as url, engine_of(url) as one:
        yield one


def suspected(
    offset: int, player: str, rule: str = "velocity", *, at_ms: int = 0, **evidence: Any
) -> LogEntry:
    sequence = evidence.get("sequence", offset)
    data = ev.FraudSuspected(
        tournament_id=T,
        player_id=player,
        rule=rule,
        evidence={"sequence": sequence, "severity": 1.25, **evidence},
    )
    return entry(offset, data, event_id=f"{T}/{sequence}/{rule}", time_ms=START_MS + at_ms)


def reviewed(offset: int, alert_id: str, decision: Any, reason: str | None = None) -> LogEntry:
    data = ev.FraudReviewed(
        tournament_id=T, alert_id=alert_id, decision=decision, decided_by="olga", reason=reason
    )
    return entry(offset, data, time_ms=START_MS + offset)


def keep(engine: sa.Engine, *entries: LogEntry) -> int:
    archive = SqlArchive(engine, TOMBSTONE_KEY, now_ms=lambda: START_MS)
    return archive.keep_alerts(PLACE, "f/0", entries, Offset(entries[-1].offset + 1))


def forget(engine: sa.Engine, player: str, offset: int = 0) -> None:
    archive = SqlArchive(engine, TOMBSTONE_KEY, now_ms=lambda: START_MS)
    archive.forget(Place("gdpr-events", 0), "g/0", [erased(offset, player)], Offset(offset + 1))


def listed(engine: sa.Engine, limit: int = 100, **which: Any) -> list[Alert]:
    return list(SqlAlerts(engine).list(AlertFilter(**which), limit))


def test_an_alert_is_kept_with_its_evidence(engine: sa.Engine) -> None:
    assert keep(engine, suspected(5, ALICE, wagers=101)) == 1
    assert SqlAlerts(engine).find(f"{T}/5/velocity") == Alert(
        alert_id=f"{T}/5/velocity", tournament_id=T, sequence=Offset(5), rule="velocity",
        player_id=ALICE, time_ms=START_MS, severity=1.25,
        evidence={"sequence": 5, "severity": 1.25, "wagers": 101},
    )  # fmt: skip
    assert SqlAlerts(engine).find("nothing/0/velocity") is None


def test_told_again_it_is_kept_once(engine: sa.Engine) -> None:
    keep(engine, suspected(5, ALICE))
    # Read again, sent again within a batch, and in one of its own.
    assert keep(engine, suspected(5, ALICE)) == 0
    again = suspected(6, ALICE, sequence=5)
    assert keep(engine, again, suspected(7, ALICE, sequence=5), suspected(8, BOB)) == 1
    assert [one.alert_id for one in listed(engine)] == [f"{T}/8/velocity", f"{T}/5/velocity"]


def test_the_last_decision_counts(engine: sa.Engine) -> None:
    name = f"{T}/0/velocity"
    keep(engine, suspected(0, ALICE), reviewed(1, name, "dismissed", "a bot of ours"))
    assert [one.alert_id for one in listed(engine, state="open")] == []
    (one,) = listed(engine, state="dismissed")
    assert (one.decided_by, one.decided_at_ms, one.reason) == (
        "olga",
        START_MS + 1,
        "a bot of ours",
    )
    keep(engine, reviewed(2, name, "confirmed"))
    (one,) = listed(engine, state="confirmed")
    assert (one.decision, one.reason) == ("confirmed", None)
    assert listed(engine, state="dismissed") == []


def test_the_queue_is_asked_for_in_parts(engine: sa.Engine) -> None:
    keep(
        engine,
        *(suspected(n, (ALICE, BOB)[n % 2], at_ms=n // 3 * 10) for n in range(10)),
        suspected(10, CAROL, "stake_outlier", at_ms=5),
    )
    assert {one.player_id for one in listed(engine, player_id=BOB)} == {BOB}
    assert [one.sequence for one in listed(engine, rule="stake_outlier")] == [10]
    assert listed(engine, tournament_id="another") == []
    alerts, before = SqlAlerts(engine), None
    pages: list[Alert] = []
    while page := alerts.list(AlertFilter(), 4, before):
        pages += page
        before = (page[-1].time_ms, page[-1].alert_id)
    assert pages == listed(engine)
    assert len(pages) == 11
    assert [one.time_ms for one in pages] == sorted((one.time_ms for one in pages), reverse=True)


def forget_in_log(engine: sa.Engine, player: str) -> None:
    """By the event of a tournament, before the request itself is read."""
    fold = SqlFold(engine, TOMBSTONE_KEY, now_ms=lambda: START_MS)
    fold.apply(0, LOG, put_down([scheduled(0), erased(1, player)]), Offset(2))


@pytest.mark.parametrize("forgets", [forget, forget_in_log])
@pytest.mark.parametrize("first", ["alert", "erasure"])
def test_who_was_forgotten_is_named_nowhere_whichever_comes_first(
    engine: sa.Engine, first: str, forgets: Any
) -> None:
    mine = suspected(0, ALICE, cause={"source": "/s", "id": f"{ALICE}-1"})
    with_me = suspected(1, BOB, "collusion", with_player_id=ALICE)
    other = suspected(2, BOB)
    told = [mine, with_me, other, reviewed(3, mine.event.id, "dismissed", f"{ALICE} called")]
    if first == "erasure":
        forgets(engine, ALICE)
    keep(engine, *told)
    if first == "alert":
        assert ALICE in str(dump(engine))
        forgets(engine, ALICE)
    found_in = {name for name, rows in dump(engine).items() if ALICE in str(rows)}
    assert found_in <= {"erasure_requests"}, "who has asked, until it is done"
    found = {one.sequence: one for one in listed(engine)}
    assert found[Offset(0)].player_id.startswith(ERASED)
    assert (found[Offset(0)].rule, found[Offset(0)].evidence) == ("velocity", {})
    assert (found[Offset(1)].player_id, found[Offset(1)].evidence) == (BOB, {})
    assert found[Offset(2)].evidence["severity"] == 1.25
    assert found[Offset(0)].decision == "dismissed"


@pytest.mark.parametrize(
    ("severity", "kept"),
    [(1e300, 2**63 / 1000), (10**40, 2**63 / 1000), (float("inf"), 2**63 / 1000),
     (float("nan"), 0), (-5.0, 0), ("high", 0), (True, 1)],
)  # fmt: skip
def test_no_number_in_an_alert_stops_who_keeps_it(
    engine: sa.Engine, severity: Any, kept: float
) -> None:
    keep(engine, suspected(0, ALICE, severity=severity, sequence=10**30))
    (alert,) = SqlAlerts(engine).list(AlertFilter(), 10)
    assert alert.severity == pytest.approx(kept, rel=0.01)


def test_an_alert_of_another_kind_than_ours_is_kept_too(engine: sa.Engine) -> None:
    """Its evidence is whatever its writer says."""
    data = ev.FraudSuspected(
        tournament_id=T, player_id=ALICE, rule="other", evidence={"severity": "high", "x": None}
    )
    keep(engine, entry(0, data, event_id="x" * 400))
    (one,) = listed(engine)
    assert (one.sequence, one.severity, one.evidence["x"]) == (-1, 0, None)
