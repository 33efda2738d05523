"""An `Idempotency-Key` stands for one request: the same again gets the same answer, another is 422.

The key is the id of the event that the request writes, so the log counts it once whatever happens
here. What the log can't do is to tell who used a key for something else: that event would count
nothing, and nobody would hear of it. So Redis keeps for each key what it was used for, and what was
answered.

While Redis is away requests are let through: an operator must be able to end a tournament then, and
the same request still counts once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Final

from pydantic import BaseModel
from pydantic_core import from_json

from leaderboard import telemetry
from leaderboard.errors import TransientError
from leaderboard.hosts.http import Answer, Call, ProblemError
from leaderboard.repetitions import Replies, Reply, fingerprint_of

HEADER: Final = "Idempotency-Key"
logger = logging.getLogger(__name__)


class Once:
    """Makes operations that answer a model with an `event_id` know their repetitions."""

    def __init__(self, replies: Callable[[], Replies]) -> None:
        self._replies = replies

    def __call__(self, path: str, handler: Callable[[Call], Answer]) -> Callable[[Call], Answer]:
        """The operation at this path. The same request again while the first is under way, or
        after whoever handled it has died, is handled too: it writes the same event."""

        def answered(call: Call) -> Answer:
            key = call.headers.get(HEADER)
            if not key:
                return handler(call)
            fingerprint = _fingerprint(path, call)
            reply = self._begin(key, fingerprint)
            if reply is not None:
                body = {"event_id": key, **reply.body}
                return Answer(body, status=reply.status, headers=reply.headers)
            answer = handler(call)
            self._keep(key, fingerprint, answer)
            return answer

        return answered

    def _begin(self, key: str, fingerprint: str) -> Reply | None:
        try:
            replies = self._replies()
            begun = replies.begin(key, fingerprint)
        except TransientError as error:
            logger.warning(
                "nobody can tell what a request's key was used for",
                extra=telemetry.fields(error=str(error)),
            )
            return None
        if begun.is_for_another:
            detail = f"This {HEADER} was used for another request: each has one of its own."
            told = {"field": HEADER, "detail": "was used for another request"}
            raise ProblemError(422, detail, errors=[told])
        return begun.reply

    def _keep(self, key: str, fingerprint: str, answer: Answer) -> None:
        if not isinstance(answer.body, BaseModel):
            raise AssertionError("an operator's answer is a model")
        # Without the key, which may name a player: who asks again brings it.
        body = answer.body.model_dump(mode="json", exclude={"event_id"})
        try:
            replies = self._replies()
            replies.keep(key, fingerprint, Reply(answer.status, answer.headers, body))
        except TransientError:
            pass  # the event is in the log: who asks again writes it again, and it counts once


def _fingerprint(path: str, call: Call) -> str:
    """Of what the event says: who decided what, where. Spaces and the order of names don't count.

    With the key in it, nobody finds a body by trying all that there could be."""
    body = json.dumps(from_json(call.raw_body or b"{}"), sort_keys=True)
    where = json.dumps(dict(call.path), sort_keys=True)
    key, subject = call.headers[HEADER], call.authenticated().subject
    return fingerprint_of(key, subject, path, where, body)
