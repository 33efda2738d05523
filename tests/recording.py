"""The real Kafka host with a handler that writes down what it is given, and topics of its own.

As a program (`python recording.py <servers> <topic> <group> <seconds>`) it takes that many seconds
for each batch and prints what it does, to be told to end from outside.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from leaderboard import events as ev
from leaderboard.adapters.kafka_feed import KafkaFeed
from leaderboard.codec import decode_kafka, encode_kafka
from leaderboard.hosts.kafka import Assignment, Batch, InOneStep, KafkaHost, RecordSink, Refused
from leaderboard.model import Offset, Place
from leaderboard.settings import ConsumerSettings, KafkaSettings, load
from leaderboard.stack.process import LOOPBACK, free_port

HELD_SECONDS = 20.0


def kafka_settings(servers: str) -> KafkaSettings:
    return load(KafkaSettings, {"KAFKA_BOOTSTRAP_SERVERS": servers})


class Log:
    """A topic made for one test, with its dead letters, and a group that reads it (`group`: that
    of another one, to be read together)."""

    def __init__(self, servers: str, partitions: int = 1, group: str | None = None) -> None:
        self.servers = servers
        self.topic = f"wagers-{uuid.uuid4().hex[:12]}"
        self.group = group or f"group-{uuid.uuid4().hex[:12]}"
        self.partitions = partitions
        self._producer = Producer({"bootstrap.servers": servers, "log_level": 2, "linger.ms": 0})
        admin = AdminClient({"bootstrap.servers": servers, "log_level": 2})
        topics = [
            NewTopic(self.topic, partitions, 1),
            NewTopic(ev.dead_letter_topic(self.topic), 1, 1),
        ]
        for made in admin.create_topics(topics).values():
            made.result(30)

    def send(self, count: int, partition: int = 0) -> None:
        """So many sound events, acknowledged."""
        for number in range(count):
            self.send_record(sound(number), partition, flush=False)
        assert self._producer.flush(30) == 0

    def send_record(self, record: ev.Record, partition: int = 0, *, flush: bool = True) -> None:
        self._producer.produce(
            self.topic,
            value=record.value,
            key=record.key,
            headers=list(record.headers),
            partition=partition,
        )
        self._producer.poll(0)
        if flush:
            assert self._producer.flush(30) == 0

    def committed(self, partition: int = 0) -> int | None:
        """Where the group stands, as Kafka says."""
        asks = Consumer({"bootstrap.servers": self.servers, "group.id": self.group})
        until = time.monotonic() + 10
        try:
            while True:
                try:
                    place = asks.committed([TopicPartition(self.topic, partition)], timeout=10)[0]
                    return place.offset if place.offset >= 0 else None
                except KafkaException:  # a broker that has just started knows no groups yet
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.1)
        finally:
            asks.close()

    def buried(self) -> int:
        """How many dead letters there are now."""
        asks = Consumer({"bootstrap.servers": self.servers, "group.id": "asks-only"})
        try:
            place = TopicPartition(ev.dead_letter_topic(self.topic), 0)
            until = time.monotonic() + 10
            while True:
                try:
                    return int(asks.get_watermark_offsets(place, timeout=10)[1])
                except KafkaException:  # a topic made this moment has no leader yet
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.1)
        finally:
            asks.close()

    def dead_letters(self, count: int) -> list[Any]:
        """The first `count` of them; fails when there are fewer."""
        reads = Consumer({"bootstrap.servers": self.servers, "group.id": "reads-only"})
        reads.assign([TopicPartition(ev.dead_letter_topic(self.topic), 0, 0)])
        found: list[Any] = []
        try:
            until = time.monotonic() + 10
            while len(found) < count and time.monotonic() < until:
                message = reads.poll(0.2)
                if message is not None and message.error() is None:
                    found.append(message)
        finally:
            reads.close()
        assert len(found) == count
        return found


def sound(number: int, source: str = "/tests") -> ev.Record:
    """A wager that any handler may read."""
    data = ev.ScoreSubmitted(tournament_id="t1", player_id="alice", score=number)
    return encode_kafka(ev.Event(f"e{number}", source, 1_760_000_000_000, data), ev.WAGERS)


def garbage(number: int, source: str) -> ev.Record:
    """The same, but for a value that nobody can read."""
    return sound(number, source)._replace(value=b"\xff\xfe")


class Recorder(InOneStep):
    """A handler that keeps what happened, in order, and does what a test hangs into it."""

    def __init__(self) -> None:
        self.handled: list[tuple[Place, int, float]] = []
        """Place, offset and time of each event, once its batch was settled."""
        self.tried: list[list[int]] = []
        self.assignments: list[Assignment] = []
        self.revocations: list[Place] = []
        self.owned: set[Place] = set()
        self.start_at: dict[int, int] = {}
        self.on_handle: Callable[[Batch], Sequence[Refused]] = lambda batch: ()
        self.on_settle: Callable[[Batch], None] = lambda batch: None
        self.on_tick: Callable[[], float] = lambda: 1.0

    def assigned(self, assignment: Assignment) -> Offset | None:
        self.assignments.append(assignment)
        self.owned.add(assignment.place)
        start = self.start_at.pop(assignment.partition, None)
        return None if start is None else Offset(start)

    def revoked(self, place: Place) -> None:
        self.revocations.append(place)
        self.owned.discard(place)

    def handle(self, batch: Batch) -> Sequence[Refused]:
        assert batch.place in self.owned, "handled a partition that is not ours"
        self.tried.append([entry.offset for entry in batch.entries])
        return self.on_handle(batch)

    def settle(self, batch: Batch) -> None:
        self.on_settle(batch)
        now = time.monotonic()
        self.handled += [(batch.place, entry.offset, now) for entry in batch.entries]

    def safe(self, place: Place, next_offset: Offset) -> Offset:
        return next_offset

    def tick(self) -> float:
        return self.on_tick()

    def offsets(self, partition: int = 0, topic: str | None = None) -> list[int]:
        """Of the partition, in the order in which they were handled."""
        return [
            offset
            for place, offset, _ in self.handled
            if place.partition == partition and topic in (None, place.topic)
        ]


def decode_as_wagers(record: ev.Record) -> ev.Event | None:
    """Reads topics of any name as `wagers`; dead letters are no events."""
    if record.topic.endswith(ev.dead_letter_topic("")):
        return None
    return decode_kafka(record._replace(topic=ev.WAGERS))


def host_of(
    log: Log,
    recorder: Recorder,
    dead_letters: RecordSink | None = None,
    batch_size: int = 100,
    *,
    more: Sequence[str] = (),
    buries: bool = True,
    decode: Callable[[ev.Record], ev.Event | None] | None = None,
    settings: Mapping[str, str] | None = None,
    spacing_seconds: float = 0.0,
) -> KafkaHost:
    """A host for the topic of `log` and `more` topics; `buries`: as their own consumer does."""
    kafka = kafka_settings(log.servers)
    consumer = load(
        ConsumerSettings,
        {
            "KAFKA_GROUP_ID": log.group,
            "HOST": LOOPBACK,
            "PORT": str(free_port()),
            "BATCH_SIZE": str(batch_size),
            **(settings or {}),
        },
    )
    sink = KafkaFeed(kafka) if dead_letters is None and buries else dead_letters
    return KafkaHost(
        "recording",
        (log.topic, *more),
        lambda: recorder,
        sink,
        kafka,
        consumer,
        {},
        decode=decode or decode_as_wagers,
        spacing_seconds=spacing_seconds,
    )


class Running:
    """A host in a thread of its own; `error` is what ended it, if it was not told to."""

    def __init__(self, host: KafkaHost) -> None:
        self.error: BaseException | None = None
        self._host = host
        self._thread = threading.Thread(target=self._run, name="host")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._host.run()
        except BaseException as error:  # noqa: BLE001 - a test asks what it was
            self.error = error

    def stop(self) -> None:
        self._host.stop()
        self.join()

    def join(self) -> None:
        self._thread.join(HELD_SECONDS)
        assert not self._thread.is_alive(), "the host does not end"


@contextmanager
def running(
    log: Log,
    recorder: Recorder,
    dead_letters: RecordSink | None = None,
    batch_size: int = 100,
    **how: Any,
) -> Iterator[Running]:
    """A host (`how`: see `host_of`) that works until the block ends; fails if a bug ended it."""
    one = Running(host_of(log, recorder, dead_letters, batch_size, **how))
    try:
        yield one
    finally:
        one.stop()
    if one.error is not None:
        raise one.error


def main(servers: str, topic: str, group: str, seconds: float) -> None:
    recorder = Recorder()

    def slowly(batch: Batch) -> Sequence[Refused]:
        print("handling", len(batch.entries), flush=True)
        # Not one long sleep: a signal's handler runs between two steps of Python.
        time.sleep(seconds)
        print("handled", batch.next_offset, flush=True)
        return ()

    recorder.on_handle = slowly
    log = Log.__new__(Log)
    log.servers, log.topic, log.group = servers, topic, group
    host_of(log, recorder).run()
    print("left", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
