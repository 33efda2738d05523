"""Tokens against a JWKS that a real HTTP server publishes, and the attacks on them."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from joserfc.jwk import ECKey

from issuing import (
    AUDIENCE,
    FOREIGN_KEY,
    ISSUER,
    KEY,
    NEXT_KEY,
    KeyServer,
    claims,
    hmac_signed,
    part,
    published,
    signed,
)
from leaderboard.adapters import jwks_tokens
from leaderboard.adapters.jwks_tokens import LATEST_S, LEEWAY_SECONDS, JwksTokens
from leaderboard.errors import TransientError, UnauthenticatedError
from leaderboard.settings import TokenSettings, load
from running import wait_for


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
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"exp": 1e300},
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
                tokens.verify(f"{part(header)}.{part(claims())}.{signature}")


def test_public_key_is_no_hmac_secret(tokens: JwksTokens) -> None:
    for alg in ("HS256", "RS256"):
        for secret in (KEY.as_pem(private=False), KEY.as_der(private=False)):
            with pytest.raises(UnauthenticatedError):
                tokens.verify(hmac_signed(secret, alg))


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
            tokens.verify(f"{header}.{part(forged)}.{signature}")
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
    text = f"{part(header)}.{part(claims())}"
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
    header = part({"alg": "RS256", "kid": "k1", "typ": "JWT", "crit": ["b64"], "b64": False})
    with pytest.raises(UnauthenticatedError):
        tokens.verify(f"{header}.{part(claims())}.{signed().rpartition('.')[2]}")


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


def test_known_is_who_was_checked_before_and_still_holds(
    tokens: JwksTokens, server: KeyServer, clock: Clock
) -> None:
    token = signed()
    assert tokens.known(token) is None
    caller = tokens.verify(token)
    assert tokens.known(token) == caller
    assert tokens.known(signed(sub="bob")) is None
    server.keys = [published(NEXT_KEY, "k2")]
    clock.now += 301
    assert tokens.known(token) is None


def test_keys_change_with_an_overlap_and_nobody_notices(
    tokens: JwksTokens, server: KeyServer, clock: Clock
) -> None:
    """Publish, wait longer than keys are kept, sign, wait for the last tokens, retire."""
    old, new = signed(), signed(NEXT_KEY, {"kid": "k2"})
    tokens.verify(old)
    server.keys.append(published(NEXT_KEY, "k2"))
    for passed in (0, 301, 301):
        clock.now += passed
        assert tokens.verify(old).subject == "alice"
    asked = server.asked
    assert tokens.verify(new).subject == "alice"
    assert server.asked == asked, "the first token of the new key costs no fetch"
    server.keys = [published(NEXT_KEY, "k2")]
    clock.now += 301
    assert tokens.verify(new).subject == "alice"
    with pytest.raises(UnauthenticatedError):
        tokens.verify(old)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_header_is_utf_8_and_nothing_that_python_would_guess(
    tokens: JwksTokens, encoding: str
) -> None:
    text = json.dumps({"alg": "RS256", "kid": "k1", "typ": "JWT"})
    header = base64.urlsafe_b64encode(text.encode(encoding)).rstrip(b"=").decode()
    with pytest.raises(UnauthenticatedError):
        tokens.verify(f"{header}.{signed().partition('.')[2]}")


def test_time_beyond_all_numbers_is_no_bug(tokens: JwksTokens) -> None:
    """Nor an end: no store of leases takes one like that."""
    for exp in (1e300, 10**300, LATEST_S):
        with pytest.raises(UnauthenticatedError):
            tokens.verify(signed(exp=exp))
    assert tokens.verify(signed(exp=LATEST_S - 1)).subject == "alice"
    for name in ("exp", "nbf", "iat"):
        for value in (float("inf"), float("nan")):
            changes: dict[str, Any] = {name: value}
            with pytest.raises(UnauthenticatedError):
                tokens.verify(signed(**changes))


def test_made_up_keys_hold_few_threads_while_the_issuer_hangs(
    tokens: JwksTokens, server: KeyServer, clock: Clock
) -> None:
    """Known keys go on, and most who name unknown ones are told at once to come later."""
    tokens.verify(signed())
    clock.now += 11
    server.answering.clear()
    told: list[tuple[float, type[Exception]]] = []

    def attack(number: int) -> None:
        began = time.monotonic()
        with pytest.raises((UnauthenticatedError, TransientError)) as refused:
            tokens.verify(signed(FOREIGN_KEY, {"kid": f"made-up-{number}"}))
        told.append((time.monotonic() - began, refused.type))

    attackers = [threading.Thread(target=attack, args=(n,)) for n in range(16)]
    try:
        for one in attackers:
            one.start()
        wait_for(lambda: len(told) == 16 - jwks_tokens.WAITING, 1.5)
        assert {kind for _, kind in told} == {TransientError}
        for _ in range(3):
            began = time.monotonic()
            assert tokens.verify(signed(sub=f"p{began}")).subject == f"p{began}"
            assert time.monotonic() - began < 0.5
    finally:
        server.answering.set()
        for one in attackers:
            one.join()
    assert server.asked == 2
    assert [kind for _, kind in told].count(UnauthenticatedError) == jwks_tokens.WAITING


def test_issuer_that_drips_is_left_in_time(
    tokens: JwksTokens, server: KeyServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece comes in time; all of it would not."""
    monkeypatch.setattr(jwks_tokens, "FETCH_SECONDS", 0.3)
    tokens.verify(signed())
    server.drip_seconds = 0.05
    clock.now += 301
    began = time.monotonic()
    assert tokens.verify(signed()).subject == "alice"
    assert time.monotonic() - began < 1.5
    assert server.asked == 2
