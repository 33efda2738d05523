"""The gateway port over Azure Web PubSub's data plane (REST, `api-version` 2024-12-01).

A channel is a group of the same name, and a socket's groups come from `on-connect` alone (see
`web_pubsub_events`), so a hub whose event handler is missing delivers nothing to anybody. The
service takes one message a request and keeps none: frames of one channel go one after the other,
different channels at the same time. Whoever is told to wait (429, 503) holds all others up.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

import httpx

from leaderboard.adapters.gateway_channels import channel_name, frame_length
from leaderboard.errors import TransientError
from leaderboard.ports import Frame

API_VERSION: Final = "2024-12-01"
CONCURRENCY: Final = 32
"""Requests under way, each on a connection of its own."""
CONNECT_SECONDS: Final = 2.0
ANSWER_SECONDS: Final = 5.0
CHECK_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 5.0
"""A call asks again for so long, then it is the caller's turn to wait."""
FIRST_WAIT_SECONDS: Final = 0.1
LONGEST_HOLD_SECONDS: Final = 60.0
CLIENT_TOKEN_SECONDS: Final = 30
REQUEST_TOKEN_SECONDS: Final = 60
GONE: Final = "410"
FAREWELL: Final = b'{"type":"closed","reason":"410 Gone"}'
"""The service closes a socket with 1000 and no reason, whatever it is told: so this is said first,
and a page knows that it was replaced."""

_BUSY: Final = frozenset({408, 429, 500, 502, 503, 504})
_MEANT: Final[Mapping[int, str]] = {
    401: "is GATEWAY_ACCESS_KEY that of GATEWAY_PUBLISH_URL, and this clock right?",
    403: "may this identity publish? It has to have the role Web PubSub Service Owner",
    404: "is GATEWAY_PUBLISH_URL an Azure Web PubSub service?",
    413: "a frame is larger than the service takes",
}

Bearer = Callable[[str], str]
"""The bearer token for a request to this URL. Raises TransientError where none is to be had."""


class KeyBearer:
    """Tokens signed with the service's access key: one a request, for its URL alone."""

    def __init__(self, access_key: str) -> None:
        from joserfc.jwk import OctKey  # noqa: PLC0415 - not before the first request

        self._key = OctKey.import_key(access_key)

    def __call__(self, url: str) -> str:
        return self._signed({"aud": url, "exp": int(time.time()) + REQUEST_TOKEN_SECONDS})

    def client(self, audience: str) -> str:
        """A token that lets a client ask for a socket. It names no user, no group and no role:
        those are the event handler's to give."""
        now = int(time.time())
        return self._signed({"aud": audience, "iat": now, "exp": now + CLIENT_TOKEN_SECONDS})

    def _signed(self, claims: dict[str, str | int]) -> str:
        from joserfc import jwt  # noqa: PLC0415 - see above

        return jwt.encode({"alg": "HS256", "typ": "JWT"}, claims, self._key)


def way_in(publish_url: str, client_url: str, hub: str, access_key: str) -> Callable[[str], str]:
    """The URL that a player's socket opens with a ticket. Asks nobody.

    The token opens no socket by itself: `connect` is refused without the ticket."""
    audience = f"{publish_url}/client/hubs/{hub}"
    bearer = KeyBearer(access_key)
    return lambda ticket: f"{client_url}?access_token={bearer.client(audience)}&ticket={ticket}"


