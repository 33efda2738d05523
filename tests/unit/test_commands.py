"""Commands of the command line that need no server: wrong input is one line, never a traceback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

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


ALERT = "weekend-cup-of-all-games-2026-11-28/123456/stake_outlier"
ALERTS = [
    {
        "alert_id": ALERT, "time": "2026-11-28T12:00:00.000Z", "player_id": "p" * 64,
        "state": "open", "severity": 2.5, "rule": "stake_outlier",
        "evidence": {"stake_minor": 500000, "usual_stake_minor": 100, "deviations": 9,
                     "limit": 4},
    }
]  # fmt: skip
TOURNAMENTS = [
    {
        "tournament_id": "t" * 64, "state": "scheduled", "starts_at": "2026-11-28T12:00:00.000Z",
        "ends_at": "2026-11-28T18:00:00.000Z", "name": "A name of [b]some words[/b] " * 2,
    }
]  # fmt: skip


@pytest.fixture
def served() -> Iterator[tuple[dict[str, str], list[str]]]:
    """Functions that say this; the settings that lead there, and what they were asked."""
    asked: list[str] = []
    answers = {
        "/v1/fraud-alerts": {"alerts": ALERTS},
        "/v1/tournaments": {"tournaments": TOURNAMENTS},
    }

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
            asked.append(f"{self.command} {self.path} {body}".strip())
            told = answers.get(
                self.path.partition("?")[0], {"decision": "ok", "disqualified": True}
            )
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(told).encode())

        def log_message(self, *args: Any) -> None:
            pass

    for method in ("GET", "POST"):
        setattr(Handler, f"do_{method}", Handler.answer)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    yield {"QUERY_URL": url, "TOURNAMENT_URL": url, "LEADERBOARD_TOKEN": "t"}, asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_list_in_a_pipe_has_a_line_a_row_with_whole_values(
    served: tuple[dict[str, str], list[str]], tmp_path: Path
) -> None:
    settings = {**served[0], "COLUMNS": "80"}
    for words, wanted in (
        (["fraud", "list"], [ALERT, "p" * 64, "staked 500,000 where 100 is usual"]),
        (["tournament", "list"], ["t" * 64, "2026-11-28T18:00:00.000Z", TOURNAMENTS[0]["name"]]),
    ):
        done = command(words, tmp_path, settings)
        assert done.returncode == 0, done.stderr
        _, row = done.stdout.splitlines()
        assert all(one.strip() in row for one in wanted), row


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["tournament", "start", "t1"], "POST /v1/tournaments/t1/start {}"),
        (["tournament", "end", "t1", "--reason", "r"],
         'POST /v1/tournaments/t1/end {"reason":"r"}'),
        (["tournament", "cancel", "t1", "--yes"], "POST /v1/tournaments/t1/cancel {}"),
        (["fraud", "dismiss", "t1/7/velocity"],
         "POST /v1/tournaments/t1/fraud-alerts/7/velocity/dismiss {}"),
        (["fraud", "confirm", "t1/7/velocity", "--yes", "--reason", "r"],
         'POST /v1/tournaments/t1/fraud-alerts/7/velocity/confirm {"reason":"r"}'),
    ],
)  # fmt: skip
def test_a_decision_is_sent_with_its_reason(
    words: list[str], asked: str, served: tuple[dict[str, str], list[str]], tmp_path: Path
) -> None:
    done = command(words, tmp_path, served[0])
    assert done.returncode == 0, done.stderr
    assert served[1] == [asked]


@pytest.mark.parametrize("words", [["tournament", "cancel", "t1"], ["fraud", "confirm", ALERT]])
def test_a_decision_for_good_asks_first(
    words: list[str], served: tuple[dict[str, str], list[str]], tmp_path: Path
) -> None:
    """Nobody answers here."""
    done = command(words, tmp_path, served[0])
    assert done.returncode == 130
    assert "for good?" in done.stdout
    assert served[1] == []


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
