"""What is applied: every overlay for production as kustomize makes it, the settings filled in, and
the few things that are changed for the test."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from cluster.api import Manifest
from deploy.checking import ROOT, Tools
from deploy.checking.building import Built, build_all, group_of
from leaderboard.audit.notes import Signer

NAMESPACE, DATA = "leaderboard", "leaderboard-data"
MARK: Final = "leaderboard.io/cluster-test"
"""Namespaces with this label are ours to delete."""
ORDER: Final = (
    "platform/overlays/production",
    "platform/secrets",
    "platform/kafka/cluster",
    "keda/migrate/overlays/production",
    "knative/overlays/production",
    "keda/overlays/production",
    "knative/domains",
    "knative/eventing/kafka-source",
    "knative/eventing/broker",
    "platform/observability",
)
"""As docs/deploy.md says, settings between the first two."""
OF_NO_NAMESPACE: Final = ("ClusterDomainClaim",)
"""Beside the namespaces themselves; by our label they are ours to delete, too."""
DOWN_SECONDS: Final = 15
"""Instead of 300: how long a smaller number of replicas has to be wanted."""
Edit = Callable[[Manifest], object]


@dataclass(frozen=True)
class Settings:
    """Where the servers of this run are, for the ConfigMap and the Secrets."""

    kafka: str
    password: str
    authority: str
    """In PEM: who signed the brokers' certificate."""
    redis_url: str
    database_url: str
    outbox_url: str
    """The game platform's database, of which the relay reads."""
    tombstone_key: str
    more: Mapping[str, str]
    """The rest of the ConfigMap, as the functions' settings have it."""


def built(root: Path = ROOT) -> dict[str, Built]:
    """By folder. Fails where the tree can't be built."""
    found, problems = build_all(root, Tools().kustomize())
    assert not problems, "; ".join(map(str, problems))
    return {one.folder: one for one in found}


def known(
    manifests: Iterable[Manifest], kinds: Collection[tuple[str, str]]
) -> tuple[list[Manifest], list[tuple[str, str]]]:
    """Those whose kind the cluster has, and kind and name of those whose it has not. A kind of
    Kubernetes' own is never left out: its group has no dot, or is Kubernetes'."""
    kept: list[Manifest] = []
    left: list[tuple[str, str]] = []
    for one in manifests:
        group = group_of(one)
        own = "." not in group or group.endswith(".k8s.io")
        if own or (group, one["kind"]) in kinds:
            kept.append(one)
        else:
            left.append((f"{one['kind']}.{group}", one["metadata"]["name"]))
    return kept, left


def settings(given: Settings, root: Path = ROOT) -> list[Manifest]:
    """`platform/settings/example.yaml`, filled in. Web PubSub's Secret is left out, as it says."""
    text = (root / "platform" / "settings" / "example.yaml").read_text("utf-8")
    found = [one for one in yaml.safe_load_all(text) if one["metadata"]["name"] != "web-pubsub"]
    for one in found:
        one["metadata"]["namespace"] = NAMESPACE
        values = one.get("data") or one["stringData"]
        for name in values:
            values[name] = _filled(one["metadata"]["name"], name, values[name], given)
    left = [
        f"{one['metadata']['name']}.{name}"
        for one in found
        for name, value in one.get("stringData", {}).items()
        if re.search("fill-in", value)
    ]
    assert not left, f"not filled in: {', '.join(left)}"
    return found


def _filled(secret: str, name: str, example: str, given: Settings) -> str:
    known: dict[str, str] = {
        "KAFKA_BOOTSTRAP_SERVERS": given.kafka,
        "REDIS_URL": given.redis_url,
        "DATABASE_URL": given.database_url,
        "TOMBSTONE_KEY": given.tombstone_key,
        # Stand-ins sign nothing.
        "AUDIT_SIGNING_KEY": Signer.generate("leaderboard.example.com/audit").private_text(),
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "password": given.password,
        "ca.crt": given.authority,
    }
    if secret == "leaderboard" and name in given.more:
        return given.more[name]
    if (secret, name) == ("relay", "DATABASE_URL"):
        return given.outbox_url
    return known.get(name, example)


def prepared(manifests: Iterable[Manifest], tournament: str) -> Iterator[Manifest]:
    """The same, with what the test has to change: namespaces get our mark; floors are asked of
    the process at `tournament`, as no stand-in answers; to scale down takes seconds, not minutes.
    """
    for one in copy.deepcopy(list(manifests)):
        if one["kind"] == "Namespace":
            one["metadata"].setdefault("labels", {})[MARK] = "true"
        if one["kind"] == "ScaledObject":
            _shorten(one["spec"])
            for trigger in one["spec"]["triggers"]:
                if trigger.get("name") == "floor":
                    url: str = trigger["metadata"]["url"]
                    trigger["metadata"]["url"] = tournament + url[url.index("/internal/") :]
        yield one


def _shorten(spec: dict[str, Any]) -> None:
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    behavior["scaleDown"] = {
        "stabilizationWindowSeconds": DOWN_SECONDS,
        "policies": [{"type": "Percent", "value": 100, "periodSeconds": 5}],
    }
