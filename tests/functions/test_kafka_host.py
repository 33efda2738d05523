"""The Kafka host against a real Kafka: what is committed when, and what survives what."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from prometheus_client import REGISTRY

import recording
from leaderboard import events as ev
from leaderboard.adapters.kafka_feed import KafkaFeed
from leaderboard.errors import Refusal, RefusedError, TransientError
from leaderboard.hosts.kafka import Batch, KafkaHost, Refused, ReplayError
from leaderboard.model import Offset, Place
from leaderboard.settings import ConsumerSettings, KafkaSettings, load
from leaderboard.stack.embedded import InProcessKafka
from leaderboard.stack.process import LOOPBACK, free_port
from recording import (
    Log,
    Recorder,
    Running,
    decode_as_wagers,
    host_of,
    kafka_settings,
    running,
)
from running import wait_for

REBALANCE = 27
"""Kafka's code for a commit that comes while the group is being sorted anew."""
SESSION_SECONDS = 6.0
"""After so long without a sign the group takes the partitions of a member."""


def failing(times: int, error: Exception) -> Any:
    """Something to hang into a recorder: raises so often, then never again."""
    left = iter(range(times))

    def fail(batch: Batch) -> Sequence[Refused]:
        if next(left, None) is not None:
            raise error
        return ()

    return fail


def test_a_batch_is_committed_when_it_is_settled_and_not_before(kafka: str) -> None:
    log, recorder, settled = Log(kafka), Recorder(), threading.Event()
    recorder.on_settle = lambda batch: wait_for(settled.is_set, 10)
    log.send(5)
    with running(log, recorder):
        wait_for(lambda: len(recorder.tried) == 1, 10)
        time.sleep(0.3)
        assert log.committed() in (None, 0)
        settled.set()
        wait_for(lambda: log.committed() == 5, 10)
    assert recorder.offsets() == [0, 1, 2, 3, 4]


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"leaderboard_{name}", labels) or 0.0


def test_lag_and_age_of_what_waits_are_told(kafka: str) -> None:
    log, recorder, settled = Log(kafka), Recorder(), threading.Event()
    recorder.on_settle = lambda batch: wait_for(settled.is_set, 10)
    log.send(5)
    time.sleep(0.4)
    age = {"function": "recording"}
    lag = {"function": "recording", "topic": log.topic}
    before = metric("batch_age_seconds_sum", **age)
    with running(log, recorder, batch_size=2):
        wait_for(lambda: len(recorder.tried) == 1, 10)
        assert metric("batch_age_seconds_sum", **age) - before >= 0.4
        wait_for(lambda: metric("lag_records", **lag) == 5, 10)
        settled.set()
        wait_for(lambda: log.committed() == 5, 10)
        assert metric("lag_records", **lag) == 0
    assert metric("lag_records", **lag) == 0, "of a host that has left"


class Sink:
    """Dead letters on their way to Kafka, which is away for the first `failures` calls."""

    def __init__(self, log: Log, failures: int = 0) -> None:
        self.calls = 0
        self.committed: list[int | None] = []
        self._log = log
        self._failures = failures

    def send(self, records: Iterable[ev.Record]) -> None:
        self.calls += 1
        self.committed.append(self._log.committed())
        if self.calls <= self._failures:
            raise TransientError("Kafka takes no dead letters")
        with contextlib.closing(KafkaFeed(kafka_settings(self._log.servers))) as feed:
            feed.send(records)


def test_a_refused_event_is_a_dead_letter_whole_before_it_is_committed(kafka: str) -> None:
    log, recorder = Log(kafka), Recorder()
    refusal = RefusedError(Refusal.SCORE_OUT_OF_RANGE, "beyond ±2^53")
    recorder.on_handle = lambda batch: [Refused(Offset(2), refusal)]
    bad = ev.Record(
        "any", b"t1", b"\xff not JSON", (("ce_id", b"x"), ("mine", None), ("mine", b""))
    )
    log.send_record(recording.sound(0))
    log.send_record(bad)
    log.send_record(recording.sound(2))
    sink = Sink(log, failures=2)
    with running(log, recorder, sink):
        wait_for(lambda: log.committed() == 3, 20)
    assert sink.calls == 3
    assert all(offset in (None, 0) for offset in sink.committed)
    unreadable, refused = log.dead_letters(2)
    assert (unreadable.key(), unreadable.value()) == (bad.key, bad.value)
    headers = unreadable.headers()
    assert headers[: len(bad.headers)] == list(bad.headers)
    told = dict(headers[len(bad.headers) :])
    assert told.keys() == {
        f"dlq_{name}" for name in ("reason", "detail", "topic", "partition", "offset", "at")
    }
    assert (told["dlq_topic"], told["dlq_partition"]) == (log.topic.encode(), b"0")
    assert (told["dlq_reason"], told["dlq_offset"]) == (b"schema", b"1")
    told = dict(refused.headers())
    assert (told["dlq_reason"], told["dlq_offset"]) == (b"score_out_of_range", b"2")
    assert told["dlq_detail"].decode() == "beyond ±2^53"
    assert refused.value() == recording.sound(2).value


