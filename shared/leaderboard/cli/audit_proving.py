"""Where in the audit log something is, for `leaderboard audit prove`.

The record may say where to look. What is found is a leaf of the log either way, and it says itself
what it is; without a record the log is read through."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from leaderboard.audit_leaves import (
    Leaf,
    canonical,
    commitment,
    decode,
    log_keys,
    opening,
    said,
)
from leaderboard.cli.audit_log import Logs
from leaderboard.cli.context import CommandError
from leaderboard.errors import NotFoundError
from leaderboard.events import POSITION_CHANGES, WAGERS
from leaderboard.model import Place

if TYPE_CHECKING:
    from rich.progress import Progress

    from leaderboard.audit.reader import AuditReader

Found = tuple[Place, int, "AuditReader"]
_ENTRY = re.compile(r"(.+/\d+):(\d+)")


@dataclass(frozen=True, slots=True)
class Sought:
    """What finding needs. `engine` is the record's, None without one."""

    logs: Logs
    bar: Progress
    engine: Any
    tombstone_key: bytes


def find_entry(sought: Sought, text: str) -> Found:
    """A leaf by its number in a shard. Raises CommandError where there is none, like the rest."""
    found = _ENTRY.fullmatch(text)
    if found is None:
        raise click.UsageError(f"{text[:80]!r} is no entry like wagers/3:1234")
    (place,) = sought.logs.places([found[1]])
    reader = sought.logs.open(place)
    if int(found[2]) >= reader.size:
        raise CommandError(f"{place} has {reader.size} entries, and no number {found[2]}")
    return place, int(found[2]), reader


def find_event(sought: Sought, source: str, event_id: str, tournament: str | None) -> Found:
    """An input by its source and id; of repetitions the one that counted, else the first."""
    wanted = log_keys(sought.tombstone_key).id_of(source, event_id)
    if sought.engine is not None:
        from leaderboard.adapters.sql_witness import where_applied

        for place, offset in where_applied(sought.engine, source, event_id, tournament):
            reader = sought.logs.open(place)
            index = index_of(reader, offset)
            if index is not None and decode(reader.entry(index)).id == wanted:
                return place, index, reader
    parts = [b'"id":"%b"' % wanted.encode()]
    if tournament is not None:
        parts.append(b'"tournament":%b' % canonical(tournament))
    for found in _scan(sought, WAGERS, parts):
        leaf = decode(found[2].entry(found[1]))
        if leaf.id == wanted and tournament in (None, leaf.tournament_id):
            return found
    raise CommandError(f"the log has no event {event_id[:80]!r} of {source[:80]!r}")


def find_change(sought: Sought, tournament: str, sequence: int) -> Found:
    """A position change by its id, the first that told it."""
    parts = [b'"sequence":%d' % sequence, b'"tournament":%b' % canonical(tournament)]
    for found in _scan(sought, POSITION_CHANGES, parts):
        leaf = decode(found[2].entry(found[1]))
        if leaf.tournament_id == tournament and (leaf.data or {}).get("sequence") == sequence:
            return found
    raise CommandError(f"the log has no position change {tournament}/{sequence}")


def opening_of(sought: Sought, leaf: Leaf) -> dict[str, str]:
    """What opens the commitment of an input's leaf, and no other one: its key, and what it is
    committed to. Raises CommandError where the record or its key is gone."""
    from leaderboard.adapters.sql_witness import witness_of

    if sought.engine is None:
        raise CommandError("--opening: the data are in the record: set DATABASE_URL")
    if leaf.place.topic != WAGERS or leaf.tournament_id is None:
        raise CommandError("--opening: the record has the data of events in wagers only")
    with witness_of(sought.engine, sought.tombstone_key) as witness:
        row = witness.input_at(leaf.tournament_id, leaf.offset)
        if row is None:
            raise CommandError(f"--opening: the record has no input at offset {leaf.offset}")
        secret = log_keys(sought.tombstone_key).others
        if leaf.player is not None or leaf.is_of_nobody:
            key = witness.key_of(leaf.tournament_id, row.player_id or "")
            if key is None:
                raise CommandError("--opening: the player was erased, and the key destroyed")
            secret = key.secret
    key_of_leaf = opening(secret, leaf.place.topic, leaf.place.partition, leaf.offset)
    if commitment(key_of_leaf, said(row.event_id, row.data.encode())) != leaf.commitment:
        raise CommandError("--opening: the record's data are not what the log is committed to")
    return {"key": key_of_leaf.hex(), "id": row.event_id, "data": row.data}


def index_of(reader: AuditReader, offset: int) -> int | None:
    """The number of the leaf with this Kafka offset; None where there is none: offsets rise."""
    low, high = 0, reader.size
    while low < high:
        middle = (low + high) // 2
        if decode(reader.entry(middle)).offset < offset:
            low = middle + 1
        else:
            high = middle
    if low == reader.size or decode(reader.entry(low)).offset != offset:
        return None
    return low


def _scan(sought: Sought, topic: str, parts: list[bytes]) -> Iterator[Found]:
    """Leaves that hold all these bytes, shard by shard."""
    for place in sought.logs.places():
        if place.topic != topic:
            continue
        try:
            reader = sought.logs.open(place)
        except NotFoundError:
            continue
        task = sought.bar.add_task(f"looking in {place}", total=reader.size)
        for index, raw in enumerate(reader.entries()):
            if index % 1000 == 0:
                sought.bar.update(task, completed=index)
            if all(part in raw for part in parts):
                yield place, index, reader
        sought.bar.remove_task(task)
