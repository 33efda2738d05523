"""The audit log by itself: leaves appended a second, durable and signed on this machine's disk,
by the size of a batch; leaves verified a second, and entries proved a second out of a million, from
files that the system has in memory."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audits import ORIGIN, SIGNER, VERIFIER
from bench.report import Bench, Measured, spread
from leaderboard.adapters.directory_log import DirectoryLogStore
from leaderboard.audit.log import AuditLog
from leaderboard.audit.proofs import Proof
from leaderboard.audit.reader import AuditReader
from leaderboard.audit.verify import verify_log

LEAVES = 400_000
MANY = 1_000_000
"""What is verified and proved from."""
PROOFS = 2_000
LEAST_BATCHES = 150
ENTRY_BYTES = 400
"""As long as a wager's leaf is."""
FOLDER = Path("build/bench")
"""On the disk of the working directory: memory would answer at once."""


def audit_log(bench: Bench) -> None:
    """Appending in batches of three sizes, reading a log all again, and proving entries of it."""
    leaves, many = bench.size(LEAVES, 4_000), bench.size(MANY, 4_000)
    bench.in_turns(
        "audit-log",
        "leaves/s",
        {
            "batches of 1,000": lambda _: _append(leaves, 1_000),
            "batches of 100": lambda _: _append(min(leaves, 100 * LEAST_BATCHES), 100),
            "batches of 4,000": lambda _: _append(leaves, 4_000),
            "verified": lambda _: _verify(many),
        },
    )
    bench.in_turns(
        "audit-proof",
        "proofs/s",
        {"one of a million": lambda run: _prove(many, bench.size(PROOFS, 20), run)},
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
    with _log_of(leaves) as store:
        begun = time.perf_counter()
        report = verify_log(store, ORIGIN, VERIFIER)
        seconds = time.perf_counter() - begun
        assert report.is_sound, report.problems
    return Measured(leaves / seconds, {"seconds_a_million": round(seconds / leaves * 1e6, 2)})


def _prove(leaves: int, proofs: int, run: int) -> Measured:
    """Each as `audit prove --entry` has it: the checkpoint read anew, the file made."""
    chance, times_ms, longest = random.Random(run), [], 0
    with _log_of(leaves) as store:
        begun = time.perf_counter()
        for _ in range(proofs):
            at = time.perf_counter()
            index = chance.randrange(leaves)
            reader = AuditReader.open(store, ORIGIN, VERIFIER)
            proof = Proof(
                reader.entry(index), index, reader.inclusion(index), reader.checkpoint
            ).text()
            times_ms.append((time.perf_counter() - at) * 1000)
            longest = max(longest, len(proof))
        seconds = time.perf_counter() - begun
    return Measured(proofs / seconds, {**spread(times_ms), "bytes": longest})


@contextmanager
def _log_of(leaves: int) -> Iterator[DirectoryLogStore]:
    """A log with so many leaves (in thousands), gone afterwards."""
    entries = [os.urandom(ENTRY_BYTES) for _ in range(4_000)]
    FOLDER.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=FOLDER))
    try:
        store = DirectoryLogStore(folder)
        log = AuditLog.open(store, ORIGIN, SIGNER)
        while log.size < leaves:
            log.append(entries)
        yield store
    finally:
        shutil.rmtree(folder)
