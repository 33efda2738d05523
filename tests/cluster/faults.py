"""Faults put into the manifests as they are applied: each has to be found by its trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cluster import tree
from cluster.api import Manifest


@dataclass(frozen=True, slots=True)
class Fault:
    """`edit` changes a manifest in place, if it is the one."""

    name: str
    found_by: str
    edit: tree.Edit


def _is(one: Manifest, kind: str, name: str) -> bool:
    return bool(one["kind"] == kind and one["metadata"]["name"] == name)


def _loose_pod(one: Manifest) -> None:
    """Not *restricted* any more: the namespace warns of it, and lets no such pod be made."""
    if _is(one, "Deployment", "archive"):
        del one["spec"]["template"]["spec"]["containers"][0]["securityContext"]


def _wrong_user(one: Manifest) -> None:
    """KEDA asks for one function's lag as another, who may not know it."""
    if _is(one, "TriggerAuthentication", "archive"):
        one["spec"]["env"][0]["name"] = "KAFKA_SECURITY_PROTOCOL"


def _default_pace(one: Manifest) -> None:
    """Kubernetes' own pace, for which 2 to 50 take a minute."""
    if _is(one, "ScaledObject", "on-wager"):
        behavior = one["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        behavior.pop("scaleUp", None)


def _two_when_blind(one: Manifest) -> None:
    if _is(one, "ScaledObject", "on-wager"):
        one["spec"]["fallback"] = {"failureThreshold": 3, "replicas": 2, "behavior": "static"}


def _may_only_look(one: Manifest) -> None:
    if _is(one, "Role", "tournament"):
        one["rules"][0]["verbs"] = ["list"]


def _may_read_secrets(one: Manifest) -> None:
    if _is(one, "Role", "tournament"):
        one["rules"].append({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]})


def _deployers_may_not_patch(one: Manifest) -> None:
    if _is(one, "Role", "leaderboard-deployer"):
        for rule in one["rules"]:
            rule["verbs"] = [verb for verb in rule["verbs"] if verb != "patch"]


def _a_ceiling_of_two(one: Manifest) -> None:
    if _is(one, "ScaledObject", "on-wager"):
        one["spec"]["maxReplicaCount"] = 2


def _no_authority(one: Manifest) -> None:
    """It can't tell whether the brokers are ours."""
    if _is(one, "Deployment", "on-wager"):
        one["spec"]["template"]["spec"]["volumes"][0]["secret"]["secretName"] = "other-ca"


def _no_floor(one: Manifest) -> None:
    if _is(one, "ScaledObject", "archive"):
        del one["spec"]["triggers"][1]


FAULTS: Final = (
    Fault("a pod that is not confined", "everything is applied", _loose_pod),
    Fault("another user's name for KEDA", "floors stand", _wrong_user),
    Fault("scale-up at the default pace", "lag moves on-wager", _default_pace),
    Fault("a fallback to two", "a blind KEDA keeps what runs", _two_when_blind),
    Fault("no trigger on the floor", "a tournament lifts floors", _no_floor),
    Fault("no right to raise revisions", "a tournament lifts floors", _may_only_look),
    Fault("a right to read secrets", "the token does no more", _may_read_secrets),
    Fault("deployers without patch", "a rollout goes on and back", _deployers_may_not_patch),
)
POD_FAULTS: Final = (
    Fault("brokers that nobody vouches for", "pods run", _no_authority),
    Fault("a ceiling of two", "lag is worked off", _a_ceiling_of_two),
    Fault("deployers without patch", "a broken revision is taken back", _deployers_may_not_patch),
)
