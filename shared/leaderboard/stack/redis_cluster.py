"""A Redis Cluster as child processes, and what it says of itself.

Every node is a server of its own: it can be stopped, killed and started again alone, and finds
back into the cluster by its own file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from leaderboard.stack.process import LOOPBACK, POLL_SECONDS, StackError, free_port
from leaderboard.stack.servers import RedisServer

SLOTS: Final = 16_384
NODE_TIMEOUT_MS: Final = 2000
"""A node that is silent for so long is down: then a replica is promoted, about as long again."""


def slot_of(tournament_id: str) -> int:
    """Where all keys of a tournament lie."""
    return key_slot(tournament_id.encode())


@dataclass(frozen=True, slots=True)
class Node:
    """One node as another one sees it. `slots` are ranges, both ends included."""

    node_id: str
    port: int
    flags: frozenset[str]
    primary_id: str | None
    slots: tuple[tuple[int, int], ...]

    @property
    def is_primary(self) -> bool:
        """Whether it serves slots, as far as anyone knows: a failed one may still be listed."""
        return "master" in self.flags and not self.flags & {"fail", "noaddr"}

    def serves(self, slot: int) -> bool:
        return self.is_primary and any(first <= slot <= last for first, last in self.slots)


class RedisCluster:
    """Primaries that share the slots, and `replicas` of each. Data stay in memory unless
    `append_only`.

    `nodes` are the primaries, then the replicas, as they were at first: failovers change that."""

    def __init__(
        self,
        folder: Path,
        *,
        program: str | None = None,
        primaries: int = 3,
        replicas: int = 1,
        first_port: int = 0,
        append_only: bool = False,
    ) -> None:
        """`first_port` is the first node's, 0 for any free one; the others take free ones.

        Raises StackError without a program, PortTakenError naming REDIS_PORT."""
        self._primaries = primaries
        self._bus_ports = [free_port() for _ in range(primaries * (1 + replicas))]
        self.nodes = [
            RedisServer(
                folder / f"node-{index + 1}",
                port=first_port if index == 0 else 0,
                program=program,
                append_only=append_only,
                extra=_node_settings(bus_port),
            )
            for index, bus_port in enumerate(self._bus_ports)
        ]

    @property
    def url(self) -> str:
        """All nodes as seeds."""
        return "redis://" + ",".join(f"{LOOPBACK}:{node.port}" for node in self.nodes)

    @property
    def pids(self) -> list[int]:
        return [node.pid for node in self.nodes]

    def start(self, timeout_seconds: float = 30) -> None:
        """Start all nodes, form the cluster and wait until it serves. Raises StackError."""
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.process.wait_until(node.answers, timeout_seconds)
        self.form(timeout_seconds)

    def form(self, timeout_seconds: float = 30) -> None:
        """Make one cluster of the running, empty nodes. Raises StackError."""
        form_cluster(
            [node.port for node in self.nodes], self._bus_ports, timeout_seconds, self._primaries
        )

    def stop(self) -> None:
        for node in self.nodes:
            node.process.ask_to_stop()
        for node in self.nodes:
            node.stop()

    def seen(self) -> list[Node]:
        """The nodes as the first one that answers sees them. Raises StackError if none does."""
        return seen_from([node.port for node in self.nodes if node.process.is_running()])

    def node_of(self, tournament_id: str) -> RedisServer:
        """The primary that holds the tournament. Raises StackError while nobody does."""
        slot = slot_of(tournament_id)
        for node in self.seen():
            if node.serves(slot):
                return self._server(node)
        raise StackError(f"no primary holds slot {slot}")

    def replicas_of(self, port: int) -> list[RedisServer]:
        """Who follows the node with this port, as far as it is not down."""
        seen = self.seen()
        own = next(node.node_id for node in seen if node.port == port)
        return [
            self._server(node)
            for node in seen
            if node.primary_id == own and "fail" not in node.flags
        ]

    def _server(self, node: Node) -> RedisServer:
        return next(server for server in self.nodes if server.port == node.port)


def _node_settings(bus_port: int) -> list[str]:
    return [
        "--cluster-enabled", "yes", "--cluster-port", str(bus_port),
        "--cluster-node-timeout", str(NODE_TIMEOUT_MS),
        # A replica is promoted however old its data are: on-wager finds what is missing.
        "--cluster-replica-validity-factor", "0",
        # With one shard away the others go on.
        "--cluster-require-full-coverage", "no",
        # A replica stays with its primary, so that who follows whom is known.
        "--cluster-allow-replica-migration", "no",
        "--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0",
    ]  # fmt: skip


def form_cluster(
    ports: Sequence[int],
    bus_ports: Sequence[int],
    timeout_seconds: float = 30,
    primaries: int | None = None,
) -> None:
    """Make one cluster of fresh nodes: slots to the first ones (`primaries` of them, all unless
    given), replicas to those in turn; wait until all agree and every replica is level.

    Raises StackError after `timeout_seconds`."""
    count = primaries or len(ports)
    deadline = time.monotonic() + timeout_seconds
    with _clients(ports) as nodes:
        for index, node in enumerate(nodes):
            if index < count:
                first, end = (SLOTS * i // count for i in (index, index + 1))
                ask(node, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            # Without epochs of their own, fresh nodes argue about them first.
            ask(node, "CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for node in nodes[1:]:
            ask(node, "CLUSTER", "MEET", LOOPBACK, ports[0], bus_ports[0])
        _wait(lambda: all(_agrees(node, len(nodes), count) for node in nodes), deadline)
        ids = [ask(node, "CLUSTER", "MYID").decode() for node in nodes]
        for index, node in enumerate(nodes[count:]):
            ask(node, "CLUSTER", "REPLICATE", ids[index % count])
        _wait(lambda: all(map(_is_level, nodes[count:])), deadline)
        wanted = {(ids[i], ids[(i - count) % count]) for i in range(count, len(ids))}
        _wait(lambda: all(wanted <= _followers(node) for node in nodes), deadline)


def seen_from(ports: Iterable[int]) -> list[Node]:
    """The nodes of a cluster as the first of these that answers sees them. Raises StackError."""
    for port in ports:
        try:
            # Once: the next one will know, should this one hang.
            once = Retry(NoBackoff(), 0)
            with redis.Redis(LOOPBACK, port, socket_timeout=0.5, retry=once, protocol=2) as client:
                return _parsed(ask(client, "CLUSTER", "NODES"))
        except redis.RedisError:
            continue
    raise StackError("no node of the Redis Cluster answers")


def ask(node: redis.Redis, *words: str | int) -> bytes:
    """The answer to a command that redis-py has no method for (or one with a parser of its own)."""
    answer: bytes = node.execute_command(*words)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
    return answer


@contextmanager
def _clients(ports: Sequence[int]) -> Iterator[list[redis.Redis]]:
    nodes = [redis.Redis(LOOPBACK, port, socket_timeout=5, protocol=2) for port in ports]
    try:
        yield nodes
    finally:
        for node in nodes:
            node.close()


def _wait(condition: Callable[[], bool], deadline: float) -> None:
    while not condition():
        if time.monotonic() > deadline:
            raise StackError("the Redis Cluster was not ready in time")
        time.sleep(POLL_SECONDS)


def _agrees(node: redis.Redis, known: int, size: int) -> bool:
    lines = set(ask(node, "CLUSTER", "INFO").decode().splitlines())
    return {"cluster_state:ok", f"cluster_known_nodes:{known}", f"cluster_size:{size}"} <= lines


def _is_level(replica: redis.Redis) -> bool:
    told: Mapping[str, object] = replica.info("replication")
    return told.get("master_link_status") == "up"


def _followers(node: redis.Redis) -> set[tuple[str, str | None]]:
    return {(one.node_id, one.primary_id) for one in _parsed(ask(node, "CLUSTER", "NODES"))}


def _parsed(answer: bytes) -> list[Node]:
    """Of CLUSTER NODES: id, address, flags, primary, four numbers, then slots."""
    nodes = []
    for line in answer.decode().splitlines():
        node_id, address, flags, primary_id, _, _, _, _, *slots = line.split()
        port = int(address.partition("@")[0].rpartition(":")[2])
        # In brackets stand slots on their way.
        ranges = [one.partition("-") for one in slots if not one.startswith("[")]
        nodes.append(
            Node(
                node_id,
                port,
                frozenset(flags.split(",")),
                None if primary_id == "-" else primary_id,
                tuple((int(first), int(last or first)) for first, _, last in ranges),
            )
        )
    return nodes
