"""How far the boards are, kept beside them in Redis (`ports.Progress`)."""

from __future__ import annotations

from leaderboard.adapters.redis_client import RedisClient, transient
from leaderboard.model import Offset

# Harmless when it is done twice: the second time `known` is met, and nothing goes further.
_ADVANCE = """
local stood = tonumber(redis.call('GET', KEYS[1]) or -1)
if stood >= tonumber(ARGV[1]) and tonumber(ARGV[2]) > stood then
  redis.call('SET', KEYS[1], ARGV[2])
end
return stood
"""


class RedisProgress:
    """One number a partition; a store that was emptied or lost its tail shows an older one."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def read(self, log_id: str, partition: int) -> Offset | None:
        with transient():
            found = self._client.get(_key(log_id, partition))
        return None if found is None else Offset(int(found))

    def advance(
        self, log_id: str, partition: int, known: Offset | None, offset: Offset
    ) -> Offset | None:
        least = -1 if known is None else known
        with transient():
            stood: int = self._client.eval(
                _ADVANCE, 1, _key(log_id, partition), str(least), str(offset)
            )
        return None if stood < 0 else Offset(stood)


def _key(log_id: str, partition: int) -> str:
    return f"progress:{log_id}:{partition}"
