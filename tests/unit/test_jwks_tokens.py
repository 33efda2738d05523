"""Tokens against a JWKS that a real HTTP server publishes, and the attacks on them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from leaderboard.adapters import jwks_tokens
from leaderboard.adapters.jwks_tokens import LEEWAY_SECONDS, JwksTokens
from leaderboard.errors import TransientError, UnauthenticatedError
from leaderboard.settings import TokenSettings, load

ISSUER = "https://issuer.example"
AUDIENCE = "leaderboard"
KEY = RSAKey.generate_key(2048)
NEXT_KEY = RSAKey.generate_key(2048)
FOREIGN_KEY = RSAKey.generate_key(2048)


def published(key: RSAKey, kid: str, **changes: Any) -> dict[str, Any]:
    return {**key.as_dict(private=False), "kid": kid, "use": "sig", "alg": "RS256", **changes}


class KeyServer:
    """Publishes whatever keys it is told to, or answers with an error."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [published(KEY, "k1")]
        self.status = 200
        self.raw: bytes | None = None
        self.asked = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked += 1
                body = server.raw or json.dumps({"keys": server.keys}).encode()
                self.send_response(server.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/jwks.json"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> Iterator[KeyServer]:
    started = KeyServer()
    yield started
    started.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(server: KeyServer, clock: Clock) -> JwksTokens:
    environ = {"JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE, "JWKS_URL": server.url}
    return JwksTokens(load(TokenSettings, environ), monotonic=clock)


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    sound = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": now + 900,
        "iat": now,
        "sub": "alice",
        "roles": ["player"],
    }
    return {name: value for name, value in (sound | changes).items() if value is not None}


def signed(key: Any = KEY, header: dict[str, Any] | None = None, **changes: Any) -> str:
    head = {"alg": "RS256", "kid": "k1", **(header or {})}
    shown = {name: value for name, value in head.items() if value is not None}
    return jwt.encode(shown, claims(**changes), key, algorithms=["RS256", "ES256", "RS512"])


def _part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_sound_token_tells_who_calls(tokens: JwksTokens) -> None:
    expires = int(time.time()) + 60
    caller = tokens.verify(signed(exp=expires, roles=["player", "auditor"]))
    assert caller.subject == "alice"
    assert caller.roles == {"player", "auditor"}
    assert caller.expires_at_ms == expires * 1000


@pytest.mark.parametrize("roles", [None, [], "player", ["root", 7, None], {"player": True}])
def test_unknown_roles_give_no_role(tokens: JwksTokens, roles: Any) -> None:
    assert tokens.verify(signed(roles=roles)).roles == frozenset()


def test_audience_may_be_one_of_several(tokens: JwksTokens) -> None:
    assert tokens.verify(signed(aud=["other", AUDIENCE])).subject == "alice"


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://other.example"},
        {"iss": None},
        {"iss": [ISSUER]},
        {"aud": "other"},
        {"aud": None},
        {"aud": []},
        {"exp": None},
        {"exp": "never"},
        {"exp": True},
        {"exp": 0},
        {"exp": int(time.time()) - LEEWAY_SECONDS - 5},
        {"nbf": int(time.time()) + 600},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "x" * 257},
    ],
)
def test_wrong_claims_prove_nothing(tokens: JwksTokens, changes: dict[str, Any]) -> None:
    with pytest.raises(UnauthenticatedError):
        tokens.verify(signed(**changes))


def test_clocks_may_differ_a_little(tokens: JwksTokens) -> None:
    assert tokens.verify(signed(exp=int(time.time()) - LEEWAY_SECONDS + 10)).subject == "alice"


def test_unsigned_token_proves_nothing(tokens: JwksTokens) -> None:
    for alg in ("none", "None", "NONE"):
        header = {"alg": alg, "kid": "k1", "typ": "JWT"}
        for signature in ("", "AAAA", signed().rpartition(".")[2]):
            with pytest.raises(UnauthenticatedError):
                tokens.verify(f"{_part(header)}.{_part(claims())}.{signature}")


