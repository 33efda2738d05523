"""How many there are of each: as a floor, by lag, while KEDA is blind, and before a tournament.

Each trial returns what it measured, in words for a table, and fails by an AssertionError that says
what was seen instead."""

from __future__ import annotations

import time
from typing import Any, Final

from cluster import tree
from cluster.api import held, until
from cluster.backing import LEAD_MINUTES, RAISED
from cluster.scene import READERS, SETTLED_SECONDS, Scene, Stage
from cluster.tree import NAMESPACE
from leaderboard import prewarming
from leaderboard.prewarming import MIN_SCALE

SERVICES: Final = (*RAISED, "erase", "tournament")
FLOOR, WANTED, CEILING = 2, 10, 50
DECIDED_SECONDS: Final = 30.0
HELD_SECONDS: Final = 60.0
LAG: Final = 60_000
TOURNAMENTS: Final = 60


# --- everything is taken -------------------------------------------------------------------------


def everything_is_applied(scene: Scene) -> str:
    """Every overlay of production, with nothing that the API or a webhook warns of; those of
    development are put to it without being kept."""
    forgotten = {one for one in scene.built if "development" not in one} - set(tree.ORDER)
    assert not forgotten, f"not applied by this test: {sorted(forgotten)}"
    told, count = _tried_only(scene), 0
    for folder in tree.ORDER:
        manifests = scene.manifests(folder)
        if folder == tree.ORDER[1]:
            manifests = [*tree.settings(scene.backing.given), *manifests]
        if manifests:
            told += [f"{folder}: {line}" for line in scene.cluster.apply(manifests)]
        count += len(manifests)
    assert not told, "warnings:\n" + "\n".join(told)
    return f"{count} objects, no warning"


def _tried_only(scene: Scene) -> list[str]:
    """Warnings of what is for development: put to the API as long as nothing else is there, and not
    kept, but for the namespaces, which are the same."""
    told: list[str] = []
    others = sorted(scene.built.keys() - set(tree.ORDER))
    manifests = {folder: scene.manifests(folder) for folder in others}
    scene.cluster.apply([m for one in manifests.values() for m in one if m["kind"] == "Namespace"])
    for folder, found in manifests.items():
        if found:
            lines = scene.cluster.apply(found, "--dry-run=server")
            told += [f"{folder}: {line}" for line in lines]
    return told


def floors_stand(scene: Scene) -> str:
    """KEDA reads Kafka as each function's user, by SCRAM and TLS; two of everything are ready."""
    scene.backing.take_token(scene.cluster)
    started = time.monotonic()
    for name in READERS:
        _reads(scene, name)
    scene.settle(READERS, FLOOR, SETTLED_SECONDS, "as a floor")
    for service in SERVICES:
        scale_of(scene, service, FLOOR, SETTLED_SECONDS)
    took = time.monotonic() - started
    return (
        f"{len(READERS)} ScaledObjects, {len(SERVICES)} Services with two each after {took:.0f} s"
    )


def scale_of(scene: Stage[Any], service: str, replicas: int, seconds: float) -> float:
    """Wait until the Knative Service's only revision has so many pods; the seconds that took."""

    def look() -> bool | None:
        label = f"serving.knative.dev/service={service}"
        found = scene.cluster.listed("deployments", NAMESPACE, "-l", label)
        counts = [int(one["status"].get("readyReplicas") or 0) for one in found]
        return counts == [replicas] or None

    return until(look, seconds, f"{service}: {replicas} pods of its revision")[1]


def _reads(scene: Scene, name: str) -> None:
    """KEDA gets what it asks for, and does not have to fall back."""

    def look() -> bool | None:
        said = (scene.condition(name)[0], scene.condition(name, "Fallback")[0])
        return said == ("True", "False") or None

    until(look, SETTLED_SECONDS, f"ScaledObject {name} is ready without falling back")


# --- lag -----------------------------------------------------------------------------------------


def lag_moves_on_wager(scene: Scene) -> str:
    """2 → 50 on real lag of 50 partitions, and back when our own consumer has worked it off."""
    grown = _grow(scene)
    scene.backing.resume_on_wager()
    worked = until(lambda: scene.backing.lag() == 0 or None, SETTLED_SECONDS, "no lag left")[1]
    down = scene.settle(["on-wager"], FLOOR, SETTLED_SECONDS, "when there is no lag")
    return (
        f"2 → 50 decided {grown:.0f} s after {LAG:,} wagers were in; worked off in {worked:.0f} s; "
        f"→ 2 after {down:.0f} s more (windows of {tree.DOWN_SECONDS} s instead of 300)"
    )


