"""What real pods do: our images, run by a kubelet of this machine as the manifests say.

Each trial returns what it saw, in words for a table, and fails by an AssertionError that says what
was seen instead."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cluster import releases, tree
from cluster.api import Manifest, NotThisClusterError, RefusedError, until
from cluster.beside import Beside
from cluster.node import Node, main_process
from cluster.scaling import DECIDED_SECONDS, FLOOR, SERVICES, TOURNAMENTS, scale_of
from cluster.scene import READERS, SETTLED_SECONDS, Stage
from cluster.tree import NAMESPACE
from faults.bites import DidNotBiteError, Fault, Trial
from faults.runner import run_trial
from faults.scene import TOMBSTONE_KEY
from faults.scene import Scene as Played
from faults.views import EVERYTHING, unlike
from images.__main__ import whole_path
from leaderboard import events as ev
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import connect as connect_redis
from leaderboard.adapters.sql_engine import connect as connect_sql
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.model import TournamentId
from leaderboard.partitioning import partition_of
from leaderboard.settings import DatabaseSettings, load
from leaderboard.stack.functions import FUNCTIONS
from running import command
from sockets import Players
from whole_path import Path as WholePath
from whole_path import entry_of, schedule, unique, wager

WORKLOADS: Final = ("Deployment", "StatefulSet", "Job", "CronJob")
CPU: Final = "20m"
"""Asked for by each container, instead of what production has: the node has few cores."""
SLOW: Final = "150m"
"""What a pod of `on-wager` may take, so that some pods do more than two on a node of two cores."""
LESS: Final = "400m"
"""What other readers may take: servers and pods share the node."""
CEILINGS: Final = {"on-wager": 10, "on-rank-change": 2, "archive": 2}
PODS_SECONDS: Final = 300.0
LAG: Final = 60_000
FRAME_SECONDS: Final = 60.0
"""For each step of the whole path: nothing is measured, and many pods share the machine."""
STOPS: Final = 40
BOARD: Final = "/v1/tournaments/{}/standings?limit=10"
BROKEN: Final = "leaderboard/query:broken"


class Told:
    """Where everything is; stands where `running.StackCommand` stands."""

    def __init__(self, settings: dict[str, str]) -> None:
        self._settings = settings

    def env(self) -> dict[str, str]:
        return self._settings

    def told(self) -> str:
        return "see the pods' logs"


class Cast(Played):
    """The pods, as the fault runner's load and its five views see them."""

    most_events = 20_000
    """The load goes on while pods start."""
    floor = 0
    """There are two of everything, whatever is played."""

    def __init__(self, folder: Path, players: Players, settings: dict[str, str]) -> None:
        super().__init__(folder, players)
        self.settings, self.outbox_url = settings, settings["OUTBOX_URL"]

    def open(self) -> None:
        """Connect. Nothing is started: all of it runs."""
        told: Any = Told(self.settings)  # asked for its settings only
        self.path = WholePath(told, self._players)
        self._opened.callback(self.path.close)
        self.redis = connect_redis(self.settings["REDIS_URL"])
        self._opened.callback(self.redis.close)
        self.board = RedisBoard(self.redis, TOMBSTONE_KEY)
        self.engine = connect_sql(load(DatabaseSettings, self.settings).url)
        self._opened.callback(self.engine.dispose)
        self.record = SqlRecord(self.engine)


@dataclass(kw_only=True)
class PodScene(Stage[Beside]):
    """The cluster with real pods on `node`."""

    node: Node
    players: Players
    absent: dict[str, str] = field(default_factory=dict)
    """Workloads that were not applied, and the image that the node has not."""

    def fitted(self, found: list[Manifest]) -> list[Manifest]:
        """For one small node, without what it has no image of."""
        for one in found:
            if lacking := [i for i in images_of(one) if not self.node.has(i)]:
                self.absent[f"{one['kind']} {one['metadata']['name']}"] = lacking[0]
        kept = [one for one in found if not self._is_absent(one)]
        for one in kept:
            fit(one)
        return kept

    def _is_absent(self, one: Manifest) -> bool:
        if one["kind"] == "ScaledObject":
            return f"Deployment {one['spec']['scaleTargetRef']['name']}" in self.absent
        return f"{one['kind']} {one['metadata']['name']}" in self.absent

    def pods(self, name: str) -> list[Manifest]:
        """Of a Deployment of ours, those that are not being ended."""
        label = f"app.kubernetes.io/name={name}"
        found = self.cluster.listed("pods", NAMESPACE, "-l", label)
        return [one for one in found if "deletionTimestamp" not in one["metadata"]]

    def cast(self) -> Cast:
        return Cast(self.folder, self.players, self.backing.settings)


