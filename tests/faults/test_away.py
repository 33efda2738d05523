"""A dependency that hangs: its socket is open, nothing answers. The worst way to be away.

Each test proves that the fault bit (readiness says who is away), that nothing was lost, and that
all goes on by itself afterwards."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from leaderboard import events as ev
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.fold import LogEntry
from leaderboard.model import PositionChange, TournamentId
from logs import TOMBSTONE_KEY
from running import descendants, wait_for
from whole_path import Path, header, schedule, unique, wager

ON_WAGER = "ON_WAGER_HEALTH_URL"
ON_RANK_CHANGE = "ON_RANK_CHANGE_HEALTH_URL"
NOTICED_SECONDS = 6.0
"""How long readiness may take to name what hangs; a check gives up after one or two."""
BACK_SECONDS = 20.0


@contextmanager
def hanging(path: Path, name: str) -> Iterator[None]:
    """All processes of one of the stack's servers, stopped for as long as this lasts."""
    pid = int(path.stack.env()[name])
    pids = [pid, *descendants(pid)]
    try:
        for each in pids:
            os.kill(each, signal.SIGSTOP)
        yield
    finally:
        for each in pids:
            os.kill(each, signal.SIGCONT)


def readiness(path: Path, process: str) -> tuple[int, dict[str, str]]:
    """The answer of /readyz, and what it says of each dependency."""
    answer = httpx.get(f"{path.settings[process]}/readyz", timeout=NOTICED_SECONDS)
    found: dict[str, str] = answer.json()["dependencies"]
    return answer.status_code, found


def is_away(path: Path, process: str, dependency: str) -> bool:
    status, found = readiness(path, process)
    return status == 503 and found[dependency] != "ready"


def is_ready(path: Path, process: str) -> bool:
    return readiness(path, process)[0] == 200


def repeats(path: Path) -> float:
    """How often on-rank-change has tried again because a dependency was away."""
    text = httpx.get(f"{path.settings[ON_RANK_CHANGE]}/metrics").text
    found = re.search(r'leaderboard_retries_total\{function="on-rank-change"\} (\S+)', text)
    return 0.0 if found is None else float(found[1])


def told(entries: Sequence[LogEntry]) -> tuple[list[tuple[int, str, int]], list[PositionChange]]:
    """The board and all its changes as the fold has them."""
    name = entries[0].event.tournament_id
    assert name is not None
    board = MemoryBoard(TOMBSTONE_KEY)
    applied = board.apply(TournamentId(name), "oracle", None, entries, None)
    view = board.top(TournamentId(name), 1000)
    assert view is not None
    rows = [(s.rank, str(s.player_id), s.score.score) for s in view.standings]
    return rows, list(applied.unconfirmed)


def assert_nothing_lost(path: Path, tournament_id: str, entries: Sequence[LogEntry]) -> None:
    """Board and position changes are those of the log, exactly."""
    path.reached(tournament_id, entries[-1].offset, BACK_SECONDS)
    rows, changes = told(entries)
    ours = [(r["rank"], r["player_id"], r["score"]) for r in path.standings(tournament_id)]
    assert ours == rows
    wanted = [(c.sequence, c.player_id, c.old_rank, c.new_rank, c.score.score) for c in changes]

    def published() -> list[tuple[Any, ...]]:
        return [
            (c.sequence, c.player_id, c.old_rank, c.new_rank, c.score)
            for c in path.changes(tournament_id)
        ]

    wait_for(lambda: len(published()) >= len(wanted), BACK_SECONDS)
    assert published() == wanted


def some_wagers(tournament_id: str, count: int, seed: int) -> list[ev.Event]:
    return [wager(tournament_id, f"p{(seed + i * 7) % 11}", 1 + i % 5) for i in range(count)]


def begun(path: Path, prefix: str) -> tuple[str, list[LogEntry]]:
    """A tournament with a board, and its log so far."""
    tournament_id = unique(prefix)
    entries = path.publish([schedule(tournament_id), *some_wagers(tournament_id, 20, 0)])
    path.reached(tournament_id, entries[-1].offset)
    return tournament_id, entries


