"""`make cluster-test` without a cluster: which it refuses, what it applies, and that each of its
faults bites. What a cluster makes of it is shown by the command itself, see docs/deploy.md."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cluster import pods, scaling, tree
from cluster.__main__ import NEEDED, POD_TRIALS, TRIALS, emptied
from cluster.api import Cluster, NotThisClusterError, chosen, held, until
from cluster.faults import FAULTS, POD_FAULTS
from cluster.node import STAND_IN, Node, main_process, own_node
from cluster.scene import Stage
from deploy.checking import ROOT
from deploy.checking.building import Built
from faults.scene import TOMBSTONE_KEY
from faults.views import EVERYTHING
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, TournamentId
from whole_path import schedule, wager

GIVEN = tree.Settings(
    kafka="127.0.0.1:9",
    password="one of the test's",
    authority="a certificate",
    redis_url="redis://127.0.0.1:9",
    database_url="postgresql://somebody@127.0.0.1:9/leaderboard",
    outbox_url="postgresql://somebody@127.0.0.1:9/game",
    tombstone_key="k" * 32,
    more={"JWT_ISSUER": "http://127.0.0.1:9"},
)


@pytest.fixture(scope="module")
def built() -> Mapping[str, Built]:
    return tree.built()


def kubeconfig(folder: Path, server: str) -> str:
    path = folder / "kubeconfig"
    config = {
        "current-context": "one",
        "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
    }
    path.write_text(yaml.safe_dump(config), "utf-8")
    return str(path)


# --- which cluster -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "server", ["https://127.0.0.1:16443", "https://[::1]:1", "http://localhost"]
)
def test_a_cluster_of_this_machine_is_taken(tmp_path: Path, server: str) -> None:
    path = kubeconfig(tmp_path, server)
    assert chosen({"KUBECONFIG": path}) == path


@pytest.mark.parametrize("server", ["https://10.0.0.1:6443", "https://boards.example.com", "1"])
def test_another_one_only_if_somebody_says_so(tmp_path: Path, server: str) -> None:
    path = kubeconfig(tmp_path, server)
    with pytest.raises(NotThisClusterError, match="set CLUSTER_TEST_ANY=1 if"):
        chosen({"KUBECONFIG": path})
    with pytest.raises(NotThisClusterError, match="is not on this machine"):
        chosen({"KUBECONFIG": path, "CLUSTER_TEST_ANY": "yes"})
    assert chosen({"KUBECONFIG": path, "CLUSTER_TEST_ANY": "1"}) == path


def test_no_cluster_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(NotThisClusterError, match="KUBECONFIG is not set"):
        chosen({})
    missing = tmp_path / "none"
    with pytest.raises(NotThisClusterError, match=f"KUBECONFIG: {missing} can't be read"):
        chosen({"KUBECONFIG": str(missing)})
    empty = tmp_path / "empty"
    empty.write_text("{}", "utf-8")
    with pytest.raises(NotThisClusterError, match="no current context"):
        chosen({"KUBECONFIG": str(empty)})


def test_the_command_says_why_it_does_nothing() -> None:
    environ = {name: text for name, text in os.environ.items() if name != "KUBECONFIG"}
    done = subprocess.run(
        [sys.executable, "-m", "cluster"], env={**environ, "PYTHONPATH": str(ROOT / "tests")},
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: KUBECONFIG is not set")


def kubectl(folder: Path, labels: Mapping[str, str]) -> Cluster:
    """A `kubectl` that knows two namespaces until it is told to delete them."""
    state = folder / "gone"
    namespace = json.dumps({"metadata": {"labels": dict(labels)}})
    program = folder / "kubectl"
    lines = [
        "#!/bin/sh",
        f'if [ "$1" = delete ]; then touch {state}; fi',
        f"if [ ! -e {state} ]; then echo '{namespace}'; fi",
    ]
    program.write_text("\n".join(lines), "utf-8")
    program.chmod(0o755)
    return Cluster("/dev/null", str(program))


def test_namespaces_of_somebody_are_left_alone(tmp_path: Path) -> None:
    cluster = kubectl(tmp_path, {"app": "theirs"})
    with (
        pytest.raises(NotThisClusterError, match="namespace leaderboard is there, and not of this"),
        emptied(cluster),
    ):
        raise AssertionError("got in")
    assert not (tmp_path / "gone").exists()


def test_what_a_run_before_left_is_deleted(tmp_path: Path) -> None:
    with emptied(kubectl(tmp_path, {tree.MARK: "true"})):
        assert (tmp_path / "gone").exists()


# --- what is applied -----------------------------------------------------------------------------


def test_all_of_production_is_applied(built: Mapping[str, Built]) -> None:
    assert set(tree.ORDER) == {one for one in built if "development" not in one}


def test_all_that_is_made_is_deleted_again(built: Mapping[str, Built]) -> None:
    """With the namespaces, or by name."""
    loose = [
        one
        for folder in tree.ORDER
        for one in built[folder].manifests
        if one["metadata"].get("namespace") not in (tree.NAMESPACE, tree.DATA)
        and one["kind"] != "Namespace"
    ]
    assert {one["kind"] for one in loose} <= {*tree.OF_NO_NAMESPACE}
    for one in loose:
        assert one["metadata"]["labels"]["app.kubernetes.io/part-of"] == "leaderboard"


def test_only_foreign_kinds_that_the_cluster_has_not_are_left_out() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"}}
    topic = {"apiVersion": "kafka.strimzi.io/v1", "kind": "KafkaTopic", "metadata": {"name": "t"}}
    scaled = {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {"name": "s"}}
    every: list[dict[str, Any]] = [pod, role, topic, scaled]
    assert tree.known(every, [("keda.sh", "ScaledObject")]) == (
        [pod, role, scaled],
        [("KafkaTopic.kafka.strimzi.io", "t")],
    )


def test_every_value_of_the_settings_is_filled_in() -> None:
    found = {one["metadata"]["name"]: one for one in tree.settings(GIVEN)}
    assert "web-pubsub" not in found
    assert found["leaderboard"]["stringData"] == {"TOMBSTONE_KEY": "k" * 32}
    assert found["kafka-on-wager"]["stringData"]["password"] == GIVEN.password
    assert found["kafka-ca"]["stringData"]["ca.crt"] == GIVEN.authority
    assert {one["metadata"]["namespace"] for one in found.values()} == {"leaderboard"}


def test_only_what_is_said_differs_from_the_tree(built: Mapping[str, Built]) -> None:
    for folder in tree.ORDER:
        before = built[folder].manifests
        after = list(tree.prepared(before, "http://127.0.0.1:9"))
        for was, now in zip(before, after, strict=True):
            if was["kind"] == "Namespace":
                assert now["metadata"]["labels"].pop(tree.MARK) == "true"
            if was["kind"] == "ScaledObject":
                path = ("spec", "advanced", "horizontalPodAutoscalerConfig", "behavior")
                was, now = copy.deepcopy(was), copy.deepcopy(now)  # noqa: PLW2901
                for one in (was, now):
                    behavior = one
                    for name in path:
                        behavior = behavior[name]
                    del behavior["scaleDown"]
                    for trigger in one["spec"]["triggers"]:
                        url = trigger["metadata"].get("url", "")
                        if "/internal/" in url:
                            trigger["metadata"]["url"] = url[url.index("/internal/") :]
            assert now == was


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "trials"),
    [*((one, TRIALS) for one in FAULTS), *((one, POD_TRIALS) for one in POD_FAULTS)],
)
def test_each_fault_changes_one_manifest_and_names_a_trial(
    fault: Any, trials: Mapping[str, Any], built: Mapping[str, Built]
) -> None:
    assert fault.found_by in trials
    changed = []
    for folder in tree.ORDER:
        for one in copy.deepcopy(built[folder].manifests):
            before = copy.deepcopy(one)
            fault.edit(one)
            if one != before:
                changed.append(f"{one['kind']} {one['metadata']['name']}")
    assert len(changed) == 1, changed


def test_what_others_stand_on_comes_first() -> None:
    first = [one for one in NEEDED if one in TRIALS]
    assert list(TRIALS)[: len(first)] == first
    assert next(iter(POD_TRIALS)) in NEEDED


# --- waiting -------------------------------------------------------------------------------------


def test_waiting_fails_with_what_it_waits_for() -> None:
    assert until(lambda: 3, 1, "a number")[0] == 3
    with pytest.raises(AssertionError, match="a number: not within 0 s"):
        until(lambda: None, 0, "a number")


def test_deployments_that_are_not_as_wanted_are_told_apart_from_the_others(
    tmp_path: Path, built: Mapping[str, Built]
) -> None:
    """A fault of one is found by a trial of several: by its words one sees that it was this one."""
    program = tmp_path / "kubectl"
    counts = """\
