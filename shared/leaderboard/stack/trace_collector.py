"""The stack's own collector of traces: OTLP/HTTP in, a file of OTLP/JSON lines out.

Each line is one export as OpenTelemetry's file exporter writes it (ids in hex). For a laptop: it
keeps everything that is sent, and forgets it with the stack.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from leaderboard.stack.process import LOOPBACK

MAX_BYTES: Final = 16 * 1024 * 1024
PROTOBUF: Final = "application/x-protobuf"
_IDS: Final = frozenset({"traceId", "spanId", "parentSpanId"})


def line_of(body: bytes) -> str:
    """An export as a line of OTLP/JSON. Raises ValueError for what is none."""
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        raise ValueError(f"no export of traces: {error}") from None
    return json.dumps(_with_hex_ids(MessageToDict(request)))


def _with_hex_ids(node: Any) -> Any:
    """Protobuf's JSON has bytes in base64; OTLP's has ids in hex."""
    if isinstance(node, list):
        return [_with_hex_ids(one) for one in node]
    if not isinstance(node, dict):
        return node
    return {
        name: base64.b64decode(value).hex() if name in _IDS else _with_hex_ids(value)
        for name, value in node.items()
    }


class _Handler(BaseHTTPRequestHandler):
    server: Collector
    timeout = 10

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/healthz" else 404)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or -1)
        if self.path != "/v1/traces":
            self._answer(404)
        elif self.headers.get("Content-Type") != PROTOBUF:
            self._answer(415)
        elif not 0 <= length <= MAX_BYTES:
            self._answer(413)
        else:
            body = self.rfile.read(length)
            try:
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                self.server.keep(line_of(body))
            except (ValueError, OSError, EOFError):
                self._answer(400)
            else:
                self._answer(200, ExportTraceServiceResponse().SerializeToString())

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Type", PROTOBUF)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Every export would be a line."""


class Collector(ThreadingHTTPServer):
    """Serves on loopback; `port` 0 is any free one."""

    daemon_threads = True

    def __init__(self, path: Path, port: int) -> None:
        self._path = path
        self._writing = threading.Lock()
        super().__init__((LOOPBACK, port), _Handler)

    def keep(self, line: str) -> None:
        """Append a line, whole."""
        with self._writing, self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def main() -> int:
    """Run until killed: `TRACES_FILE` and `PORT` say where to and on which port."""
    Collector(Path(os.environ["TRACES_FILE"]), int(os.environ["PORT"])).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
