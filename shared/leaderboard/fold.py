"""The pure fold of a tournament's log: what one event does, given all that came before.

It is the definition of the product: boards, the record and the tests' oracle all apply it. Two
steps, because a board keeps only part of its state at hand:

1. `decide` looks at the *terms* (rules, schedule, state: small, the same for every player) and
   says what an event would do: nothing and why, a change of terms, or an action on one player.
2. `Standings.apply` does the action on the players' rows, if neither a duplicate nor a player
   who must stay out stands in the way.

No clock, no chance: time is the event's, order is the log's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
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
    State,
    TournamentId,
    erased_name,
    is_visible,
)
from leaderboard.ranking import Operator, Order, RankKey, combine, distance, rank_key
from leaderboard.scoring import LaterScoring

CONTROL_IDS: Final = 64
"""Applied control events (schedule, start, …) remembered to find their duplicates."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One event at its place in the log. `logged_at_ms` is when the log took it in."""

    offset: Offset
    logged_at_ms: int
    event: ev.Event


class Terms(BaseModel):
    """All that is the same for every player of a tournament, folded from its log.

    `revision` is the offset of the event that changed them last, `created` that of the first
    schedule. `stays_out` tells whether any player was erased or disqualified, `backfilled`
    whether the schedule came after its own end (such a tournament ends only by its own event)."""

    model_config = ConfigDict(frozen=True)

    name: str
    rules: ev.Rules
    prizes: Any = None
    state: State
    starts_at_ms: int
    ends_at_ms: int
    created: int
    revision: int
    backfilled: bool = False
    stays_out: bool = False
    control_ids: tuple[str, ...] = ()

    @property
    def starts_at(self) -> datetime:
        return ev.from_ms(self.starts_at_ms)

    @property
    def has_subscores(self) -> bool:
        """Whether standings show a second key: only submitted scores bring one."""
        return self.rules.scoring.kind == "submitted"


class RemovalReason(StrEnum):
    """Why a player stays out from now on; also the disposition of what they send later."""

    ERASED = Disposition.PLAYER_ERASED.value
    DISQUALIFIED = Disposition.PLAYER_DISQUALIFIED.value


@dataclass(frozen=True, slots=True)
class Earn:
    """Combine `points` into the player's score by the rules' operator."""

    player_id: PlayerId
    points: Score


@dataclass(frozen=True, slots=True)
class Adjust:
    """Add `delta` to the player's score, whatever the operator."""

    player_id: PlayerId
    delta: int


@dataclass(frozen=True, slots=True)
class Join:
    """Enter the player, or renew the name."""

    player_id: PlayerId
    display_name: str | None


@dataclass(frozen=True, slots=True)
class Remove:
    """Keep the player out for good. `keep_row`: the row stays, under an erased name."""

    player_id: PlayerId
    reason: RemovalReason
    keep_row: bool


Action = Earn | Adjust | Join | Remove
Verdict = Action | Disposition | Refusal
"""An action on a player; or a disposition (APPLIED: a change of terms); or a refusal."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What one event does: the terms after it, and the verdict."""

    terms: Terms | None
    verdict: Verdict


def event_key(event: ev.Event) -> bytes:
    """16 bytes that stand for `source` and `id`, the idempotency key of CloudEvents 1.0."""
    return blake2b(f"{event.source}\n{event.id}".encode(), digest_size=16).digest()


# --- step 1: terms -----------------------------------------------------------------------------


def decide(terms: Terms | None, entry: LogEntry) -> Decision:
    """What `entry` does under `terms`. Pure; the terms come back changed where it changes them.

    Where several reasons speak against an event, the first of these is given: unknown
    tournament, its state, its time, the rules; what the players' rows know comes after."""
    data = entry.event.data
    if isinstance(data, ev.TournamentScheduled):
        return _decide_schedule(terms, entry, data)
    if terms is None or entry.offset < terms.created:
        return Decision(terms, Refusal.UNKNOWN_TOURNAMENT)
    if isinstance(data, ev.PlayerErased):
        keep_row = terms.state in (State.ENDED, State.CANCELLED)
        action = Remove(PlayerId(data.player_id), RemovalReason.ERASED, keep_row)
        return Decision(_with_someone_out(terms, entry), action)
    if (over := _over(terms)) is not None:
        return Decision(terms, over)
    match data:
        case ev.TournamentStarted() | ev.TournamentEnded() | ev.TournamentCancelled():
            return _decide_control(terms, entry)
        case ev.WagerPlaced() | ev.ScoreSubmitted():
            return _decide_play(terms, entry, data)
        case ev.PlayerJoined():
            return _decide_join(terms, entry, data)
        case ev.ScoreAdjusted():
            if terms.state is State.SCHEDULED:
                return Decision(terms, Disposition.NOT_STARTED)
            return Decision(terms, Adjust(PlayerId(data.player_id), data.delta))
        case ev.PlayerDisqualified():
            player_id = PlayerId(data.player_id)
            action = Remove(player_id, RemovalReason.DISQUALIFIED, keep_row=False)
            return Decision(_with_someone_out(terms, entry), action)
        case _:
            return Decision(terms, Disposition.UNSUPPORTED)