#!/bin/sh
case "$3" in on-wager) wanted=10; ready=10;; relay) wanted=10; ready=9;; *) wanted=2; ready=2;; esac
echo '{"spec": {"replicas": '$wanted'}, "status": {"readyReplicas": '$ready'}}'
"""
    program.write_text(counts, "utf-8")
    program.chmod(0o755)
    backing: Any = SimpleNamespace()
    scene: Stage[Any] = Stage(Cluster("/dev/null", str(program)), backing, built, tmp_path)
    assert scene.settle(["on-wager"], 10, 0, "here") >= 0
    with pytest.raises(AssertionError) as failed:
        scene.settle(["on-wager", "relay", "archive"], 10, 0, "here")
    assert str(failed.value) == (
        "on-wager, relay, archive: 10 replicas here: not within 0 s "
        "(relay has 9 ready of 10 wanted; archive has 2 ready of 2 wanted)"
    )


@pytest.mark.parametrize(
    ("fallback", "active", "blind"),
    [("False", "True", False), ("False", "False", True), ("True", "True", True)],
)
def test_a_blind_keda_is_known_by_what_the_autoscaler_gets(
    fallback: str, active: str, blind: bool, tmp_path: Path, built: Mapping[str, Built]
) -> None:
    """Not by READY, which KEDA leaves as it was while it can't connect."""
    scaled = [{"type": "Ready", "status": "True"}, {"type": "Fallback", "status": fallback}]
    autoscaler = [
        {"type": "AbleToScale", "status": "True"},
        {"type": "ScalingActive", "status": active},
        {"type": "ScalingLimited", "status": "False"},
    ]
    found = {"scaledobject": scaled, "hpa": autoscaler}
    for kind, conditions in found.items():
        (tmp_path / kind).write_text(json.dumps({"status": {"conditions": conditions}}), "utf-8")
    program = tmp_path / "kubectl"
    program.write_text(f'#!/bin/sh\ncat "{tmp_path}/$2"\n', "utf-8")
    program.chmod(0o755)
    backing: Any = SimpleNamespace()
    scene: Stage[Any] = Stage(Cluster("/dev/null", str(program)), backing, built, tmp_path)
    assert scaling.is_blind(scene) is blind


