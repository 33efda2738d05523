"""Kafka in this process, for one thread: topics with gaps in their offsets, groups, and a consumer
that is what `confluent_kafka.Consumer` is to the host's own group membership.

Nothing here decides when something happens: a member learns of a rebalance with its next poll, gets
as many records as its `budget` says, and lets the simulation's clock go on while it waits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from leaderboard.adapters.kafka_feed import change_record
from leaderboard.codec import encode_kafka
from leaderboard.errors import TransientError
from leaderboard.events import FRAUD_ALERTS, Event, Record
from leaderboard.model import Offset, Place, PositionChange
from leaderboard.partitioning import partition_of
from leaderboard.ports import Outgoing

CUT_OFF_SECONDS: Final = 60.0
"""A member that waits for its commit to be taken polls meanwhile, and so hears at last."""


class Clock:
    """The time of a simulated world: it goes on when somebody waits. Stands in for `time`."""

    def __init__(self, start_ms: int) -> None:
        self._start_ms = start_ms
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def time_ns(self) -> int:
        return self.now_ms() * 1_000_000

    def now_ms(self) -> int:
        return self._start_ms + int(self.seconds * 1000)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class Log:
    """One partition. Offsets grow, with gaps; what lies below `low` is not kept any more."""

    low: int = 0
    end: int = 0
    records: list[Record] = field(default_factory=list)

    def from_(self, offset: int) -> Iterator[Record]:
        """What is kept, from the first record at or above `offset` on."""
        start = bisect_left(self.records, max(offset, self.low), key=lambda one: one.offset)
        return (self.records[index] for index in range(start, len(self.records)))


class Cluster:
    """The brokers: topics, groups, and what may go wrong with them.

    `logged` is called with every record that was taken."""

    def __init__(
        self, topics: Mapping[str, int], clock: Clock, logged: Callable[[Record], None]
    ) -> None:
        self.clock = clock
        self.logs = {Place(t, n): Log() for t, count in topics.items() for n in range(count)}
        self.partitions = dict(topics)
        self.groups: dict[str, Group] = {}
        self.failing_commits = 0
        """So many of the next commits fail."""
        self.gap = 0
        """So many offsets are left out before the next record (a transaction's marker)."""
        self._logged = logged

    def append(self, record: Record) -> Offset:
        """Take a record in, as a producer with the Java client's partitioner sends it."""
        number = partition_of(record.key or b"", self.partitions[record.topic])
        log = self.logs[Place(record.topic, number)]
        offset = log.end + self.gap
        self.gap = 0
        kept = record._replace(partition=number, offset=offset, timestamp_ms=self.clock.now_ms())
        log.records.append(kept)
        log.end = offset + 1
        self._logged(kept)
        return Offset(offset)

    def committed(self, group: str, place: Place) -> Offset | None:
        return self.group(group).committed.get(place)

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group())