def _grow(scene: Scene) -> float:
    """50 replicas by lag, `on-wager` paused; the seconds until that was decided."""
    scene.settle(["on-wager"], FLOOR, SETTLED_SECONDS, "at first")
    scene.backing.pause_on_wager()
    scene.backing.play(LAG, [f"lag-{n}" for n in range(TOURNAMENTS)])
    took = until(
        lambda: scene.replicas("on-wager") == CEILING or None, DECIDED_SECONDS, "50 on-wager wanted"
    )[1]
    scene.settle(["on-wager"], CEILING, SETTLED_SECONDS, "ready")
    return took


def blind_keda_keeps_what_runs(scene: Scene) -> str:
    """With no way to Kafka KEDA takes nothing away, though there is no lag; where it may not know
    the lag any more, two become ten."""
    _grow(scene)
    cut = scene.backing.link.cut()
    try:
        scene.backing.resume_on_wager()
        until(lambda: scene.backing.lag() == 0 or None, SETTLED_SECONDS, "no lag left")
        noticed = until(lambda: is_blind(scene) or None, HELD_SECONDS, "KEDA notices")[1]
        held(lambda: scene.replicas("on-wager") >= CEILING, HELD_SECONDS, "50 on-wager kept")
        assert is_blind(scene), "KEDA has found another way to Kafka"
    finally:
        scene.backing.link.resume()
    scene.settle(["on-wager"], FLOOR, SETTLED_SECONDS, "when KEDA sees again")
    scene.backing.take_rights("on-wager")
    try:
        ten = scene.settle(["on-wager"], WANTED, SETTLED_SECONDS, "of a KEDA that may not see")
    finally:
        scene.backing.give_rights()
    scene.settle(["on-wager"], FLOOR, SETTLED_SECONDS, "when KEDA may see again")
    return (
        f"{cut} connections cut: noticed {noticed:.0f} s after the lag was gone, 50 kept for "
        f"{HELD_SECONDS:.0f} s more; without the right to know the lag 2 → 10 after {ten:.0f} s"
    )


def is_blind(scene: Scene) -> bool:
    """Whether the autoscaler gets no number of `on-wager`, or the fallback's.

    A ScaledObject's Ready does not tell: as long as KEDA can't so much as connect, it writes
    nothing there, and what it wrote last stays, be it True."""
    if scene.condition("on-wager", "Fallback")[0] == "True":
        return True
    conditions = scene.cluster.get("hpa", "keda-hpa-on-wager", NAMESPACE)["status"]["conditions"]
    return ("ScalingActive", "False") in ((one["type"], one["status"]) for one in conditions)


# --- floors --------------------------------------------------------------------------------------


def tournament_lifts_floors(scene: Scene) -> str:
    """A lead before a start there are ten of everything, and two again when it is over."""
    lead, early = LEAD_MINUTES * 60, 45.0
    scene.backing.schedule(starts_in=lead + early, lasts=60)
    until(lambda: scene.backing.lag() == 0 or None, 20, "the schedule is read")
    held(lambda: _floors(scene) == {FLOOR}, early - 15, "no floor before its time")
    serving = _pods(scene)
    until(lambda: scene.backing.floor("query") == WANTED or None, 60, "a floor of ten")
    readers = scene.settle(READERS, WANTED, lead, "before the start")
    services = max(scale_of(scene, one, WANTED, lead) for one in RAISED)
    assert serving <= _pods(scene), "pods that served were replaced to raise a floor"
    until(lambda: scene.backing.floor("query") == FLOOR or None, 2 * lead + 60, "it is over")
    down = scene.settle(READERS, FLOOR, SETTLED_SECONDS, "when it is over")
    # Their pods go by Knative's own measure of requests, which stand-ins do not give.
    own = until(lambda: _own_floors(scene) or None, SETTLED_SECONDS, "revisions get theirs back")[1]
    return (
        f"a lead of {lead} s instead of 1,800: ten ready after {readers:.0f} s (Deployments) and "
        f"{readers + services:.0f} s (revisions, no pod replaced); after its end two again after "
        f"{down:.0f} s, the revisions' own floors after {down + own:.0f} s"
    )


def _pods(scene: Scene) -> set[str]:
    """Those of the Services whose revisions are raised, by an id that no other pod gets."""
    label = f"serving.knative.dev/service in ({','.join(RAISED)})"
    return {one["metadata"]["uid"] for one in scene.cluster.listed("pods", NAMESPACE, "-l", label)}


def _floors(scene: Scene) -> set[int]:
    return {scene.replicas(one) for one in READERS}


def _own_floors(scene: Scene) -> bool:
    """Whether nothing is left of ours on the revisions."""
    notes = [m["metadata"]["annotations"] for one in RAISED for m in scene.revisions(one)]
    return all(one[MIN_SCALE] == str(FLOOR) and prewarming.RAISED not in one for one in notes)
