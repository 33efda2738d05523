"""Audit logs for tests: their files in memory or in a folder, their settings, what they say."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from leaderboard.adapters.directory_log import DirectoryLogStores
from leaderboard.adapters.sql_pseudonyms import SqlPseudonyms
from leaderboard.audit.log import AuditLog
from leaderboard.audit.notes import Signer
from leaderboard.audit.reader import AuditReader
from leaderboard.audit.store import LogStore, Shard
from leaderboard.audit.tiles import CHECKPOINT
from leaderboard.audit_leaves import Leaf, decode, log_keys
from leaderboard.errors import FencedError, LogConflictError
from leaderboard.events import POSITION_CHANGES
from leaderboard.model import Offset, Place, TournamentId
from logs import TOMBSTONE_KEY

ORIGIN: Final = "tests.example/audit"
SIGNER: Final = Signer.generate(ORIGIN)


class MemoryLogStore:
    """A `LogStore` that is gone with the process."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def read(self, path: str) -> bytes | None:
        return self.files.get(path)

    def write(self, files: Mapping[str, bytes]) -> None:
        for path, content in files.items():
            if self.files.setdefault(path, content) != content:
                raise LogConflictError(path)

    def replace_checkpoint(self, before: bytes | None, after: bytes) -> None:
        with self._lock:
            if self.files.get(CHECKPOINT) != before:
                raise FencedError("another checkpoint is there")
            self.files[CHECKPOINT] = after

    def remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            self.files.pop(path, None)

    def paths(self, prefix: str = "") -> Iterator[str]:
        return iter([path for path in self.files if path.startswith(prefix)])


class NoProgress:
    """Of boards that nobody has."""

    def read(self, log_id: str, partition: int) -> None:
        return None


class MemoryLogs:
    """The shards' logs, over whatever `store_of` makes of a shard's store."""

    def __init__(self, store_of: Callable[[LogStore], LogStore] = lambda store: store) -> None:
        self.stores: dict[Place, MemoryLogStore] = {}
        self._store_of = store_of

    def open(self, place: Place) -> tuple[LogStore, AuditLog]:
        store = self._store_of(self.stores.setdefault(place, MemoryLogStore()))
        return store, AuditLog.open(store, f"{ORIGIN}/{place}", SIGNER)

    def leaves(self, place: Place) -> list[Leaf]:
        """What is signed, as it says of itself."""
        return leaves_in(self.stores.get(place, MemoryLogStore()), place)


def leaves_in(store: LogStore, place: Place, origin: str = ORIGIN, key: Any = SIGNER) -> list[Leaf]:
    """Every signed leaf of a shard, all of it verified."""
    if store.read(CHECKPOINT) is None:
        return []
    reader = AuditReader.open(store, f"{origin}/{place}", key.verifier.named(f"{origin}/{place}"))
    return [decode(raw) for raw in reader.entries(0, reader.size)]


def settings_in(folder: Path) -> dict[str, str]:
    """Settings of a log in this folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "AUDIT_LOG_URL": folder.absolute().as_uri(),
        "AUDIT_LOG_ORIGIN": ORIGIN,
        "AUDIT_SIGNING_KEY": SIGNER.private_text(),
    }


def read_from(folder: Path, place: Place) -> list[Leaf]:
    """Every signed leaf of a shard in a folder."""
    return leaves_in(DirectoryLogStores(folder).shard(Shard(*place)), place)


def auditor(
    module: Any,
    engine: Any,
    logs: MemoryLogs,
    progress: Any = None,
    *,
    changes_end: Callable[[TournamentId], tuple[Place, Offset]] | None = None,
    clock: Callable[[], float] | None = None,
    pseudonyms: Any = None,
) -> Any:
    """The auditor of archive (`module` is its main.py) over logs in memory."""
    ports = module.LogPorts(
        ORIGIN,
        logs.open,
        pseudonyms or SqlPseudonyms(engine, TOMBSTONE_KEY),
        progress or NoProgress(),
        changes_end or (lambda tournament_id: (Place(POSITION_CHANGES, 0), Offset(0))),
    )
    how = {} if clock is None else {"clock": clock}
    return module.Auditor(ports, log_keys(TOMBSTONE_KEY), **how)
