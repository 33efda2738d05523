"""The outbox: one suite over PostgreSQL and SQLite, through every way in; SQL Server's statements
are compiled and read, no server of it was ever asked."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mssql
from sqlalchemy.orm import Session

from leaderboard import events as ev
from leaderboard.codec import encode_kafka
from leaderboard.errors import Refusal, RefusedError
from leaderboard.producer import lanes as lanes_module
from leaderboard.producer import outbox as outbox_module
from leaderboard.producer import tables
from leaderboard.producer.lanes import Lanes, RelayNameTakenError, backlog
from leaderboard.producer.outbox import put, record_of
from outboxes import SOURCE, Outbox, fresh_postgres, fresh_sqlite, scheduled, scored
from running import command


@pytest.fixture(params=["postgresql", "sqlite"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outbox]:
    if request.param == "sqlite":
        with fresh_sqlite(tmp_path) as made:
            yield made
    else:
        with fresh_postgres(request.getfixturevalue("postgres")) as made:
            yield made


def relay_lanes(outbox: Outbox, name: str = "one", **changes: Any) -> Lanes:
    given = {"lease_ms": 60_000, "batch_size": 100, "keep_ms": 60_000, **changes}
    return Lanes(outbox.engine, name, **given)


def plain(outbox: Outbox) -> Any:
    """A connection of the database's own driver."""
    if outbox.engine.dialect.name == "sqlite":
        return sqlite3.connect(outbox.url.removeprefix("sqlite:///"))
    return psycopg.connect(outbox.url)


WAGER = ev.WagerPlaced(
    tournament_id="t1", player_id="p1", game_id="crash", stake_minor=100, currency="EUR"
)
FULL = ev.Event(
    "w-1 “ä” 😀",
    "/games/ü?a=b&c=%20",
    1_760_000_000_123,
    WAGER.model_copy(update={"win_minor": 250}),
    subject="p1",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    extensions={"region": "eu, “west” 😀"},
)


# --- writing -----------------------------------------------------------------------------------


def test_event_comes_out_as_the_codec_writes_it(outbox: Outbox) -> None:
    with outbox.engine.begin() as connection:
        assert put(connection, FULL)
        assert put(connection, scheduled("t1"))
    first, second = outbox.rows()
    assert record_of(first, 7) == encode_kafka(FULL._replace(sequence=7), ev.WAGERS)
    assert record_of(second, None) == encode_kafka(scheduled("t1"), ev.WAGERS)


def test_event_without_a_tournament_has_no_key(outbox: Outbox) -> None:
    data = ev.GameRoundSettled(player_id="p1", game_id="g", stake_minor=1, currency="EUR")
    event = ev.Event("r1", SOURCE, 1_760_000_000_000, data, subject="p1")
    with outbox.engine.begin() as connection:
        assert put(connection, event, ev.GAME_EVENTS)
    record = record_of(outbox.rows()[0], 3)
    assert (record.topic, record.key) == (ev.GAME_EVENTS, None)


def test_every_way_in_writes_the_same_row(outbox: Outbox) -> None:
    with outbox.engine.begin() as connection:
        put(connection, scored("e1", "t1", "p1"))
    with Session(outbox.engine) as session, session.begin():
        put(session, scored("e2", "t1", "p1"))
    connection = plain(outbox)
    put(connection, scored("e3", "t1", "p1"))
    put(connection.cursor(), scored("e4", "t1", "p1"))
    connection.commit()
    connection.close()
    rows = outbox.rows()
    assert [row["event_id"] for row in rows] == ["e1", "e2", "e3", "e4"]
    differing = {"position", "event_id", "event_key", "written_at_ms"}
    same = [{k: v for k, v in row.items() if k not in differing} for row in rows]
    assert same == [same[0]] * 4
    now_ms = time.time() * 1000
    assert all(abs(row["written_at_ms"] - now_ms) < 60_000 for row in rows)


def test_event_is_there_only_with_the_rest_of_its_transaction(outbox: Outbox) -> None:
    outbox.execute("CREATE TABLE wagers (id INTEGER PRIMARY KEY)")
    with pytest.raises(ZeroDivisionError), outbox.engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO wagers VALUES (1)"))
        put(connection, scored("e1", "t1", "p1"))
        raise ZeroDivisionError
    connection = plain(outbox)
    put(connection, scored("e2", "t1", "p1"))
    connection.rollback()
    connection.close()
    assert outbox.rows() == []
    with outbox.engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO wagers VALUES (1)"))
        put(connection, scored("e1", "t1", "p1"))
    assert outbox.count() == 1


