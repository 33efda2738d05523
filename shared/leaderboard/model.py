"""Values that every part speaks of: ids, states, dispositions, standings, position changes."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, NewType

TournamentId = NewType("TournamentId", str)
PlayerId = NewType("PlayerId", str)
Offset = NewType("Offset", int)
"""A Kafka offset in the partition that holds a tournament's log; starts at 0."""


class Place(NamedTuple):
    """One partition of a topic: one log."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


ID_PATTERN: Final = r"^[A-Za-z0-9_-]{1,64}$"
SCORE_LIMIT: Final = 2**53
"""Scores stay strictly inside ±2^53, where a double holds every integer exactly."""
TOP_VISIBLE: Final = 100
"""Everyone sees the scores of this many players, so each change among them is published."""
REMEMBERED_IDS: Final = 100_000
"""Applied event ids that a board surely remembers per tournament (at most twice as many)."""

ERASED: Final = "erased-"
"""What the names begin with under which erased players' rows stay on ended boards."""
BOARD_KEPT_MS: Final = 24 * 3600 * 1000
"""A board goes so long after the record has confirmed its end; the record answers from then on."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def is_id(text: str) -> bool:
    """Whether `text` may name a tournament or a player."""
    return _ID.fullmatch(text) is not None


class State(StrEnum):
    """Where a tournament is in its life. More may come."""

    SCHEDULED = "scheduled"
    RUNNING = "running"
    ENDED = "ended"
    CANCELLED = "cancelled"


class Disposition(StrEnum):
    """What became of a sound event."""

    APPLIED = "applied"
    SKIPPED = "skipped"
    """The board had applied the log up to here before: read again after a crash, no effect."""
    DUPLICATE = "duplicate"
    NOT_STARTED = "not_started"
    TOURNAMENT_ENDED = "tournament_ended"
    TOURNAMENT_CANCELLED = "tournament_cancelled"
    NOT_JOINED = "not_joined"
    WRONG_GAME = "wrong_game"
    BELOW_MINIMUM = "below_minimum"
    WRONG_CURRENCY = "wrong_currency"
    PLAYER_ERASED = "player_erased"
    PLAYER_DISQUALIFIED = "player_disqualified"
    UNSUPPORTED = "unsupported"


class Score(NamedTuple):
    """What a standing is worth: the primary number, and the one that decides between equals."""

    score: int
    subscore: int = 0

    def in_range(self) -> bool:
        """Whether both numbers stay strictly inside ±2^53."""
        return abs(self.score) < SCORE_LIMIT and abs(self.subscore) < SCORE_LIMIT


class Cause(NamedTuple):
    """The event behind a change: `source` and `id` together are unique (CloudEvents 1.0)."""

    source: str
    id: str


@dataclass(frozen=True, slots=True)
class Standing:
    """A player's place at one sequence. `rank` starts at 1; `display_name` is None where none
    was given (readers show it masked)."""

    rank: int
    player_id: PlayerId
    display_name: str | None
    score: Score


class PositionChange(NamedTuple):
    """A change that someone can see, at most one for each offset of a tournament's log.

    `old_rank` None: new on the board; `new_rank` None: gone from it. `distance` is the number of
    points to the next rank up, None at the top (and for who is gone)."""

    tournament_id: TournamentId
    player_id: PlayerId
    sequence: Offset
    old_rank: int | None
    new_rank: int | None
    score: Score
    distance: int | None
    cause: Cause
    time_ms: int
    traceparent: str | None = None


def is_visible(old_rank: int | None, new_rank: int | None, *, rescored: bool) -> bool:
    """Whether anyone sees the change: a rank moved, or a score in the top 100."""
    if old_rank != new_rank:
        return True
    return rescored and old_rank is not None and old_rank <= TOP_VISIBLE


def percentile(rank: int, players: int) -> float:
    """The share of the *other* players that this rank is ahead of, in percent, two decimals.

    100 for the leader (also alone on the board), 0 for the last of several."""
    if players <= 1:
        return 100.0
    return round(100 * (players - rank) / (players - 1), 2)


def masked(player_id: str) -> str:
    """A display name for a player who gave none: enough to tell neighbours apart, no more."""
    if len(player_id) <= 4:
        return player_id[:1] + "***"
    return f"{player_id[:2]}***{player_id[-2:]}"


def tombstone(key: bytes, tournament_id: str, player_id: str) -> bytes:
    """The keyed mark (HMAC-SHA-256, 16 bytes) that keeps a player out of one tournament.

    Without `key` nobody can tell whom it stands for, or that two of them are one player."""
    return hmac.new(key, f"{tournament_id}/{player_id}".encode(), hashlib.sha256).digest()[:16]


def erasure_id_of(key: bytes, player_id: str) -> str:
    """The id of a player's request to be forgotten (HMAC-SHA-256): the same for the same player,
    and telling nothing of them to who has no `key`."""
    return "er-" + hmac.digest(key, f"erasure/{player_id}".encode(), "sha256").hex()[:32]


def erased_name(mark: bytes) -> PlayerId:
    """The name under which an erased player's row stays on an ended board."""
    return PlayerId(f"{ERASED}{mark[:6].hex()}")
