"""The Kafka host: feeds a function with one topic's records, in order, partition by partition.

At least once, and every effect harmless when repeated: offsets are committed after the effects.
Three dispositions (errors.py): a refused event goes to the dead-letter topic, confirmed before
the commit; a transient error is retried in place with back-off; anything else stops the process
uncommitted. One thread does it all, so a partition is never revoked in the middle of a batch.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from leaderboard import telemetry
from leaderboard.codec import decode_kafka
from leaderboard.errors import LeaderboardError, RefusedError, TransientError
from leaderboard.events import Record, dead_letter_topic, format_time_ms
from leaderboard.fold import LogEntry
from leaderboard.hosts.health import HealthServer
from leaderboard.hosts.kafka_log import ASK_SECONDS, TopicLog
from leaderboard.model import Offset
from leaderboard.settings import ConsumerSettings, KafkaSettings

FIRST_BACK_OFF_SECONDS: Final = 0.1
LONGEST_BACK_OFF_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 0.5
COMMIT_SECONDS: Final = 0.05
STUCK_SECONDS: Final = 120.0
logger = logging.getLogger(__name__)


class ReplayError(LeaderboardError):
    """The handler has to read the partition again, from `offset` (None: as far back as it
    goes)."""

    def __init__(self, offset: Offset | None) -> None:
        super().__init__(f"replay from {offset}")
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Assignment:
    """A partition that this process owns from now on. `log_id` names topic and partition, and
    the topic's own id: one made anew is another log. `committed` is where the group stands."""

    partition: int
    log_id: str
    committed: Offset | None
    low: Offset
    """The oldest offset that the log still holds."""
    partitions: int
    """How many the topic has."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one partition, in order, decoded. Refused ones among them are not here."""

    partition: int
    log_id: str
    entries: Sequence[LogEntry]
    next_offset: Offset
    """The offset after the last record of the batch."""


@dataclass(frozen=True, slots=True)
class Refused:
    """An event of a batch that can never work."""

    offset: Offset
    error: RefusedError


class Handler(Protocol):
    """A function, as the host sees it. Any call may raise TransientError and is repeated then."""

    def assigned(self, assignment: Assignment) -> Offset | None:
        """Where to start reading, None for where the group stands; never further than that."""

    def revoked(self, partition: int) -> None:
        """The partition belongs to somebody else now: forget what was known of it."""

    def handle(self, batch: Batch) -> Sequence[Refused]:
        """Do the batch's effects. Raises ReplayError to read again from an earlier offset."""

    def settle(self, batch: Batch) -> None:
        """Effects and dead letters of the batch are confirmed; the commit comes next."""

    def safe(self, partition: int, next_offset: Offset) -> Offset:
        """How far the partition may be committed: `next_offset`, or less while work is open."""

    def tick(self) -> float:
        """Do what is due by the clock; the seconds until the next call is wanted."""


class RecordSink(Protocol):
    """Where dead letters go: returns when all are acknowledged, else raises TransientError."""

    def send(self, records: Iterable[Record]) -> None: ...


