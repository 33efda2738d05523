"""The operators' queue of suspicions: read from the record, decided by events in the log.

A decision is `fraud.reviewed`; one that confirms is first a `player.disqualified` of the same
tournament, with the alert's id as its reason. Ids of both are derived from the alert and the
decision, so a request that is repeated counts once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from leaderboard import events as ev
from leaderboard.errors import NotFoundError, TransientError
from leaderboard.fraud_ports import Alert, AlertFilter, Alerts, review_id
from leaderboard.fraud_rules import RuleName
from leaderboard.hosts.http import Answer, Call, ProblemError, Route
from leaderboard.model import ERASED, PlayerId, TournamentId
from leaderboard.ports import Feed, Outgoing

READERS: Final = frozenset({"operator", "auditor", "service"})
DECIDERS: Final = frozenset({"operator", "service"})
SOURCE: Final = "/tournament"
SHOWN_WITHIN_SECONDS: Final = 5.0


class AlertQuery(BaseModel):
    """Which alerts, the newest first. `before`: the last alert id of the page before.

    A filter that is misspelled would show all, or none: it is refused."""

    model_config = ConfigDict(extra="forbid")

    tournament_id: ev.Id | None = None
    player_id: ev.Id | None = None
    rule: RuleName | None = None
    state: Literal["open", "confirmed", "dismissed"] | None = None
    before: ev.Text | None = None
    limit: int = Field(100, ge=1, le=1000)


class AlertRow(BaseModel):
    """A suspicion. `severity` is 1 at the rule's threshold, and comparable within a rule only."""

    alert_id: str
    tournament_id: str
    sequence: int
    rule: str
    player_id: str
    time: str
    severity: float
    evidence: dict[str, Any]
    state: Literal["open", "confirmed", "dismissed"]
    decided_by: str | None
    decided_at: str | None
    reason: str | None


class AlertPage(BaseModel):
    """Some of the alerts."""

    alerts: list[AlertRow]


class Review(BaseModel):
    """Why, for the record."""

    model_config = ConfigDict(strict=True)

    reason: ev.Text | None = None


class Reviewed(BaseModel):
    """What is in the log now. `disqualified` is false where nobody had to leave a board any more:
    the tournament is over, or the alert is dismissed."""

    alert_id: str
    decision: Literal["confirmed", "dismissed"]
    disqualified: bool


