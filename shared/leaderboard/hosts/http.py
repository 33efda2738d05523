"""The HTTP host: routes declared as values, served by functions-framework.

A `Route` says who may call it, what it takes and what it answers; authentication, validation,
problem+json (RFC 9457), CORS, health and the OpenAPI document follow from that. The framework's
own `cloud_event` signature echoes bodies in errors, refuses GET and knows no body limit, so an
`HttpApp` serves the plain `http` signature and decodes events itself.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from flask import Request, Response
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from werkzeug.datastructures import Headers
from werkzeug.exceptions import ClientDisconnected, HTTPException, MethodNotAllowed
from werkzeug.routing import BaseConverter, Map, Rule

from leaderboard import telemetry
from leaderboard.callers import Caller, Door, Limit, Tokens
from leaderboard.errors import (
    ForbiddenError,
    LeaderboardError,
    NotFoundError,
    Refusal,
    RefusedError,
    TooManyError,
    TransientError,
    UnauthenticatedError,
)
from leaderboard.hosts.collector import settle
from leaderboard.hosts.framework import PROBLEM_TYPE, SAFE, problem_body
from leaderboard.hosts.readiness import READY, Check, Needs, Readiness

MAX_BODY_BYTES: Final = 64 * 1024
DISCARDED_BYTES: Final = 4 * 1024 * 1024
"""Read and thrown away of a body that is too large, so that its sender gets the answer."""
SETTLES_AT: Final = frozenset({20, 1000})
"""Answers after which what a process keeps has been made: drivers, connections, schemas."""
_OF_PROXIES: Final = ("X-Forwarded-For", "Forwarded")
_ALLOWED_HEADERS: Final = "authorization, content-type, idempotency-key, if-none-match"
_EXPOSED_HEADERS: Final = "Date, ETag, Location, RateLimit, RateLimit-Policy, Retry-After"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """One request, already checked against its route.

    `caller` is None only on routes open to everyone; `query` and `body` hold the route's
    models, where it declares them. `headers` are read in any case; `address` is the client's as
    the gateway or ingress in front of us saw it."""

    path: Mapping[str, str]
    headers: Mapping[str, str]
    raw_body: bytes
    address: str
    caller: Caller | None = None
    query: Any = None
    body: Any = None

    def authenticated(self) -> Caller:
        """The caller of a route that wants a token."""
        if self.caller is None:
            raise UnauthenticatedError("a bearer token is wanted")
        return self.caller


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: a model, anything JSON can say, or bytes with their own content type."""

    body: BaseModel | Mapping[str, Any] | Sequence[Any] | bytes | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `roles` None: open to everyone, without a token.

    `path` is a werkzeug rule (`/v1/tournaments/<tournament_id>`); a plain variable matches ids
    of the contract only, so anything hostile is a 404 before it reaches a key. `answers` gives
    the model of each good status, `problems` the bad ones that don't follow from the rest, and
    `headers` what each optional request header is for: all three for the OpenAPI document."""

    method: str
    path: str
    summary: str
    handler: Callable[[Call], Answer]
    roles: frozenset[str] | None
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    body_optional: bool = False
    answers: Mapping[int, type[BaseModel] | None] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    problems: frozenset[int] = frozenset()
    limit: Limit | None = None
    max_body_bytes: int = MAX_BODY_BYTES
    documented: bool = True
    refused: Callable[[Call, LeaderboardError], None] | None = None
    """Told of a caller who is turned away at the door, before the answer goes out; the call has
    no body yet. What it raises is answered instead."""


ANY_ROLE: Final = frozenset({"player", "operator", "auditor", "service"})
STAFF: Final = frozenset({"operator", "auditor", "service"})


class _IdConverter(BaseConverter):
    """The default for variables in paths: what may name a tournament, a player or a request."""

    regex = "[A-Za-z0-9_-]{1,64}"


class _AnyCase(Mapping[str, str]):
    """Request headers as a mapping whose keys match in any case (RFC 9110 §5.1)."""

    def __init__(self, headers: Headers) -> None:
        self._headers = headers

    def __getitem__(self, name: str) -> str:
        return self._headers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers.keys())

    def __len__(self) -> int:
        return len(self._headers)


class HttpApp:
    """The routes of one function, callable with a Flask request.

    `tokens` is called on the first authenticated request (the framework forks after import, so
    nothing may connect before). `ready` maps a dependency's name to a check that raises when it
    is away, or is `Needs`. `origins` are the web origins whose pages may call. `door` counts for
    the routes that have a limit. A client's address is the last element of X-Forwarded-For,
    appended by the proxy before us, or the first, where that is a gateway's which overwrites the
    header. Of one that `is_public` the world sees no metrics, and not why it is not ready: that is
    for those who reach its port without any proxy in between."""

    def __init__(  # noqa: PLR0913 - what a function is, each by its name
        self,
        name: str,
        routes: Sequence[Route],
        *,
        tokens: Callable[[], Tokens] | None = None,
        ready: Mapping[str, Check] | Needs | None = None,
        origins: Sequence[str] = (),
        door: Door | None = None,
        client_address: Literal["first", "last"] = "last",
        is_public: bool = False,
    ) -> None:
        self.name = name
        self.routes = (*routes, *self._own_routes())
        self._tokens = tokens
        self._readiness = Readiness(name, ready or {})
        self._origins = frozenset(origins)
        self._door = door
        self._client_address = client_address
        self._is_public = is_public
        self._answered = itertools.count(1)
        self._map = Map(
            [Rule(r.path, methods=[r.method], endpoint=i) for i, r in enumerate(self.routes)],
            converters={"default": _IdConverter},
            strict_slashes=True,
            merge_slashes=False,
        ).bind("")
        self._is_prepared = False

    def __call__(self, request: Request) -> Response:
        started = time.perf_counter()
        route: Route | None = None
        try:
            if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
                response = Response(status=204)
            else:
                route, path = self._match(request)
                response = _respond(self._serve(route, path, request))
        except LeaderboardError as error:
            response = _problem_of(error)
            if isinstance(error, TooManyError):
                path_told = route.path if route else "none"
                telemetry.TURNED_AWAY.labels(self.name, path_told, error.quota).inc()
        except HTTPException as error:
            response = problem(error.code or 500, error.description or "")
            if isinstance(error, MethodNotAllowed) and error.valid_methods:
                response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
        except Exception:
            logger.exception("bug while serving a request")
            response = problem(500, "This is our fault, and it was logged.")
        self._allow_origin(request, response)
        for name, text in SAFE.items():
            response.headers.setdefault(name, text)
        telemetry.REQUESTS.labels(
            self.name, route.path if route else "none", str(response.status_code)
        ).observe(time.perf_counter() - started)
        # The framework's own server: there the process is ours.
        if "gunicorn.socket" in request.environ and next(self._answered) in SETTLES_AT:
            settle()
        return response

    def _match(self, request: Request) -> tuple[Route, dict[str, str]]:
        index, path = self._map.match(request.path, request.method)
        return self.routes[index], dict(path)

    def _serve(self, route: Route, path: Mapping[str, str], request: Request) -> Answer:
        headers = _AnyCase(request.headers)
        address = self._address_of(headers, request)
        caller: Caller | None = None
        told = _nothing_told
        if route.roles is not None:
            try:
                caller = self._authenticate(headers, address)
                if not caller.roles & route.roles:
                    raise ForbiddenError("none of your roles may do this")
                told = self._counted(route, caller)
            except LeaderboardError as error:
                if route.refused is not None:
                    route.refused(Call(path, headers, b"", address, caller), error)
                raise
        try:
            answer = _handled(route, Call(path, headers, b"", address, caller), request)
        finally:
            # Also where it failed: who asks too often is told that first.
            headers_told = told()
        return (
            replace(answer, headers={**answer.headers, **headers_told}) if headers_told else answer
        )

    def _address_of(self, headers: Mapping[str, str], request: Request) -> str:
        # Whoever calls may send this header too: only one element is our gateway's.
        elements = headers.get("X-Forwarded-For", "").split(",")
        told = elements[0 if self._client_address == "first" else -1].strip()
        return told or request.remote_addr or ""

    def _authenticate(self, headers: Mapping[str, str], address: str) -> Caller:
        if self._tokens is None:
            raise UnauthenticatedError("this function knows no issuer")
        try:
            token = bearer_of(headers)
            tokens = self._tokens()
            if (known := tokens.known(token)) is not None:
                return known
            if self._door is not None:
                self._door.meet(address)
            return tokens.verify(token)
        except UnauthenticatedError:
            if self._door is not None:
                self._door.proved_nothing(address)
            raise

    def _counted(self, route: Route, caller: Caller) -> Callable[[], Mapping[str, str]]:
        """What is to be told of the limit, to be asked for when the answer is there."""
        if route.limit is None or self._door is None or caller.roles & STAFF:
            return _nothing_told
        begun = self._door.begin(route.limit, caller.subject)
        if route.limit.meanwhile:
            return begun.settle
        told = begun.settle()
        return lambda: told

    def _allow_origin(self, request: Request, response: Response) -> None:
        origin = request.headers.get("Origin")
        if origin in self._origins:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Allow-Headers"] = _ALLOWED_HEADERS
            response.headers["Access-Control-Allow-Methods"] = "GET, HEAD, POST"
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
            response.headers["Access-Control-Max-Age"] = "600"
        if self._origins:
            response.headers.add("Vary", "Origin")

    # health and description

    def _own_routes(self) -> Sequence[Route]:
        return (
            Route("GET", "/healthz", "The process is alive.", self._healthz, None),
            Route("GET", "/readyz", "Its dependencies answer.", self._readyz, None),
            Route(
                "GET", "/metrics", "Prometheus exposition.", self._metrics, None, documented=False
            ),
            Route("GET", "/openapi.json", "This description.", self._openapi, None),
        )

    def _healthz(self, call: Call) -> Answer:
        return Answer({"status": "alive"})

    def _readyz(self, call: Call) -> Answer:
        is_ready, state = self._readiness.look()
        if is_ready and not self._is_prepared:
            self._is_prepared = True
            threading.Thread(target=self._prepare, name="prepare", daemon=True).start()
        if self._is_seen_by_the_world(call):
            # Reasons say where our stores are.
            state = {name: one if one == READY else "not ready" for name, one in state.items()}
        body = {"ready": is_ready, "dependencies": state}
        return Answer(body, status=200 if is_ready else 503)

    def _metrics(self, call: Call) -> Answer:
        if self._is_seen_by_the_world(call):
            raise NotFoundError("these are told inside the cluster only")
        headers = {"Content-Type": telemetry.METRICS_TYPE}
        return Answer(telemetry.metrics_text(), headers=headers)

    def _is_seen_by_the_world(self, call: Call) -> bool:
        """Who comes from outside comes through proxies, and each of them says for whom it asks:
        ingresses, gateways and Knative's own beside every function. Probes, Prometheus and
        `kubectl port-forward` ask the port itself."""
        return self._is_public and any(name in call.headers for name in _OF_PROXIES)

    def _prepare(self) -> None:
        """What the first caller with a token would wait for, and readiness does not need."""
        try:
            if self._tokens is not None:
                self._tokens()
        except Exception:
            logger.exception("bug while preparing for callers with tokens")

    def _openapi(self, call: Call) -> Answer:
        return Answer(self.openapi())

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI 3.1 document of the routes, generated from them."""
        from leaderboard.hosts.openapi import document  # noqa: PLC0415 - only who asks pays

        return document(self.name, self.routes)


