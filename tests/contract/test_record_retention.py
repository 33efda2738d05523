"""What the record lets go, and what it never does, on SQLite and PostgreSQL, over many months."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa

from leaderboard.adapters import sql_retention
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.adapters.sql_engine import insert, reading, writing
from leaderboard.adapters.sql_fold import SqlFold
from leaderboard.adapters.sql_months import Months, month_of
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.adapters.sql_retention import (
    FIVE_YEARS,
    POLICIES,
    TEN_YEARS,
    Removal,
    Retention,
    months_of,
    policy_of,
)
from leaderboard.cli import main
from leaderboard.errors import SettingsError
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, TournamentId
from leaderboard.settings import RetentionSettings, load
from logs import LOG, TOMBSTONE_KEY, ended, entry, erased, scheduled, scored
from records import DIALECTS, dump, engine_of, fresh_database, moved, put_down

DAY_MS = 24 * 3600 * 1000
NOW_MS = int(datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp() * 1000)
POLICY = POLICIES["default"]


@pytest.fixture(params=DIALECTS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with fresh_database(request.param, request, tmp_path) as made:
        yield made


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    with engine_of(url) as made:
        yield made


class Past:
    """Writes into the record as if it were some day long ago."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._next = 0

    def tournament(
        self, name: str, ended_ms: int, *, is_over: bool = True, confirmed: bool = True
    ) -> None:
        """One with players, an erasure, a final board, changes, a suspicion and keys."""
        start_ms = ended_ms - DAY_MS
        log = [
            scheduled(0, starts_ms=start_ms, ends_ms=ended_ms + 1),
            *(scored(n, f"p{n}", n, time_ms=start_ms + n) for n in range(1, 6)),
            scored(6, "p1", 3, time_ms=start_ms + 6, sequence=1, source="/numbered"),
            erased(7, "p2"),
        ]
        if is_over:
            end = ended(8)
            log.append(entry(8, end.event.data, time_ms=ended_ms))
        self._fold(name, log, ended_ms)
        archive = SqlArchive(self._engine, TOMBSTONE_KEY, now_ms=lambda: ended_ms)
        if is_over and confirmed:
            tournament_id = TournamentId(name)
            (sequence,) = SqlRecord(self._engine).sequences([tournament_id]).values()
            assert archive.confirm(tournament_id, sequence) is not None
        month = month_of(ended_ms)
        Months(self._engine).ensure(month)
        with writing(self._engine) as connection:
            change = (name, 7, month, "p1", None, 1, 5, 0, None, "/tests", "e7", ended_ms)
            insert(connection, tables.position_changes, [change])
            insert(connection, tables.told_changes, [(name, 7)])
            alert = (f"{name}/7/velocity", name, 7, "velocity", "p1", None, ended_ms, 125, "{}")
            insert(connection, tables.fraud_alerts, [alert])
            review = (alert[0], name, "dismissed", "olga", ended_ms, None)
            insert(connection, tables.fraud_reviews, [review])
            insert(connection, tables.pseudonym_keys, [(name, "er-1", b"k" * 32)])
            insert(connection, tables.pseudonym_ends, [(name, "er-2", 0, 7, 0, 1, ended_ms)])

    def _fold(self, name: str, log: list[LogEntry], at_ms: int) -> None:
        fold = SqlFold(self._engine, TOMBSTONE_KEY, now_ms=lambda: at_ms)
        part = [moved(one, name, self._next + one.offset) for one in log]
        self._next = part[-1].offset + 1
        fold.apply(0, LOG, put_down(part), Offset(self._next))

    def beside(self, at_ms: int) -> None:
        """An attempt and a dead letter."""
        month, at = month_of(at_ms), self._next
        self._next += 1
        Months(self._engine).ensure(month)
        with writing(self._engine) as connection:
            attempt = (0, at, month, f"c{at}", at_ms, "t", "p1", True, "ok", "192.0.2.1", "agent")
            insert(connection, tables.connection_attempts, [attempt])
            letter = ("wagers-dlq", 0, at, month, at_ms, "schema", "t", None, "{}", b"x", 0)
            insert(connection, tables.dead_letters, [letter])


