"""The development gateway: Nchan's surface in one Python process, for a laptop without nginx.

    python -m leaderboard.stack.gateway

Players reach `/connect`, functions `/pub/<channel>` on a port of its own; both listen on loopback
only. It asks on-connect just as nginx does (`platform/gateway/nginx.conf.template`) and takes the
channels from that answer alone. Messages live in memory; sockets are served by one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
import time
from collections import OrderedDict, defaultdict, deque
from typing import Final

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import BaseModel, ConfigDict, Field

from leaderboard import telemetry
from leaderboard.errors import SettingsError
from leaderboard.settings import HttpUrl, Port, load
from leaderboard.stack.process import LOOPBACK

FRAME_BYTES: Final = 256 * 1024
QUEUED_FRAMES: Final = 256
"""What one socket may have waiting. Beyond it only the newest frame of each channel is kept."""
STALLED_SECONDS: Final = 10.0
CLOSING_SECONDS: Final = 2.0
MAX_CHANNELS: Final = 255
KEPT_CHANNELS: Final = 10_000
KEPT_SECONDS: Final = 24 * 3600
AUTHORIZE_SECONDS: Final = 5.0
GONE: Final = b"410 Gone"
NOT_FOR_SPEAKING: Final = b"403 Forbidden"
TIMED_OUT: Final = b"408 Request Timeout"

_ID: Final = r"[A-Za-z0-9_-]{1,64}"
_KEPT: Final = re.compile(rf"(?:top|curve)\.{_ID}(?:\.[1-7])?")
_PASSING: Final = re.compile(rf"me\.{_ID}\.{_ID}|conn\.{_ID}")
logger = logging.getLogger(__name__)


class DevelopmentGatewaySettings(BaseModel):
    """Ports on loopback, and whom to ask."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    public_port: Port = Field(alias="GATEWAY_PORT")
    publish_port: Port = Field(alias="GATEWAY_PUBLISH_PORT")
    authorize_url: HttpUrl = Field(alias="AUTHORIZE_URL")
    ping_seconds: float = Field(25, alias="GATEWAY_PING_SECONDS", gt=0, le=300)
    socket_seconds: float = Field(960, alias="GATEWAY_SOCKET_SECONDS", gt=0, le=86_400)


class _Subscriber:
    """One socket: a bounded queue, emptied by its own task, so it holds up nobody else."""

    def __init__(
        self, request: web.Request, socket: web.WebSocketResponse, channels: list[str]
    ) -> None:
        self.channels = channels
        self._request = request
        self._socket = socket
        self._queue: deque[tuple[str, str]] = deque()
        self._wake = asyncio.Event()
        self._end: tuple[int, bytes] | None = None

    def put(self, channel: str, text: str) -> None:
        """Queue a frame; never waits."""
        self._queue.append((channel, text))
        if len(self._queue) > QUEUED_FRAMES:
            newest = dict(self._queue)  # a later frame of a channel replaces the earlier ones
            self._queue = deque(newest.items())
        self._wake.set()

    def end(self, code: int, message: bytes) -> None:
        """Close the socket before anything else is sent; a stalled one is cut soon after."""
        self._end = (code, message)
        self._wake.set()
        asyncio.get_running_loop().call_later(CLOSING_SECONDS, self.cut)

    async def write(self) -> None:
        """Send what is queued until the socket ends; who takes nothing for 10 s is cut."""
        try:
            while self._end is None:
                await self._wake.wait()
                self._wake.clear()
                while self._queue and self._end is None:
                    async with asyncio.timeout(STALLED_SECONDS):
                        await self._socket.send_str(self._queue.popleft()[1])
            code, message = self._end
            await self._socket.close(code=code, message=message)
        except (TimeoutError, ConnectionError, RuntimeError):
            self.cut()

    async def finish(self, writer: asyncio.Task[None]) -> None:
        """Let the writer say goodbye if it was about to, then end it."""
        if self._end is not None:
            await asyncio.wait([writer], timeout=CLOSING_SECONDS)
        writer.cancel()

    def cut(self) -> None:
        """Drop the socket without a word."""
        if self._request.transport is not None:
            self._request.transport.abort()


