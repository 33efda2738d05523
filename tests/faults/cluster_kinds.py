"""Faults of a Redis Cluster under the whole stack: three primaries with a replica each."""

from __future__ import annotations

import os
import signal
import time
from typing import Any, Final

from clusters import LostTail, StackCluster, asked, migrate, promoted, stands_at
from faults.bites import DidNotBiteError, Fault, Trial, boards_wait
from leaderboard.stack.process import StackError
from running import wait_for

SOUND_SECONDS: Final = 30.0


def chosen(trial: Trial) -> tuple[StackCluster, str]:
    """The cluster, and a tournament whose shard is to be hit, when every shard has its replica
    (the trial before may have taken one)."""
    cluster = StackCluster(trial.scene.stack.env)
    wait_for(lambda: is_sound(cluster), SOUND_SECONDS)
    return cluster, trial.chance.choice(trial.play.tournaments)


def is_sound(cluster: StackCluster) -> bool:
    try:
        primaries = [node for node in cluster.seen() if node.is_primary and node.slots]
        followers = [cluster.replicas_of(node.port) for node in primaries]
        if len(primaries) != 3 or any(len(some) != 1 for some in followers):
            return False
        for (one,) in followers:
            with asked(one) as client:
                found: Any = client.info("replication")
                if found["master_link_status"] != "up":
                    return False
    except (StackError, StopIteration):
        return False
    return True


def kill_primary(trial: Trial) -> str:
    """It is started again before anybody takes its place, and has what it had acknowledged."""
    cluster, name = chosen(trial)
    victim = cluster.node_of(name)
    os.kill(victim.pid, signal.SIGKILL)
    wait_for(lambda: cluster.nodes[cluster_index(cluster, victim.port)].pid != victim.pid, 20)
    return f"the primary on port {victim.port} was another process; {boards_wait(trial)}"


def cluster_index(cluster: StackCluster, port: int) -> int:
    return [node.port for node in cluster.nodes].index(port)


def stop_primary(trial: Trial) -> str:
    """Until its replica has taken its place; it wakes up with clients that believe it."""
    cluster, name = chosen(trial)
    victim = cluster.node_of(name)
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        bite = boards_wait(trial)
        after = promoted(cluster, name, victim)
    finally:
        os.kill(victim.pid, signal.SIGCONT)
    return f"{after.port} took the place of {victim.port}; {bite}"


def stop_replica(trial: Trial) -> str:
    cluster, name = chosen(trial)
    primary = cluster.node_of(name)
    (replica,) = cluster.replicas_of(primary.port)
    os.kill(replica.pid, signal.SIGSTOP)
    before = stands_at(primary, name)
    try:
        time.sleep(1.5)
        missed = stands_at(primary, name) - before
    finally:
        os.kill(replica.pid, signal.SIGCONT)
    if missed <= 0:
        raise DidNotBiteError("there was nothing to be missed")
    return f"the replica lagged by {missed} offsets of {name}"


def lose_shard_tail(trial: Trial) -> str:
    """A replica that got the last writes no more takes its primary's place."""
    cluster, name = chosen(trial)
    fault = LostTail(cluster, name)
    fault.cut()
    time.sleep(0.7)
    acknowledged, kept = fault.fail_over(signal.SIGSTOP)
    if kept >= acknowledged:
        raise DidNotBiteError("the replica had it all")
    return f"{name} fell back by {acknowledged - kept} offsets"


def move_slot(trial: Trial) -> str:
    cluster, name = chosen(trial)
    before, acked = cluster.node_of(name), trial.play.counts["acked"]
    after = migrate(cluster, name, lambda: time.sleep(0.5))
    return (
        f"the slot of {name} went from {before.port} to {after.port}"
        f" while {trial.play.counts['acked'] - acked} wagers came"
    )


CLUSTER_FAULTS: Final = tuple(
    Fault(name, strike, cluster=True)
    for name, strike in (
        ("kill shard primary", kill_primary),
        ("stop shard primary", stop_primary),
        ("stop shard replica", stop_replica),
        ("lose shard tail", lose_shard_tail),
        ("move slot", move_slot),
    )
)
