"""The audit log's side of archive: a leaf for every record, from Kafka itself, beside the record.

The log is guarded by its own offset, that of its last leaf, so it and the record need no common
transaction: each takes what it does not have yet, and Kafka's offset moves when both have it. Of
two owners of a shard one loses the checkpoint, opens the log anew, and finds how far it is.

A player's key is destroyed when nothing needs it any more: the log has the erasure, and every
position change that came before it (they are all in Kafka once the boards' progress is past the
erasure; where that log ended then is put down, and waited for).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from leaderboard import telemetry
from leaderboard.audit.log import AuditLog
from leaderboard.audit.notes import Checkpoint
from leaderboard.audit.store import LogStore
from leaderboard.audit.tiles import TILE_WIDTH, bundle_path, decode_bundle, parse_path
from leaderboard.audit_leaves import (
    AUDITED,
    Leaves,
    LogKeys,
    PlayerKey,
    Who,
    decode,
    differs_by_key_only,
    leaves_of,
    who,
)
from leaderboard.errors import (
    FencedError,
    ForeignLogError,
    LogConflictError,
    Refusal,
    TransientError,
)
from leaderboard.events import GDPR_EVENTS, WAGERS, PlayerErased, Record
from leaderboard.hosts.kafka import Assignment, Batch
from leaderboard.model import Offset, Place, TournamentId
from leaderboard.ports import Progress
from leaderboard.record_ports import Ending, Head, Known, Pseudonyms

CACHED_PLAYERS: Final = 50_000
"""Of each of two generations; some 40 MB together."""
CACHED_SECONDS: Final = 600.0
"""A key that was destroyed is in no memory any more after that."""
HEADS_SECONDS: Final = 1.0
ENDINGS_SECONDS: Final = 2.0
ENDINGS_AT_ONCE: Final = 500
_TRIES: Final = 5
logger = logging.getLogger("archive")


@dataclass(frozen=True, slots=True)
class LogPorts:
    """Where the audit log lies. `open_log` raises TransientError while the store is away.

    `changes_end` says in which partition of `position-changes` a tournament's lie, and where that
    ends now."""

    origin: str
    open_log: Callable[[Place], tuple[LogStore, AuditLog]]
    pseudonyms: Pseudonyms
    progress: Progress
    changes_end: Callable[[TournamentId], tuple[Place, Offset]]


@dataclass(slots=True)
class _Shard:
    log_id: str
    store: LogStore
    log: AuditLog
    leaves: Leaves
    beyond: dict[int, bytes]
    """Leaves that lie behind the end, by their numbers: an append broke off there."""
    signed: tuple[Checkpoint, Offset] | None
    """What was signed last, and the offset behind its last leaf; None in an empty log. Put as one:
    who looks at heads and keys is another thread, and looks while a batch is being signed."""

    @property
    def next_offset(self) -> Offset | None:
        return None if self.signed is None else self.signed[1]

    def head(self, origin: str, place: Place) -> Head | None:
        if self.signed is None:
            return None
        checkpoint, next_offset = self.signed
        return Head(f"{origin}/{place}", place, checkpoint.size, checkpoint.root.hex(), next_offset)


class Auditor:
    """Writes the shards of the partitions that this process owns. Safe to repeat with any batch,
    and to kill between any two lines. `clock` counts seconds."""

    def __init__(
        self, ports: LogPorts, keys: LogKeys, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ports = ports
        self._keys = keys
        self._clock = clock
        self._shards: dict[Place, _Shard] = {}
        self._sizes: dict[Place, int] = {}
        """The largest tree that this process has seen of each shard."""
        self._known = _Cache(clock)
        self._troubles: dict[Place, str] = {}
        """Why shards can't be written on."""
        self._heads_at = self._endings_at = clock()

    def check(self) -> None:
        """Raises TransientError while a shard waits for an operator. From any thread."""
        for trouble in tuple(self._troubles.values()):
            raise TransientError(trouble)

    def assigned(self, assignment: Assignment) -> Offset | None:
        """Behind the last leaf of the partition's shard; None for an empty log. Raises
        TransientError while it can't be opened, or where it was set back."""
        place = assignment.place
        if place.topic not in AUDITED:
            return None
        # Players were erased, perhaps, while somebody else had the partition.
        self._known.clear()
        self._shards.pop(place, None)
        reached = self._shard(place, assignment.log_id).next_offset
        if reached is not None and reached < assignment.low:
            _alarm(
                "Kafka has dropped what the audit log has not read", place, reached, assignment.low
            )
        if reached is not None and assignment.end is not None and reached > assignment.end:
            _alarm("the audit log is ahead of Kafka", place, reached, assignment.end)
        return reached

    def revoked(self, place: Place) -> None:
        self._shards.pop(place, None)
        self._sizes.pop(place, None)
        self._troubles.pop(place, None)

    # one batch

    def take_in(self, batch: Batch) -> None:
        """Append the leaves that the shard does not have yet: durable and signed on return.

        Raises TransientError when store or keys are away; then all, some or none of it is there,
        and the same batch may come again."""
        place = batch.place
        if place.topic not in AUDITED:
            return
        ends = self._put_down_ends(batch)
        conflict: LogConflictError | None = None
        for _ in range(_TRIES):
            shard = self._shard(place, batch.log_id)
            records = _behind(batch.records, shard.next_offset)
            if not records:
                break
            try:
                self._append(shard, batch, records, ends)
                break
            except FencedError:
                # Whoever was first has written the same; what is left is ours to try.
                del self._shards[place]
                telemetry.AUDIT_FENCED.inc()
                logger.warning("somebody else writes this shard", extra=_fields(place))
            except LogConflictError as error:
                # Written since we opened it: opened anew, the shard knows what lies there.
                del self._shards[place]
                if conflict is not None:
                    raise
                conflict = error
            except BaseException:
                del self._shards[place]
                raise
        else:
            raise TransientError(f"{place} of the audit log is written by somebody else")
        if place.topic == GDPR_EVENTS:
            erased = {e.event.player_id for e in batch.entries if e.event.player_id is not None}
            self._ports.pseudonyms.destroy_beside(erased)
            self._known.clear()

    def _put_down_ends(self, batch: Batch) -> Mapping[Who, Offset]:
        """The erasures among these events. Also of those that the log has already: a record that
        was set back knows nothing of them any more, and has their keys again."""
        erased: dict[Who, Offset] = {}
        if batch.topic == WAGERS:
            for one in reversed(batch.entries):
                if type(one.event.data) is PlayerErased and (whose := who(WAGERS, one.event)):
                    erased[whose] = one.offset
        if not erased:
            return erased
        self._known_of(WAGERS, erased)  # who is met here first has a key as well, for a moment
        ends = self._ports.pseudonyms.end(batch.partition, erased)
        self._known.end(ends)
        return ends

    def _append(
        self,
        shard: _Shard,
        batch: Batch,
        records: Sequence[Record],
        ends: Mapping[Who, Offset],
    ) -> None:
        first, last = records[0].offset, records[-1].offset
        entries = [one for one in batch.entries if one.offset >= first]
        refused: dict[int, Refusal] = {one.offset: one.error.reason for one in batch.unreadable}
        known = self._known_of(batch.topic, {who(batch.topic, one.event) for one in entries})
        ended = {w: one.ended for w, one in known.items() if one.ended is not None} | dict(ends)
        if batch.topic != WAGERS:
            ended = {}  # offsets of another log
        keys: Mapping[Who, PlayerKey | None] = {w: one.key for w, one in known.items()}
        made = leaves_of(shard.leaves, records, entries, refused, keys, ended)
        if shard.beyond:
            _adopt(shard, batch.place, made)
        shard.signed = (shard.log.append(made), Offset(last + 1))
        self._sizes[batch.place] = shard.log.size
        telemetry.AUDIT_LEAVES.labels(batch.topic).inc(len(made))

    def _known_of(self, topic: str, wanted: Collection[Who | None]) -> dict[Who, Known]:
        found, missing = self._known.find(wanted)
        if missing:
            fresh = self._ports.pseudonyms.of(missing, of_wagers=topic == WAGERS)
            # A tournament that is not known yet may be by the next batch.
            self._known.put({w: one for w, one in fresh.items() if one.key or one.ended})
            found |= fresh
        return found

    # shards

    def _shard(self, place: Place, log_id: str) -> _Shard:
        shard = self._shards.get(place)
        if shard is None or shard.log_id != log_id:
            shard = self._shards[place] = self._open(place, log_id)
        return shard

    def _open(self, place: Place, log_id: str) -> _Shard:
        store, log = self._ports.open_log(place)
        raw, checkpoint, signed = log.last_entry(), log.checkpoint, None
        if raw is not None and checkpoint is not None:
            leaf = decode(raw)
            theirs = f"{leaf.place.topic}/{leaf.log}/{leaf.place.partition}"
            if theirs != log_id:
                raise ForeignLogError(f"the audit log of {place} is of {theirs}, not {log_id}")
            signed = (checkpoint, Offset(leaf.offset + 1))
        self._check_size(place, log)
        self._sizes[place] = log.size
        leaves, beyond = Leaves(place, log_id, self._keys), _written_beyond(store, log.size)
        return _Shard(log_id, store, log, leaves, beyond, signed)

    def _check_size(self, place: Place, log: AuditLog) -> None:
        """A log that was set back must not be written on: it would say two things of one place.
        Raises TransientError: it waits until the log is as it was, or another one is named."""
        origin = f"{self._ports.origin}/{place}"
        heads = {one.origin: one for one in self._ports.pseudonyms.heads([place])}
        known = heads.get(origin)
        least = max(self._sizes.get(place, 0), 0 if known is None else known.size)
        is_forked = (
            known is not None
            and known.size == log.size
            and log.checkpoint is not None
            and log.checkpoint.root.hex() != known.root
        )
        if log.size >= least and not is_forked:
            self._troubles.pop(place, None)
            return
        trouble = (
            f"AUDIT_LOG_URL: the log of {place} has {log.size} leaves and had {least}: put back "
            "what was there, or name another AUDIT_LOG_ORIGIN"
        )
        if is_forked:
            trouble = f"AUDIT_LOG_URL: the log of {place} has another root than it had"
        known_trouble, self._troubles[place] = self._troubles.get(place), trouble
        if known_trouble is not None:
            raise TransientError(trouble)  # it was said, and is tried again every few seconds
        telemetry.AUDIT_GAPS.inc()
        logger.critical(
            "the audit log is not the one that it was",
            extra=_fields(place, size=log.size, known=least),
        )
        raise TransientError(trouble)

    # by the clock

    def tick(self) -> float:
        """Put down how far the shards are, and destroy keys that are not needed any more; the
        seconds until the next call is wanted."""
        now = self._clock()
        try:
            if now >= self._heads_at:
                self._heads_at = now + HEADS_SECONDS
                self._put_heads()
            if now >= self._endings_at:
                self._endings_at = now + ENDINGS_SECONDS
                self._destroy_keys()
        except TransientError as error:
            logger.warning("can't look after keys now", extra=telemetry.fields(error=str(error)))
        return min(self._heads_at, self._endings_at) - now

    def _put_heads(self) -> None:
        ours = [s.head(self._ports.origin, p) for p, s in list(self._shards.items())]
        heads = [one for one in ours if one is not None]
        if not heads:
            return
        # What it was told once a record that was set back has lost, and keys wait for it.
        known = {h.origin: h.size for h in self._ports.pseudonyms.heads([h.place for h in heads])}
        fresh = [one for one in heads if known.get(one.origin, -1) < one.size]
        if fresh:
            self._ports.pseudonyms.put_heads(fresh)

    def _destroy_keys(self) -> None:
        for place, shard in list(self._shards.items()):
            if place.topic != WAGERS:
                continue
            endings = self._ports.pseudonyms.endings(place.partition, ENDINGS_AT_ONCE)
            signed = shard.next_offset or 0
            endings = [one for one in endings if one.offset < signed]
            if endings:
                self._destroy(place, shard.log_id, endings)

    def _destroy(self, place: Place, log_id: str, endings: Sequence[Ending]) -> None:
        told = self._ports.progress.read(log_id, place.partition)
        fresh = [one for one in endings if one.changes is None]
        due = [one for one in fresh if told is not None and told >= one.offset]
        if due:
            self._ports.pseudonyms.wait_for([self._with_end(one) for one in due])
        waiting = [one for one in endings if one.changes is not None]
        places = {one.changes for one in waiting if one.changes is not None}
        heads = {
            head.place: head.next_offset
            for head in (self._ports.pseudonyms.heads(places) if places else ())
            if head.origin == f"{self._ports.origin}/{head.place}"
        }
        done = [
            one
            for one in waiting
            if one.changes is not None and heads.get(one.changes, 0) >= one.changes_until
        ]
        if done:
            self._ports.pseudonyms.destroy(done)
            self._known.clear()
            telemetry.AUDIT_KEYS_DESTROYED.inc(len(done))
            logger.info("keys destroyed", extra=_fields(place, keys=len(done)))

    def _with_end(self, one: Ending) -> Ending:
        changes, until = self._ports.changes_end(one.tournament_id)
        return Ending(one.tournament_id, one.erasure_id, one.offset, changes, until)


