"""Corrections that could not count are refused, by the fold's own rules, as far as it is known.

Board and record know who has joined, which score they have, and whom an operator took off the
board. They can't tell who was erased: that takes the key behind the tombstones, which this function
does not get. Then, and where the log says something else by the time the event stands in it, it is
the fold that tells: the event is recorded with its reason.
"""

from __future__ import annotations

from typing import Final

from leaderboard.errors import Refusal
from leaderboard.fold import Adjust, RemovalReason, Terms, outcome
from leaderboard.hosts.http import ProblemError
from leaderboard.model import Disposition, Score, TournamentId
from leaderboard.reads import Reads

_TOLD: Final = {
    Disposition.PLAYER_DISQUALIFIED: "The player was disqualified.",
    Disposition.NOT_JOINED: "The player has not joined this tournament, as far as board and record "
    "have read its log. If they joined a moment ago, or these are behind, try again.",
    Refusal.SCORE_OUT_OF_RANGE: "The player's score would leave the range of scores.",
}


def check(reads: Reads, tournament_id: TournamentId, terms: Terms, action: Adjust) -> None:
    """Raises ProblemError for a correction that would not count, as things stand."""
    member = reads.member(tournament_id, action.player_id)
    seen = reads.player(tournament_id, action.player_id)
    standings = () if seen is None else seen.view.standings
    verdict = outcome(
        terms.rules,
        action,
        is_known=False,
        out=RemovalReason.DISQUALIFIED if member.is_disqualified else None,
        has_joined=member.has_joined,
        current=standings[0].score if standings else None,
    )
    if not isinstance(verdict, Score):
        raise ProblemError(409, _TOLD[verdict], reason=verdict.value)
