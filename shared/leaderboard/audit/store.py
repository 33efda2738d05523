"""Where logs are kept: the port, filled by a directory and by an object store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from leaderboard.errors import LogConflictError, TransientError


class Shard(NamedTuple):
    """One log: all that one partition of a topic says. As text, and in paths: `wagers/3`."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class LogStore(Protocol):
    """The files of one shard's log, by their paths in it (see `tiles`).

    Any number may read and write at once; `replace_checkpoint` decides whose writing counts.
    Every call blocks, is safe to repeat, and raises TransientError when the store is away."""

    def read(self, path: str) -> bytes | None:
        """The whole file, None where there is none."""

    def write(self, files: Mapping[str, bytes]) -> None:
        """Make these files, in any order, each at once and whole; all are durable on return.

        Each is written once: it may be there with the same bytes. Raises LogConflictError where
        it has others."""

    def replace_checkpoint(self, before: bytes | None, after: bytes) -> None:
        """Put this checkpoint in the place of that one (None: of none), durably and in one step.

        Raises FencedError where another one is there: somebody else writes this log."""

    def remove(self, paths: Iterable[str]) -> None:
        """These files are not needed any more. A store that may not delete keeps them."""

    def paths(self, prefix: str = "") -> Iterator[str]:
        """The paths of all files that begin so, in any order."""


class LogStores(Protocol):
    """The logs of all shards, by topic and partition."""

    def shard(self, shard: Shard) -> LogStore:
        """That shard's store, whether there is a log in it or not. Asks nobody."""

    def shards(self) -> Sequence[Shard]:
        """The shards that have a checkpoint, in order."""


def check_same(path: str, there: bytes | None, content: bytes) -> None:
    """Of a file that could not be made as there was one. Raises LogConflictError where it has other
    bytes; TransientError where it can't be seen: somebody is writing it (S3 then answers 409), or
    has just removed it. Both will have changed by the next try."""
    if there is None:
        raise TransientError(f"the audit log's store: {path} is being written by somebody else")
    if there != content:
        raise LogConflictError(path)
