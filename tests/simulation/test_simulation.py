"""Ten thousand steps of the simulation in every run of the tests: the same ones, so that what fails
was brought by the change at hand. Others are looked for by `make simulate`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

STEPS = 10_000
SEED = "1"


def test_ten_thousand_steps_find_no_counterexample() -> None:
    command = [sys.executable, "-m", "simulation", "--steps", str(STEPS)]
    environ = {"SIMULATION_SEED": SEED, **os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    ran = subprocess.run(command, env=environ, text=True, capture_output=True, check=False)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    made = re.search(r"(\d+) steps, no counterexample", ran.stdout)
    assert made is not None
    assert int(made[1]) >= STEPS
