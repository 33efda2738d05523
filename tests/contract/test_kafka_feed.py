"""The feed: its hand-written record is the codec's, and what it gave up on does no harm later."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from leaderboard import events as ev
from leaderboard.adapters import kafka_feed
from leaderboard.adapters.kafka_feed import KafkaFeed, change_record
from leaderboard.codec import decode_kafka, encode_kafka
from leaderboard.errors import TransientError
from leaderboard.hosts.kafka_log import TopicLogs
from leaderboard.model import Cause, Offset, Place, PlayerId, PositionChange, Score, TournamentId
from leaderboard.ports import Outgoing
from leaderboard.settings import KafkaSettings, load
from leaderboard.stack.process import LOOPBACK, free_port
from leaderboard.stack.servers import KafkaServer
from recording import kafka_settings
from samples import IDS, MONEY, NUMBERS

HOSTILE = st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60
) | st.sampled_from(
    [
        '"',
        "\\",
        '\\"',
        '"},"old_rank":1,"x":{"',
        "\u2028\u2029",
        "é名🎲",
        "\x00\x1f\x7f",
        "\n\r\t",
        "%22",
    ]
)
RANKS = st.none() | st.integers(1, 10**9)
TRACES = st.none() | st.from_regex(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", fullmatch=True)


@st.composite
def changes(draw: st.DrawFn) -> PositionChange:
    return PositionChange(
        tournament_id=TournamentId(draw(IDS)),
        player_id=PlayerId(draw(IDS)),
        sequence=Offset(draw(MONEY)),
        old_rank=draw(RANKS),
        new_rank=draw(RANKS),
        score=Score(draw(NUMBERS), draw(st.just(0) | NUMBERS)),
        distance=draw(st.none() | st.integers(0, 2**54)),
        cause=Cause(draw(HOSTILE), draw(HOSTILE)),
        time_ms=draw(st.integers(0, 4_000_000_000_000)),
        traceparent=draw(TRACES),
    )


def event_of(change: PositionChange) -> ev.Event:
    told = {
        "tournament_id": change.tournament_id,
        "player_id": change.player_id,
        "sequence": change.sequence,
        "old_rank": change.old_rank,
        "new_rank": change.new_rank,
        "score": change.score.score,
        "distance": change.distance,
        "cause": {"source": change.cause.source, "id": change.cause.id},
    }
    if change.score.subscore:
        told["subscore"] = change.score.subscore
    data = ev.PositionChanged.model_validate(told)
    return ev.Event(
        id=f"{change.tournament_id}/{change.sequence}",
        source=ev.POSITION_SOURCE,
        time_ms=change.time_ms,
        data=data,
        subject=change.player_id,
        traceparent=change.traceparent,
    )


@given(changes())
def test_a_position_change_written_by_hand_is_what_the_codec_writes(change: PositionChange) -> None:
    record, event = change_record(change), event_of(change)
    by_codec = encode_kafka(event, ev.POSITION_CHANGES)
    assert decode_kafka(record) == decode_kafka(by_codec) == event
    assert (record.topic, record.key) == (by_codec.topic, by_codec.key)
    assert sorted(record.headers) == sorted(by_codec.headers)
    assert json.loads(record.value or b"") == json.loads(by_codec.value or b"")


# --- a broker that is away ---------------------------------------------------------------------


Feeds = Callable[[KafkaSettings, float], KafkaFeed]


@pytest.fixture
def feeds() -> Iterator[Feeds]:
    """Makes feeds, and closes them after the test: else they look for dead brokers for ever."""
    with contextlib.ExitStack() as stack:

        def make(settings: KafkaSettings, timeout_seconds: float) -> KafkaFeed:
            return stack.enter_context(
                contextlib.closing(KafkaFeed(settings, timeout_seconds=timeout_seconds))
            )

        yield make


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """Takes connections and never says a word."""
    with socket.create_server((LOOPBACK, 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("is_deaf", [False, True], ids=["nobody listens", "nobody answers"])
def test_without_a_broker_every_way_of_publishing_fails_in_time(
    deaf_port: int, is_deaf: bool, feeds: Feeds
) -> None:
    servers = f"{LOOPBACK}:{deaf_port if is_deaf else free_port()}"
    feed = feeds(kafka_settings(servers), 0.8)
    change = PositionChange(
        TournamentId("t1"), PlayerId("p"), Offset(1), None, 1, Score(1), None, Cause("/s", "i"), 0
    )
    for _ in range(2):
        for publish in (
            lambda: feed.publish([Outgoing(ev.POSITION_CHANGES, event_of(change))]),
            lambda: feed.publish_changes([change]),
            lambda: feed.send([change_record(change)]),
        ):
            began = time.monotonic()
            with pytest.raises(TransientError):
                publish()
            assert time.monotonic() - began < 2.5
    with pytest.raises(TransientError):
        feed.check()


@pytest.fixture
def without_authority(tmp_path: Path) -> KafkaSettings:
    """The authority's file was sound when the process started, and is none now."""
    authority = tmp_path / "ca.crt"
    authority.write_text("-----BEGIN CERTIFICATE-----\nnothing of the kind\n")
    given = {
        "KAFKA_BOOTSTRAP_SERVERS": f"{LOOPBACK}:{free_port()}",
        "KAFKA_SECURITY_PROTOCOL": "SSL",
        "KAFKA_SSL_CA_LOCATION": str(authority),
    }
    return load(KafkaSettings, given)


