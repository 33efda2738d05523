"""on-wager without Kafka: logs, ports in this process, and what the host does for one partition."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import redis
import sqlalchemy as sa

import logs
from hosting import Hosted
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.redis_progress import RedisProgress
from leaderboard.adapters.redis_watches import RedisWatches
from leaderboard.adapters.sql_engine import connect as connect_database
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.adapters.sql_snapshot import SqlSnapshots
from leaderboard.errors import TransientError
from leaderboard.events import WAGERS, Event
from leaderboard.fold import LogEntry
from leaderboard.fraud import Piece, Watch
from leaderboard.fraud_ports import Watched, Watches
from leaderboard.hosts.kafka import Assignment, Batch, ReplayError
from leaderboard.model import Offset, PositionChange, TournamentId
from leaderboard.ports import (
    Board,
    Directory,
    Outgoing,
    Progress,
    Summary,
)
from logs import LOG, TOMBSTONE_KEY
from ports import Countdown, Interrupted, RestoredErasures

TOURNAMENTS = tuple(TournamentId(name) for name in ("t1", "t2", "t3"))
REMEMBERED = 3
"""So few applied ids that only the offsets can tell what was read before."""


def moved_to(tournament_id: str, entry: LogEntry, offset: int) -> LogEntry:
    data = entry.event.data.model_copy(update={"tournament_id": tournament_id})
    return LogEntry(Offset(offset), entry.logged_at_ms, entry.event._replace(data=data))


def mixed_log(seed: int, length: int = 25) -> list[LogEntry]:
    """Three tournaments in one partition, and events of none that exists."""
    chance = random.Random(seed)
    waiting = {t: list(logs.random_log(seed * 10 + i, length=length)) for i, t in
               enumerate(TOURNAMENTS)}  # fmt: skip
    mixed: list[LogEntry] = [logs.scored(0, "p1", 3, tournament_id="nobodys")]
    offset = 0
    while waiting:
        offset += chance.choice((1, 1, 1, 3))
        if chance.random() < 0.04:
            mixed.append(logs.scored(offset, "p1", 3, tournament_id="nobodys"))
            continue
        tournament_id = chance.choice(list(waiting))
        mixed.append(moved_to(tournament_id, waiting[tournament_id].pop(0), offset))
        if not waiting[tournament_id]:
            del waiting[tournament_id]
    return mixed


class MemoryProgress:
    """`ports.Progress` in this process."""

    def __init__(self) -> None:
        self._stands: dict[tuple[str, int], Offset] = {}
        self._boards: dict[tuple[str, int], dict[TournamentId, Offset]] = {}

    def read(self, log_id: str, partition: int) -> Offset | None:
        return self._stands.get((log_id, partition))

    def boards(self, log_id: str, partition: int) -> Mapping[TournamentId, Offset]:
        return dict(self._boards.get((log_id, partition), {}))

    def advance(
        self,
        log_id: str,
        partition: int,
        known: Offset | None,
        offset: Offset,
        boards: Mapping[TournamentId, Offset],
    ) -> Offset | None:
        stood = self._stands.get((log_id, partition))
        if known is None or (stood is not None and stood >= known):
            self._stands[log_id, partition] = offset if stood is None else max(stood, offset)
            told = self._boards.setdefault((log_id, partition), {})
            for tournament_id, at in boards.items():
                told[tournament_id] = max(told.get(tournament_id, at), at)
        return stood

    def forget(self, log_id: str, partition: int, tournaments: Sequence[TournamentId]) -> None:
        for tournament_id in tournaments:
            self._boards.get((log_id, partition), {}).pop(tournament_id, None)


class MemoryDirectory:
    """`ports.Directory` in this process."""

    def __init__(self) -> None:
        self._shown: dict[TournamentId, Summary] = {}

    def put(self, summary: Summary) -> None:
        shown = self._shown.get(summary.tournament_id)
        if shown is None or shown.terms.revision <= summary.terms.revision:
            self._shown[summary.tournament_id] = summary

    def find(self, tournament_id: TournamentId) -> Summary | None:
        return self._shown.get(tournament_id)

    def all(self) -> Sequence[Summary]:
        return sorted(self._shown.values(), key=lambda s: (s.terms.starts_at_ms, s.tournament_id))

    def remove(self, tournament_id: TournamentId) -> None:
        self._shown.pop(tournament_id, None)


class MemoryWatches:
    """`fraud_ports.Watches` in this process. What it gives went through JSON."""

    def __init__(self) -> None:
        self._kept: dict[TournamentId, tuple[str, Offset, str, list[Piece]]] = {}

    def read(self, tournament_id: TournamentId) -> Watched | None:
        if tournament_id not in self._kept:
            return None
        log_id, offset, plain, pieces = self._kept[tournament_id]
        return Watched(log_id, offset, json.loads(plain), list(pieces))

    def append(
        self, tournament_id: TournamentId, after: Offset, offset: Offset, pieces: Sequence[Piece]
    ) -> bool:
        if tournament_id not in self._kept:
            return False
        log_id, stands, plain, before = self._kept[tournament_id]
        if stands == after:
            self._kept[tournament_id] = (log_id, offset, plain, [*before, *pieces])
        return stands in (after, offset)

    def replace(
        self,
        tournament_id: TournamentId,
        log_id: str,
        after: Offset | None,
        offset: Offset,
        watch: Watch,
    ) -> bool:
        kept = self._kept.get(tournament_id)
        if (None if kept is None else kept[1]) != after:
            return False
        self._kept[tournament_id] = (log_id, offset, json.dumps(watch.plain()), [])
        return True


class TornFeed:
    """`ports.Feed` whose position changes may be cut off between any two of them."""

    def __init__(self) -> None:
        self.changes: list[PositionChange] = []
        self.alerts: list[Event] = []
        self.countdown = Countdown(0)

    def publish(self, outgoing: Sequence[Outgoing]) -> Mapping[int, Offset]:
        raise AssertionError("on-wager publishes nothing else")

    def begin_changes(
        self,
        changes: Sequence[PositionChange],
        taken_in_ms: int = 0,
        alerts: Sequence[Event] = (),
    ) -> int:
        for change in changes:
            self.countdown.step()
            self.changes.append(change)
        for alert in alerts:
            self.countdown.step()
            self.alerts.append(alert)
        return 0

    def confirm_changes(self, begun: int) -> None:
        self.countdown.step()

    def publish_changes(self, changes: Sequence[PositionChange]) -> None:
        self.confirm_changes(self.begin_changes(changes))


@cache
def empty_record() -> sa.Engine:
    """An empty record, the same for all tests of this module: nothing here writes to it."""
    engine = connect_database("sqlite:///:memory:")
    tables.metadata.create_all(engine)
    return engine


@dataclass
class Ports:
    """What a process of on-wager leaves behind when it dies."""

    board: Board
    directory: Directory
    progress: Progress
    feed: TornFeed = field(default_factory=TornFeed)
    watches: Watches = field(default_factory=MemoryWatches)
    engine: sa.Engine = field(default_factory=empty_record)
    """Of the record: one that has read nothing of the log yet."""
    erasures: Any = field(default_factory=RestoredErasures)
    now_ms: Callable[[], int] = field(default=lambda: time.time_ns() // 1_000_000)
    record: Any = None
    snapshots: Any = None

    def __post_init__(self) -> None:
        self.record = SqlRecord(self.engine)
        self.snapshots = SqlSnapshots(self.engine, REMEMBERED)


def memory_ports() -> Ports:
    board = MemoryBoard(TOMBSTONE_KEY, REMEMBERED)
    return Ports(board, MemoryDirectory(), MemoryProgress())


def redis_ports(client: redis.Redis) -> Ports:
    board = RedisBoard(client, TOMBSTONE_KEY, REMEMBERED)
    ports = Ports(board, RedisDirectory(client), RedisProgress(client))
    ports.watches = RedisWatches(client)
    return ports


@dataclass
class Outcome:
    """What anybody can see in the end."""

    boards: dict[str, Any]
    changes: list[PositionChange]
    dead_letters: dict[int, str]
    directory: Sequence[Summary]


class Reader:
    """What the Kafka host does for one partition, without Kafka."""

    def __init__(self, entries: Sequence[LogEntry], make: Callable[[], Any], seed: int) -> None:
        self.entries = entries
        self.committed: Offset | None = None
        self.low = Offset(0)
        """The oldest offset that the log still holds."""
        self.dead_letters: dict[int, str] = {}
        self.replays: list[int] = []
        self._make = make
        self._chance = random.Random(seed)
        self.function: Any = None
        self._position = Offset(0)

    def restart(self) -> None:
        """The process dies; the next one starts where the group stands."""
        self.function = None

    def is_done(self) -> bool:
        last = self.entries[-1].offset
        return self.function is not None and self.committed == last + 1

    def step(self) -> None:
        """Assignment, or one batch. Raises TransientError as the function does."""
        if self.function is None:
            function = self._make()
            start = function.assigned(Assignment(WAGERS, 0, LOG, self.committed, self.low, 1))
            self._position = max(self.committed or self.low, self.low)
            self.function = function
            if start is not None:
                self._replay(min(start, self._position))
            return
        size = self._chance.randint(1, 12)
        entries = [one for one in self.entries if one.offset >= self._position][:size]
        if not entries:
            return
        batch = Batch(WAGERS, 0, LOG, entries, Offset(entries[-1].offset + 1))
        try:
            self.function.begin(batch)
            self.function.join(batch)
            refused = self.function.handle(batch)
            self.dead_letters |= {one.offset: one.error.reason.value for one in refused}
            self.function.settle(batch)
        except ReplayError as error:
            self.function.forget(batch)
            self._replay(min(error.offset or Offset(0), entries[0].offset))
            return
        except TransientError:
            self.function.forget(batch)
            raise
        self._position = self.committed = batch.next_offset

    def _replay(self, offset: int) -> None:
        self.replays.append(offset)
        self._position = self.committed = max(Offset(offset), self.low)

    def tick(self) -> None:
        """What the host does between batches."""
        try:
            self.function.tick()
        except ReplayError as error:
            self._replay(min(error.offset or self.low, self._position))

    def run(self, *, survives: bool = False) -> None:
        """To the log's end. A TransientError kills the process, or is retried if it `survives`."""
        for _ in range(3000):
            if self.is_done():
                return
            try:
                self.step()
            except TransientError:
                if not survives:
                    self.restart()
        raise AssertionError("on-wager does not come to an end")


