"""Quotas on real servers against an oracle: exact in every window, by the server's own clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import RedisCluster

from leaderboard.adapters.redis_client import BRIEF, PATIENT, RedisClient, connect
from leaderboard.adapters.redis_limits import COUNT, RedisLimits, key_of
from leaderboard.callers import Counted, Quota
from leaderboard.errors import TransientError

SECOND = 1_000_000
START = 1_760_000_000 * SECOND
CLOCK = "local time = redis.call('TIME')"
GIVEN_CLOCK = "local time = {tonumber(ARGV[3]), tonumber(ARGV[4])}"
_numbers = count()


@pytest.fixture(
    scope="module",
    params=[
        ("redis_url", PATIENT),
        ("redis_url", BRIEF),
        ("valkey_url", PATIENT),
        ("redis_cluster_url", PATIENT),
    ],
    ids=["redis", "redis-brief", "valkey", "cluster"],
)
def client(request: pytest.FixtureRequest) -> Iterator[RedisClient]:
    """With a brief one, counting goes with what the thread asks next."""
    url, patience = request.param
    opened = connect(request.getfixturevalue(url), patience)
    yield opened
    opened.close()


def someone() -> str:
    """A caller whom no other test knows."""
    return f"caller-{next(_numbers)}"


@dataclass
class Oracle:
    """The promise itself: at most so many in the window that ends now. It forgets nothing."""

    most: int
    window: int
    admitted: list[int] = field(default_factory=list)

    def ask(self, now: int) -> Counted:
        lately = [at for at in self.admitted if at > now - self.window]
        is_within = len(lately) < self.most
        if is_within:
            self.admitted.append(now)
            lately.append(now)
        return Counted(is_within, self.most - len(lately), lately[0] + self.window - now)


def by_clock(client: RedisClient, quota: Quota, who: str, now: int) -> Counted:
    """The same script, told the time."""
    assert COUNT.count(CLOCK) == 1
    script = COUNT.replace(CLOCK, GIVEN_CLOCK)
    seconds, rest = divmod(now, SECOND)
    answer: Any = client.eval(
        script, 1, key_of(quota, who).decode(), str(quota.most), str(quota.seconds * SECOND),
        str(seconds), str(rest),
    )  # fmt: skip
    return Counted(bool(answer[0]), answer[1], answer[2])


ONWARD = st.one_of(
    st.sampled_from([0, 1, SECOND, 9_999_999, 10 * SECOND, 10_000_001]),
    st.integers(0, 11 * SECOND),
    st.integers(0, SECOND),
)
TO_AND_FRO = st.one_of(ONWARD, st.integers(-25 * SECOND, 0), st.just(-3600 * SECOND))
thorough = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@thorough
@given(steps=st.lists(ONWARD, max_size=60), most=st.integers(1, 7))
def test_every_answer_is_the_oracles(client: RedisClient, steps: list[int], most: int) -> None:
    quota, who, now = Quota("q", most, seconds=10), someone(), START
    oracle = Oracle(most, quota.seconds * SECOND)
    for step in steps:
        now += step
        assert by_clock(client, quota, who, now) == oracle.ask(now)
        assert client.llen(key_of(quota, who).decode()) <= most


@thorough
@given(steps=st.lists(TO_AND_FRO, max_size=40), most=st.integers(1, 4))
def test_clock_that_is_put_back_lets_nobody_wait_for_ever(
    client: RedisClient, steps: list[int], most: int
) -> None:
    """A server that takes over has a clock of its own. In order the times stay, in number too; and
    who waits two windows gets in, whatever the clock did before."""
    quota, who, now = Quota("q", most, seconds=10), someone(), START
    for step in steps:
        now += step
        told = by_clock(client, quota, who, now)
        assert 0 <= told.more_us <= 20 * SECOND
        kept: Any = client.lrange(key_of(quota, who).decode(), 0, -1)
        assert len(kept) <= most
        assert [int(at) for at in kept] == sorted(int(at) for at in kept)
    assert by_clock(client, quota, who, now + 20 * SECOND).is_within


def most_in_a_window(times: Sequence[int], window: int) -> int:
    """The most of these in any half-open window of that length."""
    return max(sum(1 for at in times if begin <= at < begin + window) for begin in times)


def test_burst_before_and_after_a_minutes_turn_gets_no_more_than_the_quota(
    client: RedisClient,
) -> None:
    """What a fixed window, and a bucket that refills, would let through nearly twice."""
    quota, who = Quota("q", 100), someone()
    offered = [START + 59 * SECOND + n for n in range(150)]
    offered += [START + 61 * SECOND + n for n in range(150)]
    offered += [START + (120 + n) * SECOND for n in range(120)]
    admitted = [now for now in offered if by_clock(client, quota, who, now).is_within]
    assert most_in_a_window(admitted, 60 * SECOND) == 100
    assert len(admitted) == 100 + 120


def test_several_processes_at_once_share_one_quota(client: RedisClient) -> None:
    """By the server's own clock, with what it took down as the witness."""
    quota, who = Quota("q", 20, seconds=1), someone()
    admitted: list[int] = []
    lock = threading.Lock()
    until = time.monotonic() + 3.2

    def ask() -> None:
        limits = RedisLimits(client)
        while time.monotonic() < until:
            if limits.begin(quota, who).answer().is_within:
                with lock:
                    admitted.append(1)

    seen: set[int] = set()
    askers = [threading.Thread(target=ask) for _ in range(4)]
    for one in askers:
        one.start()
    while time.monotonic() < until + 0.1:
        kept: Any = client.lrange(key_of(quota, who).decode(), 0, -1)
        seen |= {int(at) for at in kept}
        time.sleep(0.002)
    for one in askers:
        one.join()
    assert most_in_a_window(sorted(seen), SECOND) <= 20
    assert 60 <= len(admitted) <= 80, "no less than is promised either"


