"""Which records this process has buried already: read again, they are not buried a second time.

A partition is read again after boards were lost, perhaps from far back, and what was refused then
is refused again. A crash between dead letter and commit may still bury a record twice; readers of
the topic take the copies for one (dead_letters.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from leaderboard.events import Record

REMEMBERED: Final = 100_000
"""Dead letters, the newest of all partitions: some 20 MB at the most."""


class Buried:
    """Remembers records by place and content, so that a topic made anew, or one that lost its
    tail, has every dead letter of its own."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._known: OrderedDict[tuple[str, int, int], tuple[int, int]] = OrderedDict()

    def __contains__(self, record: Record) -> bool:
        return self._known.get(_place(record)) == _content(record)

    def add(self, records: Iterable[Record]) -> None:
        """They are confirmed in the dead-letter topic."""
        for record in records:
            self._known[_place(record)] = _content(record)
            self._known.move_to_end(_place(record))
        while len(self._known) > self._remembered:
            self._known.popitem(last=False)


def _place(record: Record) -> tuple[str, int, int]:
    return record.topic, record.partition, record.offset


def _content(record: Record) -> tuple[int, int]:
    return record.timestamp_ms, hash((record.key, record.value, record.headers))
