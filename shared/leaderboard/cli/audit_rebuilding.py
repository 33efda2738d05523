"""`leaderboard audit rebuild`: partition by partition, record and boards first, then the log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from leaderboard.cli.audit_log import BROKEN, Faults, Logs, check_tombstone_key, progress, said
from leaderboard.cli.context import CommandError, progress_console
from leaderboard.errors import SettingsError, TransientError
from leaderboard.events import (
    CONNECTIONS,
    FRAUD_ALERTS,
    GDPR_EVENTS,
    POSITION_CHANGES,
    WAGERS,
)
from leaderboard.model import Offset, Place, TournamentId
from leaderboard.settings import (
    DatabaseSettings,
    RedisSettings,
    RetentionSettings,
    TombstoneSettings,
    load,
)

if TYPE_CHECKING:
    from rich.progress import Progress

    from leaderboard.audit_beside import CountedBeside, Forgotten
    from leaderboard.audit_leaves import LogKeys
    from leaderboard.audit_rebuild import Counted, Ends, Scope
    from leaderboard.audit_replay import Refolded
    from leaderboard.audit_suspicions import Suspected
    from leaderboard.ports import Board
    from leaderboard.record_ports import Witness

DAY_MS: Final = 24 * 3600 * 1000


@dataclass(slots=True)
class _Work:
    """What one run compares, and what it has found."""

    logs: Logs
    faults: Faults
    late_before_ms: int
    wait_s: float
    witness: Witness | None = None
    keys: LogKeys | None = None
    board: Board | None = None
    expired_before_ms: int = 0
    attempts_since_ms: int = 0
    known: set[TournamentId] = field(default_factory=set)
    gone: set[TournamentId] = field(default_factory=set)
    """That the record has let go of."""
    is_whole: bool = True
    """False where a shard could not be read to its end."""
    forgotten: Forgotten | None = None
    suspected: dict[tuple[TournamentId, int, str], Suspected] = field(default_factory=dict)

    def is_expired(self, refolded: Refolded) -> bool:
        """Whether the record may have let go of it."""
        return refolded.over_at_ms is not None and refolded.over_at_ms < self.expired_before_ms


def rebuilt(
    settings: Mapping[str, str],
    logs: Logs,
    partitions: Set[int],
    *,
    log_only: bool,
    late_s: float,
    wait_s: float,
    shown: int,
) -> int:
    """The command; its exit code."""
    from leaderboard.audit_beside import CountedBeside, Forgotten
    from leaderboard.audit_rebuild import Counted

    started, now_ms = time.monotonic(), time.time_ns() // 1_000_000
    work = _Work(logs, Faults(shown), now_ms - int(late_s * 1000), wait_s)
    work.forgotten = Forgotten(late_since_ms=work.late_before_ms)
    counted, beside = Counted(), CountedBeside()
    with ExitStack() as opened:
        if not log_only:
            opened.enter_context(_witnesses(settings, work, now_ms))
        ends = {} if work.witness is None else work.witness.ends()
        there = {p.partition for p in (*logs.places(), *ends) if p.topic == WAGERS}
        wanted = sorted(partitions or there)
        if not wanted:
            raise CommandError("there is no shard of wagers at AUDIT_LOG_URL")
        bar = opened.enter_context(progress())
        for number in wanted:
            counted.add(_one(work, number, _ends_of(ends, number), bar))
        if work.witness is not None and not partitions:
            for name in sorted(work.witness.changed().keys() - work.known):
                work.faults.tell(f"position_changes of {name}: the log has no such tournament")
            _compare_beside(work, ends, beside)
    _tell(work, counted, time.monotonic() - started)
    if work.witness is not None and not partitions:
        _tell_beside(beside)
    return work.faults.end()


def _ends_of(ends: Mapping[Place, tuple[str, Offset]], number: int) -> Ends:
    from leaderboard.audit_rebuild import Ends

    inputs, changes = ends.get(Place(WAGERS, number)), ends.get(Place(POSITION_CHANGES, number))
    return Ends(inputs and inputs[1], changes and changes[1])


@contextmanager
def _witnesses(settings: Mapping[str, str], work: _Work, now_ms: int) -> Iterator[None]:
    from leaderboard.adapters import sql_engine, sql_migrations
    from leaderboard.adapters.redis_board import RedisBoard
    from leaderboard.adapters.redis_client import check, connect
    from leaderboard.adapters.sql_retention import policy_of
    from leaderboard.adapters.sql_witness import witness_of
    from leaderboard.audit_leaves import log_keys

    if "DATABASE_URL" not in settings:
        raise SettingsError("DATABASE_URL: is missing; set it, or say --log-only")
    key = load(TombstoneSettings, settings).bytes()
    work.keys = log_keys(key)
    check_tombstone_key(work.logs, work.keys)
    policy = policy_of(load(RetentionSettings, settings))
    work.expired_before_ms = now_ms - policy.tournaments * DAY_MS
    work.attempts_since_ms = now_ms - policy.connection_attempts * DAY_MS
    engine = sql_engine.connect(load(DatabaseSettings, settings).url, pool_size=1)
    client = None
    if "REDIS_URL" in settings:
        client = connect(load(RedisSettings, settings).url)
    try:
        sql_migrations.check(engine)
        if client is not None:
            try:
                check(client)
                work.board = RedisBoard(client, key)
            except TransientError as error:
                progress_console.print(f"boards are not compared: {error}", highlight=False)
        with witness_of(engine, key) as work.witness:
            yield
    finally:
        if client is not None:
            client.close()
        engine.dispose()


def _one(work: _Work, number: int, ends: Ends, bar: Progress) -> Counted:
    from leaderboard.audit_rebuild import AuditError, Counted, PartitionRebuild

    task = bar.add_task(f"partition {number}", total=None)
    try:
        scope, upto = _scope_of(work, number, ends)
        rebuild = PartitionRebuild(number, scope, work.faults.put)
        shards = [
            work.logs.open_at(Place(topic, number), end, work.wait_s)
            for topic, end in zip((WAGERS, POSITION_CHANGES), upto, strict=True)
        ]
        bar.update(task, total=sum(one.size for one in shards if one is not None))
        inputs, changes = (() if one is None else one.entries() for one in shards)
        try:
            rebuild.run(inputs, changes, ends, lambda more: bar.advance(task, more))
        finally:
            work.known |= rebuild.replay.tournaments.keys()
        if work.forgotten is not None:
            work.forgotten.take(rebuild.replay.tournaments, rebuild.erased_names())
        work.gone |= rebuild.gone()
        work.suspected |= rebuild.suspects.found
    except (*BROKEN, AuditError) as error:
        work.faults.tell(f"partition {number}: {error}")
        work.is_whole = False
        return Counted()
    finally:
        bar.remove_task(task)
    return rebuild.counted


def _scope_of(work: _Work, number: int, ends: Ends) -> tuple[Scope, tuple[int, int]]:
    """What the partition is compared with, and how far its two shards have to go for that."""
    from leaderboard.audit_boards import pages_of
    from leaderboard.audit_rebuild import Scope

    pages = {}
    if work.witness is not None and work.board is not None:
        accounts = work.witness.accounts(number)
        pages = {one.tournament_id: pages_of(work.board, one.tournament_id) for one in accounts}
    stand = [page.rows_sequence for found in pages.values() for page in found]
    scope = Scope(work.witness, work.keys, pages, work.late_before_ms, work.is_expired)
    return scope, (max(-1, (ends.inputs or 0) - 1, *stand), (ends.changes or 0) - 1)


def _compare_beside(
    work: _Work, ends: Mapping[Place, tuple[str, Offset]], counted: CountedBeside
) -> None:
    """What the record keeps beside its fold. Wants all partitions of `wagers` to be folded."""
    from leaderboard.audit_alerts import AlertCheck
    from leaderboard.audit_beside import AttemptCheck

    if work.witness is None or work.keys is None or work.forgotten is None:
        return
    if not work.is_whole:
        said("what stands beside the fold is not compared: not all of wagers can be read")
        return
    given = (work.witness, work.keys, work.forgotten, work.faults.put)
    for place, end in _shards(work, GDPR_EVENTS, ends):
        with _told_of(work, place):
            entries = _entries(work, place, end)
            work.forgotten.take_notices(place, entries, end, work.faults.put)
    attempts = AttemptCheck(*given, work.attempts_since_ms)
    for place, end in _shards(work, CONNECTIONS, ends):
        with _told_of(work, place):
            attempts.run(place, _entries(work, place, end), end, counted)
    attempts.finish()
    alerts = AlertCheck(*given)
    for place, end in _shards(work, FRAUD_ALERTS, ends):
        with _told_of(work, place):
            alerts.take(place, _entries(work, place, end), end)
    if work.is_whole:
        alerts.run(work.gone, work.suspected, counted)


def _shards(
    work: _Work, topic: str, ends: Mapping[Place, tuple[str, Offset]]
) -> list[tuple[Place, Offset]]:
    """Every shard of a topic that the log or the record has, and up to where the record has it."""
    places = sorted({one for one in (*work.logs.places(), *ends) if one.topic == topic})
    return [(place, ends[place][1] if place in ends else Offset(0)) for place in places]


def _entries(work: _Work, place: Place, end: Offset) -> Iterator[bytes]:
    shard = work.logs.open_at(place, end - 1, work.wait_s)
    return iter(()) if shard is None else shard.entries()


@contextmanager
def _told_of(work: _Work, place: Place) -> Iterator[None]:
    """What makes a shard unreadable is a fault like others."""
    from leaderboard.audit_rebuild import AuditError

    try:
        yield
    except (*BROKEN, AuditError) as error:
        work.faults.tell(f"{place}: {error}")
        work.is_whole = False


def _tell_beside(counted: CountedBeside) -> None:
    said(
        f"beside: {counted.attempts:,} connection attempts, {counted.alerts:,} suspicions, "
        f"{counted.reviews:,} decisions"
    )
    if counted.alerts or counted.untold:
        said(
            f"of the suspicions the inputs give {counted.given:,} as well"
            f"{f', and {counted.untold:,} that were not told' if counted.untold else ''}"
        )
    if counted.unproved:
        said(f"{counted.unproved:,} rows beside say less than came: not proved to the byte")


def _tell(work: _Work, counted: Counted, seconds: float) -> None:
    said(
        f"{counted.inputs:,} inputs of {counted.tournaments:,} tournaments folded, "
        f"{counted.changes:,} position changes compared, in {seconds:.1f} s"
    )
    if work.witness is not None:
        said(f"record: {counted.record_inputs:,} inputs, {counted.record_changes:,} changes")
    if work.board is not None:
        said(f"boards: {counted.boards:,}")
    if counted.waiting:
        said(f"{counted.waiting:,} changes are at one end only, and not late yet")
