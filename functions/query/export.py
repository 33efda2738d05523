"""What a player gets who asks what is held on them: `GET /v1/players/{p}/export`.

A page at a time, from the record, with the standing of each tournament as its board has it now.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field

from leaderboard.errors import ForbiddenError
from leaderboard.guard import Guard
from leaderboard.hosts.http import STAFF, Answer, Call, ProblemError
from leaderboard.model import PlayerId, State, TournamentId
from leaderboard.reads import Reads
from leaderboard.record_ports import Held, Holdings

MAX_THINGS: Final = 500
"""On a page: with the largest events that are taken, 16 MB."""
SECONDS: Final = 10.0
"""The longest that a page may take the record."""


class ExportQuery(BaseModel):
    """`after` is the `next` of the page before."""

    limit: Annotated[int, Field(ge=1, le=MAX_THINGS)] = 100
    after: Annotated[str, Field(max_length=512)] | None = None


class StandingNow(BaseModel):
    rank: int
    score: int
    subscore: int | None = None
    source: Literal["board", "record"]


class HeldTournament(BaseModel):
    """A tournament that knows the player; `removed`: disqualified there."""

    kind: Literal["tournament"]
    tournament_id: str
    name: str
    state: State
    display_name: str | None
    joined: bool
    removed: bool
    standing: StandingNow | None


class HeldEvent(BaseModel):
    """An event of the player with its data as they came; `became`: whether it counted, or why
    not."""

    kind: Literal["event"]
    tournament_id: str
    type: str
    source: str
    id: str
    time: str
    received_at: str
    became: str
    data: dict[str, Any]


class HeldPositionChange(BaseModel):
    kind: Literal["position_change"]
    tournament_id: str
    sequence: int
    time: str
    old_rank: int | None
    new_rank: int | None
    score: int
    distance: int | None


class HeldConnectionAttempt(BaseModel):
    """An attempt to open a socket, from where, and what was answered."""

    kind: Literal["connection_attempt"]
    tournament_id: str | None
    time: str
    allowed: bool
    reason: str
    address: str | None
    user_agent: str | None


class HeldRefusedEvent(BaseModel):
    """An event that could not be taken and names the player; `value` only where it is about
    them."""

    kind: Literal["refused_event"]
    topic: str
    time: str
    reason: str | None
    value: str | None


class HeldFraudAlert(BaseModel):
    """A suspicion that names the player, and what was decided about it; `evidence` and `reason`
    only where it is about nobody else."""

    kind: Literal["fraud_alert"]
    tournament_id: str
    rule: str
    time: str
    evidence: dict[str, Any] | None
    state: Literal["open", "confirmed", "dismissed"]
    decided_at: str | None
    reason: str | None


class HeldErasureRequest(BaseModel):
    """The player has asked to be forgotten, and that is not done everywhere."""

    kind: Literal["erasure_request"]
    requested_at: str


HeldThing = Annotated[
    HeldTournament
    | HeldEvent
    | HeldPositionChange
    | HeldConnectionAttempt
    | HeldFraudAlert
    | HeldRefusedEvent
    | HeldErasureRequest,
    Field(discriminator="kind"),
]


class ExportPage(BaseModel):
    """Some of what is held. With `next` there may be more, also behind an empty page; null: this
    was the last. Who was forgotten, or never here, gets one empty page."""

    player_id: str
    things: list[HeldThing]
    next: str | None


@dataclass(frozen=True)
class Exports:
    """Where it comes from; the record is made with each call until that works."""

    reads: Reads
    holdings: Callable[[], Holdings]


_in_time = Guard("the record", seconds=SECONDS, breaks=False)


def export(call: Call, exports: Exports) -> Answer:
    """Everything that is held on a player, a page at a time: for themselves, and for staff."""
    player_id = call.path["player_id"]
    caller = call.authenticated()
    if not caller.roles & STAFF and caller.subject != player_id:
        raise ForbiddenError("a player gets what is held on themselves only")
    query = call.query

    def ask() -> Held:
        return exports.holdings().page(PlayerId(player_id), query.after, query.limit)

    try:
        held = _in_time(ask)
    except ValueError as error:
        raise ProblemError(404, f"after: {error}") from None
    things = [dict(one) for one in held.things]
    for one in things:
        if one["kind"] == "tournament":
            one["standing"] = _standing(one["tournament_id"], player_id, exports.reads)
    body = {"player_id": player_id, "things": things, "next": held.after}
    return Answer(body, headers={"Cache-Control": "no-store"})


def _standing(tournament_id: str, player_id: str, reads: Reads) -> dict[str, Any] | None:
    seen = reads.player(TournamentId(tournament_id), PlayerId(player_id))
    if seen is None or not seen.view.standings:
        return None
    own = seen.view.standings[0]
    told = {"rank": own.rank, "score": own.score.score, "source": seen.source.value}
    if seen.view.terms.has_subscores:
        told["subscore"] = own.score.subscore
    return told
