"""What fraud detection finds in generated play with injected cheats, and what it costs.

One run is a day of one tournament: honest players in sessions, with bursts of their own, and cheats
of each kind. The play is made up, and so are the cheats: they look as the rules expect cheats
to look. What comes of it says how the rules behave, and nothing about real fraud.
"""

from __future__ import annotations

import importlib
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.load import play
from bench.report import Bench, Measured
from consuming import MemoryWatches
from leaderboard import events as ev
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.fold import LogEntry
from leaderboard.fraud import Piece, Suspicion, Watch
from leaderboard.fraud_rules import DEFAULTS, RULES, Parameters
from leaderboard.model import Offset, TournamentId
from logs import LOG, START_MS, TOMBSTONE_KEY, moment

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "functions/on-wager"))

T: Final = TournamentId("fraud")
DAY_MS: Final = 24 * 3_600_000
MINUTE_MS: Final = 60_000
BUDGET: Final = 10
"""Alerts of each rule that somebody looks at a day, the most severe ones."""
GAMES: Final = tuple(f"game-{n}" for n in range(6))
EASY: Final = Parameters.model_validate(
    {
        "rank_rise": {"ranks": 20},
        "velocity": {"wagers": 40},
        "stake_outlier": {"deviations": 1.5},
        "collusion": {"repeats": 4, "share": 0.3},
        "alerts_a_minute": 10_000,
        "cooldown_seconds": 1,
    }
)
"""Thresholds so low that the order by severity can be judged beyond the real ones."""

Play = tuple[int, str, int, int, str]
"""Time since the start (ms), player, stake, win, game."""


@dataclass(frozen=True)
class Cheat:
    """What was injected: by which rule it ought to be found, who does it, from when to when."""

    rule: str
    players: frozenset[str]
    start_ms: int
    end_ms: int


@dataclass
class Day:
    """A day's play, with what is wrong in it and what only looks like it."""

    plays: list[Play] = field(default_factory=list)
    cheats: list[Cheat] = field(default_factory=list)
    bursts: list[tuple[str, int, int]] = field(default_factory=list)
    """Honest ones: player, from when to when."""


