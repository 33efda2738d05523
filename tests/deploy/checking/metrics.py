"""Metrics that rules, dashboards and triggers ask for: declared, or known of somebody else.

Prometheus answers a query for a series that nobody serves with nothing: an alert that never fires,
an empty panel, a trigger that scales nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any, Final

from deploy.checking.building import Built, Problem, nearest
from leaderboard.telemetry import METRICS
from observing import FOREIGN

ADDED: Final = frozenset({"le", "instance", "job"})
"""Labels that Prometheus or a histogram adds."""
_STRINGS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|' r"'(?:[^'\\]|\\.)*'|`[^`]*`|#[^\n]*")
_RANGES: Final = re.compile(r"\[[^\]]*\]")
_GROUPING: Final = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_NAME: Final = re.compile(r"(?<![\w:$.])([A-Za-z_:][\w:]*)\s*(\(|\{[^}]*\})?")
_WORDS: Final = frozenset(
    {"and", "or", "unless", "bool", "offset", "inf", "nan", "atan2", "group_left", "group_right"}
    | {"by", "without", "on", "ignoring", "start", "end"}
)
_LABEL_VALUES: Final = re.compile(r"\s*label_values\((.*),\s*\w+\s*\)\s*")
"""Grafana's own: the values of a label of a series."""


def problems(all_built: list[Built]) -> Iterator[Problem]:
    """Queries for what nobody serves."""
    recorded = {rule["record"] for _, rule in _rules(all_built) if "record" in rule}
    for built in all_built:
        for one in built.manifests:
            for where, query in _queries(one):
                for what in faults(query, recorded):
                    yield built.problem(one, f"{where}: {what}")


def faults(query: str, recorded: Collection[str]) -> Iterator[str]:
    """Every series of a query that nobody serves, and every label that a series has not.
    `recorded`: the names of recording rules."""
    known = {series: set(one.labels) for one in METRICS.values() for series in one.series}
    known |= {series: {"function"} for series in recorded} | FOREIGN
    for series, selector in _selected(query):
        if series not in known:
            yield f"no such series: {series}{nearest(series, known)}"
            continue
        labels = known[series] | ADDED
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector):
            if label not in labels:
                yield f"{series} has no label {label}{nearest(label, labels)}"


def _selected(query: str) -> Iterator[tuple[str, str]]:
    """Each series that is asked for, and its selector."""
    whole = _LABEL_VALUES.fullmatch(query)
    text = _STRINGS.sub('""', whole[1] if whole else query)
    text = _GROUPING.sub(" ", _RANGES.sub(" ", text))
    for name, after in _NAME.findall(text):
        if after != "(" and name.lower() not in _WORDS:
            yield name, after


def _rules(all_built: list[Built]) -> Iterator[tuple[str, dict[str, Any]]]:
    for built in all_built:
        for one in built.of_kind("PrometheusRule"):
            for group_at, group in enumerate(one["spec"].get("groups") or []):
                for rule_at, rule in enumerate(group["rules"]):
                    yield f"spec.groups[{group_at}].rules[{rule_at}].expr", rule


def _queries(one: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Where a query stands in a manifest, and its text."""
    if one["kind"] == "PrometheusRule":
        for field, rule in _rules([Built("", [one])]):
            yield f"{field} ({rule.get('alert') or rule['record']})", str(rule["expr"])
    if one["kind"] == "ScaledObject":
        for index, trigger in enumerate(one["spec"]["triggers"]):
            if "query" in trigger["metadata"]:
                yield f"spec.triggers[{index}].metadata.query", trigger["metadata"]["query"]
    if one["kind"] == "ConfigMap" and "grafana_dashboard" in one["metadata"].get("labels", {}):
        for file, text in one["data"].items():
            board = json.loads(text)
            for panel in board["panels"]:
                for target in panel.get("targets", []):
                    yield f"data.{file}: panel {panel['title']!r}", target["expr"]
            for variable in board["templating"]["list"]:
                if variable["type"] == "query":
                    yield f"data.{file}: variable {variable['name']}", variable["query"]["query"]
