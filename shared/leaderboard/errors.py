"""The errors of the platform and what a host does with each.

    LeaderboardError
    ├── RefusedError            can never work: dead letter, or a 4xx problem over HTTP
    ├── TransientError          may work later: retried in place with back-off, 503 over HTTP
    ├── BoardBehindError        the board lost writes: replay the log from where it stands
    ├── ForeignLogError         the board belongs to another log (a topic made anew): stop
    ├── UnreadableTopicError    so much of a topic can't be read that the fault is ours: stop
    ├── UnauthenticatedError    no token, or one that proves nothing: 401
    ├── ForbiddenError          a sound token that may not do this: 403
    ├── NotFoundError           404
    └── SettingsError           a setting is missing or wrong: the process does not start

Anything else is a bug and stops a consumer uncommitted.
"""

from __future__ import annotations

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


class UnauthenticatedError(LeaderboardError):
    """No bearer token, or one that does not prove who is calling."""


class ForbiddenError(LeaderboardError):
    """The caller is known and may not do this."""


class NotFoundError(LeaderboardError):
    """What was asked for does not exist."""


class SettingsError(LeaderboardError):
    """A setting is missing or wrong; the message names the variable."""
