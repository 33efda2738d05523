"""Writing an event where the game platform writes its own data: in one transaction.

    with engine.begin() as connection:
        connection.execute(...)              # the platform's own wager
        put(connection, event)               # and what the leaderboard is to know of it

Both are there afterwards, or neither. Kafka is not needed for that and not asked; the relay (or
Debezium) sends later. `put` inserts one row and takes no lock that another event would wait for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mssql, postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Session, scoped_session

from leaderboard.codec import JSON_TYPE, decode_kafka, encode_kafka
from leaderboard.errors import Refusal, RefusedError
from leaderboard.events import TOPICS, WAGERS, Event, Record
from leaderboard.producer.tables import DIALECTS, OUTBOX, lane_of, now_ms

__all__ = ["put", "record_of"]

_COLUMNS: Final = (
    *("lane", "event_key", "topic", "tournament_id", "event_id", "source", "type", "time"),
    *("subject", "traceparent", "extensions", "data"),
)
_IN_COLUMNS: Final = {
    "ce_id": "event_id",
    "ce_source": "source",
    "ce_type": "type",
    "ce_time": "time",
    "ce_subject": "subject",
    "ce_traceparent": "traceparent",
}
_NOT_KEPT: Final = {"ce_specversion", "ce_partitionkey", "content-type"}
_CONTENT_TYPE: Final = ("content-type", JSON_TYPE.encode())
_DRIVERS: Final = {
    "psycopg": ("postgresql", "format"),
    "psycopg2": ("postgresql", "format"),
    "sqlite3": ("sqlite", "qmark"),
    "pyodbc": ("mssql", "qmark"),
    "pymssql": ("mssql", "format"),
}
"""DB-API modules that `put` knows: their database and how they mark parameters."""


def put(connection: object, event: Event, topic: str = WAGERS, *, captured: bool = False) -> bool:
    """Write `event` to the outbox in the caller's open transaction; the caller commits.

    `connection`: a SQLAlchemy Connection or Session, or a connection or cursor of psycopg,
    psycopg2, sqlite3, pyodbc or pymssql. Returns False, and writes nothing, when an event with
    the same topic, tournament, source and id is in the outbox already (rows stay for a while after
    they were sent, see RELAY_KEEP_SECONDS): so a transaction that is tried again is harmless.

    `captured`: Debezium reads the table's changes from the database's log. The row is taken away
    again in the same transaction, so that the table stays empty.

    The event is read back with the codec of those who receive it. Raises RefusedError, with
    the reason they would give, and writes nothing: the transaction is still sound. Raises
    TypeError for a connection of another kind, and whatever the driver raises."""
    row = _row_of(event, topic)
    if captured and row["extensions"] is not None:
        raise RefusedError(Refusal.SCHEMA, "Debezium's event router carries no extensions")
    if isinstance(connection, Session | scoped_session):
        connection = connection.connection()
    if isinstance(connection, sa.Connection):
        name = connection.dialect.name
        written = connection.execute(_insert(name), row).rowcount
        if captured:
            connection.execute(_delete(), {"key": row["event_key"]})
    else:
        cursor, name, style = _cursor_of(connection)
        insert, order = _compiled(name, style, "insert")
        cursor.execute(insert, tuple(row[column] for column in order))
        written = cursor.rowcount
        if captured:
            cursor.execute(_compiled(name, style, "delete")[0], (row["event_key"],))
        if cursor is not connection:
            cursor.close()
    return bool(written != 0)


def record_of(row: Mapping[str, Any], number: int | None) -> Record:
    """The record of an outbox row, with `number` as its `sequence`, checked as receivers will.

    Equal to what the codec writes for the event. Raises RefusedError for a row that no receiver
    could read (written by other means than `put`, or changed since)."""
    key = row["tournament_id"]
    try:
        headers: list[tuple[str, bytes | None]] = [
            ("ce_specversion", row["specversion"].encode()),
            ("ce_id", row["event_id"].encode()),
            ("ce_source", row["source"].encode()),
            ("ce_type", row["type"].encode()),
            ("ce_time", row["time"].encode()),
        ]
        if (subject := row["subject"]) is not None:
            headers.append(("ce_subject", subject.encode()))
        raw_key = None if key is None else key.encode()
        if raw_key is not None:
            headers.append(("ce_partitionkey", raw_key))
        if number is not None:
            headers.append(("ce_sequence", b"%d" % number))
        if (trace := row["traceparent"]) is not None:
            headers.append(("ce_traceparent", trace.encode()))
        if (extensions := row["extensions"]) is not None:
            headers += [(f"ce_{name}", text.encode()) for name, text in _read(extensions)]
        headers.append(_CONTENT_TYPE)
        record = Record(row["topic"], raw_key, row["data"].encode(), tuple(headers))
    except (UnicodeEncodeError, AttributeError):
        raise RefusedError(Refusal.SCHEMA, "the row holds something that is no text") from None
    _check(record)
    if lane_of(key, row["source"]) != row["lane"]:
        raise RefusedError(Refusal.WRONG_KEY, "the row is not in its tournament's lane")
    return record


def _check(record: Record) -> None:
    if record.topic not in TOPICS:
        raise RefusedError(Refusal.SCHEMA, f"there is no topic {record.topic[:80]!r}")
    read = decode_kafka(record)
    if (None if record.key is None else record.key.decode()) != read.tournament_id:
        raise RefusedError(Refusal.WRONG_KEY, "the row's tournament is not that of its data")


def _read(text: str) -> list[tuple[str, str]]:
    """Extensions as they are kept."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise RefusedError(Refusal.SCHEMA, "extensions is no JSON object of strings")
    if "sequence" in found:
        raise RefusedError(Refusal.SCHEMA, "sequence is for the relay to give")
    return list(found.items())


