"""Azure Web PubSub as its documentation describes it, small: one hub, clients without subprotocol.

    python -m web_pubsub_service      with PORT, HUB, KEYS (two, by a comma), UPSTREAM

Requests are believed by the rules of the data plane (HS256, `aud` the whole URL, `exp`); clients by
their access token and by what the event handler answers to `connect`. Before the first event the
handler is asked whether it takes events from here. `/control` is the tests' own: what to answer
instead, and what was asked.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import time
from collections import defaultdict
from typing import Any, Final

import aiohttp
from aiohttp import web
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from leaderboard.adapters.web_pubsub_events import signature

API_VERSION: Final = "2024-12-01"
MAX_MESSAGE_BYTES: Final = 1024 * 1024
MAX_BUFFERED_BYTES: Final = 4 * 1024 * 1024
WEB_SOCKET: Final = "websocket"


class Socket:
    """One client's connection."""

    def __init__(self, request: web.Request, ws: web.WebSocketResponse, user_id: str) -> None:
        self.connection_id = secrets.token_urlsafe(16)
        self.user_id = user_id
        self.state = ""
        self.groups: set[str] = set()
        self.request = request
        self.ws = ws
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._buffered = 0

    def put(self, text: str) -> None:
        self._buffered += len(text)
        if self._buffered > MAX_BUFFERED_BYTES:
            self.cut()  # `SlowClient`
        else:
            self._queue.put_nowait(text)

    def end(self) -> None:
        self._queue.put_nowait(None)

    def cut(self) -> None:
        if self.request.transport is not None:
            self.request.transport.abort()

    async def write(self) -> None:
        try:
            while (text := await self._queue.get()) is not None:
                await self.ws.send_str(text)
                self._buffered -= len(text)
            await self.ws.close(code=1000)
        except (ConnectionError, RuntimeError):
            self.cut()


