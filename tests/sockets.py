"""Players' WebSockets for tests: real ones, driven from synchronous code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

import aiohttp
import pytest

T = TypeVar("T")
PATIENCE_SECONDS = 5.0


class PlayerSocket:
    """One open socket; messages queue up until they are taken."""

    def __init__(self, run: Callable[[Awaitable[Any]], Any], ws: Any) -> None:
        self._run = run
        self._ws = ws
        self._messages: queue.Queue[str] = queue.Queue()
        self._ended = threading.Event()
        self.close_code: int | None = None

    async def read(self) -> None:
        try:
            async for message in self._ws:
                if message.type is aiohttp.WSMsgType.TEXT:
                    self._messages.put(message.data)
        finally:
            self.close_code = self._ws.close_code
            self._ended.set()

    def next(self, timeout_seconds: float = PATIENCE_SECONDS) -> str:
        """The next frame. Raises queue.Empty when none comes."""
        return self._messages.get(timeout=timeout_seconds)

    def next_json(self, timeout_seconds: float = PATIENCE_SECONDS) -> Any:
        return json.loads(self.next(timeout_seconds))

    def is_silent(self, for_seconds: float = 0.3) -> bool:
        """Whether nothing comes for a while."""
        with contextlib.suppress(queue.Empty):
            self._messages.get(timeout=for_seconds)
            return False
        return True

    def ends(self, within_seconds: float = PATIENCE_SECONDS) -> bool:
        """Whether the other side closes the socket."""
        return self._ended.wait(within_seconds)

    def is_open(self) -> bool:
        return not self._ended.is_set()

    @property
    def is_deflating(self) -> bool:
        """Whether the gateway has agreed to compress what it sends."""
        return bool(self._ws.compress)

    def say(self, text: str) -> None:
        self._run(self._ws.send_str(text))

    def close(self) -> None:
        self._run(self._ws.close())


class Players:
    """Opens sockets, on an event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._session: aiohttp.ClientSession = self._run(self._open_session())
        self._readers: set[asyncio.Task[None]] = set()

    async def _open_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_SECONDS))

    def _run(self, awaitable: Awaitable[T]) -> T:
        async def waited() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(waited(), self._loop).result(20)

    def connect(
        self, url: str, headers: Mapping[str, str] | None = None, *, deflate: bool = False
    ) -> PlayerSocket:
        """Open a socket. Raises aiohttp.WSServerHandshakeError with the `status` otherwise.

        `deflate`: offer compression, as browsers do."""

        async def opened() -> PlayerSocket:
            compress = zlib.MAX_WBITS if deflate else 0
            ws = await self._session.ws_connect(url, headers=headers, compress=compress)
            socket = PlayerSocket(self._run, ws)
            task = asyncio.create_task(socket.read())
            self._readers.add(task)
            task.add_done_callback(self._readers.discard)
            return socket

        return self._run(opened())

    def refused(self, url: str, headers: Mapping[str, str] | None = None) -> int:
        """The status with which an upgrade is refused."""
        try:
            self.connect(url, headers)
        except aiohttp.WSServerHandshakeError as error:
            return error.status
        raise AssertionError("the socket was opened")

    def stop(self) -> None:
        async def closed() -> None:
            for task in tuple(self._readers):
                task.cancel()
            await asyncio.gather(*self._readers, return_exceptions=True)
            await self._session.close()
            await asyncio.sleep(0.05)

        self._run(closed())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="session")
def players() -> Iterator[Players]:
    """Someone to open sockets with."""
    opened = Players()
    yield opened
    opened.stop()


def eventually(holds: Callable[[], object], within_seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until `holds` says so; fails otherwise."""
    deadline = time.monotonic() + within_seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_seconds} s"
        time.sleep(0.01)
