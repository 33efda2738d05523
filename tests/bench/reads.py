"""(d) Reads under write load: `query` over HTTP, and the board call alone.

One `on-wager` works off a steady stream of wagers while reads come at times of their own (open
loop). Over HTTP a read's time counts from when it was due, whatever held it up; a board call's from
when it was made, or from when it was due where the call before it was not back by then.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.synchronize import Event as Signal
from pathlib import Path
from typing import Any

import aiohttp
import httpx
from confluent_kafka import Producer
from redis import Redis

from bench.load import PLAYERS, QUIET, Log, T, assert_same, player_of, schedule, wager, zipf
from bench.machine import Meter
from bench.report import Bench, Measured, quantile, spread
from bench.servers import ROOT, Servers, servers
from leaderboard import events as ev
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import BRIEF, connect
from leaderboard.codec import encode_kafka
from leaderboard.fold import LogEntry, Terms, decide
from leaderboard.hosts.kafka_log import TopicLogs
from leaderboard.model import Offset, Place, PlayerId, Score
from leaderboard.ports import PlayerRow, Snapshot
from leaderboard.settings import KafkaSettings, load
from leaderboard.stack.backbone import answers_ok, common_settings, issuer_service
from leaderboard.stack.functions import FUNCTIONS
from leaderboard.stack.process import LOOPBACK, Process, free_port
from logs import START_MS, TOMBSTONE_KEY
from running import wait_for

WAGERS_A_SECOND = 2_000
READS_A_SECOND = 100
WARM_SECONDS = 3
SEED = 7
CALLERS = 100
"""Players with tokens of their own; each asks for their own standing."""
CHUNK = 5_000
KINDS = ("top 100", "own rank", "around")


def reads(bench: Bench) -> None:
    """Each kind of read over HTTP and as a board call, on a board of each size."""
    for players in (1_000,) if bench.small else (PLAYERS, 1_000_000):
        with _stage(bench, players) as stage:
            over_http: dict[str, Callable[[int], Measured]] = {
                f"HTTP: {kind}": partial(_over_http, stage, kind) for kind in KINDS
            }
            alone: dict[str, Callable[[int], Measured]] = {
                f"board call: {kind}": partial(_board_call, stage, kind) for kind in KINDS
            }
            both = {**over_http, **alone}
            bench.in_turns(f"reads: {players:,} players", "ms p99", both, better="lower")
            stage.check()


@dataclass
class _Stage:
    """A board that is being written to, and who reads it."""

    given: Servers
    players: int
    seconds: int
    rate: int
    snapshot: Callable[[], Snapshot]
    query: Process
    query_url: str
    tokens: Sequence[str]
    """Of the first players."""
    on_wager: Process
    on_wager_url: str
    written: list[LogEntry] = field(default_factory=list)

    @contextmanager
    def writes(self) -> Iterator[dict[str, float]]:
        """Wagers at a steady rate meanwhile; tells afterwards what came of them."""
        told: dict[str, float] = {}
        client = self.given.client()
        context = multiprocessing.get_context("spawn")
        began, achieved = context.Event(), context.Value("d", 0.0)
        number, count = len(self.written), self.rate * (self.seconds + WARM_SECONDS)
        servers_of = self.given.kafka.bootstrap_servers
        args = (servers_of, number, count, self.rate, self.players, began, achieved)
        writer = context.Process(target=_write, args=args, daemon=True)
        writer.start()
        assert began.wait(60)
        client.config_resetstat()
        before, begun = self._batches(), time.perf_counter()
        try:
            yield told
        finally:
            seconds = time.perf_counter() - begun
            batches, scripts_ms = self._batches() - before, _scripts_ms(client)
            writer.join()
        assert writer.exitcode == 0
        self.written += _entries(number, count, self.players)
        last = self.written[-1].offset
        done = time.perf_counter()
        wait_for(lambda: int(client.hget(f"{{{T}}}:board", "offset") or -1) >= last, 60)
        told["wagers_offered_per_s"] = self.rate
        told["wagers_per_s"] = round(achieved.value)
        told["behind_s"] = round(time.perf_counter() - done, 2)
        if batches:
            told["batches_per_s"] = round(batches / seconds)
            told["wagers_per_batch"] = round(achieved.value * seconds / batches, 1)
            told["scripts_ms_per_batch"] = round(scripts_ms / batches, 2)

    def _batches(self) -> int:
        """How many `on-wager` has had."""
        mark = 'leaderboard_batch_events_count{function="on-wager"} '
        lines = httpx.get(f"{self.on_wager_url}/metrics").text.splitlines()
        return sum(int(float(one.removeprefix(mark))) for one in lines if one.startswith(mark))

    def check(self) -> None:
        """What was read was right: the board is the oracle's in the end."""
        board = RedisBoard(connect(self.given.redis.url))
        oracle = MemoryBoard(TOMBSTONE_KEY)
        assert oracle.restore(self.snapshot())
        oracle.apply(T, self.snapshot().log_id, Offset(0), self.written, None)
        assert_same(board, oracle)