def test_what_is_left_and_when_there_is_more_is_told(client: RedisClient) -> None:
    limits, quota, who = RedisLimits(client), Quota("q", 2), someone()
    first, second, third = (limits.begin(quota, who).answer() for _ in range(3))
    assert (first.is_within, first.left) == (True, 1)
    assert (second.is_within, second.left) == (True, 0)
    assert (third.is_within, third.left) == (False, 0)
    assert 59 * SECOND < third.more_us <= second.more_us <= first.more_us == 60 * SECOND


def test_callers_and_quotas_do_not_mix(client: RedisClient) -> None:
    limits, alice, bob = RedisLimits(client), someone(), someone()
    for quota in (Quota("q", 1), Quota("p", 1)):
        for who in (alice, bob):
            assert limits.begin(quota, who).answer().is_within
            assert not limits.begin(quota, who).answer().is_within


def test_smaller_quota_counts_what_was_let_through_before(client: RedisClient) -> None:
    who = someone()
    for now in range(5):
        assert by_clock(client, Quota("q", 5, 10), who, START + now * SECOND).is_within
    told = by_clock(client, Quota("q", 2, 10), who, START + 5 * SECOND)
    assert (told.is_within, told.more_us) == (False, 8 * SECOND)
    assert by_clock(client, Quota("q", 2, 10), who, START + 13 * SECOND).is_within


def test_counting_leaves_nothing_behind_and_names_nobody(client: RedisClient) -> None:
    limits, who = RedisLimits(client), someone()
    quota = Quota("q", 3, seconds=1)
    for _ in range(20):
        limits.begin(quota, who).answer()
    key = key_of(quota, who).decode()
    assert who not in key
    assert client.llen(key) == 3
    assert 1000 < int(client.pttl(key)) <= 2000
    time.sleep(2.1)
    assert client.exists(key) == 0


def test_server_that_forgot_the_script_is_told_it_again(client: RedisClient) -> None:
    limits, quota, who = RedisLimits(client), Quota("q", 1), someone()
    cluster: Any = client  # redis-py leaves it untyped
    is_cluster = isinstance(client, RedisCluster)
    nodes = [n.redis_connection for n in cluster.get_primaries()] if is_cluster else [cluster]
    for one in nodes:
        one.script_flush()
    assert limits.begin(quota, who).answer().is_within
    assert not limits.begin(quota, who).answer().is_within, "counted once"


def test_store_that_is_away_is_transient() -> None:
    limits = RedisLimits(connect("redis://127.0.0.1:1"))
    with pytest.raises(TransientError):
        limits.begin(Quota("q", 1), "a")
    with pytest.raises(TransientError):
        limits.check()
