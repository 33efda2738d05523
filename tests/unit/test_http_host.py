"""The HTTP host, called as functions-framework calls it: with a Flask request."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from flask import Flask, Request, Response, has_request_context
from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client import REGISTRY
from pydantic import BaseModel, Field
from werkzeug.test import Client, TestResponse

from leaderboard.callers import Caller, Limit, Quota
from leaderboard.errors import (
    BoardBehindError,
    ForbiddenError,
    NotFoundError,
    NotLetInError,
    Refusal,
    RefusedError,
    TooManyError,
    TransientError,
)
from leaderboard.hosts import http
from leaderboard.hosts.framework import served
from leaderboard.hosts.http import (
    ANY_ROLE,
    DISCARDED_BYTES,
    STAFF,
    Answer,
    Call,
    HttpApp,
    ProblemError,
    Route,
)
from leaderboard.hosts.readiness import START_SECONDS, Needs, Readiness
from ports import KnownTokens

ORIGIN = "https://play.example"


class Page(BaseModel):
    limit: int = Field(100, ge=1, le=1000)
    state: str | None = None


class Named(BaseModel):
    name: str


def _told(call: Call) -> Answer:
    caller = None if call.caller is None else call.caller.subject
    limit = call.query.limit if call.query else None
    return Answer({"caller": caller, "path": dict(call.path), "limit": limit, "at": call.address})


def _raising(error: Exception) -> Callable[[Call], Answer]:
    def handler(call: Call) -> Answer:
        raise error

    return handler


ROUTES = [
    Route("GET", "/open", "Open.", _told, None),
    Route("GET", "/things/<thing_id>", "One.", _told, ANY_ROLE, query=Page, answers={200: Named}),
    Route(
        "POST",
        "/things",
        "Make one.",
        lambda call: Answer(call.body, status=201, headers={"Location": "/things/1"}),
        STAFF,
        body=Named,
        answers={201: Named},
        max_body_bytes=1000,
    ),
    Route("GET", "/empty", "Nothing.", lambda call: Answer(status=304), None),
    Route("GET", "/bytes", "Bytes.", lambda call: Answer(b"x"), None, documented=False),
    Route("GET", "/files/<path:file>", "A file.", _told, None),
    Route(
        "GET",
        "/headers",
        "Headers.",
        lambda call: Answer(
            {"same": call.headers["x-THING"], "n": len(call.headers), "all": sorted(call.headers)}
        ),
        None,
        headers={"X-Thing": "Something."},
    ),
    Route("GET", "/fails/bug", "F.", _raising(ValueError("secret detail")), None),
    Route("GET", "/fails/behind", "F.", _raising(BoardBehindError("t1", 5)), None),
    Route("GET", "/fails/away", "F.", _raising(TransientError("redis at 10.0.0.1")), None),
    Route("GET", "/fails/unknown", "F.", _raising(NotFoundError("no such thing")), None),
    Route("GET", "/fails/forbidden", "F.", _raising(ForbiddenError("not yours")), None),
    Route("GET", "/fails/refused", "F.", _raising(RefusedError(Refusal.BAD_ID, "id")), None),
    Route("GET", "/fails/conflict", "F.", _raising(ProblemError(409, "ended", state="e")), None),
]


def _client(app: HttpApp) -> Client:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return app(Request(environ))(environ, start_response)

    return Client(application)


@pytest.fixture
def client() -> Client:
    return _client(HttpApp("host", ROUTES, tokens=KnownTokens, origins=[ORIGIN]))


def _as(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _problem(response: TestResponse) -> dict[str, object]:
    assert response.content_type == "application/problem+json"
    body = response.get_json(force=True)
    assert body["status"] == response.status_code
    assert {"type", "title", "detail"} <= body.keys()
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"
    return dict(body)


def test_open_route_wants_no_token(client: Client) -> None:
    response = client.get("/open")
    assert response.status_code == 200
    assert response.get_json()["caller"] is None


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic YTpi", "Bearer garbage", "Token a:player"]
)
def test_request_without_a_sound_token_is_401(client: Client, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    response = client.get("/things/1", headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    _problem(response)


def test_scheme_of_a_token_matches_in_any_case(client: Client) -> None:
    response = client.get("/things/1", headers={"authorization": "bEaReR alice:player"})
    assert response.get_json()["caller"] == "alice"


def test_function_without_an_issuer_believes_nobody() -> None:
    response = _client(HttpApp("host", ROUTES)).get("/things/1", headers=_as("a:player"))
    assert response.status_code == 401


def test_wrong_role_is_403(client: Client) -> None:
    response = client.post("/things", headers=_as("alice:player"), json={"name": "x"})
    assert response.status_code == 403
    _problem(response)


def test_one_right_role_among_several_is_enough(client: Client) -> None:
    response = client.post("/things", headers=_as("op:player,operator"), json={"name": "x"})
    assert response.status_code == 201
    assert response.headers["Location"] == "/things/1"
    assert response.get_json() == {"name": "x"}


def test_nobody_learns_of_a_body_before_the_token_is_checked(client: Client) -> None:
    assert client.post("/things", data=b"not json").status_code == 401


@pytest.mark.parametrize("body", [b"", b"{", b"nope", b"\xff\xfe", b"[" * 900])
def test_body_that_is_no_json_is_400(client: Client, body: bytes) -> None:
    response = client.post("/things", headers=_as("op:operator"), data=body)
    assert response.status_code == 400
    assert _problem(response)["reason"] == "not_json"


def test_body_of_the_wrong_shape_is_422_and_names_the_field(client: Client) -> None:
    response = client.post("/things", headers=_as("op:operator"), json={"name": ["private"]})
    assert response.status_code == 422
    problem = _problem(response)
    assert problem["errors"] == [{"field": "name", "detail": "Input should be a valid string"}]
    assert "private" not in response.text


def test_body_over_the_limit_is_413(client: Client) -> None:
    response = client.post("/things", headers=_as("op:operator"), data=b"x" * 1001)
    assert response.status_code == 413
    assert _problem(response)["reason"] == "too_large"


def test_declared_length_alone_is_enough_for_413(client: Client) -> None:
    response = client.post(
        "/things",
        headers=_as("op:operator"),
        input_stream=io.BytesIO(b"x"),
        environ_overrides={"CONTENT_LENGTH": str(10**12)},
    )
    assert response.status_code == 413


class _Endless(io.RawIOBase):
    """A chunked body without an end, in small pieces; it counts what was taken."""

    taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = min(len(buffer), 100)
        buffer[:size] = b"x" * size
        self.taken += size
        return size

    def tell(self) -> int:
        return 0

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0


def test_endless_chunked_body_is_read_no_further_than_what_is_thrown_away(client: Client) -> None:
    body = _Endless()
    response = client.post(
        "/things",
        headers=_as("op:operator"),
        input_stream=body,
        environ_overrides={"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"},
    )
    assert response.status_code == 413
    assert 1000 < body.taken <= 1001 + DISCARDED_BYTES


def test_chunked_body_in_pieces_arrives_whole(client: Client) -> None:
    class Pieces(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 1, 3))

    response = client.post(
        "/things",
        headers=_as("op:operator"),
        input_stream=Pieces(b'{"name": "in several pieces"}'),
        environ_overrides={"wsgi.input_terminated": True},
    )
    assert response.get_json() == {"name": "in several pieces"}


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "limit=1.5", "limit="])
def test_bad_query_value_is_400_and_names_the_parameter(client: Client, query: str) -> None:
    response = client.get(f"/things/1?{query}", headers=_as("a:player"))
    assert response.status_code == 400
    errors = _problem(response)["errors"]
    assert isinstance(errors, list)
    assert errors[0]["field"] == "limit"


def test_query_has_defaults(client: Client) -> None:
    assert client.get("/things/1", headers=_as("a:player")).get_json()["limit"] == 100


@pytest.mark.parametrize("thing", ["{}", "a:b", "a%0Ab", "x" * 65, "%C3%A9", "..", "a b", ""])
def test_hostile_id_in_a_path_is_404(client: Client, thing: str) -> None:
    response = client.get(f"/things/{thing}", headers=_as("a:player"))
    assert response.status_code == 404
    _problem(response)


@pytest.mark.parametrize("path", ["/nowhere", "/open/", "/things", "/OPEN"])
def test_unknown_path_is_no_redirect(client: Client, path: str) -> None:
    response = client.get("/", environ_overrides={"PATH_INFO": path})
    assert response.status_code == (405 if path == "/things" else 404)


def test_wrong_method_is_405_with_those_allowed(client: Client) -> None:
    response = client.post("/open")
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, HEAD"
    _problem(response)


def test_head_answers_like_get_without_a_body(client: Client) -> None:
    response = client.head("/open")
    assert response.status_code == 200
    assert response.data == b""
    assert response.headers["Content-Length"] == client.get("/open").headers["Content-Length"]


def test_answer_without_a_body_has_no_type(client: Client) -> None:
    response = client.get("/empty")
    assert response.status_code == 304
    assert "Content-Type" not in response.headers


@pytest.mark.parametrize(
    ("path", "status"),
    [("unknown", 404), ("forbidden", 403), ("refused", 422), ("conflict", 409), ("away", 503)],
)
def test_error_of_ours_becomes_its_problem(client: Client, path: str, status: int) -> None:
    response = client.get(f"/fails/{path}")
    assert response.status_code == status
    _problem(response)


def test_dependency_away_says_when_to_try_again_and_not_which(client: Client) -> None:
    response = client.get("/fails/away")
    assert response.headers["Retry-After"] == "1"
    assert "10.0.0.1" not in response.text


@pytest.mark.parametrize("path", ["bug", "behind"])
def test_bug_is_500_without_its_detail(client: Client, path: str) -> None:
    response = client.get(f"/fails/{path}")
    assert response.status_code == 500
    assert _problem(response)["detail"] == "This is our fault, and it was logged."
    assert "secret" not in response.text


def test_headers_match_in_any_case(client: Client) -> None:
    told = client.get("/headers", headers={"X-Thing": "1"}).get_json()
    assert told["same"] == "1"
    assert "X-Thing" in told["all"]
    assert told["n"] == len(told["all"])


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        (None, "127.0.0.1"),
        ("203.0.113.9", "203.0.113.9"),
        ("6.6.6.6, 203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, ", "127.0.0.1"),
    ],
)
def test_only_the_gateways_own_address_is_believed(
    client: Client, forwarded: str | None, address: str
) -> None:
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    peer = {"REMOTE_ADDR": "127.0.0.1"}
    response = client.get("/open", headers=headers, environ_overrides=peer)
    assert response.get_json()["at"] == address


def test_page_of_a_known_origin_may_call(client: Client) -> None:
    response = client.get("/open", headers={"Origin": ORIGIN})
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "ETag" in response.headers["Access-Control-Expose-Headers"]
    assert response.headers["Vary"] == "Origin"


def test_page_of_another_origin_may_not_read(client: Client) -> None:
    for method in (client.get, client.options):
        headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
        response = method("/open", headers=headers)
        assert not [name for name, _ in response.headers if name.startswith("Access-Control")]
        assert response.headers["Vary"] == "Origin"


def test_preflight_wants_no_token(client: Client) -> None:
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    response = client.options("/things", headers=headers)
    assert response.status_code == 204
    assert "authorization" in response.headers["Access-Control-Allow-Headers"]
    assert "POST" in response.headers["Access-Control-Allow-Methods"]


def test_problem_can_be_read_across_origins(client: Client) -> None:
    response = client.get("/things/1", headers={"Origin": ORIGIN})
    assert response.status_code == 401
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN


def test_health_and_metrics_are_open(client: Client) -> None:
    assert client.get("/healthz").get_json() == {"status": "alive"}
    assert client.get("/readyz").get_json() == {"ready": True, "dependencies": {}}
    metrics = client.get("/metrics")
    assert metrics.content_type.startswith("text/plain")
    assert "leaderboard_request_seconds" in metrics.text


def test_not_ready_names_the_dependency_and_the_reason_and_no_secret() -> None:
    def away() -> None:
        raise TransientError("Redis: no way to redis://me:secret@10.0.0.1:6379\nsecret")

    def broken() -> None:
        raise ValueError("secret")

    app = HttpApp("host", [], ready={"redis": away, "keys": lambda: None, "code": broken})
    response = _client(app).get("/readyz")
    assert response.status_code == 503
    assert response.get_json() == {
        "ready": False,
        "dependencies": {
            "redis": "Redis: no way to redis://10.0.0.1:6379",
            "keys": "ready",
            "code": "ValueError",
        },
    }


@pytest.mark.parametrize("header", ["X-Forwarded-For", "x-forwarded-for", "Forwarded"])
def test_the_world_is_not_told_where_our_stores_are(header: str) -> None:
    """Whoever comes through a proxy; inside everything is told, and everywhere of a function that
    the world does not reach."""

    def away() -> None:
        raise TransientError("Redis: no way to redis://10.0.0.1:6379")

    stores = {"redis": away, "keys": lambda: None}
    public = _client(HttpApp("host", ROUTES, ready=stores, is_public=True))
    private = _client(HttpApp("host", ROUTES, ready=stores))
    outside = {header: "203.0.113.7"}
    told = public.get("/readyz", headers=outside)
    assert told.status_code == 503
    assert told.get_json() == {
        "ready": False,
        "dependencies": {"redis": "not ready", "keys": "ready"},
    }
    hidden = public.get("/metrics", headers=outside)
    assert _problem(hidden)["status"] == 404
    assert "leaderboard_" not in hidden.text
    for client, headers in ((public, {}), (private, outside)):
        assert "10.0.0.1" in client.get("/readyz", headers=headers).text
        assert "leaderboard_request_seconds" in client.get("/metrics", headers=headers).text


def test_what_is_away_is_logged_once_a_change(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[Exception] = [TransientError("away"), TransientError("still"), NotLetInError("no")]
    given = iter([*errors, None, TransientError("again")])

    def check() -> None:
        error = next(given)
        if error is not None:
            raise error

    readiness = Readiness("host", {"redis": check})
    with caplog.at_level("INFO", "leaderboard.hosts.readiness"):
        told = [readiness.look()[0] for _ in range(5)]
    assert told == [False, False, False, True, False]
    said = [(one.getMessage(), getattr(one, "fields", {}).get("reason")) for one in caplog.records]
    assert said == [
        ("redis is not ready", "away"),
        ("redis is not ready", "no"),
        ("redis answers again", None),
        ("redis is not ready", "again"),
    ]


class Store:
    """One that raises what it is told to, and a process that needs it."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked = 0
        self.now = 0.0
        self.goes_on = threading.Event()
        self.goes_on.set()
        needs = Needs({"kafka": lambda: None}, {"database": self.ask})
        self.readiness = Readiness("host", needs, lambda: self.now)

    def ask(self) -> None:
        self.asked += 1
        self.goes_on.wait(10)
        if self.error is not None:
            raise self.error

    def seen(self) -> tuple[bool, dict[str, str]]:
        """What a look says after the store was asked."""
        self.readiness.look()
        self._settle()
        told = self.readiness.look()
        self._settle()
        return told

    def _settle(self) -> None:
        for one in threading.enumerate():
            if one.name == "stores":
                one.join(10)


