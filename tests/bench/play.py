"""The whole local stack with connected players, a load at a given rate, and what came of it.

The processes: the stack's own; `bench.watch`, the players' sockets; `bench.pace`, the load. What
should have come is told by the oracle's fold of the same log.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import httpx
from confluent_kafka import Consumer, TopicPartition

from bench.load import QUIET, T, assert_same, oracle_of, player_of, schedule, wager, zipf
from bench.machine import Meter, Usage
from bench.watch import POSITION
from leaderboard import events as ev
from leaderboard.adapters.kafka_feed import KafkaFeed
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import connect
from leaderboard.codec import encode_kafka
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, PositionChange
from leaderboard.partitioning import partition_of
from leaderboard.settings import KafkaSettings, load
from running import StackCommand, wait_for

TESTS: Final = Path(__file__).resolve().parents[1]
LAST_SECONDS: Final = 6.0
"""After the load: who missed a frame is level again within five seconds."""
HOUR_MS: Final = 3_600_000
WAYS: Final = {
    "on-wager": (ev.WAGERS,),
    "on-rank-change": (ev.POSITION_CHANGES,),
    "archive": (ev.WAGERS, ev.POSITION_CHANGES),
}
"""Who reads what, in the order in which it flows."""


@dataclass
class Played:
    """What one play brought to the screens. Times in milliseconds since a wager was due."""

    positions: list[float] = field(default_factory=list)
    """From a change that someone connected could see to their frame that covers it."""
    tops: list[float] = field(default_factory=list)
    """From the same changes to the first `top` frame on that player's socket that covers them."""
    top_ages: list[float] = field(default_factory=list)
    """Of every `top` frame on every socket: how long ago the newest wager that it shows was due."""
    missing: int = 0
    missing_tops: int = 0
    more: dict[str, Any] = field(default_factory=dict)
    connecting: dict[str, Any] = field(default_factory=dict)
    connecting_usage: Mapping[str, Usage] = field(default_factory=dict)
    usage: Mapping[str, Usage] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """One play: `players` have standings before, some of them are `connected`."""

    rate: int
    seconds: int
    warm_up: int
    connected: int
    players: int
    deflate: bool = True
    archive: bool = True
    """Whether the record is written beside it. If not, `archive` stands still until the load has
    ended, as if it had a machine of its own, and catches up then."""
    settings: Mapping[str, str] = field(default_factory=dict)


class Child:
    """A process of the benchmark's own that is spoken to in lines of JSON."""

    def __init__(self, module: str) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._popen.pid

    def ask(self, line: str) -> dict[str, Any]:
        """Its answer to this line."""
        _of(self._popen.stdin).write(line + "\n")
        _of(self._popen.stdin).flush()
        told: dict[str, Any] = json.loads(_of(self._popen.stdout).readline())
        return told

    def stop(self) -> None:
        if self._popen.poll() is None:
            self._popen.terminate()
        self._popen.wait()