class DevelopmentGateway:
    """Channels, their last messages, and who listens."""

    def __init__(self, settings: DevelopmentGatewaySettings) -> None:
        self._settings = settings
        self._subscribers: defaultdict[str, set[_Subscriber]] = defaultdict(set)
        self._kept: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._client: aiohttp.ClientSession | None = None
        self._published = 0

    # players

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """`GET /connect?ticket=…`: ask on-connect, then open what it says."""
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise web.HTTPUpgradeRequired()
        channels = await self._authorized(request)
        socket = web.WebSocketResponse(
            heartbeat=self._settings.ping_seconds, compress=False, max_msg_size=4096
        )
        await socket.prepare(request)
        subscriber = _Subscriber(request, socket, channels)
        for channel in channels:
            self._subscribers[channel].add(subscriber)
            if (kept := self._last(channel)) is not None:
                subscriber.put(channel, kept)
        loop = asyncio.get_running_loop()
        limit = loop.call_later(self._settings.socket_seconds, subscriber.end, 1000, TIMED_OUT)
        writer = asyncio.create_task(subscriber.write())
        try:
            async for _ in socket:
                subscriber.end(1008, NOT_FOR_SPEAKING)  # players listen; Nchan cuts them too
        finally:
            limit.cancel()
            for channel in channels:
                self._forget(channel, subscriber)
            await subscriber.finish(writer)
        return socket

    async def _authorized(self, request: web.Request) -> list[str]:
        assert self._client is not None  # noqa: S101 - set before the first request is served
        asked = {
            "X-Ticket": request.query.get("ticket", ""),
            "X-Forwarded-For": request.remote or "",
            "User-Agent": request.headers.get("User-Agent", ""),
        }
        try:
            async with self._client.get(self._settings.authorize_url, headers=asked) as answer:
                status, headers = answer.status, answer.headers
        except (aiohttp.ClientError, TimeoutError, ValueError):
            raise web.HTTPBadGateway() from None
        if status == 403:
            raise web.HTTPForbidden()
        if status >= 500:
            raise web.HTTPServiceUnavailable()
        channels = [name for name in headers.get("X-Channels", "").split(",") if name]
        if (
            headers.get("X-Accel-Redirect") != "/subscribe"
            or not 0 < len(channels) <= MAX_CHANNELS
            or not all(_is_channel(name) for name in channels)
        ):
            raise web.HTTPBadGateway()
        return list(dict.fromkeys(channels))

    def _forget(self, channel: str, subscriber: _Subscriber) -> None:
        listeners = self._subscribers.get(channel)
        if listeners is not None:
            listeners.discard(subscriber)
            if not listeners:
                del self._subscribers[channel]

    # functions

    async def publish(self, request: web.Request) -> web.Response:
        """`POST /pub/<channel>`: 201, or 202 without a subscriber."""
        channel = _named(request)
        text = (await request.read()).decode("utf-8", errors="replace")
        self._published += 1
        if _KEPT.fullmatch(channel):
            self._kept[channel] = (time.monotonic(), text)
            self._kept.move_to_end(channel)
            if len(self._kept) > KEPT_CHANNELS:
                self._kept.popitem(last=False)
        listeners = self._subscribers.get(channel, ())
        for subscriber in listeners:
            subscriber.put(channel, text)
        return self._state(channel, status=201 if listeners else 202)

    async def show(self, request: web.Request) -> web.Response:
        """`GET /pub/<channel>`: how it stands; 404 for one that nobody uses."""
        channel = _named(request)
        if channel not in self._subscribers and self._last(channel) is None:
            raise web.HTTPNotFound()
        return self._state(channel)

    async def close(self, request: web.Request) -> web.Response:
        """`DELETE /pub/<channel>`: drop it, and close every socket that holds it."""
        channel = _named(request)
        listeners = self._subscribers.get(channel, set())
        kept = self._last(channel)
        if not listeners and kept is None:
            raise web.HTTPNotFound()
        answer = self._state(channel)
        self._kept.pop(channel, None)
        for subscriber in tuple(listeners):
            for name in subscriber.channels:
                self._forget(name, subscriber)
            subscriber.end(1001, GONE)
        return answer

    def _last(self, channel: str) -> str | None:
        since, text = self._kept.get(channel, (0.0, None))
        return None if time.monotonic() - since > KEPT_SECONDS else text

    def _state(self, channel: str, status: int = 200) -> web.Response:
        queued = int(self._last(channel) is not None)
        listeners = len(self._subscribers.get(channel, ()))
        text = f"queued messages: {queued}\r\nactive subscribers: {listeners}\r\n"
        return web.Response(text=text, status=status)

    async def status(self, request: web.Request) -> web.Response:
        """`GET /status`: as `nchan_stub_status`, the part that means something here."""
        return web.Response(
            text=f"total published messages: {self._published}\n"
            f"stored messages: {len(self._kept)}\nchannels: {len(self._subscribers)}\n"
            f"subscribers: {len(self._sockets())}\n"
        )

    def _sockets(self) -> set[_Subscriber]:
        return {one for listeners in self._subscribers.values() for one in listeners}

    # life

    async def serve(self, stop: asyncio.Event) -> None:
        """Serve both ports until `stop`. Raises OSError when a port is taken."""
        public = web.Application(client_max_size=1024)
        public.router.add_get("/connect", self.connect, allow_head=False)
        publisher = web.Application(client_max_size=FRAME_BYTES)
        publisher.router.add_post("/pub/{channel}", self.publish)
        publisher.router.add_get("/pub/{channel}", self.show, allow_head=False)
        publisher.router.add_delete("/pub/{channel}", self.close)
        publisher.router.add_get("/healthz", _healthz)
        publisher.router.add_get("/status", self.status)
        limit = aiohttp.ClientTimeout(total=AUTHORIZE_SECONDS, connect=2)
        async with contextlib.AsyncExitStack() as stack:
            self._client = await stack.enter_async_context(
                aiohttp.ClientSession(timeout=limit, auto_decompress=False)
            )
            for app, port in (
                (public, self._settings.public_port),
                (publisher, self._settings.publish_port),
            ):
                runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
                await runner.setup()
                stack.push_async_callback(runner.cleanup)
                await web.TCPSite(runner, LOOPBACK, port, reuse_address=True).start()
            await stop.wait()
            for subscriber in self._sockets():
                subscriber.cut()


def _says_no_ticket(record: logging.LogRecord) -> bool:
    """aiohttp logs requests that it can't read with their first line, so with the ticket."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


def _is_channel(name: str) -> bool:
    return _KEPT.fullmatch(name) is not None or _PASSING.fullmatch(name) is not None


def _named(request: web.Request) -> str:
    channel = request.match_info["channel"]
    if not _is_channel(channel):
        raise web.HTTPNotFound()
    return channel


async def _healthz(request: web.Request) -> web.Response:
    return web.Response()


async def _run(settings: DevelopmentGatewaySettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await DevelopmentGateway(settings).serve(stop)


def main() -> int:
    """Run with settings from the environment; 2 for a wrong setting, 1 for a taken port."""
    telemetry.log_json()
    logging.getLogger("aiohttp.server").addFilter(_says_no_ticket)
    try:
        settings = load(DevelopmentGatewaySettings, os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        asyncio.run(_run(settings))
    except OSError as error:
        print(f"GATEWAY_PORT, GATEWAY_PUBLISH_PORT: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
