"""Floors, ceilings and what moves a deployment between them, in KEDA's words and Knative's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from deploy.checking.building import Built, Manifest, Problem
from deploy.checking.policies import quantity

PARTITIONS: Final = "leaderboard.io/partitions"
DECIDED_SECONDS: Final = 30
"""From the floor to the ceiling."""
SYNC_SECONDS: Final = 15
"""Of the autoscaler: so often Kubernetes asks KEDA, which asks Kafka then."""
PRODUCTION_FLOOR: Final = 2
FLOOR_URL: Final = re.compile(
    r"http://(?P<service>[\w-]+)\.(?P<namespace>[\w-]+)\.svc\.cluster\.local"
    r"(?P<path>/internal/v1/floors/(?P<function>[\w-]+))"
)
_SCALE: Final = "autoscaling.knative.dev/"


def problems(built: Built) -> Iterator[Problem]:
    """What would scale wrongly, or not at all."""
    for one in built.of_kind("ScaledObject"):
        for what in _scaled(built, one):
            yield built.problem(one, what)
    for one in built.of_kind("Service", "serving.knative.dev"):
        for what in _service(built, one):
            yield built.problem(one, what)
    for one in built.of_kind("PodDisruptionBudget"):
        for what in _budget(built, one):
            yield built.problem(one, what)
    for one in built.of_kind("Deployment"):
        name = one["metadata"]["name"]
        if built.find("PodDisruptionBudget", name) is None:
            yield built.problem(one, "has no PodDisruptionBudget of its name")


def _limits(built: Built, least: int, most: int) -> Iterator[str]:
    if least > most:
        yield f"the floor {least} is above the ceiling {most}"
    if least < 1:
        yield f"the floor is {least}: from nothing, the first event waits for a start"
    if built.environment == "production" and least < PRODUCTION_FLOOR:
        yield f"the floor is {least}: in production one pod that goes leaves none"


def _scaled(built: Built, one: Manifest) -> Iterator[str]:
    spec = one["spec"]
    least, most = spec.get("minReplicaCount", 0), spec.get("maxReplicaCount", 100)
    yield from _limits(built, least, most)
    target = spec["scaleTargetRef"]
    kind = target.get("kind", "Deployment")
    deployment = built.find(kind, target["name"])
    if deployment is None:
        yield f"scaleTargetRef {target['name']}: there is no such {kind}"
    elif "replicas" in deployment["spec"]:
        yield f"Deployment {target['name']} sets replicas: an apply would undo the scaling"
    fallback = spec.get("fallback")
    if fallback is None or fallback.get("behavior") != "currentReplicasIfHigher":
        yield "fallback.behavior has to be currentReplicasIfHigher: a blind KEDA must not shrink"
    elif not least <= fallback["replicas"] <= most:
        yield f"fallback.replicas {fallback['replicas']} is not between floor and ceiling"
    yield from _speed(spec, least, most)
    for trigger in spec["triggers"]:
        if trigger["type"] == "kafka":
            yield from _lag(one, trigger, {least, most, (fallback or {}).get("replicas", least)})
        elif trigger["metadata"].get("aggregateFromKubeServiceEndpoints") == "true":
            yield from _summed(built, one, trigger)
        elif trigger["type"] == "metrics-api":
            yield from _floor(one, trigger)


def _speed(spec: Manifest, least: int, most: int) -> Iterator[str]:
    behavior = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
    up, down = behavior.get("scaleUp"), behavior.get("scaleDown")
    if up is None:
        yield "behavior.scaleUp is missing: the default needs a minute from 2 to 50"
    else:
        steps = [
            -(-(most - least) // policy["value"]) * policy["periodSeconds"]
            for policy in up.get("policies", [])
            if policy["type"] == "Pods"
        ]
        waits = SYNC_SECONDS + up.get("stabilizationWindowSeconds", 0)
        if not steps or waits + min(steps) > DECIDED_SECONDS:
            yield f"from {least} to {most} takes longer than {DECIDED_SECONDS} s to be decided"
        if quantity(up.get("tolerance", "0.1")) > 0:
            yield "behavior.scaleUp.tolerance has to be 0: up to a tenth of a floor would not start"
    if "pollingInterval" in spec and least > 0:
        yield "pollingInterval does nothing where something always runs: KEDA warns of it"
    if down is None or down.get("stabilizationWindowSeconds", 0) < 60 or not down.get("policies"):
        yield "behavior.scaleDown has to be slow: each step moves partitions"


def _lag(one: Manifest, trigger: Manifest, counts: set[int]) -> Iterator[str]:
    text = one["metadata"].get("annotations", {}).get(PARTITIONS)
    if text is None or not text.isdecimal():
        yield f"annotation {PARTITIONS} has to say how many partitions the topic has"
        return
    partitions = int(text)
    for count in sorted(counts - {0}):
        if count > partitions:
            yield f"{count} replicas are more than the topic's {partitions} partitions"
        elif partitions % count:
            yield f"{count} replicas do not divide the topic's {partitions} partitions"
    metadata = trigger["metadata"]
    if metadata.get("ensureEvenDistributionOfPartitions") != "true":
        yield 'ensureEvenDistributionOfPartitions has to be "true": else it stalls near the top'
    if metadata.get("limitToPartitionsWithLag") == "true":
        yield "limitToPartitionsWithLag excludes the even distribution"


def _summed(built: Built, one: Manifest, trigger: Manifest) -> Iterator[str]:
    """KEDA finds pods by a Service's name, and asks them on the port in the URL."""
    metadata = trigger["metadata"]
    place = urlsplit(metadata.get("url", ""))
    name, _, rest = (place.hostname or "").partition(".")
    service = built.find("Service", name)
    if metadata.get("aggregationType") != "sum":
        yield "aggregationType has to be sum: what each pod has is added up"
    if service is None or rest.partition(".")[0] != one["metadata"].get("namespace"):
        yield f"there is no Service {place.hostname}"
        return
    (pods,) = [
        found
        for found in built.of_kind("Deployment")
        if found["metadata"]["name"] == one["spec"]["scaleTargetRef"]["name"]
    ]
    template = pods["spec"]["template"]
    if not service["spec"]["selector"].items() <= template["metadata"]["labels"].items():
        yield f"Service {name} chooses other pods"
    ports = {p["containerPort"] for c in template["spec"]["containers"] for p in c["ports"]}
    if place.port not in ports:
        yield f"asks on port {place.port}, which no container of {pods['metadata']['name']} has"


