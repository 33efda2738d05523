"""The places that know a player, and how each of them tells that it no longer does.

A board tells it by the player's tombstone; who has none (it was let go after its end) is spoken
for by the record. What is asked once for the whole player stands in `LOOKED_AT`: a further place is
one line there. None of them is ever done by mistake: who is away says nothing, and stays pending.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from leaderboard import telemetry
from leaderboard.errors import TransientError
from leaderboard.frames import PARTS, for_part, top_frame
from leaderboard.guard import Guard
from leaderboard.model import TOP_VISIBLE, PlayerId, State, TournamentId
from leaderboard.ports import (
    BOARD_PLACE,
    Board,
    BoardView,
    Connections,
    Directory,
    Erasure,
    Erasures,
    Feed,
    Gateway,
)
from leaderboard.record_ports import Record, Requests, Snapshots

PENDING: Final = "pending"
DONE: Final = "done"
OVER: Final = (State.ENDED, State.CANCELLED)
EVENTS_PLACE: Final = "gdpr-events"
"""The request is in the log: other systems follow, and from now on it survives any store."""
TOURNAMENTS_PLACE: Final = "tournaments"
"""Every tournament that knows the player, also past ones, was told."""
SOCKETS_PLACE: Final = "sockets"
RECORD_PLACE: Final = "record"
AUDIT_PLACE: Final = "audit"
"""The keys behind the player's pseudonyms in the audit log are destroyed."""
REQUEST_PLACE: Final = "request"
"""The request itself, which knows the player for as long as any other place does: always last."""
RECORD_SECONDS: Final = 5.0
"""The longest that a question to the record takes."""
logger = logging.getLogger("erase")
T = TypeVar("T")
_in_time = Guard("the record", seconds=RECORD_SECONDS, breaks=False)


@dataclass(frozen=True)
class Ports:
    """Everywhere that knows a player. The record is made with each call until that works."""

    board: Board
    directory: Directory
    record: Callable[[], Record]
    snapshots: Callable[[], Snapshots]
    requests: Callable[[], Requests]
    erasures: Erasures
    feed: Feed
    connections: Connections
    gateway: Gateway


# --- boards ------------------------------------------------------------------------------------


def is_off_board(
    player_id: PlayerId, tournament_id: TournamentId, erasure: Erasure, ports: Ports
) -> bool:
    """Whether nothing shows the player in this tournament any more, nor the last `top` frame,
    which the gateway keeps for who comes next: it is sent anew."""
    if ports.board.is_erased(tournament_id, player_id):
        view = ports.board.top(tournament_id, TOP_VISIBLE)
    else:
        view = _past(tournament_id, erasure, ports)
        if view is None:
            return False
    if view is not None:
        # Also for a day after a board was let go; nobody else renews what is over.
        frame = top_frame(view)
        ports.gateway.publish([for_part(frame, part) for part in range(PARTS)])
    return True


def _past(tournament_id: TournamentId, erasure: Erasure, ports: Ports) -> BoardView | None:
    """The top by the record of a tournament whose board was let go after its end, without the
    player; None where it is not so (yet)."""
    if ports.directory.find(tournament_id) is not None:
        return None

    def ask() -> BoardView | None:
        # Asked first: what is read after it was applied does not show the player.
        if not _is_applied(tournament_id, erasure, ports):
            return None
        view = ports.record().top(tournament_id, TOP_VISIBLE)
        return view if view is not None and view.terms.state in OVER else None

    return said_by_record(ask)


# --- the whole player --------------------------------------------------------------------------


def is_out_of_record(player_id: PlayerId, erasure: Erasure, ports: Ports) -> bool:
    """Whether the record names the player nowhere, and never will: events of theirs that it has
    not read yet lie before the erasure in the log, so it has to have that of each tournament; in
    what lies beside them the mark keeps them out."""

    def ask() -> bool:
        record = ports.record()
        if not record.is_forgotten(erasure.erasure_id) or record.tournaments_of(player_id):
            return False
        told = [tournament_of(p) for p in erasure.places if p.startswith(BOARD_PLACE)]
        return all(_is_applied(tournament_id, erasure, ports) for tournament_id in told)

    return said_by_record(ask) or False


def is_out_of_audit(player_id: PlayerId, erasure: Erasure, ports: Ports) -> bool:
    """Whether nobody can tell any more whom the audit log speaks of: it has every erasure that was
    told, and no key of the player is left. `archive` sees to that, once nothing needs them."""

    def ask() -> bool:
        record = ports.record()
        if not record.is_forgotten(erasure.erasure_id):
            return False  # until then a key may still be drawn for their connections
        destroyed = record.pseudonyms(erasure.erasure_id)
        told = [tournament_of(p) for p in erasure.places if p.startswith(BOARD_PLACE)]
        return all(destroyed.values()) and all(map(destroyed.get, told))

    return said_by_record(ask) or False


LOOKED_AT: Final[Mapping[str, Callable[[PlayerId, Erasure, Ports], bool]]] = {
    RECORD_PLACE: is_out_of_record,
    AUDIT_PLACE: is_out_of_audit,
}
"""Places that are asked once everyone was told, each with the question whether it is done."""
PLACES: Final = (EVENTS_PLACE, TOURNAMENTS_PLACE, SOCKETS_PLACE, *LOOKED_AT, REQUEST_PLACE)
"""Of every erasure, beside its boards."""


def close_request(erasure: Erasure, now_ms: int, ports: Ports) -> bool:
    """Have the record forget whom the request is about. False while it can't, or has yet to read
    of it."""
    done_at_ms = {**erasure.done_at_ms, REQUEST_PLACE: now_ms}

    def close() -> bool:
        return ports.requests().close(erasure.erasure_id, done_at_ms, now_ms)

    return said_by_record(close) or False


def reopen_request(player_id: PlayerId, erasure: Erasure, ports: Ports) -> None:
    """Have the record keep whom a request is about that was done: without that it would end only
    as long as the store has it. Raises TransientError while it can't."""
    _in_time(lambda: ports.requests().reopen(erasure.erasure_id, player_id))


def said_by_record(ask: Callable[[], T]) -> T | None:
    """Never said by mistake: who is away says nothing (None)."""
    try:
        return _in_time(ask)
    except TransientError as error:
        logger.warning("the record is away", extra=telemetry.fields(error=str(error)))
        return None


def _is_applied(tournament_id: TournamentId, erasure: Erasure, ports: Ports) -> bool:
    applied = ports.snapshots().erasures(tournament_id)
    return any(erasure_id == erasure.erasure_id for erasure_id, _ in applied)


# --- names of places ---------------------------------------------------------------------------


def boards_pending(erasure: Erasure) -> list[str]:
    """Places of boards that still have to be looked at."""
    return [place for place in pending_of(erasure) if place.startswith(BOARD_PLACE)]


def pending_of(erasure: Erasure) -> list[str]:
    """Places that are not done."""
    return [place for place, state in erasure.places.items() if state == PENDING]


def place_of(tournament_id: TournamentId) -> str:
    """The place of a tournament's board."""
    return f"{BOARD_PLACE}{tournament_id}"


def tournament_of(place: str) -> TournamentId:
    """The tournament whose board the place is."""
    return TournamentId(place.removeprefix(BOARD_PLACE))
