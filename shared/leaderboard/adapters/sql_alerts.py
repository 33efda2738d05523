"""Suspicions in the record: kept once each, read as the operators' queue, and emptied of who was
forgotten."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from leaderboard import events as ev
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import among, insert, reading, update
from leaderboard.adapters.sql_erasure import NOBODY, marked
from leaderboard.fold import LogEntry
from leaderboard.fraud_ports import (
    LONGEST_RULE,
    LONGEST_WORDS,
    NO_EVIDENCE,
    Alert,
    AlertFilter,
    kept_text,
    partner_in,
    sequence_in,
    severity_hundredths,
)
from leaderboard.model import Offset, PlayerId, TournamentId, erased_name, tombstone

_ALERT = tables.fraud_alerts.c
_REVIEW = tables.fraud_reviews.c
_LONGEST_ID: Final = 192


def keep_alerts(connection: sa.Connection, fresh: Sequence[LogEntry], key: bytes) -> int:
    """Keep suspicions and decisions; how many suspicions were new. Marks have to be held."""
    alerts: dict[str, tuple[ev.Event, ev.FraudSuspected]] = {}
    reviews: dict[str, tuple[Any, ...]] = {}
    for entry in fresh:
        event, data = entry.event, entry.event.data
        if isinstance(data, ev.FraudSuspected):
            alerts.setdefault(event.id[:_LONGEST_ID], (event, data))
        elif isinstance(data, ev.FraudReviewed):
            at, decided_by = event.time_ms, kept_text(data.decided_by, LONGEST_WORDS)
            why = None if data.reason is None else kept_text(data.reason, LONGEST_WORDS)
            alert_id = kept_text(data.alert_id, _LONGEST_ID)
            row = (alert_id, data.tournament_id, data.decision, decided_by, at, why)
            reviews[alert_id] = row
    column = _ALERT.alert_id
    known = {one for (one,) in among(connection, sa.select(column), column, alerts)}
    new = {alert_id: one for alert_id, one in alerts.items() if alert_id not in known}
    named = {
        str(name)
        for _, data in new.values()
        for name in (data.player_id, partner_in(data.evidence))
    }
    forgotten = marked(connection, key, named)
    insert(
        connection,
        tables.fraud_alerts,
        [_row(alert_id, *one, forgotten, key) for alert_id, one in new.items()],
    )
    _keep_reviews(connection, reviews)
    return len(new)


def _row(
    alert_id: str,
    event: ev.Event,
    data: ev.FraudSuspected,
    forgotten: frozenset[str],
    key: bytes,
) -> tuple[Any, ...]:
    player, other, evidence = data.player_id, partner_in(data.evidence), _text(data.evidence)
    if player in forgotten or other in forgotten:
        evidence, other = NO_EVIDENCE, None
    if player in forgotten:
        player = erased_name(tombstone(key, data.tournament_id, player))
    return (
        alert_id, data.tournament_id, sequence_in(data.evidence),
        kept_text(data.rule, LONGEST_RULE), player, other, event.time_ms,
        severity_hundredths(data.evidence), evidence,
    )  # fmt: skip


def _text(evidence: object) -> str:
    try:
        return json.dumps(evidence, allow_nan=False)
    except ValueError:
        return NO_EVIDENCE  # a number that no JSON has


def _keep_reviews(connection: sa.Connection, reviews: dict[str, tuple[Any, ...]]) -> None:
    # A reason may name anybody.
    emptied = sa.select(_ALERT.alert_id).where(_ALERT.evidence == NO_EVIDENCE)
    for (alert_id,) in among(connection, emptied, _ALERT.alert_id, reviews):
        reviews[alert_id] = (*reviews[alert_id][:-1], NOBODY)
    table, column = tables.fraud_reviews, _REVIEW.alert_id
    known = {one for (one,) in among(connection, sa.select(column), column, reviews)}
    insert(connection, table, [row for name, row in reviews.items() if name not in known])
    names = [one.name for one in table.columns]
    update(connection, table, names[:1], names[1:], [reviews[name] for name in sorted(known)])


class SqlAlerts:
    """`fraud_ports.Alerts` in SQL. Safe for several threads."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def find(self, alert_id: str) -> Alert | None:
        with reading(self._engine) as connection:
            row = connection.execute(_all().where(_ALERT.alert_id == alert_id)).first()
        return None if row is None else _alert(row)

    def list(
        self, which: AlertFilter, limit: int, before: tuple[int, str] | None = None
    ) -> Sequence[Alert]:
        statement = _all().order_by(_ALERT.time_ms.desc(), _ALERT.alert_id.desc()).limit(limit)
        wanted = (
            (_ALERT.tournament_id, which.tournament_id),
            (_ALERT.rule, which.rule),
            (_ALERT.player_id, which.player_id),
        )
        for column, value in wanted:
            if value is not None:
                statement = statement.where(column == value)
        if which.state is not None:
            is_open = which.state == "open"
            decision = _REVIEW.decision
            statement = statement.where(decision.is_(None) if is_open else decision == which.state)
        if before is not None:
            at, name = before
            older = sa.and_(_ALERT.time_ms == at, _ALERT.alert_id < name)
            statement = statement.where(sa.or_(_ALERT.time_ms < at, older))
        with reading(self._engine) as connection:
            return [_alert(row) for row in connection.execute(statement)]


def _all() -> sa.Select[Any]:
    joined = tables.fraud_alerts.outerjoin(
        tables.fraud_reviews, _ALERT.alert_id == _REVIEW.alert_id
    )
    decided = (_REVIEW.decision, _REVIEW.decided_by, _REVIEW.decided_at_ms, _REVIEW.reason)
    return sa.select(tables.fraud_alerts, *decided).select_from(joined)


def _alert(row: Any) -> Alert:
    return Alert(
        alert_id=row.alert_id,
        tournament_id=TournamentId(row.tournament_id),
        sequence=Offset(row.sequence),
        rule=row.rule,
        player_id=PlayerId(row.player_id),
        time_ms=row.time_ms,
        severity=row.severity_hundredths / 100,
        evidence=json.loads(row.evidence),
        decision=row.decision,
        decided_by=row.decided_by,
        decided_at_ms=row.decided_at_ms,
        reason=row.reason,
    )
