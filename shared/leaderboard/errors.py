"""The errors of the platform and what a host does with each.

    LeaderboardError
    ├── RefusedError            can never work: dead letter, or a 4xx problem over HTTP
    ├── TransientError          may work later: retried in place with back-off, 503 over HTTP
    │   └── NotLetInError       it is there, and refuses what we have: not ready at the start
    ├── BoardBehindError        the board lost writes: replay the log from where it stands
    ├── ForeignLogError         the board belongs to another log (a topic made anew): stop
    ├── UnreadableTopicError    so much of a topic can't be read that the fault is ours: stop
    ├── FencedError             somebody else writes this audit log: read its partition again
    ├── LogConflictError        a file of the audit log is there with other bytes: stop
    ├── LogCorruptError         the audit log is not what it has signed: stop
    ├── NoteError               a key, checkpoint or proof that is none, or not signed as it says
    ├── UnauthenticatedError    no token, or one that proves nothing: 401
    ├── ForbiddenError          a sound token that may not do this: 403
    ├── NotFoundError           404
    ├── TooManyError            more requests than a quota lets through: 429
    └── SettingsError           a setting is missing or wrong: the process does not start

Anything else is a bug and stops a consumer uncommitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Refusal(StrEnum):
    """Why an event can never work (`dlq_reason`)."""

    NOT_JSON = "not_json"
    SCHEMA = "schema"
    UNKNOWN_TYPE = "unknown_type"
    TOO_LARGE = "too_large"
    WRONG_KEY = "wrong_key"
    BAD_ID = "bad_id"
    UNKNOWN_TOURNAMENT = "unknown_tournament"
    SCORE_OUT_OF_RANGE = "score_out_of_range"


class LeaderboardError(Exception):
    """The root of every error that we raise on purpose."""


class RefusedError(LeaderboardError):
    """An event that can never work. `detail` is for people and carries no personal data."""

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class TransientError(LeaderboardError):
    """A dependency is away or slow. Nothing was lost; the same call may work later."""


class NotLetInError(TransientError):
    """A dependency that is there and does not let us in: a wrong user, password or database in a
    Secret. Transient all the same, as somebody may put that right on either side."""


class BoardBehindError(LeaderboardError):
    """The board is missing or has lost writes. Nothing was applied.

    `stands_at` is the last offset the board holds, None where there is no board at all."""

    def __init__(self, tournament_id: str, stands_at: int | None) -> None:
        super().__init__(f"board of {tournament_id} stands at {stands_at}, the log is further")
        self.tournament_id = tournament_id
        self.stands_at = stands_at


class ForeignLogError(LeaderboardError):
    """The board was folded from another log: offsets of the two can't be compared."""


class UnreadableTopicError(LeaderboardError):
    """More of a topic can't be read than may be diverted. The message says what to do."""


class FencedError(LeaderboardError):
    """The checkpoint of an audit log is not the one that we have put there: another process writes
    this log. Nothing that we appended since counts."""


class LogConflictError(LeaderboardError):
    """A file that is written once is there with other bytes. The message names it."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} of the audit log is there already, with other bytes")
        self.path = path


class LogCorruptError(LeaderboardError):
    """An audit log is not what its checkpoint says. `place` is the file where that shows, `index`
    the entry where one is to be named."""

    def __init__(self, place: str, problem: str, index: int | None = None) -> None:
        super().__init__(f"{place}: {problem}")
        self.place = place
        self.problem = problem
        self.index = index


class NoteError(LeaderboardError):
    """A signed note, a key or a proof that can't be believed. The message shows no private key."""


class UnauthenticatedError(LeaderboardError):
    """No bearer token, or one that does not prove who is calling."""


class ForbiddenError(LeaderboardError):
    """The caller is known and may not do this."""


class NotFoundError(LeaderboardError):
    """What was asked for does not exist."""


class TooManyError(LeaderboardError):
    """More than a quota lets through. `headers` tell a client what holds."""

    def __init__(self, quota: str, retry_seconds: int, headers: Mapping[str, str]) -> None:
        super().__init__(f"too many {quota}; there is room again in {retry_seconds} s")
        self.quota = quota
        self.retry_seconds = retry_seconds
        self.headers = headers


class SettingsError(LeaderboardError):
    """A setting is missing or wrong; the message names the variable."""
