"""How far the boards are, kept beside them in Redis (`ports.Progress`)."""

from __future__ import annotations

from leaderboard.adapters.redis_client import RedisClient, transient
from leaderboard.model import Offset

_FURTHER = """
local known = tonumber(redis.call('GET', KEYS[1]) or -1)
if tonumber(ARGV[1]) > known then redis.call('SET', KEYS[1], ARGV[1]) end
"""


class RedisProgress:
    """One number a partition; a store that was emptied or lost its tail shows an older one."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def read(self, log_id: str, partition: int) -> Offset | None:
        with transient():
            found = self._client.get(_key(log_id, partition))
        return None if found is None else Offset(int(found))

    def advance(self, log_id: str, partition: int, offset: Offset) -> None:
        with transient():
            self._client.eval(_FURTHER, 1, _key(log_id, partition), str(offset))


def _key(log_id: str, partition: int) -> str:
    return f"progress:{log_id}:{partition}"
