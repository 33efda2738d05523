"""What one manifest says of another: pods that are asked, let through, and named to KEDA.

These lie in different kustomizations, so all that was built is looked at together. A wrong name
here fails nothing when it is applied: KEDA finds no password, Prometheus no pod, a policy lets
nobody in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from deploy.checking.agreement import ALL, example
from deploy.checking.building import (
    Built,
    Manifest,
    Problem,
    containers_of,
    group_of,
    pods_of,
    template_of,
)
from deploy.checking.scaling import PARTITIONS
from leaderboard.prewarming import BY_PARTITION, KNOWN

KNATIVE_PORTS: Final[Mapping[str, int]] = {
    "queue-port": 8012, "http2": 8013, "https-port": 8112,
    "http-queueadm": 8022, "http-autometric": 9090, "http-usermetric": 9091,
}  # fmt: skip
"""Of the proxy that Knative puts beside a function. The function's own port it calls user-port."""
FOREIGN_LABELS: Final = ("strimzi.io/", "cnpg.io/")
"""Of pods that operators make, so that no manifest of ours has them."""
OBSERVERS: Final = "observability"
"""The namespace of who asks for metrics, and of the collector of traces."""
NAME: Final = "app.kubernetes.io/name"


@dataclass(frozen=True)
class Pods:
    """What one manifest makes."""

    who: str
    namespace: str
    labels: Mapping[str, str]
    ports: Mapping[str, int]
    """By name."""


def problems(all_built: list[Built]) -> Iterator[Problem]:
    """Names and ports in one manifest that another one does not have."""
    pods = _pods(all_built)
    for built in all_built:
        for one in built.of_kind("ScaledObject"):
            yield from (built.problem(one, what) for what in _source(built, one))
        for one in built.of_kind("TriggerAuthentication"):
            yield from (built.problem(one, what) for what in _authentication(built, one))
        for one in built.of_kind("PodMonitor"):
            yield from (built.problem(one, what) for what in _monitor(one, pods))
        for one in built.of_kind("NetworkPolicy"):
            yield from (built.problem(one, what) for what in _network(one, pods))
    yield from _unseen(all_built, pods)
    for environment in ("development", "production"):
        yield from _bounds([one for one in all_built if one.environment == environment])


def _pods(all_built: list[Built]) -> list[Pods]:
    found = []
    for built in all_built:
        for one in built.manifests:
            pod, template = pods_of(one), template_of(one)
            if pod is None or template is None:
                continue
            ports = [p for c in containers_of(pod) for p in c.get("ports", [])]
            named = {p.get("name", str(p["containerPort"])): p["containerPort"] for p in ports}
            if "knative" in group_of(one):
                named = {"user-port": next(iter(named.values()), 8080), **KNATIVE_PORTS}
            who = f"{one['kind']} {one['metadata']['name']}"
            labels = template.get("metadata", {}).get("labels", {})
            found.append(Pods(who, one["metadata"].get("namespace", ""), labels, named))
    return found


def _chooses(selector: Manifest, labels: Mapping[str, str]) -> bool:
    wanted = bool(selector.get("matchLabels", {}).items() <= labels.items())
    for one in selector.get("matchExpressions", []):
        wanted = wanted and labels.get(one["key"]) in one.get("values", [])
    return wanted


def _ports(pods: Iterable[Pods]) -> set[str | int]:
    """Names and numbers."""
    return {port for one in pods for pair in one.ports.items() for port in pair}


# --- KEDA ----------------------------------------------------------------------------------------


def _target(built: Built, scaled: Manifest) -> Manifest | None:
    """The pod that a ScaledObject scales."""
    target = scaled["spec"]["scaleTargetRef"]
    found = built.find(target.get("kind", "Deployment"), target["name"])
    return None if found is None else pods_of(found)


def _source(built: Built, one: Manifest) -> Iterator[str]:
    named = one["spec"]["scaleTargetRef"].get("envSourceContainerName")
    pod = _target(built, one)
    if named is not None and pod is not None and named not in _containers(pod):
        yield f"spec.scaleTargetRef.envSourceContainerName {named}: no container of this name"


def _containers(pod: Manifest) -> dict[str, Manifest]:
    return {one["name"]: one for one in containers_of(pod)}


