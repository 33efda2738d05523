"""(e) 10,000 sockets on one gateway: how fast they come in through `on-connect`, and what comes to
them from `on-rank-change`, the whole stack at work.

Four frames a second each: `top`, which is coalesced, while wagers come faster than that. A frame
is owed for each that `on-rank-change` says it handed over, to everyone it was for.
"""

from __future__ import annotations

from bench.machine import of_functions, per_million
from bench.play import Wanted, play
from bench.report import Bench, Figure, Measured, spread

SOCKETS = 10_000
RATE = 200
FLOOR = {"ON_CONNECT__WORKERS": "2"}
"""As many as always run in a cluster (`min-scale`); one has one core, whatever the machine has."""


def gateway(bench: Bench) -> None:
    """Connects and frames, of the same runs."""
    sockets = bench.size(SOCKETS, 100)
    connects = Figure("connects", f"{sockets:,} as fast as they can", "s", "lower")
    frames = Figure("gateway", "wager due to `top` on every socket", "ms p99", "lower")
    bench.figures += (connects, frames)
    for run in bench.seeds:
        wanted = Wanted(
            rate=bench.size(RATE, 50),
            seconds=bench.size(20, 4),
            warm_up=bench.size(5, 1),
            connected=sockets,
            players=bench.size(SOCKETS, 1_000),
            settings=FLOOR,
        )
        played = play(run, wanted)
        told = played.connecting
        refused = sum(told["refused"].values())
        more = {"connected": told["connected"], "refused": refused, "p99_ms": told["p99_ms"]}
        measured = Measured(told["seconds"], more, played.connecting_usage)
        connects.runs.append(measured)
        bench.say("connects", f"run {run + 1}", measured, connects.unit)
        times = spread(played.top_ages)
        wagers = wanted.rate * (wanted.seconds + wanted.warm_up)
        more = {
            **times,
            **spread(played.positions, "position_"),
            "offered_per_second": wanted.rate,
            **played.more,
            **per_million(played.usage, wagers),
            **of_functions(played.usage, wagers),
        }
        measured = Measured(times["p99_ms"], more, played.usage)
        frames.runs.append(measured)
        bench.say("gateway", f"run {run + 1}", measured, frames.unit)
