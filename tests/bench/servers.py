"""Servers and processes for one measurement; all that was started is stopped."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis

import leaderboard
from audit_logs import settings_in
from leaderboard.adapters import sql_migrations
from leaderboard.settings import DatabaseSettings, load
from leaderboard.stack.postgres import PostgresServer
from leaderboard.stack.process import LOOPBACK, Process, free_port
from leaderboard.stack.servers import KafkaServer, RedisServer, redis_program
from leaderboard.stack.topics import create_topics
from logs import TOMBSTONE_KEY

ROOT = Path(leaderboard.__file__).resolve().parents[2]
"""Whose functions are measured: `make bench-compare` imports another commit's package."""


@dataclass(frozen=True)
class Servers:
    """Where they are, and what a function needs to know of them."""

    folder: Path
    redis: RedisServer
    kafka: KafkaServer
    database: str
    """A DATABASE_URL with the record's tables."""
    postgres: PostgresServer | None

    @property
    def settings(self) -> dict[str, str]:
        return {
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "REDIS_URL": self.redis.url,
            "DATABASE_URL": self.database,
            "TOMBSTONE_KEY": TOMBSTONE_KEY.decode(),
            "HOST": LOOPBACK,
            **settings_in(self.folder / "audit-log"),
        }

    def client(self) -> Redis:
        return Redis.from_url(self.redis.url)

    @contextmanager
    def function(
        self, name: str, settings: Mapping[str, str] | None = None, label: str = ""
    ) -> Iterator[Process]:
        """One process of a function that reads Kafka."""
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "shared"),
            **self.settings,
            "PORT": str(free_port()),
            **(settings or {}),
        }
        argv = [sys.executable, str(ROOT / "functions" / name / "main.py")]
        log_path = self.folder / f"{name}{label}.log"
        process = Process(name, argv, log_path=log_path, environ=environ)
        process.start()
        try:
            yield process
        finally:
            process.stop()


@contextmanager
def servers(partitions: int = 1, *, postgres: bool = False) -> Iterator[Servers]:
    """Fresh and empty. The record's database is SQLite's, unless it is what is measured."""
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        redis_server = RedisServer(folder / "redis", program=redis_program())
        redis_server.start()
        running.callback(redis_server.stop)
        kafka = KafkaServer(folder / "kafka", heap="1g")
        kafka.start()
        running.callback(kafka.stop)
        create_topics(kafka.bootstrap_servers, partitions)
        server = None
        raw = f"sqlite:///{folder / 'record.db'}"
        if postgres:
            server = PostgresServer(folder / "postgres")
            server.start()
            running.callback(server.stop)
            raw = server.url
        url = load(DatabaseSettings, {"DATABASE_URL": raw}).url
        sql_migrations.upgrade(url)
        yield Servers(folder, redis_server, kafka, raw, server)
