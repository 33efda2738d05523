"""The embedded stack: Python packages only, for the first minute on a laptop.

Kafka is librdkafka's in-process cluster: 5 MiB a partition in memory, no transactions, gone with
the process. It shows the way of a wager; it proves nothing about durability.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from confluent_kafka import KafkaException, Producer

from leaderboard.stack.backbone import (
    EDGE,
    answers_ok,
    authorize_url,
    issuer_service,
    make_record,
    redis_service,
)
from leaderboard.stack.process import LOOPBACK, Process, StackError
from leaderboard.stack.servers import RedisServer, valkey_program
from leaderboard.stack.supervisor import Service
from leaderboard.stack.topics import topics

START_SECONDS: Final = 10.0


class InProcessKafka:
    """librdkafka's own cluster, in this process, for as long as this object is open."""

    def __init__(self) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": "in-process",
                "test.mock.num.brokers": 1,
                # It announces every closed connection; nobody needs to read that.
                "log_level": 3,
            }
        )
        try:
            brokers = self._producer.list_topics(timeout=START_SECONDS).brokers
        except KafkaException as error:
            raise StackError(f"librdkafka's in-process cluster does not start: {error}") from None
        self.bootstrap_servers = ",".join(f"{b.host}:{b.port}" for b in brokers.values())

    def create_topics(self) -> None:
        """It knows no requests for topics; being asked about one makes it, with 4 partitions."""
        for topic in topics():
            self._producer.list_topics(topic.name, timeout=START_SECONDS)

    def close(self) -> None:
        """End the cluster; what it kept is gone."""
        del self._producer


class EmbeddedBackbone:
    """In-process Kafka, Valkey or Redis, SQLite, the development gateway and issuer."""

    needless_ports: ClassVar[tuple[str, ...]] = ("KAFKA_PORT", "POSTGRES_PORT")

    def __init__(self, data: Path, logs: Path, ports: Mapping[str, int]) -> None:
        self._data, self._logs, self._ports = data, logs, ports
        self._redis = RedisServer(
            data / "redis",
            port=ports["REDIS_PORT"],
            program=valkey_program(),
            # A killed one comes back with its boards.
            append_only=True,
        )
        self._kafka = InProcessKafka()

    def services(self) -> list[Service]:
        return [
            redis_service(self._redis, self._logs),
            issuer_service(self._logs, self._ports["ISSUER_PORT"]),
            self._gateway(),
        ]

    def _gateway(self) -> Service:
        environ = {
            **os.environ,
            "GATEWAY_PORT": str(self._ports["GATEWAY_PORT"]),
            "GATEWAY_PUBLISH_PORT": str(self._ports["GATEWAY_PUBLISH_PORT"]),
            "AUTHORIZE_URL": authorize_url(self._ports),
        }
        argv = [sys.executable, "-m", "leaderboard.stack.gateway"]
        process = Process("gateway", argv, log_path=self._logs / "gateway.log", environ=environ)
        health = f"{self._publish_url()}/healthz"
        return Service("GATEWAY", process, process.start, lambda: answers_ok(health), EDGE)

    def _publish_url(self) -> str:
        return f"http://{LOOPBACK}:{self._ports['GATEWAY_PUBLISH_PORT']}"

    def prepare(self) -> None:
        self._kafka.create_topics()
        make_record(self.settings()["DATABASE_URL"])

    def settings(self) -> dict[str, str]:
        return {
            "KAFKA_BOOTSTRAP_SERVERS": self._kafka.bootstrap_servers,
            # Here a second classic member waits for seconds, one of the newer protocol does not.
            "KAFKA_GROUP_PROTOCOL": os.environ.get("KAFKA_GROUP_PROTOCOL") or "consumer",
            "REDIS_URL": self._redis.url,
            "DATABASE_URL": f"sqlite:///{self._data.absolute() / 'record.sqlite'}",
            "GATEWAY_KIND": "development",
            "GATEWAY_PUBLISH_URL": self._publish_url(),
            "GATEWAY_CLIENT_URL": f"ws://{LOOPBACK}:{self._ports['GATEWAY_PORT']}/connect",
        }

    def close(self) -> None:
        self._kafka.close()
