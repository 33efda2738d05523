"""Our requests to Azure Web PubSub beside those of Microsoft's own client, and what becomes of
answers that are no success."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from azure.core.credentials import AccessToken, AzureKeyCredential
from azure.messaging.webpubsubservice import WebPubSubServiceClient
from joserfc import jwt
from joserfc.jwk import OctKey

import gateways
from gateways import HUB, KEYS, Decider, ServiceServer
from leaderboard.adapters import web_pubsub_gateway as adapter
from leaderboard.adapters.entra_bearer import EntraBearer
from leaderboard.adapters.web_pubsub_events import admission
from leaderboard.adapters.web_pubsub_gateway import KeyBearer, WebPubSubGateway
from leaderboard.errors import TransientError
from leaderboard.model import PlayerId, TournamentId
from leaderboard.ports import Frame, Grant
from leaderboard.settings import EntraSettings, load
from leaderboard.stack.process import LOOPBACK, free_port
from sockets import Players, players

__all__ = ["players"]
BODY = b'{"type":"top"}'
CUT = 0
"""In the place of a status: the connection is closed without an answer."""


@dataclass
class Seen:
    """A request as it came over the wire."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    at: float


class Recorder:
    """A real HTTP server that writes down what it is asked and gives the answers it is told."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.default: tuple[int, dict[str, str], bytes] = (202, {}, b"")
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): text for name, text in self.headers.items()}
                at = time.monotonic()
                recorder.seen.append(Seen(self.command, self.path, headers, body, at))
                answers = recorder.answers
                status, told, content = answers.pop(0) if answers else recorder.default
                if status == CUT:
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, text in told.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_HEAD = do_POST  # noqa: N815 - the base class names them so

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://{LOOPBACK}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    started = Recorder()
    yield started
    started.stop()


@pytest.fixture
def gateway(recorder: Recorder) -> Iterator[WebPubSubGateway]:
    opened = WebPubSubGateway(recorder.url, HUB, KeyBearer(KEYS[0]))
    yield opened
    opened.disconnect()


def microsoft_s(url: str) -> WebPubSubServiceClient:
    return WebPubSubServiceClient(url, HUB, AzureKeyCredential(KEYS[0]))


def claims_of(token: str) -> dict[str, Any]:
    """Of a token that KEYS[0] has signed; raises otherwise."""
    found = jwt.decode(token, OctKey.import_key(KEYS[0]), algorithms=["HS256"])
    assert found.header == {"alg": "HS256", "typ": "JWT"}
    return dict(found.claims)


def told(seen: Seen) -> dict[str, Any]:
    """All of a request that the service decides by; the token's end to within two seconds."""
    scheme, _, token = seen.headers["authorization"].partition(" ")
    claims = claims_of(token)
    left = claims.pop("exp") - time.time()
    assert 57 <= left <= 61
    return {
        "method": seen.method,
        "target": seen.target,
        "body": seen.body,
        "content_type": seen.headers.get("content-type"),
        "accept": seen.headers.get("accept"),
        "scheme": scheme,
        "claims": claims,
    }


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            lambda g: g.publish([Frame("top.cup-1", BODY)]),
            lambda m: m.send_to_group(
                "top.cup-1", json.loads(BODY), content_type="application/json"
            ),
        ),
        (
            lambda g: g.publish([Frame("me.cup-1.p_1", BODY)]),
            lambda m: m.send_to_group("me.cup-1.p_1", json.loads(BODY)),
        ),
        (
            lambda g: g.close("conn.0a1b"),
            lambda m: [
                m.send_to_group("conn.0a1b", json.loads(adapter.FAREWELL)),
                m.close_group_connections("conn.0a1b", reason="410"),
            ],
        ),
        (lambda g: g.check(), lambda m: m.group_exists("ready")),
    ],
    ids=["send to all", "send to a player", "close", "check"],
)
def test_requests_are_those_of_microsoft_s_own_client(
    recorder: Recorder,
    gateway: WebPubSubGateway,
    ours: Callable[[WebPubSubGateway], None],
    theirs: Callable[[WebPubSubServiceClient], Any],
) -> None:
    def answers() -> list[tuple[int, dict[str, str], bytes]]:
        is_close = ours.__code__.co_names[0] == "close"
        return [(202, {}, b""), (204, {}, b"")] if is_close else []

    recorder.default = (200, {}, b"") if ours.__code__.co_names[0] == "check" else (202, {}, b"")
    recorder.answers = answers()
    ours(gateway)
    first, recorder.seen = recorder.seen, []
    recorder.answers = answers()
    theirs(microsoft_s(recorder.url))
    assert first
    compared, with_theirs = [told(one) for one in first], [told(one) for one in recorder.seen]
    for one in (*compared, *with_theirs):  # their JSON has blanks; the frames are ours byte by byte
        one["body"] = json.loads(one["body"]) if one["body"] else None
        one["accept"] = one["accept"] if one["method"] == "POST" else None  # theirs: any, for HEAD
    assert compared == with_theirs
    assert compared[0]["claims"] == {"aud": recorder.url + compared[0]["target"]}
    assert f"api-version={adapter.API_VERSION}" in compared[0]["target"]


