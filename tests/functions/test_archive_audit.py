"""archive's audit log as its own process, from a real Kafka: killed under load again and again, two
at once, its store away; what it signed is whole, and SQL says the same."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

import audit_logs
import logs
from hosting import FUNCTIONS
from leaderboard import events as ev
from leaderboard.adapters import sql_migrations
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.directory_log import LOCK
from leaderboard.adapters.sql_engine import connect, reading
from leaderboard.audit_leaves import Leaf
from leaderboard.codec import encode_kafka
from leaderboard.events import Record
from leaderboard.model import Place, erasure_id_of
from leaderboard.stack.process import LOOPBACK, free_port
from leaderboard.stack.servers import KafkaServer
from logs import START_MS, TOMBSTONE_KEY
from records import fresh_database
from running import wait_for

TOPICS = (ev.WAGERS, ev.POSITION_CHANGES, ev.FRAUD_ALERTS, ev.CONNECTIONS, ev.GDPR_EVENTS)
READ_SECONDS = 200.0
KILLS = 6
WAGERS_SENT = 25_000


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = KafkaServer(tmp_path_factory.mktemp("kafka"))
    try:
        server.start()
        admin = AdminClient({"bootstrap.servers": server.bootstrap_servers, "log_level": 2})
        wanted = [NewTopic(one, 2, 1) for one in TOPICS]
        wanted += [NewTopic(ev.dead_letter_topic(one), 1, 1) for one in TOPICS]
        for made in admin.create_topics(wanted).values():
            made.result(30)
        yield server.bootstrap_servers
    finally:
        server.stop()


class Archive:
    """Processes of archive over one database and one log."""

    def __init__(self, servers: str, url: str, redis_url: str, folder: Path) -> None:
        self.folder = folder / "audit-log"
        self.ports: list[int] = []
        self.running: list[subprocess.Popen[bytes]] = []
        self.database_url = url
        self._folder = folder
        self._environ = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "KAFKA_BOOTSTRAP_SERVERS": servers,
            "KAFKA_GROUP_ID": f"archive-{uuid.uuid4().hex[:8]}",
            "KAFKA_SESSION_TIMEOUT_MS": "2000",
            "REDIS_URL": redis_url,
            "DATABASE_URL": url,
            "TOMBSTONE_KEY": TOMBSTONE_KEY.decode(),
            "BATCH_SIZE": "700",
            "HOST": LOOPBACK,
            **audit_logs.settings_in(self.folder),
        }

    def start(self) -> subprocess.Popen[bytes]:
        port = free_port()
        self.ports.append(port)
        with (self._folder / f"archive-{len(self.ports)}.log").open("wb") as log:
            one = subprocess.Popen(
                [sys.executable, str(FUNCTIONS / "archive" / "main.py")],
                env={**self._environ, "PORT": str(port)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.running.append(one)
        return one

    def stop(self, one: subprocess.Popen[bytes], number: signal.Signals) -> None:
        one.send_signal(number)
        self.running.remove(one)
        one.wait(30)

    def told(self) -> str:
        return "".join(path.read_text("utf-8") for path in self._folder.glob("archive-*.log"))

    def leaves(self, topic: str = ev.WAGERS) -> list[Leaf]:
        """Of both partitions: which of them a tournament lies in is Kafka's business."""
        return [
            leaf
            for partition in (0, 1)
            for leaf in audit_logs.read_from(self.folder, Place(topic, partition))
        ]


@pytest.fixture(params=["sqlite", "postgresql"])
def archive(
    request: pytest.FixtureRequest, servers: str, redis_url: str, tmp_path: Path
) -> Iterator[Archive]:
    with fresh_database(request.param, request, tmp_path) as url:
        sql_migrations.upgrade(url)
        made = Archive(servers, url, redis_url, tmp_path)
        yield made
        for one in made.running:
            one.kill()
            one.wait()


def producer_of(servers: str) -> Producer:
    return Producer({"bootstrap.servers": servers, "log_level": 2, "partitioner": "murmur2_random"})


def send(producer: Producer, record: Record) -> None:
    while True:
        try:
            producer.produce(record.topic, record.value, record.key, headers=list(record.headers))
            return
        except BufferError:
            producer.poll(0.1)


def wager(t: str, number: int) -> Record:
    one = logs.scored(
        number, f"p{number % 200}", number % 90, tournament_id=t, event_id=f"w{number}"
    )
    return encode_kafka(one.event, ev.WAGERS)


