"""The files under platform/ that are written from tables, so that neither can drift from the code:
topics, users of Kafka, Redis and PostgreSQL, and the gateway's configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from leaderboard.stack import access_sql
from leaderboard.stack.access import KAFKA, KafkaRights
from leaderboard.stack.access_redis import acl_file, users_with_passwords
from leaderboard.stack.nginx import cluster_config, compose_config
from leaderboard.stack.topics import (
    PRODUCTION_IN_SYNC,
    PRODUCTION_PARTITIONS,
    PRODUCTION_REPLICAS,
    Topic,
    topics,
)

CLUSTER: Final = "leaderboard"
"""The name of the `Kafka` that Strimzi's operators are to put them into."""
STRIMZI: Final = "kafka.strimzi.io/v1"
_BY: Final = "# Written by `leaderboard manifests`; change the table that it comes from: {table}.\n"


def files() -> dict[str, str]:
    """The text of every such file, by its path below platform/."""
    return {path: make() for path, make in _FILES.items()}


def _topics() -> str:
    return _documents("stack/topics.py", map(_topic, topics(PRODUCTION_PARTITIONS)))


def _topic(topic: Topic) -> dict[str, Any]:
    # Kafka takes all settings as text; Strimzi compares them with what it reads, numbers as such.
    config = {
        name: int(value) if value.isdecimal() else value
        for name, value in topic.config(PRODUCTION_IN_SYNC).items()
    }
    spec = {"partitions": topic.partitions, "replicas": PRODUCTION_REPLICAS, "config": config}
    return _strimzi("KafkaTopic", topic.name, "leaderboard-data", spec)


def _users() -> str:
    return _documents(
        "stack/access.py", [_user(name, rights) for name, rights in KAFKA.items() if rights.acls()]
    )


def _user(name: str, rights: KafkaRights) -> dict[str, Any]:
    by_resource: dict[tuple[str, str], list[str]] = {}
    for acl in sorted(rights.acls()):
        by_resource.setdefault((acl.kind, acl.name), []).append(acl.operation)
    acls = [
        {
            "resource": {"type": kind, "name": resource, "patternType": "literal"},
            "operations": operations,
            "host": "*",
        }
        for (kind, resource), operations in by_resource.items()
    ]
    spec = {
        "authentication": {"type": "scram-sha-512"},
        "authorization": {"type": "simple", "acls": acls},
    }
    return _strimzi("KafkaUser", name, "leaderboard", spec)


def _strimzi(kind: str, name: str, namespace: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    labels = {"strimzi.io/cluster": CLUSTER, "app.kubernetes.io/part-of": "leaderboard"}
    return {
        "apiVersion": STRIMZI,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": spec,
    }


def _redis_users() -> str:
    # Redis takes no comment in this file. start.sh puts hashes of passwords into it.
    return acl_file({name: f"<{name}>" for name in users_with_passwords()})


def _sql(text: str) -> str:
    return (
        "--"
        + _BY.format(table="stack/access_sql.py").removeprefix("#")
        + "\\set ON_ERROR_STOP on\n"
        + text
    )


def _documents(table: str, documents: Any) -> str:
    return _BY.format(table=table) + "---\n".join(map(yaml_of, documents))


def yaml_of(document: Mapping[str, Any]) -> str:
    """YAML of what these files hold: mappings, lists, numbers, and texts that need no escapes."""
    return "\n".join(_lines(document)) + "\n"


def _lines(value: Any) -> list[str]:
    lines: list[str] = []
    if isinstance(value, Mapping):
        for name, one in value.items():
            is_listed = isinstance(one, list) and one and isinstance(one[0], Mapping)
            if isinstance(one, Mapping) or is_listed:
                lines += [f"{name}:", *(f"  {line}" for line in _lines(one))]
            else:
                lines.append(f"{name}: {_scalar(one)}")
    else:
        for one in value:
            first, *rest = _lines(one)
            lines += [f"- {first}", *(f"  {line}" for line in rest)]
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    if isinstance(value, int):
        return str(value)
    text = str(value)
    is_plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9./-]*", text) is not None
    return text if is_plain else f'"{text}"'


_FILES: Final[Mapping[str, Callable[[], str]]] = {
    "kafka/base/topics.yaml": _topics,
    "kafka/base/users.yaml": _users,
    "redis/base/users.acl": _redis_users,
    "gateway/base/nginx.conf": cluster_config,
    "../compose/nginx.conf": compose_config,
    "postgres/roles.sql": lambda: _sql(access_sql.roles()),
    "postgres/grants.sql": lambda: _sql(access_sql.grants()),
}
