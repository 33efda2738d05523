"""The benchmark: `make bench`, or `python -m bench` beside the tests.

Each figure is measured in several runs, in turns with its rivals on the same servers, with real
Kafka, Redis, PostgreSQL and nginx on loopback. Load is bounded in count and time; final boards are
compared with the oracle's. Prints a table and writes `bench.json`; asserts no time.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from bench.registry import BENCHES
from bench.report import Bench


def main() -> None:
    # Told to end, it ends what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help=f"one of {', '.join(BENCHES)}; several with commas")
    parser.add_argument("--runs", type=int, default=5, help="how often each is measured")
    parser.add_argument("--small", action="store_true", help="only to see that it works")
    parser.add_argument("--first-run", type=int, default=0, help="where seeds begin")
    parser.add_argument("--ours", action="store_true", help="without rivals")
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(BENCHES)
    if unknown := [name for name in names if name not in BENCHES]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    if given.runs < 1:
        parser.error("--runs: at least 1")
    bench = Bench(given.runs, small=given.small, first_run=given.first_run, only_ours=given.ours)
    try:
        for name in names:
            BENCHES[name](bench)
    finally:
        if any(one.runs for one in bench.figures):
            bench.write(given.out)
            print(bench.table())
            print(f"\nwritten to {given.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
