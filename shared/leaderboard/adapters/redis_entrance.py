"""The questions of a decision about a connection in one round trip each, where one server has all.

`look` reads three places; in which order does not matter, since `enter` looks for the erasure once
more when the lease stands. `enter` is one script there: what is due, the lease and the look at
the erasure are one step, in this order, so a write that is refused leaves the ones after it undone.

A cluster keeps the three in different slots, often on different nodes, which know no order among
each other and fail one by one: there everything goes call by call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from redis import RedisCluster
from redis.exceptions import NoScriptError

from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import RedisClient, answer_of, in_one_trip
from leaderboard.adapters.redis_connections import (
    DUE,
    OPENING_MS,
    RedisConnections,
    lease_of,
    lease_text,
    leases_key,
)
from leaderboard.adapters.redis_erasures import RedisErasures, erasure_key
from leaderboard.adapters.redis_scripts import Script
from leaderboard.adapters.stepwise_entrance import StepwiseEntrance, board_is_away
from leaderboard.errors import TransientError
from leaderboard.frames import SPREAD_FROM
from leaderboard.model import PlayerId, TournamentId
from leaderboard.ports import Entered, Grant, Sight

# Keys: due, leases, erasure. Arguments: player, connection id, its lease, its end, the end of the
# one before, milliseconds that the leases have to live on, leases from which they are many. Answers
# the lease before, '' for none, 1 where there is an erasure, and how many leases there are. Doing
# it twice is the same as once.
_ENTER: Final = """
local held = redis.call('HGET', KEYS[2], ARGV[1]) or ''
redis.call('ZADD', KEYS[1], 'LT', ARGV[4], ARGV[2])
if held ~= '' and held ~= ARGV[3] then
  redis.call('ZADD', KEYS[1], 'LT', ARGV[5], string.sub(held, string.find(held, ':', 1, true) + 1))
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
if redis.call('PTTL', KEYS[2]) < tonumber(ARGV[6]) then
  redis.call('PEXPIRE', KEYS[2], ARGV[6])
end
local count = redis.call('HLEN', KEYS[2])
if count > tonumber(ARGV[7]) then
  redis.call('HSET', KEYS[2], '', '9007199254740991:')
end
return {held, redis.call('EXISTS', KEYS[3]), count}
"""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class RedisEntrance:
    """`ports.Entrance` on Redis; `key` is the secret behind tombstones and erasures."""

    def __init__(
        self, client: RedisClient, key: bytes, now_ms: Callable[[], int] = _now_ms
    ) -> None:
        self._client = client
        self._now_ms = now_ms
        self._erasures = RedisErasures(client, key)
        self._board = RedisBoard(client, key)
        self._connections = RedisConnections(client, now_ms)
        self._stepwise = StepwiseEntrance(self._erasures, self._board, self._connections)
        self._enter = Script(client, _ENTER, read_only=False)

    def look(self, tournament_id: TournamentId, player_id: PlayerId) -> Sight:
        """As the port says."""
        if isinstance(self._client, RedisCluster):
            return self._stepwise.look(tournament_id, player_id)
        erasure_id = self._erasures.id_of(player_id)
        asked, tombstone, lease, sockets = in_one_trip(
            self._client,
            ("EXISTS", erasure_key(erasure_id)),
            self._board.erased_command(tournament_id, player_id),
            ("HGET", leases_key(tournament_id), player_id),
            ("HLEN", leases_key(tournament_id)),
        )
        if answer_of(asked):
            return Sight(erasure_id, is_asked=True)
        try:
            return Sight(
                erasure_id,
                is_asked=False,
                tombstone=self._tombstone(tournament_id, player_id, tombstone),
                holder=lease_of(answer_of(lease) or b"", self._now_ms()),
                sockets=answer_of(sockets),
            )
        except TransientError as error:
            board_is_away(error)
            return Sight(erasure_id, is_asked=False)

    def enter(self, grant: Grant) -> Entered:
        """As the port says."""
        if isinstance(self._client, RedisCluster):
            return self._stepwise.enter(grant)
        now = self._now_ms()
        held, is_erased, sockets = self._enter(
            (
                DUE.encode(),
                leases_key(grant.tournament_id).encode(),
                erasure_key(self._erasures.id_of(grant.player_id)).encode(),
            ),
            grant.player_id,
            grant.connection_id,
            lease_text(grant),
            grant.expires_at_ms,
            now + OPENING_MS,
            max(grant.expires_at_ms - now, OPENING_MS),
            SPREAD_FROM,
        )
        before = lease_of(held, now)
        before = None if before == grant.connection_id else before
        return Entered(before, bool(is_erased), sockets)

    def _tombstone(
        self, tournament_id: TournamentId, player_id: PlayerId, answer: Any
    ) -> bool | None:
        if isinstance(answer, NoScriptError):  # a server that was started anew
            return self._board.is_erased(tournament_id, player_id)
        return self._board.told_erased(answer_of(answer))