@contextmanager
def _stage(bench: Bench, players: int) -> Iterator[_Stage]:
    with servers() as given, ExitStack() as running:
        log = Log(given.kafka.bootstrap_servers)
        (scheduled,) = log.write([schedule()])
        terms = decide(None, scheduled).terms
        assert terms is not None
        log_id = _log_id(given)

        def snapshot() -> Snapshot:
            return _snapshot(log_id, terms, players)

        assert RedisBoard(connect(given.redis.url)).restore(snapshot())
        health = free_port()
        on_wager = running.enter_context(given.function("on-wager", {"PORT": str(health)}))
        ports = {one: free_port() for one in ("ISSUER_PORT", "QUERY_PORT", "CONNECT_PORT")}
        common = common_settings(ports, {})
        settings = {**common, **given.settings, "PYTHONPATH": str(ROOT / "shared")}
        settings["REQUESTS_PER_MINUTE"] = "100000"  # counted, and never too many
        issuer = issuer_service(given.folder, ports["ISSUER_PORT"])
        query = _query(given.folder, settings, ports["QUERY_PORT"])
        for process in (issuer.process, query):
            process.start()
            running.callback(process.stop)
        url = f"http://{LOOPBACK}:{ports['QUERY_PORT']}"
        wait_for(issuer.answers, 30)
        own = f"http://{LOOPBACK}:{health}"
        for one in (url, own):
            wait_for(partial(answers_ok, f"{one}/readyz"), 30)
        tokens = asyncio.run(_tokens(settings["ISSUER_URL"], min(CALLERS, players)))
        seconds, rate = bench.size(10, 1), bench.size(WAGERS_A_SECOND, 200)
        yield _Stage(given, players, seconds, rate, snapshot, query, url, tokens, on_wager, own)


def _query(folder: Path, settings: dict[str, str], port: int) -> Process:
    (function,) = (one for one in FUNCTIONS if one.name == "query")
    return Process(
        "query",
        function.command(ROOT, port),
        environ=function.environ(settings, port),
        log_path=folder / "query.log",
    )


def _log_id(given: Servers) -> str:
    logs = TopicLogs([ev.WAGERS], load(KafkaSettings, given.settings))
    try:
        return logs.log_id(Place(ev.WAGERS, 0))
    finally:
        logs.close()


def _snapshot(log_id: str, terms: Terms, players: int) -> Snapshot:
    """Everyone with some points, quicker than by a wager each. All were reached with the first
    event, so no two are equal: their order would be nobody's."""
    points = random.Random(SEED).sample(range(1, 10 * players), players)

    def rows() -> Iterator[Sequence[PlayerRow]]:
        for start in range(0, players, CHUNK):
            yield [
                PlayerRow(PlayerId(player_of(p)), Score(points[p], 0), Offset(0))
                for p in range(start, min(start + CHUNK, players))
            ]

    first = Offset(0)
    return Snapshot(T, log_id, first, first, terms, players, rows(), (), (), (), {}, {})


# --- the writes ----------------------------------------------------------------------------------


def _events(number: int, count: int, players: int) -> list[ev.Event]:
    chance = random.Random(number)
    return [
        wager(player, chance.randint(1, 1000), number + n)
        for n, player in enumerate(zipf(chance, count, players))
    ]


def _entries(number: int, count: int, players: int) -> list[LogEntry]:
    events = _events(number, count, players)
    return [LogEntry(Offset(1 + number + n), START_MS, one) for n, one in enumerate(events)]


