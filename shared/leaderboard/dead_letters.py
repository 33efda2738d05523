"""Dead letters: how a refused event is kept, known again, sent once more, and done with.

A topic's dead letters lie in `<topic>-dlq`, each the event as it came with the host's `dlq_*`
headers behind its own. Kafka can't take one record away, so what was replayed or dropped is
followed by a *mark* in the same topic: a record without a value whose headers say which one.
A mark has no `dlq_reason`, a dead letter always has: no header of a producer's makes one the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from leaderboard.errors import RefusedError
from leaderboard.events import Record, dead_letter_topic, parse_time_ms
from leaderboard.model import Place, is_id

HEADERS: Final = "dlq_"
ATTEMPTS: Final = "dlq_attempts"
"""How often the event was replayed before it was refused (again); travels with the event."""
MAX_DETAIL: Final = 500
MAX_SEARCHED_BYTES: Final = 64 * 1024

Fate = Literal["replayed", "dropped"]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A refused event. `record` is what lies in the dead-letter topic, with its place there."""

    record: Record
    reason: str
    detail: str
    at: str
    """When it was refused, as the host wrote it."""
    origin: Place
    origin_offset: int
    attempts: int

    @property
    def at_ms(self) -> int:
        """When it was refused; when it came into the topic, should the header not be readable."""
        try:
            return parse_time_ms(self.at)
        except ValueError:
            return self.record.timestamp_ms

    @property
    def identity(self) -> tuple[int, Place, int]:
        """The same for every copy: a crash of the host may bury an event twice."""
        return self.record.partition, self.origin, self.origin_offset

    def tournaments(self) -> frozenset[str]:
        """Every tournament that the event names: by key, by attribute, in its data."""
        keys = (raw for name, raw in self.record.headers if name.lower() == "ce_partitionkey")
        names = [self.record.key, *keys]
        found = {raw.decode("utf-8", "replace") for raw in names if raw}
        value = self.record.value or b""
        if value[:1] == b"{" and len(value) <= MAX_SEARCHED_BYTES:
            try:
                body = json.loads(value)
            except (ValueError, RecursionError):
                return frozenset(found)
            for one in (body, body.get("data")):
                if isinstance(one, dict) and isinstance(one.get("tournament_id"), str):
                    found.add(one["tournament_id"])
        return frozenset(found)


@dataclass(frozen=True, slots=True)
class Mark:
    """What became of a dead letter, and of every copy of it that lies before it."""

    partition: int
    """Of the dead-letter topic."""
    offset: int
    origin: Place
    origin_offset: int
    fate: Fate
    by: str
    at: str

    @property
    def identity(self) -> tuple[int, Place, int]:
        return self.partition, self.origin, self.origin_offset


def bury(record: Record, error: RefusedError, at: str) -> Record:
    """The dead letter of an event: as it came, its headers, and why and where it was refused."""
    told = {
        "dlq_reason": error.reason.value,
        "dlq_detail": error.detail[:MAX_DETAIL],
        "dlq_topic": record.topic,
        "dlq_partition": str(record.partition),
        "dlq_offset": str(record.offset),
        "dlq_at": at,
    }
    topic = dead_letter_topic(record.topic)
    return Record(topic, record.key, record.value, (*record.headers, *_encoded(told)))


def revive(letter: DeadLetter) -> Record:
    """The event as it came, for the topic it came to: same key, same value, so the same id and
    source. Of our headers only the count of attempts goes with it."""
    own = tuple(one for one in letter.record.headers if not one[0].startswith(HEADERS))
    attempts = _encoded({ATTEMPTS: str(letter.attempts + 1)})
    return Record(letter.origin.topic, letter.record.key, letter.record.value, (*own, *attempts))


def mark(letter: DeadLetter, fate: Fate, by: str, at: str) -> Record:
    """The record that says what became of a dead letter. It has the same key, so it comes into
    the same partition, and outlives the letter."""
    told = {
        "dlq_handled": fate,
        "dlq_handled_partition": str(letter.record.partition),
        "dlq_handled_offset": str(letter.record.offset),
        "dlq_handled_by": by,
        "dlq_handled_at": at,
        "dlq_topic": letter.origin.topic,
        "dlq_partition": str(letter.origin.partition),
        "dlq_offset": str(letter.origin_offset),
    }
    return Record(letter.record.topic, letter.record.key, None, tuple(_encoded(told)))


def read(record: Record) -> DeadLetter | Mark | None:
    """What a record of a dead-letter topic is; None: nothing of ours."""
    # The host's own headers come last, whatever the producer had called its.
    told = {
        name: raw.decode("utf-8", "replace")
        for name, raw in record.headers
        if name.startswith(HEADERS) and raw is not None
    }
    try:
        origin = Place(told["dlq_topic"], int(told["dlq_partition"]))
        offset = int(told["dlq_offset"])
        if (reason := told.get("dlq_reason")) is None:
            return _mark_of(told, origin, offset)
    except (KeyError, ValueError):
        return None
    attempts = told.get(ATTEMPTS, "")
    return DeadLetter(
        record,
        reason,
        told.get("dlq_detail", ""),
        told.get("dlq_at", ""),
        origin,
        offset,
        int(attempts) if attempts.isascii() and attempts.isdecimal() else 0,
    )


def ids_in(
    key: str | None, headers: Mapping[str, str | None], value: bytes | None
) -> frozenset[str]:
    """Everything in a refused event that may be the id of its player: its key, its subject, and
    each text of its value where that is JSON, names of members included, wherever it stands.

    Not found is what is a part of a longer text, encoded, or in a value that nobody can read or
    that is over `MAX_SEARCHED_BYTES`."""
    found = {text for name, text in headers.items() if name.lower() == "ce_subject"}
    found |= {key, *_texts_of(value or b"")}
    return frozenset(text for text in found if text is not None and is_id(text))


def _texts_of(value: bytes) -> Iterator[str]:
    if len(value) > MAX_SEARCHED_BYTES:
        return
    try:
        waiting = [json.loads(value.decode())]
    except (ValueError, RecursionError):
        return
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
            yield from one
            if isinstance(number := one.get("player_id"), int):
                # No id, and refused for that; it says who it is all the same.
                yield str(number)


def _mark_of(told: Mapping[str, str], origin: Place, origin_offset: int) -> Mark | None:
    fate = told["dlq_handled"]
    if fate not in ("replayed", "dropped"):
        return None
    return Mark(
        int(told["dlq_handled_partition"]),
        int(told["dlq_handled_offset"]),
        origin,
        origin_offset,
        "replayed" if fate == "replayed" else "dropped",
        told.get("dlq_handled_by", ""),
        told.get("dlq_handled_at", ""),
    )


def _encoded(told: Mapping[str, str]) -> Iterable[tuple[str, bytes | None]]:
    return ((name, text.encode("utf-8", "replace")) for name, text in told.items())
