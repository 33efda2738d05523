"""Thousands of steps in a world where anything goes wrong between any two effects."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from simulation.machine import Machine

STEPS = 10_000
RUNS, STEPS_A_RUN = 110, 100


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """What functions say of faults would fill the memory."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def run(
    machine: type[Machine],
    number: int,
    runs: int = RUNS,
    steps: int = STEPS_A_RUN,
    phases: tuple[Phase, ...] = (Phase.generate, Phase.shrink),
) -> None:
    profile = settings(
        max_examples=runs,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        phases=phases,
    )
    run_state_machine_as_test(seed(number)(machine), settings=profile)


@pytest.mark.timeout(900)
def test_whatever_goes_wrong_all_views_say_the_same_in_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    number = int(os.environ.get("SIMULATION_SEED") or random.SystemRandom().randrange(2**32))
    steps = 0

    class Counted(Machine):
        def counted(self) -> None:
            nonlocal steps
            steps += 1

    with capsys.disabled():
        print(f"\nsimulation: SIMULATION_SEED={number}", flush=True)
    run(Counted, number)
    with capsys.disabled():
        print(f"simulation: {steps} steps", flush=True)
    assert steps >= STEPS