def test_event_that_is_put_again_is_left_out_and_told(outbox: Outbox) -> None:
    for is_new in (True, False):
        # By a driver, and below by SQLAlchemy: what they report could differ.
        connection = plain(outbox)
        assert put(connection, scored("e1", "t1", "p1")) is is_new
        # The transaction goes on.
        assert put(connection, scored("e2", "t1", "p1")) is is_new
        connection.commit()
        connection.close()
    with outbox.engine.begin() as connection:
        assert not put(connection, scored("e1", "t1", "p1"))
        # The key is source and id, of a tournament and a topic.
        assert put(connection, scored("e1", "t2", "p1"))
        assert put(connection, scored("e1", "t1", "p1")._replace(source="/other"))
    assert outbox.count() == 4


LACKING: dict[str, Any] = {"tournament_id": "t1"}
WAGER_LACKING = ev.WagerPlaced.model_construct(**LACKING)
REFUSED = [
    (scored("e1", "t1", "p1")._replace(sequence=5), Refusal.SCHEMA),
    (scored("e1", "t1", "p1")._replace(extensions={"sequence": "a/5"}), Refusal.SCHEMA),
    (scored("e1", "t1", "p1")._replace(extensions={"id": "e2"}), Refusal.SCHEMA),
    (scored("e1", "t1", "p1")._replace(extensions={"Not a name": "e2"}), Refusal.SCHEMA),
    (scored("", "t1", "p1"), Refusal.SCHEMA),
    (scored("e\x00", "t1", "p1"), Refusal.BAD_ID),
    (scored("e\ud800", "t1", "p1"), Refusal.SCHEMA),
    (scored("e" * 513, "t1", "p1"), Refusal.BAD_ID),
    (scored("e1", "t1", "p1")._replace(subject="somebody else"), Refusal.SCHEMA),
    (
        ev.Event("e1", SOURCE, 1, WAGER_LACKING),
        Refusal.SCHEMA,
    ),
    (
        ev.Event("e1", SOURCE, 1, WAGER.model_copy(update={"player_id": "no id!"})),
        Refusal.BAD_ID,
    ),
    (
        ev.Event(
            "e1",
            SOURCE,
            1_760_000_000_000,
            WAGER.model_copy(update={"note": "n" * 33_000}),
        ),
        Refusal.TOO_LARGE,
    ),
]


@pytest.mark.parametrize(("event", "reason"), REFUSED)
def test_event_that_receivers_would_refuse_is_refused_before_it_is_written(
    outbox: Outbox, event: ev.Event, reason: Refusal
) -> None:
    with outbox.engine.begin() as connection:
        with pytest.raises(RefusedError) as told:
            put(connection, event)
        # Nothing has happened to the transaction.
        put(connection, scored("sound", "t1", "p1"))
    assert told.value.reason is reason
    assert [row["event_id"] for row in outbox.rows()] == ["sound"]


def test_wrong_topic_and_foreign_connections_are_told() -> None:
    with pytest.raises(RefusedError, match="is no type of game-events"):
        put(object(), scored("e1", "t1", "p1"), ev.GAME_EVENTS)
    with pytest.raises(RefusedError, match="there is no topic 'wages'"):
        put(object(), scored("e1", "t1", "p1"), "wages")
    with pytest.raises(TypeError, match=r"builtins\.object is no SQLAlchemy Connection"):
        put(object(), scored("e1", "t1", "p1"))


def test_row_for_debezium_leaves_the_table_empty(outbox: Outbox) -> None:
    with outbox.engine.begin() as connection:
        assert put(connection, scored("e1", "t1", "p1"), captured=True)
    connection = plain(outbox)
    assert put(connection, scored("e2", "t1", "p1"), captured=True)
    connection.commit()
    connection.close()
    assert outbox.rows() == []
    with pytest.raises(RefusedError, match="no extensions"):
        put(outbox.engine, FULL, captured=True)


def test_writers_do_not_wait_for_each_other(postgres: str) -> None:
    """A transaction that stays open with an event of a tournament holds nobody up."""
    with fresh_postgres(postgres) as outbox:
        slow = psycopg.connect(outbox.url)
        put(slow, scored("slow", "t1", "p1"))
        with psycopg.connect(outbox.url, options="-c lock_timeout=1000") as quick:
            put(quick, scored("quick", "t1", "p1"))
        assert outbox.count() == 1
        slow.commit()
        slow.close()
        assert [row["event_id"] for row in outbox.rows()] == ["slow", "quick"]


# --- what the relay does with it ---------------------------------------------------------------


