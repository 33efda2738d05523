"""(f) and (g): how fast a board comes back from the record, and how fast the record takes events
in; and its reads by HTTP while the boards are away. Real PostgreSQL, fsync on."""

from __future__ import annotations

import asyncio
import json
import random
import signal
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
from bench.on_wager import signal_all
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
from leaderboard.audit.tiles import CHECKPOINT
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
STANDS_STILL = {"KAFKA_SESSION_TIMEOUT_MS": "60000"}
"""It stays in its group meanwhile."""


def archive(bench: Bench) -> None:
    """(g) One process works a backlog of one tournament off."""
    wagers, players = bench.size(200_000, 2_000), bench.size(PLAYERS, 1_000)
    batch = bench.size(BATCH, 200)
    bench.in_turns(
        "archive",
        "wagers/s",
        {
            "archive, a change with each": lambda run: taken_in(
                run, wagers, players, batch, changes=True
            ),
            "archive, wagers alone": lambda run: taken_in(
                run, wagers, players, batch, changes=False
            ),
        },
    )


def taken_in(seed: int, wagers: int, players: int, batch: int, *, changes: bool) -> Measured:
    """A backlog of play, from the moment when it is there to when record and audit log have all of
    it; everyone has a standing before. The record is compared with the oracle.

    It stands still while the backlog is written. (A clock that began in the middle of one would
    find what is cheaper to take in, wagers or changes, in shares of its own.)"""
    with servers(postgres=True) as given:
        assert given.postgres is not None
        log = Log(given.kafka.bootstrap_servers)
        engine = open_database(load(DatabaseSettings, {"DATABASE_URL": given.database}).url)
        played = play(seed, wagers, players)
        opening = 1 + players

        def write(events: Sequence[ev.Event]) -> int:
            """How many records there are now."""
            entries = log.write(events)
            if changes:
                new = entries[len(entries) - len(events) :]
                of_wagers = [one for one in new if one.event.player_id is not None]
                log.write([_change(one) for one in of_wagers], ev.POSITION_CHANGES)
                return 2 * len(entries) - 1  # the schedule brings none
            return len(entries)

        def has_all(count: int) -> bool:
            return _reached(engine) >= count and _leaves(given.folder / "audit-log") >= count

        chosen = {"BATCH_SIZE": str(batch), **STANDS_STILL}
        with given.function("archive", chosen) as process:
            wanted = write(played[:opening])
            wait_for(lambda: has_all(wanted), 300)
            signal_all([process], signal.SIGSTOP)
            wanted = write(played[opening:])
            pids = {"archive": process.pid, "postgres": given.postgres.pid}
            meter, started = Meter({**pids, "kafka": given.kafka.pid}), time.perf_counter()
            signal_all([process], signal.SIGCONT)
            wait_for(lambda: has_all(wanted), 300)
            seconds = time.perf_counter() - started
            usage = meter.read()
            assert not _has_lost(process), "it left the group meanwhile"
        assert_equal(SqlRecord(engine), log.entries[0])
        leaves = _leaves(given.folder / "audit-log")
        assert leaves == wanted, f"{leaves} leaves of {wanted} records"
        engine.dispose()
    more = {"seconds": round(seconds, 2), **per_million(usage, wagers), "leaves": leaves}
    return Measured(wagers / seconds, {**more, "record_equals_oracle": True}, usage)


def _reached(engine: sa.Engine) -> int:
    """How many records of all partitions the record has."""
    with reading(engine) as connection:
        places = sa.select(sa.func.sum(tables.log_positions.c.next_offset))
        return int(connection.execute(places).scalar() or 0)


def _leaves(folder: Path) -> int:
    """How many leaves of all shards are signed: a checkpoint's second line."""
    return sum(int(one.read_text().splitlines()[1]) for one in folder.glob(f"*/*/{CHECKPOINT}"))


def _has_lost(process: Process) -> bool:
    """Whether its group took partitions from it."""
    return any(
        json.loads(line).get("message") in ("lost", "revoked")
        for line in process.log_path.read_text(encoding="utf-8").splitlines()
        if line.startswith("{")
    )


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
