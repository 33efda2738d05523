"""Keys of requests in Redis: one string each, which ends by itself.

    request:<hash of the key>   fingerprint of the request, 64 characters; behind it the answer, as
                                JSON, once there is one

Keys are hashed: whoever chose one may have put a name into it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from redis.exceptions import NoPermissionError

from leaderboard.adapters.redis_client import RedisClient, transient
from leaderboard.errors import NotLetInError
from leaderboard.repetitions import Begun, Reply

KEPT_SECONDS: Final = 7 * 86_400
"""As long as the log: who insists longer than that has lost more than an answer."""
_FINGERPRINT: Final = 64


class RedisReplies:
    """`repetitions.Replies` on Redis or Valkey, single or clustered. Safe for several threads."""

    def __init__(self, client: RedisClient, kept_seconds: int = KEPT_SECONDS) -> None:
        self._client = client
        self._kept_seconds = kept_seconds

    def begin(self, key: str, fingerprint: str) -> Begun:
        """As the port says. Sent again after a broken connection it finds its own fingerprint."""
        with _away():
            known: Any = self._client.set(
                key_of(key), fingerprint, nx=True, get=True, ex=self._kept_seconds
            )
        if known is None:
            return Begun()
        text = known.decode()
        if text[:_FINGERPRINT] != fingerprint:
            return Begun(is_for_another=True)
        answer = text[_FINGERPRINT:]
        return Begun(reply=Reply(**json.loads(answer)) if answer else None)

    def keep(self, key: str, fingerprint: str, reply: Reply) -> None:
        """As the port says."""
        told = {"status": reply.status, "headers": dict(reply.headers), "body": dict(reply.body)}
        text = fingerprint + json.dumps(told)
        with _away():
            self._client.set(key_of(key), text, ex=self._kept_seconds)


@contextmanager
def _away() -> Iterator[None]:
    """Also where the server's rights are of an older version: requests are handled all the same."""
    try:
        with transient():
            yield
    except NoPermissionError as error:
        raise NotLetInError("Redis does not let us keep keys of requests") from error


def key_of(key: str) -> bytes:
    """Where this key of a request is."""
    hashed = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return f"request:{hashed[:32]}".encode()