def _authentication(built: Built, one: Manifest) -> Iterator[str]:
    name = one["metadata"]["name"]
    users = [
        scaled
        for scaled in built.of_kind("ScaledObject")
        for trigger in scaled["spec"]["triggers"]
        if trigger.get("authenticationRef", {}).get("name") == name
    ]
    if not users:
        yield "no ScaledObject's authenticationRef names it"
    for index, reference in enumerate(one["spec"].get("secretTargetRef", [])):
        where = f"spec.secretTargetRef[{index}]"
        secret, key = reference["name"], reference["key"]
        if key not in example().get(("Secret", secret), {}):
            yield f"{where}: Secret {secret} with key {key} is not in platform/settings"
        for scaled in users:
            if (own := _target(built, scaled)) is not None:
                yield from _same_secret(where, reference, own)
    for index, variable in enumerate(one["spec"].get("env", [])):
        where = f"spec.env[{index}]"
        for scaled, pod in ((scaled, _target(built, scaled)) for scaled in users):
            if pod is None:
                continue
            target = scaled["spec"]["scaleTargetRef"]["name"]
            # As KEDA does: without a name it is the first one.
            first = next(iter(_containers(pod)))
            container = _containers(pod).get(variable.get("containerName") or first)
            if container is None:
                told = f"{where}.containerName {variable['containerName']}"
                yield f"{told}: {target} has no such container"
            elif variable["name"] not in {e["name"] for e in container.get("env", [])}:
                yield f"{where}.name {variable['name']}: the container's environment has none"


def _same_secret(where: str, reference: Manifest, pod: Manifest) -> Iterator[str]:
    """KEDA asks as the function itself: with what its pods have."""
    given = reference["name"], reference["key"]
    if reference["parameter"] == "password":
        own = {
            (ref["name"], ref["key"])
            for container in containers_of(pod)
            for variable in container.get("env", [])
            if variable["name"] == "KAFKA_SASL_PASSWORD"
            for ref in [variable.get("valueFrom", {}).get("secretKeyRef")]
            if ref is not None
        }
        if given not in own:
            yield f"{where}: {'/'.join(given)} is not what the pods have as KAFKA_SASL_PASSWORD"
    if reference["parameter"] == "ca":
        mounted = {one.get("secret", {}).get("secretName") for one in pod.get("volumes", [])}
        if reference["name"] not in mounted:
            yield f"{where}: Secret {reference['name']} is mounted in none of the pods"


# --- floors --------------------------------------------------------------------------------------


def _bounds(environment: list[Built]) -> Iterator[Problem]:
    """What a schedule may ask for lies between the floors and ceilings that this environment has,
    and everything that it may ask for asks for it."""
    scaled = [(built, one) for built in environment for one in built.of_kind("ScaledObject")]
    for built, one in scaled:
        asks = any(trigger.get("name") == "floor" for trigger in one["spec"]["triggers"])
        if one["metadata"]["name"] in KNOWN and not asks:
            yield built.problem(one, "has no trigger `floor`: tournament tells one for it")
    readers = [one for _, one in scaled if one["metadata"]["name"] in BY_PARTITION]
    wanted = {
        "PREWARM_LEAST": {str(one["spec"].get("minReplicaCount", 0)) for one in readers},
        "PREWARM_CEILING": {one["metadata"]["annotations"].get(PARTITIONS) for one in readers},
    }
    for built in environment:
        service = built.find("Service", "tournament")
        if service is not None:
            yield from (built.problem(service, what) for what in _schedule(service, wanted))


def _schedule(service: Manifest, wanted: Mapping[str, set[str]]) -> Iterator[str]:
    (container,) = containers_of(pods_of(service) or {})
    given = {one["name"]: one.get("value") for one in container.get("env", [])}
    for name, values in wanted.items():
        if {given.get(name)} != values:
            told = ", ".join(sorted(map(str, values)))
            yield f"env {name} is {given.get(name)}, and ScaledObjects have {told}"


# --- who asks for metrics ------------------------------------------------------------------------


def _asked(monitor: Manifest, pods: Iterable[Pods]) -> list[Pods]:
    spec, own = monitor["spec"], monitor["metadata"].get("namespace", "")
    chosen = spec.get("namespaceSelector", {})
    near = chosen.get("matchNames", [own])
    return [
        one
        for one in pods
        if (chosen.get("any") or one.namespace in near) and _chooses(spec["selector"], one.labels)
    ]


def _endpoints(monitor: Manifest) -> Iterator[tuple[str, str | int]]:
    """Field and port of each endpoint."""
    for index, one in enumerate(monitor["spec"].get("podMetricsEndpoints") or []):
        for field in ("port", "portNumber", "targetPort"):
            if field in one:
                yield f"spec.podMetricsEndpoints[{index}].{field}", one[field]


def _monitor(one: Manifest, pods: list[Pods]) -> Iterator[str]:
    asked = _asked(one, pods)
    if not asked:
        yield "spec.selector: chooses none of the pods that we make"
        return
    for field, port in _endpoints(one):
        if port not in _ports(asked):
            yield f"{field} {port}: no container of the pods that it chooses has this port"


