"""Attacks on tokens, tickets and other people's data, against the functions of a running stack.

The stack is the local one, by its real command; only its issuer is a test's own, so that tokens can
be signed that a sound issuer never would. Each kind of attack is tried on `query`, `on-connect`,
`tournament` and `erase`, and each of them lets a sound token through in the same way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import httpx
import pytest
from joserfc.jwk import RSAKey

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
    signed_as_it_is,
    unsigned,
)
from leaderboard.adapters.jwks_tokens import LEEWAY_SECONDS
from running import StackCommand, wait_for
from sockets import Players

Json = Any
FUNCTIONS: Final = {
    "query": "QUERY_URL", "on-connect": "CONNECT_URL",
    "erase": "ERASE_URL", "tournament": "TOURNAMENT_URL",
}  # fmt: skip
CUP: Final = "attacked-cup"


class Attacked:
    """The stack, and who signs for it."""

    def __init__(self, stack: StackCommand, issuer: KeyServer) -> None:
        self.settings = stack.env()
        self.issuer = issuer
        self.http = httpx.Client(timeout=10)

    def url(self, function: str) -> str:
        return self.settings[FUNCTIONS[function]]

    def ask(
        self, function: str, method: str, path: str, token: str | None, body: Json = None
    ) -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        url = self.url(function) + path
        return self.http.request(method, url, headers=headers, json=body)

    def knock(self, function: str, token: str | None, subject: str = "alice") -> httpx.Response:
        """Ask for something that a sound token of this subject is given, and that changes nothing
        but a ticket."""
        method, path, body = KNOCKS[function](subject)
        return self.ask(function, method, path, token, body)


KNOCKS: Final[Mapping[str, Callable[[str], tuple[str, str, Json]]]] = {
    "query": lambda subject: ("GET", f"/v1/tournaments/{CUP}/players/{subject}", None),
    "on-connect": lambda subject: ("POST", f"/v1/tournaments/{CUP}/connections", None),
    # Unknown and wrong things: who may ask is told so, who may not is told nothing else.
    "erase": lambda subject: ("GET", "/v1/erasures/er-none", None),
    "tournament": lambda subject: ("POST", f"/v1/tournaments/{CUP}/adjustments", {}),
}
WELCOMED: Final = {"query": 200, "on-connect": 201, "erase": 404, "tournament": 422}
ROLES: Final = ["player", "operator"]
"""Enough for each of them; an attack must not fail for want of a role."""


@pytest.fixture(scope="module")
def issuer() -> Iterator[KeyServer]:
    server = KeyServer()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def attacked(issuer: KeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    own = {"JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE, "JWKS_URL": issuer.url}
    # Attacks from the one address of this machine are many.
    own["FAILED_TOKENS_PER_MINUTE"] = "100000"
    own["CONNECTIONS_PER_MINUTE"] = own["REQUESTS_PER_MINUTE"] = "10000"
    labels = [name.upper().replace("-", "_") for name in FUNCTIONS]
    settings = {f"{label}__{name}": text for label in labels for name, text in own.items()}
    words = ["stack", "--kind", "local", "--free-ports"]
    stack = StackCommand(tmp_path_factory.mktemp("attacked"), words, settings)
    stack.start()
    made = Attacked(stack, issuer)
    try:
        prepare(made)
        yield made
    finally:
        made.http.close()
        stack.stop()


def prepare(made: Attacked) -> None:
    """A tournament in which alice and bob have a standing."""
    staff = signed(sub="op", roles=["operator"])
    now = time.time()
    body = {
        "tournament_id": CUP, "name": "Cup",
        "starts_at": at(now - 3600), "ends_at": at(now + 3600),
        "rules": {"scoring": {"kind": "submitted"}, "operator": "sum", "currency": "EUR"},
    }  # fmt: skip

    def does(path: str, body: Json) -> bool:
        """On a busy machine a decision may take longer to be seen than its caller is let wait."""
        answer = made.ask("tournament", "POST", path, staff, body)
        assert answer.status_code in (201, 202, 409, 503), answer.text
        return answer.status_code in (201, 202) or "running" in answer.text

    wait_for(lambda: does("/v1/tournaments", body) or is_there(made, staff), 30)
    wait_for(lambda: does(f"/v1/tournaments/{CUP}/start", {}), 30)
    for player in ("alice", "bob"):
        change = {"player_id": player, "delta": 5, "reason": "to be seen"}
        wait_for(partial(does, f"/v1/tournaments/{CUP}/adjustments", change), 30)

    def is_seen(player: str) -> bool:
        path = f"/v1/tournaments/{CUP}/players/{player}"
        return made.ask("query", "GET", path, staff).status_code == 200

    wait_for(lambda: is_seen("alice") and is_seen("bob"), 20)


def is_there(made: Attacked, staff: str) -> bool:
    return made.ask("query", "GET", f"/v1/tournaments/{CUP}", staff).status_code == 200


def at(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def sound(**changes: Any) -> str:
    return signed(**{"roles": ROLES, **changes})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_sound_token_is_let_through(attacked: Attacked, function: str) -> None:
    for token in (
        sound(),
        signed_as_it_is(json.dumps(HEADER).encode(), claims(roles=ROLES)),
        sound(nbf=int(time.time()) + LEEWAY_SECONDS - 5),
        sound(header={"typ": "at+jwt"}),
        sound(aud=["other", AUDIENCE]),
    ):
        answer = attacked.knock(function, token)
        assert answer.status_code == WELCOMED[function], answer.text


def test_token_within_the_leeway_is_let_through_but_opens_no_socket(attacked: Attacked) -> None:
    for function in FUNCTIONS:
        late = sound(exp=int(time.time()) - LEEWAY_SECONDS + 10)
        wanted = 401 if function == "on-connect" else WELCOMED[function]
        assert attacked.knock(function, late).status_code == wanted


def test_token_that_no_header_holds_reaches_nobody(attacked: Attacked) -> None:
    for function in FUNCTIONS:
        assert attacked.knock(function, sound(padding="x" * 9000)).status_code == 431


# --- tokens that prove nothing -------------------------------------------------------------------


def shifted(token: str, index: int) -> str:
    """One character of the signature is another one."""
    head, _, signature = token.rpartition(".")
    other = "A" if signature[index] != "A" else "B"
    return f"{head}.{signature[:index]}{other}{signature[index + 1 :]}"


def with_payload(**changes: Any) -> str:
    """Signed for one payload, sent with another."""
    header, _, signature = sound().split(".")
    return f"{header}.{part(claims(**changes))}.{signature}"


def named_by(name: str, value: Any, kid: str) -> str:
    return sound(key=FOREIGN_KEY, header={"kid": kid, name: value})


NONE: Final = {"alg": "none", "kid": "k1", "typ": "JWT"}
HEADER: Final = {"alg": "RS256", "kid": "k1", "typ": "JWT"}
SPENT: Final = -LEEWAY_SECONDS - 1
ATTACKS: Final[dict[str, Callable[[str], str | None]]] = {
    "no token": lambda evil: None,
    "nonsense": lambda evil: "nonsense",
    "alg none": lambda evil: unsigned(NONE, claims(roles=ROLES), ""),
    "alg nOnE, with a signature": lambda evil: unsigned(
        {**NONE, "alg": "nOnE"}, claims(roles=ROLES), sound().rpartition(".")[2]
    ),
    "HS256 with the public key as PEM": lambda evil: hmac_signed(
        KEY.as_pem(private=False), roles=ROLES
    ),
    "HS256 with the public key as DER": lambda evil: hmac_signed(
        KEY.as_der(private=False), roles=ROLES
    ),
    "RS256 in name, an HMAC in truth": lambda evil: hmac_signed(
        KEY.as_pem(private=False), "RS256", roles=ROLES
    ),
    "RS512": lambda evil: sound(header={"alg": "RS512"}),
    "another issuer": lambda evil: sound(iss="https://evil.example"),
    "an issuer that begins alike": lambda evil: sound(iss=f"{ISSUER}.evil.example"),
    "an issuer with a slash more": lambda evil: sound(iss=f"{ISSUER}/"),
    "no issuer": lambda evil: sound(iss=None),
    "another audience": lambda evil: sound(aud="other"),
    "audiences without ours": lambda evil: sound(aud=["other", f"{AUDIENCE}-admin"]),
    "no audience": lambda evil: sound(aud=None),
    "over by a second beyond the leeway": lambda evil: sound(exp=int(time.time()) + SPENT),
    "no end": lambda evil: sound(exp=None),
    "an end that is no time": lambda evil: sound(exp="9999999999"),
    "not valid yet": lambda evil: sound(nbf=int(time.time()) + LEEWAY_SECONDS + 5),
    "issued in the future": lambda evil: sound(iat=int(time.time()) + LEEWAY_SECONDS + 5),
    "nobody": lambda evil: sound(sub=None),
    "no kid": lambda evil: sound(header={"kid": None}),
    "a kid that nobody published": lambda evil: sound(header={"kid": "k9"}),
    "a kid that is a path": lambda evil: sound(header={"kid": "../../../../dev/null"}),
    "our kid, a foreign key": lambda evil: sound(key=FOREIGN_KEY),
    "a foreign kid and key": lambda evil: sound(key=FOREIGN_KEY, header={"kid": "evil"}),
    "jku": lambda evil: named_by("jku", evil, "evil"),
    "jku, with our kid": lambda evil: named_by("jku", evil, "k1"),
    "x5u": lambda evil: named_by("x5u", evil, "evil"),
    "jwk": lambda evil: named_by("jwk", FOREIGN_KEY.as_dict(private=False), "k1"),
    "an extension that has to be understood": lambda evil: signed_as_it_is(
        json.dumps({**HEADER, "crit": ["b64"], "b64": True}).encode(), claims(roles=ROLES)
    ),
    "another subject in the payload": lambda evil: with_payload(sub="bob", roles=ROLES),
    "more roles in the payload": lambda evil: with_payload(roles=["operator", "service"]),
    "a later end in the payload": lambda evil: with_payload(exp=2**40, roles=ROLES),
    "a signature that was touched": lambda evil: shifted(sound(), 20),
    "a signature cut short": lambda evil: sound()[:-4],
    "no signature": lambda evil: sound().rpartition(".")[0] + ".",
    "an encrypted token": lambda evil: sound() + ".AAAA.AAAA",
    "another kind of token": lambda evil: sound(header={"typ": "dpop+jwt"}),
    "a header in UTF-16": lambda evil: signed_as_it_is(
        json.dumps(HEADER).encode("utf-16"), claims(roles=ROLES)
    ),
}


@pytest.fixture(scope="module")
def evil() -> Iterator[KeyServer]:
    """Publishes the attacker's key."""
    server = KeyServer()
    server.keys = [published(FOREIGN_KEY, "evil"), published(FOREIGN_KEY, "k1")]
    yield server
    server.stop()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_token_that_proves_nothing_is_refused(
    attacked: Attacked, evil: KeyServer, function: str, attack: str
) -> None:
    answer = attacked.knock(function, ATTACKS[attack](evil.url))
    assert answer.status_code == 401, answer.text
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["status"] == 401
    assert evil.asked == 0, "a token does not say where its key is"
    assert attacked.knock(function, sound()).status_code == WELCOMED[function]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_token_elsewhere_than_in_its_header_is_no_token(attacked: Attacked, function: str) -> None:
    method, path, body = KNOCKS[function]("alice")
    token = sound()
    url = attacked.url(function) + path
    for query, headers in (
        ({"access_token": token, "token": token}, {}),
        ({}, {"Cookie": f"token={token}; access_token={token}"}),
        ({}, {"Authorization": f"Basic {token}"}),
        ({}, {"X-Authorization": f"Bearer {token}", "X-Forwarded-User": "op"}),
    ):
        answer = attacked.http.request(method, url, params=query, headers=headers, json=body)
        assert answer.status_code == 401


