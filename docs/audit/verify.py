#!/usr/bin/env python3
"""Check offline, with nothing but the log's public key, that an entry is in the audit log.

    python verify.py PROOF KEY [--witness KEY]...

PROOF is a file of `leaderboard audit prove`, in the format c2sp.org/tlog-proof. KEY is the log's
public key as its operator has published it, or a file that holds it:

    example.com/audit+1a2b3c4d+AQ...        <name>+<id>+<base64 of a byte 1 and the Ed25519 key>

A log has a part for each stream of events, which signs with this one key as <name>/<stream>. With
--witness the checkpoint must also bear the cosignature (c2sp.org/tlog-cosignature) of that key.

What is checked, in this order:
  1. the checkpoint at the end of the file is signed by the key: so many entries, this root hash;
  2. the entry in the file, hashed together with the hashes beside its way up the Merkle tree of
     RFC 6962, leads to that root: it is entry number INDEX of the log, and no byte of it differs.

Prints what was proved and ends with status 0; else says what is wrong and ends with status 1.
Wants Python 3.11 or later and the package `cryptography`; reads no other file and no network.
"""

import argparse
import base64
import binascii
import hashlib
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

LOG, WITNESS = 1, 4  # the kinds of keys
NUMBER = "(0|[1-9][0-9]{0,18})"


class RefusedError(Exception):
    """The file proves nothing; the text says why."""


def from_base64(text):
    """The bytes, if this is the one way to write them: a changed letter never goes unseen."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(f"this is not base64: {text[:40]}") from None
    if base64.b64encode(content).decode() != text:
        raise RefusedError(f"this base64 has loose bits: {text[:40]}")
    return content


def matching(pattern, line, what):
    found = re.fullmatch(pattern, line)
    if found is None:
        raise RefusedError(f"where {what} should be, the file has: {line[:60]!r}")
    return found[1]


def key_id(name, kind, public):
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]


def read_key(text, kind):
    """(name, 32 bytes) of a key in its text form."""
    if Path(text).is_file():
        text = Path(text).read_text("utf-8").strip()
    parts = text.split("+", 2)
    if len(parts) != 3 or not re.fullmatch(r"\S+", parts[0]):
        raise RefusedError("the key is not of the form <name>+<id>+<base64>")
    content = from_base64(parts[2])
    if len(content) != 33 or content[0] != kind:
        raise RefusedError(f"the key of {parts[0]} is not an Ed25519 key of kind {kind}")
    if key_id(parts[0], kind, content[1:]).hex() != parts[1]:
        raise RefusedError(f"the key of {parts[0]} does not have the id that it says")
    return parts[0], content[1:]


def signature_by(name, kind, public, signatures):
    """The signature of this key among (name, bytes)."""
    wanted = key_id(name, kind, public)
    for signer, content in signatures:
        if signer == name and content[:4] == wanted:
            return content[4:]
    raise RefusedError(f"the checkpoint is not signed by {name} with the key given")


def check_signature(name, public, signature, message):
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        raise RefusedError(f"the signature of {name} does not belong to this checkpoint") from None


def root_of(entry, index, size, path):
    """Up the tree from the entry (RFC 9162, 2.1.3.2): 0 before an entry, 1 before two hashes."""
    if index >= size:
        raise RefusedError(f"entry {index} can't be in a log of {size}")
    here, last = index, size - 1
    current = hashlib.sha256(b"\x00" + entry).digest()
    for beside in path:
        if last == 0:
            raise RefusedError("there are more hashes than the way up has steps")
        if here % 2 == 1 or here == last:
            current = hashlib.sha256(b"\x01" + beside + current).digest()
            while here % 2 == 0 and here != 0:  # no neighbour on the right: straight up
                here, last = here // 2, last // 2
        else:
            current = hashlib.sha256(b"\x01" + current + beside).digest()
        here, last = here // 2, last // 2
    if last != 0:
        raise RefusedError("there are fewer hashes than the way up has steps")
    return current


def verify(text, key, witnesses):
    """What the file proves: (entry, index, size, log, [(witness, time)], [who else signed]).

    Raises RefusedError."""
    name, public = key
    # The file: a head, an empty line, the checkpoint's text, an empty line, its signatures.
    parts = text.split("\n\n")
    if len(parts) != 3 or not parts[2].endswith("\n"):
        raise RefusedError("this is not a proof file: head, checkpoint and signatures")
    head, checkpoint = parts[0].split("\n"), parts[1] + "\n"
    if len(head) < 3 or head[0] != "c2sp.org/tlog-proof@v1":
        raise RefusedError("this is not a proof file of c2sp.org/tlog-proof@v1")
    entry = from_base64(matching("extra (.*)", head[1], "the entry"))
    index = int(matching("index " + NUMBER, head[2], "the index"))
    path = [from_base64(line) for line in head[3:]]
    if any(len(one) != 32 for one in path):
        raise RefusedError("a hash on the way is not 32 bytes long")
    signatures = []
    for line in parts[2][:-1].split("\n"):
        signer = matching("— ([^ ]+) [^ ]+", line, "a signature")
        signatures.append((signer, from_base64(line.rsplit(" ", 1)[1])))
    lines = checkpoint.split("\n")
    if len(lines) < 4:
        raise RefusedError("the checkpoint is not a log's name, size and root")
    log, size, root = lines[0], int(matching(NUMBER, lines[1], "the size")), from_base64(lines[2])
    if log != name and not log.startswith(name + "/"):
        raise RefusedError(f"this is of the log {log}, the key is that of {name}")
    body = checkpoint.encode()
    check_signature(log, public, signature_by(log, LOG, public, signatures), body)
    if root_of(entry, index, size, path) != root:
        raise RefusedError("the entry is not in the log that the checkpoint signs")
    seen = []
    for witness, witness_public in witnesses:
        content = signature_by(witness, WITNESS, witness_public, signatures)
        at = int.from_bytes(content[:8], "big")
        said = f"cosignature/v1\ntime {at}\n".encode() + body
        check_signature(witness, witness_public, content[8:], said)
        seen.append((witness, at))
    checked = {log, *(witness for witness, _ in seen)}
    passed_over = sorted({signer for signer, _ in signatures} - checked)
    return entry, index, size, log, seen, passed_over


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("proof", help="the file")
    parser.add_argument("key", help="the log's public key, or a file with it")
    parser.add_argument("--witness", action="append", default=[], help="a witness's public key")
    asked = parser.parse_args()
    try:
        witnesses = [read_key(one, WITNESS) for one in asked.witness]
        text = Path(asked.proof).read_bytes().decode("utf-8")
        found = verify(text, read_key(asked.key, LOG), witnesses)
    except (RefusedError, UnicodeDecodeError, OSError) as error:
        print(f"REFUSED: {error}", file=sys.stderr)
        return 1
    entry, index, size, log, seen, passed_over = found
    print(f"PROVED: entry {index} of the {size} entries of {log} that its key has signed.")
    for witness, at in seen:
        when = datetime.fromtimestamp(at, UTC).isoformat()
        print(f"Seen by {witness} at {when}.")
    for signer in passed_over:
        print(f"Not checked: a signature of {signer}, whose key was not given.")
    print(f"The entry ({len(entry)} bytes):\n{entry.decode('utf-8', 'backslashreplace')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
