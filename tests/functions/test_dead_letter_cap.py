"""The cap on dead letters, through the real host and a real Kafka: who can stop it, and who not."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client import REGISTRY

import recording
from leaderboard import events as ev
from leaderboard.errors import Refusal, RefusedError, UnreadableTopicError
from leaderboard.hosts.kafka_cap import NO_SOURCE, Mark, failing_sources, source_of
from recording import Log, Recorder, Running, garbage, host_of, running, sound
from running import wait_for

THREE = ("/poker", "/slots", "/bingo")
OFF = {"DEAD_LETTER_CAP_RATIO": "1"}


def broken(record: ev.Record) -> ev.Event | None:
    """The codec of a bad deploy."""
    raise RefusedError(Refusal.SCHEMA, "an attribute that everybody has to have now")


def send(log: Log, records: Iterable[ev.Record]) -> int:
    count = 0
    for record in records:
        log.send_record(record, flush=False)
        count += 1
    log.send(0)
    return count


def stopped(
    log: Log, recorder: Recorder, batch_size: int = 100, *, is_broken: bool = False
) -> UnreadableTopicError:
    """Run a host until it ends by itself; why it did."""
    decode = broken if is_broken else None
    one = Running(host_of(log, recorder, batch_size=batch_size, decode=decode))
    one.join()
    assert isinstance(one.error, UnreadableTopicError), one.error
    return one.error


def stops(topic: str) -> float:
    labels = {"function": "recording", "topic": topic}
    return REGISTRY.get_sample_value("leaderboard_dead_letter_cap_stops_total", labels) or 0


def test_a_bad_deploy_stops_with_nothing_diverted_and_the_next_one_handles_all(kafka: str) -> None:
    log, recorder = Log(kafka), Recorder()
    count = send(log, (sound(n, THREE[n % 3]) for n in range(500)))
    error = stopped(log, recorder, batch_size=400, is_broken=True)
    assert log.topic in str(error)
    assert "DEAD_LETTER_CAP_RATIO=1" in str(error)
    assert "/poker" in str(error)
    assert stops(log.topic) == 1
    assert (recorder.tried, log.committed() or 0, log.buried()) == ([], 0, 0)
    after = Recorder()
    with running(log, after):
        wait_for(lambda: log.committed() == count, 20)
    assert after.offsets() == list(range(count))
    assert log.buried() == 0


def test_a_bad_deploy_on_a_quiet_topic_stops_at_the_first_record(kafka: str) -> None:
    """Again and again, as Kubernetes starts it: the log before is what it judges by."""
    log, before = Log(kafka, partitions=2), Recorder()
    for partition in (0, 1):
        for n in range(120):
            log.send_record(sound(n, THREE[n % 3]), partition, flush=False)
    log.send(0)
    with running(log, before):
        wait_for(lambda: [log.committed(p) for p in (0, 1)] == [120, 120], 20)
    log.send_record(sound(120, THREE[0]), 1)
    for _ in range(3):
        stopped(log, Recorder(), batch_size=1, is_broken=True)
    assert (log.committed(1), log.buried()) == (120, 0)
    after = Recorder()
    with running(log, after):
        wait_for(lambda: log.committed(1) == 121, 20)
    assert after.offsets(1) == [120]


def test_one_bad_producer_with_nine_tenths_of_the_traffic_halts_nobody(kafka: str) -> None:
    log, recorder = Log(kafka), Recorder()
    records = [garbage(n, "/bad") if n % 10 else sound(n, THREE[n // 10 % 3]) for n in range(900)]
    count = send(log, records)
    with running(log, recorder, batch_size=50):
        wait_for(lambda: log.committed() == count, 30)
    assert recorder.offsets() == list(range(0, 900, 10))
    assert log.buried() == 810


def test_a_producer_with_a_new_source_in_each_record_halts_nobody(kafka: str) -> None:
    log, recorder = Log(kafka), Recorder()
    records = [
        garbage(n, f"/bad/{n}") if n % 10 else sound(n, THREE[n // 10 % 3]) for n in range(600)
    ]
    count = send(log, records)
    with running(log, recorder):
        wait_for(lambda: log.committed() == count, 30)
    assert log.buried() == 540


def test_producers_that_turn_bad_together_cost_half_a_window_however_often_it_starts(
    kafka: str,
) -> None:
    log, recorder = Log(kafka), Recorder()
    good = send(log, (sound(n, THREE[n % 3]) for n in range(300)))
    bad = send(log, (garbage(n, THREE[n % 3]) for n in range(300)))
    stopped(log, recorder, batch_size=10)
    assert recorder.offsets() == list(range(good))
    stopped(log, Recorder(), batch_size=1)  # to the very record
    diverted = log.buried()
    assert 100 <= diverted <= 100 + len(THREE)
    assert log.committed() == good + diverted
    for batch_size in (1, 10, 300):
        stopped(log, Recorder(), batch_size=batch_size)
    assert log.buried() == diverted
    assert log.committed() == good + diverted
    # They are really bad, and the operator wants them out of the way.
    with running(log, Recorder(), settings=OFF):
        wait_for(lambda: log.committed() == good + bad, 20)
    assert log.buried() == bad


def test_what_an_operator_replays_halts_nobody(kafka: str) -> None:
    log, tried = Log(kafka), (("dlq_attempts", b"1"),)
    records = [garbage(n, THREE[n % 3]) for n in range(300)]
    count = send(log, (one._replace(headers=(*one.headers, *tried)) for one in records))
    with running(log, Recorder(), batch_size=50):
        wait_for(lambda: log.committed() == count, 20)
    assert log.buried() == count


def test_a_stopped_process_says_why_and_ends_with_an_error(kafka: str) -> None:
    log = Log(kafka)
    send(log, (garbage(n, THREE[n % 3]) for n in range(250)))
    argv = [sys.executable, str(Path(recording.__file__)), kafka, log.topic, log.group, "0"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "UnreadableTopicError" in done.stderr
    assert "Roll the deploy back" in done.stderr
    assert "left" not in done.stdout


def marks(of: Mapping[str, tuple[int, int]]) -> list[Mark]:
    """`of`: source → records that can be read, and that can't; in no order."""
    found = [
        (source, is_readable)
        for source, counts in of.items()
        for is_readable, count in zip((True, False), counts, strict=True)
        for _ in range(count)
    ]
    random.Random(1).shuffle(found)
    return found


