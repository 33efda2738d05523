"""Record and board compared by `archive`: quiet while they agree, loud where they don't."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

import logs
from consuming import REMEMBERED, MemoryDirectory, mixed_log
from leaderboard import telemetry
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_progress import RedisProgress
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.adapters.sql_engine import writing
from leaderboard.adapters.sql_snapshot import SqlSnapshots
from leaderboard.errors import TransientError
from leaderboard.fold import LogEntry
from leaderboard.model import BOARD_KEPT_MS, Offset, PlayerId, TournamentId
from leaderboard.ports import Board, Summary
from logs import LOG, START_MS, TOMBSTONE_KEY, T
from recorded import ArchiveReader, archive_module, new_record
from records import fresh_database

DAY_MS = BOARD_KEPT_MS


@pytest.fixture(scope="module")
def archive() -> Any:
    return archive_module()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    with fresh_database(request.param, request, tmp_path) as url:
        made = new_record(url)
        yield made
        made.dispose()


@dataclass
class Clock:
    """Seconds and milliseconds that pass when a test says so."""

    seconds: float = 0.0
    now_ms: int = field(default=START_MS)

    def __call__(self) -> float:
        return self.seconds


class Compared:
    """A board and a record of one log, and the check between them."""

    def __init__(
        self, archive: Any, engine: sa.Engine, client: redis.Redis, entries: Sequence[LogEntry]
    ) -> None:
        self.clock = Clock(now_ms=int(client.time()[0]) * 1000)
        self.client = client
        self.engine = engine
        self.board: Board = RedisBoard(client, TOMBSTONE_KEY, REMEMBERED)
        self.directory = MemoryDirectory()
        self.progress = RedisProgress(client)
        kept = SqlArchive(engine, TOMBSTONE_KEY, REMEMBERED, lambda: self.clock.now_ms)
        self.check = archive.StandingCheck(
            kept, self.board, self.directory, self.progress, self.clock, lambda: self.clock.now_ms
        )
        self.reader = ArchiveReader(archive, engine, entries, REMEMBERED, self.check)
        self.archive = self.reader.archive = self.reader.function._archive = kept
        self.at = Offset(0)

    def board_reads(self, size: int) -> None:
        """on-wager's next batch."""
        part = [one for one in self.reader.entries if one.offset >= self.at][:size]
        for name in dict.fromkeys(TournamentId(str(one.event.tournament_id)) for one in part):
            mine = [one for one in part if one.event.tournament_id == name]
            applied = self.board.apply(name, LOG, None, mine, None)
            if applied.terms is not None:
                self.directory.put(Summary(name, applied.terms))
                self.progress.advance(LOG, 0, None, mine[-1].offset, {name: mine[-1].offset})
        if part:
            self.at = Offset(part[-1].offset + 1)

    def read_all(self) -> Compared:
        while self.at <= self.reader.entries[-1].offset:
            self.board_reads(50)
        self.reader.read_to(self.reader.entries[-1].offset + 1)
        return self

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.seconds += self.check.look({0: LOG})

    def round(self) -> None:
        """Until every tournament was looked at again, from now on."""
        self.check._waiting.clear()
        self.look()
        for _ in range(100):
            if not self.check._waiting:
                return
            self.look()
        raise AssertionError("a round does not come to an end")


def alarms() -> float:
    return float(telemetry.RECORD_DIFFERENCES._value.get())


def confirmed(one: Compared) -> bool:
    (ledger,) = one.archive.ledgers(0)
    return ledger.confirmed_at_ms is not None


def scores(count: int, players: int = 20) -> list[LogEntry]:
    return [
        logs.scheduled(0),
        *(logs.scored(i, f"p{i % players}", i) for i in range(1, count)),
    ]


