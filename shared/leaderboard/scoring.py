"""How much one event earns. A kind of scoring is one class here and one test: nothing else.

Money is integer minor units; `multiplier` is in hundredths (1.25 is 125).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from leaderboard.model import Disposition, Score

Earning = Score | Disposition
"""Points, or the reason why the event does not count."""


class _Scoring(BaseModel):
    """`of_wager` and `of_submission` say what each sort of event earns; both are pure."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    def of_wager(self, stake_minor: int, win_minor: int) -> Earning:
        return Disposition.UNSUPPORTED

    def of_submission(self, score: int, subscore: int) -> Earning:
        return Disposition.UNSUPPORTED


class StakeScoring(_Scoring):
    """One point for each minor unit staked."""

    kind: Literal["stake"]

    def of_wager(self, stake_minor: int, win_minor: int) -> Earning:
        return Score(stake_minor)


class WinScoring(_Scoring):
    """One point for each minor unit won."""

    kind: Literal["win"]

    def of_wager(self, stake_minor: int, win_minor: int) -> Earning:
        return Score(win_minor)


class CountScoring(_Scoring):
    """One point for each event, whatever it says."""

    kind: Literal["count"]

    def of_wager(self, stake_minor: int, win_minor: int) -> Earning:
        return Score(1)

    def of_submission(self, score: int, subscore: int) -> Earning:
        return Score(1)


class MultiplierScoring(_Scoring):
    """floor(100 × win / stake) of one round; a round without a stake does not count."""

    kind: Literal["multiplier"]

    def of_wager(self, stake_minor: int, win_minor: int) -> Earning:
        if stake_minor == 0:
            return Disposition.BELOW_MINIMUM
        return Score(100 * win_minor // stake_minor)


class SubmittedScoring(_Scoring):
    """The score that the event carries, with its second key."""

    kind: Literal["submitted"]

    def of_submission(self, score: int, subscore: int) -> Earning:
        return Score(score, subscore)


class LaterScoring(_Scoring):
    """A kind that the contract names and this version can't fold: its schedules are recorded
    as `unsupported`, so that nothing is scored wrongly meanwhile."""

    kind: Literal["ratio", "tiers"]


Scoring = Annotated[
    StakeScoring | WinScoring | CountScoring | MultiplierScoring | SubmittedScoring | LaterScoring,
    Field(discriminator="kind"),
]
