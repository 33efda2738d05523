"""A Kafka cluster as the tables want it: topics and access lists that are missing are made, what
differs is told. Nothing that is there is changed or removed: a wrong number of partitions would
split logs, and a shorter retention delete them, so a person decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # not in its stubs
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourcePatternType,
    ResourceType,
    TopicMetadata,
)

from leaderboard.errors import TransientError
from leaderboard.stack.access import Acl, KafkaRights
from leaderboard.stack.topics import (
    PRODUCTION_IN_SYNC,
    PRODUCTION_PARTITIONS,
    PRODUCTION_REPLICAS,
    Topic,
    topics,
)

ASK_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.1
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a cluster of this size can hold. `partitions`: of topics keyed by tournament."""

    partitions: int = PRODUCTION_PARTITIONS
    replicas: int = PRODUCTION_REPLICAS
    in_sync: int = PRODUCTION_IN_SYNC


@dataclass(frozen=True, slots=True)
class Found:
    """What a cluster has and what it has not, by name; `drift` in words."""

    missing: Sequence[str]
    drift: Sequence[str]


class KafkaCluster:
    """One cluster, by its administrator. Every call blocks, and may raise TransientError; what
    Kafka refuses raises KafkaException."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """`config` says where and as whom, as `KafkaSettings.client_config` does."""
        self._admin = AdminClient({**config, "log_level": 2})

    # topics

    def compare_topics(self, shape: Shape) -> Found:
        """Partitions, replicas and settings of each topic with the table."""
        found = self._topics()
        wanted = topics(shape.partitions)
        there = [topic for topic in wanted if topic.name in found]
        settings = self._settings([topic.name for topic in there])
        drift = [
            f"topic {topic.name}: {told}"
            for topic in there
            for told in _differences(topic, shape, found[topic.name], settings[topic.name])
        ]
        return Found([topic.name for topic in wanted if topic.name not in found], drift)

    def make_topics(self, names: Iterable[str], shape: Shape) -> None:
        """Make these topics of the table, and wait until they show. One that somebody else makes
        in the same moment is taken as it is."""
        by_name = {topic.name: topic for topic in topics(shape.partitions)}
        wanted = [
            NewTopic(
                name,
                by_name[name].partitions,
                replication_factor=shape.replicas,
                config=by_name[name].config(shape.in_sync),
            )
            for name in names
        ]
        if not wanted:
            return
        for future in self._admin.create_topics(wanted).values():
            try:
                _answer(future)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
        made = {one.topic for one in wanted}
        _wait(lambda: made <= self._topics().keys(), "topics")

    def _topics(self) -> Mapping[str, TopicMetadata]:
        try:
            found: Mapping[str, TopicMetadata] = self._admin.list_topics(timeout=ASK_SECONDS).topics
        except KafkaException as error:
            raise TransientError(f"Kafka does not answer: {error.args[0].str()}") from None
        return found

    def _settings(self, names: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
        if not names:
            return {}
        asked = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
        return {
            resource.name: {key: entry.value for key, entry in _answer(future).items()}
            for resource, future in self._admin.describe_configs(asked).items()
        }

    # access lists

    def compare_acls(self, rights: Mapping[str, KafkaRights]) -> Found:
        """What the users may do with what they should; of other users nothing is said."""
        missing, drift = [], []
        held = self._held()
        for user, wanted in rights.items():
            has = held.get(user, frozenset())
            missing += [_told(user, acl) for acl in sorted(wanted.acls() - has)]
            drift += [f"{_told(user, acl)}: not wanted" for acl in sorted(has - wanted.acls())]
        return Found(missing, drift)

    def make_acls(self, rights: Mapping[str, KafkaRights]) -> None:
        """Give each user what it should have, and wait until that shows."""
        wanted = [_binding(user, acl) for user, one in rights.items() for acl in one.acls()]
        for future in self._admin.create_acls(wanted).values():
            _answer(future)
        _wait(lambda: not self.compare_acls(rights).missing, "access lists")

    def _held(self) -> Mapping[str, frozenset[Acl]]:
        anything: Any = None  # the client takes it for "any"; its stubs don't know
        every = AclBindingFilter(
            ResourceType.ANY, anything, ResourcePatternType.ANY, anything, anything,
            AclOperation.ANY, AclPermissionType.ANY,
        )  # fmt: skip
        held: dict[str, set[Acl]] = {}
        for binding in _answer(self._admin.describe_acls(every)):
            user = str(binding.principal).removeprefix("User:")
            held.setdefault(user, set()).add(_acl_of(binding))
        return {user: frozenset(acls) for user, acls in held.items()}


def _differences(
    topic: Topic, shape: Shape, found: TopicMetadata, settings: Mapping[str, str]
) -> list[str]:
    partitions = found.partitions
    told = []
    if len(partitions) != topic.partitions:
        told.append(f"{len(partitions)} partitions instead of {topic.partitions}")
    replicas = min(len(one.replicas) for one in partitions.values())
    if replicas != shape.replicas:
        told.append(f"{replicas} replicas instead of {shape.replicas}")
    told += [
        f"{name} is {settings.get(name)} instead of {value}"
        for name, value in topic.config(shape.in_sync).items()
        if settings.get(name) != value
    ]
    return told


def _binding(user: str, acl: Acl) -> AclBinding:
    return AclBinding(
        ResourceType[acl.kind.upper()],
        acl.name,
        ResourcePatternType.LITERAL,
        f"User:{user}",
        "*",
        AclOperation[acl.operation.upper()],
        AclPermissionType.ALLOW,
    )


def _acl_of(binding: Any) -> Acl:
    """What is not of the table's kind gets a name that shows it. (The client's stubs take each of
    these for a text or a number, too.)"""
    name = str(binding.name)
    if binding.resource_pattern_type is not ResourcePatternType.LITERAL:
        name = f"{name} ({binding.resource_pattern_type.name.lower()})"
    if binding.host != "*":
        name = f"{name} from {binding.host}"
    if binding.permission_type is not AclPermissionType.ALLOW:
        name = f"{name} ({binding.permission_type.name.lower()})"
    return Acl(binding.restype.name.lower(), name, binding.operation.name.capitalize())


def _told(user: str, acl: Acl) -> str:
    return f"{user}: {acl.operation} on {acl.kind} {acl.name}"


def _wait(shows: Callable[[], bool], what: str) -> None:
    """Brokers hear of what the controller has taken a little later."""
    deadline = time.monotonic() + ASK_SECONDS
    while not shows():
        if time.monotonic() > deadline:
            raise TransientError(f"Kafka does not show its new {what}")
        time.sleep(_POLL_SECONDS)


def _answer(future: Future[T]) -> T:
    try:
        return future.result(ASK_SECONDS)
    except TimeoutError:
        raise TransientError(f"Kafka does not answer within {ASK_SECONDS:g} s") from None
