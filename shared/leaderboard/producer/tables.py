"""The outbox's tables, for PostgreSQL, SQL Server and SQLite.

    leaderboard_outbox         one row an event, written in the game platform's own transaction
    leaderboard_outbox_lanes   64 rows: which relay sends a lane, what it is sending, its counter
    leaderboard_outbox_relays  the relays that are alive, by name

A tournament lies in one lane for ever (murmur2 of its id, modulo 64), so a lane's counter numbers
all of its tournaments. The number of lanes is part of the format: change it and numbers go back.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import mssql, postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql.expression import FunctionElement

from leaderboard.partitioning import partition_of

LANES: Final = 64
DialectName = Literal["postgresql", "mssql", "sqlite"]
_LITERAL: Final = {"literal_binds": True}
DIALECTS: Final[tuple[DialectName, ...]] = ("postgresql", "mssql", "sqlite")


class now_ms(FunctionElement[int]):  # noqa: N801 - it is a function of SQL
    """The database's clock, milliseconds since 1970: one clock for all who write and relay."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(now_ms, "postgresql")
def _now_postgresql(element: Any, compiler: Any, **_: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


@compiles(now_ms, "mssql")
def _now_mssql(element: Any, compiler: Any, **_: Any) -> str:
    return "DATEDIFF_BIG(millisecond, '1970-01-01', SYSUTCDATETIME())"


@compiles(now_ms, "sqlite")
def _now_sqlite(element: Any, compiler: Any, **_: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


_META: Final = sa.MetaData()
_BIG: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

OUTBOX: Final = sa.Table(
    "leaderboard_outbox",
    _META,
    # Order of writing. A sequence of the database: no transaction waits for another one.
    sa.Column("position", _BIG, sa.Identity(), primary_key=True),
    sa.Column("lane", sa.SmallInteger(), nullable=False),
    # Hash of topic, tournament, source and id: an event that is put again is found by it.
    sa.Column("event_key", sa.String(32), nullable=False),
    sa.Column("topic", sa.String(64), nullable=False),
    sa.Column("tournament_id", sa.String(64)),
    sa.Column("specversion", sa.String(8), nullable=False, server_default="1.0"),
    sa.Column("event_id", sa.Unicode(512), nullable=False),
    sa.Column("source", sa.Unicode(512), nullable=False),
    sa.Column("type", sa.String(128), nullable=False),
    sa.Column("time", sa.String(32), nullable=False),
    sa.Column("subject", sa.Unicode(512)),
    sa.Column("traceparent", sa.Unicode(512)),
    # Further CloudEvents attributes, a JSON object of strings.
    sa.Column("extensions", sa.Unicode()),
    # The event's data as JSON: the record's value, byte for byte.
    sa.Column("data", sa.Unicode(), nullable=False),
    sa.Column("written_at_ms", sa.BigInteger(), nullable=False),
    # One of the two ends the row's wait: sent, or set aside with a reason.
    sa.Column("sent_at_ms", sa.BigInteger()),
    sa.Column("refused", sa.Unicode(1000)),
    sqlite_autoincrement=True,
)
_WAITS: Final = sa.text("sent_at_ms IS NULL AND refused IS NULL")
_REFUSED: Final = sa.text("refused IS NOT NULL")
WAITING: Final = sa.Index(
    "leaderboard_outbox_waiting",
    OUTBOX.c.position,
    OUTBOX.c.lane,
    postgresql_where=_WAITS,
    sqlite_where=_WAITS,
    mssql_where=_WAITS,
)
SET_ASIDE: Final = sa.Index(
    "leaderboard_outbox_refused",
    OUTBOX.c.position,
    postgresql_where=_REFUSED,
    sqlite_where=_REFUSED,
    mssql_where=_REFUSED,
)
ONCE: Final = sa.Index("leaderboard_outbox_once", OUTBOX.c.event_key, unique=True)

LANE: Final = sa.Table(
    "leaderboard_outbox_lanes",
    _META,
    sa.Column("lane", sa.SmallInteger(), primary_key=True, autoincrement=False),
    # Instance of the relay that sends this lane; free when that one is not alive.
    sa.Column("owner", sa.String(32)),
    # Above every number that was ever given in this lane.
    sa.Column("next_number", sa.BigInteger(), nullable=False),
    # What is being sent: the first one's number, and the positions (JSON) in their order.
    sa.Column("batch_number", sa.BigInteger(), nullable=False),
    sa.Column("batch", sa.Unicode(), nullable=False),
)
RELAY: Final = sa.Table(
    "leaderboard_outbox_relays",
    _META,
    sa.Column("name", sa.Unicode(128), primary_key=True),
    sa.Column("instance", sa.String(32), nullable=False),
    sa.Column("alive_until_ms", sa.BigInteger(), nullable=False),
)


def lane_of(tournament_id: str | None, source: str) -> int:
    """The lane of a tournament; events without one go by their source."""
    key = tournament_id if tournament_id is not None else f"\n{source}"
    return partition_of(key.encode(), LANES)


def ddl(name: DialectName) -> str:
    """The statements that make the tables, as a script for the database's own client."""
    dialect: Dialect = _dialect(name)
    parts = [str(CreateTable(table).compile(dialect=dialect)) for table in (OUTBOX, LANE, RELAY)]
    parts += [str(CreateIndex(index).compile(dialect=dialect)) for index in (WAITING, SET_ASIDE)]
    once = str(CreateIndex(ONCE).compile(dialect=dialect))
    if name == "mssql":
        # An event that is put again is left out instead of failing the game's transaction; rows,
        # never whole tables, are locked.
        once += " WITH (IGNORE_DUP_KEY = ON)"
        parts += [
            f"ALTER TABLE {table.name} SET (LOCK_ESCALATION = DISABLE)" for table in (OUTBOX, LANE)
        ]
    rows = [
        {"lane": lane, "next_number": 0, "batch_number": 0, "batch": ""} for lane in range(LANES)
    ]
    fill = sa.insert(LANE).values(rows).compile(dialect=dialect, compile_kwargs=_LITERAL)
    lanes = str(fill).replace("), (", "),\n  (")
    return "".join(f"{_tidy(part)};\n\n" for part in [*parts, once, lanes])


def create(connection: sa.Connection) -> None:
    """Make the tables in the caller's transaction (tests, small installations)."""
    dialect = connection.dialect.name
    if dialect not in DIALECTS:
        raise TypeError(f"the outbox is made for {', '.join(DIALECTS)}, not for {dialect}")
    for statement in ddl(dialect).split(";\n\n"):
        if statement:
            connection.exec_driver_sql(statement)


def _dialect(name: DialectName) -> Dialect:
    made: dict[str, Dialect] = {
        "postgresql": postgresql.dialect(),  # type: ignore[no-untyped-call]  # untyped there
        "mssql": mssql.dialect(),  # type: ignore[no-untyped-call]  # untyped there
        "sqlite": sqlite.dialect(),
    }
    return made[name]


def _tidy(statement: str) -> str:
    return "\n".join(line.rstrip() for line in statement.strip().splitlines()).replace("\t", "  ")
