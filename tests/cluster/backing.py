"""What the cluster's functions stand on, on this machine: a Kafka that asks who comes, Redis,
PostgreSQL, the issuer; and of the functions those that a decision of the cluster depends on."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import httpx
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # not in its stubs
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    OffsetSpec,
    ResourcePatternType,
    ResourceType,
)

from certificates import make_certificates
from cluster.api import Cluster
from cluster.tree import NAMESPACE, Settings
from leaderboard import events as ev
from leaderboard.codec import encode_kafka
from leaderboard.stack.access import KAFKA
from leaderboard.stack.backbone import answers_ok, common_settings, issuer_service, make_record
from leaderboard.stack.functions import FUNCTIONS, SERVER_PORTS
from leaderboard.stack.kafka_jars import project_root
from leaderboard.stack.postgres import PostgresServer
from leaderboard.stack.process import LOOPBACK, Process, free_port
from leaderboard.stack.servers import KafkaServer, KafkaUsers, RedisServer
from passwords import give_password
from proxy import Proxy
from running import command
from whole_path import schedule, unique, wager

PASSWORD: Final = "a password of the cluster test"
TOPICS: Final = ("--partitions", "50", "--replicas", "1", "--in-sync", "1")
READY_SECONDS: Final = 60.0
ANSWER_SECONDS: Final = 60.0
LEAD_MINUTES: Final = 1
"""Instead of 30."""
RAISED: Final = ("query", "on-connect", "on-wager-http")
ROUND: Final = 500
"""Wagers that are produced before the broker's answers are looked at."""


@dataclass
class Servers:
    """Servers of one run: `settings` say to processes of this machine where they are, `given` to
    the cluster."""

    kafka: KafkaServer
    settings: dict[str, str]
    given: Settings

    def play(self, count: int, tournaments: Sequence[str]) -> None:
        """Schedule these, and put `count` wagers into their logs."""
        producer = Producer(
            {
                "bootstrap.servers": self.kafka.bootstrap_servers,
                "partitioner": "murmur2_random",
                "linger.ms": 20,
            }
        )
        events = [schedule(one, floor=0) for one in tournaments]
        names = itertools.islice(itertools.cycle(tournaments), count)
        events += [wager(one, f"p{i % 997}", 100) for i, one in enumerate(names)]
        for number, one in enumerate(events):
            record = encode_kafka(one, ev.WAGERS)
            producer.produce(
                record.topic, key=record.key, value=record.value, headers=list(record.headers)
            )
            if number % ROUND == 0:
                producer.poll(0)
        assert producer.flush(60) == 0

    def committed(self) -> dict[tuple[str, int], int]:
        """The offset that `on-wager` reads next, as far as it has committed, of each partition."""
        asked = [ConsumerGroupTopicPartitions("on-wager")]
        group = self.admin.list_consumer_group_offsets(asked)["on-wager"].result(ANSWER_SECONDS)
        found = {
            (one.topic, one.partition): max(one.offset, 0)
            for one in group.topic_partitions
            if one.topic == ev.WAGERS
        }
        assert found, "on-wager has committed nothing"
        return found

    def lag(self) -> int:
        """Records of `wagers` that `on-wager` has not committed yet."""
        committed = self.committed()
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        ends = self.admin.list_offsets({TopicPartition(*place): latest for place in committed})
        return sum(
            end.result(ANSWER_SECONDS).offset - committed[place.topic, place.partition]
            for place, end in ends.items()
        )

    @cached_property
    def admin(self) -> AdminClient:
        """Of Kafka, as somebody who may do everything."""
        return AdminClient({"bootstrap.servers": self.kafka.bootstrap_servers, "log_level": 2})


@dataclass
class Backing(Servers):
    """The servers and processes of one run. `link` is the way on which KEDA, and nobody else, comes
    to Kafka."""

    link: Proxy
    processes: dict[str, Process]
    account: Path
    """What a pod of `tournament` has mounted of its ServiceAccount."""

    # floors

    def take_token(self, cluster: Cluster) -> None:
        """A token of `tournament`'s ServiceAccount, as its pods get it."""
        token = cluster("create", "token", "tournament", "-n", NAMESPACE, "--duration", "2h")
        (self.account / "token").write_text(token.strip(), "utf-8")

    def floor(self, function: str) -> int:
        url = f"{self.settings['TOURNAMENT_URL']}/internal/v1/floors/{function}"
        return int(httpx.get(url, timeout=10).raise_for_status().json()["floor"])

    def schedule(self, starts_in: float, lasts: float) -> str:
        """Ask `tournament` for one, as an operator does; its id."""
        tournament_id = unique("cup")
        data = schedule(tournament_id, starts_in=starts_in, lasts=lasts).data
        answer = httpx.post(
            f"{self.settings['TOURNAMENT_URL']}/v1/tournaments",
            content=data.model_dump_json(exclude_none=True),
            headers={**self._operator(), "Content-Type": "application/json"},
            timeout=20,
        )
        assert answer.status_code == 201, answer.text
        return tournament_id

    def _operator(self) -> dict[str, str]:
        asked = {"subject": "operator", "roles": ["operator"]}
        answer = httpx.post(f"{self.settings['ISSUER_URL']}/token", json=asked, timeout=10)
        return {"Authorization": f"Bearer {answer.raise_for_status().json()['token']}"}

    # rights

    def take_rights(self, user: str) -> None:
        """All that the user may do in Kafka. Only KEDA comes as one here."""
        anything: Any = None  # the client takes it for "any"; its stubs don't know
        every = AclBindingFilter(
            ResourceType.ANY, anything, ResourcePatternType.ANY, f"User:{user}", anything,
            AclOperation.ANY, AclPermissionType.ANY,
        )  # fmt: skip
        (gone,) = [
            future.result(ANSWER_SECONDS) for future in self.admin.delete_acls([every]).values()
        ]
        assert gone, f"{user} had no rights"

    def give_rights(self) -> None:
        """Everybody's, as `leaderboard acls` does."""
        commanded(self.kafka, self.account.parent, "acls")

    # lag

    def pause_on_wager(self) -> None:
        """It stops reading, and is out of its group after KAFKA_SESSION_TIMEOUT_MS."""
        os.kill(self.processes["on-wager"].pid, signal.SIGSTOP)

    def resume_on_wager(self) -> None:
        os.kill(self.processes["on-wager"].pid, signal.SIGCONT)


