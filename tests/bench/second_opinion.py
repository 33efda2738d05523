"""Another method's opinion of the same play: half-space trees (Tan, Ting and Liu, 2011), as River
has them. They are told what a rule looks at and no threshold: how seldom it is, they find out."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from river.anomaly import HalfSpaceTrees

from leaderboard.fraud import Piece, Suspicion
from leaderboard.model import Offset, PlayerId

MOST: Final = 2_000
"""Opinions of a day that are looked at, the most severe ones: what comes later moves no area."""
MINUTE_MS: Final = 60_000
RISE_MS: Final = 300_000
Look = tuple[int, int, str, dict[str, float]]
"""Offset, time, player, and what is seen of the event, each in [0, 1] as the trees want it."""


@dataclass
class _Habit:
    count: int = 0
    mean: float = 0.0
    variance: float = 0.0
    times: deque[int] = field(default_factory=deque)

    def deviation(self, stake: int) -> float:
        """Of this stake, before it becomes part of the habit."""
        away = math.log1p(stake) - self.mean
        deviation = away / max(math.sqrt(self.variance), 0.25) if self.count else 0.0
        self.count += 1
        weight = max(0.05, 1 / self.count)
        self.mean += weight * away
        self.variance = (1 - weight) * (self.variance + weight * away * away)
        return deviation


def _within(value: float, least: float, most: float) -> float:
    return min(max((value - least) / (most - least), 0.0), 1.0)


def stakes(pieces: Sequence[Piece]) -> Iterator[Look]:
    """Each wager by its stake and how far that is from the player's own habit."""
    habits: dict[str, _Habit] = {}
    for offset, at, player, stake, _ in _wagers(pieces):
        away = habits.setdefault(player, _Habit()).deviation(stake)
        stands = {"away": _within(away, -8, 24), "stake": _within(math.log1p(stake), 0, 14)}
        yield offset, at, player, stands


def pace(pieces: Sequence[Piece]) -> Iterator[Look]:
    """Each wager by how many the player had within a minute, and the pause before it."""
    habits: dict[str, _Habit] = {}
    for offset, at, player, _, _ in _wagers(pieces):
        times = habits.setdefault(player, _Habit()).times
        pause = at - times[-1] if times else MINUTE_MS
        times.append(at)
        while times[0] <= at - MINUTE_MS:
            times.popleft()
        stands = {"wagers": _within(len(times), 0, 300), "pause": _within(pause, 0, MINUTE_MS)}
        yield offset, at, player, stands


def rises(pieces: Sequence[Piece]) -> Iterator[Look]:
    """Each climb by itself, and from the largest rank of five minutes, in doublings."""
    windows: dict[str, deque[tuple[int, int]]] = {}
    for piece in pieces:
        for offset, at, player, old, new in piece.climbs:
            window = windows.setdefault(player, deque())
            window.append((at, old))
            while window[0][0] <= at - RISE_MS:
                window.popleft()
            largest = max(rank for _, rank in window)
            stands = {
                "step": _within(math.log2(old / new), 0, 10),
                "rise": _within(math.log2(largest / new), 0, 10),
                "rank": _within(math.log2(new), 0, 17),
            }
            yield offset, at, player, stands


LOOKS: Final = {"velocity": pace, "stake_outlier": stakes, "rank_rise": rises}
"""Of collusion they have no opinion: a pair is no property of one event."""


def opinions(pieces: Sequence[Piece], rule: str, seed: int) -> list[Suspicion]:
    """The most unusual events of a day by what this rule looks at, with the trees' own score."""
    trees: Any = HalfSpaceTrees(n_trees=25, height=8, window_size=1_000, seed=seed)
    found: list[tuple[float, int, int, str]] = []
    for offset, at, player, stands in LOOKS[rule](pieces):
        found.append((trees.score_one(stands), offset, at, player))
        trees.learn_one(stands)
    found.sort(key=lambda one: (-one[0], one[1]))
    return [
        Suspicion(Offset(offset), at, PlayerId(player), rule, {"severity": score})
        for score, offset, at, player in found[:MOST]
    ]


def _wagers(pieces: Sequence[Piece]) -> Iterator[tuple[int, int, str, int, str]]:
    for piece in pieces:
        yield from piece.wagers
