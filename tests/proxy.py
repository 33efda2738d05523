"""A TCP proxy between two real programs, whose link can be cut, hung, slowed and resumed.

One thread of its own with a selector; a test's calls take effect before they return."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

LOOPBACK: Final = "127.0.0.1"
CHUNK: Final = 64 * 1024
BUFFERED: Final = 1024 * 1024
"""So much waits on the way to one side before the other one is read no more."""
CONNECT_SECONDS: Final = 2.0
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, for 0 s: closing sends a reset and drops what is unsent."""


@dataclass(slots=True, eq=False)
class _End:
    """One side of a connection. `outbox` is on its way to it: due time, bytes."""

    socket: socket.socket
    outbox: deque[tuple[float, bytes]] = field(default_factory=deque)
    waiting: int = 0
    """Bytes in the outbox."""
    is_closing: bool = False
    """The other side has said its last word."""
    has_ended: bool = False
    """It has said its own."""


class _Connection:
    """A client, the server behind, and what is between them."""

    def __init__(self, number: int, client: socket.socket, server: socket.socket) -> None:
        self.number = number
        self.client = _End(client)
        self.server = _End(server)

    def other(self, end: _End) -> _End:
        return self.server if end is self.client else self.client

    def ends(self) -> tuple[_End, _End]:
        return self.client, self.server