# --- sound tokens of others ----------------------------------------------------------------------


def test_anothers_token_shows_nothing_of_mine(attacked: Attacked) -> None:
    bobs = signed(sub="bob")
    for path in ("", "/around", "/around?radius=50"):
        answer = attacked.ask("query", "GET", f"/v1/tournaments/{CUP}/players/alice{path}", bobs)
        assert answer.status_code == 403
        assert "alice" not in answer.text
    assert attacked.knock("query", bobs, "bob").status_code == 200


@pytest.mark.parametrize("roles", [["player"], ["auditor"], [], ["root"], "operator"])
@pytest.mark.parametrize("function", ["tournament", "erase"])
def test_sound_token_without_the_role_does_nothing(
    attacked: Attacked, function: str, roles: Any
) -> None:
    assert attacked.knock(function, signed(roles=roles)).status_code == 403


# --- tickets -------------------------------------------------------------------------------------


def way_in(attacked: Attacked, subject: str = "alice") -> str:
    answer = attacked.knock("on-connect", signed(sub=subject))
    assert answer.status_code == 201, answer.text
    url: str = answer.json()["url"]
    return url


def test_replayed_ticket_opens_nothing(attacked: Attacked, players: Players) -> None:
    url = way_in(attacked)
    socket = players.connect(url)
    assert players.refused(url) == 403
    assert socket.is_open()
    socket.close()