def _floor(one: Manifest, trigger: Manifest) -> Iterator[str]:
    metadata = trigger["metadata"]
    found = FLOOR_URL.fullmatch(metadata.get("url", ""))
    if found is None:
        yield f"{metadata.get('url')!r} is not where tournament tells floors"
        return
    if found["namespace"] != one["metadata"].get("namespace"):
        yield f"asks tournament in namespace {found['namespace']}, and is in another"
    if found["function"] != one["metadata"]["name"]:
        yield f"asks for the floor of {found['function']}"
    if (metadata.get("valueLocation"), metadata.get("targetValue")) != ("floor", "1"):
        yield "valueLocation has to be floor and targetValue 1: a floor of 10 means 10 replicas"


def _service(built: Built, one: Manifest) -> Iterator[str]:
    template = one["spec"]["template"]
    annotations = template["metadata"].get("annotations", {})
    counts: list[int] = []
    for name in ("min-scale", "max-scale", "target"):
        text = annotations.get(f"{_SCALE}{name}")
        if text is None or not str(text).isdecimal():
            yield f"annotation {_SCALE}{name} is missing or no number"
            return
        counts.append(int(text))
    yield from _limits(built, counts[0], counts[1])
    container = template["spec"]["containers"][0]
    threads = {e["name"]: e.get("value") for e in container.get("env", [])}.get("THREADS")
    if threads is not None and threads != str(counts[2]):
        yield f"has {threads} threads and is scaled by {counts[2]} requests at a time"
    for probe in ("livenessProbe", "readinessProbe"):
        if probe not in container:
            yield f"{probe} is missing"


def _budget(built: Built, one: Manifest) -> Iterator[str]:
    labels = one["spec"]["selector"]["matchLabels"].items()
    chosen = [
        d
        for d in (*built.of_kind("Deployment"), *built.of_kind("StatefulSet"))
        if labels <= d["spec"]["template"]["metadata"]["labels"].items()
    ]
    if len(chosen) != 1:
        yield f"chooses {len(chosen)} workloads, and has to choose one"
    if one["spec"].get("minAvailable") is not None:
        yield "minAvailable would hold a node for ever at the floor: say maxUnavailable"
