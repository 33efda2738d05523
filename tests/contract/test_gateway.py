"""The gateway port over nginx + Nchan, the development gateway and Azure Web PubSub's double: real
processes and sockets."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import gateways
from gateways import WITH_NCHAN_S_SURFACE, Decider, RunningGateway, ServiceServer
from leaderboard.adapters.gateway_channels import MAX_FRAME_BYTES
from leaderboard.adapters.nchan_gateway import NchanGateway
from leaderboard.adapters.nchan_pods import LEFT_OUT_SECONDS, NchanPods
from leaderboard.adapters.web_pubsub_gateway import WebPubSubGateway
from leaderboard.errors import TransientError
from leaderboard.ports import Frame
from leaderboard.stack.nginx import NginxServer
from leaderboard.stack.process import LOOPBACK, free_port
from sockets import Players, PlayerSocket, players

__all__ = ["players"]
_numbers = itertools.count(1)


def one_pod(server: RunningGateway) -> NchanGateway:
    """A publisher to this address alone."""
    return NchanGateway(server.publish_url)


def told(one: tuple[str, Callable[[RunningGateway], Any]]) -> str:
    return f"{one[0]}, {one[1].__name__}"


ONE_POD = [(kind, one_pod) for kind in WITH_NCHAN_S_SURFACE]
over_nchan_s_surface = pytest.mark.parametrize(
    "scene",
    [*((kind, gateways.publisher) for kind in WITH_NCHAN_S_SURFACE), *ONE_POD],
    ids=told,
    indirect=True,
)
"""What Web PubSub has no counterpart of, or what is Microsoft's to keep."""


@dataclass
class Scene:
    """A running gateway with its publisher, and players who reach it."""

    server: RunningGateway
    gateway: NchanGateway | NchanPods | WebPubSubGateway
    decider: Decider
    players: Players
    folder: Path

    @property
    def compresses(self) -> bool:
        """The development gateway does not: it needs no speed."""
        return isinstance(self.server, NginxServer)

    @property
    def is_service(self) -> bool:
        """Web PubSub: its own rules for who wants in, and another goodbye."""
        return isinstance(self.server, ServiceServer)

    def url(self, channels: str) -> str:
        ticket = f"ticket-{next(_numbers)}"
        self.decider.grants[ticket] = channels
        return self.way_in(ticket)

    def way_in(self, ticket: str) -> str:
        return gateways.way_in(self.server)(ticket)

    def subscribe(self, channels: str) -> PlayerSocket:
        return self.players.connect(self.url(channels))


@pytest.fixture(
    scope="module",
    params=[*((kind, gateways.publisher) for kind in gateways.KINDS), *ONE_POD],
    ids=told,
)
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, players: Players
) -> Iterator[Scene]:
    decider = Decider()
    folder = tmp_path_factory.mktemp("gateway")
    try:
        kind, publisher = request.param
        with gateways.running(kind, folder, decider.url) as server:
            yield Scene(server, publisher(server), decider, players, folder)
    finally:
        decider.stop()


