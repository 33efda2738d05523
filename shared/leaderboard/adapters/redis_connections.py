"""Tickets and leases in Redis: who may open a socket, who holds one, which are due to be closed.

    ticket:<sha256 of the ticket>   the grant as JSON, gone when read or after its time
    {<tournament>}:sockets          hash: player → "<expires_ms>:<connection id>"; with the field ""
                                    once they were many, which never is over
    connections:due                 sorted set: connection id by the time to close it

The leases of a tournament and the set of due connections lie in different slots of a cluster, so
no script can hold both. The order makes up for it: a connection is put down as due *before* it
loses or gains the lease. A crash in between closes a socket too early, never too late.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from leaderboard.adapters.redis_client import RedisClient, ask, transient
from leaderboard.errors import TransientError
from leaderboard.frames import SPREAD_FROM
from leaderboard.model import PlayerId, TournamentId
from leaderboard.ports import Grant

DUE: Final = "connections:due"
TICKET_BYTES: Final = 32
MAX_TICKET_LENGTH: Final = 64
OPENING_MS: Final = 1000
"""A socket whose way in was just used may take this long until the gateway knows its channel."""
ATTEMPTS: Final = 16
LOOKED_AT: Final = 100
"""Leases, of which those that are over are let go, when there seem to be too many."""

# Compare and set: KEYS[1] the hash; ARGV: player, value expected ('' for none), new value ('' to
# remove), milliseconds that the hash has to live on, from how many leases on they are many. Answers
# 1, or the value that stands there in place of the one expected. Doing it twice is the same as
# once.
_SWAP: Final = """
local held = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if held == ARGV[3] then return 1 end
if held ~= ARGV[2] then return held end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
  return 1
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[5]) then
  redis.call('HSET', KEYS[1], '', '9007199254740991:')
end
return 1
"""


# KEYS[1] the hash; ARGV: how many to look at, now. Answers how many are left.
_LET_GO: Final = """
local some = redis.call('HRANDFIELD', KEYS[1], ARGV[1], 'WITHVALUES')
for i = 1, #some, 2 do
  if tonumber(string.match(some[i + 1], '^%d+')) <= tonumber(ARGV[2]) then
    redis.call('HDEL', KEYS[1], some[i])
  end
