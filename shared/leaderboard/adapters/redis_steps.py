"""What `board_apply.lua` is asked and what it answers, step by step.

The numbers and letters here are those of the script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgpack

from leaderboard.errors import Refusal
from leaderboard.fold import (
    Action,
    Adjust,
    Earn,
    Join,
    LogEntry,
    RemovalReason,
    Remove,
    Terms,
    event_key,
)
from leaderboard.model import (
    Cause,
    Disposition,
    Offset,
    PositionChange,
    Score,
    TournamentId,
    erased_name,
)

_EARN, _ADJUST, _JOIN, _ERASE, _DISQUALIFY, _ERASE_KEEPING, _MUST_JOIN = 1, 2, 3, 4, 5, 6, 10
VERDICTS: Final[dict[int, Disposition | Refusal]] = {
    ord("A"): Disposition.APPLIED,
    ord("D"): Disposition.DUPLICATE,
    ord("E"): Disposition.PLAYER_ERASED,
    ord("Q"): Disposition.PLAYER_DISQUALIFIED,
    ord("J"): Disposition.NOT_JOINED,
    ord("R"): Refusal.SCORE_OUT_OF_RANGE,
    ord("S"): Disposition.SKIPPED,
}
"""By the byte that the script answers for a step."""
_CHANGE_FIELDS: Final = 11


def step_of(terms: Terms, entry: LogEntry, action: Action, mark: bytes) -> tuple[object, ...]:
    """The thirteen fields of one step. `mark` is the player's tombstone, empty where nobody can
    be out."""
    event = entry.event
    if type(action) is Earn and not mark and terms.rules.join != "required":
        # Nearly all there is; the fields are those below.
        return (
            entry.offset, _EARN, action.player_id, event_key(event), *action.points, b"", False,
            event.source, event.id, event.time_ms, event.traceparent or False,
            False if event.sequence is None else event.sequence,
        )  # fmt: skip
    op, score, name = _ERASE, Score(0), b""
    match action:
        case Earn():
            op, score = _EARN, action.points
        case Adjust():
            op, score = _ADJUST, Score(action.delta)
        case Join():
            op, name = _JOIN, (action.display_name or "").encode()
        case Remove(reason=RemovalReason.DISQUALIFIED):
            op = _DISQUALIFY
        case Remove(keep_row=True):
            op, name = _ERASE_KEEPING, erased_name(mark).encode()
    if terms.rules.join == "required" and op in (_EARN, _ADJUST):
        op += _MUST_JOIN
    return (
        entry.offset,
        op,
        action.player_id,
        event_key(event),
        score.score,
        score.subscore,
        name,
        mark or False,
        event.source,
        event.id,
        event.time_ms,
        event.traceparent or False,
        False if event.sequence is None else event.sequence,
    )


def verdicts_of(packed: Sequence[Any]) -> Iterator[tuple[int, Disposition | Refusal]]:
    """What one chunk of the outbox tells of events that were not applied, by their offsets.

    Flat, offset and word in turn. Sound events that do not count are packed once more in the
    offset's place, so that whoever knows only of refusals goes past them."""
    for at, word in zip(packed[::2], packed[1::2], strict=True):
        if not isinstance(at, bytes):
            yield at, Refusal(word.decode())
            continue
        uncounted = msgpack.unpackb(at, raw=True)
        for offset, reason in zip(uncounted[::2], uncounted[1::2], strict=True):
            yield offset, Disposition(reason.decode())


def changes_of(
    tournament_id: TournamentId, packed: Sequence[Any], confirmed: Offset | None
) -> Iterator[PositionChange]:
    """The changes of one chunk of the outbox, without those that are confirmed."""
    fields = iter(packed)
    for at, player, old, new, score, sub, gap, source, event_id, time_ms, trace in zip(
        *[fields] * _CHANGE_FIELDS, strict=True
    ):
        if confirmed is not None and at <= confirmed:
            continue
        yield PositionChange(
            tournament_id,
            player.decode(),
            at,
            old or None,
            new or None,
            Score(score, sub),
            None if gap is False else gap,
            Cause(source.decode(), event_id.decode()),
            time_ms,
            trace.decode() if trace else None,
        )