def numbers(batches: list[lanes_module.Batch]) -> dict[str, int]:
    """Event id to number, in the order of sending."""
    found = {}
    for batch in batches:
        for record in batch.records:
            told = dict(record.headers)
            found[(told["ce_id"] or b"").decode()] = int(told["ce_sequence"] or b"")
    return found


def test_batch_keeps_its_numbers_until_it_is_done(outbox: Outbox) -> None:
    with outbox.engine.begin() as connection:
        for index in range(5):
            put(connection, scored(f"e{index}", "t1", "p1"))
    first = relay_lanes(outbox)
    assert first.register() is None
    told = numbers(first.turn([]))
    assert list(told) == ["e0", "e1", "e2", "e3", "e4"]
    assert list(told.values()) == sorted(set(told.values()))
    # It dies here. The next one finds the same batch under the same numbers, and nothing else,
    # although more has been written.
    with outbox.engine.begin() as connection:
        put(connection, scored("e5", "t1", "p1"))
    outbox.execute("UPDATE leaderboard_outbox_relays SET alive_until_ms = 0")
    second = relay_lanes(outbox, "two")
    second.register()
    batches = second.turn([])
    assert numbers(batches) == told
    after = numbers(second.turn(batches))
    assert list(after) == ["e5"]
    assert after["e5"] > max(told.values())
    # The first one was not dead, only slow: what it says about the old batch changes nothing.
    assert first.turn(batches) == []
    assert outbox.count("sent_at_ms IS NULL") == 1


def test_row_that_commits_late_is_sent_later_with_a_higher_number(postgres: str) -> None:
    with fresh_postgres(postgres) as outbox:
        late = psycopg.connect(outbox.url)
        put(late, scored("late", "t1", "p1"))
        with outbox.engine.begin() as connection:
            put(connection, scored("early", "t1", "p1"))
        lanes = relay_lanes(outbox)
        lanes.register()
        batches = lanes.turn([])
        early = numbers(batches)
        late.commit()
        late.close()
        after = numbers(lanes.turn(batches))
        assert list(early) == ["early"]
        assert list(after) == ["late"]
        assert after["late"] > early["early"]
        # The order of positions is the other one: it says nothing about the log.
        assert [row["event_id"] for row in outbox.rows()] == ["late", "early"]


def test_numbers_go_up_though_clock_and_outbox_go_back(outbox: Outbox) -> None:
    lanes = relay_lanes(outbox)
    lanes.register()
    future = 999_999_999_999_000
    outbox.execute("UPDATE leaderboard_outbox_lanes SET next_number = 999999999999000")
    with outbox.engine.begin() as connection:
        put(connection, scored("e1", "t1", "p1"))
    batches = lanes.turn([])
    assert numbers(batches) == {"e1": future}
    # An outbox that was made anew starts at the clock, above what was given a moment ago.
    outbox.execute("UPDATE leaderboard_outbox_lanes SET next_number = 0")
    with outbox.engine.begin() as connection:
        put(connection, scored("e2", "t1", "p1"))
    before = time.time_ns() // 10_000 - 60 * 100_000
    assert numbers(lanes.turn(batches))["e2"] > before


def test_row_that_cannot_be_encoded_is_set_aside_and_holds_nobody_up(outbox: Outbox) -> None:
    with outbox.engine.begin() as connection:
        for name in ("e1", "bad data", "bad time", "bad lane", "bad topic", "bad json", "e2"):
            put(connection, scored(name, "t1", "p1"))
    for name, change in {
        "bad data": """data = '{"tournament_id": "t1"}'""",
        "bad time": "time = 'yesterday'",
        "bad lane": "lane = (lane + 1) % 64",
        "bad topic": "topic = 'wages'",
        "bad json": "extensions = '[1]'",
    }.items():
        where = f"WHERE event_id = '{name}'"
        assert outbox.execute(f"UPDATE leaderboard_outbox SET {change} {where}") == 1  # noqa: S608
    lanes = relay_lanes(outbox)
    lanes.register()
    batches = lanes.turn([])
    assert list(numbers(batches)) == ["e1", "e2"]
    lanes.turn(batches)
    found = backlog(outbox.engine)
    assert (found.waiting, found.refused) == (0, 5)
    told = {row["event_id"]: row["refused"] for row in outbox.rows(where="refused IS NOT NULL")}
    assert told["bad data"].startswith("schema: player_id: Field required")
    assert told["bad time"] == "schema: time: not an RFC 3339 time with a zone"
    assert told["bad lane"] == "wrong_key: the row is not in its tournament's lane"
    assert told["bad topic"] == "schema: there is no topic 'wages'"
    assert told["bad json"] == "schema: extensions is no JSON object of strings"


