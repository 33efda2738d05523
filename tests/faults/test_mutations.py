"""Each protection is switched off once, here and not in the product: then a fault shows.

Every test does the same thing twice, with the protection and without: real functions, the real
scripts in a real Redis, a real record, the real Kafka host. Undisturbed it ends as the log's own
fold does; with the protection gone it does not, so these faults can be seen."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

import logs
from hosting import Hosted
from leaderboard.adapters import redis_board, sql_archive, sql_fold, sql_migrations
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.redis_progress import RedisProgress
from leaderboard.adapters.redis_scripts import Script
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.adapters.sql_engine import connect as connect_sql
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.adapters.sql_snapshot import SqlSnapshots
from leaderboard.errors import LeaderboardError, Refusal, RefusedError, TransientError
from leaderboard.events import WAGERS, Event
from leaderboard.fold import LogEntry
from leaderboard.hosts.kafka import Assignment, Batch, KafkaHost, Refused, ReplayError
from leaderboard.model import Offset, Place, PositionChange, TournamentId
from leaderboard.ports import Outgoing
from logs import ALICE, BOB, LOG, TOMBSTONE_KEY, T
from ports import RestoredErasures
from recording import Log, Recorder, Running, host_of
from records import loaded, put_down
from running import wait_for

PLACE = Place(WAGERS, 0)
REMEMBERED = 3
"""So few applied ids that only offsets can tell what was read before."""
Lua = dict[str, str]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    url = loaded(f"sqlite:///{tmp_path / f'{uuid.uuid4().hex}.sqlite'}")
    sql_migrations.upgrade(url)
    made = connect_sql(url)
    yield made
    made.dispose()


class KilledError(Exception):
    """The process ends here."""


class Feed:
    """What came to `position-changes`; `dies` kills whoever publishes, before it is there."""

    def __init__(self) -> None:
        self.changes: list[PositionChange] = []
        self.dies = False

    def publish(self, outgoing: Sequence[Outgoing]) -> dict[int, Offset]:
        raise AssertionError("on-wager publishes nothing else")

    def begin_changes(
        self,
        changes: Sequence[PositionChange],
        taken_in_ms: int = 0,
        alerts: Sequence[Event] = (),
    ) -> int:
        if self.dies:
            raise KilledError
        self.changes += changes
        return 0

    def confirm_changes(self, begun: int) -> None:
        pass

    def publish_changes(self, changes: Sequence[PositionChange]) -> None:
        self.begin_changes(changes)


class Bench:
    """on-wager over real stores, told batch by batch what a host would tell it."""

    def __init__(
        self,
        on_wager: Hosted,
        client: redis.Redis,
        engine: sa.Engine,
        lua: Lua | None = None,
        remembered: int = 100_000,
    ) -> None:
        self.main, self.client, self.engine = on_wager.main, client, engine
        self.feed = Feed()
        self.archive = SqlArchive(engine, TOMBSTONE_KEY)
        self.board = RedisBoard(client, TOMBSTONE_KEY, remembered)
        self._lua, self._remembered = lua, remembered

    def process(self, committed: int | None = None, losses: type | None = None) -> Any:
        """One more process of on-wager that owns the partition."""
        board = RedisBoard(self.client, TOMBSTONE_KEY, self._remembered)
        if self._lua:
            board._apply = edited(self.client, self._lua)
        ports = self.main.Ports(
            board,
            RedisDirectory(self.client),
            RedisProgress(self.client),
            self.feed,
            RestoredErasures(),
            SqlRecord(self.engine),
            SqlSnapshots(self.engine),
        )
        one = self.main.OnWager(ports, (losses or self.main.Losses)(ports))
        at = None if committed is None else Offset(committed)
        one.assigned(Assignment(WAGERS, 0, LOG, at, Offset(0), 1))
        return one

    def record(self, entries: Sequence[LogEntry]) -> None:
        self.archive.fold(PLACE, LOG, put_down(entries), Offset(entries[-1].offset + 1))

    def changes(self) -> list[PositionChange]:
        """As a reader takes them."""
        kept: list[PositionChange] = []
        for change in self.feed.changes:
            if not kept or change.sequence > kept[-1].sequence:
                kept.append(change)
        return kept

    def is_right(self, entries: Sequence[LogEntry]) -> bool:
        """Whether board and position changes are those of the log's own fold."""
        oracle = MemoryBoard(TOMBSTONE_KEY)
        applied = oracle.apply(T, LOG, None, entries, None)
        same = self.board.top(T, 1000) == oracle.top(T, 1000)
        return same and self.changes() == list(applied.unconfirmed)


def edited(client: redis.Redis, changes: Lua) -> Script:
    """The board's script with these pieces replaced, each of which it has exactly once."""
    text = redis_board._APPLY
    for old, new in changes.items():
        assert text.count(old) == 1, f"the script has changed: {old}"
        text = text.replace(old, new)
    return Script(client, text, read_only=False)


def batch(entries: Sequence[LogEntry]) -> Batch:
    return Batch(WAGERS, 0, LOG, entries, Offset(entries[-1].offset + 1))