def test_player_s_url_is_that_of_microsoft_s_own_client_and_a_ticket() -> None:
    service = "https://cups.webpubsub.azure.com"
    theirs = microsoft_s(service).get_client_access_token(minutes_to_expire=1)
    ours = adapter.way_in(service, theirs["baseUrl"], HUB, KEYS[0])("the-ticket")
    parts = urlsplit(ours)
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == theirs["baseUrl"]
    query = parse_qs(parts.query, strict_parsing=True)
    assert (list(query), query["ticket"]) == (["access_token", "ticket"], ["the-ticket"])
    mine, microsoft = claims_of(query["access_token"][0]), claims_of(theirs["token"])
    assert mine["exp"] - mine["iat"] == adapter.CLIENT_TOKEN_SECONDS
    for claims in (mine, microsoft):
        assert abs(claims.pop("iat") - time.time()) < 3
        claims.pop("exp")
    # No user, group or role: without the event handler it opens nothing.
    assert mine == microsoft == {"aud": f"{service}/client/hubs/{HUB}"}


def test_microsoft_s_own_client_is_believed_by_the_double(tmp_path: Path, players: Players) -> None:
    """So what the contract tests run against takes what the true service takes."""
    decider = Decider()
    decider.grants["one"] = "top.t,conn.c"
    try:
        with gateways.running(gateways.WEB_PUBSUB, tmp_path, decider.url) as server:
            socket = players.connect(gateways.way_in(server)("one"))
            client = microsoft_s(server.publish_url)
            client.send_to_group("top.t", {"n": 1})
            assert socket.next_json() == {"n": 1}
            assert (client.group_exists("top.t"), client.group_exists("top.u")) == (True, False)
            client.close_group_connections("conn.c", reason="410")
            assert socket.ends()
    finally:
        decider.stop()


# --- answers that are no success ---------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
def test_told_to_wait_it_waits_so_long_and_loses_nothing(
    recorder: Recorder, gateway: WebPubSubGateway, status: int
) -> None:
    recorder.answers = [(202, {}, b""), (status, {"Retry-After": "1"}, b"")]
    gateway.publish([Frame("top.t", str(n).encode()) for n in range(4)])
    assert [one.body for one in recorder.seen] == [b"0", b"1", b"1", b"2", b"3"]
    gaps = [b.at - a.at for a, b in zip(recorder.seen, recorder.seen[1:], strict=False)]
    assert 0.95 <= gaps[1] <= 1.5
    assert max(gaps[0], gaps[2], gaps[3]) < 0.5


def test_the_wait_may_be_told_as_a_date(recorder: Recorder, gateway: WebPubSubGateway) -> None:
    then = datetime.now(UTC) + timedelta(seconds=2)
    recorder.answers = [(429, {"Retry-After": format_datetime(then, usegmt=True)}, b"")]
    gateway.publish([Frame("top.t", b"1")])
    assert 0.9 <= recorder.seen[1].at - recorder.seen[0].at <= 2.1


@pytest.mark.parametrize("told_text", ["soon", "", "-1", "1.5", "Mon, 99 Foo 2026"])
def test_a_wait_that_means_nothing_is_our_own(
    recorder: Recorder, gateway: WebPubSubGateway, told_text: str
) -> None:
    recorder.answers = [(429, {"Retry-After": told_text}, b""), (500, {}, b"")]
    gateway.publish([Frame("top.t", b"1")])
    assert len(recorder.seen) == 3
    assert recorder.seen[2].at - recorder.seen[0].at < 1


