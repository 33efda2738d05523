"""Requests to forget a player, one Redis hash each: `erasures:<id>`.

The hash lives for ever, because a player stays erased; the player's id stands in it only while
a place is pending. Nobody can tell from its name whom it is about without the key.

`erasures-pending` lists the requests that are not done, by the time at which they were opened. It
may name one that is done (a crash between two calls); who takes one off it looks once more whether
it was opened again meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from leaderboard.adapters.redis_client import RedisClient, transient
from leaderboard.errors import NotFoundError
from leaderboard.model import PlayerId, erasure_id_of
from leaderboard.ports import Erasure

_PLACE: Final = b"place:"
_DONE_AT: Final = b"done_at_ms:"
_PENDING: Final = "erasures-pending"

_BEGIN: Final = """
redis.call('HSETNX', KEYS[1], 'requested_at_ms', ARGV[2])
if redis.call('HEXISTS', KEYS[1], 'player_id') == 0 then
  redis.call('HSET', KEYS[1], 'opened_at_ms', ARGV[2])
end
redis.call('HSET', KEYS[1], 'player_id', ARGV[1])
return redis.call('HGETALL', KEYS[1])
"""

# What is done stays done: two requests at once can't reopen a place for one another.
_MARK: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
for i = 2, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], 'place:' .. ARGV[i]) ~= 'done' then
    redis.call('HSET', KEYS[1], 'place:' .. ARGV[i], ARGV[i + 1])
    if ARGV[i + 1] == 'done' then
      redis.call('HSETNX', KEYS[1], 'done_at_ms:' .. ARGV[i], ARGV[1])
    end
  end
end
local rows, places, pending = redis.call('HGETALL', KEYS[1]), 0, 0
for i = 1, #rows, 2 do
  if string.sub(rows[i], 1, 6) == 'place:' then
    places = places + 1
    if rows[i + 1] ~= 'done' then pending = pending + 1 end
  end
end
if places > 0 and pending == 0 then redis.call('HDEL', KEYS[1], 'player_id') end
return redis.call('HGETALL', KEYS[1])
"""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class RedisErasures:
    """`ports.Erasures` on Redis; `key` is the secret behind the ids."""

    def __init__(
        self, client: RedisClient, key: bytes, now_ms: Callable[[], int] = _now_ms
    ) -> None:
        self._client = client
        self._secret = key
        self._now_ms = now_ms

    def id_of(self, player_id: PlayerId) -> str:
        """The id that a request for this player has."""
        return erasure_id_of(self._secret, player_id)

    def begin(self, player_id: PlayerId, now_ms: int) -> Erasure:
        """Open the request, or open the one that exists again: it knows the player until the
        next `mark` finds nothing pending."""
        erasure_id = self.id_of(player_id)
        with transient():
            self._client.zadd(_PENDING, {erasure_id: now_ms}, nx=True)
            rows = self._client.eval(_BEGIN, 1, erasure_key(erasure_id), player_id, str(now_ms))
            # Before, so that a crash leaves none out; again, for `pending` drops a name that has no
            # request yet.
            self._client.zadd(_PENDING, {erasure_id: now_ms}, nx=True)
        return _erasure(erasure_id, rows)

    def find(self, erasure_id: str) -> Erasure | None:
        """The request of this id."""
        with transient():
            found: Any = self._client.hgetall(erasure_key(erasure_id))
        rows = [part for pair in found.items() for part in pair]
        return _erasure(erasure_id, rows) if rows else None

    def mark(self, erasure_id: str, places: Mapping[str, str]) -> Erasure:
        """Set the state of places (what is done stays done); when there are places and none is
        pending, the player's id is forgotten. Raises NotFoundError for an unknown request."""
        arguments = [part for pair in places.items() for part in pair]
        with transient():
            rows = self._client.eval(
                _MARK, 1, erasure_key(erasure_id), str(self._now_ms()), *arguments
            )
        if not rows:
            raise NotFoundError("there is no such erasure")
        erasure = _erasure(erasure_id, rows)
        if erasure.player_id is None:
            self._take_off(erasure_id)
        return erasure

    def pending(self, limit: int) -> tuple[int, Sequence[Erasure]]:
        """How many requests have a place pending, and the oldest of them."""
        with transient():
            listed: Any = self._client.zrange(_PENDING, 0, limit - 1)
        found = []
        for raw in listed:
            erasure = self.find(raw.decode())
            if erasure is None or erasure.player_id is None:
                self._take_off(raw.decode())
            else:
                found.append(erasure)
        with transient():
            return int(self._client.zcard(_PENDING)), found

    def opened_before(self, at_ms: int) -> int:
        """How many of those that have a place pending were opened before this time."""
        with transient():
            return int(self._client.zcount(_PENDING, "-inf", f"({at_ms}"))

    def restore(self, erasure_id: str, requested_at_ms: int) -> None:
        """The log says that there was such a request, and no more than that: a board that has
        applied it may still be shown by its last frame. What is known of it stays."""
        with transient():
            self._client.hsetnx(erasure_key(erasure_id), "requested_at_ms", str(requested_at_ms))

    def _take_off(self, erasure_id: str) -> None:
        with transient():
            self._client.zrem(_PENDING, erasure_id)
        # Whoever opens it again lists it before and after: either that is still to come, or it is
        # seen here.
        again = self.find(erasure_id)
        if again is not None and again.player_id is not None:
            with transient():
                self._client.zadd(_PENDING, {erasure_id: again.opened_at_ms}, nx=True)

    def is_erased(self, player_id: PlayerId) -> bool:
        """Whether the player has asked to be forgotten, ever."""
        with transient():
            return bool(self._client.exists(erasure_key(self.id_of(player_id))))


def erasure_key(erasure_id: str) -> str:
    """The one key of a request."""
    return f"erasures:{erasure_id}"


def _erasure(erasure_id: str, rows: Sequence[bytes]) -> Erasure:
    found = dict(zip(rows[::2], rows[1::2], strict=True))
    player_id = found.get(b"player_id")
    return Erasure(
        erasure_id=erasure_id,
        requested_at_ms=int(found[b"requested_at_ms"]),
        places={
            name.removeprefix(_PLACE).decode(): state.decode()
            for name, state in sorted(found.items())
            if name.startswith(_PLACE)
        },
        player_id=None if player_id is None else PlayerId(player_id.decode()),
        opened_at_ms=int(found.get(b"opened_at_ms", found[b"requested_at_ms"])),
        done_at_ms={
            name.removeprefix(_DONE_AT).decode(): int(at_ms)
            for name, at_ms in sorted(found.items())
            if name.startswith(_DONE_AT)
        },
    )
