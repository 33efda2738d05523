"""Whether every event that was sent is somewhere, exactly once: applied, recorded, or buried.

The real Kafka hosts of `on-wager` and `archive` work on a log in this process. Four witnesses say
what became of each event: the dead-letter topic, the record (which folds the log on its own), the
audit log, and the metrics of `on-wager`. They have to agree, and to add up."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import sqlalchemy as sa

from audit_logs import MemoryLogs, auditor
from consuming import MemoryDirectory, MemoryProgress
from leaderboard import dead_letters, telemetry
from leaderboard.adapters import sql_engine
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.adapters.sql_snapshot import SqlSnapshots
from leaderboard.errors import Refusal
from leaderboard.events import (
    CONNECTIONS,
    GDPR_EVENTS,
    POSITION_CHANGES,
    WAGERS,
    Record,
    dead_letter_topic,
)
from leaderboard.hosts import kafka as kafka_host
from leaderboard.hosts import kafka_group
from leaderboard.hosts.kafka import KafkaHost
from leaderboard.model import Disposition, Place
from leaderboard.settings import ConsumerSettings, KafkaSettings, load
from logs import START_MS, TOMBSTONE_KEY
from ports import RestoredErasures
from simulation.kafka import Clock, Cluster, Consumer, Feed, TopicLogs
from simulation.world import Process, function

WAGERS_PARTITIONS: Final = 2
TOPICS: Final = {
    WAGERS: WAGERS_PARTITIONS,
    POSITION_CHANGES: 2,
    **dict.fromkeys((CONNECTIONS, GDPR_EVENTS), 1),
    **{dead_letter_topic(t): 1 for t in (WAGERS, POSITION_CHANGES, CONNECTIONS, GDPR_EVENTS)},
}
BATCH: Final = 500
Origin = tuple[int, int]
"""Partition and offset in `wagers`."""


@dataclass
class Account:
    """What became of a number of events."""

    sent: set[Origin] = field(default_factory=set)
    buried: dict[Origin, str] = field(default_factory=dict)
    """With the reason."""
    recorded: dict[Origin, str] = field(default_factory=dict)
    """With what the record says became of it; of those that it says were refused, too."""
    counted: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    """By the metrics: sound events by disposition, dead letters by reason."""
    twice: list[Origin] = field(default_factory=list)
    signed: list[tuple[Origin, str | None]] | None = None
    """The audit log's leaves: each with why it says that the record can't be read, else None. None
    where the log was not read."""

    def check(self) -> None:
        """Raises AssertionError naming the first events that are missing or there twice."""
        reasons, refusals = set(map(str, Disposition)), set(map(str, Refusal))
        assert not self.twice, f"buried twice: {self.twice[:5]}"
        counting = {at: what for at, what in self.recorded.items() if what in reasons}
        lost = self.sent - self.buried.keys() - counting.keys()
        assert not lost, f"{len(lost)} lost: {sorted(lost)[:5]}"
        both = self.buried.keys() & counting.keys()
        assert not both, f"{len(both)} both buried and recorded: {sorted(both)[:5]}"
        invented = (self.buried.keys() | self.recorded.keys()) - self.sent
        assert not invented, f"never sent: {sorted(invented)[:5]}"
        assert set(self.buried.values()) <= refusals, set(self.buried.values()) - refusals
        for at, what in self.recorded.items():
            assert what in reasons or self.buried.get(at) == what, f"{at}: {what}"
        assert len(self.sent) == len(self.buried) + len(counting)
        if self.signed is not None:
            assert [at for at, _ in self.signed] == sorted(self.sent), "the audit log has others"
            for at, why in self.signed:
                assert why is None or self.buried.get(at) == why, f"{at}: {why} in the log"
        told = Counter(counting.values()), Counter(self.buried.values())
        assert told == self.counted, "the metrics say something else"


class Accounts:
    """The functions, their log, and what they made of it."""

    def __init__(self, clock: Clock, cluster: Cluster, engine: sa.Engine) -> None:
        self.clock, self.cluster, self.engine = clock, cluster, engine
        self.board = MemoryBoard(TOMBSTONE_KEY, now_ms=clock.now_ms)
        self._directory, self._progress = MemoryDirectory(), MemoryProgress()
        self._feed = Feed(self.cluster, lambda what: None)
        self._counted = _counted()
        self.logs = MemoryLogs()
        self.on_wager = self._started("on-wager", WAGERS, self._make_on_wager)
        main = function("archive")
        self.archive = self._started(
            "archive", main.TOPICS, self._make_archive, decode=main.decode, buries=main.OURS
        )

    def _make_on_wager(self) -> Any:
        main = function("on-wager")
        ports = main.Ports(
            self.board,
            self._directory,
            self._progress,
            self._feed,
            RestoredErasures(),
            SqlRecord(self.engine),
            SqlSnapshots(self.engine),
        )
        return main.OnWager(ports, main.Losses(ports, self.clock.monotonic))

    def _make_archive(self) -> Any:
        main = function("archive")
        archive = SqlArchive(self.engine, TOMBSTONE_KEY, now_ms=self.clock.now_ms)
        check = main.StandingCheck(
            archive,
            self.board,
            self._directory,
            self._progress,
            self.clock.monotonic,
            self.clock.now_ms,
        )
        audit = auditor(main, self.engine, self.logs, clock=self.clock.monotonic)
        return main.Archivist(archive, audit, check)

    def _started(self, name: str, topics: Any, make: Any, **how: Any) -> Process:
        # Nearly all that is sent is unreadable here, and from one producer.
        given = {
            "KAFKA_BOOTSTRAP_SERVERS": "nowhere:1",
            "BATCH_SIZE": str(BATCH),
            "DEAD_LETTER_CAP_RATIO": "1",
        }
        kafka, settings = load(KafkaSettings, given), load(ConsumerSettings, given)
        host = KafkaHost(name, topics, make, self._feed, kafka, settings, {}, **how)
        host._group.join()
        return Process(host, host._group._consumer)  # type: ignore[arg-type]

    def take(self, records: Iterable[Record]) -> None:
        """Append them to the log, and let both functions work it off."""
        for record in records:
            self.cluster.append(record)
            self.clock.seconds += 0.001
        for process in (self.on_wager, self.archive):
            while self._behind(process):
                process.turn(BATCH)
            # What was begun is finished when nothing more comes.
            for _ in range(3):
                process.turn(BATCH)

    def _behind(self, process: Process) -> bool:
        name = process.host._name
        topics = TOPICS if name == "archive" else (WAGERS,)
        for place, log in self.cluster.logs.items():
            done = self.cluster.committed(name, place) or 0
            if place.topic in topics and done < log.end:
                return True
        return False

    def account(self) -> Account:
        signed: list[tuple[Origin, str | None]] = []
        found = Account(signed=signed)
        for number in range(WAGERS_PARTITIONS):
            log = self.cluster.logs[Place(WAGERS, number)]
            found.sent |= {(number, one.offset) for one in log.records}
            leaves = self.logs.leaves(Place(WAGERS, number))
            signed += [((number, one.offset), one.refused) for one in leaves]
        for one in self.cluster.logs[Place(dead_letter_topic(WAGERS), 0)].records:
            letter = dead_letters.read(one)
            assert isinstance(letter, dead_letters.DeadLetter)
            origin = letter.origin.partition, letter.origin_offset
            if origin in found.buried:
                found.twice.append(origin)
            found.buried[origin] = letter.reason
        found.recorded = dict(self._inputs())
        now, before = _counted(), self._counted
        found.counted = now[0] - before[0], now[1] - before[1]
        return found

    def _inputs(self) -> Iterator[tuple[Origin, str]]:
        inputs, known = tables.inputs.c, tables.tournaments.c
        asked = sa.select(known.log_partition, inputs.log_offset, inputs.disposition).join_from(
            tables.inputs, tables.tournaments, inputs.tournament_no == known.tournament_no
        )
        with self.engine.connect() as connection:
            for partition, offset, disposition in connection.execute(asked):
                yield (partition, offset), disposition

    def boards(self, names: Iterable[str]) -> Mapping[str, tuple[Any, Any]]:
        """Each tournament's standings as the board has them, and as the record has them."""
        record = SqlRecord(self.engine)
        return {name: (_rows(self.board, name), _rows(record, name)) for name in names}


