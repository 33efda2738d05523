"""What a start does without: the collector of garbage, and what is not needed at once."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosting import FUNCTIONS, SETTINGS
from leaderboard.hosts import collector, starting

FOLDERS = ("query", "on-connect", "erase", "tournament", "on-wager", "on-rank-change", "archive")
"""Those that read Kafka import SQLAlchemy, too, but while their group forms."""


@pytest.fixture
def thresholds() -> Iterator[None]:
    kept = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*kept)


@pytest.mark.usefixtures("thresholds")
def test_collector_rests_until_the_process_has_settled() -> None:
    importlib.reload(starting)
    assert gc.get_threshold()[0] == starting.OBJECTS
    collector.settle()
    assert gc.get_threshold() == collector.USUAL


@pytest.mark.parametrize("folder", FOLDERS)
def test_start_brings_nothing_that_can_wait(folder: str, tmp_path: Path) -> None:
    settings = {
        **SETTINGS,
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "DATABASE_URL": "postgresql://me:secret@127.0.0.1:1/none",
    }
    asked = (
        "import runpy, sys; runpy.run_path('main.py', run_name='main');"
        "print(*{n.split('.')[0] for n in sys.modules} & {'sqlalchemy', 'joserfc', 'httpx'})"
    )
    path = os.pathsep.join((str(FUNCTIONS.parent / "shared"), str(FUNCTIONS / folder)))
    done = subprocess.run(
        [sys.executable, "-c", asked],
        cwd=FUNCTIONS / folder,
        env={**settings, "PYTHONPATH": path, "HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
