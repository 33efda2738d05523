"""The check of all manifests without a cluster: `make deploy-check`.

Each kustomization under `keda/`, `knative/` and `platform/` that no other one uses is built, and
what comes out is held against the schemas of those who read it (`schemas`), against our rules
(`policies`, `scaling`, `eventing`) and against the code (`agreement`).
"""

from __future__ import annotations

from pathlib import Path

from deploy.checking import agreement, eventing, policies, scaling, schemas
from deploy.checking.building import Built, Problem, build_all
from deploy.checking.tools import ROOT, ToolError, Tools

__all__ = ["ROOT", "Built", "Problem", "ToolError", "Tools", "check"]


def check(root: Path, tools: Tools) -> tuple[list[Built], list[Problem]]:
    """What was built of the tree at `root`, and all that is wrong with it. Raises ToolError."""
    built, problems = build_all(root, tools.kustomize())
    for one in built:
        broken = [p for look in schemas.of(tools) for p in look(one)]
        problems += broken
        # What has the wrong shape can't be asked what it means.
        if not broken:
            for part in (policies, scaling, eventing, agreement):
                problems += part.problems(one)
    problems += agreement.missing(built)
    return built, problems