def _over(terms: Terms) -> Disposition | None:
    if terms.state is State.ENDED:
        return Disposition.TOURNAMENT_ENDED
    if terms.state is State.CANCELLED:
        return Disposition.TOURNAMENT_CANCELLED
    return None


def _decide_schedule(
    terms: Terms | None, entry: LogEntry, data: ev.TournamentScheduled
) -> Decision:
    control_id = event_key(entry.event).hex()
    rules = data.rules
    if terms is not None:
        if control_id in terms.control_ids:
            return Decision(terms, Disposition.DUPLICATE)
        if (over := _over(terms)) is not None:
            return Decision(terms, over)
    if isinstance(rules.scoring, LaterScoring) or rules.operator is Operator.BEST_OF:
        return Decision(terms, Disposition.UNSUPPORTED)
    if terms is not None and terms.state is State.RUNNING and _reorders(terms.rules, rules):
        # Scores of two orders or operators can't stand on one board.
        return Decision(terms, Disposition.UNSUPPORTED)
    ends_at_ms = ev.to_ms(data.ends_at)
    after = Terms(
        name=data.name,
        rules=rules,
        prizes=data.prizes,
        state=State.SCHEDULED if terms is None else terms.state,
        starts_at_ms=ev.to_ms(data.starts_at),
        ends_at_ms=ends_at_ms,
        created=entry.offset if terms is None else terms.created,
        revision=entry.offset,
        backfilled=entry.logged_at_ms >= ends_at_ms,
        stays_out=terms is not None and terms.stays_out,
        control_ids=_remember(terms, control_id),
    )
    return Decision(after, Disposition.APPLIED)


def _reorders(old: ev.Rules, new: ev.Rules) -> bool:
    return (old.order, old.operator, old.scoring.kind) != (
        new.order,
        new.operator,
        new.scoring.kind,
    )


def _decide_control(terms: Terms, entry: LogEntry) -> Decision:
    control_id = event_key(entry.event).hex()
    if control_id in terms.control_ids:
        return Decision(terms, Disposition.DUPLICATE)
    match entry.event.data:
        case ev.TournamentStarted():
            state = State.RUNNING
        case ev.TournamentEnded():
            state = State.ENDED
        case _:
            state = State.CANCELLED
    changes = {
        "state": state,
        "revision": entry.offset,
        "control_ids": _remember(terms, control_id),
    }
    return Decision(terms.model_copy(update=changes), Disposition.APPLIED)


def _decide_play(
    terms: Terms, entry: LogEntry, data: ev.WagerPlaced | ev.ScoreSubmitted
) -> Decision:
    if entry.event.time_ms < terms.starts_at_ms:
        return Decision(terms, Disposition.NOT_STARTED)
    if entry.event.time_ms >= terms.ends_at_ms:
        return Decision(terms, Disposition.TOURNAMENT_ENDED)
    terms = _running(terms, entry)
    earned = _earned(terms.rules, data)
    if isinstance(earned, Disposition):
        return Decision(terms, earned)
    if not earned.in_range():
        return Decision(terms, Refusal.SCORE_OUT_OF_RANGE)
    return Decision(terms, Earn(PlayerId(data.player_id), earned))


def _earned(rules: ev.Rules, data: ev.WagerPlaced | ev.ScoreSubmitted) -> Score | Disposition:
    if isinstance(data, ev.ScoreSubmitted):
        return rules.scoring.of_submission(data.score, data.subscore or 0)
    if rules.currency is not None and data.currency != rules.currency:
        return Disposition.WRONG_CURRENCY
    if rules.games is not None and data.game_id not in rules.games:
        return Disposition.WRONG_GAME
    if rules.min_stake_minor is not None and data.stake_minor < rules.min_stake_minor:
        return Disposition.BELOW_MINIMUM
    return rules.scoring.of_wager(data.stake_minor, data.win_minor)


def _decide_join(terms: Terms, entry: LogEntry, data: ev.PlayerJoined) -> Decision:
    if entry.event.time_ms >= terms.ends_at_ms:
        return Decision(terms, Disposition.TOURNAMENT_ENDED)
    if entry.event.time_ms >= terms.starts_at_ms:
        terms = _running(terms, entry)
    return Decision(terms, Join(PlayerId(data.player_id), data.display_name))


def _running(terms: Terms, entry: LogEntry) -> Terms:
    """The first event in its time starts a tournament, if nobody did so before."""
    if terms.state is not State.SCHEDULED:
        return terms
    return terms.model_copy(update={"state": State.RUNNING, "revision": entry.offset})


