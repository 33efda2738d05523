"""Schemas of Strimzi's resources, read off the classes of its own published API.

Strimzi makes its CRDs from these classes and publishes them nowhere that a package client reaches.
A class file (JVM specification, chapter 4) has all that a strict schema needs: getters with their
types, subtypes by name, bounds, and the values of enumerations.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

GROUP: Final = "kafka.strimzi.io"
VERSION: Final = "v1"
"""The one version of the API that is not deprecated."""
KINDS: Final = {
    "KafkaTopic": "topic/KafkaTopicSpec",
    "KafkaUser": "user/KafkaUserSpec",
    "Kafka": "kafka/KafkaSpec",
    "KafkaNodePool": "nodepool/KafkaNodePoolSpec",
}
_MODEL: Final = "io/strimzi/api/kafka/model/"
_SCALARS: Final = {
    "java/lang/String": "string", "java/lang/Integer": "integer", "I": "integer",
    "java/lang/Long": "integer", "J": "integer", "java/lang/Boolean": "boolean", "Z": "boolean",
    "java/lang/Double": "number", "D": "number", "java/lang/Short": "integer",
}  # fmt: skip
_NO_PROPERTY: Final = {"getClass", "getAdditionalProperties"}
_BOUNDS: Final = {"Minimum": "minimum", "Maximum": "maximum", "Pattern": "pattern"}
Schema = dict[str, Any]
Annotations = Mapping[str, Mapping[str, Any]]
"""By the annotation's short name, its values by name."""


@dataclass(frozen=True)
class Method:
    name: str
    returns: str
    """Descriptor or generic signature of what it returns."""
    annotations: Annotations


@dataclass(frozen=True)
class Class:
    """What a class file says of a class."""

    superclass: str
    constants: list[str]
    """Of an enumeration: its members."""
    texts: set[str]
    """All string literals."""
    getters: list[Method]
    annotations: Annotations = field(default_factory=dict)


class Strimzi:
    """Schemas out of Strimzi's API jar."""

    def __init__(self, jar: Path) -> None:
        self._jar = zipfile.ZipFile(jar)
        self._names = set(self._jar.namelist())

    def schema(self, kind: str) -> Schema | None:
        """A structural schema with `properties.spec`; None for a kind that is not known here."""
        path = KINDS.get(kind)
        if path is None:
            return None
        spec = self._object(_MODEL + path, ())
        return {"type": "object", "required": ["spec"], "properties": {"spec": spec}}

    def _read(self, name: str) -> Class:
        return _ClassFile(self._jar.read(f"{name}.class")).read()

    def _object(self, name: str, above: tuple[str, ...]) -> Schema:
        found = self._read(name)
        if found.superclass == "java/lang/Enum":
            return {"enum": sorted(_values(found))}
        subtypes = found.annotations.get("JsonSubTypes", {}).get("value")
        if subtypes and name not in above:
            return {
                "oneOf": [
                    self._subtype(one["value"], one["name"], (*above, name)) for one in subtypes
                ]
            }
        if name in above[:-1]:
            return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        properties: Schema = {}
        required: list[str] = []
        upwards = found
        while True:
            for getter in upwards.getters:
                if "JsonIgnore" not in getter.annotations and _is_present(getter.annotations):
                    key = _property(getter)
                    required += [key] if _is_required(getter.annotations) else []
                    made = self._type(getter.returns, (*above, name))
                    properties.setdefault(key, {**made, **_bounds(getter.annotations)})
            if f"{upwards.superclass}.class" not in self._names:
                break
            upwards = self._read(upwards.superclass)
        return {"type": "object", "properties": properties, "required": sorted(set(required))}

    def _subtype(self, name: str, label: str, above: tuple[str, ...]) -> Schema:
        made = self._object(name, above)
        made["properties"]["type"] = {"enum": [label]}
        return {**made, "required": sorted({*made["required"], "type"})}

    def _type(self, signature: str, above: tuple[str, ...]) -> Schema:
        if signature in _SCALARS:
            return {"type": _SCALARS[signature]}
        name, _, parameter = signature.removeprefix("L").rstrip(";").partition("<")
        if name in _SCALARS:
            return {"type": _SCALARS[name]}
        if name == "java/util/List":
            return {"type": "array", "items": self._type(_first(parameter), above)}
        if f"{name}.class" in self._names:
            return self._object(name, above)
        # Maps, and types of Kubernetes' own.
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def _values(found: Class) -> Iterator[str]:
    """`READ` is written `Read` in JSON: the literal that differs in case and signs alone."""
    members = {re.sub(r"\W|_", "", name).lower(): name for name in found.constants}
    for text in found.texts:
        if members.get(re.sub(r"\W|_", "", text).lower(), text) != text:
            yield text


