"""What functions-framework and gunicorn answer by themselves, before a function is asked.

Left alone they send HTML pages, some of which repeat a piece of the request: for a request line
that is none, for `/favicon.ico`, for a path with two slashes. Here these are problems (RFC 9457)
like all others, and repeat nothing.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from socket import socket
from typing import Final

from flask import Response, current_app, has_app_context
from gunicorn import util
from werkzeug.exceptions import HTTPException

PROBLEM_TYPE: Final = "application/problem+json"
SAFE: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
"""With every answer that says nothing else."""


def problem_body(status: int, detail: str, **members: object) -> str:
    """A problem document as text."""
    title = HTTPStatus(status).phrase
    return json.dumps(
        {"type": "about:blank", "title": title, "status": status, "detail": detail, **members}
    )


def answer_in_problems() -> None:
    """Take over the errors of the framework that is importing this function; else nothing."""
    if not has_app_context():
        return
    current_app.register_error_handler(HTTPException, _answer_of)
    # Else a path with two slashes is sent on to one with one, by a page.
    current_app.url_map.merge_slashes = False
    util.write_error = _write_error


def _answer_of(error: HTTPException) -> Response:
    status = error.code or 500
    body = problem_body(status, "There is nothing at this address for this method.")
    if status >= 500:
        body = problem_body(status, "This is our fault, and it was logged.")
    return Response(body, status=status, content_type=PROBLEM_TYPE, headers=SAFE)


def _write_error(client: socket, status: int, reason: str, message: str) -> None:
    """In gunicorn's place: what could not be read as a request. `message` may repeat it."""
    body = problem_body(status, "This can't be read as a request of HTTP/1.1.").encode()
    headers = {
        **{"Connection": "close", "Content-Type": PROBLEM_TYPE, "Content-Length": str(len(body))},
        **SAFE,
    }
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {text}" for name, text in headers.items())]
    util.write_nonblock(client, "\r\n".join([*lines, "", ""]).encode("latin-1") + body)