class Service:
    """One hub."""

    def __init__(self, port: int, hub: str, keys: list[str], upstream: str) -> None:
        self._endpoint = f"http://127.0.0.1:{port}"
        self._host = f"127.0.0.1:{port}"
        self._hub = hub
        self._keys = keys
        self._upstream = upstream
        self._groups: defaultdict[str, set[Socket]] = defaultdict(set)
        self._asked: list[dict[str, Any]] = []
        self._instead: list[dict[str, Any]] = []
        self._is_allowed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._client: aiohttp.ClientSession | None = None

    # clients

    async def client(self, request: web.Request) -> web.StreamResponse:
        """`GET /client/hubs/{hub}`."""
        if request.headers.get("Upgrade", "").lower() != WEB_SOCKET:
            raise web.HTTPBadRequest
        claims = self._claims(
            request.query.get("access_token", ""), f"{self._endpoint}/client/hubs/{self._hub}"
        )
        if request.match_info["hub"] != self._hub or claims is None:
            raise web.HTTPUnauthorized
        ws = web.WebSocketResponse(compress=False, max_msg_size=MAX_MESSAGE_BYTES)
        socket = Socket(request, ws, str(claims.get("sub", "")))
        told = await self._connect(socket, claims)
        socket.user_id = str(told.get("userId") or socket.user_id)
        if not socket.user_id:
            raise web.HTTPUnauthorized  # nobody may be nobody
        await ws.prepare(request)
        socket.groups = set(told.get("groups") or claims.get("webpubsub.group", []))
        for group in socket.groups:
            self._groups[group].add(socket)
        writer = asyncio.create_task(socket.write())
        self._tell(socket, "connected", {})
        try:
            async for message in ws:
                if not await self._heard(socket, message):
                    socket.end()
        finally:
            for group in socket.groups:
                self._groups[group].discard(socket)
            await asyncio.wait([writer], timeout=1)
            writer.cancel()
            self._tell(socket, "disconnected", {"reason": ""})
        return ws

    async def _connect(self, socket: Socket, claims: dict[str, Any]) -> dict[str, Any]:
        """What the handler answers to `connect`; its refusal is the client's answer."""
        request = socket.request
        seen = [*request.headers.getall("X-Forwarded-For", []), request.remote or ""]
        headers = {name: request.headers.getall(name) for name in request.headers}
        headers["X-Forwarded-For"] = [", ".join(seen)]
        query = {n: request.query.getall(n) for n in request.query if n != "access_token"}
        told = {
            "claims": {n: v if isinstance(v, list) else [str(v)] for n, v in claims.items()},
            "query": query,
            "headers": headers,
            "subprotocols": [],
            "clientCertificates": [],
        }
        try:
            status, head, body = await self._event(socket, "sys.connect", json.dumps(told).encode())
        except (aiohttp.ClientError, TimeoutError):
            raise web.HTTPInternalServerError from None
        if 400 <= status < 500:
            raise _status(status)
        if status not in (200, 204):
            raise web.HTTPInternalServerError
        socket.state = head.get("ce-connectionState", "")
        return json.loads(body) if status == 200 and body else {}

    async def _heard(self, socket: Socket, message: aiohttp.WSMessage) -> bool:
        if message.type is not aiohttp.WSMsgType.TEXT:
            return False
        try:
            status, _, _ = await self._event(socket, "user.message", message.data.encode())
        except (aiohttp.ClientError, TimeoutError):
            return False
        return 200 <= status < 300

    def _tell(self, socket: Socket, name: str, body: dict[str, str]) -> None:
        async def told() -> None:
            try:
                await self._event(socket, f"sys.{name}", json.dumps(body).encode())
            except (aiohttp.ClientError, TimeoutError, web.HTTPException):
                logging.exception("%s was not told", name)

        task = asyncio.create_task(told())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _event(self, socket: Socket, kind: str, body: bytes) -> tuple[int, Any, bytes]:
        await self._ask_whether_allowed()
        name = kind.partition(".")[2]
        signatures = [signature(key.encode(), socket.connection_id) for key in self._keys]
        headers = {
            "WebHook-Request-Origin": self._host,
            "Content-Type": "text/plain" if kind == "user.message" else "application/json",
            "ce-specversion": "1.0",
            "ce-awpsversion": "1.0",
            "ce-type": f"azure.webpubsub.{kind}",
            "ce-source": f"/hubs/{self._hub}/client/{socket.connection_id}",
            "ce-id": "0",
            "ce-time": "2026-01-01T00:00:00Z",
            "ce-signature": ",".join(signatures),
            "ce-connectionId": socket.connection_id,
            "ce-hub": self._hub,
            "ce-eventName": name,
        }
        if socket.user_id:
            headers["ce-userId"] = socket.user_id
        if socket.state:
            headers["ce-connectionState"] = socket.state
        assert self._client is not None
        async with self._client.post(self._upstream, data=body, headers=headers) as answer:
            return answer.status, answer.headers, await answer.read()

    async def _ask_whether_allowed(self) -> None:
        if self._is_allowed:
            return
        assert self._client is not None
        asked = {"WebHook-Request-Origin": self._host, "ce-awpsversion": "1.0"}
        async with self._client.options(self._upstream, headers=asked) as answer:
            allowed = answer.headers.get("WebHook-Allowed-Origin", "").split(",")
        if answer.status != 200 or not {self._host, "*"} & {one.strip() for one in allowed}:
            raise web.HTTPInternalServerError
        self._is_allowed = True

    # the data plane

    @web.middleware
    async def checked(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Whether a request is believed, and what a test wants it to get."""
        if not request.path.startswith("/api/"):
            return await handler(request)  # type: ignore[no-any-return]
        body = await request.read()
        self._asked.append(
            {"method": request.method, "url": str(request.rel_url), "at": time.time()}
        )
        if request.query.get("api-version") != API_VERSION:
            return web.Response(status=400)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or self._claims(token, f"{self._endpoint}{request.raw_path}") is None:
            return web.Response(status=401)
        if self._instead:
            instead = self._instead.pop(0)
            return web.Response(status=instead["status"], headers=instead.get("headers", {}))
        if request.match_info.get("hub") != self._hub:
            return web.Response(status=404)
        if len(body) > MAX_MESSAGE_BYTES:
            return web.Response(status=413)
        return await handler(request)  # type: ignore[no-any-return]

    async def send(self, request: web.Request) -> web.Response:
        """`POST /api/hubs/{hub}/groups/{group}/:send`."""
        if request.content_type not in ("application/json", "text/plain"):
            return web.Response(status=415)
        text = (await request.read()).decode()
        for socket in tuple(self._groups.get(request.match_info["group"], ())):
            socket.put(text)
        return web.Response(status=202)

    async def close(self, request: web.Request) -> web.Response:
        """`POST /api/hubs/{hub}/groups/{group}/:closeConnections`."""
        for socket in tuple(self._groups.get(request.match_info["group"], ())):
            socket.end()
        return web.Response(status=204)

    async def exists(self, request: web.Request) -> web.Response:
        """`HEAD /api/hubs/{hub}/groups/{group}`."""
        return web.Response(status=200 if self._groups.get(request.match_info["group"]) else 404)

    def _claims(self, token: str, audience: str) -> dict[str, Any] | None:
        for key in self._keys:
            try:
                claims = jwt.decode(token, OctKey.import_key(key), algorithms=["HS256"]).claims
            except (JoseError, ValueError):
                continue
            is_good = claims.get("aud") == audience and claims.get("exp", 0) > time.time()
            return claims if is_good else None
        return None

    # tests

    async def control(self, request: web.Request) -> web.Response:
        """POST: answers to give instead of the true ones; GET: what the data plane was asked."""
        if request.method == "POST":
            self._instead = await request.json()
            self._asked.clear()
        return web.json_response(self._asked)

    async def run(self, port: int) -> None:
        app = web.Application(client_max_size=4 * MAX_MESSAGE_BYTES, middlewares=[self.checked])
        app.router.add_get("/client/hubs/{hub}", self.client)
        group = "/api/hubs/{hub}/groups/{group}"
        app.router.add_post(f"{group}/:send", self.send)
        app.router.add_post(f"{group}/:closeConnections", self.close)
        app.router.add_head(group, self.exists)
        app.router.add_route("*", "/control", self.control)
        self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        await asyncio.Event().wait()


def _status(status: int) -> web.HTTPException:
    class Refused(web.HTTPException):
        status_code = status

    return Refused()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    number = int(os.environ["PORT"])
    service = Service(
        number, os.environ["HUB"], os.environ["KEYS"].split(","), os.environ["UPSTREAM"]
    )
    asyncio.run(service.run(number))
