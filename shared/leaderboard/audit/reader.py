"""Reading a log: entries and proofs, each checked against what the log has signed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Self

from leaderboard.audit import tree
from leaderboard.audit.notes import Checkpoint, Verifier
from leaderboard.audit.store import LogStore
from leaderboard.audit.tiles import (
    CHECKPOINT,
    TILE_BITS,
    TILE_WIDTH,
    bundle_path,
    decode_bundle,
    levels,
    tile_path,
    tile_width,
)
from leaderboard.audit.tree import HASH_SIZE
from leaderboard.errors import LogCorruptError, NotFoundError

_TILES_KEPT: Final = 256


class AuditReader:
    """One log at one checkpoint. What it answers follows from the signature: every hash is
    compared on the way up to the root. Raises LogCorruptError, with the file and entry, where one
    does not fit. Not for several threads at once."""

    def __init__(self, store: LogStore, checkpoint: Checkpoint, verifier: Verifier) -> None:
        self.checkpoint: Final = checkpoint
        self.verifier: Final = verifier
        """The key that has signed the checkpoint, named by the log's origin."""
        self._store = store
        self._tiles: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._edge = read_edge(store, checkpoint)

    @classmethod
    def open(cls, store: LogStore, origin: str, verifier: Verifier) -> Self:
        """The log at its present checkpoint. Raises NotFoundError where there is none, NoteError
        for one that this key has not signed, LogCorruptError where the tiles do not fit it."""
        note = store.read(CHECKPOINT)
        if note is None:
            raise NotFoundError(f"there is no checkpoint of {origin}")
        verifier = verifier.named(origin)
        return cls(store, Checkpoint.parse(note, verifier), verifier)

    @property
    def size(self) -> int:
        return self.checkpoint.size

    def edge(self) -> list[bytes]:
        """By level, the hashes of the last tile that is not full; empty where all are full."""
        return list(self._edge)

    def entry(self, index: int) -> bytes:
        """Raises NotFoundError for an index that the log does not have."""
        self._want(index)
        return self.bundle(index // TILE_WIDTH)[index % TILE_WIDTH]

    def entries(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Entries from `start` to before `stop` (None: to the end), in order."""
        stop = self.size if stop is None else min(stop, self.size)
        for number in range(start // TILE_WIDTH, (stop + TILE_WIDTH - 1) // TILE_WIDTH):
            at = number * TILE_WIDTH
            yield from self.bundle(number)[max(0, start - at) : stop - at]

    def bundle(self, number: int) -> list[bytes]:
        """The entries from 256 × `number` on, as many as there are of 256."""
        hashes = self.tile(0, number)
        width = len(hashes) // HASH_SIZE
        path, entries = read_bundle(self._store, number, width, hashes)
        found = tree.leaf_hashes(entries)
        if found != hashes:
            first = first_difference(found, hashes)
            index = number * TILE_WIDTH + first
            raise LogCorruptError(path, f"entry {index} is not what was signed", index)
        return entries

    def hash_at(self, height: int, index: int) -> bytes:
        """Of the complete subtree of `1 << height` entries from `index << height` on."""
        level, rest = divmod(height, TILE_BITS)
        first = index << rest
        number, at = divmod(first, TILE_WIDTH)
        stop = (at + (1 << rest)) * HASH_SIZE
        return tree.root_of(self.tile(level, number)[at * HASH_SIZE : stop])

    def root(self, size: int) -> bytes:
        """The root that the log had at this size."""
        if not 0 <= size <= self.size:
            raise NotFoundError(f"{self.checkpoint.origin} has not had {size} entries yet")
        return tree.root_at(0, size, self.hash_at)

    def inclusion(self, index: int) -> list[bytes]:
        """Shows that this entry is in the log as the checkpoint has it. Raises NotFoundError."""
        self._want(index)
        return tree.inclusion_proof(index, self.size, self.hash_at)

    def consistency(self, before: int, after: int) -> list[bytes]:
        """Shows that the log of `before` entries is how that of `after` begins."""
        if not 0 <= before <= after <= self.size:
            raise NotFoundError(f"{self.checkpoint.origin} has not gone from {before} to {after}")
        return tree.consistency_proof(before, after, self.hash_at)

    def _want(self, index: int) -> None:
        if not 0 <= index < self.size:
            raise NotFoundError(f"{self.checkpoint.origin} has {self.size} entries, none {index}")

    def tile(self, level: int, number: int) -> bytes:
        """The hashes of a tile, known to be those that were signed."""
        if number == (self.size >> (TILE_BITS * level)) // TILE_WIDTH:
            return self._edge[level]
        key = (level, number)
        if (found := self._tiles.get(key)) is not None:
            self._tiles.move_to_end(key)
            return found
        above = self.tile(level + 1, number // TILE_WIDTH)
        at = number % TILE_WIDTH * HASH_SIZE
        path, content = read_tile(self._store, level, number, TILE_WIDTH)
        if tree.root_of(content) != above[at : at + HASH_SIZE]:
            raise LogCorruptError(path, "its hashes are not those that were signed")
        self._tiles[key] = content
        if len(self._tiles) > _TILES_KEPT:
            self._tiles.popitem(last=False)
        return content


def read_edge(store: LogStore, checkpoint: Checkpoint) -> list[bytes]:
    """The hashes of the last tile of each level, as far as it is not full: together they make up
    the root. Raises LogCorruptError where one is gone, or they do not."""
    edge, places, size = [], [], checkpoint.size
    for level in range(levels(size)):
        number = (size >> (TILE_BITS * level)) // TILE_WIDTH
        content = b""
        if width := tile_width(level, number, size):
            path, content = read_tile(store, level, number, width)
            places.append((path, number << (TILE_BITS * (level + 1))))
        edge.append(content)
    if edge_root(edge) != checkpoint.root:
        place, start = places[0] if places else (CHECKPOINT, 0)
        others = "".join(f" and {path}" for path, _ in places[1:])
        what = f"with it{others} the root is not the one that was signed"
        raise LogCorruptError(place, what, start)
    return edge


def edge_root(edge: list[bytes]) -> bytes:
    """The root of a log from the last tile of each level, as far as it is not full."""
    below = b""
    for hashes in edge:
        if hashes or below:
            below = tree.root_of(hashes + below)
    return below or tree.EMPTY_ROOT


def read_tile(store: LogStore, level: int, number: int, width: int) -> tuple[str, bytes]:
    """Path and hashes of a tile, unchecked. Where a partial one is gone, the full one began so."""
    path, content = _read(store, tile_path(level, number, width), tile_path(level, number))
    wanted = width * HASH_SIZE
    if path != tile_path(level, number, width):
        content = content[:wanted]
    if len(content) != wanted:
        raise LogCorruptError(path, f"has {len(content)} bytes for {width} hashes")
    return path, content


def read_bundle(
    store: LogStore, number: int, width: int, hashes: bytes | None
) -> tuple[str, list[bytes]]:
    """Path and entries of a bundle, unchecked but for how many they are.

    `hashes` are what the entries should hash to, if that is known: it tells which one is amiss."""
    path, content = _read(store, bundle_path(number, width), bundle_path(number))
    entries: list[bytes] = []
    problem = None
    try:
        for entry in decode_bundle(content):
            entries.append(entry)
    except ValueError as error:
        problem = str(error)
    if problem is None and path != bundle_path(number, width):
        del entries[width:]  # the full bundle, in the place of a partial one that is gone
    if problem is None and len(entries) != width:
        problem = f"has {len(entries)} entries, {width} were signed"
    if problem is not None:
        found = tree.leaf_hashes(entries[:width])
        first = min(len(entries), width) if hashes is None else first_difference(found, hashes)
        raise LogCorruptError(path, problem, number * TILE_WIDTH + first)
    return path, entries


def _read(store: LogStore, path: str, full: str) -> tuple[str, bytes]:
    for one in dict.fromkeys((path, full)):
        if (content := store.read(one)) is not None:
            return one, content
    raise LogCorruptError(path, "is missing")


def first_difference(found: bytes, wanted: bytes) -> int:
    """The number of the first hash that differs or is not there; of none, their number."""
    at, end = 0, max(len(found), len(wanted))
    while at < end and found[at : at + HASH_SIZE] == wanted[at : at + HASH_SIZE]:
        at += HASH_SIZE
    return at // HASH_SIZE
