"""Commands of the command line that need no server: wrong input is one line, never a traceback."""

from __future__ import annotations

import pytest
from rich.console import Console

from leaderboard.cli.operate import standings_table


@pytest.mark.parametrize("name", ["[/x]", "[red]bold", "[link=http://x]here[/link]"])
def test_a_player_s_name_is_shown_as_it_is(name: str) -> None:
    """A player chooses it, and it must neither stop the command nor colour the terminal."""
    console = Console(width=200, record=True, force_terminal=True)
    with console.capture() as shown:
        console.print(standings_table([(1, "p1", name, 5)]))
    assert name in shown.get()