@pytest.fixture(params=gateways.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def decider() -> Iterator[Decider]:
    started = Decider()
    yield started
    started.stop()


@pytest.fixture
def t() -> str:
    """A tournament that no other test uses."""
    return f"t{next(_numbers)}"


def _frame(channel: str, number: int | str) -> Frame:
    return Frame(channel, f'{{"n":"{number}"}}'.encode())


def test_frame_without_a_subscriber_is_no_error(scene: Scene, t: str) -> None:
    scene.gateway.publish([_frame(f"top.{t}", 1), _frame(f"me.{t}.p", 1), _frame("conn.x", 1)])


def test_nothing_to_publish_is_no_error(scene: Scene) -> None:
    scene.gateway.publish([])


def test_frame_reaches_every_subscriber_of_its_channel_and_nobody_else(
    scene: Scene, t: str
) -> None:
    alice = scene.subscribe(f"top.{t},me.{t}.alice,conn.a{t}")
    bob = scene.subscribe(f"top.{t},me.{t}.bob,conn.b{t}")
    scene.gateway.publish([_frame(f"me.{t}.alice", "for alice")])
    scene.gateway.publish([_frame(f"top.{t}", "for all")])
    assert [alice.next_json()["n"], alice.next_json()["n"]] == ["for alice", "for all"]
    assert bob.next_json() == {"n": "for all"}


@over_nchan_s_surface
def test_new_subscriber_gets_the_last_top_frame_at_once(scene: Scene, t: str) -> None:
    scene.gateway.publish([_frame(f"top.{t}", n) for n in range(5)])
    late = scene.subscribe(f"top.{t},me.{t}.p,conn.{t}")
    assert late.next_json(1.0) == {"n": "4"}
    scene.gateway.publish([_frame(f"top.{t}", 5)])
    assert late.next_json() == {"n": "5"}
    assert late.is_silent()


@over_nchan_s_surface
def test_each_part_of_a_large_tournament_keeps_its_own_last_frame(scene: Scene, t: str) -> None:
    scene.gateway.publish([_frame(f"top.{t}", "first"), _frame(f"top.{t}.7", "last")])
    late = scene.subscribe(f"top.{t}.7,me.{t}.p,curve.{t}.7,conn.{t}")
    assert late.next_json(1.0) == {"n": "last"}
    scene.gateway.publish([_frame(f"top.{t}", "not theirs"), _frame(f"curve.{t}.7", "curve")])
    assert late.next_json() == {"n": "curve"}


@over_nchan_s_surface
def test_snapshots_are_compressed_for_who_understands_it_and_arrive_alike(
    scene: Scene, t: str
) -> None:
    def joined(player: str, *, deflate: bool) -> PlayerSocket:
        url = scene.url(f"top.{t},me.{t}.{player},conn.{t}-{player}")
        return scene.players.connect(url, deflate=deflate)

    plain, browser = joined("a", deflate=False), joined("b", deflate=True)
    assert (plain.is_deflating, browser.is_deflating) == (False, scene.compresses)
    large = _frame(f"top.{t}", "Zoë " * 2000)
    scene.gateway.publish([_frame(f"top.{t}", 1), _frame(f"me.{t}.b", 2), large])
    late = joined("c", deflate=True)
    first, own = _frame("", 1).body.decode(), _frame("", 2).body.decode()
    assert [plain.next() for _ in range(2)] == [first, large.body.decode()]
    assert [browser.next() for _ in range(3)] == [first, own, large.body.decode()]
    assert late.next() == large.body.decode()


def test_frames_for_one_player_or_socket_are_not_kept(scene: Scene, t: str) -> None:
    scene.gateway.publish([_frame(f"me.{t}.p", "old"), _frame(f"conn.{t}", "old")])
    late = scene.subscribe(f"top.{t},me.{t}.p,conn.{t}")
    assert late.is_silent()
    scene.gateway.publish([_frame(f"me.{t}.p", "new")])
    assert late.next_json() == {"n": "new"}


def test_frames_of_a_channel_keep_their_order(scene: Scene, t: str) -> None:
    player = scene.subscribe(f"top.{t},me.{t}.p,conn.{t}")
    for start in range(0, 200, 20):
        scene.gateway.publish([_frame(f"me.{t}.p", n) for n in range(start, start + 20)])
    assert [player.next_json()["n"] for _ in range(200)] == [str(n) for n in range(200)]


def test_large_batch_arrives_whole(scene: Scene, t: str) -> None:
    players = [scene.subscribe(f"top.{t},me.{t}.p{n},conn.{t}-{n}") for n in range(10)]
    scene.gateway.publish([_frame(f"me.{t}.p{n % 1000}", n) for n in range(5000)])
    for index, player in enumerate(players):
        got = [player.next_json()["n"] for _ in range(5)]
        assert got == [str(index + 1000 * turn) for turn in range(5)]


def test_one_publisher_serves_many_threads(scene: Scene, t: str) -> None:
    player = scene.subscribe(f"top.{t}," + ",".join(f"me.{t}.p{n}" for n in range(8)))
    errors: list[Exception] = []

    def publish(index: int) -> None:
        try:
            for n in range(0, 40, 10):
                numbers = range(n, n + 10)
                scene.gateway.publish([_frame(f"me.{t}.p{index}", f"{index}-{i}") for i in numbers])
        except Exception as error:  # noqa: BLE001 - whatever it is, the test tells it
            errors.append(error)

    threads = [threading.Thread(target=publish, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    got = [player.next_json()["n"] for _ in range(320)]
    for index in range(8):
        mine = [name for name in got if name.startswith(f"{index}-")]
        assert mine == [f"{index}-{n}" for n in range(40)]


def test_frame_of_the_largest_size_arrives_and_a_larger_one_is_refused(
    scene: Scene, t: str
) -> None:
    player = scene.subscribe(f"top.{t},me.{t}.p,conn.{t}")
    scene.gateway.publish([Frame(f"me.{t}.p", b"x" * MAX_FRAME_BYTES)])
    assert len(player.next()) == MAX_FRAME_BYTES
    with pytest.raises(ValueError, match="bytes at most"):
        scene.gateway.publish([Frame(f"me.{t}.p", b"x" * (MAX_FRAME_BYTES + 1))])


def test_close_ends_just_that_socket(scene: Scene, t: str) -> None:
    old = scene.subscribe(f"top.{t},me.{t}.p,conn.old{t}")
    new = scene.subscribe(f"top.{t},me.{t}.p,conn.new{t}")
    scene.gateway.close(f"conn.old{t}")
    if scene.is_service:
        assert old.next_json() == {"type": "closed", "reason": "410 Gone"}
    assert old.ends()
    assert old.close_code == (1000 if scene.is_service else 1001)
    scene.gateway.publish([_frame(f"top.{t}", 1), _frame(f"me.{t}.p", 2)])
    assert sorted(new.next_json()["n"] for _ in range(2)) == ["1", "2"]
    assert new.is_open()


def test_close_of_a_channel_that_nobody_knows_is_no_error(scene: Scene, t: str) -> None:
    scene.gateway.close(f"conn.never-{t}")


def test_player_may_come_back_after_a_close(scene: Scene, t: str) -> None:
    scene.gateway.publish([_frame(f"top.{t}", "kept")])
    first = scene.subscribe(f"top.{t},me.{t}.p,conn.1{t}")
    scene.gateway.close(f"conn.1{t}")
    assert first.ends()
    again = scene.subscribe(f"top.{t},me.{t}.p,conn.2{t}")
    if not scene.is_service:
        assert [first.next_json(), again.next_json()] == [{"n": "kept"}] * 2
    scene.gateway.publish([_frame(f"top.{t}", "new")])
    assert again.next_json() == {"n": "new"}


def test_refused_ticket_opens_no_socket(scene: Scene) -> None:
    assert scene.players.refused(scene.way_in("unknown")) == 403
    assert scene.players.refused(scene.way_in("")) == 403
    assert scene.players.refused(scene.server.client_url) == (401 if scene.is_service else 403)


def test_ticket_opens_one_socket_only(scene: Scene, t: str) -> None:
    url = scene.url(f"top.{t},me.{t}.p,conn.{t}")
    scene.players.connect(url)
    assert scene.players.refused(url) == 403


@over_nchan_s_surface
def test_decider_hears_the_ticket_and_the_true_address(scene: Scene, t: str) -> None:
    forged = {
        "X-Forwarded-For": "203.0.113.9",
        "X-Ticket": "forged",
        "X-Channels": "me.other.victim",
        "Cookie": "a=b",
        "User-Agent": "A browser/1.0",
    }
    url = scene.url(f"top.{t},me.{t}.p,conn.{t}")
    scene.players.connect(url, forged)
    path, headers = scene.decider.asked[-1]
    assert path == "/internal/authorize"  # no ticket in a URL that someone may log
    assert headers["x-ticket"] == url.rpartition("=")[2]
    assert headers["x-forwarded-for"] == LOOPBACK
    assert headers["user-agent"] == "A browser/1.0"
    assert "cookie" not in headers
    assert "x-channels" not in headers
    assert headers.get("upgrade", "") == ""


@over_nchan_s_surface
@pytest.mark.parametrize(
    "path",
    [
        "/subscribe",
        "/subscribe?ticket=x",
        "/pub/top.x",
        "/pub/me.x.y",
        "/status",
        "/internal/authorize",
        "/connect/../subscribe",
        "/%73ubscribe",
    ],
)
def test_player_can_neither_choose_channels_nor_publish(scene: Scene, t: str, path: str) -> None:
    forged = {
        "X-Accel-Redirect": "/subscribe",
        "X-Channels": f"me.{t}.victim",
        "Upstream-Http-X-Channels": f"me.{t}.victim",
    }
    origin = gateways.origin_of(scene.server)
    assert scene.players.refused(origin.replace("http", "ws") + path, forged) == 404
    for method in ("GET", "POST", "DELETE"):
        answer = httpx.request(method, origin + path, headers=forged)
        assert answer.status_code in (404, 405)


def test_forged_answer_headers_do_not_open_a_socket(scene: Scene, t: str) -> None:
    forged = {"X-Accel-Redirect": "/subscribe", "X-Channels": f"me.{t}.victim"}
    assert scene.players.refused(scene.way_in("no"), forged) == 403


def test_plain_request_does_not_use_a_ticket_up(scene: Scene, t: str) -> None:
    url = scene.url(f"top.{t},me.{t}.p,conn.{t}")
    plain = httpx.get(url.replace("ws://", "http://"))
    assert plain.status_code == (400 if scene.is_service else 426)
    scene.players.connect(url)


def test_player_who_speaks_is_cut_and_reaches_nobody(scene: Scene, t: str) -> None:
    alice = scene.subscribe(f"top.{t},me.{t}.alice,conn.a{t}")
    bob = scene.subscribe(f"top.{t},me.{t}.bob,conn.b{t}")
    alice.say('{"n":"forged"}')
    assert bob.is_silent()
    assert alice.ends()
    assert alice.close_code == (1000 if scene.is_service else 1008)
    assert bob.is_open()


@pytest.mark.parametrize(
    "channel",
    [
        "top." + "x" * 10_000,
        "x" * 10_000,
        "",
        "top.",
        "top.a b",
        "top.a\r\nDELETE /pub/top.b HTTP/1.1\r\n\r\n",
        "top.a/../top.b",
        "top.a?x=y",
        "top.%2e",
        "top.ä",
        "top.a,top.b",
        "me.a",
        "me.a.b.c",
        "other.a",
        "top.a\n",
    ],
)
def test_hostile_channel_is_refused_before_anything_is_sent(
    scene: Scene, t: str, channel: str
) -> None:
    with pytest.raises(ValueError, match="no channel"):
        scene.gateway.publish([_frame(f"top.{t}", "not sent"), _frame(channel, 1)])
    with pytest.raises(ValueError, match="no channel"):
        scene.gateway.close(channel)
    late = scene.subscribe(f"top.{t},me.{t}.p,conn.{t}")
    assert late.is_silent(0.1)


@over_nchan_s_surface
@pytest.mark.parametrize("name", ["x" * 2000, "top.a%20b", "top.a,top.b", "other.a", "me.a", "."])
def test_publisher_side_knows_no_other_channels(scene: Scene, name: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = httpx.request(method, f"{scene.server.publish_url}/pub/{name}", content=b"{}")
        assert answer.status_code in (404, 405)


@over_nchan_s_surface
def test_publisher_side_refuses_a_body_above_its_limit(scene: Scene) -> None:
    url = f"{scene.server.publish_url}/pub/top.large"
    assert httpx.post(url, content=b"x" * (MAX_FRAME_BYTES + 2)).status_code == 413


@over_nchan_s_surface
def test_player_s_side_refuses_large_requests(scene: Scene) -> None:
    url = f"{gateways.origin_of(scene.server)}/connect?ticket={'x' * 40_000}"
    assert httpx.get(url).status_code in (400, 414)


def test_reader_who_stalls_holds_up_nobody(scene: Scene, t: str) -> None:
    stalled = _stalled_socket(scene.url(f"top.{t},me.{t}.slow,conn.slow{t}"))
    try:
        quick = scene.subscribe(f"top.{t},me.{t}.quick,conn.quick{t}")
        body = b"x" * 100_000
        started = time.monotonic()
        for _ in range(20):
            scene.gateway.publish([Frame(f"top.{t}", body)] * 10)
            for _ in range(10):
                quick.next()
        assert time.monotonic() - started < 10
    finally:
        stalled.close()


def test_no_ticket_stands_in_any_log(scene: Scene, t: str) -> None:
    url = scene.url(f"top.{t},me.{t}.p,conn.{t}")
    ticket = url.rpartition("=")[2]
    scene.players.connect(url).close()
    assert scene.players.refused(url) == 403
    logs = [path for path in scene.folder.rglob("*") if path.suffix == ".log"]
    assert logs
    for path in logs:
        text = path.read_text()
        assert ticket not in text
        assert "ticket=" not in text


def test_no_ticket_is_logged_when_the_decider_is_away(
    kind: str, tmp_path: Path, players: Players
) -> None:
    away = f"http://{LOOPBACK}:{free_port()}/internal/authorize"
    with gateways.running(kind, tmp_path, away) as server:
        assert players.refused(gateways.way_in(server)("very-secret")) in (500, 502, 503)
    for path in tmp_path.rglob("*.log"):
        assert "very-secret" not in path.read_text()


@pytest.mark.parametrize("kind", WITH_NCHAN_S_SURFACE)
def test_socket_lives_no_longer_than_the_bound(
    kind: str, tmp_path: Path, players: Players, decider: Decider
) -> None:
    decider.grants["one"] = "top.t,me.t.p,conn.c"
    with gateways.running(kind, tmp_path, decider.url, socket_seconds=1) as server:
        opened = players.connect(f"{server.client_url}?ticket=one")
        assert not opened.ends(0.5)
        assert opened.ends(3)
        assert opened.close_code == 1000


def test_publisher_recovers_when_the_gateway_comes_back(
    kind: str, tmp_path: Path, players: Players, decider: Decider
) -> None:
    with gateways.running(kind, tmp_path, decider.url) as server:
        gateway = gateways.publisher(server)
        gateway.publish([_frame("top.t", 1)])
        server.kill()
        for _ in range(2):
            with pytest.raises(TransientError):
                gateway.publish([_frame("top.t", 2)])
            with pytest.raises(TransientError):
                gateway.close("conn.c")
            with pytest.raises(TransientError):
                gateway.check()
        server.start()
        gateway.check()
        decider.grants["one"] = "top.t,me.t.p,conn.c"
        player = players.connect(gateways.way_in(server)("one"))
        gateway.publish([_frame("top.t", 3)])
        assert player.next_json() == {"n": "3"}


def test_restart_between_two_calls_goes_unnoticed(
    kind: str, tmp_path: Path, decider: Decider
) -> None:
    with gateways.running(kind, tmp_path, decider.url) as server:
        gateway = gateways.publisher(server)
        gateway.publish([_frame("top.t", 1)])
        server.stop()
        server.start()
        gateway.publish([_frame("top.t", 2)])


def test_gateway_that_accepts_and_says_nothing_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaderboard.adapters.nchan_gateway.ANSWER_SECONDS", 0.2)
    with socket.create_server((LOOPBACK, 0)) as silent:
        gateway = NchanGateway(f"http://{LOOPBACK}:{silent.getsockname()[1]}")
        with pytest.raises(TransientError):
            gateway.publish([_frame("top.t", 1)])


class _Scripted:
    """A server that answers a fixed number of requests on each connection, then closes it."""

    def __init__(self, per_connection: int, status: str = "201 Created", *, tells: bool) -> None:
        self.bodies: list[bytes] = []
        self.connections = 0
        self._per_connection = per_connection
        self._status = status
        self._tells = tells
        self._listener = socket.create_server((LOOPBACK, 0))
        self.url = f"http://{LOOPBACK}:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection, connection.makefile("rb") as reader:
                for left in range(self._per_connection - 1, -1, -1):
                    if not self._take(reader):
                        break
                    close = b"Connection: close\r\n" if self._tells and left == 0 else b""
                    head = f"HTTP/1.1 {self._status}\r\nContent-Length: 2\r\n".encode()
                    connection.sendall(head + close + b"\r\nok")
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):
                    pass

    def _take(self, reader: Any) -> bool:
        length = 0
        while (line := reader.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        if line == b"":
            return False
        self.bodies.append(reader.read(length))
        return True

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.mark.parametrize("tells", [True, False])
def test_limit_of_requests_on_a_connection_loses_and_reorders_nothing(tells: bool) -> None:
    server = _Scripted(7, tells=tells)
    gateway = NchanGateway(server.url)
    try:
        for start in range(0, 100, 50):
            gateway.publish([_frame("top.t", n) for n in range(start, start + 50)])
        assert server.bodies == [_frame("top.t", n).body for n in range(100)]
        assert server.connections >= 100 // 7
    finally:
        gateway.disconnect()
        server.stop()


def test_gateway_that_is_out_of_memory_is_away() -> None:
    server = _Scripted(1000, "507 Insufficient Storage", tells=False)
    gateway = NchanGateway(server.url)
    try:
        with pytest.raises(TransientError):
            gateway.publish([_frame("top.t", 1)])
    finally:
        gateway.disconnect()
        server.stop()


@over_nchan_s_surface
def test_url_that_is_no_publisher_is_told_as_such(scene: Scene) -> None:
    gateway = NchanGateway(gateways.origin_of(scene.server))
    with pytest.raises(RuntimeError, match="GATEWAY_PUBLISH_URL"):
        gateway.publish([_frame("top.t", 1)])


def _stalled_socket(url: str) -> socket.socket:
    """A WebSocket whose client reads nothing after the handshake, and offers little room."""
    place = httpx.URL(url.replace("ws://", "http://"))
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((place.host, place.port))
    raw.sendall(
        b"GET %s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        % place.raw_path
    )
    assert raw.recv(12) == b"HTTP/1.1 101"
    return raw


# --- several pods --------------------------------------------------------------------------------

SECOND = "127.0.0.2"


@dataclass
class Pods:
    """Two gateways on one port, each at an address of its own, and whom their name stands for."""

    servers: list[NginxServer]
    urls: list[str]
    known: set[str]
    now: float = 0.0

    def publisher(self) -> NchanPods:
        url = f"http://gateway-publish:{self.servers[0].publish_port}"
        return NchanPods(url, lambda host, port: frozenset(self.known), lambda: self.now)


@pytest.fixture
def pods(decider: Decider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pods]:
    port = free_port()
    servers, urls = [], []
    try:
        for address in (LOOPBACK, SECOND):
            with monkeypatch.context() as there:
                there.setattr("leaderboard.stack.nginx.LOOPBACK", address)
                there.setattr("leaderboard.stack.process.LOOPBACK", address)
                folder = tmp_path / address
                server = NginxServer(folder, authorize_url=decider.url, publish_port=port)
                servers.append(server)
                server.start()
                urls.append(server.client_url)
        yield Pods(servers, urls, {LOOPBACK, SECOND})
    finally:
        for server in servers:
            server.stop()


def players_of(pods: Pods, decider: Decider, players: Players) -> list[PlayerSocket]:
    """A player on each pod."""
    found = []
    for number, url in enumerate(pods.urls):
        decider.grants[f"pod-{number}"] = f"top.t1,conn.c{number}"
        found.append(players.connect(f"{url}?ticket=pod-{number}"))
    return found


def test_frame_reaches_the_players_of_every_pod(
    pods: Pods, decider: Decider, players: Players
) -> None:
    one, two = players_of(pods, decider, players)
    publisher = pods.publisher()
    publisher.publish([_frame("top.t1", n) for n in range(300)])
    for player in (one, two):
        assert [player.next_json()["n"] for _ in range(300)] == [str(n) for n in range(300)]
    publisher.close("conn.c1")
    assert two.ends()
    assert one.is_open()


def test_pod_that_is_gone_holds_the_others_up_for_a_moment_only(
    pods: Pods, decider: Decider, players: Players
) -> None:
    one, _ = players_of(pods, decider, players)
    publisher = pods.publisher()
    publisher.publish([_frame("top.t1", 1)])
    pods.servers[1].kill()
    with pytest.raises(TransientError):
        publisher.publish([_frame("top.t1", 2)])
    pods.now += LEFT_OUT_SECONDS
    publisher.publish([_frame("top.t1", 3)])
    # Sockets to be closed may be there: that is not given up before its name is gone.
    with pytest.raises(TransientError):
        publisher.close("conn.c1")
    publisher.check()
    pods.known.remove(SECOND)
    pods.now += 1
    publisher.close("conn.c1")
    assert [one.next_json()["n"] for _ in range(3)] == ["1", "2", "3"]


def test_pod_that_comes_back_gets_frames_again(
    pods: Pods, decider: Decider, players: Players, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = pods.publisher()
    pods.servers[1].kill()
    with pytest.raises(TransientError):
        publisher.publish([_frame("top.t1", 1)])
    pods.now += LEFT_OUT_SECONDS
    publisher.publish([_frame("top.t1", 2)])
    with monkeypatch.context() as there:
        there.setattr("leaderboard.stack.nginx.LOOPBACK", SECOND)
        pods.servers[1].start()
    _, two = players_of(pods, decider, players)
    for number in range(3, 200):
        pods.now += 1
        publisher.publish([_frame("top.t1", number)])
        if not two.is_silent(0.05):
            break
    else:
        pytest.fail("it never counted again")


def test_all_pods_away_or_no_name_is_transient(pods: Pods) -> None:
    publisher = pods.publisher()
    for server in pods.servers:
        server.kill()
    for _ in range(2):
        for call in (publisher.check, lambda: publisher.publish([_frame("top.t1", 1)])):
            with pytest.raises(TransientError):
                call()
        pods.now += LEFT_OUT_SECONDS
    nobody = NchanPods("http://no-such-host.invalid:1")
    with pytest.raises(TransientError, match="the gateway: "):
        nobody.publish([_frame("top.t1", 1)])
