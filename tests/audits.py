"""Logs for tests: a key, entries that look like leaves, a log of some size, a witness."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from leaderboard.adapters.directory_log import DirectoryLogStore
from leaderboard.audit.log import AuditLog
from leaderboard.audit.notes import COSIGNATURE, Signature, Signer, Verifier, split_note
from leaderboard.audit.reader import AuditReader
from leaderboard.audit.store import LogStore
from leaderboard.errors import FencedError, LogConflictError

ORIGIN = "example.com/audit/wagers/3"
SIGNER = Signer.generate(ORIGIN)
VERIFIER = SIGNER.verifier


def entries_of(size: int, seed: int = 1) -> list[bytes]:
    """Entries that all differ, of lengths as leaves have them."""
    chance = random.Random(seed)
    data = [chance.randbytes(chance.randint(0, 90)).hex() for _ in range(size)]
    return [f'{{"offset":{number},"data":"{one}"}}'.encode() for number, one in enumerate(data)]


def written(store: LogStore, entries: Sequence[bytes], batch: int = 300) -> AuditLog:
    """These entries appended, in batches of this size."""
    log = AuditLog.open(store, ORIGIN, SIGNER)
    for at in range(log.size, len(entries), batch):
        log.append(entries[at : at + batch])
    return log


def log_in(folder: Path, entries: Sequence[bytes], batch: int = 300) -> DirectoryLogStore:
    store = DirectoryLogStore(folder)
    written(store, entries, batch)
    return store


def reader_of(store: LogStore) -> AuditReader:
    return AuditReader.open(store, ORIGIN, VERIFIER)


def witness_key(private: Ed25519PrivateKey, name: str) -> Verifier:
    return Verifier(name, private.public_key().public_bytes_raw(), COSIGNATURE)


def cosigned(note: bytes, private: Ed25519PrivateKey, key: Verifier, at_s: int) -> bytes:
    """The note as this witness signs it, by hand: what checks it is another piece of code."""
    body, _ = split_note(note)
    said = f"cosignature/v1\ntime {at_s}\n".encode() + body
    content = at_s.to_bytes(8, "big") + private.sign(said)
    return note + Signature(key.name, key.key_id, content).line()


class MemoryLogStore:
    """Files in memory. No adapter: a base for stores that fail where a test wants it."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files = dict(files or {})

    def read(self, path: str) -> bytes | None:
        return self.files.get(path)

    def write(self, files: Mapping[str, bytes]) -> None:
        for path, content in files.items():
            if self.files.setdefault(path, content) != content:
                raise LogConflictError(path)

    def replace_checkpoint(self, before: bytes | None, after: bytes) -> None:
        there = self.files.get("checkpoint")
        if there not in (before, after):
            raise FencedError("checkpoint")
        self.files["checkpoint"] = after

    def remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            self.files.pop(path, None)

    def paths(self, prefix: str = "") -> Iterator[str]:
        yield from [path for path in self.files if path.startswith(prefix)]
