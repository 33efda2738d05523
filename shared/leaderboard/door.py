"""Who asks too often, over a store that may be away.

A refusal is remembered by the process until there is room again: what comes before is refused
without asking the store, so a storm costs it one call a process for each request that it lets
through. While the store is away nobody waits for it (see `Guard`); the route says what happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from leaderboard.callers import (
    Counted,
    Counting,
    Limit,
    Limits,
    Quota,
    headers_of,
    network_of,
    policy_of,
    seconds_of,
)
from leaderboard.errors import TooManyError, TransientError
from leaderboard.guard import Guard

REMEMBERED: Final = 10_000
"""Of so many who were refused a process knows until when; the oldest go first."""


class GuardedDoor:
    """`callers.Door`. `strangers` None: addresses have no quota. Make it before or after a fork,
    use it after."""

    def __init__(
        self,
        limits: Callable[[], Limits],
        strangers: Quota | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._strangers = strangers
        self._clock = clock
        self._guard = Guard("limits", trial=lambda: limits().check())
        self._refused: dict[tuple[str, str], float] = {}
        """Until when, by quota and caller."""

    def meet(self, address: str) -> None:
        """As the port says."""
        if self._strangers is not None:
            self._check(self._strangers, network_of(address))

    def proved_nothing(self, address: str) -> None:
        """As the port says. Where nobody can count it stays what it is: a 401."""
        quota = self._strangers
        if quota is None:
            return
        network = network_of(address)
        try:
            counting = self._guard(lambda: self._limits().begin(quota, network))
            counted = self._guard(counting.answer)
        except TransientError:
            return
        if not counted.is_within:
            raise self._refuse(quota, network, counted)

    def begin(self, limit: Limit, subject: str) -> _Settling:
        """As the port says."""
        self._check(limit.quota, subject)
        try:
            counting = self._guard(lambda: self._limits().begin(limit.quota, subject))
        except TransientError:
            if limit.when_away == "closed":
                raise
            return _Settling(self, limit, subject, None)
        return _Settling(self, limit, subject, counting)

    def settle(self, limit: Limit, subject: str, counting: Counting) -> Mapping[str, str]:
        """See `callers.Settling`."""
        try:
            counted = self._guard(counting.answer)
        except TransientError:
            if limit.when_away == "closed":
                raise
            return {}
        if not counted.is_within:
            raise self._refuse(limit.quota, subject, counted)
        return headers_of(limit.quota, counted)

    def _check(self, quota: Quota, who: str) -> None:
        until = self._refused.get((quota.name, who))
        if until is None:
            return
        left = until - self._clock()
        if left > 0:
            raise _too_many(quota, left * 1_000_000)
        self._refused.pop((quota.name, who), None)

    def _refuse(self, quota: Quota, who: str, counted: Counted) -> TooManyError:
        while len(self._refused) >= REMEMBERED:
            # Another thread may have been quicker.
            self._refused.pop(next(iter(self._refused), ("", "")), None)
        self._refused[quota.name, who] = self._clock() + counted.more_us / 1_000_000
        return _too_many(quota, counted.more_us)


class _Settling:
    def __init__(
        self, door: GuardedDoor, limit: Limit, subject: str, counting: Counting | None
    ) -> None:
        self._door = door
        self._limit = limit
        self._subject = subject
        self._counting = counting

    def settle(self) -> Mapping[str, str]:
        if self._counting is None:
            return {}
        return self._door.settle(self._limit, self._subject, self._counting)


def _too_many(quota: Quota, more_us: float) -> TooManyError:
    seconds = seconds_of(more_us)
    told = {**policy_of(quota), "RateLimit": f'"{quota.name}";r=0;t={seconds}'}
    return TooManyError(quota.name, seconds, told)
