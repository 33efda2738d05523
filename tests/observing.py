"""The rules, and the metrics that they take from others."""

from __future__ import annotations

from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[1] / "platform/observability"
PROMETHEUS = FOLDER / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text("utf-8"))
FOREIGN = {"kube_deployment_status_replicas_ready": {"deployment", "namespace"}}
"""Metrics of others, with the labels that we rely on: kube-state-metrics."""
