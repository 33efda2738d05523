"""The whole platform on a Redis Cluster: every function, and a shard that changes its primary."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import httpx
import pytest

from clusters import LostTail, StackCluster
from leaderboard.stack.functions import FUNCTIONS
from running import StackCommand, command, is_alive, wait_for
from sockets import Players
from whole_path import Path, schedule, unique, wager

NODES = 6
BACK_SECONDS = 40.0


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, players: Players) -> Iterator[Path]:
    """The local stack with three primaries and a replica each."""
    words = ["stack", "--redis", "cluster", "--free-ports"]
    stack = StackCommand(tmp_path_factory.mktemp("cluster"), words)
    stack.start()
    opened = Path(stack, players)
    try:
        yield opened
    finally:
        opened.close()
        stack.stop()


def is_ready(path: Path) -> bool:
    urls = [path.settings[f.url_setting] for f in FUNCTIONS if f.url_setting is not None]
    try:
        return all(httpx.get(f"{url}/readyz", timeout=5).status_code == 200 for url in urls)
    except httpx.HTTPError:
        return False


def test_six_nodes_serve_all_slots(path: Path) -> None:
    env = path.stack.env()
    assert all(is_alive(int(env[f"PID_REDIS_{n}"])) for n in range(1, NODES + 1))
    assert "PID_REDIS" not in env
    found = StackCluster(path.stack.env).seen()
    assert len(found) == NODES
    assert sum(n.is_primary for n in found) == 3
    assert sum(last - first + 1 for n in found for first, last in n.slots) == 16_384


def test_a_wager_gets_to_a_socket_and_an_erasure_is_done(path: Path) -> None:
    tournament_id, player_id = unique("whole"), unique("player")
    entries = path.publish([schedule(tournament_id), wager(tournament_id, player_id, 500)])
    path.reached(tournament_id, entries[-1].offset)
    socket = path.socket(tournament_id, player_id)
    try:
        wait_for(lambda: len(socket.of_type("top")) > 0, 10)
        path.publish([wager(tournament_id, "rival", 900), wager(tournament_id, player_id, 600)])
        wait_for(lambda: any(f["new_rank"] == 1 for f in socket.of_type("position")), 10)
        erasures = f"{path.settings['ERASE_URL']}/v1/erasures"
        asked = path.http.post(
            erasures, json={"player_id": player_id}, headers=path.headers("operator")
        ).raise_for_status()
        wait_for(socket.is_closed, 10)
    finally:
        socket.close()
    told = f"{erasures}/{asked.json()['erasure_id']}"

    def is_done() -> bool:
        answer = path.http.get(told, headers=path.headers("operator"))
        return set(answer.json()["places"].values()) == {"done"}

    wait_for(is_done, BACK_SECONDS)
    assert [row["player_id"] for row in path.standings(tournament_id)] == ["rival"]
    assert path.ticket(tournament_id, player_id).status_code == 403


def test_all_go_on_by_themselves_when_a_shard_loses_its_tail(path: Path) -> None:
    """Its primary hangs: killed, the stack would have it back before anybody else is chosen."""
    tournament_id = unique("shard")
    entries = path.publish([schedule(tournament_id), wager(tournament_id, "early", 10)])
    path.reached(tournament_id, entries[-1].offset)
    cluster, env = StackCluster(path.stack.env), path.stack.env()
    fault = LostTail(cluster, tournament_id)
    fault.cut()
    entries = path.publish([wager(tournament_id, "lost", 15)])
    path.reached(tournament_id, entries[-1].offset)
    acknowledged, kept = fault.fail_over(signal.SIGSTOP)
    assert kept < acknowledged, "nothing was lost"
    entries = path.publish([wager(tournament_id, "late", 20)])
    path.reached(tournament_id, entries[-1].offset, BACK_SECONDS)
    assert [row["player_id"] for row in path.standings(tournament_id)] == [
        "late",
        "lost",
        "early",
    ]
    wait_for(lambda: is_ready(path), BACK_SECONDS)
    assert path.stack.env() == env, "something had to be started again"
    socket = path.socket(tournament_id, "early")
    try:
        wait_for(lambda: len(socket.of_type("top")) > 0, 10)
    finally:
        socket.close()


def test_the_embedded_stack_has_one_redis(path: Path) -> None:
    done = command(["stack", "--kind", "embedded", "--redis", "cluster"], path.stack.folder.parent)
    assert done.returncode == 2
    assert "--redis" in done.stderr
