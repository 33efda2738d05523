"""The cap on dead letters: when a topic can't be read any more, stop instead of diverting it.

A bad deploy (ours, or one of a format that every producer writes) makes the events of *everybody*
unreadable; a bad producer only its own. So the latest records of a topic are looked at by their
source. The consumer stops, before anything of the batch at hand is buried, when more than a share
of them can't be read and

- at least three sources fail (more than that share of their own records), each with a fiftieth of
  all records or more, and they outnumber those sources of that size that do not; or
- they come from at least three sources, and nothing but a fiftieth can be read at all.

One producer is one source, whatever its volume: it can't halt anyone. Nor can one that puts
something new into each record's source (none of them gets to a fiftieth), as long as others are
read. One that keeps three names alive, each with a fiftieth of the traffic and more of them than
there are sound producers of that size, can: names prove nothing, and who may write to a topic
is for its ACLs to say. Records that name no source count as one source together.

What an operator has replayed from the dead letters is not counted: it was looked at.

The window is the log itself: a process that has not read enough looks back, with its own decoder.
So a start does not divert another window's worth, and a slow topic is judged like a busy one.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from leaderboard import telemetry
from leaderboard.dead_letters import ATTEMPTS
from leaderboard.errors import RefusedError, UnreadableTopicError
from leaderboard.events import Event, Record
from leaderboard.hosts.kafka_handler import Batch
from leaderboard.model import Offset, Place

SOURCES_TO_STOP: Final = 3
SHARE_WITH_A_SAY: Final = 0.02
NO_SOURCE: Final = ""
MAX_ENVELOPE_BYTES: Final = 64 * 1024
"""Structured events up to this size are searched for their source."""
SHOWN_SOURCES: Final = 5
logger = logging.getLogger(__name__)

Decode = Callable[[Record], Event | None]
LookBack = Callable[[Place, Offset, int], Iterable[Record]]
"""Place, end (not included) and number of records to read before it."""


Mark = tuple[str, bool]
"""What the cap remembers of a record: its source, and whether it can be read. (Bare, because
there is one for many a wager.)"""


class DeadLetterCap:
    """The cap of one host, over all its topics. `ratio` 1 switches it off. For one thread."""

    def __init__(
        self, name: str, ratio: float, minimum: int, decode: Decode, before: LookBack
    ) -> None:
        self._name = name
        self._ratio = ratio
        self._minimum = minimum
        self._decode = decode
        self._before = before
        self._windows: dict[str, deque[Mark]] = {}
        self._looked_back: set[str] = set()
        self._counted: dict[Place, Offset] = {}
        """Up to where records are in a window: those that are read again are not counted again."""

    def forget(self, place: Place) -> None:
        """The partition is somebody else's now."""
        self._counted.pop(place, None)

    def judge(self, batch: Batch, done: Mapping[Place, Offset]) -> None:
        """Count the batch in. `done`: how far each owned partition is.

        Raises UnreadableTopicError when the topic is not to be diverted any further, and
        TransientError (then it may be called again) when Kafka does not tell what came before."""
        if self._ratio >= 1:
            return
        window = self._windows.setdefault(batch.topic, deque(maxlen=self._minimum))
        if batch.unreadable and len(window) < self._minimum:
            self._look_back(batch, done, window)
        marks = self._marks_of(batch)
        if batch.unreadable:
            self._slide(batch.topic, window, marks)
        else:
            window.extend(marks)
        self._counted[batch.place] = batch.next_offset

    def _marks_of(self, batch: Batch) -> list[Mark]:
        counted = self._counted.get(batch.place, Offset(-1))
        if not batch.unreadable:
            latest = batch.entries[-self._minimum :]
            if latest and latest[0].offset < counted:
                latest = [one for one in latest if one.offset >= counted]
            return [(one.event.source, True) for one in latest]
        by_offset = {one.offset: (one.event.source, True) for one in batch.entries}
        unreadable = {one.offset for one in batch.unreadable}
        for record in batch.records:
            if record.offset in unreadable and not is_replayed(record):
                by_offset[Offset(record.offset)] = (source_of(record), False)
        return [by_offset[offset] for offset in sorted(by_offset) if offset >= counted]

    def _slide(self, topic: str, window: deque[Mark], marks: Sequence[Mark]) -> None:
        """So that it does not matter how the log was cut into batches."""
        unreadable = sum(not is_readable for _, is_readable in window)
        for mark in marks:
            if len(window) == self._minimum:
                unreadable -= not window[0][1]
            window.append(mark)
            unreadable += not mark[1]
            if (
                not mark[1]
                and len(window) >= self._minimum
                and unreadable > self._ratio * len(window)
                and (failing := failing_sources(window, self._ratio))
            ):
                self._stop(topic, unreadable, len(window), failing)
        share = unreadable / len(window) if window else 0.0
        telemetry.UNREADABLE_SHARE.labels(self._name, topic).set(share)

    def _stop(self, topic: str, unreadable: int, count: int, failing: Sequence[str]) -> None:
        telemetry.UNREADABLE_SHARE.labels(self._name, topic).set(unreadable / count)
        telemetry.CAP_STOPS.labels(self._name, topic).inc()
        shown = ", ".join(repr(source[:80]) for source in failing[:SHOWN_SOURCES])
        error = UnreadableTopicError(
            f"{unreadable} of the latest {count} records of {topic} can't be read, from "
            f"{len(failing)} sources ({shown}). Nothing of this batch was buried or committed. "
            "Roll the deploy back that broke them; or, if the records are really bad, set "
            "DEAD_LETTER_CAP_RATIO=1 until they are through."
        )
        logger.critical(
            "the topic can't be read, stopping",
            extra=telemetry.fields(
                topic=topic, unreadable=unreadable, of=count, sources=shown, error=str(error)
            ),
        )
        raise error

    # looking back

    def _look_back(self, batch: Batch, done: Mapping[Place, Offset], window: deque[Mark]) -> None:
        """Once a topic: what lies before that which this process has read itself."""
        if batch.topic in self._looked_back:
            return
        others = [place for place in done if place.topic == batch.topic and place != batch.place]
        earlier: list[Mark] = []
        for place in (batch.place, *sorted(others)):
            if place in self._counted:
                continue  # its latest records are in the window
            if (missing := self._minimum - len(window) - len(earlier)) <= 0:
                break
            end = Offset(batch.records[0].offset) if place == batch.place else done[place]
            earlier = [*self._earlier(place, end, missing), *earlier]
        window.extendleft(reversed(earlier))
        self._looked_back.add(batch.topic)

    def _earlier(self, place: Place, end: Offset, count: int) -> Iterator[Mark]:
        for record in self._before(place, end, count):
            try:
                if (event := self._decode(record)) is not None:
                    yield event.source, True
            except RefusedError:
                if not is_replayed(record):
                    yield source_of(record), False


