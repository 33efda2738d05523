"""`leaderboard tournament` and `leaderboard erase`: what staff do."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from leaderboard.cli.context import (
    Api,
    CommandError,
    add_decision,
    checked_id,
    console,
    environment,
    first_fault,
    operator_api,
    print_table,
    progress_console,
    table_of,
)
from leaderboard.events import TournamentScheduled
from leaderboard.prewarming import Wishes

POLL_SECONDS = 0.3
_DURATION = re.compile(r"(\d+)(s|m|h|d)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text!r} is no duration like 90s, 10m, 2h, 1d")
    try:
        return timedelta(**{_UNITS[found[2]]: int(found[1])})
    except OverflowError:
        raise click.BadParameter(f"{text!r} is too long") from None


def _after(moment: datetime, lasts: timedelta) -> datetime:
    try:
        return moment + lasts
    except OverflowError:
        raise click.BadParameter("that is after the year 9999") from None


def _moment(text: str) -> datetime:
    if text == "now":
        return datetime.now(UTC)
    if text.startswith("+"):
        return _after(datetime.now(UTC), _duration(text[1:]))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no time like 2026-01-31T18:00Z, now, +5m") from None
    if moment.tzinfo is None:
        raise click.BadParameter(f"{text!r} has no zone; add Z or an offset")
    return moment


@click.group(help="Schedule, start, end, cancel, list and show tournaments.")
def tournament() -> None:
    """Each change is an event in the log."""


@tournament.command(help="Schedule a tournament, or change one that was scheduled.")
@click.argument("tournament_id")
@click.option("--name", help="Default: the id.")
@click.option("--starts", default="now", show_default=True, help="A time with zone, now, or +5m.")
@click.option("--ends", help="A time with zone, or +2h; default: --for after the start.")
@click.option("--for", "lasts", default="1h", show_default=True, help="90s, 10m, 2h, 1d.")
@click.option(
    "--scoring",
    type=click.Choice(["stake", "win", "count", "multiplier", "submitted"]),
    default="stake",
    show_default=True,
)
@click.option(
    "--operator",
    type=click.Choice(["sum", "best", "last", "count"]),
    default="sum",
    show_default=True,
)
@click.option(
    "--order",
    type=click.Choice(["descending", "ascending"]),
    default="descending",
    show_default=True,
)
@click.option("--currency", help="Only wagers in this one count.")
@click.option("--game", "games", multiple=True, help="Only this game counts; may be given again.")
@click.option("--min-stake", type=click.IntRange(0), help="Minor units.")
@click.option("--join", type=click.Choice(["open", "required"]), default="open", show_default=True)
@click.option("--prizes", help="JSON, kept as it is.")
@click.option("--players", type=click.IntRange(0), help="Expected: replicas are made for them.")
@click.option("--floor", type=click.IntRange(0), help="Replicas of each function instead.")
@click.option("--lead", help="How long before the start they are wanted: 45m, 2h.")
def schedule(  # noqa: PLR0913 - click gives every option its own argument
    *,
    tournament_id: str,
    name: str | None,
    starts: str,
    ends: str | None,
    lasts: str,
    scoring: str,
    operator: str,
    order: str,
    currency: str | None,
    games: tuple[str, ...],
    min_stake: int | None,
    join: str,
    prizes: str | None,
    players: int | None,
    floor: int | None,
    lead: str | None,
) -> None:
    """Checked by the same model as the event."""
    starts_at = _moment(starts)
    ends_at = _after(starts_at, _duration(lasts)) if ends is None else _moment(ends)
    rules: dict[str, Any] = {
        "scoring": {"kind": scoring},
        "operator": operator,
        "order": order,
        "join": join,
        "currency": currency,
        "games": list(games) or None,
        "min_stake_minor": min_stake,
    }
    body: dict[str, Any] = {
        "tournament_id": checked_id(tournament_id, "tournament"),
        "name": name or tournament_id,
        "starts_at": starts_at.isoformat(timespec="milliseconds"),
        "ends_at": ends_at.isoformat(timespec="milliseconds"),
        "rules": {key: value for key, value in rules.items() if value is not None},
    }
    try:
        if prizes is not None:
            body["prizes"] = json.loads(prizes)
        if wishes := _wishes(players, floor, lead):
            body["prewarm"] = wishes
            Wishes.model_validate_json(json.dumps(wishes))
        TournamentScheduled.model_validate_json(json.dumps(body))
    except ValueError as error:
        raise CommandError(f"the schedule would be refused: {first_fault(error)}") from None
    answer = operator_api().call("TOURNAMENT_URL", "POST", "/v1/tournaments", json=body)
    console.print(f"{tournament_id}: scheduled, {starts_at:%F %T %Z} to {ends_at:%F %T %Z}")
    for warned in (answer.get("prewarm") or {}).get("warnings", []):
        console.print(f"{tournament_id}: {warned['detail']}", highlight=False, markup=False)


def _wishes(players: int | None, floor: int | None, lead: str | None) -> dict[str, int]:
    lead_minutes = None if lead is None else _duration(lead) // timedelta(minutes=1)
    given = {"expected_players": players, "floor": floor, "lead_minutes": lead_minutes}
    return {name: number for name, number in given.items() if number is not None}


def _decide(tournament_id: str, verb: str, reason: str | None) -> None:
    checked_id(tournament_id, "tournament")
    body = {} if reason is None else {"reason": reason}
    operator_api().call(
        "TOURNAMENT_URL", "POST", f"/v1/tournaments/{tournament_id}/{verb}", json=body
    )
    console.print(f"{tournament_id}: {verb} is in the log", highlight=False)


for _verb, _help, _question in (
    ("start", "Start a tournament before its time.", None),
    ("end", "End a tournament at once: what comes later does not count.", None),
    ("cancel", "Cancel a tournament; nothing counts any more.", "Cancel it for good?"),
):
    add_decision(tournament, _verb, "tournament_id", _help, _decide, _question)


@tournament.command("list", help="List tournaments.")
@click.option("--state", type=click.Choice(["scheduled", "running", "ended", "cancelled"]))
def list_(state: str | None) -> None:
    """As the public list has them."""
    query = {} if state is None else {"state": state}
    answer = operator_api().call("QUERY_URL", "GET", "/v1/tournaments", params=query)
    table = table_of("tournament", "state", "starts", "ends", "name", wraps=("name",))
    for one in answer["tournaments"]:
        table.add_row(
            one["tournament_id"],
            one["state"],
            one["starts_at"],
            one["ends_at"],
            one.get("name", ""),
        )
    print_table(table)


@tournament.command(help="Show a tournament and the top of its board.")
@click.argument("tournament_id")
@click.option("--top", type=click.IntRange(1, 1000), default=10, show_default=True)
def show(tournament_id: str, top: int) -> None:
    """One read of each."""
    api, path = operator_api(), f"/v1/tournaments/{checked_id(tournament_id, 'tournament')}"
    about = api.call("QUERY_URL", "GET", path)
    board = api.call("QUERY_URL", "GET", f"{path}/standings", params={"limit": top})
    for name in ("state", "starts_at", "ends_at", "players", "sequence"):
        console.print(f"{name}: {about[name]}", highlight=False, markup=False)
    console.print(f"source: {board['source']}", highlight=False, markup=False)
    console.print(f"rules: {json.dumps(about['rules'])}", highlight=False, markup=False)
    rows = [
        (one["rank"], one["player_id"], one["display_name"], one["score"])
        for one in board["standings"]
    ]
    print_table(standings_table(rows))


def standings_table(rows: list[tuple[int, str, str | None, int]]) -> Table:
    """Rank, player, name and score."""
    table = table_of("rank", "player", "name", "score", right=("rank", "score"), wraps=("name",))
    for rank, player_id, name, score in rows:
        # A player chose the name: brackets in it are no markup.
        table.add_row(str(rank), Text(player_id), Text(name or ""), f"{score:,}")
    return table


@click.command(help="Forget PLAYER everywhere, and wait until it is done.")
@click.argument("player")
@click.option("--timeout", type=click.FloatRange(1), default=60, show_default=True, metavar="S")
@click.confirmation_option(prompt="Forget this player for good?")
def erase(player: str, timeout: float) -> None:
    """Shows each place as it is done. The same again is no error."""
    api = Api(environment(), "cli", ("operator", "service"))
    body = {"player_id": checked_id(player, "player")}
    erasure_id = api.call("ERASE_URL", "POST", "/v1/erasures", json=body)["erasure_id"]
    console.print(f"erasure {erasure_id}", highlight=False)
    deadline = time.monotonic() + timeout
    done: set[str] = set()
    with progress_console.status("forgetting"):
        while True:
            places = api.call("ERASE_URL", "GET", f"/v1/erasures/{erasure_id}")["places"]
            for place in sorted(name for name, state in places.items() if state == "done"):
                if place not in done:
                    console.print(f"done: {place}", highlight=False, markup=False)
                    done.add(place)
            if pending := sorted(places.keys() - done):
                if time.monotonic() > deadline:
                    raise CommandError(f"after {timeout:g} s still pending: {', '.join(pending)}")
                time.sleep(POLL_SECONDS)
                continue
            break
    console.print("forgotten", highlight=False)