def test_holding_fails_as_soon_as_it_does_not() -> None:
    held(lambda: True, 0.1, "truth")
    with pytest.raises(AssertionError, match="truth: after 0 s it did not hold"):
        held(lambda: False, 1, "truth")


# --- real pods -----------------------------------------------------------------------------------


def nodes(folder: Path, *found: dict[str, Any]) -> Cluster:
    """A `kubectl` that knows these nodes."""
    program = folder / "kubectl"
    program.write_text(f"#!/bin/sh\ncat <<'E'\n{json.dumps({'items': found})}\nE\n", "utf-8")
    program.chmod(0o755)
    return Cluster("/dev/null", str(program))


def a_node(address: str, *images: str, **notes: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "n", "annotations": notes},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}],
            "images": [{"names": [one]} for one in images],
        },
    }


def test_pods_are_real_on_one_node_that_is_this_machine(tmp_path: Path) -> None:
    ours = a_node("127.0.0.1", "docker.io/leaderboard/query:0.1.0")
    # An image whose tag went to a newer one stays, and has no name.
    ours["status"]["images"].append({"names": None, "sizeBytes": 1})
    found = own_node(nodes(tmp_path, ours))
    assert found.address == "127.0.0.1"
    assert found.has("leaderboard/query:0.1.0")
    assert not found.has("leaderboard/query:0.2.0")
    with pytest.raises(NotThisClusterError, match="one node is wanted, and the cluster has 2"):
        own_node(nodes(tmp_path, ours, ours))
    with pytest.raises(NotThisClusterError, match="which is no address of this mach"):
        own_node(nodes(tmp_path, a_node("192.0.2.1")))
    stand_in = a_node("127.0.0.1", **{STAND_IN: "fake"})
    with pytest.raises(NotThisClusterError, match="node n is a stand-in and runs nothing"):
        own_node(nodes(tmp_path, stand_in))
    with pytest.raises(NotThisClusterError, match="has no image leaderboard/archive, leaderboard/"):
        pods.ready_for(found)


