"""Processes of a stack, as who is told to end again and again meets them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from leaderboard.stack.process import Process


def test_child_is_killed_also_by_who_interrupts_a_look_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C may come while the first one asks whether the child lives, which holds a
    lock that waiting wants: the stack never ended."""
    child = Process(
        "sleeper",
        [sys.executable, "-c", "import time; time.sleep(60)"],
        log_path=tmp_path / "log",
        environ={},
    )
    child.start()

    def never(*_: object, **__: object) -> int:
        raise AssertionError("it would wait for ever")

    with monkeypatch.context() as interrupted:
        interrupted.setattr(subprocess.Popen, "wait", never)
        child.kill(wait=False)
    child.kill()
    assert not child.is_running()
