"""Publishing to Kafka: every send waits until all replicas in sync have acknowledged it.

One idempotent producer, the Java client's partitioner (murmur2), so that a tournament lies in the
same partition whoever writes. Deliveries report only their failures: a flush that ends with
nothing left and no failure has delivered everything, and costs no callback a record.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from leaderboard import telemetry
from leaderboard.codec import JSON_TYPE, encode_kafka
from leaderboard.errors import TransientError
from leaderboard.events import (
    POSITION_CHANGES,
    PositionChanged,
    Record,
    format_time_ms,
    type_of,
)
from leaderboard.model import Offset, PositionChange
from leaderboard.ports import Outgoing
from leaderboard.settings import KafkaSettings

MAX_RECORD_BYTES: Final = 4 * 1024 * 1024
"""As big as a topic takes: a dead letter carries its event whole, with more headers."""
POSITION_SOURCE: Final = "/leaderboard/on-wager"
_FIXED_HEADERS: Final = (
    ("ce_specversion", b"1.0"),
    ("ce_source", POSITION_SOURCE.encode()),
    ("ce_type", type_of(PositionChanged).encode()),
    ("content-type", JSON_TYPE.encode()),
)


class KafkaFeed:
    """`ports.Feed` over confluent-kafka. Connects on first use.

    `timeout_seconds` bounds one publish; what is not acknowledged by then raises
    TransientError."""

    def __init__(self, settings: KafkaSettings, timeout_seconds: float = 30) -> None:
        self._settings = settings
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._reporting: Producer | None = None
        self._silent: Producer | None = None
        self._failures: list[str] = []

    def publish(self, outgoing: Sequence[Outgoing]) -> Mapping[int, Offset]:
        """As the port says. Safe for several threads."""
        if not outgoing:
            return {}
        pending = _Pending(len(outgoing))
        producer = self._reporting_producer()
        try:
            for index, one in enumerate(outgoing):
                record = encode_kafka(one.event, one.topic)
                producer.produce(
                    record.topic,
                    value=record.value,
                    key=record.key,
                    headers=list(record.headers),
                    on_delivery=partial(pending.delivered, index),
                )
        except (BufferError, KafkaException) as error:
            raise TransientError(f"Kafka takes nothing: {error}") from None
        if not pending.done.wait(self._timeout_seconds):
            raise TransientError("Kafka did not acknowledge in time")
        if pending.failures:
            raise TransientError(f"Kafka did not take an event: {pending.failures[0]}")
        return pending.offsets

    def publish_changes(self, changes: Sequence[PositionChange]) -> None:
        """As the port says. For one thread at a time, like `send`."""
        self.send(map(change_record, changes))
        telemetry.POSITION_CHANGES.labels("on-wager").inc(len(changes))

    def send(self, records: Iterable[Record]) -> None:
        """Send records as they are, in order; raises TransientError unless all were taken.

        For one thread at a time."""
        producer = self._silent_producer()
        self._failures.clear()
        try:
            for record in records:
                self._produce(producer, record)
        except KafkaException as error:
            raise TransientError(f"Kafka takes nothing: {error}") from None
        if producer.flush(self._timeout_seconds + 1) > 0:
            raise TransientError("Kafka did not acknowledge in time")
        if self._failures:
            count = len(self._failures)
            raise TransientError(f"Kafka did not take {count} records: {self._failures[0]}")

    def check(self) -> None:
        """Raises TransientError when no broker answers within two seconds."""
        try:
            self._reporting_producer().list_topics(timeout=2)
        except KafkaException as error:
            raise TransientError(f"Kafka is away: {error}") from None

    def _produce(self, producer: Producer, record: Record) -> None:
        while True:
            try:
                producer.produce(
                    record.topic,
                    value=record.value,
                    key=record.key,
                    headers=list(record.headers),
                )
                return
            except BufferError:
                # The local queue is full: let it drain, so that the order stays.
                producer.poll(0.1)

    def _reporting_producer(self) -> Producer:
        """Tells each delivery; a thread of its own serves the reports."""
        with self._lock:
            if self._reporting is None:
                self._reporting = Producer(self._config())
                threading.Thread(
                    target=_serve, args=(self._reporting,), name="deliveries", daemon=True
                ).start()
            return self._reporting

    def _silent_producer(self) -> Producer:
        """Tells failures only: a flush without any has delivered everything."""
        with self._lock:
            if self._silent is None:
                self._silent = Producer(
                    {
                        **self._config(),
                        "delivery.report.only.error": True,
                        "on_delivery": self._failed,
                        "queue.buffering.max.messages": 200_000,
                    }
                )
            return self._silent

    def _failed(self, error: KafkaError | None, message: object) -> None:
        if error is not None:
            self._failures.append(error.str())

    def _config(self) -> dict[str, Any]:
        return {
            **self._settings.client_config(),
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "linger.ms": 1,
            "message.max.bytes": MAX_RECORD_BYTES,
            "message.timeout.ms": int(self._timeout_seconds * 1000),
        }


class _Pending:
    """The deliveries of one publish, counted down by the thread that serves them."""

    def __init__(self, count: int) -> None:
        self.offsets: dict[int, Offset] = {}
        self.failures: list[str] = []
        self.done = threading.Event()
        self._remaining = count

    def delivered(self, index: int, error: KafkaError | None, message: Any) -> None:
        if error is None:
            self.offsets[index] = Offset(message.offset())
        else:
            self.failures.append(error.str())
        self._remaining -= 1
        if self._remaining == 0:
            self.done.set()


def _serve(producer: Producer) -> None:
    while True:
        producer.poll(1.0)


def change_record(change: PositionChange) -> Record:
    """The record of a position change, written by hand: it is most of what we publish.

    Equal to what the codec writes for the same event (a test compares them). Ids need no
    escaping; what a producer chose does."""
    key = change.tournament_id.encode()
    sub = "" if change.score.subscore == 0 else f'"subscore":{change.score.subscore},'
    value = (
        f'{{"tournament_id":"{change.tournament_id}","player_id":"{change.player_id}",'
        f'"sequence":{change.sequence},"old_rank":{_or_null(change.old_rank)},'
        f'"new_rank":{_or_null(change.new_rank)},"score":{change.score.score},{sub}'
        f'"distance":{_or_null(change.distance)},"cause":{{"source":'
        f'{_quoted(change.cause.source)},"id":{_quoted(change.cause.id)}}}}}'
    )
    headers: list[tuple[str, bytes | None]] = [
        *_FIXED_HEADERS,
        ("ce_id", f"{change.tournament_id}/{change.sequence}".encode()),
        ("ce_time", format_time_ms(change.time_ms).encode()),
        ("ce_subject", change.player_id.encode()),
        ("ce_partitionkey", key),
    ]
    if change.traceparent is not None:
        headers.append(("ce_traceparent", change.traceparent.encode()))
    return Record(POSITION_CHANGES, key, value.encode(), tuple(headers))


_quoted = json.JSONEncoder(ensure_ascii=False).encode


def _or_null(number: int | None) -> str:
    return "null" if number is None else str(number)
