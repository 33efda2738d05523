"""`leaderboard watch`: a tournament's top, live in the terminal, the way a player's page has it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from leaderboard.cli.context import Api, checked_id, console, environment
from leaderboard.cli.operate import standings_table
from leaderboard.errors import TransientError

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 10.0


@click.command(help="Follow the top of TOURNAMENT live, with a ticket, through the gateway.")
@click.argument("tournament_id", metavar="TOURNAMENT")
@click.option("--player", default="cli-watcher", show_default=True, help="Watch as this player.")
@click.option("--top", type=click.IntRange(1, 100), default=20, show_default=True)
@click.option("--frames", type=click.IntRange(1), help="Stop after this many frames.")
@click.option("--json", "as_json", is_flag=True, help="Print every frame as a line of JSON.")
def watch(tournament_id: str, player: str, top: int, frames: int | None, as_json: bool) -> None:
    """Until Ctrl-C; a lost socket is opened again with a fresh ticket."""
    api = Api(environment(), checked_id(player, "player"), ("player",))
    screen = _Screen(checked_id(tournament_id, "tournament"), top)
    with contextlib.suppress(KeyboardInterrupt):
        if as_json:
            asyncio.run(_follow(api, screen, frames, None))
        else:
            with Live(screen.shown(), console=console, refresh_per_second=8) as live:
                asyncio.run(_follow(api, screen, frames, live))


class _Screen:
    """What is known, and how it looks."""

    def __init__(self, tournament_id: str, top: int) -> None:
        self.tournament_id = tournament_id
        self._top = top
        self._version = -1
        self._frame: Mapping[str, Any] = {}
        self._own = ""
        self.state = "connecting"

    def take(self, frame: Mapping[str, Any]) -> None:
        """Frames that are not newer than what we have are dropped."""
        if frame.get("type") == "top" and frame["version"] > self._version:
            self._version, self._frame = frame["version"], frame
        elif frame.get("type") == "position":
            self._own = f"you: {frame['old_rank']} → {frame['new_rank']}, score {frame['score']:,}"

    def shown(self) -> Group:
        rows = [tuple(row) for row in self._frame.get("standings", [])[: self._top]]
        players = self._frame.get("players", 0)
        title = Text(f"{self.tournament_id} · {players} players · {self.state}", style="bold")
        return Group(title, standings_table(rows), Text(self._own))


async def _follow(api: Api, screen: _Screen, frames: int | None, live: Live | None) -> None:
    left = frames
    wait_seconds = FIRST_WAIT_SECONDS
    path = f"/v1/tournaments/{screen.tournament_id}/connections"
    async with aiohttp.ClientSession() as session:
        while True:
            opened_at = time.monotonic()
            try:
                ticket = await asyncio.to_thread(api.call, "CONNECT_URL", "POST", path)
                async with session.ws_connect(ticket["url"], heartbeat=20) as socket:
                    screen.state = "live"
                    async for message in socket:
                        if message.type is not aiohttp.WSMsgType.TEXT:
                            continue
                        if live is None:
                            click.echo(message.data)
                        frame = json.loads(message.data)
                        screen.take(frame)
                        _refresh(screen, live)
                        # A screen is asked for boards, lines of JSON for all that comes.
                        is_counted = live is None or frame.get("type") == "top"
                        if left is not None and is_counted and (left := left - 1) == 0:
                            return
            except (aiohttp.ClientError, TransientError) as error:
                screen.state = f"away, trying again ({type(error).__name__})"
            else:
                screen.state = "closed, opening again"
            _refresh(screen, live)
            if time.monotonic() - opened_at > LONGEST_WAIT_SECONDS:
                wait_seconds = FIRST_WAIT_SECONDS
            await asyncio.sleep(wait_seconds)
            wait_seconds = min(2 * wait_seconds, LONGEST_WAIT_SECONDS)


def _refresh(screen: _Screen, live: Live | None) -> None:
    if live is not None:
        live.update(screen.shown())
