"""The check of all manifests without a cluster: `make deploy-check`.

Each kustomization under `keda/`, `knative/` and `platform/` that no other one uses is built, and
what comes out is held against the schemas of those who read it (`schemas`), against our rules
(`policies`, `scaling`, `eventing`), against each other (`wiring`) and against the code
(`agreement`, `metrics`). Settings that were filled in are held against all of it (`filled_in`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.checking import (
    agreement,
    eventing,
    filled_in,
    metrics,
    policies,
    scaling,
    schemas,
    wiring,
)
from deploy.checking.building import Built, Problem, build_all
from deploy.checking.tools import ROOT, ToolError, Tools

__all__ = ["ROOT", "Built", "Problem", "ToolError", "Tools", "check"]


def check(
    root: Path, tools: Tools, settings: Sequence[Path] = ()
) -> tuple[list[Built], list[Problem]]:
    """What was built of the tree at `root`, and all that is wrong with it, with what lies in
    `platform/settings`, and with the files of settings given. Raises ToolError."""
    built, problems = build_all(root, tools.kustomize())
    is_whole = not problems
    for one in built:
        broken = [p for look in schemas.of(tools) for p in look(one)]
        problems += broken
        # What has the wrong shape can't be asked what it means.
        is_whole = is_whole and not broken
        if not broken:
            for part in (policies, scaling, eventing, agreement):
                problems += part.problems(one)
    problems += agreement.missing(built)
    if is_whole:
        problems += [*wiring.problems(built), *metrics.problems(built)]
        files = [*sorted((root / "platform/settings").glob("*.yaml")), *settings]
        problems += filled_in.problems(built, files)
    return built, problems
