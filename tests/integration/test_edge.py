"""The gateway as the edge of the platform: what it lets through, what it refuses, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from certificates import make_certificates
from leaderboard.adapters.nchan_gateway import NchanGateway
from leaderboard.ports import Frame
from leaderboard.stack.nginx import Limits, NginxServer
from leaderboard.stack.process import LOOPBACK
from running import wait_for
from sockets import Players

ROOT = Path(__file__).parents[2]
TLS: Final = ROOT / "platform/gateway/base/tls.conf"
TIGHT: Final = Limits(
    sockets=4, sockets_of_client=3, opening_a_second=1, opening_burst=9,
    asking_a_second=1, asking_burst=5,
)  # fmt: skip
Asked = tuple[str, str, dict[str, str]]


class Functions:
    """Stands where `on-connect` and `query` stand: takes every ticket, answers all with 200."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        functions = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                self.rfile.read(int(headers.get("content-length", "0")))
                functions.asked.append((self.command, self.path, headers))
                self.send_response(200)
                if self.path == "/internal/authorize":
                    number = len(functions.asked)
                    self.send_header("X-Accel-Redirect", "/subscribe")
                    self.send_header("X-Channels", f"top.t1,conn.c{number}")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        for method in (*METHODS, "HEAD"):
            setattr(Handler, f"do_{method}", Handler.answer)
        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://{LOOPBACK}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def functions() -> Iterator[Functions]:
    made = Functions()
    yield made
    made.stop()


def edge(functions: Functions, folder: Path, **more: Any) -> NginxServer:
    url = f"{functions.url}/internal/authorize"
    return NginxServer(folder, authorize_url=url, query_url=functions.url, **more)


