"""The consumer killed again and again in the middle of its work: nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest

from leaderboard import events as ev
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.codec import decode_kafka, encode_kafka
from leaderboard.events import Record
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, PositionChange, TournamentId, masked
from logs import TOMBSTONE_KEY
from running import wait_for
from whole_path import Path, Socket, entry_of, schedule, unique, wager

WAGERS = 100_000
TOURNAMENTS = 20
PLAYERS = 5_000
DUPLICATES = 0.01
KILLS = 5
SOCKETS_EACH = 2
CHUNK = 250
RATE = 1_800
"""Wagers a second: few enough that they last until the last kill."""


def play(tournaments: Sequence[str], seed: int) -> list[Record]:
    """Heavy-tailed play with repeated events in it, as records to be produced in this order."""
    chance = random.Random(seed)
    records: list[Record] = []
    while len(records) < WAGERS:
        if records and chance.random() < DUPLICATES:
            recent = chance.randrange(max(len(records) - 5_000, 0), len(records))
            records.append(records[recent])
            continue
        player = f"p{int(PLAYERS * chance.random() ** 3):04d}"
        stake = int(chance.lognormvariate(5, 1)) + 1
        event = wager(chance.choice(tournaments), player, stake)
        records.append(encode_kafka(event, ev.WAGERS))
    return records


class Killer:
    """Kills `on-wager` when it has work in hand, and notes what each kill interrupted."""

    def __init__(self, path: Path, produced: dict[str, int]) -> None:
        self._path = path
        self._produced = produced
        self.interrupted: list[int] = []

    def _pid(self) -> int:
        return int(self._path.stack.env()["PID_ON_WAGER_1"])

    def _open_work(self) -> int:
        """Tournaments whose board has not reached what was produced."""
        return sum(self._path.sequence(t) < at for t, at in dict(self._produced).items())

    def kill(self) -> None:
        wait_for(lambda: self._open_work() > 0, 30)
        pid = self._pid()
        os.kill(pid, signal.SIGKILL)
        # With nobody there to do it: what the kill left undone, or keeps from being done.
        wait_for(lambda: self._open_work() > 0, 5)
        self.interrupted.append(self._open_work())
        wait_for(lambda: self._pid() != pid, 30)
        before = sum(self._path.sequence(t) for t in self._produced)
        # The next kill comes when the new process has taken over and works.
        wait_for(lambda: sum(map(self._path.sequence, self._produced)) > before + 500, 60)


@pytest.mark.timeout(400)
def test_five_kills_leave_boards_changes_and_frames_as_the_oracle_has_them(path: Path) -> None:
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    tournaments = [unique("kill") for _ in range(TOURNAMENTS)]
    placed = path.publish([schedule(t) for t in tournaments])
    for entry in placed:
        path.reached(str(entry.event.tournament_id), entry.offset)
    log = list(placed)
    produced: dict[str, int] = {}
    sockets = {
        (t, p): path.socket(t, p)
        for t in tournaments[:10]
        for p in ("p0000", "p0003")[:SOCKETS_EACH]
    }
    records = play(tournaments, seed)

    def produce() -> None:
        for start in range(0, len(records), CHUNK):
            due = time.monotonic() + CHUNK / RATE
            for record in path.send(records[start : start + CHUNK]):
                log.append(entry_of(record))
                produced[str(log[-1].event.tournament_id)] = record.offset
            time.sleep(max(due - time.monotonic(), 0))

    producing = threading.Thread(target=produce)
    producing.start()
    killer = Killer(path, produced)
    for _ in range(KILLS):
        killer.kill()
    producing.join()
    assert len(killer.interrupted) == KILLS
    assert min(killer.interrupted) > 0, "a kill found nothing to interrupt"

    logs: dict[str, list[LogEntry]] = defaultdict(list)
    for entry in log:
        logs[str(entry.event.tournament_id)].append(entry)
    assert sum(map(len, logs.values())) == WAGERS + TOURNAMENTS
    expected = {t: _expected(t, entries) for t, entries in logs.items()}
    for t, (board, _) in expected.items():
        view = board.top(TournamentId(t), 1)
        assert view is not None
        path.reached(t, view.sequence, 60)
    for t, (board, _) in expected.items():
        assert _read_all(path, t) == _rows(board, t)
    changes = _changes(path, tournaments)
    for t, (_, wanted) in expected.items():
        assert changes[t] == [_told(change) for change in wanted], t
    _check_frames(sockets, logs, {t: wanted for t, (_, wanted) in expected.items()})


def _expected(t: str, entries: Sequence[LogEntry]) -> tuple[MemoryBoard, list[PositionChange]]:
    board = MemoryBoard(TOMBSTONE_KEY)
    applied = board.apply(TournamentId(t), "oracle", None, entries, None)
    return board, list(applied.unconfirmed)


def _rows(board: MemoryBoard, t: str) -> list[tuple[int, str, int]]:
    view = board.top(TournamentId(t), 10_000)
    assert view is not None
    return [(s.rank, s.player_id, s.score.score) for s in view.standings]


def _read_all(path: Path, t: str) -> list[tuple[int, str, int]]:
    rows: list[tuple[int, str, int]] = []
    while True:
        answer = path.get(f"/v1/tournaments/{t}/standings?limit=1000&after_rank={len(rows)}")
        page = answer.raise_for_status().json()["standings"]
        if not page:
            return rows
        rows += [(r["rank"], r["player_id"], r["score"]) for r in page]


def _told(change: PositionChange) -> tuple[Any, ...]:
    return (
        change.sequence,
        change.player_id,
        change.old_rank,
        change.new_rank,
        change.score.score,
        change.distance,
        tuple(change.cause),
    )


def _changes(path: Path, tournaments: Sequence[str]) -> dict[str, list[tuple[Any, ...]]]:
    """Position changes as a reader takes them: what is not above the last is dropped."""
    keys = {t.encode() for t in tournaments}
    found: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for record in path.consumed(ev.POSITION_CHANGES, lambda r: r.key in keys):
        event = decode_kafka(record)
        data = event.data
        assert isinstance(data, ev.PositionChanged)
        assert event.id == f"{data.tournament_id}/{data.sequence}"
        kept = found[data.tournament_id]
        if kept and data.sequence <= kept[-1][0]:
            continue
        cause = (data.cause.source, data.cause.id)
        told = (data.sequence, data.player_id, data.old_rank, data.new_rank, data.score)
        kept.append((*told, data.distance, cause))
    return found


def _check_frames(
    sockets: dict[tuple[str, str], Socket],
    logs: dict[str, list[LogEntry]],
    changes: dict[str, list[PositionChange]],
) -> None:
    compared = 0
    for (t, player), socket in sockets.items():
        own = [change for change in changes[t] if change.player_id == player]
        wait_for(lambda s=socket, o=own: _last(s) == o[-1].sequence, 30)  # type: ignore[misc]
        wait_for(
            lambda s=socket, c=changes[t]: s.of_type("top")[-1]["sequence"] >= c[-1].sequence,  # type: ignore[misc]
            30,
        )
        compared += _check_positions(socket.of_type("position"), own)
        _check_tops(socket.of_type("top"), t, logs[t])
        socket.close()
    assert compared > len(sockets)


def _last(socket: Socket) -> int:
    frames = socket.of_type("position")
    return int(frames[-1]["sequence"]) if frames else -1


def _check_positions(frames: list[dict[str, Any]], own: list[PositionChange]) -> int:
    """Each frame is one of the player's changes; its old rank is that of the first change that
    no frame before it told."""
    position = 0
    for frame in frames:
        first = own[position]
        while own[position].sequence < frame["sequence"]:
            position += 1
        newest = own[position]
        position += 1
        assert frame["sequence"] == newest.sequence
        assert (frame["new_rank"], frame["score"], frame["distance"]) == (
            newest.new_rank,
            newest.score.score,
            newest.distance,
        )
        assert frame["old_rank"] == first.old_rank
    return len(frames)


def _check_tops(frames: list[dict[str, Any]], t: str, entries: Sequence[LogEntry]) -> None:
    """Each `top` frame is the oracle's top 100 at that sequence."""
    oracle, position, last = MemoryBoard(TOMBSTONE_KEY), 0, -1
    for frame in frames:
        assert frame["sequence"] >= last
        last = frame["sequence"]
        end = position
        while end < len(entries) and entries[end].offset <= Offset(last):
            end += 1
        oracle.apply(TournamentId(t), "oracle", None, entries[position:end], None)
        position = end
        view = oracle.top(TournamentId(t), 100)
        assert view is not None
        assert frame["players"] == view.players
        assert frame["standings"] == [
            [s.rank, s.player_id, masked(s.player_id), s.score.score] for s in view.standings
        ]
