"""How many replicas are wanted now, folded from the schedule.

Each tournament claims replicas from some time before its start until it is over; claims add up, and
the ceiling bounds their sum. KEDA asks for the floor of a Deployment; a Knative Service gets it as
`min-scale` of its revisions, and its own value back afterwards. Pure: the clock is the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leaderboard.events import format_time_ms
from leaderboard.model import State, TournamentId
from leaderboard.ports import Revision, Summary
from leaderboard.terms import Terms

BY_PARTITION: Final = frozenset({"on-wager", "on-rank-change", "archive"})
"""These share the partitions of a topic: their floors divide the ceiling, which is how many there
are, so that nobody holds more partitions than another (as KEDA rounds its own figures)."""
SERVICES: Final = frozenset({"query", "on-connect", "on-wager-http"})
"""Knative Services that players and producers reach: KEDA can't scale those."""
KNOWN: Final = BY_PARTITION | SERVICES | {"gateway"}

_MINUTE_MS: Final = 60_000
LATE_MS: Final = _MINUTE_MS
"""Of the lead so much may be missing before it is worth a word."""


class Wishes(BaseModel):
    """What a tournament says of its size; what it does not say is as the policy has it.

    `floor` is the replicas of each function for this tournament alone (0: none), and goes before
    `expected_players`. `lead_minutes` before the start they are wanted. Unknown fields are
    ignored."""

    model_config = ConfigDict(strict=True, frozen=True)

    floor: Annotated[int, Field(ge=0, le=10_000)] | None = None
    expected_players: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    lead_minutes: Annotated[int, Field(ge=0, le=24 * 60)] | None = None


class Policy(NamedTuple):
    """What holds for every tournament. 1 ≤ least ≤ ceiling, floor ≤ ceiling."""

    least: int = 2
    """Replicas without any tournament."""
    floor: int = 10
    """Replicas of each function for a tournament that says nothing of its size."""
    ceiling: int = 50
    players_per_replica: int = 10_000
    lead_minutes: int = 30
    end_grace_ms: int = 60_000
    """So long after its end a tournament may still be without its `tournament.ended`."""


class Claim(NamedTuple):
    """Replicas that one tournament wants, from `begins_ms` on and before `ends_ms`."""

    tournament_id: TournamentId
    replicas: int
    begins_ms: int
    ends_ms: int


class Peak(NamedTuple):
    """The largest sum of claims within a window: when, and whose."""

    at_ms: int
    replicas: int
    tournaments: Sequence[TournamentId]


class Concern(StrEnum):
    """What a schedule can't have."""

    TOO_LATE = "too_late"
    ABOVE_CEILING = "above_ceiling"


# --- claims ------------------------------------------------------------------------------------


def wishes_of(terms: Terms) -> Wishes:
    """What the schedule asks for; nothing where that can't be understood."""
    try:
        return Wishes() if terms.prewarm is None else Wishes.model_validate(terms.prewarm)
    except ValidationError:
        return Wishes()


def claim_of(tournament_id: TournamentId, terms: Terms, policy: Policy) -> Claim | None:
    """The claim of one tournament; None where it is over, wants nothing, or is only replayed."""
    if terms.backfilled or terms.state not in (State.SCHEDULED, State.RUNNING):
        return None
    wishes = wishes_of(terms)
    replicas = _replicas(wishes, policy)
    if replicas == 0:
        return None
    lead = policy.lead_minutes if wishes.lead_minutes is None else wishes.lead_minutes
    begins_ms = terms.starts_at_ms - lead * _MINUTE_MS
    if terms.state is State.RUNNING:
        begins_ms = min(begins_ms, 0)  # staff may start it at any time before
    # Its end is written by a timer: should that be away, replicas don't run for ever.
    return Claim(tournament_id, replicas, begins_ms, terms.ends_at_ms + policy.end_grace_ms)


def claims_of(tournaments: Iterable[Summary], policy: Policy) -> list[Claim]:
    """All claims, also those that lie ahead."""
    found = (claim_of(one.tournament_id, one.terms, policy) for one in tournaments)
    return [claim for claim in found if claim is not None]


def claimed(claims: Iterable[Claim], now_ms: int) -> int:
    """The replicas that are claimed at a moment, whatever the ceiling."""
    return sum(one.replicas for one in claims if one.begins_ms <= now_ms < one.ends_ms)


def floor_of(function: str, replicas: int, policy: Policy) -> int:
    """The floor of one function where so many replicas are claimed: between `least` and `ceiling`,
    and for those that share partitions a divisor of the ceiling."""
    floor = min(max(replicas, policy.least), policy.ceiling)
    if function not in BY_PARTITION:
        return floor
    return next(n for n in range(floor, policy.ceiling + 1) if policy.ceiling % n == 0)


