"""The local stack: real Kafka, Redis, nginx with Nchan, as processes; no containers needed."""

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
    redis_service,
)
from leaderboard.stack.nginx import NginxServer
from leaderboard.stack.servers import KafkaServer, redis_program
from leaderboard.stack.supervisor import Service
from leaderboard.stack.topics import LAPTOP_PARTITIONS, create_topics


class LocalBackbone:
    """Apache Kafka, redis-server, nginx + Nchan and the development issuer."""

    needless_ports: ClassVar[tuple[str, ...]] = ()

    def __init__(self, data: Path, logs: Path, ports: Mapping[str, int]) -> None:
        self._data, self._logs, self._ports = data, logs, ports
        self._partitions = _partitions(os.environ)
        self._kafka = KafkaServer(data / "kafka", port=ports["KAFKA_PORT"], heap="1g")
        self._kafka.process.log_path = logs / "kafka.log"
        self._nginx = NginxServer(
            data / "nginx",
            authorize_url=authorize_url(ports),
            public_port=ports["GATEWAY_PORT"],
            publish_port=ports["GATEWAY_PUBLISH_PORT"],
        )
        self._nginx.process.log_path = logs / "gateway.log"

    def services(self) -> list[Service]:
        kafka, nginx = self._kafka, self._nginx
        return [
            Service("KAFKA", kafka.process, kafka.launch, kafka.answers, STORES),
            redis_service(self._data, self._logs, self._ports["REDIS_PORT"], redis_program()),
            issuer_service(self._logs, self._ports["ISSUER_PORT"]),
            Service("GATEWAY", nginx.process, nginx.start, self._gateway_answers, EDGE),
        ]

    def _gateway_answers(self) -> bool:
        return answers_ok(f"{self._nginx.publish_url}/healthz")

    def prepare(self) -> None:
        create_topics(self._kafka.bootstrap_servers, self._partitions)

    def settings(self) -> dict[str, str]:
        return {
            "KAFKA_BOOTSTRAP_SERVERS": self._kafka.bootstrap_servers,
            # With the newer protocol the broker's 45 s would decide how long a killed member
            # keeps its partitions; with this one our own 6 s do.
            "KAFKA_GROUP_PROTOCOL": os.environ.get("KAFKA_GROUP_PROTOCOL") or "classic",
            "GATEWAY_KIND": "nchan",
            "GATEWAY_PUBLISH_URL": self._nginx.publish_url,
            "GATEWAY_CLIENT_URL": self._nginx.client_url,
        }

    def close(self) -> None:
        """Nothing is left: every server was a service."""


def _partitions(environ: Mapping[str, str]) -> int:
    text = environ.get("TOPIC_PARTITIONS") or str(LAPTOP_PARTITIONS)
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise SettingsError(f"TOPIC_PARTITIONS: {text!r} is no number from 1 to 1000")
    return int(text)