class _Cache:
    """Keys of players that were met lately, in two generations."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.clear()

    def clear(self) -> None:
        self._newer: dict[Who, Known] = {}
        self._older: dict[Who, Known] = {}
        self._until = self._clock() + CACHED_SECONDS

    def find(self, wanted: Collection[Who | None]) -> tuple[dict[Who, Known], set[Who]]:
        if self._clock() >= self._until:
            self.clear()
        found: dict[Who, Known] = {}
        missing: set[Who] = set()
        for one in wanted:
            if one is None:
                continue
            if (known := self._newer.get(one)) is None:
                known = self._older.get(one)
                if known is None:
                    missing.add(one)
                    continue
                self._newer[one] = known
            found[one] = known
        return found, missing

    def put(self, known: Mapping[Who, Known]) -> None:
        if len(self._newer) + len(known) > CACHED_PLAYERS:
            self._older, self._newer = self._newer, {}
        self._newer |= known

    def end(self, ends: Mapping[Who, Offset]) -> None:
        """These players are erased from there on."""
        for whose, offset in ends.items():
            for generation in (self._newer, self._older):
                if (known := generation.get(whose)) is not None:
                    generation[whose] = Known(known.key, offset)


def _behind(records: Sequence[Record], offset: Offset | None) -> Sequence[Record]:
    if not records or offset is None or records[0].offset >= offset:
        return records
    return [one for one in records if one.offset >= offset]


def _written_beyond(store: LogStore, size: int) -> dict[int, bytes]:
    """What appends that broke off have written behind the end of a log, by the leaves' numbers."""
    found: dict[int, bytes] = {}
    number = size // TILE_WIDTH
    while True:
        named = map(parse_path, store.paths(f"{bundle_path(number)}.p/"))
        widths = [width for _, _, width in filter(None, named)]
        content = store.read(bundle_path(number))
        is_full = content is not None
        if not is_full and max(widths, default=0) > max(size - number * TILE_WIDTH, 0):
            content = store.read(bundle_path(number, max(widths)))
        # What is no bundle is a conflict when its turn comes.
        with suppress(ValueError):
            for index, raw in enumerate(decode_bundle(content or b""), number * TILE_WIDTH):
                if index >= size:
                    found[index] = raw
        if not is_full:
            return found
        number += 1


