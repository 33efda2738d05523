"""Leaderboards in this process: the pure fold behind the `Board` port. For unit tests, and as the
oracle that every other board is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from leaderboard.errors import BoardBehindError, ForeignLogError, Refusal
from leaderboard.events import TournamentScheduled
from leaderboard.fold import LogEntry, Standings, Terms, decide
from leaderboard.model import (
    REMEMBERED_IDS,
    Disposition,
    Offset,
    PlayerId,
    PositionChange,
    Standing,
    TournamentId,
    tombstone,
)
from leaderboard.ports import BatchApplied, BoardView, Curve


@dataclass(slots=True)
class _Kept:
    """One tournament as it stands, with what nobody has confirmed yet."""

    log_id: str
    standings: Standings
    terms: Terms
    offset: Offset
    changes: list[PositionChange] = field(default_factory=list)
    refusals: dict[Offset, Refusal] = field(default_factory=dict)


class MemoryBoard:
    """`ports.Board` over the fold itself. Not for several threads at once."""

    def __init__(self, tombstone_key: bytes, remembered_ids: int = REMEMBERED_IDS) -> None:
        self._tombstone_key = tombstone_key
        self._remembered_ids = remembered_ids
        self._kept: dict[TournamentId, _Kept] = {}

    def apply(
        self,
        tournament_id: TournamentId,
        log_id: str,
        after: Offset | None,
        entries: Sequence[LogEntry],
        confirmed: Offset | None,
    ) -> BatchApplied:
        kept = self._kept.get(tournament_id)
        if kept is None and after is not None:
            raise BoardBehindError(tournament_id, None)
        if kept is not None:
            if kept.log_id != log_id:
                raise ForeignLogError(f"{tournament_id} was folded from {kept.log_id}")
            if after is not None and after > kept.offset:
                raise BoardBehindError(tournament_id, kept.offset)
            _forget(kept, confirmed)
        revision = None if kept is None else kept.terms.revision
        verdicts: list[Disposition | Refusal] = []
        for entry in entries:
            if kept is not None and entry.offset <= kept.offset:
                verdicts.append(kept.refusals.get(entry.offset, told_again(kept.terms, entry)))
                continue
            decision = decide(None if kept is None else kept.terms, entry)
            if kept is None:
                if decision.terms is None:
                    verdicts.append(_verdict(decision.verdict))
                    continue
                kept = self._kept[tournament_id] = self._made(tournament_id, log_id, decision.terms)
                kept.standings.changed_terms(entry.offset)
                verdicts.append(Disposition.APPLIED)
            else:
                verdicts.append(self._step(kept, entry))
            kept.offset = entry.offset
        if kept is None:
            return BatchApplied(None, Offset(0), None, False, verdicts, ())
        return BatchApplied(
            offset=kept.offset,
            sequence=kept.standings.sequence,
            terms=kept.terms,
            terms_changed=kept.terms.revision != revision,
            verdicts=verdicts,
            unconfirmed=tuple(kept.changes),
        )

    def _made(self, tournament_id: TournamentId, log_id: str, terms: Terms) -> _Kept:
        def mark(player_id: str) -> bytes:
            return tombstone(self._tombstone_key, tournament_id, player_id)

        standings = Standings(tournament_id, mark, self._remembered_ids)
        return _Kept(log_id, standings, terms, Offset(terms.created))

    def _step(self, kept: _Kept, entry: LogEntry) -> Disposition | Refusal:
        decision = decide(kept.terms, entry)
        if decision.terms is not None and decision.terms is not kept.terms:
            kept.terms = decision.terms
            kept.standings.changed_terms(entry.offset)
        verdict = decision.verdict
        if not isinstance(verdict, Disposition | Refusal):
            applied = kept.standings.apply(kept.terms.rules, entry, verdict)
            if applied.change is not None:
                kept.changes.append(applied.change)
            verdict = applied.verdict
        if isinstance(verdict, Refusal):
            kept.refusals[entry.offset] = verdict
        return verdict

    # reading

    def top(self, tournament_id: TournamentId, limit: int, after_rank: int = 0) -> BoardView | None:
        kept = self._kept.get(tournament_id)
        if kept is None:
            return None
        return _view(tournament_id, kept, kept.standings.page(after_rank, limit))

    def player(self, tournament_id: TournamentId, player_id: PlayerId) -> BoardView | None:
        return self.around(tournament_id, player_id, 0)

    def around(
        self, tournament_id: TournamentId, player_id: PlayerId, radius: int
    ) -> BoardView | None:
        kept = self._kept.get(tournament_id)
        if kept is None:
            return None
        own = kept.standings.find(player_id)
        if own is None:
            return _view(tournament_id, kept, [])
        first = max(own.rank - radius, 1)
        page = kept.standings.page(first - 1, own.rank + radius - first + 1)
        return _view(tournament_id, kept, page, kept.standings.distance(own.rank))

    def is_erased(self, tournament_id: TournamentId, player_id: PlayerId) -> bool:
        kept = self._kept.get(tournament_id)
        return kept is not None and kept.standings.is_erased(player_id)

    def scores_at(self, tournament_id: TournamentId, ranks: Sequence[int]) -> Curve | None:
        kept = self._kept.get(tournament_id)
        if kept is None:
            return None
        pages = [kept.standings.page(rank - 1, 1) for rank in ranks]
        points = [(page[0].rank, page[0].score.score) for page in pages if page]
        return Curve(tournament_id, kept.standings.sequence, points)

    def is_in(self, tournament_id: TournamentId, player_id: PlayerId) -> bool:
        kept = self._kept.get(tournament_id)
        return kept is not None and kept.standings.is_in(player_id)


def told_again(terms: Terms, entry: LogEntry) -> Disposition | Refusal:
    """The verdict on an entry that the board has applied before, without its old refusals.

    What stood in the log before the first schedule was refused for that, and still is: its dead
    letter may not have been confirmed before a crash."""
    is_schedule = isinstance(entry.event.data, TournamentScheduled)
    if entry.offset < terms.created and not is_schedule:
        return Refusal.UNKNOWN_TOURNAMENT
    return Disposition.SKIPPED


def _forget(kept: _Kept, confirmed: Offset | None) -> None:
    if confirmed is None:
        return
    kept.changes = [change for change in kept.changes if change.sequence > confirmed]
    kept.refusals = {at: why for at, why in kept.refusals.items() if at > confirmed}


def _verdict(verdict: object) -> Disposition | Refusal:
    if isinstance(verdict, Disposition | Refusal):
        return verdict
    raise AssertionError("no action is possible where no board exists")


def _view(
    tournament_id: TournamentId,
    kept: _Kept,
    standings: Sequence[Standing],
    distance: int | None = None,
) -> BoardView:
    return BoardView(
        tournament_id=tournament_id,
        sequence=kept.standings.sequence,
        terms=kept.terms,
        players=len(kept.standings),
        standings=tuple(standings),
        distance=distance,
    )
