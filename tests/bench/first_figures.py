"""First figures: wagers a second of one `on-wager`, and wager to `position` frame.

    python tests/bench/first_figures.py throughput --wagers 200000
    python tests/bench/first_figures.py latency --rate 2000 --seconds 30

`throughput`: real Kafka and Redis, one tournament, 100,000 players with standings, Zipf play, a
backlog that is there before the clock runs. In turns with the reference design's algorithm (for
each wager ZREVRANK, ZINCRBY, ZREVRANK, then produce and wait) on the same servers in the same
run. The final board is compared with the oracle's. `latency`: the whole local stack, open loop:
a wager's time is the one it was due at, so a slow moment counts for all that it delays. Load is
bounded in count and time and stays on loopback. Prints JSON lines; asserts no time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import redis
from confluent_kafka import Producer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from leaderboard import events as ev  # noqa: E402
from leaderboard.adapters import sql_migrations  # noqa: E402
from leaderboard.adapters.memory_board import MemoryBoard  # noqa: E402
from leaderboard.adapters.redis_board import RedisBoard  # noqa: E402
from leaderboard.adapters.redis_client import connect  # noqa: E402
from leaderboard.codec import decode_kafka, encode_kafka  # noqa: E402
from leaderboard.fold import LogEntry  # noqa: E402
from leaderboard.model import Offset, TournamentId  # noqa: E402
from leaderboard.settings import DatabaseSettings, load  # noqa: E402
from leaderboard.stack.process import Process, free_port  # noqa: E402
from leaderboard.stack.servers import KafkaServer, RedisServer, redis_program  # noqa: E402
from leaderboard.stack.topics import create_topics  # noqa: E402
from logs import END_MS, LOG, START_MS, TOMBSTONE_KEY, moment  # noqa: E402
from running import StackCommand, descendants, wait_for  # noqa: E402

T = TournamentId("bench")
PLAYERS = 100_000


def say(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def machine() -> dict[str, object]:
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def player_of(number: int) -> str:
    return f"player-{number:06d}"


def zipf(chance: random.Random, count: int, exponent: float = 1.1) -> Iterator[int]:
    """Players by Zipf's law, as their numbers from 0."""
    weights = [1 / (rank**exponent) for rank in range(1, PLAYERS + 1)]
    yield from chance.choices(range(PLAYERS), weights, k=count)


def wager(player: int, stake: int, number: int, time_ms: int = START_MS + 1) -> ev.Event:
    data = ev.WagerPlaced(
        tournament_id=T,
        player_id=player_of(player),
        game_id="slots-7",
        stake_minor=stake,
        currency="EUR",
    )
    return ev.Event(f"w-{number}", "/bench", time_ms, data, subject=player_of(player))


def schedule(starts_ms: int = START_MS, ends_ms: int = END_MS) -> ev.Event:
    data = ev.TournamentScheduled(
        tournament_id=T,
        name="Bench",
        starts_at=moment(starts_ms),
        ends_at=moment(ends_ms),
        rules=ev.Rules.model_validate({"scoring": {"kind": "stake"}, "currency": "EUR"}),
    )
    return ev.Event("s", "/bench", starts_ms, data)


