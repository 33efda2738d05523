"""A simulated world: the real functions behind the real Kafka host, on ports in this process.

One thread, one clock, and nothing happens unless a step says so. Hosts are driven turn by turn:
`KafkaHost` with its own `Membership`, retries, dead letters and cap, over `simulation.kafka`.
Between any two effects (calls of a port, records of a send, rows of a restore) something else can
be put: the process dies, the call fails, another process works, the store loses its tail …
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sqlite3
import sys
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, cast
from unittest.mock import patch

import sqlalchemy as sa

from audit_logs import MemoryLogs, auditor
from hosting import FUNCTIONS, SETTINGS
from leaderboard import telemetry
from leaderboard.adapters import sql_engine, sql_migrations
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.adapters.sql_pseudonyms import SqlPseudonyms
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.adapters.sql_requests import SqlRequests
from leaderboard.adapters.sql_snapshot import SqlSnapshots
from leaderboard.adapters.stepwise_entrance import StepwiseEntrance
from leaderboard.audit_leaves import AUDITED
from leaderboard.codec import encode_kafka
from leaderboard.errors import NotFoundError, TransientError
from leaderboard.events import (
    CONNECTIONS,
    GDPR_EVENTS,
    POSITION_CHANGES,
    WAGERS,
    ConnectionDecided,
    Event,
    Record,
    dead_letter_topic,
)
from leaderboard.guard import Guard
from leaderboard.hosts import kafka as kafka_host
from leaderboard.hosts import kafka_group
from leaderboard.hosts.kafka import KafkaHost
from leaderboard.model import Offset, Place, PlayerId, TournamentId, erasure_id_of
from leaderboard.partitioning import partition_of
from leaderboard.ports import Frame, Snapshot
from leaderboard.reads import Tournaments
from leaderboard.settings import ConsumerSettings, KafkaSettings, load
from logs import START_MS, TOMBSTONE_KEY
from simulation.kafka import Clock, Cluster, Consumer, Feed, TopicLogs, away, log_id
from simulation.store import Saved, Store
from simulation.views import ALL, Oracle, Seen, Socket

REMEMBERED: Final = 5
"""So few ids that the window slides in every run."""
BATCH_SIZE: Final = 3
"""So small that batches overlap."""
TOPICS: Final = {
    WAGERS: 2,
    POSITION_CHANGES: 2,
    CONNECTIONS: 1,
    GDPR_EVENTS: 1,
    **{dead_letter_topic(t): 1 for t in (WAGERS, POSITION_CHANGES, CONNECTIONS, GDPR_EVENTS)},
}
DEADLINE_MS: Final = 3_600_000
"""For what is told of requests to forget that are overdue."""
FUNCTIONS_RUN: Final = ("on-wager", "archive", "on-rank-change")
TOURNAMENTS: Final = tuple(TournamentId(t) for t in ("t0", "t1", "t4", "t6"))
"""Both partitions, and in each of them both shards."""


class KilledError(BaseException):
    """The process ends here, whatever it was about to do."""


@cache
def function(folder: str) -> Any:
    """The module of a function, as its process has it."""
    name = f"simulated_{folder.replace('-', '_')}"
    spec = importlib.util.spec_from_file_location(name, FUNCTIONS / folder / "main.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    known = {one: os.environ[one] for one in ("PATH", "HOME") if one in os.environ}
    path = [str(FUNCTIONS / folder), *sys.path]
    with patch.dict(os.environ, {**known, **SETTINGS}, clear=True), patch.object(sys, "path", path):
        spec.loader.exec_module(module)
    return module


@cache
def empty_record() -> bytes:
    """A database of the record with nothing in it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.sqlite"
        sql_migrations.upgrade(f"sqlite:///{path}")
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        return path.read_bytes()


class Effects:
    """Counts effects, and puts something between two of them, once."""

    def __init__(self) -> None:
        self._left = 0
        self._then: Callable[[], object] = lambda: None
        self.bit = 0

    def interrupt(self, after: int, then: Callable[[], object]) -> None:
        """Do `then` before the effect that comes after so many."""
        self._left, self._then = after + 1, then

    def leave(self) -> None:
        self._left = 0

    def step(self) -> None:
        if self._left == 0:
            return
        self._left -= 1
        if self._left == 0:
            self.bit += 1
            self._then()


