"""Between functions-framework's server and a function: requests go from gunicorn to the entry.

The framework's own way there leads through Flask: contexts, sessions, a second table of routes and
an id for each execution, none of which is used here, took longer than our own part. And what it
answers by itself, before a function is asked, are HTML pages, some of which repeat a piece of the
request: for `/favicon.ico`, for a path with two slashes; gunicorn the same, for a request line that
is none. Here these are problems (RFC 9457) like all others, and repeat nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socket import socket
from typing import TYPE_CHECKING, Any, Final

from flask import Request, Response, current_app, has_app_context
from gunicorn import util

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

Entry = Callable[[Request], Response]
PROBLEM_TYPE: Final = "application/problem+json"
SAFE: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
"""With every answer that says nothing else."""


def problem_body(status: int, detail: str, **members: object) -> str:
    """A problem document as text."""
    title = HTTPStatus(status).phrase
    return json.dumps(
        {"type": "about:blank", "title": title, "status": status, "detail": detail, **members}
    )


def served(entry: Entry) -> Entry:
    """Marks the entry of a function, which answers everything that it is asked, also with errors,
    and raises nothing. While the framework imports the function, requests are led to it; at any
    other time this does nothing."""
    if has_app_context():
        framework: Any = current_app
        framework.wsgi_app = _led_to(entry)
        util.write_error = _write_error
    return entry


def _led_to(entry: Entry) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return entry(Request(environ))(environ, start_response)

    return application


def _write_error(client: socket, status: int, reason: str, message: str) -> None:
    """In gunicorn's place: what could not be read as a request. `message` may repeat it."""
    body = problem_body(status, "This can't be read as a request of HTTP/1.1.").encode()
    headers = {
        **{"Connection": "close", "Content-Type": PROBLEM_TYPE, "Content-Length": str(len(body))},
        **SAFE,
    }
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {text}" for name, text in headers.items())]
    util.write_nonblock(client, "\r\n".join([*lines, "", ""]).encode("latin-1") + body)
