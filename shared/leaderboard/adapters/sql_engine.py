"""One way to reach the record's database: three dialects, our error for "away", bulk work.

PostgreSQL gets COPY and arrays; SQLite (the embedded stack) and SQL Server get what SQLAlchemy
makes of the same calls. SQL Server's statements are compiled in tests and untried on a server.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, array
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from leaderboard.adapters.sql_login import CONNECT_SECONDS, POSTGRESQL, away, told
from leaderboard.errors import SettingsError, TransientError

POOL_SIZE: Final = 4
"""Connections that a process keeps; twice as many where all are at work."""
SQLITE_WAIT_SECONDS: Final = 30
_KEYS_AT_ONCE: Final = 500
_RETRYABLE: Final = frozenset({"25006", "55P03", "57014", "57P01", "57P02", "57P03"})
"""PostgreSQL: read-only after a failover, locked, cancelled, shutting down or starting up."""
_FORBIDDEN: Final = "42501"
_TYPES: Final[dict[type[Any], str]] = {
    sa.Integer: "int4",
    sa.BigInteger: "int8",
    sa.SmallInteger: "int2",
    sa.Boolean: "bool",
    sa.LargeBinary: "bytea",
}

_ARRAYS: Final[dict[str, Any]] = {
    "int2": sa.SmallInteger(),
    "int4": sa.Integer(),
    "int8": sa.BigInteger(),
    "bool": sa.Boolean(),
    "bytea": sa.LargeBinary(),
    # Without a length: a cast to one would cut what is longer, and find another key.
    "text": sa.Text(),
}
_BETWEEN: Final = "\x1f"
_NULL: Final = "\x1e"


def connect(url: str, *, pool_size: int = POOL_SIZE) -> sa.Engine:
    """An engine for `DatabaseSettings.url`. Connects with the first use.

    Raises SettingsError where its driver is not installed."""
    if url.startswith("sqlite"):
        return _sqlite(url, pool_size)
    args = dict(POSTGRESQL) if url.startswith("postgresql") else {}
    try:
        return sa.create_engine(
            url,
            hide_parameters=True,  # a log of errors must not name players
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=CONNECT_SECONDS,
            pool_pre_ping=True,
            connect_args=args,
        )
    except ModuleNotFoundError as error:
        raise SettingsError(f"DATABASE_URL: its driver is not installed: {error.name}") from None


def _sqlite(url: str, pool_size: int) -> sa.Engine:
    in_memory = url.endswith(":memory:")
    engine = sa.create_engine(
        url,
        hide_parameters=True,
        poolclass=sa.pool.StaticPool if in_memory else None,
        connect_args={"timeout": SQLITE_WAIT_SECONDS, "check_same_thread": False},
        **({} if in_memory else {"pool_size": pool_size, "max_overflow": pool_size}),
    )

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        # The driver's own idea of when a transaction begins is not ours: see `begin` below.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA temp_store = MEMORY")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A writer takes its lock at once: one that read first could find itself overtaken.
        is_writing = connection.get_execution_options().get("writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")

    return engine


@contextmanager
def transient() -> Iterator[None]:
    """Turns what passes by itself (away, full, locked, failing over) into TransientError, and what
    DATABASE_URL asks for in vain (no such option, no right) into SettingsError: it is no bug."""
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeoutError) as error:
        if _is_lasting(error):
            raise
        raise away(getattr(error, "orig", None) or error) from None
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if error.connection_invalidated or state in _RETRYABLE:
            raise TransientError(f"the database is away: {told(error.orig or error)}") from None
        if state == _FORBIDDEN or "invalid connection option" in str(error.orig):
            raise SettingsError(f"DATABASE_URL: {told(error.orig or error)}") from None
        raise


def _is_lasting(error: Exception) -> bool:
    """SQLite calls a table that is not there an operational error, too."""
    return isinstance(error, DBAPIError) and "no such table" in str(error.orig)


def check(engine: sa.Engine) -> None:
    """One short question. Raises TransientError while the database is away."""
    with transient(), engine.connect() as connection:
        connection.execute(sa.select(1))


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction that writes: all of it or nothing. Raises TransientError."""
    with transient(), engine.connect() as connection:
        begun = connection.execution_options(writing=True)
        with begun.begin():
            yield begun


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One consistent view for several reads. Raises TransientError."""
    with transient(), engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection


def locked(statement: sa.Select[Any], dialect: str) -> sa.Select[Any]:
    """The same select, holding its rows until the transaction ends."""
    if dialect == "mssql":
        table = statement.get_final_froms()[0]
        return statement.with_hint(table, "WITH (UPDLOCK, HOLDLOCK, ROWLOCK)", "mssql")
    return statement.with_for_update()  # SQLite's writers are alone anyway, and it leaves this out


# --- many rows at once ---------------------------------------------------------------------------


def insert(connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Add rows, each with a value for every column, in their order."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        columns = ", ".join(f'"{column.name}"' for column in table.columns)
        command = f'COPY "{table.name}" ({columns}) FROM STDIN (FORMAT BINARY)'
        with _driver(connection, command) as cursor, cursor.copy(command) as copy:
            copy.set_types([_type(column) for column in table.columns])
            write = copy.write_row
            for row in rows:
                write(row)
        return
    names = [column.name for column in table.columns]
    connection.execute(sa.insert(table), [dict(zip(names, row, strict=True)) for row in rows])


def update(
    connection: sa.Connection,
    table: sa.Table,
    keys: Sequence[str],
    values: Sequence[str],
    rows: Sequence[tuple[Any, ...]],
) -> None:
    """Set `values` where `keys` match; a row holds the keys first, then the values."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        names = [*keys, *values]
        arrays = [
            _array(table.c[name], list(column))
            for name, column in zip(names, zip(*rows, strict=True), strict=True)
        ]
        given = sa.func.unnest(*arrays).table_valued(*names).render_derived("given")
        connection.execute(
            sa.update(table)
            .where(*(table.c[name] == given.c[name] for name in keys))
            .values({name: given.c[name] for name in values})
        )
        return
    where = [table.c[name] == sa.bindparam(f"k_{name}") for name in keys]
    statement = (
        sa.update(table).where(*where).values({name: sa.bindparam(f"v_{name}") for name in values})
    )
    names = [*(f"k_{name}" for name in keys), *(f"v_{name}" for name in values)]
    connection.execute(statement, [dict(zip(names, row, strict=True)) for row in rows])


