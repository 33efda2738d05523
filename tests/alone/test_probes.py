"""Probes of a consumer that has nothing to do: they must be answered while it waits for records."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx

from leaderboard.adapters.kafka_feed import KafkaFeed
from leaderboard.events import WAGERS
from leaderboard.hosts.kafka import Assignment, Batch, InOneStep, KafkaHost, Refused
from leaderboard.model import Offset, Place
from leaderboard.settings import ConsumerSettings, KafkaSettings, load
from leaderboard.stack.embedded import InProcessKafka
from leaderboard.stack.process import LOOPBACK, free_port

PROBES = 20
PATIENCE_SECONDS = 2.0


class NothingToDo(InOneStep):
    """A handler without effects."""

    def assigned(self, assignment: Assignment) -> Offset | None:
        return None

    def revoked(self, place: Place) -> None:
        pass

    def handle(self, batch: Batch) -> Sequence[Refused]:
        return ()

    def settle(self, batch: Batch) -> None:
        pass

    def safe(self, place: Place, next_offset: Offset) -> Offset:
        return next_offset

    def tick(self) -> float:
        return 1.0


@contextmanager
def idle_host() -> Iterator[str]:
    """The address of the probes of a host on an empty topic."""
    cluster = InProcessKafka()
    cluster.create_topics()
    environ = {
        "KAFKA_BOOTSTRAP_SERVERS": cluster.bootstrap_servers,
        "KAFKA_GROUP_PROTOCOL": "consumer",
        "HOST": LOOPBACK,
        "PORT": str(free_port()),
    }
    kafka, consumer = load(KafkaSettings, environ), load(ConsumerSettings, environ)
    feed = KafkaFeed(kafka)
    host = KafkaHost("idle", WAGERS, NothingToDo, feed, kafka, consumer, {})
    thread = threading.Thread(target=host.run)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{consumer.port}"
    finally:
        host.stop()
        thread.join(timeout=20)
        feed.close()
        cluster.close()
    assert not thread.is_alive()


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz", timeout=PATIENCE_SECONDS).status_code == 200
    except httpx.HTTPError:
        return False


def test_idle_consumer_answers_every_probe_in_time() -> None:
    with idle_host() as address:
        until = time.monotonic() + 20
        while not is_ready(address):
            assert time.monotonic() < until, "never ready"
            time.sleep(0.1)
        for _ in range(PROBES):
            assert is_ready(address)
            time.sleep(0.55)  # longer than an answer is kept
