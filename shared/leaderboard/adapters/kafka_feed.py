"""Publishing to Kafka: every send waits until all replicas in sync have acknowledged it.

One idempotent producer, the Java client's partitioner (murmur2), so that a tournament lies in the
same partition whoever writes. Deliveries report only their failures: a flush that ends with
nothing left and no failure has delivered everything, and costs no callback a record.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from json.encoder import encode_basestring
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException, Producer

from leaderboard import telemetry
from leaderboard.codec import JSON_TYPE, encode_kafka
from leaderboard.errors import TransientError
from leaderboard.events import (
    FRAUD_ALERTS,
    POSITION_CHANGES,
    POSITION_SOURCE,
    Event,
    PositionChanged,
    Record,
    format_time_ms,
    type_of,
)
from leaderboard.model import Offset, PositionChange
from leaderboard.ports import Outgoing
from leaderboard.settings import KafkaSettings

T = TypeVar("T")
Headers = list[tuple[str, str | bytes | None]]
Parts = tuple[str, bytes | None, bytes | None, Headers]
MAX_RECORD_BYTES: Final = 4 * 1024 * 1024
"""As big as a topic takes: a dead letter carries its event whole, with more headers."""
_FIXED_HEADERS: Final = (
    ("ce_specversion", b"1.0"),
    ("ce_source", POSITION_SOURCE.encode()),
    ("ce_type", type_of(PositionChanged).encode()),
    ("content-type", JSON_TYPE.encode()),
)


class KafkaFeed:
    """`ports.Feed` over confluent-kafka. Connects on first use.

    `timeout_seconds` bounds one publish; what is not acknowledged by then raises
    TransientError. `linger_ms`: how long `publish` lets a record wait for those of other threads,
    which then share a request; who sends in batches has nothing to wait for."""

    def __init__(
        self, settings: KafkaSettings, timeout_seconds: float = 10, linger_ms: int = 1
    ) -> None:
        self._settings = settings
        self._linger_ms = linger_ms
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._reporting: _Reporting | None = None
        self._silent: Producer | None = None
        self._failures: list[str] = []
        self._begun = 0
        self._confirmed = 0
        self._given_up = 0
        """How often something was begun; up to where it is acknowledged, and given up."""

    def publish(self, outgoing: Sequence[Outgoing]) -> Mapping[int, Offset]:
        """As the port says. Safe for several threads. What could not even be sent to a broker is
        not sent after the error."""
        if not outgoing:
            return {}
        pending = _Pending(len(outgoing))
        reporting = self._reporting_producer()
        try:
            for index, one in enumerate(outgoing):
                topic, key, value, headers = _parts_of(encode_kafka(one.event, one.topic))
                on_delivery = partial(pending.delivered, index)
                reporting.producer.produce(
                    topic, value, key, headers=headers, on_delivery=on_delivery
                )
        except (BufferError, KafkaException) as error:
            self._drop_if_broken(reporting, error.args[0])
            raise TransientError(f"Kafka takes nothing: {error}") from None
        if not pending.done.wait(self._timeout_seconds):
            raise TransientError("Kafka did not acknowledge in time")
        if pending.failures:
            self._drop_if_broken(reporting, pending.failures[0])
            raise TransientError(f"Kafka did not take an event: {pending.failures[0].str()}")
        return pending.offsets

    def publish_changes(self, changes: Sequence[PositionChange]) -> None:
        """As the port says. For one thread at a time, like `begin_changes` and `send`."""
        self.confirm_changes(self.begin_changes(changes))

    def begin_changes(
        self,
        changes: Sequence[PositionChange],
        taken_in_ms: int = 0,
        alerts: Sequence[Event] = (),
    ) -> int:
        """As the port says."""
        if self._begun > self._confirmed:
            self._confirm(self._deadline())
        if alerts:
            records = [encode_kafka(one, FRAUD_ALERTS) for one in alerts]
        if changes:
            self._begin(changes, change_parts, self._deadline(), taken_in_ms)
        if alerts:
            self._begin(records, _parts_of, self._deadline())
        if not changes:
            return self._begun
        telemetry.POSITION_CHANGES.labels("on-wager").inc(len(changes))
        moved = [one for one in changes if one.old_rank != one.new_rank]
        telemetry.RANK_CHANGES.labels("on-wager").inc(len(moved))
        return self._begun

    def confirm_changes(self, begun: int) -> None:
        """As the port says."""
        if begun <= self._confirmed:
            return
        if begun <= self._given_up:
            raise TransientError("Kafka did not take what was sent with it")
        self._confirm(self._deadline())

    def send(self, records: Iterable[Record]) -> None:
        """Send records as they are, in order; raises TransientError unless all were taken. Then
        the first few may have arrived, but never one without those before it.

        For one thread at a time."""
        deadline = self._deadline()
        self._begin(records, _parts_of, deadline)
        self._confirm(deadline)

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout_seconds

    def _begin(
        self,
        wanted: Iterable[T],
        parts_of: Callable[[T], Parts],
        deadline: float,
        time_ms: int = 0,
    ) -> None:
        producer = self._silent_producer()
        produce = producer.produce
        try:
            for one in wanted:
                topic, key, value, headers = parts_of(one)
                try:
                    produce(topic, value, key, headers=headers, timestamp=time_ms)
                except BufferError:
                    _make_room(producer, deadline)
                    produce(topic, value, key, headers=headers, timestamp=time_ms)
        except KafkaException as error:
            self._abandon(producer)
            raise TransientError(f"Kafka takes nothing: {error}") from None
        except TransientError:
            self._abandon(producer)
            raise
        self._begun += 1

    def _confirm(self, deadline: float) -> None:
        """Wait for everything that was begun."""
        producer = self._silent_producer()
        told = ""
        try:
            if producer.flush(max(deadline - time.monotonic(), 0)) > 0:
                told = "Kafka did not acknowledge in time"
            elif self._failures:
                told = f"Kafka did not take {len(self._failures)} records: {self._failures[0]}"
        except KafkaException as error:
            told = f"Kafka takes nothing: {error}"
        if told:
            self._abandon(producer)
            raise TransientError(told)
        self._confirmed = self._begun

    def check(self) -> None:
        """Raises TransientError when no broker answers within two seconds."""
        try:
            self._reporting_producer().producer.list_topics(timeout=2)
        except KafkaException as error:
            told = f"Kafka is away: {error.args[0].str()}"
            raise TransientError(f"{told} ({self._settings.bootstrap_servers})") from None

    def close(self) -> None:
        """Let go of the brokers. What was not acknowledged may be lost."""
        if self._silent is not None:
            self._abandon(self._silent)
        with self._lock:
            reporting, self._reporting = self._reporting, None
        if reporting is not None:
            reporting.stop()

    def _reporting_producer(self) -> _Reporting:
        with self._lock:
            if self._reporting is None:
                # The client looks for what is too old once a second.
                timeout_seconds = max(self._timeout_seconds - 1, self._timeout_seconds / 2)
                self._reporting = _Reporting(
                    {
                        **self._config(),
                        "message.timeout.ms": int(timeout_seconds * 1000),
                        "linger.ms": self._linger_ms,
                    }
                )
            return self._reporting

    def _drop_if_broken(self, reporting: _Reporting, error: object) -> None:
        """An idempotent producer that has lost its numbering never works again."""
        if not isinstance(error, KafkaError) or not _is_fatal(error):
            return
        with self._lock:
            if self._reporting is reporting:
                self._reporting = None
        reporting.stop()

    def _silent_producer(self) -> Producer:
        """Tells failures only: a flush without any has delivered everything.

        No record of it ever grows too old by itself: then the one after it could be delivered
        alone, and readers would drop the first when it came again. Time is kept by `send`."""
        if self._silent is None:
            self._failures = []
            self._silent = _producer(
                {
                    **self._config(),
                    "delivery.report.only.error": True,
                    "on_delivery": partial(_failed, self._failures),
                    "queue.buffering.max.messages": 200_000,
                    "message.timeout.ms": 0,
                }
            )
        return self._silent

    def _abandon(self, producer: Producer) -> None:
        """Nothing of what it holds may follow what another one sends after it."""
        self._silent = None
        self._given_up = self._begun
        producer.purge(in_queue=True, in_flight=True)
        producer.flush(0)

    def _config(self) -> dict[str, Any]:
        return {
            **self._settings.client_config(),
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "linger.ms": 1,
            "message.max.bytes": MAX_RECORD_BYTES,
        }


class _Reporting:
    """A producer that tells each delivery; a thread of its own serves the reports."""

    def __init__(self, config: Mapping[str, object]) -> None:
        self.producer = _producer(dict(config))
        self._stopping = threading.Event()
        threading.Thread(target=self._serve, name="deliveries", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            self.producer.poll(1.0)


def _producer(config: dict[str, Any]) -> Producer:
    """A client. Raises TransientError where none can be made: a file of TLS that was changed since
    the start and is none now, or no thread or descriptor left."""
    try:
        return Producer(config)
    except KafkaException as error:
        raise TransientError(f"Kafka: no client can be made: {error.args[0].str()}") from None


class _Pending:
    """The deliveries of one publish, counted down by the thread that serves them."""

    def __init__(self, count: int) -> None:
        self.offsets: dict[int, Offset] = {}
        self.failures: list[KafkaError] = []
        self.done = threading.Event()
        self._remaining = count

    def delivered(self, index: int, error: KafkaError | None, message: Any) -> None:
        if error is None:
            self.offsets[index] = Offset(message.offset())
        else:
            self.failures.append(error)
        self._remaining -= 1
        if self._remaining == 0:
            self.done.set()


def _make_room(producer: Producer, deadline: float) -> None:
    """The local queue is full: let it drain, so that the order stays."""
    until = max(deadline - time.monotonic(), 0)
    if producer.flush(until) > 0:
        raise TransientError("Kafka did not make room in time") from None


def _parts_of(record: Record) -> Parts:
    return record.topic, record.key, record.value, list(record.headers)


def _failed(failures: list[str], error: KafkaError | None, message: object) -> None:
    if error is not None:
        failures.append(error.str())


def _is_fatal(error: KafkaError) -> bool:
    return bool(error.fatal()) or error.code() == KafkaError._FATAL


def change_record(change: PositionChange) -> Record:
    """The record of a position change."""
    topic, key, value, headers = change_parts(change)
    given: Any = tuple(headers)
    return Record(topic, key, value, given)


def change_parts(change: PositionChange) -> Parts:
    """Topic, key, value and headers of a position change, written by hand: it is most of what we
    publish.

    Equal to what the codec writes for the same event (a test compares them). Ids need no
    escaping; what a producer chose does."""
    name, player, sequence, old, new, (score, sub), distance, cause, time_ms, trace = change
    key = name.encode()
    subscore = f'"subscore":{sub},' if sub else ""
    value = (
        f'{{"tournament_id":"{name}","player_id":"{player}","sequence":{sequence},"old_rank":'
        f'{"null" if old is None else old},"new_rank":{"null" if new is None else new},'
        f'"score":{score},{subscore}"distance":{"null" if distance is None else distance},'
        f'"cause":{{"source":{_quoted(cause.source)},"id":{_quoted(cause.id)}}}}}'
    )
    headers: Headers = [
        *_FIXED_HEADERS,
        ("ce_id", f"{name}/{sequence}".encode()),
        ("ce_time", _stamp_of(time_ms)),
        ("ce_subject", player.encode()),
        ("ce_partitionkey", key),
    ]
    if trace is not None:
        headers.append(("ce_traceparent", trace.encode()))
    return POSITION_CHANGES, key, value.encode(), headers


@lru_cache(maxsize=4096)
def _stamp_of(time_ms: int) -> bytes:
    return format_time_ms(time_ms).encode()


_quoted = encode_basestring
