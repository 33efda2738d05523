"""`leaderboard observability`: everything that is written from metrics, rules and dashboards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from leaderboard.cli import dashboards
from leaderboard.cli.context import CommandError
from leaderboard.telemetry import LABELS, METRICS, Metric

PAGE: Final = Path("docs/metrics.md")
FOLDER: Final = Path("platform/observability")
RULES: Final = FOLDER / "prometheus/rules.yaml"
_HEAD: Final = """\
# Metrics

*Written by `leaderboard observability` from `shared/leaderboard/telemetry.py`; `make check`
compares.*

Every process serves `/metrics` (Prometheus text exposition, cluster-local): functions fed by Kafka
beside their probes, functions over HTTP on their own port. What a process alone knows is summed
over processes; what "every process tells the same" is not (`max`). A histogram has `_bucket`,
`_sum` and `_count` behind its name.
"""
_RULES_HEAD: Final = """\
# Written by `leaderboard observability` from prometheus/rules.yaml, for the Prometheus operator.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: leaderboard
  labels: {app.kubernetes.io/part-of: leaderboard}
spec:
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


def prometheus_rule(rules: str) -> str:
    """The rules as the operator's resource: the same text, moved under `spec`."""
    lines = rules[rules.index("groups:") :].splitlines()
    return _RULES_HEAD + "".join(f"  {line}".rstrip() + "\n" for line in lines)


def files(root: Path = Path()) -> dict[Path, str]:
    """Every file that is written, by its path below `root`."""
    rules = (root / RULES).read_text(encoding="utf-8")
    return {
        PAGE: page(),
        FOLDER / "prometheusrule.yaml": prometheus_rule(rules),
        **{
            FOLDER / "dashboards" / f"{one.uid}.json": dashboards.document(one)
            for one in dashboards.ALL
        },
    }


@click.command(help="Write docs/metrics.md, the operator's rules and the Grafana dashboards.")
@click.option("--check", is_flag=True, help="Write nothing; fail if one of them is stale.")
def observability(check: bool) -> None:
    """They are written from declarations, so they can't disagree with the code."""
    if not RULES.is_file():
        raise CommandError(f"{RULES}: is missing; run this in the project's folder")
    wanted = files()
    known = {*wanted, *(FOLDER / "dashboards").glob("*.json")}
    stale = sorted(
        str(path)
        for path in known
        if not path.is_file() or path.read_text(encoding="utf-8") != wanted.get(path)
    )
    if check and stale:
        raise CommandError(f"stale: {', '.join(stale)}; run `leaderboard observability`")
    if check:
        return
    (FOLDER / "dashboards").mkdir(exist_ok=True)
    for path in known - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
