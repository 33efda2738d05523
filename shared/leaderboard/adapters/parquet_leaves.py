"""The audit log as a Parquet file: a projection for queries, never the log itself.

Every row carries its leaf's number, hash and bytes, so whoever reads the file can check it against
the log, row by row. Parquet's own bytes differ from one writer to the next; the leaves' don't."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from leaderboard.audit.tree import leaf_hash
from leaderboard.audit_leaves import Leaf, canonical
from leaderboard.audit_rebuild import leaves_in
from leaderboard.model import Place

ROWS: Final = 50_000
"""Of a row group; some 50 MB while it is made."""
_NUMBERS: Final = (
    *("stake_minor", "win_minor", "score", "subscore", "delta"),
    *("sequence", "old_rank", "new_rank", "distance"),
)
"""Fields of `data` that have a column of their own."""
_TIME: Final = pa.timestamp("ms", tz="UTC")
SCHEMA: Final = pa.schema(
    [
        pa.field("leaf_index", pa.int64(), nullable=False),
        pa.field("leaf_hash", pa.binary(32), nullable=False),
        pa.field("leaf", pa.binary(), nullable=False),
        pa.field("topic", pa.string(), nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("logged_at", _TIME, nullable=False),
        pa.field("type", pa.string()),
        pa.field("time", _TIME),
        pa.field("source", pa.string()),
        pa.field("id", pa.string()),
        pa.field("number", pa.int64()),
        pa.field("tournament", pa.string()),
        pa.field("player", pa.string()),
        pa.field("refused", pa.string()),
        pa.field("commitment", pa.string(), nullable=False),
        pa.field("data", pa.string()),
        *(pa.field(name, pa.int64()) for name in _NUMBERS),
    ]
)


def write_leaves(
    file: Path,
    place: Place,
    entries: Iterable[bytes],
    checkpoint: bytes,
    told: Callable[[int], None] = lambda more: None,
) -> int:
    """Write a shard's leaves; how many there were. The file is there when all of them are in it.

    `checkpoint` goes into the file's metadata. Raises AuditError as `leaves_in`."""
    schema = SCHEMA.with_metadata({"checkpoint": checkpoint.decode()})
    being_written = file.with_name(f".{file.name}.new")
    rows = _rows(place, entries, told)
    count = 0
    try:
        with pq.ParquetWriter(being_written, schema, compression="zstd") as writer:
            while group := list(islice(rows, ROWS)):
                columns = zip(*group, strict=True)
                arrays = [
                    pa.array(column, field.type)
                    for column, field in zip(columns, schema, strict=True)
                ]
                writer.write_table(pa.table(arrays, schema=schema))
                count += len(group)
        being_written.replace(file)
    finally:
        being_written.unlink(missing_ok=True)
    return count


def _rows(
    place: Place, entries: Iterable[bytes], told: Callable[[int], None]
) -> Iterator[tuple[Any, ...]]:
    for index, (raw, leaf) in enumerate(leaves_in(place, entries, told)):
        yield (index, leaf_hash(raw), raw, *_columns(leaf))


def _columns(leaf: Leaf) -> tuple[Any, ...]:
    data = leaf.data
    start = (*leaf.place, leaf.offset, leaf.logged_ms)
    if data is None:
        nothing = (None,) * (1 + len(_NUMBERS))
        return (*start, *(None,) * 7, leaf.refused, leaf.commitment, *nothing)
    return (
        *start, leaf.kind, leaf.time_ms, leaf.source, leaf.id, leaf.number, leaf.tournament_id,
        leaf.player, None, leaf.commitment, canonical(data).decode(),
        *(data.get(name) for name in _NUMBERS),
    )  # fmt: skip