class Feed:
    """`ports.Feed` and the hosts' sink of dead letters. `effect` comes between any two records."""

    def __init__(self, cluster: Cluster, effect: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._effect = effect

    def publish(self, outgoing: Sequence[Outgoing]) -> Mapping[int, Offset]:
        return dict(enumerate(self._send(encode_kafka(o.event, o.topic) for o in outgoing)))

    def begin_changes(
        self,
        changes: Sequence[PositionChange],
        taken_in_ms: int = 0,
        alerts: Sequence[Event] = (),
    ) -> int:
        records = [encode_kafka(one, FRAUD_ALERTS) for one in alerts]
        for record in [*map(change_record, changes), *records]:
            self._effect("kafka")
            self._cluster.append(record)
        return 0

    def confirm_changes(self, begun: int) -> None:
        # Here all are taken, and the acknowledgement may get lost.
        self._effect("kafka")

    def publish_changes(self, changes: Sequence[PositionChange]) -> None:
        self._send(map(change_record, changes))

    def send(self, records: Iterable[Record]) -> None:
        self._send(records)

    def _send(self, records: Iterable[Record]) -> list[Offset]:
        offsets = []
        for record in records:
            self._effect("kafka")
            offsets.append(self._cluster.append(record))
        # Here all are taken, and the acknowledgement may get lost.
        self._effect("kafka")
        return offsets


@dataclass
class Group:
    """Who owns what of a group's topics, and how far the group is."""

    members: list[Consumer] = field(default_factory=list)
    owners: dict[Place, Consumer] = field(default_factory=dict)
    committed: dict[Place, Offset] = field(default_factory=dict)
    turn: int = 0
    """Turned on, partitions change hands."""

    def wanted_by(self, member: Consumer) -> set[Place]:
        """What the member is to own."""
        if member not in self.members:
            return set()
        mine = (self.members.index(member) + self.turn) % len(self.members)
        return {p for i, p in enumerate(member.all_places()) if i % len(self.members) == mine}

    def remove(self, member: Consumer) -> None:
        if member in self.members:
            self.members.remove(member)
        self.owners = {p: owner for p, owner in self.owners.items() if owner is not member}


class _Message:
    """A record, as the client library hands it over."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def topic(self) -> str:
        return self._record.topic

    def partition(self) -> int:
        return self._record.partition

    def offset(self) -> int:
        return self._record.offset

    def key(self) -> bytes | None:
        return self._record.key

    def value(self) -> bytes | None:
        return self._record.value

    def headers(self) -> list[tuple[str, bytes | None]]:
        return list(self._record.headers)

    def timestamp(self) -> tuple[int, int]:
        return 1, self._record.timestamp_ms

    def error(self) -> None:
        return None


Callback = Callable[["Consumer", list[TopicPartition]], None]


class Consumer:
    """What the host's membership uses of `confluent_kafka.Consumer`.

    `budget` bounds the records that polls give out. One that is cut off still believes to own
    what the group has given away, until it hears from the group again."""

    def __init__(self, cluster: Cluster, config: Mapping[str, Any]) -> None:
        self._cluster = cluster
        self._group = cluster.group(config["group.id"])
        self._on_commit: Callable[[Any, list[TopicPartition]], None] = config["on_commit"]
        self._topics: list[str] = []
        self._callbacks: dict[str, Callback] = {}
        self._positions: dict[Place, int] = {}
        self._paused: set[Place] = set()
        self._answers: list[tuple[KafkaError | None, list[TopicPartition]]] = []
        self.budget = 0
        self._cut_off_until = 0.0

    # the group

    def subscribe(self, topics: list[str], **callbacks: Callback) -> None:
        self._topics, self._callbacks = topics, callbacks
        self._group.members.append(self)

    def all_places(self) -> list[Place]:
        return [p for p in self._cluster.logs if p.topic in self._topics]

    def places(self) -> list[Place]:
        """What this member believes to own, and where it reads."""
        return list(self._positions)

    def position(self, place: Place) -> int | None:
        return self._positions.get(place)

    @property
    def is_cut_off(self) -> bool:
        return self._cluster.clock.seconds < self._cut_off_until

    def cut_off(self) -> None:
        """The group gives its partitions away, and it does not know yet."""
        self._group.remove(self)
        self._cut_off_until = self._cluster.clock.seconds + CUT_OFF_SECONDS

    def learn(self) -> None:
        """It gets to know, with its next poll."""
        self._cut_off_until = 0.0

    def _serve(self) -> None:
        answers, self._answers = self._answers, []
        for error, partitions in answers:
            self._on_commit(error, partitions)
        if self.is_cut_off:
            return
        if self not in self._group.members:
            self._give_up(self._positions, "on_lost")
            self._group.members.append(self)
        wanted = self._group.wanted_by(self)
        self._give_up(self._positions.keys() - wanted, "on_revoke")
        fresh = sorted(p for p in wanted - self._positions.keys() if p not in self._group.owners)
        for place in fresh:
            self._group.owners[place] = self
            committed = self._group.committed.get(place)
            self._positions[place] = (
                self._cluster.logs[place].low if committed is None else committed
            )
        if fresh:
            self._callbacks["on_assign"](self, _kafkas(fresh))

    def _give_up(self, places: Iterable[Place], how: str) -> None:
        gone = sorted(places)
        if not gone:
            return
        self._callbacks[how](self, _kafkas(gone))
        for place in gone:
            del self._positions[place]
            self._paused.discard(place)
            if self._group.owners.get(place) is self:
                del self._group.owners[place]

    def close(self) -> None:
        if not self.is_cut_off:
            self._give_up(list(self._positions), "on_revoke")
        self.die()

    def die(self) -> None:
        """As after SIGKILL, when the session has run out."""
        self._group.remove(self)

    # records

    def poll(self, timeout: float) -> _Message | None:
        self._serve()
        found = self._next()
        if found is None:
            self._cluster.clock.sleep(max(timeout, 0.0))
        return found

    def consume(self, count: int, timeout: float) -> list[_Message]:
        found: list[_Message] = []
        while len(found) < count and (message := self._next()) is not None:
            found.append(message)
        return found

    def get_watermark_offsets(self, partition: TopicPartition, *, cached: bool) -> tuple[int, int]:
        log = self._cluster.logs[Place(partition.topic, partition.partition)]
        return log.low, log.end

    def _next(self) -> _Message | None:
        if self.budget <= 0:
            return None
        for place in list(self._positions):
            if place in self._paused:
                continue
            record = next(self._cluster.logs[place].from_(self._positions[place]), None)
            if record is None:
                continue
            self.budget -= 1
            # The next poll begins with another partition.
            del self._positions[place]
            self._positions[place] = record.offset + 1
            return _Message(record)
        return None

    def seek(self, to: TopicPartition) -> None:
        place = Place(to.topic, to.partition)
        if place not in self._positions:
            raise KafkaException(KafkaError(KafkaError._STATE))
        self._positions[place] = to.offset

    def pause(self, partitions: list[TopicPartition]) -> None:
        self._paused |= {Place(one.topic, one.partition) for one in partitions}

    def resume(self, partitions: list[TopicPartition]) -> None:
        self._paused -= {Place(one.topic, one.partition) for one in partitions}

    # commits

    def committed(self, asked: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        at = [self._group.committed.get(Place(one.topic, one.partition)) for one in asked]
        return [
            TopicPartition(one.topic, one.partition, -1001 if offset is None else offset)
            for one, offset in zip(asked, at, strict=True)
        ]

    def commit(
        self, *, offsets: list[TopicPartition], asynchronous: bool
    ) -> list[TopicPartition] | None:
        error: KafkaError | None = None
        if self.is_cut_off or self not in self._group.members:
            error = KafkaError(KafkaError.UNKNOWN_MEMBER_ID)
        elif self._cluster.failing_commits > 0:
            self._cluster.failing_commits -= 1
            error = KafkaError(KafkaError._TIMED_OUT)
        else:
            for one in offsets:
                self._group.committed[Place(one.topic, one.partition)] = Offset(one.offset)
        if asynchronous:
            self._answers.append((error, offsets))
            return None
        if error is not None:
            raise KafkaException(error)
        return offsets


class TopicLogs:
    """What a host asks of topics beside its membership (see `kafka_log.TopicLogs`)."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def log_id(self, place: Place) -> str:
        return log_id(place)

    def ask_anew(self) -> None:
        """Topics are never made anew here."""

    def partitions(self, topic: str) -> int:
        return self._cluster.partitions[topic]

    def span(self, place: Place) -> tuple[Offset, Offset]:
        return self.low(place), Offset(self._cluster.logs[place].end)

    def low(self, place: Place) -> Offset:
        return Offset(self._cluster.logs[place].low)

    def before(self, place: Place, end: Offset, count: int) -> Iterator[Record]:
        found = [r for r in self._cluster.logs[place].from_(0) if r.offset < end]
        return iter(found[-count:])


def log_id(place: Place) -> str:
    return f"{place.topic}/simulated/{place.partition}"


def away(what: str) -> TransientError:
    return TransientError(f"{what} is away")


def _kafkas(places: Iterable[Place]) -> list[TopicPartition]:
    return [TopicPartition(*place) for place in places]
