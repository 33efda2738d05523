"""How far the boards are, kept beside them in Redis (`ports.Progress`).

progress:<log>:<partition>   hash: `:offset` → of the partition; tournament → of its board
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from leaderboard.adapters.redis_client import RedisClient, transient
from leaderboard.adapters.redis_scripts import Script
from leaderboard.model import Offset, TournamentId

_OFFSET: Final = ":offset"
"""No tournament is called so."""

# Harmless when it is done twice: the second time `known` is met, and nothing goes further.
# Arguments: known, offset, then tournament and offset in turn.
_ADVANCE = """
local stood = tonumber(redis.call('HGET', KEYS[1], ':offset') or -1)
if stood < tonumber(ARGV[1]) then return stood end
local function further(field, offset)
  local at = redis.call('HGET', KEYS[1], field)
  if not at or tonumber(offset) > tonumber(at) then
    redis.call('HSET', KEYS[1], field, offset)
  end
end
further(':offset', ARGV[2])
for i = 3, #ARGV, 2 do further(ARGV[i], ARGV[i + 1]) end
return stood
"""


class RedisProgress:
    """One hash a partition; a store that was emptied or lost its tail shows older numbers."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._advance = Script(client, _ADVANCE, read_only=False)

    def read(self, log_id: str, partition: int) -> Offset | None:
        with transient():
            found: Any = self._client.hget(_key(log_id, partition), _OFFSET)
        return None if found is None else Offset(int(found))

    def boards(self, log_id: str, partition: int) -> Mapping[TournamentId, Offset]:
        with transient():
            found: Any = self._client.hgetall(_key(log_id, partition))
        found.pop(_OFFSET.encode(), None)
        return {TournamentId(name.decode()): Offset(int(at)) for name, at in found.items()}

    def advance(
        self,
        log_id: str,
        partition: int,
        known: Offset | None,
        offset: Offset,
        boards: Mapping[TournamentId, Offset],
    ) -> Offset | None:
        least = -1 if known is None else known
        told = [part for pair in boards.items() for part in pair]
        stood = self._advance([_key(log_id, partition).encode()], least, offset, *told)
        return None if stood < 0 else Offset(stood)

    def forget(self, log_id: str, partition: int, tournaments: Sequence[TournamentId]) -> None:
        if tournaments:
            with transient():
                self._client.hdel(_key(log_id, partition), *tournaments)


def _key(log_id: str, partition: int) -> str:
    return f"progress:{log_id}:{partition}"