@contextmanager
def backing(folder: Path, api_url: str, authority: str) -> Iterator[Backing]:
    """Everything started, and stopped in the end. `api_url` and `authority` (in PEM) are the
    cluster's; until there is a token (`take_token`) nobody raises revisions."""
    with ExitStack() as running:
        yield _started(folder, api_url, authority, running)


def _started(folder: Path, api_url: str, authority: str, running: ExitStack) -> Backing:
    ports = {name: free_port() for name in SERVER_PORTS}
    ports |= {one.port_setting: free_port() for one in FUNCTIONS}
    made = make_certificates(folder / "certificates")
    bundle = folder / "certificates" / "bundle.pem"
    bundle.write_bytes(made.key.read_bytes() + made.certificate.read_bytes())
    users_port = free_port()
    link = running.enter_context(Proxy(users_port))
    kafka = KafkaServer(
        folder / "kafka", heap="1g", users=KafkaUsers(users_port, found_at=link.port, bundle=bundle)
    )
    redis, postgres = RedisServer(folder / "redis"), PostgresServer(folder / "postgres")
    issuer = issuer_service(folder, ports["ISSUER_PORT"])
    for server in (kafka, redis, postgres):
        running.callback(server.stop)
        server.start()
    running.callback(issuer.process.stop)
    issuer.start()
    issuer.process.wait_until(issuer.answers, READY_SECONDS)
    make_record(postgres.url)
    guard(kafka, folder)
    account = _account(folder / "account", authority)
    settings = {
        **common_settings(ports, {}),
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "REDIS_URL": redis.url,
        "DATABASE_URL": postgres.url,
        "GATEWAY_KIND": "nchan",
        "GATEWAY_PUBLISH_URL": f"http://{LOOPBACK}:{ports['GATEWAY_PUBLISH_PORT']}",
        "GATEWAY_CLIENT_URL": f"ws://{LOOPBACK}:{ports['GATEWAY_PORT']}/connect",
        "TOURNAMENT_URL": f"http://{LOOPBACK}:{ports['TOURNAMENT_PORT']}",
        "PREWARM_LEAD_MINUTES": str(LEAD_MINUTES),
        "PREWARM_SERVICES": ",".join(RAISED),
        "END_GRACE_SECONDS": "0",
        "KUBERNETES_API_URL": api_url,
        "KUBERNETES_ACCOUNT_FOLDER": str(account),
    }
    given = Settings(
        kafka=f"{LOOPBACK}:{link.port}",
        password=PASSWORD,
        authority=made.authority.read_text("utf-8"),
        redis_url=redis.url,
        database_url=postgres.url,
        outbox_url=postgres.url,
        tombstone_key=settings["TOMBSTONE_KEY"],
        more={name: settings[name] for name in TOLD},
    )
    processes = {
        name: _function(name, settings, ports, folder, running)
        for name in ("on-wager", "tournament")
    }
    return Backing(kafka, settings, given, link, processes, account)


TOLD: Final = (
    *("JWT_ISSUER", "JWT_AUDIENCE", "JWKS_URL", "ALLOWED_ORIGINS", "PAGE_CONNECT_URL"),
    *("GATEWAY_PUBLISH_URL", "GATEWAY_CLIENT_URL", "PREWARM_LEAD_MINUTES", "PREWARM_SERVICES"),
)


def guard(kafka: KafkaServer, folder: Path) -> None:
    """Topics and access lists by our own commands; a password for each user."""
    commanded(kafka, folder, "topics", *TOPICS)
    commanded(kafka, folder, "acls")
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 2})
    give_password(admin, KAFKA, PASSWORD)


def commanded(kafka: KafkaServer, folder: Path, *words: str) -> None:
    done = command(words, folder, {"KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers})
    assert done.returncode == 0, done.stdout + done.stderr


def _account(folder: Path, authority: str) -> Path:
    folder.mkdir()
    (folder / "namespace").write_text(NAMESPACE, "utf-8")
    (folder / "ca.crt").write_text(authority, "utf-8")
    (folder / "token").write_text("none yet", "utf-8")
    return folder


def _function(
    name: str, settings: dict[str, str], ports: dict[str, int], folder: Path, running: ExitStack
) -> Process:
    """One of the functions, ready."""
    function = next(one for one in FUNCTIONS if one.name == name)
    port = ports[function.port_setting]
    process = Process(
        name,
        function.command(project_root(), port),
        environ=function.environ(settings, port),
        log_path=folder / f"{name}.log",
    )
    running.callback(process.stop)
    process.start()
    process.wait_until(lambda: answers_ok(f"http://{LOOPBACK}:{port}/readyz"), READY_SECONDS)
    return process
