"""Static files of a function, read once at import and served from memory by their exact names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from leaderboard.errors import NotFoundError
from leaderboard.hosts.http import Answer, Call, Route

_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}


class StaticFiles:
    """`index.html` of a folder at `/`, and each of its files at `/<prefix>/<name>`, open to all.

    A request's file name is only ever looked up in a table, so no name can leave the folder.
    Files of other types than a page needs are not served. `headers` go with every answer."""

    def __init__(self, folder: Path, prefix: str, headers: Mapping[str, str]) -> None:
        self._prefix = prefix
        self._files = {
            path.name: (path.read_bytes(), _TYPES[path.suffix])
            for path in sorted(folder.iterdir())
            if path.suffix in _TYPES
        }
        # Kept by browsers, and asked about: a release shows at once.
        self._headers = {"Cache-Control": "no-cache", **headers}

    def routes(self) -> list[Route]:
        path = f"/{self._prefix}/<string:file>"
        return [
            Route("GET", "/", "The page.", self._index, None, documented=False),
            Route("GET", path, "A part of the page.", self._part, None, documented=False),
        ]

    def _index(self, call: Call) -> Answer:
        return self._answer("index.html", call.headers)

    def _part(self, call: Call) -> Answer:
        return self._answer(call.path["file"], call.headers)

    def _answer(self, name: str, headers: Mapping[str, str]) -> Answer:
        if name not in self._files:
            raise NotFoundError("the page has no such file")
        content, content_type = self._files[name]
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        kept = {**self._headers, "ETag": etag}
        if matches(headers.get("If-None-Match", ""), etag):
            return Answer(status=304, headers=kept)
        return Answer(content, headers={**kept, "Content-Type": content_type})


def matches(if_none_match: str, etag: str) -> bool:
    """Whether an If-None-Match header names the tag (RFC 9110 §13.1.2, weak comparison)."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or "*" in tags
