"""SQL Server: every statement that the record uses, compiled for it and looked at. No server of it
was at hand: nothing here has run on one.

What is compiled is what the adapters really execute: they run on SQLite, are told that it is SQL
Server, and each statement is taken on its way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.dialects import mssql
from sqlalchemy.dialects.mssql.base import RESERVED_WORDS
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql import ClauseElement

from leaderboard.adapters import sql_migrations
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.adapters.sql_engine import connect
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.adapters.sql_retention import CHUNK, POLICIES, Retention, deletion
from leaderboard.adapters.sql_snapshot import SqlSnapshots
from leaderboard.events import WAGERS, Record
from leaderboard.model import Offset, Place, PlayerId, TournamentId
from logs import LOG, START_MS, TOMBSTONE_KEY, erased
from records import fold_of, interleaved, put_down

DIALECT: Any = mssql.dialect(deprecate_large_types=True)  # type: ignore[no-untyped-call]
"""As of SQL Server 2012."""
APP_LOCK = "sp_getapplock"
NEVER = r"\bLIMIT\b|\bRETURNING\b|FOR UPDATE|ON CONFLICT|unnest|string_to_array|IS (NOT )?[01]\b"


def compiled(element: ClauseElement, keys: Sequence[str] | None = None) -> str:
    named: dict[str, Any] = {} if keys is None else {"column_keys": keys}
    return " ".join(str(element.compile(dialect=DIALECT, **named)).split())


@pytest.fixture(scope="module")
def statements(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All that fold, archive, record, snapshots and retention's plan execute."""
    url = f"sqlite:///{tmp_path_factory.mktemp('mssql') / 'record.sqlite'}"
    sql_migrations.upgrade(url)
    engine = connect(url)
    texts: set[str] = set()

    def take(
        _c: sa.Connection, element: Any, many: Sequence[Mapping[str, Any]], one: Any, _o: Any
    ) -> tuple[Any, Any, Any]:
        if isinstance(element, ClauseElement):
            texts.add(compiled(element, list((many[0] if many else one) or {}) or None))
        if isinstance(element, sa.TextClause) and APP_LOCK in element.text:
            element = sa.select(1)  # SQLite has no such thing
        return element, many, one

    sa.event.listen(engine, "before_execute", take, retval=True)
    engine.dialect.name = "mssql"
    try:
        exercise(engine)
    finally:
        engine.dispose()
    return sorted(texts)


def exercise(engine: sa.Engine) -> None:
    log = interleaved(1, tournaments=3, length=120)
    fold, record, snapshots = fold_of(engine, 10), SqlRecord(engine), SqlSnapshots(engine, 10)
    archive = SqlArchive(engine, TOMBSTONE_KEY, now_ms=lambda: START_MS)
    for start in range(0, len(log), 40):
        part = log[start : start + 40]
        fold.apply(0, LOG, put_down(part), Offset(part[-1].offset + 1))
    for name in ("t0", "t1", "t2"):
        tournament = TournamentId(name)
        record.find(tournament)
        record.top(tournament, 3, after_rank=1)
        record.around(tournament, PlayerId("p1"), 2)
        archive.page(tournament, -1, 2)
        for before in (log[60].offset, log[-1].offset + 1):
            with snapshots.taken(tournament, Offset(before)) as taken:
                if taken is not None:
                    drained = (taken.rows, taken.names, taken.older, taken.newer)
                    assert all(list(one) is not None for one in drained)
        snapshots.erasures(tournament)
        archive.confirm(tournament, Offset(before))
    record.all()
    record.sequences([TournamentId("t0")])
    record.tournaments_of(PlayerId("p1"))
    archive.reached(Place(WAGERS, 0), LOG)
    archive.ledgers(0)
    archive.forget(Place("gdpr-events", 0), "g", [erased(0, "p1")], Offset(1))
    archive.keep_dead_letters(Place("wagers-dlq", 0), "d", [letter("p2"), letter("p1")], Offset(2))
    archive.forget(Place("gdpr-events", 0), "g", [erased(1, "p2")], Offset(2))
    record.is_forgotten("er-1")
    snapshots.expected(0, Offset(log[60].offset))
    list(snapshots.entries(0, Offset(0), Offset(99)))
    list(Retention(engine, POLICIES["default"], START_MS).plan())


def letter(subject: str) -> Record:
    place = (0, int(subject == "p1"), START_MS)
    return Record("wagers-dlq", b"t0", b"{}", (("ce_subject", subject.encode()),), *place)