class Proxy:
    """Listens on a free loopback `port` and passes all on to `target_port`.

    Faults, for all connections, the present and the coming:

    - `cut`: reset, and refused from then on, as when the server's machine is gone for good;
    - `hang`: open and silent both ways, as behind a firewall that drops: nothing is lost, nothing
      arrives (until `resume`), new connections are taken and stay silent too;
    - `slow`: every byte comes so much later;
    - `resume`: as at first.

    `reset` ends single connections. `passed` counts bytes, to show that a fault bit."""

    def __init__(self, target_port: int, port: int = 0) -> None:
        self._target_port = target_port
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._wake, self._woken = socket.socketpair()
        self._connections: dict[int, _Connection] = {}
        self._numbers = 0
        self._delay_seconds = 0.0
        self._hangs = False
        self._done = False
        self._asked: deque[tuple[Callable[[], None], threading.Event]] = deque()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.passed = 0
        """Bytes handed over, both ways."""

    @property
    def port(self) -> int:
        return self._port

    def __enter__(self) -> Proxy:
        self._listen()
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._done = True
        self._wake.send(b"!")
        self._thread.join()
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._close_listener()
        self._selector.close()
        self._wake.close()
        self._woken.close()

    # what a test does

    def cut(self) -> int:
        """Reset all and refuse new ones; how many connections it broke."""
        return self._do(self._cut)

    def hang(self) -> int:
        """Let nothing through any more; how many connections it holds up."""

        def hang() -> int:
            self._hangs = True
            return len(self._connections)

        return self._do(hang)

    def slow(self, seconds: float) -> None:
        """What comes from now on is handed over so much later, in order."""

        def slow() -> int:
            self._delay_seconds = seconds
            return 0

        self._do(slow)

    def resume(self) -> None:
        """Pass on again, without delay; what hung goes on where it was."""
        self._do(self._resume)

    def reset(self, number: int | None = None) -> int:
        """End one connection (or all) with a reset, keep taking new ones; how many there were."""

        def reset() -> int:
            victims = [
                one for one in self._connections.values() if number is None or one.number == number
            ]
            for one in victims:
                self._drop(one, reset=True)
            return len(victims)

        return self._do(reset)

    def connections(self) -> list[int]:
        """The numbers of the open ones, oldest first."""
        return sorted(self._connections)

    @contextlib.contextmanager
    def cut_off(self) -> Iterator[None]:
        """Cut for as long as this lasts."""
        self.cut()
        try:
            yield
        finally:
            self.resume()

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Silent for as long as this lasts."""
        self.hang()
        try:
            yield
        finally:
            self.resume()

    # the thread

    def _do(self, action: Callable[[], int]) -> int:
        """Have the thread do it, and wait until it has."""
        answer: list[int] = []
        done = threading.Event()
        self._asked.append((lambda: answer.append(action()), done))
        self._wake.send(b"!")
        if not done.wait(5):
            raise AssertionError("the proxy's thread is gone")
        return answer[0]

    def _run(self) -> None:
        while not self._done:
            for key, events in self._selector.select(self._patience()):
                if key.data is None:
                    self._woken.recv(1024)
                elif key.fileobj is self._listener:
                    self._accept()
                else:
                    connection, end = key.data
                    if connection.number in self._connections:
                        self._serve(connection, end, events)
            while self._asked:
                action, done = self._asked.popleft()
                action()
                done.set()
            for connection in list(self._connections.values()):
                self._attend(connection)

    def _patience(self) -> float:
        """Until the next delayed bytes are due."""
        if self._hangs:
            return 0.5
        dues = [
            end.outbox[0][0]
            for one in self._connections.values()
            for end in one.ends()
            if end.outbox
        ]
        late = [due - time.monotonic() for due in dues if due > time.monotonic()]
        return min([0.5, *late])

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, self._port))
        listener.listen(128)
        listener.setblocking(False)
        self._port = listener.getsockname()[1]
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, listener)

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _cut(self) -> int:
        broken = len(self._connections)
        for connection in list(self._connections.values()):
            self._drop(connection, reset=True)
        self._close_listener()
        return broken

    def _resume(self) -> int:
        self._hangs = False
        self._delay_seconds = 0.0
        if self._listener is None:
            self._listen()
        return 0

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        try:
            server = socket.create_connection((LOOPBACK, self._target_port), CONNECT_SECONDS)
        except OSError:
            # As if there were no proxy: nobody is there.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.close()
            return
        self._numbers += 1
        connection = _Connection(self._numbers, client, server)
        self._connections[connection.number] = connection
        for end in connection.ends():
            end.socket.setblocking(False)
            end.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(end.socket, selectors.EVENT_READ, (connection, end))

    def _serve(self, connection: _Connection, end: _End, events: int) -> None:
        if not events & selectors.EVENT_READ or self._hangs:
            return
        try:
            received = end.socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection, reset=True)
            return
        other = connection.other(end)
        if received:
            other.outbox.append((time.monotonic() + self._delay_seconds, received))
            other.waiting += len(received)
        else:
            end.has_ended = True
            other.is_closing = True

    def _attend(self, connection: _Connection) -> None:
        """Hand over what is due, and wait for what may come next."""
        for end in connection.ends():
            try:
                self._hand_over(end)
            except OSError:
                self._drop(connection, reset=True)
                return
        if all(end.has_ended and not end.outbox for end in connection.ends()):
            self._drop(connection)
            return
        for end in connection.ends():
            self._watch(connection, end)

    def _hand_over(self, end: _End) -> None:
        while end.outbox and not self._hangs and end.outbox[0][0] <= time.monotonic():
            due, data = end.outbox[0]
            try:
                sent = end.socket.send(data)
            except BlockingIOError:
                return
            self.passed += sent
            end.waiting -= sent
            end.outbox.popleft()
            if sent < len(data):
                end.outbox.appendleft((due, data[sent:]))
                return
        if end.is_closing and not end.outbox and not self._hangs:
            end.is_closing = False
            with contextlib.suppress(OSError):
                end.socket.shutdown(socket.SHUT_WR)

    def _watch(self, connection: _Connection, end: _End) -> None:
        reads = not self._hangs and not end.has_ended
        reads = reads and connection.other(end).waiting < BUFFERED
        writes = bool(end.outbox) and not self._hangs and end.outbox[0][0] <= time.monotonic()
        wanted = (selectors.EVENT_READ if reads else 0) | (selectors.EVENT_WRITE if writes else 0)
        known = self._selector.get_map().get(end.socket)
        if not wanted and known is not None:
            self._selector.unregister(end.socket)
        elif wanted and known is None:
            self._selector.register(end.socket, wanted, (connection, end))
        elif wanted and known is not None and known.events != wanted:
            self._selector.modify(end.socket, wanted, (connection, end))

    def _drop(self, connection: _Connection, *, reset: bool = False) -> None:
        self._connections.pop(connection.number, None)
        for end in connection.ends():
            if end.socket in self._selector.get_map():
                self._selector.unregister(end.socket)
            if reset:
                with contextlib.suppress(OSError):
                    end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.socket.close()