end
return redis.call('HLEN', KEYS[1])
"""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class RedisConnections:
    """`ports.Connections` on Redis. The clock decides only what has expired."""

    def __init__(self, client: RedisClient, now_ms: Callable[[], int] = _now_ms) -> None:
        self._client = client
        self._now_ms = now_ms

    def issue(self, grant: Grant, ttl_seconds: int) -> str:
        """A secret ticket for this grant, good once and for `ttl_seconds`. Kept hashed."""
        ticket = secrets.token_urlsafe(TICKET_BYTES)
        value = json.dumps(
            {
                "tournament_id": grant.tournament_id,
                "player_id": grant.player_id,
                "connection_id": grant.connection_id,
                "expires_at_ms": grant.expires_at_ms,
                "network": grant.network,
            }
        )
        ask(self._client, "SET", _ticket_key(ticket), value, "EX", ttl_seconds)
        return ticket

    def redeem(self, ticket: str) -> Grant | None:
        """What the ticket stands for, and its end; None for one unknown, used or too old.

        Should the answer get lost on its way, the ticket is used: the player asks for another."""
        if not 0 < len(ticket) <= MAX_TICKET_LENGTH:
            return None
        value: Any = ask(self._client, "GETDEL", _ticket_key(ticket))
        if value is None:
            return None
        found = json.loads(value)
        return Grant(
            TournamentId(found["tournament_id"]),
            PlayerId(found["player_id"]),
            found["connection_id"],
            found["expires_at_ms"],
            found.get("network"),
        )

    def lease(self, grant: Grant) -> str | None:
        """Make this the player's one connection until it expires; the id of the one before.

        Of several at once each learns of the one right before it, so none is forgotten."""
        value = lease_text(grant)
        self._put_due({grant.connection_id: grant.expires_at_ms})
        held = self._swap(grant.tournament_id, grant.player_id, value, grant.expires_at_ms)
        before = self._unexpired(held)
        return None if before == grant.connection_id else before

    def holder(self, tournament_id: TournamentId, player_id: PlayerId) -> str | None:
        """The id of the player's connection, None without one."""
        return self._unexpired(self._held(tournament_id, player_id))

    def live(self, tournament_id: TournamentId, players: Sequence[PlayerId]) -> frozenset[PlayerId]:
        """Those of `players` who hold a connection. One round trip."""
        if not players:
            return frozenset()
        with transient():
            values: Any = self._client.hmget(leases_key(tournament_id), list(players))
        return frozenset(
            player
            for player, value in zip(players, values, strict=True)
            if value is not None and self._unexpired(value) is not None
        )

    def sockets(self, tournament_id: TournamentId) -> int:
        """How many leases the tournament has, some of which may be over."""
        with transient():
            count: Any = self._client.hlen(leases_key(tournament_id))
        return int(count)

    def is_spread(self, tournament_id: TournamentId) -> bool:
        """As the port says."""
        with transient():
            return bool(self._client.hexists(leases_key(tournament_id), ""))

    def let_go(self, tournament_id: TournamentId) -> int:
        """As the port says. Looks at a hundred by chance."""
        key, now = leases_key(tournament_id), self._now_ms()
        with transient():
            left: Any = self._client.eval(_LET_GO, 1, key, str(LOOKED_AT), str(now))
        return int(left)

    def release(self, tournament_id: TournamentId, player_id: PlayerId) -> str | None:
        """End the player's lease; the id of the connection that they had."""
        return self._unexpired(self._swap(tournament_id, player_id, "", 0))

    def left(self, grant: Grant) -> None:
        """The socket of this grant has ended: it is not due any more, and the player's connection
        no longer, unless another one is by now."""
        key = leases_key(grant.tournament_id)
        with transient():
            self._client.eval(_SWAP, 1, key, grant.player_id, lease_text(grant), "", "0", "0")
        self.closed([grant.connection_id])

    def due(self, now_ms: int, limit: int) -> Sequence[str]:
        """Ids of connections to close now, oldest first."""
        with transient():
            found: Any = self._client.zrangebyscore(DUE, "-inf", now_ms, start=0, num=limit)
        return [connection_id.decode() for connection_id in found]

    def closed(self, connection_ids: Sequence[str]) -> None:
        """These were closed; they are due no more."""
        if connection_ids:
            with transient():
                self._client.zrem(DUE, *connection_ids)

    def count(self) -> int:
        """How many connections are held, or about to be closed."""
        with transient():
            return int(self._client.zcard(DUE))

    def _held(self, tournament_id: TournamentId, player_id: PlayerId) -> bytes:
        with transient():
            value: Any = self._client.hget(leases_key(tournament_id), player_id)
        return value or b""

    def _swap(
        self, tournament_id: TournamentId, player_id: PlayerId, value: str, until_ms: int
    ) -> bytes:
        """Put `value` in the place of the lease that stands there, which is due from then on."""
        held = b""  # Most players have none: then one call does it.
        for _ in range(ATTEMPTS):
            now = self._now_ms()
            if held:
                self._put_due({_connection_of(held): now + OPENING_MS})
            key, ttl = leases_key(tournament_id), max(until_ms - now, OPENING_MS)
            with transient():
                found: Any = self._client.eval(
                    _SWAP, 1, key, player_id, held, value, str(ttl), str(SPREAD_FROM)
                )
            if found == 1:
                return held
            held = found
        raise TransientError("the player opens connections faster than they can be counted")

    def _put_due(self, times_ms: Mapping[str, int]) -> None:
        """Earlier counts: what is to be closed soon does not get more time."""
        with transient():
            self._client.zadd(DUE, dict(times_ms), lt=True)

    def _unexpired(self, value: bytes) -> str | None:
        return lease_of(value, self._now_ms())


def lease_of(value: bytes, now_ms: int) -> str | None:
    """Whose connection a stored lease is; None where there is none, or it has expired."""
    expires_ms, _, connection_id = value.decode().partition(":")
    if not connection_id or int(expires_ms) <= now_ms:
        return None
    return connection_id


def lease_text(grant: Grant) -> str:
    """The lease of this grant, as it stands in the hash."""
    return f"{grant.expires_at_ms}:{grant.connection_id}"


def _connection_of(value: bytes) -> str:
    return value.decode().partition(":")[2]


def leases_key(tournament_id: TournamentId) -> str:
    """The hash of a tournament's leases."""
    return f"{{{tournament_id}}}:sockets"


def _ticket_key(ticket: str) -> str:
    return f"ticket:{hashlib.sha256(ticket.encode()).hexdigest()}"
