"""Databases of the record for tests: a new one for each, in SQLite or in a shared PostgreSQL."""

from __future__ import annotations

import contextlib
import functools
import random
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from leaderboard.adapters import sql_migrations
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.adapters.sql_engine import connect, reading
from leaderboard.adapters.sql_fold import SqlFold
from leaderboard.adapters.sql_pseudonyms import SqlPseudonyms
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.audit_leaves import who
from leaderboard.errors import Refusal
from leaderboard.events import GDPR_EVENTS, WAGERS, PlayerErased
from leaderboard.fold import LogEntry
from leaderboard.model import REMEMBERED_IDS, Disposition, Offset, Place, PlayerId, TournamentId
from leaderboard.record_ports import Folded, Input
from leaderboard.settings import DatabaseSettings, load
from logs import LOG, START_MS, TOMBSTONE_KEY, random_log

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
    file = Path(sa.make_url(url).database or "")
    if migrated and url.startswith("sqlite") and not file.exists():
        file.write_bytes(_migrated_sqlite())
    elif migrated:
        sql_migrations.upgrade(url)
    engine = connect(url)
    try:
        yield engine
    finally:
        engine.dispose()


@functools.cache
def _migrated_sqlite() -> bytes:
    """A file that was migrated once: to migrate each takes longer than most tests do."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "record.sqlite"
        sql_migrations.upgrade(loaded(f"sqlite:///{file}"))
        assert [one.name for one in file.parent.iterdir()] == [file.name], "more than was copied"
        return file.read_bytes()


def put_down(entries: Sequence[LogEntry]) -> list[Input]:
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


def fold_of(engine: sa.Engine, window: int = REMEMBERED_IDS) -> SqlFold:
    """A fold whose clock stands still."""
    return SqlFold(engine, TOMBSTONE_KEY, window, now_ms=lambda: START_MS)


def take(
    fold: SqlFold, part: Sequence[LogEntry], *, partition: int = 0, log_id: str = LOG
) -> Folded:
    """Fold these entries, up to behind the last of them."""
    return fold.apply(partition, log_id, put_down(part), Offset(part[-1].offset + 1))


def moved(entry: LogEntry, tournament_id: str, offset: int) -> LogEntry:
    """The same event of another tournament, at another place in the log."""
    data = entry.event.data.model_copy(update={"tournament_id": tournament_id})
    return LogEntry(Offset(offset), entry.logged_at_ms, entry.event._replace(data=data))


def interleaved(seed: int, *, tournaments: int, length: int, **changes: Any) -> list[LogEntry]:
    """Random logs of several tournaments in one partition."""
    chance = random.Random(seed)
    logs = [
        (f"t{number}", random_log(seed * 100 + number, length=length, **changes))
        for number in range(tournaments)
    ]
    mixed: list[LogEntry] = []
    offset = chance.randrange(5)
    while logs:
        name, log = one = chance.choice(logs)
        entry = next(log, None)
        if entry is None:
            logs.remove(one)
        else:
            mixed.append(moved(entry, name, offset))
            offset += chance.choice((1, 1, 1, 2, 7))
    return mixed


class Oracle:
    """What the pure fold says of a log, told piece by piece."""

    def __init__(self, window: int = REMEMBERED_IDS, log_id: str = LOG) -> None:
        self.board = MemoryBoard(TOMBSTONE_KEY, window)
        self._log_id = log_id
        self._applied: dict[tuple[str, str, str], Offset] = {}
        self.repeats: dict[Offset, Offset] = {}
        """Applied although the same id had been before: its offset, and that of the one before."""

    def take(self, part: Sequence[LogEntry]) -> list[Disposition | Refusal]:
        return [self._one(entry) for entry in part]

    def _one(self, entry: LogEntry) -> Disposition | Refusal:
        name = TournamentId(str(entry.event.tournament_id))
        before = self.board.top(name, 1)
        answer = self.board.apply(name, self._log_id, None, [entry], entry.offset)
        (verdict,) = answer.verdicts
        is_action = entry.event.player_id is not None
        if verdict is Disposition.APPLIED and before is not None and is_action:
            key = (name, entry.event.source, entry.event.id)
            if key in self._applied:
                self.repeats[entry.offset] = self._applied[key]
            self._applied[key] = entry.offset
        return verdict


def assert_boards_equal(oracle: Oracle, record: SqlRecord, log: Sequence[LogEntry]) -> None:
    """The whole boards of these tournaments are the oracle's."""
    for name in {TournamentId(str(one.event.tournament_id)) for one in log}:
        assert record.top(name, 1000) == oracle.board.top(name, 1000)


def assert_equal(oracle: Oracle, record: SqlRecord, log: Sequence[LogEntry]) -> None:
    """The record answers every question as the oracle does."""
    names = sorted({TournamentId(str(one.event.tournament_id)) for one in log})
    players = sorted({PlayerId(str(p)) for one in log if (p := one.event.player_id) is not None})
    board = oracle.board
    for name in names:
        expected = board.top(name, 1000)
        assert record.top(name, 1000) == expected
        if expected is None:
            assert record.find(name) is None
            continue
        found = record.find(name)
        assert found is not None
        assert found.terms == expected.terms
        assert record.sequences([name]) == {name: expected.sequence}
        assert record.top(name, 3, after_rank=2) == board.top(name, 3, after_rank=2)
        for player in players:
            assert record.around(name, player, 2) == board.around(name, player, 2)
        assert record.player(name, players[0]) == board.player(name, players[0])


class RecordedLog:
    """Takes in entries of many tournaments, as if each were alone in its partition."""

    def __init__(self, engine: sa.Engine) -> None:
        self._fold = fold_of(engine)
        self._archive = SqlArchive(engine, TOMBSTONE_KEY, now_ms=lambda: START_MS)
        self._partitions: dict[TournamentId, int] = {}
        self._keys = SqlPseudonyms(engine, TOMBSTONE_KEY, lambda: START_MS)

    def take(self, tournament_id: TournamentId, entries: Sequence[LogEntry]) -> None:
        """Entries of one tournament, in order; what was taken in before has no effect."""
        partition = self._partitions.setdefault(tournament_id, len(self._partitions))
        take(self._fold, entries, partition=partition)
        self._sign(partition, entries)

    def _sign(self, partition: int, entries: Sequence[LogEntry]) -> None:
        """As the audit log does it that is level with everything at once: no key is left of who
        is erased."""
        met = {w for one in entries if (w := who(WAGERS, one.event)) is not None}
        self._keys.of(met, of_wagers=True)
        gone = [one for one in reversed(entries) if isinstance(one.event.data, PlayerErased)]
        self._keys.end(partition, {w: o.offset for o in gone if (w := who(WAGERS, o.event))})
        self._keys.destroy(self._keys.endings(partition, len(entries)))

    def forget(self, entry: LogEntry) -> None:
        """An entry of `gdpr-events`."""
        place = Place(GDPR_EVENTS, 0)
        self._archive.forget(place, "gdpr", [entry], Offset(entry.offset + 1))