def _property(getter: Method) -> str:
    named = getter.annotations.get("JsonProperty", {}).get("value")
    if named:
        return str(named)
    bare = re.sub(r"^(get|is)", "", getter.name)
    return bare[:1].lower() + bare[1:]


def _is_present(annotations: Annotations) -> bool:
    """Of versions like `v1alpha1-v1beta2` or `v1+`, whether ours is one."""
    text = str(annotations.get("PresentInVersions", {}).get("value", f"{VERSION}+"))
    return text.startswith(VERSION + "+") or text.rpartition("-")[2] == VERSION


def _is_required(annotations: Annotations) -> bool:
    always = annotations.get("JsonProperty", {}).get("required")
    lately = annotations.get("RequiredInVersions", {}).get("value")
    return bool(always) or lately in (VERSION, f"{VERSION}+")


def _bounds(annotations: Annotations) -> Schema:
    return {_BOUNDS[n]: a["value"] for n, a in annotations.items() if n in _BOUNDS and "value" in a}


def _first(parameter: str) -> str:
    return parameter.rstrip(">").removesuffix(">;")


class _ClassFile:
    """A reader that goes forward only."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 8

    def _take(self, form: str) -> Any:
        (value,) = struct.unpack_from(f">{form}", self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def read(self) -> Class:
        self._pool: list[Any] = [None]
        self._strings: list[int] = []
        self._read_pool(self._take("H"))
        self._at += 4
        superclass = self._name(self._take("H"))
        for _ in range(self._take("H")):
            self._take("H")
        fields = [self._member() for _ in range(self._take("H"))]
        methods = [self._member() for _ in range(self._take("H"))]
        annotations, _ = self._attributes()
        return Class(
            superclass,
            [name for flags, name, *_ in fields if flags & 0x4000],
            {self._pool[index] for index in self._strings},
            [
                Method(name, (signature or descriptor).rpartition(")")[2], noted)
                for flags, name, descriptor, signature, noted in methods
                # Public, of an object, no bridge, and without parameters.
                if flags & 0x1049 == 1
                and descriptor.startswith("()")
                and re.match(r"(get|is)[A-Z]", name)
                and name not in _NO_PROPERTY
            ],
            annotations,
        )

    def _read_pool(self, count: int) -> None:
        sizes = {3: 4, 4: 4, 5: 8, 6: 8, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 17: 4, 18: 4}
        while len(self._pool) < count:
            tag = self._take("B")
            if tag == 1:
                size = self._take("H")
                raw = self._data[self._at : self._at + size]
                self._pool.append(raw.decode("utf-8", "replace"))
                self._at += size
            elif tag in (3, 5):
                self._pool.append(self._take("i" if tag == 3 else "q"))
            elif tag in (7, 8, 19, 20):
                self._pool.append(self._take("H"))
                if tag == 8:
                    self._strings.append(self._pool[-1])
            else:
                self._at += sizes[tag]
                self._pool.append(None)
            if tag in (5, 6):
                self._pool.append(None)

    def _name(self, index: int) -> str:
        return str(self._pool[self._pool[index]]) if index else ""

    def _member(self) -> tuple[int, str, str, str | None, Annotations]:
        flags, name, descriptor = self._take("H"), self._take("H"), self._take("H")
        annotations, signature = self._attributes()
        return flags, self._pool[name], self._pool[descriptor], signature, annotations

    def _attributes(self) -> tuple[Annotations, str | None]:
        annotations: Annotations = {}
        signature = None
        for _ in range(self._take("H")):
            name, size = self._pool[self._take("H")], self._take("I")
            end = self._at + size
            if name == "RuntimeVisibleAnnotations":
                annotations = dict(self._annotation() for _ in range(self._take("H")))
            elif name == "Signature":
                signature = self._pool[self._take("H")]
            self._at = end
        return annotations, signature

    def _annotation(self) -> tuple[str, dict[str, Any]]:
        kind = re.split(r"[/$]", self._pool[self._take("H")].rstrip(";"))[-1]
        count = self._take("H")
        return kind, {self._pool[self._take("H")]: self._element() for _ in range(count)}

    def _element(self) -> Any:
        tag = chr(self._take("B"))
        if tag == "e":
            self._take("H")
            return self._pool[self._take("H")]
        if tag == "@":
            return self._annotation()[1]
        if tag == "[":
            return [self._element() for _ in range(self._take("H"))]
        value = self._pool[self._take("H")]
        return str(value).removeprefix("L").rstrip(";") if tag == "c" else value