def _nothing_told() -> Mapping[str, str]:
    return {}


def _handled(route: Route, call: Call, request: Request) -> Answer:
    """The route's answer, after body and query were checked."""
    raw = _body_of(request, route.max_body_bytes)
    query = None
    if route.query is not None:
        query = _validated(route.query, request.args.to_dict(), "query")
    body = None
    if route.body is not None and (raw or not route.body_optional):
        body = _validated_json(route.body, raw)
    return route.handler(Call(call.path, call.headers, raw, call.address, call.caller, query, body))


def bearer_of(headers: Mapping[str, str]) -> str:
    """The bearer token of a request (RFC 6750 §2.1). Raises UnauthenticatedError."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthenticatedError("a bearer token is wanted")
    return token.strip()


def problem(status: int, detail: str, **members: Any) -> Response:
    """A problem document (RFC 9457)."""
    body = problem_body(status, detail, **members)
    response = Response(body, status=status, content_type=PROBLEM_TYPE)
    if status == 503:
        response.headers["Retry-After"] = "1"
    return response


class ProblemError(LeaderboardError):
    """Any other problem that a handler wants to answer with."""

    def __init__(self, status: int, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.members = members


_REFUSED_STATUS: Final = {Refusal.NOT_JSON: 400, Refusal.TOO_LARGE: 413}


def _problem_of(error: LeaderboardError) -> Response:
    match error:
        case ProblemError():
            return problem(error.status, error.detail, **error.members)
        case RefusedError():
            status = _REFUSED_STATUS.get(error.reason, 422)
            return problem(status, error.detail, reason=error.reason.value)
        case UnauthenticatedError():
            response = problem(401, str(error))
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        case ForbiddenError():
            return problem(403, str(error))
        case NotFoundError():
            return problem(404, str(error))
        case TooManyError():
            response = problem(429, "More requests than are let through in a minute; come later.")
            response.headers["Retry-After"] = str(error.retry_seconds)
            response.headers.update(error.headers)
            return response
        case TransientError():
            logger.warning("a dependency is away", extra=telemetry.fields(error=str(error)))
            return problem(503, "A part that this needs is away; try again.")
        case _:
            logger.error("an error that no request should meet", exc_info=error)
            return problem(500, "This is our fault, and it was logged.")


def _body_of(request: Request, limit: int) -> bytes:
    if not request.content_length and "HTTP_TRANSFER_ENCODING" not in request.environ:
        return b""  # without either there is none (RFC 9112 §6.3)
    raw = bytearray()
    if (request.content_length or 0) <= limit:
        while len(raw) <= limit and (part := request.stream.read(limit + 1 - len(raw))):
            raw += part  # a chunked body comes in pieces, and its length is told nowhere
        if len(raw) <= limit:
            return bytes(raw)
    _discard(request)
    raise RefusedError(Refusal.TOO_LARGE, f"a body has {limit} bytes at most")


def _discard(request: Request) -> None:
    """Read what is left of a body, within reason.

    The server closes a connection on which much is unread, and a closed one may lose our answer."""
    left = DISCARDED_BYTES
    if (request.content_length or 0) > left:
        return
    with contextlib.suppress(ClientDisconnected):
        while left > 0 and (part := request.stream.read(min(left, MAX_BODY_BYTES))):
            left -= len(part)


def _validated(model: type[BaseModel], values: Mapping[str, str], what: str) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ProblemError(400, f"The {what} is wrong.", errors=_told(error)) from None


def _validated_json(model: type[BaseModel], raw: bytes) -> BaseModel:
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        if any(one["type"] == "json_invalid" for one in error.errors()):
            raise RefusedError(Refusal.NOT_JSON, "the body is not JSON") from None
        raise ProblemError(422, "The body is wrong.", errors=_told(error)) from None


def _told(error: ValidationError) -> list[dict[str, str]]:
    return [
        {"field": ".".join(map(str, one["loc"])), "detail": one["msg"]}
        for one in error.errors(include_url=False, include_input=False, include_context=False)
    ]


def _respond(answer: Answer) -> Response:
    body = answer.body
    if isinstance(body, BaseModel):
        payload = body.model_dump_json().encode()
    elif isinstance(body, bytes):
        payload = body
    else:
        payload = b"" if body is None else to_json(body)
    response = Response(payload, status=answer.status, content_type="application/json")
    if body is None:
        del response.headers["Content-Type"]
    response.headers.update(answer.headers)
    return response