def test_operator_sees_what_was_set_aside_and_lets_it_go_again(
    outbox: Outbox, tmp_path: Path
) -> None:
    with outbox.engine.begin() as connection:
        put(connection, scored("e1", "t1", "p1"))
    outbox.execute("UPDATE leaderboard_outbox SET time = 'soon'")
    lanes = relay_lanes(outbox)
    lanes.register()
    assert lanes.turn([]) == []
    settings = {"DATABASE_URL": outbox.url}
    shown = command(["outbox", "list"], tmp_path, settings)
    assert "schema:" in shown.stdout, shown.stderr
    assert "0 waiting; 1 refused" in shown.stdout
    outbox.execute("UPDATE leaderboard_outbox SET time = '2026-01-01T00:00:00.000Z'")
    position = str(outbox.rows()[0]["position"])
    assert command(["outbox", "retry", position], tmp_path, settings).returncode == 0
    assert list(numbers(lanes.turn([]))) == ["e1"]
    again = command(["outbox", "retry", position], tmp_path, settings)
    assert again.returncode == 1
    assert again.stderr == f"error: there is no refused event at {position}\n"


def test_lanes_are_shared_among_the_living(outbox: Outbox) -> None:
    one, two = relay_lanes(outbox, "one"), relay_lanes(outbox, "two")
    one.register()
    one.turn([])
    assert len(one.owned) == 64
    two.register()
    two.turn([])
    assert two.owned == ()
    one.turn([])
    two.turn([])
    assert sorted(one.owned + two.owned) == list(range(64))
    assert len(one.owned) == 32
    two.leave()
    one.turn([])
    assert len(one.owned) == 64


def test_second_relay_of_a_name_is_refused_while_the_first_lives(outbox: Outbox) -> None:
    one, two = relay_lanes(outbox, lease_ms=60_000), relay_lanes(outbox)
    one.register()
    seen = two.register()
    assert seen is not None
    assert two.register(seen) == seen  # it may be dead: the lease says when that is sure
    time.sleep(0.01)
    one.renew()
    with pytest.raises(RelayNameTakenError, match="a relay named 'one' is running"):
        two.register(seen)
    outbox.execute("UPDATE leaderboard_outbox_relays SET alive_until_ms = 1")
    assert two.register(seen) is None
    with pytest.raises(RelayNameTakenError):
        one.turn([])


def test_sent_rows_go_after_their_time_in_bounded_batches(outbox: Outbox) -> None:
    with outbox.engine.begin() as connection:
        for index in range(30):
            put(connection, scored(f"e{index}", f"t{index % 3}", "p1"))
    lanes = relay_lanes(outbox)
    lanes.register()
    lanes.turn(lanes.turn([]))
    assert outbox.count("sent_at_ms IS NOT NULL") == 30
    assert lanes.prune() == 0
    old = "sent_at_ms - 70000 WHERE event_id <> 'e29'"
    outbox.execute(f"UPDATE leaderboard_outbox SET sent_at_ms = {old}")  # noqa: S608
    with outbox.engine.begin() as connection:
        put(connection, scored("waits", "t1", "p1"))
    assert [lanes.prune(10), lanes.prune(10), lanes.prune(10), lanes.prune(10)] == [10, 10, 9, 0]
    assert [row["event_id"] for row in outbox.rows()] == ["e29", "waits"]


def test_many_threads_of_a_platform_write_at_once(postgres: str) -> None:
    """Positions and numbers stay unique and complete with eight writers and a relay beside."""
    with fresh_postgres(postgres) as outbox:
        engine = sa.create_engine(outbox.engine.url, pool_size=8)

        def write(writer: int) -> None:
            for index in range(50):
                with engine.begin() as connection:
                    put(connection, scored(f"{writer}-{index}", f"t{index % 4}", "p1"))

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
        for thread in threads:
            thread.start()
        lanes = relay_lanes(outbox)
        lanes.register()
        sent: list[tuple[int, str]] = []
        batches: list[lanes_module.Batch] = []
        while any(thread.is_alive() for thread in threads) or batches:
            batches = lanes.turn(batches)
            sent += [(n, name) for batch in batches for name, n in numbers([batch]).items()]
        batches = lanes.turn([])
        while batches:
            sent += [(n, name) for batch in batches for name, n in numbers([batch]).items()]
            batches = lanes.turn(batches)
        for thread in threads:
            thread.join()
        engine.dispose()
        assert len(sent) == 400
        assert {name for _, name in sent} == {f"{w}-{i}" for w in range(8) for i in range(50)}
        for writer in range(8):
            # Committed one after the other, so sent in that order within a tournament.
            for lane in range(4):
                mine = [n for n, name in sent if name in of(writer, lane)]
                assert mine == sorted(mine)