def days_ago(days: float) -> int:
    return int(NOW_MS - days * DAY_MS)


def names_in(engine: sa.Engine) -> list[str]:
    return [one.tournament_id for one in SqlRecord(engine).all()]


def retained(engine: sa.Engine) -> list[Removal]:
    """Apply; what was removed."""
    gone: list[Removal] = []
    Retention(engine, POLICY, NOW_MS).apply(gone.append)
    return gone


def rows_of(engine: sa.Engine, tournament: str) -> dict[str, int]:
    """Rows by table that belong to a tournament, by name or by number."""
    whole = dump(engine)
    numbers = {row[0] for row in whole["tournaments"] if row[1] == tournament}
    own = {
        table.name: 0
        for table in tables.metadata.sorted_tables
        if table.columns.keys()[0] in ("tournament_no", "tournament_id")
    }
    own |= {"fraud_alerts": 1, "fraud_reviews": 1}
    return {
        name: sum(1 for row in whole[name] if row[at] in numbers | {tournament})
        for name, at in own.items()
    }


def test_a_tournament_goes_with_all_that_is_its_own_and_no_other_does(engine: sa.Engine) -> None:
    past = Past(engine)
    past.tournament("old", days_ago(TEN_YEARS + 40))
    past.tournament("young", days_ago(TEN_YEARS - 40))
    before = rows_of(engine, "young")
    assert all(rows_of(engine, "old").values()), "each table has something to lose"
    whole = dump(engine)
    planned = list(Retention(engine, POLICY, NOW_MS).plan())
    assert dump(engine) == whole, "a plan changes nothing"
    assert [one.what.split(",")[0] for one in planned] == ["tournament old"]
    assert planned[0].rows == sum(rows_of(engine, "old").values())

    retained(engine)
    assert names_in(engine) == ["young"]
    assert rows_of(engine, "young") == before
    left = dump(engine)
    stays = len(left["log_positions"]) + len(left["forgotten_players"])
    assert sum(map(len, left.values())) == sum(before.values()) + stays
    assert left["forgotten_players"] == whole["forgotten_players"] != []
    assert SqlRecord(engine).top(TournamentId("old"), 5) is None
    assert retained(engine) == []


@pytest.mark.parametrize("how", ["running", "unconfirmed"])
def test_a_tournament_that_is_not_over_or_not_confirmed_is_never_touched(
    engine: sa.Engine, how: str
) -> None:
    past = Past(engine)
    long_ago = days_ago(3 * TEN_YEARS)
    past.tournament("kept", long_ago, is_over=how != "running", confirmed=False)
    past.tournament("gone", long_ago)
    before = rows_of(engine, "kept")
    # Both lie in the same months, so these can't be dropped in one piece.
    retained(engine)
    assert names_in(engine) == ["kept"]
    assert rows_of(engine, "kept") == before
    assert rows_of(engine, "gone") == dict.fromkeys(before, 0)


def test_the_day_decides_to_the_millisecond(engine: sa.Engine) -> None:
    past = Past(engine)
    past.tournament("at", days_ago(TEN_YEARS))
    past.tournament("past", days_ago(TEN_YEARS) - 1)
    for ms in (-1, 0):
        past.beside(days_ago(30) + ms)
        past.beside(days_ago(90) + ms)
    retained(engine)
    assert names_in(engine) == ["at"]
    whole = dump(engine)
    assert [row[4] for row in whole["connection_attempts"]] == [days_ago(30)]
    assert sorted(int(str(row[4])) for row in whole["dead_letters"]) == [
        days_ago(90), days_ago(30) - 1, days_ago(30),
    ]  # fmt: skip


