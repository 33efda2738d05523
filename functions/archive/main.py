"""archive: the system of record, folded from the log on its own, and a witness against the board.

Every topic goes into SQL, one transaction for each batch with the offset that it reaches: `wagers`
through the same fold as the boards (inputs with what became of them, standings, terms, who stays
out), and beside them position changes, connection attempts and dead letters. Killed anywhere, it
goes on where its last transaction ended; two owners of a partition can't write a batch twice.
The audit log (auditing.py) gets a leaf for each record, from Kafka as well, guarded on its own.

While nothing presses it compares its standings with the boards, a piece at a time, and raises an
alarm where they differ. A tournament that is over is compared whole; found equal, it is confirmed,
and its board may go a day later: from then on the record alone answers.
"""

from __future__ import annotations

import leaderboard.hosts.starting  # noqa: F401 - before all else: see there

# isort: split
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from auditing import Auditor, LogPorts
from comparing import StandingCheck

from leaderboard import telemetry
from leaderboard.adapters.kafka_feed import KafkaFeed
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import connect
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.redis_progress import RedisProgress
from leaderboard.audit.log import AuditLog
from leaderboard.audit.store import LogStore, Shard
from leaderboard.audit.tiles import CHECKPOINT
from leaderboard.audit_leaves import AUDITED, log_keys
from leaderboard.codec import data_as_kept, decode_kafka
from leaderboard.errors import SettingsError, TransientError
from leaderboard.events import (
    CONNECTIONS,
    FRAUD_ALERTS,
    GDPR_EVENTS,
    POSITION_CHANGES,
    WAGERS,
    Event,
    Record,
    dead_letter_topic,
)
from leaderboard.hosts.first_use import FirstUse
from leaderboard.hosts.kafka import (
    Assignment,
    Batch,
    KafkaHost,
    Refused,
    ReplayError,
)
from leaderboard.hosts.kafka_log import TopicLogs
from leaderboard.model import Offset, Place, TournamentId
from leaderboard.partitioning import partition_of
from leaderboard.record_ports import Archive, Input
from leaderboard.settings import (
    ArchiveSettings,
    AuditWriterSettings,
    DatabaseSettings,
    KafkaSettings,
    RedisSettings,
    TombstoneSettings,
    load,
)
from leaderboard.wiring import (
    answering,
    archive_in,
    check_schema,
    engine_of,
    log_stores_of,
    pseudonyms_in,
    signer_of,
)

NAME = "archive"
OURS = (FRAUD_ALERTS, CONNECTIONS, GDPR_EVENTS)
"""Topics that nobody else reads: what can't be read there is ours to bury; elsewhere the topic's
owner does."""
LETTERS = tuple(map(dead_letter_topic, (WAGERS, POSITION_CHANGES, *OURS)))
TOPICS = (WAGERS, POSITION_CHANGES, *OURS, *LETTERS)
WORTH_A_THREAD: Final = 500
"""Smaller batches are in the record sooner than another thread would begin."""
SWITCH_SECONDS: Final = 0.001
"""How long one of the two threads may keep the other one from going on: a transaction has a dozen
short answers to wait for."""
SPACING_SECONDS: Final = 0.2
"""Between batches that are not full: nobody waits for the record by the tenth of a second."""
logger = logging.getLogger(NAME)