def _with_someone_out(terms: Terms, entry: LogEntry) -> Terms:
    if terms.stays_out:
        return terms
    return terms.model_copy(update={"stays_out": True, "revision": entry.offset})


def _remember(terms: Terms | None, control_id: str) -> tuple[str, ...]:
    known = () if terms is None else terms.control_ids
    return (*known, control_id)[-CONTROL_IDS:]


# --- step 2: rows ------------------------------------------------------------------------------


@dataclass(slots=True)
class Row:
    """A player's score, and the sequence at which the pair was reached."""

    score: Score
    reached: Offset


@dataclass(slots=True)
class SeenIds:
    """The ids of applied events: numbers per producer, else two generations of hashes.

    A generation is full at `limit`; then the older one is forgotten. So the window
    depends on the log alone and holds between one and two generations."""

    limit: int = REMEMBERED_IDS
    newer: set[bytes] = field(default_factory=set)
    older: set[bytes] = field(default_factory=set)
    numbers: dict[str, int] = field(default_factory=dict)

    def knows(self, event: ev.Event) -> bool:
        if event.sequence is not None:
            return event.sequence <= self.numbers.get(event.source, -1)
        key = event_key(event)
        return key in self.newer or key in self.older

    def add(self, event: ev.Event) -> None:
        if event.sequence is not None:
            self.numbers[event.source] = event.sequence
            return
        self.newer.add(event_key(event))
        if len(self.newer) >= self.limit:
            self.older, self.newer = self.newer, set()


@dataclass(frozen=True, slots=True)
class Applied:
    """What an action did: `APPLIED` with the change that someone can see, or why not."""

    verdict: Disposition | Refusal
    change: PositionChange | None = None


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

    def changed_terms(self, offset: Offset) -> None:
        """An event changed the terms: the sequence advances, whatever else becomes of the event
        (a wager of the wrong game that is the first in its time starts the tournament)."""
        self.sequence = offset

    def apply(self, rules: ev.Rules, entry: LogEntry, action: Action) -> Applied:
        """Do the action at the entry's place in the log, at most once."""
        if not self._rows and self._order is not rules.order:
            self._order = rules.order
        if self._seen.knows(entry.event):
            return Applied(Disposition.DUPLICATE)
        if isinstance(action, Remove):
            applied = self._remove(entry, action)
        elif (reason := self._out.get(self._mark(action.player_id))) is not None:
            return Applied(Disposition(reason.value))
        elif isinstance(action, Join):
            self._names[action.player_id] = action.display_name
            applied = Applied(Disposition.APPLIED)
        else:
            applied = self._score(rules, entry, action)
        if applied.verdict is Disposition.APPLIED:
            self._seen.add(entry.event)
            self.sequence = entry.offset
        return applied

    def _score(self, rules: ev.Rules, entry: LogEntry, action: Earn | Adjust) -> Applied:
        player_id = action.player_id
        if rules.join == "required" and player_id not in self._names:
            return Applied(Disposition.NOT_JOINED)
        row = self._rows.get(player_id)
        current = None if row is None else row.score
        if isinstance(action, Adjust):
            score = Score(action.delta) if current is None else current
            if current is not None:
                score = Score(current.score + action.delta, current.subscore)
        else:
            score = combine(rules.operator, rules.order, current, action.points)
        if not score.in_range():
            return Applied(Refusal.SCORE_OUT_OF_RANGE)
        if score == current:
            return Applied(Disposition.APPLIED)
        old_rank = None if row is None else self._rank(player_id)
        if row is not None:
            self._ranked.remove(player_id)
        self._rows[player_id] = Row(score, entry.offset)
        self._ranked.add(player_id)
        new_rank = self._rank(player_id)
        if not is_visible(old_rank, new_rank, rescored=True):
            return Applied(Disposition.APPLIED)
        change = self._change(entry, player_id, old_rank, new_rank, score)
        return Applied(Disposition.APPLIED, change)

    def _remove(self, entry: LogEntry, action: Remove) -> Applied:
        player_id = action.player_id
        mark = self._mark(player_id)
        self._out[mark] = action.reason
        self._names.pop(player_id, None)
        row = self._rows.get(player_id)
        if row is None:
            return Applied(Disposition.APPLIED)
        old_rank = self._rank(player_id)
        self._ranked.remove(player_id)
        del self._rows[player_id]
        if action.keep_row:
            self._rows[erased_name(mark)] = row
            self._ranked.add(erased_name(mark))
            return Applied(Disposition.APPLIED)
        change = self._change(entry, player_id, old_rank, None, row.score)
        return Applied(Disposition.APPLIED, change)

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

    def is_in(self, player_id: PlayerId) -> bool:
        """Whether the player has joined or has a standing."""
        return player_id in self._names or player_id in self._rows

    def _standing(self, rank: int, player_id: PlayerId) -> Standing:
        name = self._names.get(player_id)
        return Standing(rank, player_id, name, self._rows[player_id].score)