def test_months_that_hold_nothing_to_stay_are_dropped_whole(engine: sa.Engine) -> None:
    past = Past(engine)
    for months in range(8):
        past.beside(days_ago(31 * months + 1))
    past.tournament("old", days_ago(TEN_YEARS + 400))
    gone = retained(engine)
    whole = dump(engine)
    assert [row[4] for row in whole["connection_attempts"]] == [days_ago(1)]
    assert len(whole["dead_letters"]) == 3
    now, after = 202611, 202612
    if engine.dialect.name != "postgresql":
        assert [one.what.split(" ")[0] for one in gone] == [
            "tournament", "connection_attempts", "dead_letters",
        ]  # fmt: skip
        return
    dropped = {one.what for one in gone}
    assert {"connection_attempts_202604", "dead_letters_202604", "inputs_201510"} <= dropped
    with reading(engine) as connection:
        assert months_of(connection, tables.connection_attempts) == [202610, now, after]
        assert months_of(connection, tables.dead_letters)[0] == 202608
        assert months_of(connection, tables.inputs)[-2:] == [now, after]
        assert min(months_of(connection, tables.inputs)) > 201612


def test_much_goes_in_bounded_pieces(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_retention, "CHUNK", 3)
    deleted: list[int] = []

    def note(_c: Any, cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith("DELETE"):
            deleted.append(cursor.rowcount)

    past = Past(engine)
    past.tournament("old", days_ago(TEN_YEARS + 1))
    past.tournament("kept", days_ago(5))
    for _ in range(10):
        past.beside(days_ago(30) - 1)
    before = rows_of(engine, "kept")
    sa.event.listen(engine, "after_cursor_execute", note)
    gone = retained(engine)
    sa.event.remove(engine, "after_cursor_execute", note)
    assert max(deleted) == 3
    assert sum(deleted) == sum(one.rows for one in gone)
    assert names_in(engine) == ["kept"]
    assert rows_of(engine, "kept") == before
    assert dump(engine)["connection_attempts"] == []


def test_a_run_that_is_cut_off_is_repeated(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CutError(Exception):
        pass

    past = Past(engine)
    past.tournament("old", days_ago(TEN_YEARS + 1))
    past.tournament("kept", days_ago(TEN_YEARS - 1))
    before = rows_of(engine, "kept")
    real, done = Retention._delete, 0

    def cut(self: Retention, *args: Any) -> int:
        nonlocal done
        done += 1
        if done == 5:
            raise CutError
        return real(self, *args)

    monkeypatch.setattr(Retention, "_delete", cut)
    with pytest.raises(CutError):
        retained(engine)
    monkeypatch.undo()
    assert "old" in names_in(engine), "its own row goes last, so that it is found again"
    retained(engine)
    assert names_in(engine) == ["kept"]
    assert rows_of(engine, "kept") == before


def test_changes_of_a_tournament_that_the_record_never_saw_go_by_their_age(
    engine: sa.Engine,
) -> None:
    months = Months(engine)
    for name, age in (("unseen-old", TEN_YEARS + 1), ("unseen-young", TEN_YEARS - 1)):
        month = month_of(days_ago(age))
        months.ensure(month)
        with writing(engine) as connection:
            row = (name, 7, month, "p", None, 1, 5, 0, None, "/t", "e7", days_ago(age))
            insert(connection, tables.position_changes, [row])
    retained(engine)
    assert [row[0] for row in dump(engine)["position_changes"]] == ["unseen-young"]


# --- which policy --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "tournaments", "attempts", "letters"),
    [
        ({}, TEN_YEARS, 30, 90),
        ({"JURISDICTION": "us-nj"}, TEN_YEARS, 30, 90),
        ({"JURISDICTION": "us-pa"}, TEN_YEARS, 30, 90),
        ({"JURISDICTION": "us-wv"}, FIVE_YEARS, 30, 90),
        ({"JURISDICTION": "us-wv", "RETENTION_TOURNAMENTS_DAYS": "4000"}, 4000, 30, 90),
        (
            {"RETENTION_TOURNAMENTS_DAYS": "7", "RETENTION_CONNECTION_ATTEMPTS_DAYS": "2"},
            7, 2, 90,
        ),
        ({"RETENTION_DEAD_LETTERS_DAYS": "14"}, TEN_YEARS, 30, 14),
    ],
)  # fmt: skip
def test_jurisdiction_chooses_and_settings_change(
    settings: Mapping[str, str], tournaments: int, attempts: int, letters: int
) -> None:
    policy = policy_of(load(RetentionSettings, settings))
    assert policy[:3] == (tournaments, attempts, letters)


def test_ten_years_are_never_less_than_ten_years() -> None:
    for year in range(2020, 2032):
        for years, days in ((10, TEN_YEARS), (5, FIVE_YEARS)):
            start = datetime(year, 3, 1, tzinfo=UTC)
            assert start + timedelta(days=days) >= start.replace(year=year + years)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"JURISDICTION": "atlantis"}, "JURISDICTION"),
        ({"RETENTION_TOURNAMENTS_DAYS": "0"}, "RETENTION_TOURNAMENTS_DAYS"),
        ({"RETENTION_TOURNAMENTS_DAYS": "ten"}, "RETENTION_TOURNAMENTS_DAYS"),
        ({"RETENTION_CONNECTION_ATTEMPTS_DAYS": "-1"}, "RETENTION_CONNECTION_ATTEMPTS_DAYS"),
        ({"RETENTION_DEAD_LETTERS_DAYS": "1.5"}, "RETENTION_DEAD_LETTERS_DAYS"),
        (
            {"JURISDICTION": "us-nj", "RETENTION_TOURNAMENTS_DAYS": "3652"},
            "RETENTION_TOURNAMENTS_DAYS: 3652 is below 3653",
        ),
    ],
)
def test_a_wrong_value_stops_with_the_name_of_its_variable(
    settings: Mapping[str, str], told: str
) -> None:
    with pytest.raises(SettingsError, match=f"^{told}"):
        policy_of(load(RetentionSettings, settings))


