"""Keeps the processes of a stack running, as Kubernetes would, and ends them in order.

Everything is started from the thread that calls `run`: the kernel ends children when the thread
that started them is gone (see `process`).
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final, TextIO

from leaderboard.stack.process import Process, StackError

FIRST_RESTART_SECONDS: Final = 0.1
LONGEST_RESTART_SECONDS: Final = 10.0
STEADY_SECONDS: Final = 10.0
"""A child that ran this long starts again without delay when it dies."""
WATCH_SECONDS: Final = 0.05
DRAIN_SECONDS: Final = 15.0


class StopRequestedError(BaseException):
    """SIGINT or SIGTERM came: not an Exception, so that no `except` on the way swallows it.

    A finalizer does all the same (Python prints and ignores whatever is raised in one), so the
    supervisor also remembers that it was asked."""


@dataclass(slots=True)
class Service:
    """One child of the stack. `launch` starts it without waiting, `answers` says it is ready.

    `stage` orders the end: higher ones stop first, equal ones together."""

    label: str
    process: Process
    launch: Callable[[], None]
    answers: Callable[[], bool]
    stage: int
    ready_seconds: float = 60.0
    started_at: float = field(default=0.0, init=False)
    failures: int = field(default=0, init=False)
    restart_at: float | None = field(default=None, init=False)

    def start(self) -> None:
        self.launch()
        self.started_at = time.monotonic()


class Supervisor:
    """Runs services until it is asked to stop.

    `folder` holds logs, data and the lock that keeps a second stack out; `env_path` is the file
    that tells others where everything is."""

    def __init__(self, folder: Path, env_path: Path, tell: Callable[[str], None]) -> None:
        self._folder = folder
        self._env_path = env_path
        self._tell = tell
        self._services: list[Service] = []
        self._settings: dict[str, str] = {}
        self._lock: TextIO | None = None
        self._written = False
        self._at_end: list[Callable[[], None]] = []
        self._asked_by: int | None = None
        self.stopping = threading.Event()

    # starting

    def open(self) -> None:
        """Take the folder. Raises StackError when another stack runs in it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self._folder / "lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise StackError(f"another stack is running in {self._folder}; stop it first") from None
        # What a killed stack left tells of processes that are gone.
        self._env_path.unlink(missing_ok=True)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._request_stop)

    def start(self, services: Sequence[Service]) -> None:
        """Start these together and wait until all are ready. Raises StackError."""
        for service in services:
            self._services.append(service)
            service.start()
        for service in services:
            service.process.wait_until(service.answers, service.ready_seconds)

    def at_end(self, action: Callable[[], None]) -> None:
        """Do this last, after all services have ended."""
        self._at_end.append(action)

    def publish(self, settings: Mapping[str, str]) -> None:
        """Write the settings and the process ids for everyone."""
        self._settings = dict(settings)
        self._write_env()

    def _write_env(self) -> None:
        lines = [f"{name}={value}" for name, value in self._settings.items()]
        lines.append(f"PID_STACK={os.getpid()}")
        lines += [f"PID_{service.label}={service.process.pid}" for service in self._services]
        scratch = self._env_path.with_name(f"{self._env_path.name}.{os.getpid()}")
        with scratch.open("w", encoding="utf-8") as file:
            # It holds the stack's secrets.
            os.fchmod(file.fileno(), 0o600)
            file.write("\n".join(lines) + "\n")
        scratch.replace(self._env_path)
        self._written = True

    # running

    def run(self) -> None:
        """Watch the services until StopRequestedError comes (raised by the signal)."""
        while True:
            if self._asked_by is not None:
                raise StopRequestedError(self._asked_by)
            for service in self._services:
                self._look_after(service)
            time.sleep(WATCH_SECONDS)

    def _look_after(self, service: Service) -> None:
        now = time.monotonic()
        if service.process.is_running():
            if service.failures and now - service.started_at > STEADY_SECONDS:
                service.failures = 0
            return
        if service.restart_at is None:
            delay = restart_delay(service.failures)
            service.failures += 1
            service.restart_at = now + delay
            self._tell(
                f"{service.process.name} ended with {service.process.exit_code()}; "
                f"starting it again in {delay:g} s"
            )
            # Whatever it left behind may still hold its port.
            service.process.kill()
        if now >= service.restart_at:
            service.restart_at = None
            try:
                service.start()
            except StackError as error:
                # The next look finds it ended, and waits longer.
                self._tell(str(error))
            self._write_env()

    # stopping

    def stop(self) -> None:
        """End everything, highest stage first. A second signal meanwhile ends it at once."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._end_at_once)
        self.stopping.set()
        for stage in sorted({service.stage for service in self._services}, reverse=True):
            members = [service for service in self._services if service.stage == stage]
            for service in members:
                service.process.ask_to_stop()
            # All were asked at the same time: they share what time there is.
            until = time.monotonic() + DRAIN_SECONDS
            for service in members:
                if not service.process.stop(max(until - time.monotonic(), 0)):
                    self._tell(f"{service.process.name} did not end in {DRAIN_SECONDS:g} s")
        for action in reversed(self._at_end):
            action()
        if self._written:
            self._env_path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        # From now on `stop` is on its way; one signal more must not interrupt it half-way.
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        self._asked_by = number
        raise StopRequestedError(number)

    def _end_at_once(self, number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        for service in self._services:
            service.process.kill(wait=False)
        if self._written:
            self._env_path.unlink(missing_ok=True)
        sys.stderr.write("ended at once; work under way was cut\n")
        os._exit(128 + number)


def restart_delay(failures: int) -> float:
    """Seconds to wait after this many quick failures: doubling, with an end."""
    return min(FIRST_RESTART_SECONDS * 2.0**failures, LONGEST_RESTART_SECONDS)
