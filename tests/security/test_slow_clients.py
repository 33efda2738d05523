"""Clients that are slow, half open, or never read, against the real edge before the real function:
they cost their own connection for a while, and nobody else anything.

`query` runs by its real command with four threads. That the attacks bite is shown where nothing
stands before it: there as many slow clients as it has threads stop it."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

import httpx
import pytest

from gateways import Decider
from hosting import FUNCTIONS, SETTINGS
from issuing import AUDIENCE, ISSUER, KeyServer, signed
from leaderboard.adapters.nchan_gateway import NchanGateway
from leaderboard.ports import Frame
from leaderboard.stack.nginx import Limits, NginxServer
from leaderboard.stack.process import LOOPBACK, Process, accepts, free_port
from records import engine_of, loaded
from running import descendants, wait_for
from sockets import Players

THREADS: Final = 4
HEADER_SECONDS: Final = 10
"""What the edge lets a client take for its headers, and between two pieces of a body."""
LIMITS: Final = Limits(
    sockets=2000, sockets_of_client=2000, opening_a_second=1000, opening_burst=1000,
    asking_a_second=1000, asking_burst=1000, opening_at_once=20,
)  # fmt: skip
PROMPT_SECONDS: Final = 3.0
"""An answer on a busy machine; who waits for a slow client waits for ten."""
PARTIAL: Final = b"GET /v1/tournaments HTTP/1.1\r\nHost: play.example\r\nX-Slow: "
UPGRADE: Final = (
    b"GET /connect?ticket=%s HTTP/1.1\r\nHost: play.example\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@dataclass
class Scene:
    """The edge, what stands behind it, and a player with a token."""

    edge: NginxServer
    decider: Decider
    query_url: str
    query_pid: int
    headers: dict[str, str]

    @property
    def place(self) -> tuple[str, int]:
        return LOOPBACK, self.edge.public_port

    @property
    def edge_url(self) -> str:
        return f"http://{LOOPBACK}:{self.edge.public_port}"

    def is_prompt(self, url: str | None = None) -> bool:
        began = time.monotonic()
        try:
            answer = httpx.get(
                f"{url or self.edge_url}/v1/tournaments",
                headers=self.headers,
                timeout=PROMPT_SECONDS,
            )
        except httpx.TransportError:
            return False
        return answer.status_code == 200 and time.monotonic() - began < PROMPT_SECONDS

    def connections(self) -> int:
        """What the edge holds open now, without the one that asks."""
        connection = HTTPConnection(LOOPBACK, self.edge.publish_port, timeout=5)
        try:
            connection.request("GET", "/connections")
            return int(connection.getresponse().read().partition(b":")[2].strip(b"}")) - 1
        finally:
            connection.close()


@pytest.fixture(scope="module")
def scene(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("slow")
    issuer, decider, port = KeyServer(), Decider(), free_port()
    database_url = f"sqlite:///{folder}/record.sqlite"
    with contextlib.ExitStack() as stack:
        stack.callback(issuer.stop)
        stack.callback(decider.stop)
        stack.enter_context(engine_of(loaded(database_url)))
        settings = {
            **SETTINGS, "REDIS_URL": redis_url, "DATABASE_URL": database_url,
            "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE, "JWKS_URL": issuer.url,
            "THREADS": str(THREADS), "REQUESTS_PER_MINUTE": "100000",
        }  # fmt: skip
        source = str(FUNCTIONS / "query" / "main.py")
        argv = [sys.executable, "-m", "functions_framework", "--source", source]
        argv += ["--target", "query", "--host", LOOPBACK, "--port", str(port)]
        environ = {**os.environ, **settings}
        query = Process("query", argv, log_path=folder / "query.log", environ=environ)
        query.start()
        stack.callback(query.stop)
        query.wait_until(lambda: accepts(port), 30)
        url = f"http://{LOOPBACK}:{port}"
        edge = NginxServer(
            folder / "edge", authorize_url=decider.url, query_url=url, limits=LIMITS,
            ping_seconds=1, socket_seconds=60,
        )  # fmt: skip
        edge.start()
        stack.callback(edge.stop)
        headers = {"Authorization": f"Bearer {signed()}"}
        made = Scene(edge, decider, url, query.pid, headers)
        wait_for(made.is_prompt, 20)
        yield made


@contextlib.contextmanager
def opened(place: tuple[str, int], count: int, said: bytes) -> Iterator[list[socket.socket]]:
    """So many connections on which that was said, and nothing since."""
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            one = socket.create_connection(place, timeout=10)
            made.append(one)
            one.sendall(said)
        yield made
    finally:
        for one in made:
            one.close()


def ended(sockets: list[socket.socket], within_seconds: float) -> int:
    """How many of them the other side ends in that time."""
    deadline, count = time.monotonic() + within_seconds, 0
    with selectors.DefaultSelector() as selector:
        for one in sockets:
            selector.register(one, selectors.EVENT_READ)
        while count < len(sockets) and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                assert isinstance(key.fileobj, socket.socket)
                with contextlib.suppress(ConnectionError):
                    if key.fileobj.recv(65536):
                        continue
                selector.unregister(key.fileobj)
                count += 1
    return count


def told(sockets: list[socket.socket], found: set[socket.socket]) -> int:
    """How many of them have been told that there is no room, these among them."""
    for one in sockets:
        with contextlib.suppress(OSError):
            if one.recv(12, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"HTTP/1.1 503":
                found.add(one)
    return len(found)


def threads_of(pid: int) -> int:
    """Of the function's processes together."""
    return sum(len(list(Path(f"/proc/{one}/task").iterdir())) for one in (pid, *descendants(pid)))


