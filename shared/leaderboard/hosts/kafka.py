"""The Kafka host: feeds a function with the records of its topics, in order within a partition.

At least once, and every effect harmless when repeated: offsets are committed after the effects.
Three dispositions (errors.py): a refused event goes to the dead-letter topic, confirmed before
the commit; a transient error is retried in place with back-off; anything else stops the process
uncommitted, and so does a topic of which too much can't be read (kafka_cap.py). One thread does
it all, so a partition is never revoked in the middle of a batch.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from confluent_kafka import Message

from leaderboard import telemetry
from leaderboard.codec import decode_kafka
from leaderboard.dead_letters import bury
from leaderboard.errors import RefusedError, SettingsError, TransientError
from leaderboard.events import Event, Record, format_time_ms
from leaderboard.fold import LogEntry
from leaderboard.hosts.collector import collect_rarely
from leaderboard.hosts.health import HealthServer
from leaderboard.hosts.kafka_buried import Buried
from leaderboard.hosts.kafka_cap import DeadLetterCap
from leaderboard.hosts.kafka_group import Membership, group_config
from leaderboard.hosts.kafka_handler import (
    Assignment,
    Batch,
    Handler,
    RecordSink,
    Refused,
    ReplayError,
)
from leaderboard.hosts.kafka_log import TopicLogs, record_of
from leaderboard.model import Offset, Place
from leaderboard.settings import ConsumerSettings, KafkaSettings

__all__ = [
    "Assignment",
    "Batch",
    "Handler",
    "KafkaHost",
    "RecordSink",
    "Refused",
    "ReplayError",
]
FIRST_BACK_OFF_SECONDS: Final = 0.1
LONGEST_BACK_OFF_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 0.5
STUCK_SECONDS: Final = 120.0
COLLECT_AFTER: Final = 200_000
"""New containers before the garbage collector looks at them: several batches' worth. A batch makes
thousands of objects at once and hardly a cycle; to look for them took a quarter of the time."""
T = TypeVar("T")
logger = logging.getLogger(__name__)


class _GivenUpError(Exception):
    """What was being retried is not wanted any more."""


class KafkaHost:
    """Runs one handler on one or several topics, as one group, until it is told to stop.

    `make_handler` may connect, and is tried again with back-off while it raises TransientError.
    `ready` maps a dependency to a check that raises while it is away. `decode` gives the event
    of a record, None for one that is no event and goes to the handler as it is, or raises
    RefusedError. `dead_letters` is None for a reader beside the topics' own consumer, which has
    buried what can never work: here such records are counted, and left. The cap of kafka_cap.py
    holds for both."""

    def __init__(  # noqa: PLR0913 - every composition root names them all, and once
        self,
        name: str,
        topics: str | Sequence[str],
        make_handler: Callable[[], Handler],
        dead_letters: RecordSink | None,
        kafka: KafkaSettings,
        settings: ConsumerSettings,
        ready: Mapping[str, Callable[[], object]],
        *,
        decode: Callable[[Record], Event | None] = decode_kafka,
    ) -> None:
        names = (topics,) if isinstance(topics, str) else tuple(topics)
        self._name = name
        self._decode = decode
        self._make_handler = make_handler
        self._handler: Handler | None = None
        self._dead_letters = dead_letters
        self._settings = settings
        self._ready = ready
        self._stopping = threading.Event()
        config = group_config(name, kafka, settings)
        self._group = Membership(names, config, self._revoked, self._safe)
        self._logs = TopicLogs(names, kafka)
        self._cap = DeadLetterCap(
            name,
            settings.dead_letter_cap_ratio,
            settings.dead_letter_cap_minimum,
            decode,
            self._logs.before,
        )
        self._buried = Buried()
        self._log_ids: dict[Place, str] = {}
        self._beat = time.monotonic()

    def run(self) -> None:
        """Work until SIGTERM, SIGINT or `stop`; then finish the batch at hand, commit, leave.

        Raises whatever is a bug, with that batch uncommitted."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self.stop())
            collect_rarely(COLLECT_AFTER)
        checks = {"kafka": self._check_kafka, **self._ready}
        address = (self._settings.host, self._settings.port)
        try:
            health = HealthServer(self._name, address, self._is_alive, checks)
        except OSError as error:
            raise SettingsError(f"HOST, PORT: can't listen on {address}: {error}") from None
        health.start()
        self._group.join()
        try:
            handler = self._handler = self._retried(self._make_handler)
            while not self._stopping.is_set():
                self._turn(handler)
        except _GivenUpError:
            logger.info("stopped while a dependency was away")
        finally:
            self._group.leave()
            health.stop()
            self._logs.close()

    def stop(self) -> None:
        """Ask `run` to return after the batch at hand. Safe from any thread or signal."""
        self._stopping.set()

    def _turn(self, handler: Handler) -> None:
        self._beat = time.monotonic()
        try:
            wanted = self._retried(handler.tick)
        except ReplayError as replay:
            if replay.place is None or not self._group.owns(replay.place):
                raise
            self._replay(replay.place, replay.offset)
            wanted = 0.0
        self._group.receive(min(wanted, IDLE_SECONDS), self._settings.batch_size)
        if fresh := self._group.fresh():
            self._logs.ask_anew()
            for place in fresh:
                self._take_over(handler, place)
        for place in self._group.waiting():
            if not self._stopping.is_set() and self._group.owns(place):
                self._process(handler, place)
        self._group.commit()

    # records

    def _process(self, handler: Handler, place: Place) -> None:
        """One batch of a partition, to its end; or, when it is not ours to end, not at all."""
        messages = self._group.take(place, self._settings.batch_size)
        telemetry.BATCH_SIZE.labels(self._name).observe(len(messages))
        batch = self._read(place, messages)
        try:
            # Before anything of it has an effect: a topic that can't be read stays as it is.
            self._retried(
                lambda: self._cap.judge(batch, self._group.owned()), lambda: self._group.owns(place)
            )
        except _GivenUpError:
            return

        def effects() -> None:
            self._bury(batch, [*batch.unreadable, *handler.handle(batch)])
            handler.settle(batch)

        try:
            self._retried(effects, lambda: self._group.owns(place))
        except _GivenUpError:
            return
        except ReplayError as replay:
            self._replay_instead_of(batch, replay)
            return
        self._group.done(place, batch.next_offset)

    def _replay_instead_of(self, batch: Batch, replay: ReplayError) -> None:
        """From the batch's start at the latest: nothing of it counts as done."""
        first = Offset(batch.records[0].offset)
        if replay.place in (None, batch.place):
            start = None if replay.offset is None else min(replay.offset, first)
            self._replay(batch.place, start)
            return
        self._replay(batch.place, first)
        if self._group.owns(replay.place):
            self._replay(replay.place, replay.offset)

    def _read(self, place: Place, messages: Sequence[Message]) -> Batch:
        topic, partition = place
        records = [record_of(message, topic, partition) for message in messages]
        entries: list[LogEntry] = []
        refused: list[Refused] = []
        decode = self._decode
        for record in records:
            offset = Offset(record.offset)
            try:
                if (event := decode(record)) is not None:
                    entries.append(LogEntry(offset, record.timestamp_ms, event))
            except RefusedError as error:
                refused.append(Refused(offset, error))
        next_offset = Offset(records[-1].offset + 1)
        log_id = self._log_ids[place]
        return Batch(topic, partition, log_id, entries, next_offset, records, refused)

    def _bury(self, batch: Batch, refused: Sequence[Refused]) -> None:
        if not refused:
            return
        if self._dead_letters is None:
            for one in refused:
                labels = (self._name, batch.topic, one.error.reason.value)
                telemetry.LEFT_UNREAD.labels(*labels).inc()
            return
        by_offset = {record.offset: record for record in batch.records}
        news = [one for one in refused if by_offset[one.offset] not in self._buried]
        if not news:
            return
        at = format_time_ms(time.time_ns() // 1_000_000)
        self._dead_letters.send([bury(by_offset[one.offset], one.error, at) for one in news])
        self._buried.add(by_offset[one.offset] for one in news)
        for one in news:
            reason = one.error.reason.value
            telemetry.DEAD_LETTERS.labels(batch.topic, reason).inc()
            logger.warning(
                "event refused",
                extra=telemetry.fields(
                    topic=batch.topic, partition=batch.partition, offset=one.offset, reason=reason
                ),
            )

    def _retried(self, work: Callable[[], T], wanted: Callable[[], bool] = lambda: True) -> T:
        """The work's result, tried again with back-off while it raises TransientError.

        Raises _GivenUpError when, after a back-off, the process is to stop or the result is not
        `wanted` any more."""
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
            self._beat = time.monotonic()
            self._group.wait(delay, self._stopping)
            delay = min(delay * 2, LONGEST_BACK_OFF_SECONDS)
            if self._stopping.is_set() or not wanted():
                raise _GivenUpError

    # partitions

    def _take_over(self, handler: Handler, place: Place) -> None:
        def ask() -> tuple[Offset, Offset]:
            log_id = self._log_ids[place] = self._logs.log_id(place)
            committed, low = self._group.committed(place), self._logs.low(place)
            partitions = self._logs.partitions(place.topic)
            found = handler.assigned(Assignment(*place, log_id, committed, low, partitions))
            group = low if committed is None else max(committed, low)
            return group, group if found is None else min(found, group)

        try:
            group, start = self._retried(ask, lambda: self._group.is_fresh(place))
        except _GivenUpError:
            return
        self._group.take_over(place, group)
        if start < group:
            self._replay(place, start)

    def _replay(self, place: Place, offset: Offset | None) -> None:
        """Read again from `offset`, or from the oldest record that the log still holds."""
        logger.warning("replaying", extra=telemetry.fields(partition=str(place), offset=offset))

        def rewind() -> None:
            low = self._logs.low(place)
            self._group.rewind(place, low if offset is None else max(offset, low))

        try:
            self._retried(rewind, lambda: self._group.owns(place))
        except _GivenUpError:
            return

    def _revoked(self, place: Place) -> None:
        self._log_ids.pop(place, None)
        self._cap.forget(place)
        if self._handler is not None:
            self._handler.revoked(place)

    def _safe(self, place: Place, next_offset: Offset) -> Offset:
        return next_offset if self._handler is None else self._handler.safe(place, next_offset)

    # health

    def _is_alive(self) -> bool:
        return time.monotonic() - self._beat < STUCK_SECONDS

    def _check_kafka(self) -> None:
        self._logs.check()
        if not self._group.is_member():
            raise TransientError("not a member of the group yet")
