"""The frames that players' sockets carry: JSON, one a WebSocket message (see the contract)."""

from __future__ import annotations

import json
from typing import Final

from leaderboard.events import PositionChanged
from leaderboard.model import TOP_VISIBLE, masked
from leaderboard.ports import BoardView, Curve, Frame

CURVE_STEPS: Final = 100
PARTS: Final = 8
"""Channels that carry what everyone of a large tournament sees: each has some of the sockets."""
SOCKETS_A_PART: Final = 128
SPREAD_FROM: Final = 64
"""From so many sockets on all parts are served: before anyone is given a later one."""
MILESTONES: Final = ((10, "top_10"), (100, "top_100"))


def position_frame(old_rank: int | None, newest: PositionChanged) -> Frame:
    """What one player is told of their own place; `old_rank` is the one they were told last."""
    body = {
        "type": "position",
        "tournament_id": newest.tournament_id,
        "sequence": newest.sequence,
        "old_rank": old_rank,
        "new_rank": newest.new_rank,
        "score": newest.score,
        "distance": newest.distance,
        "milestone": milestone(old_rank, newest.new_rank),
    }
    return Frame(f"me.{newest.tournament_id}.{newest.player_id}", _json(body))


def milestone(old_rank: int | None, new_rank: int | None) -> str | None:
    """The best circle that the player has just entered, None for none."""
    if new_rank is None:
        return None
    for size, name in MILESTONES:
        if new_rank <= size:
            return name if old_rank is None or old_rank > size else None
    return None


def part_of(sockets: int) -> int:
    """Which part the newest of a tournament's `sockets` (1 or more) belongs to.

    A gateway that hands one frame to thousands does nothing else meanwhile, so theirs goes out part
    by part. The first sockets fill one part after the other: a small tournament has only one."""
    return (sockets - 1) // SOCKETS_A_PART % PARTS


def in_part(channel: str, part: int) -> str:
    """The channel of a part: `top.<t>` of the first, `top.<t>.<n>` of the others."""
    return channel if part == 0 else f"{channel}.{part}"


def for_part(frame: Frame, part: int) -> Frame:
    """The same frame for those who are in this part."""
    return Frame(in_part(frame.channel, part), frame.body)


def top_frame(view: BoardView) -> Frame:
    """The standings of `view` as everyone sees them; the version is the board's sequence."""
    body = {
        "type": "top",
        "tournament_id": view.tournament_id,
        "version": view.sequence,
        "sequence": view.sequence,
        "players": view.players,
        "standings": [
            [s.rank, s.player_id, s.display_name or masked(s.player_id), s.score.score]
            for s in view.standings
        ],
    }
    return Frame(f"top.{view.tournament_id}", _json(body))


def curve_ranks(players: int) -> list[int]:
    """Some 200 ranks that show where any score stands: every one of the first 100 players, then
    each a fixed factor further down, to the last.

    Between two neighbours a rank is known to within that factor: 2 % of it with 1,000 players,
    7 % with 100,000 and 10 % with 1,000,000."""
    exact = list(range(1, min(players, TOP_VISIBLE) + 1))
    if players <= TOP_VISIBLE:
        return exact
    factor = players / TOP_VISIBLE
    further = (TOP_VISIBLE * factor ** (i / CURVE_STEPS) for i in range(1, CURVE_STEPS + 1))
    return sorted({*exact, *(round(rank) for rank in further)})


def curve_frame(curve: Curve) -> Frame:
    """Scores by rank, from which everyone's page tells its own player's live rank."""
    body = {
        "type": "curve",
        "tournament_id": curve.tournament_id,
        "sequence": curve.sequence,
        "points": [list(point) for point in curve.points],
    }
    return Frame(f"curve.{curve.tournament_id}", _json(body))


def tournament_frame(view: BoardView) -> Frame:
    """A tournament's new state, on the channel that everyone has."""
    body = {
        "type": "tournament",
        "tournament_id": view.tournament_id,
        "sequence": view.sequence,
        "state": view.terms.state.value,
    }
    return Frame(f"top.{view.tournament_id}", _json(body))


def _json(body: dict[str, object]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
