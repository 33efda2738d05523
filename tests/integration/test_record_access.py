"""The record under the roles of platform/postgres: each does its work and is refused the rest."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import errors, sql

from leaderboard.adapters import sql_migrations, sql_reading
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.adapters.sql_engine import connect
from leaderboard.adapters.sql_months import Months, month_of
from leaderboard.adapters.sql_pseudonyms import SqlPseudonyms
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.adapters.sql_snapshot import SqlSnapshots
from leaderboard.audit_leaves import BESIDE
from leaderboard.errors import SettingsError
from leaderboard.events import (
    ConnectionDecided,
    FraudReviewed,
    FraudSuspected,
    PositionChanged,
    Record,
)
from leaderboard.fold import LogEntry
from leaderboard.fraud_ports import AlertFilter
from leaderboard.model import Offset, Place, State, TournamentId
from leaderboard.record_ports import Head
from leaderboard.stack import access_sql
from leaderboard.stack.access_sql import DATABASE, OWNER, READS, READS_COLUMNS, WRITER
from leaderboard.stack.functions import FUNCTIONS
from leaderboard.stack.postgres import PostgresServer
from logs import (
    ALICE,
    BOB,
    CAROL,
    LOG,
    START_MS,
    TOMBSTONE_KEY,
    T,
    disqualified,
    ended,
    entry,
    erased,
    joined,
    scheduled,
    scored,
)
from records import put_down

SQL: Final = Path(__file__).parents[2] / "platform/postgres"


class Database:
    """A server of its own: roles are a whole server's."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server

    def run(self, script: str, user: str = "postgres") -> None:
        text = re.sub(r"(?m)^\\.*$", "", (SQL / script).read_text("utf-8"))
        with self.connection(user) as connection:
            connection.execute(text.encode())

    def connection(self, user: str) -> psycopg.Connection[Any]:
        place = f"host=127.0.0.1 port={self.server.port} dbname={DATABASE}"
        return psycopg.connect(f"{place} user={user}", autocommit=True)

    def url(self, user: str) -> str:
        return f"postgresql+psycopg://{user}@127.0.0.1:{self.server.port}/{DATABASE}"

    @contextlib.contextmanager
    def engine(self, user: str) -> Iterator[sa.Engine]:
        engine = connect(self.url(user))
        try:
            yield engine
        finally:
            engine.dispose()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    folder = tmp_path_factory.mktemp("roles")
    # What is said to the server, by whom: COPY too, which no client library shows.
    told = {"fsync": "off", "log_statement": "all", "log_line_prefix": "%u|"}
    server = PostgresServer(folder / "postgres", extra=told)
    server.start()
    found = Database(server)
    try:
        for _ in range(2):  # harmless again
            found.run("roles.sql")
        sql_migrations.upgrade(found.url(OWNER))
        for _ in range(2):
            found.run("grants.sql", OWNER)
        with found.engine(OWNER) as engine:
            for time_ms in (START_MS, time.time_ns() // 1_000_000):
                Months(engine).ensure(month_of(time_ms))
        yield found
    finally:
        server.stop()


def said(database: Database, user: str) -> set[tuple[str, str]]:
    """(verb, table) of all that the role has said, from the server's own log."""
    log = database.server.process.log_path.read_text(errors="replace")
    names = "|".join(sorted([*tables.metadata.tables, access_sql.VERSION], key=len, reverse=True))
    found: set[tuple[str, str]] = set()
    for line in re.split(r"(?m)^(?=[\w-]*\|)", log):
        if not line.startswith(f"{user}|"):
            continue
        text = line.partition(": ")[2]
        for verb, pattern in _VERBS.items():
            found |= {(verb, name) for name in re.findall(pattern.format(names=names), text)}
        if re.search(r"\bFOR UPDATE\b", text):
            found |= {("UPDATE", n) for n in re.findall(rf'\bFROM "?({names})\b', text)}
    return found


_VERBS: Final = {
    "INSERT": r'(?:INSERT INTO|COPY) "?({names})\b',
    "UPDATE": r'UPDATE "?({names})\b(?! SET NOTHING)',
    "DELETE": r'DELETE FROM "?({names})\b',
    "SELECT": r'(?:FROM|JOIN|USING) "?({names})\b',
}


def entries() -> list[list[Any]]:
    """A log in parts: joins, numbers, ids that outlive their window, removals, an end."""
    first = [
        scheduled(0), joined(1, ALICE, "Alice"), joined(2, BOB), joined(3, CAROL),
        scored(4, ALICE, 5), scored(5, BOB, 7, source="/n", sequence=1), scored(6, CAROL, 8),
    ]  # fmt: skip
    more = [
        scored(7, ALICE, 5), scored(8, BOB, 7, source="/n", sequence=2), joined(9, ALICE, "A"),
        disqualified(10, CAROL), scored(11, ALICE, 5), scored(12, ALICE, 5, event_id="e4"),
    ]  # fmt: skip
    return [first, more, [erased(13, CAROL), erased(14, BOB)], [ended(15)]]


def attempt(offset: int) -> LogEntry:
    data = ConnectionDecided(
        tournament_id=T, player_id=BOB, allowed=True, reason="allowed", address="192.0.2.1"
    )
    return entry(offset, data)


def changed(offset: int, sequence: int) -> LogEntry:
    told = {"tournament_id": T, "player_id": BOB, "sequence": sequence, "old_rank": None}
    told |= {"new_rank": 1, "score": 5, "distance": None, "cause": {"source": "/t", "id": BOB}}
    return entry(offset, PositionChanged.model_validate(told))


def suspected(offset: int) -> LogEntry:
    evidence = {"with_player_id": CAROL}
    data = FraudSuspected(tournament_id=T, player_id=BOB, rule="velocity", evidence=evidence)
    return entry(offset, data, event_id=f"{T}/1/velocity")


def reviewed(offset: int) -> LogEntry:
    told = {"tournament_id": T, "alert_id": f"{T}/1/velocity", "decision": "dismissed"}
    return entry(offset, FraudReviewed.model_validate({**told, "decided_by": "olga"}))


def archived(engine: sa.Engine, *, to_the_end: bool) -> None:
    """Everything that `archive` does with the record; again for what is there already."""
    sql_migrations.check(engine)
    archive = SqlArchive(engine, TOMBSTONE_KEY, 2, now_ms=lambda: START_MS)
    letters, changes = Place("wagers-dlq", 0), Place("position-changes", 0)
    attempts, alerts = Place("connections", 0), Place("fraud-alerts", 0)
    for number, part in enumerate(entries() if to_the_end else entries()[:-1]):
        batch, end = put_down(part), Offset(part[-1].offset + 1)
        archive.fold(Place("wagers", 0), LOG, batch, end)
        at, upto = Offset(number), Offset(number + 1)
        archive.keep_changes(changes, "c/0", [changed(at, number)], upto)
        archive.keep_attempts(attempts, "a/0", [attempt(at)], upto)
        told = [suspected(2 * at), reviewed(2 * at + 1)]
        archive.keep_alerts(alerts, "f/0", told, Offset(2 * upto))
        letter = Record("wagers-dlq", BOB.encode(), b"{}", (("dlq_reason", b"schema"),), 0, at, 1)
        archive.keep_dead_letters(letters, "d/0", [letter], upto)
        archive.ledgers(0)
        archive.page(T, 0, 10)
    archive.reached(Place("wagers", 0), LOG)
    audited(engine)
    if to_the_end:
        archive.forget(Place("gdpr-events", 0), "g/0", [erased(0, BOB)], Offset(1))
        (ledger,) = archive.ledgers(0)
        archive.confirm(T, ledger.sequence)


def audited(engine: sa.Engine) -> None:
    """What the audit log asks of the record, again for what is there already."""
    keys, place = SqlPseudonyms(engine, TOMBSTONE_KEY), Place("wagers", 0)
    keys.of([(T, BOB), (T, CAROL), (TournamentId("unknown"), BOB)], of_wagers=True)
    keys.of([(BESIDE, BOB)], of_wagers=False)
    keys.end(0, {(T, BOB): Offset(14)})
    changes = Place("position-changes", 0)
    keys.wait_for([replace(one, changes=changes) for one in keys.endings(0, 10)])
    keys.destroy(keys.endings(0, 10))
    keys.destroy_beside([BOB])
    for size in (3, 4):
        keys.put_heads([Head("o/wagers/0", place, size, "aa", Offset(size))])
    keys.heads([place])


def reads(record: Any) -> None:
    """What `query` asks; `tournament` the first half of it."""
    for state in (None, *State):
        record.all(state)
    record.find(T)
    record.sequences([T])
    record.top(T, 10)
    record.player(T, ALICE)
    record.around(T, ALICE, 1)


def erases(engine: sa.Engine) -> None:
    record, requests = sql_reading.opened(engine), sql_reading.requests_in(engine)
    requests.pending(10)
    requests.find("er-1")
    requests.applied_in("er-1")
    requests.reopen("er-1", ALICE)
    requests.close("er-1", {}, START_MS)
    for state in (State.SCHEDULED, State.RUNNING):
        record.all(state)
    record.tournaments_of(ALICE)
    record.is_forgotten("er-1")
    record.pseudonyms("er-1")
    record.top(T, 10)


def queue(engine: sa.Engine) -> None:
    """What `tournament` shows to operators."""
    alerts = sql_reading.opened_alerts(engine)
    alerts.find(f"{T}/1/velocity")
    alerts.list(AlertFilter(player_id=BOB, state="open"), 10)


def holdings(engine: sa.Engine) -> None:
    """Everything that is held on a player."""
    held, after = sql_reading.holdings_in(engine), None
    while True:
        page = held.page(ALICE, after, 100)
        if (after := page.after) is None:
            return


def read_snapshots(engine: sa.Engine) -> None:
    """What a board is made anew from."""
    sql_migrations.check(engine)
    snapshots = SqlSnapshots(engine)
    snapshots.partitions()
    snapshots.reached(LOG, 0)
    snapshots.expected(0, Offset(16))
    snapshots.erasures(T)
    for upto in (Offset(7), Offset(12), Offset(16)):
        with snapshots.taken(T, upto) as taken:
            if taken is not None:
                for one in (taken.rows, taken.names, taken.older, taken.newer):
                    list(one)
    list(snapshots.entries(0, Offset(0), Offset(16)))


def works_on(role: str, engine: sa.Engine, *, to_the_end: bool) -> None:
    """What each function asks of the record, by the names of the calls in its text."""
    match role:
        case "archive":
            archived(engine, to_the_end=to_the_end)
        case "on-wager" | "operator":
            read_snapshots(engine)
            if role == "on-wager":
                SqlRecord(engine).find(T)
        case "on-wager-http":
            sql_reading.opened(engine).find(T)
        case "on-connect":
            sql_reading.opened(engine).find(T)
            sql_reading.opened(engine).is_forgotten("er-1")
        case "erase":
            erases(engine)
            SqlSnapshots(engine).erasures(T)
        case "query" | "tournament":
            reads(sql_reading.opened(engine))
            if role == "query":
                holdings(engine)
            else:
                queue(engine)
                sql_reading.opened(engine).member(T, ALICE)
        case _:
            raise AssertionError(f"{role}: what does it do?")


def test_every_role_does_its_work_and_says_no_more_than_it_may(database: Database) -> None:
    for to_the_end in (False, True):
        for role in (WRITER, *(READS.keys() - {WRITER})):
            with database.engine(role) as engine:
                works_on(role, engine, to_the_end=to_the_end)
    for role, reads in READS.items():
        told = said(database, role)
        by_verb = {verb: {name for v, name in told if v == verb} for verb in _VERBS}
        # To change a row one has to find it.
        read = by_verb["SELECT"] | by_verb["UPDATE"] | by_verb["DELETE"]
        some = READS_COLUMNS.get(role, {}).keys()
        assert read - {access_sql.VERSION} == reads | some, role
        wanted = (access_sql.INSERTS, access_sql.UPDATES, access_sql.DELETES)
        for verb, names in zip(("INSERT", "UPDATE", "DELETE"), wanted, strict=True):
            own = access_sql.ENDS.get(role, frozenset()) if verb == "UPDATE" else frozenset()
            assert by_verb[verb] == (names if role == WRITER else own), (role, verb)


REFUSED: Final = (
    "CREATE TABLE other (a int)", "DROP TABLE inputs", "TRUNCATE inputs", "DELETE FROM inputs",
    "ALTER TABLE inputs ADD other int", "UPDATE terms_history SET terms = ''",
    "CREATE SCHEMA other", "COPY tournaments TO PROGRAM 'true'", "SET ROLE postgres",
)  # fmt: skip


@pytest.mark.parametrize("role", READS)
def test_nobody_does_anything_else(role: str, database: Database) -> None:
    with database.connection(role) as connection:
        for statement in REFUSED:
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement.encode())
        some = READS_COLUMNS.get(role, {})
        for name in sorted(tables.metadata.tables.keys() - READS[role] - some.keys()):
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(sql.SQL("SELECT 1 FROM {}").format(sql.Identifier(name)))
        for name, columns in some.items():
            for hidden in set(tables.metadata.tables[name].columns.keys()) - set(columns):
                with pytest.raises(errors.InsufficientPrivilege):
                    connection.execute(
                        sql.SQL("SELECT {} FROM {}").format(
                            sql.Identifier(hidden), sql.Identifier(name)
                        )
                    )
        limit, timeout = connection.execute(
            "SELECT rolconnlimit, current_setting('idle_in_transaction_session_timeout') "
            "FROM pg_roles WHERE rolname = current_user"
        ).fetchone() or (None, None)
        assert (limit, timeout) == (access_sql.CONNECTIONS, "1min")


def test_every_function_that_reads_the_record_has_a_role() -> None:
    """And the personal data beside it only who gives them to the player."""
    without = {"on-rank-change"}
    assert READS.keys() == {one.name for one in FUNCTIONS} - without | {"operator"}
    for role, reads in READS.items():
        beside = reads & {"connection_attempts", "dead_letters", "position_changes"}
        assert not beside or role in (WRITER, "query")


def test_months_that_are_missing_are_the_owners_to_make(database: Database) -> None:
    with database.engine(WRITER) as engine, pytest.raises(SettingsError, match="permission denied"):
        Months(engine).ensure(209_901)
    with database.engine(OWNER) as engine:
        Months(engine).ensure(209_901)
    with database.engine(WRITER) as engine:
        Months(engine).ensure(209_901)