def test_store_that_refuses_us_at_the_start_keeps_us_unready_until_it_lets_us_in() -> None:
    store = Store()
    store.error = TransientError("away")
    assert store.seen() == (True, {"kafka": "ready"})
    store.error = NotLetInError("the database does not let us in")
    unready = (False, {"kafka": "ready", "database": "the database does not let us in"})
    assert store.seen() == unready
    store.now = START_SECONDS + 1
    assert store.seen() == unready
    store.error = TransientError("away: that lets nobody in")
    assert store.seen() == unready
    store.error = None
    assert store.seen() == (True, {"kafka": "ready"})
    store.error, count = NotLetInError("a password that was changed later"), store.asked
    assert store.seen() == (True, {"kafka": "ready"})
    assert store.asked == count, "who has let us in once is not asked again"


def test_nobody_is_ready_before_a_store_could_refuse_us() -> None:
    store = Store()
    store.error = NotLetInError("a wrong Secret")
    store.goes_on.clear()
    threading.Timer(0.1, store.goes_on.set).start()
    assert store.readiness.look() == (False, {"kafka": "ready", "database": "a wrong Secret"})


def test_store_that_hangs_keeps_nobody_unready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaderboard.hosts.readiness.FIRST_SECONDS", 0.01)
    store = Store()
    store.goes_on.clear()
    assert store.readiness.look() == (True, {"kafka": "ready"})
    store.goes_on.set()


