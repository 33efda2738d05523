"""What a benchmark tells: figures of several runs, each beside its rivals' of the same runs."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from bench.machine import Usage, machine, versions


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    # Rounded, as 0.07 * 100 is more than 7.
    return ordered[max(math.ceil(round(share * len(ordered), 6)) - 1, 0)]


def spread(values_ms: Sequence[float], prefix: str = "") -> dict[str, float]:
    """p50, p99, p99.9 and the largest of some times, for `Measured.more`."""
    shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}
    return {f"{prefix}{n}_ms": round(quantile(values_ms, s), 2) for n, s in shares.items()}


@dataclass(frozen=True)
class Measured:
    """One run of one contender. `value` is what is compared; `more` is shown beside it (rates,
    percentiles); `usage` is by process."""

    value: float
    more: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    usage: Mapping[str, Usage] = field(default_factory=dict)


@dataclass
class Figure:
    """All runs of one contender. `better`: whether higher or lower values win."""

    bench: str
    name: str
    unit: str
    better: Literal["higher", "lower"]
    runs: list[Measured] = field(default_factory=list)

    @property
    def values(self) -> list[float]:
        return [run.value for run in self.runs]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


Contender = Callable[[int], Measured]
"""Measures once; told the run's number, which is also the seed of its load."""


class Bench:
    """What each benchmark is given. `small` is for a look whether it works, and means nothing."""

    def __init__(
        self, runs: int, *, small: bool, first_run: int = 0, only_ours: bool = False
    ) -> None:
        self.runs = runs
        self.small = small
        self._first_run = first_run
        self._only_ours = only_ours
        self.figures: list[Figure] = []
        self._begun = time.time()
        self._machine = machine()  # now: later its load would be ours

    @property
    def seeds(self) -> range:
        """The numbers of the runs."""
        return range(self._first_run, self._first_run + self.runs)

    def size(self, full: int, small: int) -> int:
        """How much load: `full`, or `small` for the look."""
        return small if self.small else full

    def in_turns(
        self,
        bench: str,
        unit: str,
        contenders: Mapping[str, Contender],
        better: Literal["higher", "lower"] = "higher",
    ) -> list[Figure]:
        """Run all contenders one after the other, as often as there are runs. The first is ours:
        the table shows the others' medians against it."""
        chosen = list(contenders.items())[: 1 if self._only_ours else None]
        figures = [Figure(bench, name, unit, better) for name, _ in chosen]
        self.figures += figures
        for run in self.seeds:
            for figure, (_, measure) in zip(figures, chosen, strict=True):
                measured = measure(run)
                figure.runs.append(measured)
                self.say(bench, f"run {run + 1}: {figure.name}", measured, unit)
        return figures

    def say(self, bench: str, what: str, measured: Measured, unit: str) -> None:
        """One line for who waits."""
        more = " ".join(f"{name}={value}" for name, value in measured.more.items())
        seconds = time.time() - self._begun
        print(
            f"[{seconds:6.0f} s] {bench}: {what}: {measured.value:,.6g} {unit}  {more}",
            file=sys.stderr,
            flush=True,
        )

    def table(self) -> str:
        """Minimum, median and maximum of each figure; ours against each rival where more is
        better."""
        head = ("benchmark", "who", "min", "median", "max", "unit", "first / this")
        rows: list[tuple[str, ...]] = [head]
        first: dict[str, Figure] = {}
        for one in self.figures:
            if not one.runs:
                continue
            ours = first.setdefault(one.bench, one)
            ratio = ""
            if one is not ours and one.median and one.better == "higher":
                ratio = f"{ours.median / one.median:.2f}"
            values = (min(one.values), one.median, max(one.values))
            rows.append((one.bench, one.name, *map(_shown, values), one.unit, ratio))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])

    def write(self, path: Path) -> None:
        """Everything, for a machine to read."""
        told = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._begun)),
            "small": self.small,
            "runs": self.runs,
            "machine": self._machine,
            "versions": versions(),
            "figures": [
                {
                    "bench": one.bench,
                    "who": one.name,
                    "unit": one.unit,
                    "better": one.better,
                    "min": min(one.values),
                    "median": one.median,
                    "max": max(one.values),
                    "runs": [asdict(run) for run in one.runs],
                }
                for one in self.figures
                if one.runs
            ],
        }
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
