"""The local stack: real Kafka, Redis, PostgreSQL, nginx with Nchan, as processes; no containers
needed. Redis is one server or a cluster of three primaries with a replica each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from leaderboard.errors import SettingsError
from leaderboard.stack.backbone import (
    EDGE,
    STORES,
    answers_ok,
    authorize_url,
    issuer_service,
    make_record,
    redis_service,
)
from leaderboard.stack.nginx import NginxServer
from leaderboard.stack.postgres import PostgresServer
from leaderboard.stack.process import LOOPBACK
from leaderboard.stack.redis_cluster import RedisCluster
from leaderboard.stack.servers import KafkaServer, RedisServer, redis_program
from leaderboard.stack.supervisor import Service
from leaderboard.stack.topics import LAPTOP_PARTITIONS, create_topics


class LocalBackbone:
    """Apache Kafka, redis-server, PostgreSQL, nginx + Nchan and the development issuer."""

    needless_ports: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, data: Path, logs: Path, ports: Mapping[str, int], *, redis_cluster: bool = False
    ) -> None:
        self._logs, self._ports = logs, ports
        self._partitions = _partitions(os.environ)
        self._kafka = KafkaServer(
            data / "kafka", port=ports["KAFKA_PORT"], heap="1g", link=_link(os.environ)
        )
        self._kafka.process.log_path = logs / "kafka.log"
        self._redis = _redis(data / "redis", ports["REDIS_PORT"], redis_cluster)
        self._postgres = PostgresServer(data / "postgres", port=ports["POSTGRES_PORT"])
        self._postgres.process.log_path = logs / "postgres.log"
        self._nginx = NginxServer(
            data / "nginx",
            authorize_url=authorize_url(ports),
            query_url=f"http://{LOOPBACK}:{ports['QUERY_PORT']}",
            public_port=ports["GATEWAY_PORT"],
            publish_port=ports["GATEWAY_PUBLISH_PORT"],
        )
        self._nginx.process.log_path = logs / "gateway.log"

    def services(self) -> list[Service]:
        kafka, nginx, postgres = self._kafka, self._nginx, self._postgres
        return [
            Service("KAFKA", kafka.process, kafka.launch, kafka.answers, STORES),
            *self._redis_services(),
            Service("POSTGRES", postgres.process, postgres.launch, postgres.answers, STORES),
            issuer_service(self._logs, self._ports["ISSUER_PORT"]),
            Service("GATEWAY", nginx.process, nginx.start, self._gateway_answers, EDGE),
        ]

    def _redis_services(self) -> list[Service]:
        if isinstance(self._redis, RedisServer):
            return [redis_service(self._redis, self._logs)]
        return [
            redis_service(node, self._logs, f"REDIS_{number}")
            for number, node in enumerate(self._redis.nodes, start=1)
        ]

    def _gateway_answers(self) -> bool:
        return answers_ok(f"{self._nginx.publish_url}/healthz")

    def prepare(self) -> None:
        if isinstance(self._redis, RedisCluster):
            self._redis.form()
        create_topics(self._kafka.bootstrap_servers, self._partitions)
        make_record(self.settings()["DATABASE_URL"])

    def settings(self) -> dict[str, str]:
        return {
            "KAFKA_BOOTSTRAP_SERVERS": self._kafka.bootstrap_servers,
            # With the newer protocol the broker's 45 s would decide how long a killed member
            # keeps its partitions; with this one our own 6 s do.
            "KAFKA_GROUP_PROTOCOL": os.environ.get("KAFKA_GROUP_PROTOCOL") or "classic",
            "REDIS_URL": self._redis.url,
            "DATABASE_URL": self._postgres.url,
            "GATEWAY_KIND": "nchan",
            "GATEWAY_PUBLISH_URL": self._nginx.publish_url,
            "GATEWAY_CLIENT_URL": self._nginx.client_url,
        }

    def close(self) -> None:
        """Nothing is left: every server was a service."""


def _redis(folder: Path, port: int, cluster: bool) -> RedisServer | RedisCluster:
    """With append-only files, so that a killed one comes back with its boards."""
    program = redis_program()
    if cluster:
        return RedisCluster(folder, program=program, first_port=port, append_only=True)
    return RedisServer(folder, port=port, program=program, append_only=True)


def _partitions(environ: Mapping[str, str]) -> int:
    text = environ.get("TOPIC_PARTITIONS") or str(LAPTOP_PARTITIONS)
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise SettingsError(f"TOPIC_PARTITIONS: {text!r} is no number from 1 to 1000")
    return int(text)


def _link(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """KAFKA_LINK, `port:advertised port`: see `KafkaServer`."""
    text = environ.get("KAFKA_LINK")
    if not text:
        return None
    listens, _, advertised = text.partition(":")
    if not (listens.isdecimal() and advertised.isdecimal()):
        raise SettingsError(f"KAFKA_LINK: {text!r} is not of the form 19092:19093")
    return int(listens), int(advertised)
