"""Commands of the command line that need no server: wrong input is one line, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from leaderboard.cli.operate import standings_table
from running import command

SETTINGS = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}


@pytest.mark.parametrize("name", ["[/x]", "[red]bold", "[link=http://x]here[/link]"])
def test_a_player_s_name_is_shown_as_it_is(name: str) -> None:
    """A player chooses it, and it must neither stop the command nor colour the terminal."""
    console = Console(width=200, record=True, force_terminal=True)
    with console.capture() as shown:
        console.print(standings_table([(1, "p1", name, 5)]))
    assert name in shown.get()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--for", "99999999999999d"], "too long"),
        (["--starts", "+99999999d"], "after the year 9999"),
        (["--starts", "9999-12-31T23:59Z", "--for", "10d"], "after the year 9999"),
        (["--starts", "+5m", "--ends", "+1m"], "ends_at must come after starts_at"),
        (["--name", "a" * 65], "name: "),
        (["--prizes", "{"], "Expecting property name"),
        (["--lead", "2d"], "lead_minutes: "),
        (["--lead", "soon"], "no duration"),
    ],
)
def test_an_impossible_schedule_is_one_line(words: list[str], told: str, tmp_path: Path) -> None:
    done = command(["tournament", "schedule", "t1", *words], tmp_path, {})
    assert done.returncode in (1, 2)
    assert told in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "events").write_bytes(b"\n\xff\xfe\n")
    done = command(["produce", "--file", "events"], tmp_path, SETTINGS)
    assert done.returncode == 1
    assert "error: events is no UTF-8" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_topic_that_would_be_ignored_is_refused(tmp_path: Path) -> None:
    words = ["--tournament", "t1", "--player", "p1", "--stake", "1", "--topic", "game-events"]
    done = command(["produce", *words], tmp_path, SETTINGS)
    assert done.returncode == 2
    assert "--topic is for --file" in done.stderr


def test_an_id_that_nobody_would_take_is_one_line(tmp_path: Path) -> None:
    words = ["produce", "--tournament", "t", "--player", "p", "--score", "1", "--id", "a\nb"]
    done = command(words, tmp_path, {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"})
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "bad_id" in done.stderr


def test_kafka_that_is_away_is_one_line(tmp_path: Path) -> None:
    done = command(["dlq", "list"], tmp_path, {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"})
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1, done.stderr
