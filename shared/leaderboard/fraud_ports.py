"""What fraud detection asks for and is given, as roles beside those of `ports`, with their rules:
calls block, are safe to repeat, and raise TransientError when the store is away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from leaderboard.fraud import Piece, Watch
from leaderboard.model import Offset, PlayerId, TournamentId


class Watched(NamedTuple):
    """What was kept of a tournament's play: a whole, and what was seen after it up to `offset`."""

    log_id: str
    offset: Offset
    plain: Sequence[Any]
    """As `Watch.plain` told it."""
    pieces: Sequence[Piece]


class Watches(Protocol):
    """Where fraud detection keeps what it has seen, so that the next owner of a partition goes on
    from there. Lives where the boards live, and may be lost with them: then habits begin anew.

    Both writing calls compare: nothing is kept, and False, where it does not stand at `after`."""

    def read(self, tournament_id: TournamentId) -> Watched | None:
        """What is kept; None where nothing is."""

    def append(
        self, tournament_id: TournamentId, after: Offset, offset: Offset, pieces: Sequence[Piece]
    ) -> bool:
        """Add what was seen up to `offset`."""

    def replace(
        self,
        tournament_id: TournamentId,
        log_id: str,
        after: Offset | None,
        offset: Offset,
        watch: Watch,
    ) -> bool:
        """Keep this in place of all that was kept; `after` is None where nothing was."""


@dataclass(frozen=True, slots=True)
class Alert:
    """A suspicion as the record keeps it, and what was decided about it. `player_id` is `erased-…`
    for who was forgotten; then `evidence` is empty."""

    alert_id: str
    tournament_id: TournamentId
    sequence: Offset
    rule: str
    player_id: PlayerId
    time_ms: int
    severity: float
    evidence: Mapping[str, Any]
    decision: str | None = None
    """`confirmed` or `dismissed`; None while it is open."""
    decided_by: str | None = None
    decided_at_ms: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class AlertFilter:
    """Which alerts are asked for; None: all. `state` is `open`, `confirmed` or `dismissed`."""

    tournament_id: TournamentId | None = None
    rule: str | None = None
    state: str | None = None
    player_id: PlayerId | None = None


class Alerts(Protocol):
    """The operators' queue."""

    def find(self, alert_id: str) -> Alert | None:
        """One alert, None where the record knows none (yet)."""

    def list(
        self, which: AlertFilter, limit: int, before: tuple[int, str] | None = None
    ) -> Sequence[Alert]:
        """The newest first, by event time and id; `before` those of the last alert seen."""
