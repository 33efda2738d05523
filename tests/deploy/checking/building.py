"""What kustomize makes of the tree: each kustomization that nobody else uses, built and read."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import yaml

FOLDERS: Final = ("keda", "knative", "platform")
Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where an engineer looks for it."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Built:
    """One kustomization as it would be applied."""

    folder: str
    """Relative to the tree, e.g. `keda/overlays/production`."""
    manifests: list[Manifest] = field(default_factory=list)

    def of_kind(self, kind: str, group: str | None = None) -> Iterator[Manifest]:
        for one in self.manifests:
            if one["kind"] == kind and (group is None or group_of(one) == group):
                yield one

    def find(self, kind: str, name: str) -> Manifest | None:
        found = (one for one in self.of_kind(kind) if one["metadata"]["name"] == name)
        return next(found, None)

    @property
    def environment(self) -> str:
        """`production`, `development`, or the folder's own name."""
        return self.folder.rpartition("/")[2]

    def problem(self, one: Manifest, what: str) -> Problem:
        return Problem(self.folder, f"{one['kind']} {one['metadata']['name']}: {what}")


def nearest(word: str, known: Iterable[str]) -> str:
    """A question to put behind what is unknown: the known word that is most like it, if one is."""
    found = get_close_matches(word, sorted(known), 1)
    return f"; did you mean {found[0]}?" if found else ""


def group_of(one: Manifest) -> str:
    """The API group; empty for Kubernetes' core."""
    return str(one["apiVersion"]).rpartition("/")[0]


def template_of(one: Manifest) -> Manifest | None:
    """What pods are made from (a Pod is its own), inside of whatever makes them."""
    spec = one.get("spec", {})
    if one["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    makes_pods = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "ReplicaSet")
    is_service = one["kind"] in ("Service", "Configuration") and "serving.knative" in group_of(one)
    if one["kind"] == "Pod":
        return one
    if one["kind"] in makes_pods or is_service:
        found: Manifest = spec["template"]
        return found
    return None


def pods_of(one: Manifest) -> Manifest | None:
    """The spec of those pods."""
    template = template_of(one)
    found: Manifest | None = None if template is None else template["spec"]
    return found


def containers_of(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod.get("containers", [])]


def build_all(root: Path, kustomize: Path) -> tuple[list[Built], list[Problem]]:
    """Everything under `FOLDERS`, and what could not be built."""
    found = _kustomizations(root)
    used = {
        (path.parent / entry).resolve()
        for path, content in found.items()
        for key in ("resources", "components", "bases")
        for entry in content.get(key) or []
    }
    problems = [
        Problem(_name(root, path.parent), "a Component that no kustomization uses")
        for path, content in found.items()
        if content.get("kind") == "Component" and path.parent not in used
    ]
    roots = [
        path.parent
        for path, content in found.items()
        if content.get("kind") != "Component" and path.parent not in used
    ]
    if not roots:
        return [], [Problem(str(root), "has no kustomization")]
    built: list[Built] = []
    with ThreadPoolExecutor(2) as pool:
        for one in pool.map(lambda folder: _build(root, folder, kustomize), roots):
            (problems if isinstance(one, Problem) else built).append(one)  # type: ignore[arg-type]
    problems += _strays(root, found)
    return built, problems


def _kustomizations(root: Path) -> dict[Path, Manifest]:
    paths = [p for f in FOLDERS for p in sorted((root / f).rglob("kustomization.yaml"))]
    return {path.resolve(): yaml.safe_load(path.read_text("utf-8")) or {} for path in paths}


def _build(root: Path, folder: Path, kustomize: Path) -> Built | Problem:
    name = _name(root, folder)
    done = subprocess.run(
        [kustomize, "build", folder], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        return Problem(name, f"can't be built: {said[-1]}")
    if done.stderr.strip():
        # What kustomize warns of (a field that will go) is an error of the version after it.
        return Problem(name, f"is built with a warning: {done.stderr.strip().splitlines()[0]}")
    manifests = [one for one in yaml.load_all(done.stdout, yaml.CSafeLoader) if one]
    return Built(name, manifests)


def _strays(root: Path, found: dict[Path, Manifest]) -> Iterator[Problem]:
    """Manifests beside a kustomization that it does not name: nobody would apply them."""
    named = {
        (path.parent / entry).resolve()
        for path, content in found.items()
        for entry in _entries(content)
    }
    for path in found:
        for one in sorted(path.parent.glob("*.yaml")):
            if one.resolve() not in named | found.keys():
                yield Problem(_name(root, one), "is named by no kustomization")


def _entries(content: Manifest) -> Iterator[str]:
    for key in ("resources", "components", "bases", "crds", "configurations", "replacements"):
        for entry in content.get(key) or []:
            yield entry if isinstance(entry, str) else entry.get("path", "")
    for patch in content.get("patches") or []:
        yield patch.get("path", "")
    for maker in ("configMapGenerator", "secretGenerator"):
        for made in content.get(maker) or []:
            for file in made.get("files") or []:
                yield file.rpartition("=")[2]


def _name(root: Path, path: Path) -> str:
    return str(path.resolve().relative_to(root.resolve()))