def test_wagers_wait_for_a_redis_that_hangs_and_none_is_lost(path: Path) -> None:
    tournament_id, entries = begun(path, "redis")
    with hanging(path, "PID_REDIS"):
        entries += path.publish(some_wagers(tournament_id, 200, 1))
        wait_for(lambda: is_away(path, ON_WAGER, "redis"), NOTICED_SECONDS)
        status, found = readiness(path, ON_WAGER)
        assert (status, found["kafka"]) == (503, "ready")
        time.sleep(6)  # longer than an attempt waits: the same call is made again, and counts once
        entries += path.publish(some_wagers(tournament_id, 200, 2))
    wait_for(lambda: is_ready(path, ON_WAGER), BACK_SECONDS)
    assert_nothing_lost(path, tournament_id, entries)


def test_what_was_refused_by_a_call_that_timed_out_is_buried_all_the_same(path: Path) -> None:
    tournament_id, entries = begun(path, "refused")
    most = 2**53 - 1
    with hanging(path, "PID_REDIS"):
        whales = [wager(tournament_id, "whale", most) for _ in range(2)]
        entries += path.publish([*whales, wager(tournament_id, "p1", 5)])
        wait_for(lambda: is_away(path, ON_WAGER, "redis"), NOTICED_SECONDS)
        time.sleep(6)
    wait_for(lambda: is_ready(path, ON_WAGER), BACK_SECONDS)
    assert_nothing_lost(path, tournament_id, entries)
    wait_for(lambda: bool(path.dead_letters(tournament_id)), BACK_SECONDS)
    (dead,) = path.dead_letters(tournament_id)
    assert header(dead, "dlq_reason") == "score_out_of_range"
    assert header(dead, "dlq_offset") == str(entries[-2].offset)


def test_frames_wait_for_a_gateway_that_hangs_and_the_last_one_arrives(path: Path) -> None:
    tournament_id, entries = begun(path, "gateway")
    socket = path.socket(tournament_id, "p1")
    try:
        wait_for(lambda: bool(socket.of_type("top")), 10)
        repeated = repeats(path)
        with hanging(path, "PID_GATEWAY"):
            entries += path.publish(some_wagers(tournament_id, 100, 1))
            wait_for(lambda: is_away(path, ON_RANK_CHANGE, "gateway"), NOTICED_SECONDS)
            status, found = readiness(path, ON_RANK_CHANGE)
            assert (status, found["kafka"], found["redis"]) == (503, "ready", "ready")
            # Boards do not wait for screens.
            path.reached(tournament_id, entries[-1].offset)
            assert is_ready(path, ON_WAGER)
            time.sleep(6)  # longer than a frame waits, so that sending does fail
            last = path.publish([wager(tournament_id, "p1", 10_000)])[0]
            entries.append(last)
            frames = len(socket.frames)
        assert repeats(path) > repeated
        wait_for(lambda: is_ready(path, ON_RANK_CHANGE), BACK_SECONDS)
        wait_for(lambda: len(socket.frames) > frames, BACK_SECONDS)
        wait_for(lambda: socket.of_type("top")[-1]["sequence"] >= last.offset, BACK_SECONDS)
        rows, _ = told(entries)
        shown = [(r[0], r[1], r[3]) for r in socket.of_type("top")[-1]["standings"]]
        assert shown == rows
        wait_for(
            lambda: [f["sequence"] for f in socket.of_type("position")][-1:] == [last.offset],
            BACK_SECONDS,
        )
        assert not socket.is_closed()
    finally:
        socket.close()
    assert_nothing_lost(path, tournament_id, entries)


def test_a_kafka_that_hangs_is_waited_for_and_nothing_is_lost_or_doubled(path: Path) -> None:
    tournament_id, entries = begun(path, "kafka")
    entries += path.publish(some_wagers(tournament_id, 200, 1))  # some of it is under way
    stopped = time.monotonic()
    with hanging(path, "PID_KAFKA"):
        for process in (ON_WAGER, ON_RANK_CHANGE):
            wait_for(lambda process=process: is_away(path, process, "kafka"), NOTICED_SECONDS)  # type: ignore[misc]
        assert readiness(path, ON_WAGER)[1]["redis"] == "ready"
        time.sleep(max(0.0, stopped + 8 - time.monotonic()))  # longer than a member's session
    entries += path.publish(some_wagers(tournament_id, 200, 2))
    for process in (ON_WAGER, ON_RANK_CHANGE):
        wait_for(lambda process=process: is_ready(path, process), BACK_SECONDS)  # type: ignore[misc]
    assert_nothing_lost(path, tournament_id, entries)
