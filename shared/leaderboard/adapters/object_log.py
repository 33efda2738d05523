"""The audit log's files in an object store that speaks S3, with conditional writes: a file that is
written once is put with `If-None-Match: *`, the checkpoint with `If-Match` of the one before."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
)
from obstore.store import ObjectStore, S3Store

from leaderboard.audit.store import LogStore, Shard, check_same
from leaderboard.audit.tiles import CHECKPOINT
from leaderboard.errors import FencedError, TransientError

# A store answers many at once as quickly as one.
_WRITERS: Final = ThreadPoolExecutor(16, thread_name_prefix="log-objects")
_RETRY_TIME: Final = timedelta(seconds=10)
_REQUEST_TIME: Final = timedelta(seconds=10)


class ObjectLogStore:
    """A LogStore below a prefix of a bucket. What is answered is what the store says is durable."""

    def __init__(self, bucket: ObjectStore, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix

    def read(self, path: str) -> bytes | None:
        found = self._get(path)
        return None if found is None else found[0]

    def _get(self, path: str) -> tuple[bytes, str | None] | None:
        """Content and version (the ETag)."""
        try:
            found = obstore.get(self._bucket, self._prefix + path)
            return found.bytes().to_bytes(), found.meta["e_tag"]
        except (NotFoundError, FileNotFoundError):
            return None
        except BaseError as error:
            raise _away(error) from error

    def write(self, files: Mapping[str, bytes]) -> None:
        list(_WRITERS.map(self._write, files.items()))

    def _write(self, file: tuple[str, bytes]) -> None:
        path, content = file
        if not self._put(path, content, "create"):
            check_same(self._prefix + path, self.read(path), content)

    def _put(self, path: str, content: bytes, mode: obstore.PutMode) -> bool:
        """False where the condition does not hold."""
        name = self._prefix + path
        try:
            obstore.put(self._bucket, name, content, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return False
        except BaseError as error:
            raise _away(error) from error
        return True

    def replace_checkpoint(self, before: bytes | None, after: bytes) -> None:
        mode: obstore.PutMode = "create"
        if before is not None:
            content, version = self._get(CHECKPOINT) or (None, None)
            if content == after:
                return  # an answer to an earlier try was lost
            if content != before:
                raise FencedError(f"{self._prefix}{CHECKPOINT} is not what we have written there")
            mode = {"e_tag": version}
        if not self._put(CHECKPOINT, after, mode) and self.read(CHECKPOINT) != after:
            raise FencedError(f"{self._prefix}{CHECKPOINT} was written by somebody else")

    def remove(self, paths: Iterable[str]) -> None:
        names = [self._prefix + path for path in paths]
        if not names:
            return
        try:
            # Who may write only keeps them: they cost their place and harm nobody.
            with suppress(PermissionDeniedError, NotFoundError):
                obstore.delete(self._bucket, names)
        except BaseError as error:
            raise _away(error) from error

    def paths(self, prefix: str = "") -> Iterator[str]:
        for name in _names(self._bucket, self._prefix + prefix):
            yield name.removeprefix(self._prefix)


class ObjectLogStores:
    """The logs of all shards below one prefix of a bucket."""

    def __init__(self, bucket: ObjectStore, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    @classmethod
    def at(cls, url: str) -> ObjectLogStores:
        """`s3://bucket/prefix`. Endpoint, region and credentials are those of the environment, by
        AWS's names (`AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ROLE_ARN` …). Asks nobody."""
        parts = urlsplit(url)
        bucket = S3Store(
            parts.netloc,
            client_options={
                "timeout": _REQUEST_TIME,
                # Whoever names a server of their own so means it.
                "allow_http": os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"),
            },
            retry_config={"max_retries": 3, "retry_timeout": _RETRY_TIME},
        )
        return cls(bucket, parts.path.strip("/"))

    def shard(self, shard: Shard) -> LogStore:
        return ObjectLogStore(self._bucket, f"{self._prefix}{shard}/")

    def shards(self) -> Sequence[Shard]:
        found = set()
        for topic in self._folders(self._prefix):
            for partition in self._folders(topic):
                name, number = partition.rstrip("/").rsplit("/", 2)[-2:]
                if number.isdecimal():
                    shard = Shard(name, int(number))
                    if self.shard(shard).read(CHECKPOINT) is not None:
                        found.add(shard)
        return sorted(found)

    def _folders(self, prefix: str) -> Iterator[str]:
        try:
            listed = obstore.list_with_delimiter(self._bucket, prefix or None)
        except BaseError as error:
            raise _away(error) from error
        for folder in listed["common_prefixes"]:
            yield f"{folder.rstrip('/')}/"


def _names(bucket: ObjectStore, prefix: str) -> Iterator[str]:
    # The store lists below whole parts of a path only.
    try:
        for chunk in obstore.list(bucket, prefix.rpartition("/")[0] or None):
            yield from (one["path"] for one in chunk if one["path"].startswith(prefix))
    except BaseError as error:
        raise _away(error) from error


def _away(error: BaseError) -> TransientError:
    # The whole text of the client shows requests and answers; its first line says enough.
    first = str(error).strip().split("\n", 1)[0][:300]
    return TransientError(f"the audit log's object store: {first}")
