"""A local stack that is played on: its logs, a trace of it, its metrics in a real Prometheus."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from leaderboard import events as ev
from leaderboard.cli import dashboards
from leaderboard.codec import encode_http
from leaderboard.stack.functions import FUNCTIONS
from leaderboard.stack.process import LOOPBACK, Process, free_port
from observing import FOREIGN, PROMETHEUS, RULES
from picturing import picture
from running import StackCommand, command, wait_for
from sockets import Players
from whole_path import Path as Played
from whole_path import event, schedule, unique, wager

ROOT = Path(__file__).parents[2]
PEOPLE = ("playing-polly", "watching-wanda", "leaving-lena", "unwanted-ulf")
SEEN_WITHIN_SECONDS = 40.0
QUIET = {
    "leaderboard_outbox_oldest_seconds": "no relay in a stack",
    "leaderboard_outbox_refused": "no relay in a stack",
    "leaderboard_unreadable_share": "told when it is high",
    "leaderboard_retries_total": "nothing was away",
    **dict.fromkeys(FOREIGN, "no Kubernetes"),
}
"""Series that a stack has not, and why."""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, players: Players) -> Iterator[Played]:
    """A stack that traces, on which all that is logged has happened."""
    words = ["stack", "--free-ports", "--traces"]
    stack = StackCommand(tmp_path_factory.mktemp("eyes"), words)
    stack.start()
    path = Played(stack, players)
    try:
        play(path)
        yield path
    finally:
        path.close()
        stack.stop()


def play(path: Played) -> None:
    polly, wanda, lena, ulf = PEOPLE
    name = unique("eyes")
    path.publish([schedule(name)])
    wagers = [wager(name, who, stake) for stake in (100, 200) for who in PEOPLE]
    joined = ev.PlayerJoined(tournament_id=name, player_id=polly, display_name="Polly Persona")
    refused = wager("nobodys-tournament", ulf, 5)
    wrong = wager(name, ulf, 5, currency="USD")
    again = wagers[0]
    entries = path.publish([event(joined), *wagers, again, wrong, refused])
    path.reached(name, entries[len(wagers)].offset)
    hostile = ev.Record(ev.WAGERS, name.encode(), json.dumps({"player_id": ulf}).encode())
    path.send([hostile])
    with_socket = path.socket(name, wanda)
    path.socket(name, lena)
    path.socket(name, lena)
    path.http.post(f"{path.settings['CONNECT_URL']}/v1/tournaments/{name}/connections")
    path.get(f"/v1/tournaments/{name}/players/{polly}", "player", ulf)
    path.get(f"/v1/tournaments/{name}/players/{polly}", "player", polly)
    url = f"{path.settings['ERASE_URL']}/v1/erasures"
    body = {"player_id": lena}
    path.http.post(url, json=body, headers=path.headers("operator")).raise_for_status()
    path.publish([wager(name, wanda, 900)])
    wait_for(lambda: bool(with_socket.of_type("position")), 20)
    answer = command(["produce", "--tournament", name, "--player", polly, "--stake", "700"],
                     path.stack.folder)  # fmt: skip
    assert answer.returncode == 0, answer.stderr


def logs_of(path: Played) -> dict[str, str]:
    """What the functions printed, by file."""
    folder = path.stack.folder / ".stack/logs"
    names = {f"{one.name}-1.log" for one in FUNCTIONS}
    return {name: (folder / name).read_text("utf-8") for name in sorted(names)}


def named_in(text: str, words: Sequence[str]) -> list[str]:
    return [word for word in words if word in text]


def test_no_log_names_a_person_or_holds_a_secret(played: Played) -> None:
    tokens = [token for _, token in played._tokens.values()]
    assert len(tokens) > 3
    secrets = [played.settings["TOMBSTONE_KEY"], *tokens]
    agent = str(played.http.headers["User-Agent"])
    words = [*PEOPLE, "Polly", "ticket=", "Bearer ", agent, "USD", *secrets]
    folder = played.stack.folder / ".stack/logs"
    for name, text in logs_of(played).items():
        assert named_in(text, words) == [], name
    for path in folder.glob("*.log"):
        assert named_in(path.read_text("utf-8", "replace"), [*PEOPLE, *secrets]) == [], path.name
    assert named_in("… leaving-lena is away …", words) == ["leaving-lena"]


def test_logs_are_lines_of_json_and_those_of_an_event_have_its_trace(played: Played) -> None:
    lines = [line for text in logs_of(played).values() for line in text.splitlines()]
    told: list[dict[str, Any]] = [json.loads(line) for line in lines if line.startswith("{")]
    others = [line for line in lines if not line.startswith(("{", "["))]
    assert others == [], "gunicorn's own lines begin with ["
    for one in told:
        assert one.keys() >= {"time", "level", "logger", "message"}
    messages = {one["message"] for one in told}
    assert {"event refused", "event does not count", "assigned"} <= messages
    # Of a wager that begins its trace at its producer.
    ours = command(["produce", "--tournament", "nobodys-tournament", "--player", "p", "--stake",
                    "1", "--id", "e-traced"], played.stack.folder)  # fmt: skip
    assert ours.returncode == 0, ours.stderr
    wait_for(lambda: bool(traced_refusals(played)), 20)
    trace = command(["trace", "e-traced", "--wait", "3"], played.stack.folder)
    assert traced_refusals(played)[-1]["trace_id"] in trace.stdout


def traced_refusals(path: Played) -> list[dict[str, Any]]:
    """Lines of on-wager on refused events whose producers traced them."""
    lines = [json.loads(x) for x in logs_of(path)["on-wager-1.log"].splitlines() if x[0] == "{"]
    return [x for x in lines if x["message"] == "event refused" and "trace_id" in x]


def test_trace_prints_a_wager_from_its_producer_to_its_frame(played: Played) -> None:
    folder = played.stack.folder
    name = unique("traced")
    played.publish([schedule(name)])
    words = ["produce", "--tournament", name, "--player", PEOPLE[0], "--stake", "5", "--id"]
    assert command([*words, "e-shown"], folder).returncode == 0
    ended = command(["trace", "e-shown"], folder, {"COLUMNS": "160"})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    order = ["send wagers", "process wagers", "process position-changes", "push top", "ms from"]
    places = [ended.stdout.index(span) for span in order]
    assert places == sorted(places)
    assert "to the gateway" in ended.stdout
    assert PEOPLE[0] not in (folder / ".stack/data/traces.jsonl").read_text("utf-8")
    unknown = command(["trace", "e-never", "--wait", "0"], folder)
    assert unknown.returncode == 1
    assert "no trace of e-never" in unknown.stderr


# --- Prometheus --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prometheus(played: Played, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A real one that has seen the stack play, with our rules."""
    program = shutil.which("prometheus")
    assert program is not None, "prometheus is wanted (Debian: apt-get install prometheus)"
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    targets = [
        played.settings[one.url_setting].removeprefix("http://")
        for one in FUNCTIONS
        if one.url_setting is not None
    ]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(PROMETHEUS / "rules.yaml")],
        "scrape_configs": [
            {"job_name": "leaderboard", "static_configs": [{"targets": targets}]},
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
    process = Process(
        "prometheus",
        [
            program, f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data", f"--web.listen-address={LOOPBACK}:{port}",
        ],
        log_path=folder / "prometheus.log",
    )  # fmt: skip
    process.start()
    try:
        with httpx.Client(base_url=f"http://{LOOPBACK}:{port}", timeout=10) as client:
            process.wait_until(lambda: _is_ready(client), 30)
            # Rates want two samples, and something between them.
            for stake in range(6):
                play_on(played, stake)
                time.sleep(1.1)
            yield client
    finally:
        process.stop()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.HTTPError:
        return False


_NAME = unique("measured")


def play_on(path: Played, stake: int) -> None:
    known = path.get(f"/v1/tournaments/{_NAME}").status_code == 200
    path.publish([] if known else [schedule(_NAME)])
    path.publish([wager(_NAME, who, 10 + stake) for who in PEOPLE])
    if stake == 0:
        path.reached(_NAME, 0)
        path.socket(_NAME, PEOPLE[1])
    path.ticket(_NAME, PEOPLE[2])
    headers, body = encode_http(wager(_NAME, PEOPLE[3], 10 + stake))
    headers |= path.headers("service")
    answer = path.http.post(f"{path.settings['ON_WAGER_URL']}/", content=body, headers=headers)
    assert answer.status_code == 202, answer.text


def asked(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    answer = client.get("/api/v1/query", params={"query": query})
    assert answer.status_code == 200, f"{query}: {answer.text}"
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found


def wait_until_shown(client: httpx.Client, query: str) -> None:
    until = time.monotonic() + SEEN_WITHIN_SECONDS
    while not asked(client, query):
        assert time.monotonic() < until, f"shows nothing: {query}"
        time.sleep(0.3)


def is_quiet(query: str) -> bool:
    return any(series in query for series in QUIET) or query.endswith("> 0")


def test_prometheus_takes_every_rule(prometheus: httpx.Client) -> None:
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == sum(len(group["rules"]) for group in RULES["groups"])
    wait_for(lambda: _health(prometheus) == {"ok"}, 20)


def _health(client: httpx.Client) -> set[str]:
    groups = client.get("/api/v1/rules").json()["data"]["groups"]
    return {rule["health"] for group in groups for rule in group["rules"]}


def test_every_target_is_scraped(prometheus: httpx.Client) -> None:
    wait_for(lambda: all(one["value"][1] == "1" for one in asked(prometheus, "up")), 20)
    assert len(asked(prometheus, "up")) == len([f for f in FUNCTIONS if f.url_setting is not None])


CHOSEN = {"$tournament": _NAME, "$function": "on-wager"}


@pytest.mark.parametrize("board", dashboards.ALL, ids=lambda board: board.uid)
def test_every_panel_shows_something(prometheus: httpx.Client, board: dashboards.Dashboard) -> None:
    chosen = CHOSEN
    for panel in board.panels:
        for query in panel.queries.values():
            text = query
            for variable, value in chosen.items():
                text = text.replace(variable, value)
            asked(prometheus, text)
            if not is_quiet(text):
                wait_until_shown(prometheus, text)
    if board.variable is not None:
        series, label = board.variable[1].removeprefix("label_values(").rstrip(")").split(", ")
        values = {one["metric"].get(label) for one in asked(prometheus, series)}
        assert chosen[f"${board.variable[0]}"] in values


@pytest.mark.parametrize("board", dashboards.ALL, ids=lambda board: board.uid)
def test_every_dashboard_has_its_picture(
    prometheus: httpx.Client, played: Played, board: dashboards.Dashboard, tmp_path: Path
) -> None:
    """The queries of its panels as Prometheus draws them; with PICTURES=1 after a minute of play,
    for docs/images."""
    folder = tmp_path
    if os.environ.get("PICTURES") == "1":
        folder = ROOT / "docs/images"
        for _ in range(20):  # a player may ask for 30 ways in a minute
            play_on(played, 7)
            time.sleep(1.5)
            played.publish([wager(_NAME, who, 7) for who in PEOPLE])
            time.sleep(1.5)
    path = folder / f"{board.uid}.png"
    drawn = picture(board, CHOSEN, str(prometheus.base_url).rstrip("/"), path)
    assert len(drawn) == len({query for panel in board.panels for query in panel.queries.values()})
    assert [query for query, curves in drawn.items() if not curves and not is_quiet(query)] == []
    assert path.stat().st_size > 20_000


def test_how_fast_a_wager_is_seen_is_measured(prometheus: httpx.Client) -> None:
    for frame in ("position", "top"):
        for since in ("event", "ingest"):
            name = f'leaderboard_push_latency_seconds_count{{frame="{frame}",since="{since}"}}'
            wait_until_shown(prometheus, name)
            assert float(asked(prometheus, name)[0]["value"][1]) > 0
