"""Leaderboards in this process: the pure fold behind the `Board` port. For unit tests, and as the
oracle that every other board is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from leaderboard.errors import BoardBehindError, ForeignLogError, Refusal
from leaderboard.events import TournamentScheduled
from leaderboard.fold import LogEntry, Row, SeenIds, Standings, Terms, decide
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
from leaderboard.ports import Applied, BatchApplied, BoardView, Curve, PlayerRow, Snapshot


@dataclass(slots=True)
class _Kept:
    """One tournament as it stands, with what nobody has confirmed yet."""

    log_id: str
    standings: Standings
    terms: Terms
    offset: Offset
    changes: list[PositionChange] = field(default_factory=list)
    refusals: dict[Offset, Disposition | Refusal] = field(default_factory=dict)
    expires_at_ms: int | None = None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class MemoryBoard:
    """`ports.Board` over the fold itself. Not for several threads at once."""

    def __init__(
        self,
        tombstone_key: bytes,
        remembered_ids: int = REMEMBERED_IDS,
        now_ms: Callable[[], int] = _now_ms,
    ) -> None:
        self._tombstone_key = tombstone_key
        self._remembered_ids = remembered_ids
        self._now_ms = now_ms
        self._kept: dict[TournamentId, _Kept] = {}

    def apply(
        self,
        tournament_id: TournamentId,
        log_id: str,
        after: Offset | None,
        entries: Sequence[LogEntry],
        confirmed: Offset | None,
        told: Offset | None = None,
    ) -> BatchApplied:
        kept = self._find(tournament_id)
        if kept is None and after is not None:
            raise BoardBehindError(tournament_id, None)
        if kept is not None:
            _check_log(tournament_id, kept, log_id)
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
                standings = self._standings(tournament_id)
                standings.changed_terms(entry.offset)
                kept = _Kept(log_id, standings, decision.terms, entry.offset)
                self._kept[tournament_id] = kept
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
            unconfirmed=tuple(c for c in kept.changes if told is None or c.sequence > told),
        )

    def begin(
        self,
        tournament_id: TournamentId,
        log_id: str,
        after: Offset | None,
        entries: Sequence[LogEntry],
        confirmed: Offset | None,
        told: Offset | None = None,
    ) -> Applied:
        return Applied(self.apply(tournament_id, log_id, after, entries, confirmed, told))

    def _standings(self, tournament_id: TournamentId) -> Standings:
        def mark(player_id: str) -> bytes:
            return tombstone(self._tombstone_key, tournament_id, player_id)

        return Standings(tournament_id, mark, self._remembered_ids)

    def _find(self, tournament_id: TournamentId) -> _Kept | None:
        kept = self._kept.get(tournament_id)
        if kept is None or kept.expires_at_ms is None or kept.expires_at_ms > self._now_ms():
            return kept
        del self._kept[tournament_id]
        return None

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
        if verdict is not Disposition.APPLIED:
            kept.refusals[entry.offset] = verdict
        return verdict

    # putting in place, letting go

    def restore(
        self,
        snapshot: Snapshot,
        *,
        force: bool = False,
        loaded: Callable[[int], None] = lambda rows: None,
    ) -> bool:
        if not self._gives_way(snapshot, force):
            return False
        rows: dict[PlayerId, Row] = {}
        for chunk in snapshot.rows:
            rows.update((one.player_id, Row(one.score, one.reached)) for one in chunk)
            loaded(len(chunk))
        if len(rows) != snapshot.players:
            told = f"{len(rows)} rows instead of {snapshot.players}"
            raise ValueError(f"the snapshot of {snapshot.tournament_id} has {told}")
        standings = self._standings(snapshot.tournament_id)
        standings.take_over(
            snapshot.terms.rules.order,
            snapshot.sequence,
            rows,
            {player_id: name for chunk in snapshot.names for player_id, name in chunk},
            snapshot.out,
            SeenIds(
                self._remembered_ids,
                older={one for chunk in snapshot.older for one in chunk},
                newer={one for chunk in snapshot.newer for one in chunk},
                numbers=dict(snapshot.numbers),
            ),
        )
        if not self._gives_way(snapshot, force):
            return False
        self._kept[snapshot.tournament_id] = _Kept(
            snapshot.log_id, standings, snapshot.terms, snapshot.offset
        )
        return True

    def _gives_way(self, snapshot: Snapshot, force: bool) -> bool:
        (stands_at,) = self.stands_at(snapshot.log_id, [snapshot.tournament_id])
        return force or stands_at is None or stands_at < snapshot.offset

    def expire(self, tournament_id: TournamentId, sequence: Offset, at_ms: int) -> bool:
        kept = self._find(tournament_id)
        if kept is None or kept.standings.sequence != sequence:
            return False
        kept.expires_at_ms = at_ms
        return True

    # reading

    def top(self, tournament_id: TournamentId, limit: int, after_rank: int = 0) -> BoardView | None:
        kept = self._find(tournament_id)
        if kept is None:
            return None
        return _view(tournament_id, kept, kept.standings.page(after_rank, limit))

    def player(self, tournament_id: TournamentId, player_id: PlayerId) -> BoardView | None:
        return self.around(tournament_id, player_id, 0)

    def around(
        self, tournament_id: TournamentId, player_id: PlayerId, radius: int
    ) -> BoardView | None:
        kept = self._find(tournament_id)
        if kept is None:
            return None
        own = kept.standings.find(player_id)
        if own is None:
            return _view(tournament_id, kept, [])
        first = max(own.rank - radius, 1)
        page = kept.standings.page(first - 1, own.rank + radius - first + 1)
        return _view(tournament_id, kept, page, kept.standings.distance(own.rank))

    def is_erased(self, tournament_id: TournamentId, player_id: PlayerId) -> bool | None:
        kept = self._find(tournament_id)
        return None if kept is None else kept.standings.is_erased(player_id)

    def scores_at(self, tournament_id: TournamentId, ranks: Sequence[int]) -> Curve | None:
        kept = self._find(tournament_id)
        if kept is None:
            return None
        pages = [kept.standings.page(rank - 1, 1) for rank in ranks]
        points = [(page[0].rank, page[0].score.score) for page in pages if page]
        return Curve(tournament_id, kept.standings.sequence, points)

    def is_in(self, tournament_id: TournamentId, player_id: PlayerId) -> bool:
        kept = self._find(tournament_id)
        return kept is not None and kept.standings.is_in(player_id)

    def stands_at(
        self, log_id: str, tournaments: Sequence[TournamentId]
    ) -> Sequence[Offset | None]:
        found = [self._find(tournament_id) for tournament_id in tournaments]
        for tournament_id, kept in zip(tournaments, found, strict=True):
            if kept is not None:
                _check_log(tournament_id, kept, log_id)
        return [None if kept is None else kept.offset for kept in found]

    def rows(
        self, tournament_id: TournamentId, players: Sequence[PlayerId]
    ) -> tuple[Offset, Sequence[PlayerRow | None]] | None:
        kept = self._find(tournament_id)
        if kept is None:
            return None
        found = [(player_id, kept.standings.row(player_id)) for player_id in players]
        rows = [None if row is None else PlayerRow(p, row.score, row.reached) for p, row in found]
        return kept.standings.sequence, rows


def told_again(terms: Terms, entry: LogEntry) -> Disposition | Refusal:
    """The verdict on an entry that the board has applied before, without its old refusals.

    What stood in the log before the first schedule was refused for that, and still is: its dead
    letter may not have been confirmed before a crash."""
    is_schedule = isinstance(entry.event.data, TournamentScheduled)
    if entry.offset < terms.created and not is_schedule:
        return Refusal.UNKNOWN_TOURNAMENT
    return Disposition.SKIPPED


def _check_log(tournament_id: TournamentId, kept: _Kept, log_id: str) -> None:
    if kept.log_id != log_id:
        raise ForeignLogError(f"{tournament_id} was folded from {kept.log_id}, not {log_id}")


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
