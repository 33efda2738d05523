"""The benchmark works, at a size that means nothing: no time is asserted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.machine import versions
from bench.registry import BENCHES

ROOT = Path(__file__).resolve().parents[2]


def bench(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", BENCHES)
def test_each_benchmark_measures_and_tells(name: str, tmp_path: Path) -> None:
    done = bench(tmp_path, "--small", "--runs", "1", "--only", name)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert told["small"] is True
    assert told["machine"]["cores"]
    assert told["versions"]["confluent-kafka"]
    assert told["figures"]
    for figure in told["figures"]:
        assert figure["min"] <= figure["median"] <= figure["max"]
        assert figure["who"] in done.stdout
        assert len(figure["runs"]) == 1


def test_a_name_that_there_is_not_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    done = bench(tmp_path, "--only", "on-wagers")
    assert done.returncode == 2
    assert all(name in done.stderr for name in BENCHES)
    assert not (tmp_path / "bench.json").exists()


def test_report_names_the_version_of_every_server_that_the_local_stack_starts() -> None:
    told = versions()
    for server, form in {
        "kafka": r"\d+\.\d+",
        "redis server": r"v=\d+\.\d+",
        "postgresql": r"PostgreSQL\) \d+",
        "nginx": r"nginx/\d+\.\d+",
        "java": r'version "\d+',
    }.items():
        assert re.search(form, told[server]), f"{server}: {told.get(server)}"