def _adopt(shard: _Shard, place: Place, made: list[bytes]) -> None:
    """Put leaves that an append that broke off has written in the place of ours: it had a key that
    is gone by now (or none that was not there). What lies there is what counts, in whichever
    pieces the same records come now: the files that they fill have one content.

    Only those that say the same but for whose they are: files that somebody else put there are
    not signed."""
    first, adopted = shard.log.size, 0
    for index, ours in enumerate(made, first):
        raw = shard.beyond.get(index, ours)
        if raw != ours and differs_by_key_only(raw, ours):
            made[index - first] = raw
            adopted += 1
    shard.beyond = {n: raw for n, raw in shard.beyond.items() if n >= first + len(made)}
    if adopted:
        telemetry.AUDIT_ADOPTED.inc()
        logger.warning(
            "leaves that were written and not signed are taken as they are",
            extra=_fields(place, leaves=adopted),
        )


def _alarm(what: str, place: Place, reached: Offset, kafka: Offset) -> None:
    """An operator has to know: the log can't be whole."""
    telemetry.AUDIT_GAPS.inc()
    logger.critical(what, extra=_fields(place, reached=reached, kafka=kafka))


def _fields(place: Place, **more: object) -> dict[str, dict[str, object]]:
    return telemetry.fields(topic=place.topic, partition=place.partition, **more)