class Log:
    """Puts events into `wagers` and remembers them with their offsets."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "partitioner": "murmur2_random",
                "linger.ms": 5,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        self.entries: list[LogEntry] = []

    def write(self, events: Sequence[ev.Event], topic: str = ev.WAGERS) -> None:
        for event in events:
            record = encode_kafka(event, topic)
            self._producer.produce(
                topic, value=record.value, key=record.key, headers=list(record.headers)
            )
            self.entries.append(LogEntry(Offset(len(self.entries)), START_MS, event))
        assert self._producer.flush(120) == 0


class Servers:
    """Kafka and Redis for one measurement."""

    def __init__(self, folder: Path) -> None:
        self.kafka = KafkaServer(folder / "kafka", port=free_port(), heap="1g")
        self.redis = RedisServer(folder / "redis", port=free_port(), program=redis_program())

    def __enter__(self) -> Servers:
        self.redis.start()
        self.kafka.start()
        create_topics(self.kafka.bootstrap_servers, 1)
        return self

    def __exit__(self, *_: object) -> None:
        self.kafka.stop()
        self.redis.stop()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ours(servers: Servers, folder: Path, seed: int, wagers: int) -> dict[str, object]:
    """One `on-wager` process works a backlog off."""
    chance = random.Random(seed)
    log = Log(servers.kafka.bootstrap_servers)
    numbers = iter(range(10**9))
    log.write([schedule()])
    log.write([wager(p, chance.randint(1, 10_000), next(numbers)) for p in range(PLAYERS)])
    log.write([wager(p, chance.randint(1, 1000), next(numbers)) for p in zipf(chance, wagers)])
    database = load(DatabaseSettings, {"DATABASE_URL": f"sqlite:///{folder / 'record.db'}"}).url
    sql_migrations.upgrade(database)
    environ = {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": servers.kafka.bootstrap_servers,
        "REDIS_URL": servers.redis.url,
        "DATABASE_URL": database,
        "TOMBSTONE_KEY": TOMBSTONE_KEY.decode(),
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
    }
    argv = [sys.executable, str(ROOT / "functions" / "on-wager" / "main.py")]
    process = Process("on-wager", argv, log_path=folder / "on-wager.log", environ=environ)
    client = redis.Redis.from_url(servers.redis.url)
    process.start()
    try:
        first = PLAYERS + 1 + wagers // 10  # warm-up: the standings, and a tenth of the play
        last = len(log.entries) - 1
        reached = _until(client, first)
        cpu = cpu_seconds(process.pid)
        started = time.perf_counter()
        done = _until(client, last)
        seconds = time.perf_counter() - started
        cpu = cpu_seconds(process.pid) - cpu
    finally:
        process.stop()
    _compare(log, client, servers.redis.url)
    return {
        "wagers_per_second": round((done - reached) / seconds),
        "seconds": round(seconds, 2),
        "cpu_seconds_per_million": round(cpu / (done - reached) * 1e6, 1),
        "board_equals_oracle": True,
    }


def _until(client: redis.Redis, offset: int) -> int:
    while True:
        found: Any = client.hget(f"{{{T}}}:board", "offset")
        if int(found or -1) >= offset:
            return int(found)
        time.sleep(0.01)


def _compare(log: Log, client: redis.Redis, url: str) -> None:
    oracle = MemoryBoard(TOMBSTONE_KEY)
    oracle.apply(T, LOG, None, log.entries, None)
    wanted = oracle.top(T, PLAYERS)
    board = RedisBoard(connect(url))
    assert wanted is not None
    for skipped in range(0, PLAYERS, 1000):
        view = board.top(T, 1000, skipped)
        assert view is not None
        assert list(view.standings) == list(wanted.standings[skipped : skipped + 1000])


def reference(servers: Servers, seed: int, wagers: int) -> dict[str, object]:
    """The reference's algorithm, as careful as ours: pipelines where nothing depends, commits
    in the background, an idempotent producer; but one wager after the other, as it is."""
    chance = random.Random(seed)
    client = redis.Redis.from_url(servers.redis.url)
    client.zadd("reference", {player_of(p): chance.randint(1, 10_000) for p in range(PLAYERS)})
    producer = Producer(
        {
            "bootstrap.servers": servers.kafka.bootstrap_servers,
            "enable.idempotence": True,
            "linger.ms": 0,
        }
    )
    records = [
        encode_kafka(wager(p, chance.randint(1, 1000), n), ev.WAGERS)
        for n, p in enumerate(zipf(chance, wagers))
    ]
    started = time.perf_counter()
    for record in records:
        data = decode_kafka(record).data
        assert isinstance(data, ev.WagerPlaced)
        old = client.zrevrank("reference", data.player_id)
        client.zincrby("reference", data.stake_minor, data.player_id)
        new = client.zrevrank("reference", data.player_id)
        if old != new:
            producer.produce("fraud-alerts", key=record.key, value=record.value)
            producer.flush()
    seconds = time.perf_counter() - started
    return {"wagers_per_second": round(wagers / seconds), "seconds": round(seconds, 2)}


def throughput(runs: int, wagers: int) -> None:
    say(what="throughput", players=PLAYERS, wagers=wagers, machine=machine())
    figures: dict[str, list[int]] = defaultdict(list)
    for run in range(runs):
        for name in ("ours", "reference"):
            with tempfile.TemporaryDirectory() as folder, Servers(Path(folder)) as servers:
                if name == "ours":
                    result = ours(servers, Path(folder), run, wagers)
                else:
                    result = reference(servers, run, max(wagers // 40, 1000))
            figures[name].append(int(str(result["wagers_per_second"])))
            say(run=run, who=name, **result)
    for name, values in figures.items():
        say(who=name, minimum=min(values), median=quantile(values, 0.5), maximum=max(values))
    ratio = quantile(figures["ours"], 0.5) / quantile(figures["reference"], 0.5)
    say(ratio_to_reference=round(ratio, 1))


# --- latency -----------------------------------------------------------------------------------


class Watchers:
    """Connected players; notes when each `position` frame came, by player and sequence."""

    def __init__(self, settings: dict[str, str]) -> None:
        self._settings = settings
        self.frames: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._tasks: list[asyncio.Task[None]] = []

    async def connect(self, session: aiohttp.ClientSession, players: Sequence[str]) -> None:
        gate = asyncio.Semaphore(20)

        async def one(player: str) -> None:
            async with gate:
                token = await self._token(session, player)
                url = f"{self._settings['CONNECT_URL']}/v1/tournaments/{T}/connections"
                headers = {"Authorization": f"Bearer {token}"}
                async with session.post(url, headers=headers) as answer:
                    assert answer.status == 201, await answer.text()
                    way = (await answer.json())["url"]
                socket = await session.ws_connect(way)
            self._tasks.append(asyncio.create_task(self._read(player, socket)))

        await asyncio.gather(*(one(player) for player in players))

    async def _token(self, session: aiohttp.ClientSession, player: str) -> str:
        url = f"{self._settings['ISSUER_URL']}/token"
        async with session.post(url, json={"subject": player, "roles": ["player"]}) as answer:
            return str((await answer.json())["token"])

    async def _read(self, player: str, socket: aiohttp.ClientWebSocketResponse) -> None:
        frames = self.frames[player]
        async for message in socket:
            came = time.time()
            if message.data.startswith('{"type":"position"'):
                frames.append((json.loads(message.data)["sequence"], came))


def latency(rate: int, seconds: int, connected: int) -> None:
    say(what="latency", rate=rate, seconds=seconds, connected=connected, machine=machine())
    with tempfile.TemporaryDirectory() as folder:
        stack = StackCommand(Path(folder), ["stack", "--free-ports"])
        stack.start()
        try:
            asyncio.run(_latency(stack.env(), rate, seconds, connected))
        finally:
            stack.stop()


async def _latency(settings: dict[str, str], rate: int, seconds: int, connected: int) -> None:
    chance = random.Random(1)
    now = int(time.time() * 1000)
    warm_up = 5
    events = [schedule(now - 60_000, now + 3_600_000)]
    numbers = list(zipf(chance, rate * (seconds + warm_up)))
    stakes = [chance.randint(1, 1000) for _ in numbers]
    players = [player_of(n) for n in sorted(set(numbers[: rate * 2]))]
    watched = chance.sample(players, min(connected, len(players)))
    _produce_all(settings, events)
    query = settings["QUERY_URL"]
    token = httpx.post(
        f"{settings['ISSUER_URL']}/token", json={"subject": "b", "roles": ["operator"]}
    ).json()["token"]
    headers = {"Authorization": f"Bearer {token}"}
    board = f"{query}/v1/tournaments/{T}"
    wait_for(lambda: httpx.get(board, headers=headers).status_code == 200, 30)
    # An open socket keeps its connection: without a limit, or the hundredth waits for ever.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        watchers = Watchers(settings)
        started = time.perf_counter()
        await watchers.connect(session, watched)
        say(connected=len(watched), connecting_seconds=round(time.perf_counter() - started, 2))
        # A process of its own, so that reading frames does not delay the load.
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            "load",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        plan = {
            "bootstrap": settings["KAFKA_BOOTSTRAP_SERVERS"],
            "rate": rate,
            "wagers": list(zip(numbers, stakes, strict=True)),
        }
        before = cpu_by_process(settings)
        out, _ = await child.communicate(json.dumps(plan).encode())
        load = json.loads(out)
        await asyncio.sleep(3)
        after = cpu_by_process(settings)
        say(cpu_seconds={name: round(after[name] - used, 1) for name, used in before.items()})
        _report(watchers, load, numbers, stakes, rate, warm_up)


def cpu_by_process(settings: dict[str, str]) -> dict[str, float]:
    """CPU seconds so far of each process of the stack, with its children; ours as `bench`."""
    pids = {name[4:]: int(pid) for name, pid in settings.items() if name.startswith("PID_")}
    pids["bench"] = os.getpid()
    found = {}
    for name, pid in pids.items():
        family = {pid} if name == "bench" else {pid, *descendants(pid)}
        found[name] = sum(cpu_seconds(one) for one in family)
    return found


def _produce_all(settings: dict[str, str], events: Sequence[ev.Event]) -> None:
    producer = Producer(
        {
            "bootstrap.servers": settings["KAFKA_BOOTSTRAP_SERVERS"],
            "partitioner": "murmur2_random",
        }
    )
    for event in events:
        record = encode_kafka(event, ev.WAGERS)
        producer.produce(
            ev.WAGERS, value=record.value, key=record.key, headers=list(record.headers)
        )
    assert producer.flush(30) == 0


def load_in_child() -> None:
    """Open loop: each wager at the time it is due, however the ones before fare."""
    plan = json.load(sys.stdin)
    producer = Producer(
        {
            "bootstrap.servers": plan["bootstrap"],
            "partitioner": "murmur2_random",
            "linger.ms": 5,
            "acks": "all",
        }
    )
    offsets: list[int] = [-1] * len(plan["wagers"])

    def note(index: int) -> Any:
        def delivered(error: Any, message: Any) -> None:
            assert error is None, error
            offsets[index] = message.offset()

        return delivered

    begun = time.time() + 0.5
    time_ms = int(begun * 1000)
    for index, (player, stake) in enumerate(plan["wagers"]):
        due = begun + index / plan["rate"]
        while (left := due - time.time()) > 0:
            producer.poll(min(left, 0.001))
        record = encode_kafka(wager(player, stake, index, time_ms), ev.WAGERS)
        producer.produce(
            ev.WAGERS,
            value=record.value,
            key=record.key,
            headers=list(record.headers),
            on_delivery=note(index),
        )
    ended = time.time()
    producer.flush(30)
    json.dump({"begun": begun, "ended": ended, "offsets": offsets}, sys.stdout)


def _report(
    watchers: Watchers,
    load: dict[str, Any],
    numbers: Sequence[int],
    stakes: Sequence[int],
    rate: int,
    warm_up: int,
) -> None:
    now = int(time.time() * 1000)
    entries = [LogEntry(Offset(0), now, schedule(now - 3_600_000, now + 3_600_000))]
    due: dict[int, float] = {}
    for index, (player, stake) in enumerate(zip(numbers, stakes, strict=True)):
        offset = load["offsets"][index]
        entries.append(LogEntry(Offset(offset), now, wager(player, stake, index, now)))
        due[offset] = load["begun"] + index / rate
    oracle = MemoryBoard(TOMBSTONE_KEY)
    visible = oracle.apply(T, LOG, None, entries, None).unconfirmed
    delays, missing = [], 0
    for change in visible:
        if change.player_id not in watchers.frames:
            continue
        if due[change.sequence] < load["begun"] + warm_up:
            continue
        came = [at for s, at in watchers.frames[change.player_id] if s >= change.sequence]
        if came:
            delays.append((min(came) - due[change.sequence]) * 1000)
        else:
            missing += 1
    achieved = len(numbers) / (load["ended"] - load["begun"])
    say(
        offered_per_second=rate,
        achieved_per_second=round(achieved),
        visible_changes=len(visible),
        measured=len(delays),
        missing=missing,
        frames=sum(map(len, watchers.frames.values())),
        p50_ms=round(quantile(delays, 0.5), 1),
        p99_ms=round(quantile(delays, 0.99), 1),
        p999_ms=round(quantile(delays, 0.999), 1),
        max_ms=round(max(delays), 1),
    )


def main() -> None:
    # Told to end, it ends what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_subparsers(dest="what", required=True)
    first = what.add_parser("throughput")
    first.add_argument("--runs", type=int, default=3)
    first.add_argument("--wagers", type=int, default=200_000)
    second = what.add_parser("latency")
    second.add_argument("--rate", type=int, default=2_000)
    second.add_argument("--seconds", type=int, default=30)
    second.add_argument("--connected", type=int, default=2_000)
    what.add_parser("load")
    given = parser.parse_args()
    if given.what == "throughput":
        throughput(given.runs, given.wagers)
    elif given.what == "latency":
        latency(given.rate, given.seconds, given.connected)
    else:
        load_in_child()


if __name__ == "__main__":
    main()
