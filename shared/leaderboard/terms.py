"""The first step of the fold: what one event does to the terms of a tournament, and what it asks
of its players' rows. See `fold` for the whole.

No clock, no chance: time is the event's, order is the log's.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict

from leaderboard import events as ev
from leaderboard.errors import Refusal
from leaderboard.model import Disposition, Offset, PlayerId, Score, State
from leaderboard.ranking import Operator
from leaderboard.scoring import LaterScoring

CONTROL_IDS: Final = 64
"""Applied control events (schedule, start, …) remembered to find their duplicates."""


class LogEntry(NamedTuple):
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
    prewarm: Any = None
    """As it was scheduled (see `prewarming.wishes_of`)."""
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


class Earn(NamedTuple):
    """Combine `points` into the player's score by the rules' operator."""

    player_id: PlayerId
    points: Score


class Adjust(NamedTuple):
    """Add `delta` to the player's score, whatever the operator."""

    player_id: PlayerId
    delta: int


class Join(NamedTuple):
    """Enter the player, or renew the name."""

    player_id: PlayerId
    display_name: str | None


class Remove(NamedTuple):
    """Keep the player out for good. `keep_row`: the row stays, under an erased name."""

    player_id: PlayerId
    reason: RemovalReason
    keep_row: bool


Action = Earn | Adjust | Join | Remove
Verdict = Action | Disposition | Refusal
"""An action on a player; or a disposition (APPLIED: a change of terms); or a refusal."""


class Decision(NamedTuple):
    """What one event does: the terms after it, and the verdict."""

    terms: Terms | None
    verdict: Verdict


def event_key(event: ev.Event) -> bytes:
    """16 bytes that stand for `source` and `id`, the idempotency key of CloudEvents 1.0."""
    return event_key_of(event.source, event.id)


def event_key_of(source: str, event_id: str) -> bytes:
    """The same of the two alone."""
    return blake2b(f"{source}\n{event_id}".encode(), digest_size=16).digest()


def decide(terms: Terms | None, entry: LogEntry) -> Decision:
    """What `entry` does under `terms`. Pure; the terms come back changed where it changes them.

    Where several reasons speak against an event, the first of these is given: unknown
    tournament, its state, its time, the rules; what the players' rows know comes after."""
    data = entry.event.data
    if (
        type(data) is ev.WagerPlaced
        and terms is not None
        and terms.state is State.RUNNING
        and entry.offset >= terms.created
    ):
        return _decide_play(terms, entry, data)  # as below: nearly all there is
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
        prewarm=data.prewarm,
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
    time_ms = entry.event.time_ms
    if time_ms < terms.starts_at_ms:
        return Decision(terms, Disposition.NOT_STARTED)
    if time_ms >= terms.ends_at_ms:
        return Decision(terms, Disposition.TOURNAMENT_ENDED)
    terms = _running(terms, entry)
    earned = _earned(terms.rules, data)
    if isinstance(earned, Disposition):
        return Decision(terms, earned)
    if not earned.in_range():
        return Decision(terms, Refusal.SCORE_OUT_OF_RANGE)
    return Decision(terms, Earn(data.player_id, earned))  # type: ignore[arg-type]  # checked as an id


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