def test_store_that_comes_back_and_refuses_all_replicas_is_told_and_stops_none() -> None:
    store = Store()
    store.error = TransientError("away")
    assert store.seen() == (True, {"kafka": "ready"})
    store.now = START_SECONDS + 1
    store.error = NotLetInError('database "leaderboard" does not exist')
    told = {"kafka": "ready", "database": 'database "leaderboard" does not exist'}
    assert store.seen() == (True, told)
    store.error = None
    assert store.seen() == (True, {"kafka": "ready"})


def test_probes_of_what_hangs_take_one_answer_and_do_not_pile_up() -> None:
    came = threading.Semaphore(0)
    goes_on = threading.Event()
    asked: list[int] = []

    def hangs() -> None:
        asked.append(1)
        goes_on.wait(10)
        raise TransientError("away")

    def clock() -> float:
        now = time.monotonic()
        came.release()
        return now

    readiness = Readiness("host", {"redis": hangs}, clock)
    told: list[bool] = []
    probes = [threading.Thread(target=lambda: told.append(readiness.look()[0])) for _ in range(8)]
    for one in probes:
        one.start()
    for _ in range(len(probes) + 1):  # each when it came, and the start once
        assert came.acquire(timeout=10)
    goes_on.set()
    for one in probes:
        one.join(10)
    assert told == [False] * len(probes)
    assert len(asked) == 1