class Port:
    """A port whose dependency may be away, with an effect before and after each call."""

    def __init__(self, port: Any, reach: Callable[[str], None], what: str) -> None:
        self._port = port
        self._reach = reach
        self._what = what

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        reach, what = self._reach, self._what

        def call(*args: Any, **kwargs: Any) -> Any:
            reach(what)
            if name == "restore" and what == "store" and args and hasattr(args[0], "rows"):
                loaded = kwargs.get("loaded", lambda rows: None)
                kwargs["loaded"] = lambda rows: (reach(what), loaded(rows))
            answer = method(*args, **kwargs)
            reach(what)
            return answer

        return call


class Gateway:
    """`ports.Gateway` with sockets that may miss what is sent."""

    def __init__(self, seen: Seen, reach: Callable[[str], None]) -> None:
        self._seen = seen
        self._reach = reach

    def publish(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            self._reach("gateway")
            self._seen.publish(frame)
        self._reach("gateway")

    def close(self, channel: str) -> None:
        self._reach("gateway")
        self._seen.close(channel)


class Snapshots(SqlSnapshots):
    """The record's snapshots; puts down which were of later than they were asked for."""

    def __init__(self, engine: sa.Engine, seen: Seen, now_ms: Callable[[], int]) -> None:
        super().__init__(engine, REMEMBERED, now_ms)
        self._seen = seen

    @contextmanager
    def taken(self, tournament_id: TournamentId, before: Offset) -> Iterator[Snapshot | None]:
        with super().taken(tournament_id, before) as snapshot:
            if snapshot is not None and snapshot.offset >= before:
                self._seen.leapt[tournament_id] = max(
                    snapshot.offset, self._seen.leapt[tournament_id]
                )
            yield snapshot


class Process:
    """One process of a function: its host, and what it still remembers."""

    def __init__(self, host: KafkaHost, consumer: Consumer) -> None:
        self.host = host
        self.consumer = consumer
        self._handler: Any = None

    def turn(self, records: int) -> None:
        """What the host does in one round of its loop, with at most so many new records."""
        if self._handler is None:
            self._handler = self.host._handler = self.host._retried(self.host._make_handler)
        self.consumer = cast(Consumer, self.host._group._consumer)
        self.consumer.budget = records
        self.host._turn(self._handler)


class World:
    """All of it. `mutations` replace parts of the product, to show what they protect from."""

    def __init__(self, mutations: Mapping[str, Any] | None = None) -> None:
        self._mutations = dict(mutations or {})
        self.clock = Clock(START_MS)
        self.oracle = Oracle(MemoryBoard(TOMBSTONE_KEY, REMEMBERED, lambda: START_MS))
        self.seen = Seen(self.oracle, is_unknowable=self._is_unknowable)
        self._record_was_away = False
        self.cluster = Cluster(TOPICS, self.clock, self.seen.logged)
        for name in TOURNAMENTS:
            self.seen.place_of[name] = self.place_of(name)
        board = self._mutations.get("board", MemoryBoard)
        self.store = Store(
            lambda: board(TOMBSTONE_KEY, REMEMBERED, self.clock.now_ms), TOMBSTONE_KEY
        )
        self.effects = Effects()
        self._away: dict[str, float] = {}
        self.processes: dict[str, list[Process]] = {name: [] for name in FUNCTIONS_RUN}
        self._working: set[int] = set()
        self.saved: dict[int, Saved] = {}
        self.losses = 0
        self._checked: dict[tuple[str, Place], Offset] = {}
        self._differences = self._alarms()
        self.erased: set[str] = set()
        self.to_repeat: set[str] = set()
        """Whose request was in the log, and asked again with an error: what that began waits for
        who repeats it, as the error says."""
        self._attempts = 0
        self._stack = ExitStack()
        self._open()

    def _open(self) -> None:
        enter = self._stack.enter_context
        self._folder = Path(enter(tempfile.TemporaryDirectory()))
        self._path = self._folder / "record.sqlite"
        self._path.write_bytes(empty_record())
        self._backup: tuple[Path, dict[Place, Offset]] | None = None
        self.engine = sql_engine.connect(f"sqlite:///{self._path}")
        self._stack.callback(self.engine.dispose)

        @sa.event.listens_for(self.engine, "connect")
        def hurry(connection: sqlite3.Connection, _record: object) -> None:
            connection.execute("PRAGMA synchronous = OFF")

        for module in (kafka_host, kafka_group):
            enter(patch.object(module, "time", self.clock))
        enter(patch.object(kafka_host, "TopicLogs", lambda *_: TopicLogs(self.cluster)))
        enter(patch.object(kafka_group, "Consumer", self._consumer))
        enter(patch.object(function("erase"), "_now_ms", self.clock.now_ms))
        # The record is asked here and now: a thread that is left to itself for want of real time
        # would go on beside the steps after it.
        enter(patch.object(Guard, "_bounded", lambda _guard, call: call()))
        for target, name, value in self._mutations.get("patches", ()):
            enter(patch.object(target, name, value))
        self._make_ports()

    def close(self) -> None:
        self._stack.close()

    def _consumer(self, config: Mapping[str, Any]) -> Consumer:
        return Consumer(self.cluster, config)

    def _make_ports(self) -> None:
        store, now_ms = self.store, self.clock.now_ms

        def port(one: Any, what: str = "store") -> Any:
            return Port(one, self.reach, what)

        self.board, self.directory = port(store.board), port(store.directory)
        self.progress, self.erasures = port(store.progress), port(store.erasures)
        self.connections = port(store.connections)
        self.record = SqlRecord(self.engine)
        self.archive = SqlArchive(self.engine, TOMBSTONE_KEY, REMEMBERED, now_ms)
        self.pseudonyms = SqlPseudonyms(self.engine, TOMBSTONE_KEY, now_ms)
        self.logs = MemoryLogs(lambda store: port(store, "audit log"))
        self.dropped: defaultdict[Place, list[Offset]] = defaultdict(list)
        """Offsets of what Kafka's retention has taken; the audit log has it."""
        self.snapshots = Snapshots(self.engine, self.seen, now_ms)
        self.feed = Feed(self.cluster, self.reach)
        self.gateway = Gateway(self.seen, self.reach)
        self._handlers: dict[str, Callable[[], Any]] = {
            "on-wager": self._wagers,
            "archive": self._archivist,
            "on-rank-change": lambda: function("on-rank-change").OnRankChange(
                self.board, self.directory, self.connections, self.gateway, self.clock.monotonic
            ),
        }
        self._erase_ports = function("erase").Ports(
            board=self.board,
            directory=self.directory,
            record=lambda: port(self.record, "record"),
            snapshots=lambda: port(self.snapshots, "record"),
            requests=lambda: port(SqlRequests(self.engine), "record"),
            erasures=self.erasures,
            feed=self.feed,
            connections=self.connections,
            gateway=self.gateway,
        )

        self._connect_ports = function("on-connect").Ports(
            connections=None,
            tournaments=Tournaments(lambda: self.directory, lambda: port(self.record, "record")),
            entrance=StepwiseEntrance(self.erasures, self.board, self.connections),
            board=self.board,
            feed=self.feed,
            gateway=self.gateway,
            way_in=str,
        )

    def _wagers(self) -> Any:
        main = function("on-wager")
        ports = main.Ports(
            self.board,
            self.directory,
            self.progress,
            self.feed,
            self.erasures,
            Port(self.record, self.reach, "record"),
            Port(self.snapshots, self.reach, "record"),
        )
        return main.OnWager(ports, main.Losses(ports, self.clock.monotonic))

    def _archivist(self) -> Any:
        main, archive = function("archive"), Port(self.archive, self.reach, "record")
        check = main.StandingCheck(
            archive,
            self.board,
            self.directory,
            self.progress,
            self.clock.monotonic,
            self.clock.now_ms,
        )
        audit = auditor(
            main,
            self.engine,
            self.logs,
            self.progress,
            changes_end=self._changes_end,
            clock=self.clock.monotonic,
            pseudonyms=Port(self.pseudonyms, self.reach, "record"),
        )
        return main.Archivist(archive, audit, check)

    def _changes_end(self, tournament_id: TournamentId) -> tuple[Place, Offset]:
        self.reach("kafka")
        number = partition_of(tournament_id.encode(), TOPICS[POSITION_CHANGES])
        place = Place(POSITION_CHANGES, number)
        log = self.cluster.logs.get(place)
        return place, Offset(0 if log is None else log.end)

    # processes

    def start(self, name: str) -> Process:
        """One more process of the function."""
        given = {"KAFKA_BOOTSTRAP_SERVERS": "nowhere:1", "BATCH_SIZE": str(BATCH_SIZE)}
        kafka, settings = load(KafkaSettings, given), load(ConsumerSettings, given)
        feed, topics = self.feed, POSITION_CHANGES
        how: dict[str, Any] = {}
        if name == "on-wager":
            topics = WAGERS
        if name == "archive":
            main = function("archive")
            topics, how = main.TOPICS, {"decode": main.decode, "buries": main.OURS}
        host = KafkaHost(name, topics, self._handlers[name], feed, kafka, settings, {}, **how)
        host._group.join()
        process = Process(host, cast(Consumer, host._group._consumer))
        self.processes[name].append(process)
        return process

    def kill(self, name: str, process: Process) -> None:
        """SIGKILL: nothing is said to anybody, and all that it remembered is gone."""
        process.consumer.die()
        self.processes[name].remove(process)

    def stop(self, name: str, process: Process) -> None:
        """SIGTERM between two rounds."""
        try:
            process.host._group.leave()
        except KilledError:
            process.consumer.die()
        self.processes[name].remove(process)

    def turn(self, name: str, index: int, records: int) -> bool:
        """A round of one process; whether there was one that is not in the middle of a round."""
        free = [one for one in self.processes[name] if id(one) not in self._working]
        if not free:
            return False
        process = free[index % len(free)]
        self._working.add(id(process))
        try:
            process.turn(records)
        except KilledError:
            self.kill(name, process)
        finally:
            self._working.discard(id(process))
        return True

    # what goes wrong

    def reach(self, what: str) -> None:
        """An effect on a dependency; raises TransientError while that is away."""
        try:
            self.effects.step()
            if self.clock.seconds < self._away.get(what, 0.0):
                raise away(what)
        except TransientError:
            self._record_was_away |= what == "record"
            raise

    def take_away(self, what: str, seconds: float) -> None:
        self._away[what] = self.clock.seconds + seconds

    def killed(self) -> None:
        raise KilledError

    def cut(self) -> None:
        raise away("the answer")

    def save(self, shard: int) -> None:
        self.saved[shard] = self.store.shards[shard].save()

    def fail_over(self, shard: int) -> None:
        """To what was saved last, or to nothing at all."""
        self.losses += 1
        saved = self.saved.pop(shard, None)
        if saved is None:
            self.store.shards[shard].empty()
        else:
            self.store.shards[shard].fail_over(saved)
        for socket in self.seen.sockets.values():
            held = self.store.connections.holder(socket.tournament_id, socket.player_id)
            socket.is_whole &= held == socket.connection_id

    def back_up(self) -> None:
        """Keep the record as it is now."""
        self.engine.dispose()
        path = self._folder / uuid.uuid4().hex
        shutil.copy(self._path, path)
        self._backup = (path, self.recorded())

    def set_back(self) -> bool:
        """The record as it was kept; whether there is such a thing."""
        if self._backup is None:
            return False
        self.engine.dispose()
        for leftover in self._folder.glob("record.sqlite*"):
            leftover.unlink()
        shutil.copy(self._backup[0], self._path)
        self._checked.clear()
        return True

    def recorded(self) -> dict[Place, Offset]:
        """How far the record is, by partition."""
        reached = {p: self.archive.reached(p, log_id(p)) for p in self.cluster.logs}
        return {place: offset or Offset(0) for place, offset in reached.items()}

    def audited(self, place: Place) -> Offset:
        """How far the audit log has this partition."""
        leaves = self.logs.leaves(place)
        return Offset(leaves[-1].offset + 1 if leaves else 0)

    def drop_oldest(self, place: Place) -> None:
        """The log's retention comes as far as it may without losing anything for good."""
        log = self.cluster.logs[place]
        limits = [self.recorded()[place]]
        if self._backup is not None:
            limits.append(self._backup[1][place])
        for name in ("on-wager", "on-rank-change"):
            running = [one.consumer.position(place) for one in self.processes[name]]
            limits += [Offset(at) for at in running if at is not None]
        # A consumer that lags behind the retention is not simulated.
        reader = "on-wager" if place.topic == WAGERS else "on-rank-change"
        limits.append(self.cluster.committed(reader, place) or Offset(0))
        if place.topic in AUDITED:
            limits.append(self.audited(place))
        low = min(limits)
        log.low = max(log.low, low)
        self.dropped[place] += [Offset(one.offset) for one in log.records if one.offset < log.low]
        log.records = [one for one in log.records if one.offset >= log.low]

    # who uses it

    def place_of(self, tournament_id: str, topic: str = WAGERS) -> Place:
        return Place(topic, partition_of(tournament_id.encode(), TOPICS[topic]))

    def log(self, record: Record) -> None:
        self.cluster.append(record)

    def erase(self, player_id: str) -> bool:
        """One request; whether it came to its end."""
        self.erased.add(player_id)
        was_accepted = player_id in self.seen.accepted
        try:
            function("erase").forget(PlayerId(player_id), self._erase_ports)
        except (KilledError, TransientError, NotFoundError):
            # Not found: the store lost the request while it was at work; to be asked again.
            if was_accepted:
                self.to_repeat.add(player_id)
            return False
        self.to_repeat.discard(player_id)
        return True

    def look_after(self) -> None:
        """What `erase` does every ten seconds: go on with what is pending, in the store or, lost by
        that or read again after the record was set back, in the record alone."""
        with suppress(KilledError, TransientError, NotFoundError):
            function("erase").look_after(self._erase_ports, DEADLINE_MS)

    def connect(self, tournament_id: TournamentId, player_id: str) -> None:
        """A player opens the page: `on-connect` decides, tells, and only then lets them in."""
        try:
            seen = self._connect_ports.entrance.look(tournament_id, PlayerId(player_id))
            is_forgotten = function("on-connect").is_forgotten(seen, self._connect_ports)
        except TransientError:
            return
        if is_forgotten:
            self.attempt(tournament_id, None, "player_erased")
            return
        self._check_knows_nothing(tournament_id, PlayerId(player_id))
        self.attempt(tournament_id, player_id, "allowed")
        connection_id = uuid.UUID(int=len(self.seen.sockets) + int(self.clock.seconds * 1e6)).hex
        before = self.store.connections.lease(tournament_id, player_id, connection_id)
        if before is not None:
            self.seen.close(before)
        changes = len(self.oracle.changes[tournament_id])
        self.seen.sockets[connection_id] = Socket(tournament_id, player_id, connection_id, changes)

    def attempt(self, tournament_id: str, player_id: str | None, reason: str) -> None:
        """What `on-connect` tells of a decision."""
        self._attempts += 1
        decided = ConnectionDecided(
            tournament_id=tournament_id,
            player_id=player_id,
            allowed=reason == "allowed",
            reason=reason,
            address="192.0.2.1",
        )
        event = Event(f"a{self._attempts}", "/on-connect", self.clock.now_ms(), decided, player_id)
        self.log(encode_kafka(event, CONNECTIONS))

    # what is always true

    def _check_knows_nothing(self, tournament_id: TournamentId, player_id: PlayerId) -> None:
        """Nobody is let in whom their board has erased or, where it is gone, the record."""
        told = self.store.board.is_erased(tournament_id, player_id)
        if told is None:
            told = self.record.is_forgotten(erasure_id_of(TOMBSTONE_KEY, player_id))
        assert not told, "who was erased gets in"

    def check(self) -> None:
        """Between any two steps."""
        for name in TOURNAMENTS:
            self.oracle.check(self.store.board.top(name, ALL), f"the board of {name}")
        self._check_committed()
        if not self.losses:
            self._check_progress()
        assert self._alarms() == self._differences, "board and record are said to differ"

    def _is_unknowable(self, letter: Record) -> bool:
        name = TournamentId((letter.key or b"").decode())
        known = self.oracle.last.get(name)
        is_over = known is not None and known.terms.state in function("on-rank-change").OVER
        return is_over and self._record_was_away and self.store.board.top(name, 1) is None

    def _alarms(self) -> float:
        return float(telemetry.RECORD_DIFFERENCES._value.get())

    def _check_committed(self) -> None:
        for name in FUNCTIONS_RUN:
            for place, offset in self.cluster.group(name).committed.items():
                if self._checked.get((name, place)) == offset:
                    continue
                self._checked[name, place] = offset
                if name == "on-wager":
                    missing = self.seen.has_all_below(place, offset)
                    assert missing is None, f"committed before {missing}"
                elif name == "archive" and self._backup is None:
                    reached = self.archive.reached(place, log_id(place)) or 0
                    assert offset <= max(reached, self.cluster.logs[place].low)

    def _check_progress(self) -> None:
        for place in (p for p in self.cluster.logs if p.topic == WAGERS):
            told = self.store.progress.read(log_id(place), place.partition)
            if told is None:
                continue
            for name, offsets in self.oracle.offsets.items():
                due = max((one for one in offsets if one <= told), default=None)
                if self.place_of(name) != place or due is None or self._may_be_gone(name):
                    continue
                (stands,) = self.store.board.stands_at(log_id(place), [name])
                assert stands is not None, f"progress is ahead of the board of {name}"
                assert stands >= due, f"progress is ahead of the board of {name}"
            missing = self.seen.has_all_below(place, told + 1)
            assert missing is None, f"progress is ahead of {missing}"

    def _may_be_gone(self, name: TournamentId) -> bool:
        return self.oracle.last[name].terms.state in function("on-rank-change").OVER
