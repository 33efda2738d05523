"""Rules that hold for every manifest of ours, whatever it runs.

Pod Security *restricted* as Kubernetes defines it, and what we ask beyond: a read-only root, known
resources, images by tag or digest, no secret in plain sight, tokens only where they are used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from deploy.checking.building import Built, Manifest, Problem, containers_of, group_of, pods_of

WITH_TOKEN: Final = frozenset({"tournament"})
"""Whose pods ask the Kubernetes API: `tournament` raises floors before a start."""
PUBLIC: Final = frozenset({"query"})
"""Knative Services that the world may reach."""
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "projected", "secret"}
VOLUMES |= {"persistentVolumeClaim"}
"""Kinds of volume that *restricted* allows."""
_SECRET_NAME: Final = re.compile(r"PASSWORD|SECRET|TOKEN$|_KEY$|REDIS_URL|DATABASE_URL|CREDENTIAL")
_USER_IN_URL: Final = re.compile(r"://[^/\s@]*:[^/\s@]+@")
_TAG: Final = re.compile(r"^(?P<name>[^@]+?)(:(?P<tag>[\w][\w.-]*))?(@(?P<digest>sha256:[0-9a-f]{64}))?$")  # fmt: skip  # noqa: E501


def problems(built: Built) -> Iterator[Problem]:
    """All that breaks a rule in one kustomization."""
    for one in built.manifests:
        for what in _wrong(built, one):
            yield built.problem(one, what)


def _wrong(built: Built, one: Manifest) -> Iterator[str]:
    pod = pods_of(one)
    if pod is not None:
        yield from _pod(built, one, pod)
        is_knative = "knative" in group_of(one)
        for container in containers_of(pod):
            where = f"container {container['name']}"
            shared = {} if is_knative else pod.get("securityContext", {})
            checks = (_confined(container, shared), _resources(container), _image(container))
            for check in (*checks, _environment(container), _last_words(container)):
                yield from (f"{where}: {what}" for what in check)
    if one["kind"] == "Secret":
        yield "a Secret does not belong into the repository: have External Secrets make it"
    if one["kind"] == "ConfigMap":
        for key, value in (one.get("data") or {}).items():
            if _SECRET_NAME.search(key) or _USER_IN_URL.search(str(value)):
                yield f"data.{key}: a secret does not belong into a ConfigMap"
    if one["kind"] == "ServiceAccount" and one.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken has to be false: a pod that needs it has a volume"
    if one["kind"] == "DomainMapping":
        yield from _mapped(built, one)
    if one["kind"] == "Service" and "serving.knative" in group_of(one):
        label = one["metadata"].get("labels", {}).get("networking.knative.dev/visibility")
        if one["metadata"]["name"] not in PUBLIC and label != "cluster-local":
            yield "is public: label it networking.knative.dev/visibility: cluster-local"


def _pod(built: Built, one: Manifest, pod: Manifest) -> Iterator[str]:
    name = one["metadata"]["name"]
    account = pod.get("serviceAccountName")
    if account is None:
        yield "serviceAccountName is missing: each has an account of its own"
    elif built.find("ServiceAccount", account) is None:
        yield f"serviceAccountName {account}: there is no such ServiceAccount"
    # Also where there is one: Knative takes no other word, and a volume says what is in it.
    if pod.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken has to be false"
    has_token = any(
        "serviceAccountToken" in source
        for volume in pod.get("volumes", [])
        for source in volume.get("projected", {}).get("sources", [])
    )
    if has_token and name not in WITH_TOKEN:
        yield "no volume may have a serviceAccountToken: it asks nothing of Kubernetes"
    if name in WITH_TOKEN and not has_token:
        yield "a volume with its serviceAccountToken is missing: it asks the Kubernetes API"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield f"{key} is not allowed"
    for volume in pod.get("volumes", []):
        for kind in volume.keys() - {"name"} - VOLUMES:
            yield f"volume {volume['name']}: {kind} is not allowed"
    for container in containers_of(pod):
        for port in container.get("ports", []):
            if port.get("hostPort"):
                yield f"container {container['name']}: hostPort is not allowed"


def _confined(container: Manifest, shared: Manifest) -> Iterator[str]:
    own = container.get("securityContext", {})
    merged = {**shared, **own}
    wanted = {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        "capabilities": {"drop": ["ALL"]},
    }
    for key, value in wanted.items():
        if merged.get(key) != value:
            yield f"securityContext.{key} has to be {value}"
    if merged.get("runAsUser") == 0:
        yield "securityContext.runAsUser: root is not allowed"
    if merged.get("privileged"):
        yield "securityContext.privileged is not allowed"


def _resources(container: Manifest) -> Iterator[str]:
    resources = container.get("resources", {})
    for kind in ("requests", "limits"):
        for what in ("cpu", "memory"):
            if what not in resources.get(kind, {}):
                yield f"resources.{kind}.{what} is missing"
        if kind == "limits":
            yield from _below(resources)


def _below(resources: Manifest) -> Iterator[str]:
    for what, request in resources.get("requests", {}).items():
        limit = resources.get("limits", {}).get(what)
        if limit is not None and quantity(request) > quantity(limit):
            yield f"resources.requests.{what} {request} is above the limit {limit}"


_UNITS: Final = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}  # fmt: skip  # noqa: E501


def quantity(text: object) -> float:
    """Kubernetes' way to write amounts: `500m`, `256Mi`, `2`."""
    found = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(text))
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{text!r} is no quantity")
    return float(found[1]) * _UNITS[found[2]]


def _image(container: Manifest) -> Iterator[str]:
    image = container.get("image", "")
    found = _TAG.fullmatch(image)
    if found is None:
        yield f"image {image!r} is none"
    elif found["digest"] is None and found["tag"] is None:
        yield (
            f"image {image} has no tag and no digest: set newTag or digest for it under `images` "
            "in this overlay's kustomization.yaml"
        )
    elif found["digest"] is None and found["tag"] == "latest":
        yield f"image {image}: latest is another image each day; name a version or a digest"


def _last_words(container: Manifest) -> Iterator[str]:
    """`kubectl describe pod` shows why it ended, and who may not read logs sees it as well."""
    if container.get("terminationMessagePolicy") != "FallbackToLogsOnError":
        yield "terminationMessagePolicy has to be FallbackToLogsOnError"


def _environment(container: Manifest) -> Iterator[str]:
    seen: set[str] = set()
    for one in container.get("env", []):
        name, value = one["name"], str(one.get("value", ""))
        if name in seen:
            yield f"{name} is set twice"
        seen.add(name)
        is_secret = _SECRET_NAME.search(name) and not name.endswith(("_LOCATION", "_FILE"))
        if value and (is_secret or _USER_IN_URL.search(value)):
            yield f"{name}: a secret in plain sight: take it from a Secret by secretKeyRef"
        if is_secret and "configMapKeyRef" in one.get("valueFrom", {}):
            yield f"{name}: a secret does not belong into a ConfigMap"


def _mapped(built: Built, one: Manifest) -> Iterator[str]:
    reference = one["spec"]["ref"]
    if reference["name"] not in PUBLIC:
        yield f"publishes {reference['name']}, which is not public"
    claims = {c["metadata"]["name"] for c in built.of_kind("ClusterDomainClaim")}
    if one["metadata"]["name"] not in claims:
        yield "has no ClusterDomainClaim of its name"
