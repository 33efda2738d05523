"""The gateways as real processes, and a decider that stands where on-connect stands.

Azure Web PubSub can't run here: `web_pubsub_service` behaves as its documentation says."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx

from leaderboard.adapters.nchan_pods import NchanPods
from leaderboard.adapters.web_pubsub_events import Connecting, WebPubSubEvents, admission
from leaderboard.adapters.web_pubsub_gateway import WebPubSubGateway
from leaderboard.errors import LeaderboardError
from leaderboard.model import PlayerId, TournamentId
from leaderboard.ports import Grant
from leaderboard.settings import PlayersGatewaySettings, load
from leaderboard.stack.nginx import NginxServer
from leaderboard.stack.process import LOOPBACK, Process, accepts, free_port
from leaderboard.wiring import gateway_of, way_in_of

NCHAN = "nginx + Nchan"
DEVELOPMENT = "development gateway"
WEB_PUBSUB = "Azure Web PubSub's double"
WITH_NCHAN_S_SURFACE = (NCHAN, DEVELOPMENT)
KINDS = (*WITH_NCHAN_S_SURFACE, WEB_PUBSUB)
HUB = "leaderboard"
KEYS = ("first-key-of-the-service-0123456789abcdef", "second-key-of-the-service-0123456789abcde")


class Decider:
    """Answers `GET /internal/authorize`, and Web PubSub's `connect` by POST, by the tickets it was
    told; remembers what it was asked."""

    def __init__(self) -> None:
        self.grants: dict[str, str] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        decider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                decider.asked.append((self.path, headers))
                channels = decider.grants.pop(headers.get("x-ticket", ""), None)
                self.send_response(403 if channels is None else 200)
                if channels is not None:
                    self.send_header("X-Accel-Redirect", "/subscribe")
                    self.send_header("X-Channels", channels)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_OPTIONS(self) -> None:
                self._answer(200, self._events().allowed_origin(dict(self.headers.items())), b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    event = self._events().read(dict(self.headers.items()), body)
                except LeaderboardError:
                    return self._answer(401, {}, b"")
                if not isinstance(event, Connecting):
                    is_told = "sys" in self.headers["ce-type"]
                    return self._answer(204 if is_told else 403, {}, b"")
                channels = decider.grants.pop(event.ticket, None)
                if channels is None:
                    return self._answer(403, {}, b"")
                grant = Grant(TournamentId("t"), PlayerId("p"), "c", 0)
                told, headers = admission(grant, channels.split(","))
                return self._answer(200, headers, json.dumps(told).encode())

            def _events(self) -> WebPubSubEvents:
                return WebPubSubEvents(self.headers["WebHook-Request-Origin"], HUB, KEYS[1:])

            def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self.url = f"http://{LOOPBACK}:{self._server.server_port}/internal/authorize"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class RunningGateway(Protocol):
    """What every gateway offers the tests."""

    process: Process

    @property
    def publish_url(self) -> str: ...
    @property
    def client_url(self) -> str: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...


class DevelopmentServer:
    """`python -m leaderboard.stack.gateway` as a child process."""

    def __init__(self, folder: Path, authorize_url: str, socket_seconds: int = 960) -> None:
        self.publish_port, self.public_port = free_port(), free_port()
        environ = {
            **os.environ,
            "GATEWAY_PORT": str(self.public_port),
            "GATEWAY_PUBLISH_PORT": str(self.publish_port),
            "AUTHORIZE_URL": authorize_url,
            "GATEWAY_SOCKET_SECONDS": str(socket_seconds),
        }
        argv = [sys.executable, "-m", "leaderboard.stack.gateway"]
        self.process = Process("gateway", argv, log_path=folder / "gateway.log", environ=environ)

    @property
    def publish_url(self) -> str:
        return f"http://{LOOPBACK}:{self.publish_port}"

    @property
    def client_url(self) -> str:
        return f"ws://{LOOPBACK}:{self.public_port}/connect"

    def start(self) -> None:
        self.process.start()
        ports = (self.publish_port, self.public_port)
        self.process.wait_until(lambda: all(accepts(port) for port in ports), 20)

    def stop(self) -> None:
        self.process.stop()

    def kill(self) -> None:
        self.process.kill()


class ServiceServer:
    """`python -m web_pubsub_service` as a child process."""

    def __init__(self, folder: Path, upstream: str) -> None:
        self.port = free_port()
        environ = {
            **os.environ,
            "PORT": str(self.port),
            "HUB": HUB,
            "KEYS": ",".join(KEYS),
            "UPSTREAM": upstream,
            "PYTHONPATH": str(Path(__file__).parent),
        }
        argv = [sys.executable, "-m", "web_pubsub_service"]
        self.process = Process("service", argv, log_path=folder / "service.log", environ=environ)

    @property
    def publish_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def client_url(self) -> str:
        return f"ws://{LOOPBACK}:{self.port}/client/hubs/{HUB}"

    def start(self) -> None:
        self.process.start()
        self.process.wait_until(lambda: accepts(self.port), 20)

    def stop(self) -> None:
        self.process.stop()

    def kill(self) -> None:
        self.process.kill()

    def answer_instead(self, *answers: tuple[int, dict[str, str]]) -> None:
        """Give these to the next requests that are believed; forget what was asked."""
        told = [{"status": status, "headers": headers} for status, headers in answers]
        httpx.post(f"{self.publish_url}/control", json=told).raise_for_status()

    def asked(self) -> list[dict[str, Any]]:
        """What the data plane was asked since: `method`, `url`, `at`."""
        found: list[dict[str, Any]] = httpx.get(f"{self.publish_url}/control").json()
        return found


def make(kind: str, folder: Path, asks_at: str, socket_seconds: int = 960) -> RunningGateway:
    """A gateway of this kind, not started yet."""
    if kind == NCHAN:
        return NginxServer(folder, authorize_url=asks_at, socket_seconds=socket_seconds)
    if kind == WEB_PUBSUB:
        return ServiceServer(folder, asks_at)
    return DevelopmentServer(folder, asks_at, socket_seconds)


@contextmanager
def running(
    kind: str, folder: Path, asks_at: str, socket_seconds: int = 960
) -> Iterator[RunningGateway]:
    """A gateway of this kind, stopped at the end."""
    gateway = make(kind, folder, asks_at, socket_seconds)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop()


def origin_of(gateway: RunningGateway) -> str:
    """The players' side as an http origin."""
    return f"http://{urlsplit(gateway.client_url).netloc}"


def settings_of(gateway: RunningGateway) -> dict[str, str]:
    """What a function is told of it."""
    settings = {
        "GATEWAY_PUBLISH_URL": gateway.publish_url,
        "GATEWAY_CLIENT_URL": gateway.client_url,
    }
    if not isinstance(gateway, ServiceServer):
        return {**settings, "GATEWAY_KIND": "nchan"}
    keys = {"GATEWAY_ACCESS_KEY": KEYS[0], "GATEWAY_ACCESS_KEY_SECONDARY": KEYS[1]}
    return {**settings, **keys, "GATEWAY_KIND": "web-pubsub", "GATEWAY_HUB": HUB}


def publisher(gateway: RunningGateway) -> NchanPods | WebPubSubGateway:
    """Its adapter, as the functions make it."""
    return gateway_of(load(PlayersGatewaySettings, settings_of(gateway)))()


def way_in(gateway: RunningGateway) -> Callable[[str], str]:
    """Makes the URL that a socket opens with a ticket, as on-connect does."""
    return way_in_of(load(PlayersGatewaySettings, settings_of(gateway)))
