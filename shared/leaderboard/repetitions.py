"""Requests that come again: what was asked and answered under an `Idempotency-Key`
(draft-ietf-httpapi-idempotency-key-header-07).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Reply:
    """What was answered, as JSON can say it."""

    status: int
    headers: Mapping[str, str]
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Begun:
    """What is known of a key. `reply` is None where nothing was answered yet, also where whoever
    had to answer has died: the request may be handled again."""

    is_for_another: bool = False
    """It was used for another request."""
    reply: Reply | None = None


class Replies(Protocol):
    """Which request has which key, for all processes together, for a while."""

    def begin(self, key: str, fingerprint: str) -> Begun:
        """Take the key for the request of this fingerprint, unless some request has it. Atomic:
        of two at once that differ, one is told that the key is another's."""

    def keep(self, key: str, fingerprint: str, reply: Reply) -> None:
        """This is the answer from now on, whoever asks the same."""


def fingerprint_of(*parts: str) -> str:
    """What tells one request from another: 64 hexadecimal digits, the same for the same parts."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
