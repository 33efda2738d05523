"""The OpenAPI 3.1 document of a function, generated from its routes: it can't disagree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from leaderboard.hosts.framework import PROBLEM_TYPE
from leaderboard.hosts.http import Route
from leaderboard.model import ID_PATTERN

_VARIABLE: Final = re.compile(r"<(?:(?P<converter>[a-z]+)(?:\([^)]*\))?:)?(?P<name>\w+)>")
_REF: Final = "#/components/schemas/{model}"
_Schemas = Mapping[Any, dict[str, Any]]

PROBLEM_SCHEMA: Final = {
    "type": "object",
    "description": "RFC 9457. `errors` names each field of a request that is wrong.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "reason": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "detail"],
                "properties": {"field": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}


def document(name: str, routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the documented routes of the function `name`."""
    shown = [route for route in routes if route.documented]
    schemas, definitions = models_json_schema(sorted(_models(shown), key=_order), ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in shown:
        path = _VARIABLE.sub(r"{\g<name>}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": f"leaderboard {name}", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": {"Problem": PROBLEM_SCHEMA, **definitions.get("$defs", {})},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT (RS256)"}
            },
        },
    }


def _models(routes: Sequence[Route]) -> set[tuple[type[BaseModel], JsonSchemaMode]]:
    found: set[tuple[type[BaseModel], JsonSchemaMode]] = set()
    for route in routes:
        found |= {(model, "validation") for model in (route.query, route.body) if model}
        found |= {(model, "serialization") for model in route.answers.values() if model}
    return found


def _order(one: tuple[Any, str]) -> tuple[str, str]:
    return one[0].__name__, one[1]


def _operation(route: Route, schemas: _Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{route.method}{re.sub(r'[^A-Za-z0-9]+', '_', route.path)}".lower(),
        "summary": route.summary,
        "parameters": [*_path(route), *_query(route), *_headers(route)],
        "responses": {**_answers(route, schemas), **_problems(route)},
        # An empty list says: open to everyone.
        "security": [] if route.roles is None else [{"bearer": []}],
    }
    if route.roles is not None:
        operation["x-roles"] = sorted(route.roles)
    if route.body is not None:
        content = {"application/json": {"schema": schemas[route.body, "validation"]}}
        operation["requestBody"] = {"required": not route.body_optional, "content": content}
    return operation


def _path(route: Route) -> Iterator[dict[str, Any]]:
    for variable in _VARIABLE.finditer(route.path):
        schema: dict[str, Any] = {"type": "string"}
        if variable["converter"] is None:
            schema["pattern"] = ID_PATTERN
        yield _parameter("path", variable["name"], schema, required=True)


def _query(route: Route) -> Iterator[dict[str, Any]]:
    if route.query is None:
        return
    schema = route.query.model_json_schema(ref_template=_REF)
    definitions = schema.get("$defs", {})
    for name, one in schema.get("properties", {}).items():
        required = name in schema.get("required", ())
        yield _parameter("query", name, _inlined(one, definitions), required=required)


def _headers(route: Route) -> Iterator[dict[str, Any]]:
    for name, description in route.headers.items():
        parameter = _parameter("header", name, {"type": "string"}, required=False)
        yield {**parameter, "description": description}


def _parameter(
    where: Literal["path", "query", "header"], name: str, schema: dict[str, Any], *, required: bool
) -> dict[str, Any]:
    return {"in": where, "name": name, "required": required, "schema": schema}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A query field's schema without references: they are small, and named nowhere else."""
    if isinstance(schema, list):
        return [_inlined(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if (reference := schema.get("$ref")) is not None:
        return _inlined(definitions[reference.rpartition("/")[2]], definitions)
    return {name: _inlined(one, definitions) for name, one in schema.items()}


def _answers(route: Route, schemas: _Schemas) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for status, model in (route.answers or {200: None}).items():
        answers[str(status)] = {"description": HTTPStatus(status).phrase}
        if model is not None:
            content = {"application/json": {"schema": schemas[model, "serialization"]}}
            answers[str(status)]["content"] = content
    return answers


def _problems(route: Route) -> dict[str, Any]:
    statuses = {413, 500}
    if route.roles is not None:
        statuses |= {401, 403, 503}
    if route.query is not None or route.body is not None:
        statuses |= {400}
    if route.body is not None:
        statuses |= {422}
    if route.limit is not None:
        statuses |= {429}
    if _VARIABLE.search(route.path):
        statuses |= {404}
    statuses |= route.problems
    return {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted(statuses - route.answers.keys())
    }
