"""`leaderboard metrics`: the table of all metrics, written from their declarations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from leaderboard.cli.context import CommandError
from leaderboard.telemetry import LABELS, METRICS, Metric

PAGE = Path("docs/metrics.md")
_HEAD = """\
# Metrics

*Written by `leaderboard metrics` from `shared/leaderboard/telemetry.py`; `make check` compares.*

Every process serves `/metrics` (Prometheus text exposition, cluster-local): functions fed by Kafka
beside their probes, functions over HTTP on their own port. What a process alone knows is summed
over processes; what "every process tells the same" is not (`max`). A histogram has `_bucket`,
`_sum` and `_count` behind its name.
"""


def page() -> str:
    """The text of docs/metrics.md."""
    return "\n".join([_HEAD, *_metrics(), "", "## Labels", "", *_labels(), ""])


def _metrics() -> Iterator[str]:
    yield "| metric | kind | unit | labels | meaning |"
    yield "|---|---|---|---|---|"
    for one in sorted(METRICS.values(), key=lambda metric: metric.exposed):
        labels = ", ".join(f"`{label}`" for label in one.labels)
        yield f"| `{one.exposed}` | {one.kind} | {one.unit} | {labels} | {_meaning(one)} |"


def _meaning(one: Metric) -> str:
    if not one.buckets:
        return one.meaning
    return f"{one.meaning} Buckets: {', '.join(f'{bound:g}' for bound in one.buckets)}."


def _labels() -> Iterator[str]:
    yield "| label | values |"
    yield "|---|---|"
    for label, values in sorted(LABELS.items()):
        yield f"| `{label}` | {values} |"


@click.command(help="Write the table of all metrics.")
@click.option(
    "--to",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=PAGE,
    show_default=True,
)
@click.option("--check", is_flag=True, help="Write nothing; fail if it is stale.")
def metrics(path: Path, check: bool) -> None:
    """It is written from the declarations, so it can't disagree with the code."""
    if not check:
        path.write_text(page(), encoding="utf-8")
    elif not path.is_file() or path.read_text(encoding="utf-8") != page():
        raise CommandError(f"{path}: stale; run `leaderboard metrics`")