def of(writer: int, lane: int) -> list[str]:
    return [f"{writer}-{index}" for index in range(lane, 50, 4)]


# --- SQL Server, compiled only -----------------------------------------------------------------


def compiled(statement: Any) -> str:
    text = str(statement.compile(dialect=mssql.dialect()))  # type: ignore[no-untyped-call]
    return " ".join(text.split())


def test_sql_server_locks_rows_and_passes_by_locked_ones() -> None:
    text = compiled(lanes_module.locked(sa.select(tables.LANE.c.lane), tables.LANE))
    assert "FROM leaderboard_outbox_lanes WITH (UPDLOCK, ROWLOCK, READPAST)" in text
    assert "FOR UPDATE" not in text


def test_every_statement_of_a_relay_says_on_sql_server_what_it_locks(tmp_path: Path) -> None:
    """The statements that a relay has really made, on SQLite, said in the other dialect."""
    made: list[Any] = []
    with fresh_sqlite(tmp_path) as outbox:
        with outbox.engine.begin() as connection:
            put(connection, scored("e1", "t1", "p1"))
            put(connection, scored("bad", "t1", "p1"))
        outbox.execute("UPDATE leaderboard_outbox SET time = 'x' WHERE event_id = 'bad'")
        sa.event.listen(outbox.engine, "before_execute", lambda *given: made.append(given[1]))
        one, two = relay_lanes(outbox, keep_ms=-1), relay_lanes(outbox, "two")
        one.register()
        one.turn([])
        assert one.anything_waits()
        two.register()
        # The batch again, now as one that was numbered before; then lanes given back.
        one.turn(one.turn([]))
        one.renew()
        assert one.prune() == 1
        lanes_module.listed(outbox.engine, waiting=True, limit=5)
        backlog(outbox.engine)
        one.leave()
    texts = {compiled(statement) for statement in made if not isinstance(statement, str)}
    kinds = [text.partition(" ")[0] for text in texts]
    assert {"SELECT", "INSERT", "UPDATE", "DELETE"} == set(kinds)
    for text in texts:
        if "leaderboard_outbox " in text:
            assert re.search(r"leaderboard_outbox WITH \(ROWLOCK(, READPAST)?\)", text), text
        if "FROM leaderboard_outbox_lanes" in text:
            assert "WITH (UPDLOCK, ROWLOCK, READPAST)" in text
        assert "LIMIT" not in text
        assert "CURRENT_TIMESTAMP" not in text


def test_sql_server_gets_its_own_clock_marks_and_index() -> None:
    insert, order = outbox_module._compiled("mssql", "qmark", "insert")
    assert insert.count("?") == len(order) == 12
    assert "DATEDIFF_BIG(millisecond, '1970-01-01', SYSUTCDATETIME())" in insert
    assert "OUTPUT" not in insert
    printed = tables.ddl("mssql")
    assert "position BIGINT NOT NULL IDENTITY" in printed
    assert "data NVARCHAR(max) NOT NULL" in printed
    once = "CREATE UNIQUE INDEX leaderboard_outbox_once ON leaderboard_outbox (event_key)"
    assert f"{once} WITH (IGNORE_DUP_KEY = ON);" in printed
    assert "SET (LOCK_ESCALATION = DISABLE);" in printed


@pytest.mark.parametrize("dialect", tables.DIALECTS)
def test_command_prints_the_tables(dialect: tables.DialectName, tmp_path: Path) -> None:
    done = command(["outbox", "ddl", "--dialect", dialect], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == tables.ddl(dialect)


def test_printed_statements_make_the_tables_with_the_database_s_own_driver(
    outbox: Outbox, tmp_path: Path
) -> None:
    name = outbox.engine.dialect.name
    with_own_client = tables.ddl(name)  # type: ignore[arg-type]
    for table in ("", "_lanes", "_relays"):
        outbox.execute(f"DROP TABLE leaderboard_outbox{table}")
    connection = plain(outbox)
    if name == "sqlite":
        connection.executescript(with_own_client)
    else:
        connection.execute(with_own_client)
    put(connection, scored("e1", "t1", "p1"))
    connection.commit()
    connection.close()
    lanes = relay_lanes(outbox)
    lanes.register()
    assert list(numbers(lanes.turn([]))) == ["e1"]


def test_outbox_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    done = command(["outbox", "list"], tmp_path, {"DATABASE_URL": f"sqlite:///{tmp_path}/none.db"})
    assert done.returncode == 1
    assert done.stderr == "error: the outbox can't be read: no such table: leaderboard_outbox\n"
