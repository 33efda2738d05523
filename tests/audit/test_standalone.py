"""A proof is checked by an auditor who has a file, a public key and one script: nothing of ours."""

from __future__ import annotations

import ast
import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audits import (
    ORIGIN,
    SIGNER,
    MemoryLogStore,
    cosigned,
    entries_of,
    reader_of,
    witness_key,
    written,
)
from leaderboard.audit.notes import Signer, Verifier
from leaderboard.audit.proofs import Proof
from leaderboard.errors import NoteError

SCRIPT = Path(__file__).parents[2] / "docs/audit/verify.py"
KEY = SIGNER.named("example.com/audit").verifier
"""As it is published; the shard's log signs as `example.com/audit/wagers/3`."""


def verifier() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def proof_of(size: int, index: int) -> Proof:
    store = MemoryLogStore()
    written(store, entries_of(size))
    reader = reader_of(store)
    return Proof(reader.entry(index), index, reader.inclusion(index), reader.checkpoint)


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """As an auditor would, in a folder with nothing else in it."""
    command = [sys.executable, "-I", "verify.py", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "verify.py").write_bytes(SCRIPT.read_bytes())
    (tmp_path / "proof").write_bytes(proof_of(700, 299).text())
    (tmp_path / "key").write_text(f"{KEY}\n", "utf-8")
    return tmp_path


def test_script_is_short_and_wants_one_package() -> None:
    text = SCRIPT.read_text("utf-8")
    assert len(text.splitlines()) < 200
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {one.name.split(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"cryptography"}


def test_proof_is_believed_with_the_key_alone(folder: Path) -> None:
    for key in ("key", str(KEY), str(SIGNER.verifier)):
        done = run(folder, "proof", key)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"PROVED: entry 299 of the 700 entries of {ORIGIN}")
        assert entries_of(700)[299].decode() in done.stdout


def test_what_is_wrong_is_said(folder: Path) -> None:
    other = Signer.generate("example.com/audit").verifier
    proof = (folder / "proof").read_text("utf-8")
    (folder / "nothing").write_bytes(b"\xff\n")
    (folder / "changed").write_text(proof.replace("index 299", "index 298"), "utf-8")
    for args, said in [
        (("proof", str(other)), f"the checkpoint is not signed by {ORIGIN} with the key given"),
        (("proof", str(KEY.named("example.com/a"))), "the key is that of example.com/a"),
        (("proof", "example.com/audit"), "the key is not of the form"),
        (("proof", f"{KEY}="), "base64"),
        (("changed", "key"), "the entry is not in the log that the checkpoint signs"),
        (("nothing", "key"), "can't decode byte 0xff"),
        (("missing", "key"), "No such file"),
        (("key", "key"), "this is not a proof file"),
    ]:
        done = run(folder, *args)
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("size", "index"), [(1, 0), (2, 1), (5, 4), (257, 256), (700, 299)])
def test_every_flipped_bit_is_refused(size: int, index: int) -> None:
    module, text = verifier(), proof_of(size, index).text()
    key = module.read_key(str(KEY), module.LOG)
    assert module.verify(text.decode(), key, [])[1] == index
    for at in range(len(text)):
        for bit in range(8):
            changed = bytearray(text)
            changed[at] ^= 1 << bit
            with pytest.raises((module.RefusedError, UnicodeDecodeError)):
                module.verify(bytes(changed).decode("utf-8"), key, [])
            with pytest.raises(NoteError):
                Proof.parse(bytes(changed), SIGNER.verifier)


def test_every_cut_and_every_doubled_line_is_refused() -> None:
    module, text = verifier(), proof_of(300, 7).text().decode()
    key = module.read_key(str(KEY), module.LOG)
    lines = text.split("\n")
    changed = [text[:stop] for stop in range(len(text))]
    changed += ["\n".join([*lines[:at], *lines[at + 1 :]]) for at in range(len(lines))]
    # The log's own signature twice is the one line that may be.
    changed += ["\n".join([*lines[:at], one, *lines[at:]]) for at, one in enumerate(lines[:-2])]
    for one in changed:
        with pytest.raises(module.RefusedError):
            module.verify(one, key, [])
        with pytest.raises(NoteError):
            Proof.parse(one.encode(), SIGNER.verifier)


def test_both_verifiers_agree_on_random_proofs() -> None:
    module, chance = verifier(), random.Random(1)
    key = module.read_key(str(KEY), module.LOG)
    for _ in range(30):
        size = chance.randint(1, 900)
        proof = proof_of(size, chance.randrange(size))
        assert Proof.parse(proof.text(), SIGNER.verifier) == proof
        found = module.verify(proof.text().decode(), key, [])
        assert found[:4] == (proof.entry, proof.index, size, ORIGIN)


def test_witness_is_wanted_where_it_is_asked_for(folder: Path) -> None:
    private, at_s = Ed25519PrivateKey.generate(), 1_700_000_000
    witness = witness_key(private, "witness.example/1")
    plain = (folder / "proof").read_bytes()
    head, _, note = plain.partition(b"\n\n")
    seen = head + b"\n\n" + cosigned(note, private, witness, at_s)
    (folder / "seen").write_bytes(seen)
    done = run(folder, "seen", "key", "--witness", str(witness))
    assert done.returncode == 0
    assert "Seen by witness.example/1 at 2023-11-14T22:13:20+00:00." in done.stdout
    assert "Not checked" not in done.stdout
    done = run(folder, "seen", "key")
    assert "Not checked: a signature of witness.example/1, whose key was not given." in done.stdout
    assert run(folder, "proof", "key", "--witness", str(witness)).returncode == 1
    stranger = witness_key(Ed25519PrivateKey.generate(), "witness.example/1")
    assert run(folder, "seen", "key", "--witness", str(stranger)).returncode == 1
    module = verifier()
    key, ours = module.read_key(str(KEY), 1), module.read_key(str(witness), 4)
    for at in range(len(seen)):
        changed = bytearray(seen)
        changed[at] ^= 1 << at % 8
        with pytest.raises((module.RefusedError, UnicodeDecodeError)):
            module.verify(bytes(changed).decode("utf-8"), key, [ours])


def test_key_of_one_kind_is_none_of_the_other() -> None:
    module = verifier()
    with pytest.raises(module.RefusedError, match="kind 4"):
        module.read_key(str(KEY), module.WITNESS)
    wrong = str(KEY).replace(KEY.key_id.hex(), "00000000")
    with pytest.raises(module.RefusedError, match="does not have the id"):
        module.read_key(wrong, module.LOG)
    assert Verifier.parse(str(KEY)).public == module.read_key(str(KEY), module.LOG)[1]
