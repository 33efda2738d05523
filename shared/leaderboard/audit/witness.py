"""What a witness does for a log: it signs a checkpoint after it has seen that the log went on from
the one it signed before, so nobody can show it another history (c2sp.org/tlog-witness).

Here is what the log's side says and keeps; `adapters/http_witness.py` carries it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol

from leaderboard.audit.notes import Checkpoint, Verifier, cosignatures, encode_base64
from leaderboard.audit.reader import AuditReader
from leaderboard.audit.store import LogStore
from leaderboard.audit.tiles import CHECKPOINT, COSIGNED
from leaderboard.errors import LeaderboardError, LogCorruptError, NoteError, TransientError

_TRIES: Final = 3


class WitnessBehindError(LeaderboardError):
    """The witness has signed another size than we thought last; it says which."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the witness has signed {size} entries")
        self.size = size


class Witness(Protocol):
    """Somebody who cosigns checkpoints."""

    def add(self, request: bytes) -> bytes:
        """The cosignature lines that the request brings. Raises WitnessBehindError; NoteError
        where it refuses for good, TransientError where it is away."""


def request_for(reader: AuditReader, before: int) -> bytes:
    """That the log went on from `before` entries, which the witness signed last, to the
    reader's checkpoint. Raises NotFoundError where the log is not that far."""
    proof = reader.consistency(before, reader.size)
    lines = [f"old {before}", *(encode_base64(one) for one in proof)]
    return "\n".join(lines).encode() + b"\n\n" + reader.checkpoint.note


def cosign(store: LogStore, reader: AuditReader, witness: Witness, key: Verifier) -> Checkpoint:
    """Have the witness of this key sign the reader's checkpoint, and keep that beside the log.

    Raises NoteError where what it answers is no cosignature of it, or where it refuses;
    LogCorruptError where it has seen more of the log than there is, or another one."""
    before = _seen_by(store, key)
    for _ in range(_TRIES):
        if before > reader.size:
            raise _cut(reader, key.name, before)
        try:
            lines = witness.add(request_for(reader, before))
        except WitnessBehindError as error:
            if error.size == before:
                what = f"{key.name} has seen another log of {before} entries"
                raise LogCorruptError(CHECKPOINT, what) from None
            before = error.size
        else:
            return keep(store, reader, [key], reader.checkpoint.note + lines)
    raise TransientError(f"{key.name} signs this log for somebody else at the same time")


def keep(
    store: LogStore, reader: AuditReader, witnesses: Sequence[Verifier], note: bytes
) -> Checkpoint:
    """Keep a checkpoint that one of these witnesses has cosigned, after checking it all: the log's
    signature, the witness's, and that the log has what they sign.

    Raises NoteError, and LogCorruptError where the log is not the one that was cosigned."""
    checkpoint = Checkpoint.parse(note, reader.verifier)
    seen = cosignatures(note, witnesses)
    if not seen:
        raise NoteError("is not cosigned by any of the witnesses whose keys are known")
    for key, at_s in seen:
        if checkpoint.size > reader.size:
            raise _cut(reader, key.name, checkpoint.size)
        if reader.root(checkpoint.size) != checkpoint.root:
            what = f"this is not the log of which {key.name} has seen {checkpoint.size} entries"
            raise LogCorruptError(CHECKPOINT, what)
        store.write({f"{COSIGNED}{checkpoint.size:020}-{key.key_id.hex()}-{at_s}": note})
    return checkpoint


def _seen_by(store: LogStore, key: Verifier) -> int:
    """How many entries this witness has signed last, as far as is kept here: it knows better."""
    form = re.compile(rf"{COSIGNED}(\d{{20}})-{key.key_id.hex()}-\d+")
    found = (form.fullmatch(path) for path in store.paths(COSIGNED))
    return max((int(one[1]) for one in found if one), default=0)


def _cut(reader: AuditReader, witness: str, size: int) -> LogCorruptError:
    what = f"signs {reader.size} entries, {witness} has seen {size}"
    return LogCorruptError(CHECKPOINT, what, reader.size)
