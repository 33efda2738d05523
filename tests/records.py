"""Databases of the record for tests: a new one for each, in SQLite or in a shared PostgreSQL."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from leaderboard.adapters import sql_migrations
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import connect, reading
from leaderboard.adapters.sql_fold import Input
from leaderboard.fold import LogEntry
from leaderboard.settings import DatabaseSettings, load

DIALECTS = ("sqlite", "postgresql")


def loaded(url: str) -> str:
    """A URL as the functions get it."""
    return load(DatabaseSettings, {"DATABASE_URL": url}).url


@contextlib.contextmanager
def fresh_database(dialect: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """The URL of an empty database; what is in it is gone afterwards."""
    if dialect == "sqlite":
        yield loaded(f"sqlite:///{folder / f'{uuid.uuid4().hex}.sqlite'}")
        return
    url = request.getfixturevalue("postgres")
    with fresh_postgres(url) as made:
        yield made


@contextlib.contextmanager
def fresh_postgres(url: str) -> Iterator[str]:
    """An empty database in this server."""
    name = f"record_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield loaded(f"{url.rpartition('/')[0]}/{name}")
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            gone = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            connection.execute(gone)


@contextlib.contextmanager
def engine_of(url: str, *, migrated: bool = True) -> Iterator[sa.Engine]:
    """An engine, disposed of at the end; the schema is made first, unless told not to."""
    if migrated:
        sql_migrations.upgrade(url)
    engine = connect(url)
    try:
        yield engine
    finally:
        engine.dispose()


def put_down(entries: list[LogEntry]) -> list[Input]:
    """Entries with their data as they would come."""
    return [Input(one, one.event.data.model_dump_json()) for one in entries]


def dump(engine: sa.Engine) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table of the record that is there, in the order of their keys."""
    with reading(engine) as connection:
        there = set(sa.inspect(connection).get_table_names())
        return {
            table.name: [
                tuple(row)
                for row in connection.execute(sa.select(table).order_by(*table.primary_key))
            ]
            for table in tables.metadata.sorted_tables
            if table.name in there
        }