def test_public_key_is_no_hmac_secret(tokens: JwksTokens) -> None:
    for alg in ("HS256", "RS256"):
        for secret in (KEY.as_pem(private=False), KEY.as_der(private=False)):
            text = f"{_part({'alg': alg, 'kid': 'k1', 'typ': 'JWT'})}.{_part(claims())}"
            mac = hmac.new(secret, text.encode(), hashlib.sha256).digest()
            with pytest.raises(UnauthenticatedError):
                tokens.verify(f"{text}.{_part(mac)}")


def test_other_algorithms_prove_nothing(tokens: JwksTokens, server: KeyServer) -> None:
    with pytest.raises(UnauthenticatedError):
        tokens.verify(signed(header={"alg": "RS512"}))
    curve = ECKey.generate_key("P-256")
    server.keys.append({**curve.as_dict(private=False), "kid": "ec"})
    with pytest.raises(UnauthenticatedError):
        tokens.verify(signed(curve, {"alg": "ES256", "kid": "ec"}))


def test_tampered_token_proves_nothing(tokens: JwksTokens) -> None:
    header, _, signature = signed().split(".")
    for forged in (claims(sub="bob"), claims(roles=["operator"]), b"\xff", b"[]", b'"x"'):
        with pytest.raises(UnauthenticatedError):
            tokens.verify(f"{header}.{_part(forged)}.{signature}")
    whole = signed()
    with pytest.raises(UnauthenticatedError):
        tokens.verify(whole[:-10] + ("A" if whole[-10] != "A" else "B") + whole[-9:])
    other = signed(header={"typ": "at+jwt"})
    with pytest.raises(UnauthenticatedError):
        tokens.verify(other.split(".")[0] + whole[whole.index(".") :])


def test_key_of_another_issuer_proves_nothing(tokens: JwksTokens) -> None:
    with pytest.raises(UnauthenticatedError):
        tokens.verify(signed(FOREIGN_KEY))
    with pytest.raises(UnauthenticatedError):
        tokens.verify(signed(FOREIGN_KEY, {"kid": "foreign"}))


@pytest.mark.parametrize("kid", [None, "", 7, ["k1"]])
def test_token_has_to_name_its_key(tokens: JwksTokens, kid: Any) -> None:
    header = {"alg": "RS256", "typ": "JWT"} | ({} if kid is None else {"kid": kid})
    text = f"{_part(header)}.{_part(claims())}"
    with pytest.raises(UnauthenticatedError):
        tokens.verify(f"{text}.{signed().rpartition('.')[2]}")


def test_keys_in_the_token_are_never_looked_at(tokens: JwksTokens, server: KeyServer) -> None:
    evil = KeyServer()
    evil.keys = [published(FOREIGN_KEY, "evil")]
    try:
        for name, value in (
            ("jku", evil.url),
            ("x5u", evil.url),
            ("jwk", FOREIGN_KEY.as_dict(private=False)),
        ):
            for kid in ("k1", "evil"):
                with pytest.raises(UnauthenticatedError):
                    tokens.verify(signed(FOREIGN_KEY, {"kid": kid, name: value}))
        assert evil.asked == 0
    finally:
        evil.stop()


@pytest.mark.parametrize(
    "token", ["", "a", "a.b", "a.b.c", "....", "é.é.é", "x" * 20_000, "e30.e30.", "W10.e30.AA"]
)
def test_nonsense_proves_nothing(tokens: JwksTokens, token: str) -> None:
    with pytest.raises(UnauthenticatedError):
        tokens.verify(token)


def test_unknown_critical_header_is_refused(tokens: JwksTokens) -> None:
    header = _part({"alg": "RS256", "kid": "k1", "typ": "JWT", "crit": ["b64"], "b64": False})
    with pytest.raises(UnauthenticatedError):
        tokens.verify(f"{header}.{_part(claims())}.{signed().rpartition('.')[2]}")


def test_keys_are_fetched_once(tokens: JwksTokens, server: KeyServer) -> None:
    for _ in range(5):
        tokens.verify(signed())
    assert server.asked == 1


