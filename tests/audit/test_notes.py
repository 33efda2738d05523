"""Signed notes: keys, checkpoints and cosignatures, with an example that others have signed."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audits import ORIGIN, SIGNER, cosigned, witness_key
from leaderboard.audit.notes import (
    Checkpoint,
    Signer,
    Verifier,
    check_note,
    cosignatures,
    encode_base64,
    split_note,
)
from leaderboard.errors import NoteError

# The example of the format's own description, with the key that signed it.
EXAMPLE_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
EXAMPLE = """\
If you think cryptography is the answer to your problem,
then you don't know what your problem is.

— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=
""".encode()  # noqa: E501
CHECKPOINT = Checkpoint.signed(5, bytes(range(32)), SIGNER)


def test_example_of_the_format_verifies() -> None:
    body = check_note(EXAMPLE, Verifier.parse(EXAMPLE_KEY))
    assert body.endswith(b"what your problem is.\n")


def test_keys_survive_their_text() -> None:
    assert Verifier.parse(str(SIGNER.verifier)) == SIGNER.verifier
    again = Signer.parse(SIGNER.private_text())
    assert again.verifier == SIGNER.verifier
    assert again.sign(b"x") == SIGNER.sign(b"x")


def test_private_key_is_shown_by_nothing_but_its_own_name() -> None:
    seed = SIGNER.private_text().rsplit("+", 1)[1]
    for shown in (repr(SIGNER), str(SIGNER), f"{SIGNER}", repr([SIGNER])):
        assert seed not in shown
    wrong = SIGNER.private_text().replace(SIGNER.verifier.key_id.hex(), "00000000")
    with pytest.raises(NoteError, match="has another id") as error:
        Signer.parse(wrong)
    assert seed not in str(error.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is no key of the form"),
        ("example.com/audit", "is no key of the form"),
        ("example.com/audit+12345678", "is no key of the form"),
        ("example.com/audit+1234567+AQ==", "is no key of the form"),
        ("example.com/audit+12345678+!!", "is no base64"),
        ("example.com/audit+12345678+AQ==", "is no Ed25519 key"),
        (f"example.com/audit+12345678+{encode_base64(bytes(33))}", "is no Ed25519 key"),
        (f" +12345678+{encode_base64(bytes([1]) + bytes(32))}", "is no name of a key"),
        (str(Verifier(ORIGIN, SIGNER.verifier.public, 2)), "is no Ed25519 key"),
        (str(SIGNER.verifier).replace(SIGNER.verifier.key_id.hex(), "0" * 8), "another id"),
        (str(SIGNER.named("example.com/other").verifier).replace("other", "audit"), "another id"),
    ],
    ids=range(11),  # some have the key of this run, and workers have to agree on names
)
def test_key_that_is_none_is_refused(text: str, what: str) -> None:
    with pytest.raises(NoteError, match=what):
        Verifier.parse(text)


def test_public_key_is_no_private_one() -> None:
    with pytest.raises(NoteError, match=r"does not begin with PRIVATE\+KEY\+"):
        Signer.parse(str(SIGNER.verifier))


def test_checkpoint_is_read_as_it_was_signed() -> None:
    assert Checkpoint.parse(CHECKPOINT.note, SIGNER.verifier) == CHECKPOINT
    lines = CHECKPOINT.note.decode().split("\n")
    assert lines[:4] == [ORIGIN, "5", encode_base64(bytes(range(32))), ""]
    assert lines[4].startswith(f"— {ORIGIN} ")


def test_every_flipped_bit_of_a_checkpoint_is_refused() -> None:
    for at in range(len(CHECKPOINT.note)):
        for bit in range(8):
            changed = bytearray(CHECKPOINT.note)
            changed[at] ^= 1 << bit
            with pytest.raises(NoteError):
                Checkpoint.parse(bytes(changed), SIGNER.verifier)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (f"{ORIGIN}\n5\n", "origin, size and root"),
        (f"{ORIGIN}\n05\n{encode_base64(bytes(32))}\n", "origin, size and root"),
        (f"{ORIGIN}\n-5\n{encode_base64(bytes(32))}\n", "origin, size and root"),
        (f"{ORIGIN}\n{10**30}\n{encode_base64(bytes(32))}\n", "origin, size and root"),
        (f"{ORIGIN}\n5\n{encode_base64(bytes(31))}\n", "no SHA-256"),
        (f"{ORIGIN}\n5\nAAAB\n", "no SHA-256"),
        (f"{ORIGIN}\n5\n?\n", "no base64"),
        (f"example.com/b\n5\n{encode_base64(bytes(32))}\n", "is of the log 'example.com/b'"),
    ],
)
def test_signed_text_that_is_no_checkpoint_is_refused(body: str, what: str) -> None:
    note = body.encode() + b"\n" + SIGNER.sign(body.encode()).line()
    with pytest.raises(NoteError, match=what):
        Checkpoint.parse(note, SIGNER.verifier)


def test_another_key_under_the_same_name_is_not_believed() -> None:
    with pytest.raises(NoteError, match=rf"is not signed by {ORIGIN}"):
        Checkpoint.parse(CHECKPOINT.note, Signer.generate(ORIGIN).verifier)


def test_other_signatures_are_passed_over() -> None:
    note = CHECKPOINT.note + Signer.generate("example.com/else").sign(b"x").line()
    assert Checkpoint.parse(note, SIGNER.verifier).size == 5


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"text\n",
        b"text\n\n",
        "text\n\n— name\n".encode(),
        "te\rxt\n\n— a AAAAAAA=\n".encode(),
        b"\xff\n\n\xe2\x80\x94 a AAAAAAA=\n",
        "text\n\n— a AAAAAAA=".encode(),
        "text\n\n— a AAAA\n".encode(),
        "text\n\n— a+b AAAAAAA=\n".encode(),
        b"x" * 1_000_001,
        b"text\n\n" + "— a AAAAAAA=\n".encode() * 101,
    ],
)
def test_text_that_is_no_note_is_refused(note: bytes) -> None:
    with pytest.raises(NoteError):
        split_note(note)


def test_cosignature_of_a_witness_is_checked_with_its_time() -> None:
    private = Ed25519PrivateKey.generate()
    witness, other = witness_key(private, "witness.example/1"), Verifier.parse(EXAMPLE_KEY)
    note = cosigned(CHECKPOINT.note, private, witness, 1_700_000_000)
    assert [(one.witness, one.at_s) for one in cosignatures(note, [other, witness])] == [
        (witness, 1_700_000_000)
    ]
    assert cosignatures(CHECKPOINT.note, [witness]) == []
    assert cosignatures(note, [other]) == []
    # Its time is signed with it, and so is the text.
    line = note.decode().split("\n")[-2]
    content = bytearray(split_note(note)[1][-1].content)
    content[7] ^= 1
    moved = CHECKPOINT.note + split_note(note)[1][-1]._replace(content=bytes(content)).line()
    elsewhere = Checkpoint.signed(6, bytes(32), SIGNER).note + f"{line}\n".encode()
    for bad in (moved, elsewhere):
        with pytest.raises(NoteError, match=r"the cosignature of witness.example/1 is not of"):
            cosignatures(bad, [witness])


def test_witness_key_survives_its_text() -> None:
    witness = witness_key(Ed25519PrivateKey.generate(), "witness.example/1")
    assert Verifier.parse(str(witness)) == witness
