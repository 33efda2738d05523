"""A dead-letter topic as the command line reads it: all of it, in no group, committing nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from leaderboard.cli.context import CommandError
from leaderboard.dead_letters import DeadLetter, Mark, read
from leaderboard.errors import TransientError
from leaderboard.events import Record, dead_letter_topic
from leaderboard.hosts.kafka_log import ASKING_GROUP, record_of
from leaderboard.settings import KafkaSettings, load

TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Kept:
    """A dead letter, without its copies, and what was done about it."""

    letter: DeadLetter
    mark: Mark | None

    @property
    def place(self) -> str:
        """Its name for `dlq`: partition and offset in the dead-letter topic."""
        return f"{self.letter.record.partition}:{self.letter.record.offset}"


def dead_letters(
    settings: Mapping[str, str],
    topic: str,
    wanted: Callable[[DeadLetter], bool],
    *,
    with_values: bool = True,
) -> list[Kept]:
    """The wanted ones of `topic`, in the order of the log that they came from.

    Raises CommandError without such a topic, and TransientError."""
    letters: dict[object, DeadLetter] = {}
    marks: dict[object, Mark] = {}
    for record in _records(settings, topic):
        found = read(record)
        if isinstance(found, Mark):
            marks[found.identity] = found
        elif found is not None and wanted(found):
            if not with_values:
                found = read(record._replace(value=None))
            if isinstance(found, DeadLetter):
                letters[found.identity] = found
    kept = []
    for identity, letter in letters.items():
        mark = marks.get(identity)
        # A copy behind the mark is not what somebody has looked at.
        covers = mark is not None and letter.record.offset <= mark.offset
        kept.append(Kept(letter, mark if covers else None))
    return sorted(kept, key=lambda one: (one.letter.origin, one.letter.origin_offset))


def _records(settings: Mapping[str, str], topic: str) -> Iterator[Record]:
    name = dead_letter_topic(topic)
    consumer = Consumer(
        {
            **load(KafkaSettings, settings).client_config(),
            # No group is joined: partitions are assigned by hand and nothing is committed.
            "group.id": ASKING_GROUP,
            "enable.auto.commit": False,
            "enable.partition.eof": False,
            "auto.offset.reset": "earliest",
            "log_level": 2,
        }
    )
    try:
        found = consumer.list_topics(name, timeout=TIMEOUT_SECONDS).topics[name]
        if found.error is not None:
            raise CommandError(f"there is no topic {name}")
        for partition in found.partitions:
            yield from _partition(consumer, name, partition)
    except KafkaException as error:
        raise TransientError(f"Kafka does not answer: {error.args[0].str()}") from None
    finally:
        consumer.close()


def _partition(consumer: Consumer, topic: str, partition: int) -> Iterator[Record]:
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
        record = record_of(message, topic, partition)
        yield record
        if record.offset + 1 >= high:
            return
