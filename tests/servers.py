"""Real servers for tests: from an environment URL, else local programs, else containers.

What can't be had fails the run and says what to install; nothing is skipped.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
import warnings
from collections.abc import Iterator

import pytest

from leaderboard.stack.postgres import DATABASE, USER, PostgresServer
from leaderboard.stack.process import LOOPBACK, StackError, accepts, free_port
from leaderboard.stack.redis_cluster import RedisCluster, form_cluster
from leaderboard.stack.servers import KafkaServer, RedisServer, redis_program, valkey_program

CONTAINER_SECONDS = 120


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of this run's own."""
    yield from _single(
        "TEST_REDIS_URL", redis_program(), "redis:7.4", "redis-server", tmp_path_factory
    )


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey of this run's own."""
    yield from _single(
        "TEST_VALKEY_URL", valkey_program(), "valkey/valkey:8.1", "valkey-server", tmp_path_factory
    )


@pytest.fixture(scope="session")
def redis_cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis Cluster of three primaries, as a seed list."""
    if given := os.environ.get("TEST_REDIS_CLUSTER_URL"):
        yield given
    elif program := redis_program():
        folder = tmp_path_factory.mktemp("redis-cluster")
        cluster = RedisCluster(folder, program=program, replicas=0)
        try:
            cluster.start()
            yield cluster.url
        finally:
            cluster.stop()
    else:
        with contextlib.ExitStack() as stack:
            ports, bus_ports = ([free_port() for _ in range(3)] for _ in range(2))
            for port, bus_port in zip(ports, bus_ports, strict=True):
                command = f"redis-server --port {port} --bind {LOOPBACK} --cluster-enabled yes"
                command += f" --cluster-port {bus_port} --save ''"
                stack.enter_context(
                    _container("redis:7.4", command, {}, "TEST_REDIS_CLUSTER_URL", "redis-server")
                )
            _wait_for(ports)
            form_cluster(ports, bus_ports)
            yield "redis://" + ",".join(f"{LOOPBACK}:{port}" for port in ports)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of an Apache Kafka of this run's own; it makes no topics by itself."""
    if given := os.environ.get("TEST_KAFKA_BOOTSTRAP_SERVERS"):
        yield given
        return
    try:
        server = KafkaServer(tmp_path_factory.mktemp("kafka"))
    except StackError as error:
        yield from _kafka_container(str(error))
        return
    try:
        server.start()
        yield server.bootstrap_servers
    finally:
        server.stop()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """DATABASE_URL of a PostgreSQL of this run's own. Tests share it: make your own schema or
    database in it.

    It does not wait for the disk: what is killed here are sessions and clients. Who kills a server
    starts one of their own, which flushes as in production."""
    if given := os.environ.get("TEST_POSTGRES_URL"):
        yield given
        return
    try:
        unflushed = {"fsync": "off", "full_page_writes": "off"}
        server = PostgresServer(tmp_path_factory.mktemp("postgres"), extra=unflushed)
    except StackError as error:
        yield from _postgres_container(str(error))
        return
    try:
        server.start()
        yield server.url
    finally:
        server.stop()


def _postgres_container(why_not_local: str) -> Iterator[str]:
    port = free_port()
    settings = {
        "POSTGRES_HOST_AUTH_METHOD": "trust",
        "POSTGRES_DB": DATABASE,
        "POSTGRES_USER": USER,
        "POSTGRES_INITDB_ARGS": "--encoding=UTF8 --locale=C",
    }
    command = f"postgres -c port={port} -c listen_addresses={LOOPBACK} -c timezone=UTC"
    with _container("postgres:15", command, settings, "TEST_POSTGRES_URL", why_not_local):
        _wait_for([port])
        yield f"postgresql://{USER}@{LOOPBACK}:{port}/{DATABASE}"


def _single(
    variable: str,
    program: str | None,
    image: str,
    package: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    if given := os.environ.get(variable):
        yield given
    elif program is not None:
        server = RedisServer(tmp_path_factory.mktemp(package), program=program)
        try:
            server.start()
            yield server.url
        finally:
            server.stop()
    else:
        port = free_port()
        command = f"{package} --port {port} --bind {LOOPBACK} --save ''"
        with _container(image, command, {}, variable, package):
            _wait_for([port])
            yield f"redis://{LOOPBACK}:{port}/0"


def _kafka_container(why_not_local: str) -> Iterator[str]:
    port, controller_port = free_port(), free_port()
    settings = {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": f"BROKER://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller_port}",
        "KAFKA_ADVERTISED_LISTENERS": f"BROKER://{LOOPBACK}:{port}",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_INTER_BROKER_LISTENER_NAME": "BROKER",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": f"1@{LOOPBACK}:{controller_port}",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_MESSAGE_MAX_BYTES": str(4 * 1024 * 1024),
    }
    variable = "TEST_KAFKA_BOOTSTRAP_SERVERS"
    with _container(
        "apache/kafka:4.1.1", None, settings, variable, f"local Kafka ({why_not_local})"
    ):
        _wait_for([port])
        yield f"{LOOPBACK}:{port}"


@contextlib.contextmanager
def _container(
    image: str, command: str | None, settings: dict[str, str], variable: str, wanted: str
) -> Iterator[None]:
    """A container on the host's network, so that servers announce the ports that we know.

    Without a container engine the run fails here: the last of the three ways is gone."""
    refusal = ""
    with contextlib.ExitStack() as stack:
        try:
            from testcontainers.core.container import DockerContainer

            container = DockerContainer(image).with_kwargs(network_mode="host")
            for name, value in settings.items():
                container.with_env(name, value)
            if command is not None:
                container.with_command(command)
            stack.enter_context(container)
        except Exception as error:  # noqa: BLE001 - whatever stands in the way, it ends here
            refusal = str(error)
        if refusal:
            _forget_half_open_clients()
            pytest.fail(
                f"no {wanted}: install it, or set {variable}, or start a container engine "
                f"(which says: {refusal})",
                pytrace=False,
            )
        yield


def _forget_half_open_clients() -> None:
    """The container client leaves sockets open when no engine answers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def _wait_for(ports: list[int]) -> None:
    deadline = time.monotonic() + CONTAINER_SECONDS
    while not all(accepts(port) for port in ports):
        if time.monotonic() > deadline:
            pytest.fail(f"no container answered on {ports} in {CONTAINER_SECONDS} s")
        time.sleep(0.1)
