"""`make cluster-test`: fills the cluster in KUBECONFIG, tries it, empties it, prints a table.

    KUBECONFIG=/path make cluster-test               # all trials, about 9 minutes
    KUBECONFIG=/path make cluster-test ONLY=lag      # those whose names hold a word
    KUBECONFIG=/path make cluster-test BROKEN=all    # each fault put into the manifests is found
    KUBECONFIG=/path make cluster-test PODS=1        # our images in real pods, on their node

Namespaces of the manifests' names are made and deleted; ones that are there and not from a run
before are a reason to do nothing. Ends with 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from cluster import pods, releases, scaling, tree
from cluster.api import Cluster, NotThisClusterError, RefusedError, chosen, until
from cluster.backing import backing
from cluster.beside import beside
from cluster.faults import FAULTS, POD_FAULTS, Fault
from cluster.node import own_node
from cluster.pods import PodScene
from cluster.scene import Scene, Stage
from cluster.tree import DATA, MARK, NAMESPACE
from sockets import Players

TRIALS: Final[Mapping[str, Callable[[Scene], str]]] = {
    "everything is applied": scaling.everything_is_applied,
    "floors stand": scaling.floors_stand,
    "the token does no more": releases.token_does_no_more,
    "a tournament lifts floors": scaling.tournament_lifts_floors,
    "a rollout goes on and back": releases.rollout_goes_on_and_back,
    "faults are told": releases.faults_are_told,
    "functions tell their faults": releases.functions_tell_their_faults,
    "lag moves on-wager": scaling.lag_moves_on_wager,
    "a blind KEDA keeps what runs": scaling.blind_keda_keeps_what_runs,
}
POD_TRIALS: Final[Mapping[str, Callable[[PodScene], str]]] = {
    "pods run": pods.pods_run,
    "a wager becomes a frame": pods.wager_becomes_a_frame,
    "lag is worked off": pods.lag_is_worked_off,
    "a pod is killed in mid-batch": pods.pod_is_killed,
    "a rolling update under load": pods.rolling_update,
    "a broken revision is taken back": pods.broken_revision_is_taken_back,
}
NEEDED: Final = ("everything is applied", "floors stand", "pods run")
GONE_SECONDS: Final = 180.0


@contextmanager
def emptied(cluster: Cluster) -> Iterator[None]:
    """The cluster without our namespaces, before and after. Raises NotThisClusterError where one
    is somebody's."""
    names = (NAMESPACE, DATA)
    for name in names:
        done = cluster.call("get", "namespace", name, "-o", "json")
        if done.returncode == 0 and MARK not in json.loads(done.stdout)["metadata"]["labels"]:
            raise NotThisClusterError(
                f"namespace {name} is there, and not of this test: delete it by hand if it may go"
            )
    _delete(cluster, names)
    try:
        yield
    finally:
        _delete(cluster, names)


def _delete(cluster: Cluster, names: tuple[str, ...]) -> None:
    cluster("delete", "namespace", *names, "--ignore-not-found", "--wait=false")
    for kind in tree.OF_NO_NAMESPACE:
        # A cluster without the kind has none of it.
        cluster.call("delete", kind, "-l", "app.kubernetes.io/part-of=leaderboard")

    def look() -> bool | None:
        done = cluster("get", "namespace", *names, "--ignore-not-found", "-o", "name")
        return not done.strip() or None

    until(look, GONE_SECONDS, f"namespaces {', '.join(names)} are gone")


def server_of(cluster: Cluster) -> tuple[str, str]:
    """The API's address, and who signed its certificate (PEM)."""
    shown = cluster("config", "view", "--minify", "--raw", "--flatten", "-o", "json")
    found: dict[str, Any] = json.loads(shown)["clusters"][0]["cluster"]
    return found["server"], base64.b64decode(found["certificate-authority-data"]).decode()


Staged = TypeVar("Staged", bound=Stage[Any])


