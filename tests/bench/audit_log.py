"""The audit log by itself: leaves appended a second, durable and signed on this machine's disk,
by the size of a batch; and leaves verified a second, from files that the system has in memory."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from audits import ORIGIN, SIGNER, VERIFIER
from bench.report import Bench, Measured, spread
from leaderboard.adapters.directory_log import DirectoryLogStore
from leaderboard.audit.log import AuditLog
from leaderboard.audit.verify import verify_log

LEAVES = 400_000
LEAST_BATCHES = 150
ENTRY_BYTES = 400
"""As long as a wager's leaf is."""
FOLDER = Path("build/bench")
"""On the disk of the working directory: memory would answer at once."""


def audit_log(bench: Bench) -> None:
    """Appending in batches of three sizes, and reading it all again."""
    leaves = bench.size(LEAVES, 4_000)
    bench.in_turns(
        "audit-log",
        "leaves/s",
        {
            "batches of 1,000": lambda _: _append(leaves, 1_000),
            "batches of 100": lambda _: _append(min(leaves, 100 * LEAST_BATCHES), 100),
            "batches of 4,000": lambda _: _append(leaves, 4_000),
            "verified": lambda _: _verify(leaves),
        },
    )


def _append(leaves: int, batch: int) -> Measured:
    entries = [os.urandom(ENTRY_BYTES) for _ in range(batch)]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        log = AuditLog.open(DirectoryLogStore(Path(folder)), ORIGIN, SIGNER)
        times_ms = []
        cpu, begun = time.process_time(), time.perf_counter()
        for _ in range(leaves // batch):
            at = time.perf_counter()
            log.append(entries)
            times_ms.append((time.perf_counter() - at) * 1000)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        more = {**spread(times_ms), "cpu_us_a_leaf": round(cpu / log.size * 1e6, 2)}
        return Measured(log.size / seconds, more)


def _verify(leaves: int) -> Measured:
    entries = [os.urandom(ENTRY_BYTES) for _ in range(4_000)]
    FOLDER.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=FOLDER))
    try:
        store = DirectoryLogStore(folder)
        log = AuditLog.open(store, ORIGIN, SIGNER)
        while log.size < leaves:
            log.append(entries)
        begun = time.perf_counter()
        report = verify_log(store, ORIGIN, VERIFIER)
        seconds = time.perf_counter() - begun
        assert report.is_sound, report.problems
        return Measured(log.size / seconds)
    finally:
        shutil.rmtree(folder)
