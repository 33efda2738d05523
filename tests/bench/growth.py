"""(j) What a wager costs on the board as players and batches grow, and the exponents fitted to it.

The whole call of `RedisBoard` (fold, request, script, answer), without Kafka, so that nothing hides
a bend: an exponent over players near 0 is the logarithm of a sorted set."""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.load import T, schedule, wager, zipf
from bench.report import Bench, Figure, Measured
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import connect
from leaderboard.fold import LogEntry
from leaderboard.model import Offset
from leaderboard.stack.servers import RedisServer, redis_program
from logs import LOG, START_MS, TOMBSTONE_KEY

BATCHES = (1, 10, 100, 1_000, 5_000)
OPENING = 5_000
LIKE_PRODUCTION = 1_000


def growth(bench: Bench) -> None:
    sizes = [10**n for n in range(3, bench.size(7, 5))]
    figures = {
        (size, batch): Figure(
            "growth", f"{size:,} players, batches of {batch:,}", "us/wager", "lower"
        )
        for size in sizes
        for batch in BATCHES
        if batch == LIKE_PRODUCTION or size == sizes[-2]
    }
    over_players = Figure("growth", "exponent over players", "exponent", "lower")
    over_batches = Figure("growth", "exponent of a call over its batch", "exponent", "lower")
    bench.figures += [*figures.values(), over_players, over_batches]
    for run in bench.seeds:
        cost: dict[tuple[int, int], float] = {}
        for size in sizes:
            batches = [batch for of, batch in figures if of == size]
            for batch, seconds in _costs(run, size, batches).items():
                cost[size, batch] = seconds
                measured = Measured(seconds * 1e6)
                figures[size, batch].runs.append(measured)
                bench.say("growth", figures[size, batch].name, measured, "us/wager")
        by_size = {size: cost[size, LIKE_PRODUCTION] for size in sizes}
        by_batch = {batch: cost[sizes[-2], batch] * batch for batch in BATCHES}
        over_players.runs.append(Measured(round(exponent(by_size), 3)))
        over_batches.runs.append(Measured(round(exponent(by_batch), 3)))


def exponent(costs: Mapping[int, float]) -> float:
    """The slope of a straight line through the logarithms (least squares)."""
    points = [(math.log(size), math.log(cost)) for size, cost in costs.items()]
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    above = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return above / sum((x - mean_x) ** 2 for x, _ in points)


def _costs(seed: int, players: int, batches: Sequence[int]) -> dict[int, float]:
    """Seconds a wager, by size of the batch."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder) / "redis", program=redis_program())
        server.start()
        try:
            board = RedisBoard(connect(server.url), TOMBSTONE_KEY)
            applied = _apply(board, [LogEntry(Offset(0), START_MS, schedule())], None)
            for start in range(0, players, OPENING):
                wagers = range(start, min(start + OPENING, players))
                applied = _play(board, chance, wagers, applied)
            found: dict[int, float] = {}
            for batch in batches:
                calls = max(min(20_000 // batch, 1_000), 4)
                played = [zipf(chance, batch, players) for _ in range(calls)]
                spent = 0.0
                for number, ones in enumerate(played):
                    entries = _entries(chance, ones, applied)
                    started = time.perf_counter()
                    applied = _apply(board, entries, applied)
                    if number >= calls // 10:  # the first ones warm up
                        spent += time.perf_counter() - started
                found[batch] = spent / ((calls - calls // 10) * batch)
            return found
        finally:
            server.stop()


def _play(board: RedisBoard, chance: random.Random, players: Sequence[int], after: int) -> int:
    return _apply(board, _entries(chance, players, after), after)


def _entries(chance: random.Random, players: Sequence[int], after: int) -> list[LogEntry]:
    return [
        LogEntry(Offset(n), START_MS, wager(player, chance.randint(1, 10_000), n))
        for n, player in enumerate(players, after + 1)
    ]


def _apply(board: RedisBoard, entries: Sequence[LogEntry], after: int | None) -> int:
    known = None if after is None else Offset(after)
    applied = board.apply(T, LOG, known, entries, known, known)
    assert applied.offset == entries[-1].offset
    return applied.offset
