"""What a consumer has to know of the topics it reads, asked over connections of its own.

A question on the consumer's own connection waits behind its long poll, half a second each time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from leaderboard.errors import TransientError
from leaderboard.events import Record
from leaderboard.model import Offset, Place
from leaderboard.settings import KafkaSettings

ASK_SECONDS: Final = 10.0
CHECK_SECONDS: Final = 2.0
LOOK_BACK_KIB: Final = 4096
SILENT: Final = {"log_level": 2}
"""Of clients that only ask: what fails is raised, and the lines would be no JSON."""
ASKING_GROUP: Final = "asks-only"
"""Never joined, and nothing is committed to it: a client has to name one."""
UNREADABLE_HEADERS: Final = (("x-unreadable-headers", b"a header's name is not UTF-8"),)
"""In the place of headers that the client library can't hand over."""
IN_PROCESS_CLUSTER: Final = "mockCluster"
"""How librdkafka's own cluster (of the embedded stack) names itself. It describes no topics."""


class TopicLogs:
    """Some topics, from the outside. Every call may raise TransientError. Connects on first use."""

    def __init__(self, topics: Sequence[str], settings: KafkaSettings) -> None:
        self._topics = list(topics)
        self._settings = settings
        self._log_ids: dict[str, str] = {}
        self._making = threading.Lock()
        self._made: Consumer | None = None

    @property
    def _client(self) -> Consumer:
        """Never subscribes, never joins: it only asks, also for the probes' threads."""
        with self._making:
            if self._made is None:
                config = {**self._settings.client_config(), **SILENT}
                self._made = Consumer({**config, "group.id": ASKING_GROUP})
            return self._made

    def log_id(self, place: Place) -> str:
        """Topic, the topic's own id (one made anew is another log) and partition. Remembered."""
        if place.topic not in self._log_ids:
            self._log_ids[place.topic] = self._ask_log_id(place.topic)
        return f"{self._log_ids[place.topic]}/{place.partition}"

    def ask_anew(self) -> None:
        """Forget the topics' ids: with partitions that are handed out they may be other topics."""
        self._log_ids.clear()

    def _ask_log_id(self, topic: str) -> str:
        try:
            admin = AdminClient({**self._settings.client_config(), **SILENT})
            cluster_id = admin.list_topics(topic, timeout=ASK_SECONDS).cluster_id
            if (cluster_id or "").startswith(IN_PROCESS_CLUSTER):
                return f"{topic}/-"
            described = admin.describe_topics(TopicCollection([topic]), request_timeout=ASK_SECONDS)
            return f"{topic}/{described[topic].result().topic_id}"
        except KafkaException as error:
            raise TransientError(f"Kafka did not describe the topic: {error}") from None

    def partitions(self, topic: str) -> int:
        """How many partitions the topic has."""
        return self._count(topic, ASK_SECONDS)

    def low(self, place: Place) -> Offset:
        """The oldest offset that the log still holds."""
        return self.span(place)[0]

    def span(self, place: Place) -> tuple[Offset, Offset]:
        """The oldest offset that the log still holds, and the one that its next record gets."""
        asked = TopicPartition(*place)
        try:
            low, end = self._client.get_watermark_offsets(asked, timeout=ASK_SECONDS)
        except KafkaException as error:
            raise TransientError(f"Kafka did not tell where the log starts: {error}") from None
        return Offset(low), Offset(end)

    def before(self, place: Place, end: Offset, count: int) -> Iterator[Record]:
        """The last records before `end`, in order: those of the `count` offsets before it that
        the log still holds. Costs a connection."""
        start = max(self.low(place), end - count)
        if start >= end:
            return
        config = {
            **self._settings.client_config(),
            **SILENT,
            "group.id": ASKING_GROUP,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "queued.max.messages.kbytes": LOOK_BACK_KIB,
        }
        try:
            reader = Consumer(config)
        except KafkaException as told:
            raise TransientError(f"Kafka: no client can be made: {told.args[0].str()}") from None
        try:
            reader.assign([TopicPartition(*place, start)])
            while (message := reader.poll(ASK_SECONDS)) is not None:
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise TransientError(f"Kafka did not tell what came before: {error}")
                if error is not None or (message.offset() or 0) >= end:
                    return
                yield record_of(message, *place)
                if (message.offset() or 0) + 1 >= end:
                    return
            raise TransientError(f"Kafka did not tell what came before in {ASK_SECONDS:g} s")
        except KafkaException as error:
            raise TransientError(f"Kafka did not tell what came before: {error}") from None
        finally:
            reader.close()

    def check(self) -> None:
        """Raises TransientError unless a broker answers and every topic exists, in two seconds."""
        until = time.monotonic() + CHECK_SECONDS
        for topic in self._topics:
            self._count(topic, max(until - time.monotonic(), 0.01))

    def close(self) -> None:
        with self._making:
            if self._made is not None:
                self._made.close()

    def _count(self, topic: str, seconds: float) -> int:
        try:
            found = self._client.list_topics(topic, timeout=seconds).topics[topic]
        except KafkaException as error:
            told = f"Kafka is away: {error.args[0].str()}"
            raise TransientError(f"{told} ({self._settings.bootstrap_servers})") from None
        if found.error is not None:
            raise TransientError(f"{topic}: {found.error}")
        return len(found.partitions)


def record_of(message: Message, topic: str, partition: int) -> Record:
    """A message of this partition as the record that it is.

    Kafka takes any bytes for a header's name, the client library only UTF-8. Such a record would
    stop every consumer for ever: its headers are left out, so it is no event, and is refused."""
    headers: Any
    try:
        headers = message.headers() or ()
    except (SystemError, UnicodeDecodeError):
        headers = UNREADABLE_HEADERS
    return Record(
        topic,
        message.key(),
        message.value(),
        tuple(headers),
        partition,
        message.offset() or 0,
        message.timestamp()[1],
    )
