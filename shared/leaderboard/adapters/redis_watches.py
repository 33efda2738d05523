"""What fraud detection has seen, kept beside the boards in Redis (`fraud_ports.Watches`).

{T}:watch   list: <d offset, then msgpack of the whole; behind it, for each batch, <d offset, then
            msgpack of what was seen in it
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import msgpack

from leaderboard.adapters.redis_client import RedisClient, transient
from leaderboard.adapters.redis_scripts import Script
from leaderboard.fraud import Piece, Watch
from leaderboard.fraud_ports import Watched
from leaderboard.model import Offset, TournamentId

KEPT_SECONDS: Final = 7 * 24 * 3600
"""After the last write: as long as the log itself."""

# Harmless when it is done twice: the second time the list stands at the offset already.
# Arguments: the offset that it has to stand at (-1: it is empty), the offset of the chunk, the
# chunk, whether it stands for all before it, seconds to keep the list.
_KEEP = """
local last = redis.call('LINDEX', KEYS[1], -1)
local stands = last and struct.unpack('<d', last) or -1
if stands == tonumber(ARGV[2]) and ARGV[4] == '0' then return 1 end
if stands ~= tonumber(ARGV[1]) then return 0 end
if ARGV[4] == '1' then redis.call('UNLINK', KEYS[1]) end
redis.call('RPUSH', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[5])
return 1
"""


class RedisWatches:
    """One list a tournament. For one thread."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._keep = Script(client, _KEEP, read_only=False)

    def read(self, tournament_id: TournamentId) -> Watched | None:
        with transient():
            chunks: Any = self._client.lrange(_key(tournament_id).decode(), 0, -1)
        if not chunks:
            return None
        (offset,) = struct.unpack("<d", chunks[-1][:8])
        log_id, plain = msgpack.unpackb(chunks[0][8:], strict_map_key=False)
        pieces = [_piece(one) for chunk in chunks[1:] for one in msgpack.unpackb(chunk[8:])]
        return Watched(log_id, Offset(int(offset)), plain, pieces)

    def append(
        self, tournament_id: TournamentId, after: Offset, offset: Offset, pieces: Sequence[Piece]
    ) -> bool:
        return self._kept(tournament_id, after, offset, msgpack.packb(pieces), is_whole=False)

    def replace(
        self,
        tournament_id: TournamentId,
        log_id: str,
        after: Offset | None,
        offset: Offset,
        watch: Watch,
    ) -> bool:
        packed = msgpack.packb([log_id, watch.plain()])
        stands = Offset(-1) if after is None else after
        return self._kept(tournament_id, stands, offset, packed, is_whole=True)

    def _kept(
        self,
        tournament_id: TournamentId,
        after: Offset,
        offset: Offset,
        packed: bytes,
        *,
        is_whole: bool,
    ) -> bool:
        chunk = struct.pack("<d", offset) + packed
        given = (after, offset, chunk, int(is_whole), KEPT_SECONDS)
        return bool(self._keep([_key(tournament_id)], *given))


def _piece(packed: Sequence[Any]) -> Piece:
    return Piece(*packed)


def _key(tournament_id: TournamentId) -> bytes:
    return f"{{{tournament_id}}}:watch".encode()
