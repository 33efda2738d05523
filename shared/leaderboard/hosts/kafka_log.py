"""What a consumer has to know of the topic it reads, asked over connections of its own.

A question on the consumer's own connection waits behind its long poll, half a second each time.
"""

from __future__ import annotations

import threading
from typing import Final

from confluent_kafka import Consumer, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from leaderboard.errors import TransientError
from leaderboard.model import Offset
from leaderboard.settings import KafkaSettings

ASK_SECONDS: Final = 10.0
CHECK_SECONDS: Final = 2.0
IN_PROCESS_CLUSTER: Final = "mockCluster"
"""How librdkafka's own cluster (of the embedded stack) names itself. It describes no topics."""


class TopicLog:
    """One topic, from the outside. Every call may raise TransientError. Connects on first use."""

    def __init__(self, topic: str, settings: KafkaSettings) -> None:
        self._topic = topic
        self._settings = settings
        self._log_id: str | None = None
        self._making = threading.Lock()
        self._made: Consumer | None = None

    @property
    def _client(self) -> Consumer:
        """Never subscribes, never joins: it only asks, also for the probes' threads."""
        with self._making:
            if self._made is None:
                self._made = Consumer({**self._settings.client_config(), "group.id": "asks-only"})
            return self._made

    def log_id(self) -> str:
        """The topic with its own id: one made anew is another log. Remembered."""
        if self._log_id is None:
            self._log_id = self._ask_log_id()
        return self._log_id

    def ask_anew(self) -> None:
        """Forget the topic's id: with partitions that are handed out it may be another topic."""
        self._log_id = None

    def _ask_log_id(self) -> str:
        admin = AdminClient(self._settings.client_config())
        try:
            cluster_id = admin.list_topics(self._topic, timeout=ASK_SECONDS).cluster_id
            if (cluster_id or "").startswith(IN_PROCESS_CLUSTER):
                return f"{self._topic}/-"
            collection = TopicCollection([self._topic])
            described = admin.describe_topics(collection, request_timeout=ASK_SECONDS)
            return f"{self._topic}/{described[self._topic].result().topic_id}"
        except KafkaException as error:
            raise TransientError(f"Kafka did not describe the topic: {error}") from None

    def partitions(self) -> int:
        """How many partitions the topic has."""
        return self._count(ASK_SECONDS)

    def low(self, partition: int) -> Offset:
        """The oldest offset that the log still holds."""
        place = TopicPartition(self._topic, partition)
        try:
            return Offset(self._client.get_watermark_offsets(place, timeout=ASK_SECONDS)[0])
        except KafkaException as error:
            raise TransientError(f"Kafka did not tell where the log starts: {error}") from None

    def check(self) -> None:
        """Raises TransientError unless a broker answers and the topic exists."""
        self._count(CHECK_SECONDS)

    def close(self) -> None:
        with self._making:
            if self._made is not None:
                self._made.close()

    def _count(self, seconds: float) -> int:
        try:
            found = self._client.list_topics(self._topic, timeout=seconds).topics[self._topic]
        except KafkaException as error:
            raise TransientError(f"Kafka is away: {error}") from None
        if found.error is not None:
            raise TransientError(f"{self._topic}: {found.error}")
        return len(found.partitions)