@pytest.fixture(scope="module")
def wide(functions: Functions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NginxServer]:
    """With a laptop's limits: none that a test meets."""
    server = edge(functions, tmp_path_factory.mktemp("wide"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def tight(functions: Functions, tmp_path: Path) -> Iterator[NginxServer]:
    server = edge(functions, tmp_path / "tight", limits=TIGHT)
    server.start()
    yield server
    server.stop()


def ask(
    server: NginxServer, method: str, path: str, body: bytes | None = None, /, **headers: str
) -> HTTPResponse:
    connection = HTTPConnection(LOOPBACK, server.public_port, timeout=10)
    try:
        connection.request(method, path, body, {n.replace("_", "-"): v for n, v in headers.items()})
        answer = connection.getresponse()
        answer.read()
        return answer
    finally:
        connection.close()


UPGRADE: Final = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip
PRIVATE: Final = ("/healthz", "/readyz", "/openapi.json", "/metrics", "/internal/authorize")
METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def routes() -> list[tuple[str, set[str]]]:
    """Every public route of the two functions, by their own OpenAPI, with its methods; and the
    page's, which is no part of that."""
    found: list[tuple[str, set[str]]] = [("/", {"GET"}), ("/page/page.js", {"GET"})]
    for name in ("query", "on-connect"):
        document = json.loads((ROOT / f"docs/api/openapi-{name}.json").read_text("utf-8"))
        for path, operations in document["paths"].items():
            if path not in PRIVATE:
                filled = path.format(tournament_id="t-1_A", player_id="p" * 64)
                methods = {method.upper() for method in operations}
                found.append((filled, methods | ({"OPTIONS"} if "/v1/" in path else set())))
    return found


@pytest.mark.parametrize(("path", "methods"), routes(), ids=[path[:60] for path, _ in routes()])
def test_public_routes_are_let_through_with_their_methods(
    path: str, methods: set[str], wide: NginxServer, functions: Functions
) -> None:
    for method in METHODS:
        functions.asked.clear()
        answer = ask(wide, method, f"{path}?limit=3", X_Forwarded_For="203.0.113.9", X_Ticket="t")
        if method in methods:
            assert answer.status == 200
            ((asked, where, headers),) = functions.asked
            assert (asked, where) == (method, f"{path}?limit=3")
            assert headers["x-forwarded-for"] == LOOPBACK
            assert "x-ticket" not in headers
        else:
            assert (answer.status, functions.asked) == (405, [])


@pytest.mark.parametrize(
    "path",
    [
        *PRIVATE, "/subscribe", "/pub/top.t1", "/status", "/connections", "/page/", "/page/a.lua",
        "/page/../internal/authorize", "/v1/tournaments/", "/v1//tournaments",
        "/v1/tournaments/t1/connections/", "/v1/tournaments/t1%2F..%2Fx/connections",
        "/v1/tournaments/x/../t1/connections", "/v1/tournaments/t%31/connections",
        "/v1/tournaments/" + "t" * 65, "/v1/tournaments/t.1/standings", "/v1/erasures",
        "/v1/tournaments/t1/end", "/v1/tournaments/t1/players/p1/other", "/%2e%2e/etc/passwd",
    ],
)  # fmt: skip
def test_everything_else_is_refused(path: str, wide: NginxServer, functions: Functions) -> None:
    functions.asked.clear()
    for method in ("GET", "POST"):
        assert ask(wide, method, path).status in (400, 404)
    assert functions.asked == []


def test_bodies_and_headers_have_their_size(wide: NginxServer, functions: Functions) -> None:
    functions.asked.clear()
    way = "/v1/tournaments/t1/connections"
    assert ask(wide, "POST", way, b"x" * 1025).status == 413
    assert ask(wide, "GET", "/v1/tournaments", b"x" * 2).status == 413
    assert ask(wide, "POST", way, Authorization="x" * 9000).status == 400
    assert ask(wide, "GET", "/v1/tournaments?" + "x" * 9000).status == 414
    assert functions.asked == []
    assert ask(wide, "POST", way, b"x" * 1000, Authorization="x" * 4000).status == 200


WAY: Final = "/v1/tournaments/t1/connections"
NO_REQUESTS: Final[dict[str, tuple[bytes, int]]] = {
    "no HTTP": (b"hello\r\n\r\n", 400),
    "no host": (b"GET /v1/tournaments HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "a header that is too large": (
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 400
    ),
    "that, and an odd path": (
        b"GET /v1//a%20b HTTP/1.1\r\nHost: x\r\nX: " + b"<script>" * 1200 + b"\r\n\r\n", 400
    ),
    "two lengths": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400
    ),
    "a path above all": (b"GET /%2e%2e/etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "an odd path": (b"GET /v1//tournaments/t%31 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "the problem's own path": (b"GET /problem HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "that, spelled otherwise": (b"GET /%70roblem HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "the sockets' own path": (b"GET /subscribe HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "a script": (b"GET /<script>alert(1)</script> HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "a trace": (b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    "a tunnel": (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "another method": (b"DELETE /v1/tournaments HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    "a body that is too large": (
        f"POST {WAY} HTTP/1.1\r\nHost: x\r\nContent-Length: 1025\r\n\r\n".encode()
        + b"x" * 1025, 413
    ),
    "that, in chunks": (
        f"POST {WAY} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n500\r\n".encode()
        + b"x" * 0x500 + b"\r\n0\r\n\r\n", 413
    ),
    "chunks that are none, to no path": (
        b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400
    ),
    "those, by another method": (
        b"POST /connect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400
    ),
    "a line that is too long": (b"GET /?" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "no WebSocket": (b"GET /connect?ticket=secret HTTP/1.1\r\nHost: x\r\n\r\n", 426),
    "no key of one": (
        b"GET /connect?ticket=secret HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
        b"Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n", 426
    ),
    "no connection that changes": (
        b"GET /connect?ticket=secret HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", 426
    ),
    "one of another version": (
        b"GET /connect?ticket=secret HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 8\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", 426
    ),
    "one of HTTP/1.0": (
        b"GET /connect?ticket=secret HTTP/1.0\r\nHost: x\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", 426
    ),
    "another coding": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    "another version": (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505),
}  # fmt: skip


def said_to(server: NginxServer, raw: bytes) -> tuple[HTTPResponse, bytes]:
    """What comes back to these very bytes."""
    with socket.create_connection((LOOPBACK, server.public_port), timeout=10) as one:
        one.sendall(raw)
        answer = HTTPResponse(one)
        answer.begin()
        return answer, answer.read()


def check_problem(answer: HTTPResponse, body: bytes, status: int) -> None:
    assert (answer.status, answer.getheader("Content-Type")) == (status, "application/problem+json")
    told = json.loads(body)
    assert told.keys() == {"type", "title", "status", "detail"}
    assert (told["type"], told["status"]) == ("about:blank", status)
    assert told["title"] != "Error", "every status has its name"
    assert answer.headers.get_all("Cache-Control") == ["no-store"]
    assert answer.headers.get_all("X-Content-Type-Options") == ["nosniff"]


@pytest.mark.parametrize("name", NO_REQUESTS)
def test_what_the_gateway_answers_by_itself_is_a_problem(
    name: str, wide: NginxServer, functions: Functions
) -> None:
    functions.asked.clear()
    raw, status = NO_REQUESTS[name]
    answer, body = said_to(wide, raw)
    check_problem(answer, body, status)
    for piece in (b"<", b"script", b"passwd", b"secret", b"nginx"):
        assert piece not in body
    assert functions.asked == []
    allowed = "GET, HEAD, OPTIONS" if name == "another method" else None
    assert answer.getheader("Allow") == allowed


def test_problem_of_the_gateway_answers_head_without_a_body(wide: NginxServer) -> None:
    connection = HTTPConnection(LOOPBACK, wide.public_port, timeout=10)
    try:
        for _ in range(2):  # on the same connection: nothing is left over
            connection.request("HEAD", "/nowhere")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (404, b"")
            assert answer.getheader("Content-Type") == "application/problem+json"
    finally:
        connection.close()


def test_what_a_function_answers_goes_through_as_it_is(
    wide: NginxServer, functions: Functions
) -> None:
    answer = ask(wide, "GET", "/v1/tournaments")
    assert answer.status == 200
    for name in ("Retry-After", "Allow", "Cache-Control", "Access-Control-Allow-Origin"):
        assert answer.getheader(name) is None


def test_functions_that_are_away_are_a_problem(tmp_path: Path) -> None:
    server = NginxServer(tmp_path / "alone", authorize_url="http://127.0.0.1:1/internal/authorize")
    server.start()
    try:
        for method, path in (("GET", "/v1/tournaments"), ("POST", WAY), ("GET", "/")):
            raw = f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            answer, body = said_to(server, raw)
            check_problem(answer, body, 503)
            assert answer.getheader("Retry-After") == "5"
            assert answer.getheader("Access-Control-Allow-Origin") == "*"
    finally:
        server.stop()


def test_storm_of_one_address_is_told_to_slow_down(tight: NginxServer) -> None:
    for path, burst in (("/v1/tournaments", TIGHT.asking_burst), ("/", TIGHT.asking_burst)):
        answers = [ask(tight, "GET", path) for _ in range(burst * 2)]
        statuses = [answer.status for answer in answers]
        # The second path finds what the first has left of the same budget.
        assert statuses.count(429) >= burst - 1
        assert set(statuses) <= {200, 429}
        assert answers[-1].getheader("Retry-After") == "1"
        slowed, body = said_to(tight, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        check_problem(slowed, body, 429)
        assert slowed.getheader("Access-Control-Allow-Origin") == "*"
    ways = [ask(tight, "POST", "/v1/tournaments/t1/connections") for _ in range(15)]
    assert [way.status for way in ways].count(429) >= 15 - TIGHT.opening_burst - 2
    assert ask(tight, "GET", "/connect?ticket=t", None, **UPGRADE).status == 429


def test_pod_and_address_have_so_many_sockets(
    functions: Functions, players: Players, tmp_path: Path
) -> None:
    for limits in (Limits(2, 9, 999, 999, 9, 9), Limits(9, 2, 999, 999, 9, 9)):
        server = edge(functions, tmp_path / f"{limits.sockets}", limits=limits)
        server.start()
        try:
            opened = [players.connect(f"{server.client_url}?ticket=t") for _ in range(2)]
            assert all(one.is_open() for one in opened)
            assert connections(server) == 3  # and the one that asks
            functions.asked.clear()
            answer = ask(server, "GET", "/connect?ticket=t", None, **UPGRADE)
            assert (answer.status, answer.getheader("Retry-After")) == (503, "5")
            assert functions.asked == [], "a ticket that can't be used is not used up"
            opened[0].close()
            wait_for(partial(has, server, 2), 5)
            assert players.connect(f"{server.client_url}?ticket=t").is_open()
        finally:
            server.stop()


def has(server: NginxServer, count: int) -> bool:
    return connections(server) == count


def connections(server: NginxServer) -> int:
    """What KEDA is told of this pod."""
    connection = HTTPConnection(LOOPBACK, server.publish_port, timeout=5)
    try:
        connection.request("GET", "/connections")
        return int(json.loads(connection.getresponse().read())["connections"])
    finally:
        connection.close()


def test_players_come_over_tls_13_only(functions: Functions, tmp_path: Path) -> None:
    made = make_certificates(tmp_path / "tls")
    text = TLS.read_text("utf-8").replace("/tls/", f"{tmp_path}/tls/")
    server = edge(functions, tmp_path / "edge", tls=text)
    server.start()
    try:
        context = ssl.create_default_context(cafile=str(made.authority))
        place = (LOOPBACK, server.public_port)
        with (
            socket.create_connection(place, timeout=5) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as secured,
        ):
            assert secured.version() == "TLSv1.3"
            secured.sendall(b"GET /v1/tournaments HTTP/1.0\r\n\r\n")
            answer = secured.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"Strict-Transport-Security: max-age=31536000" in answer
        with (
            socket.create_connection(place, timeout=5) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as secured,
        ):
            secured.sendall(b"GET /nowhere HTTP/1.0\r\n\r\n")
            answer = secured.recv(4096)
        assert b"application/problem+json" in answer
        assert b"Strict-Transport-Security: max-age=31536000" in answer
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(place, timeout=5) as raw,
            pytest.raises(ssl.SSLError, match=r"(?i)version"),
        ):
            context.wrap_socket(raw, server_hostname="localhost")
        check_problem(*said_to(server, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), 400)  # not TLS
    finally:
        server.stop()


def test_gateway_that_is_told_to_quit_lets_go_in_time(
    functions: Functions, players: Players, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGQUIT, as a pod's preStop sends it: nobody new gets in, who is there is let go, it ends."""
    monkeypatch.setattr("leaderboard.stack.nginx.DRAIN_SECONDS", 2)
    server = edge(functions, tmp_path / "edge")
    server.start()
    try:
        player = players.connect(f"{server.client_url}?ticket=t")
        NchanGateway(server.publish_url).publish([Frame("top.t1", b'{"type":"top"}')])
        assert player.next_json(5) == {"type": "top"}
        os.kill(server.pid, signal.SIGQUIT)
        wait_for(lambda: not accepts_players(server), 5)
        began = time.monotonic()
        wait_for(lambda: server.process.exit_code() is not None, 10)
        assert server.process.exit_code() == 0
        assert time.monotonic() - began < 5
        wait_for(lambda: not player.is_open(), 5)
    finally:
        server.stop()


def accepts_players(server: NginxServer) -> bool:
    try:
        return ask(server, "GET", "/v1/tournaments").status == 200
    except OSError:
        return False