def _unseen(all_built: list[Built], pods: list[Pods]) -> Iterator[Problem]:
    """Functions whose metrics nobody asks for, or may not ask for."""
    monitors = [one for built in all_built for one in built.of_kind("PodMonitor")]
    policies = [one for built in all_built for one in built.of_kind("NetworkPolicy")]
    places: dict[str, set[int]] = {}
    for monitor in monitors:
        wanted = {port for _, port in _endpoints(monitor)}
        for one in _asked(monitor, pods):
            found = {
                number for pair in one.ports.items() for number in pair[1:] if wanted & {*pair}
            }
            places.setdefault(one.who, set()).update(found)
    seen = set()
    for one in pods:
        name = one.labels.get(NAME)
        if name not in ALL or one.who in seen:
            continue
        seen.add(one.who)
        if not places.get(one.who):
            yield Problem("platform/observability", f"no PodMonitor asks {one.who} for its metrics")
        for port in sorted(places.get(one.who, set())):
            if not any(_lets_in(policy, one, port) for policy in policies):
                yield Problem(
                    "platform/network",
                    f"no NetworkPolicy lets {OBSERVERS} ask {one.who} for metrics on port {port}",
                )


def _lets_in(policy: Manifest, pods: Pods, port: int) -> bool:
    spec = policy["spec"]
    return (
        policy["metadata"].get("namespace") == pods.namespace
        and _chooses(spec["podSelector"], pods.labels)
        and any(
            port in {one.get("port") for one in rule.get("ports", [])}
            and any(_namespace(peer) == OBSERVERS for peer in rule.get("from", []))
            for rule in spec.get("ingress", [])
        )
    )


# --- who is let through --------------------------------------------------------------------------


def _namespace(peer: Mapping[str, Any]) -> str | None:
    labels = peer.get("namespaceSelector", {}).get("matchLabels", {})
    found: str | None = labels.get("kubernetes.io/metadata.name")
    return found


def _network(one: Manifest, pods: list[Pods]) -> Iterator[str]:
    spec, own = one["spec"], one["metadata"].get("namespace", "")
    near = [p for p in pods if p.namespace == own]
    yield from _selector("spec.podSelector", spec["podSelector"], near)
    chosen = [p for p in near if _chooses(spec["podSelector"], p.labels)]
    for index, rule in enumerate(spec.get("ingress", [])):
        if chosen:
            yield from _open(f"spec.ingress[{index}]", rule, chosen)
    for index, rule in enumerate(spec.get("egress", [])):
        for place, peer in enumerate(rule.get("to", [])):
            where = f"spec.egress[{index}]"
            there = [p for p in pods if p.namespace == (_namespace(peer) or own)]
            if "podSelector" in peer and there:
                yield from _selector(f"{where}.to[{place}]", peer["podSelector"], there)
            chosen_there = [p for p in there if _chooses(peer.get("podSelector", {}), p.labels)]
            if chosen_there and "podSelector" in peer and len(rule["to"]) == 1:
                yield from _open(where, rule, chosen_there)
            if _namespace(peer) == OBSERVERS:
                yield from _collector(where, rule)


def _selector(where: str, selector: Manifest, pods: list[Pods]) -> Iterator[str]:
    """Names of which there are no pods."""
    asked = [(key, [value]) for key, value in selector.get("matchLabels", {}).items()]
    asked += [(one["key"], one.get("values", [])) for one in selector.get("matchExpressions", [])]
    for key, values in asked:
        if key.startswith(FOREIGN_LABELS):
            continue
        for value in values:
            if not any(one.labels.get(key) == value for one in pods):
                yield f"{where}: no pods of ours are labelled {key}: {value}"


def _open(where: str, rule: Manifest, pods: list[Pods]) -> Iterator[str]:
    for index, one in enumerate(rule.get("ports", [])):
        port = one.get("port")
        if port is not None and port not in _ports(pods):
            yield f"{where}.ports[{index}].port {port}: none of the pods that it chooses has it"


def _collector(where: str, rule: Manifest) -> Iterator[str]:
    port = _collector_port()
    if port not in {one.get("port") for one in rule.get("ports", [])}:
        yield f"{where}: does not let through to OTEL_EXPORTER_OTLP_ENDPOINT's port {port}"


def _collector_port() -> int:
    url = example()["ConfigMap", "leaderboard"]["OTEL_EXPORTER_OTLP_ENDPOINT"]
    return int(url.rpartition(":")[2])
