"""The Kafka host: feeds a function with the records of its topics, in order within a partition.

At least once, and every effect harmless when repeated: offsets are committed after the effects.
Three dispositions (errors.py): a refused event goes to the dead-letter topic, confirmed before
the commit; a transient error is retried in place with back-off; anything else stops the process
uncommitted, and so does a topic of which too much can't be read (kafka_cap.py). One thread does
it all, so a partition is never revoked in the middle of a call.

Where more is waiting, batches overlap: while a store works on one, what the one before brought
forth is sent off and the next one is read. Effects stay in order, and each batch is settled before
it counts as done. After a failure all that was begun is done again, one by one.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from confluent_kafka import Message

from leaderboard import telemetry
from leaderboard.codec import decode_kafka, traceparent_of
from leaderboard.dead_letters import bury
from leaderboard.errors import (
    Refusal,
    RefusedError,
    SettingsError,
    TransientError,
    UnreadableTopicError,
)
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
    InOneStep,
    RecordSink,
    Refused,
    ReplayError,
)
from leaderboard.hosts.kafka_line import Line
from leaderboard.hosts.kafka_log import TopicLogs, record_of
from leaderboard.model import Offset, Place
from leaderboard.settings import ConsumerSettings, KafkaSettings

__all__ = [
    "Assignment",
    "Batch",
    "Handler",
    "InOneStep",
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


@dataclass(slots=True)
class _Open:
    """A batch that was begun. `refused` is known when what it brought forth is on its way."""

    batch: Batch
    refused: Sequence[Refused] | None = None


class KafkaHost:
    """Runs one handler on one or several topics, as one group, until it is told to stop.

    `make_handler` may connect, and is tried again with back-off while it raises TransientError.
    `ready` maps a dependency to a check that raises while it is away. `decode` gives the event
    of a record, None for one that is no event and goes to the handler as it is, or raises
    RefusedError. `dead_letters` is None for a reader beside the topics' own consumer, which has
    buried what can never work: here such records are counted, and left. `buries` names the topics
    that are not read so; None: all. The cap of kafka_cap.py holds for both.

    Batches that are not full begin `spacing_seconds` apart: each has a cost of its own, here and
    at every server behind it. The first one after a quiet time waits for nothing."""

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
        buries: Collection[str] | None = None,
        spacing_seconds: float = 0.0,
    ) -> None:
        names = (topics,) if isinstance(topics, str) else tuple(topics)
        self._name = name
        self._decode = decode
        self._make_handler = make_handler
        self._handler: Handler | None = None
        own = names if buries is None else buries
        self._sinks = {} if dead_letters is None else dict.fromkeys(own, dead_letters)
        self._settings = settings
        self._ready = ready
        self._stopping = threading.Event()
        config = group_config(name, kafka, settings)
        self._group = Membership(names, config, self._revoked, self._safe)
        for topic in names:
            # Asked when metrics are: also of a host that hangs in a batch.
            telemetry.LAG.labels(name, topic).set_function(partial(self._group.lag, topic))
            for reason in Refusal if topic in self._sinks else ():
                telemetry.DEAD_LETTERS.labels(topic, reason.value)  # else the first is no increase
        self._logs = TopicLogs(names, kafka)
        self._cap = DeadLetterCap(
            name,
            settings.dead_letter_cap_ratio,
            settings.dead_letter_cap_minimum,
            decode,
            self._logs.before,
        )
        self._buried = Buried()
        self._line = Line(self._read)
        self._open: deque[_Open] = deque()
        self._one_by_one = False
        """The next batch was begun before, and failed."""
        self._log_ids: dict[Place, str] = {}
        self._beat = time.monotonic()
        self._spacing_seconds = spacing_seconds
        self._next_at = 0.0
        """When the next batch may begin that is not full."""

    def run(self) -> None:
        """Work until SIGTERM, SIGINT or `stop`; then finish the batch at hand, commit, leave.

        Raises whatever is a bug, with that batch uncommitted."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self.stop())
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
            if threading.current_thread() is threading.main_thread():
                # Only now: the handler brings drivers with it that stay as well.
                collect_rarely(COLLECT_AFTER)
            while not self._stopping.is_set():
                self._turn(handler)
            self._attempt(handler, None)
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
            self._replay_instead(handler, replay, ())
            wanted = 0.0
        limit = self._settings.batch_size
        timeout = 0.0 if self._line or self._open else min(wanted, IDLE_SECONDS)
        gather = 0.0 if timeout == 0.0 else min(wanted, self._next_at - time.monotonic())
        received = self._group.receive(timeout, limit, gather)
        is_pressed = received >= limit
        self._group.look_at_ends()
        if received:
            self._next_at = time.monotonic() + self._spacing_seconds
        if fresh := self._group.fresh():
            self._logs.ask_anew()
            for place in fresh:
                self._take_over(handler, place)
        for place in self._group.waiting():
            self._line.add(place, self._log_ids[place], self._group.take(place, limit))
        # Where more waits than one turn takes, the last batch is left for the next turn: by then
        # another one stands behind it.
        while len(self._line) > is_pressed and not self._stopping.is_set():
            self._process(handler, self._line.take())
        if not self._line:
            self._attempt(handler, None)
        self._group.commit()

    # records

    def _process(self, handler: Handler, batch: Batch) -> None:
        """Begin a batch, or work it off; when it is not ours to end, not at all."""
        place = batch.place
        telemetry.BATCH_SIZE.labels(self._name).observe(len(batch.records))
        age_seconds = time.time_ns() / 1e9 - batch.records[0].timestamp_ms / 1000
        telemetry.BATCH_AGE.labels(self._name).observe(max(age_seconds, 0.0))
        try:
            # Before anything of it has an effect: a topic that can't be read stays as it is.
            self._retried(
                lambda: self._cap.judge(batch, self._group.owned()), lambda: self._group.owns(place)
            )
        except _GivenUpError:
            return
        except UnreadableTopicError:
            # What came before it is sound, and counts.
            self._attempt(handler, None)
            raise
        if self._one_by_one:
            self._work_off(handler, batch)
        else:
            self._attempt(handler, batch)

    def _attempt(self, handler: Handler, batch: Batch | None) -> None:
        """Begin the batch while the one before it is on its way; None: finish what was begun.

        Where that fails nothing is lost: all that was begun is put back, to be worked off one by
        one, or its partition is read again."""
        waiting = [] if batch is None else [batch]
        try:
            while self._open and (batch is None or len(self._open) > 1):
                self._finish(handler, self._open[0])
                self._open.popleft()
            if batch is None:
                return
            previous = self._open[-1] if self._open else None
            if previous is not None:
                _done_for(previous.batch, handler.join)
            self._open.append(_Open(waiting.pop()))
            _done_for(batch, handler.begin)
            if previous is not None:
                previous.refused = _done_for(previous.batch, handler.handle)
        except TransientError as error:
            telemetry.RETRIES.labels(self._name).inc()
            logger.warning(
                "a dependency is away, beginning again", extra=telemetry.fields(error=str(error))
            )
            self._put_back(handler, waiting)
        except ReplayError as replay:
            self._replay_instead(handler, replay, waiting)
        else:
            self._line.read_next()

    def _finish(self, handler: Handler, one: _Open) -> None:
        batch = one.batch
        _done_for(batch, handler.join)
        if one.refused is None:
            one.refused = _done_for(batch, handler.handle)
        self._bury(batch, [*batch.unreadable, *one.refused])
        _done_for(batch, handler.settle)
        self._group.done(batch.place, batch.next_offset)

    def _put_back(self, handler: Handler, waiting: Sequence[Batch]) -> None:
        """What was begun comes first again, then what was not."""
        begun = self._forget_open(handler)
        self._line.put_back([*begun, *waiting])
        self._one_by_one = bool(begun)

    def _forget_open(self, handler: Handler, only: Place | None = None) -> list[Batch]:
        """Nothing that was begun (of one partition) is finished as it is."""
        begun = [one.batch for one in self._open if only in (None, one.batch.place)]
        self._open = deque(one for one in self._open if only not in (None, one.batch.place))
        for batch in begun:
            handler.forget(batch)
        return begun

    def _work_off(self, handler: Handler, batch: Batch) -> None:
        """One batch, to its end, however often it takes."""
        one = _Open(batch)

        def effects() -> None:
            try:
                one.refused = None
                _done_for(batch, handler.begin)
                self._finish(handler, one)
            except BaseException:
                handler.forget(batch)
                raise

        try:
            self._retried(effects, lambda: self._group.owns(batch.place))
        except _GivenUpError:
            return
        except ReplayError as replay:
            self._replay_instead(handler, replay, [batch])
        else:
            self._one_by_one = False

    def _replay_instead(
        self, handler: Handler, replay: ReplayError, waiting: Sequence[Batch]
    ) -> None:
        """Nothing that was begun counts as done; what of it is of other partitions comes again."""
        self._put_back(handler, waiting)
        if replay.place is not None and self._group.owns(replay.place):
            self._replay(replay.place, replay.offset)

    def _read(self, place: Place, log_id: str, messages: Sequence[Message]) -> Batch:
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
        return Batch(topic, partition, log_id, entries, next_offset, records, refused)

    def _bury(self, batch: Batch, refused: Sequence[Refused]) -> None:
        if not refused:
            return
        sink = self._sinks.get(batch.topic)
        if sink is None:
            for one in refused:
                labels = (self._name, batch.topic, one.error.reason.value)
                telemetry.LEFT_UNREAD.labels(*labels).inc()
            return
        by_offset = {record.offset: record for record in batch.records}
        news = [one for one in refused if by_offset[one.offset] not in self._buried]
        if not news:
            return
        at = format_time_ms(time.time_ns() // 1_000_000)
        sink.send([bury(by_offset[one.offset], one.error, at) for one in news])
        self._buried.add(by_offset[one.offset] for one in news)
        for one in news:
            reason = one.error.reason.value
            telemetry.DEAD_LETTERS.labels(batch.topic, reason).inc()
            logger.warning(
                "event refused",
                extra=telemetry.fields(
                    topic=batch.topic,
                    partition=batch.partition,
                    offset=one.offset,
                    reason=reason,
                    trace_id=telemetry.trace_id_of(traceparent_of(by_offset[one.offset])),
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
            committed, (low, end) = self._group.committed(place), self._logs.span(place)
            partitions = self._logs.partitions(place.topic)
            found = handler.assigned(Assignment(*place, log_id, committed, low, partitions, end))
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
        """Read again from `offset`, or from the oldest record that the log still holds; at the
        latest from what is not done."""
        logger.warning("replaying", extra=telemetry.fields(partition=str(place), offset=offset))
        self._line.forget(place)
        start = None if offset is None else min(offset, self._group.owned()[place])

        def rewind() -> None:
            low = self._logs.low(place)
            self._group.rewind(place, low if start is None else max(start, low))

        try:
            self._retried(rewind, lambda: self._group.owns(place))
        except _GivenUpError:
            return

    def _revoked(self, place: Place) -> None:
        self._log_ids.pop(place, None)
        self._line.forget(place)
        self._cap.forget(place)
        if self._handler is not None:
            self._forget_open(self._handler, place)
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


def _done_for(batch: Batch, step: Callable[[Batch], T]) -> T:
    """One step of a handler; a ReplayError that names no partition means the batch's own."""
    try:
        return step(batch)
    except ReplayError as replay:
        replay.place = replay.place or batch.place
        raise
