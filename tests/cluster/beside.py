"""What stands beside a cluster with real pods, on its node: Kafka with users, Redis, PostgreSQL for
the record and with a game's outbox, the issuer, an object store, nginx + Nchan. Not one of the
functions: those are pods."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import boto3
import httpx
import psycopg

from certificates import make_certificates
from cluster.backing import PASSWORD, READY_SECONDS, TOLD, Servers, guard
from cluster.node import reachable
from cluster.tree import Settings
from faults.scene import TOMBSTONE_KEY
from leaderboard.stack.backbone import common_settings, issuer_service
from leaderboard.stack.functions import FUNCTIONS, SERVER_PORTS
from leaderboard.stack.kafka_jars import project_root
from leaderboard.stack.nginx import NginxServer
from leaderboard.stack.postgres import PostgresServer
from leaderboard.stack.process import LOOPBACK, Process, accepts, free_port
from leaderboard.stack.servers import KafkaServer, KafkaUsers, RedisServer
from outboxes import Outbox

BUCKET: Final = "audit"
GAME: Final = "game"
KEYS: Final = "keys/jwks.json"


@dataclass
class Beside(Servers):
    """`settings` say where functions are as soon as their pods have addresses."""

    folder: Path
    ports: dict[str, int]
    running: ExitStack

    def open_gateway(self) -> None:
        """Start it; it asks the pods of `on-connect` and `query`, whose addresses are known now.
        Players come to both through it, from here on."""
        gateway = NginxServer(
            self.folder / "nginx",
            authorize_url=f"{self.settings['CONNECT_URL']}/internal/authorize",
            query_url=self.settings["QUERY_URL"],
            public_port=self.ports["GATEWAY_PORT"],
            publish_port=self.ports["GATEWAY_PUBLISH_PORT"],
        )
        self.running.callback(gateway.process.stop)
        gateway.start()
        gateway.process.wait_until(lambda: accepts(gateway.public_port), READY_SECONDS)
        edge = f"http://{LOOPBACK}:{gateway.public_port}"
        self.settings |= {"CONNECT_URL": edge, "QUERY_URL": edge}


@contextmanager
def beside(folder: Path, address: str) -> Iterator[Beside]:
    """Everything but the gateway started, and stopped in the end; found by pods at the node's
    address."""
    with ExitStack() as running:
        yield _started(folder, address, running)


def _started(folder: Path, address: str, running: ExitStack) -> Beside:
    ports = {name: free_port() for name in SERVER_PORTS}
    ports |= {one.port_setting: free_port() for one in FUNCTIONS}
    users_port, objects_port = free_port(), free_port()
    made = make_certificates(folder / "certificates", address)
    bundle = folder / "certificates" / "bundle.pem"
    bundle.write_bytes(made.key.read_bytes() + made.certificate.read_bytes())
    users = KafkaUsers(users_port, bundle=bundle, host=address)
    kafka = KafkaServer(folder / "kafka", heap="1g", users=users)
    redis, postgres = RedisServer(folder / "redis"), PostgresServer(folder / "postgres")
    issuer = issuer_service(folder, ports["ISSUER_PORT"])
    for server in (kafka, redis, postgres):
        running.callback(server.stop)
        server.start()
    running.callback(issuer.process.stop)
    issuer.start()
    issuer.process.wait_until(issuer.answers, READY_SECONDS)
    guard(kafka, folder)
    settings = {
        **common_settings(ports, {"TOMBSTONE_KEY": TOMBSTONE_KEY.decode()}),
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "REDIS_URL": redis.url,
        "DATABASE_URL": postgres.url,
        "GATEWAY_KIND": "nchan",
        "GATEWAY_PUBLISH_URL": f"http://{LOOPBACK}:{ports['GATEWAY_PUBLISH_PORT']}",
        "GATEWAY_CLIENT_URL": f"ws://{LOOPBACK}:{ports['GATEWAY_PORT']}/connect",
        "PREWARM_LEAD_MINUTES": "30",
        "PREWARM_SERVICES": "query,on-connect,on-wager-http",
        "OUTBOX_URL": _outbox(postgres.url, running),
        # Until its pods have an address.
        "TOURNAMENT_URL": f"http://{LOOPBACK}:1",
    }
    # The issuer of a laptop answers its own machine alone; its keys are for everybody.
    keys = httpx.get(settings["JWKS_URL"], timeout=10).raise_for_status().content
    store = _objects(folder, objects_port, running)
    store.put_object(Bucket=BUCKET, Key=KEYS, Body=keys, ACL="public-read")
    found_at = (users_port, redis.port, postgres.port, objects_port)
    running.enter_context(reachable(address, (*found_at, ports["GATEWAY_PUBLISH_PORT"])))

    def seen(url: str) -> str:
        """Where a pod finds what this machine finds on loopback."""
        return url.replace(LOOPBACK, address)

    # Clients come to the gateway from this machine, so theirs alone stays on loopback.
    told = {name: settings[name] if "CLIENT" in name else seen(settings[name]) for name in TOLD}
    given = Settings(
        kafka=f"{address}:{users_port}",
        password=PASSWORD,
        authority=made.authority.read_text("utf-8"),
        redis_url=seen(redis.url),
        database_url=seen(postgres.url),
        outbox_url=seen(settings["OUTBOX_URL"]),
        tombstone_key=settings["TOMBSTONE_KEY"],
        more={
            **told,
            # As tokens have it: a name that nobody looks up.
            "JWT_ISSUER": settings["JWT_ISSUER"],
            "JWKS_URL": f"http://{address}:{objects_port}/{BUCKET}/{KEYS}",
            "AUDIT_LOG_URL": f"s3://{BUCKET}/production",
            "AWS_ENDPOINT_URL": f"http://{address}:{objects_port}",
            "END_GRACE_SECONDS": "0",
            # Ten of everything would be ready in minutes, on a node of two cores.
            "PREWARM_FLOOR": "2",
        },
    )
    return Beside(kafka, settings, given, folder, ports, running)


def _outbox(url: str, running: ExitStack) -> str:
    """A game platform's database, with an empty outbox."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {GAME}".encode())
    outbox = Outbox(f"{url.rpartition('/')[0]}/{GAME}")
    running.callback(outbox.close)
    return outbox.url


def _objects(folder: Path, port: int, running: ExitStack) -> Any:
    """An object store with the audit log's bucket; a client of it."""
    process = Process(
        "objects",
        [sys.executable, "-m", "object_stores", str(port)],
        environ={**os.environ, "PYTHONPATH": str(project_root() / "tests")},
        log_path=folder / "objects.log",
    )
    running.callback(process.stop)
    process.start()
    process.wait_until(lambda: accepts(port), READY_SECONDS)
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{LOOPBACK}:{port}",
        region_name="us-east-1",
        aws_access_key_id="nobody",
        aws_secret_access_key="nothing",
    )
    client.create_bucket(Bucket=BUCKET)
    return client