def test_a_dead_letter_is_not_sent_again_while_its_batch_is_retried(kafka: str) -> None:
    log, recorder = Log(kafka), Recorder()
    recorder.on_settle = failing(2, TransientError("away"))
    log.send_record(ev.Record("any", b"t1", None))
    sink = Sink(log)
    with running(log, recorder, sink):
        wait_for(lambda: log.committed() == 1, 10)
    assert sink.calls == 1


def test_a_dead_letter_is_not_sent_again_when_its_partition_is_read_again(kafka: str) -> None:
    log, recorder = Log(kafka), Recorder()
    refusal = RefusedError(Refusal.SCORE_OUT_OF_RANGE, "beyond ±2^53")
    recorder.on_handle = lambda batch: [
        Refused(entry.offset, refusal) for entry in batch.entries if entry.offset == 1
    ]
    recorder.on_settle = failing(1, ReplayError(None))
    log.send_record(ev.Record("any", b"t1", None))
    log.send_record(recording.sound(1))
    with running(log, recorder):
        wait_for(lambda: log.committed() == 2, 10)
        wait_for(lambda: log.buried() >= 2, 10)
        # One more of the same content is another record.
        log.send_record(ev.Record("any", b"t1", None))
        wait_for(lambda: log.committed() == 3, 10)
    assert len(recorder.tried) > 2, "nothing was read again"
    assert log.buried() == 3


def test_what_may_work_later_is_retried_in_order_without_leaving_the_group(kafka: str) -> None:
    log, recorder = Log(kafka), Recorder()
    until = time.monotonic() + SESSION_SECONDS + 1.5

    def away(batch: Batch) -> Sequence[Refused]:
        if time.monotonic() < until:
            raise TransientError("away")
        return ()

    recorder.on_handle = away
    log.send(3)
    with running(log, recorder, batch_size=3):
        wait_for(lambda: len(recorder.tried) > 2, 10)
        log.send(7)
        wait_for(lambda: len(recorder.handled) == 10, 20)
        wait_for(lambda: log.committed() == 10, 5)
        assert recorder.revocations == []
    assert recorder.offsets() == list(range(10))
    assert len(recorder.assignments) == 1
    first = [tried for tried in recorder.tried if tried[0] == 0]
    assert all(tried == first[0] for tried in first)


def test_a_host_that_is_stopped_while_it_retries_commits_nothing_of_the_batch(kafka: str) -> None:
    log, recorder = Log(kafka), Recorder()
    recorder.on_handle = failing(1_000, TransientError("away"))
    log.send(4)
    with running(log, recorder):
        wait_for(lambda: len(recorder.tried) > 3, 10)
        stopped_at = time.monotonic()
    assert time.monotonic() - stopped_at < 5
    assert log.committed() in (None, 0)
    after = Recorder()
    with running(log, after):
        wait_for(lambda: after.offsets() == [0, 1, 2, 3], 10)


def test_a_bug_ends_the_process_and_leaves_its_batch_uncommitted(kafka: str) -> None:
    log, recorder = Log(kafka), Recorder()
    log.send(2)
    one = Running(host_of(log, recorder, batch_size=2))
    wait_for(lambda: log.committed() == 2, 10)
    recorder.on_handle = failing(1, ZeroDivisionError("a bug"))
    log.send(2)
    one.join()
    assert isinstance(one.error, ZeroDivisionError)
    assert log.committed() == 2
    after = Recorder()
    with running(log, after):
        wait_for(lambda: after.offsets() == [2, 3], 10)


