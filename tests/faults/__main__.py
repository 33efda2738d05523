"""`python -m faults`, as `make faults` calls it (with tests/ on the path)."""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from faults.runner import run, table, write


def _count(text: str) -> int:
    """At least one trial: a run of none would pass for a clean one."""
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("at least one")
    return count


def main() -> int:
    """The exit code: 1 when any trial showed a difference, 0 otherwise."""
    words = argparse.ArgumentParser(prog="faults", description="Fault trials on the local stack.")
    words.add_argument("--trials", type=_count, default=48, help="how many (default: %(default)s)")
    words.add_argument("--seed", type=int, help="of the schedule; drawn and printed without one")
    words.add_argument("--only", default="", help="faults whose name contains this")
    words.add_argument("--minutes", type=float, default=60, help="begin no trial after these")
    words.add_argument("--to", type=Path, default=Path("build/faults"), help="folder of results")
    words.add_argument("--logs", type=Path, help="keep the stacks' folders here")
    given = words.parse_args()
    seed = random.SystemRandom().randrange(10**9) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)

    def tell(line: str) -> None:
        print(line, flush=True)

    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        folder = given.logs or Path(scratch)
        results = run(given.trials, seed, given.only, folder, tell, given.minutes * 60)
    write(results, seed, given.only, given.to)
    print(f"\n{table(results)}\n\nwritten to {given.to}")
    return int(any(result.mismatches for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