def test_who_is_ready_prepares_for_callers_with_tokens_once() -> None:
    made: list[int] = []
    away = [True]
    asked = threading.Event()

    def check() -> None:
        if away[0]:
            raise TransientError("away")

    def tokens() -> KnownTokens:
        made.append(1)
        asked.set()
        return KnownTokens()

    client = _client(HttpApp("host", ROUTES, tokens=tokens, ready={"redis": check}))
    assert client.get("/readyz").status_code == 503
    assert not made
    away[0] = False
    assert client.get("/readyz").status_code == 200
    assert asked.wait(5)
    assert client.get("/readyz").status_code == 200
    assert made == [1]


def test_metrics_name_routes_and_never_ids(client: Client) -> None:
    client.get("/things/very-private-id", headers=_as("a:player"))
    metrics = client.get("/metrics").text
    assert 'route="/things/<thing_id>"' in metrics
    assert "very-private-id" not in metrics


def test_openapi_document_is_valid_and_says_who_may_what(client: Client) -> None:
    told = client.get("/openapi.json").get_json()
    OpenAPIV31SpecValidator(told).validate()
    one = told["paths"]["/things/{thing_id}"]["get"]
    assert [(p["in"], p["name"], p["required"]) for p in one["parameters"]] == [
        ("path", "thing_id", True),
        ("query", "limit", False),
        ("query", "state", False),
    ]
    assert one["security"] == [{"bearer": []}]
    assert {"200", "400", "401", "403", "404"} <= one["responses"].keys()
    made = told["paths"]["/things"]["post"]
    assert {"201", "400", "413", "422"} <= made["responses"].keys()
    assert made["x-roles"] == sorted(STAFF)
    assert told["paths"]["/open"]["get"]["security"] == []
    assert told["paths"]["/headers"]["get"]["parameters"][0]["in"] == "header"
    assert "/bytes" not in told["paths"]
    assert "/files/{file}" in told["paths"]
    assert not re.search(r'"#/\$defs', json.dumps(told))


