"""Debezium with platform/outbox/connector.properties yields the events that the relay sends.

Kafka Connect and Debezium are run from their published jars (`make connect`)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from leaderboard import events as ev
from leaderboard.codec import decode_kafka
from leaderboard.model import Disposition
from leaderboard.partitioning import partition_of
from leaderboard.producer.outbox import put
from leaderboard.stack.kafka_jars import connect_jars, project_root
from leaderboard.stack.postgres import DATABASE, USER, PostgresServer
from leaderboard.stack.process import LOOPBACK, Process, free_port
from leaderboard.stack.topics import create_topics
from outboxes import SOURCE, Boards, Log, Outbox, RelayProcess, first_seen, scheduled, scored
from running import wait_for

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Connect:
    """A standalone worker of Kafka Connect with the project's connector, filled in."""

    def __init__(self, folder: Path, database: PostgresServer, servers: str) -> None:
        java = shutil.which("java")
        assert java is not None, "Java is missing: install 17 or later"
        self._database = database
        self._filling = {
            "DATABASE_HOST": LOOPBACK,
            "DATABASE_PORT": str(database.port),
            "DATABASE_USER": USER,
            "DATABASE_PASSWORD": "trusted",
            "DATABASE_NAME": DATABASE,
            "KAFKA_BOOTSTRAP_SERVERS": servers,
            "CONNECT_PORT": str(free_port()),
            "OFFSETS_FILE": str(folder / "connect.offsets"),
        }
        folder.mkdir(exist_ok=True)
        files = [self._filled(folder, name) for name in ("worker", "connector")]
        argv = [
            java, "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{connect_jars()}/*",
            "org.apache.kafka.connect.cli.ConnectStandalone", *files,
        ]  # fmt: skip
        self.process = Process("connect", argv, log_path=folder / "connect.log")

    def _filled(self, folder: Path, name: str) -> str:
        path = project_root() / "platform" / "outbox" / f"{name}.properties"
        text = path.read_text(encoding="utf-8")
        for variable, value in self._filling.items():
            text = text.replace(f"${{{variable}}}", value)
        filled = folder / path.name
        filled.write_text(text, encoding="utf-8")
        return str(filled)

    def start(self) -> None:
        self.process.start()
        self.process.wait_until(self._reads, 60)

    def _reads(self) -> bool:
        text = "SELECT count(*) FROM pg_replication_slots WHERE active"
        with psycopg.connect(self._database.url) as connection:
            return connection.execute(text).fetchone() == (1,)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(tmp_path / "postgres", extra={"wal_level": "logical"})
    server.start()
    try:
        yield server
    finally:
        server.stop()


def sample() -> list[ev.Event]:
    """Events of all shapes that a game platform sends to `wagers`."""
    wager = ev.WagerPlaced(
        tournament_id="t1", player_id="p1", game_id="crash ü", stake_minor=100, currency="EUR"
    )
    joined = ev.PlayerJoined(tournament_id="t2", player_id="p2", display_name="Zoë “Z” 😀")
    return [
        scheduled("t1"),
        scheduled("t2"),
        ev.Event("w “1” ä 😀", SOURCE, 1_760_000_001_000, wager, subject="p1", traceparent=TRACE),
        ev.Event("j1", "/lobby?a=b&c=%20", 1_760_000_001_001, joined, subject="p2"),
        *(scored(f"e{index}", f"t{1 + index % 2}", f"p{index % 3}") for index in range(20)),
        scored("without-subject", "t1", "p1")._replace(subject=None),
    ]


def plain(record: ev.Record) -> tuple[object, ...]:
    """What makes the event: all but what only the relay gives, and empty headers."""
    headers = {n: raw for n, raw in record.headers if raw is not None and n != "ce_sequence"}
    return record.key, record.value, record.partition, headers


def test_debezium_sends_what_the_relay_sends(
    database: PostgresServer, kafka: str, tmp_path: Path
) -> None:
    create_topics(kafka)
    outbox = Outbox(database.url)
    connect = Connect(tmp_path / "connect", database, kafka)
    relay = RelayProcess(tmp_path, outbox, kafka, "one")
    by_debezium, by_relay = Log(kafka), Log(kafka)
    try:
        connect.start()
        with psycopg.connect(database.url) as connection:
            put(connection, scored("rolled-back", "t1", "p1"), captured=True)
            connection.rollback()
            for event in sample():
                put(connection, event, captured=True)
        wait_for(lambda: len(by_debezium.read()) == len(sample()), 30)
        captured = by_debezium.read()
        assert outbox.rows() == []
        # Killed before it knows how far it was; meanwhile the platform writes on.
        connect.process.kill()
        with psycopg.connect(database.url) as connection:
            put(connection, scored("meanwhile", "t1", "p1"), captured=True)
        connect.start()
        wait_for(lambda: len(first_seen(by_debezium.read())) == len(sample()) + 1, 30)
        log = by_debezium.read()
        connect.process.stop()

        by_relay.close()
        by_relay = Log(kafka)
        with psycopg.connect(database.url) as connection:
            for event in sample():
                put(connection, event)
        relay.start()
        wait_for(lambda: len(by_relay.read()) == len(sample()), 30)
        relayed = by_relay.read()
    finally:
        connect.process.kill()
        relay.kill()
        by_debezium.close()
        by_relay.close()
        outbox.close()

    assert [*map(plain, in_order(captured))] == [*map(plain, in_order(relayed))]
    read = {event.id: event for event in map(decode_kafka, captured)}
    assert read == {event.id: event for event in sample()}
    for record in captured:
        assert record.key is not None
        assert record.partition == partition_of(record.key, 10)
    # No number: repetitions are known by id, and there were any or not, each counts once.
    assert all(event.sequence is None for event in read.values())
    boards = Boards(log)
    assert boards.dispositions[Disposition.APPLIED] == len(sample()) + 1 - NOT_SCORED
    assert set(boards.dispositions) <= {
        Disposition.APPLIED,
        Disposition.DUPLICATE,
        Disposition.UNSUPPORTED,
    }


NOT_SCORED = 1
"""The wager: the sample's tournaments count what is submitted."""


def in_order(records: list[ev.Record]) -> list[ev.Record]:
    """By partition, each in its own order."""
    return sorted(records, key=lambda record: (record.partition, record.offset))
