"""How far the record is in each partition: the guard of everything that is written to it."""

from __future__ import annotations

import sqlalchemy as sa

from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import insert, locked
from leaderboard.errors import ForeignLogError, TransientError
from leaderboard.model import Offset

_TABLE = tables.log_positions


def position_of(
    connection: sa.Connection, topic: str, partition: int, log_id: str
) -> Offset | None:
    """Everything below this offset is in the record; None where it knows nothing of the log.

    Raises ForeignLogError for another log than the one that was read before."""
    found = connection.execute(_select(topic, partition)).first()
    if found is None:
        return None
    _check(found, topic, log_id)
    return Offset(found.next_offset)


def take_position(
    connection: sa.Connection, topic: str, partition: int, log_id: str, next_offset: Offset
) -> Offset | None:
    """Advance the record's place in a partition to `next_offset`; the place before, from which
    records are new to it. None when it is there already.

    Holds the row until the transaction ends, so of two owners the later one waits, and then finds
    it taken. Raises ForeignLogError for another log than before."""
    found = connection.execute(locked(_select(topic, partition), connection.dialect.name)).first()
    if found is None:
        try:
            insert(connection, _TABLE, [(topic, partition, log_id, next_offset)])
        except sa.exc.IntegrityError:
            raise TransientError("another owner has just begun with this partition") from None
        return Offset(0)
    _check(found, topic, log_id)
    if found.next_offset >= next_offset:
        return None
    connection.execute(
        sa.update(_TABLE)
        .where(_TABLE.c.topic == topic, _TABLE.c.log_partition == partition)
        .values(next_offset=next_offset)
    )
    return Offset(found.next_offset)


def _select(topic: str, partition: int) -> sa.Select[tuple[str, int]]:
    return sa.select(_TABLE.c.log_id, _TABLE.c.next_offset).where(
        _TABLE.c.topic == topic, _TABLE.c.log_partition == partition
    )


def _check(found: sa.Row[tuple[str, int]], topic: str, log_id: str) -> None:
    if found.log_id != log_id:
        raise ForeignLogError(f"the record of {topic} is of the log {found.log_id}, not {log_id}")
