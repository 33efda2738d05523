"""The audit log's files in a directory of this machine, or of a volume that several share."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, NoReturn

from leaderboard.audit.store import LogStore, Shard, check_same
from leaderboard.audit.tiles import CHECKPOINT
from leaderboard.errors import FencedError, TransientError

_PASSING: Final = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EMFILE, errno.ENFILE}
_REMOVED: Final = errno.ENOENT
"""While it was written to: another writer was first, and removed the folder of a full tile."""
LOCK: Final = ".lock"
LOCK_SECONDS: Final = 5.0
"""So long a checkpoint is waited for that somebody else replaces: a few milliseconds, but for who
was stopped in the middle of it, and holds the lock until it goes on or ends."""
_LOCK_POLL_SECONDS: Final = 0.005
_NEW: Final = ".new-"
"""Prefix of files that are being written; one that a crash left behind counts for nothing."""

# Most of the time goes into waiting for the disk, which takes many at once as willingly as one.
_WRITERS: Final = ThreadPoolExecutor(8, thread_name_prefix="log-files")


def _refuse(error: OSError) -> NoReturn:
    if error.errno in _PASSING or error.errno == _REMOVED:
        raise TransientError(f"the audit log's directory: {error}") from error
    raise error


class DirectoryLogStore:
    """A LogStore in a folder. What was written is on the disk, not only in its cache."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._safe: set[Path] = set()
        """Folders whose names are on the disk, and those of all above them."""

    def read(self, path: str) -> bytes | None:
        try:
            return (self._folder / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            _refuse(error)

    def write(self, files: Mapping[str, bytes]) -> None:
        try:
            folders = {(self._folder / path).parent for path in files}
            self._make(folders)
            list(_WRITERS.map(self._write, files.items()))
            self._sync(folders)
        except OSError as error:
            _refuse(error)

    def _make(self, folders: Iterable[Path]) -> None:
        for folder in folders:
            if not folder.is_dir():
                self._safe.discard(folder)
                folder.mkdir(parents=True, exist_ok=True)

    def _sync(self, folders: Set[Path]) -> None:
        """What was put into these folders is on the disk. One that is there may have been made by
        an append that broke off before its name was safe, here or in another process."""
        fresh = folders - self._safe
        above = {parent for folder in fresh for parent in self._above(folder)}
        list(_WRITERS.map(_sync_folder, folders | above))
        self._safe |= fresh | above

    def _above(self, folder: Path) -> Iterator[Path]:
        """Up to one that is known to be safe, or the folder of all shards, which is never made."""
        for parent in folder.parents:
            yield parent
            if parent in self._safe or parent == self._folder.parent.parent:
                return

    def _write(self, file: tuple[str, bytes]) -> None:
        path, content = file
        place = self._folder / path
        new = _put_aside(place, content)
        try:
            # Unlike a rename, a link does not replace what another writer was first to put.
            os.link(new, place)
        except FileExistsError:
            check_same(str(place), self.read(path), content)
        finally:
            new.unlink(missing_ok=True)

    def replace_checkpoint(self, before: bytes | None, after: bytes) -> None:
        place = self._folder / CHECKPOINT
        try:
            self._make([self._folder])
            with self._alone():
                there = self.read(CHECKPOINT)
                if there not in (before, after):
                    raise FencedError(f"{place} is not what we have written there")
                if there != after:
                    _put_aside(place, after).replace(place)
                # Also where it was put before, and what came after that broke off.
                self._sync({self._folder})
        except OSError as error:
            _refuse(error)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._folder / LOCK).open("a") as lock:
            until = time.monotonic() + LOCK_SECONDS
            while not _is_taken(lock):
                if time.monotonic() >= until:
                    raise TransientError(f"{lock.name} is held by another writer")
                time.sleep(_LOCK_POLL_SECONDS)
            yield

    def remove(self, paths: Iterable[str]) -> None:
        try:
            for path in paths:
                place = self._folder / path
                place.unlink(missing_ok=True)
                if place.parent.name.endswith(".p"):
                    self._safe.discard(place.parent)
                    _remove_if_empty(place.parent)
        except OSError as error:
            _refuse(error)

    def paths(self, prefix: str = "") -> Iterator[str]:
        # Folders that can't hold such a path are not looked into.
        start = self._folder / prefix.rpartition("/")[0]
        for folder, _, names in os.walk(start):
            for name in names:
                path = (Path(folder) / name).relative_to(self._folder).as_posix()
                if path.startswith(prefix) and not name.startswith("."):
                    yield path


class DirectoryLogStores:
    """The logs of all shards below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def shard(self, shard: Shard) -> LogStore:
        return DirectoryLogStore(self._folder / str(shard))

    def shards(self) -> Sequence[Shard]:
        found = self._folder.glob(f"*/*/{CHECKPOINT}")
        parts = [(path.parts[-3], path.parts[-2]) for path in found]
        return sorted(Shard(topic, int(number)) for topic, number in parts if number.isdecimal())


def _is_taken(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _put_aside(place: Path, content: bytes) -> Path:
    """A new file beside `place`, whole and on the disk."""
    # Never one that a crash has left: it may be a second name of what is there by now, and pids
    # come again, in containers after every start.
    new = place.with_name(f"{_NEW}{place.name}-{secrets.token_hex(8)}")
    try:
        with new.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        new.unlink(missing_ok=True)  # each try has another name: a full disk would get fuller
        raise
    return new


def _sync_folder(folder: Path) -> None:
    """Names that were put into a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST):
            raise
