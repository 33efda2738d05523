"""Which file of a log holds what, as C2SP's tlog-tiles has it (c2sp.org/tlog-tiles).

A tile of level 0 holds the hashes of 256 entries, one of level n + 1 the roots of 256 full tiles of
level n; a bundle holds 256 entries themselves. What is not full yet lies under `.p/<width>`. Every
file's content follows from the entries alone, so writing it again changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from leaderboard.audit.tree import HASH_SIZE

TILE_WIDTH: Final = 256
TILE_BITS: Final = 8
LARGEST_ENTRY: Final = 0xFFFF
"""Bytes: a bundle tells an entry's length in two."""

CHECKPOINT: Final = "checkpoint"
COSIGNED: Final = "cosigned/"
"""Not of tlog-tiles: checkpoints that a witness has cosigned, by size and key."""

_PATH: Final = re.compile(
    r"tile/(entries|\d|[1-5]\d|6[0-3])/((?:x\d{3}/)*\d{3})(?:\.p/([1-9]\d*))?"
)


def _numbered(index: int) -> str:
    parts = [f"{index % 1000:03}"]
    while index := index // 1000:
        parts.append(f"x{index % 1000:03}")
    return "/".join(reversed(parts))


def _path(kind: str, index: int, width: int) -> str:
    return f"tile/{kind}/{_numbered(index)}" + ("" if width == TILE_WIDTH else f".p/{width}")


def tile_path(level: int, index: int, width: int = TILE_WIDTH) -> str:
    return _path(str(level), index, width)


def bundle_path(index: int, width: int = TILE_WIDTH) -> str:
    return _path("entries", index, width)


def parse_path(path: str) -> tuple[int | None, int, int] | None:
    """(level, index, width) of a tile, (None, index, width) of a bundle; None for other files."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    kind, number, partial = found.groups()
    level = None if kind == "entries" else int(kind)
    index, width = int(re.sub("[x/]", "", number)), int(partial or TILE_WIDTH)
    return (level, index, width) if _path(kind, index, width) == path else None


def tile_width(level: int, index: int, size: int) -> int:
    """How many hashes that tile has in a log of `size` entries: 0 where there is none."""
    return max(0, min(TILE_WIDTH, (size >> (TILE_BITS * level)) - index * TILE_WIDTH))


def levels(size: int) -> int:
    """How many levels of tiles a log of this size has."""
    return (size.bit_length() + TILE_BITS - 1) // TILE_BITS


def split_hashes(tile: bytes) -> list[bytes]:
    return [tile[at : at + HASH_SIZE] for at in range(0, len(tile), HASH_SIZE)]


def encode_bundle(entries: Iterable[bytes]) -> bytes:
    """The entries, each with its length before it. Each has at most LARGEST_ENTRY bytes."""
    return b"".join([len(entry).to_bytes(2, "big") + entry for entry in entries])


def decode_bundle(content: bytes) -> Iterator[bytes]:
    """The entries of a bundle. Raises ValueError where it breaks off within one."""
    at, end = 0, len(content)
    while at < end:
        stop = at + 2 + int.from_bytes(content[at : at + 2], "big")
        if at + 2 > end or stop > end:
            raise ValueError(f"breaks off at byte {end} of an entry that begins at {at}")
        yield content[at + 2 : stop]
        at = stop