class Archivist:
    """The function. Safe to repeat with any batch, and to kill between any two lines."""

    def __init__(self, archive: Archive, audit: Auditor, check: StandingCheck) -> None:
        self._archive = archive
        self._audit = audit
        self._check = check
        self._owned: dict[int, str] = {}
        """Partitions of `wagers`, with their logs."""
        self._reached: dict[Place, tuple[str, Offset]] = {}
        """Where the record stood when it was last asked or written, with the log's id."""
        self._unasked: list[Place] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writing")
        self._begun: dict[tuple[Place, Offset], Future[None]] = {}

    def assigned(self, assignment: Assignment) -> Offset | None:
        """Where record or audit log stand, if that is before the group: a new one starts with what
        Kafka still has, and one that was set back reads again what it lacks."""
        place, low = assignment.place, assignment.low
        reached = self._reached_in_record(assignment)
        start = low if reached is None else max(reached, low)
        if place.topic in AUDITED:
            audited = self._audit.assigned(assignment)
            start = min(start, low if audited is None else max(audited, low))
        if assignment.committed is not None and start < assignment.committed:
            return start
        return None

    def _reached_in_record(self, assignment: Assignment) -> Offset | None:
        place = assignment.place
        reached = self._archive.reached(place, assignment.log_id)
        if place.topic == WAGERS:
            self._owned[place.partition] = assignment.log_id
        if reached is not None and reached < assignment.low:
            # Nothing can be done about it here; the comparison with the boards goes on.
            telemetry.RECORD_GAPS.inc()
            logger.critical(
                "the log has dropped what the record has not read",
                extra=telemetry.fields(
                    topic=place.topic,
                    partition=place.partition,
                    reached=reached,
                    oldest=assignment.low,
                ),
            )
        if reached is not None:
            self._reached[place] = (assignment.log_id, reached)
        return reached

    def revoked(self, place: Place) -> None:
        self._audit.revoked(place)
        self._reached.pop(place, None)
        if place.topic == WAGERS:
            self._owned.pop(place.partition, None)

    def begin(self, batch: Batch) -> None:
        """Take one partition's batch into the record: all of it, or nothing. A large one beside
        the host's thread, which reads the next one while the database works."""
        if len(batch.records) >= WORTH_A_THREAD:
            self._begun[_name_of(batch)] = self._writer.submit(self._take_in, batch)

    def join(self, batch: Batch) -> None:
        """The record has it."""
        begun = self._begun.get(_name_of(batch))
        if begun is None:
            self._take_in(batch)
            begun = self._begun[_name_of(batch)] = Future()
            begun.set_result(None)
        begun.result()
        self._reached[batch.place] = (batch.log_id, batch.next_offset)

    def forget(self, batch: Batch) -> None:
        """Wait for what can't be called back: it may be in the record or not."""
        begun = self._begun.pop(_name_of(batch), None)
        if begun is not None and not begun.cancel():
            wait([begun])

    def _take_in(self, batch: Batch) -> None:
        place, log_id, upto = batch.place, batch.log_id, batch.next_offset
        self._check_stands(place)
        match place.topic:
            case "wagers":
                self._fold(batch)
            case "position-changes":
                self._archive.keep_changes(place, log_id, batch.entries, upto)
            case "fraud-alerts":
                self._archive.keep_alerts(place, log_id, batch.entries, upto)
            case "connections":
                self._archive.keep_attempts(place, log_id, batch.entries, upto)
            case "gdpr-events":
                self._archive.forget(place, log_id, batch.entries, upto)
            case _:
                self._archive.keep_dead_letters(place, log_id, batch.records, upto)
        self._audit.take_in(batch)

    def _check_stands(self, place: Place) -> None:
        """A database that was set back, or failed over without its tail, under our feet would get
        a hole: what it lacks is read again. Raises ReplayError."""
        if place not in self._reached:
            return
        log_id, known = self._reached[place]
        reached = self._archive.reached(place, log_id)
        if reached is not None and reached >= known:
            return
        del self._reached[place]
        logger.critical(
            "the record has lost what it had",
            extra=telemetry.fields(
                topic=place.topic, partition=place.partition, reached=reached, known=known
            ),
        )
        raise ReplayError(reached, place)

    def _fold(self, batch: Batch) -> None:
        folded = self._archive.fold(batch.place, batch.log_id, inputs_of(batch), batch.next_offset)
        for verdict, count in Counter(folded.verdicts).items():
            telemetry.EVENTS.labels(NAME, verdict.value).inc(count)
        if folded.repeats:
            telemetry.LATE_REPEATS.inc(folded.repeats)
            logger.error(
                "events were repeated after their ids had been forgotten, and counted again",
                extra=telemetry.fields(partition=batch.partition, events=folded.repeats),
            )

    def handle(self, batch: Batch) -> Sequence[Refused]:
        """Nothing is left to do: effects and offset are one transaction."""
        return ()

    def settle(self, batch: Batch) -> None:
        """Nothing is left to confirm."""
        del self._begun[_name_of(batch)]

    def safe(self, place: Place, next_offset: Offset) -> Offset:
        return next_offset

    def tick(self) -> float:
        """Ask one partition at a time whether the record still has it, then compare a piece."""
        if not self._unasked:
            self._unasked = list(self._reached)
        if self._unasked:
            self._check_stands(self._unasked.pop())
        return min(self._check.look(self._owned), self._audit.tick())


