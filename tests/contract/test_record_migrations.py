"""The record's schema: forward and back on filled databases, and never where it is not ours."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from leaderboard.adapters import sql_migrations
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import connect, insert, writing
from leaderboard.adapters.sql_fold import SqlFold
from leaderboard.adapters.sql_migrations import Fit, check, downgrade, lost, status, upgrade
from leaderboard.adapters.sql_months import Months, month_of
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.errors import SettingsError, TransientError
from leaderboard.events import PlayerDisqualified, PlayerErased
from leaderboard.model import Offset, erasure_id_of
from logs import LOG, START_MS, TOMBSTONE_KEY, T, entry, random_log
from records import DIALECTS, dump, engine_of, fresh_database, put_down

HEAD = "record_0006"
OF_THE_LOG = ("pseudonym_keys", "pseudonym_ends", "audit_heads")
OF_FRAUD = ("fraud_alerts", "fraud_reviews")
STANDING_BESIDE = ("position_changes", "told_changes", "connection_attempts", "dead_letters")


@pytest.fixture(params=DIALECTS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with fresh_database(request.param, request, tmp_path) as made:
        yield made


def test_files_are_in_the_order_of_the_revisions() -> None:
    """Who only compares revisions takes their order from the files' names."""
    walked = [one.revision for one in sql_migrations._scripts().walk_revisions()]
    assert sql_migrations._places() == [sql_migrations.BASE, *reversed(walked)]


def fill(engine: sa.Engine) -> None:
    """A log with nearly everything in it: an erasure reaches beyond the first revision."""
    log = [
        one
        for one in random_log(3, length=200)
        if not isinstance(one.event.data, PlayerErased | PlayerDisqualified)
    ]
    fold = SqlFold(engine, TOMBSTONE_KEY, now_ms=lambda: START_MS)
    for start in range(0, len(log), 50):
        part = log[start : start + 50]
        fold.apply(0, LOG, put_down(part), Offset(part[-1].offset + 1))


def fill_beside(engine: sa.Engine) -> None:
    month = month_of(START_MS)
    Months(engine).ensure(month)
    with writing(engine) as connection:
        change = (T, 7, month, "p1", None, 1, 5, 0, None, "/tests", "e7", START_MS)
        insert(connection, tables.position_changes, [change])
        insert(connection, tables.told_changes, [(T, 7)])
        attempt = (0, 3, month, "c1", START_MS, T, "p1", True, "ok", "127.0.0.1", "agent")
        insert(connection, tables.connection_attempts, [attempt])
        letter = ("wagers-dlq", 0, 4, month, START_MS, "schema", T, None, "{}", b"x", 0)
        insert(connection, tables.dead_letters, [letter])


def test_the_first_revision_holds_a_record_and_the_way_forth_and_back_keeps_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upgrade(url, "0001") == "record_0001"
    with engine_of(url, migrated=False) as engine:
        with monkeypatch.context() as then:
            then.setattr(tables, "PARTITIONED", (tables.inputs,))  # as of that revision
            fill(engine)
        before = dump(engine)
        assert not set(STANDING_BESIDE) & set(before)
        assert upgrade(url, "0002") == "record_0002"
        fill_beside(engine)
        whole = dump(engine)
        assert {name: whole[name] for name in before} == before
        assert all(len(whole[name]) == 1 for name in STANDING_BESIDE)
        assert SqlRecord(engine).top(T, 10) is not None

        assert lost(url, "0001") == dict.fromkeys(STANDING_BESIDE, 1)
        assert downgrade(url, "0001") == "record_0001"
        assert dump(engine) == before
        assert upgrade(url) == HEAD
        again = dump(engine)
        assert {name: again[name] for name in before} == before
        assert all(again[name] == [] for name in STANDING_BESIDE)
        fill_beside(engine)