def _rows(source: Any, name: str) -> list[tuple[int, str, int, int]] | None:
    view = source.top(name, 10_000)
    if view is None:
        return None
    return [(s.rank, s.player_id, s.score.score, s.score.subscore) for s in view.standings]


def _counted() -> tuple[Counter[str], Counter[str]]:
    """What the metrics say so far of sound events, by disposition, and of dead letters."""
    sound, buried = Counter[str](), Counter[str]()
    for sample in _totals(telemetry.EVENTS):
        if sample.labels["function"] == "on-wager":
            sound[sample.labels["disposition"]] += int(sample.value)
    for sample in _totals(telemetry.DEAD_LETTERS):
        if sample.labels["topic"] == WAGERS:
            buried[sample.labels["reason"]] += int(sample.value)
    # What the board refuses is in both.
    return Counter({k: n for k, n in sound.items() if k in set(map(str, Disposition))}), buried


def _totals(metric: Any) -> Iterator[Any]:
    for family in metric.collect():
        yield from (sample for sample in family.samples if sample.name.endswith("_total"))


@contextmanager
def accounts(folder: Path) -> Iterator[Accounts]:
    """The functions over a log of their own; the record is a file in `folder`."""
    clock = Clock(START_MS)
    cluster = Cluster(TOPICS, clock, lambda record: None)
    engine = sql_engine.connect(f"sqlite:///{folder / 'record.sqlite'}")
    sa.event.listen(
        engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF")
    )
    tables.metadata.create_all(engine)
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(patch.object(kafka_host, "TopicLogs", lambda *_: TopicLogs(cluster)))
        enter(patch.object(kafka_group, "Consumer", partial(Consumer, cluster)))
        for module in (kafka_host, kafka_group):
            enter(patch.object(module, "time", clock))
        stack.callback(engine.dispose)
        # A line for each refused event is right for a server, and too much for a test's report.
        logging.disable(logging.WARNING)
        stack.callback(logging.disable, logging.NOTSET)
        yield Accounts(clock, cluster, engine)
