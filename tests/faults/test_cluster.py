"""on-wager on a Redis Cluster whose primaries die, lose their tails and hand over their slots.

Each test proves that its fault bit, and compares boards and position changes with the log's own
fold: nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path as Folder
from typing import Any

import httpx
import pytest

from audit_logs import settings_in
from clusters import LostTail, asked, migrate, promoted, stands_at
from leaderboard import events as ev
from leaderboard.adapters import sql_migrations
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import check, connect
from leaderboard.errors import TransientError
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, PositionChange, TournamentId
from leaderboard.partitioning import partition_of
from leaderboard.stack.functions import FUNCTIONS
from leaderboard.stack.kafka_jars import project_root
from leaderboard.stack.process import LOOPBACK, Process, free_port
from leaderboard.stack.redis_cluster import RedisCluster, slot_of
from leaderboard.stack.servers import KafkaServer, RedisServer
from leaderboard.stack.topics import create_topics
from logs import TOMBSTONE_KEY
from records import fresh_postgres
from running import wait_for
from whole_path import Path, schedule, unique, wager

PARTITIONS = 4
TOURNAMENTS = 12
PLAYERS = 200
RATE = 800
BACK_SECONDS = 40.0
FUNCTION = {one.name: one for one in FUNCTIONS}


@pytest.fixture(scope="module")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    server = KafkaServer(tmp_path_factory.mktemp("kafka"))
    try:
        server.start()
        create_topics(server.bootstrap_servers, PARTITIONS)
        yield server
    finally:
        server.stop()


class Scene:
    """A cluster, the real on-wager and archive processes, and wagers that flow."""

    def __init__(self, folder: Folder, kafka: KafkaServer, database_url: str) -> None:
        self.cluster = RedisCluster(folder / "redis")
        self._folder = folder
        self._kafka = kafka
        self._database_url = database_url
        self._group = unique("group")
        self._port = free_port()
        self._processes: dict[str, Process] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._failures: list[BaseException] = []
        self._logs: dict[str, list[LogEntry]] = defaultdict(list)
        # What `Path` wants of a stack.
        self.path: Any = Path(self, None)  # type: ignore[arg-type]

    def env(self) -> dict[str, str]:
        return {"KAFKA_BOOTSTRAP_SERVERS": self._kafka.bootstrap_servers}

    def open(self) -> None:
        self.cluster.start()
        self.client = connect(self.cluster.url)
        self.board = RedisBoard(self.client)
        self._changes_since = self.path.ends(ev.POSITION_CHANGES)
        self.start("on-wager")

    def close(self) -> None:
        self.stop_play()
        for process in self._processes.values():
            process.kill()
        self.path.close()
        if hasattr(self, "client"):
            self.client.close()
        self.cluster.stop()

    # the processes

    def start(self, name: str) -> None:
        settings = {
            **self.env(),
            "REDIS_URL": self.cluster.url,
            "DATABASE_URL": self._database_url,
            "TOMBSTONE_KEY": TOMBSTONE_KEY.decode(),
            "HOST": LOOPBACK,
            **settings_in(self._folder / "audit-log"),
        }
        port = self._port if name == "on-wager" else free_port()
        environ = FUNCTION[name].environ(settings, port)
        environ["KAFKA_GROUP_ID"] = f"{self._group}-{name}"
        command = FUNCTION[name].command(project_root(), port)
        log_path = self._folder / f"{name}.log"
        self._processes[name] = Process(name, command, log_path=log_path, environ=environ)
        self._processes[name].start()

    def kill_on_wager(self) -> None:
        self._processes["on-wager"].kill()

    def has_run_through(self) -> bool:
        """Whether the same processes still run that were started."""
        return all(process.is_running() for process in self._processes.values())

    def told(self) -> str:
        return (self._folder / "on-wager.log").read_text(errors="replace")

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"http://{LOOPBACK}:{self._port}/readyz", timeout=8).status_code == 200
        except httpx.HTTPError:
            return False

    # play

    def publish(self, events: Sequence[ev.Event]) -> list[LogEntry]:
        entries: list[LogEntry] = self.path.publish(events)
        for entry in entries:
            self._logs[str(entry.event.tournament_id)].append(entry)
        return entries

    def begin(self, tournaments: Sequence[str]) -> None:
        """Schedules, and a board for each."""
        self.publish([schedule(t) for t in tournaments])
        wait_for(lambda: self.is_level(tournaments), BACK_SECONDS)

    def play(self, tournaments: Sequence[str], seed: int) -> None:
        """Wagers into all of these from now on, in the background."""
        chance = random.Random(seed)

        def produce() -> None:
            try:
                while not self._stopping.is_set():
                    due = time.monotonic() + 0.1
                    self.publish(
                        [
                            wager(
                                chance.choice(tournaments), player(chance), chance.randint(1, 999)
                            )
                            for _ in range(RATE // 10)
                        ]
                    )
                    self._stopping.wait(max(due - time.monotonic(), 0))
            except BaseException as error:  # noqa: BLE001 - told by stop_play, in the test's thread
                self._failures.append(error)

        self._thread = threading.Thread(target=produce)
        self._thread.start()

    def stop_play(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        assert self._failures == []

    # what is there

    def last(self, tournament_id: str) -> int:
        return int(self._logs[tournament_id][-1].offset)

    def count(self) -> int:
        return sum(map(len, self._logs.values()))

    def sequence(self, tournament_id: str) -> int:
        """Where the board stands; -1 without one, or while nobody can say."""
        try:
            view = self.board.top(TournamentId(tournament_id), 1)
        except TransientError:
            return -1
        return -1 if view is None else int(view.sequence)

    def is_level(self, tournaments: Sequence[str]) -> bool:
        return all(self.sequence(t) >= self.last(t) for t in tournaments)

    def assert_equal_to_the_log(self) -> None:
        """Boards and changes of every tournament are those of its log, exactly."""
        tournaments = list(self._logs)
        try:
            wait_for(lambda: self.is_level(tournaments), BACK_SECONDS)
        except AssertionError:
            missing = {t: (self.sequence(t), self.last(t)) for t in tournaments}
            raise AssertionError(f"not level: {missing}\n{self.told()[-3000:]}") from None
        changes: dict[str, list[PositionChange]] = {}
        for t in tournaments:
            rows, changes[t] = folded(TournamentId(t), self._logs[t])
            view = self.board.top(TournamentId(t), 1000)
            assert view is not None
            assert [(s.rank, s.player_id, s.score.score) for s in view.standings] == rows, t
        wanted = {t: [told_of(one) for one in found] for t, found in changes.items()}
        published: dict[str, list[tuple[Any, ...]]] = {}

        def has_come() -> bool:
            # All in one reading: the topic holds the changes of every test of this module.
            found = self.path.changes_of(tournaments, self._changes_since)
            published.update({t: [told_of(one) for one in found[t]] for t in tournaments})
            return all(len(published[t]) >= len(wanted[t]) for t in tournaments)

        wait_for(has_come, BACK_SECONDS)
        for t in tournaments:
            assert published[t] == wanted[t], t


def told_of(change: PositionChange | ev.PositionChanged) -> tuple[Any, ...]:
    return change.sequence, change.player_id, change.old_rank, change.new_rank


def player(chance: random.Random) -> str:
    return f"p{int(PLAYERS * chance.random() ** 2):03d}"


def folded(
    tournament_id: TournamentId, entries: Sequence[LogEntry]
) -> tuple[list[tuple[int, str, int]], list[PositionChange]]:
    board = MemoryBoard(TOMBSTONE_KEY)
    applied = board.apply(tournament_id, "oracle", None, entries, None)
    view = board.top(tournament_id, 1000)
    assert view is not None
    rows = [(s.rank, str(s.player_id), s.score.score) for s in view.standings]
    return rows, list(applied.unconfirmed)


@pytest.fixture
def scene(tmp_path: Folder, kafka_server: KafkaServer, postgres: str) -> Iterator[Scene]:
    """Without an archive: the record is empty, and the log and the boards' witness have to do."""
    with fresh_postgres(postgres) as database_url:
        sql_migrations.upgrade(database_url)
        one = Scene(tmp_path, kafka_server, database_url)
        try:
            one.open()
            yield one
        finally:
            one.close()