def a_day(seed: int, players: int) -> Day:
    """Honest sessions, honest bursts, and twelve cheats of each kind."""
    chance = random.Random(seed)
    day = Day()
    for number in range(players):
        usual = chance.gauss(5.5, 0.8)
        for _ in range(2):
            start, length = chance.randrange(DAY_MS - 3_600_000), chance.randrange(15, 45)
            day.plays += session(chance, f"h{number}", usual, start, length)
    for number in chance.sample(range(players), players // 10):
        honest_burst(chance, day, f"h{number}")
    for number in range(12):
        at = chance.randrange(3_600_000, DAY_MS - 3_600_000)
        too_fast(chance, day, f"bot{number}", at)
        spike(chance, day, f"spike{number}", at)
        climb(chance, day, f"climber{number}", at)
        pair(chance, day, (f"a{number}", f"b{number}"), at, in_turn=bool(number % 2))
    day.plays.sort()
    return day


def stake_of(chance: random.Random, usual: float, spread: float = 0.35) -> int:
    """As people stake: round numbers around what they are used to."""
    stake = math.exp(chance.gauss(usual, spread))
    return max(10, round(stake / 10) * 10)


def win_of(chance: random.Random, stake: int) -> int:
    """Seldom much, once in a while a jackpot: honest, and a rise of many ranks at once."""
    roll = chance.random()
    if roll < 0.0002:
        return stake * 200
    return 0 if roll > 0.3 else round(stake * chance.choice((1, 2, 2, 3, 5)))


def session(
    chance: random.Random, player: str, usual: float, start: int, minutes: int
) -> Iterator[Play]:
    at, game = start, chance.choice(GAMES)
    while at < start + minutes * MINUTE_MS:
        at += round(chance.expovariate(1 / 9_000)) + 1_500
        stake = stake_of(chance, usual)
        yield at, player, stake, win_of(chance, stake), game


def honest_burst(chance: random.Random, day: Day, player: str) -> None:
    """Turbo play below the limit, an evening of doubled stakes, or two friends at one table."""
    at = chance.randrange(DAY_MS - 1_800_000)
    kind = chance.choice(("turbo", "doubled", "friends"))
    game = chance.choice(GAMES)
    end = at + 8 * MINUTE_MS
    day.bursts.append((player, at, end))
    now = at
    if kind == "turbo":
        while now < at + 4 * MINUTE_MS:
            now += chance.randrange(650, 1_100)
            day.plays.append((now, player, 100, win_of(chance, 100), game))
    elif kind == "doubled":
        for one in session(chance, player, 5.5 + chance.uniform(0.7, 1.1), at, 8):
            day.plays.append(one)
    else:
        friend = f"friend-{player}"
        day.bursts.append((friend, at, end))
        for who in (player, friend):
            usual = chance.gauss(5.5, 0.3)
            day.plays += [(t, p, s, w, game) for t, p, s, w, _ in
                          session(chance, who, usual, at, 8)]  # fmt: skip


def too_fast(chance: random.Random, day: Day, player: str, at: int) -> None:
    """A script: between 110 and 300 a minute for three minutes."""
    day.plays += session(chance, player, 5.0, at - 1_800_000, 20)
    pause, now = 60_000 // chance.randrange(110, 300), at
    while now < at + 3 * MINUTE_MS:
        now += max(1, pause + chance.randrange(-30, 30))
        day.plays.append((now, player, 50, win_of(chance, 50), GAMES[0]))
    day.cheats.append(Cheat("velocity", frozenset({player}), at, now))


def spike(chance: random.Random, day: Day, player: str, at: int) -> None:
    """One stake of 6 to 20 times the usual, after half an hour of the usual."""
    usual = chance.gauss(5.5, 0.8)
    day.plays += session(chance, player, usual, at - 1_800_000, 28)
    stake = round(math.exp(usual) * chance.uniform(6, 20))
    day.plays.append((at, player, stake, 0, GAMES[1]))
    day.cheats.append(Cheat("stake_outlier", frozenset({player}), at, at))


def climb(chance: random.Random, day: Day, player: str, at: int) -> None:
    """A game that is broken: within four minutes wins that lead from the middle to the top."""
    day.plays += session(chance, player, 5.5, at - 1_800_000, 20)
    for step in range(6):
        now = at + step * 40_000 + chance.randrange(10_000)
        day.plays.append((now, player, 300, chance.randrange(15_000, 40_000), GAMES[2]))
    day.cheats.append(Cheat("rank_rise", frozenset({player}), at, at + 4 * MINUTE_MS))


def pair(
    chance: random.Random, day: Day, names: tuple[str, str], at: int, *, in_turn: bool
) -> None:
    """Two accounts in one hand: in step every half minute, or one after the other."""
    game, now = chance.choice(GAMES), at
    for step in range(30):
        stake = round(chance.uniform(100, 2_000), -1)
        if in_turn:
            now += chance.randrange(3_000, 8_000)
            day.plays.append((now, names[step % 2], 770, win_of(chance, 770), game))
            continue
        now += chance.randrange(15_000, 30_000)
        lag = chance.randrange(50, 700)
        for late, who in enumerate(names):
            win = win_of(chance, int(stake))
            day.plays.append((now + late * lag, who, int(stake), win, game))
    day.cheats.append(Cheat("collusion", frozenset(names), at, now))


# --- what comes of it ----------------------------------------------------------------------------


def _functions_own() -> Any:
    """The module of on-wager, as it stands in its folder."""
    return importlib.import_module("suspicions")


def pieces_of_day(day: Day) -> list[Piece]:
    """The day through the fold, as `on-wager` cuts it."""
    pieces_of = _functions_own().pieces_of
    rules = {"scoring": {"kind": "win"}, "currency": "EUR"}
    opening = ev.TournamentScheduled(
        tournament_id=T,
        name="Day",
        starts_at=moment(START_MS),
        ends_at=moment(START_MS + 2 * DAY_MS),
        rules=ev.Rules.model_validate(rules),
    )
    entries = [LogEntry(Offset(0), START_MS, ev.Event("s", "/bench", START_MS, opening))]
    for offset, (at, player, stake, win, game) in enumerate(day.plays, start=1):
        data = ev.WagerPlaced(
            tournament_id=T,
            player_id=player,
            game_id=game,
            stake_minor=stake,
            win_minor=win,
            currency="EUR",
        )
        event = ev.Event(f"w{offset}", "/bench", START_MS + max(at, 0), data, player)
        entries.append(LogEntry(Offset(offset), START_MS, event))
    applied = MemoryBoard(TOMBSTONE_KEY).apply(T, LOG, None, entries, None)
    (ruled, *pieces) = pieces_of(entries, applied, Offset(-1))
    assert ruled.is_ruled
    return list(pieces)


def is_right(alert: Suspicion, cheat: Cheat) -> bool:
    at = alert.time_ms - START_MS
    slack = 5 * MINUTE_MS
    return (
        alert.rule == cheat.rule
        and alert.player_id in cheat.players
        and cheat.start_ms <= at <= cheat.end_ms + slack
    )


def average_precision(alerts: Sequence[Suspicion], cheats: Sequence[Cheat]) -> float:
    """Area under precision over recall, in order of severity; a cheat that is never told of
    counts as never reached."""
    ranked = sorted(alerts, key=lambda one: -one.evidence["severity"])
    seen: set[int] = set()
    total, right = 0.0, 0
    for place, alert in enumerate(ranked, start=1):
        hit = [n for n, cheat in enumerate(cheats) if is_right(alert, cheat)]
        if not hit:
            continue
        right += 1
        if hit[0] not in seen:
            seen.add(hit[0])
            total += right / place
    return total / len(cheats)


def judged(day: Day, pieces: Sequence[Piece], rule: str) -> dict[str, float]:
    """How one rule did on one day."""
    cheats = [one for one in day.cheats if one.rule == rule]
    alerts = [one for one in Watch(DEFAULTS).see(pieces) if one.rule == rule]
    top = sorted(alerts, key=lambda one: -one.evidence["severity"])[:BUDGET]
    found = [c for c in cheats if any(is_right(a, c) for a in alerts)]
    looked_at = [c for c in cheats if any(is_right(a, c) for a in top)]
    waits = [
        min(a.time_ms - START_MS - c.start_ms for a in alerts if is_right(a, c)) / 1000
        for c in found
    ]
    bursts = sum(
        one.player_id == player and start <= one.time_ms - START_MS <= end
        for one in alerts
        for player, start, end in day.bursts
    )
    any_right = sum(any(is_right(a, c) for c in cheats) for a in alerts)
    top_right = sum(any(is_right(a, c) for c in cheats) for a in top)
    easy = [one for one in Watch(EASY).see(pieces) if one.rule == rule]
    return {
        "alerts": len(alerts),
        "recall": len(found) / len(cheats),
        "precision": any_right / max(len(alerts), 1),
        "recall_in_budget": len(looked_at) / min(BUDGET, len(cheats)),
        "precision_in_budget": top_right / max(len(top), 1),
        "pr_auc": average_precision(easy, cheats),
        "seconds_to_detect": sorted(waits)[len(waits) // 2] if waits else -1.0,
        "false_on_bursts": bursts,
        "bursts": len(day.bursts),
        "wagers": len(day.plays),
    }


def quality(bench: Bench) -> None:
    """Recall, precision and PR-AUC of each rule over the same days, then what half-space trees
    make of them."""
    from bench.second_opinion import LOOKS, opinions

    players = bench.size(400, 60)
    days: dict[int, tuple[Day, list[Piece]]] = {}

    def measure(rule: str, run: int) -> Measured:
        if run not in days:
            days.clear()
            day = a_day(run + 1, players)
            days[run] = (day, pieces_of_day(day))
        found = judged(*days[run], rule)
        more = {name: round(value, 3) for name, value in found.items() if name != "pr_auc"}
        return Measured(found["pr_auc"], more)

    def ask(rule: str, run: int) -> Measured:
        day, pieces = days[run]
        began = time.process_time()
        told = opinions(pieces, rule, seed=run)
        seconds = time.process_time() - began
        cheats = [one for one in day.cheats if one.rule == rule]
        right = sum(any(is_right(a, c) for c in cheats) for a in told[:BUDGET])
        more = {
            "precision_in_budget": round(right / BUDGET, 3),
            "cpu_us_a_wager": round(seconds / len(day.plays) * 1e6, 1),
        }
        return Measured(average_precision(told, cheats), more)

    ours = {rule: partial(measure, rule) for rule in RULES}
    trees = {f"{rule}, half-space trees": partial(ask, rule) for rule in LOOKS}
    bench.in_turns("fraud", "PR-AUC", {**ours, **trees})


def cost(bench: Bench) -> None:
    """Processor time of detection for a wager: extraction, rules, and keeping it (in memory; what
    Redis is sent costs its packing)."""
    import msgpack

    wagers, players = bench.size(200_000, 4_000), bench.size(20_000, 500)

    def measure(run: int) -> Measured:
        events = play(run, wagers, players, T)
        entries = [LogEntry(Offset(n), START_MS, one) for n, one in enumerate(events)]
        board = MemoryBoard(TOMBSTONE_KEY)
        batches: list[tuple[list[LogEntry], Any]] = []
        confirmed = None
        for start in range(0, len(entries), 1000):
            part = entries[start : start + 1000]
            batches.append((part, board.apply(T, LOG, None, part, confirmed)))
            confirmed = part[-1].offset

        class Packing(MemoryWatches):
            def append(self, *given: Any) -> bool:
                msgpack.packb(given[3])
                return True

            def replace(self, *given: Any) -> bool:
                msgpack.packb(given[4].plain())
                return True

        suspicions = _functions_own().Suspicions(Packing())
        began, alerts = time.process_time(), 0
        for part, applied in batches:
            alerts += len(suspicions.look(LOG, T, part, applied))
            suspicions.keep([T])
        seconds = time.process_time() - began
        return Measured(seconds / len(entries) * 1e6, {"alerts": alerts, "wagers": len(entries)})

    bench.in_turns("fraud-cost", "CPU s/million", {"detection": measure}, better="lower")


def fraud(bench: Bench) -> None:
    """(h) Fraud detection: quality, then cost."""
    quality(bench)
    cost(bench)
