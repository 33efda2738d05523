"""archive: the system of record, folded from the log on its own, and a witness against the board.

Every topic goes into SQL, one transaction for each batch with the offset that it reaches: `wagers`
through the same fold as the boards (inputs with what became of them, standings, terms, who stays
out), and beside them position changes, connection attempts and dead letters. Killed anywhere, it
goes on where its last transaction ended; two owners of a partition can't write a batch twice.

While nothing presses it compares its standings with the boards, a piece at a time, and raises an
alarm where they differ. A tournament that is over is compared whole; found equal, it is confirmed,
and its board may go a day later: from then on the record alone answers.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final

from leaderboard import telemetry
from leaderboard.adapters import sql_engine, sql_migrations
from leaderboard.adapters.kafka_feed import KafkaFeed
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import connect
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.redis_progress import RedisProgress
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.codec import JSON_TYPE, decode_kafka
from leaderboard.errors import SettingsError, TransientError
from leaderboard.events import (
    CONNECTIONS,
    GDPR_EVENTS,
    POSITION_CHANGES,
    WAGERS,
    Event,
    Record,
    dead_letter_topic,
)
from leaderboard.fold import LogEntry
from leaderboard.hosts.first_use import FirstUse
from leaderboard.hosts.kafka import (
    Assignment,
    Batch,
    KafkaHost,
    RecordSink,
    Refused,
    ReplayError,
)
from leaderboard.model import BOARD_KEPT_MS, ERASED, Offset, Place, TournamentId
from leaderboard.ports import Board, Directory, PlayerRow, Progress
from leaderboard.record_ports import Archive, Input, Ledger, LedgerPage
from leaderboard.settings import (
    ArchiveSettings,
    DatabaseSettings,
    KafkaSettings,
    RedisSettings,
    TombstoneSettings,
    load,
)

NAME = "archive"
OURS = (CONNECTIONS, GDPR_EVENTS)
"""Topics that nobody else reads: what can't be read there is ours to bury."""
LETTERS = tuple(map(dead_letter_topic, (WAGERS, POSITION_CHANGES, *OURS)))
TOPICS = (WAGERS, POSITION_CHANGES, *OURS, *LETTERS)
PLAIN: Final = ("content-type", JSON_TYPE.encode())
"""How nearly all say that their value is the data alone."""
WORTH_A_THREAD: Final = 500
"""Smaller batches are in the record sooner than another thread would begin."""
SWITCH_SECONDS: Final = 0.001
"""How long one of the two threads may keep the other one from going on: a transaction has a dozen
short answers to wait for."""
SPACING_SECONDS: Final = 0.2
"""Between batches that are not full: nobody waits for the record by the tenth of a second."""
LOOK_SECONDS = 1.0
"""How often a piece of a live tournament is compared with its board."""
LIVE_PIECE = 1_000
FINAL_LOOK_SECONDS = 0.1
FINAL_PIECE = 5_000
logger = logging.getLogger(NAME)


class Archivist:
    """The function. Safe to repeat with any batch, and to kill between any two lines."""

    def __init__(self, archive: Archive, check: StandingCheck) -> None:
        self._archive = archive
        self._check = check
        self._owned: dict[int, str] = {}
        """Partitions of `wagers`, with their logs."""
        self._reached: dict[Place, tuple[str, Offset]] = {}
        """Where the record stood when it was last asked or written, with the log's id."""
        self._unasked: list[Place] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writing")
        self._begun: dict[tuple[Place, Offset], Future[None]] = {}

    def assigned(self, assignment: Assignment) -> Offset | None:
        """Where the record stands, if that is before the group: a new database starts with what
        the log still has, and one that was set back reads again what it lacks."""
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
        start = assignment.low if reached is None else max(reached, assignment.low)
        if assignment.committed is not None and start < assignment.committed:
            return start
        return None

    def revoked(self, place: Place) -> None:
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
            case "connections":
                self._archive.keep_attempts(place, log_id, batch.entries, upto)
            case "gdpr-events":
                self._archive.forget(place, log_id, batch.entries, upto)
            case _:
                self._archive.keep_dead_letters(place, log_id, batch.records, upto)

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
        return self._check.look(self._owned)


def _name_of(batch: Batch) -> tuple[Place, Offset]:
    return batch.place, batch.next_offset


