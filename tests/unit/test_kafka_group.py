"""Membership of a group whose client hangs after its partitions were lost."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from leaderboard.hosts import kafka_group
from leaderboard.hosts.kafka_group import REJOIN_SECONDS, Membership
from leaderboard.model import Place


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Client:
    """A consumer that gets nothing, and remembers what it was asked."""

    made: list[Client]

    def __init__(self, config: dict[str, Any]) -> None:
        self.made.append(self)
        self.callbacks: dict[str, Any] = {}
        self.is_closed = False
        self.gone = threading.Event()

    def subscribe(self, topics: list[str], **callbacks: Any) -> None:
        self.callbacks = callbacks

    def poll(self, timeout: float) -> None:
        assert not self.is_closed

    def close(self) -> None:
        """Tells about its partitions for the last time, as the real one does."""
        self.is_closed = True
        for told in ("on_assign", "on_revoke", "on_lost"):
            self.callbacks[told](self, [TopicPartition("wagers", n) for n in (0, 1)])
        self.gone.set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    Client.made = []
    monkeypatch.setattr(kafka_group, "time", clock)
    monkeypatch.setattr(kafka_group, "Consumer", Client)
    return clock


def joined() -> Membership:
    group = Membership(["wagers"], {}, lambda place: None, lambda place, offset: offset)
    group.join()
    return group


def test_a_client_that_finds_no_way_back_is_replaced_once(clock: Clock) -> None:
    group = joined()
    (first,) = Client.made
    first.callbacks["on_assign"](first, [])
    first.callbacks["on_lost"](first, [])
    clock.now += REJOIN_SECONDS - 1
    group.receive(0, 10)
    assert Client.made == [first]
    clock.now += 2
    group.receive(0, 10)
    second = Client.made[1]
    assert second.callbacks.keys() == first.callbacks.keys()
    # What the old one still has to say while it closes is not about our partitions.
    assert first.gone.wait(5)
    assert group.fresh() == []
    second.callbacks["on_assign"](second, [TopicPartition("wagers", 0)])
    assert group.fresh() == [Place("wagers", 0)]
    # A group that has no partition left for it is no reason to begin again and again.
    clock.now += 10 * REJOIN_SECONDS
    group.receive(0, 10)
    assert len(Client.made) == 2


def test_a_client_that_comes_back_by_itself_stays(clock: Clock) -> None:
    group = joined()
    (first,) = Client.made
    first.callbacks["on_lost"](first, [])
    first.callbacks["on_assign"](first, [])
    clock.now += 10 * REJOIN_SECONDS
    group.receive(0, 10)
    assert Client.made == [first]
