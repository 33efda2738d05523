"""Connected players, as a process of its own: `python -m bench.watch`, spoken to in lines.

    > the plan, JSON    < {"tokens": n}
    > connect           < {"connected": n, "refused": n, "seconds": s, ...}
    > count             < {"cut": n, "frames": {kind: n}, "wire_bytes": n}
    > stop              < {}, and the frames in the plan's file

It shares the machine with what it measures, so it is as cheap as Python can be: bare sockets in
one loop, and of a message only its head is read. A compressed `top` is the same bytes for everyone,
so it is inflated once.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import resource
import socket
import sys
import time
import zlib
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

AT_ONCE: Final = 64
"""Players who ask for their way in at the same time."""
POSITION: Final = 0
TOP: Final = 1
_KINDS: Final = {b"position": POSITION, b"top": TOP}
_HEAD_BYTES: Final = 200
_HEAD: Final = re.compile(rb'\{"type":"(\w+)".*?"sequence":(\d+)')
_KEPT: Final = 64
Head = tuple[bytes, int]


class Frames:
    """What came: player, kind, sequence and time of each `position` and `top` frame."""

    def __init__(self) -> None:
        self.came = array("d")
        self.counted: Counter[bytes] = Counter()
        self.wire_bytes = 0
        self._inflated: dict[bytes, Head] = {}

    def note(self, player: int, payload: bytes, at: float, *, is_deflated: bool) -> None:
        kind, sequence = self._inflate(payload) if is_deflated else _head_of(payload)
        self.counted[kind] += 1
        if kind in _KINDS:
            self.came.extend((player, _KINDS[kind], sequence, at))

    def _inflate(self, payload: bytes) -> Head:
        head = self._inflated.get(payload)
        if head is None:
            text = zlib.decompressobj(-zlib.MAX_WBITS).decompress(payload + b"\0\0\xff\xff")
            head = _head_of(text)
            if len(self._inflated) >= _KEPT:
                self._inflated.clear()
            self._inflated[payload] = head
        return head


def _head_of(payload: bytes) -> Head:
    found = _HEAD.match(payload[:_HEAD_BYTES])
    assert found is not None, payload[:_HEAD_BYTES]
    return found[1], int(found[2])


class Socket:
    """One player's WebSocket (RFC 6455), after its handshake."""

    buffer = bytearray(256 * 1024)
    """What is read is looked at before the next read: one for all."""

    def __init__(self, player: int, raw: socket.socket, rest: bytes, frames: Frames) -> None:
        self._player, self._raw, self._rest, self._frames = player, raw, b"", frames
        self.is_cut = False
        if rest:
            self._take(rest)

    def readable(self) -> None:
        try:
            size = self._raw.recv_into(self.buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self.close(cut=True)
            return
        self._frames.wire_bytes += size
        self._take(self._rest + self.buffer[:size])

    def _take(self, data: bytes | bytearray) -> None:
        at, start, end = time.monotonic(), 0, len(data)
        while end - start >= 2:
            first, length, body = data[start], data[start + 1], start + 2
            if length == 126:
                body += 2
                if end < body:
                    break
                length = data[start + 2] << 8 | data[start + 3]
            elif length == 127:
                body += 8
                if end < body:
                    break
                length = int.from_bytes(data[start + 2 : body], "big")
            if end < body + length:
                break
            start = body + length
            self._message(first, bytes(data[body:start]), at)
        self._rest = bytes(data[start:])

    def _message(self, first: int, payload: bytes, at: float) -> None:
        match first & 0x0F:
            case 1:
                self._frames.note(self._player, payload, at, is_deflated=bool(first & 0x40))
            case 8:
                self.close(cut=True)
            case 9:
                # The answer to a ping; a mask of zeros leaves the payload as it is.
                self._raw.send(bytes((0x8A, 0x80 | len(payload), 0, 0, 0, 0)) + payload)

    def close(self, *, cut: bool = False) -> None:
        """`cut`: it was the other side who ended it."""
        if self._raw.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._raw)
            self._raw.close()
            self.is_cut = cut


