"""The writer of one log. Its order of writing is what makes it safe to stop at any instant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Self

from leaderboard.audit import tree
from leaderboard.audit.notes import Checkpoint, Signer
from leaderboard.audit.reader import AuditReader, edge_root
from leaderboard.audit.store import LogStore
from leaderboard.audit.tiles import (
    CHECKPOINT,
    LARGEST_ENTRY,
    TILE_BITS,
    TILE_WIDTH,
    bundle_path,
    encode_bundle,
    tile_path,
)
from leaderboard.audit.tree import HASH_SIZE
from leaderboard.errors import FencedError, LogConflictError, NotFoundError, TransientError

_FULL = TILE_WIDTH * HASH_SIZE


class AuditLog:
    """One log, open for appending. Entries go first, then the checkpoint that signs them, so what
    is signed is always there; files beyond it, of an append that broke off, count for nothing and
    are written again, the same bytes, when their entries come again.

    Two writers of one log do no harm as long as they append the same entries in the same order:
    the second one's checkpoint is refused with FencedError, and its log is to be opened anew. Not
    for several threads at once."""

    def __init__(self, store: LogStore, signer: Signer, reader: AuditReader | None) -> None:
        self._store = store
        self._signer = signer
        self._checkpoint = None if reader is None else reader.checkpoint
        self._edge: list[bytes] = [] if reader is None else reader.edge()
        self._last: bytes | None = None
        self._bundle: list[bytes] = []
        """Entries of the last bundle, as far as it is not full."""
        if reader is not None and reader.size:
            self._last = reader.entry(reader.size - 1)
            if reader.size % TILE_WIDTH:
                self._bundle = reader.bundle(reader.size // TILE_WIDTH)

    @classmethod
    def open(cls, store: LogStore, origin: str, signer: Signer) -> Self:
        """The log as it was signed last; an empty one where there is none.

        Raises NoteError for a checkpoint that this key has not signed, LogCorruptError where the
        end of the log is not what was signed."""
        signer = signer.named(origin)
        try:
            reader = AuditReader.open(store, origin, signer.verifier)
        except NotFoundError:
            reader = None
        return cls(store, signer, reader)

    @property
    def size(self) -> int:
        """How many entries are signed."""
        return 0 if self._checkpoint is None else self._checkpoint.size

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What was signed last; None before the first append."""
        return self._checkpoint

    def last_entry(self) -> bytes | None:
        """The last one that is signed, None in an empty log."""
        return self._last

    def append(self, entries: Sequence[bytes]) -> Checkpoint:
        """Add entries of at most LARGEST_ENTRY bytes, at least one. On return they are durable and
        signed. Whatever it raises, nothing has changed here, and the same entries can come again.

        Raises FencedError where somebody else has signed this log since, LogConflictError where
        other entries were written beyond its end, TransientError when the store is away."""
        if not entries:
            raise ValueError("nothing to append")
        for number, entry in enumerate(entries):
            if len(entry) > LARGEST_ENTRY:
                raise ValueError(f"entry {number} has {len(entry)} bytes, above {LARGEST_ENTRY}")
        files: dict[str, bytes] = {}
        bundle = self._add_bundles(entries, files)
        edge = self._add_tiles(tree.leaf_hashes(entries), files)
        size = self.size + len(entries)
        checkpoint = Checkpoint.signed(size, edge_root(edge), self._signer)
        before = self._checkpoint
        note = None if before is None else before.note
        try:
            self._store.write(files)
        except LogConflictError as error:
            if self._store.read(CHECKPOINT) == note:
                raise
            raise FencedError(f"{checkpoint.origin} was written by somebody else") from error
        self._store.replace_checkpoint(note, checkpoint.note)
        parts = self._parts()
        self._checkpoint, self._edge, self._bundle = checkpoint, edge, bundle
        self._last = entries[-1]
        self._clean(path for path in parts if path in files)
        return checkpoint

    def _parts(self) -> list[str]:
        """What the bundle and the tiles that are not full will be called when they are."""
        numbers = [self.size >> (TILE_BITS * (level + 1)) for level in range(len(self._edge))]
        tiles = [tile_path(level, number) for level, number in enumerate(numbers)]
        return [bundle_path(self.size // TILE_WIDTH), *tiles]

    def _clean(self, full: Iterable[str]) -> None:
        """Remove the partial files of what is full now. Nobody needs them, so nobody waits for
        a store that is away."""
        with suppress(TransientError):
            self._store.remove([one for path in full for one in self._store.paths(f"{path}.p/")])

    def _add_bundles(self, entries: Sequence[bytes], files: dict[str, bytes]) -> list[bytes]:
        """Put what the bundles gain among the files; the entries of the last that is not full."""
        bundle = [*self._bundle, *entries]
        number = self.size // TILE_WIDTH
        while len(bundle) >= TILE_WIDTH:
            files[bundle_path(number)] = encode_bundle(bundle[:TILE_WIDTH])
            del bundle[:TILE_WIDTH]
            number += 1
        if bundle:
            files[bundle_path(number, len(bundle))] = encode_bundle(bundle)
        return bundle

    def _add_tiles(self, hashes: bytes, files: dict[str, bytes]) -> list[bytes]:
        """The same for tiles: each that is full adds a hash to the level above."""
        edge = list(self._edge)
        level = 0
        while hashes:
            if level == len(edge):
                edge.append(b"")
            number = (self.size >> (TILE_BITS * level)) // TILE_WIDTH
            hashes = edge[level] + hashes
            roots = []
            while len(hashes) >= _FULL:
                files[tile_path(level, number)] = hashes[:_FULL]
                roots.append(tree.root_of(hashes[:_FULL]))
                hashes = hashes[_FULL:]
                number += 1
            if hashes:
                files[tile_path(level, number, len(hashes) // HASH_SIZE)] = hashes
            edge[level] = hashes
            hashes = b"".join(roots)
            level += 1
        return edge
