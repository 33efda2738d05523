"""`leaderboard audit cosign` by its real command, with a witness on loopback."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from audits import SIGNER, entries_of
from leaderboard.adapters.directory_log import DirectoryLogStores
from leaderboard.audit.log import AuditLog
from leaderboard.audit.store import Shard
from running import command
from witnessing import WITNESS, witness_server

ORIGIN = "example.com/audit"
SHARDS = (Shard("wagers", 3), Shard("gdpr-events", 0))


def append(folder: Path, shard: Shard, entries: list[bytes]) -> None:
    store = DirectoryLogStores(folder / "log").shard(shard)
    log = AuditLog.open(store, f"{ORIGIN}/{shard}", SIGNER)
    log.append(entries[log.size :])


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "AUDIT_LOG_URL": (folder / "log").as_uri(),
        "AUDIT_LOG_ORIGIN": ORIGIN,
        "AUDIT_PUBLIC_KEY": str(SIGNER.named(ORIGIN).verifier),
    }
    done = command(["audit", *words], folder, settings)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_witness_signs_every_shard_and_a_fork_is_told(tmp_path: Path) -> None:
    entries, key = entries_of(700), str(WITNESS)
    with witness_server(SIGNER.verifier) as server:
        for size in (300, 700):
            for shard in SHARDS:
                append(tmp_path, shard, entries[:size])
            done = run(tmp_path, "cosign", server.url, key)
            assert (done.returncode, done.stdout.splitlines()) == (
                0, [f"{shard}: {WITNESS.name} has seen {size} entries" for shard in sorted(SHARDS)]
            )  # fmt: skip
        assert set(server.seen) == {f"{ORIGIN}/{shard}" for shard in SHARDS}
        kept = {path.name for path in (tmp_path / "log/wagers/3/cosigned").iterdir()}
        assert len(kept) == 2

        (tmp_path / "log").rename(tmp_path / "before")
        append(tmp_path, SHARDS[0], [entry + b" " for entry in entries])
        done = run(tmp_path, "cosign", server.url, key, "wagers/3")
        assert (done.returncode, done.stdout) == (1, f"fault: wagers/3: checkpoint: "
            f"{WITNESS.name} has seen another log of 700 entries\n")  # fmt: skip
    away = run(tmp_path, "cosign", server.url, key, "wagers/3")
    assert away.returncode == 1
    assert away.stdout.startswith("fault: wagers/3: witness at http://127.0.0.1")


@pytest.mark.parametrize(
    "words", [["cosign", "http://127.0.0.1:1", str(WITNESS)], ["export", "out"], ["verify"]]
)
def test_log_without_a_shard_is_no_success(tmp_path: Path, words: list[str]) -> None:
    """A timer that asks at the wrong place has to ring."""
    (tmp_path / "log").mkdir()
    done = run(tmp_path, *words)
    assert done.returncode == 1
    assert "there is no shard at AUDIT_LOG_URL" in done.stderr


def test_key_that_is_none_is_said_to_be_so(tmp_path: Path) -> None:
    done = run(tmp_path, "cosign", "http://127.0.0.1:1", "no-key")
    assert done.returncode != 0
    assert "is no key of the form" in done.stderr