def _write(
    bootstrap_servers: str,
    number: int,
    count: int,
    rate: int,
    players: int,
    began: Signal,
    achieved: Any,
) -> None:
    """Another process's work: a wager whenever one is due, whether the last was taken or not."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "enable.idempotence": True,
            "linger.ms": 1,
            "log_level": QUIET,
        }
    )
    records = [encode_kafka(one, ev.WAGERS) for one in _events(number, count, players)]
    producer.list_topics(timeout=30)
    began.set()
    begun = time.perf_counter()
    for n, record in enumerate(records):
        if (early := begun + n / rate - time.perf_counter()) > 0:
            producer.poll(0)
            time.sleep(max(early, 0.001))
        headers: list[tuple[str, str | bytes | None]] = list(record.headers)
        producer.produce(ev.WAGERS, record.value, record.key, 0, headers=headers)
    assert producer.flush(60) == 0
    achieved.value = count / (time.perf_counter() - begun)


def _scripts_ms(client: Redis) -> float:
    """How long all scripts took together that write: of a batch the board's, that of how far it is
    and that of what detection has seen."""
    stats: Any = client.info("commandstats")
    return float(stats.get("cmdstat_evalsha", {}).get("usec", 0)) / 1000


# --- the reads -----------------------------------------------------------------------------------


async def _tokens(issuer: str, count: int) -> list[str]:
    async with aiohttp.ClientSession() as session:
        tokens = []
        for number in range(count):
            asked = {"subject": player_of(number), "roles": ["player"]}
            async with session.post(f"{issuer}/token", json=asked) as answer:
                tokens.append((await answer.json())["token"])
        return tokens


def _over_http(stage: _Stage, kind: str, run: int) -> Measured:
    meter = Meter(
        {
            "query": stage.query.pid,
            "on-wager": stage.on_wager.pid,
            "redis": stage.given.redis.pid,
            "kafka": stage.given.kafka.pid,
        }
    )
    with stage.writes() as told:
        times, bodies, lasted = asyncio.run(_asked(stage, kind, random.Random(run)))
    usage = meter.read()
    for body in bodies:
        read = json.loads(body)
        assert read["source"] == "board"
        rows = 1 if kind == "own rank" else len(read["standings"])
        assert rows == 100 if kind == "top 100" else 1 <= rows <= 11
    offered = {"offered_per_s": READS_A_SECOND, "achieved_per_s": round(len(times) / lasted)}
    more = {**spread(times), **offered, **told, "query_cpu_s": usage["query"].cpu_seconds}
    return Measured(round(quantile(times, 0.99), 3), more, usage)


async def _asked(
    stage: _Stage, kind: str, chance: random.Random
) -> tuple[list[float], list[bytes], float]:
    """Times of reads in ms from when each was due, what they answered, and how long it took."""
    times: list[float] = []
    bodies: list[bytes] = []
    of_tournament = f"{stage.query_url}/v1/tournaments/{T}"
    warm = READS_A_SECOND * (WARM_SECONDS - 1)
    async with aiohttp.ClientSession() as session:
        begun = time.perf_counter() + 0.2

        async def read(number: int) -> None:
            due = begun + number / READS_A_SECOND
            player = chance.randrange(len(stage.tokens))
            one = f"{of_tournament}/players/{player_of(player)}"
            url = {
                "top 100": f"{of_tournament}/standings?limit=100",
                "own rank": one,
                "around": f"{one}/around",
            }[kind]
            headers = {"Authorization": f"Bearer {stage.tokens[player]}"}
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            async with session.get(url, headers=headers) as got:
                body = await got.read()
            took = (time.perf_counter() - due) * 1000
            assert got.status == 200, body
            if number >= warm:
                times.append(took)
                bodies.append(body)

        count = warm + READS_A_SECOND * stage.seconds
        await asyncio.gather(*(read(number) for number in range(count)))
        lasted = time.perf_counter() - begun - warm / READS_A_SECOND
    return times, bodies, lasted


def _board_call(stage: _Stage, kind: str, run: int) -> Measured:
    board = RedisBoard(connect(stage.given.redis.url, BRIEF))
    chance, times = random.Random(run), []

    def someone() -> PlayerId:
        return PlayerId(player_of(chance.randrange(stage.players)))

    call: dict[str, Callable[[], object]] = {
        "top 100": lambda: board.top(T, 100),
        "own rank": lambda: board.player(T, someone()),
        "around": lambda: board.around(T, someone(), 5),
    }
    meter = Meter({"redis": stage.given.redis.pid})
    with stage.writes() as told:
        warm = READS_A_SECOND * (WARM_SECONDS - 1)
        count = warm + READS_A_SECOND * stage.seconds
        begun = time.perf_counter()
        for number, took_ms in enumerate(paced(call[kind], READS_A_SECOND, count)):
            if number >= warm:
                times.append(took_ms)
        achieved = round(count / (time.perf_counter() - begun))
    offered = {"offered_per_s": READS_A_SECOND, "achieved_per_s": achieved}
    more = {**spread(times), **offered, **told}
    return Measured(round(quantile(times, 0.99), 3), more, meter.read())


def paced(call: Callable[[], object], rate: float, count: int) -> Iterator[float]:
    """How long each of `count` calls took in ms, `rate` of them due a second. One that is due while
    the one before it is still under way has waited since then; that the sleep before a call was too
    long is no part of it."""
    begun, ended = time.perf_counter(), 0.0
    for number in range(count):
        due = begun + number / rate
        time.sleep(max(due - time.perf_counter(), 0))
        started = due if ended > due else time.perf_counter()
        assert call() is not None
        ended = time.perf_counter()
        yield (ended - started) * 1000
