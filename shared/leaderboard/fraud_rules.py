"""The rules of fraud detection and their numbers, in one place. A tournament says its own in
`rules.fraud`, and is judged by them from that schedule on."""

from __future__ import annotations

from typing import Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class _Rule(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class RankRise(_Rule):
    """The player's largest rank number within the window, less the one that their own scoring
    event brought, is above `ranks`. Not for who is moved by others, or by staff."""

    ranks: int = Field(100, ge=1, le=10_000_000)
    window_seconds: int = Field(300, ge=1, le=3_600)


class Velocity(_Rule):
    """More than `wagers` wagers of a player within the window."""

    wagers: int = Field(100, ge=1, le=1_000)
    window_seconds: int = Field(60, ge=1, le=600)


class StakeOutlier(_Rule):
    """A stake above the player's own habit by more than `deviations` standard deviations.

    The habit is the mean and the variance of the stakes' natural logarithm, exponentially
    weighted by `forgetting`; it is asked after `warm_up` wagers. `least_deviation` is the floor of
    the standard deviation, so that who always stakes the same may stake a little more.

    No number here may be as small as to make another one infinite."""

    deviations: float = Field(4.0, ge=0.1, le=100, strict=False)
    warm_up: int = Field(20, ge=2, le=10_000)
    forgetting: float = Field(0.05, ge=0.0001, lt=1)
    least_deviation: float = Field(0.25, ge=0.001, le=10)


class Collusion(_Rule):
    """Two players who keep meeting: on the same game with the same stake, `repeats` times, in at
    least `share` of what both wager meanwhile.

    *Synchronised*: one within `close_ms` of the other. *Alternating*: one after the other, in
    turn, within `turn_ms`. Not asked while fewer than `least_players` play: a handful of players
    meet anyway."""

    repeats: int = Field(12, ge=3, le=1_000)
    share: float = Field(0.8, ge=0.01, le=1)
    close_ms: int = Field(1_000, ge=0, le=60_000)
    turn_ms: int = Field(10_000, ge=1, le=600_000)
    least_players: int = Field(10, ge=2, le=10_000)


class Parameters(_Rule):
    """The rules and their numbers. A rule that is null is not asked.

    A player is suspected by one rule once within `cooldown_seconds` of event time; and a rule
    tells of at most `alerts_a_minute` in a tournament, half of them kept for who is in the top
    100. What is held back is counted in the next one's evidence (`held_back`)."""

    rank_rise: RankRise | None = RankRise.model_validate({})
    velocity: Velocity | None = Velocity.model_validate({})
    stake_outlier: StakeOutlier | None = StakeOutlier.model_validate({})
    collusion: Collusion | None = Collusion.model_validate({})
    cooldown_seconds: int = Field(600, ge=1, le=86_400)
    alerts_a_minute: int = Field(30, ge=2, le=10_000)


DEFAULTS: Final = Parameters.model_validate({})
RuleName = Literal["rank_rise", "velocity", "stake_outlier", "collusion"]
RULES: Final[tuple[str, ...]] = get_args(RuleName)


def parameters_of(given: object) -> Parameters:
    """What a tournament says in `rules.fraud`. In the log anything may stand there: what nobody
    understands counts as nothing said, as a schedule that is refused costs every wager."""
    if given is None:
        return DEFAULTS
    try:
        return Parameters.model_validate(given)
    except ValidationError:
        return DEFAULTS
