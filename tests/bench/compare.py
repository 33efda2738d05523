"""What a change does: the same benchmark against another commit, in turns on the same machine.

    make bench-compare BASE=main~1 ONLY=on-wager

The benchmark is this commit's; what it measures is that of either tree (functions and package). So
the other commit has to have what the benchmark calls.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.registry import BENCHES

Name = tuple[str, str]
"""Of a figure: benchmark and contender; several benchmarks have a `warm` one."""
Values = dict[Name, dict[str, list[float]]]
"""Of each figure what was measured, by tree."""
HERE = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("--base", required=True, help="a commit, a branch or a tag")
    parser.add_argument("--only", default="on-wager", choices=list(BENCHES))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    if given.runs < 1:
        parser.error("--runs: at least 1")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        _git("worktree", "add", "--quiet", "--detach", str(base), given.base)
        try:
            (base / ".cache").symlink_to(HERE / ".cache")
            _compare({"base": base, "this": HERE}, given, Path(folder))
        finally:
            _git("worktree", "remove", "--force", str(base))


def _git(*words: str) -> None:
    done = subprocess.run(["git", *words], cwd=HERE, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench-compare: git {words[0]}: {done.stderr.strip()}")


def _compare(trees: dict[str, Path], given: argparse.Namespace, folder: Path) -> None:
    values: Values = defaultdict(lambda: defaultdict(list))
    units: dict[Name, str] = {}
    for run in range(given.runs):
        # Whoever goes first finds another machine: they take turns in that, too.
        for name in sorted(trees, reverse=bool(run % 2)):
            for figure in _measured(trees[name], given, run, folder / "bench.json"):
                one = figure["bench"], figure["who"]
                values[one][name].append(figure["median"])
                units[one] = figure["unit"]
    print("\n".join(table(values, units)))


def table(values: Values, units: Mapping[Name, str]) -> Iterator[str]:
    """A line for each figure: medians of both trees, and the ratios run by run."""
    yield (f"{'figure':60} {'base':>12} {'this':>12} {'this / base':>12}  {'of each run':20} unit")
    for one, both in values.items():
        base, this = both["base"], both["this"]
        name = ": ".join(one)
        if len(base) != len(this):
            yield f"{name:60} only {'this' if this else 'the base'} has it"
            continue
        if not all(base):
            yield f"{name:60} {'0':>12} {statistics.median(this):12,.4g}"
            continue
        ratios = sorted(mine / theirs for mine, theirs in zip(this, base, strict=True))
        medians = statistics.median(base), statistics.median(this)
        each = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        yield (
            f"{name:60} {medians[0]:12,.4g} {medians[1]:12,.4g} {statistics.median(ratios):12.3f}"
            f"  {each:20} {units[one]}"
        )


def _measured(tree: Path, given: argparse.Namespace, run: int, out: Path) -> list[dict[str, Any]]:
    words = ["--only", given.only, "--runs", "1", "--first-run", str(run), "--ours"]
    words += ["--out", str(out), *(["--small"] if given.small else [])]
    paths = os.pathsep.join((str(HERE / "tests"), str(tree / "shared")))
    subprocess.run(
        [sys.executable, "-m", "bench", *words],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    figures: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))["figures"]
    return figures


if __name__ == "__main__":
    main()