def _row_of(event: Event, topic: str) -> dict[str, Any]:
    if event.sequence is not None or "sequence" in event.extensions:
        raise RefusedError(Refusal.SCHEMA, "sequence is for the relay to give")
    try:
        record = encode_kafka(event, topic)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        # Data that went round its model's checks; pydantic's own errors are ValueErrors.
        detail = f"can't be encoded: {type(error).__name__}"
        raise RefusedError(Refusal.SCHEMA, detail) from error
    _check(record)
    row: dict[str, Any] = dict.fromkeys(_COLUMNS)
    extensions = {}
    for name, raw in record.headers:
        text = (raw or b"").decode()
        if column := _IN_COLUMNS.get(name):
            row[column] = text
        elif name not in _NOT_KEPT:
            extensions[name.removeprefix("ce_")] = text
    key = event.tournament_id
    row["topic"], row["tournament_id"], row["data"] = topic, key, (record.value or b"").decode()
    row["lane"] = lane_of(key, event.source)
    row["extensions"] = json.dumps(extensions, ensure_ascii=False) if extensions else None
    told = "\n".join((topic, key or "", event.source, event.id))
    row["event_key"] = blake2b(told.encode(), digest_size=16).hexdigest()
    return row


def _cursor_of(connection: Any) -> tuple[Any, str, str]:
    for one in type(connection).__mro__:
        if (known := _DRIVERS.get(one.__module__.partition(".")[0])) is not None:
            if "Async" in one.__name__:
                break
            cursor = connection if hasattr(connection, "fetchone") else connection.cursor()
            return cursor, *known
    kind = type(connection)
    raise TypeError(
        f"{kind.__module__}.{kind.__name__} is no SQLAlchemy Connection or Session and no "
        f"connection or cursor of {', '.join(_DRIVERS)}"
    )


@lru_cache(maxsize=8)
def _insert(dialect: str) -> sa.Insert:
    values: dict[str, Any] = {column: sa.bindparam(column) for column in _COLUMNS}
    match dialect:
        case "postgresql":
            # No target is named: then the right to INSERT is all that the platform needs.
            statement: Any = postgresql.insert(OUTBOX).on_conflict_do_nothing()
        case "sqlite":
            statement = sqlite.insert(OUTBOX).on_conflict_do_nothing()
        case "mssql":  # there the index itself leaves out what comes again, see `tables.ddl`
            statement = sa.insert(OUTBOX)
        case _:
            raise TypeError(f"the outbox is made for {', '.join(DIALECTS)}, not for {dialect}")
    made: sa.Insert = statement.values(**values, written_at_ms=now_ms()).inline()
    # Else the count of an INSERT is thrown away, and some drivers' is -1 then.
    return made.execution_options(preserve_rowcount=True)


@lru_cache(maxsize=1)
def _delete() -> sa.Delete:
    return sa.delete(OUTBOX).where(OUTBOX.c.event_key == sa.bindparam("key"))


@lru_cache(maxsize=32)
def _compiled(name: str, style: str, what: str) -> tuple[str, tuple[str, ...]]:
    """The statement as text with the driver's own marks, and the order of its parameters."""
    kinds: dict[str, Any] = {
        "postgresql": postgresql.dialect,
        "sqlite": sqlite.dialect,
        "mssql": mssql.dialect,
    }
    dialect: Dialect = kinds[name](paramstyle=style)
    statement = _insert(name) if what == "insert" else _delete()
    compiled: Any = statement.compile(dialect=dialect)
    return str(compiled), tuple(compiled.positiontup)
