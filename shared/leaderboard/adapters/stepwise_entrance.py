"""The questions of a decision about a connection, asked call by call, wherever the stores are."""

from __future__ import annotations

import logging

from leaderboard import telemetry
from leaderboard.errors import TransientError
from leaderboard.model import PlayerId, TournamentId
from leaderboard.ports import Board, Connections, Entered, Erasures, Grant, Sight

logger = logging.getLogger(__name__)


class StepwiseEntrance:
    """`ports.Entrance` over three other ports: each call of them is done when the next begins."""

    def __init__(self, erasures: Erasures, board: Board, connections: Connections) -> None:
        self._erasures = erasures
        self._board = board
        self._connections = connections

    def look(self, tournament_id: TournamentId, player_id: PlayerId) -> Sight:
        """As the port says."""
        erasure_id = self._erasures.id_of(player_id)
        if self._erasures.is_erased(player_id):
            return Sight(erasure_id, is_asked=True)
        tombstone: bool | None = None
        holder: str | None = None
        sockets = 0
        try:
            tombstone = self._board.is_erased(tournament_id, player_id)
            holder = self._connections.holder(tournament_id, player_id)
            sockets = self._connections.sockets(tournament_id)
        except TransientError as error:
            board_is_away(error)
        return Sight(
            erasure_id, is_asked=False, tombstone=tombstone, holder=holder, sockets=sockets
        )

    def enter(self, grant: Grant) -> Entered:
        """As the port says."""
        before = self._connections.lease(grant)
        is_erased = self._erasures.is_erased(grant.player_id)
        return Entered(before, is_erased, self._connections.sockets(grant.tournament_id))


def board_is_away(error: TransientError) -> None:
    """Say that the record has to be asked instead."""
    logger.warning("the board is away", extra=telemetry.fields(error=str(error)))
