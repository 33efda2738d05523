"""Faults of a Redis Cluster: a primary that dies, a tail that is lost, a slot that moves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis

from leaderboard.stack.process import LOOPBACK, StackError
from leaderboard.stack.redis_cluster import RedisCluster, ask, seen_from, slot_of
from leaderboard.stack.servers import RedisServer
from running import wait_for

PROMOTED_SECONDS = 20.0


@contextmanager
def asked(server: RedisServer) -> Iterator[redis.Redis]:
    """A client of this one node, which follows no redirections."""
    with redis.Redis(LOOPBACK, server.port, socket_timeout=5, protocol=2) as client:
        yield client


def stands_at(server: RedisServer, tournament_id: str) -> int:
    """The board's offset as this very node has it, primary or replica; -1 without a board."""
    with asked(server) as client:
        # Else a replica sends us to its primary. The same connection is used for both.
        client.connection_pool.max_connections = 1
        ask(client, "READONLY")
        found = ask(client, "HGET", f"{{{tournament_id}}}:board", "offset")
    return -1 if found is None else int(found)


def promoted(cluster: RedisCluster, tournament_id: str, before: RedisServer) -> RedisServer:
    """Who holds the tournament instead of `before`, as soon as somebody does."""
    found: list[RedisServer] = []

    def is_another() -> bool:
        try:
            found.append(cluster.node_of(tournament_id))
        except StackError:
            return False
        return found[-1] is not before

    wait_for(is_another, PROMOTED_SECONDS)
    return found[-1]


class LostTail:
    """A primary whose writes do not reach its replica any more, and which then dies.

    To stop the replica alone would lose nothing: what lies in the sockets is read afterwards. So
    the stopped replica's link is cut on the primary's side; it can't come back for the rest."""

    def __init__(self, cluster: RedisCluster, tournament_id: str) -> None:
        self._cluster = cluster
        self._tournament_id = tournament_id
        self.primary = cluster.node_of(tournament_id)
        (self.replica,) = cluster.replicas_of(self.primary)

    def cut(self) -> None:
        """From here on what the primary acknowledges is on its own."""
        os.kill(self.replica.pid, signal.SIGSTOP)
        with asked(self.primary) as client:
            assert int(ask(client, "CLIENT", "KILL", "TYPE", "replica")) == 1

    def fail_over(self) -> tuple[int, int]:
        """Kill the primary, let the replica take its place: the board's offset that the one had
        acknowledged, and the one that the other has."""
        acknowledged = stands_at(self.primary, self._tournament_id)
        self.primary.process.kill()
        os.kill(self.replica.pid, signal.SIGCONT)
        kept = stands_at(self.replica, self._tournament_id)
        assert promoted(self._cluster, self._tournament_id, self.primary) is self.replica
        return acknowledged, kept

    def close(self) -> None:
        if self.replica.process.is_running():
            os.kill(self.replica.pid, signal.SIGCONT)


def migrate(
    cluster: RedisCluster, tournament_id: str, between: Callable[[], object] = lambda: None
) -> RedisServer:
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


def all_see(cluster: RedisCluster, slot: int, holder: RedisServer) -> bool:
    """Whether every node knows who holds the slot."""
    views = [seen_from([node.port]) for node in cluster.nodes if node.process.is_running()]
    return all(n.serves(slot) == (n.port == holder.port) for view in views for n in view)


def seconds_until(condition: Callable[[], bool], at_most: float) -> float:
    started = time.monotonic()
    wait_for(condition, at_most)
    return time.monotonic() - started
