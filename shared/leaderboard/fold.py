"""The pure fold of a tournament's log: what one event does, given all that came before.

It is the definition of the product: boards, the record and the tests' oracle all apply it. Two
steps, because a board keeps only part of its state at hand:

1. `terms.decide` looks at the *terms* (rules, schedule, state: small, the same for every player)
   and says what an event would do: nothing and why, a change of terms, or an action on a player.
2. `Standings.apply` does the action on the players' rows, if neither a duplicate nor a player who
   must stay out stands in the way.

No clock, no chance: time is the event's, order is the log's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sortedcontainers import SortedKeyList

from leaderboard import events as ev
from leaderboard.errors import Refusal
from leaderboard.model import (
    REMEMBERED_IDS,
    Cause,
    Disposition,
    Offset,
    PlayerId,
    PositionChange,
    Score,
    Standing,
    TournamentId,
    erased_name,
    is_visible,
)
from leaderboard.ranking import Order, RankKey, combine, distance, rank_key
from leaderboard.terms import (
    Action,
    Adjust,
    Decision,
    Earn,
    Join,
    LogEntry,
    RemovalReason,
    Remove,
    Terms,
    Verdict,
    decide,
    event_key,
)

__all__ = [
    "Action",
    "Adjust",
    "Applied",
    "Decision",
    "Earn",
    "Join",
    "LogEntry",
    "RemovalReason",
    "Remove",
    "Row",
    "SeenIds",
    "Standings",
    "Terms",
    "Verdict",
    "decide",
    "event_key",
    "outcome",
]


@dataclass(slots=True)
class Row:
    """A player's score, and the sequence at which the pair was reached."""

    score: Score
    reached: Offset


@dataclass(slots=True)
class SeenIds:
    """The ids of applied events: numbers per producer, else two generations of hashes.

    A generation is full at `limit`; then the older one is forgotten. So the window depends on
    the log alone and holds between one and two generations. At most `limit` producers go by
    their numbers; events of those that come later go by id."""

    limit: int = REMEMBERED_IDS
    newer: set[bytes] = field(default_factory=set)
    older: set[bytes] = field(default_factory=set)
    numbers: dict[str, int] = field(default_factory=dict)

    def knows(self, event: ev.Event) -> bool:
        if event.sequence is not None and self._goes_by_number(event.source):
            return event.sequence <= self.numbers.get(event.source, -1)
        key = event_key(event)
        return key in self.newer or key in self.older

    def add(self, event: ev.Event) -> None:
        if event.sequence is not None and self._goes_by_number(event.source):
            self.numbers[event.source] = event.sequence
            return
        self.newer.add(event_key(event))
        if len(self.newer) >= self.limit:
            self.older, self.newer = self.newer, set()

    def _goes_by_number(self, source: str) -> bool:
        return source in self.numbers or len(self.numbers) < self.limit


@dataclass(frozen=True, slots=True)
class Applied:
    """What an action did: `APPLIED` with the change that someone can see, or why not."""

    verdict: Disposition | Refusal
    change: PositionChange | None = None


def outcome(
    rules: ev.Rules,
    action: Action,
    *,
    is_known: bool,
    out: RemovalReason | None,
    has_joined: bool,
    current: Score | None,
) -> Score | Disposition | Refusal:
    """What an action comes to, given what the rows know: the player's score after it; APPLIED for
    one that changes no score; or why it does not count.

    `is_known`: the event was applied before. `out`: why the player stays out, if so."""
    if is_known:
        return Disposition.DUPLICATE
    if isinstance(action, Remove):
        return Disposition.APPLIED
    if out is not None:
        return Disposition(out.value)
    if isinstance(action, Join):
        return Disposition.APPLIED
    if rules.join == "required" and not has_joined:
        return Disposition.NOT_JOINED
    if isinstance(action, Earn):
        score = combine(rules.operator, rules.order, current, action.points)
    elif current is None:
        score = Score(action.delta)
    else:
        score = Score(current.score + action.delta, current.subscore)
    return score if score.in_range() else Refusal.SCORE_OUT_OF_RANGE