def inputs_of(batch: Batch) -> list[Input]:
    """The events of a batch with their data as they came."""
    first = batch.records[0].offset
    is_dense = batch.records[-1].offset - first == len(batch.records) - 1
    by_offset = {} if is_dense else {record.offset: record for record in batch.records}
    return [
        Input(
            entry,
            _body(
                batch.records[entry.offset - first] if is_dense else by_offset[entry.offset], entry
            ),
        )
        for entry in batch.entries
    ]


def _body(record: Record, entry: LogEntry) -> str:
    if PLAIN in record.headers and record.value is not None:
        return record.value.decode()
    for name, value in record.headers:
        if name.lower() == "content-type" and value and value.startswith(b"application/cloud"):
            # The data lay inside of the event, and were taken out to be read.
            return entry.event.data.model_dump_json(exclude_unset=True)
    return (record.value or b"").decode()


def decode(record: Record) -> Event | None:
    """The event of a record; a dead letter is kept as it is."""
    return None if record.topic in LETTERS else decode_kafka(record)


# --- the comparison with the boards --------------------------------------------------------------


@dataclass(slots=True)
class _Pass:
    """One tournament being compared: where it goes on, and what has to be looked at again."""

    ledger: Ledger
    partition: int
    after: int = -1
    is_clean: bool = True
    suspected: bool = False
    """The piece differed, and is being looked at again."""