def inputs_of(engine: sa.Engine, t: str) -> list[int]:
    """Offsets of a tournament's inputs in the record."""
    one, own = tables.inputs.c, tables.tournaments.c
    with reading(engine) as connection:
        found = connection.execute(
            sa.select(one.log_offset)
            .join(tables.tournaments, one.tournament_no == own.tournament_no)
            .where(own.tournament_id == t)
            .order_by(one.log_offset)
        )
        return [offset for (offset,) in found]


def check_shards(leaves: list[Leaf]) -> None:
    """Offsets without a hole and without a repetition, in each shard."""
    for place in {leaf.place for leaf in leaves}:
        found = [leaf.offset for leaf in leaves if leaf.place == place]
        assert found == list(range(found[0], found[0] + len(found))), place


def test_killed_under_load_it_signs_every_record_once(archive: Archive, servers: str) -> None:
    t, chance = f"killed-{uuid.uuid4().hex[:8]}", random.Random(7)
    producer, engine = producer_of(servers), connect(archive.database_url)
    send(producer, encode_kafka(logs.scheduled(0, t).event, ev.WAGERS))
    for number in range(1, WAGERS_SENT):
        send(producer, wager(t, number))
    assert producer.flush(60) == 0
    bitten = 0
    for _ in range(KILLS):
        one = archive.start()
        before = size_of(archive)
        wait_for(lambda: size_of(archive) > before, READ_SECONDS)  # noqa: B023 - called at once
        time.sleep(chance.uniform(0, 0.3))
        archive.stop(one, signal.SIGKILL)
        bitten += size_of(archive) < sent_to(servers)
        assert len(inputs_of(engine, t)) <= WAGERS_SENT
    assert bitten >= KILLS // 2, "it was killed when there was nothing left to do"
    archive.start()
    wait_for(lambda: len(inputs_of(engine, t)) == WAGERS_SENT, READ_SECONDS)
    wait_for(lambda: size_of(archive) == sent_to(servers), READ_SECONDS)
    leaves = archive.leaves()
    check_shards(leaves)
    own = [leaf for leaf in leaves if leaf.tournament_id == t]
    assert [leaf.offset for leaf in own] == inputs_of(engine, t)
    assert len({leaf.id for leaf in own}) == WAGERS_SENT
    assert len({leaf.player for leaf in own}) == 200 + 1, "a player has one name all along"
    engine.dispose()


def sent_to(servers: str) -> int:
    """Records of `wagers` that Kafka has."""
    asks = Consumer({"bootstrap.servers": servers, "group.id": "asks-only"})
    try:
        places = [TopicPartition(ev.WAGERS, partition) for partition in (0, 1)]
        return sum(asks.get_watermark_offsets(place, timeout=30)[1] for place in places)
    finally:
        asks.close()


def size_of(archive: Archive) -> int:
    """Leaves of `wagers` that are signed, as the checkpoints say."""
    found = archive.folder.glob(f"{ev.WAGERS}/*/checkpoint")
    return sum(int(path.read_text("utf-8").splitlines()[1]) for path in found)


