"""Both gateways as real processes, and a decider that stands where on-connect stands."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from leaderboard.stack.nginx import NginxServer
from leaderboard.stack.process import LOOPBACK, Process, accepts, free_port

NCHAN = "nginx + Nchan"
DEVELOPMENT = "development gateway"
KINDS = (NCHAN, DEVELOPMENT)


class Decider:
    """Answers `GET /internal/authorize` by the tickets it was told; remembers what it was asked."""

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
    """What both gateways offer the tests."""

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


def make(kind: str, folder: Path, authorize_url: str, socket_seconds: int = 960) -> RunningGateway:
    """A gateway of this kind, not started yet."""
    if kind == NCHAN:
        return NginxServer(folder, authorize_url=authorize_url, socket_seconds=socket_seconds)
    return DevelopmentServer(folder, authorize_url, socket_seconds)


@contextmanager
def running(
    kind: str, folder: Path, authorize_url: str, socket_seconds: int = 960
) -> Iterator[RunningGateway]:
    """A gateway of this kind, stopped at the end."""
    gateway = make(kind, folder, authorize_url, socket_seconds)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop()


def origin_of(gateway: RunningGateway) -> str:
    """The players' side as an http origin."""
    return f"http://{urlsplit(gateway.client_url).netloc}"
