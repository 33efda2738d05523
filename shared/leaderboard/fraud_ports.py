"""What fraud detection asks for and is given, as roles beside those of `ports`, with their rules:
calls block, are safe to repeat, and raise TransientError when the store is away. And what is read
from the evidence of an alert, by who keeps it and by who checks what was kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, Final, NamedTuple, Protocol

from leaderboard.fraud import Piece, Watch
from leaderboard.model import Offset, PlayerId, TournamentId

NO_EVIDENCE: Final = "{}"
"""Of a suspicion that names somebody who was forgotten."""
_LARGEST: Final = 2**63 - 1
_LONGEST_NAME: Final = 64
LONGEST_RULE: Final = 64
LONGEST_WORDS: Final = 512
"""Of who decided, and why."""


def severity_hundredths(evidence: Mapping[str, Any]) -> int:
    """Whatever an alert says: nobody's mistake in the topic may stop who keeps it."""
    severity = evidence.get("severity")
    if not isinstance(severity, int | float) or isnan(severity):
        return 0
    return round(max(min(severity, _LARGEST / 1000), 0) * 100)


def sequence_in(evidence: Mapping[str, Any]) -> int:
    """The offset that an alert is about; -1 where it says none."""
    sequence = evidence.get("sequence")
    return sequence if type(sequence) is int and 0 <= sequence <= _LARGEST else -1


def partner_in(evidence: Mapping[str, Any]) -> str | None:
    """Another player whom the evidence names."""
    other = evidence.get("with_player_id")
    return kept_text(other, _LONGEST_NAME) if isinstance(other, str) else None


def kept_text(text: str, most: int) -> str:
    """As the record keeps it: no database keeps a zero in a text."""
    return text.replace("\0", "\\x00")[:most]


def review_id(alert_id: str, decision: str, at_ms: int) -> str:
    """The id of a decision's event. Later ones about the same alert are other events."""
    return f"{alert_id}/{decision}/{at_ms}"


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
