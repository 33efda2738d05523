"""The audit log's files in a directory of this machine, or of a volume that several share."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

from leaderboard.audit.store import LogStore, Shard
from leaderboard.audit.tiles import CHECKPOINT
from leaderboard.errors import FencedError, LogConflictError, TransientError

_PASSING: Final = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EMFILE, errno.ENFILE}
_REMOVED: Final = errno.ENOENT
"""While it was written to: another writer was first, and removed the folder of a full tile."""
_LOCK: Final = ".lock"
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
            made = {folder for one in sorted(folders) for folder in self._make(one)}
            list(_WRITERS.map(self._write, files.items()))
            list(_WRITERS.map(_sync_folder, folders | made))
        except OSError as error:
            _refuse(error)

    def _make(self, folder: Path) -> Iterator[Path]:
        """Make a folder; those that have a new name in them by that."""
        if not folder.is_dir():
            yield from self._make(folder.parent)
            folder.mkdir(exist_ok=True)
            yield folder.parent

    def _write(self, file: tuple[str, bytes]) -> None:
        path, content = file
        place = self._folder / path
        new = _put_aside(place, content)
        try:
            # Unlike a rename, a link does not replace what another writer was first to put.
            os.link(new, place)
        except FileExistsError:
            if self.read(path) != content:
                raise LogConflictError(str(place)) from None
        finally:
            new.unlink(missing_ok=True)

    def replace_checkpoint(self, before: bytes | None, after: bytes) -> None:
        place = self._folder / CHECKPOINT
        try:
            made = {*self._make(self._folder)}
            with self._alone():
                there = self.read(CHECKPOINT)
                if there == after:
                    return  # it was put, and what came after that broke off
                if there != before:
                    raise FencedError(f"{place} is not what we have written there")
                _put_aside(place, after).replace(place)
                for folder in {self._folder, *made}:
                    _sync_folder(folder)
        except OSError as error:
            _refuse(error)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._folder / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def remove(self, paths: Iterable[str]) -> None:
        try:
            for path in paths:
                place = self._folder / path
                place.unlink(missing_ok=True)
                if place.parent.name.endswith(".p"):
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


def _put_aside(place: Path, content: bytes) -> Path:
    """A new file beside `place`, whole and on the disk."""
    new = place.with_name(f"{_NEW}{place.name}-{os.getpid()}-{threading.get_ident()}")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
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
