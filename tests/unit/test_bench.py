"""What the benchmark makes of what it measured."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.compare import Values, table
from bench.machine import Meter, Usage, of_functions
from bench.reads import paced
from bench.report import Bench, Measured, quantile, spread

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("shared", "tests", "functions")


@pytest.mark.parametrize(
    ("count", "share", "wanted"),
    [(100, 0.99, 99), (100, 0.5, 50), (101, 0.99, 100), (1000, 0.999, 999), (3, 0.999, 3)],
)
def test_quantile_is_the_smallest_value_that_so_many_do_not_exceed(
    count: int, share: float, wanted: int
) -> None:
    values = list(range(count, 0, -1))
    assert quantile(values, share) == wanted
    assert sum(one <= wanted for one in values) >= share * count
    assert sum(one <= wanted - 1 for one in values) < share * count


def test_largest_time_is_told_beside_the_percentiles() -> None:
    assert spread([3.0, 1.0, 2.0], "top_") == {
        "top_p50_ms": 2.0,
        "top_p99_ms": 3.0,
        "top_p999_ms": 3.0,
        "top_max_ms": 3.0,
    }


def test_contenders_take_turns_and_begin_where_they_are_told_to() -> None:
    bench, order = Bench(2, small=True, first_run=3), []

    def contender(name: str, run: int) -> Measured:
        order.append((name, run))
        return Measured(float(run))

    contenders = {
        "ours": lambda run: contender("ours", run),
        "rival": lambda run: contender("r", run),
    }
    bench.in_turns("b", "x/s", contenders)
    assert order == [("ours", 3), ("r", 3), ("ours", 4), ("r", 4)]
    assert list(bench.seeds) == [3, 4]


def test_load_of_the_machine_is_that_of_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.25, 0.0, 0.0))
    bench = Bench(1, small=True)
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 9.0, 9.0))
    bench.in_turns("b", "x/s", {"ours": lambda _: Measured(1.0)})
    bench.write(tmp_path / "bench.json")
    told = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert told["machine"]["load_average"] == [0.25, 0.0, 0.0]
    assert told["machine"]["servers_disk"] != "?"


def test_own_process_is_counted_without_its_children_and_without_what_was_before() -> None:
    before = b"x" * (200 * 2**20)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    del before
    meter = Meter({}, "own")
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
        used = meter.read()["own"]
    finally:
        child.kill()
        child.wait()
    assert 0.2 <= used.cpu_seconds < 0.3
    assert 0 < used.peak_mib < peak_mib - 150


def test_processes_of_ours_are_summed_up_and_servers_are_none_of_them() -> None:
    usage = {"on-wager": Usage(2.0, 1), "archive": Usage(3.0, 1), "kafka": Usage(50.0, 1)}
    assert of_functions(usage, 100_000) == {"functions_cpu_s_per_million": 50.0}


# --- calls that are due --------------------------------------------------------------------------


class Clock:
    """In place of `time`: goes on by what is slept, and `late` more each time."""

    def __init__(self, late: float = 0.0) -> None:
        self.now = 100.0
        self._late = late

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self._late


def test_call_that_is_due_behind_a_slow_one_has_waited_since_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, takes = Clock(), iter([0.070, 0.001, 0.001, 0.001, 0.001, 0.001])
    monkeypatch.setattr("bench.reads.time", clock)

    def call() -> object:
        clock.now += next(takes)
        return "an answer"

    # Due at 0, 20, 40, 60, 80 and 100 ms.
    assert list(paced(call, 50, 6)) == pytest.approx([70, 51, 32, 13, 1, 1])


def test_sleep_that_is_too_long_is_no_part_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(late=0.005)
    monkeypatch.setattr("bench.reads.time", clock)

    def call() -> object:
        clock.now += 0.001
        return "an answer"

    assert list(paced(call, 50, 4)) == pytest.approx([1, 1, 1, 1])


# --- against another commit ----------------------------------------------------------------------


def test_contenders_of_the_same_name_stand_apart() -> None:
    values: Values = {
        ("start: query", "warm"): {"base": [400.0, 420.0], "this": [200.0, 210.0]},
        ("start: erase", "warm"): {"base": [300.0, 300.0], "this": [330.0, 330.0]},
        ("start: erase", "cold"): {"base": [], "this": [1.0]},
    }
    lines = list(table(values, dict.fromkeys(values, "ms")))
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "start: query: warm 410 205 0.500 0.50 to 0.50 ms",
        "start: erase: warm 300 330 1.100 1.10 to 1.10 ms",
        "start: erase: cold only this has it",
    ]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """This tree in a repository of its own, whose first commit has an audit log that is slow to
    open."""
    copy = tmp_path / "copy"
    for part in PARTS:
        ignored = shutil.ignore_patterns("__pycache__", "node_modules")
        shutil.copytree(ROOT / part, copy / part, ignore=ignored)
    path = copy / "shared" / "leaderboard" / "audit" / "log.py"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + '\nraise RuntimeError("the other commit")\n', encoding="utf-8")
    git(copy, "init", "--quiet")
    git(copy, "add", "--all")
    git(copy, "commit", "--quiet", "-m", "broken")
    path.write_text(whole, encoding="utf-8")
    git(copy, "commit", "--quiet", "--all", "-m", "whole")
    return copy


def git(folder: Path, *words: str) -> None:
    said = ("user.name=bench", "user.email=bench@tests.example", "commit.gpgsign=false")
    name = [word for one in said for word in ("-c", one)]
    subprocess.run(["git", *name, *words], cwd=folder, check=True, capture_output=True)


def compared(folder: Path, base: str) -> subprocess.CompletedProcess[str]:
    words = ["--base", base, "--only", "audit-log", "--runs", "2", "--small"]
    return subprocess.run(
        [sys.executable, "-m", "bench.compare", *words],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(folder / "tests"), str(folder / "shared"))),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.timeout(240)
def test_change_is_measured_against_another_commit_and_that_one_is_what_runs(copied: Path) -> None:
    same = compared(copied, "HEAD")
    assert same.returncode == 0, same.stderr
    assert "audit-log: batches of 1,000" in same.stdout
    assert "audit-proof: one of a million" in same.stdout
    other = compared(copied, "HEAD~1")
    assert other.returncode != 0
    assert "RuntimeError: the other commit" in other.stderr
    listed = subprocess.run(
        ["git", "worktree", "list"], cwd=copied, check=True, capture_output=True, text=True
    )
    assert len(listed.stdout.splitlines()) == 1, "the other tree is still there"


def test_commit_that_there_is_not_is_told(copied: Path) -> None:
    done = compared(copied, "nobody-knows")
    assert done.returncode == 1
    assert "bench-compare: git worktree:" in done.stderr
    assert "nobody-knows" in done.stderr
