"""The Merkle tree of RFC 6962, section 2.1, over SHA-256.

Hashes that stand next to each other are one `bytes` of 32 for each, as they lie in a tile: hashing
them in pairs then takes no copying. Proofs ask for hashes of complete subtrees: `hash_at(height,
index)` is that of the leaves from `index << height`, `1 << height` of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Final

HASH_SIZE: Final = 32
EMPTY_ROOT: Final = sha256(b"").digest()

HashAt = Callable[[int, int], bytes]


def leaf_hash(entry: bytes) -> bytes:
    return sha256(b"\x00" + entry).digest()


def leaf_hashes(entries: Iterable[bytes]) -> bytes:
    """Those of all entries, one behind the other."""
    return b"".join([sha256(b"\x00" + entry).digest() for entry in entries])


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def root_of(hashes: bytes) -> bytes:
    """The root over subtrees of one size, of which only the last may be incomplete.

    A node without a right neighbour moves up as it is: that makes the RFC's tree, whose left side
    is the largest power of two that leaves something for the right."""
    if not hashes:
        return EMPTY_ROOT
    while (size := len(hashes)) > HASH_SIZE:
        paired = size - size % (2 * HASH_SIZE)
        hashes = (
            b"".join(
                [
                    sha256(b"\x01" + hashes[at : at + 2 * HASH_SIZE]).digest()
                    for at in range(0, paired, 2 * HASH_SIZE)
                ]
            )
            + hashes[paired:]
        )
    return hashes


def _split(size: int) -> int:
    """The largest power of two below `size`, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)


def complete_subtrees(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """(height, index) of the largest complete subtrees that make up leaves `start` to `stop`, left
    to right. `start` is a multiple of the largest power of two in their number."""
    while start < stop:
        height = (stop - start).bit_length() - 1
        yield height, start >> height
        start += 1 << height


def root_at(start: int, stop: int, hash_at: HashAt) -> bytes:
    """The root over leaves `start` to `stop`, which are as `complete_subtrees` wants them."""
    parts = [hash_at(*part) for part in complete_subtrees(start, stop)]
    if not parts:
        return EMPTY_ROOT
    root = parts.pop()
    while parts:
        root = node_hash(parts.pop(), root)
    return root


def inclusion_proof(index: int, size: int, hash_at: HashAt) -> list[bytes]:
    """The hashes beside the way from leaf `index` up to the root at `size` leaves."""
    if not 0 <= index < size:
        raise ValueError(f"no entry {index} in a log of {size}")
    proof: list[bytes] = []
    start, stop = 0, size
    while stop - start > 1:
        middle = start + _split(stop - start)
        if index < middle:
            proof.append(root_at(middle, stop, hash_at))
            stop = middle
        else:
            proof.append(root_at(start, middle, hash_at))
            start = middle
    proof.reverse()
    return proof


def consistency_proof(before: int, after: int, hash_at: HashAt) -> list[bytes]:
    """What shows that the log of `before` leaves is how the one of `after` leaves begins."""
    if not 0 <= before <= after:
        raise ValueError(f"a log of {after} entries does not continue one of {before}")
    if before in (0, after):
        return []
    proof: list[bytes] = []
    start, stop = 0, after
    while stop != before:
        middle = start + _split(stop - start)
        if before <= middle:
            proof.append(root_at(middle, stop, hash_at))
            stop = middle
        else:
            proof.append(root_at(start, middle, hash_at))
            start = middle
    if start > 0:  # else the reader has this hash: it is the root of the smaller log
        proof.append(root_at(start, stop, hash_at))
    proof.reverse()
    return proof


def root_from_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    """The root that the proof leads to from a leaf's hash (RFC 9162, 2.1.3.2); None where there
    are too many or too few hashes for this index and size."""
    if not 0 <= index < size:
        return None
    at, last, root = index, size - 1, leaf
    for beside in proof:
        if last == 0:
            return None
        if at & 1 or at == last:
            root = node_hash(beside, root)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            root = node_hash(root, beside)
        at, last = at >> 1, last >> 1
    return root if last == 0 else None


def includes(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether the leaf with this hash is number `index` of the log with this root and size."""
    return root_from_inclusion(leaf, index, size, proof) == root


def is_consistent(
    before: int, root_before: bytes, after: int, root_after: bytes, proof: Sequence[bytes]
) -> bool:
    """Whether the log of `before` leaves is how that of `after` begins (RFC 9162, 2.1.4.2)."""
    if not 0 <= before <= after:
        return False
    if before == after:
        return not proof and root_before == root_after
    if before == 0:
        return not proof and root_before == EMPTY_ROOT
    hashes = [*proof] if before & (before - 1) else [root_before, *proof]
    if not hashes:
        return False
    at, last = before - 1, after - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    smaller = larger = hashes[0]
    for beside in hashes[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            smaller, larger = node_hash(beside, smaller), node_hash(beside, larger)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            larger = node_hash(larger, beside)
        at, last = at >> 1, last >> 1
    return last == 0 and smaller == root_before and larger == root_after
