"""(i) Memory: of Redis for a player on the board with exact ties, for a remembered id and for a
display name; of nginx for an open, idle socket.

Redis says how much it has handed out (`used_memory`), before and after. nginx is asked of the
system: what its processes hold resident.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
from redis import Redis

from bench.load import PLAYERS, T, player_of, schedule, wager
from bench.machine import resident_bytes
from bench.report import Bench, Measured
from gateways import Decider
from leaderboard import events as ev
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import connect
from leaderboard.adapters.redis_scripts import NAMES, keys_of
from leaderboard.fold import LogEntry
from leaderboard.model import Offset
from leaderboard.stack.nginx import NginxServer
from leaderboard.stack.servers import RedisServer, redis_program
from logs import LOG, START_MS, TOMBSTONE_KEY
from running import descendants

BATCH = 1_000
SOCKETS = 2_000
AT_ONCE = 5
"""Who decides here keeps no more waiting."""
FIRST = 50
SETTLES_SECONDS = 1.5
"""A hash table that grows moves its entries over in the background."""


def memory(bench: Bench) -> None:
    """Bytes for one of each."""
    players, sockets = bench.size(PLAYERS, 2_000), bench.size(SOCKETS, 50)

    @cache  # one filling tells three figures
    def board(run: int) -> dict[str, Measured]:
        return _board(players, run)

    bench.in_turns(
        "memory",
        "bytes",
        {
            "a player on the board": lambda run: board(run)["player"],
            "a remembered id": lambda run: board(run)["id"],
            "a display name": lambda run: board(run)["name"],
            "an open socket": lambda _: asyncio.run(_socket(sockets)),
        },
        better="lower",
    )


# --- the board -----------------------------------------------------------------------------------


def _board(players: int, run: int) -> dict[str, Measured]:
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder), program=redis_program())
        server.start()
        try:
            return _filled(server.url, players, run)
        finally:
            server.stop()


def _filled(url: str, players: int, run: int) -> dict[str, Measured]:
    client, board = Redis.from_url(url), RedisBoard(connect(url), TOMBSTONE_KEY)
    # The scripts are part of every Redis that has a board, not of a board.
    _apply(board, [schedule()], 0)
    empty = _used(client)
    wagers = [wager(p, 1 + (p * 7919 + run) % 10_000, p) for p in range(players)]
    _apply(board, wagers, 1)
    ids = _ids(client)
    full, by_key = _used(client), _by_key(client)
    _forget_ids(client)
    played = _used(client)
    _apply(board, [_joined(p) for p in range(players)], 1 + players)
    _forget_ids(client)
    named = _used(client)
    more = {f"{name}_bytes": round(size / players, 1) for name, size in by_key.items()}
    return {
        "player": Measured((played - empty) / players, {**more, "players": players}),
        "id": Measured((full - played) / ids, {"ids": ids}),
        "name": Measured((named - played) / players, {"letters": len(_name_of(0))}),
    }


def _joined(player: int) -> ev.Event:
    data = ev.PlayerJoined(
        tournament_id=T, player_id=player_of(player), display_name=_name_of(player)
    )
    return ev.Event(f"j-{player}", "/bench", START_MS + 1, data, subject=player_of(player))


def _name_of(player: int) -> str:
    return f"Name {player:06d}"


def _apply(board: RedisBoard, events: Sequence[ev.Event], first: int) -> None:
    """Apply, and confirm: no change waits in the outbox."""
    for start in range(0, len(events), BATCH):
        offset = first + start
        batch = [
            LogEntry(Offset(offset + n), START_MS, event)
            for n, event in enumerate(events[start : start + BATCH])
        ]
        board.apply(T, LOG, None, batch, Offset(offset - 1))
    board.apply(T, LOG, None, [], Offset(first + len(events) - 1))


def _used(client: Redis) -> int:
    time.sleep(SETTLES_SECONDS)
    told: Any = client.info("memory")
    used: int = told["used_memory"]
    return used


def _by_key(client: Redis) -> dict[str, int]:
    """What Redis says of each key; by samples, so only about right."""
    found = {}
    for name, key in zip(NAMES, keys_of(T), strict=True):
        used: Any = client.memory_usage(key.decode(), samples=1_000)
        if used:
            found[name] = int(used)
    return found


def _ids(client: Redis) -> int:
    keys = keys_of(T)
    counts: list[Any] = [client.scard(keys[place].decode()) for place in (4, 5)]
    return sum(counts)


def _forget_ids(client: Redis) -> None:
    keys = keys_of(T)
    client.delete(keys[4], keys[5])


# --- the gateway ---------------------------------------------------------------------------------


async def _socket(sockets: int) -> Measured:
    """nginx alone, with someone in on-connect's place who lets everybody in; each socket hears
    the channels that on-connect gives a player."""
    decider = Decider()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nginx = NginxServer(folder / "nginx", authorize_url=decider.url)
        try:
            nginx.start()
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                await _opened(session, nginx, decider, FIRST)  # what any first socket makes
                await asyncio.sleep(SETTLES_SECONDS)
                before = _resident(nginx)
                opened = await _opened(session, nginx, decider, sockets)
                await asyncio.sleep(SETTLES_SECONDS)
                after = _resident(nginx)
                assert not any(one.closed for one in opened)
        finally:
            nginx.stop()
            decider.stop()
    return Measured((after - before) / sockets, {"sockets": sockets, "nginx_bytes": after})


async def _opened(
    session: aiohttp.ClientSession, nginx: NginxServer, decider: Decider, count: int
) -> list[aiohttp.ClientWebSocketResponse]:
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> aiohttp.ClientWebSocketResponse:
        ticket, player = secrets.token_urlsafe(16), player_of(number)
        decider.grants[ticket] = f"top.{T},me.{T}.{player},curve.{T},conn.{number}-{ticket}"
        async with limit:
            return await session.ws_connect(f"{nginx.client_url}?ticket={ticket}")

    return await asyncio.gather(*(one(number) for number in range(count)))


def _resident(nginx: NginxServer) -> int:
    return sum(map(resident_bytes, (nginx.pid, *descendants(nginx.pid))))
