"""Bearer tokens (JWT, RS256) checked against an issuer's published keys (JWKS).

RFC 8725: one algorithm, `iss`, `aud`, `exp`, `sub` and `kid` are wanted, and keys come from the
configured address alone: `jku`, `x5u` and `jwk` of a token are never looked at.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import RSAKey
from joserfc.jws import JWSRegistry

from leaderboard.callers import Caller
from leaderboard.errors import TransientError, UnauthenticatedError
from leaderboard.settings import TokenSettings

ROLES: Final = frozenset({"player", "operator", "auditor", "service"})
ALGORITHM: Final = "RS256"
MIN_KEY_BITS: Final = 2048
MAX_TOKEN_LENGTH: Final = 8 * 1024
MAX_JWKS_BYTES: Final = 256 * 1024
MAX_KEYS: Final = 64
LEEWAY_SECONDS: Final = 30
LATEST_S: Final = 2**53 // 1000
"""Later ends are no times: they stand in milliseconds wherever a socket's end does."""
PROVEN_TOKENS: Final = 10_000
"""Of so many callers each process remembers that their signature is right (some 5 MB)."""
FETCH_SECONDS: Final = 2.0
"""Of each step of a fetch, and of all of it that comes after the headers."""
WAITING: Final = 4
"""Callers with an unknown key who wait for a fetch; while other keys are known, those."""
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})


class _Proven(NamedTuple):
    """A token that was checked. It holds as long as the issuer's key is the one that it was
    checked with (a fetch makes others), and until its time is over."""

    kid: str
    key: RSAKey
    expires_s: float
    caller: Caller


