"""A witness over HTTP, as c2sp.org/tlog-witness has it."""

from __future__ import annotations

import re
from typing import Final

import httpx

from leaderboard.audit.witness import WitnessBehindError
from leaderboard.errors import NoteError, TransientError

_SECONDS: Final = 10.0
_LARGEST_ANSWER: Final = 64 * 1024
_SIZE_TYPE: Final = "text/x.tlog.size"


class HttpWitness:
    """The witness whose submission prefix this is."""

    def __init__(self, url: str, client: httpx.Client | None = None) -> None:
        self._url = f"{url.rstrip('/')}/add-checkpoint"
        self._client = client or httpx.Client(timeout=_SECONDS, follow_redirects=False)

    def add(self, request: bytes) -> bytes:
        try:
            answer = self._client.post(self._url, content=request)
        except httpx.HTTPError as error:
            raise TransientError(f"witness at {self._url}: {error or type(error)}") from error
        if len(answer.content) > _LARGEST_ANSWER:
            raise NoteError(f"witness at {self._url}: its answer has {len(answer.content)} bytes")
        if answer.status_code == httpx.codes.OK:
            return answer.content
        if answer.status_code == httpx.codes.CONFLICT:
            is_size = answer.headers.get("content-type") == _SIZE_TYPE
            if is_size and re.fullmatch(r"(0|[1-9]\d{0,18})\n", answer.text):
                raise WitnessBehindError(int(answer.text))
        said = f"witness at {self._url} says {answer.status_code}: {answer.text[:200]!r}"
        if answer.status_code >= 500 or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise TransientError(said)
        raise NoteError(said)