# --- agreeing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_board_and_record_of_one_log_never_differ_however_they_move(
    archive: Any,
    engine: sa.Engine,
    client: redis.Redis,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.modules["comparing"], "LIVE_PIECE", 3)
    monkeypatch.setattr(sys.modules["comparing"], "FINAL_PIECE", 4)
    one, before = Compared(archive, engine, client, mixed_log(seed, length=40)), alarms()
    chance = random.Random(seed)
    bias = chance.choice((0.2, 0.5, 0.8))
    end = one.reader.entries[-1].offset
    while one.at <= end or one.reader.position <= end:
        if chance.random() < bias:
            one.board_reads(chance.randint(1, 6))
        else:
            one.reader.step(chance.randint(1, 6))
        one.look(chance.randint(0, 2))
    for _ in range(3):
        one.round()
    assert alarms() == before
    for ledger in one.archive.ledgers(0):
        assert (ledger.confirmed_at_ms is not None) == ledger.is_over


def test_erasure_after_the_end_is_no_difference_to_a_board_that_lags(
    archive: Any, engine: sa.Engine, client: redis.Redis
) -> None:
    entries = [*scores(30), logs.ended(30), logs.erased(31, "p3")]
    one, before = Compared(archive, engine, client, entries), alarms()
    one.board_reads(31)
    one.reader.read_to(32)
    for _ in range(3):
        one.round()
    assert not confirmed(one)
    one.read_all().round()
    assert confirmed(one)
    assert alarms() == before


# --- differing -----------------------------------------------------------------------------------


def wrong_score_in_sql(one: Compared) -> None:
    table = tables.standings.c
    with writing(one.engine) as connection:
        connection.execute(
            sa.update(tables.standings)
            .where(table.player_no == 3)
            .values(rank_score=table.rank_score - 1)
        )


def missing_in_sql(one: Compared) -> None:
    with writing(one.engine) as connection:
        connection.execute(sa.delete(tables.standings).where(tables.standings.c.player_no == 3))


def member_of(one: Compared, player: bytes) -> Any:
    members: Any = one.client.zrange(f"{{{T}}}:ranks", 0, -1)
    return next(member for member in members if member.endswith(player))


def wrong_score_in_redis(one: Compared) -> None:
    one.client.zincrby(f"{{{T}}}:ranks", 1, member_of(one, b"p3"))


def wrong_row_in_redis(one: Compared) -> None:
    rows: Any = one.client.hgetall(f"{{{T}}}:rows")
    one.client.hset(f"{{{T}}}:rows", "p3", rows[b"p4"])


def missing_in_redis(one: Compared) -> None:
    one.client.zrem(f"{{{T}}}:ranks", member_of(one, b"p3"))
    one.client.hdel(f"{{{T}}}:rows", "p3")


def one_too_many_in_redis(one: Compared) -> None:
    one.client.zadd(f"{{{T}}}:ranks", {b"\0\0\0\0\0\0\1stranger": 5})


FORGERIES = [
    wrong_score_in_sql,
    missing_in_sql,
    wrong_score_in_redis,
    wrong_row_in_redis,
    missing_in_redis,
    one_too_many_in_redis,
]


