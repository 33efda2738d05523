"""(f) and (g): how fast a board comes back from the record, and how fast the record takes events
in; and its reads by HTTP while the boards are away. Real PostgreSQL, fsync on."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import sqlalchemy as sa

from bench.load import PLAYERS, Log, T, assert_equal, play, player_of, schedule, wager
from bench.machine import Meter, per_million
from bench.report import Bench, Measured, spread
from bench.servers import ROOT, servers
from leaderboard import events as ev
from leaderboard.adapters import sql_migrations
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import connect
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.redis_erasures import RedisErasures
from leaderboard.adapters.sql_engine import connect as open_database
from leaderboard.adapters.sql_engine import reading
from leaderboard.adapters.sql_fold import SqlFold
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.adapters.sql_snapshot import SqlSnapshots
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, PlayerId
from leaderboard.rebuild import Rebuild
from leaderboard.record_ports import Input
from leaderboard.settings import DatabaseSettings, load
from leaderboard.stack.backbone import answers_ok, common_settings, issuer_service
from leaderboard.stack.functions import FUNCTIONS
from leaderboard.stack.postgres import PostgresServer
from leaderboard.stack.process import LOOPBACK, Process, free_port
from leaderboard.stack.servers import RedisServer, redis_program
from logs import LOG, START_MS, TOMBSTONE_KEY
from running import wait_for

BATCH = 5_000


def archive(bench: Bench) -> None:
    """(g) One process works a backlog of one tournament off."""
    wagers, players = bench.size(200_000, 2_000), bench.size(PLAYERS, 1_000)
    batch = bench.size(BATCH, 200)
    bench.in_turns(
        "archive",
        "wagers/s",
        {
            "archive, wagers alone": lambda run: taken_in(
                run, wagers, players, batch, changes=False
            ),
            "archive, a change with each": lambda run: taken_in(
                run, wagers, players, batch, changes=True
            ),
        },
    )


def taken_in(seed: int, wagers: int, players: int, batch: int, *, changes: bool) -> Measured:
    """From the first tenth of the play to its end; the record is compared with the oracle."""
    with servers(postgres=True) as given:
        assert given.postgres is not None
        log = Log(given.kafka.bootstrap_servers)
        entries = log.write(play(seed, wagers, players))
        if changes:
            log.write([_change(one) for one in entries[1:]], ev.POSITION_CHANGES)
        engine = open_database(load(DatabaseSettings, {"DATABASE_URL": given.database}).url)
        row = tables.log_positions.c
        each = 2 if changes else 1

        def reached() -> int:
            with reading(engine) as connection:
                total = connection.execute(sa.select(sa.func.sum(row.next_offset))).scalar()
            return int(total or 0)

        with given.function("archive", {"BATCH_SIZE": str(batch)}) as process:
            wait_for(lambda: reached() > each * (players + wagers // 10), 300)
            before, started = reached(), time.perf_counter()
            pids = {"archive": process.pid, "postgres": given.postgres.pid}
            meter = Meter({**pids, "kafka": given.kafka.pid})
            wait_for(lambda: reached() >= each * len(entries) - (each - 1), 300)
            seconds = time.perf_counter() - started
            usage = meter.read()
        assert_equal(SqlRecord(engine), entries)
        engine.dispose()
    count = (each * len(entries) - before) / each
    more = {"seconds": round(seconds, 2), **per_million(usage, round(count))}
    return Measured(count / seconds, {**more, "record_equals_oracle": True}, usage)


def _change(entry: LogEntry) -> ev.Event:
    player = str(entry.event.player_id)
    data = ev.PositionChanged(
        tournament_id=T,
        player_id=player,
        sequence=entry.offset,
        old_rank=7,
        new_rank=5,
        score=100,
        distance=3,
        cause=ev.CauseData(source=entry.event.source, id=entry.event.id),
    )
    return ev.Event(f"{T}/{entry.offset}", "/on-wager", START_MS, data, player)


# --- rebuild -------------------------------------------------------------------------------------


def rebuild(bench: Bench) -> None:
    """(f) From PostgreSQL into an empty Redis, with 200,000 ids; compared with the record."""
    with tempfile.TemporaryDirectory() as name:
        redis = RedisServer(Path(name) / "redis", program=redis_program())
        redis.start()
        try:
            for players in (bench.size(100_000, 1_000), bench.size(1_000_000, 3_000)):
                with database(Path(name) / str(players)) as (_, url):
                    engine = filled(url, players, bench.size(200_000, 2_000))
                    undone = bench.size(20_000, 200)
                    contenders = {
                        "rebuild": partial(_rebuilt, engine, redis.url, players, 0),
                        f"and {undone:,} events undone": partial(
                            _rebuilt, engine, redis.url, players, undone
                        ),
                    }
                    bench.in_turns(f"rebuild of {players:,}", "s", contenders, better="lower")
                    engine.dispose()
        finally:
            redis.stop()


def _rebuilt(engine: sa.Engine, url: str, players: int, back: int, run: int) -> Measured:
    """The board as it was `back` events before the record's own place."""
    client = connect(url)
    client.flushall()
    board, snapshots = RedisBoard(client, TOMBSTONE_KEY), SqlSnapshots(engine)
    work = Rebuild(board, RedisDirectory(client), RedisErasures(client, TOMBSTONE_KEY), snapshots)
    reached = snapshots.reached(LOG, 0)
    assert reached is not None
    started = time.perf_counter()
    restored = work.restore(LOG, 0, Offset(reached - back))
    seconds = time.perf_counter() - started
    assert restored is not None
    assert list(restored.made) == [T]
    if not back:
        view, record = board.top(T, 1000), SqlRecord(engine).top(T, 1000)
        assert view == record
        assert view is not None
        assert view.players == players
    client.close()
    return Measured(seconds, {"equals_record": not back})