class StandingCheck:
    """Compares record and boards, one bounded piece at a time. `clock` counts seconds.

    Board and record are never at rest, so a row is compared by the sequence at which it was
    reached: what one of the two can't know yet is no difference. One that is still there when
    the same piece is looked at again is, and an operator has to know."""

    def __init__(
        self,
        archive: Archive,
        board: Board,
        directory: Directory,
        progress: Progress,
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._archive = archive
        self._board = board
        self._directory = directory
        self._progress = progress
        self._clock = clock
        self._now_ms = now_ms
        self._next_at = -math.inf
        self._waiting: list[_Pass] = []

    def look(self, owned: dict[int, str]) -> float:
        """Compare the next piece, when it is time; the seconds until the next one."""
        now = self._clock()
        if now < self._next_at:
            return self._next_at - now
        wait = LOOK_SECONDS
        try:
            wait = self._look(owned)
        except TransientError as error:
            logger.warning("can't compare now", extra=telemetry.fields(error=str(error)))
        self._next_at = self._clock() + wait
        return wait

    def _look(self, owned: dict[int, str]) -> float:
        if not self._waiting:
            self._waiting = [
                _Pass(ledger, partition)
                for partition in owned
                for ledger in self._archive.ledgers(partition)
            ]
        while self._waiting:
            current = self._waiting[0]
            log_id = owned.get(current.partition)
            if log_id is None:
                self._waiting.pop(0)
            elif current.ledger.confirmed_at_ms is not None:
                self._let_go(current, log_id)
                self._waiting.pop(0)
            else:
                return self._compare_piece(current, log_id)
        return LOOK_SECONDS

    def _compare_piece(self, current: _Pass, log_id: str) -> float:
        ledger = current.ledger
        limit = FINAL_PIECE if ledger.is_over else LIVE_PIECE
        page = self._archive.page(ledger.tournament_id, current.after, limit)
        if page is None:
            self._waiting.pop(0)
            return LOOK_SECONDS
        found = self._board.rows(ledger.tournament_id, [row.player_id for row in page.rows])
        if found is None:
            # Being rebuilt, or not there yet.
            self._waiting.pop(0)
            return LOOK_SECONDS
        board_sequence, theirs = found
        differing = sum(
            differs(mine, other, page.sequence, board_sequence)
            for mine, other in zip(page.rows, theirs, strict=True)
        )
        if differing:
            current.is_clean = False
            if not current.suspected:
                current.suspected = True
                return FINAL_LOOK_SECONDS
            alarm("board and record differ", ledger, differing, board_sequence, page.sequence)
        current.suspected = False
        telemetry.RECORD_COMPARED.inc(len(page.rows))
        if board_sequence != page.sequence:
            current.is_clean = False
        if page.last is not None:
            current.after = page.last
            return FINAL_LOOK_SECONDS if ledger.is_over else LOOK_SECONDS
        self._waiting.pop(0)
        if self._counts_agree(ledger, page) and ledger.is_over and current.is_clean:
            self._confirm(current, log_id, page.sequence)
        return LOOK_SECONDS

    def _counts_agree(self, ledger: Ledger, page: LedgerPage) -> bool:
        """Every row of the record is on the board; with as many there, the two are equal. False
        also where it can't be told, because one of the two is further."""
        view = self._board.top(ledger.tournament_id, 1)
        if view is None or view.sequence != page.sequence:
            return False
        if view.players == page.players:
            return True
        differing = abs(view.players - (page.players or 0))
        alarm(
            "board and record differ in the number of players",
            ledger,
            differing,
            view.sequence,
            page.sequence,
        )
        return False

    def _confirm(self, current: _Pass, log_id: str, sequence: Offset) -> None:
        tournament_id = current.ledger.tournament_id
        at_ms = self._archive.confirm(tournament_id, sequence)
        if at_ms is None:
            return
        logger.info("confirmed", extra=telemetry.fields(tournament=tournament_id))
        self._board.expire(tournament_id, sequence, at_ms + BOARD_KEPT_MS)
        self._progress.forget(log_id, current.partition, [tournament_id])

    def _let_go(self, current: _Pass, log_id: str) -> None:
        """Again for each that was confirmed: a board that was rebuilt since has no end yet."""
        ledger = current.ledger
        if ledger.confirmed_at_ms is None:
            return
        ends_ms = ledger.confirmed_at_ms + BOARD_KEPT_MS
        tournament_id: TournamentId = ledger.tournament_id
        self._board.expire(tournament_id, ledger.sequence, ends_ms)
        self._progress.forget(log_id, current.partition, [tournament_id])
        if self._now_ms() >= ends_ms:
            self._directory.remove(tournament_id)


def alarm(what: str, ledger: Ledger, players: int, board: Offset, record: Offset) -> None:
    """An operator has to know: one of the two witnesses is wrong."""
    telemetry.RECORD_DIFFERENCES.inc(players)
    logger.error(
        what,
        extra=telemetry.fields(
            tournament=ledger.tournament_id, players=players, board=board, record=record
        ),
    )


def differs(
    mine: PlayerRow, theirs: PlayerRow | None, sequence: Offset, board_sequence: Offset
) -> bool:
    """Whether a row of the record and one of the board contradict each other.

    `sequence` is what the record has come to, `board_sequence` what the board has."""
    if theirs is None:
        if board_sequence < sequence and mine.player_id.startswith(ERASED):
            # Erased after the end: a board that has not come to that shows the player's name.
            return False
        # A board that is further may have lost the player; one that is not has to have them.
        return board_sequence <= sequence and mine.reached <= board_sequence
    if mine.reached == theirs.reached:
        return mine.score != theirs.score
    newer, other = (mine.reached, board_sequence)
    if theirs.reached > mine.reached:
        newer, other = (theirs.reached, sequence)
    return newer <= other


# --- wiring --------------------------------------------------------------------------------------


class OwnLetters:
    """Buries what can't be read in our own topics; elsewhere the topic's owner does."""

    def __init__(self, sink: RecordSink) -> None:
        self._sink = sink
        self._topics = frozenset(map(dead_letter_topic, OURS))

    def send(self, records: Iterable[Record]) -> None:
        own = [record for record in records if record.topic in self._topics]
        if own:
            self._sink.send(own)


def consume() -> None:
    """Run the Kafka host until it is told to stop."""
    kafka, consumer = load(KafkaSettings, os.environ), load(ArchiveSettings, os.environ)
    redis, tombstones = load(RedisSettings, os.environ), load(TombstoneSettings, os.environ)
    database = load(DatabaseSettings, os.environ)
    telemetry.log_json()
    sys.setswitchinterval(SWITCH_SECONDS)
    engine = sql_engine.connect(database.url)
    client = FirstUse(lambda: connect(redis.url))

    def function() -> Archivist:
        sql_migrations.check(engine)
        archive = SqlArchive(engine, tombstones.bytes())
        board, directory = RedisBoard(client(), tombstones.bytes()), RedisDirectory(client())
        check = StandingCheck(archive, board, directory, RedisProgress(client()))
        return Archivist(archive, check)

    ready = {"database": lambda: sql_engine.check(engine)}
    letters = OwnLetters(KafkaFeed(kafka))
    KafkaHost(
        NAME,
        TOPICS,
        function,
        letters,
        kafka,
        consumer,
        ready,
        decode=decode,
        spacing_seconds=SPACING_SECONDS,
    ).run()


if __name__ == "__main__":
    try:
        consume()
    except SettingsError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