def test_new_key_is_found_but_unknown_ones_do_not_flood_the_issuer(
    tokens: JwksTokens, server: KeyServer, clock: Clock
) -> None:
    tokens.verify(signed())
    server.keys.append(published(NEXT_KEY, "k2"))
    for _ in range(20):
        with pytest.raises(UnauthenticatedError):
            tokens.verify(signed(NEXT_KEY, {"kid": "k2"}))
    assert server.asked == 1
    clock.now += 11
    assert tokens.verify(signed(NEXT_KEY, {"kid": "k2"})).subject == "alice"
    assert server.asked == 2


def test_retired_key_is_forgotten_when_the_keys_are_old(
    tokens: JwksTokens, server: KeyServer, clock: Clock
) -> None:
    tokens.verify(signed())
    server.keys = [published(NEXT_KEY, "k2")]
    clock.now += 301
    with pytest.raises(UnauthenticatedError):
        tokens.verify(signed())
    assert tokens.verify(signed(NEXT_KEY, {"kid": "k2"})).subject == "alice"


@pytest.mark.parametrize("raw", [b"[]", b"{}", b'{"keys": 7}', b"no", b'{"keys": []}', None])
def test_issuer_that_is_away_locks_out_no_known_key(
    tokens: JwksTokens, server: KeyServer, clock: Clock, raw: bytes | None
) -> None:
    tokens.verify(signed())
    server.raw = raw
    if raw is None:
        server.status = 500
    clock.now += 10_000
    assert tokens.verify(signed()).subject == "alice"
    assert server.asked == 2
    assert tokens.verify(signed()).subject == "alice"
    assert server.asked == 2


def test_no_key_at_all_is_told_as_transient_and_heals(
    tokens: JwksTokens, server: KeyServer, clock: Clock
) -> None:
    server.status = 503
    for _ in range(5):
        with pytest.raises(TransientError):
            tokens.verify(signed())
    assert server.asked == 1
    server.status = 200
    clock.now += 1
    assert tokens.verify(signed()).subject == "alice"


def test_token_that_was_sound_is_refused_when_its_time_is_over(
    tokens: JwksTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    expires = int(time.time()) + 60
    token = signed(exp=expires)
    assert tokens.verify(token) == tokens.verify(token)
    monkeypatch.setattr(time, "time", lambda: expires + LEEWAY_SECONDS - 1.0)
    assert tokens.verify(token).subject == "alice"
    monkeypatch.setattr(time, "time", lambda: expires + LEEWAY_SECONDS + 0.0)
    for _ in range(2):
        with pytest.raises(UnauthenticatedError):
            tokens.verify(token)


def test_token_that_was_sound_is_refused_when_another_key_has_its_name(
    tokens: JwksTokens, server: KeyServer, clock: Clock
) -> None:
    token = signed()
    assert tokens.verify(token).subject == "alice"
    server.keys = [published(NEXT_KEY, "k1")]
    clock.now += 301
    for _ in range(2):
        with pytest.raises(UnauthenticatedError):
            tokens.verify(token)


def test_no_more_tokens_are_remembered_than_a_bound(
    tokens: JwksTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks_tokens, "PROVEN_TOKENS", 2)
    made = [signed(sub=f"p{number}") for number in range(4)]
    assert [tokens.verify(one).subject for one in made * 2] == ["p0", "p1", "p2", "p3"] * 2
    assert len(tokens._proven) == 2


@pytest.mark.parametrize(
    "change", [{"use": "enc"}, {"alg": "RS512"}, {"kty": "oct"}, {"n": "AQAB"}, {"e": 7}]
)
def test_unusable_published_keys_are_left_out(
    tokens: JwksTokens, server: KeyServer, change: dict[str, Any]
) -> None:
    server.keys = [published(KEY, "k1", **change), published(NEXT_KEY, "k2")]
    with pytest.raises(UnauthenticatedError):
        tokens.verify(signed())
    assert tokens.verify(signed(NEXT_KEY, {"kid": "k2"})).subject == "alice"
