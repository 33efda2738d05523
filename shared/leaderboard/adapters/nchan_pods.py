"""The gateway port over several nginx + Nchan that share no channels: each holds sockets of its
own, so a frame goes to all of them, and a channel is closed on all of them.

Who they are is what the host's name stands for: one address on a laptop, every ready pod behind a
headless Service in a cluster. It is asked again every second.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import urlsplit

from leaderboard import telemetry
from leaderboard.adapters.nchan_gateway import NchanGateway
from leaderboard.errors import TransientError
from leaderboard.ports import Frame

LOOK_SECONDS: Final = 1.0
LEFT_OUT_SECONDS: Final = 5.0
"""A pod that took nothing for so long is left out of `publish` until it answers, or its name goes:
its sockets are lost or about to be, and everybody else's frames would wait with theirs."""
_THREADS: Final = 16
logger = logging.getLogger(__name__)


def _addresses(host: str, port: int) -> frozenset[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return frozenset(str(one[4][0]) for one in found)


class NchanPods:
    """`ports.Gateway` over every pod. Safe to use from many threads; connects on first use.

    Each pod is a `NchanGateway`, with its limits and errors."""

    def __init__(
        self,
        publish_url: str,
        addresses: Callable[[str, int], frozenset[str]] = _addresses,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`publish_url` as NchanGateway has it."""
        NchanGateway(publish_url)  # a URL that is none is told at the start
        parts = urlsplit(publish_url)
        self._url = publish_url
        self._place = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        self._addresses = addresses
        self._clock = clock
        self._lock = threading.Lock()
        self._pods: dict[str, NchanGateway] = {}
        self._looked_at = float("-inf")
        self._failing_since: dict[str, float] = {}
        self._pool: ThreadPoolExecutor | None = None

    def publish(self, frames: Sequence[Frame]) -> None:
        """Hand the frames to every pod, in order for each channel and pod.

        Raises TransientError unless all took them: then any of them may have arrived. A pod that
        has taken nothing for five seconds is left out, unless no other one is there."""
        pods = self._found()
        counted = {a: pod for a, pod in pods.items() if not self._is_left_out(a)} or pods
        if failed := self._each(counted, lambda pod: pod.publish(frames)):
            raise TransientError("; ".join(failed.values()))

    def close(self, channel: str) -> None:
        """Close every socket that is subscribed to the channel, wherever it is.

        Raises TransientError unless all pods said so: also one that is left out may hold it."""
        if failed := self._each(self._found(), lambda pod: pod.close(channel)):
            raise TransientError("; ".join(failed.values()))

    def check(self) -> None:
        """Raises TransientError unless a pod answers within a second."""
        pods = self._found()
        failed = self._each(pods, NchanGateway.check)
        if len(failed) == len(pods):
            raise TransientError("; ".join(failed.values()))

    def disconnect(self) -> None:
        """Drop the idle connections; the next call opens its own."""
        for pod in list(self._pods.values()):
            pod.disconnect()

    def _found(self) -> dict[str, NchanGateway]:
        """The pods by address; the last ones known while nobody tells names."""
        with self._lock:
            if self._clock() < self._looked_at + LOOK_SECONDS:
                return dict(self._pods)
            try:
                addresses = self._addresses(*self._place)
            except OSError as error:
                if not self._pods:
                    raise TransientError(f"the gateway: {error}") from error
                logger.warning("names are not told", extra=telemetry.fields(error=str(error)))
                return dict(self._pods)
            self._looked_at = self._clock()
            gone = self._pods.keys() - addresses
            for address in gone:
                self._pods.pop(address).disconnect()
                self._failing_since.pop(address, None)
            for address in addresses - self._pods.keys():
                self._pods[address] = NchanGateway(self._url, address)
            left_out = {a: pod for a, pod in self._pods.items() if self._is_left_out(a)}
            found = dict(self._pods)
        for address, pod in left_out.items():
            # Nobody waits for it; once it answers, it counts again.
            self._executor().submit(self._try, address, pod, NchanGateway.check)
        return found

    def _is_left_out(self, address: str) -> bool:
        since = self._failing_since.get(address)
        return since is not None and self._clock() >= since + LEFT_OUT_SECONDS

    def _each(
        self, pods: dict[str, NchanGateway], call: Callable[[NchanGateway], None]
    ) -> dict[str, str]:
        """Do it on all at once; what went wrong, by address."""
        if len(pods) == 1:
            told = [self._try(address, pod, call) for address, pod in pods.items()]
        else:
            run = self._executor().map
            told = list(run(lambda address: self._try(address, pods[address], call), pods))
        return {a: error for a, error in zip(pods, told, strict=True) if error is not None}

    def _try(
        self, address: str, pod: NchanGateway, call: Callable[[NchanGateway], None]
    ) -> str | None:
        """What went wrong, if anything did."""
        try:
            call(pod)
        except TransientError as error:
            if address not in self._failing_since:
                told = telemetry.fields(pod=address, error=str(error))
                logger.warning("a gateway does not answer", extra=told)
                self._failing_since[address] = self._clock()
            return str(error)
        self._failing_since.pop(address, None)
        return None

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_THREADS, "gateway")
            return self._pool