def test_who_was_forgotten_before_there_were_marks_is_marked(url: str) -> None:
    """The third revision, forward on a record that has erasures, back, and forward again."""
    upgrade(url)
    mark = erasure_id_of(TOMBSTONE_KEY, "p1")
    with engine_of(url, migrated=False) as engine:
        fill(engine)
        fold = SqlFold(engine, TOMBSTONE_KEY, now_ms=lambda: START_MS)
        erasures = [
            entry(at, PlayerErased(tournament_id=T, player_id=who, erasure_id=told),
                  time_ms=START_MS + at)
            for at, who, told in ((901, "p1", mark), (902, "p1", mark), (903, "p2", "er-2"))
        ]  # fmt: skip
        fold.apply(0, LOG, put_down(erasures), Offset(904))
        whole = dump(engine)
        assert len(whole["forgotten_players"]) == 2
        none = dict.fromkeys([*OF_THE_LOG, *OF_FRAUD, "erasure_requests"], 0)
        assert lost(url, "0002") == {"forgotten_players": 2, **none}
        assert downgrade(url, "0002") == "record_0002"
        before = dump(engine)
        later = {"forgotten_players", *none}
        assert before == {name: whole[name] for name in whole if name not in later}
        assert upgrade(url) == HEAD
        after = dump(engine)
        marks, requests = after.pop("forgotten_players"), after.pop("erasure_requests")
        assert all(after.pop(name) == [] for name in (*OF_THE_LOG, *OF_FRAUD))
        assert after == before
        assert marks == sorted([(mark, START_MS + 901), ("er-2", START_MS + 903)])
        assert SqlRecord(engine).is_forgotten(mark)
        # Whom they are about is with nobody but the store.
        assert requests == [(one, None, at_ms, None, None) for one, at_ms in marks]


def test_a_filled_record_goes_back_to_nothing_and_leaves_no_table(url: str) -> None:
    with engine_of(url) as engine:
        fill(engine)
        fill_beside(engine)
        assert downgrade(url, "base") == "base"
        assert status(engine).fit is Fit.EMPTY
        with engine.connect() as connection:
            assert set(sa.inspect(connection).get_table_names()) <= {"alembic_version"}
        upgrade(url)
        check(engine)


def test_migrations_make_what_the_code_says(url: str) -> None:
    with engine_of(url) as engine, engine.connect() as connection:
        Months(engine).ensure(month_of(START_MS))
        differences = compare_metadata(
            MigrationContext.configure(connection, opts={"include_name": is_no_partition}),
            tables.metadata,
        )
        assert differences == []


def is_no_partition(name: str | None, kind: str, _parents: Any) -> bool:
    partitioned = tuple(f"{table.name}_2" for table in tables.PARTITIONED)
    return kind != "table" or name is None or not name.startswith(partitioned)


def test_storage_settings_of_migrations_are_those_of_the_code(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    found = []
    for migrated in (True, False):
        with (
            fresh_database("postgresql", request, tmp_path) as url,
            engine_of(url, migrated=migrated) as engine,
        ):
            if not migrated:
                tables.metadata.create_all(engine)
            with engine.connect() as connection:
                # An upgrade makes the months that come next, too.
                rows = connection.exec_driver_sql(
                    "SELECT relname, relkind, reloptions, pg_get_partkeydef(oid) FROM pg_class "
                    "WHERE relnamespace = 'public'::regnamespace AND relname <> 'alembic_version' "
                    "AND relname NOT LIKE 'alembic%%' AND relname !~ '_[0-9]{6}' ORDER BY relname"
                )
                found.append([tuple(row) for row in rows])
    assert found[0] == found[1]


def test_upgrade_is_harmless_again_and_never_goes_back(url: str) -> None:
    assert upgrade(url) == HEAD
    assert upgrade(url) == HEAD
    assert upgrade(url, "0001") == HEAD
    assert downgrade(url, HEAD) == HEAD
    with pytest.raises(SettingsError, match="'0099' is no revision"):
        upgrade(url, "0099")
    downgrade(url, "0001")
    with pytest.raises(SettingsError, match="would be an upgrade"):
        downgrade(url, "0002")


def test_two_upgrades_at_once_are_as_good_as_one(url: str) -> None:
    reached: list[str] = []
    gate = threading.Barrier(4)

    def run() -> None:
        gate.wait()
        reached.append(upgrade(url))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reached == [HEAD] * 4
    with engine_of(url, migrated=False) as engine:
        check(engine)


def test_a_schema_that_is_missing_or_older_stops_the_start_and_says_what_to_do(url: str) -> None:
    with engine_of(url, migrated=False) as engine:
        with pytest.raises(SettingsError, match=r"^DATABASE_URL: has no record yet; .* upgrade"):
            check(engine)
        upgrade(url, "0001")
        with pytest.raises(SettingsError, match=r"^DATABASE_URL: .* older version .* upgrade"):
            check(engine)
        assert status(engine).revision == "record_0001"


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        (["record_0099"], "newer version"),
        (["4711abcdef"], "another project"),
        (["record_0001", "4711abcdef"], "another project"),
    ],
)
def test_a_schema_that_is_newer_or_not_ours_is_refused_and_left_alone(
    url: str, versions: list[str], told: str
) -> None:
    with engine_of(url) as engine:
        with writing(engine) as connection:
            connection.exec_driver_sql("DELETE FROM alembic_version")
            for one in versions:
                row = sa.text("INSERT INTO alembic_version VALUES (:one)")
                connection.execute(row, {"one": one})
        fill(engine)
        before = dump(engine)
        for refused in (
            lambda: check(engine),
            lambda: upgrade(url),
            lambda: downgrade(url, "base"),
            lambda: lost(url, "base"),
        ):
            with pytest.raises(SettingsError, match=f"^DATABASE_URL: .*{told}"):
                refused()
        assert dump(engine) == before
        with engine.connect() as connection:
            rows = connection.exec_driver_sql("SELECT version_num FROM alembic_version")
            assert sorted(rows.scalars()) == sorted(versions)