def test_who_makes_a_consumer_stop() -> None:
    three = {"/a": (0, 60), "/b": (0, 50), "/c": (10, 40)}
    assert failing_sources(marks({**three, "/d": (40, 0)}), 0.5) == ["/a", "/b", "/c"]
    invented = {f"/bad/{n}": (0, 1) for n in range(150)}
    many = {f"/table/{n}": (0, 1) for n in range(197)}
    for case in (
        {"/bad": (0, 180), "/a": (10, 0), "/b": (10, 0)},  # one, whatever its volume
        {**invented, "/a": (30, 0), "/b": (20, 0)},  # one that invents sources
        {"/bad/1": (0, 50), "/bad/2": (0, 50), "/bad/3": (0, 50), "/a": (20, 0), "/b": (20, 0)}
        | {"/c": (10, 0)},  # one with three names, and three others that are well
        {NO_SOURCE: (0, 150), "/a": (25, 0), "/b": (0, 25)},  # two, and no name is one
        {"/a": (60, 40), "/b": (60, 20), "/c": (10, 10)},  # all of them, now and then
    ):
        assert failing_sources(marks(case), 0.5) == []
    assert len(failing_sources(marks({**many, "/a": (3, 0)}), 0.5)) == 197


def test_the_source_of_what_the_codec_refuses_is_found_in_both_modes() -> None:
    binary = ev.Record("t", None, b"\xff", (("CE_source", b"/a\xff"),))
    structured = ev.Record("t", None, b'{"specversion": "9", "source": "/b"}')
    assert source_of(binary) == "/a\\xff"
    assert source_of(structured) == "/b"
    for value in (None, b"", b"[1]", b"{", b'{"source": 1}', b'{"source": ' + b"[" * 60_000):
        assert source_of(ev.Record("t", None, value)) == NO_SOURCE