def delete(
    connection: sa.Connection,
    table: sa.Table,
    keys: Sequence[str],
    rows: Sequence[tuple[Any, ...]],
) -> None:
    """Remove the rows with these keys."""
    if not rows:
        return
    where = [table.c[name] == sa.bindparam(f"k_{name}") for name in keys]
    names = [f"k_{name}" for name in keys]
    connection.execute(
        sa.delete(table).where(*where), [dict(zip(names, row, strict=True)) for row in rows]
    )


def find(
    connection: sa.Connection,
    statement: sa.Select[Any],
    scope: sa.Column[Any],
    key: sa.Column[Any],
    wanted: Iterable[tuple[Any, Any]],
) -> Iterator[Any]:
    """The rows of `statement` whose (scope, key) is wanted, in any order."""
    pairs = list(wanted)
    if not pairs:
        return
    if connection.dialect.name == "postgresql":
        # Joined with arrays: one plan and one round trip, however many there are.
        arrays = [_array(scope, [one for one, _ in pairs]), _array(key, [two for _, two in pairs])]
        given = sa.func.unnest(*arrays).table_valued("scope", "key").render_derived("wanted")
        joined = statement.where(scope == given.c["scope"], key == given.c["key"])
        yield from connection.execute(joined)
        return
    by_scope: dict[Any, list[Any]] = {}
    for one, other in pairs:
        by_scope.setdefault(one, []).append(other)
    for one, others in by_scope.items():
        for start in range(0, len(others), _KEYS_AT_ONCE):
            some = others[start : start + _KEYS_AT_ONCE]
            yield from connection.execute(statement.where(scope == one, key.in_(some)))


def among(
    connection: sa.Connection,
    statement: sa.Select[Any],
    key: sa.Column[Any],
    wanted: Iterable[Any],
) -> Iterator[Any]:
    """The rows of `statement` whose key is wanted, in any order."""
    values = list(wanted)
    if values and connection.dialect.name == "postgresql":
        yield from connection.execute(statement.where(key == sa.any_(_array(key, values))))
        return
    for start in range(0, len(values), _KEYS_AT_ONCE):
        some = values[start : start + _KEYS_AT_ONCE]
        yield from connection.execute(statement.where(key.in_(some)))


def _array(column: sa.Column[Any], values: Sequence[Any]) -> sa.ColumnElement[Any]:
    """Values as an array of PostgreSQL, sent as one text: the driver makes arrays from lists one
    element at a time, which took longer than all the rest. No value has control characters."""
    kind = _type(column)
    if kind == "text":
        texts = [_NULL if value is None else value for value in values]
    elif kind == "bytea":
        texts = [_NULL if value is None else f"\\x{value.hex()}" for value in values]
    else:
        texts = [_NULL if value is None else str(value) for value in values]
    if texts == [""]:  # which string_to_array makes into an array of none
        return sa.cast(array([""]), ARRAY(_ARRAYS[kind]))
    split = sa.func.string_to_array(sa.bindparam(None, _BETWEEN.join(texts)), _BETWEEN, _NULL)
    return sa.cast(split, ARRAY(_ARRAYS[kind]))


def _type(column: sa.Column[Any]) -> str:
    for kind in type(column.type).__mro__:
        if kind in _TYPES:
            return _TYPES[kind]
    return "text"


@contextmanager
def _driver(connection: sa.Connection, command: str) -> Iterator[Any]:
    """The driver's own cursor, in the same transaction; its errors as SQLAlchemy's, so that here
    as everywhere they say whether they pass by themselves."""
    import psycopg  # noqa: PLC0415 - whoever has another database need not have it

    own: Any = connection.connection
    try:
        with own.cursor() as cursor:
            yield cursor
    except psycopg.Error as error:
        cause: Any = error
        is_gone = connection.dialect.is_disconnect(cause, own.dbapi_connection, None)
        if is_gone:
            connection.invalidate(error)
        told = DBAPIError.instance(
            command, None, error, psycopg.Error,
            connection_invalidated=is_gone, dialect=connection.dialect,
        )  # fmt: skip
        raise told from error