def failing_sources(window: Iterable[Mark], ratio: float) -> list[str]:
    """The sources for which the consumer has to stop, the worst first; none: it goes on."""
    records: Counter[str] = Counter()
    unreadable: Counter[str] = Counter()
    for source, is_readable in window:
        records[source] += 1
        unreadable[source] += not is_readable
    failing = [
        source for source, count in unreadable.most_common() if count > ratio * records[source]
    ]
    little = SHARE_WITH_A_SAY * records.total()
    if len(failing) >= SOURCES_TO_STOP and records.total() - unreadable.total() <= little:
        return failing
    with_a_say = {source for source, count in records.items() if count >= little}
    failing = [source for source in failing if source in with_a_say]
    sound = len(with_a_say) - len(failing)
    return failing if len(failing) >= SOURCES_TO_STOP and len(failing) > sound else []


def is_replayed(record: Record) -> bool:
    """Whether `dlq replay` has sent it."""
    return any(name == ATTEMPTS for name, _ in record.headers)


def source_of(record: Record) -> str:
    """Who has written a record that our codec can't read, as far as it says so in either mode."""
    for name, raw in record.headers:
        if name.lower() == "ce_source" and raw:
            return raw.decode("utf-8", "backslashreplace")
    value = record.value or b""
    if value[:1] != b"{" or len(value) > MAX_ENVELOPE_BYTES:
        return NO_SOURCE
    try:
        found = json.loads(value).get("source")
    except (ValueError, RecursionError):
        return NO_SOURCE
    return found if isinstance(found, str) else NO_SOURCE