def test_a_process_is_found_by_its_pod_and_its_command() -> None:
    with pytest.raises(AssertionError, match="pod 1-2 has no process"):
        main_process("1-2", "main.py")


def test_real_pods_are_as_the_tree_says_but_for_what_a_small_node_has(
    built: Mapping[str, Built],
) -> None:
    """Room asked for, how fast readers are, how many there may be: nothing else."""
    changed = set()
    for folder in tree.ORDER:
        for was in built[folder].manifests:
            now = copy.deepcopy(was)
            pods.fit(now)
            changed |= {path for path, *_ in _changes(was, now)}
    assert {path.rpartition(" ")[2] for path in changed} == {
        *("resources.requests.cpu", "resources.limits.cpu"),
        *("spec.maxReplicaCount", "spec.fallback.replicas"),
    }
    slowed = {path.split(" ")[0] for path in changed if "limits" in path}
    assert slowed == {"Deployment"}


def test_a_board_or_a_record_that_lost_one_wager_is_told() -> None:
    name = TournamentId("cup")
    events = [schedule(name), wager(name, "alice", 500), wager(name, "bob", 250)]
    entries = [LogEntry(Offset(n), one.time_ms, one) for n, one in enumerate(events)]
    whole, short = MemoryBoard(TOMBSTONE_KEY), MemoryBoard(TOMBSTONE_KEY)
    whole.apply(name, "a", None, entries, EVERYTHING)
    short.apply(name, "a", None, entries[:-1], EVERYTHING)
    cast: Any = SimpleNamespace(board=whole, record=whole)
    assert pods.unlike_views(cast, whole, [name]) == []
    cast.record = short
    assert pods.unlike_views(cast, whole, [name]) == ["cup: record at 1, the log at 2"]
    cast.board, cast.record = short, whole
    assert pods.unlike_views(cast, whole, [name]) == ["cup: board at 1, the log at 2"]
    assert len(pods.unlike_views(cast, whole, [name, TournamentId("none")])) == 3


def _changes(was: Any, now: Any, place: str = "", of: str = "") -> list[tuple[str]]:
    """Kind, name and path of each value that differs; a path within a container is its own."""
    if isinstance(was, dict) and isinstance(now, dict):
        of = of or f"{was['kind']} {was['metadata']['name']}"
        keys = was.keys() | now.keys()
        return [
            one
            for key in keys
            for one in _changes(was.get(key), now.get(key), f"{place}.{key}".lstrip("."), of)
        ]
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        inner = "" if place.endswith("containers") else place
        return [one for a, b in zip(was, now, strict=True) for one in _changes(a, b, inner, of)]
    return [] if was == now else [(f"{of} {place}",)]


def test_faults_are_put_into_what_a_small_node_is_given(built: Mapping[str, Built]) -> None:
    """Not the other way round: a fault that is overwritten is found by nobody."""
    (fault,) = [one for one in POD_FAULTS if one.name == "a ceiling of two"]
    images = {image for b in built.values() for m in b.manifests for image in pods.images_of(m)}
    node = Node("n", "127.0.0.1", frozenset(images))
    backing: Any = SimpleNamespace(settings={"TOURNAMENT_URL": "http://127.0.0.1:1"})
    cluster: Any = SimpleNamespace(kinds=lambda: {("keda.sh", "ScaledObject")})
    scene = pods.PodScene(cluster, backing, built, Path(), [fault.edit], node=node, players=backing)
    found = scene.manifest("keda/overlays/production", "ScaledObject", "on-wager")
    assert found["spec"]["maxReplicaCount"] == 2
    other = scene.manifest("keda/overlays/production", "Deployment", "archive")
    assert other["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] == (
        pods.CPU
    )
    bare = Node("n", "127.0.0.1", frozenset(one for one in images if "on-wager" not in one))
    scene = pods.PodScene(cluster, backing, built, Path(), node=bare, players=backing)
    names = [
        (m["kind"], m["metadata"]["name"]) for m in scene.manifests("keda/overlays/production")
    ]
    assert ("Deployment", "archive") in names
    assert not {("Deployment", "on-wager"), ("ScaledObject", "on-wager")} & set(names)
    assert list(scene.absent) == ["Deployment on-wager"]
