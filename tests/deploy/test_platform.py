"""What the functions stand on agrees with the code: topics, users, who reaches whom, room for all.

What servers make of the same files is shown in tests/integration: test_kafka_access.py,
test_redis_access.py, test_record_access.py, test_edge.py."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import yaml

from leaderboard.adapters.gateway_channels import MAX_FRAME_BYTES
from leaderboard.stack.access import KAFKA, OPERATOR, Acl
from leaderboard.stack.access_redis import CALLS_OF, users_with_passwords
from leaderboard.stack.access_sql import OWNER, READS
from leaderboard.stack.functions import FUNCTIONS
from leaderboard.stack.manifests import files
from leaderboard.stack.nginx import DRAIN_SECONDS, FRAME_KIB, Limits
from leaderboard.stack.topics import topics

PLATFORM: Final = Path(__file__).parents[2] / "platform"
DATA, OWN = "leaderboard-data", "leaderboard"
Manifest = dict[str, Any]


def documents(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((PLATFORM / name).read_text("utf-8")))


def of_kind(name: str, kind: str) -> list[Manifest]:
    return [one for one in documents(name) if one["kind"] == kind]


# --- tables and files ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", files())
def test_written_files_are_what_the_tables_say(name: str) -> None:
    assert (PLATFORM / name).read_text("utf-8") == files()[name], "run `leaderboard manifests`"


def test_strimzi_is_told_the_topics_of_the_table() -> None:
    """Read back from the YAML: what the writer makes of it is no witness of itself."""
    found = {one["metadata"]["name"]: one for one in documents("kafka/base/topics.yaml")}
    assert found.keys() == {topic.name for topic in topics()}
    for topic in topics():
        spec = found[topic.name]["spec"]
        assert spec["partitions"] == topic.partitions
        assert spec["replicas"] == 3
        days = {"gdpr-events": 30, "connections": 30}.get(topic.name, 7)
        days = 14 if topic.name.endswith("-dlq") else days
        assert spec["config"] == {
            "retention.ms": days * 24 * 3600 * 1000,
            "max.message.bytes": 4 * 1024 * 1024,
            "cleanup.policy": "delete",
            "min.insync.replicas": 2,
        }
        assert topic.partitions == (1 if topic.name.endswith("-dlq") else 50)


def test_strimzi_is_told_the_rights_of_the_table() -> None:
    found = {one["metadata"]["name"]: one for one in documents("kafka/base/users.yaml")}
    assert found.keys() == {user for user, rights in KAFKA.items() if rights.acls()}
    assert "query" not in found
    for user, one in found.items():
        authorization = one["spec"]["authorization"]
        acls = {
            Acl(acl["resource"]["type"], acl["resource"]["name"], operation)
            for acl in authorization["acls"]
            for operation in acl["operations"]
        }
        assert acls == KAFKA[user].acls()
        assert {acl["resource"]["patternType"] for acl in authorization["acls"]} == {"literal"}
        assert one["spec"]["authentication"] == {"type": "scram-sha-512"}


def test_example_of_a_kafka_is_the_one_that_topics_users_and_policies_are_made_for() -> None:
    (kafka,) = of_kind("kafka/cluster/kafka.yaml", "Kafka")
    (pool,) = of_kind("kafka/cluster/kafka.yaml", "KafkaNodePool")
    users, first = documents("kafka/base/users.yaml"), documents("kafka/base/topics.yaml")[0]
    for one in (*users, first, pool):
        assert one["metadata"]["labels"]["strimzi.io/cluster"] == kafka["metadata"]["name"]
    assert pool["spec"]["replicas"] >= first["spec"]["replicas"]
    (listener,) = kafka["spec"]["kafka"]["listeners"]
    server = example("leaderboard")["KAFKA_BOOTSTRAP_SERVERS"]
    assert server == f"leaderboard-kafka-bootstrap.{DATA}.svc:{listener['port']}"
    for user in users:
        assert user["spec"]["authentication"] == listener["authentication"]
        authorization = kafka["spec"]["kafka"]["authorization"]
        assert user["spec"]["authorization"]["type"] == authorization["type"]
        # Where the user is watched; and what its Secret, which Strimzi names, is called by us.
        # Staff take theirs from the cluster.
        watcher = kafka["spec"]["entityOperator"]["userOperator"]
        assert user["metadata"]["namespace"] == watcher["watchedNamespace"]
        name = user["metadata"]["name"]
        given = example(f"{watcher['secretPrefix']}{name}")
        assert given.keys() == (set() if name == OPERATOR else {"password"})
    # Strimzi's own policies add to ours: who is let in is the union of both.
    (clients,) = [one for one in POLICIES if one["metadata"]["name"] == "kafka-clients"]
    (rule,) = clients["spec"]["ingress"]
    assert listener["networkPolicyPeers"] == rule["from"]
    assert rule["ports"] == [{"port": listener["port"]}]


def example(name: str) -> dict[str, str]:
    """What `settings/example.yaml` has under a name, of ConfigMap and Secret both."""
    found = [one for one in documents("settings/example.yaml") if one["metadata"]["name"] == name]
    return {k: v for one in found for k, v in (one.get("data") or one["stringData"]).items()}


# --- who reaches whom ----------------------------------------------------------------------------

Pod = tuple[str, Mapping[str, str]]


def function(name: str) -> Pod:
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "leaderboard"}
    return OWN, labels


PODS: Final[dict[str, Pod]] = {
    **{name: function(name) for name in (*(f.name for f in FUNCTIONS), "gateway")},
    **{name: function(name) for name in ("relay", "months", "migrate")},
    "redis": (DATA, {"app.kubernetes.io/name": "redis"}),
    "redis-form": (DATA, {"app.kubernetes.io/name": "redis-form"}),
    "kafka": (DATA, {"strimzi.io/cluster": "leaderboard"}),
    "postgres": (DATA, {"cnpg.io/cluster": "postgres"}),
    "other": (OWN, {"app.kubernetes.io/name": "other"}),
    "other data": (DATA, {"app.kubernetes.io/name": "other"}),
    "keda": ("keda", {"app": "keda-operator"}),
    "knative": ("knative-serving", {"app": "activator"}),
    "kourier": ("kourier-system", {"app": "3scale-kourier-gateway"}),
    "strangers": ("elsewhere", {"app": "any"}),
}
PORTS: Final = (443, 1433, 5432, 6379, 8012, 8080, 8081, 8443, 9093, 16379)
POLICIES: Final = [
    one
    for name in ("default", "data", "nodes", "functions")
    for one in documents(f"network/{name}.yaml")
]


def chooses(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    wanted = bool(selector.get("matchLabels", {}).items() <= labels.items())
    for one in selector.get("matchExpressions", []):
        assert one["operator"] == "In"
        wanted = wanted and labels.get(one["key"]) in one["values"]
    return wanted


def is_peer(peer: Mapping[str, Any], own_namespace: str, pod: Pod) -> bool:
    namespace, labels = pod
    if "ipBlock" in peer:
        return False
    name = {"kubernetes.io/metadata.name": namespace}
    near = namespace == own_namespace
    if "namespaceSelector" in peer:
        near = chooses(peer["namespaceSelector"], name)
    return near and chooses(peer.get("podSelector", {}), labels)


def allows(direction: str, pod: Pod, other: Pod, port: int) -> bool:
    """Whether the policies that choose `pod` let this through; where none does, all goes."""
    namespace, labels = pod
    mine = [
        one["spec"]
        for one in POLICIES
        if one["metadata"]["namespace"] == namespace
        and direction in one["spec"]["policyTypes"]
        and chooses(one["spec"]["podSelector"], labels)
    ]
    side, peers = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    return not mine or any(
        (peers not in rule or any(is_peer(peer, namespace, other) for peer in rule[peers]))
        and ("ports" not in rule or port in {one["port"] for one in rule["ports"]})
        for spec in mine
        for rule in spec.get(side, [])
    )


def arrows() -> set[tuple[str, str, int]]:
    found = set()
    for source, one in PODS.items():
        for target, other in PODS.items():
            if {one[0], other[0]}.isdisjoint({OWN, DATA}):
                continue
            for port in PORTS:
                if allows("Egress", one, other, port) and allows("Ingress", other, one, port):
                    found.add((source, target, port))
    return found


def settings_of(name: str) -> str:
    chosen = next(one for one in FUNCTIONS if one.name == name)
    folder = PLATFORM.parent / "functions" / chosen.folder
    over_http = folder / "intake.py"
    text = (folder / "main.py").read_text("utf-8")
    if chosen.folder == "on-wager":
        head, _, rest = text.partition("def intake()")
        text = over_http.read_text("utf-8") + rest if chosen.target is not None else head
    return text


def wanted() -> set[tuple[str, str, int]]:
    """The drawing: whoever has a setting of something reaches it, and nobody else does."""
    found: set[tuple[str, str, int]] = set()
    places = {
        "KafkaSettings": ("kafka", 9093), "RedisSettings": ("redis", 6379),
        "DatabaseSettings": ("postgres", 5432), "GatewaySettings": ("gateway", 8081),
        "PlayersGatewaySettings": ("gateway", 8081),
    }  # fmt: skip
    for one in FUNCTIONS:
        text = settings_of(one.name)
        for setting, (target, port) in places.items():
            if re.search(rf"load(?:_or_exit)?\({setting}, |: {setting}\b", text):
                found.add((one.name, target, port))
        if one.target is not None:
            found |= {(source, one.name, 8012) for source in ("knative", "kourier")}
    found |= {("relay", "kafka", 9093), ("months", "postgres", 5432), ("migrate", "postgres", 5432)}
    # KEDA: lag, sockets, floors. Players; the gateway's questions go through Knative's ingress.
    found |= {("keda", "kafka", 9093), ("keda", "gateway", 8081), ("keda", "tournament", 8012)}
    found |= {(name, "gateway", 8443) for name in ("keda", "knative", "kourier", "strangers")}
    found |= {("gateway", "kourier", 8081)}
    # Each cluster among itself.
    found |= {("redis", "redis", port) for port in (6379, 16379)}
    found |= {("redis-form", "redis", 6379), ("postgres", "postgres", 5432)}
    found |= {("kafka", "kafka", port) for port in PORTS}
    return found


def test_only_the_arrows_of_the_drawing_are_allowed() -> None:
    # What goes out to hosts by a port alone (the API server, a game platform's database) has no
    # pod of ours at its other end.
    outside = {arrow for arrow in arrows() if PODS[arrow[1]][0] not in (OWN, DATA)}
    by_port = {arrow for arrow in outside if arrow[2] in (443, 1433)}
    relays = {arrow for arrow in outside if arrow[0] == "relay" and arrow[2] == 5432}
    assert arrows() - by_port - relays == wanted()
    assert {source for source, _, _ in by_port} == {"tournament", "kafka", "postgres", "relay"}


def test_nobody_reaches_anybody_by_default() -> None:
    for namespace in (OWN, DATA):
        (default,) = [
            one
            for one in POLICIES
            if one["metadata"]["namespace"] == namespace
            and one["spec"]["podSelector"] == {}
            and set(one["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        ]
        assert default["spec"].keys() == {"podSelector", "policyTypes"}
    assert not [arrow for arrow in arrows() if {"other", "other data"} & set(arrow)]


# --- the gateway ---------------------------------------------------------------------------------


def deployment() -> Manifest:
    (found,) = of_kind("gateway/base/deployment.yaml", "Deployment")
    spec: Manifest = found["spec"]["template"]["spec"]
    return spec


def test_gateways_pod_fits_its_configuration() -> None:
    config = files()["gateway/base/nginx.conf"]
    (container,) = deployment()["containers"]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert f"listen {ports['players']} ssl;" in config
    assert f"listen {ports['publish']};" in config
    assert FRAME_KIB * 1024 == MAX_FRAME_BYTES
    mounts = {one["mountPath"] for one in container["volumeMounts"]}
    assert mounts == {"/etc/gateway", "/tls", "/run/nginx", "/var/lib/nginx"}
    tls = (PLATFORM / "gateway/base/tls.conf").read_text("utf-8")
    assert "ssl_protocols TLSv1.3;" in tls
    assert "/tls/tls.crt" in tls
    waits = [int(one) for one in re.findall(r"sleep (\d+)", str(container["lifecycle"]))]
    assert waits[0] + DRAIN_SECONDS < sum(waits) < deployment()["terminationGracePeriodSeconds"]


def test_gateway_grows_before_it_is_full() -> None:
    (scaled,) = documents("gateway/base/scaledobject.yaml")
    trigger, floor = scaled["spec"]["triggers"]
    assert floor["metadata"]["url"].endswith("/internal/v1/floors/gateway")
    sockets = Limits().sockets
    assert sockets == 10_000
    assert int(trigger["metadata"]["targetValue"]) <= 0.7 * sockets
    (publish,) = [
        one
        for one in documents("gateway/base/services.yaml")
        if one["metadata"]["name"] == "gateway-publish"
    ]
    assert publish["spec"]["clusterIP"] == "None", "whoever publishes has to find every pod"
    url = f"http://gateway-publish.{OWN}.svc.cluster.local:{publish['spec']['ports'][0]['port']}"
    assert trigger["metadata"]["url"] == f"{url}/connections"
    assert scaled["spec"]["minReplicaCount"] >= 2


# --- room, secrets, people -----------------------------------------------------------------------


def amount(text: str) -> float:
    found = re.fullmatch(r"(\d+)(m|Mi|Gi|)", str(text))
    assert found is not None, text
    return int(found[1]) * {"m": 0.001, "Mi": 2.0**20, "Gi": 2.0**30, "": 1.0}[found[2]]


def pods_of_functions() -> Iterator[tuple[str, int, Manifest]]:
    """Name, ceiling and container of all that scales."""
    for path in sorted((PLATFORM.parent / "keda").rglob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text("utf-8")):
            if one["kind"] == "Deployment":
                (container,) = one["spec"]["template"]["spec"]["containers"]
                yield one["metadata"]["name"], 50, container
    for path in sorted((PLATFORM.parent / "knative").rglob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text("utf-8")):
            if one["kind"] == "Service" and "serving.knative" in one["apiVersion"]:
                template = one["spec"]["template"]
                ceiling = template["metadata"]["annotations"]["autoscaling.knative.dev/max-scale"]
                (container,) = template["spec"]["containers"]
                yield one["metadata"]["name"], int(ceiling), container
    yield "gateway", 50, deployment()["containers"][0]


def test_quota_has_room_for_everybody_at_the_ceiling() -> None:
    (quota,) = [
        one
        for one in of_kind("namespaces/quotas.yaml", "ResourceQuota")
        if one["metadata"]["name"] == OWN
    ]
    hard = quota["spec"]["hard"]
    pods = list(pods_of_functions())
    assert len(pods) >= len(FUNCTIONS)
    assert int(hard["pods"]) >= sum(ceiling + 1 for _, ceiling, _ in pods)
    for key in ("requests.cpu", "requests.memory", "limits.memory"):
        kind, _, what = key.partition(".")
        needed = sum(
            (ceiling + 1) * amount(container["resources"][kind][what])
            for _, ceiling, container in pods
        )
        assert needed <= amount(hard[key]), key


def test_namespaces_take_restricted_pods_only() -> None:
    for one in documents("namespaces/namespaces.yaml"):
        assert one["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_example_of_secrets_gives_each_user_its_own() -> None:
    found = {
        one["metadata"]["name"]: one["spec"] for one in documents("secrets/external-secrets.yaml")
    }
    keys = {name: {one["secretKey"] for one in spec["data"]} for name, spec in found.items()}
    assert keys.pop("redis-users") == set(users_with_passwords())
    assert keys.pop("leaderboard") == {"TOMBSTONE_KEY"}
    assert keys.pop("audit") == {"AUDIT_SIGNING_KEY"}
    assert keys.pop(OWNER) == {"DATABASE_URL"}
    assert keys.keys() == {f"stores-{one.name}" for one in FUNCTIONS}
    for secret, held in keys.items():
        name = secret.removeprefix("stores-")
        assert ("REDIS_URL" in held) == (name in CALLS_OF)
        assert ("DATABASE_URL" in held) == (name in READS)
        assert {one["remoteRef"]["key"] for one in found[secret]["data"]} == {f"leaderboard/{name}"}


def test_example_of_settings_has_every_users_own_name() -> None:
    for one in documents("settings/example.yaml"):
        name = one["metadata"]["name"]
        if name.startswith("stores-"):
            urls = one["stringData"]
            user = name.removeprefix("stores-")
            assert {urlsplit(url).username for url in urls.values()} == {user}
            assert urlsplit(urls["REDIS_URL"]).scheme == "rediss"
            # Without it whoever is in between may have the password in the clear.
            assert ("DATABASE_URL" in urls) == (user in READS)
            assert urls.get("DATABASE_URL", "?sslmode=require").endswith("?sslmode=require")


def test_people_read_no_secrets_and_open_no_shells() -> None:
    for role in of_kind("rbac/roles.yaml", "Role"):
        for rule in role["rules"]:
            assert not {"secrets", "pods/exec", "pods/attach", "*"} & set(rule["resources"])
            assert not {"delete", "deletecollection", "*", "escalate", "bind"} & set(rule["verbs"])
            writes = {"create", "update", "patch"} & set(rule["verbs"])
            assert not writes or not {"networkpolicies", "roles"} & set(rule["resources"])


def test_job_forms_a_cluster_of_all_nodes() -> None:
    (nodes,) = of_kind("redis/base/statefulset.yaml", "StatefulSet")
    (job,) = of_kind("redis/base/statefulset.yaml", "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == [f"redis-{n}.redis:6379" for n in range(nodes["spec"]["replicas"])]
