"""`make simulate`: thousands of steps in a world where anything goes wrong between any two effects.

    make simulate STEPS=10000 SIMULATION_SEED=7

Prints its seed, and for a counterexample the fewest steps that still show it, in the form that
`test_found.py` keeps them in. The same seed repeats the same steps.
"""

from __future__ import annotations

import argparse
import logging
import os
import pprint
import random
import sys

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from simulation.machine import Machine, Steps, failure, shortened

STEPS_A_RUN = 100
RUNS_AT_ONCE = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000)
    wanted = parser.parse_args().steps
    if wanted < 1:
        parser.error("--steps: at least one")
    given = os.environ.get("SIMULATION_SEED", "")
    if given and not given.isdecimal():
        parser.error(f"SIMULATION_SEED: {given!r} is no number")
    if sys.flags.hash_randomization:
        # The order of sets is part of what a seed has to repeat.
        again = [sys.executable, "-m", "simulation", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, "PYTHONHASHSEED": "0"})  # noqa: S606 - itself
    # What functions say of faults would fill the memory.
    logging.disable(logging.CRITICAL)
    number = int(given or random.SystemRandom().randrange(2**32))
    print(f"simulation: SIMULATION_SEED={number}", flush=True)
    steps, found = simulate(Machine, number, wanted)
    print(f"simulation: {steps} steps, {'a counterexample' if found else 'no counterexample'}")
    if found:
        print(failure(found))
        pprint.pprint(shortened(found), width=100)
        raise SystemExit(1)


def simulate(machine: type[Machine], number: int, wanted: int) -> tuple[int, Steps]:
    """So many steps at least, in worlds of a hundred at most; those that lead to a failure end it.

    How many there were, and the failing ones (empty where none failed)."""
    steps, failing = 0, Steps()

    class Counted(machine):  # type: ignore[misc, valid-type]  # mypy knows no base chosen at run time
        def teardown(self) -> None:
            nonlocal steps, failing
            steps += len(self.steps)
            before, failing = failing, list(self.steps)
            super().teardown()
            if not self.is_broken:
                failing = before

    profile = settings(
        max_examples=RUNS_AT_ONCE,
        stateful_step_count=STEPS_A_RUN,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )
    while steps < wanted and not failing:
        try:
            run_state_machine_as_test(seed(number)(Counted), settings=profile)
        except Exception:
            # Hypothesis' own words are about its example: ours are shorter.
            if not failing:
                raise
        number += 1
    return steps, failing


if __name__ == "__main__":
    main()
