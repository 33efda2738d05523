"""Go's own packages, which are nothing of ours, read and check what we write: signed notes, tiles,
proofs, and (transparency.dev's) a witness's cosignature."""

from __future__ import annotations

import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audits import ORIGIN, SIGNER, VERIFIER, cosigned, entries_of, log_in, reader_of, witness_key
from deploy.checking.tools import Tools
from leaderboard.audit.notes import ED25519, check_note, encode_base64
from leaderboard.audit.proofs import Proof
from leaderboard.errors import NoteError

SOURCE = Path(__file__).parent / "go"


@pytest.fixture(scope="module")
def auditcheck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("go") / "auditcheck"
    command = [Tools().go(), "build", "-mod=readonly", "-trimpath", "-o", str(program), "."]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def run(program: Path, *args: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(program), *map(str, args)]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 700, 65_536, 66_000])
def test_log_is_read_and_checked(auditcheck: Path, tmp_path: Path, size: int) -> None:
    store = log_in(tmp_path, entries_of(size), batch=20_000)
    checkpoint = reader_of(store).checkpoint
    done = run(auditcheck, "log", tmp_path, str(VERIFIER))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{ORIGIN} {size} {encode_base64(checkpoint.root)}\n"


def test_log_that_was_changed_is_refused_there_too(auditcheck: Path, tmp_path: Path) -> None:
    """So the check above can fail."""
    log_in(tmp_path, entries_of(700))
    for path in ("checkpoint", "tile/0/001", "tile/1/000.p/2", "tile/entries/001"):
        content = (tmp_path / path).read_bytes()
        changed = bytearray(content)
        changed[len(content) // 2] ^= 1
        (tmp_path / path).write_bytes(changed)
        done = run(auditcheck, "log", tmp_path, str(VERIFIER))
        assert done.returncode == 1, f"{path} was changed"
        (tmp_path / path).write_bytes(content)
    assert run(auditcheck, "log", tmp_path, str(VERIFIER)).returncode == 0


def test_proof_file_is_believed_unless_it_was_changed(auditcheck: Path, tmp_path: Path) -> None:
    entries, chance, file = entries_of(900), random.Random(5), tmp_path / "proof"
    reader = reader_of(log_in(tmp_path / "log", entries))
    for index in [0, 255, 256, 899, *chance.sample(range(900), 6)]:
        proof = Proof(entries[index], index, reader.inclusion(index), reader.checkpoint)
        file.write_bytes(proof.text())
        done = run(auditcheck, "proof", file, str(VERIFIER))
        assert (done.stdout, done.stderr) == (f"{index} {entries[index].decode()}\n", "")
        file.write_bytes(proof.text().replace(b"index ", b"index 1", 1))
        assert run(auditcheck, "proof", file, str(VERIFIER)).returncode == 1


def test_note_that_go_has_signed_with_our_key_is_ours(auditcheck: Path) -> None:
    done = run(auditcheck, "sign", SIGNER.private_text(), text="some\ntext\n")
    assert done.stderr == ""
    note = done.stdout.encode()
    assert check_note(note, VERIFIER) == b"some\ntext\n"
    assert note == b"some\ntext\n\n" + SIGNER.sign(b"some\ntext\n").line()
    with pytest.raises(NoteError):
        check_note(note.replace(b"some", b"same"), VERIFIER)


def test_cosignature_is_one_for_others_too(auditcheck: Path, tmp_path: Path) -> None:
    reader = reader_of(log_in(tmp_path / "log", entries_of(300)))
    private = Ed25519PrivateKey.generate()
    key, file = witness_key(private, "witness.example/1"), tmp_path / "cosigned"
    file.write_bytes(cosigned(reader.checkpoint.note, private, key, 1_700_000_000))
    # This version of the package wants the key in a log's form, and derives the witness's id.
    plain = str(replace(key, kind=ED25519))
    arguments = ("log", tmp_path / "log", str(VERIFIER), plain, file)
    done = run(auditcheck, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    other = witness_key(Ed25519PrivateKey.generate(), "witness.example/1")
    file.write_bytes(cosigned(reader.checkpoint.note, private, other, 1_700_000_000))
    assert run(auditcheck, *arguments).returncode == 1