def tried(
    scene: Staged, trials: Mapping[str, Callable[[Staged], str]], names: list[str]
) -> list[tuple[str, str, bool]]:
    """Name, words and outcome of each trial; what all others stand on ends the run."""
    rows: list[tuple[str, str, bool]] = []
    for name in names:
        started = time.monotonic()
        print(f"{name} …", flush=True)
        try:
            said, is_well = trials[name](scene), True
        except (AssertionError, RefusedError) as error:
            said, is_well = str(error), False
        took = time.monotonic() - started
        print(f"{'ok' if is_well else 'FAILED'} ({took:.0f} s): {said}", flush=True)
        rows.append((name, said, is_well))
        if not is_well and name in NEEDED:
            break
    return rows


def run(cluster: Cluster, names: list[str], fault: Fault | None) -> list[tuple[str, str, bool]]:
    """The trials on an empty cluster, with a fault or without."""
    with emptied(cluster), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)  # PostgreSQL is another user
        with backing(folder, *server_of(cluster)) as behind:
            edits = [] if fault is None else [fault.edit]
            scene = Scene(cluster, behind, tree.built(), folder, edits)
            rows = tried(scene, TRIALS, names)
            _tell_what_is_left(scene)
            return rows


def run_with_pods(
    cluster: Cluster, names: list[str], fault: Fault | None
) -> list[tuple[str, str, bool]]:
    """The same where pods are real, and this machine is their node."""
    node = own_node(cluster)
    pods.ready_for(node)
    players = Players()
    try:
        with emptied(cluster), tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o711)  # PostgreSQL and nginx's worker are other users
            with beside(folder, node.address) as behind:
                edits = [] if fault is None else [fault.edit]
                scene = PodScene(
                    cluster, behind, tree.built(), folder, edits, node=node, players=players
                )
                rows = tried(scene, POD_TRIALS, names)
                _tell_what_is_left(scene)
                for absent, image in scene.absent.items():
                    print(f"not applied, the node has no image {image}: {absent}")
                return rows
    finally:
        players.stop()


def _tell_what_is_left(scene: Stage[Any]) -> None:
    for kind, left in scene.left.items():
        print(f"not applied, no such kind here: {kind}: {', '.join(sorted(left))}")


def broken(cluster: Cluster, wanted: str, *, real: bool) -> int:
    """Each fault (or the one that is named) has to make its trial fail."""
    missed = []
    chosen_ones = [one for one in (POD_FAULTS if real else FAULTS) if wanted in ("all", one.name)]
    if not chosen_ones:
        print(f"error: BROKEN: no fault is called {wanted!r}", file=sys.stderr)
        return 1
    for fault in chosen_ones:
        print(f"--- {fault.name}, to be found by: {fault.found_by}", flush=True)
        trials = POD_TRIALS if real else TRIALS
        names = [one for one in trials if one in (*NEEDED, fault.found_by)]
        last, said, is_well = (run_with_pods if real else run)(cluster, names, fault)[-1]
        if is_well or last != fault.found_by:
            missed.append(f"{fault.name}: not found ({last}: {said})")
    for one in missed:
        print(one, file=sys.stderr)
    return 1 if missed else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="cluster-test")
    parser.add_argument("--only", default="", help="a word of the names of trials")
    parser.add_argument("--broken", help="a fault's name, or all")
    parser.add_argument("--pods", action="store_true", help="real ones, on this machine")
    asked: Any = parser.parse_args(arguments)
    trials = POD_TRIALS if asked.pods else TRIALS
    names = [one for one in trials if one in NEEDED or asked.only in one]
    try:
        cluster = Cluster(chosen(os.environ))
        if asked.broken:
            return broken(cluster, asked.broken, real=asked.pods)
        rows = (run_with_pods if asked.pods else run)(cluster, names, None)
    except NotThisClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n| trial | outcome | seen |\n|---|---|---|")
    for name, said, is_well in rows:
        print(f"| {name} | {'ok' if is_well else 'FAILED'} | {' '.join(said.split())} |")
    return 0 if all(is_well for _, _, is_well in rows) and len(rows) == len(names) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