@pytest.fixture(params=["log", "record"])
def recorded(request: pytest.FixtureRequest, scene: Scene) -> Scene:
    """Without an archive, and with one: then what was lost comes from the record."""
    if request.param == "record":
        scene.start("archive")
    return scene


@pytest.fixture
def tournaments() -> list[str]:
    """Some in each shard, so that every fault has those that it hits and those that it does not."""
    while True:
        found = [unique("cluster") for _ in range(TOURNAMENTS)]
        if len({slot_of(t) * 3 // 16_384 for t in found}) == 3:
            return found


def a_seed() -> int:
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    return seed


def test_a_killed_primary_is_replaced_while_wagers_flow(
    scene: Scene, tournaments: list[str]
) -> None:
    scene.begin(tournaments)
    scene.play(tournaments, a_seed())
    wait_for(lambda: scene.count() > 1_500, 30)
    victim, other = scene.cluster.node_of(tournaments[0]), tournaments[0]
    others = [t for t in tournaments if scene.cluster.node_of(t) is not victim]
    assert others, "the fault would hit everything"
    victim.process.kill()
    with pytest.raises(TransientError):
        check(scene.client)
    assert promoted(scene.cluster, other, victim) is not victim
    flowed = scene.count()
    wait_for(lambda: scene.count() > flowed + 1_500, 30)
    scene.stop_play()
    scene.assert_equal_to_the_log()
    assert scene.has_run_through(), "it was to recover by itself"
    assert "a dependency is away" in scene.told(), "nobody noticed the fault"
    wait_for(scene.is_ready, 10)
    check(scene.client)


def test_a_promoted_replica_without_the_tail_is_brought_level(
    recorded: Scene, tournaments: list[str]
) -> None:
    scene = recorded
    scene.begin(tournaments)
    fault = LostTail(scene.cluster, tournaments[0])
    scene.play(tournaments, a_seed())
    wait_for(lambda: scene.count() > 1_500, 30)
    fault.cut()
    flowed = scene.count()
    wait_for(lambda: scene.count() > flowed + 1_500, 30)
    acknowledged, kept = fault.fail_over()
    assert kept < acknowledged, "nothing was lost"
    lost = [e for e in scene._logs[tournaments[0]] if kept < e.offset <= acknowledged]
    assert len(lost) > 30
    wait_for(lambda: scene.sequence(tournaments[0]) > acknowledged, BACK_SECONDS)
    scene.stop_play()
    scene.assert_equal_to_the_log()
    assert scene.has_run_through()
    assert "replaying" in scene.told()


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_a_quiet_tournament_whose_shard_lost_its_tail_is_found(
    recorded: Scene, restarted: bool
) -> None:
    """Its witness lies on another shard, which lost nothing, and no event comes to show it."""
    scene = recorded
    quiet = quiet_one(scene)
    fault = LostTail(scene.cluster, quiet)
    chance = random.Random(a_seed())
    scene.publish([wager(quiet, player(chance), 100) for _ in range(200)])
    wait_for(lambda: scene.is_level([quiet]), BACK_SECONDS)
    replicated = stands_at(fault.primary, quiet)
    wait_for(lambda: stands_at(fault.replica, quiet) == replicated, 10)
    fault.cut()
    scene.publish([wager(quiet, player(chance), 100) for _ in range(200)])
    wait_for(lambda: scene.is_level([quiet]), BACK_SECONDS)
    # Until its offsets are committed it would read them again anyway.
    time.sleep(2)
    if restarted:
        scene.kill_on_wager()
    acknowledged, kept = fault.fail_over()
    assert kept == replicated < acknowledged == scene.last(quiet)
    if restarted:
        scene.start("on-wager")
    scene.assert_equal_to_the_log()
    assert scene.has_run_through()


def quiet_one(scene: Scene) -> str:
    """A tournament with a board, on another shard than the witness of its partition."""
    for _ in range(20):
        name = unique("quiet")
        scene.begin([name])
        # A batch is settled after its boards.
        time.sleep(0.5)
        witness = witness_of(scene, partition_of(name.encode(), PARTITIONS))
        if witness is not None and scene.cluster.node_of(name) is not witness:
            return name
    raise AssertionError("all lie on one shard")


def witness_of(scene: Scene, partition: int) -> RedisServer | None:
    """The primary that holds the witness of a partition of `wagers`."""
    for port in (node.port for node in scene.cluster.seen() if node.is_primary):
        server = next(one for one in scene.cluster.nodes if one.port == port)
        with asked(server) as client:
            if client.keys(f"progress:*:{partition}"):
                return server
    return None


def test_a_slot_moves_while_wagers_flow(scene: Scene, tournaments: list[str]) -> None:
    scene.begin(tournaments)
    moving = tournaments[0]
    scene.play(tournaments, a_seed())
    wait_for(lambda: scene.count() > 1_500, 30)
    before = scene.cluster.node_of(moving)
    held: list[tuple[int, int]] = []

    def look() -> None:
        """Half of the board's keys are here, half there: nobody may apply to, or show, a half."""
        stood, flowed = stands(scene, moving), scene.count()
        wait_for(lambda: scene.count() > flowed + 800, 30)
        with pytest.raises(TransientError):
            scene.board.top(TournamentId(moving), 10)
        held.append((stood, stands(scene, moving)))

    after = migrate(scene.cluster, moving, look)
    assert after is not before
    ((stood, still),) = held
    assert stood == still, "a half board was written to"
    assert scene.last(moving) > stood, "no wager came meanwhile"
    flowed = scene.count()
    wait_for(lambda: scene.count() > flowed + 800, 30)
    scene.stop_play()
    scene.assert_equal_to_the_log()
    assert scene.has_run_through()
    assert stands_at(after, moving) >= scene.last(moving)


def stands(scene: Scene, tournament_id: str) -> int:
    """The board's offset, wherever in the cluster that key is now."""
    found: Any = scene.client.hget(f"{{{tournament_id}}}:board", "offset")
    return int(found)


def test_a_primary_that_hangs_and_comes_back_as_replica_costs_nothing(
    scene: Scene, tournaments: list[str]
) -> None:
    """It wakes up with writes that it takes for acknowledged, and with clients that believe it."""
    scene.begin(tournaments)
    scene.play(tournaments, a_seed())
    wait_for(lambda: scene.count() > 1_500, 30)
    victim = scene.cluster.node_of(tournaments[0])
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        assert promoted(scene.cluster, tournaments[0], victim) is not victim
    finally:
        os.kill(victim.pid, signal.SIGCONT)
    flowed = scene.count()
    wait_for(lambda: scene.count() > flowed + 1_500, 30)
    scene.stop_play()
    scene.assert_equal_to_the_log()
    assert scene.has_run_through()


def test_who_only_sends_batches_finds_who_was_promoted(tmp_path: Folder) -> None:
    """No probe, no read and no broken answer comes first and tells the client to look anew."""
    cluster, tournament_id = RedisCluster(tmp_path), TournamentId(unique("cluster"))
    cluster.start()
    try:
        client = connect(cluster.url)
        board = RedisBoard(client)
        begun = schedule(tournament_id)
        entries = [LogEntry(Offset(0), begun.time_ms, begun)]
        entries += [
            LogEntry(Offset(n), begun.time_ms, wager(tournament_id, "alice", n))
            for n in range(1, 200)
        ]
        board.begin(tournament_id, "log", None, entries[:100], None).result()
        victim = cluster.node_of(tournament_id)
        with asked(victim) as connection:
            connection.set(f"{{{tournament_id}}}:last", 1)
            assert connection.wait(1, 5000) == 1, "the replica has not got that far"
        victim.process.kill()
        promoted(cluster, tournament_id, victim)
        tried: list[TransientError] = []

        def goes_on() -> bool:
            try:
                sent = board.begin(tournament_id, "log", Offset(99), entries[100:], None)
            except TransientError as error:
                tried.append(error)
                return False
            sent.result()
            return True

        wait_for(goes_on, BACK_SECONDS)
        assert tried, "the fault did not bite"
        assert stands_at(cluster.node_of(tournament_id), tournament_id) == 199
        client.close()
    finally:
        cluster.stop()
