"""The node of a cluster whose pods are real, where this machine is that node: what it has, the way
from its pods to servers that listen on loopback alone, and the processes of its pods."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster.api import Cluster, NotThisClusterError
from leaderboard.stack.process import LOOPBACK

STAND_IN: Final = "kwok.x-k8s.io/node"
LOCALNET: Final = Path("/proc/sys/net/ipv4/conf/all/route_localnet")


@dataclass(frozen=True)
class Node:
    """Its name, the address that pods know it by, and the images that it has."""

    name: str
    address: str
    images: frozenset[str]

    def has(self, image: str) -> bool:
        return image in self.images or f"docker.io/{image}" in self.images


def own_node(cluster: Cluster) -> Node:
    """The cluster's only node. Raises NotThisClusterError where it has others, runs nothing, or is
    another machine."""
    found = json.loads(cluster("get", "nodes", "-o", "json"))["items"]
    if len(found) != 1:
        raise NotThisClusterError(f"PODS: one node is wanted, and the cluster has {len(found)}")
    (one,) = found
    name = one["metadata"]["name"]
    if STAND_IN in one["metadata"].get("annotations", {}):
        raise NotThisClusterError(f"PODS: node {name} is a stand-in and runs nothing")
    addresses = {a["type"]: a["address"] for a in one["status"]["addresses"]}
    address = addresses.get("InternalIP", "")
    try:
        with socket.socket() as probe:
            probe.bind((address, 0))
    except OSError:
        raise NotThisClusterError(
            f"PODS: node {name} is at {address!r}, which is no address of this machine: run this "
            "on the node, in its network namespace"
        ) from None
    images = (name for image in one["status"]["images"] for name in image.get("names") or ())
    return Node(name, address, frozenset(images))


@contextmanager
def reachable(address: str, ports: Sequence[int]) -> Iterator[None]:
    """Whoever comes to these TCP ports of the address, a pod or the node itself, gets to the same
    ones of loopback, and is taken there for somebody from loopback."""
    listed = ",".join(map(str, ports))
    to = ["-p", "tcp", "-m", "multiport", "--dports", listed]
    rules = [
        [chain, "-d", address, *to, "-j", "DNAT", "--to-destination", LOOPBACK]
        for chain in ("PREROUTING", "OUTPUT")
    ]
    rules.append(["INPUT", "-d", LOOPBACK, *to, "-j", "SNAT", "--to-source", LOOPBACK])
    before = LOCALNET.read_text("utf-8")
    with ExitStack() as undone:
        LOCALNET.write_text("1", "utf-8")
        undone.callback(LOCALNET.write_text, before, "utf-8")
        for rule in rules:
            _rule("-A", rule)
            undone.callback(_rule, "-D", rule)
        yield


def _rule(what: str, rule: Sequence[str]) -> None:
    words = ["iptables", "-w", "-t", "nat", what, *rule]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr.strip()}"


def main_process(pod_uid: str, word: str) -> int:
    """Of the pod's processes that whose command has the word; its number here, on the node."""
    marks = (f"pod{pod_uid}", f"pod{pod_uid.replace('-', '_')}")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            groups = (entry / "cgroup").read_text("utf-8")
            command = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue  # it has ended
        if any(mark in groups for mark in marks) and word in command:
            return int(entry.name)
    raise AssertionError(f"pod {pod_uid} has no process with {word} on this machine")