class Queue:
    """The operations. `write` puts an event into the tournament's log, after the fold's checks.

    `shown_within_seconds`: how long an answer waits for the record to show the decision."""

    def __init__(
        self,
        alerts: Callable[[], Alerts],
        feed: Callable[[], Feed],
        write: Callable[[ev.Event], object],
    ) -> None:
        self._alerts = alerts
        self._feed = feed
        self._write = write
        self.shown_within_seconds = SHOWN_WITHIN_SECONDS

    def page(self, call: Call) -> Answer:
        """Suspicions of fraud, the newest first."""
        asked: AlertQuery = call.query
        before = None
        if asked.before is not None:
            last = self._found(asked.before)
            before = (last.time_ms, last.alert_id)
        which = AlertFilter(
            None if asked.tournament_id is None else TournamentId(asked.tournament_id),
            asked.rule,
            asked.state,
            None if asked.player_id is None else PlayerId(asked.player_id),
        )
        rows = [row_of(one) for one in self._alerts().list(which, asked.limit, before)]
        return Answer(AlertPage(alerts=rows))

    def show(self, call: Call) -> Answer:
        """One suspicion, with its evidence."""
        return Answer(row_of(self._found(_id_of(call))))

    def confirm(self, call: Call) -> Answer:
        """The suspicion is right: the player leaves the board for good."""
        alert = self._found(_id_of(call))
        if alert.player_id.startswith(ERASED):
            raise ProblemError(409, "The player was forgotten.")
        decided_by = call.authenticated().subject
        data = ev.PlayerDisqualified(
            tournament_id=alert.tournament_id,
            player_id=alert.player_id,
            reason=alert.alert_id,
            decided_by=decided_by,
        )
        now_ms = _now_ms()
        name = f"{alert.alert_id}/confirmed"
        is_out = True
        try:
            self._write(ev.Event(name, SOURCE, now_ms, data, alert.player_id))
        except ProblemError as problem:
            if problem.status != 409:
                raise
            is_out = False  # over: there is no board to leave, and the decision stands in the log
        return self._review(call, alert, "confirmed", is_out)

    def dismiss(self, call: Call) -> Answer:
        """The suspicion is wrong, or not worth a decision."""
        return self._review(call, self._found(_id_of(call)), "dismissed", False)

    def _review(
        self,
        call: Call,
        alert: Alert,
        decision: Literal["confirmed", "dismissed"],
        is_out: bool,
    ) -> Answer:
        reason = None if call.body is None else call.body.reason
        data = ev.FraudReviewed(
            tournament_id=alert.tournament_id,
            alert_id=alert.alert_id,
            decision=decision,
            decided_by=call.authenticated().subject,
            **({} if reason is None else {"reason": reason}),
        )
        now_ms = _now_ms()
        event = ev.Event(review_id(alert.alert_id, decision, now_ms), SOURCE, now_ms, data)
        self._feed().publish([Outgoing(ev.FRAUD_ALERTS, event)])
        self._wait_until_shown(alert.alert_id, decision, now_ms)
        answer = Reviewed(alert_id=alert.alert_id, decision=decision, disqualified=is_out)
        return Answer(answer, status=202)

    def _wait_until_shown(self, alert_id: str, decision: str, at_ms: int) -> None:
        """It is in the log: being late is no error."""
        deadline = time.monotonic() + self.shown_within_seconds
        while time.monotonic() < deadline:
            try:
                shown = self._alerts().find(alert_id)
            except TransientError:
                return
            if shown is not None and shown.decision == decision and shown.decided_at_ms == at_ms:
                return
            time.sleep(0.05)

    def _found(self, alert_id: str) -> Alert:
        found = self._alerts().find(alert_id)
        if found is None:
            raise NotFoundError("there is no such alert")
        return found

    def routes(self) -> list[Route]:
        one = "/v1/tournaments/<tournament_id>/fraud-alerts/<sequence>/<rule>"
        queue: type[BaseModel] = AlertQuery
        return [
            Route(
                "GET", "/v1/fraud-alerts", self.page.__doc__ or "", self.page, READERS,
                query=queue, answers={200: AlertPage}, problems=frozenset({404, 503}),
            ),
            Route(
                "GET", one, self.show.__doc__ or "", self.show, READERS,
                answers={200: AlertRow}, problems=frozenset({404, 503}),
            ),
            *(
                Route(
                    "POST", f"{one}/{verb}", handler.__doc__ or "", handler, DECIDERS,
                    body=Review, body_optional=True, answers={202: Reviewed},
                    problems=frozenset({404, 409, 503}),
                )
                for verb, handler in (("confirm", self.confirm), ("dismiss", self.dismiss))
            ),
        ]  # fmt: skip


def row_of(alert: Alert) -> AlertRow:
    """An alert as operators see it."""
    at_ms = alert.decided_at_ms
    return AlertRow(
        alert_id=alert.alert_id,
        tournament_id=alert.tournament_id,
        sequence=alert.sequence,
        rule=alert.rule,
        player_id=alert.player_id,
        time=ev.format_time_ms(alert.time_ms),
        severity=alert.severity,
        evidence=dict(alert.evidence),
        state=alert.decision or "open",
        decided_by=alert.decided_by,
        decided_at=None if at_ms is None else ev.format_time_ms(at_ms),
        reason=alert.reason,
    )


def _id_of(call: Call) -> str:
    return "{tournament_id}/{sequence}/{rule}".format(**call.path)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