def _name_of(batch: Batch) -> tuple[Place, Offset]:
    return batch.place, batch.next_offset


def inputs_of(batch: Batch) -> list[Input]:
    """The events of a batch with their data as they came."""
    first = batch.records[0].offset
    is_dense = batch.records[-1].offset - first == len(batch.records) - 1
    by_offset = {} if is_dense else {record.offset: record for record in batch.records}
    found: list[Input] = []
    for entry in batch.entries:
        at = entry.offset
        record = batch.records[at - first] if is_dense else by_offset[at]
        found.append(Input(entry, data_as_kept(record, entry.event).decode()))
    return found


def decode(record: Record) -> Event | None:
    """The event of a record; a dead letter is kept as it is."""
    return None if record.topic in LETTERS else decode_kafka(record)


# --- wiring --------------------------------------------------------------------------------------


class AuditShards:
    """The logs of all shards, as this deployment's key signs them."""

    def __init__(self, settings: AuditWriterSettings) -> None:
        self._stores = log_stores_of(settings)
        self._signer = signer_of(settings)
        self._origin = settings.origin
        parts = urlsplit(settings.url)
        self._folder = Path(unquote(parts.path)) if parts.scheme == "file" else None
        self.auditor: Auditor | None = None
        """Who writes them, once there is somebody."""

    def open(self, place: Place) -> tuple[LogStore, AuditLog]:
        """Where the shard's files are, and the log in them. Raises TransientError while the
        store is away."""
        self._check_folder()
        store = self._stores.shard(Shard(*place))
        return store, AuditLog.open(store, f"{self._origin}/{place}", self._signer)

    def check(self) -> None:
        """One short question. Raises TransientError while the store is away, or a log waits."""
        self._check_folder()
        self._stores.shard(Shard(WAGERS, 0)).read(CHECKPOINT)
        if self.auditor is not None:
            self.auditor.check()

    def _check_folder(self) -> None:
        """A volume that is not mounted looks like a folder with nothing in it that can be made."""
        if self._folder is not None and not self._folder.is_dir():
            raise TransientError(f"AUDIT_LOG_URL: there is no folder {self._folder}")


class ChangesLog:
    """Where position changes lie. Connects on first use."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._logs = TopicLogs([POSITION_CHANGES], kafka)

    def end(self, tournament_id: TournamentId) -> tuple[Place, Offset]:
        """The partition of a tournament's changes, and the offset that the next one gets."""
        number = partition_of(tournament_id.encode(), self._logs.partitions(POSITION_CHANGES))
        place = Place(POSITION_CHANGES, number)
        return place, self._logs.span(place)[1]


def consume() -> None:
    """Run the Kafka host until it is told to stop."""
    kafka, consumer = load(KafkaSettings, os.environ), load(ArchiveSettings, os.environ)
    redis, tombstones = load(RedisSettings, os.environ), load(TombstoneSettings, os.environ)
    database, log = load(DatabaseSettings, os.environ), load(AuditWriterSettings, os.environ)
    telemetry.log_json()
    sys.setswitchinterval(SWITCH_SECONDS)
    engine = engine_of(database)
    client = FirstUse(lambda: connect(redis.url))
    shards = AuditShards(log)

    def function() -> Archivist:
        check_schema(engine)
        key = tombstones.bytes()
        archive, progress = archive_in(engine, key), RedisProgress(client())
        board, directory = RedisBoard(client(), key), RedisDirectory(client())
        check = StandingCheck(archive, board, directory, progress)
        pseudonyms, changes = pseudonyms_in(engine, key), ChangesLog(kafka)
        ports = LogPorts(log.origin, shards.open, pseudonyms, progress, changes.end)
        shards.auditor = Auditor(ports, log_keys(key))
        return Archivist(archive, shards.auditor, check)

    ready = {"database": answering(engine), "audit log": shards.check}
    KafkaHost(
        NAME,
        TOPICS,
        function,
        KafkaFeed(kafka),
        kafka,
        consumer,
        ready,
        decode=decode,
        buries=OURS,
        spacing_seconds=SPACING_SECONDS,
    ).run()


if __name__ == "__main__":
    try:
        consume()
    except SettingsError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
