"""How points combine, and the exact order."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.model import SCORE_LIMIT, Offset, Score, is_visible, percentile
from leaderboard.ranking import Operator, Order, combine, distance, rank_key

EDGE = SCORE_LIMIT - 1
NUMBERS = st.one_of(
    st.integers(-3, 3), st.integers(-EDGE, EDGE), st.sampled_from([EDGE, EDGE - 1, -EDGE, 1 - EDGE])
)
SCORES = st.builds(Score, NUMBERS, NUMBERS)
ORDERS = st.sampled_from(Order)
BOTH = pytest.mark.parametrize("order", Order)
UP, DOWN = Order.ASCENDING, Order.DESCENDING


@BOTH
def test_who_reached_a_score_first_ranks_higher(order: Order) -> None:
    score = Score(7, 7)
    assert rank_key(order, score, Offset(4)) < rank_key(order, score, Offset(5))


@given(ORDERS, st.lists(SCORES, min_size=2, max_size=8))
def test_order_is_total_and_exact(order: Order, scores: list[Score]) -> None:
    keys = sorted(rank_key(order, score, Offset(i)) for i, score in enumerate(scores))
    for (first, second, reached), (next_first, next_second, next_reached) in pairwise(keys):
        one, other = scores[reached], scores[next_reached]
        if one == other:
            assert reached < next_reached
        else:
            assert (one > other) is (order is DOWN)
        assert (first, second) <= (next_first, next_second)
        assert all(isinstance(part, int) for part in (first, second, next_first, next_second))


@pytest.mark.parametrize("score", [EDGE, -EDGE + 1])
def test_neighbours_at_the_edge_are_told_apart(score: int) -> None:
    higher, lower = Score(score), Score(score - 1)
    assert rank_key(DOWN, higher, Offset(9)) < rank_key(DOWN, lower, Offset(1))
    assert rank_key(UP, lower, Offset(9)) < rank_key(UP, higher, Offset(1))


@pytest.mark.parametrize(
    "score", [Score(2**53), Score(-(2**53)), Score(0, 2**53), Score(1, -(2**53))]
)
def test_two_to_the_53_is_out_of_range(score: tuple[int, int]) -> None:
    assert not Score(*score).in_range()
    inside = Score(*(part - (part > 0) + (part < 0) for part in score))
    assert inside.in_range()


@given(ORDERS, st.none() | SCORES, SCORES)
def test_sum_adds_both_numbers(order: Order, current: Score | None, points: Score) -> None:
    base = current or Score(0)
    expected = (base.score + points.score, base.subscore + points.subscore)
    assert combine(Operator.SUM, order, current, points) == expected


@given(ORDERS, st.lists(SCORES, min_size=1))
def test_best_and_last_take_the_pair_of_one_event(order: Order, events: list[Score]) -> None:
    best = last = None
    for points in events:
        best = combine(Operator.BEST, order, best, points)
        last = combine(Operator.LAST, order, last, points)
    assert best == (max(events) if order is DOWN else min(events))
    assert last == events[-1]


def test_best_with_equal_scores_looks_at_the_second_key() -> None:
    assert combine(Operator.BEST, DOWN, Score(5, 1), Score(5, 2)) == (5, 2)
    assert combine(Operator.BEST, UP, Score(5, 1), Score(5, 2)) == (5, 1)


@given(ORDERS, st.lists(SCORES, min_size=1))
def test_count_counts_events_whatever_they_earn(order: Order, events: list[Score]) -> None:
    current = None
    for points in events:
        current = combine(Operator.COUNT, order, current, points)
    assert current == (len(events), 0)


@BOTH
def test_first_points_of_zero_make_a_score(order: Order) -> None:
    for operator in (Operator.SUM, Operator.BEST, Operator.LAST):
        assert combine(operator, order, None, Score(0)) == (0, 0)


def test_best_of_is_never_folded_by_mistake() -> None:
    with pytest.raises(ValueError, match="best_of"):
        combine(Operator.BEST_OF, DOWN, None, Score(1))


@given(ORDERS, SCORES, SCORES)
def test_distance_is_never_negative_between_ranks(order: Order, one: Score, other: Score) -> None:
    above, below = sorted((one, other), key=lambda score: rank_key(order, score, Offset(0)))
    assert distance(order, below.score, above.score) == abs(above.score - below.score)


@pytest.mark.parametrize(
    ("old", "new", "seen"),
    [
        (None, 5000, True),
        (5000, None, True),
        (5000, 4999, True),
        (100, 100, True),
        (101, 101, False),
    ],
)
def test_only_what_someone_sees_is_visible(old: int | None, new: int | None, seen: bool) -> None:
    assert is_visible(old, new, rescored=True) is seen
    assert is_visible(old, new, rescored=False) is (old != new)


def test_percentile_is_the_share_of_the_others_that_one_is_ahead_of() -> None:
    assert [percentile(rank, 5) for rank in range(1, 6)] == [100.0, 75.0, 50.0, 25.0, 0.0]
    assert percentile(1, 1) == 100.0
    assert percentile(2, 4) == 66.67