def test_without_a_client_every_way_of_asking_the_log_says_so(
    without_authority: KafkaSettings,
) -> None:
    logs, place = TopicLogs(["wagers"], without_authority), Place("wagers", 0)
    for ask in (
        logs.check,
        lambda: logs.log_id(place),
        lambda: logs.span(place),
        lambda: next(logs.before(place, Offset(1), 1)),
    ):
        with pytest.raises(TransientError, match=r"ca\.location"):
            ask()


def test_without_a_client_every_way_of_publishing_says_so(
    without_authority: KafkaSettings, feeds: Feeds
) -> None:
    feed = feeds(without_authority, 0.8)
    change = numbered_changes([1])[0]
    for publish in (
        lambda: feed.publish([Outgoing(ev.POSITION_CHANGES, event_of(change))]),
        lambda: feed.publish_changes([change]),
        lambda: feed.send([change_record(change)]),
        feed.check,
    ):
        with pytest.raises(TransientError, match=r"Kafka: no client can be made.*ca\.location"):
            publish()


def numbered_changes(numbers: Iterable[int]) -> list[PositionChange]:
    name, player = TournamentId("t1"), PlayerId("p")
    return [
        PositionChange(name, player, Offset(n), None, 1, Score(n), None, Cause("/s", f"i{n}"), 0)
        for n in numbers
    ]


def test_what_was_begun_is_confirmed_one_after_the_other(kafka: str, feeds: Feeds) -> None:
    made(kafka, ev.POSITION_CHANGES)
    feed = feeds(kafka_settings(kafka), 20)
    first = feed.begin_changes(numbered_changes([1, 2]))
    second = feed.begin_changes(numbered_changes([3]))
    assert first < second
    feed.confirm_changes(first)
    feed.confirm_changes(second)
    feed.confirm_changes(feed.begin_changes([]))
    feed.confirm_changes(first)


def test_changes_carry_when_their_oldest_event_was_taken_in(kafka: str, feeds: Feeds) -> None:
    topic = f"changes-{uuid.uuid4().hex[:8]}"
    feed = feeds(kafka_settings(kafka), 20)
    made(kafka, topic)
    with patch.object(kafka_feed, "POSITION_CHANGES", topic):
        feed.confirm_changes(feed.begin_changes(numbered_changes([1]), 1_700_000_000_123))
        feed.confirm_changes(feed.begin_changes(numbered_changes([2])))
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "reads-only"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    with contextlib.closing(consumer):
        first, second = (message.timestamp()[1] for message in consumer.consume(2, timeout=10))
    assert first == 1_700_000_000_123
    assert abs(second - time.time() * 1000) < 60_000, "else the time of sending"


def test_changes_that_move_a_rank_are_counted_apart(kafka: str, feeds: Feeds) -> None:
    def count(name: str) -> float:
        return REGISTRY.get_sample_value(f"leaderboard_{name}_total", labels) or 0.0

    labels = {"function": "on-wager"}
    feed = feeds(kafka_settings(kafka), 20)
    before = count("position_changes"), count("rank_changes")
    new, same = numbered_changes([1, 2])
    feed.begin_changes([new, same._replace(old_rank=1)])
    assert (count("position_changes"), count("rank_changes")) == (before[0] + 2, before[1] + 1)


def test_what_was_begun_with_something_that_failed_is_not_confirmed(
    deaf_port: int, feeds: Feeds
) -> None:
    feed = feeds(kafka_settings(f"{LOOPBACK}:{deaf_port}"), 0.8)
    first = feed.begin_changes(numbered_changes([1]))
    with pytest.raises(TransientError):
        feed.begin_changes(numbered_changes([2]))
    for _ in range(2):
        with pytest.raises(TransientError):
            feed.confirm_changes(first)
    # What comes later stands on its own.
    later = feed.begin_changes(numbered_changes([1, 2]))
    assert later > first
    with pytest.raises(TransientError):
        feed.confirm_changes(later)