class JwksTokens:
    """`callers.Tokens` over a JWKS address. Safe for several threads; fetches on first use.

    Keys are fetched again when they are older than `max_age_seconds`, or when a token names one
    that we do not know, but never more often than every `interval_seconds`. An issuer that is
    away locks nobody out whose key we know.

    A token that comes again is known by its SHA-256: to check a signature costs more than the
    rest of many a request."""

    def __init__(
        self,
        settings: TokenSettings,
        *,
        interval_seconds: float = 10,
        max_age_seconds: float = 300,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = settings.jwks_url
        self._claims = jwt.JWTClaimsRegistry(
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": settings.issuer},
            aud={"essential": True, "value": settings.audience},
            exp={"essential": True},
            sub={"essential": True},
        )
        self._jws = JWSRegistry(algorithms=[ALGORITHM])
        self._interval_seconds = interval_seconds
        self._max_age_seconds = max_age_seconds
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._waiting = threading.BoundedSemaphore(WAITING)
        self._keys: Mapping[str, RSAKey] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._proven: dict[bytes, _Proven] = {}
        self._proving = threading.Lock()

    def known(self, token: str) -> Caller | None:
        """As the port says."""
        proven = self._proven.get(_mark(token))
        if proven is not None and self._still_holds(proven):
            return proven.caller
        return None

    def verify(self, token: str) -> Caller:
        """Who holds the token. Raises UnauthenticatedError, without saying to a stranger what
        exactly was wrong; TransientError when no key could be fetched yet."""
        known = self.known(token)
        if known is not None:
            return known
        kid = _kid_of(token)
        key = self._key(kid)
        try:
            decoded = jwt.decode(token, key, algorithms=[ALGORITHM], registry=self._jws)
            self._claims.validate(decoded.claims)
        except (JoseError, ValueError, UnicodeError):
            raise UnauthenticatedError("the token proves nothing, or its time is over") from None
        caller = _caller(decoded.claims)
        with self._proving:
            while len(self._proven) >= PROVEN_TOKENS:
                del self._proven[next(iter(self._proven))]
            self._proven[_mark(token)] = _Proven(kid, key, decoded.claims["exp"], caller)
        return caller

    def _still_holds(self, proven: _Proven) -> bool:
        """The same comparisons as when it was checked. (What it may not be used before is past.)"""
        if proven.expires_s <= int(time.time()) - LEEWAY_SECONDS:
            return False
        with contextlib.suppress(UnauthenticatedError, TransientError):
            return self._key(proven.kid) is proven.key
        return False

    def _key(self, kid: str) -> RSAKey:
        key = self._keys.get(kid)
        if key is None:
            self._look_for(kid)
            key = self._keys.get(kid)
        elif self._is_old() and self._lock.acquire(blocking=False):
            # One thread pays for the refresh; the others go on with what is known.
            try:
                self._refresh()
            finally:
                self._lock.release()
            key = self._keys.get(kid)
        if key is not None:
            return key
        if self._fetched_at is None:
            raise TransientError("the issuer's keys can't be fetched")
        raise UnauthenticatedError("the token names no key of the issuer")

    def _look_for(self, kid: str) -> None:
        """Fetch because of a key that we do not know. While somebody does, few others wait for
        it: names of keys can be made up, and an issuer that hangs must not hold every thread."""
        if not self._waiting.acquire(blocking=not self._keys):
            raise TransientError("the issuer's keys are being fetched")
        try:
            with self._lock:
                if kid not in self._keys:
                    self._refresh()
        finally:
            self._waiting.release()

    def _is_old(self) -> bool:
        fetched_at = self._fetched_at
        return fetched_at is None or self._monotonic() - fetched_at > self._max_age_seconds

    def _refresh(self) -> None:
        """Fetch, at most once per interval; what is known stays when that fails."""
        now = self._monotonic()
        if self._tried_at is not None:
            # Without any key nobody gets in, so the issuer's return has to be seen soon.
            wait = min(1.0, self._interval_seconds) if not self._keys else self._interval_seconds
            if now - self._tried_at < wait:
                return
        self._tried_at = now
        keys = _fetch(self._url)
        if keys:
            self._keys = keys
            self._fetched_at = now


def _fetch(url: str) -> Mapping[str, RSAKey]:
    """The issuer's usable keys by their `kid`; none when it is away or talks nonsense."""
    try:
        with httpx.stream("GET", url, timeout=FETCH_SECONDS, follow_redirects=False) as answer:
            if answer.status_code != 200:
                return {}
            text, until = b"", time.monotonic() + FETCH_SECONDS
            for piece in answer.iter_bytes():
                text += piece
                if len(text) > MAX_JWKS_BYTES or time.monotonic() > until:
                    return {}
        published = json.loads(text)["keys"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return {}
    if not isinstance(published, list):
        return {}
    usable = (_usable(one) for one in published[:MAX_KEYS])
    return dict(filter(None, usable))


def _usable(published: Any) -> tuple[str, RSAKey] | None:
    """A key for RS256 signatures, reduced to its public part."""
    if not isinstance(published, dict) or published.get("kty") != "RSA":
        return None
    kid = published.get("kid")
    if not isinstance(kid, str) or published.get("use", "sig") != "sig":
        return None
    if published.get("alg", ALGORITHM) != ALGORITHM:
        return None
    try:
        key = RSAKey.import_key({"kty": "RSA", "n": published["n"], "e": published["e"]})
        if key.public_key.key_size < MIN_KEY_BITS:
            return None
    except (JoseError, ValueError, KeyError, TypeError):
        return None
    return kid, key


def _mark(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _kid_of(token: str) -> str:
    """The key that the token names. Nothing else of an unchecked header is used."""
    problem = UnauthenticatedError("the token is no RS256 JWT with a kid")
    if len(token) > MAX_TOKEN_LENGTH or token.count(".") != 2:
        raise problem
    part = token.partition(".")[0]
    try:
        # UTF-8 and nothing else (RFC 8725 §3.7); Python would guess.
        decoded = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode("utf-8")
        header = json.loads(decoded)
    except (binascii.Error, ValueError, RecursionError):
        raise problem from None
    if not isinstance(header, dict) or header.get("alg") != ALGORITHM or "crit" in header:
        raise problem  # no token of ours has an extension that has to be understood
    kid, kind = header.get("kid"), header.get("typ", "JWT")
    if not isinstance(kid, str) or not kid:
        raise problem
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise problem
    return kid


def _caller(claims: Mapping[str, Any]) -> Caller:
    subject, roles = claims["sub"], claims.get("roles", [])
    if not isinstance(subject, str) or not 0 < len(subject) <= 256:
        raise UnauthenticatedError("the token names nobody")
    if not 0 < claims["exp"] < LATEST_S:  # 1e300 is a number, too
        raise UnauthenticatedError("the token's end is no time")
    known = ROLES & {role for role in roles if isinstance(role, str)} if _is_list(roles) else set()
    return Caller(subject, frozenset(known), int(claims["exp"]) * 1000)


def _is_list(value: object) -> bool:
    return isinstance(value, list)
