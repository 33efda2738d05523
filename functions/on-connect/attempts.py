"""Attempts to connect, each on the topic `connections` before its decision takes effect."""

from __future__ import annotations

import time
import uuid
from typing import Final, Protocol

from leaderboard import telemetry
from leaderboard.callers import network_of
from leaderboard.events import CONNECTIONS, ConnectionDecided, Event
from leaderboard.model import PlayerId, TournamentId
from leaderboard.ports import Feed, Outgoing

SOURCE: Final = "/on-connect"
MAX_USER_AGENT: Final = 512


class Records(Protocol):
    """Where attempts are recorded."""

    @property
    def feed(self) -> Feed: ...


class Attempt:
    """One attempt to connect, with what could be established about it."""

    def __init__(
        self, address: str, user_agent: str, tournament_id: TournamentId | None = None
    ) -> None:
        self._address = address
        self._user_agent = user_agent[:MAX_USER_AGENT]
        self.tournament_id = tournament_id
        self.player_id: PlayerId | None = None
        """Stays None for a player who was forgotten: the record must not know them again."""

    def comes_from(self, network: str | None) -> bool:
        """Whether it was made from there; a gateway that tells no address is believed."""
        return network is None or not self._address or network_of(self._address) == network

    def record(self, where: Records, reason: str, *, allowed: bool = False) -> None:
        """Publish `connection.decided`. Raises TransientError when that takes too long."""
        decided = ConnectionDecided(
            tournament_id=self.tournament_id,
            player_id=self.player_id,
            allowed=allowed,
            reason=reason,
            address=self._address or None,
            user_agent=self._user_agent or None,
        )
        event = Event(str(uuid.uuid4()), SOURCE, now_ms(), decided, subject=self.player_id)
        where.feed.publish([Outgoing(CONNECTIONS, event)])
        telemetry.CONNECTIONS.labels(reason).inc()


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
