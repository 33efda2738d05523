"""An audit log with its record and its boards, played through in this process: what `archive`
writes of a random log, by the same parts, and the log's files in a folder."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from leaderboard.adapters.directory_log import DirectoryLogStore
from leaderboard.adapters.kafka_feed import change_record
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.adapters.sql_fold import SqlFold
from leaderboard.adapters.sql_pseudonyms import SqlPseudonyms
from leaderboard.adapters.sql_witness import witness_of
from leaderboard.audit.log import AuditLog
from leaderboard.audit.notes import Signer
from leaderboard.audit.reader import AuditReader
from leaderboard.audit_accounts import Fault, Report
from leaderboard.audit_alerts import AlertCheck
from leaderboard.audit_beside import AttemptCheck, CountedBeside, Forgotten
from leaderboard.audit_boards import pages_of
from leaderboard.audit_leaves import Leaves, LogKeys, Who, leaves_of, log_keys, who
from leaderboard.audit_rebuild import Counted, Ends, PartitionRebuild, Scope
from leaderboard.codec import data_as_kept, decode_kafka, encode_kafka
from leaderboard.errors import Refusal, RefusedError
from leaderboard.events import (
    CONNECTIONS,
    FRAUD_ALERTS,
    GDPR_EVENTS,
    POSITION_CHANGES,
    WAGERS,
    PlayerErased,
    Record,
)
from leaderboard.fold import LogEntry
from leaderboard.model import (
    REMEMBERED_IDS,
    Offset,
    Place,
    PositionChange,
    TournamentId,
    erasure_id_of,
)
from leaderboard.ports import Board
from leaderboard.record_ports import Ending, Input, Witness
from logs import START_MS, TOMBSTONE_KEY

ORIGIN = "tests.example/audit"
LOG_ID = "wagers/topic-one/0"
CHANGES_LOG_ID = "position-changes/topic-two/0"
ALL = Offset(2**62)
BESIDE = (CONNECTIONS, FRAUD_ALERTS, GDPR_EVENTS)


@dataclass
class AuditedPlay:
    """One partition. `take` does what on-wager and archive do with a piece of the log."""

    folder: Path
    engine: sa.Engine
    board: Board
    window: int = REMEMBERED_IDS
    signer: Signer = field(default_factory=lambda: Signer.generate(ORIGIN))
    told: int = 0
    """Next offset of `position-changes`."""

    def __post_init__(self) -> None:
        self.keys = log_keys(TOMBSTONE_KEY)
        self.pseudonyms = SqlPseudonyms(self.engine, TOMBSTONE_KEY)
        self.fold = SqlFold(self.engine, TOMBSTONE_KEY, self.window, now_ms=lambda: START_MS)
        self.archive = SqlArchive(self.engine, TOMBSTONE_KEY, self.window, now_ms=lambda: START_MS)
        self.logs = {
            place: AuditLog.open(self.store(place), f"{ORIGIN}/{place}", self.signer)
            for place in (Place(topic, 0) for topic in (WAGERS, POSITION_CHANGES, *BESIDE))
        }
        self.ended: dict[Who, Offset] = {}

    def store(self, place: Place) -> DirectoryLogStore:
        return DirectoryLogStore(self.folder / place.topic / str(place.partition))

    def take(
        self,
        entries: Sequence[LogEntry],
        unreadable: Iterable[Record] = (),
        record_of: Callable[[LogEntry], Record] | None = None,
    ) -> None:
        """The next piece of the log; `record_of`: as which records its events came."""
        records = [(record_of or binary)(entry) for entry in entries]
        bodies = [
            data_as_kept(record, entry.event).decode()
            for record, entry in zip(records, entries, strict=True)
        ]
        inputs = [Input(entry, body) for entry, body in zip(entries, bodies, strict=True)]
        end = Offset(entries[-1].offset + 1)
        self.fold.apply(0, LOG_ID, inputs, end)
        refused = {one.offset: _refusal_of(one) for one in unreadable}
        everything = sorted([*records, *unreadable], key=lambda one: one.offset)
        self._append(Place(WAGERS, 0), LOG_ID, everything, entries, refused)
        self.tell(self._changes(entries))

    def _changes(self, entries: Sequence[LogEntry]) -> list[PositionChange]:
        by_tournament: defaultdict[TournamentId, list[LogEntry]] = defaultdict(list)
        for entry in entries:
            by_tournament[TournamentId(str(entry.event.tournament_id))].append(entry)
        found: list[PositionChange] = []
        for name, some in by_tournament.items():
            found += self.board.apply(name, "board", None, some, None).unconfirmed
            self.board.apply(name, "board", None, [], ALL)
        return found

    def tell(self, changes: Sequence[PositionChange]) -> None:
        """Changes into `position-changes`, and from there into record and log."""
        if not changes:
            return
        records, entries = [], []
        for change in changes:
            plain = change_record(change)
            placed = plain._replace(partition=0, offset=self.told, timestamp_ms=START_MS)
            self.told += 1
            records.append(placed)
            entries.append(LogEntry(Offset(placed.offset), START_MS, decode_kafka(placed)))
        place = Place(POSITION_CHANGES, 0)
        self.archive.keep_changes(place, CHANGES_LOG_ID, entries, Offset(self.told))
        self._append(place, CHANGES_LOG_ID, records, entries, {})

    def keep(self, topic: str, entries: Sequence[LogEntry]) -> None:
        """The next piece of a topic that stands beside the fold, into record and log."""
        place, log_id = Place(topic, 0), f"{topic}/topic-three/0"
        end = Offset(entries[-1].offset + 1)
        keep = {
            CONNECTIONS: self.archive.keep_attempts,
            FRAUD_ALERTS: self.archive.keep_alerts,
            GDPR_EVENTS: self.archive.forget,
        }
        keep[topic](place, log_id, entries, end)
        self._append(place, log_id, [binary(one, topic) for one in entries], entries, {})
        if topic == GDPR_EVENTS:
            erased = [one.event.player_id for one in entries if one.event.player_id]
            self.pseudonyms.destroy_beside(erased)

    def _append(
        self,
        place: Place,
        log_id: str,
        records: Sequence[Record],
        entries: Sequence[LogEntry],
        refused: Mapping[int, Refusal],
    ) -> None:
        is_inputs = place.topic == WAGERS
        wanted = {one for entry in entries if (one := who(place.topic, entry.event)) is not None}
        known = self.pseudonyms.of(wanted, of_wagers=is_inputs)
        ended: dict[Who, Offset] = {}
        if is_inputs:
            erased: dict[Who, Offset] = {}
            for entry in reversed(entries):
                whose = who(WAGERS, entry.event)
                if isinstance(entry.event.data, PlayerErased) and whose is not None:
                    erased[whose] = entry.offset
            ended = {whose: one.ended for whose, one in known.items() if one.ended is not None}
            ended |= self.pseudonyms.end(0, erased) if erased else {}
            self.ended |= ended
        leaves = Leaves(place, log_id, self.keys)
        made = leaves_of(
            leaves, records, entries, refused, {w: one.key for w, one in known.items()}, ended
        )
        self.logs[place].append(made)

    def destroy_keys(self) -> int:
        """Of all players that were erased; how many there were."""
        endings = [
            Ending(TournamentId(t), erasure_id_of(TOMBSTONE_KEY, p), at, None, Offset(0))
            for (t, p), at in self.ended.items()
        ]
        self.pseudonyms.destroy(endings)
        return len(endings)

    def entries(self, topic: str) -> list[bytes]:
        """The signed entries of a shard."""
        place = Place(topic, 0)
        if self.logs[place].checkpoint is None:
            return []
        reader = AuditReader.open(self.store(place), f"{ORIGIN}/{place}", self.signer.verifier)
        return list(reader.entries())

    def rebuild(
        self,
        *,
        board: Board | None = None,
        log_only: bool = False,
        late_before_ms: int = START_MS + 1,
        inputs: Sequence[bytes] | None = None,
        changes: Sequence[bytes] | None = None,
    ) -> tuple[list[Fault], Counted]:
        """What the audit finds; boards are compared where one is given."""
        faults: list[Fault] = []
        inputs = self.entries(WAGERS) if inputs is None else inputs
        changes = self.entries(POSITION_CHANGES) if changes is None else changes
        with witness_of(self.engine, TOMBSTONE_KEY) as witness:
            ends = witness.ends()
            names = [one.tournament_id for one in witness.accounts(0)]
            pages = {} if board is None else {name: pages_of(board, name) for name in names}
            scope = Scope(witness, self.keys, pages, late_before_ms)
            upto = Ends(ends[Place(WAGERS, 0)][1], ends[Place(POSITION_CHANGES, 0)][1])
            if log_only:
                scope, upto = Scope(late_before_ms=late_before_ms), Ends()
            partition = PartitionRebuild(0, scope, faults.append, self.window)
            partition.run(inputs, changes, upto)
        return faults, partition.counted


def compare_beside(
    witness: Witness,
    keys: LogKeys,
    partition: PartitionRebuild,
    entries: Mapping[str, Sequence[bytes]],
    report: Report,
    kept_since_ms: int = 0,
    late_since_ms: int = sys.maxsize,
) -> CountedBeside:
    """What the command does when all of `wagers` is folded; `entries` of each topic."""
    counted, forgotten = CountedBeside(), Forgotten(late_since_ms=late_since_ms)
    forgotten.take(partition.replay.tournaments, partition.erased_names())
    ends = {place.topic: at for place, (_, at) in witness.ends().items()}
    end = ends.get(GDPR_EVENTS, Offset(0))
    forgotten.take_notices(Place(GDPR_EVENTS, 0), entries[GDPR_EVENTS], end, report)
    attempts = AttemptCheck(witness, keys, forgotten, report, kept_since_ms)
    end = ends.get(CONNECTIONS, Offset(0))
    attempts.run(Place(CONNECTIONS, 0), entries[CONNECTIONS], end, counted)
    attempts.finish()
    alerts = AlertCheck(witness, keys, forgotten, report)
    place = Place(FRAUD_ALERTS, 0)
    alerts.take(place, entries[FRAUD_ALERTS], ends.get(FRAUD_ALERTS, Offset(0)))
    alerts.run(partition.gone(), partition.suspects.found, counted)
    return counted


def binary(entry: LogEntry, topic: str = WAGERS) -> Record:
    """As nearly all come."""
    plain = encode_kafka(entry.event, topic)
    return plain._replace(partition=0, offset=entry.offset, timestamp_ms=entry.logged_at_ms)


def structured(entry: LogEntry) -> Record:
    """The whole event in the record's value, with spaces that nobody keeps."""
    plain = binary(entry)
    attributes = {
        name.removeprefix("ce_"): (raw or b"").decode()
        for name, raw in plain.headers
        if name.startswith("ce_")
    }
    event = {**attributes, "data": json.loads(plain.value or b"")}
    headers = (("content-type", b"application/cloudevents+json"),)
    return plain._replace(value=json.dumps(event, indent=1).encode(), headers=headers)


def _refusal_of(record: Record) -> Refusal:
    try:
        decode_kafka(record)
    except RefusedError as error:
        return error.reason
    raise AssertionError("it can be read")