def outcome(reader: Reader, ports: Ports) -> Outcome:
    boards: dict[str, Any] = {t: ports.board.top(t, 1000) for t in TOURNAMENTS}
    last: dict[str, int] = {}
    changes = []
    for change in ports.feed.changes:
        # As every reader of position changes does.
        if change.sequence > last.get(change.tournament_id, -1):
            last[change.tournament_id] = change.sequence
            changes.append(change)
    changes.sort(key=lambda one: one.sequence)
    return Outcome(boards, changes, reader.dead_letters, list(ports.directory.all()))


def undisturbed(on_wager: Hosted, entries: Sequence[LogEntry]) -> Outcome:
    ports = memory_ports()
    reader = Reader(entries, maker(on_wager, ports), seed=0)
    reader.run()
    found = outcome(reader, ports)
    assert len(found.changes) > 10
    assert "unknown_tournament" in found.dead_letters.values()
    assert len(found.directory) == len(TOURNAMENTS)
    return found


def maker(
    on_wager: Hosted, ports: Ports, countdown: Countdown | None = None, of: type | None = None
) -> Callable[[], Any]:
    """Makes processes over the same ports, all cut off by the same countdown."""
    steps = Countdown(0) if countdown is None else countdown
    ports.feed.countdown = steps

    def make() -> Any:
        board, directory, progress, watches = (
            Interrupted(one, steps)
            for one in (ports.board, ports.directory, ports.progress, ports.watches)
        )
        given = on_wager.main.Ports(
            board, directory, progress, ports.feed, ports.erasures, ports.record, ports.snapshots
        )
        ticking = itertools.count(0, 10)
        losses = (of or on_wager.main.Losses)(given, lambda: float(next(ticking)))
        return on_wager.main.OnWager(given, losses, on_wager.main.Suspicions(watches))

    return make


def snapshot(client: redis.Redis) -> dict[bytes, Any]:
    keys: Any = client.keys("*")
    return {key: client.dump(key) for key in keys}


def restore(client: redis.Redis, kept: Mapping[bytes, Any]) -> None:
    client.flushdb()
    for key, value in kept.items():
        client.restore(key, 0, value)


def lose_one_board(client: redis.Redis, tournament_id: str, kept: Mapping[bytes, Any]) -> None:
    """Its keys fall back to what they were; all others stay."""
    for key in snapshot(client):
        if key.startswith(f"{{{tournament_id}}}".encode()):
            client.delete(key)
    for key, value in kept.items():
        if key.startswith(f"{{{tournament_id}}}".encode()):
            client.restore(key, 0, value)
