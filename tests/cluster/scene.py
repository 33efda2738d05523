"""One run: the cluster, what is behind it, and the manifests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, TypeVar

from cluster import tree
from cluster.api import Cluster, Manifest, until
from cluster.backing import Backing, Servers
from cluster.tree import NAMESPACE
from deploy.checking.building import Built

READERS: Final = ("on-wager", "on-rank-change", "archive")
"""The functions that KEDA scales by what they have not read yet."""
SETTLED_SECONDS: Final = 180.0


Behind = TypeVar("Behind", bound=Servers)


@dataclass
class Stage(Generic[Behind]):
    """The cluster, what is behind it, and the tree as kustomize makes it."""

    cluster: Cluster
    backing: Behind
    built: Mapping[str, Built]
    folder: Path
    edits: list[tree.Edit] = field(default_factory=list)
    """Faults put into the manifests, to show that a trial finds them."""
    left: dict[str, set[str]] = field(default_factory=dict)
    """Names of what was not applied, by kind, since the cluster has no such kind."""

    def manifests(self, folder: str) -> list[Manifest]:
        """As they are applied here, without those that the cluster does not know."""
        found, left = tree.known(self.built[folder].manifests, self.cluster.kinds())
        for kind, name in left:
            self.left.setdefault(kind, set()).add(name)
        url = self.backing.settings["TOURNAMENT_URL"]
        found = self.fitted(list(tree.prepared(found, url)))
        for edit in self.edits:
            for one in found:
                edit(one)
        return found

    def fitted(self, found: list[Manifest]) -> list[Manifest]:
        """What of these can be run here, and how. Faults are put into what this gives."""
        return found

    def manifest(self, folder: str, kind: str, name: str) -> Manifest:
        found = self.manifests(folder)
        return next(one for one in found if one["kind"] == kind and one["metadata"]["name"] == name)

    def replicas(self, deployment: str) -> int:
        """How many are wanted now."""
        found = self.cluster.get("deployment", deployment, NAMESPACE)
        return int(found["spec"].get("replicas") or 0)

    def ready(self, deployment: str) -> int:
        found = self.cluster.get("deployment", deployment, NAMESPACE)
        return int(found["status"].get("readyReplicas") or 0)

    def condition(self, name: str, kind: str = "Ready") -> tuple[str, str]:
        """A ScaledObject's status and message."""
        found = self.cluster.get("scaledobject", name, NAMESPACE)
        conditions = found.get("status", {}).get("conditions", [])
        one: Manifest = next((c for c in conditions if c["type"] == kind), {})
        return str(one.get("status", "Unknown")), str(one.get("message", ""))

    def settle(self, deployments: Iterable[str], replicas: int, seconds: float, why: str) -> float:
        """Wait until each has so many, ready; the seconds that took. Fails with those that have
        not, and what they have."""
        names = list(deployments)
        others: list[str] = []

        def look() -> bool | None:
            counts = {one: (self.replicas(one), self.ready(one)) for one in names}
            others[:] = (
                f"{one} has {ready} ready of {wanted} wanted"
                for one, (wanted, ready) in counts.items()
                if not wanted == ready == replicas
            )
            return None if others else True

        what = f"{', '.join(names)}: {replicas} replicas {why}"
        return until(look, seconds, what, lambda: "; ".join(others))[1]

    def revisions(self, service: str) -> list[Manifest]:
        """Of a Knative Service."""
        label = f"serving.knative.dev/service={service}"
        return self.cluster.listed("revisions.serving.knative.dev", NAMESPACE, "-l", label)


Scene = Stage[Backing]
"""Of a cluster whose pods may be stand-ins."""