class Standings:
    """The rows of one tournament in their order: the second half of the fold.

    `mark` makes the keyed tombstone of a player (see `model.tombstone`)."""

    def __init__(
        self,
        tournament_id: TournamentId,
        mark: Callable[[str], bytes],
        remembered_ids: int = REMEMBERED_IDS,
    ) -> None:
        self._tournament_id = tournament_id
        self._mark = mark
        self._rows: dict[PlayerId, Row] = {}
        self._order = Order.DESCENDING
        self._ranked: SortedKeyList = SortedKeyList(key=self._key)
        self._names: dict[PlayerId, str | None] = {}
        self._out: dict[bytes, RemovalReason] = {}
        self._seen = SeenIds(remembered_ids)
        self.sequence = Offset(0)

    def __len__(self) -> int:
        return len(self._rows)

    def take_over(
        self,
        order: Order,
        sequence: Offset,
        rows: Mapping[PlayerId, Row],
        names: Mapping[PlayerId, str | None],
        out: Mapping[bytes, RemovalReason],
        seen: SeenIds,
    ) -> None:
        """Go on from what another fold of the same log had come to at `sequence`."""
        self._order, self.sequence = order, sequence
        self._rows, self._names, self._out, self._seen = dict(rows), dict(names), dict(out), seen
        self._ranked = SortedKeyList(self._rows, key=self._key)

    def changed_terms(self, offset: Offset) -> None:
        """An event changed the terms: the sequence advances, whatever else becomes of the event
        (a wager of the wrong game that is the first in its time starts the tournament)."""
        self.sequence = offset

    def apply(self, rules: ev.Rules, entry: LogEntry, action: Action) -> Applied:
        """Do the action at the entry's place in the log, at most once."""
        if not self._rows and self._order is not rules.order:
            self._order = rules.order
        player_id = action.player_id
        row = self._rows.get(player_id)
        came = outcome(
            rules,
            action,
            is_known=self._seen.knows(entry.event),
            out=self._out.get(self._mark(player_id)) if self._out else None,
            has_joined=player_id in self._names,
            current=None if row is None else row.score,
        )
        if not isinstance(came, Score):
            if came is not Disposition.APPLIED:
                return Applied(came)
            change = self._remove(entry, action) if isinstance(action, Remove) else None
            if isinstance(action, Join):
                self._names[player_id] = action.display_name
        else:
            change = self._score(entry, player_id, came)
        self._seen.add(entry.event)
        self.sequence = entry.offset
        return Applied(Disposition.APPLIED, change)

    def _score(self, entry: LogEntry, player_id: PlayerId, score: Score) -> PositionChange | None:
        row = self._rows.get(player_id)
        if row is not None and row.score == score:
            return None
        old_rank = None if row is None else self._rank(player_id)
        if row is not None:
            self._ranked.remove(player_id)
        self._rows[player_id] = Row(score, entry.offset)
        self._ranked.add(player_id)
        new_rank = self._rank(player_id)
        if not is_visible(old_rank, new_rank, rescored=True):
            return None
        return self._change(entry, player_id, old_rank, new_rank, score)

    def _remove(self, entry: LogEntry, action: Remove) -> PositionChange | None:
        player_id = action.player_id
        mark = self._mark(player_id)
        if self._out.get(mark) is not RemovalReason.ERASED:
            self._out[mark] = action.reason
        self._names.pop(player_id, None)
        row = self._rows.get(player_id)
        if row is None:
            return None
        old_rank = self._rank(player_id)
        self._ranked.remove(player_id)
        del self._rows[player_id]
        if action.keep_row:
            self._rows[erased_name(mark)] = row
            self._ranked.add(erased_name(mark))
            return None
        return self._change(entry, player_id, old_rank, None, row.score)

    def _change(
        self,
        entry: LogEntry,
        player_id: PlayerId,
        old_rank: int | None,
        new_rank: int | None,
        score: Score,
    ) -> PositionChange:
        return PositionChange(
            tournament_id=self._tournament_id,
            player_id=player_id,
            sequence=entry.offset,
            old_rank=old_rank,
            new_rank=new_rank,
            score=score,
            distance=None if new_rank is None else self.distance(new_rank),
            cause=Cause(entry.event.source, entry.event.id),
            time_ms=entry.event.time_ms,
            traceparent=entry.event.traceparent,
        )

    def _key(self, player_id: PlayerId) -> RankKey:
        row = self._rows[player_id]
        return rank_key(self._order, row.score, row.reached)

    def _rank(self, player_id: PlayerId) -> int:
        return int(self._ranked.index(player_id)) + 1

    # reading

    def distance(self, rank: int) -> int | None:
        """Points from the score at `rank` to the one above; None at the top."""
        if rank == 1:
            return None
        here, above = (self._rows[self._ranked[i]].score.score for i in (rank - 1, rank - 2))
        return distance(self._order, here, above)

    def page(self, after_rank: int, limit: int) -> list[Standing]:
        """Standings of the ranks `after_rank` + 1 and on, `limit` of them at most."""
        players = list(self._ranked.islice(after_rank, after_rank + limit))
        return [self._standing(after_rank + i + 1, p) for i, p in enumerate(players)]

    def find(self, player_id: PlayerId) -> Standing | None:
        """The player's standing, None for who has none."""
        if player_id not in self._rows:
            return None
        return self._standing(self._rank(player_id), player_id)

    def row(self, player_id: PlayerId) -> Row | None:
        """The player's row, None for who has none."""
        return self._rows.get(player_id)

    def is_erased(self, player_id: PlayerId) -> bool:
        """Whether an erasure of the player was applied."""
        return self._out.get(self._mark(player_id)) is RemovalReason.ERASED

    def is_in(self, player_id: PlayerId) -> bool:
        """Whether the player has joined or has a standing."""
        return player_id in self._names or player_id in self._rows

    def _standing(self, rank: int, player_id: PlayerId) -> Standing:
        name = self._names.get(player_id)
        return Standing(rank, player_id, name, self._rows[player_id].score)