def _of(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


@contextmanager
def _stack(folder: Path, settings: Mapping[str, str]) -> Iterator[StackCommand]:
    stack = StackCommand(folder, ["stack", "--free-ports"], settings)
    stack.start()
    try:
        yield stack
    finally:
        stack.stop()


def play(seed: int, wanted: Wanted) -> Played:
    """Open the tournament, connect the players, run the load; compare all with the oracle's."""
    chance = random.Random(seed)
    played = Played()
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        settings = running.enter_context(_stack(folder, wanted.settings)).env()
        entries = _open(settings, chance, wanted.players)
        numbers = zipf(chance, wanted.rate * (wanted.warm_up + wanted.seconds), wanted.players)
        watched = _who_watches(chance, numbers, wanted)
        watch, pace = Child("bench.watch"), Child("bench.pace")
        running.callback(watch.stop)
        running.callback(pace.stop)
        players = [player_of(n) for n in watched]
        plan = {
            "issuer_url": settings["ISSUER_URL"],
            "connect_url": settings["CONNECT_URL"],
            "tournament_id": T,
            "players": players,
            "frames_path": str(folder / "frames"),
            "deflate": wanted.deflate,
        }
        assert watch.ask(json.dumps(plan))["tokens"] == wanted.connected
        pids = _pids(settings) | {"players' sockets": watch.pid}
        meter = Meter(pids)
        played.connecting = watch.ask("connect")
        played.connecting_usage = meter.read()
        stakes = [chance.randint(1, 1000) for _ in numbers]
        load_plan = {
            "bootstrap_servers": settings["KAFKA_BOOTSTRAP_SERVERS"],
            "rate": wanted.rate,
            "first_number": len(entries),
            "wagers": list(zip(numbers, stakes, strict=True)),
        }
        assert pace.ask(json.dumps(load_plan))["encoded"] == len(numbers)
        before = _frames(settings, watch)
        with _standing(() if wanted.archive else (pids["archive"],)):
            meter = Meter(pids | {"load": pace.pid})
            produced = pace.ask("go")
            _wait_for_frames(settings, wanted.archive)
            time.sleep(LAST_SECONDS)
            played.usage = meter.read()
            after = _frames(settings, watch)
        _wait_for_frames(settings)
        watch.ask("stop")
        due = _entries(entries, produced, numbers, stakes, wanted.rate)
        oracle, changes = oracle_of(entries)
        assert_same(RedisBoard(connect(settings["REDIS_URL"])), oracle)
        came = array("d", (folder / "frames").read_bytes())
    since = produced["begun"] + wanted.warm_up
    _compare(
        played, came, {player: place for place, player in enumerate(players)}, changes, due, since
    )
    _tell(played, before, after, produced, len(numbers))
    return played


def _open(settings: Mapping[str, str], chance: random.Random, players: int) -> list[LogEntry]:
    """The tournament and everyone's first wager, applied before anything is measured."""
    now = int(time.time() * 1000)
    opening = [schedule(now - 60_000, now + HOUR_MS)]
    opening += (wager(p, chance.randint(1, 10_000), p, now) for p in range(players))
    feed = KafkaFeed(load(KafkaSettings, settings), timeout_seconds=60)
    feed.send(encode_kafka(event, ev.WAGERS) for event in opening)
    feed.close()
    _wait_for_frames(settings)
    return [LogEntry(Offset(n), now, event) for n, event in enumerate(opening)]


def _who_watches(chance: random.Random, numbers: Sequence[int], wanted: Wanted) -> list[int]:
    """Players who play, as far as there are that many; then some of the others."""
    playing = sorted(set(numbers))
    if len(playing) >= wanted.connected:
        return chance.sample(playing, wanted.connected)
    others = sorted(set(range(wanted.players)) - set(playing))
    return playing + chance.sample(others, wanted.connected - len(playing))


def _pids(settings: Mapping[str, str]) -> dict[str, int]:
    return {
        name.removeprefix("PID_").removesuffix("_1").lower().replace("_", "-"): int(pid)
        for name, pid in settings.items()
        if name.startswith("PID_") and name != "PID_STACK"
    }


@contextmanager
def _standing(pids: Sequence[int]) -> Iterator[None]:
    """These processes stand still meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _wait_for_frames(settings: Mapping[str, str], archive: bool = True) -> None:
    """Until the stack has worked off what was produced: to the gateway, and to the archive as
    well where it shares the machine."""
    readers = {
        name: Consumer(
            {
                "bootstrap.servers": settings["KAFKA_BOOTSTRAP_SERVERS"],
                "group.id": name,
                "log_level": QUIET,
            }
        )
        for name in WAYS
        if archive or name != "archive"
    }
    for name, reader in readers.items():
        for topic in WAYS[name]:
            wait_for(lambda: _is_read(reader, topic), 300)  # noqa: B023 - done at once
        reader.close()


def _is_read(reader: Consumer, topic: str) -> bool:
    """Whether the group has committed everything of the tournament's partition."""
    count = len(reader.list_topics(topic, timeout=10).topics[topic].partitions)
    place = TopicPartition(topic, partition_of(T.encode(), count))
    end = reader.get_watermark_offsets(place, timeout=10)[1]
    (committed,) = reader.committed([place], timeout=10)
    return bool(committed.offset >= end)


@dataclass(frozen=True)
class _Frames:
    """Of each type: how many `on-rank-change` handed over, and how many came."""

    handed_over: Mapping[str, int]
    came: Mapping[str, int]
    wire_bytes: int
    cut: int


def _frames(settings: Mapping[str, str], watch: Child) -> _Frames:
    """At a moment when none is under way."""
    handed_over = _handed_over(settings)
    while True:
        time.sleep(1)
        told = watch.ask("count")
        if handed_over == (handed_over := _handed_over(settings)):
            came = {kind: told["frames"].get(kind, 0) for kind in handed_over}
            return _Frames(handed_over, came, told["wire_bytes"], told["cut"])


def _handed_over(settings: Mapping[str, str]) -> dict[str, int]:
    text = httpx.get(f"{settings['ON_RANK_CHANGE_HEALTH_URL']}/metrics").text
    found = dict.fromkeys(("position", "top", "curve"), 0)
    for line in text.splitlines():
        for kind in found:
            if line.startswith(f'leaderboard_frames_total{{type="{kind}"}} '):
                found[kind] = int(float(line.rpartition(" ")[2]))
    return found


def _entries(
    entries: list[LogEntry],
    produced: Mapping[str, Any],
    numbers: Sequence[int],
    stakes: Sequence[int],
    rate: int,
) -> dict[int, float]:
    """Put what was played behind `entries`, by its offsets; when each of it was due."""
    now, first = entries[0].logged_at_ms, len(entries)
    due = {}
    for index, (player, stake) in enumerate(zip(numbers, stakes, strict=True)):
        offset = produced["offsets"][index]
        event = wager(player, stake, first + index, now)
        entries.append(LogEntry(Offset(offset), now, event))
        due[offset] = produced["begun"] + index / rate
    return due


def _compare(
    played: Played,
    came: Sequence[float],
    places: Mapping[str, int],
    changes: Sequence[PositionChange],
    due: Mapping[int, float],
    since: float,
) -> None:
    """Walk through what came to each player beside what should have."""
    by_player: dict[tuple[int, int], list[tuple[int, float]]] = defaultdict(list)
    for start in range(0, len(came), 4):
        player, kind, sequence, at = came[start : start + 4]
        frames = by_player[int(player), int(kind)]
        is_new = not frames or frames[-1][0] < sequence  # `top` also comes again as it was
        frames.append((int(sequence), at))
        if kind != POSITION and is_new and (was := due.get(int(sequence), 0.0)) >= since:
            played.top_ages.append((at - was) * 1000)
    wanted: dict[int, list[int]] = defaultdict(list)
    for change in changes:
        player_place = places.get(change.player_id)
        if player_place is not None and due.get(change.sequence, 0.0) >= since:
            wanted[player_place].append(change.sequence)
    for place, sequences in wanted.items():
        for kind, delays in ((POSITION, played.positions), (POSITION + 1, played.tops)):
            left = iter(by_player[place, kind])
            shown, at = next(left, (None, 0.0))
            for sequence in sequences:
                while shown is not None and shown < sequence:
                    shown, at = next(left, (None, 0.0))
                if shown is not None:
                    delays.append((at - due[sequence]) * 1000)
                elif kind == POSITION:
                    played.missing += 1
                else:
                    played.missing_tops += 1


def _tell(
    played: Played, before: _Frames, after: _Frames, produced: Mapping[str, Any], wagers: int
) -> None:
    connected = played.connecting["connected"]
    handed = {kind: n - before.handed_over[kind] for kind, n in after.handed_over.items()}
    came = {kind: n - before.came[kind] for kind, n in after.came.items()}
    played.more = {
        "connected": connected,
        "achieved_per_second": round(wagers / (produced["ended"] - produced["begun"])),
        "measured": len(played.positions),
        "missing": played.missing + played.missing_tops,
        "cut": after.cut,
        "owed_frames": handed["position"] + connected * (handed["top"] + handed["curve"]),
        "came_frames": sum(came.values()),
        "wire_mib": round((after.wire_bytes - before.wire_bytes) / 2**20, 1),
        "board_equals_oracle": True,
    }
