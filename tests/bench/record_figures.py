"""Figures of the record: how fast it takes events in, and how fast a board comes back from it.

    python tests/bench/record_figures.py archive --wagers 200000
    python tests/bench/record_figures.py rebuild --players 100000
    python tests/bench/record_figures.py reads --players 100000
    python tests/bench/record_figures.py served --rate 50

`archive`: one process of the function, a backlog in real Kafka (wagers in one tournament, 100,000
players with standings, Zipf play; with --changes a position change beside each), real PostgreSQL
with fsync on; its standings are compared with the oracle's. `rebuild`: snapshot from PostgreSQL
into an empty Redis, with 200,000 ids; the board is compared with the record. `reads`: top 100, own
rank and around from the record while nothing else runs. `served`: the top 100 by HTTP from one
process of `query` whose Redis is away, open loop: a read's time is the one it was due at.
Everything stays on loopback and is bounded in count. Prints JSON lines; asserts no time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import aiohttp
import sqlalchemy as sa

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from bench.first_figures import (  # noqa: E402  # noqa: E402
    Log,
    T,
    cpu_seconds,
    machine,
    player_of,
    quantile,
    say,
    schedule,
    zipf,
)
from bench.first_figures import wager as wager_of  # noqa: E402
from leaderboard import events as ev  # noqa: E402
from leaderboard.adapters import sql_migrations  # noqa: E402
from leaderboard.adapters import sql_schema as tables  # noqa: E402
from leaderboard.adapters.memory_board import MemoryBoard  # noqa: E402
from leaderboard.adapters.redis_board import RedisBoard  # noqa: E402
from leaderboard.adapters.redis_client import connect  # noqa: E402
from leaderboard.adapters.redis_directory import RedisDirectory  # noqa: E402
from leaderboard.adapters.redis_erasures import RedisErasures  # noqa: E402
from leaderboard.adapters.sql_engine import connect as open_database  # noqa: E402
from leaderboard.adapters.sql_engine import reading  # noqa: E402
from leaderboard.adapters.sql_fold import SqlFold  # noqa: E402
from leaderboard.adapters.sql_record import SqlRecord  # noqa: E402
from leaderboard.adapters.sql_snapshot import SqlSnapshots  # noqa: E402
from leaderboard.fold import LogEntry  # noqa: E402
from leaderboard.model import Offset, PlayerId  # noqa: E402
from leaderboard.rebuild import Rebuild  # noqa: E402
from leaderboard.record_ports import Input  # noqa: E402
from leaderboard.settings import DatabaseSettings, load  # noqa: E402
from leaderboard.stack.backbone import answers_ok, common_settings, issuer_service  # noqa: E402
from leaderboard.stack.functions import FUNCTIONS  # noqa: E402
from leaderboard.stack.postgres import PostgresServer  # noqa: E402
from leaderboard.stack.process import Process, free_port  # noqa: E402
from leaderboard.stack.servers import KafkaServer, RedisServer, redis_program  # noqa: E402
from leaderboard.stack.topics import create_topics  # noqa: E402
from logs import LOG, START_MS, TOMBSTONE_KEY  # noqa: E402
from running import wait_for  # noqa: E402

BATCH = 5_000


@contextmanager
def database(folder: Path) -> Iterator[tuple[PostgresServer, str]]:
    """A PostgreSQL with the record's schema."""
    server = PostgresServer(folder / "postgres")
    server.start()
    try:
        url = load(DatabaseSettings, {"DATABASE_URL": server.url}).url
        sql_migrations.upgrade(url)
        yield server, url
    finally:
        server.stop()