class WebPubSubGateway:
    """One hub of an Azure Web PubSub service. Safe to use from many threads.

    Nothing is connected before the first call. A channel that no event could name raises
    ValueError before anything is sent; so does a frame above 256 KiB (the service takes 1 MB)."""

    def __init__(self, publish_url: str, hub: str, bearer: Bearer) -> None:
        """`publish_url` is the service's endpoint, `https://NAME.webpubsub.azure.com`."""
        parts = urlsplit(publish_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("publish_url has to be https://NAME.webpubsub.azure.com")
        self._base = f"{publish_url}/api/hubs/{hub}"
        self._bearer = bearer
        self._client = httpx.Client(
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY),
            headers={"Accept": "application/json"},
        )
        self._threads = ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="web-pubsub")
        self._lock = threading.Lock()
        self._not_before = 0.0

    def publish(self, frames: Sequence[Frame]) -> None:
        """Hand the frames over, in order for each channel. Blocks until all are acknowledged.

        Raises TransientError if any was not; then any of them may have arrived."""
        lanes: dict[str, deque[Frame]] = {}
        for frame in frames:
            frame_length(frame)
            lanes.setdefault(channel_name(frame.channel), deque()).append(frame)
        if not lanes:
            return
        until = time.monotonic() + PATIENCE_SECONDS
        waiting = deque(lanes.values())
        failed: list[BaseException] = []

        def work() -> None:
            while not failed:
                try:
                    lane = waiting.popleft()
                except IndexError:
                    return
                try:
                    for frame in lane:
                        self._send(frame, until)
                except BaseException as error:  # noqa: BLE001 - raised again below
                    failed.append(error)

        # The caller works too: a single channel needs no other thread.
        others = [self._threads.submit(work) for _ in range(min(len(lanes), CONCURRENCY) - 1)]
        work()
        for other in others:
            other.result()
        if failed:
            raise failed[0]

    def close(self, channel: str) -> None:
        """Close every socket that is in the group, with all its groups."""
        until = time.monotonic() + PATIENCE_SECONDS
        self._send(Frame(channel_name(channel), FAREWELL), until)
        url = f"{self._base}/groups/{channel}/:closeConnections?reason={GONE}"
        self._ask("POST", f"{url}&api-version={API_VERSION}", until)

    def disconnect(self) -> None:
        """Drop connections and threads; the gateway is not used again."""
        self._threads.shutdown(wait=False)
        self._client.close()

    def __del__(self) -> None:
        if hasattr(self, "_threads"):
            self.disconnect()

    def check(self) -> None:
        """Raises TransientError unless the service answers within a second, and believes us."""
        url = f"{self._base}/groups/ready?api-version={API_VERSION}"
        try:
            headers = {"Authorization": f"Bearer {self._bearer(url)}"}
            status = self._client.head(url, headers=headers, timeout=CHECK_SECONDS).status_code
        except httpx.HTTPError as error:
            raise TransientError(f"the gateway: {_told(error)}") from error
        if status not in (200, 404):  # nobody is in that group
            raise TransientError(f"the gateway answered {status} when asked for its health")

    def _send(self, frame: Frame, until: float) -> None:
        url = f"{self._base}/groups/{frame.channel}/:send?api-version={API_VERSION}"
        self._ask("POST", url, until, frame.body)

    def _ask(self, method: str, url: str, until: float, body: bytes | None = None) -> None:
        """Ask, and again while the service is busy and there is time. Raises TransientError."""
        wait = FIRST_WAIT_SECONDS
        was_cut = False
        while True:
            self._wait_for_turn(until)
            try:
                answer = self._request(method, url, body)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
                if was_cut:
                    raise TransientError(f"the gateway: {_told(error)}") from error
                was_cut = True  # an idle connection that the other side has closed
                continue
            except httpx.HTTPError as error:
                raise TransientError(f"the gateway: {_told(error)}") from error
            if answer.is_success:
                return
            if answer.status_code not in _BUSY:
                raise _refused(answer.status_code)
            told = _retry_after(answer.headers.get("Retry-After"))
            self._hold(told if told is not None else wait * random.uniform(0.5, 1))  # noqa: S311 - no secret
            wait *= 2
            if time.monotonic() >= until:
                raise TransientError(f"the gateway answered {answer.status_code}")

    def _request(self, method: str, url: str, body: bytes | None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._bearer(url)}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        return self._client.request(method, url, headers=headers, content=body)

    def _hold(self, seconds: float) -> None:
        """Nobody asks before that: more requests would only be refused like this one."""
        with self._lock:
            then = time.monotonic() + min(seconds, LONGEST_HOLD_SECONDS)
            self._not_before = max(self._not_before, then)

    def _wait_for_turn(self, until: float) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            if self._not_before > until:
                raise TransientError(f"the gateway wants {left:.1f} s without requests")
            time.sleep(left)


def _retry_after(text: str | None) -> float | None:
    """Seconds to wait (RFC 9110 §10.2.3: seconds or a date); None where nothing sound is said."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        return None
    return max((date - datetime.now(UTC)).total_seconds(), 0.0)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _refused(status: int) -> Exception:
    meant = _MEANT.get(status, "this version of the service is not the one that we know")
    return RuntimeError(f"the gateway answered {status}: {meant}")
