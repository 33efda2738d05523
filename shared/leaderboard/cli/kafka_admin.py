"""`leaderboard topics` and `acls`: a Kafka cluster as the platform wants it.

For clusters without Strimzi, and to compare one that has it. KAFKA_* say where, and who the
administrator is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from leaderboard.cli.context import CommandError, console, environment
from leaderboard.settings import KafkaSettings, load

if TYPE_CHECKING:
    from leaderboard.stack.kafka_cluster import Found, KafkaCluster

_CHECK = click.option("--check", is_flag=True, help="Make nothing; tell what is missing, too.")


@click.command(
    help="Make the topics that are missing. One that differs is told and left as it is; then, and "
    "with --check for one that is missing, the exit code is 1."
)
@click.option("--partitions", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--replicas", type=click.IntRange(1, 9), default=3, show_default=True)
@click.option("--in-sync", type=click.IntRange(1, 9), default=2, show_default=True)
@_CHECK
def topics(partitions: int, replicas: int, in_sync: int, check: bool) -> int:
    """A number of partitions is never changed: a tournament would go on in another one."""
    from confluent_kafka import KafkaException

    from leaderboard.stack.kafka_cluster import Shape

    if in_sync > replicas:
        raise click.UsageError(f"--in-sync {in_sync} is above --replicas {replicas}")
    shape = Shape(partitions, replicas, in_sync)
    cluster = _cluster()
    try:
        found = cluster.compare_topics(shape)
        if not check:
            cluster.make_topics(found.missing, shape)
    except KafkaException as error:
        raise CommandError(f"Kafka refuses: {error.args[0].str()}") from None
    return _tell(found, "topic", check=check)


@click.command(
    help="Give every user of the platform the access that is missing. What one has beyond the "
    "table is told and left as it is; then, and with --check for what is missing, the exit code "
    "is 1."
)
@_CHECK
def acls(check: bool) -> int:
    """Users are named as their functions are."""
    from confluent_kafka import KafkaException

    from leaderboard.stack.access import KAFKA

    cluster = _cluster()
    try:
        found = cluster.compare_acls(KAFKA)
        if found.missing and not check:
            cluster.make_acls(KAFKA)
    except KafkaException as error:
        raise CommandError(f"Kafka refuses: {error.args[0].str()}") from None
    return _tell(found, "", check=check)


def _cluster() -> KafkaCluster:
    from leaderboard.stack.kafka_cluster import KafkaCluster

    return KafkaCluster(load(KafkaSettings, environment()).client_config())


def _tell(found: Found, what: str, *, check: bool) -> int:
    verb = "missing" if check else "made"
    for name in found.missing:
        console.print(f"{verb}: {what} {name}".replace("  ", " "), highlight=False, soft_wrap=True)
    for told in found.drift:
        console.print(f"differs: {told}", highlight=False, soft_wrap=True)
    if not found.missing and not found.drift:
        console.print("all as it should be", highlight=False)
    return 1 if found.drift or (check and found.missing) else 0