def numbered(topic: str, numbers: Iterable[int]) -> list[ev.Record]:
    return [ev.Record(topic, b"t1", str(number).encode()) for number in numbers]


def made(servers: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 2})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)


def read(servers: str, topic: str, last: int) -> list[int]:
    """What is in the topic up to the `last` number's last appearance."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "reads-only"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[int] = []
    quiet_until = time.monotonic() + 10
    try:
        while time.monotonic() < quiet_until:
            message = consumer.poll(0.1)
            if message is not None and message.error() is None:
                found.append(int(message.value() or b""))
                if found[-1] == last:
                    quiet_until = time.monotonic() + 1.5
    finally:
        consumer.close()
    return found


def send_at_last(feed: KafkaFeed, records: Sequence[ev.Record]) -> None:
    """As the host does: again until Kafka has taken them all."""
    until = time.monotonic() + 20
    while True:
        try:
            feed.send(records)
            return
        except TransientError:
            assert time.monotonic() < until


def seen(numbers: Iterable[int]) -> list[int]:
    """As readers of position changes do: what is not above the last one is dropped."""
    kept: list[int] = []
    for number in numbers:
        if not kept or number > kept[-1]:
            kept.append(number)
    return kept


@pytest.mark.parametrize("back_after_seconds", [0.6, 0.9, 1.2, 1.8])
def test_what_came_too_late_is_not_overtaken_by_what_came_in_time(
    kafka: str, back_after_seconds: float, feeds: Feeds
) -> None:
    """The first record is a second older than the rest when its topic appears at last."""
    topic = f"late-{uuid.uuid4().hex[:10]}"
    feed = feeds(kafka_settings(kafka), 1.0)

    def slowly() -> Iterator[ev.Record]:
        for index, record in enumerate(numbered(topic, range(1, 6))):
            yield record
            if index == 0:
                time.sleep(0.8)

    making = threading.Timer(back_after_seconds, made, (kafka, topic))
    making.start()
    try:
        feed.send(slowly())
    except TransientError:
        pass
    else:
        assert back_after_seconds < 1.1
    making.join()
    send_at_last(feed, numbered(topic, range(1, 8)))
    found = read(kafka, topic, last=7)
    assert seen(found) == [1, 2, 3, 4, 5, 6, 7], found


def test_what_was_under_way_to_a_hanging_broker_does_no_harm_when_it_wakes_up(
    tmp_path: Path, feeds: Feeds
) -> None:
    server = KafkaServer(tmp_path / "kafka")
    server.start()
    try:
        servers = server.bootstrap_servers
        made(servers, "changes")
        feed = feeds(kafka_settings(servers), 1.0)
        send_at_last(feed, numbered("changes", range(1, 11)))
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for _ in range(2):
                began = time.monotonic()
                with pytest.raises(TransientError):
                    feed.send(numbered("changes", range(11, 2_000)))
                assert time.monotonic() - began < 2.0
        finally:
            os.kill(server.pid, signal.SIGCONT)
        send_at_last(feed, numbered("changes", range(11, 2_002)))
        found = read(servers, "changes", last=2_001)
        assert seen(found) == list(range(1, 2_002))
    finally:
        server.stop()


def test_record_waits_for_those_of_other_threads_as_long_as_it_is_told(kafka: str) -> None:
    change = PositionChange(
        TournamentId("t1"), PlayerId("p"), Offset(1), None, 1, Score(1), None, Cause("/s", "i"), 0
    )
    outgoing = [Outgoing(ev.POSITION_CHANGES, event_of(change))]
    with contextlib.suppress(KafkaException):  # another test has made it
        made(kafka, ev.POSITION_CHANGES)
    with contextlib.closing(KafkaFeed(kafka_settings(kafka), linger_ms=600)) as feed:
        feed.publish(outgoing)  # connects
        began = time.monotonic()
        feed.publish(outgoing)
        assert 0.5 < time.monotonic() - began < 5


def test_publish_works_again_after_the_broker_was_away(kafka: str, feeds: Feeds) -> None:
    topic = ev.POSITION_CHANGES
    feed = feeds(kafka_settings(kafka), 1.0)
    change = PositionChange(
        TournamentId("t1"), PlayerId("p"), Offset(1), None, 1, Score(1), None, Cause("/s", "i"), 0
    )
    outgoing = [Outgoing(topic, event_of(change))]
    known = AdminClient({"bootstrap.servers": kafka, "log_level": 2}).list_topics(timeout=10).topics
    if topic not in known:
        with pytest.raises(TransientError):
            feed.publish(outgoing)
        made(kafka, topic)
    until = time.monotonic() + 10
    while True:
        try:
            assert feed.publish(outgoing).keys() == {0}
            return
        except TransientError:
            assert time.monotonic() < until