@pytest.mark.parametrize("is_served", [True, False])
def test_a_served_process_settles_when_it_has_what_it_keeps_and_a_test_never(
    monkeypatch: pytest.MonkeyPatch, is_served: bool
) -> None:
    answered: list[int] = []
    settled: list[int] = []
    monkeypatch.setattr(http, "settle", lambda: settled.append(len(answered) + 1))
    client = _client(HttpApp("host", ROUTES))
    given = {"gunicorn.socket": object()} if is_served else {}
    for _ in range(1_100):
        answered.append(client.get("/open", environ_overrides=given).status_code)
    assert set(answered) == {200}
    assert settled == ([20, 1_000] if is_served else [])


# --- the way from the framework's server -------------------------------------------------------

ANYTHING = [("GET", "/open"), ("GET", "/favicon.ico"), ("GET", "//open"), ("TRACE", "/open")]


def test_while_the_framework_imports_a_function_requests_are_led_to_its_entry() -> None:
    framework = Flask("framework")
    asked: list[str] = []
    app = HttpApp("host", ROUTES)

    def entry(request: Request) -> Response:
        assert not has_request_context(), "nothing of Flask's is made for it"
        asked.append(request.path)
        return app(request)

    with framework.app_context():
        assert served(entry) is entry
    client = Client(framework)
    answers = [client.open(path, method=method) for method, path in ANYTHING]
    assert [one.status_code for one in answers] == [200, 404, 404, 405]
    assert all(_problem(one) for one in answers[1:])
    assert len(asked) == len(ANYTHING)


