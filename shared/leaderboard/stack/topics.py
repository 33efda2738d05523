"""The topics of the platform, in one place: partitions, how long they keep, how big a record is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # not in its stubs

from leaderboard import events as ev
from leaderboard.stack.process import StackError

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""A payload of 2 MiB has to get in, to be refused into its dead-letter topic, with headers."""
PRODUCTION_PARTITIONS: Final = 50
PRODUCTION_REPLICAS: Final = 3
PRODUCTION_IN_SYNC: Final = 2
"""One broker may be away, and what was acknowledged still lies on two disks."""
LAPTOP_PARTITIONS: Final = 10
"""Divides 50, so what holds for ten partitions is not an accident of an odd number."""
DEAD_LETTER_PARTITIONS: Final = 1
DAY_MS: Final = 24 * 3600 * 1000

_DAYS_KEPT: Final[Mapping[str, int]] = {
    ev.WAGERS: 7,
    ev.POSITION_CHANGES: 7,
    ev.FRAUD_ALERTS: 7,
    ev.GDPR_EVENTS: 30,
    ev.CONNECTIONS: 30,
    ev.GAME_EVENTS: 7,
}
_DEAD_LETTER_DAYS: Final = 14
READ_BY_US: Final = (
    ev.WAGERS,
    ev.POSITION_CHANGES,
    ev.FRAUD_ALERTS,
    ev.GDPR_EVENTS,
    ev.CONNECTIONS,
    ev.GAME_EVENTS,
)
"""Topics whose events can be refused, and so have a dead-letter topic."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic as it has to be."""

    name: str
    partitions: int
    retention_ms: int

    def config(self, min_insync: int = 1) -> dict[str, str]:
        """`min_insync`: replicas that have to have a record before it counts as written."""
        return {
            "retention.ms": str(self.retention_ms),
            "max.message.bytes": str(MAX_MESSAGE_BYTES),
            "cleanup.policy": "delete",
            "min.insync.replicas": str(min_insync),
        }


def topics(partitions: int = PRODUCTION_PARTITIONS) -> list[Topic]:
    """All topics; `partitions` is that of the topics keyed by tournament."""
    live = [Topic(name, partitions, _DAYS_KEPT[name] * DAY_MS) for name in ev.TOPICS]
    dead = [
        Topic(ev.dead_letter_topic(name), DEAD_LETTER_PARTITIONS, _DEAD_LETTER_DAYS * DAY_MS)
        for name in READ_BY_US
    ]
    return live + dead


def create_topics(
    bootstrap_servers: str, partitions: int = LAPTOP_PARTITIONS, timeout_seconds: float = 30
) -> None:
    """Create what is missing and wait until the broker shows it. Raises StackError."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    wanted = [
        NewTopic(topic.name, topic.partitions, replication_factor=1, config=topic.config())
        for topic in topics(partitions)
    ]
    for name, future in admin.create_topics(wanted).items():
        try:
            future.result(timeout_seconds)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise StackError(f"topic {name} can't be created: {error}") from None
    deadline = time.monotonic() + timeout_seconds
    while not {topic.topic for topic in wanted} <= admin.list_topics(timeout=5).topics.keys():
        if time.monotonic() > deadline:
            raise StackError("the broker does not show its new topics")
        time.sleep(0.05)
