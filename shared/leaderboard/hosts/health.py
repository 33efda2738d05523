"""Health and metrics of a process that is no HTTP server otherwise: three routes in a thread."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from leaderboard import telemetry
from leaderboard.hosts.readiness import Readiness

logger = logging.getLogger(__name__)

FRESH_SECONDS: Final = 0.5
NOT_READY_SECONDS: Final = 0.05
"""That something is not there yet is looked at again soon: a start waits for it."""


class _Server(ThreadingHTTPServer):
    """A probe that does not wait for its answer is no error of ours."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            logger.exception("bug while answering a probe")


class HealthServer:
    """Serves /healthz, /readyz and /metrics until `stop`.

    `alive` answers whether the work goes on. `ready` maps a dependency to a check that raises
    while it is away; checks run in the server's threads, one at a time."""

    def __init__(
        self,
        name: str,
        address: tuple[str, int],
        alive: Callable[[], bool],
        ready: Mapping[str, Callable[[], object]],
    ) -> None:
        self._alive = alive
        self._readiness = Readiness(name, ready)
        self._checking = threading.Lock()
        self._checked = _json(503, {"ready": False, "dependencies": {}})
        self._fresh_until = -1.0
        server = self

        class _Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                status, kind, body = server.answer(self.path.partition("?")[0])
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
                """Probes every few seconds are no news."""

        self._server = _Server(address, _Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="health", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body for a path."""
        if path == "/healthz":
            alive = self._alive()
            return _json(200 if alive else 503, {"status": "alive" if alive else "stuck"})
        if path == "/readyz":
            return self._readyz()
        if path == "/metrics":
            return 200, telemetry.METRICS_TYPE, telemetry.metrics_text()
        return _json(404, {"status": "not found"})

    def _readyz(self) -> tuple[int, str, bytes]:
        with self._checking:
            # Probes that waited here for a slow check take its answer instead of piling up.
            if time.monotonic() < self._fresh_until:
                return self._checked
            ready, state = self._readiness.look()
            body = {"ready": ready, "dependencies": state}
            self._checked = _json(200 if ready else 503, body)
            fresh = FRESH_SECONDS if ready else NOT_READY_SECONDS
            self._fresh_until = time.monotonic() + fresh
            return self._checked


def _json(status: int, body: object) -> tuple[int, str, bytes]:
    return status, "application/json", json.dumps(body).encode()