def test_entry_that_the_framework_does_not_import_stays_what_it_is() -> None:
    framework = Flask("framework")
    before = framework.wsgi_app
    app = HttpApp("host", ROUTES)
    assert served(app) is app
    assert framework.wsgi_app == before


# --- how often somebody may ask ----------------------------------------------------------------


class Countdown:
    """`callers.Door` of one quota for everybody; what it is asked, in order."""

    def __init__(self, most: int) -> None:
        self.left = most
        self.asked: list[str] = []
        self.is_away = False

    def meet(self, address: str) -> None:
        self.asked.append(f"meet {address}")
        self._take("strangers", 0)

    def proved_nothing(self, address: str) -> None:
        self.asked.append(f"proved nothing {address}")
        self._take("strangers", 1)

    def begin(self, limit: Limit, subject: str) -> Countdown:
        self.asked.append(f"begin {subject}")
        if self.is_away:
            raise TransientError("nobody can count")
        return self

    def settle(self) -> dict[str, str]:
        self.asked.append("settle")
        self._take("requests", 1)
        return {"RateLimit": f'"requests";r={self.left};t=60'}

    def _take(self, quota: str, number: int) -> None:
        if self.left < max(number, 1):
            raise TooManyError(quota, 7, {"RateLimit": f'"{quota}";r=0;t=7'})
        self.left -= number


class KnowsAlice(KnownTokens):
    """Has checked her token before."""

    def known(self, token: str) -> Caller | None:
        return self.verify(token) if token.startswith("alice") else None


def _limited(door: Countdown, handled: list[str], *, meanwhile: bool = True) -> Client:
    def handler(call: Call) -> Answer:
        handled.append(call.authenticated().subject)
        door.asked.append("handle")
        if call.path.get("thing_id") == "none":
            raise NotFoundError("no such thing")
        return Answer({}, headers={"ETag": '"1"'})

    limit = Limit(Quota("requests", 1), "open", meanwhile=meanwhile)
    refused = handled.append
    routes = [
        Route(
            "GET",
            "/things/<thing_id>",
            "One.",
            handler,
            ANY_ROLE,
            query=Page,
            limit=limit,
            refused=lambda call, error: refused(f"refused {call.caller and call.caller.subject}"),
        ),
        Route("GET", "/free", "F.", lambda call: Answer({}), ANY_ROLE),
    ]
    return _client(HttpApp("host", routes, tokens=KnowsAlice, door=door))


def _too_many(response: TestResponse) -> None:
    assert response.status_code == 429
    assert response.content_type == "application/problem+json"
    assert response.headers["Retry-After"] == "7"
    assert "r=0" in response.headers["RateLimit"]


