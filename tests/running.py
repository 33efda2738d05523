"""A stack started by its real command, and what can be asked about its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LEADERBOARD = (sys.executable, "-m", "leaderboard.cli")
START_SECONDS = 90.0
STOP_SECONDS = 45.0


def command(
    words: Sequence[str], folder: Path, settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`leaderboard …` in this folder, to its end."""
    return subprocess.run(
        [*LEADERBOARD, *words],
        cwd=folder,
        env={**os.environ, **(settings or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class StackCommand:
    """`leaderboard stack …` as a child, from `start` to `stop` or `kill`."""

    def __init__(
        self, folder: Path, words: Sequence[str], settings: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self._words = list(words)
        self._environ = {**os.environ, **(settings or {})}
        self._popen: subprocess.Popen[bytes] | None = None
        self.start_seconds = 0.0

    def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        started = time.monotonic()
        with (self.folder / "stack.log").open("wb") as log:
            self._popen = subprocess.Popen(
                [*LEADERBOARD, *self._words],
                cwd=self.folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        popen = self._popen
        try:
            wait_for(lambda: self.env_path.exists() or popen.poll() is not None, START_SECONDS)
            assert popen.poll() is None, f"the stack ended with {popen.poll()}:\n{self.told()}"
        except AssertionError:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - started

    @property
    def env_path(self) -> Path:
        return self.folder / ".stack.env"

    def env(self) -> dict[str, str]:
        """`.stack.env` as it is now."""
        lines = self.env_path.read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines)

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """As Ctrl-C does; the exit code."""
        if self._popen is None:
            return 0
        if self._popen.poll() is None:
            self._popen.send_signal(number)
        try:
            return self._popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
            raise AssertionError(f"the stack did not stop:\n{self.told()}") from None

    def told(self) -> str:
        """The ends of all logs, for messages."""
        logs = [self.folder / "stack.log", *(self.folder / ".stack" / "logs").glob("*.log")]
        return "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-1500:]}" for p in logs)


def descendants(pid: int) -> set[int]:
    """All processes below this one, workers of workers too."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (parent := _parent(int(entry.name))) is not None:
            parents[int(entry.name)] = parent
    found: set[int] = set()
    grown = {pid}
    while grown:
        found |= grown
        grown = {child for child, parent in parents.items() if parent in grown} - found
    return found - {pid}


def _parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    state, parent = stat.rpartition(")")[2].split()[:2]
    return None if state == "Z" else int(parent)


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    return _parent(pid) is not None


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Until it holds. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.02)