def tree_cpu_seconds(pid: int) -> float:
    """CPU of a process and of those that it has started (PostgreSQL: one for a connection)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return cpu_seconds(pid) + sum(cpu_seconds(int(child)) for child in children)


# --- archive -------------------------------------------------------------------------------------


def archive(runs: int, wagers: int, players: int, *, changes: bool) -> None:
    say(what="archive", players=players, wagers=wagers, changes=changes, machine=machine())
    rates = []
    for run in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            result = _archive_once(Path(folder), run, wagers, players, changes=changes)
        rates.append(float(str(result["events_per_second"])))
        say(run=run, **result)
    say(minimum=min(rates), median=quantile(rates, 0.5), maximum=max(rates))


def _archive_once(
    folder: Path, seed: int, wagers: int, players: int, *, changes: bool
) -> dict[str, object]:
    kafka = KafkaServer(folder / "kafka", heap="1g")
    redis = RedisServer(folder / "redis", program=redis_program())
    redis.start()
    kafka.start()
    try:
        with database(folder) as (server, url):
            create_topics(kafka.bootstrap_servers, 1)
            log = _backlog(kafka.bootstrap_servers, seed, wagers, players)
            told = _changes(kafka.bootstrap_servers, log) if changes else 0
            environ = {
                **os.environ,
                "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
                "REDIS_URL": redis.url,
                "DATABASE_URL": server.url,
                "TOMBSTONE_KEY": TOMBSTONE_KEY.decode(),
                "HOST": "127.0.0.1",
                "PORT": str(free_port()),
            }
            argv = [sys.executable, str(ROOT / "functions" / "archive" / "main.py")]
            process = Process("archive", argv, log_path=folder / "archive.log", environ=environ)
            process.start()
            try:
                return _measured(process, server, url, log, players, told)
            finally:
                process.stop()
    finally:
        kafka.stop()
        redis.stop()


def _backlog(bootstrap_servers: str, seed: int, wagers: int, players: int) -> Log:
    chance = random.Random(seed)
    log = Log(bootstrap_servers)
    numbers = iter(range(10**9))
    log.write([schedule()])
    log.write([wager_of(p, chance.randint(1, 10_000), next(numbers)) for p in range(players)])
    played = (p for p in zipf(chance, wagers))
    log.write([wager_of(p % players, chance.randint(1, 1000), next(numbers)) for p in played])
    return log


def _changes(bootstrap_servers: str, log: Log) -> int:
    """A position change for each wager of the play, as `on-wager` writes them."""
    told = Log(bootstrap_servers)
    events = []
    for entry in log.entries[1:]:
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
        events.append(ev.Event(f"{T}/{entry.offset}", "/on-wager", START_MS, data, player))
    told.write(events, ev.POSITION_CHANGES)
    return len(events)


def _measured(
    process: Process, server: PostgresServer, url: str, log: Log, players: int, told: int
) -> dict[str, object]:
    engine = open_database(url)
    row = tables.log_positions.c

    def reached() -> int:
        with reading(engine) as connection:
            return int(connection.execute(sa.select(sa.func.sum(row.next_offset))).scalar() or 0)

    all_of_it = len(log.entries) + told
    _until(lambda: reached() > players)
    before, started = reached(), time.perf_counter()
    cpu = cpu_seconds(process.pid), tree_cpu_seconds(server.pid)
    _until(lambda: reached() >= all_of_it)
    seconds = time.perf_counter() - started
    own, theirs = cpu_seconds(process.pid) - cpu[0], tree_cpu_seconds(server.pid) - cpu[1]
    _compare(SqlRecord(engine), log, players)
    engine.dispose()
    events = all_of_it - before
    return {
        "events_per_second": round(events / seconds),
        "seconds": round(seconds, 2),
        "archive_cpu_seconds_per_million": round(own / events * 1e6, 1),
        "postgres_cpu_seconds_per_million": round(theirs / events * 1e6, 1),
        "record_equals_oracle": True,
    }


def _until(is_done: Callable[[], bool], timeout_seconds: float = 300) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not is_done():
        assert time.monotonic() < deadline, "the archive did not get there"
        time.sleep(0.05)


def _compare(record: SqlRecord, log: Log, players: int) -> None:
    oracle = MemoryBoard(TOMBSTONE_KEY)
    oracle.apply(T, LOG, None, log.entries, None)
    for skipped in range(0, players, 1000):
        wanted, found = oracle.top(T, 1000, skipped), record.top(T, 1000, skipped)
        assert wanted is not None
        assert found is not None
        assert (found.sequence, found.standings) == (wanted.sequence, wanted.standings)


# --- rebuild and reads ---------------------------------------------------------------------------


def _filled(url: str, players: int) -> sa.Engine:
    """A record with so many players, and at least 200,000 events."""
    engine = open_database(url)
    fold = SqlFold(engine, TOMBSTONE_KEY)
    chance = random.Random(1)
    order = [*range(players), *(chance.randrange(players) for _ in range(200_000))]
    chance.shuffle(order)
    first = LogEntry(Offset(0), START_MS, schedule())
    fold.apply(0, LOG, [_input(first)], Offset(1))
    for start in range(0, len(order), BATCH):
        batch = [
            LogEntry(
                Offset(1 + start + i),
                START_MS,
                wager_of(player, chance.randint(1, 10_000), start + i),
            )
            for i, player in enumerate(order[start : start + BATCH])
        ]
        fold.apply(0, LOG, [_input(entry) for entry in batch], Offset(batch[-1].offset + 1))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")
    return engine


def _input(entry: LogEntry) -> Input:
    return Input(entry, entry.event.data.model_dump_json())


def rebuild(runs: int, players: int) -> None:
    say(what="rebuild", players=players, machine=machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        redis = RedisServer(folder / "redis", program=redis_program())
        redis.start()
        try:
            with database(folder) as (_, url):
                engine = _filled(url, players)
                seconds = [_rebuilt(engine, redis.url, players, back) for back in [0] * runs]
                undone = [_rebuilt(engine, redis.url, players, 20_000) for _ in range(runs)]
                engine.dispose()
        finally:
            redis.stop()
    say(who="at the record's own offset", seconds=seconds)
    say(who="20,000 events before it, which are undone", seconds=undone)


def _rebuilt(engine: sa.Engine, url: str, players: int, back: int) -> float:
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
    client.close()
    return round(seconds, 2)


def reads(count: int, players: int) -> None:
    say(what="reads from the record", players=players, machine=machine())
    chance = random.Random(2)
    with tempfile.TemporaryDirectory() as name, database(Path(name)) as (_, url):
        engine = _filled(url, players)
        record = SqlRecord(engine)

        def someone() -> PlayerId:
            return PlayerId(player_of(chance.randrange(players)))

        _timed("top 100", lambda: record.top(T, 100), count)
        _timed("one player", lambda: record.player(T, someone()), count)
        _timed("around one player", lambda: record.around(T, someone(), 5), count)
        engine.dispose()


# --- reads by HTTP, while the boards are away ----------------------------------------------------


def served(rate: int, seconds: int, players: int) -> None:
    say(what="top 100 by HTTP, boards away", players=players, rate=rate, machine=machine())
    with tempfile.TemporaryDirectory() as name, database(Path(name)) as (server, url):
        _filled(url, players).dispose()
        ports = {one: free_port() for one in ("ISSUER_PORT", "QUERY_PORT", "CONNECT_PORT")}
        settings = {
            **common_settings(ports, {}),
            "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",  # nobody is there
            "DATABASE_URL": server.url,
        }
        with ExitStack() as running:
            issuer = issuer_service(Path(name), ports["ISSUER_PORT"])
            (function,) = (one for one in FUNCTIONS if one.name == "query")
            process = Process(
                "query",
                function.command(ROOT, ports["QUERY_PORT"]),
                environ=function.environ(settings, ports["QUERY_PORT"]),
                log_path=Path(name) / "query.log",
            )
            for one in (issuer.process, process):
                one.start()
                running.callback(one.stop)
            query = f"http://127.0.0.1:{ports['QUERY_PORT']}"
            wait_for(issuer.answers, 30)
            wait_for(lambda: answers_ok(f"{query}/readyz"), 30)
            asyncio.run(_served(query, settings["ISSUER_URL"], rate, seconds))


async def _served(query: str, issuer: str, rate: int, seconds: int) -> None:
    async with aiohttp.ClientSession() as session:
        asked = {"subject": "bench", "roles": ["operator"]}
        async with session.post(f"{issuer}/token", json=asked) as answer:
            headers = {"Authorization": f"Bearer {(await answer.json())['token']}"}
        url = f"{query}/v1/tournaments/{T}/standings?limit=100"
        times: list[float] = []

        async def read(due: float) -> None:
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            async with session.get(url, headers=headers) as got:
                told = await got.json()
            assert (got.status, told["source"], len(told["standings"])) == (200, "record", 100)
            times.append((time.perf_counter() - due) * 1000)

        begun = time.perf_counter()
        await asyncio.gather(*(read(begun + 1 + n / rate) for n in range(rate * seconds)))
        lasted = time.perf_counter() - begun - 1
    warm = times[rate:]
    say(
        offered_per_second=rate,
        achieved_per_second=round(len(times) / lasted),
        p50_ms=_ms(warm, 0.5),
        p99_ms=_ms(warm, 0.99),
        p999_ms=_ms(warm, 0.999),
        max_ms=_ms(warm, 1),
    )


def _timed(who: str, read: Callable[[], object], count: int) -> None:
    for _ in range(20):
        read()
    times: list[float] = []
    for _ in range(count):
        started = time.perf_counter()
        assert read() is not None
        times.append((time.perf_counter() - started) * 1000)
    say(who=who, p50_ms=_ms(times, 0.5), p99_ms=_ms(times, 0.99), max_ms=_ms(times, 1))


def _ms(times: Sequence[float], share: float) -> float:
    return round(quantile(times, share), 2)


def main() -> None:
    # Told to end, it ends what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_subparsers(dest="what", required=True)
    first = what.add_parser("archive")
    first.add_argument("--runs", type=int, default=3)
    first.add_argument("--wagers", type=int, default=200_000)
    first.add_argument("--changes", action="store_true")
    first.add_argument("--players", type=int, default=100_000)
    second = what.add_parser("rebuild")
    second.add_argument("--runs", type=int, default=3)
    second.add_argument("--players", type=int, default=100_000)
    third = what.add_parser("reads")
    third.add_argument("--count", type=int, default=500)
    third.add_argument("--players", type=int, default=100_000)
    fourth = what.add_parser("served")
    fourth.add_argument("--rate", type=int, default=50)
    fourth.add_argument("--seconds", type=int, default=30)
    fourth.add_argument("--players", type=int, default=100_000)
    given = parser.parse_args()
    if given.what == "archive":
        archive(given.runs, given.wagers, given.players, changes=given.changes)
    elif given.what == "rebuild":
        rebuild(given.runs, given.players)
    elif given.what == "served":
        served(given.rate, given.seconds, given.players)
    else:
        reads(given.count, given.players)


if __name__ == "__main__":
    main()
