"""The record when things break: a stop at any place, a server that goes away, a disk that is full.

Each test shows that its fault bit, then that nothing is half done, then that it goes on right."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from leaderboard.adapters import sql_migrations, sql_rows
from leaderboard.adapters.sql_engine import connect, reading
from leaderboard.adapters.sql_fold import SqlFold
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.errors import TransientError
from leaderboard.fold import LogEntry
from leaderboard.model import PlayerId
from leaderboard.stack.postgres import PostgresServer
from logs import T, erased, scheduled, scored
from records import (
    DIALECTS,
    Oracle,
    assert_equal,
    dump,
    engine_of,
    fold_of,
    fresh_database,
    interleaved,
    loaded,
    moved,
    take,
)

PATIENCE_SECONDS = 60


class CutError(Exception):
    """The process ends here."""


@pytest.fixture(params=DIALECTS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    with fresh_database(request.param, request, tmp_path) as url, engine_of(url) as made:
        yield made


# --- a stop at any place -------------------------------------------------------------------------


def test_a_stop_after_any_step_of_a_transaction_leaves_nothing_of_it(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch has new and known players, repeats, an erasure and an end in it."""
    first = interleaved(5, tournaments=2, length=40)
    batch = [moved_on(one, first[-1].offset) for one in interleaved(6, tournaments=2, length=60)]
    oracle, fold = Oracle(), fold_of(engine)
    oracle.take(first)
    take(fold, first)
    before = dump(engine)
    steps = 0
    came = None
    while came is None:
        steps += 1
        with (
            monkeypatch.context() as cut,
            cutting_after(steps, cut, engine),
            contextlib.suppress(CutError),
        ):
            came = take(fold, batch)
        if came is None:
            assert dump(engine) == before, f"step {steps} left something"
    assert steps > 10
    assert list(came.verdicts) == oracle.take(batch)
    assert_equal(oracle, SqlRecord(engine), [*first, *batch])


def moved_on(one: LogEntry, behind: int) -> LogEntry:
    return moved(one, str(one.event.tournament_id), one.offset + behind + 1)


def cutting_after(steps: int, cut: pytest.MonkeyPatch, engine: sa.Engine) -> contextlib.ExitStack:
    """Statements and bulk writes of the fold are counted; the one after `steps` never returns."""
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if done > steps:
            raise CutError

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            real(*args)
            count()

        return call

    for name in ("insert", "update", "delete"):
        cut.setattr(sql_rows, name, counted(getattr(sql_rows, name)))
    stack = contextlib.ExitStack()
    sa.event.listen(engine, "after_cursor_execute", count)
    stack.callback(sa.event.remove, engine, "after_cursor_execute", count)
    return stack


