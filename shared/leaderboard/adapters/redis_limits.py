"""Quotas in Redis, exact: the times of those who got through, one list a quota and caller.

    limit:{<quota>:<hash>}   microseconds of the server's clock, oldest first, at most `most`

A request gets through when fewer than `most` did in the window that ends with it; so no window of
that length, wherever it begins, has more (a bucket that refills would let nearly twice as many
through in some). One call each, by the server's own clock: processes need not agree on the time.
The list ends with its window. Callers are hashed: an address or a name is never in a key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from leaderboard.adapters.redis_client import RedisClient, check, may_ride
from leaderboard.adapters.redis_scripts import Script
from leaderboard.callers import Counted, Quota

# KEYS[1] the list. ARGV: how many, the window in µs. Answers 1 or 0, how many are left, and the
# microseconds until there is room for more.
#
# A clock that was put back (a replica took over) stands still until it is where it was; by more
# than a window, and nobody could wait for that: counting begins anew. The list lives a second
# longer than its window: it must not go a moment before its times do.
COUNT: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local most, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local last = tonumber(redis.call('LINDEX', KEYS[1], -1) or 0)
if last > now + window then
  redis.call('UNLINK', KEYS[1])
elseif last > now then
  now = last
end
local first = redis.call('LINDEX', KEYS[1], 0)
while first and tonumber(first) <= now - window do
  redis.call('LPOP', KEYS[1])
  first = redis.call('LINDEX', KEYS[1], 0)
end
first = tonumber(first or now)
local count = redis.call('LLEN', KEYS[1])
if count >= most then
  local freeing = tonumber(redis.call('LINDEX', KEYS[1], count - most))
  return {0, 0, freeing + window - now}
end
redis.call('RPUSH', KEYS[1], string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(window / 1000) + 1000)
return {1, most - count - 1, first + window - now}
"""


class RedisLimits:
    """`callers.Limits` on Redis, single or clustered. Safe for several threads.

    An answer has failed that takes longer than `answer_seconds`. Where the client waits no longer
    than that, counting goes with the next thing that the thread asks the server: see `Rider`."""

    def __init__(self, client: RedisClient, answer_seconds: float = 0.5) -> None:
        self._client = client
        self._answer_seconds = answer_seconds
        self._count = Script(client, COUNT, read_only=False)
        self._rides = may_ride(client, answer_seconds)

    def begin(self, quota: Quota, who: str) -> _Counting:
        """As the port says."""
        keys, window = [key_of(quota, who)], quota.seconds * 1_000_000
        if self._rides:
            return _Counting(self._count.riding(keys, quota.most, window))
        sent = self._count.begin(keys, quota.most, window)
        return _Counting(partial(sent.answer, within_seconds=self._answer_seconds))

    def check(self) -> None:
        """As the port says."""
        check(self._client)


class _Counting:
    def __init__(self, told: Callable[[], Any]) -> None:
        self._told = told

    def answer(self) -> Counted:
        answer: Any = self._told()
        is_within, left, more_us = answer
        return Counted(bool(is_within), left, more_us)


def key_of(quota: Quota, who: str) -> bytes:
    """Where this caller's times are."""
    hashed = hashlib.sha256(who.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"limit:{{{quota.name}:{hashed}}}".encode()
