"""A producer of events as a game platform has one: sends, and counts what was acknowledged."""

from __future__ import annotations

from confluent_kafka import KafkaError, Message, Producer

from leaderboard.codec import encode_kafka
from leaderboard.errors import TransientError
from leaderboard.events import Event, Record
from leaderboard.settings import KafkaSettings

FLUSH_SECONDS = 60.0


class Sender:
    """Sends in order for each key, idempotently; `send` blocks only when the queue is full."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._producer = Producer(
            {
                **settings.client_config(),
                # The Java client's partitioner: all producers must agree on a tournament's log.
                "partitioner": "murmur2_random",
                "enable.idempotence": True,
                "linger.ms": 5,
                "message.timeout.ms": int(FLUSH_SECONDS * 1000),
                "message.max.bytes": 4 * 1024 * 1024,
                "log_level": 2,  # what fails is raised; each attempt would be a line more
            }
        )
        self.sent = 0
        self.acknowledged = 0
        self.last_error: str | None = None

    def send(self, event: Event, topic: str) -> None:
        """Send an event in binary mode."""
        self.send_record(encode_kafka(event, topic))

    def send_record(self, record: Record) -> None:
        """Send a record as it is, whatever is in it."""
        while True:
            try:
                self._producer.produce(
                    record.topic,
                    record.value,
                    record.key,
                    headers=list(record.headers),
                    on_delivery=self._delivered,
                )
                break
            except BufferError:
                self._producer.poll(0.1)
        self.sent += 1
        self._producer.poll(0)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self.last_error = error.str()

    def poll(self) -> None:
        """Let acknowledgements in."""
        self._producer.poll(0)

    def flush(self, timeout_seconds: float = FLUSH_SECONDS) -> None:
        """Wait until all is acknowledged. Raises TransientError saying how many were not."""
        self._producer.flush(timeout_seconds)
        if self.acknowledged < self.sent:
            missing = self.sent - self.acknowledged
            reason = self.last_error or f"no answer in {timeout_seconds:g} s"
            raise TransientError(f"{missing} of {self.sent} were not acknowledged: {reason}")