def test_headers_in_drops_stop_a_function_that_nothing_stands_before(scene: Scene) -> None:
    """The attack bites: the same, a few times, straight at the function."""
    host, _, port = scene.query_url.removeprefix("http://").partition(":")
    assert scene.is_prompt(scene.query_url)
    with opened((host, int(port)), THREADS, PARTIAL):
        assert not scene.is_prompt(scene.query_url)
    wait_for(lambda: scene.is_prompt(scene.query_url), 10)


def test_headers_in_drops_cost_nobody_anything_behind_the_edge(scene: Scene) -> None:
    before, threads = scene.connections(), threads_of(scene.query_pid)
    with opened(scene.place, 500, PARTIAL) as slow:
        began = time.monotonic()
        for step in range(10):
            for one in slow:
                with contextlib.suppress(OSError):
                    one.sendall(b"x")
            assert scene.is_prompt(), step
            time.sleep(0.3)
        assert scene.connections() >= 400, "they are there"
        assert threads_of(scene.query_pid) <= threads + THREADS
        left = HEADER_SECONDS + 5 - (time.monotonic() - began)
        assert ended(slow, left) == 500
    wait_for(lambda: scene.connections() <= before + 1, 5)


def test_bodies_in_drops_are_few_and_cut(scene: Scene) -> None:
    """Each piece in time would hold a connection for hours: an address has so many at once."""
    head = (
        b"POST /v1/tournaments/t1/connections HTTP/1.1\r\nHost: play.example\r\n"
        b"Content-Length: 1000\r\n\r\nx"
    )
    asked, before = len(scene.decider.asked), scene.connections()
    with opened(scene.place, 60, head) as slow:
        found: set[socket.socket] = set()
        wait_for(lambda: told(slow, found) == 60 - LIMITS.opening_at_once, 5)
        assert scene.is_prompt()
        assert ended(slow, HEADER_SECONDS + 10) == 60, "nothing came in time"
    assert len(scene.decider.asked) == asked, "nobody was asked for a body that is not there"
    wait_for(lambda: scene.connections() <= before + 1, 5)


def test_sockets_that_never_read_are_cut_and_others_get_every_frame(
    scene: Scene, players: Players
) -> None:
    """Their frames fill what the kernel keeps for them, and then their time."""
    channel, count = "top.slow", 150
    gateway = NchanGateway(scene.edge.publish_url)
    for number in range(20):
        scene.decider.grants[f"deaf{number}"] = f"{channel},conn.deaf{number}"
    scene.decider.grants["reads"] = f"{channel},conn.reads"
    reader = players.connect(f"{scene.edge.client_url}?ticket=reads")
    deaf: list[socket.socket] = []
    try:
        for number in range(20):
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(scene.place)
            one.sendall(UPGRADE % f"deaf{number}".encode())
            deaf.append(one)
        wait_for(lambda: scene.connections() >= 21, 10)
        for number in range(count):
            body = b'{"n":%d,"padding":"%s"}' % (number, os.urandom(50_000).hex().encode())
            gateway.publish([Frame(channel, body)])
            assert reader.next_json(10)["n"] == number
        memory = resident_kib(scene.edge.pid)
        wait_for(lambda: scene.connections() <= 3, HEADER_SECONDS * 2 + 10)
        assert reader.is_open()
        assert scene.is_prompt()
        assert resident_kib(scene.edge.pid) <= memory + 20 * 1024
    finally:
        for one in deaf:
            one.close()
        reader.close()


def resident_kib(pid: int) -> int:
    """Memory of a server and all below it, KiB."""
    total = 0
    for one in (pid, *descendants(pid)):
        for line in Path(f"/proc/{one}/status").read_text("utf-8").splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total


def test_sockets_of_who_has_gone_without_a_word_end_with_their_time(
    scene: Scene, tmp_path: Path
) -> None:
    """No answer to any ping, no end: as from a phone in a tunnel."""
    edge = NginxServer(
        tmp_path / "edge", authorize_url=scene.decider.url, query_url=scene.query_url,
        limits=LIMITS, ping_seconds=1, socket_seconds=3,
    )  # fmt: skip
    edge.start()
    try:
        for number in range(10):
            scene.decider.grants[f"gone{number}"] = f"top.gone,conn.gone{number}"
        place = (LOOPBACK, edge.public_port)
        gone = [socket.create_connection(place, timeout=10) for _ in range(10)]
        for number, one in enumerate(gone):
            one.sendall(UPGRADE % f"gone{number}".encode())
        assert ended(gone, 1) == 0
        assert ended(gone, 10) == 10
        for one in gone:
            one.close()
    finally:
        edge.stop()
