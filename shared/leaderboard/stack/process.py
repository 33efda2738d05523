"""Child processes that never outlive us, and the ports they take.

Every child leads a process group of its own: Ctrl-C in a terminal reaches only the parent, which
then stops its children in the right order. On Linux the kernel ends a child when the *thread*
that started it is gone (PR_SET_PDEATHSIG), so start children from a thread that stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from leaderboard.errors import LeaderboardError

LOOPBACK: Final = "127.0.0.1"
POLL_SECONDS: Final = 0.02
_PR_SET_PDEATHSIG: Final = 1
_SHUFFLED: Final = iter(random.sample(range(15_000, 32_000), 17_000))
_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class StackError(LeaderboardError):
    """A program of a stack is missing, does not start, or finds its port taken."""


class PortTakenError(StackError):
    """Something else listens on a port that we want. The message names who moves it."""

    def __init__(self, port: int, owner: str) -> None:
        super().__init__(
            f"port {port} is taken by another program; set {owner} to another one (0: any free)"
        )
        self.port = port
        self.owner = owner


def free_port() -> int:
    """A loopback port that nobody listens on right now, another one at each call; no other process
    of this user gets it from here while this one lives, listened on or not.

    Below the range from which systems take the ports of outgoing connections: a server that is
    started again later must find its port as it left it."""
    for port in _SHUFFLED:
        if _reserve(port) and is_free(port):
            return port
    raise StackError("no port is free")


def _reserve(port: int) -> bool:
    """Take the port's byte of a file that all processes of this user share; False if another one
    has it. The kernel gives it back when we end."""
    shared = _reservations()
    if shared is None:
        return True
    try:
        fcntl.lockf(shared, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


@cache
def _reservations() -> int | None:
    """Kept open, since closing gives everything back. None where no such file can be had: then
    two processes may get the same port, if they ask before either listens."""
    path = Path(tempfile.gettempdir()) / f"leaderboard-ports-{os.getuid()}"
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return None


def is_free(port: int) -> bool:
    """Whether we could listen on this loopback port right now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def claim_port(port: int, owner: str) -> int:
    """`port`, or any free one for 0. Raises PortTakenError naming `owner`, the setting."""
    if port == 0:
        return free_port()
    if not is_free(port):
        raise PortTakenError(port, owner)
    return port


def accepts(port: int) -> bool:
    """Whether something accepts connections on this loopback port."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=0.5):
            return True
    except OSError:
        return False


def _die_with_parent(number: int) -> Callable[[], None]:
    """To be run between fork and exec: one system call, nothing that takes a lock."""

    def ask_kernel() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)

    return ask_kernel


@dataclass(frozen=True, slots=True)
class RunAs:
    """The numbers of a user and a group, for a child that must not be root."""

    user: int
    group: int


class Process:
    """One child process, started and stopped as often as wanted; its output goes to a file.

    `death_signal` is what the child gets when we die: SIGKILL, since a drain could wait for
    servers that die as well; SIGTERM for one whose own children must be told. Before a start
    `argv`, `log_path`, `pass_fds` (descriptors that the child keeps) and `stop_signal` (how it is
    asked to end) may be set anew."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log_path: Path,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
        run_as: RunAs | None = None,
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.pass_fds: Sequence[int] = ()
        self.stop_signal = signal.SIGTERM
        self._death_signal = death_signal
        self._run_as = run_as
        self._environ = None if environ is None else dict(environ)
        self._cwd = cwd
        self.log_path = log_path
        self._popen: subprocess.Popen[bytes] | None = None
        self._asked = False

    @property
    def pid(self) -> int:
        """Of the running or last child. Raises StackError before the first start."""
        if self._popen is None:
            raise StackError(f"{self.name} was not started")
        return self._popen.pid

    def start(self) -> None:
        """Start the child. Does not wait until it is ready."""
        self._asked = False
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        other = self._run_as
        with self.log_path.open("ab") as log:
            try:
                self._popen = subprocess.Popen(
                    self.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environ,
                    cwd=self._cwd,
                    start_new_session=True,
                    pass_fds=self.pass_fds,
                    user=None if other is None else other.user,
                    group=None if other is None else other.group,
                    extra_groups=None if other is None else [],
                    preexec_fn=_die_with_parent(self._death_signal),  # noqa: PLW1509 - one prctl, see there
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise StackError(f"{self.name} can't be started: {error}") from None

    def exit_code(self) -> int | None:
        """How the child ended; None while it runs, or before it was started."""
        return None if self._popen is None else self._popen.poll()

    def is_running(self) -> bool:
        """Whether the child was started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    def wait_until(self, ready: Callable[[], bool], timeout_seconds: float) -> None:
        """Wait for `ready`. Raises StackError if the child ends or takes longer."""
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            if (code := self.exit_code()) is not None:
                raise StackError(f"{self.name} ended with {code}: {self.last_line()}")
            if time.monotonic() > deadline:
                raise StackError(
                    f"{self.name} was not ready after {timeout_seconds:g} s: {self.last_line()}"
                )
            time.sleep(POLL_SECONDS)

    def last_line(self) -> str:
        """What the child said last, for error messages."""
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "it said nothing"
        lines = [line for line in text.splitlines() if line.strip()]
        return f"{lines[-1].strip()} (see {self.log_path})" if lines else "it said nothing"

    def ask_to_stop(self) -> None:
        """Send `stop_signal` (and SIGCONT, should it be stopped) and return at once.

        Only the first call sends: many programs take a second one for impatience."""
        if self._popen is not None and self.is_running() and not self._asked:
            self._asked = True
            self._popen.send_signal(self.stop_signal)
            self._popen.send_signal(signal.SIGCONT)

    def stop(self, timeout_seconds: float = 10) -> bool:
        """Ask, wait, then SIGKILL for the child and whatever it started. Whether it ended by
        itself (or had before, or was never started)."""
        if self._popen is None:
            return True
        self.ask_to_stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout_seconds)
        ended = not self.is_running()
        self.kill()
        return ended

    def kill(self, *, wait: bool = True) -> None:
        """SIGKILL for the child and whatever is left of its process group.

        Who is in a handler of signals must not `wait`: what it interrupts may be looking after the
        same child, and hold the lock that waiting wants."""
        if self._popen is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        if wait:
            self._popen.wait()
