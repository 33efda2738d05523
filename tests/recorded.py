"""The archive without Kafka: its own function over a record in SQL, reading at its own pace."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import sqlalchemy as sa

from audit_logs import MemoryLogs, auditor
from hosting import FUNCTIONS
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.adapters.sql_engine import connect
from leaderboard.codec import encode_kafka
from leaderboard.events import WAGERS, Record
from leaderboard.fold import LogEntry
from leaderboard.hosts.kafka import Assignment, Batch
from leaderboard.model import Offset
from logs import LOG, TOMBSTONE_KEY


def archive_module() -> Any:
    """`functions/archive/main.py`."""
    source = FUNCTIONS / "archive" / "main.py"
    spec = importlib.util.spec_from_file_location("archive_main", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["archive_main"] = module  # dataclasses look for it there
    with patch.object(sys, "path", [str(source.parent), *sys.path]):
        spec.loader.exec_module(module)
    return module


def new_record(url: str) -> sa.Engine:
    """An empty record with today's schema."""
    engine = connect(url)
    tables.metadata.create_all(engine)
    return engine


def batch_of(entries: Sequence[LogEntry], next_offset: int | None = None) -> Batch:
    """Entries of `wagers` as the host would give them."""
    records = []
    for entry in entries:
        one = encode_kafka(entry.event, WAGERS)
        place = (0, entry.offset, entry.logged_at_ms)
        records.append(Record(WAGERS, one.key, one.value, one.headers, *place))
    end = entries[-1].offset + 1 if next_offset is None else next_offset
    return Batch(WAGERS, 0, LOG, list(entries), Offset(end), records)


class ArchiveReader:
    """Feeds an `Archivist` with the log, as the host does."""

    def __init__(
        self, module: Any, engine: sa.Engine, entries: Sequence[LogEntry], window: int, check: Any
    ) -> None:
        self.archive = SqlArchive(engine, TOMBSTONE_KEY, window)
        self.logs = MemoryLogs()
        audit = auditor(module, engine, self.logs)
        self.function = module.Archivist(self.archive, audit, check)
        self.entries = entries
        self.position = Offset(0)
        self.function.assigned(Assignment(WAGERS, 0, LOG, None, Offset(0), 1))

    def step(self, size: int) -> None:
        """One batch, if there is anything left."""
        part = [one for one in self.entries if one.offset >= self.position][:size]
        if part:
            batch = batch_of(part)
            for step in (self.function.begin, self.function.join, self.function.handle):
                step(batch)
            self.function.settle(batch)
            self.position = batch.next_offset

    def read_to(self, end: int) -> None:
        """Everything below `end`, at least."""
        while self.position < end and self.position <= self.entries[-1].offset:
            self.step(len([one for one in self.entries if self.position <= one.offset < end]) or 1)
