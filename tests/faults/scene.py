"""The stage of the fault runner: the local stack by its real command, with links that can be cut
between its functions and what they stand on, and a game platform's outbox with its relay."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path as Folder
from typing import Final

import psycopg
import redis
import sqlalchemy as sa

from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import connect as connect_redis
from leaderboard.adapters.sql_engine import connect as connect_sql
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.settings import DatabaseSettings, load
from leaderboard.stack.functions import FUNCTIONS
from leaderboard.stack.process import LOOPBACK, free_port
from outboxes import Outbox, RelayProcess
from proxy import Proxy
from running import StackCommand, descendants, is_alive, wait_for
from sockets import Players
from whole_path import Path

TOMBSTONE_KEY: Final = b"a key of the fault runner, made for nothing else"
SESSION_MS: Final = 2_000
"""How long a killed member keeps its partitions: less than the usual 6 s, for more trials."""
REPLICAS: Final = {"on-wager": 2}
RESTARTED_SECONDS: Final = 40.0
SMALL_DISK_MIB: Final = 96


class Scene:
    """One running stack, and everything that a fault or a comparison asks of it."""

    most_events = 4_000
    """Of a play, by Kafka; afterwards a chunk every half second keeps the log moving."""
    floor: int | None = None
    """Replicas that each tournament of a play claims, where not what holds for all."""

    def __init__(self, folder: Folder, players: Players, *, cluster: bool = False) -> None:
        """`cluster`: Redis is three primaries with a replica each, and its links can't be cut."""
        self.folder, self.cluster = folder, cluster
        self._players = players
        self._opened = ExitStack()
        self.links: dict[str, Proxy] = {}
        """`function/store`, or `kafka` for the one that all functions share."""

    def open(self) -> None:
        """Start everything. Raises AssertionError with what the stack said."""
        ports = {
            name: free_port()
            for name in ("KAFKA_PORT", "REDIS_PORT", "POSTGRES_PORT", "GATEWAY_PUBLISH_PORT")
        }
        linked = free_port()
        self.stack = StackCommand(
            self.folder,
            [
                *("stack", "--kind", "local", "--free-ports"),
                *(("--redis", "cluster") if self.cluster else ()),
                *(word for name, n in REPLICAS.items() for word in ("--replicas", f"{name}={n}")),
            ],
            {name: str(port) for name, port in ports.items()}
            | self._settings(ports, linked)
            | {
                "KAFKA_LINK": f"{linked}:{self.links['kafka'].port}",
                "KAFKA_SESSION_TIMEOUT_MS": str(SESSION_MS),
                "TOMBSTONE_KEY": TOMBSTONE_KEY.decode(),
            },
        )
        self._opened.callback(self.stack.stop)
        self.stack.start()
        self.path = Path(self.stack, self._players)
        self._opened.callback(self.path.close)
        self.settings = self.stack.env()
        self.redis = connect_redis(self.settings["REDIS_URL"])
        self._opened.callback(self.redis.close)
        self.board = RedisBoard(self.redis, TOMBSTONE_KEY)
        self.engine = connect_sql(load(DatabaseSettings, self.settings).url)
        self._opened.callback(self.engine.dispose)
        self.record = SqlRecord(self.engine)
        self._open_outbox()
        self.small_disk = self._mount_small_disk()

    def _settings(self, ports: Mapping[str, int], linked: int) -> dict[str, str]:
        """What each function gets instead of the true addresses."""
        targets = {
            "redis": ("REDIS_URL", ports["REDIS_PORT"], "redis://{}/0"),
            "postgres": (
                "DATABASE_URL",
                ports["POSTGRES_PORT"],
                "postgresql://postgres@{}/leaderboard",
            ),
            "gateway": ("GATEWAY_PUBLISH_URL", ports["GATEWAY_PUBLISH_PORT"], "http://{}"),
        }
        through = {
            "on-wager": ("redis", "postgres"),
            "on-rank-change": ("redis", "gateway"),
            "archive": ("redis", "postgres"),
            "query": ("redis", "postgres"),
            "on-connect": ("redis",),
        }
        if self.cluster:
            del targets["redis"]
        kafka = self._link("kafka", linked)
        settings: dict[str, str] = {}
        for function in FUNCTIONS:
            settings[f"{function.label}__KAFKA_BOOTSTRAP_SERVERS"] = f"{LOOPBACK}:{kafka.port}"
            for store in through.get(function.name, ()):
                if store not in targets:
                    continue
                setting, port, url = targets[store]
                link = self._link(f"{function.name}/{store}", port)
                settings[f"{function.label}__{setting}"] = url.format(f"{LOOPBACK}:{link.port}")
        return settings

    def _link(self, name: str, port: int) -> Proxy:
        self.links[name] = self._opened.enter_context(Proxy(port))
        return self.links[name]

    def _open_outbox(self) -> None:
        url = self.settings["DATABASE_URL"]
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE game")
        self.outbox_url = f"{url.rpartition('/')[0]}/game"
        outbox = Outbox(self.outbox_url)
        self._opened.callback(outbox.close)
        servers = f"{LOOPBACK}:{self.links['kafka'].port}"
        self.relay = RelayProcess(self.folder, outbox, servers, "relay-1")
        self._opened.callback(self.relay.kill)
        self.relay.start()

    def close(self) -> None:
        self._opened.close()

    # processes

    @property
    def single(self) -> redis.Redis:
        """The one Redis of a stack without a cluster."""
        assert isinstance(self.redis, redis.Redis)
        return self.redis

    def pids(self, service: str) -> list[int]:
        """A service's process and all below it; `on-wager` is one of its replicas, the first."""
        pid = self.relay.process.pid if service == "relay" else self._pid(service)
        return [pid, *descendants(pid)]

    def _pid(self, service: str) -> int:
        label = service.upper().replace("-", "_")
        env = self.stack.env()
        return int(env[f"PID_{label}"] if f"PID_{label}" in env else env[f"PID_{label}_1"])

    def kill(self, service: str) -> int:
        """SIGKILL for the main process, as the kernel would; who it was."""
        pid = self.pids(service)[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def is_back(self, service: str, killed: int) -> bool:
        """Whether another process runs in the place of one that was killed."""
        if service == "relay":
            return self.relay.process.is_running()
        try:
            pid = self._pid(service)
        except (OSError, KeyError):
            return False
        return pid != killed and is_alive(pid)

    def wait_back(self, service: str, killed: int) -> None:
        """The supervisor starts what was killed; the relay is ours to start."""
        if service == "relay" and not self.relay.process.is_running():
            self.relay.start()
        wait_for(lambda: self.is_back(service, killed), RESTARTED_SECONDS)

    @contextmanager
    def stopped(self, service: str) -> Iterator[None]:
        """SIGSTOP for a service's processes, for as long as this lasts."""
        pids = self.pids(service)
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    # how far the views are

    def board_offsets(self, tournaments: Sequence[str]) -> dict[str, int]:
        """Where boards stand, -1 without one. Raises redis.RedisError."""
        with self.redis.pipeline(transaction=False) as pipe:
            for name in tournaments:
                pipe.hget(f"{{{name}}}:board", "offset")
            found = pipe.execute()
        return {
            name: -1 if at is None else int(at) for name, at in zip(tournaments, found, strict=True)
        }

    def record_offsets(self, tournaments: Sequence[str]) -> dict[str, int]:
        """Where the record stands, -1 where it does not know one. Raises SQLAlchemyError."""
        statement = sa.text(
            "SELECT tournament_id, log_offset FROM tournaments WHERE tournament_id = ANY(:names)"
        )
        with self.engine.connect() as connection:
            rows = connection.execute(statement, {"names": list(tournaments)})
            found: dict[str, int] = {row[0]: row[1] for row in rows}
        return {name: found.get(name, -1) for name in tournaments}

    def unsent(self) -> int:
        """Outbox rows that Kafka has not acknowledged. Raises psycopg.Error."""
        with psycopg.connect(self.outbox_url, connect_timeout=2) as connection:
            found = connection.execute(
                "SELECT count(*) FROM leaderboard_outbox"
                " WHERE sent_at_ms IS NULL AND refused IS NULL"
            ).fetchone()
        assert found is not None
        return int(found[0])

    def told(self) -> str:
        return self.stack.told()

    # a disk that can be filled

    def _mount_small_disk(self) -> Folder | None:
        """A volume of its own for the record's fastest growing tables; None where we may not
        mount one."""
        if os.geteuid() != 0:
            return None
        folder = Folder(tempfile.mkdtemp(prefix="small-disk-"))
        self._opened.callback(folder.rmdir)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_MIB}m", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            return None
        self._opened.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
        owner = os.stat(f"/proc/{self.pids('postgres')[0]}")  # noqa: PTH116 - no path of ours
        space = folder / "space"
        for each in (folder, space):
            each.mkdir(exist_ok=True)
            os.chown(each, owner.st_uid, owner.st_gid)
        folder.chmod(0o755)
        with psycopg.connect(self.settings["DATABASE_URL"], autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{space}'".encode())
            for table in ("standings", "event_ids"):
                connection.execute(f"ALTER TABLE {table} SET TABLESPACE small".encode())
        return folder
