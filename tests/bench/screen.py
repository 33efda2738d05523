"""(c) A wager to the `position` frame on a connected player's socket, through the whole stack.

A wager's time is the one when it was due, so a slow moment counts for all that it delays. The
reference claims 300 ms p99; there is nothing of it to run beside ours.
"""

from __future__ import annotations

from functools import partial

from bench.load import PLAYERS
from bench.machine import of_functions, per_million
from bench.play import Wanted, play
from bench.report import Bench, Measured, spread

CONNECTED = 2_000
RATES = (10_000, 5_000, 2_000)


def screen(bench: Bench) -> None:
    """p99 at three rates, with 2,000 players connected: the way to the screen alone, and with the
    record being written on the same cores."""
    contenders = {}
    for rate in (100,) if bench.small else RATES:
        contenders[f"{rate:,} wagers/s"] = partial(_at, bench, rate, archive=False)
        contenders[f"{rate:,}, archive beside it"] = partial(_at, bench, rate, archive=True)
    bench.in_turns("screen", "ms p99", contenders, better="lower")


def _at(bench: Bench, rate: int, run: int, *, archive: bool) -> Measured:
    wanted = Wanted(
        rate=rate,
        seconds=bench.size(20, 4),
        warm_up=bench.size(5, 1),
        connected=bench.size(CONNECTED, 50),
        players=bench.size(PLAYERS, 1_000),
        archive=archive,
    )
    played = play(run, wanted)
    times = spread(played.positions)
    wagers = wanted.rate * (wanted.seconds + wanted.warm_up)
    more = {
        **times,
        **spread(played.tops, "top_"),
        "offered_per_second": wanted.rate,
        **played.more,
        "connecting_s": played.connecting["seconds"],
        **per_million(played.usage, wagers),
        **of_functions(played.usage, wagers),
    }
    return Measured(times["p99_ms"], more, played.usage)
