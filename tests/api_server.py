"""A server that treats revisions as Kubernetes' API server does: tokens, labels, pages, versions,
merge patches, and a Status for what it refuses."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

NAMESPACE = "boards"
GROUP = "serving.knative.dev"
_PATH = f"/apis/{GROUP}/v1/namespaces/{NAMESPACE}/revisions"
_SELECTOR = re.compile(r"serving\.knative\.dev/service in \(([a-z0-9,-]+)\)")


class ApiServer:
    """Revisions by name, and what was asked. Only the current `token` is believed.

    `folder` is what the pod's account has mounted: the token there is renewed by `rotate`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = "token-1"
        self.revisions: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.page_size = 500
        self.refusals: dict[str, tuple[int, str]] = {}
        """Method, or method and name, to status and message."""
        self.before_patch: list[Any] = []
        """Called once each, when a patch has arrived and nothing is decided yet."""
        self.before_answer: list[Any] = []
        self._version = 0
        self._lock = threading.RLock()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "namespace").write_text(NAMESPACE)
        (folder / "token").write_text(self.token)
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(*server.answer("GET", self.path, self.headers, b""))

            def do_PATCH(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(*server.answer("PATCH", self.path, self.headers, raw))

            def _answer(self, status: int, body: Mapping[str, Any]) -> None:
                payload = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(
        self, name: str, service: str, annotations: Mapping[str, str], state: str = "active"
    ) -> None:
        """A revision as Knative makes it."""
        labels = {f"{GROUP}/service": service, f"{GROUP}/routingState": state}
        metadata = {"name": name, "labels": labels, "annotations": dict(annotations)}
        with self._lock:
            self.revisions[name] = {"metadata": metadata, "spec": {"timeoutSeconds": 60}}
            self._touch(name)

    def annotations(self, name: str) -> dict[str, str]:
        found: dict[str, str] = self.revisions[name]["metadata"]["annotations"]
        return found

    def edit(self, name: str, annotations: Mapping[str, str]) -> None:
        """Somebody else sets annotations."""
        with self._lock:
            self.annotations(name).update(annotations)
            self._touch(name)

    def rotate(self) -> None:
        """A new token; the old one is believed no more."""
        self.token = f"token-{int(self.token.partition('-')[2]) + 1}"
        (self.folder / "token").write_text(self.token)

    def patches(self) -> list[str]:
        """Names of the revisions that somebody wanted to patch, in order."""
        return [path.rpartition("/")[2] for method, path in self.requests if method == "PATCH"]

    def answer(
        self, method: str, target: str, headers: Message, raw: bytes
    ) -> tuple[int, Mapping[str, Any]]:
        parts = urlsplit(target)
        name = parts.path.removeprefix(_PATH).lstrip("/")
        self.requests.append((method, parts.path))
        for waiting in (self.before_patch if method == "PATCH" else [], self.before_answer):
            if waiting:
                waiting.pop(0)()
        if headers.get("Authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized")
        if not parts.path.startswith(_PATH):
            return _status(404, "the server could not find the requested resource")
        for known in (method, f"{method} {name}"):
            if known in self.refusals:
                return _status(*self.refusals[known])
        with self._lock:
            if method == "GET":
                return self._list(parse_qs(parts.query))
            if headers.get("Content-Type") != "application/merge-patch+json":
                return _status(415, "the body of the request was in an unknown format")
            return self._patch(name, json.loads(raw))

    def _list(self, query: Mapping[str, list[str]]) -> tuple[int, Mapping[str, Any]]:
        selector = _SELECTOR.fullmatch(query["labelSelector"][0])
        assert selector is not None, query
        services = selector[1].split(",")
        labels = [
            (name, one["metadata"]["labels"][f"{GROUP}/service"])
            for name, one in sorted(self.revisions.items())
        ]
        names = [name for name, service in labels if service in services]
        first = int(query.get("continue", ["0"])[0])
        size = min(self.page_size, int(query["limit"][0]))
        page, left = names[first : first + size], names[first + size :]
        metadata = {"continue": str(first + size)} if left else {}
        items = [self.revisions[name] for name in page]
        return 200, {"kind": "RevisionList", "metadata": metadata, "items": items}

    def _patch(self, name: str, body: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
        found = self.revisions.get(name)
        if found is None:
            return _status(404, f'revisions.{GROUP} "{name}" not found')
        given = body["metadata"]
        assert body.keys() == {"metadata"}, "a patch touches metadata only"
        if given["resourceVersion"] != found["metadata"]["resourceVersion"]:
            return _status(409, f'Operation cannot be fulfilled on revisions "{name}"')
        annotations = {**self.annotations(name), **given["annotations"]}
        found["metadata"]["annotations"] = {
            key: text for key, text in annotations.items() if text is not None
        }
        self._touch(name)
        return 200, found

    def _touch(self, name: str) -> None:
        self._version += 1
        self.revisions[name]["metadata"]["resourceVersion"] = str(self._version)


def _status(code: int, message: str) -> tuple[int, Mapping[str, Any]]:
    return code, {"kind": "Status", "status": "Failure", "message": message, "code": code}


@contextmanager
def api_server(folder: Path) -> Iterator[ApiServer]:
    started = ApiServer(folder)
    try:
        yield started
    finally:
        started.stop()