def test_a_process_killed_in_the_middle_leaves_whole_batches_only(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """SIGKILL at odd moments, over and over, until the whole log is in."""
    for dialect in DIALECTS:
        with fresh_database(dialect, request, tmp_path) as url, engine_of(url) as engine:
            log = killed_log()
            record, oracle = SqlRecord(engine), Oracle()
            kills = 0
            deadline = time.monotonic() + PATIENCE_SECONDS
            while reached_by(engine) <= log[-1].offset:
                assert time.monotonic() < deadline
                child = subprocess.Popen(
                    [sys.executable, __file__, url],
                    stdout=subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
                )
                assert child.stdout is not None
                with child, child.stdout as told:
                    assert told.readline() == b"folding\n"
                    time.sleep(0.1 + 0.1 * kills)
                    child.kill()
                kills += 1
            assert kills > 1, "it was done before the first kill"
            oracle.take(log)
            assert_equal(oracle, record, log)
            assert len(dump(engine)["inputs"]) == len(log)


def killed_log() -> list[LogEntry]:
    return interleaved(13, tournaments=2, length=250)


def fold_until_killed(url: str) -> None:
    """In a process of its own: see the end of this file."""
    engine, log = connect(url), killed_log()
    reached = reached_by(engine)
    fresh = [one for one in log if one.offset >= reached]
    print("folding", flush=True)
    fold = fold_of(engine)
    for start in range(0, len(fresh), 4):
        take(fold, fresh[start : start + 4])
    time.sleep(PATIENCE_SECONDS)


def reached_by(engine: sa.Engine) -> int:
    rows = dump(engine)["log_positions"]
    return int(str(rows[0][3])) if rows else 0


# --- the server goes away ------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PostgresServer]:
    """A PostgreSQL that may be hurt."""
    made = PostgresServer(tmp_path / "own")
    made.start()
    try:
        yield made
    finally:
        made.stop()


class Folding:
    """Folds a log in a thread, as the host does it: what may pass is tried again."""

    def __init__(self, engine: sa.Engine, log: Sequence[LogEntry], size: int) -> None:
        self._fold = fold_of(engine)
        self._parts = [log[start : start + size] for start in range(0, len(log), size)]
        self._thread = threading.Thread(target=self._run)
        self.done = 0
        self.troubles: list[TransientError] = []
        self.failure: BaseException | None = None
        self._thread.start()

    def _run(self) -> None:
        try:
            for part in self._parts:
                while True:
                    try:
                        take(self._fold, part)
                        break
                    except TransientError as error:
                        self.troubles.append(error)
                        time.sleep(0.05)
                self.done += 1
        except BaseException as error:  # noqa: BLE001 - told to the test
            self.failure = error

    def until(self, wanted: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not wanted():
            assert self.failure is None, self.failure
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def finish(self) -> None:
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        assert self.failure is None, self.failure


@pytest.mark.parametrize("fault", ["killed", "restarted", "sessions ended"])
def test_a_server_that_goes_away_in_the_middle_is_waited_for(
    server: PostgresServer, fault: str
) -> None:
    log = interleaved(17, tournaments=3, length=300)
    with engine_of(loaded(server.url)) as engine:
        folding = Folding(engine, log, 6)
        for turn in range(3):
            goal = folding.done + 5
            folding.until(lambda goal=goal: folding.done >= goal)  # type: ignore[misc]
            met = len(folding.troubles)
            if fault == "killed":
                server.process.kill()
                folding.until(lambda met=met: len(folding.troubles) > met)  # type: ignore[misc]
                server.start()
            elif fault == "restarted":
                server.stop()
                folding.until(lambda met=met: len(folding.troubles) > met)  # type: ignore[misc]
                server.start()
            else:
                folding.until(lambda met=met: end_sessions(server, folding, met))  # type: ignore[misc]
            assert len(folding.troubles) > met, f"fault {turn} bit nobody"
        folding.finish()
        oracle = Oracle()
        oracle.take(log)
        assert_equal(oracle, SqlRecord(engine), log)
        assert len(dump(engine)["inputs"]) == len(log)


def end_sessions(server: PostgresServer, folding: Folding, met: int) -> bool:
    """Ends whatever session is in a transaction; whether the fold has met trouble."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
            "application_name = 'leaderboard' AND state <> 'idle'"
        )
    return len(folding.troubles) > met


def test_reads_from_a_server_that_is_away_are_a_passing_trouble(server: PostgresServer) -> None:
    with engine_of(loaded(server.url)) as engine:
        take(fold_of(engine), [scheduled(0), scored(1, "p1", 5)])
        record = SqlRecord(engine)
        seen = record.top(T, 10)
        server.process.kill()
        for ask in (
            lambda: record.top(T, 10),
            lambda: record.around(T, PlayerId("p1"), 2),
            record.all,
            lambda: record.find(T),
            lambda: take(fold_of(engine), [scored(2, "p1", 5)]),
        ):
            with pytest.raises(TransientError, match="the database is away"):
                ask()
        server.start()
        assert record.top(T, 10) == seen


def test_an_error_tells_nothing_of_the_players(server: PostgresServer) -> None:
    with engine_of(loaded(server.url)) as engine:
        take(fold_of(engine), [scheduled(0), scored(1, "someone-in-particular", 5)])
        with engine.connect() as holder:
            holder.exec_driver_sql("LOCK TABLE standings IN ACCESS EXCLUSIVE MODE")
            sa.event.listen(engine, "begin", hurry)
            with pytest.raises(TransientError) as told:
                take(fold_of(engine), [erased(2, "someone-in-particular")])
            sa.event.remove(engine, "begin", hurry)
        assert "someone" not in str(told.value)
        assert told.value.__cause__ is None


def hurry(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL lock_timeout = '200ms'")


# --- a full disk ---------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of this size, in memory. It takes root, or sudo without a password."""
    place = folder / "small"
    place.mkdir()
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    command = [*root, "mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "tmpfs"]
    done = subprocess.run([*command, str(place)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"no small disk: mounting one takes root or sudo ({done.stderr.strip()})")
    try:
        yield place
    finally:
        subprocess.run([*root, "umount", "--lazy", str(place)], check=True)


class Ballast:
    """What takes up all room on a disk but a little."""

    def __init__(self, place: Path, leave: int) -> None:
        self._path = place / "ballast"
        free = shutil.disk_usage(place).free
        with self._path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(free - leave, 1))

    def drop(self) -> None:
        self._path.unlink()


def heavy(count: int) -> list[LogEntry]:
    """A log that takes room: a player and an id for each event."""
    return [scheduled(0)] + [
        scored(n, f"p{n}", n % 1000, event_id=f"{n:0400d}") for n in range(1, count)
    ]


def fold_until_full(fold: SqlFold, log: Sequence[LogEntry], size: int) -> int:
    """How many entries got in before there was no room."""
    for start in range(0, len(log), size):
        try:
            take(fold, log[start : start + size])
        except TransientError:
            return start
    raise AssertionError("the disk never got full")


def test_a_full_disk_under_sqlite_is_a_passing_trouble(tmp_path: Path) -> None:
    with small_disk(tmp_path, 8) as place:
        url = loaded(f"sqlite:///{place / 'record.sqlite'}")
        with engine_of(url) as engine:
            assert_full_disk_passes(engine, Ballast(place, 700_000), lambda: None)


def test_a_full_disk_under_postgresql_is_a_passing_trouble(tmp_path: Path) -> None:
    with small_disk(tmp_path, 200) as place:
        extra = {"max_wal_size": "48MB", "min_wal_size": "32MB", "shared_buffers": "16MB"}
        server = PostgresServer(place / "own", extra=extra)
        server.start()
        try:
            with engine_of(loaded(server.url)) as engine:
                ballast = Ballast(place, 3_000_000)
                assert_full_disk_passes(engine, ballast, lambda: restart_if_down(server))
        finally:
            server.stop()
        assert "No space left on device" in server.process.log_path.read_text()


def restart_if_down(server: PostgresServer) -> None:
    """Where the log itself found no room, the server stops, as it must."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not server.answers():
        if not server.process.is_running():
            server.start()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def assert_full_disk_passes(
    engine: sa.Engine, ballast: Ballast, bring_back: Callable[[], None]
) -> None:
    log = heavy(4_000)
    fold, record, oracle = fold_of(engine), SqlRecord(engine), Oracle()
    taken = fold_until_full(fold, log, 200)
    assert 0 < taken < len(log)
    for _ in range(3):
        with contextlib.suppress(TransientError):
            take(fold, log[taken : taken + 200])
            pytest.fail("there was room after all")
    ballast.drop()
    bring_back()
    assert reached_by(engine) == taken
    oracle.take(log[:taken])
    assert record.top(T, 1000) == oracle.board.top(T, 1000)
    for start in range(taken, len(log), 200):
        take(fold, log[start : start + 200])
    oracle.take(log[taken:])
    assert record.top(T, 1000) == oracle.board.top(T, 1000)
    with reading(engine) as connection:
        count = connection.execute(sa.text("SELECT count(*) FROM inputs")).scalar_one()
    assert count == len(log)


def test_a_schema_that_finds_no_room_is_not_half_made(tmp_path: Path) -> None:
    with small_disk(tmp_path, 1) as place:
        url = loaded(f"sqlite:///{place / 'record.sqlite'}")
        ballast = Ballast(place, 60_000)
        with pytest.raises(TransientError):
            sql_migrations.upgrade(url)
        ballast.drop()
        assert sql_migrations.upgrade(url) == "record_0006"


if __name__ == "__main__":
    fold_until_killed(sys.argv[1])
