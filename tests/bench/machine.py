"""The machine that a benchmark ran on, and what processes have used of it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import confluent_kafka

import leaderboard
from leaderboard.stack.functions import FUNCTIONS
from leaderboard.stack.kafka_jars import KAFKA_VERSION
from leaderboard.stack.nginx import nginx_program
from leaderboard.stack.postgres import postgres_program
from leaderboard.stack.process import StackError
from leaderboard.stack.servers import redis_program
from running import descendants

_PACKAGES = (
    "confluent-kafka", "redis", "hiredis", "pydantic", "msgpack", "sqlalchemy", "psycopg",
    "gunicorn", "functions-framework",
)  # fmt: skip
_TREE = Path(leaderboard.__file__).resolve().parents[2]


def machine() -> dict[str, object]:
    """What to know of it before comparing figures."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line for line in info.splitlines() if line.startswith("model name")), ":?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "processor": model.partition(":")[2].strip(),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "load_average": [round(one, 2) for one in os.getloadavg()],
        "servers_disk": _file_system(Path(tempfile.gettempdir())),
    }


def _file_system(folder: Path) -> str:
    """Its kind: what is in memory answers an fsync at once."""
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    kinds = {Path(fields[1]): fields[2] for fields in map(str.split, mounts)}
    whole = folder.resolve()
    return next((kinds[one] for one in (whole, *whole.parents) if one in kinds), "?")


def versions() -> dict[str, str]:
    """Of everything that has a part in the figures."""
    found = {"python": platform.python_version(), "kafka": KAFKA_VERSION, "commit": _commit()}
    found["librdkafka"] = confluent_kafka.libversion()[0]
    found |= {name: version(name) for name in _PACKAGES}
    return found | {name: _told_by(*command) for name, command in _servers().items()}


def _commit() -> str:
    """What is measured, and whether it is as it was committed."""
    words = [
        "git",
        "-C",
        str(_TREE),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "?"


def _servers() -> dict[str, tuple[str, str]]:
    """Those that the local stack would start here, and what makes each tell its version."""
    programs = {
        "redis server": (redis_program(), "--version"),
        "postgresql": (postgres_program("postgres"), "--version"),
        "nginx": (_nginx(), "-v"),
        "java": (shutil.which("java"), "-version"),
    }
    return {name: (path, word) for name, (path, word) in programs.items() if path is not None}


def _nginx() -> str | None:
    try:
        return nginx_program()
    except StackError:
        return None


def _told_by(program: str, word: str) -> str:
    """The first line, whichever way it is written."""
    told = subprocess.run([program, word], capture_output=True, text=True, check=True)
    return (told.stdout or told.stderr).strip().splitlines()[0]


@dataclass(frozen=True)
class Usage:
    """What a process and its children have used."""

    cpu_seconds: float
    peak_mib: float


class Meter:
    """Counts processor time from now on, by name, for each process with its children; and, named
    `own`, for this one without: the servers are children of it. What it holds, the load is part
    of."""

    def __init__(self, pids: Mapping[str, int], own: str = "") -> None:
        self._pids = dict(pids)
        self._before = {name: _cpu_of_family(pid) for name, pid in self._pids.items()}
        self._own = own
        if own:
            # The peak of now on, not of what was measured before (proc(5)), where that is allowed.
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._own_before = time.process_time()

    def read(self) -> dict[str, Usage]:
        """Processor seconds since the meter was made; the most memory each ever held."""
        own = Usage(
            round(time.process_time() - self._own_before, 3), round(_peak_mib(os.getpid()), 1)
        )
        return ({self._own: own} if self._own else {}) | {
            name: Usage(
                round(_cpu_of_family(pid) - self._before[name], 3),
                round(sum(map(_peak_mib, (pid, *descendants(pid)))), 1),
            )
            for name, pid in self._pids.items()
        }


def per_million(usage: Mapping[str, Usage], events: int) -> dict[str, float]:
    """CPU seconds a million events, by process, for `Measured.more`."""
    return {
        f"{name}_cpu_s_per_million": round(one.cpu_seconds / max(events, 1) * 1e6, 1)
        for name, one in usage.items()
    }


def of_functions(usage: Mapping[str, Usage], events: int) -> dict[str, float]:
    """The same of all our processes together; those that stood still cost nothing."""
    ours = {one.name for one in FUNCTIONS}
    seconds = sum(one.cpu_seconds for name, one in usage.items() if name in ours)
    return {"functions_cpu_s_per_million": round(seconds / max(events, 1) * 1e6, 1)}


def cpu_seconds(pid: int) -> float:
    """What one process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """What one process holds now."""
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _cpu_of_family(pid: int) -> float:
    total = 0.0
    for one in (pid, *descendants(pid)):
        try:
            total += cpu_seconds(one)
        except FileNotFoundError:  # ended meanwhile
            continue
    return total


def _peak_mib(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return 0.0
    line = next((one for one in status.splitlines() if one.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) / 1024