@pytest.mark.parametrize("back_to", [None, 0, 4, 900])
def test_a_handler_that_wants_to_read_again_gets_everything_in_order(
    kafka: str, back_to: int | None
) -> None:
    log, recorder = Log(kafka), Recorder()
    log.send(10)

    def again(batch: Batch) -> Sequence[Refused]:
        if batch.entries[0].offset >= 7 and not replayed.is_set():
            replayed.set()
            raise ReplayError(None if back_to is None else Offset(back_to))
        return ()

    replayed = threading.Event()
    recorder.on_handle = again
    with running(log, recorder, batch_size=3):
        wait_for(lambda: recorder.offsets()[-1:] == [9] and replayed.is_set(), 10)
        log.send(5)
        wait_for(lambda: log.committed() == 15, 10)
    offsets = recorder.offsets()
    cut = (
        next(i for i, (one, other) in enumerate(pairwise(offsets), 1) if other != one + 1)
        if (back_to is None or back_to < 7)
        else len(offsets)
    )
    assert offsets[:cut] == list(range(offsets[cut - 1] + 1))
    assert offsets[cut:] == (list(range(back_to or 0, 15)) if cut < len(offsets) else [])


def test_reading_again_is_possible_right_after_assignment_and_committed_first(kafka: str) -> None:
    log, before = Log(kafka), Recorder()
    log.send(8)
    with running(log, before):
        wait_for(lambda: log.committed() == 8, 10)
    log.send(1)
    recorder = Recorder()
    committed: list[int | None] = []

    def again(batch: Batch) -> Sequence[Refused]:
        if len(recorder.tried) == 1:
            raise ReplayError(Offset(3))
        committed.append(log.committed())
        return ()

    recorder.on_handle = again
    with running(log, recorder):
        wait_for(lambda: recorder.offsets() == [3, 4, 5, 6, 7, 8], 10)
    assert recorder.tried[0] == [8]
    assert committed[0] == 3


@pytest.mark.parametrize(("start", "reads"), [(2, [2, 3, 4]), (5, []), (77, [])])
def test_a_handler_may_start_before_the_group_and_never_after_it(
    kafka: str, start: int, reads: list[int]
) -> None:
    log, before = Log(kafka), Recorder()
    log.send(5)
    with running(log, before):
        wait_for(lambda: log.committed() == 5, 10)
    recorder = Recorder()
    recorder.start_at = {0: start}
    with running(log, recorder):
        wait_for(lambda: len(recorder.assignments) == 1, 10)
        assert recorder.assignments[0].committed == 5
        wait_for(lambda: recorder.offsets() == reads, 10)
        log.send(1)
        wait_for(lambda: recorder.offsets() == [*reads, 5], 10)
        wait_for(lambda: log.committed() == 6, 5)


