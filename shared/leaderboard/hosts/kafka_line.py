"""Batches that wait for their turn, the first of them read already.

Half of what a batch takes is waiting for a store or a database; reading the next one fills that
time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from confluent_kafka import Message

from leaderboard.hosts.kafka_handler import Batch
from leaderboard.model import Place

Read = Callable[[Place, str, Sequence[Message]], Batch]


@dataclass(slots=True)
class _Unread:
    place: Place
    log_id: str
    messages: Sequence[Message]


class Line:
    """First come, first served. `read` makes a batch of what came, and has no other effect."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._waiting: deque[_Unread | Batch] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, place: Place, log_id: str, messages: Sequence[Message]) -> None:
        """The next batch of a partition, as it came."""
        self._waiting.append(_Unread(place, log_id, messages))

    def put_back(self, batches: Sequence[Batch]) -> None:
        """These come first, in their order."""
        self._waiting.extendleft(reversed(batches))

    def read_next(self) -> None:
        """Read the first batch now, so that `take` has it at once."""
        if self._waiting:
            self._waiting[0] = self._as_batch(self._waiting[0])

    def take(self) -> Batch:
        """The first batch."""
        return self._as_batch(self._waiting.popleft())

    def forget(self, place: Place) -> None:
        """Drop what waits of a partition that went away, or is to be read again."""
        self._waiting = deque(one for one in self._waiting if one.place != place)

    def _as_batch(self, one: _Unread | Batch) -> Batch:
        return one if isinstance(one, Batch) else self._read(one.place, one.log_id, one.messages)
