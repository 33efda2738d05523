"""`make simulate`: thousands of steps in a world where anything goes wrong between any two effects.

Not part of `make test` yet: it still finds counterexamples of which nobody has said whether the
world or a function is wrong. What was found and judged is in `test_found.py`.
"""

from __future__ import annotations

import argparse
import logging
import os
import random

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from simulation.machine import Machine

STEPS_A_RUN = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--shrink", action="store_true", help="look for the shortest failure")
    given = parser.parse_args()
    # What functions say of faults would fill the memory.
    logging.disable(logging.CRITICAL)
    number = int(os.environ.get("SIMULATION_SEED") or random.SystemRandom().randrange(2**32))
    print(f"simulation: SIMULATION_SEED={number}", flush=True)
    steps = 0

    class Counted(Machine):
        def counted(self) -> None:
            nonlocal steps
            steps += 1

    profile = settings(
        max_examples=max(given.steps * 11 // 10 // STEPS_A_RUN, 1),
        stateful_step_count=STEPS_A_RUN,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if given.shrink else (Phase.generate,),
    )
    try:
        run_state_machine_as_test(seed(number)(Counted), settings=profile)
    finally:
        print(f"simulation: {steps} steps", flush=True)


if __name__ == "__main__":
    main()
