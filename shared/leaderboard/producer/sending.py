"""The relay's producer: what is sent arrives in order, without a gap, or the rest is not sent."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from leaderboard.errors import TransientError
from leaderboard.producer.lanes import Batch
from leaderboard.settings import KafkaSettings

WAIT_SECONDS: Final = 0.25
POLL_SECONDS: Final = 0.002
MAX_RECORD_BYTES: Final = 1024 * 1024
"""An event is 32 KiB at most, with attributes of 20 KiB."""


class GaplessProducer:
    """Idempotent, acknowledged by all replicas in sync, murmur2 like the Java client.

    No record grows too old by itself, and a record that can't be delivered stops the producer
    (`enable.gapless.guarantee`): otherwise the one after it could arrive alone, with a higher
    number, and the board would take the first for a duplicate when it came again. While
    brokers are away the client waits and tries again, with a bounded back-off of its own."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._config: dict[str, Any] = {
            **settings.client_config(),
            "enable.idempotence": True,
            "enable.gapless.guarantee": True,
            "acks": "all",
            "partitioner": "murmur2_random",
            "message.timeout.ms": 0,
            "linger.ms": 1,
            "message.max.bytes": MAX_RECORD_BYTES,
            "queue.buffering.max.messages": 200_000,
            "reconnect.backoff.max.ms": 1000,
            "topic.metadata.refresh.interval.ms": 30_000,
            "delivery.report.only.error": True,
            # Each attempt to reach a broker that is away would be a line; the relay tells it once.
            "log_level": 2,
        }
        self._producer: Producer | None = None
        self._failed: dict[int, str] = {}
        self._checking = threading.Lock()
        self._asking: Producer | None = None

    def send(self, batches: Sequence[Batch], go_on: Callable[[], bool]) -> dict[int, str]:
        """Send and wait until all is acknowledged; the lanes that are not, with the reason.

        Asks `go_on` every quarter of a second; when that says no, what has not been sent never
        will be. For one thread."""
        self._failed = {}
        if self._producer is None:
            self._producer = Producer(self._config)
        producer = self._producer
        lanes = [batch.lane for batch in batches]
        try:
            for batch in batches:
                report = partial(self._delivered, batch.lane)
                for record in batch.records:
                    while not self._produced(producer, record, report):
                        if not go_on():
                            return self._abandon(lanes, "stopped")
            while not _is_empty(producer, WAIT_SECONDS):
                if not go_on():
                    return self._abandon(lanes, "stopped")
        except KafkaException as error:
            return self._abandon(lanes, error.args[0].str())
        # All has been told: what was not reported as failed is acknowledged.
        return self._abandon([], "") if self._failed else {}

    def check(self) -> None:
        """Raises TransientError when no broker answers within two seconds."""
        try:
            with self._checking:
                if self._asking is None:
                    self._asking = Producer({**self._config, "log_level": 0})
                self._asking.list_topics(timeout=2)
        except KafkaException as error:
            raise TransientError(f"Kafka is away: {error.args[0].str()}") from None

    def close(self) -> None:
        """Let go of the brokers; what was not acknowledged may or may not arrive."""
        self._abandon([], "")

    def _produced(self, producer: Producer, record: Any, report: Any) -> bool:
        try:
            producer.produce(
                record.topic,
                record.value,
                record.key,
                headers=list(record.headers),
                on_delivery=report,
            )
        except BufferError:
            producer.poll(WAIT_SECONDS)
            return False
        return True

    def _delivered(self, lane: int, error: KafkaError | None, message: object) -> None:
        if error is not None:
            self._failed.setdefault(lane, error.str())

    def _abandon(self, lanes: Iterable[int], reason: str) -> dict[int, str]:
        """Nothing of what this producer holds may follow what the next one sends."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge(in_queue=True, in_flight=True)
            with contextlib.suppress(KafkaException):
                _is_empty(producer, 1)
        failed = dict.fromkeys(lanes, reason) | self._failed
        self._failed = {}
        return failed


def _is_empty(producer: Producer, seconds: float) -> bool:
    """Wait that long at most until everything is acknowledged or failed. Raises KafkaException
    when the producer has stopped for good.

    Not by its `flush`: that goes on calling back after such an error, which Python can't bear."""
    deadline = time.monotonic() + seconds
    while len(producer) > 0:
        if time.monotonic() > deadline:
            return False
        # Success wakes nobody: only failures are reported.
        producer.poll(POLL_SECONDS)
    return True