def work(one: Any, entries: Sequence[LogEntry]) -> None:
    for step in (one.begin, one.join, one.handle, one.settle):
        step(batch(entries))


def some(count: int) -> list[LogEntry]:
    return [
        logs.scheduled(0),
        *(logs.scored(n, f"p{n % 5}", 1 + n % 7) for n in range(1, count)),
    ]


def shows(story: Callable[..., bool], *given: Any, **mutation: Any) -> None:
    """The story ends well with the protection, and not without."""
    assert story(*given), "it does not end well with all protections"
    try:
        ended_well = story(*given, **mutation)
    except (LeaderboardError, sa.exc.SQLAlchemyError, ReplayError, AssertionError):
        return
    assert not ended_well, "nobody would notice that the protection is gone"


# --- the board ----------------------------------------------------------------------------------


def test_without_the_comparison_of_offsets_what_is_read_again_counts_again(
    on_wager: Hosted, client: redis.Redis, engine: sa.Engine
) -> None:
    def killed_before_the_commit(lua: Lua | None = None) -> bool:
        client.flushdb()
        bench, entries = Bench(on_wager, client, engine, lua, REMEMBERED), some(30)
        work(bench.process(), entries)
        work(bench.process(0), entries)
        return bench.is_right(entries)

    off = {"STEPS[(first - 1) * STRIDE + 1] <= before": "false"}
    shows(killed_before_the_commit, lua=off)


def test_without_the_comparison_with_what_was_applied_a_lost_tail_is_not_noticed(
    on_wager: Hosted, client: redis.Redis, engine: sa.Engine
) -> None:
    def falls_back(lua: Lua | None = None) -> bool:
        client.flushdb()
        bench, entries = Bench(on_wager, client, engine, lua), some(30)
        one = bench.process()
        work(one, entries[:10])
        keys: Any = client.keys("{t1}:*")
        kept = {key: client.dump(key) for key in keys}
        work(one, entries[10:20])
        for key, value in kept.items():
            client.restore(key, 0, value, replace=True)  # type: ignore[arg-type]
        try:
            work(one, entries[20:])
        except ReplayError as replay:
            start = replay.offset or Offset(0)
            work(one, [entry for entry in entries if entry.offset >= start])
        return bench.is_right(entries)

    shows(falls_back, lua={"if AFTER and AFTER > before then": "if false then"})


def test_without_the_check_for_duplicates_a_producers_repeat_counts_twice(
    on_wager: Hosted, client: redis.Redis, engine: sa.Engine
) -> None:
    def sent_twice(lua: Lua | None = None) -> bool:
        client.flushdb()
        bench = Bench(on_wager, client, engine, lua)
        entries = [
            logs.scheduled(0),
            logs.scored(1, ALICE, 5, event_id="one"),
            logs.scored(2, ALICE, 5, event_id="one"),
            logs.scored(3, BOB, 7, sequence=1, source="/numbered"),
            logs.scored(4, BOB, 7, sequence=1, source="/numbered", event_id="two"),
        ]
        work(bench.process(), entries)
        return bench.is_right(entries)

    by_id = {"return added[id] or in_newer[id] == 1 or in_older[id] == 1": "return false"}
    by_number = {"return number <= last": "return false"}
    shows(sent_twice, lua=by_id)
    shows(sent_twice, lua=by_number)


def test_without_the_outbox_a_kill_between_board_and_kafka_loses_changes(
    on_wager: Hosted, client: redis.Redis, engine: sa.Engine
) -> None:
    def killed_before_kafka_has_them(lua: Lua | None = None) -> bool:
        client.flushdb()
        bench, entries = Bench(on_wager, client, engine, lua), some(30)
        bench.feed.dies = True
        with pytest.raises(KilledError):
            work(bench.process(), entries)
        bench.feed.dies = False
        work(bench.process(0), entries)
        return bench.is_right(entries)

    forgets = {
        "table.concat(codes),\n  call('LRANGE', OUTBOX, 0, -1)})": "table.concat(codes),\n"
        "  first > steps and {} or call('LRANGE', OUTBOX, -1, -1)})"
    }
    shows(killed_before_kafka_has_them, lua=forgets)


def test_without_the_fence_two_owners_fold_by_different_rules(
    on_wager: Hosted, client: redis.Redis, engine: sa.Engine
) -> None:
    """The one that was stopped for too long still folds as if the tournament were running."""

    def two_at_once(lua: Lua | None = None) -> bool:
        client.flushdb()
        bench = Bench(on_wager, client, engine, lua)
        entries = [*some(10), logs.ended(10), logs.scored(11, ALICE, 1_000)]
        stopped = bench.process()
        work(stopped, entries[:10])
        work(bench.process(10), entries[10:11])
        work(stopped, entries[11:])
        return bench.is_right(entries)

    shows(two_at_once, lua={"if exists and tonumber(meta[4]) ~= EXPECTED then": "if false then"})


# --- what looks after boards --------------------------------------------------------------------


