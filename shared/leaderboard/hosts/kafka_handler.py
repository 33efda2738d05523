"""What a function is to the Kafka host: what it is given, and what it may answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from leaderboard.errors import LeaderboardError, RefusedError
from leaderboard.events import Record
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, Place


class ReplayError(LeaderboardError):
    """The handler has to read a partition again, from `offset` (None: as far back as it
    goes)."""

    def __init__(self, offset: Offset | None, place: Place | None = None) -> None:
        super().__init__(f"replay from {offset}")
        self.offset = offset
        self.place = place
        """Which partition, where it is not that of the batch at hand."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A partition that this process owns from now on. `log_id` names topic and partition, and
    the topic's own id: one made anew is another log. `committed` is where the group stands."""

    topic: str
    partition: int
    log_id: str
    committed: Offset | None
    low: Offset
    """The oldest offset that the log still holds."""
    partitions: int
    """How many the topic has."""
    end: Offset | None = None
    """The offset that its next record gets; None: not asked."""

    @property
    def place(self) -> Place:
        return Place(self.topic, self.partition)


@dataclass(frozen=True, slots=True)
class Refused:
    """An event of a batch that can never work."""

    offset: Offset
    error: RefusedError


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one partition, in order. `entries` are those that are events, decoded; it may
    be empty."""

    topic: str
    partition: int
    log_id: str
    entries: Sequence[LogEntry]
    next_offset: Offset
    """The offset after the last record of the batch."""
    records: Sequence[Record] = ()
    """Every record of the batch as it came, also those that are no entries."""
    unreadable: Sequence[Refused] = ()
    """Those records that could not be decoded. The host sees to them, see `KafkaHost`."""

    @property
    def place(self) -> Place:
        return Place(self.topic, self.partition)


class Handler(Protocol):
    """A function, as the host sees it. `assigned`, the steps of a batch and `tick` may raise
    TransientError and are repeated then, a batch from `begin` on.

    A batch goes through `begin`, `join`, `handle` and `settle`, in this order, each batch after
    the one before it; but while more is waiting, `begin` of the next one comes between `join` and
    `handle`, and its `join` may come before `settle`. So whatever takes long is begun first."""

    def assigned(self, assignment: Assignment) -> Offset | None:
        """Where to start reading, None for where the group stands; never further than that."""

    def revoked(self, place: Place) -> None:
        """The partition belongs to somebody else now: forget what was known of it. Also called
        where `assigned` was not, or did not end well."""

    def begin(self, batch: Batch) -> None:
        """Set the effects of the batch going; they need not be done."""

    def join(self, batch: Batch) -> None:
        """Wait until what was begun is done. May be repeated.

        Raises ReplayError to read again from an earlier offset, as every step does."""

    def handle(self, batch: Batch) -> Sequence[Refused]:
        """Do what is left to do; what is answered is refused like what can't be read."""

    def settle(self, batch: Batch) -> None:
        """Effects and dead letters of the batch are confirmed; the commit comes next."""

    def forget(self, batch: Batch) -> None:
        """What was begun is not finished as it is: begun anew, or by somebody else."""

    def safe(self, place: Place, next_offset: Offset) -> Offset:
        """How far the partition may be committed: `next_offset`, or less while work is open."""

    def tick(self) -> float:
        """Do what is due by the clock; the seconds until the next call is wanted.

        Raises ReplayError naming an owned partition to read that one again."""


class RecordSink(Protocol):
    """Where dead letters go: returns when all are acknowledged, else raises TransientError."""

    def send(self, records: Iterable[Record]) -> None: ...


class InOneStep:
    """For a handler that does all of a batch in `handle`."""

    def begin(self, batch: Batch) -> None:
        """Nothing yet."""

    def join(self, batch: Batch) -> None:
        """Nothing was begun."""

    def forget(self, batch: Batch) -> None:
        """Nothing was begun."""
