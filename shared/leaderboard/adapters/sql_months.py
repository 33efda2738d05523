"""The months by which large tables of the record are partitioned, where the dialect can.

PostgreSQL keeps each month in a table of its own, so that what is too old goes by dropping one.
Other dialects keep one table, and the same months as a column.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import sqlalchemy as sa

from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import writing

LOCK: Final = 5_318_008
"""Of PostgreSQL's advisory locks: whoever makes or drops partitions holds it."""


def month_of(time_ms: int) -> int:
    """The month of a time in UTC, as `year × 100 + month`."""
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return moment.year * 100 + moment.month


def month_after(month: int) -> int:
    """The month that follows."""
    year, number = divmod(month, 100)
    return (year + 1) * 100 + 1 if number == 12 else month + 1


def partition_name(table: sa.Table, month: int) -> str:
    """The table that holds a month of `table`."""
    return f"{table.name}_{month}"


class Months:
    """Makes sure that a month can be written to, and the one after it."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._made: set[int] = set()

    def ensure(self, month: int) -> None:
        """Make the partitions of this month and the next, where they are missing. Cheap once it
        is done. Raises TransientError."""
        if month in self._made:
            return
        if self._engine.dialect.name == "postgresql":
            with writing(self._engine) as connection:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
                for each in (month, month_after(month)):
                    _make(connection, each)
        self._made.add(month)


def _make(connection: sa.Connection, month: int) -> None:
    for table in tables.PARTITIONED:
        name = partition_name(table, month)
        if connection.execute(sa.select(sa.func.to_regclass(name))).scalar() is not None:
            continue
        connection.exec_driver_sql(
            f'CREATE TABLE "{name}" PARTITION OF "{table.name}" '
            f"FOR VALUES FROM ({month}) TO ({month + 1})"
        )