def test_without_the_sweep_a_quiet_board_that_was_lost_stays_lost(
    on_wager: Hosted, client: redis.Redis, engine: sa.Engine
) -> None:
    def lost_while_nobody_plays(losses: type | None = None) -> bool:
        client.flushdb()
        fresh = logs.scheduled(0, "t2")
        bench, entries = Bench(on_wager, client, engine), some(30)
        quiet = [*entries, LogEntry(Offset(40), 0, fresh.event)]
        one = bench.process(losses=losses)
        work(one, quiet)
        if not list(bench.archive.ledgers(0)):
            bench.record(quiet)
        # Its own process knows where it stood; the next one, after a rebalance, does not.
        other = bench.process(41, losses)
        keys: Any = client.keys("{t1}:*")
        client.delete(*keys)
        for each in (one, other):
            try:
                each.tick()
            except ReplayError:
                continue
        return bench.is_right(entries)

    blind = type("Blind", (on_wager.main.Losses,), {"look": lambda self, owned: 1.0})
    shows(lost_while_nobody_plays, losses=blind)


# --- the record ---------------------------------------------------------------------------------


def test_without_the_guard_of_the_place_a_batch_is_written_twice(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its transaction and before the group was told, or owned by two."""
    numbers = itertools.count()

    def given_twice(*, off: bool = False) -> bool:
        name = f"t{next(numbers)}"
        archive = SqlArchive(engine, TOMBSTONE_KEY, REMEMBERED)
        log_id, partition = f"wagers/{name}/0", next(numbers)
        place = Place(WAGERS, partition)
        entries = [
            logs.scheduled(0, name),
            *(logs.scored(n, f"p{n % 5}", n, tournament_id=name) for n in range(1, 30)),
        ]
        with monkeypatch.context() as patch:
            if off:
                for module in (sql_fold, sql_archive):
                    patch.setattr(module, "take_position", lambda *_: Offset(0))
            archive.fold(place, log_id, put_down(entries), Offset(30))
            archive.fold(place, log_id, put_down(entries[15:]), Offset(30))
        oracle = MemoryBoard(TOMBSTONE_KEY)
        oracle.apply(TournamentId(name), LOG, None, entries, None)
        mine, theirs = (b.top(TournamentId(name), 100) for b in (oracle, SqlRecord(engine)))
        return mine == theirs

    shows(given_twice, off=True)


# --- the host -----------------------------------------------------------------------------------


class CrashError(Exception):
    """A bug, or the machine: the host ends with its batch at hand."""


def crashes(batch: Batch) -> Sequence[Refused]:
    raise CrashError


def test_without_effects_before_the_commit_a_crash_loses_events(kafka: str) -> None:
    def crashed_in_the_middle(*, hasty: bool = False) -> bool:
        log = Log(kafka)
        log.send(20)
        first, second = Recorder(), Recorder()
        first.on_handle = crashes
        host = host_of(log, first)
        if hasty:
            commit_first(host)
        ended = Running(host)
        ended.join()
        assert isinstance(ended.error, CrashError)
        running = Running(host_of(log, second))
        log.send(1)
        wait_for(lambda: 20 in second.offsets(), 30)
        running.stop()
        return second.offsets() == list(range(21))

    shows(crashed_in_the_middle, hasty=True)


def commit_first(host: KafkaHost) -> None:
    """A host that tells the group what it is going to do."""
    group = host._group
    taken = group.take

    def take(place: Place, limit: int) -> Sequence[Any]:
        messages = taken(place, limit)
        group.done(place, Offset(int(messages[-1].offset() or 0) + 1))
        group.commit(now=True)
        return messages

    group.take = take  # type: ignore[method-assign]


class Cemetery:
    """Takes dead letters from the second time on."""

    def __init__(self) -> None:
        self.asked = 0
        self.buried: list[int] = []

    def send(self, records: Any) -> None:
        self.asked += 1
        if self.asked == 1:
            raise TransientError("Kafka does not acknowledge")
        self.buried += [int(dict(one.headers)["dlq_offset"]) for one in records]


def test_without_dead_letters_before_the_commit_a_refused_event_vanishes(kafka: str) -> None:
    def not_acknowledged_at_once(*, hasty: bool = False) -> bool:
        log, recorder, cemetery = Log(kafka), Recorder(), Cemetery()
        recorder.on_handle = lambda batch: [
            Refused(entry.offset, RefusedError(Refusal.UNKNOWN_TOURNAMENT, "nobody's"))
            for entry in batch.entries
            if entry.offset == 1
        ]
        host = host_of(log, recorder, cemetery)
        if hasty:
            bury_without_waiting(host)
        log.send(3)
        running = Running(host)
        wait_for(lambda: 2 in recorder.offsets(), 30)
        running.stop()
        return cemetery.buried == [1]

    shows(not_acknowledged_at_once, hasty=True)


def bury_without_waiting(host: KafkaHost) -> None:
    """A host to which a dead letter that was not acknowledged is one that was."""
    bury = host._bury

    def hasty(batch: Batch, refused: Sequence[Refused]) -> None:
        try:
            bury(batch, refused)
        except TransientError:
            return

    host._bury = hasty  # type: ignore[method-assign]