def _containers(one: Manifest) -> list[Manifest]:
    spec = one.get("spec", {})
    if one["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    if one["kind"] in (*WORKLOADS, "Service"):
        found: list[Manifest] = spec.get("template", {}).get("spec", {}).get("containers", [])
        return found
    return []


def images_of(one: Manifest) -> list[str]:
    """Of the pods that it makes."""
    return [container["image"] for container in _containers(one)]


def fit(one: Manifest) -> None:
    """Change a manifest, in place, so that all pods find room on a node of two cores."""
    for container in _containers(one):
        container["resources"]["requests"]["cpu"] = CPU
    name = one["metadata"]["name"]
    if one["kind"] == "Deployment":
        _containers(one)[0]["resources"]["limits"]["cpu"] = SLOW if name == "on-wager" else LESS
    if one["kind"] == "ScaledObject" and name in CEILINGS:
        one["spec"]["maxReplicaCount"] = CEILINGS[name]
        one["spec"]["fallback"]["replicas"] = FLOOR


# --- they run ------------------------------------------------------------------------------------


def pods_run(scene: PodScene) -> str:
    """Everything is applied as docs/deploy.md says: the record is made by its Job, every pod gets
    ready by its own probes, and none is started twice."""
    started, told = time.monotonic(), list[str]()
    for folder in tree.ORDER:
        manifests = scene.manifests(folder)
        if folder == tree.ORDER[1]:
            manifests = [*tree.settings(scene.backing.given), *manifests]
        if manifests:
            told += [f"{folder}: {line}" for line in scene.cluster.apply(manifests)]
        if folder.startswith("keda/migrate"):
            until(lambda: _is_migrated(scene), PODS_SECONDS, "the record is made by its Job")
            made = time.monotonic() - started
        if folder.startswith("knative/overlays"):
            _find_services(scene)
            scene.backing.open_gateway()
    assert not told, "warnings:\n" + "\n".join(told)
    for service in SERVICES:
        scale_of(scene, service, FLOOR, PODS_SECONDS)
    scene.settle((*READERS, "relay"), FLOOR, PODS_SECONDS, "as a floor")
    took = time.monotonic() - started
    pods = scene.cluster.listed("pods", NAMESPACE, "--field-selector", "status.phase=Running")
    again = {p["metadata"]["name"]: n for p in pods if (n := restarts(p))}
    assert not again, f"started again: {again}"
    return (
        f"{len(pods)} pods of {len(READERS) + len(SERVICES) + 1} Deployments and revisions ready "
        f"after {took:.0f} s, none started twice; the record made by its Job after {made:.0f} s"
    )


def _is_migrated(scene: PodScene) -> bool | None:
    found = scene.cluster.get("job", "migrate", NAMESPACE)
    return bool(found.get("status", {}).get("succeeded")) or None


def restarts(pod: Manifest) -> int:
    statuses = pod["status"].get("containerStatuses", [])
    return sum(int(one["restartCount"]) for one in statuses)


def _find_services(scene: PodScene) -> None:
    """Where the pods of each Service's first revision are. There is no ingress: by the address of
    the revision's own Service."""
    for function in FUNCTIONS:
        if function.target is None or function.url_setting is None:
            continue
        name = f"{function.name}-00001-private"

        def look(name: str = name) -> str | None:
            try:
                found = scene.cluster.get("service", name, NAMESPACE)
            except RefusedError:
                return None
            return str(found["spec"]["clusterIP"])

        address, _ = until(look, SETTLED_SECONDS, f"Service {name} has an address")
        scene.backing.settings[function.url_setting] = f"http://{address}"


def wager_becomes_a_frame(scene: PodScene) -> str:
    """A tournament, a socket, wagers; the frame, the board, the record; its end, an erasure."""
    started = time.monotonic()
    told: Any = Told(scene.backing.settings)
    whole_path(told, scene.players, FRAME_SECONDS)
    return (
        "wagers in Kafka are frames on a socket, a board by `query` and rows of the record; the "
        f"tournament ended, its player forgotten; {time.monotonic() - started:.0f} s in all"
    )


# --- how many ------------------------------------------------------------------------------------


def lag_is_worked_off(scene: PodScene) -> str:
    """KEDA makes more of `on-wager` of real lag; those work it off, and boards and record are what
    the log comes to; then there are two again."""
    scene.settle(["on-wager"], FLOOR, SETTLED_SECONDS, "at first")
    names = [unique("lag") for _ in range(TOURNAMENTS)]
    scene.backing.play(LAG, names)
    started = time.monotonic()
    most: dict[str, int] = {"wanted": 0, "ready": 0, "working": 0}

    def look() -> bool | None:
        lag = scene.backing.lag()
        most["wanted"] = max(most["wanted"], scene.replicas("on-wager"))
        most["ready"] = max(most["ready"], scene.ready("on-wager"))
        if lag:
            most["working"] = max(most["working"], working(scene))
        return lag == 0 or None

    def decided() -> bool | None:
        look()
        return most["wanted"] > FLOOR or None

    grown = until(decided, DECIDED_SECONDS, "more than two on-wager wanted")[1]
    until(look, PODS_SECONDS, "no lag left")
    worked = time.monotonic() - started
    assert most["working"] > FLOOR, f"only {most['working']} pods ever had partitions to read"
    wrong = differences(scene, names)
    assert not wrong, "; ".join(wrong)
    scene.settle(["on-wager"], FLOOR, PODS_SECONDS, "when there is no lag")
    return (
        f"2 → {most['wanted']} decided {grown:.0f} s after {LAG:,} wagers were in; up to "
        f"{most['working']} pods shared the partitions and had worked them off after "
        f"{worked:.0f} s; {TOURNAMENTS} boards and records equal the log; then two again"
    )


def working(scene: PodScene) -> int:
    """How many members of the group hold partitions."""
    group = scene.backing.admin.describe_consumer_groups(["on-wager"])["on-wager"].result(20)
    return sum(bool(one.assignment.topic_partitions) for one in group.members)


def differences(scene: PodScene, names: Sequence[str]) -> list[str]:
    """What boards and record differ in from the log's own fold, which is made here; given time to
    come level."""
    cast = scene.cast()
    cast.open()
    try:
        keys = {name.encode() for name in names}
        log = cast.path.consumed(ev.WAGERS, lambda one: one.key in keys)
        oracle = MemoryBoard(TOMBSTONE_KEY)
        for record in log:
            entry = entry_of(record)
            key = TournamentId(str(entry.event.tournament_id))
            oracle.apply(key, "oracle", None, [entry], EVERYTHING)
        deadline = time.monotonic() + PODS_SECONDS
        while (wrong := unlike_views(cast, oracle, names)) and time.monotonic() < deadline:
            time.sleep(1)
        return wrong
    finally:
        cast.close()


def unlike_views(cast: Cast, oracle: MemoryBoard, names: Sequence[str]) -> list[str]:
    """What board and record of each say otherwise than the oracle."""
    wrong = []
    for name in map(TournamentId, names):
        mine = oracle.top(name, 10_000)
        for view, theirs in (("board", cast.board), ("record", cast.record)):
            found = theirs.top(name, 10_000)
            if mine is None or found != mine:
                wrong.append(f"{name}: {unlike(view, mine, found)}")
    return wrong[:5]


# --- what is lost --------------------------------------------------------------------------------


def pod_is_killed(scene: PodScene) -> str:
    """A pod of `on-wager` ends between what it did to boards and its commit."""
    return _undergone(scene, "kill a pod of on-wager", lambda trial: _kill(scene, trial))


def rolling_update(scene: PodScene) -> str:
    """New pods for old ones, while wagers come."""
    both = _undergone(
        scene,
        "rolling update of on-wager and archive",
        lambda trial: _roll(scene, trial, ["on-wager", "archive"]),
    )
    pushing = _undergone(
        scene,
        "rolling update of on-rank-change",
        lambda trial: _roll(scene, trial, ["on-rank-change"]),
    )
    return f"{both}. {pushing}"


def _undergone(scene: PodScene, name: str, strike: Any) -> str:
    """One trial of the fault runner: its load by Kafka, HTTP and the outbox, this in its middle;
    then log, boards, record, changes and screens say the same."""
    cast = scene.cast()
    cast.open()
    try:
        result = run_trial(cast, Fault(name, strike), random.randrange(2**31))
    finally:
        cast.close()
    assert result.is_clean, f"{result.bite}: {'; '.join(result.mismatches)}"
    return (
        f"{result.bite}; {result.events:,} events: log, boards, record, changes and screens equal "
        f"{result.recovery_seconds or 0:.0f} s after ({result.repeated_changes} changes told again)"
    )


def _kill(scene: PodScene, trial: Trial) -> str:
    """SIGKILL for a pod that has applied to boards what it has not committed: it is stopped for a
    moment, looked at, and goes on if that was not so."""
    pods = scene.pods("on-wager")
    for _ in range(STOPS):
        pod = trial.chance.choice(pods)
        pid = main_process(pod["metadata"]["uid"], "functions/on-wager/main.py")
        os.kill(pid, signal.SIGSTOP)
        if ahead := _applied_not_committed(scene, trial):
            os.kill(pid, signal.SIGKILL)
            break
        os.kill(pid, signal.SIGCONT)
        time.sleep(trial.chance.uniform(0.1, 0.4))
    else:
        raise DidNotBiteError(f"no pod was found in mid-batch in {STOPS} stops")
    name = pod["metadata"]["name"]

    def look() -> bool | None:
        (now,) = [one for one in scene.pods("on-wager") if one["metadata"]["name"] == name]
        return (restarts(now) > restarts(pod) and scene.ready("on-wager") == len(pods)) or None

    back = until(look, SETTLED_SECONDS, f"{name} is started again, and ready")[1]
    return (
        f"SIGKILL with {ahead} events applied and not committed; started again by the kubelet and "
        f"ready after {back:.0f} s"
    )


def _applied_not_committed(scene: PodScene, trial: Trial) -> int:
    """Of tournaments whose board stands still, how many events their boards are ahead of the
    group's commit."""
    before, ahead = trial.boards(), 0
    time.sleep(0.3)
    committed = scene.backing.committed()
    partitions = max(number for _, number in committed) + 1
    for name, at in trial.boards().items():
        next_one = committed[ev.WAGERS, partition_of(name.encode(), partitions)]
        if before[name] == at >= next_one:
            ahead += at - next_one + 1
    return ahead


def _roll(scene: PodScene, trial: Trial, names: Sequence[str]) -> str:
    old = {one["metadata"]["uid"] for name in names for one in scene.pods(name)}
    placed, started = sum(trial.play.placed.values()), time.monotonic()
    for name in names:
        scene.cluster("rollout", "restart", f"deployment/{name}", "-n", NAMESPACE)

    def look() -> bool | None:
        pods = [one for name in names for one in scene.pods(name)]
        all_new = not old & {one["metadata"]["uid"] for one in pods}
        return (all_new and all(scene.ready(name) == FLOOR for name in names)) or None

    until(look, PODS_SECONDS, f"new pods of {', '.join(names)}")
    came = sum(trial.play.placed.values()) - placed
    if not came:
        raise DidNotBiteError("nothing came meanwhile")
    return (
        f"{len(old)} pods of {' and '.join(names)} replaced in {time.monotonic() - started:.0f} s "
        "under load"
    )


# --- versions ------------------------------------------------------------------------------------


def broken_revision_is_taken_back(scene: PodScene) -> str:
    """`leaderboard rollout` with an image that gets ready and fails every third read: its check,
    reads of its own pods, says so at 10 %, and the old revision has everything again; then a sound
    image goes all the way."""
    assert scene.node.has(BROKEN), f"the node has no {BROKEN}: see tests/cluster/broken"
    cast = scene.cast()
    cast.open()
    try:
        board = unique("rollout")
        cast.path.publish([schedule(board), wager(board, "alice", 500)])
        path = BOARD.format(board)
        until(lambda: cast.path.get(path).status_code == 200 or None, 30, "a board to read")
        token = cast.path.token("operator")
    finally:
        cast.close()
    check = f"{sys.executable} {Path(__file__).with_name('reads.py')}"
    told = {
        "KUBECONFIG": scene.cluster.kubeconfig, "NAMESPACE": NAMESPACE,
        "BOARD": path, "TOKEN": token,
    }  # fmt: skip
    words = ["rollout", "query", "-n", NAMESPACE, "--kubectl", releases.AS_DEPLOYER]
    words += ["--watch", "3", "--check", check]
    old = releases.serving(scene)
    failed = command([*words, BROKEN], scene.folder, told)
    said = (failed.stderr.strip().splitlines() or ["nothing"])[-1]
    assert failed.returncode == 1 and "the check failed at 10 %" in said, failed.stdout + said
    until(lambda: releases.serving(scene) == old or None, 30, f"{old} has everything again")
    (image,) = [one for one in images_of(_service(scene)) if one == BROKEN]
    sound = f"docker.io/leaderboard/query:{_version(scene)}"
    done = command([*words, sound], scene.folder, told)
    assert done.returncode == 0, done.stdout + done.stderr
    until(lambda: releases.serving(scene) not in (old, {}) or None, 30, "it has everything")
    return f"{image}: “{said}”; a sound image passed 0, 10, 50 and 100 % with 160 reads"


def _service(scene: PodScene) -> Manifest:
    return scene.cluster.get("services.serving.knative.dev", "query", NAMESPACE)


def _version(scene: PodScene) -> str:
    (image,) = images_of(scene.manifest("knative/overlays/production", "Service", "query"))
    return image.rpartition(":")[2]


def ready_for(node: Node) -> None:
    """Raises NotThisClusterError where the node lacks images of functions."""
    wanted = sorted({f"leaderboard/{one.folder}" for one in FUNCTIONS})
    names = {image.removeprefix("docker.io/").rpartition(":")[0] for image in node.images}
    if lacking := [one for one in wanted if one not in names]:
        raise NotThisClusterError(
            f"PODS: node {node.name} has no image {', '.join(lacking)}: `make images`, then "
            "`docker save` and `ctr -n k8s.io images import`"
        )
