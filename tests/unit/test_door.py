"""Who asks too often, over limits that count in this process, hang up, or are away."""

from __future__ import annotations

import pytest

from leaderboard import door as door_module
from leaderboard.callers import Counted, Limit, Quota, headers_of, network_of, seconds_of
from leaderboard.door import GuardedDoor
from leaderboard.errors import TooManyError, TransientError

REQUESTS = Quota("requests", 2)
OPEN = Limit(REQUESTS, "open", meanwhile=True)
CLOSED = Limit(REQUESTS, "closed")


class CountingOff:
    """Counts down from each quota, and never up again; tells how often it was asked."""

    def __init__(self) -> None:
        self.used: dict[tuple[str, str], int] = {}
        self.asked = 0
        self.is_away = False
        self.loses_answers = False

    def begin(self, quota: Quota, who: str) -> CountingOff._Answer:
        self.check()
        self.asked += 1
        used = self.used[quota.name, who] = self.used.get((quota.name, who), 0) + 1
        left = max(0, quota.most - used)
        return self._Answer(self, Counted(used <= quota.most, left, 1_500_000))

    def check(self) -> None:
        if self.is_away:
            raise TransientError("away")

    class _Answer:
        def __init__(self, limits: CountingOff, counted: Counted) -> None:
            self._limits = limits
            self._counted = counted

        def answer(self) -> Counted:
            if self._limits.loses_answers:
                raise TransientError("the connection broke")
            return self._counted


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def limits() -> CountingOff:
    return CountingOff()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def door(limits: CountingOff, clock: Clock) -> GuardedDoor:
    return GuardedDoor(lambda: limits, Quota("strangers", 2), clock)


def test_headers_tell_what_holds_and_what_is_left(door: GuardedDoor) -> None:
    assert door.begin(OPEN, "alice").settle() == {
        "RateLimit-Policy": '"requests";q=2;w=60',
        "RateLimit": '"requests";r=1;t=2',
    }
    door.begin(OPEN, "alice").settle()
    with pytest.raises(TooManyError) as refused:
        door.begin(OPEN, "alice").settle()
    assert (refused.value.quota, refused.value.retry_seconds) == ("requests", 2)
    assert refused.value.headers["RateLimit"] == '"requests";r=0;t=2'


def test_refusal_is_remembered_until_there_is_room(
    door: GuardedDoor, limits: CountingOff, clock: Clock
) -> None:
    for _ in range(2):
        door.begin(OPEN, "alice").settle()
    with pytest.raises(TooManyError):
        door.begin(OPEN, "alice").settle()
    asked = limits.asked
    for _ in range(1000):
        with pytest.raises(TooManyError):
            door.begin(OPEN, "alice")
    assert limits.asked == asked, "a storm costs the store nothing"
    door.begin(OPEN, "bob").settle()
    clock.now += 1.5
    limits.used.clear()
    door.begin(OPEN, "alice").settle()


def test_no_more_refusals_are_remembered_than_a_bound(
    door: GuardedDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "REMEMBERED", 3)
    for number in range(20):
        for _ in range(2):
            door.begin(OPEN, f"p{number}").settle()
        with pytest.raises(TooManyError):
            door.begin(OPEN, f"p{number}").settle()
    assert len(door._refused) == 3


def test_route_that_is_open_goes_on_while_nobody_can_count(limits: CountingOff) -> None:
    limits.is_away = True
    assert GuardedDoor(lambda: limits).begin(OPEN, "alice").settle() == {}
    with pytest.raises(TransientError):
        GuardedDoor(lambda: limits).begin(CLOSED, "alice")


def test_answer_that_got_lost_is_none(limits: CountingOff) -> None:
    limits.loses_answers = True
    assert GuardedDoor(lambda: limits).begin(OPEN, "alice").settle() == {}
    with pytest.raises(TransientError):
        GuardedDoor(lambda: limits).begin(CLOSED, "alice").settle()


def test_strangers_of_one_address_are_met_with_a_refusal(
    door: GuardedDoor, limits: CountingOff, clock: Clock
) -> None:
    for _ in range(2):
        door.meet("192.0.2.1")
        door.proved_nothing("192.0.2.1")
    with pytest.raises(TooManyError):
        door.proved_nothing("192.0.2.1")
    asked = limits.asked
    with pytest.raises(TooManyError, match="strangers"):
        door.meet("192.0.2.1")
    door.meet("192.0.2.2")
    assert limits.asked == asked
    clock.now += 2
    door.meet("192.0.2.1")


def test_strangers_are_what_they_are_while_nobody_can_count(limits: CountingOff) -> None:
    limits.is_away = True
    door = GuardedDoor(lambda: limits, Quota("strangers", 1))
    for _ in range(5):
        door.meet("192.0.2.1")
        door.proved_nothing("192.0.2.1")


def test_addresses_without_a_quota_are_not_counted(limits: CountingOff) -> None:
    door = GuardedDoor(lambda: limits)
    for _ in range(5):
        door.meet("192.0.2.1")
        door.proved_nothing("192.0.2.1")
    assert limits.asked == 0


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::9]", "2001:db8:1:2::/64"),
        ("2001:0DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("unknown", "unknown"),
    ],
)
def test_network_is_what_one_customer_has(address: str, network: str) -> None:
    assert network_of(address) == network


def test_who_waits_as_long_as_told_comes_late_enough() -> None:
    assert [seconds_of(us) for us in (0, 1, 999_999, 1_000_000, 1_000_001)] == [1, 1, 1, 1, 2]
    told = headers_of(REQUESTS, Counted(True, 0, 59_000_001))
    assert told["RateLimit"] == '"requests";r=0;t=60'