def test_reads_are_counted_while_they_are_handled() -> None:
    door, handled = Countdown(1), list[str]()
    client = _limited(door, handled)
    answer = client.get("/things/a", headers=_as("alice:player"))
    assert (answer.status_code, answer.headers["RateLimit"]) == (200, '"requests";r=0;t=60')
    assert answer.headers["ETag"] == '"1"'
    assert door.asked == ["begin alice", "handle", "settle"]
    before = REGISTRY.get_sample_value("leaderboard_turned_away_total", TURNED_AWAY) or 0.0
    _too_many(client.get("/things/a", headers=_as("alice:player")))
    after = REGISTRY.get_sample_value("leaderboard_turned_away_total", TURNED_AWAY)
    assert after == before + 1


TURNED_AWAY = {"function": "host", "route": "/things/<thing_id>", "reason": "requests"}


def test_what_has_an_effect_is_counted_before() -> None:
    door, handled = Countdown(1), list[str]()
    client = _limited(door, handled, meanwhile=False)
    answer = client.get("/things/a", headers=_as("alice:player"))
    assert answer.headers["RateLimit"] == '"requests";r=0;t=60'
    assert door.asked == ["begin alice", "settle", "handle"]
    _too_many(client.get("/things/a", headers=_as("alice:player")))
    assert handled == ["alice", "refused alice"]


@pytest.mark.parametrize("path", ["/things/none", "/things/a?limit=x"])
def test_requests_that_fail_count_too(path: str) -> None:
    door = Countdown(1)
    client = _limited(door, [])
    assert client.get(path, headers=_as("alice:player")).status_code in (400, 404)
    _too_many(client.get(path, headers=_as("alice:player")))


@pytest.mark.parametrize("role", ["operator", "auditor", "service", "player,service"])
def test_staff_and_services_are_not_counted(role: str) -> None:
    door = Countdown(0)
    for _ in range(3):
        answer = _limited(door, []).get("/things/a", headers=_as(f"alice:{role}"))
        assert answer.status_code == 200
    assert door.asked == ["handle"] * 3


def test_routes_without_a_limit_are_not_counted() -> None:
    door = Countdown(0)
    assert _limited(door, []).get("/free", headers=_as("alice:player")).status_code == 200
    assert door.asked == []


def test_closed_route_is_503_while_nobody_can_count() -> None:
    door = Countdown(5)
    door.is_away = True
    handled: list[str] = []
    answer = _limited(door, handled).get("/things/a", headers=_as("alice:player"))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert handled == ["refused alice"]


def test_strangers_are_met_before_their_token_is_looked_at() -> None:
    door = Countdown(2)
    client = _limited(door, [])
    at = {"environ_overrides": {"REMOTE_ADDR": "192.0.2.1"}}
    assert client.get("/free", headers=_as("nonsense"), **at).status_code == 401
    assert client.get("/free", **at).status_code == 401
    told = ["meet 192.0.2.1", "proved nothing 192.0.2.1", "proved nothing 192.0.2.1"]
    assert door.asked == told
    # Now also a sound token gets no answer, unless it was known before.
    _too_many(client.get("/free", headers=_as("bob:player"), **at))
    assert client.get("/free", headers=_as("alice:player"), **at).status_code == 200


def test_first_address_is_believed_where_a_gateway_overwrites_the_header() -> None:
    app = HttpApp("host", ROUTES, tokens=KnownTokens, client_address="first")
    for header, address in (
        ("203.0.113.9, 10.0.0.1, 10.0.0.2", "203.0.113.9"),
        ("203.0.113.9", "203.0.113.9"),
        (" , 10.0.0.1", "127.0.0.1"),
    ):
        headers = {"X-Forwarded-For": header}
        peer = {"REMOTE_ADDR": "127.0.0.1"}
        told = _client(app).get("/open", headers=headers, environ_overrides=peer)
        assert told.get_json()["at"] == address


def test_limit_is_in_the_description() -> None:
    limit = Limit(Quota("requests", 1), "open")
    limited = Route("GET", "/limited", "L.", _told, ANY_ROLE, limit=limit)
    told = HttpApp("host", [limited, *ROUTES], tokens=KnownTokens).openapi()
    OpenAPIV31SpecValidator(told).validate()
    assert "429" in told["paths"]["/limited"]["get"]["responses"]
    assert "429" not in told["paths"]["/things"]["post"]["responses"]
