"""How much one event earns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from leaderboard.model import SCORE_LIMIT, Disposition, Score
from leaderboard.scoring import Scoring

SCORINGS: TypeAdapter[Scoring] = TypeAdapter(Scoring)
MONEY = st.integers(0, SCORE_LIMIT - 1)
NUMBERS = st.integers(-SCORE_LIMIT + 1, SCORE_LIMIT - 1)


def scoring(kind: str) -> Scoring:
    return SCORINGS.validate_python({"kind": kind})


@given(MONEY, MONEY)
def test_stake_earns_what_was_staked_and_win_what_was_won(stake: int, win: int) -> None:
    assert scoring("stake").of_wager(stake, win) == Score(stake)
    assert scoring("win").of_wager(stake, win) == Score(win)
    assert scoring("count").of_wager(stake, win) == Score(1)


@pytest.mark.parametrize(
    ("stake", "win", "hundredths"),
    [(100, 125, 125), (3, 1, 33), (3, 2, 66), (100, 0, 0), (1, 7, 700), (200, 1, 0)],
)
def test_multiplier_is_in_hundredths_rounded_down(stake: int, win: int, hundredths: int) -> None:
    assert scoring("multiplier").of_wager(stake, win) == Score(hundredths)


@given(st.integers(1, SCORE_LIMIT - 1), MONEY)
def test_multiplier_is_exact_at_any_size(stake: int, win: int) -> None:
    earned = scoring("multiplier").of_wager(stake, win)
    assert isinstance(earned, Score)
    assert earned.score * stake <= 100 * win < (earned.score + 1) * stake


def test_round_without_a_stake_has_no_multiplier() -> None:
    assert scoring("multiplier").of_wager(0, 500) is Disposition.BELOW_MINIMUM


@given(NUMBERS, NUMBERS)
def test_submission_earns_the_pair_that_it_carries(score: int, subscore: int) -> None:
    assert scoring("submitted").of_submission(score, subscore) == (score, subscore)
    assert scoring("count").of_submission(score, subscore) == Score(1)


@pytest.mark.parametrize("kind", ["stake", "win", "multiplier", "ratio", "tiers"])
def test_submission_is_recorded_as_unsupported_where_money_counts(kind: str) -> None:
    assert scoring(kind).of_submission(5, 0) is Disposition.UNSUPPORTED


@pytest.mark.parametrize("kind", ["submitted", "ratio", "tiers"])
def test_wager_is_recorded_as_unsupported_where_it_can_not_count(kind: str) -> None:
    assert scoring(kind).of_wager(5, 0) is Disposition.UNSUPPORTED


@pytest.mark.parametrize("given_", [{}, {"kind": "stakes"}, {"kind": 1}, {"kind": None}, "stake"])
def test_unknown_kind_is_refused(given_: object) -> None:
    with pytest.raises(ValidationError):
        SCORINGS.validate_python(given_)


def test_unknown_parameters_are_kept() -> None:
    kept = SCORINGS.validate_python({"kind": "stake", "per": 100})
    assert kept.model_dump() == {"kind": "stake", "per": 100}