@pytest.mark.parametrize("is_over", [False, True], ids=["live", "over"])
@pytest.mark.parametrize("forge", FORGERIES)
def test_what_was_tampered_with_is_found_in_one_round(
    archive: Any,
    engine: sa.Engine,
    client: redis.Redis,
    forge: Callable[[Compared], None],
    is_over: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    entries = [*scores(100), logs.ended(100)] if is_over else scores(100)
    one = Compared(archive, engine, client, entries).read_all()
    before = alarms()
    forge(one)
    one.round()
    assert alarms() > before
    assert any("differ" in record.message for record in caplog.records)
    if is_over:
        assert not confirmed(one)
        assert client.ttl(f"{{{T}}}:board") == -1


def test_difference_is_found_while_the_tournament_moves(
    archive: Any, engine: sa.Engine, client: redis.Redis
) -> None:
    one, before = Compared(archive, engine, client, scores(200, players=50)), alarms()
    one.board_reads(120)
    one.reader.read_to(100)
    # Reached at 80 in both, so that nothing which one of the two can't know yet explains it.
    one.client.zincrby(f"{{{T}}}:ranks", 1, member_of(one, b"p30"))
    one.round()
    assert alarms() > before


# --- the end -------------------------------------------------------------------------------------


def ttls(one: Compared) -> dict[bytes, int]:
    keys: Any = one.client.keys(f"{{{T}}}:*")
    return {key: int(one.client.pttl(key)) for key in keys}


def ended_log() -> list[LogEntry]:
    return [*scores(60), logs.joined(60, "p1", "Name"), logs.ended(61)]


def test_tournament_is_confirmed_when_both_have_its_end_and_then_its_board_may_go(
    archive: Any, engine: sa.Engine, client: redis.Redis
) -> None:
    one = Compared(archive, engine, client, ended_log())
    one.read_all()
    one.reader.entries = [*one.reader.entries, logs.erased(62, "p3"), logs.scored(63, "p4", 1)]
    one.reader.read_to(64)
    one.round()
    assert not confirmed(one)
    assert set(ttls(one).values()) == {-1}
    one.read_all().round()
    assert confirmed(one)
    assert all(0 < left <= DAY_MS for left in ttls(one).values())
    assert one.progress.boards(LOG, 0) == {}
    # A late erasure makes no key live longer.
    one.reader.entries = [*one.reader.entries, logs.erased(64, "p5")]
    one.read_all().round()
    assert all(0 < left <= DAY_MS for left in ttls(one).values())
    view = one.board.top(T, 100)
    assert view is not None
    assert sum(row.player_id.startswith("erased-") for row in view.standings) == 2


def test_list_forgets_a_tournament_a_day_after_it_was_confirmed(
    archive: Any, engine: sa.Engine, client: redis.Redis
) -> None:
    one = Compared(archive, engine, client, ended_log()).read_all()
    one.round()
    one.clock.now_ms += DAY_MS - 1
    one.round()
    assert one.directory.find(T) is not None
    one.clock.now_ms += 1
    one.round()
    assert one.directory.find(T) is None


def test_board_that_is_rebuilt_after_it_was_confirmed_goes_at_the_same_time(
    archive: Any, engine: sa.Engine, client: redis.Redis
) -> None:
    one = Compared(archive, engine, client, ended_log()).read_all()
    one.round()
    client.flushdb()
    one.clock.now_ms += DAY_MS // 2
    with SqlSnapshots(engine, REMEMBERED, lambda: one.clock.now_ms).taken(T, Offset(99)) as taken:
        assert taken is not None
        assert one.board.restore(taken)
    assert set(ttls(one).values()) == {-1}
    one.round()
    assert all(0 < left <= DAY_MS for left in ttls(one).values())


def test_board_that_is_away_or_not_there_is_no_difference(
    archive: Any, engine: sa.Engine, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, before = Compared(archive, engine, client, ended_log()), alarms()
    one.reader.read_to(62)
    one.round()

    def away(*_: object) -> None:
        raise TransientError("the boards are away")

    with monkeypatch.context() as patched:
        patched.setattr(one.board, "rows", away)
        one.look(3)
    one.read_all().round()
    assert alarms() == before
    assert confirmed(one)


def test_suspicion_of_one_tournament_is_not_held_against_the_next(
    archive: Any, engine: sa.Engine, client: redis.Redis
) -> None:
    one, before = Compared(archive, engine, client, scores(30)).read_all(), alarms()
    wrong_score_in_redis(one)
    one.check._waiting.clear()
    one.look()
    assert alarms() == before
    client.flushdb()
    one.look(3)
    assert alarms() == before


def test_players_view_is_the_same_in_memory() -> None:
    """The rows that the check asks for are those of the order, on every board."""
    board = MemoryBoard(TOMBSTONE_KEY, REMEMBERED)
    board.apply(T, LOG, None, scores(30), None)
    found = board.rows(T, [PlayerId("p3"), PlayerId("nobody")])
    assert found is not None
    assert found[1][1] is None
