"""The development issuer: tokens for anyone who asks, so loopback only and never in production.

    python -m leaderboard.stack.issuer

`POST /token` {"subject", "roles"} answers {"token", "expires_in"}; the key is made at the start
and published at `/.well-known/jwks.json`. Pages of any loopback origin may ask.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from aiohttp import web
from joserfc import jwt
from joserfc.jwk import RSAKey
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from leaderboard import telemetry
from leaderboard.errors import SettingsError
from leaderboard.settings import Port, load
from leaderboard.stack.process import LOOPBACK

TOKEN_SECONDS: Final = 900
KEY_BITS: Final = 2048
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class IssuerSettings(BaseModel):
    """`issuer` None: our own address."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    port: Port = Field(alias="PORT")
    audience: str = Field(alias="JWT_AUDIENCE", min_length=1)
    issuer: str | None = Field(None, alias="JWT_ISSUER", min_length=1)
    token_seconds: int = Field(TOKEN_SECONDS, alias="TOKEN_SECONDS", ge=1, le=TOKEN_SECONDS)


class TokenRequest(BaseModel):
    """Whom to speak for."""

    model_config = ConfigDict(strict=True, extra="forbid")

    subject: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    roles: Annotated[
        list[Literal["player", "operator", "auditor", "service"]], Field(max_length=4)
    ] = ["player"]


class Issuer:
    """One RSA key and what is signed with it."""

    def __init__(self, issuer: str, audience: str, token_seconds: int = TOKEN_SECONDS) -> None:
        self._issuer = issuer
        self._audience = audience
        self._token_seconds = token_seconds
        self._key = RSAKey.generate_key(KEY_BITS, private=True)
        self._kid = self._key.thumbprint()

    def jwks(self) -> dict[str, object]:
        """The public key, as RFC 7517 has it."""
        public = self._key.as_dict(private=False)
        return {"keys": [{**public, "kid": self._kid, "use": "sig", "alg": "RS256"}]}

    def token(self, asked: TokenRequest) -> str:
        """A token as the real issuer would make it."""
        now = int(time.time())
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "iat": now,
            "exp": now + self._token_seconds,
            "sub": asked.subject,
            "roles": list(asked.roles),
        }
        return jwt.encode({"alg": "RS256", "kid": self._kid}, claims, self._key)

    async def answer_jwks(self, request: web.Request) -> web.Response:
        """`GET /.well-known/jwks.json`"""
        return web.json_response(self.jwks(), headers={"Cache-Control": "max-age=60"})

    async def answer_token(self, request: web.Request) -> web.Response:
        """`POST /token`"""
        try:
            asked = TokenRequest.model_validate_json(await request.read())
        except ValidationError as error:
            told = [
                {"field": ".".join(map(str, e["loc"])), "detail": e["msg"]}
                for e in error.errors(include_url=False, include_input=False)
            ]
            body = {"title": "Unprocessable Content", "status": 422, "errors": told}
            return web.Response(
                text=json.dumps(body), status=422, content_type="application/problem+json"
            )
        body = {"token": self.token(asked), "expires_in": self._token_seconds}
        return web.json_response(body, headers={"Cache-Control": "no-store"})

    def app(self) -> web.Application:
        """The routes, for loopback names and loopback pages only."""
        app = web.Application(client_max_size=4096, middlewares=[_only_loopback])
        app.router.add_get("/.well-known/jwks.json", self.answer_jwks)
        app.router.add_post("/token", self.answer_token)
        app.router.add_route("OPTIONS", "/token", _preflight)
        app.router.add_get("/healthz", _healthz)
        return app


@web.middleware
async def _only_loopback(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A page elsewhere must not get a token, not even by a name that it points at us."""
    origin = request.headers.get("Origin")
    if _host_of(f"//{request.host}") not in _LOOPBACK_NAMES:
        raise web.HTTPForbidden()
    if origin is not None and _host_of(origin) not in _LOOPBACK_NAMES:
        raise web.HTTPForbidden()
    response = await handler(request)
    response.headers["Vary"] = "Origin"
    if origin is not None:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Allow-Headers"] = "content-type"
        response.headers["Access-Control-Allow-Methods"] = "GET, POST"
    return response


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


async def _preflight(request: web.Request) -> web.Response:
    return web.Response(status=204)


async def _healthz(request: web.Request) -> web.Response:
    return web.Response()


async def _run(settings: IssuerSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    name = settings.issuer or f"http://{LOOPBACK}:{settings.port}"
    issuer = Issuer(name, settings.audience, settings.token_seconds)
    runner = web.AppRunner(issuer.app(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, LOOPBACK, settings.port, reuse_address=True).start()
        await stop.wait()
    finally:
        await runner.cleanup()


def main() -> int:
    """Run with settings from the environment; 2 for a wrong setting, 1 for a taken port."""
    telemetry.log_json()
    try:
        settings = load(IssuerSettings, os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        asyncio.run(_run(settings))
    except OSError as error:
        print(f"PORT: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