def test_who_forgets_is_alone_and_who_may_name_somebody_is_not(statements: list[str]) -> None:
    """A lock of the transaction, as that is the owner unless another is named."""
    locks = [text for text in statements if APP_LOCK in text]
    modes = sorted(re.findall(r"@LockMode = '(\w+)'", " ".join(locks)))
    assert modes == ["Exclusive", "Shared"]
    assert all("IF @got < 0 THROW" in text and "LockOwner" not in text for text in locks)


def test_every_statement_is_one_of_sql_server(statements: list[str]) -> None:
    assert len(statements) > 40
    for text in statements:
        assert not re.search(NEVER, text), text
        if " OFFSET " in text:
            assert "ORDER BY" in text, "paging is a clause of ORDER BY there"


def test_rows_that_are_read_to_be_changed_are_held(statements: list[str]) -> None:
    (held,) = (text for text in statements if "WITH (" in text)
    assert "FROM log_positions WITH (UPDLOCK, HOLDLOCK, ROWLOCK) WHERE" in held


def test_the_number_of_a_new_row_comes_back_with_its_insert(statements: list[str]) -> None:
    (made,) = (text for text in statements if text.startswith("INSERT INTO tournaments"))
    assert "OUTPUT inserted.tournament_no VALUES" in made


def test_the_final_board_is_numbered_in_its_order(statements: list[str]) -> None:
    (final,) = (text for text in statements if text.startswith("INSERT INTO final_standings"))
    assert "row_number() OVER (ORDER BY standings.rank_score, standings.rank_subscore" in final


def test_pages_have_an_order(statements: list[str]) -> None:
    pages = [text for text in statements if "TOP" in text or "ROWS" in text]
    assert pages
    assert all("ORDER BY" in one for one in pages if "SELECT TOP" in one and "erasures" not in one)


def test_what_is_too_old_goes_in_pieces() -> None:
    table = tables.dead_letters
    text = compiled(deletion(table, table.c.month < 202601, "mssql"))
    assert text.startswith(f"DELETE TOP ({CHUNK}) FROM dead_letters WHERE")


@pytest.mark.parametrize("table", tables.metadata.sorted_tables, ids=lambda one: one.name)
def test_tables_tell_texts_apart_as_the_others_do(table: sa.Table) -> None:
    """By default it compares without regard to case, and keeps one byte a character."""
    text = compiled(CreateTable(table))
    for column in table.columns:
        own = re.search(rf"[(,] \[?{column.name}\]? ([^,]*)", text)
        assert own is not None, f"{column.name} is not in {text}"
        if isinstance(column.type, sa.UnicodeText):
            assert own[1].startswith("NVARCHAR(max)")
        elif isinstance(column.type, sa.Unicode):
            assert own[1].startswith(f"NVARCHAR({column.type.length}) COLLATE ")
            assert "Latin1_General_100_BIN2" in own[1]
        if column.name in RESERVED_WORDS:
            assert f"[{column.name}]" in text
    for index in table.indexes:
        assert compiled(CreateIndex(index)).startswith(("CREATE INDEX", "CREATE UNIQUE INDEX"))


@pytest.mark.parametrize("table", tables.metadata.sorted_tables, ids=lambda one: one.name)
def test_keys_are_not_longer_than_it_takes(table: sa.Table) -> None:
    """900 bytes for what a table is clustered by, 1,700 for any other index; two a character."""
    is_clustered = table.primary_key.dialect_options["mssql"]["clustered"] is not False
    assert width(table.primary_key.columns) <= (900 if is_clustered else 1700)
    if not is_clustered:
        assert "NONCLUSTERED" in compiled(CreateTable(table))
    for index in table.indexes:
        assert width(index.columns) <= 1700


def width(columns: Any) -> int:
    total = 0
    for column in columns:
        if isinstance(column.type, sa.String):
            total += 2 * (column.type.length or 10_000)
        else:
            total += getattr(column.type, "length", None) or 8
    return total


def test_migrations_are_written_for_it_as_well() -> None:
    """As the script that Alembic would send."""
    script = StringIO()
    opts = {"as_sql": True, "output_buffer": script}
    context = MigrationContext.configure(dialect_name="mssql", opts=opts)
    # A server would say so.
    dialect: Any = context.impl.dialect
    dialect.default_schema_name, dialect.deprecate_large_types = "dbo", True
    scripts = sql_migrations._scripts()
    with Operations.context(context):
        for revision in sql_migrations._places()[1:]:
            scripts.get_revision(revision).module.upgrade()
    text = script.getvalue()
    columns = [column for table in tables.metadata.sorted_tables for column in table.columns]
    count = sum(type(column.type) is sa.Unicode for column in columns)
    for table in tables.metadata.sorted_tables:
        assert f"CREATE TABLE {table.name} " in text
    assert "PARTITION" not in text
    assert text.count("COLLATE Latin1_General_100_BIN2") == count
