"""Manifests against the schemas of those who read them, strictly: an unknown field is an error.

The API server drops an unknown field of a custom resource in silence, and KEDA ignores an unknown
key of a trigger; both mean a setting that someone believes in and that does nothing.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache, cached_property
from typing import Any, Final

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from deploy.checking import strimzi
from deploy.checking.building import Built, Manifest, Problem
from deploy.checking.tools import Tools, sources

KUBERNETES: Final = "v1.35.0-local-strict"
Schema = dict[str, Any]
_ENABLED_FLAGS: Final = frozenset({"kubernetes.podspec-volumes-emptydir"})
"""Knative's feature flags that are on where nobody has touched them."""
_GROUPS: Final = re.compile(r"\.k8s\.io$")


class Schemas:
    """All schemas, read when they are first wanted."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._validators: dict[tuple[str, str], Draft202012Validator] = {}
        self._judged: dict[str, list[str]] = {}
        """What was wrong with manifests seen before: of many copies of a tree nearly all are."""

    def problems(self, built: Built) -> Iterator[Problem]:
        """What the readers of these manifests would refuse, or not understand."""
        for one in built.manifests:
            text = json.dumps(one, sort_keys=True)
            if text not in self._judged:
                self._judged[text] = list(self._wrong(one))
            for what in self._judged[text]:
                yield built.problem(one, what)

    def _wrong(self, one: Manifest) -> Iterator[str]:
        key = (one["apiVersion"], one["kind"])
        validator = self._validators.get(key)
        if validator is None:
            found = self._crd(key) or self._kubernetes(key)
            if found is None:
                yield f"no schema is known for {key[0]} {key[1]}: pin one in sources.sha256"
                return
            validator = self._validators[key] = found
        errors = sorted(validator.iter_errors(one), key=lambda error: list(map(str, error.path)))
        for error in errors:
            yield told(error)
        if key in self._crds and not errors:
            yield from _behind_flags(one, self._crds[key][0], "")
            yield from self._scope(one, self._crds[key][1])

    @staticmethod
    def _scope(one: Manifest, scope: str) -> Iterator[str]:
        if scope == "Cluster" and "namespace" in one["metadata"]:
            yield "metadata.namespace: a cluster's own resource lies in none"
        if scope == "Namespaced" and "namespace" not in one["metadata"]:
            yield "metadata.namespace: is missing: say it in the overlay's kustomization.yaml"

    # --- custom resources ------------------------------------------------------------------------

    @cached_property
    def _crds(self) -> dict[tuple[str, str], tuple[Schema, str]]:
        """Schema and scope by apiVersion and kind; of two that define one, the first counts."""
        found: dict[tuple[str, str], tuple[Schema, str]] = {}
        for name in sources():
            if not name.endswith(".yaml"):
                continue
            text = self._tools.source(name).read_text("utf-8")
            # Release files hold much besides, and YAML is slow to read.
            parts = (part for part in text.split("\n---") if "CustomResourceDefinition" in part)
            for crd in (yaml.load(part, yaml.CSafeLoader) for part in parts):
                if not crd or crd["kind"] != "CustomResourceDefinition":
                    continue
                spec = crd["spec"]
                for version in spec["versions"]:
                    key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                    schema = version["schema"]["openAPIV3Schema"]
                    found.setdefault(key, (schema, spec["scope"]))
        return found

    def _crd(self, key: tuple[str, str]) -> Draft202012Validator | None:
        group, _, version = key[0].partition("/")
        if (group, version) == (strimzi.GROUP, strimzi.VERSION) and key not in self._crds:
            known = self._strimzi.schema(key[1])
            if known is not None:
                self._crds[key] = known, "Namespaced"
        found = self._crds.get(key)
        if found is None:
            return None
        schema = strict(found[0])
        schema["properties"]["metadata"] = {"$ref": f"{_DEFINITIONS}#/$defs/{_OBJECT_META}"}
        schema["properties"].setdefault("apiVersion", {})
        schema["properties"].setdefault("kind", {})
        if key[0].startswith("serving.knative.dev/") and key[1] == "Service":
            template = schema["properties"]["spec"]["properties"]["template"]
            template["properties"]["metadata"] = schema["properties"]["metadata"]
        return Draft202012Validator(schema, registry=self._registry)

    @cached_property
    def _strimzi(self) -> strimzi.Strimzi:
        return strimzi.Strimzi(self._tools.strimzi())

    # --- Kubernetes' own -------------------------------------------------------------------------

    @cached_property
    def _registry(self) -> Registry[Any]:
        definitions = Resource.from_contents(self._member("_definitions"), DRAFT202012)
        registry: Registry[Any] = Registry().with_resource(_DEFINITIONS, definitions)
        return registry

    def _member(self, name: str) -> Any:
        with zipfile.ZipFile(self._tools.wheel()) as wheel:
            path = f"kubernetes_validate/kubernetes-json-schema/{KUBERNETES}/{name}.json"
            return json.loads(wheel.read(path))

    def _kubernetes(self, key: tuple[str, str]) -> Draft202012Validator | None:
        group, _, version = key[0].rpartition("/")
        parts = [key[1], *([group.split(".")[0]] if group else []), version]
        if group and "." in group and not _GROUPS.search(group):
            return None
        try:
            schema = self._member("-".join(parts).lower())
        except KeyError:
            return None
        return Draft202012Validator(schema, registry=self._registry)


_DEFINITIONS: Final = "/api/_definitions.json"
_OBJECT_META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


def strict(schema: Mapping[str, Any]) -> Schema:
    """A structural schema as JSON Schema, in which what it does not name is not allowed."""
    made = {key: value for key, value in schema.items() if key in _KEPT}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["type"] = ["integer", "string"]
    if schema.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    if "properties" in schema:
        made["properties"] = {name: strict(one) for name, one in schema["properties"].items()}
        # Also where the API server would keep others (Knative's Trigger): Knative's webhooks, which
        # decode strictly, would not.
        made.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            made[key] = strict(schema[key])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema and not schema.get("x-kubernetes-int-or-string"):
            # Beside properties these only ask for more; alone (Strimzi's) they are the schema.
            alone = "properties" not in schema
            made[key] = [strict(one) if alone else one for one in schema[key]]
    return made


_KEPT = {"type", "enum", "required", "pattern", "format", "additionalProperties"}
_KEPT |= {"minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"}


def told(error: ValidationError) -> str:
    """One line: where, and what is wrong; of an unknown field its name. Of a value that may have
    several shapes, what is wrong with the shape that it comes nearest to."""
    error = best_match([error])
    path = error.absolute_path
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    text = error.message
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = error.schema.get("properties", {}) if isinstance(error.schema, Mapping) else {}
        unknown = sorted(set(error.instance) - set(known))
        text = f"unknown field {', '.join(unknown)}"
    return f"{where}: {text}" if where else text


def _behind_flags(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """Fields that Knative's webhook refuses unless someone has switched them on."""
    said = re.search(r"behind a feature flag\W+([\w.-]+)", schema.get("description") or "")
    if said and said[1] not in _ENABLED_FLAGS:
        yield f"{path}: needs Knative's feature flag {said[1]}"
    if isinstance(value, Mapping):
        for name, one in value.items():
            under = schema.get("properties", {}).get(name)
            if isinstance(under, Mapping):
                yield from _behind_flags(one, under, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for number, one in enumerate(value):
            yield from _behind_flags(one, schema["items"], f"{path}[{number}]")


# --- KEDA's triggers -----------------------------------------------------------------------------

SCALERS: Final = "github.com/kedacore/keda/v2@v2.20.2/schema/generated/scalers-schema.json"
_FROM_ENV: Final = "FromEnv"
Scaler = Mapping[str, Mapping[str, Any]]


class Triggers:
    """Triggers and their authentication against KEDA's own list of parameters."""

    def __init__(self, tools: Tools) -> None:
        listed = json.loads(tools.source(SCALERS).read_text("utf-8"))["scalers"]
        self._scalers: dict[str, Scaler] = {
            one["type"]: {p["name"]: p for p in one["parameters"] if "name" in p} for one in listed
        }

    def problems(self, built: Built) -> Iterator[Problem]:
        for one in built.of_kind("ScaledObject"):
            for trigger in one["spec"].get("triggers", []):
                for what in self._wrong(built, trigger):
                    yield built.problem(one, f"trigger {trigger.get('name', '?')}: {what}")

    def _wrong(self, built: Built, trigger: Manifest) -> Iterator[str]:
        scaler = self._scalers.get(trigger["type"])
        if scaler is None:
            yield f"KEDA has no scaler {trigger['type']!r}"
            return
        metadata: Mapping[str, Any] = trigger["metadata"]
        given = set()
        for key, value in metadata.items():
            from_env = key.endswith(_FROM_ENV)
            name = key.removesuffix(_FROM_ENV)
            parameter = scaler.get(name)
            wanted = "envVariableReadable" if from_env else "metadataVariableReadable"
            if parameter is None or not parameter.get(wanted):
                yield f"metadata.{key} is none of KEDA's parameters; it would be ignored in silence"
                continue
            given.add(name)
            yield from _value(key, value, {} if from_env else parameter)
        authentication = self._authentication(built, trigger)
        if isinstance(authentication, str):
            yield authentication
            return
        for name in authentication:
            if not scaler.get(name, {}).get("triggerAuthenticationVariableReadable"):
                yield f"TriggerAuthentication gives {name}, which this scaler does not take"
        for name, parameter in scaler.items():
            is_needed = not parameter.get("optional") and "default" not in parameter
            if is_needed and name not in given | authentication:
                yield f"metadata.{name} is missing"

    @staticmethod
    def _authentication(built: Built, trigger: Manifest) -> set[str] | str:
        reference = trigger.get("authenticationRef")
        if reference is None:
            return set()
        found = built.find(reference.get("kind", "TriggerAuthentication"), reference["name"])
        if found is None:
            return f"authenticationRef {reference['name']}: there is no such TriggerAuthentication"
        spec = found["spec"]
        return {p["parameter"] for key in ("secretTargetRef", "env") for p in spec.get(key, [])}


def _value(key: str, value: object, parameter: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"metadata.{key} is no string: quote it"
        return
    allowed = parameter.get("allowedValue")
    if allowed and value not in allowed:
        yield f"metadata.{key} is {value!r}, and KEDA takes {', '.join(allowed)}"


Check = Callable[[Built], Iterator[Problem]]


@cache
def of(tools: Tools) -> tuple[Check, Check]:
    """The two checks, with their files read once."""
    return Schemas(tools).problems, Triggers(tools).problems
