"""`leaderboard fraud`: the operators' queue of suspicions, and a second opinion on old play."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click
from rich.table import Table
from rich.text import Text

from leaderboard.cli.context import (
    CommandError,
    add_decision,
    checked_id,
    console,
    operator_api,
    print_table,
    table_of,
)
from leaderboard.fraud_rules import RULES
from leaderboard.model import is_id

STATES = ("open", "confirmed", "dismissed")


@click.group(help="Suspicions of fraud: look, confirm, dismiss.")
def fraud() -> None:
    """A suspicion changes no rank; a decision does."""


def _path(alert_id: str) -> str:
    parts = alert_id.split("/")
    if len(parts) != 3 or not all(map(is_id, parts)):
        raise CommandError(
            f"alert {alert_id[:200]!r} is no id: TOURNAMENT/SEQUENCE/RULE, as `fraud list` shows it"
        )
    tournament_id, sequence, rule = map(quote, parts)
    return f"/v1/tournaments/{tournament_id}/fraud-alerts/{sequence}/{rule}"


@fraud.command("list", help="List suspicions, the newest first.")
@click.option("--tournament", "tournament_id", metavar="ID")
@click.option("--player", "player_id", metavar="ID")
@click.option("--rule", type=click.Choice(RULES))
@click.option("--state", type=click.Choice([*STATES, "all"]), default="open", show_default=True)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--before", metavar="ALERT", help="The last alert of the page before.")
def list_(
    tournament_id: str | None,
    player_id: str | None,
    rule: str | None,
    state: str,
    limit: int,
    before: str | None,
) -> None:
    """One page."""
    given = {
        "tournament_id": tournament_id and checked_id(tournament_id, "tournament"),
        "player_id": player_id and checked_id(player_id, "player"),
        "rule": rule,
        "state": None if state == "all" else state,
        "before": before,
    }
    query = {name: text for name, text in given.items() if text is not None}
    answer = operator_api().call(
        "TOURNAMENT_URL", "GET", "/v1/fraud-alerts", params={**query, "limit": limit}
    )
    print_table(alerts_table(answer["alerts"]))


def alerts_table(alerts: list[dict[str, Any]]) -> Table:
    """A row an alert, with its evidence in a sentence."""
    columns = ("alert", "time", "player", "state", "severity", "what")
    table = table_of(*columns, right=("severity",), wraps=("what",))
    for one in alerts:
        severity = f"{one['severity']:.2f}"
        cells = (one["alert_id"], one["time"], one["player_id"], one["state"], severity)
        table.add_row(*map(Text, cells), Text(told(one)))
    return table


def told(alert: dict[str, Any]) -> str:
    """The evidence in a sentence."""
    seen = alert["evidence"]
    if not seen:
        return "the player was forgotten"
    try:
        match alert["rule"]:
            case "rank_rise":
                return (
                    f"from rank {seen['from_rank']:,} to {seen['to_rank']:,} within "
                    f"{seen['within_seconds']:g} s (limit: {seen['limit']} ranks)"
                )
            case "velocity":
                return (
                    f"{seen['wagers']} wagers within {seen['within_seconds']:g} s (limit: "
                    f"{seen['limit']} in {seen['window_seconds']} s)"
                )
            case "stake_outlier":
                return (
                    f"staked {seen['stake_minor']:,} where {seen['usual_stake_minor']:,} is usual: "
                    f"{seen['deviations']:g} deviations (limit: {seen['limit']:g})"
                )
            case "collusion":
                return (
                    f"{seen['kind']} with {seen['with_player_id']}: {seen['meetings']} times, "
                    f"{seen['share']:.0%} of what both played"
                )
    except (KeyError, TypeError, ValueError):
        pass  # of another version: as it is
    return str(seen)


@fraud.command(help="Show one suspicion with its evidence.")
@click.argument("alert")
def show(alert: str) -> None:
    """Everything that the record has of it."""
    found = operator_api().call("TOURNAMENT_URL", "GET", _path(alert))
    evidence = found.pop("evidence")
    for name, value in found.items():
        if value is not None:
            console.print(f"{name}: {value}", highlight=False, markup=False)
    console.print(f"what: {told({**found, 'evidence': evidence})}", highlight=False, markup=False)
    for name, value in evidence.items():
        console.print(f"  {name}: {value}", highlight=False, markup=False)


def _decide(alert: str, verb: str, reason: str | None) -> None:
    body = {} if reason is None else {"reason": reason}
    done = operator_api().call("TOURNAMENT_URL", "POST", f"{_path(alert)}/{verb}", json=body)
    more = ""
    if verb == "confirm":
        more = ": the player is disqualified"
        if not done["disqualified"]:
            more = "; the tournament is over, and its board stays as it is"
    console.print(f"{alert}: {done['decision']}{more}", highlight=False, markup=False)


add_decision(
    fraud,
    "confirm",
    "alert",
    "Confirm a suspicion: the player is disqualified.",
    _decide,
    "Disqualify the player for good?",
)
add_decision(fraud, "dismiss", "alert", "Dismiss a suspicion.", _decide)
