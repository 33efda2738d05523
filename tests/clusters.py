"""Faults of a Redis Cluster: a primary that dies, a tail that is lost, a slot that moves."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import redis

from leaderboard.stack.process import LOOPBACK, StackError
from leaderboard.stack.redis_cluster import Node, RedisCluster, ask, seen_from, slot_of
from leaderboard.stack.servers import RedisServer
from running import wait_for

PROMOTED_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class RunningNode:
    """A node that somebody else runs."""

    port: int
    pid: int


Server = RedisServer | RunningNode


class StackCluster:
    """The cluster of `leaderboard stack --redis cluster`, by its `.stack.env`."""

    def __init__(self, env: Callable[[], Mapping[str, str]]) -> None:
        self._env = env

    @property
    def nodes(self) -> list[RunningNode]:
        """Numbered as the seeds are."""
        env = self._env()
        seeds = env["REDIS_URL"].removeprefix("redis://").split(",")
        ports = [int(seed.rpartition(":")[2]) for seed in seeds]
        return [RunningNode(port, int(env[f"PID_REDIS_{i}"])) for i, port in enumerate(ports, 1)]

    def seen(self) -> list[Node]:
        return seen_from([node.port for node in self.nodes])

    def node_of(self, tournament_id: str) -> RunningNode:
        """The primary that holds the tournament. Raises StackError while nobody does."""
        slot = slot_of(tournament_id)
        for node in self.seen():
            if node.serves(slot):
                return self._running(node)
        raise StackError(f"no primary holds slot {slot}")

    def replicas_of(self, port: int) -> list[RunningNode]:
        seen = self.seen()
        own = next(node.node_id for node in seen if node.port == port)
        return [self._running(node) for node in seen if node.primary_id == own]

    def _running(self, node: Node) -> RunningNode:
        return next(one for one in self.nodes if one.port == node.port)


Cluster = RedisCluster | StackCluster


@contextmanager
def asked(server: Server) -> Iterator[redis.Redis]:
    """A client of this one node, which follows no redirections."""
    with redis.Redis(LOOPBACK, server.port, socket_timeout=5, protocol=2) as client:
        yield client


def stands_at(server: Server, tournament_id: str) -> int:
    """The board's offset as this very node has it, primary or replica; -1 without a board."""
    with asked(server) as client:
        # Else a replica sends us to its primary. The same connection is used for both.
        client.connection_pool.max_connections = 1
        ask(client, "READONLY")
        found = ask(client, "HGET", f"{{{tournament_id}}}:board", "offset")
    return -1 if found is None else int(found)


def promoted(cluster: Cluster, tournament_id: str, before: Server) -> Server:
    """Who holds the tournament instead of `before`, as soon as somebody does."""
    found: list[Server] = []

    def is_another() -> bool:
        try:
            found.append(cluster.node_of(tournament_id))
        except StackError:
            return False
        return found[-1].port != before.port

    wait_for(is_another, PROMOTED_SECONDS)
    return found[-1]


class LostTail:
    """A primary whose writes do not reach its replica any more, and which then fails.

    To stop the replica alone would lose nothing: what lies in the sockets is read afterwards. So
    the stopped replica's link is cut on the primary's side; it can't come back for the rest."""

    def __init__(self, cluster: Cluster, tournament_id: str) -> None:
        self._cluster = cluster
        self._tournament_id = tournament_id
        self.primary: Server = cluster.node_of(tournament_id)
        self.replica: Server
        (self.replica,) = cluster.replicas_of(self.primary.port)

    def cut(self) -> None:
        """From here on what the primary acknowledges is on its own."""
        os.kill(self.replica.pid, signal.SIGSTOP)
        with asked(self.primary) as client:
            assert int(ask(client, "CLIENT", "KILL", "TYPE", "replica")) == 1

    def fail_over(self, number: signal.Signals = signal.SIGKILL) -> tuple[int, int]:
        """End the primary, let the replica take its place: the board's offset that the one had
        acknowledged, and the one that the other has.

        SIGSTOP where a supervisor would start it again before anybody else is chosen: then it
        wakes up afterwards, and follows."""
        acknowledged = stands_at(self.primary, self._tournament_id)
        os.kill(self.primary.pid, number)
        os.kill(self.replica.pid, signal.SIGCONT)
        try:
            kept = stands_at(self.replica, self._tournament_id)
            after = promoted(self._cluster, self._tournament_id, self.primary)
        finally:
            if number is signal.SIGSTOP:
                os.kill(self.primary.pid, signal.SIGCONT)
        assert after.port == self.replica.port
        return acknowledged, kept


def migrate(
    cluster: Cluster, tournament_id: str, between: Callable[[], object] = lambda: None
) -> Server:
    """Move the tournament's slot to another primary, one key after the other; its new holder.

    `between` is called when half of the keys have moved: the board is on neither node then."""
    slot = slot_of(tournament_id)
    source = cluster.node_of(tournament_id)
    nodes = cluster.seen()
    ids = {node.port: node.node_id for node in nodes}
    target_port = next(n.port for n in nodes if n.is_primary and n.port != source.port)
    target = next(server for server in cluster.nodes if server.port == target_port)
    with asked(source) as giver, asked(target) as taker:
        ask(taker, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port])
        ask(giver, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target.port])
        moved = 0
        while keys := giver.cluster("GETKEYSINSLOT", slot, 1):
            ask(giver, "MIGRATE", LOOPBACK, target.port, keys[0], 0, 5000)
            moved += 1
            if moved == 2:
                between()
        assert moved > 2, "there was nothing to be cut in two"
        for client in (taker, giver):
            ask(client, "CLUSTER", "SETSLOT", slot, "NODE", ids[target.port])
    wait_for(lambda: all_see(cluster, slot, target), PROMOTED_SECONDS)
    return target


def all_see(cluster: Cluster, slot: int, holder: Server) -> bool:
    """Whether every node knows who holds the slot."""
    views = [seen_from([node.port]) for node in cluster.seen() if "fail" not in node.flags]
    return all(n.serves(slot) == (n.port == holder.port) for view in views for n in view)