def test_told_to_wait_longer_than_a_call_may_take_is_away(
    recorder: Recorder, gateway: WebPubSubGateway
) -> None:
    recorder.answers = [(429, {"Retry-After": "3600"}, b"")]
    started = time.monotonic()
    for _ in range(3):  # and nobody asks meanwhile
        with pytest.raises(TransientError, match="without requests"):
            gateway.publish([Frame("top.t", b"1")])
    assert time.monotonic() - started < 1
    assert len(recorder.seen) == 1
    assert gateway._not_before < time.monotonic() + adapter.LONGEST_HOLD_SECONDS


def test_one_who_is_told_to_wait_holds_up_all_others(
    recorder: Recorder, gateway: WebPubSubGateway
) -> None:
    recorder.answers = [(429, {"Retry-After": "1"}, b"")]
    frames = [Frame(f"me.t.p{n}", b"%d" % turn) for turn in range(2) for n in range(200)]
    gateway.publish(frames)
    first = recorder.seen[0].at
    # Those that were under way when the first one was answered may still arrive.
    assert not [one for one in recorder.seen if first + 0.5 < one.at < first + 0.9]
    assert len([one for one in recorder.seen if one.at <= first + 0.5]) < len(frames)
    by_channel: dict[str, list[bytes]] = {}
    for one in sorted(recorder.seen[1:], key=lambda one: one.at):
        by_channel.setdefault(one.target, []).append(one.body)
    assert len(by_channel) == 200
    assert all(bodies == [b"0", b"1"] for bodies in by_channel.values())


def test_who_is_busy_for_long_is_away(
    recorder: Recorder, gateway: WebPubSubGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "PATIENCE_SECONDS", 0.5)
    recorder.default = (503, {}, b"")
    with pytest.raises(TransientError):
        gateway.publish([Frame("top.t", b"1")])
    assert 2 <= len(recorder.seen) <= 6


def test_a_connection_that_is_cut_once_loses_nothing(
    recorder: Recorder, gateway: WebPubSubGateway
) -> None:
    recorder.answers = [(202, {}, b""), (CUT, {}, b"")]
    gateway.publish([Frame("top.t", str(n).encode()) for n in range(3)])
    assert [one.body for one in recorder.seen] == [b"0", b"1", b"1", b"2"]
    recorder.answers = [(CUT, {}, b"")] * 2
    with pytest.raises(TransientError):
        gateway.publish([Frame("top.t", b"3")])


def test_let_in_is_who_the_ticket_says_with_no_role_of_their_own() -> None:
    grant = Grant(TournamentId("t"), PlayerId("p"), "c", 1)
    body, headers = admission(grant, ["top.t", "conn.c"])
    assert body == {"userId": "p", "groups": ["top.t", "conn.c"], "roles": []}
    assert headers.keys() == {"ce-connectionState"}


@pytest.mark.parametrize(
    ("status", "named"),
    [(401, "GATEWAY_ACCESS_KEY"), (403, "role"), (404, "GATEWAY_PUBLISH_URL"), (413, "larger")],
)
def test_what_no_waiting_heals_is_named_and_not_repeated(
    recorder: Recorder, gateway: WebPubSubGateway, status: int, named: str
) -> None:
    recorder.default = (status, {"Retry-After": "1"}, b"")
    with pytest.raises(RuntimeError, match=named):
        gateway.publish([Frame("top.t", b"1")])
    with pytest.raises(RuntimeError, match=named):
        gateway.close("conn.c")
    assert len(recorder.seen) == 2


def test_double_refuses_what_the_service_refuses(tmp_path: Path) -> None:
    with gateways.running(gateways.WEB_PUBSUB, tmp_path, "http://127.0.0.1:1/") as server:
        assert isinstance(server, ServiceServer)
        wrong = WebPubSubGateway(server.publish_url, HUB, KeyBearer("no key of this service"))
        with pytest.raises(RuntimeError, match="401"):
            wrong.publish([Frame("top.t", b"1")])
        with pytest.raises(TransientError, match="401"):
            wrong.check()
        elsewhere = WebPubSubGateway(server.publish_url, "other", KeyBearer(KEYS[0]))
        with pytest.raises(RuntimeError, match="404"):
            elsewhere.publish([Frame("top.t", b"1")])
        right = gateways.publisher(server)
        server.answer_instead((429, {"Retry-After": "1"}))
        right.publish([Frame("top.t", b"1")])
        first, second = server.asked()
        assert 0.95 <= second["at"] - first["at"] <= 1.5
        other_key = WebPubSubGateway(server.publish_url, HUB, KeyBearer(KEYS[1]))
        other_key.check()
        for one in (wrong, elsewhere, other_key):
            one.disconnect()


