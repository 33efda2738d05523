"""PostgreSQL as a child process: the system of record of the local stack and of the tests.

PostgreSQL refuses to be root. A stack that is run by root (containers, CI) therefore starts it as
the user `postgres`, else `nobody`, and hands the data folder over to that user. The folders above
it may be closed to them (temporary folders are), so the server gets its folder as an open
descriptor and names it `/proc/self/fd/N`: no permission of a folder that is not ours is changed.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psycopg

from leaderboard.stack.process import (
    LOOPBACK,
    POLL_SECONDS,
    Process,
    RunAs,
    StackError,
    accepts,
    claim_port,
)

DATABASE: Final = "leaderboard"
USER: Final = "postgres"
_DEBIAN: Final = Path("/usr/lib/postgresql")
_DESCRIPTORS: Final = Path("/proc/self/fd")
_ORPHANS: Final = "pre-existing shared memory block"
"""What a server says whose killed predecessor has children that are still ending."""


def postgres_program(name: str) -> str | None:
    """`initdb` or `postgres`: from PATH, else Debian's newest version, which is not on PATH."""
    if found := shutil.which(name):
        return found
    versions = sorted(_DEBIAN.glob(f"*/bin/{name}"), key=_version, reverse=True)
    return str(versions[0]) if versions else None


def _version(program: Path) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", program.parts[-3])))


class PostgresServer:
    """One PostgreSQL with an empty database `leaderboard`: UTF-8, C collation, UTC.

    Loopback only, no socket file. Like every server of a stack it trusts whoever reaches it
    there. Commits are flushed as in production; data in `folder` survive a restart and a kill."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        setting: str = "POSTGRES_PORT",
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """`extra`: settings of the server, e.g. {"wal_level": "logical"}.

        Raises StackError without the programs, PortTakenError naming `setting`."""
        initdb, program = postgres_program("initdb"), postgres_program("postgres")
        if initdb is None or program is None:
            raise StackError(
                "PostgreSQL is missing: install it (Debian: apt-get install postgresql)"
            )
        self._initdb, self._program = initdb, program
        self._run_as = _unprivileged()
        self.port = claim_port(port, setting)
        self._folder = folder
        self._extra = dict(extra or {})
        self.process = Process(
            "postgres", [program], log_path=folder / "postgres.log", environ=_environ(),
            cwd=Path("/"), run_as=self._run_as,
        )  # fmt: skip
        # SIGTERM would wait until every client has left.
        self.process.stop_signal = signal.SIGINT

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@{LOOPBACK}:{self.port}/{DATABASE}"

    @property
    def pid(self) -> int:
        """The postmaster's."""
        return self.process.pid

    @property
    def data(self) -> Path:
        return self._folder / "data"

    def start(self, timeout_seconds: float = 60) -> None:
        """Make the cluster if it is new, start, wait until it answers. Raises StackError."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            self.launch()
            try:
                self.process.wait_until(self.answers, deadline - time.monotonic())
            except StackError:
                orphans = self.process.exit_code() is not None and self._left_orphans()
                if not orphans or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)
            else:
                return

    def launch(self) -> None:
        """Start without waiting, but for the making of a new cluster (some seconds)."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self.data.exists():
            self._make()
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **self._extra,
        }
        words = [word for pair in settings.items() for word in ("-c", "=".join(pair))]
        with _Reachable(self.data, self._run_as) as place:
            self.process.argv = [self._program, "-D", place.name, *words]
            self.process.pass_fds = place.descriptors
            self.process.start()

    def answers(self) -> bool:
        """Whether a client gets into the database."""
        if not accepts(self.port):
            return False
        try:
            with psycopg.connect(self.url, connect_timeout=2) as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
        except psycopg.Error:
            return False

    def stop(self) -> None:
        """Ends clients' sessions, writes everything out. Raises nothing if it has ended."""
        self.process.stop(timeout_seconds=30)

    def _left_orphans(self) -> bool:
        return _ORPHANS in self.process.log_path.read_text(errors="replace")[-2000:]

    def _make(self) -> None:
        """Aside, then renamed: a cluster that is half made is never taken for one."""
        fresh = self._folder / "making"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if self._run_as is not None:
            os.chown(fresh, self._run_as.user, self._run_as.group)
        with _Reachable(fresh, self._run_as) as place:
            made = ["-D", place.name, "-U", USER, "--encoding=UTF8", "--locale=C", "--auth=trust"]
            self._run([self._initdb, *made, "--no-sync"], "", place.descriptors)
            alone = [self._program, "--single", "-D", place.name, "postgres"]
            self._run(alone, f"CREATE DATABASE {DATABASE}\n", place.descriptors)
        fresh.rename(self.data)

    def _run(self, argv: list[str], typed: str, descriptors: tuple[int, ...]) -> None:
        user, group = (self._run_as.user, self._run_as.group) if self._run_as else (None, None)
        done = subprocess.run(
            argv, input=typed, capture_output=True, text=True, check=False, cwd="/",
            env=_environ(), user=user, group=group, pass_fds=descriptors,
            extra_groups=None if user is None else [],
        )  # fmt: skip
        if done.returncode != 0 or "ERROR:" in done.stderr:
            told = (done.stderr or done.stdout).strip().splitlines()
            raise StackError(f"PostgreSQL can't make its cluster: {(told or ['no reason'])[-1]}")


class _Reachable:
    """A name under which another user reaches a folder, whatever the folders above it say."""

    def __init__(self, folder: Path, run_as: RunAs | None) -> None:
        self.name = str(folder.absolute())
        self.descriptors: tuple[int, ...] = ()
        self._folder = folder
        self._is_needed = run_as is not None and _DESCRIPTORS.exists()

    def __enter__(self) -> _Reachable:
        if self._is_needed:
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            self.descriptors = (descriptor,)
            self.name = str(_DESCRIPTORS / str(descriptor))
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


def _unprivileged() -> RunAs | None:
    """Whom to be instead of root; None for everybody else, who stay who they are."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return RunAs(found.pw_uid, found.pw_gid)
    raise StackError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _environ() -> dict[str, str]:
    """Ours without PG*, which would reach into the server's settings, in plain English."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C"}
