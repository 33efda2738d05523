"""Suspicions of fraud, from the leaves of `wagers` once more: the fold of `fraud` over what the
audit's replay has found to count, with pseudonyms for its players.

Not what `on-wager` must have told: it may have lost what it had seen, and begun anew, or have been
told not to look. So what is told and not found here is no fault, and the other way round neither.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from leaderboard.audit_replay import OVER, Step
from leaderboard.fraud import Climb, Piece, Suspicion, Wager, Watch
from leaderboard.fraud_ports import partner_in, severity_hundredths
from leaderboard.fraud_rules import parameters_of
from leaderboard.model import Disposition, PlayerId, TournamentId

PIECE: Final = 1_000
"""Wagers that are folded at a time."""
_REMOVALS: Final = ("player.erased", "player.disqualified")


class Suspected(NamedTuple):
    """What a suspicion comes to, as far as a row that was emptied says it still. Players are
    pseudonyms."""

    player: PlayerId
    partner: PlayerId | None
    severity_hundredths: int


@dataclass(slots=True)
class _Play:
    watch: Watch
    wagers: list[Wager] = field(default_factory=list)
    climbs: list[Climb] = field(default_factory=list)


class Suspects:
    """Folds the steps of one partition of `wagers`, in their order."""

    def __init__(self) -> None:
        self.found: dict[tuple[TournamentId, int, str], Suspected] = {}
        """By tournament, offset and rule."""
        self._plays: dict[TournamentId, _Play] = {}

    def take(self, step: Step, ruled: Any = None) -> None:
        """The next step. `ruled`: of a schedule, what it says in `rules.fraud`."""
        leaf, tournament = step.leaf, step.tournament
        if tournament is None or step.verdict is not Disposition.APPLIED:
            return
        name, player = tournament.tournament_id, leaf.player
        play = self._plays.get(name)
        if play is None:
            play = self._plays[name] = _Play(Watch(parameters_of(ruled)))
        if leaf.kind == "wager.placed" and player is not None and leaf.data is not None:
            stake, game = leaf.data["stake_minor"], leaf.data["game_id"]
            play.wagers.append((leaf.offset, leaf.time_ms, player, stake, game))
        change = step.change
        if change is not None and leaf.kind != "score.adjusted":
            old, new = change.old_rank, change.new_rank
            if old is not None and new is not None and new < old:
                climb = (change.sequence, change.time_ms, change.player_id, old, new)
                play.climbs.append(climb)
        if leaf.kind == "tournament.scheduled":
            self._fold(name, play, Piece(play.wagers, play.climbs, None, ruled, is_ruled=True))
        elif leaf.kind in _REMOVALS and player is not None:
            self._fold(name, play, Piece(play.wagers, play.climbs, player))
        elif len(play.wagers) + len(play.climbs) >= PIECE:
            self._fold(name, play, Piece(play.wagers, play.climbs))
        if tournament.terms.state in OVER:
            # Nothing counts any more.
            self._fold(name, play, Piece(play.wagers, play.climbs))
            play.watch = Watch()

    def finish(self) -> None:
        """What was kept back is folded."""
        for name, play in self._plays.items():
            self._fold(name, play, Piece(play.wagers, play.climbs))
        self._plays.clear()

    def _fold(self, name: TournamentId, play: _Play, piece: Piece) -> None:
        play.wagers, play.climbs = [], []
        for one in play.watch.see([piece]):
            self.found[name, one.offset, one.rule] = _suspected(one)


def _suspected(one: Suspicion) -> Suspected:
    partner = partner_in(one.evidence)
    return Suspected(
        one.player_id,
        None if partner is None else PlayerId(partner),
        severity_hundredths(one.evidence),
    )