def test_ticket_is_used_once_by_many_at_the_same_time(attacked: Attacked, players: Players) -> None:
    url = way_in(attacked)
    opened: list[bool] = []

    def enter() -> None:
        try:
            opened.append(players.connect(url).is_open())
        except Exception:  # noqa: BLE001 - whatever the refusal is
            opened.append(False)

    attempts = [threading.Thread(target=enter) for _ in range(8)]
    for one in attempts:
        one.start()
    for one in attempts:
        one.join()
    assert opened.count(True) == 1


def test_stolen_ticket_opens_nothing_from_another_address(
    attacked: Attacked, players: Players
) -> None:
    """The thief's address is another one of this machine's; the gateway tells it, not they."""
    for spoofed in ({}, {"X-Forwarded-For": "127.0.0.1"}, {"X-Real-IP": "127.0.0.1"}):
        url = way_in(attacked).replace("ws://", "http://")
        thief = httpx.HTTPTransport(local_address="127.0.0.2")
        upgrade = {
            "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", **spoofed,
        }  # fmt: skip
        with httpx.Client(transport=thief) as client:
            assert client.get(url, headers=upgrade).status_code == 403
        assert players.refused(url) == 403, "used up"
    socket = players.connect(way_in(attacked))
    assert socket.is_open()
    socket.close()


