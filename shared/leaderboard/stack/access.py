"""Who may do what in Kafka: one table, for each function and for those around the platform.

A function's user has the function's name; KEDA asks for its lag as that user, too. `leaderboard
acls` puts the table into a cluster, `leaderboard manifests` writes it as `KafkaUser`s; tests run
each function as its user on a broker that refuses all else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from leaderboard import events as ev
from leaderboard.hosts.kafka_log import ASKING_GROUP
from leaderboard.stack.topics import READ_BY_US

RELAY: Final = "relay"
OPERATOR: Final = "operator"


@dataclass(frozen=True, slots=True)
class KafkaRights:
    """What a user does with topics and groups, by name.

    Whoever reads or writes a topic, or takes part in a group, may describe it: Kafka says so
    itself. An idempotent producer needs no right beyond writing (Kafka 2.8 and later); nobody
    uses transactions, and nobody may create, alter or delete anything."""

    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    """Taken part in: joined, and committed to."""
    describes_groups: frozenset[str] = frozenset()
    """Whose place is asked for."""

    def acls(self) -> frozenset[Acl]:
        return frozenset(
            Acl(kind, name, operation)
            for kind, operation, names in (
                ("topic", "Read", self.reads),
                ("topic", "Write", self.writes),
                ("group", "Read", self.groups),
                ("group", "Describe", self.describes_groups),
            )
            for name in names
        )


@dataclass(frozen=True, slots=True, order=True)
class Acl:
    """One operation that is allowed on one topic or group."""

    kind: str
    name: str
    operation: str


def _consumer(name: str, reads: set[str], writes: set[str]) -> KafkaRights:
    """`ASKING_GROUP` is never joined: a client that reads beside its group has to name one."""
    return KafkaRights(
        reads=frozenset(reads),
        writes=frozenset(writes),
        groups=frozenset({name}),
        describes_groups=frozenset({ASKING_GROUP}),
    )


def _letters(*names: str) -> set[str]:
    return {ev.dead_letter_topic(name) for name in names}


def _producer(*names: str) -> KafkaRights:
    return KafkaRights(writes=frozenset(names))


_ARCHIVED: Final = (
    ev.WAGERS, ev.POSITION_CHANGES, ev.FRAUD_ALERTS, ev.CONNECTIONS, ev.GDPR_EVENTS,
)  # fmt: skip
KAFKA: Final[Mapping[str, KafkaRights]] = {
    "on-wager": _consumer(
        "on-wager",
        {ev.WAGERS},
        {ev.POSITION_CHANGES, ev.FRAUD_ALERTS, *_letters(ev.WAGERS)},
    ),
    "on-wager-http": _producer(ev.WAGERS),
    "on-rank-change": _consumer(
        "on-rank-change", {ev.POSITION_CHANGES}, _letters(ev.POSITION_CHANGES)
    ),
    "archive": _consumer(
        "archive",
        {*_ARCHIVED, *_letters(*_ARCHIVED)},
        _letters(ev.FRAUD_ALERTS, ev.CONNECTIONS, ev.GDPR_EVENTS),
    ),
    "query": KafkaRights(),
    "on-connect": _producer(ev.CONNECTIONS),
    "erase": _producer(ev.WAGERS, ev.GDPR_EVENTS),
    "tournament": _producer(ev.WAGERS, ev.FRAUD_ALERTS),
    # Around the platform: a game platform's outbox, and staff with `dlq` and `rebuild`.
    RELAY: _producer(ev.WAGERS),
    OPERATOR: KafkaRights(
        reads=frozenset(_letters(*READ_BY_US)),
        writes=frozenset({*READ_BY_US, *_letters(*READ_BY_US)}),
        describes_groups=frozenset({"on-wager", ASKING_GROUP}),
    ),
}
