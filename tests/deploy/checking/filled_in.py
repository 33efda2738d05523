"""Settings as an engineer has filled them in: each name is one that some manifest takes.

Much in the manifests is optional, so that its absence is told by the function that needs it. A
misspelt optional name is told by nobody: the function starts with its default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from deploy.checking.agreement import example
from deploy.checking.building import Built, Problem, nearest

_KINDS: Final = ("ConfigMap", "Secret")
_WHOLE: Final = ("secretName", "auth.secret.ref.name")
"""Fields that name a Secret of which all keys are taken."""
Name = tuple[str, str]


def problems(all_built: list[Built], files: Iterable[Path]) -> Iterator[Problem]:
    """What no manifest takes in these files, and what they leave out of what they have begun."""
    taken, whole = _taken(all_built)
    for file in files:
        try:
            found = list(yaml.safe_load_all(file.read_text("utf-8")))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            yield Problem(str(file), f"can't be read as YAML: {' '.join(str(error).split())}")
            continue
        for place, one in enumerate(found):
            for what in _wrong(one, taken, whole):
                yield Problem(str(file), f"document {place + 1}: {what}")


def _wrong(one: Any, taken: Mapping[Name, Mapping[str, bool]], whole: set[str]) -> Iterator[str]:
    if one is None:
        return
    if not isinstance(one, dict) or one.get("kind") not in _KINDS:
        yield "is neither a ConfigMap nor a Secret"
        return
    kind, name = str(one["kind"]), str((one.get("metadata") or {}).get("name"))
    fields = ("data",) if kind == "ConfigMap" else ("data", "stringData")
    keys = {key: field for field in fields for key in one.get(field) or {}}
    known = set(taken.get((kind, name), {}))
    if kind == "Secret" and name in whole:
        known |= example().get((kind, name), {}).keys()
        if not known:  # of the platform's own: redis-tls and the like
            return
    if not known:
        names = {other for kind_taken, other in taken if kind_taken == kind} | whole
        yield f"no manifest takes anything from {kind} {name}{nearest(name, names)}"
        return
    for key, field in keys.items():
        if key not in known:
            yield f"{kind} {name}: {field}.{key}: no manifest takes it{nearest(str(key), known)}"
    for key, optional in taken.get((kind, name), {}).items():
        if not optional and key not in keys:
            yield f"{kind} {name}: {key} is missing, and no pod that takes it would start"
    for field in set(one) - {"apiVersion", "kind", "metadata", "type", "immutable", *fields}:
        yield f"{kind} {name}: unknown field {field}{nearest(str(field), fields)}"


def _taken(all_built: list[Built]) -> tuple[dict[Name, dict[str, bool]], set[str]]:
    """By kind and name the keys that manifests take, and whether all of them can do without; and
    Secrets that are taken as a whole."""
    taken: dict[Name, dict[str, bool]] = {}
    whole: set[str] = set()
    for built in all_built:
        for manifest in built.manifests:
            for field, value in _fields(manifest):
                if field in ("configMapKeyRef", "secretKeyRef"):
                    kind = "Secret" if field == "secretKeyRef" else "ConfigMap"
                    keys = taken.setdefault((kind, value["name"]), {})
                    optional = bool(value.get("optional"))
                    keys[value["key"]] = keys.get(value["key"], True) and optional
                elif field == "secretTargetRef":
                    for one in value:
                        taken.setdefault(("Secret", one["name"]), {}).setdefault(one["key"], True)
                elif field in _WHOLE and isinstance(value, str):
                    whole.add(value)
                elif field == "secret" and isinstance(value, dict) and "ref" in value:
                    whole.add(value["ref"]["name"])
    return taken, whole


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Every field of a manifest, however deep, with what it holds."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield name, one
            yield from _fields(one)
    elif isinstance(value, list):
        for one in value:
            yield from _fields(one)
