"""Every documented operation of the running functions, with every kind of caller.

Schemathesis sends what the documents allow and what they forbid; raw connections send what is no
request at all. Nobody gets a 5xx, a page of a framework, or an answer that is not documented."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable, Mapping
from http.client import HTTPResponse
from pathlib import Path as Folder
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import pytest

from leaderboard.stack.functions import FUNCTIONS
from security.schemathesis_run import Run, over
from whole_path import Path, schedule, unique, wager

SERVED: Final = {one.url_setting: one.name for one in FUNCTIONS if one.target is not None}
"""The functions that speak HTTP, by where `.stack.env` tells their address."""
ROLES: Final = ("player", "operator", "service", "auditor")
PLAYER: Final = "p1"
NOWHERE: Final = {"erasure_id": "er-1", "sequence": "1", "rule": "velocity"}
"""Names in paths, of things that are not there."""
Told = Callable[[str, object], None]


@pytest.fixture(scope="module")
def cup(path: Path) -> str:
    """A running tournament with a standing, so that there is something to be found."""
    tournament_id = unique("api")
    placed = path.publish([schedule(tournament_id), wager(tournament_id, PLAYER, 500)])
    path.reached(tournament_id, placed[-1].offset)
    return tournament_id


def known(cup: str) -> Mapping[str, str]:
    return {"tournament_id": cup, "player_id": PLAYER, "function": "on-wager"}


def operations(path: Path, setting: str) -> frozenset[str]:
    told = path.http.get(f"{path.settings[setting]}/openapi.json").json()
    return frozenset(
        f"{method.upper()} {name}" for name, methods in told["paths"].items() for method in methods
    )


def check(found: Run, wanted: frozenset[str], record_property: Told) -> None:
    record_property("tried", found.requests)
    record_property("outcomes", {str(status): n for status, n in found.statuses.items()})
    # The document itself is what the tool begins with.
    assert found.operations == wanted - {"GET /openapi.json"}
    assert not found.failures, "\n".join(found.failures[:20])
    assert found.requests > len(wanted)


@pytest.mark.parametrize("setting", SERVED, ids=list(SERVED.values()))
def test_every_operation_answers_as_its_document_says(
    path: Path, cup: str, tmp_path: Folder, setting: str, record_property: Told
) -> None:
    """By those who may do it: everything that a document allows, forbids and leaves open."""
    role = "player" if setting == "CONNECT_URL" else "operator"
    headers = path.headers(role, PLAYER)
    # Most of what `tournament` answers waits for a board.
    examples = 5 if setting == "TOURNAMENT_URL" else 20
    url = path.settings[setting]
    found = over(url, tmp_path, headers=headers, known=known(cup), examples=examples)
    check(found, operations(path, setting), record_property)
    assert any(status < 300 for status in found.statuses)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("setting", SERVED, ids=list(SERVED.values()))
def test_every_operation_answers_every_role_as_its_document_says(
    path: Path, cup: str, tmp_path: Folder, setting: str, role: str, record_property: Told
) -> None:
    found = over(
        path.settings[setting],
        tmp_path,
        headers=path.headers(role, PLAYER),
        known=known(cup),
        examples=5,
        phases="fuzzing",
    )
    check(found, operations(path, setting), record_property)


def invalid_tokens(path: Path) -> Mapping[str, str]:
    """Tokens that prove nothing; the attack tests have many more."""
    sound = path.token("operator")
    head, claims, signature = sound.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    return {
        "garbage": "x.y.z",
        "unsigned": f"{none}.{claims}.",
        "another signature": f"{head}.{claims}.{signature[::-1]}",
    }


@pytest.mark.parametrize("kind", ["garbage", "unsigned", "another signature"])
@pytest.mark.parametrize("setting", SERVED, ids=list(SERVED.values()))
def test_a_token_that_proves_nothing_opens_no_operation(
    path: Path, cup: str, setting: str, kind: str, record_property: Told
) -> None:
    url = path.settings[setting]
    headers = {"Authorization": f"Bearer {invalid_tokens(path)[kind]}"}
    told = path.http.get(f"{url}/openapi.json").json()
    tried = 0
    for name, methods in told["paths"].items():
        for method, operation in methods.items():
            if operation["security"]:
                where = url + name.format(**known(cup), **NOWHERE)
                answer = path.http.request(method, where, headers=headers)
                assert answer.status_code == 401, (method, where, answer.text)
                assert_problem(answer)
                tried += 1
    record_property("tried", tried)
    assert tried


# --- what never reaches a function -------------------------------------------------------------

RAW: Final[Mapping[str, bytes]] = {
    "no request line": b"hello\r\n\r\n",
    "a script in the request line": b"<script>alert(1)</script>\r\n\r\n",
    "another protocol": b"GET / FTP/1.0\r\nHost: x\r\n\r\n",
    "a method of small letters and signs": b"g<t> / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
    "a header with a space in its name": b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n",
    "a header with a NUL": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: a\x00b\r\n\r\n",
    "a folded header": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: a\r\n b\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
    b"Content-Length: 2\r\n\r\nab",
    "a negative length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "length and chunks": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    "a thousand headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 1_000 + b"\r\n",
    "a header of 64 KB": b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 65_536 + b"\r\n\r\n",
    "an icon": b"GET /favicon.ico HTTP/1.1\r\nHost: x\r\n\r\n",
    "robots": b"GET /robots.txt HTTP/1.1\r\nHost: x\r\n\r\n",
    "two slashes": b"GET //v1//tournaments HTTP/1.1\r\nHost: x\r\n\r\n",
    "a slash too many": b"GET /healthz/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path upwards": b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    "a NUL in the path": b"GET /v1/%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path that is no UTF-8": b"GET /v1/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "a line break in the path": b"GET /v1/%0d%0aSet-Cookie:x=1 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a trace": b"TRACE /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method of its own": b"FOO /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "an absolute address": b"GET http://elsewhere.example/healthz2 HTTP/1.1\r\nHost: x\r\n\r\n",
}


def sent_raw(url: str, raw: bytes) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and body of what comes back to these very bytes."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=10) as one:
        one.sendall(raw)
        one.shutdown(socket.SHUT_WR)
        answer = HTTPResponse(one)
        answer.begin()
        headers = {name.lower(): text for name, text in answer.getheaders()}
        return answer.status, headers, answer.read()


@pytest.mark.parametrize("setting", SERVED, ids=list(SERVED.values()))
def test_what_is_no_request_gets_a_problem_and_nothing_of_it_back(
    path: Path, setting: str, record_property: Told
) -> None:
    for name, raw in RAW.items():
        status, headers, body = sent_raw(path.settings[setting], raw)
        assert 400 <= status < 500 or status == 501, (name, status, body)
        assert_problem_of(name, status, headers, body)
        for piece in (b"<script", b"elsewhere", b"passwd", b"Set-Cookie", b"g<t>"):
            assert piece not in body, name
        assert "set-cookie" not in headers, name
    record_property("tried", len(RAW))
    assert path.http.get(f"{path.settings[setting]}/healthz").status_code == 200


def assert_problem(answer: httpx.Response) -> None:
    headers = {name.lower(): text for name, text in answer.headers.items()}
    assert_problem_of(str(answer.url), answer.status_code, headers, answer.content)


def assert_problem_of(name: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
    assert headers.get("content-type") == "application/problem+json", (name, headers, body)
    told: dict[str, Any] = json.loads(body)
    assert told["status"] == status, name
    assert told.keys() >= {"type", "title", "detail"}, name
    assert headers["x-content-type-options"] == "nosniff", name
    assert headers["cache-control"] == "no-store", name


# --- no cookies, no credentials that a browser sends by itself ---------------------------------


@pytest.mark.parametrize("setting", SERVED, ids=list(SERVED.values()))
def test_a_page_elsewhere_can_do_nothing_in_a_players_name(
    path: Path, cup: str, setting: str, record_property: Told
) -> None:
    """No cookie is set or read, so a request that another page makes the browser send proves
    nothing; and no other origin may read an answer or send a header of its own."""
    url = path.settings[setting]
    elsewhere = {"Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site"}
    cookie = {"Cookie": f"token={path.token('operator')}; Authorization=Bearer"}
    told = path.http.get(f"{url}/openapi.json").json()
    tried = 0
    for name, methods in told["paths"].items():
        for method, operation in methods.items():
            where = url + name.format(**known(cup), **NOWHERE)
            asked = {"Access-Control-Request-Method": method.upper()}
            for verb, headers in ((method, cookie), ("OPTIONS", asked)):
                answer = path.http.request(verb, where, headers={**elsewhere, **headers})
                assert "set-cookie" not in answer.headers, where
                assert not [n for n in answer.headers if n.startswith("access-control")], where
                if verb != "OPTIONS" and operation["security"]:
                    assert answer.status_code == 401, where
                tried += 1
    record_property("tried", tried)