@pytest.mark.parametrize("ticket", ["", "guessed", "*", "%00", "x" * 4000, "../../etc/passwd"])
def test_guessed_ticket_opens_nothing(attacked: Attacked, players: Players, ticket: str) -> None:
    url = way_in(attacked).rpartition("=")[0]
    assert players.refused(f"{url}={ticket}") in (400, 403)


def test_token_is_no_ticket(attacked: Attacked, players: Players) -> None:
    url = way_in(attacked).partition("?")[0]
    for query in (f"ticket={sound()}", f"access_token={sound()}", f"token={sound()}"):
        assert players.refused(f"{url}?{query}", {"Authorization": f"Bearer {sound()}"}) == 403


# --- keys ----------------------------------------------------------------------------------------


def test_keys_are_changed_while_everybody_goes_on(attacked: Attacked) -> None:
    """Published beside the old one, the new key is found by its first token, within one interval;
    made-up keys in between have the issuer asked no more often than that."""
    issuer = attacked.issuer
    old, new = sound(), sound(key=NEXT_KEY, header={"kid": "k2"})
    asked, began = issuer.asked, time.monotonic()
    issuer.keys = [published(KEY, "k1"), published(NEXT_KEY, "k2")]
    found: set[str] = set()
    while len(found) < len(FUNCTIONS):
        assert time.monotonic() < began + 25, found
        for function in FUNCTIONS:
            made_up = sound(key=FOREIGN_KEY, header={"kid": f"k-{time.monotonic()}"})
            assert attacked.knock(function, made_up).status_code in (401, 503)
            assert attacked.knock(function, old).status_code == WELCOMED[function]
            if attacked.knock(function, new).status_code == WELCOMED[function]:
                found.add(function)
        time.sleep(0.2)
    passed = time.monotonic() - began
    assert issuer.asked - asked <= len(FUNCTIONS) * (passed // 10 + 1)
    issuer.keys = [published(NEXT_KEY, "k2")]
    for function in FUNCTIONS:
        assert attacked.knock(function, old).status_code == WELCOMED[function], "not yet forgotten"
    issuer.keys = [published(KEY, "k1"), published(NEXT_KEY, "k2")]


def test_issuer_that_is_away_locks_nobody_out(attacked: Attacked) -> None:
    issuer = attacked.issuer
    issuer.status = 503
    try:
        for function in FUNCTIONS:
            for number in range(20):
                one = sound(jti=f"new-{number}")
                assert attacked.knock(function, one).status_code == WELCOMED[function]
                made_up = sound(key=FOREIGN_KEY, header={"kid": f"k-{number}"})
                assert attacked.knock(function, made_up).status_code == 401
    finally:
        issuer.status = 200


# --- every route, every role, everybody's id -----------------------------------------------------

OPEN, REFUSED, PASSES = "open", 403, "passes"
ALL: Final = ("player", "operator", "auditor", "service")
WHO: Final = (*ALL, "another player", "stranger")
"""Whose token: of each role; of a player whose data is not asked for; of nobody's role."""


def may(*who: str) -> frozenset[str]:
    return frozenset(who)


STAFF: Final = ("operator", "auditor", "service")
RUNS: Final = may("operator", "service")
READS: Final = may(*ALL, "another player")
OWN: Final = may("player", *STAFF)
ALERT: Final = "/v1/tournaments/{tournament_id}/fraud-alerts/{sequence}/{rule}"
RULES: Final[dict[tuple[str, str, str], frozenset[str] | None]] = {
    ("query", "get", "/v1/tournaments"): READS,
    ("query", "get", "/v1/tournaments/{tournament_id}"): READS,
    ("query", "get", "/v1/tournaments/{tournament_id}/standings"): READS,
    ("query", "get", "/v1/tournaments/{tournament_id}/players/{player_id}"): OWN,
    ("query", "get", "/v1/tournaments/{tournament_id}/players/{player_id}/around"): OWN,
    ("query", "get", "/v1/players/{player_id}/export"): OWN,
    ("query", "get", "/page/config.json"): None,
    # Each player for themselves: nobody's id is in it.
    ("on-connect", "post", "/v1/tournaments/{tournament_id}/connections"): may(
        "player", "another player"
    ),
    ("on-connect", "get", "/internal/authorize"): None,
    ("erase", "post", "/"): RUNS,
    ("erase", "post", "/v1/erasures"): RUNS,
    ("erase", "get", "/v1/erasures/{erasure_id}"): RUNS,
    ("tournament", "post", "/v1/tournaments"): RUNS,
    ("tournament", "post", "/v1/tournaments/{tournament_id}/start"): RUNS,
    ("tournament", "post", "/v1/tournaments/{tournament_id}/end"): RUNS,
    ("tournament", "post", "/v1/tournaments/{tournament_id}/cancel"): RUNS,
    ("tournament", "post", "/v1/tournaments/{tournament_id}/adjustments"): RUNS,
    ("tournament", "post", "/v1/tournaments/{tournament_id}/disqualifications"): RUNS,
    ("tournament", "get", "/v1/fraud-alerts"): may(*STAFF),
    ("tournament", "get", ALERT): may(*STAFF),
    ("tournament", "post", f"{ALERT}/confirm"): RUNS,
    ("tournament", "post", f"{ALERT}/dismiss"): RUNS,
    ("tournament", "post", "/"): None,
    ("tournament", "get", "/internal/v1/floors/{function}"): None,
    **{
        (function, "get", path): None
        for function in FUNCTIONS
        for path in ("/healthz", "/readyz", "/openapi.json")
    },
}
"""Who may call what; None: everybody, also without a token. A route that is not here fails."""
UNSOUND: Final = {"nothing": "that is wanted"}
"""A body with which nobody changes anything: who may call is told that it is wrong."""


def described(attacked: Attacked) -> dict[tuple[str, str, str], Json]:
    """Every operation of the four functions, as they describe themselves."""
    return {
        (function, method, path): operation
        for function in FUNCTIONS
        for path, operations in attacked.ask(function, "GET", "/openapi.json", None)
        .json()["paths"]
        .items()
        for method, operation in operations.items()
    }


def without_a_rule(operations: Mapping[tuple[str, str, str], Json]) -> set[tuple[str, str, str]]:
    return operations.keys() ^ RULES.keys()


def test_every_route_has_a_rule_and_every_rule_a_route(attacked: Attacked) -> None:
    operations = described(attacked)
    assert without_a_rule(operations) == set()
    added = ("query", "get", "/v1/tournaments/{tournament_id}/secrets")
    assert without_a_rule({**operations, added: {}}) == {added}


def token_of(who: str) -> str:
    match who:
        case "another player":
            return signed(sub="bob")
        case "stranger":
            return signed(sub="alice", roles=[])
    return signed(sub="alice" if who == "player" else who, roles=[who])


def broken_rules(attacked: Attacked, only: str | None = None) -> Iterator[str]:
    """Where a function does something else than its rule says."""
    ids = {"tournament_id": CUP, "player_id": "alice", "erasure_id": "er-0", "function": "query"}
    ids |= {"sequence": "0", "rule": "velocity"}
    for (function, method, path), rule in RULES.items():
        if only not in (None, path):
            continue
        filled, body = path.format(**ids), UNSOUND if method == "post" else None
        name = f"{function}: {method.upper()} {path}"
        nobody = attacked.ask(function, method, filled, None, body).status_code
        if (nobody == 401) != (rule is not None):
            yield f"{name}: {nobody} without a token"
        for who in WHO:
            status = attacked.ask(function, method, filled, token_of(who), body).status_code
            is_let_in = status not in (401, 403)
            if rule is not None and is_let_in != (who in rule):
                yield f"{name}: {status} for {who}"
            if status >= 500:
                yield f"{name}: {status} for {who}"


def test_every_route_keeps_to_its_rule(attacked: Attacked, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(broken_rules(attacked)) == []
    # The test finds a rule that is not kept.
    path = "/v1/tournaments/{tournament_id}/players/{player_id}"
    monkeypatch.setitem(RULES, ("query", "get", path), READS)
    assert list(broken_rules(attacked, path)) == [f"query: GET {path}: 403 for another player"]


def test_description_says_the_same_as_the_rules(attacked: Attacked) -> None:
    for key, operation in described(attacked).items():
        rule = RULES[key]
        assert (operation["security"] == []) == (rule is None), key
        if rule is not None:
            assert rule & {*ALL} <= set(operation["x-roles"]), key


def test_keys_of_these_tests_are_what_they_seem() -> None:
    """All attacks would be refused, were the sound key no key."""
    assert isinstance(KEY, RSAKey)
    assert len({key.thumbprint() for key in (KEY, NEXT_KEY, FOREIGN_KEY)}) == 3
