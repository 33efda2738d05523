"""Outboxes for tests: a database of its own for each, filled as a game platform would."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
from confluent_kafka import Consumer, KafkaException, TopicPartition
from psycopg import sql

from leaderboard import events as ev
from leaderboard.codec import decode_kafka
from leaderboard.fold import LogEntry, Standings, Terms, decide
from leaderboard.model import Disposition, Offset, TournamentId
from leaderboard.producer import tables
from leaderboard.producer.lanes import reading
from leaderboard.producer.service import database
from leaderboard.settings import DatabaseSettings, load
from leaderboard.stack.process import LOOPBACK, Process, free_port
from logs import END_MS, START_MS, TOMBSTONE_KEY, moment, rules

SOURCE = "/games/eu"
READ_SECONDS = 60.0


class Outbox:
    """A database with an empty outbox; `engine` is the one that relays use."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = database(load(DatabaseSettings, {"DATABASE_URL": url}))
        with self.engine.begin() as connection:
            tables.create(connection)

    def rows(self, what: str = "*", where: str = "1 = 1") -> list[dict[str, Any]]:
        """What the table holds, in the order of writing."""
        text = f"SELECT {what} FROM leaderboard_outbox WHERE {where} ORDER BY position"  # noqa: S608
        with reading(self.engine).connect() as connection:
            return [dict(row) for row in connection.execute(sa.text(text)).mappings()]

    def count(self, where: str = "1 = 1") -> int:
        return len(self.rows("position", where))

    def execute(self, statement: str) -> int:
        with self.engine.begin() as connection:
            return connection.execute(sa.text(statement)).rowcount

    def close(self) -> None:
        self.engine.dispose()


@contextlib.contextmanager
def fresh_postgres(url: str) -> Iterator[Outbox]:
    """An outbox in a new database of a PostgreSQL that is shared."""
    name = f"outbox_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    outbox = Outbox(f"{url.rpartition('/')[0]}/{name}")
    try:
        yield outbox
    finally:
        outbox.close()
        with psycopg.connect(url, autocommit=True) as connection:
            gone = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            connection.execute(gone)


@contextlib.contextmanager
def fresh_sqlite(folder: Path) -> Iterator[Outbox]:
    outbox = Outbox(f"sqlite:///{folder / 'outbox.db'}")
    try:
        yield outbox
    finally:
        outbox.close()


def scored(event_id: str, tournament_id: str, player_id: str, score: int = 1) -> ev.Event:
    """A score that a game submits."""
    data = ev.ScoreSubmitted(tournament_id=tournament_id, player_id=player_id, score=score)
    return ev.Event(event_id, SOURCE, START_MS + 1000, data, subject=player_id)


def scheduled(tournament_id: str) -> ev.Event:
    data = ev.TournamentScheduled(
        tournament_id=tournament_id,
        name="Cup",
        starts_at=moment(START_MS),
        ends_at=moment(END_MS),
        rules=rules(),
    )
    return ev.Event(f"{tournament_id}/scheduled", SOURCE, START_MS - 1000, data)


class Log:
    """What came to `wagers` since this was made, partition by partition."""

    def __init__(self, servers: str) -> None:
        config: dict[str, str | int | bool] = {
            "bootstrap.servers": servers,
            "group.id": "outbox-tests",
            "enable.auto.commit": False,
            "log_level": 0,
        }
        # Two clients: a question would wait behind a fetch that waits for records.
        self._asking, self._consumer = Consumer(config), Consumer(config)
        found = self._asking.list_topics(ev.WAGERS, timeout=10).topics[ev.WAGERS].partitions
        self._next = {one: self._end(one) for one in found}
        self._records: list[ev.Record] = []
        self._consumer.assign([TopicPartition(ev.WAGERS, *place) for place in self._next.items()])

    def _end(self, partition: int) -> int:
        place = TopicPartition(ev.WAGERS, partition)
        deadline = time.monotonic() + READ_SECONDS
        while True:
            try:
                return int(self._asking.get_watermark_offsets(place, timeout=5)[1])
            except KafkaException:  # a topic that was just made, a broker that was just started
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def read(self) -> list[ev.Record]:
        """Everything up to now, each partition in its order."""
        ends = {partition: self._end(partition) for partition in self._next}
        deadline = time.monotonic() + READ_SECONDS
        while any(self._next[partition] < end for partition, end in ends.items()):
            assert time.monotonic() < deadline
            for message in self._consumer.consume(1000, 0.2):
                if message.error() is None:
                    self._take(message)
        return list(self._records)

    def _take(self, message: Any) -> None:
        partition, offset = message.partition(), message.offset()
        key, value, headers = message.key(), message.value(), tuple(message.headers() or ())
        self._next[partition] = offset + 1
        self._records.append(ev.Record(ev.WAGERS, key, value, headers, partition, offset))

    def close(self) -> None:
        self._asking.close()
        self._consumer.close()


def mark(player: str) -> bytes:
    return TOMBSTONE_KEY + player.encode()


class Boards:
    """The platform's own fold over what came."""

    def __init__(self, records: list[ev.Record]) -> None:
        self.terms: dict[TournamentId, Terms | None] = {}
        self.standings: dict[TournamentId, Standings] = {}
        self.dispositions: Counter[object] = Counter()
        for record in records:
            self._apply(LogEntry(Offset(record.offset), 0, decode_kafka(record)))

    def _apply(self, entry: LogEntry) -> None:
        name = entry.event.tournament_id
        assert name is not None
        decision = decide(self.terms.get(name), entry)
        self.terms[name] = decision.terms
        verdict: object = decision.verdict
        if not isinstance(decision.verdict, Disposition) and decision.terms is not None:
            standings = self.standings.setdefault(name, Standings(name, mark))
            verdict = standings.apply(decision.terms.rules, entry, decision.verdict).verdict  # type: ignore[arg-type]
        self.dispositions[verdict] += 1

    def scores(self) -> dict[tuple[str, str], int]:
        return {
            (name, standing.player_id): standing.score.score
            for name, standings in self.standings.items()
            for standing in standings.page(0, 10_000)
        }


def first_seen(records: list[ev.Record]) -> list[ev.Event]:
    """Each event at its first place in the log."""
    seen = set()
    found = []
    for record in records:
        event = decode_kafka(record)
        if (event.source, event.id) not in seen:
            seen.add((event.source, event.id))
            found.append(event)
    return found


class RelayProcess:
    """The relay by its real entry, to be killed and started again."""

    def __init__(
        self,
        folder: Path,
        outbox: Outbox,
        servers: str,
        name: str,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.port = free_port()
        environ = {
            **os.environ,
            "DATABASE_URL": outbox.url,
            "KAFKA_BOOTSTRAP_SERVERS": servers,
            "RELAY_NAME": name,
            "RELAY_LEASE_SECONDS": "1",
            "HOST": LOOPBACK,
            "PORT": str(self.port),
            **(settings or {}),
        }
        argv = [sys.executable, "-m", "leaderboard.producer"]
        log_path = folder / f"{name}-{self.port}.log"
        self.process = Process(f"relay {name}", argv, log_path=log_path, environ=environ)

    def start(self) -> None:
        self.process.start()

    def kill(self) -> None:
        self.process.kill()

    def stop(self) -> int | None:
        self.process.stop()
        return self.process.exit_code()

    def log(self) -> str:
        return self.process.log_path.read_text(encoding="utf-8", errors="replace")


def run_relay(environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A relay that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "leaderboard.producer"],
        env={**os.environ, "HOST": LOOPBACK, "PORT": "0", **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
