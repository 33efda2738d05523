"""`leaderboard dlq`: what was refused, and why."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import click
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from rich.table import Table

from leaderboard.cli.context import CommandError, console, environment
from leaderboard.errors import Refusal, TransientError
from leaderboard.events import WAGERS, dead_letter_topic
from leaderboard.settings import KafkaSettings, load

TIMEOUT_SECONDS = 10.0
SHOWN_BYTES = 2000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A refused event, as it came, with the host's own headers apart."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]

    def told(self, name: str) -> str:
        """One of the host's headers (`reason`, `detail`, `topic`, `partition`, `offset`, `at`)."""
        for header, raw in reversed(self.headers):
            if header == f"dlq_{name}" and raw is not None:
                return raw.decode("utf-8", "replace")
        return ""

    @property
    def place(self) -> str:
        return f"{self.partition}:{self.offset}"


@click.group(help="Read dead-letter topics.")
def dlq() -> None:
    """Reads only; nothing is committed or taken away."""


@dlq.command("list", help="List the events that were refused from TOPIC.")
@click.argument("topic", default=WAGERS)
@click.option(
    "--reason", type=click.Choice([reason.value for reason in Refusal]), help="Only of this reason."
)
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="The newest.")
def list_(topic: str, reason: str | None, limit: int) -> None:
    """Newest last."""
    letters = [one for one in _read(topic) if reason in (None, one.told("reason"))]
    table = Table(box=None, pad_edge=False)
    for column in ("place", "reason", "from", "at", "detail"):
        table.add_column(column, overflow="fold", no_wrap=column != "detail")
    for one in sorted(letters, key=lambda letter: letter.told("at"))[-limit:]:
        origin = f"{one.told('topic')}/{one.told('partition')}@{one.told('offset')}"
        table.add_row(one.place, one.told("reason"), origin, one.told("at"), one.told("detail"))
    if letters:
        console.print(table, highlight=False, markup=False)
    console.print(f"{len(letters)} in {dead_letter_topic(topic)}", highlight=False)


@dlq.command("show", help="Show one refused event of TOPIC as it came; PLACE as `dlq list` has it.")
@click.argument("place")
@click.argument("topic", default=WAGERS)
def show(place: str, topic: str) -> None:
    """Headers first, then the value."""
    for one in _read(topic):
        if one.place == place:
            break
    else:
        raise CommandError(f"nothing at {place} in {dead_letter_topic(topic)}")
    for name, raw in one.headers:
        click.echo(f"{name}: {_text(raw)}")
    click.echo(f"key: {_text(one.key)}")
    click.echo()
    click.echo(_text(one.value))


def _text(raw: bytes | None) -> str:
    """Bytes as something that can't play tricks on a terminal."""
    if raw is None:
        return "(none)"
    text = raw[:SHOWN_BYTES].decode("utf-8", "backslashreplace")
    safe = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return safe + (f" … {len(raw)} bytes" if len(raw) > SHOWN_BYTES else "")


def _read(topic: str) -> Iterator[DeadLetter]:
    name = dead_letter_topic(topic)
    consumer = Consumer(
        {
            **load(KafkaSettings, environment()).client_config(),
            # No group is joined: partitions are assigned by hand and nothing is committed.
            "group.id": f"dlq-reader-{uuid.uuid4().hex}",
            "enable.auto.commit": False,
            "enable.partition.eof": False,
            "auto.offset.reset": "earliest",
            "log_level": 3,
        }
    )
    try:
        found = consumer.list_topics(name, timeout=TIMEOUT_SECONDS).topics[name]
        if found.error is not None:
            raise CommandError(f"there is no topic {name}")
        for partition in found.partitions:
            yield from _read_partition(consumer, name, partition)
    except KafkaException as error:
        raise TransientError(f"Kafka does not answer: {error.args[0].str()}") from None
    finally:
        consumer.close()


def _read_partition(consumer: Consumer, topic: str, partition: int) -> Iterator[DeadLetter]:
    place = TopicPartition(topic, partition)
    low, high = consumer.get_watermark_offsets(place, timeout=TIMEOUT_SECONDS)
    if low >= high:
        return
    consumer.assign([TopicPartition(topic, partition, low)])
    while True:
        message: Message | None = consumer.poll(TIMEOUT_SECONDS)
        if message is None:
            raise TransientError(f"Kafka sent nothing for {TIMEOUT_SECONDS:g} s")
        if message.error() is not None:
            raise KafkaException(message.error())
        offset = message.offset()
        if offset is None:
            continue
        yield DeadLetter(partition, offset, message.key(), message.value(), _headers(message))
        if offset + 1 >= high:
            return


def _headers(message: Message) -> list[tuple[str, bytes | None]]:
    """The client's types allow more than a consumer ever gets: bytes, in order."""
    found = message.headers() or []
    pairs = found.items() if isinstance(found, dict) else found
    return [(name, raw.encode() if isinstance(raw, str) else raw) for name, raw in pairs]