def test_tables_with_our_names_that_no_migration_made_are_left_alone(url: str) -> None:
    with engine_of(url, migrated=False) as engine:
        with writing(engine) as connection:
            connection.exec_driver_sql("CREATE TABLE players (name VARCHAR(10))")
            connection.exec_driver_sql("INSERT INTO players VALUES ('kept')")
        for refused in (lambda: check(engine), lambda: upgrade(url)):
            with pytest.raises(SettingsError, match=r"^DATABASE_URL: .*\(players …\)"):
                refused()
        with engine.connect() as connection:
            names = sa.inspect(connection).get_table_names()
            assert names == ["players"]


def test_a_migration_that_fails_half_way_leaves_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CutError(Exception):
        pass

    def cut(*_: object) -> None:
        raise CutError

    upgrade(url, "0001")
    with engine_of(url, migrated=False) as engine:
        before = table_names(engine)
        monkeypatch.setattr(sql_migrations, "_found", failing_second(sql_migrations._found, cut))
        with pytest.raises(CutError):
            upgrade(url)
        monkeypatch.undo()
        assert table_names(engine) == before
        assert status(engine).revision == "record_0001"
        upgrade(url)
        check(engine)


def failing_second(real: Any, cut: Any) -> Any:
    """Looks for the first time as it should, then, after the steps, the process dies."""
    calls: list[int] = []

    def found(*args: Any) -> Any:
        calls.append(1)
        return real(*args) if len(calls) == 1 else cut()

    return found


def table_names(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return sorted(sa.inspect(connection).get_table_names())


def test_an_upgrade_waits_for_a_table_in_use_and_then_says_so(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_migrations, "_LOCK_SECONDS", 1)
    with (
        fresh_database("postgresql", request, tmp_path) as url,
        engine_of(url) as engine,
        engine.begin() as user,
    ):
        user.exec_driver_sql("SELECT count(*) FROM told_changes")
        with pytest.raises(TransientError, match="lock timeout"):
            downgrade(url, "0001")
        user.rollback()
        assert downgrade(url, "0001") == "record_0001"


def test_a_database_that_is_away_is_a_passing_trouble() -> None:
    engine = connect("postgresql+psycopg://nobody@127.0.0.1:1/none")
    try:
        for asked in (lambda: check(engine), lambda: upgrade(str(engine.url))):
            with pytest.raises(TransientError):
                asked()
    finally:
        engine.dispose()


def test_what_the_user_may_not_do_names_the_setting(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with fresh_database("postgresql", request, tmp_path) as made:
        upgrade(made)
        role = f"stranger_{Path(made).name.replace('-', '_')}"
        owner = connect(made, pool_size=1)
        with owner.begin() as connection:
            connection.exec_driver_sql(f'CREATE ROLE "{role}" LOGIN')
        stranger = connect(sa.make_url(made).set(username=role).render_as_string(False))
        try:
            with pytest.raises(SettingsError, match="DATABASE_URL: permission denied"):
                check(stranger)
        finally:
            stranger.dispose()
            with owner.begin() as connection:
                connection.exec_driver_sql(f'DROP ROLE "{role}"')
            owner.dispose()


def test_an_option_or_a_driver_that_is_not_there_names_the_setting() -> None:
    engine = connect("postgresql+psycopg://u@127.0.0.1/x?foo=bar")
    with pytest.raises(SettingsError, match='DATABASE_URL: invalid connection option "foo"'):
        check(engine)
    with pytest.raises(SettingsError, match="DATABASE_URL: its driver is not installed: pyodbc"):
        connect("mssql+pyodbc://u:p@127.0.0.1/x")
