"""The relay as a process: settings, database, health server, signals.

`python -m leaderboard.producer` needs no more than the extra `producer`; `leaderboard relay` is
the same with the command line's other comforts.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from leaderboard import telemetry
from leaderboard.hosts.health import HealthServer
from leaderboard.producer.lanes import Lanes
from leaderboard.producer.relay import Relay
from leaderboard.producer.sending import GaplessProducer
from leaderboard.settings import DatabaseSettings, KafkaSettings, RelaySettings, load

CONNECT_SECONDS = 5


def database(settings: DatabaseSettings) -> sa.Engine:
    """An engine as the relay wants it: it never hangs on a dead link, commits are on disk."""
    url = sa.make_url(settings.url)
    name = url.get_backend_name()
    arguments: dict[str, Any] = {"timeout": CONNECT_SECONDS}
    if name == "postgresql":
        arguments = {
            "connect_timeout": CONNECT_SECONDS,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
        }
    # Each statement sees what is committed by then; SQLite has one level only.
    level = {} if name == "sqlite" else {"isolation_level": "READ COMMITTED"}
    engine = sa.create_engine(
        url, connect_args=arguments, pool_pre_ping=True, hide_parameters=True, **level
    )
    if name == "postgresql":
        sa.event.listen(engine, "connect", _careful_session)
    elif name == "sqlite":
        sa.event.listen(engine, "connect", _transactions_by_hand)
        sa.event.listen(engine, "begin", _begin_immediate)
    return engine


def run(environ: Mapping[str, str], name: str | None = None) -> None:
    """Relay until SIGTERM or SIGINT. Raises SettingsError, RelayNameTakenError."""
    settings = load(RelaySettings, environ)
    engine = database(load(DatabaseSettings, environ))
    lanes = Lanes(
        engine,
        name or settings.name or socket.gethostname(),
        lease_ms=settings.lease_seconds * 1000,
        batch_size=settings.batch_size,
        keep_ms=settings.keep_seconds * 1000,
        numbered=settings.numbers == "on",
    )
    producer = GaplessProducer(load(KafkaSettings, environ))
    relay = Relay(engine, lanes, producer, settings.lease_seconds * 1000)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: relay.stop())
    health = HealthServer(
        "relay",
        (settings.host, settings.port),
        relay.is_alive,
        {"database": relay.check_database, "kafka": producer.check},
    )
    telemetry.log_json()
    health.start()
    try:
        relay.run()
    finally:
        health.stop()
        engine.dispose()


def _careful_session(connection: Any, _: object) -> None:
    with connection.cursor() as cursor:
        # A number that Kafka has must not be forgotten by the database, whatever its default is.
        cursor.execute("SET synchronous_commit TO on")
        # Of a relay whose machine is gone without a word, the locks must not stay for hours.
        cursor.execute("SET idle_in_transaction_session_timeout TO '10s'")
        cursor.execute("SET statement_timeout TO '30s'")
    connection.commit()


def _transactions_by_hand(connection: Any, _: object) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous = FULL")


def _begin_immediate(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later could find that another one wrote.
    reads = connection.get_execution_options().get("reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