def test_a_child_told_to_end_finishes_its_batch_commits_and_leaves(kafka: str) -> None:
    log = Log(kafka)
    log.send(3)
    argv = [sys.executable, str(Path(recording.__file__)), kafka, log.topic, log.group, "0.7"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("handling")
        child.send_signal(signal.SIGTERM)
        told = child.stdout.read()
        assert child.wait(20) == 0
    done = int(told.split()[1])
    assert told.split() == ["handled", str(done), "left"]
    assert log.committed() == done >= 1


def test_partitions_that_move_lose_no_record_and_keep_their_order(kafka: str) -> None:
    log, sent = Log(kafka, partitions=6), 0
    recorders = [Recorder(), Recorder(), Recorder()]
    for recorder in recorders:
        recorder.on_handle = briefly
    done = threading.Event()

    def play() -> None:
        nonlocal sent
        while not done.is_set():
            log.send_record(recording.sound(sent), sent % log.partitions, flush=False)
            sent += 1
            time.sleep(0.001)

    player = threading.Thread(target=play)
    player.start()
    try:
        with running(log, recorders[0], batch_size=20):
            wait_for(lambda: len(recorders[0].handled) > 200, 10)
            with running(log, recorders[1], batch_size=20):
                wait_for(lambda: len(recorders[1].handled) > 200, 20)
                check_nothing_is_committed_unhandled(log, recorders)
                with running(log, recorders[2], batch_size=20):
                    wait_for(lambda: len(recorders[2].handled) > 200, 20)
                    check_nothing_is_committed_unhandled(log, recorders)
            kept = len(recorders[0].handled)
            wait_for(lambda: len(recorders[0].handled) > kept + 500, 20)
            done.set()
            player.join()
            log.send(1)
            wait_for(lambda: sum(len(r.handled) for r in recorders) >= sent + 1, 20)
    finally:
        done.set()
        player.join()
    # Handed over in peace: each record once, each partition's in order of time as of offset.
    for partition in range(log.partitions):
        merged = sorted(
            (at, o) for r in recorders for p, o, at in r.handled if p.partition == partition
        )
        offsets = [offset for _, offset in merged]
        assert offsets == list(range(len(offsets)))
        assert log.committed(partition) == len(offsets)
    assert sum(len(recorder.handled) for recorder in recorders) == sent + 1
    assert sum(len(recorder.revocations) for recorder in recorders[:1]) >= 3, "nothing moved"


def briefly(batch: Batch) -> Sequence[Refused]:
    time.sleep(0.002)
    return ()


def check_nothing_is_committed_unhandled(log: Log, recorders: Sequence[Recorder]) -> None:
    for partition in range(log.partitions):
        committed = log.committed(partition) or 0
        handled = {o for recorder in recorders for o in recorder.offsets(partition)}
        assert handled >= set(range(committed))


def test_a_batch_that_is_being_retried_is_given_up_when_its_partition_moves(kafka: str) -> None:
    """Also when the partition comes back within one and the same back-off, or the next."""
    log, first, second = Log(kafka, partitions=2), Recorder(), Recorder()
    is_away = threading.Event()
    is_away.set()

    def away(batch: Batch) -> Sequence[Refused]:
        if is_away.is_set():
            raise TransientError("away")
        return ()

    first.on_handle = away
    with running(log, first):
        wait_for(lambda: len(first.assignments) == 2, 10)
        for partition in (0, 1):
            log.send(3, partition)
        wait_for(lambda: len(first.tried) > 2, 10)
        with running(log, second):
            wait_for(lambda: len(second.handled) == 3, 20)
        wait_for(lambda: len(first.revocations) == 1, 20)
        is_away.clear()
        wait_for(lambda: log.committed(0) == log.committed(1) == 3, 20)
        log.send(1, 0)
        log.send(1, 1)
        wait_for(lambda: len(first.handled) + len(second.handled) >= 8, 20)
    for partition in (0, 1):
        assert sorted(first.offsets(partition) + second.offsets(partition)) == [0, 1, 2, 3]


def test_a_partition_that_nobody_writes_to_has_no_lag(kafka: str) -> None:
    log, recorder = Log(kafka, partitions=3), Recorder()
    log.send(2, 1)
    with running(log, recorder):
        wait_for(lambda: [log.committed(p) for p in range(3)] == [0, 2, 0], 10)


class Unwilling:
    """A consumer whose first commits fail."""

    def __init__(self, consumer: Any, failures: int) -> None:
        self._consumer = consumer
        self.left = failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def commit(self, **arguments: Any) -> Any:
        if self.left > 0:
            self.left -= 1
            raise KafkaException(KafkaError(REBALANCE))
        return self._consumer.commit(**arguments)


def test_a_commit_that_failed_is_made_good_without_a_new_record(kafka: str) -> None:
    log, recorder = Log(kafka), Recorder()
    log.send(3)
    host = host_of(log, recorder)
    group: Any = host._group
    unwilling = Unwilling(group._consumer, failures=2)
    group._consumer = unwilling
    one = Running(host)
    try:
        wait_for(lambda: log.committed() == 3, 15)
    finally:
        one.stop()
    assert (unwilling.left, one.error) == (0, None)


def test_no_batch_is_larger_than_was_asked_for(kafka: str) -> None:
    log, recorder = Log(kafka, partitions=2), Recorder()
    for partition in (0, 1):
        log.send(500, partition)
    recorder.on_handle = failing(2, TransientError("away"))
    with running(log, recorder, batch_size=40):
        wait_for(lambda: len(recorder.handled) == 1000, 20)
    sizes = [len(tried) for tried in recorder.tried]
    assert max(sizes) == 40
    for partition in (0, 1):
        assert recorder.offsets(partition) == list(range(500))


def test_batches_that_are_not_full_keep_their_distance_and_the_first_one_waits_for_nothing(
    kafka: str,
) -> None:
    log, recorder = Log(kafka), Recorder()
    recorder.on_tick = lambda: 10.0
    log.send(1)
    with running(log, recorder, batch_size=50, spacing_seconds=2.0):
        wait_for(lambda: len(recorder.handled) == 1, 20)
        time.sleep(2.2)
        sent_at = time.monotonic()
        log.send(1)
        wait_for(lambda: len(recorder.handled) == 2, 5)
        assert time.monotonic() - sent_at < 1.5
        for _ in range(20):
            log.send(1)
        wait_for(lambda: len(recorder.handled) == 22, 5)
        assert time.monotonic() - sent_at > 1.9
        assert [len(tried) for tried in recorder.tried] == [1, 1, 20]
        # A full one does not wait for its time.
        sent_at = time.monotonic()
        log.send(50)
        wait_for(lambda: len(recorder.handled) == 72, 5)
        assert time.monotonic() - sent_at < 1.5
    assert recorder.offsets() == list(range(72))


def test_two_topics_are_one_group_and_each_partition_keeps_its_order(kafka: str) -> None:
    wagers = Log(kafka, partitions=2)
    changes, recorder = Log(kafka, partitions=3, group=wagers.group), Recorder()
    for partition in range(2):
        wagers.send(20, partition)
    for partition in range(3):
        changes.send(30, partition)
    with running(wagers, recorder, batch_size=7, more=[changes.topic]):
        wait_for(lambda: len(recorder.handled) == 2 * 20 + 3 * 30, 20)
        wait_for(lambda: [wagers.committed(p) for p in range(2)] == [20, 20], 5)
        wait_for(lambda: [changes.committed(p) for p in range(3)] == [30, 30, 30], 5)
    for log in (wagers, changes):
        for partition in range(log.partitions):
            assert recorder.offsets(partition, log.topic) == list(range(log.committed(0) or 0))
    told = {one.place: (one.log_id, one.partitions) for one in recorder.assignments}
    assert len(told) == len(recorder.assignments) == 5
    assert len({log_id for log_id, _ in told.values()}) == 5
    for (topic, partition), (log_id, partitions) in told.items():
        assert log_id.startswith(f"{topic}/")
        assert log_id.endswith(f"/{partition}")
        assert partitions == (2 if topic == wagers.topic else 3)


def test_reading_one_topic_again_leaves_the_other_alone(kafka: str) -> None:
    wagers, recorder = Log(kafka), Recorder()
    changes = Log(kafka, group=wagers.group)
    wagers.send(6)
    changes.send(6)
    replayed = threading.Event()

    def again() -> float:
        if len(recorder.handled) == 12 and not replayed.is_set():
            replayed.set()
            raise ReplayError(Offset(2), Place(changes.topic, 0))
        return 0.1

    recorder.on_tick = again
    with running(wagers, recorder, more=[changes.topic]):
        wait_for(lambda: len(recorder.handled) == 16, 20)
        wagers.send(1)
        changes.send(1)
        wait_for(lambda: len(recorder.handled) == 18, 10)
        wait_for(lambda: (wagers.committed(), changes.committed()) == (7, 7), 5)
    assert recorder.offsets(topic=wagers.topic) == list(range(7))
    assert recorder.offsets(topic=changes.topic) == [*range(6), *range(2, 7)]


def test_a_batch_that_wants_another_topic_read_again_comes_again_too(kafka: str) -> None:
    wagers, recorder = Log(kafka), Recorder()
    changes = Log(kafka, group=wagers.group)
    changes.send(5)
    replayed = threading.Event()

    def again(batch: Batch) -> Sequence[Refused]:
        if batch.topic == wagers.topic and not replayed.is_set():
            replayed.set()
            raise ReplayError(Offset(3), Place(changes.topic, 0))
        return ()

    recorder.on_handle = again
    with running(wagers, recorder, more=[changes.topic]):
        wait_for(lambda: len(recorder.handled) == 5, 20)
        wagers.send(4)
        wait_for(lambda: (wagers.committed(), changes.committed()) == (4, 5), 10)
        wait_for(lambda: len(recorder.handled) == 5 + 2 + 4, 10)
    assert recorder.offsets(topic=wagers.topic) == [0, 1, 2, 3]
    assert recorder.offsets(topic=changes.topic) == [*range(5), 3, 4]


def test_a_rebalance_of_one_topic_leaves_the_other_where_it_is(kafka: str) -> None:
    """The second member reads one topic only: only that one is divided anew."""
    wagers = Log(kafka, partitions=2)
    changes = Log(kafka, partitions=2, group=wagers.group)
    both, one = Recorder(), Recorder()
    for recorder in (both, one):
        recorder.on_handle = briefly
    with running(wagers, both, more=[changes.topic]):
        wait_for(lambda: len(both.assignments) == 4, 20)
        with running(changes, one):
            wait_for(lambda: len(one.assignments) >= 1, 20)
            for partition in (0, 1):
                wagers.send(50, partition)
                changes.send(50, partition)
            wait_for(lambda: len(both.handled) + len(one.handled) == 200, 20)
            assert {place.topic for place in both.revocations} == {changes.topic}
            assert one.handled, "nothing moved"
        wait_for(lambda: len(both.owned) == 4, 20)
        changes.send(5, 0)
        changes.send(5, 1)
        wait_for(lambda: len(both.handled) + len(one.handled) == 210, 20)
    for partition in (0, 1):
        assert both.offsets(partition, wagers.topic) == list(range(50))
        moved = both.offsets(partition, changes.topic) + one.offsets(partition, changes.topic)
        assert sorted(moved) == list(range(55))


def test_a_reader_beside_the_consumer_gets_every_record_and_buries_none(kafka: str) -> None:
    """As the record reads: the stored bytes, and dead letters that are no events."""
    log, beside = Log(kafka), Recorder()
    batches: list[Batch] = []
    beside.on_settle = batches.append
    bad = ev.Record("any", b"t1", b"\xff not JSON", (("mine", b"1"),))
    log.send_record(recording.sound(0))
    log.send_record(bad)
    log.send_record(recording.sound(2))
    with running(log, Recorder()):
        wait_for(lambda: log.committed() == 3, 20)
    log.dead_letters(1)
    log.group += "-beside"
    dead = ev.dead_letter_topic(log.topic)
    with running(log, beside, more=[dead], buries=False):
        wait_for(lambda: sum(len(batch.records) for batch in batches) == 4, 20)
        wait_for(lambda: log.committed() == 3, 5)
    raw = [record for batch in batches if batch.topic == log.topic for record in batch.records]
    assert [record.offset for record in raw] == [0, 1, 2]
    assert (raw[1].key, raw[1].value, raw[1].headers) == (bad.key, bad.value, bad.headers)
    assert beside.offsets(topic=log.topic) == [0, 2]
    unreadable = [one for batch in batches for one in batch.unreadable]
    assert [(one.offset, one.error.reason) for one in unreadable] == [(1, Refusal.SCHEMA)]
    (letter,) = [record for batch in batches if batch.topic == dead for record in batch.records]
    assert (letter.value, dict(letter.headers)["dlq_offset"]) == (bad.value, b"1")
    assert log.buried() == 1


def test_two_topics_work_on_the_in_process_cluster_too() -> None:
    cluster, recorder = InProcessKafka(), Recorder()
    environ = {
        "KAFKA_BOOTSTRAP_SERVERS": cluster.bootstrap_servers,
        "KAFKA_GROUP_PROTOCOL": "consumer",
        "HOST": LOOPBACK,
        "PORT": str(free_port()),
    }
    kafka_, consumer = load(KafkaSettings, environ), load(ConsumerSettings, environ)
    topics = (ev.WAGERS, ev.dead_letter_topic(ev.WAGERS))
    batches: list[Batch] = []
    recorder.on_settle = batches.append
    with contextlib.closing(KafkaFeed(kafka_)) as feed:
        try:
            cluster.create_topics()
            host = KafkaHost(
                "two", topics, lambda: recorder, None, kafka_, consumer, {}, decode=decode_as_wagers
            )
            one = Running(host)
            try:
                feed.send(recording.sound(n)._replace(topic=topics[n % 2]) for n in range(20))
                wait_for(lambda: sum(len(batch.records) for batch in batches) == 20, 20)
            finally:
                one.stop()
            assert one.error is None
        finally:
            cluster.close()
    assert len(recorder.assignments) == 8, "four partitions of each"
    assert {one.log_id for one in recorder.assignments} == {
        f"{topic}/-/{partition}" for topic in topics for partition in range(4)
    }
    for topic, entries in zip(topics, (10, 0), strict=True):
        of_topic = [batch for batch in batches if batch.topic == topic]
        assert sum(len(batch.records) for batch in of_topic) == 10
        assert sum(len(batch.entries) for batch in of_topic) == entries