# --- the command ---------------------------------------------------------------------------------


class Told(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def command(url: str, *words: str, **settings: str) -> Told:
    """`leaderboard record …` as its console script runs it, with nobody to answer questions."""
    told, errors = StringIO(), StringIO()
    with (
        pytest.MonkeyPatch.context() as given,
        contextlib.redirect_stdout(told),
        contextlib.redirect_stderr(errors),
        pytest.raises(SystemExit) as ended_with,
    ):
        given.setattr(sys, "argv", ["leaderboard", "record", *words])
        given.setattr(sys, "stdin", StringIO())
        for name, value in {"DATABASE_URL": url, **settings}.items():
            given.setenv(name, value)
        main()
    return Told(int(str(ended_with.value.code)), told.getvalue(), errors.getvalue())


def test_the_commands_tell_what_they_do(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'record.sqlite'}"
    missing = command(url, "retention")
    assert (missing.returncode, missing.stderr.startswith("error: DATABASE_URL: has no")) == (
        2,
        True,
    )
    assert command(url, "status").returncode == 1
    assert command(url, "upgrade").stdout == "the record is at record_0006\n"
    status = command(url, "status")
    assert (status.returncode, status.stdout.startswith("current: ")) == (0, True)
    with engine_of(url, migrated=False) as engine:
        Past(engine).tournament("old", days_ago(TEN_YEARS + 1))
        Past(engine).beside(days_ago(200))
        before = dump(engine)
        dry = command(url, "retention")
        assert dry.returncode == 0, dry.stderr
        assert "would remove tournament old, over since 20" in dry.stdout
        assert dump(engine) == before
        assert command(url, "retention", JURISDICTION="mars").returncode == 2
        done = command(url, "retention", "--apply", JURISDICTION="us-wv")
        assert done.returncode == 0, done.stderr
        assert "removed tournament old" in done.stdout
        assert names_in(engine) == []
    asked = command(url, "downgrade", "0001")
    assert asked.returncode == 130, "without an answer nothing is dropped"
    assert "lost: dead_letters with 0 rows" in asked.stdout
    assert command(url, "downgrade", "0001", "--yes").stdout.endswith("at record_0001\n")
    assert command(url, "downgrade", "0007", "--yes").returncode == 2
