"""How soon the Kafka host handles what comes, on a machine that does nothing else."""

from __future__ import annotations

import statistics
import time
from typing import Any

import recording
from recording import Log, Recorder, running
from running import wait_for


def test_a_single_record_in_a_quiet_topic_is_handled_within_50_ms(
    kafka: str, record_property: Any
) -> None:
    log, recorder = Log(kafka), Recorder()
    sent: list[float] = []
    with running(log, recorder):
        log.send(1)
        wait_for(lambda: len(recorder.handled) == 1, 10)
        time.sleep(1.5)
        quiet: list[float] = []
        for n in range(5):
            at = time.monotonic()
            log.send_record(recording.sound(0))
            wait_for(lambda n=n: len(recorder.handled) == 2 + n, 5)  # type: ignore[misc]
            quiet.append(recorder.handled[-1][2] - at)
            time.sleep(0.6)
        for _ in range(200):
            sent.append(time.monotonic())
            log.send_record(recording.sound(0), flush=False)
            time.sleep(0.02)
        wait_for(lambda: len(recorder.handled) == 206, 5)
    took = [at - began for (_, _, at), began in zip(recorder.handled[6:], sent, strict=True)]
    p99 = statistics.quantiles(took, n=100)[98]
    record_property("quiet_ms", round(1000 * statistics.median(quiet), 1))
    record_property("p50_ms", round(1000 * statistics.median(took), 1))
    record_property("p99_ms", round(1000 * p99, 1))
    print(f"quiet {[round(1000 * q, 1) for q in quiet]}, p50 {statistics.median(took)}, p99 {p99}")
    assert statistics.median(quiet) < 0.050
    assert statistics.median(took) < 0.050
