"""How points combine into a score, and in which exact order scores stand.

Operators and order are the words of `Rules`. The order is total: score, then subscore, then who
reached the pair first (the sequence at which the player got there), so no two players are equal.
"""

from __future__ import annotations

from enum import StrEnum

from leaderboard.model import Offset, Score

RankKey = tuple[int, int, int]
"""Sorts ascending from the first rank to the last: (±score, ±subscore, reached)."""


class Operator(StrEnum):
    """How the points of one player's events combine."""

    SUM = "sum"
    BEST = "best"
    LAST = "last"
    COUNT = "count"
    BEST_OF = "best_of"
    """Named by the contract; this version records its schedules as `unsupported`."""


class Order(StrEnum):
    """Whether more points are better."""

    DESCENDING = "descending"
    ASCENDING = "ascending"


def combine(operator: Operator, order: Order, current: Score | None, points: Score) -> Score:
    """A player's score after one more event. May leave the range: the caller checks.

    `best` and `last` take the pair from one and the same event; `count` counts events whatever
    they earn, and its second key is 0."""
    match operator:
        case Operator.SUM:
            if current is None:
                return points
            return Score(current.score + points.score, current.subscore + points.subscore)
        case Operator.BEST:
            if current is None or _is_better(order, points, current):
                return points
            return current
        case Operator.LAST:
            return points
        case Operator.COUNT:
            return Score(1 if current is None else current.score + 1)
        case Operator.BEST_OF:
            raise ValueError("best_of can't be folded yet")


def sign_of(order: Order) -> int:
    """What turns a score into the number whose smallest stands first, and back."""
    return -1 if order is Order.DESCENDING else 1


def rank_key(order: Order, score: Score, reached: Offset) -> RankKey:
    """The place of a score in the total order; smaller stands higher."""
    sign = sign_of(order)
    return (sign * score.score, sign * score.subscore, reached)


def distance(order: Order, score: int, above: int) -> int:
    """Points that part a score from the one a rank up; 0 between equals."""
    return above - score if order is Order.DESCENDING else score - above


def _is_better(order: Order, one: Score, other: Score) -> bool:
    return one > other if order is Order.DESCENDING else one < other
