"""C2SP's tlog-proof: that an entry is in a log, as one text file (c2sp.org/tlog-proof).

The entry itself travels in the line `extra`, which the format leaves to its users: whoever checks
the file hashes it, so it is as certain as the rest. Nothing but the log's public key is needed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from leaderboard.audit import tree
from leaderboard.audit.notes import Checkpoint, Verifier, decode_base64, encode_base64
from leaderboard.audit.tree import HASH_SIZE
from leaderboard.errors import NoteError

_HEADER: Final = "c2sp.org/tlog-proof@v1"
_INDEX: Final = re.compile(r"index (0|[1-9]\d{0,18})")


@dataclass(frozen=True, slots=True)
class Proof:
    """Entry number `index` is `entry`, in the log that the checkpoint signs."""

    entry: bytes
    index: int
    path: Sequence[bytes]
    checkpoint: Checkpoint

    def text(self) -> bytes:
        lines = [_HEADER, f"extra {encode_base64(self.entry)}", f"index {self.index}"]
        lines += [encode_base64(one) for one in self.path]
        return "\n".join(lines).encode() + b"\n\n" + self.checkpoint.note

    @classmethod
    def parse(cls, text: bytes, verifier: Verifier) -> Self:
        """Read and check it, the key's name being the log's origin. Raises NoteError."""
        head, _, note = text.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise NoteError("is no tlog-proof: its head is not ASCII") from None
        if len(lines) < 3 or lines[0] != _HEADER or not lines[1].startswith("extra "):
            raise NoteError(f"is no {_HEADER} with its entry in the line extra")
        found = _INDEX.fullmatch(lines[2])
        if found is None:
            raise NoteError("has no line with the index of its entry")
        path = [decode_base64(line) for line in lines[3:]]
        if any(len(one) != HASH_SIZE for one in path):
            raise NoteError("has a hash that is no SHA-256")
        proof = cls(
            decode_base64(lines[1].removeprefix("extra ")),
            int(found[1]),
            path,
            Checkpoint.parse(note, verifier),
        )
        if not proof._holds():
            raise NoteError("its entry is not in the log that the checkpoint signs")
        return proof

    def _holds(self) -> bool:
        signed = self.checkpoint
        leaf = tree.leaf_hash(self.entry)
        return tree.includes(leaf, self.index, signed.size, self.path, signed.root)
