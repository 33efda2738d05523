"""The gateway port over Nchan's publisher: POST /pub/<channel>, DELETE /pub/<channel>.

Every change of a rank ends here, so requests are pipelined (RFC 9112 §9.3.2) in windows over
connections that stay open: one write and a few reads for many frames. nginx may close such a
connection at any time (idle, or after `keepalive_requests`); what it did not answer is sent again
on a fresh one, from the first unanswered frame on, so the order of a channel holds. A frame may
then arrive twice: readers drop what is not newer than what they have.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from leaderboard.adapters.gateway_channels import channel_name, frame_length
from leaderboard.errors import TransientError
from leaderboard.ports import Frame

WINDOW_FRAMES: Final = 256
WINDOW_BYTES: Final = 256 * 1024
"""What may be under way unanswered: their answers fit into a socket's buffers, so neither side
ever waits for the other to read."""
MAX_IDLE: Final = 8
MAX_HEAD_BYTES: Final = 16 * 1024
CONNECT_SECONDS: Final = 2.0
ANSWER_SECONDS: Final = 5.0
CHECK_SECONDS: Final = 1.0

_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n", re.IGNORECASE)
_LAST: Final = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*\r\n", re.IGNORECASE)
_OLD_FRAMING: Final = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_BUSY: Final = frozenset({408, 429})
_DONE: Final = frozenset({200, 201, 202})


class _ClosedError(Exception):
    """The other side closed or broke the connection; `answered` requests are done."""

    def __init__(self, answered: Sequence[int]) -> None:
        super().__init__("connection closed")
        self.answered = answered


class _Connection:
    """One keep-alive connection; used by one thread at a time."""

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        answer_seconds: float = ANSWER_SECONDS,
        address: str | None = None,
    ) -> None:
        place = (address or host, port)
        raw = socket.create_connection(place, timeout=min(answer_seconds, CONNECT_SECONDS))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.settimeout(answer_seconds)
        self._socket = raw
        if tls is not None:
            self._socket = tls.wrap_socket(raw, server_hostname=host)
        self._buffer = bytearray()
        self.is_fresh = True
        self.is_over = False

    def close(self) -> None:
        self._socket.close()

    def exchange(self, requests: Sequence[bytes]) -> list[int]:
        """Send the requests, answer their statuses. Raises _ClosedError, or OSError on time-out."""
        answered: list[int] = []
        try:
            self._socket.sendall(b"".join(requests))
            while len(answered) < len(requests):
                answered.append(self._answer())
                self.is_fresh = False
                if self.is_over and len(answered) < len(requests):
                    raise _ClosedError(answered)
        except (EOFError, BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            self.is_over = True
            raise _ClosedError(answered) from None
        return answered

    def _answer(self) -> int:
        buffer = self._buffer
        while (end := buffer.find(b"\r\n\r\n")) < 0:
            if len(buffer) > MAX_HEAD_BYTES:
                raise OSError("an answer's head does not end")
            self._read()
        head = bytes(buffer[: end + 2])
        if not head.startswith(b"HTTP/1.1 ") or not head[9:12].isdigit():
            raise OSError("the answer is no HTTP/1.1")
        status = int(head[9:12])
        length = _LENGTH.search(head)
        if _OLD_FRAMING.search(head) or (length is None and status != 204):
            raise OSError("the answer's length is unknown")
        if _LAST.search(head):
            self.is_over = True
        total = end + 4 + (0 if length is None else int(length[1]))
        while len(buffer) < total:
            self._read()
        del buffer[:total]
        return status

    def _read(self) -> None:
        piece = self._socket.recv(64 * 1024)
        if not piece:
            raise EOFError
        self._buffer += piece


class NchanGateway:
    """The publisher side of Nchan, or of the development gateway. Safe to use from many threads.

    Nothing is connected before the first call. A channel that no event could name raises
    ValueError before anything is sent; so does a frame above 256 KiB."""

    def __init__(self, publish_url: str, address: str | None = None) -> None:
        """`publish_url` is `http(s)://host[:port][/prefix]`, without `/pub`; `address` one of
        those that the host has, where it is not any of them."""
        parts = urlsplit(publish_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("publish_url has to be http://host[:port]")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname
        self._address = address
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._tail = f" HTTP/1.1\r\nHost: {host}:{self._port}\r\n".encode()
        self._idle: deque[_Connection] = deque()

    def publish(self, frames: Sequence[Frame]) -> None:
        """Hand the frames over, in order for each channel. Blocks until all are acknowledged.

        Raises TransientError if any was not; then any of them may have arrived."""
        path = f"POST {self._prefix}/pub/".encode()
        tail = self._tail + b"Content-Length: "
        requests = [
            b"".join((path, _named(f), tail, b"%d\r\n\r\n" % frame_length(f), f.body))
            for f in frames
        ]
        for window in _windows(requests):
            for status in self._exchange(window):
                if status not in _DONE:
                    raise _refused(status)

    def close(self, channel: str) -> None:
        """Close every socket that is subscribed to the channel, with all its channels."""
        path = f"DELETE {self._prefix}/pub/".encode()
        request = path + channel_name(channel).encode() + self._tail + b"\r\n"
        (status,) = self._exchange([request])
        if status not in _DONE and status not in (204, 404):
            raise _refused(status)

    def disconnect(self) -> None:
        """Drop the idle connections; the next call opens its own."""
        while self._idle:
            self._idle.pop().close()

    def __del__(self) -> None:
        self.disconnect()

    def check(self) -> None:
        """Raises TransientError unless the gateway answers within a second, on a connection of
        its own: a probe waits less than a frame may."""
        request = f"GET {self._prefix}/healthz".encode() + self._tail + b"\r\n"
        try:
            connection = _Connection(
                self._host, self._port, self._tls, CHECK_SECONDS, self._address
            )
            try:
                (status,) = connection.exchange([request])
            finally:
                connection.close()
        except (OSError, _ClosedError) as error:
            raise TransientError(f"the gateway: {error}") from error
        if status != 200:
            raise TransientError(f"the gateway answered {status} when asked for its health")

    def _exchange(self, requests: Sequence[bytes]) -> list[int]:
        """The status of every request, over as many connections as it takes."""
        statuses: list[int] = []
        while len(statuses) < len(requests):
            with self._connection() as connection:
                was_fresh = connection.is_fresh
                try:
                    statuses += connection.exchange(requests[len(statuses) :])
                except _ClosedError as closed:
                    if was_fresh and not closed.answered:
                        raise TransientError("the gateway closes every connection") from None
                    statuses += closed.answered
        return statuses

    @contextmanager
    def _connection(self) -> Iterator[_Connection]:
        """An idle connection or a new one; kept afterwards unless it is over or in doubt."""
        connection: _Connection | None = None
        try:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = _Connection(self._host, self._port, self._tls, address=self._address)
            yield connection
            if connection.is_over or len(self._idle) >= MAX_IDLE:
                connection.close()
            else:
                self._idle.append(connection)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, OSError):
                raise TransientError(f"the gateway: {error}") from error
            raise


def _named(frame: Frame) -> bytes:
    return channel_name(frame.channel).encode()


def _windows(requests: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    start = size = 0
    for index, request in enumerate(requests):
        if index > start and (index - start >= WINDOW_FRAMES or size + len(request) > WINDOW_BYTES):
            yield requests[start:index]
            start, size = index, 0
        size += len(request)
    if start < len(requests):
        yield requests[start:]


def _refused(status: int) -> Exception:
    if status >= 500 or status in _BUSY:
        return TransientError(f"the gateway answered {status}")
    return RuntimeError(f"the gateway answered {status}: is GATEWAY_PUBLISH_URL its publisher?")