class Http:
    """One keep-alive connection; opened again where the server has closed it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes = b"", token: str = "") -> tuple[int, Any]:
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
        head += f"Authorization: Bearer {token}\r\n" if token else ""
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        request = head.encode() + body
        is_fresh = self._streams is None
        try:
            return await self._exchange(request)
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            if is_fresh:
                raise
            return await self._exchange(request)

    async def _exchange(self, request: bytes) -> tuple[int, Any]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        if b"connection: close" in head:
            self.close()
        return int(head[9:12]), json.loads(body)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def open_socket(url: str, *, deflate: bool) -> tuple[socket.socket, bytes]:
    """The handshake; what came right behind it. Raises ConnectionError where it is refused."""
    parts, loop = urlsplit(url), asyncio.get_running_loop()
    raw = socket.socket()
    raw.setblocking(False)
    try:
        await loop.sock_connect(raw, (parts.hostname, parts.port))
        key = base64.b64encode(os.urandom(16)).decode()
        offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n" if deflate else ""
        request = (
            f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n{offer}\r\n"
        )
        await loop.sock_sendall(raw, request.encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = await loop.sock_recv(raw, 64 * 1024)
            if not piece:
                raise ConnectionError("closed in the handshake")
            answer += piece
        head, _, rest = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(head.partition(b"\r\n")[0].decode())
    except BaseException:
        raw.close()
        raise
    return raw, rest


@dataclass(frozen=True)
class Plan:
    """What the parent says first. `players` are known by their place in the list from then on."""

    issuer_url: str
    connect_url: str
    tournament_id: str
    players: list[str]
    frames_path: str
    deflate: bool


class Watch:
    """The players of one plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._frames = Frames()
        self._tokens: list[str] = []
        self._sockets: list[Socket] = []
        self._refused: Counter[str] = Counter()
        self._seconds: list[float] = []

    async def ask_for_tokens(self) -> dict[str, Any]:
        """As a player's own platform has given them one before."""
        issuer = Http(self._plan.issuer_url)
        for player in self._plan.players:
            asked = json.dumps({"subject": player, "roles": ["player"]}).encode()
            status, answer = await issuer.post("/token", asked)
            assert status == 200, answer
            self._tokens.append(answer["token"])
        issuer.close()
        return {"tokens": len(self._tokens)}

    async def connect(self) -> dict[str, Any]:
        """Ticket, then socket, for everyone; `AT_ONCE` of them at a time."""
        left = iter(range(len(self._tokens)))
        started = time.perf_counter()
        await asyncio.gather(*(self._connect_some(left) for _ in range(AT_ONCE)))
        seconds = time.perf_counter() - started
        self._seconds.sort()
        return {
            "connected": len(self._sockets),
            "refused": dict(self._refused),
            "seconds": round(seconds, 3),
            "p99_ms": round(self._seconds[int(len(self._seconds) * 0.99)] * 1000, 1),
        }

    async def _connect_some(self, left: Any) -> None:
        path = f"/v1/tournaments/{self._plan.tournament_id}/connections"
        http, loop = Http(self._plan.connect_url), asyncio.get_running_loop()
        for player in left:
            started = time.perf_counter()
            try:
                status, answer = await http.post(path, token=self._tokens[player])
                if status != 201:
                    raise ConnectionError(f"on-connect answered {status}")
                raw, rest = await open_socket(answer["url"], deflate=self._plan.deflate)
            except (OSError, EOFError) as error:
                self._refused[str(error)] += 1
                continue
            one = Socket(player, raw, rest, self._frames)
            self._sockets.append(one)
            loop.add_reader(raw, one.readable)
            self._seconds.append(time.perf_counter() - started)
        http.close()

    def count(self) -> dict[str, Any]:
        """What came so far."""
        return {
            "cut": sum(one.is_cut for one in self._sockets),
            "frames": {kind.decode(): n for kind, n in self._frames.counted.items()},
            "wire_bytes": self._frames.wire_bytes,
        }

    def stop(self) -> dict[str, Any]:
        """Write the frames down, and leave."""
        with Path(self._plan.frames_path).open("wb") as file:
            self._frames.came.tofile(file)
        for one in self._sockets:
            one.close()
        return {}


async def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop = asyncio.get_running_loop()

    async def heard() -> str:
        return await loop.run_in_executor(None, sys.stdin.readline)

    watch = Watch(Plan(**json.loads(await heard())))
    print(json.dumps(await watch.ask_for_tokens()), flush=True)
    while line := (await heard()).strip():
        match line:
            case "connect":
                told = await watch.connect()
            case "count":
                told = watch.count()
            case _:
                told = watch.stop()
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