class KafkaHost:
    """Runs one handler on one topic until it is told to stop.

    `make_handler` may connect, and is tried again with back-off while it raises TransientError.
    `ready` maps a dependency to a check that raises while it is away."""

    def __init__(
        self,
        name: str,
        topic: str,
        make_handler: Callable[[], Handler],
        dead_letters: RecordSink,
        kafka: KafkaSettings,
        settings: ConsumerSettings,
        ready: Mapping[str, Callable[[], object]],
    ) -> None:
        self._name = name
        self._topic = topic
        self._make_handler = make_handler
        self._dead_letters = dead_letters
        self._kafka = kafka
        self._settings = settings
        self._ready = ready
        self._stopping = threading.Event()
        self._consumer = Consumer(self._config())
        self._log = TopicLog(topic, kafka)
        self._fresh: set[int] = set()
        self._next: dict[int, Offset] = {}
        """Owned partitions, with the offset after the last one whose effects are done."""
        self._committed: dict[int, Offset] = {}
        self._committed_at = 0.0
        self._stash: list[Message] = []
        self._beat = time.monotonic()
        self._is_member = False

    def run(self) -> None:
        """Work until SIGTERM, SIGINT or `stop`; then finish the batch at hand, commit, leave.

        Raises whatever is a bug, with that batch uncommitted."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self.stop())
        checks = {"kafka": self._check_kafka, **self._ready}
        address = (self._settings.host, self._settings.port)
        health = HealthServer(self._name, address, self._is_alive, checks)
        health.start()
        self._consumer.subscribe(
            [self._topic],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )
        try:
            made: Handler | None = self._retried(self._make_handler)
            if made is not None:
                self._work(made)
        finally:
            self._consumer.close()
            health.stop()
            self._log.close()

    def _work(self, handler: Handler) -> None:
        self._handler = handler
        while not self._stopping.is_set():
            self._turn()
        self._commit(now=True)

    def stop(self) -> None:
        """Ask `run` to return after the batch at hand. Safe from any thread or signal."""
        self._stopping.set()

    def _turn(self) -> None:
        self._beat = time.monotonic()
        if not self._is_member:
            # Not from the probes' threads: calls on one consumer queue up, and a poll that is
            # called again at once may never let them in.
            self._is_member = bool(self._consumer.memberid())
        wanted = self._retried(self._handler.tick)
        messages = self._consumed(min(IDLE_SECONDS if wanted is None else wanted, IDLE_SECONDS))
        for partition in sorted(self._fresh):
            if self._settle_in(partition):
                messages = [m for m in messages if m.partition() != partition]
        by_partition: dict[int, list[Message]] = {}
        for message in messages:
            by_partition.setdefault(message.partition() or 0, []).append(message)
        for partition, records in by_partition.items():
            if partition in self._next and not self._stopping.is_set():
                self._process(partition, records)
        self._commit(now=False)

    # records

    def _consumed(self, timeout_seconds: float) -> list[Message]:
        """What is there: waits for the first record only, so a quiet topic costs no latency."""
        messages, self._stash = self._stash, []
        if not messages:
            first = self._consumer.poll(max(timeout_seconds, 0.0))
            messages = [] if first is None else [first]
        room = self._settings.batch_size - len(messages)
        if messages and room > 0:
            messages += self._consumer.consume(room, timeout=0)
        return [message for message in messages if self._is_sound(message)]

    def _is_sound(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return True
        if error.fatal():
            raise KafkaException(error)
        logger.warning("Kafka reports an error", extra=telemetry.fields(error=error.str()))
        return False

    def _process(self, partition: int, messages: Sequence[Message]) -> None:
        records = [_record(message) for message in messages]
        telemetry.BATCH_SIZE.labels(self._name).observe(len(records))
        entries: list[LogEntry] = []
        refused: list[Refused] = []
        for record in records:
            try:
                event = decode_kafka(record)
                entries.append(LogEntry(Offset(record.offset), record.timestamp_ms, event))
            except RefusedError as error:
                refused.append(Refused(Offset(record.offset), error))
        batch = Batch(partition, self._log_of(partition), entries, Offset(records[-1].offset + 1))

        def effects() -> None:
            ours = self._handler.handle(batch) if entries else ()
            self._bury(records, (*refused, *ours))
            self._handler.settle(batch)

        try:
            if self._retried(effects, partition) is _GIVEN_UP:
                return
        except ReplayError as replay:
            self._replay(partition, replay.offset)
            return
        self._next[partition] = batch.next_offset

    def _bury(self, records: Sequence[Record], refused: Sequence[Refused]) -> None:
        if not refused:
            return
        by_offset = {record.offset: record for record in records}
        at = format_time_ms(time.time_ns() // 1_000_000)
        self._dead_letters.send(
            [_dead_letter(by_offset[one.offset], one.error, at) for one in refused]
        )
        for one in refused:
            telemetry.DEAD_LETTERS.labels(self._topic, one.error.reason.value).inc()
            logger.warning(
                "event refused",
                extra=telemetry.fields(
                    topic=self._topic, offset=one.offset, reason=one.error.reason.value
                ),
            )

    def _retried(self, work: Callable[[], Any], partition: int | None = None) -> Any:
        """The work's result, tried again with back-off while it raises TransientError.

        `_GIVEN_UP` when the process is to stop, or does not own the partition any more."""
        delay = FIRST_BACK_OFF_SECONDS
        while True:
            try:
                return work()
            except TransientError as error:
                telemetry.RETRIES.labels(self._name).inc()
                logger.warning(
                    "a dependency is away, trying again",
                    extra=telemetry.fields(error=str(error), seconds=delay),
                )
            self._wait(delay)
            delay = min(delay * 2, LONGEST_BACK_OFF_SECONDS)
            if self._stopping.is_set() or (partition is not None and not self._owns(partition)):
                return None if partition is None else _GIVEN_UP

    def _owns(self, partition: int) -> bool:
        return partition in self._next or partition in self._fresh

    def _wait(self, seconds: float) -> None:
        """Let time pass while staying a member of the group; records that come are kept."""
        paused: set[int] = set()
        until = time.monotonic() + seconds
        while not self._stopping.is_set() and (left := until - time.monotonic()) > 0:
            self._beat = time.monotonic()
            # Also those that are assigned meanwhile: what is kept here must stay little.
            fresh = (set(self._next) | self._fresh) - paused
            self._consumer.pause([TopicPartition(self._topic, p) for p in sorted(fresh)])
            paused |= fresh
            message = self._consumer.poll(min(left, 0.2))
            if message is not None:
                self._stash.append(message)
        still = [TopicPartition(self._topic, p) for p in sorted(paused) if self._owns(p)]
        self._consumer.resume(still)

    # partitions

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        logger.info("assigned", extra=telemetry.fields(partitions=_numbers(partitions)))
        self._fresh.update(_numbers(partitions))

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        logger.info("revoked", extra=telemetry.fields(partitions=_numbers(partitions)))
        self._commit(now=True, only=_numbers(partitions))
        self._forget(partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        logger.warning("lost", extra=telemetry.fields(partitions=_numbers(partitions)))
        self._is_member = False
        self._forget(partitions)

    def _forget(self, partitions: list[TopicPartition]) -> None:
        for partition in _numbers(partitions):
            self._fresh.discard(partition)
            if self._next.pop(partition, None) is not None:
                self._handler.revoked(partition)
            self._committed.pop(partition, None)
        gone = set(_numbers(partitions))
        self._stash = [m for m in self._stash if m.partition() not in gone]

    def _settle_in(self, partition: int) -> bool:
        """Take over a partition; whether what was read of it already has to be dropped."""

        def ask() -> tuple[Offset, Offset]:
            place = TopicPartition(self._topic, partition)
            try:
                committed = self._consumer.committed([place], timeout=ASK_SECONDS)[0].offset
            except KafkaException as error:
                raise TransientError(f"Kafka does not tell the group's place: {error}") from None
            low = self._log.low(partition)
            known = Offset(committed) if committed >= 0 else None
            group = low if known is None else max(known, low)
            found = self._handler.assigned(
                Assignment(partition, self._log_of(partition), known, low, self._log.partitions())
            )
            return group, group if found is None else max(min(found, group), low)

        answer = self._retried(ask, partition)
        if answer is _GIVEN_UP:
            return True
        self._fresh.discard(partition)
        group, start = answer
        # Committed at once: to KEDA a partition without a commit is one of full lag.
        self._next[partition] = start
        if start < group:
            self._replay(partition, start)
        return bool(start < group)

    def _replay(self, partition: int, offset: Offset | None) -> None:
        """Read again from `offset`. Committed first, so that a crash meanwhile loses nothing."""
        low = self._log.low(partition)
        start = low if offset is None else max(offset, low)
        logger.warning("replaying", extra=telemetry.fields(partition=partition, offset=start))
        self._next[partition] = start
        self._commit(now=True, only=[partition])
        self._stash = [m for m in self._stash if m.partition() != partition]
        until = time.monotonic() + ASK_SECONDS
        while self._owns(partition):
            try:
                self._consumer.seek(TopicPartition(self._topic, partition, start))
                return
            except KafkaException as error:
                # A partition assigned this moment is not fetched yet, and can't be sought.
                if time.monotonic() > until:
                    raise
                logger.info("not to be sought yet", extra=telemetry.fields(error=str(error)))
            self._wait(0.1)
            self._stash = [m for m in self._stash if m.partition() != partition]

    def _commit(self, *, now: bool, only: Iterable[int] | None = None) -> None:
        if not now and time.monotonic() - self._committed_at < COMMIT_SECONDS:
            return
        wanted = {}
        for partition in self._next if only is None else set(only) & set(self._next):
            safe = self._handler.safe(partition, self._next[partition])
            if self._committed.get(partition) != safe:
                wanted[partition] = safe
        if not wanted:
            return
        self._committed_at = time.monotonic()
        places = [TopicPartition(self._topic, p, at) for p, at in wanted.items()]
        try:
            if now:
                self._consumer.commit(offsets=places, asynchronous=False)
            else:
                self._consumer.commit(offsets=places, asynchronous=True)
            self._committed.update(wanted)
        except KafkaException as error:
            # Read again after the next start: every effect is harmless when repeated.
            logger.warning("commit failed", extra=telemetry.fields(error=str(error)))

    def _log_of(self, partition: int) -> str:
        return f"{self._log.log_id}/{partition}"

    # health

    def _is_alive(self) -> bool:
        return time.monotonic() - self._beat < STUCK_SECONDS

    def _check_kafka(self) -> None:
        self._log.check()
        if not self._is_member:
            raise TransientError("not a member of the group yet")

    def _config(self) -> dict[str, Any]:
        settings = self._settings
        config: dict[str, Any] = {
            **self._kafka.client_config(),
            "group.id": settings.group_id or self._name,
            "group.protocol": settings.group_protocol,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            # The default of a second is how long a full local queue would delay the next fetch.
            "fetch.queue.backoff.ms": 10,
            "on_commit": _committed,
        }
        if settings.group_protocol == "classic":
            config["partition.assignment.strategy"] = "cooperative-sticky"
            config["session.timeout.ms"] = settings.session_timeout_ms
            config["heartbeat.interval.ms"] = settings.session_timeout_ms // 3
        return config


_GIVEN_UP: Final = object()


def _numbers(partitions: Sequence[TopicPartition]) -> list[int]:
    return [place.partition for place in partitions]


def _committed(error: KafkaError | None, partitions: list[TopicPartition]) -> None:
    if error is not None:
        logger.warning("commit failed", extra=telemetry.fields(error=error.str()))


def _record(message: Message) -> Record:
    headers: Any = message.headers() or ()
    return Record(
        topic=message.topic() or "",
        key=message.key(),
        value=message.value(),
        headers=tuple(headers),
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        timestamp_ms=message.timestamp()[1],
    )


def _dead_letter(record: Record, error: RefusedError, at: str) -> Record:
    """The event as it came, its headers, and why and where it was refused."""
    told = {
        "dlq_reason": error.reason.value,
        "dlq_detail": error.detail[:500],
        "dlq_topic": record.topic,
        "dlq_partition": str(record.partition),
        "dlq_offset": str(record.offset),
        "dlq_at": at,
    }
    return Record(
        topic=dead_letter_topic(record.topic),
        key=record.key,
        value=record.value,
        headers=(*record.headers, *((k, v.encode("utf-8", "replace")) for k, v in told.items())),
    )