# --- a workload's identity ---------------------------------------------------------------------


def workload(tmp_path: Path, authority: str) -> EntraSettings:
    (tmp_path / "token").write_text("of-the-pod\n")
    environ = {
        "AZURE_CLIENT_ID": "the-client",
        "AZURE_TENANT_ID": "the-tenant",
        "AZURE_FEDERATED_TOKEN_FILE": str(tmp_path / "token"),
        "AZURE_AUTHORITY_HOST": authority,
    }
    return load(EntraSettings, environ)


def granted(token: str, seconds: int = 3600) -> tuple[int, dict[str, str], bytes]:
    body = {"token_type": "Bearer", "expires_in": seconds, "access_token": token}
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


def test_identity_of_the_pod_publishes_as_microsoft_s_client_does(
    recorder: Recorder, tmp_path: Path
) -> None:
    authority = Recorder()
    authority.answers = [granted("from-entra")]
    bearer = EntraBearer(workload(tmp_path, authority.url))
    gateway = WebPubSubGateway(recorder.url, HUB, bearer)
    try:
        gateway.publish([Frame(f"me.t.p{n}", BODY) for n in range(10)])
    finally:
        gateway.disconnect()
        authority.stop()
    assert {one.headers["authorization"] for one in recorder.seen} == {"Bearer from-entra"}
    (asked,) = authority.seen
    assert asked.target == "/the-tenant/oauth2/v2.0/token"
    assert parse_qs(asked.body.decode()) == {
        "client_id": ["the-client"],
        "scope": ["https://webpubsub.azure.com/.default"],
        "grant_type": ["client_credentials"],
        "client_assertion_type": ["urn:ietf:params:oauth:client-assertion-type:jwt-bearer"],
        "client_assertion": ["of-the-pod"],
    }


def test_scope_is_the_one_that_microsoft_s_client_asks_for() -> None:
    asked: list[str] = []

    class Credential:
        def get_token(self, *scopes: str, **_: Any) -> AccessToken:
            asked.extend(scopes)
            return AccessToken("x", int(time.time()) + 3600)

    client = WebPubSubServiceClient("https://127.0.0.1:1", HUB, Credential(), retry_total=0)
    with pytest.raises(Exception, match=r"refused|connect"):
        client.group_exists("ready")
    assert asked == ["https://webpubsub.azure.com/.default"]


def test_token_is_renewed_before_its_end_and_used_on_while_nobody_renews(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("leaderboard.adapters.entra_bearer.time.monotonic", lambda: now[0])
    bearer = EntraBearer(workload(tmp_path, recorder.url))
    recorder.answers = [granted("one"), (503, {}, b""), granted("two")]
    assert [bearer("u"), bearer("v")] == ["one", "one"]
    now[0] += 3600 - 301
    assert (bearer("u"), len(recorder.seen)) == ("one", 1)
    now[0] += 2
    (tmp_path / "token").write_text("of-the-pod-anew")
    assert bearer("u") == "one"
    assert bearer("u") == "two"
    assert b"of-the-pod-anew" in recorder.seen[-1].body
    now[0] += 4000
    recorder.default = (503, {}, b"")
    with pytest.raises(TransientError):
        bearer("u")


def test_identity_that_entra_does_not_know_is_named(recorder: Recorder, tmp_path: Path) -> None:
    recorder.default = (400, {}, b'{"error":"unauthorized_client","error_description":"x"}')
    with pytest.raises(RuntimeError, match=r"unauthorized_client.*AZURE_CLIENT_ID"):
        EntraBearer(workload(tmp_path, recorder.url))("u")
    with pytest.raises(TransientError):
        EntraBearer(workload(tmp_path, f"http://{LOOPBACK}:{free_port()}"))("u")
    settings = workload(tmp_path, recorder.url)
    (tmp_path / "token").unlink()
    with pytest.raises(RuntimeError, match="AZURE_FEDERATED_TOKEN_FILE"):
        EntraBearer(settings)("u")