def peak(claims: Sequence[Claim], begins_ms: int, ends_ms: int) -> Peak:
    """The largest sum in [begins_ms, ends_ms), at the first moment that has it."""
    changes = [(begins_ms, 0)]
    for one in claims:
        if one.begins_ms < ends_ms and one.ends_ms > begins_ms:
            changes += [(max(one.begins_ms, begins_ms), one.replicas), (one.ends_ms, -one.replicas)]
    highest, at_ms, replicas = 0, begins_ms, 0
    for moment, change in sorted(changes):  # of those at one moment the ends come first
        replicas += change
        if replicas > highest:
            highest, at_ms = replicas, moment
    within = [one.tournament_id for one in claims if one.begins_ms <= at_ms < one.ends_ms]
    return Peak(at_ms, highest, within)


def concerns(
    claim: Claim, terms: Terms, others: Iterable[Claim], now_ms: int, policy: Policy
) -> dict[Concern, str]:
    """What speaks against the claim of these terms, made at `now_ms`, in words for who makes it."""
    found: dict[Concern, str] = {}
    if terms.state is State.SCHEDULED and claim.begins_ms + LATE_MS < now_ms:
        lead = terms.starts_at_ms - claim.begins_ms
        left = max(terms.starts_at_ms - now_ms, 0)
        found[Concern.TOO_LATE] = (
            f"It starts in {left / _MINUTE_MS:.0f} min, and replicas are wanted "
            f"{lead / _MINUTE_MS:.0f} min before: they are asked for at once and may come late."
        )
    known = [claim, *(one for one in others if one.tournament_id != claim.tournament_id)]
    highest = peak(known, max(claim.begins_ms, now_ms), claim.ends_ms)
    if highest.replicas > policy.ceiling:
        names = ", ".join(sorted(highest.tournaments)[:5])
        more = ", …" if len(highest.tournaments) > 5 else ""
        found[Concern.ABOVE_CEILING] = (
            f"{highest.replicas} replicas of each function are claimed at "
            f"{format_time_ms(highest.at_ms)} ({names}{more}), and {policy.ceiling} is the ceiling."
        )
    return found


def _replicas(wishes: Wishes, policy: Policy) -> int:
    if wishes.floor is not None:
        return wishes.floor
    if wishes.expected_players is not None:
        return -(-wishes.expected_players // policy.players_per_replica)
    return policy.floor


# --- revisions of Knative Services -------------------------------------------------------------

_PREFIX: Final = "autoscaling.knative.dev/"
MIN_SCALE: Final = f"{_PREFIX}min-scale"
RAISED: Final = f"{_PREFIX}leaderboard-raised"
"""What we did to a revision: `own` is its value before (null: none), `set` is ours.

Knative copies every annotation of a revision to its pods, and so replaces them all when one
changes, but for those with this prefix: they go to the autoscaler only."""


def change_of(revision: Revision, floor: int) -> Mapping[str, str | None]:
    """The annotations to set (None: to remove) so that the revision has this floor, or its own
    where that is higher or nobody is routed to it. Empty where all is as it should be.

    Bounded by the revision's own `max-scale` and `activation-scale`: Knative refuses a floor above
    them. A value that somebody else set over ours is their own from then on."""
    annotations = revision.annotations
    current, raised = annotations.get(MIN_SCALE), _raised(annotations)
    own = raised["own"] if raised is not None and raised["set"] == current else current
    limits = (_number(annotations, name) for name in ("max-scale", "activation-scale"))
    allowed = min([floor, *(limit for limit in limits if limit)])
    own_scale = _int(own) if own is not None else _int(annotations.get(f"{_PREFIX}minScale"))
    if not revision.is_routed or allowed <= own_scale:
        wanted: dict[str, str | None] = {MIN_SCALE: own, RAISED: None}
    else:
        mark = json.dumps({"own": own, "set": str(allowed)})
        wanted = {MIN_SCALE: str(allowed), RAISED: mark}
    return {name: text for name, text in wanted.items() if annotations.get(name) != text}


def _raised(annotations: Mapping[str, str]) -> Mapping[str, Any] | None:
    """What we wrote down; None where nothing is, or somebody else wrote over it."""
    try:
        mark = json.loads(annotations.get(RAISED, ""))
    except ValueError:
        return None
    if not isinstance(mark, dict) or not isinstance(mark.get("set"), str):
        return None
    return mark if isinstance(mark.get("own", 0), str | None) else None


def _number(annotations: Mapping[str, str], name: str) -> int:
    """A bound of the revision, under Knative's name for it or the older one; 0: there is none."""
    head, _, tail = name.partition("-")
    older = f"{_PREFIX}{head}{tail.title()}"
    return _int(annotations.get(f"{_PREFIX}{name}", annotations.get(older)))


def _int(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() else 0
