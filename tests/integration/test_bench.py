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
COUNTED = {
    "on-wager": {
        "on-wager, every guarantee": {"on-wager", "redis", "kafka"},
        "the same without fraud detection": {"on-wager", "redis", "kafka"},
        "the reference's algorithm": {"the algorithm", "redis", "kafka"},
        "ceiling: our script alone": {"the caller", "redis"},
        "ceiling: consume and produce": {"the loop", "redis", "kafka"},
        "pipelined ZINCRBY, no guarantee": {"the caller", "redis"},
    },
    "tournaments": {
        "two processes": {"on-wager 0", "on-wager 1", "redis", "kafka"},
        "one process": {"on-wager 0", "redis", "kafka"},
    },
    "archive": {
        "archive, a change with each": {"archive", "postgres", "kafka"},
        "archive, wagers alone": {"archive", "postgres", "kafka"},
    },
}
"""Of each contender the processes whose use is told, and what they cost a million wagers."""
OFFERED = {
    "screen": "offered_per_second",
    "gateway": "offered_per_second",
    "reads": "offered_per_s",
    "record-reads": "offered",
}
"""An open loop's load; what came of it is beside it, and so are percentiles."""


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
    assert told["versions"]["librdkafka"]
    if (ROOT / ".git").exists():
        assert re.match(r"[0-9a-f]{40}(-dirty)?$", told["versions"]["commit"])
    assert told["machine"]["servers_disk"] != "?"
    assert told["figures"]
    for figure in told["figures"]:
        assert figure["min"] <= figure["median"] <= figure["max"]
        assert figure["who"] in done.stdout
        assert len(figure["runs"]) == 1
    found = {figure["who"]: figure["runs"][0] for figure in told["figures"]}
    if name in COUNTED:
        assert {who: set(run["usage"]) for who, run in found.items()} == COUNTED[name]
        for run in found.values():
            for process, used in run["usage"].items():
                assert used["cpu_seconds"] >= 0
                assert used["peak_mib"] > 1
                assert f"{process}_cpu_s_per_million" in run["more"]
    for run in [run for who, run in found.items() if name in OFFERED and is_open_loop(who)]:
        assert run["more"][OFFERED[name]] > 0
        assert any(one.startswith("achieved") for one in run["more"])
        assert {"p50_ms", "p99_ms", "p999_ms", "max_ms"} <= run["more"].keys()
    if name == "reads":
        for run in found.values():
            assert run["more"]["batches_per_s"] <= 110, "on-wager waits 10 ms"
    if name in ("screen", "gateway"):
        assert any("functions_cpu_s_per_million" in run["more"] for run in found.values())


def is_open_loop(who: str) -> bool:
    """Connects come as fast as they can, and calls of the record one after the other."""
    return not who.endswith(("as fast as they can", "the call"))


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
