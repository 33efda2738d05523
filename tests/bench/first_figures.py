"""First figures: wagers a second of one `on-wager`.

    python tests/bench/first_figures.py throughput --wagers 200000

`throughput`: real Kafka and Redis, one tournament, 100,000 players with standings, Zipf play, a
backlog that is there before the clock runs. In turns with the reference design's algorithm (for
each wager ZREVRANK, ZINCRBY, ZREVRANK, then produce and wait) on the same servers in the same
run. The final board is compared with the oracle's. Load is bounded in count and time and stays
on loopback. Prints JSON lines; asserts no time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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


def main() -> None:
    # Told to end, it ends what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_subparsers(dest="what", required=True)
    first = what.add_parser("throughput")
    first.add_argument("--runs", type=int, default=3)
    first.add_argument("--wagers", type=int, default=200_000)
    given = parser.parse_args()
    throughput(given.runs, given.wagers)


if __name__ == "__main__":
    main()