@contextmanager
def database(folder: Path) -> Iterator[tuple[PostgresServer, str]]:
    """A PostgreSQL with the record's tables."""
    folder.mkdir(parents=True, exist_ok=True)
    server = PostgresServer(folder / "postgres")
    server.start()
    try:
        url = load(DatabaseSettings, {"DATABASE_URL": server.url}).url
        sql_migrations.upgrade(url)
        yield server, url
    finally:
        server.stop()


def filled(url: str, players: int, more: int) -> sa.Engine:
    """A record with so many players, and so many events beyond their first."""
    engine = open_database(url)
    fold = SqlFold(engine, TOMBSTONE_KEY)
    chance = random.Random(1)
    order = [*range(players), *(chance.randrange(players) for _ in range(more))]
    chance.shuffle(order)
    first = LogEntry(Offset(0), START_MS, schedule())
    fold.apply(0, LOG, [_input(first)], Offset(1))
    for start in range(0, len(order), BATCH):
        batch = [
            LogEntry(
                Offset(1 + start + i), START_MS, wager(player, chance.randint(1, 10_000), start + i)
            )
            for i, player in enumerate(order[start : start + BATCH])
        ]
        fold.apply(0, LOG, [_input(entry) for entry in batch], Offset(batch[-1].offset + 1))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")
    return engine


def _input(entry: LogEntry) -> Input:
    return Input(entry, entry.event.data.model_dump_json())


# --- reads from the record -----------------------------------------------------------------------


def reads(bench: Bench) -> None:
    """Top 100 by HTTP from one process of `query` whose Redis is away, open loop; and the record's
    own calls."""
    players, seconds = bench.size(PLAYERS, 1_000), bench.size(20, 2)
    with tempfile.TemporaryDirectory() as name, database(Path(name)) as (server, url):
        engine = filled(url, players, bench.size(200_000, 1_000))
        record, chance = SqlRecord(engine), random.Random(2)

        def someone() -> PlayerId:
            return PlayerId(player_of(chance.randrange(players)))

        bench.in_turns(
            "record-reads",
            "ms p99",
            {
                "top 100 by HTTP, 50/s": lambda _: served(Path(name), server.url, 50, seconds),
                "top 100, the call": lambda _: _timed(lambda: record.top(T, 100)),
                "one player, the call": lambda _: _timed(lambda: record.player(T, someone())),
                "around, the call": lambda _: _timed(lambda: record.around(T, someone(), 5)),
            },
            better="lower",
        )
        engine.dispose()


def _timed(read: Any, count: int = 200) -> Measured:
    times: list[float] = []
    for number in range(count + 20):
        started = time.perf_counter()
        assert read() is not None
        if number >= 20:
            times.append((time.perf_counter() - started) * 1000)
    told = spread(times)
    return Measured(told["p99_ms"], told)


def served(folder: Path, database_url: str, rate: int, seconds: int) -> Measured:
    """A read's time is counted from when it was due."""
    ports = {one: free_port() for one in ("ISSUER_PORT", "QUERY_PORT", "CONNECT_PORT")}
    settings = {
        **common_settings(ports, {}),
        "REDIS_URL": f"redis://{LOOPBACK}:{free_port()}/0",  # nobody is there
        "DATABASE_URL": database_url,
    }
    with ExitStack() as running:
        issuer = issuer_service(folder, ports["ISSUER_PORT"])
        (function,) = (one for one in FUNCTIONS if one.name == "query")
        process = Process(
            "query",
            function.command(ROOT, ports["QUERY_PORT"]),
            environ=function.environ(settings, ports["QUERY_PORT"]),
            log_path=folder / "query.log",
        )
        for one in (issuer.process, process):
            one.start()
            running.callback(one.stop)
        query = f"http://{LOOPBACK}:{ports['QUERY_PORT']}"
        wait_for(issuer.answers, 30)
        wait_for(lambda: answers_ok(f"{query}/readyz"), 30)
        times, lasted = asyncio.run(_served(query, settings["ISSUER_URL"], rate, seconds))
    told = spread(times[rate:])
    achieved = round(len(times) / lasted)
    return Measured(told["p99_ms"], {"offered": rate, "achieved": achieved, **told})


async def _served(
    query: str, issuer: str, rate: int, seconds: int
) -> tuple[Sequence[float], float]:
    times: list[float] = []
    async with aiohttp.ClientSession() as session:
        asked = {"subject": "bench", "roles": ["operator"]}
        async with session.post(f"{issuer}/token", json=asked) as answer:
            headers = {"Authorization": f"Bearer {(await answer.json())['token']}"}
        url = f"{query}/v1/tournaments/{T}/standings?limit=100"

        async def read(due: float) -> None:
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            async with session.get(url, headers=headers) as got:
                told = await got.json()
            assert (got.status, told["source"], len(told["standings"])) == (200, "record", 100)
            times.append((time.perf_counter() - due) * 1000)

        begun = time.perf_counter()
        await asyncio.gather(*(read(begun + 1 + n / rate) for n in range(rate * (seconds + 1))))
        lasted = time.perf_counter() - begun - 1
    return times, lasted
