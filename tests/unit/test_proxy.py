"""The tests' own proxy: what a link does when it is cut, hung, slowed and resumed."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from proxy import BUFFERED, LOOPBACK, Proxy
from running import wait_for


class Echo:
    """A server that says everything again."""

    def __init__(self) -> None:
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port = int(self._listener.getsockname()[1])
        self.heard = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            while data := client.recv(65_536):
                self.heard += len(data)
                client.sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def echo() -> Iterator[Echo]:
    one = Echo()
    yield one
    one.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.port) as one:
        yield one


@contextlib.contextmanager
def client_of(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection((LOOPBACK, proxy.port), 5) as client:
        yield client


def said_again(client: socket.socket, words: bytes) -> bytes:
    client.sendall(words)
    return received(client, len(words))


def received(client: socket.socket, size: int) -> bytes:
    heard = b""
    while len(heard) < size:
        part = client.recv(size - len(heard))
        assert part, "the connection ended"
        heard += part
    return heard


def test_bytes_pass_both_ways_in_order(proxy: Proxy) -> None:
    words = bytes(range(256)) * 20_000
    with client_of(proxy) as client:
        writer = threading.Thread(target=client.sendall, args=(words,))
        writer.start()
        assert received(client, len(words)) == words
        writer.join()
    # The last bytes are read by us a moment before they are counted there.
    wait_for(lambda: proxy.passed == 2 * len(words), 5)
    wait_for(lambda: proxy.connections() == [], 5)


def test_the_end_of_one_side_is_told_to_the_other(proxy: Proxy) -> None:
    with client_of(proxy) as client:
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        assert received(client, 10) == b"last words"
        assert client.recv(1) == b""


def test_a_cut_link_breaks_and_refuses_until_it_is_resumed(proxy: Proxy) -> None:
    with client_of(proxy) as client:
        assert said_again(client, b"one") == b"one"
        assert proxy.cut() == 1
        with pytest.raises(ConnectionError):
            client.recv(1)
    with pytest.raises(ConnectionRefusedError), client_of(proxy):
        pass
    port = proxy.port
    proxy.resume()
    assert proxy.port == port
    with client_of(proxy) as client:
        assert said_again(client, b"two") == b"two"


def test_a_hanging_link_is_open_and_silent_and_loses_nothing(proxy: Proxy, echo: Echo) -> None:
    with client_of(proxy) as client:
        assert said_again(client, b"one") == b"one"
        with proxy.hanging():
            heard = echo.heard
            client.sendall(b"two")
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.recv(1)
            with client_of(proxy) as another:
                another.settimeout(0.3)
                another.sendall(b"!")
                with pytest.raises(TimeoutError):
                    another.recv(1)
            assert echo.heard == heard
        client.settimeout(5)
        assert received(client, 3) == b"two"


def test_what_was_on_its_way_is_gone_when_a_hanging_link_is_cut(proxy: Proxy, echo: Echo) -> None:
    with client_of(proxy) as client:
        assert said_again(client, b"one") == b"one"
        proxy.hang()
        client.sendall(b"two")
        proxy.cut()
        proxy.resume()
    time.sleep(0.2)
    assert echo.heard == 3


def test_a_slow_link_delays_and_keeps_the_order(proxy: Proxy) -> None:
    with client_of(proxy) as client:
        proxy.slow(0.2)
        started = time.monotonic()
        client.sendall(b"a")
        client.sendall(b"b")
        assert received(client, 2) == b"ab"
        # There and back.
        assert 0.4 <= time.monotonic() - started < 2
        proxy.resume()
        started = time.monotonic()
        assert said_again(client, b"c") == b"c"
        assert time.monotonic() - started < 0.2


def test_one_connection_is_reset_and_the_others_stay(proxy: Proxy) -> None:
    with client_of(proxy) as first, client_of(proxy) as second:
        assert said_again(first, b"one") == b"one"
        assert said_again(second, b"two") == b"two"
        number, _ = proxy.connections()
        assert proxy.reset(number) == 1
        with pytest.raises(ConnectionError):
            first.recv(1)
        assert said_again(second, b"three") == b"three"
        assert proxy.reset() == 1


def test_a_side_that_reads_nothing_holds_the_other_up(proxy: Proxy) -> None:
    with client_of(proxy) as client:
        client.settimeout(1)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 64 * BUFFERED:
                sent += client.send(b"x" * 65_536)
        assert proxy.passed > 0


def test_nobody_behind_it_is_told_at_once() -> None:
    with socket.create_server((LOOPBACK, 0)) as gone:
        port = int(gone.getsockname()[1])
    # As early as while it connects.
    with Proxy(port) as proxy, pytest.raises(ConnectionError), client_of(proxy) as client:
        client.sendall(b"anybody?")
        client.recv(1)
        client.recv(1)