def test_store_that_is_away_is_waited_for(archive: Archive, servers: str) -> None:
    """Its folder is no folder for a while: the process lives, says so, and goes on."""
    t, producer = f"away-{uuid.uuid4().hex[:8]}", producer_of(servers)
    engine = connect(archive.database_url)
    send(producer, encode_kafka(logs.scheduled(0, t).event, ev.WAGERS))
    assert producer.flush(60) == 0
    one = archive.start()
    wait_for(lambda: len(inputs_of(engine, t)) == 1, READ_SECONDS)
    wait_for(lambda: size_of(archive) == sent_to(servers), READ_SECONDS)
    time.sleep(2)  # the record knows how far the log is
    aside = archive.folder.with_name("aside")
    archive.folder.rename(aside)
    ready = f"http://{LOOPBACK}:{archive.ports[-1]}/readyz"
    wait_for(lambda: httpx.get(ready).status_code == 503, READ_SECONDS)
    assert "audit log" in httpx.get(ready).text
    for number in range(1, 200):
        send(producer, wager(t, number))
    assert producer.flush(60) == 0
    time.sleep(2)
    assert one.poll() is None
    assert not archive.folder.exists() or not list(archive.folder.rglob("checkpoint"))
    if archive.folder.exists():
        for path in sorted(archive.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        archive.folder.rmdir()
    aside.rename(archive.folder)
    wait_for(lambda: httpx.get(ready).status_code == 200, READ_SECONDS)
    wait_for(lambda: sum(leaf.tournament_id == t for leaf in archive.leaves()) == 200, READ_SECONDS)
    check_shards(archive.leaves())
    engine.dispose()


def is_locked(archive: Archive) -> bool:
    """Whether somebody is in the middle of a transaction of a SQLite record, or of a checkpoint."""
    for lock in archive.folder.glob(f"*/*/{LOCK}"):
        with lock.open("a") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    url = sa.engine.make_url(archive.database_url)
    if url.get_backend_name() != "sqlite":
        return False
    with closing(sqlite3.connect(url.database or "", timeout=0)) as connection:
        try:
            # Who reads is in nobody's way, until somebody wants to commit.
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return True
    return False


def free_locks_of_who_sleeps(archive: Archive) -> None:
    """As the stacks do for their roles, in less than their minute."""
    url = sa.engine.make_url(archive.database_url)
    if url.get_backend_name() == "postgresql":
        setting = f'ALTER DATABASE "{url.database}" SET idle_in_transaction_session_timeout = 3000'
        engine = connect(archive.database_url)
        with engine.begin() as connection:
            connection.exec_driver_sql(setting)
        engine.dispose()


def test_two_processes_that_hand_over_sign_every_record_once(
    archive: Archive, servers: str
) -> None:
    """One is stopped in the middle of its work (SIGSTOP), loses its partitions, and wakes up."""
    t, producer = f"two-{uuid.uuid4().hex[:8]}", producer_of(servers)
    engine = connect(archive.database_url)
    send(producer, encode_kafka(logs.scheduled(0, t).event, ev.WAGERS))
    for number in range(1, 20_000):
        send(producer, wager(t, number))
    assert producer.flush(60) == 0
    free_locks_of_who_sleeps(archive)
    first = archive.start()
    wait_for(lambda: size_of(archive) > 2_000, READ_SECONDS)
    first.send_signal(signal.SIGSTOP)
    while is_locked(archive):
        # These locks would be held as long as the process sleeps.
        first.send_signal(signal.SIGCONT)
        time.sleep(0.05)
        first.send_signal(signal.SIGSTOP)
    at_stop = size_of(archive)
    archive.start()
    wait_for(lambda: size_of(archive) > at_stop + 2_000, READ_SECONDS)
    first.send_signal(signal.SIGCONT)
    wait_for(lambda: len(inputs_of(engine, t)) == 20_000, READ_SECONDS)
    wait_for(lambda: size_of(archive) == sent_to(servers), READ_SECONDS)
    leaves = archive.leaves()
    check_shards(leaves)
    assert sum(leaf.tournament_id == t for leaf in leaves) == 20_000
    engine.dispose()


def test_key_of_who_is_erased_is_destroyed_in_the_end(
    archive: Archive, servers: str, redis_url: str
) -> None:
    """Through the real host; on-wager's part, the boards' progress, is told by the test."""
    import redis

    t = f"gone-{uuid.uuid4().hex[:8]}"
    producer, engine = producer_of(servers), connect(archive.database_url)
    gone = ev.PlayerErased(tournament_id=t, player_id="p1", erasure_id="er-1")
    send(producer, encode_kafka(logs.scheduled(0, t).event, ev.WAGERS))
    send(producer, wager(t, 1))
    send(producer, encode_kafka(ev.Event(f"{t}/gone", "/erase", START_MS, gone), ev.WAGERS))
    send(producer, wager(t, 201))
    assert producer.flush(60) == 0
    archive.start()
    mark = erasure_id_of(TOMBSTONE_KEY, "p1")
    keys, ends = tables.pseudonym_keys.c, tables.pseudonym_ends.c

    def rows(table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
        with reading(engine) as connection:
            statement = sa.select(sa.func.count()).select_from(table).where(*where)
            return int(connection.execute(statement).scalar_one())

    hers = (keys.tournament_id == t, keys.erasure_id == mark)
    wait_for(lambda: rows(tables.pseudonym_ends, ends.tournament_id == t) == 1, READ_SECONDS)
    time.sleep(5)
    assert rows(tables.pseudonym_keys, *hers) == 1, "nobody said that the boards are so far"
    with reading(engine) as connection:
        log_id, partition, at = connection.execute(
            sa.select(tables.log_positions.c.log_id, ends.log_partition, ends.log_offset)
            .join(
                tables.pseudonym_ends,
                tables.log_positions.c.log_partition == ends.log_partition,
            )
            .where(tables.log_positions.c.topic == ev.WAGERS, ends.tournament_id == t)
        ).one()
    client = redis.Redis.from_url(redis_url)
    client.hset(f"progress:{log_id}:{partition}", ":offset", at)
    wait_for(lambda: rows(tables.pseudonym_keys, *hers) == 0, READ_SECONDS)
    own = [leaf for leaf in archive.leaves() if leaf.tournament_id == t]
    assert [leaf.player is None for leaf in own] == [True, False, False, True]
    engine.dispose()
    client.close()
