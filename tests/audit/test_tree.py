"""The tree against the RFC's known roots, another hand's implementation, and itself."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymerkle import InmemoryTree, verify_consistency, verify_inclusion
from pymerkle.hasher import MerkleHasher

from leaderboard.audit import tree

# Leaves and roots that the implementations of Certificate Transparency test themselves with.
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657",
                 "606162636465666768696a6b6c6d6e6f")
]  # fmt: skip
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
SIZES = st.integers(1, 700)


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + naive_root(leaves[:split]) + naive_root(leaves[split:])).digest()


def hashes_of(leaves: list[bytes]) -> tree.HashAt:
    def hash_at(height: int, index: int) -> bytes:
        start = index << height
        assert start + (1 << height) <= len(leaves), "a proof asks for complete subtrees only"
        return tree.root_of(tree.leaf_hashes(leaves[start : start + (1 << height)]))

    return hash_at


def leaves_of(size: int) -> list[bytes]:
    return [b"entry %d" % number for number in range(size)]


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_that_are_known(size: int) -> None:
    assert tree.root_of(tree.leaf_hashes(LEAVES[:size])).hex() == ROOTS[size]
    assert tree.root_at(0, size, hashes_of(LEAVES[:size])).hex() == ROOTS[size]


@settings(deadline=None)
@given(SIZES)
def test_roots_are_the_definitions(size: int) -> None:
    leaves = leaves_of(size)
    assert tree.root_of(tree.leaf_hashes(leaves)) == naive_root(leaves)


def other_tree(leaves: list[bytes]) -> InmemoryTree:
    other = InmemoryTree(algorithm="sha256")
    for leaf in leaves:
        other.append_entry(leaf)
    return other


@settings(deadline=None)
@given(SIZES, st.data())
def test_another_implementation_has_the_same_roots_and_takes_our_proofs(
    size: int, data: st.DataObject
) -> None:
    leaves = leaves_of(size)
    other = other_tree(leaves)
    root = tree.root_of(tree.leaf_hashes(leaves))
    assert other.get_root() == root

    index = data.draw(st.integers(0, size - 1))
    theirs = other.prove_inclusion(index + 1, size)
    verify_inclusion(MerkleHasher("sha256").hash_buff(leaves[index]), root, theirs)
    ours = tree.inclusion_proof(index, size, hashes_of(leaves))
    # Theirs has the leaf in front.
    assert [tree.leaf_hash(leaves[index]), *ours] == list(theirs.path)

    before = data.draw(st.integers(1, size))
    consistency = other.prove_consistency(before, size)
    small = tree.root_of(tree.leaf_hashes(leaves[:before]))
    verify_consistency(small, root, consistency)
    proof = tree.consistency_proof(before, size, hashes_of(leaves))
    assert tree.is_consistent(before, small, size, root, proof)


@settings(deadline=None)
@given(SIZES, st.data())
def test_a_proof_proves_this_entry_at_this_place_in_this_log_only(
    size: int, data: st.DataObject
) -> None:
    leaves = leaves_of(size)
    root = tree.root_of(tree.leaf_hashes(leaves))
    index = data.draw(st.integers(0, size - 1))
    proof = tree.inclusion_proof(index, size, hashes_of(leaves))
    leaf = tree.leaf_hash(leaves[index])
    assert tree.includes(leaf, index, size, proof, root)

    elsewhere = data.draw(st.integers(-1, size + 1).filter(lambda other: other != index))
    assert not tree.includes(leaf, elsewhere, size, proof, root)
    assert not tree.includes(tree.leaf_hash(b"another"), index, size, proof, root)
    assert not tree.includes(leaf, index, size, [*proof, leaf], root)
    # In a log twice as deep the way up is longer.
    assert not tree.includes(leaf, index, 2 << size.bit_length(), proof, root)
    assert not tree.includes(leaf, index, size, proof, tree.leaf_hash(root))
    if proof:
        assert not tree.includes(leaf, index, size, proof[:-1], root)
        at = data.draw(st.integers(0, len(proof) - 1))
        changed = [*proof[:at], bytes(32), *proof[at + 1 :]]
        assert not tree.includes(leaf, index, size, changed, root)


@settings(deadline=None)
@given(st.integers(0, 700), st.data())
def test_a_log_is_consistent_with_its_own_past_only(size: int, data: st.DataObject) -> None:
    leaves = leaves_of(size)
    root = tree.root_of(tree.leaf_hashes(leaves))
    before = data.draw(st.integers(0, size))
    small = tree.root_of(tree.leaf_hashes(leaves[:before]))
    proof = tree.consistency_proof(before, size, hashes_of(leaves))
    assert tree.is_consistent(before, small, size, root, proof)
    assert not tree.is_consistent(before, small, size, root, [*proof, root])
    assert not tree.is_consistent(before, small, size, tree.leaf_hash(root), proof) or before == 0
    assert not tree.is_consistent(before, tree.leaf_hash(small), size, root, proof)
    if before:
        forked = [*leaves[: before - 1], b"another"]
        other = tree.root_of(tree.leaf_hashes(forked))
        assert not tree.is_consistent(before, other, size, root, proof)
    if proof:
        assert not tree.is_consistent(before, small, size, root, proof[1:])
        assert not tree.is_consistent(before, small, size, root, proof[:-1])


def test_what_no_log_has_is_refused() -> None:
    nothing = hashes_of([])
    with pytest.raises(ValueError, match="no entry 3 in a log of 3"):
        tree.inclusion_proof(3, 3, nothing)
    with pytest.raises(ValueError, match="a log of 2 entries does not continue one of 3"):
        tree.consistency_proof(3, 2, nothing)
    assert not tree.is_consistent(3, bytes(32), 2, bytes(32), [])
