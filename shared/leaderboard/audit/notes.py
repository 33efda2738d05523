"""C2SP's signed notes, checkpoints and cosignatures, with Ed25519 (c2sp.org/signed-note,
c2sp.org/tlog-checkpoint, c2sp.org/tlog-cosignature).

Keys are text as the Go tools have it: `<name>+<id>+<key>` to verify,
`PRIVATE+KEY+<name>+<id>+<key>` to sign.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final, NamedTuple, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from leaderboard.audit.tree import HASH_SIZE
from leaderboard.errors import NoteError

ED25519: Final = 1
COSIGNATURE: Final = 4
"""The kinds of keys: of a log, and of a witness, whose signature has a time."""

_LARGEST_NOTE: Final = 1_000_000
_MOST_SIGNATURES: Final = 100
_NAME: Final = re.compile(r"[^\s+\x00-\x1f\x7f]+")
_SIGNATURE: Final = re.compile(r"— (\S+) ([A-Za-z0-9+/]+={0,2})")
_SIZE: Final = re.compile(r"0|[1-9]\d{0,18}")
_PRIVATE: Final = "PRIVATE+KEY+"


def decode_base64(text: str) -> bytes:
    """Standard base64, in the one way to write these bytes. Raises NoteError."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NoteError("is no base64") from None
    if encode_base64(content) != text:  # loose bits at its end
        raise NoteError("is no base64 as it is written")
    return content


def encode_base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _key_id(name: str, kind: int, public: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise NoteError(f"{name!r} is no name of a key: it has spaces, '+' or nothing")
    return name


def _key_parts(text: str) -> tuple[str, bytes, int, bytes]:
    """(name, id, kind, key). Never tells the key: it may be a private one."""
    name, _, rest = text.partition("+")
    shown_id, _, key = rest.partition("+")
    if not re.fullmatch("[0-9a-f]{8}", shown_id) or not key:
        raise NoteError("is no key of the form <name>+<8 hex digits>+<base64>")
    content = decode_base64(key)
    if len(content) != 1 + HASH_SIZE or content[0] not in (ED25519, COSIGNATURE):
        raise NoteError(f"the key of {name!r} is no Ed25519 key of a log (1) or a witness (4)")
    return _checked_name(name), bytes.fromhex(shown_id), content[0], content[1:]


class Signature(NamedTuple):
    """A line below a note."""

    name: str
    key_id: bytes
    content: bytes

    def line(self) -> bytes:
        return f"— {self.name} {encode_base64(self.key_id + self.content)}\n".encode()


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key under a name."""

    name: str
    public: bytes
    kind: int = ED25519

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises NoteError, also where the id is not that of name and key."""
        name, shown_id, kind, public = _key_parts(text)
        verifier = cls(name, public, kind)
        if verifier.key_id != shown_id:
            raise NoteError(f"the key of {name!r} has another id than it says")
        return verifier

    def __str__(self) -> str:
        key = encode_base64(bytes([self.kind]) + self.public)
        return f"{self.name}+{self.key_id.hex()}+{key}"

    @property
    def key_id(self) -> bytes:
        return _key_id(self.name, self.kind, self.public)

    def named(self, name: str) -> Verifier:
        """The same key under another name: a shard's log signs under its origin."""
        return replace(self, name=_checked_name(name))

    def is_by(self, signature: Signature) -> bool:
        return (signature.name, signature.key_id) == (self.name, self.key_id)

    def accepts(self, body: bytes, signature: Signature) -> bool:
        """Whether this key has signed the body; a witness's, also at what time it says."""
        content = signature.content
        if self.kind == COSIGNATURE:
            stamp, content = content[:8], content[8:]
            body = b"cosignature/v1\ntime %d\n" % int.from_bytes(stamp, "big") + body
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(content, body)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True, repr=False)
class Signer:
    """A private key under a name. Its text is never shown by accident: ask `private_text`."""

    name: str
    _private: Ed25519PrivateKey

    @classmethod
    def generate(cls, name: str) -> Self:
        return cls(_checked_name(name), Ed25519PrivateKey.generate())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises NoteError, which does not tell the key."""
        if not text.startswith(_PRIVATE):
            raise NoteError(f"is no private key: it does not begin with {_PRIVATE}")
        name, shown_id, kind, seed = _key_parts(text.removeprefix(_PRIVATE))
        if kind != ED25519:
            raise NoteError(f"the key of {name!r} is no log's")
        signer = cls(name, Ed25519PrivateKey.from_private_bytes(seed))
        if signer.verifier.key_id != shown_id:
            raise NoteError(f"the key of {name!r} has another id than it says")
        return signer

    def __repr__(self) -> str:
        return f"Signer({self.name!r})"

    def private_text(self) -> str:
        seed = encode_base64(bytes([ED25519]) + self._private.private_bytes_raw())
        return f"{_PRIVATE}{self.name}+{self.verifier.key_id.hex()}+{seed}"

    @property
    def verifier(self) -> Verifier:
        return Verifier(self.name, self._private.public_key().public_bytes_raw())

    def named(self, name: str) -> Signer:
        """The same key under another name: a shard's log signs under its origin."""
        return replace(self, name=_checked_name(name))

    def sign(self, body: bytes) -> Signature:
        """Deterministic: the same body gives the same signature."""
        return Signature(self.name, self.verifier.key_id, self._private.sign(body))


def split_note(note: bytes) -> tuple[bytes, list[Signature]]:
    """The signed body, with its last newline, and the signatures below. Raises NoteError."""
    if len(note) > _LARGEST_NOTE:
        raise NoteError(f"is larger than {_LARGEST_NOTE} bytes")
    try:
        text = note.decode("utf-8")
    except UnicodeDecodeError:
        raise NoteError("is not UTF-8") from None
    if any(sign < " " and sign != "\n" for sign in text):
        raise NoteError("has control characters")
    body, divider, below = text.rpartition("\n\n")
    if not divider or not below.endswith("\n"):
        raise NoteError("is no text with signatures below an empty line")
    signatures = []
    for line in below[:-1].split("\n"):
        found = _SIGNATURE.fullmatch(line)
        if found is None or not _NAME.fullmatch(found[1]):
            raise NoteError("has a line among its signatures that is none")
        content = decode_base64(found[2])
        if len(content) < 5:
            raise NoteError("has a signature that is too short")
        signatures.append(Signature(found[1], content[:4], content[4:]))
    if len(signatures) > _MOST_SIGNATURES:
        raise NoteError(f"has more than {_MOST_SIGNATURES} signatures")
    return f"{body}\n".encode(), signatures


def check_note(note: bytes, verifier: Verifier) -> bytes:
    """The note's body, signed by this key; other signatures are passed over. Raises NoteError."""
    body, signatures = split_note(note)
    own = [one for one in signatures if verifier.is_by(one)]
    if not own:
        raise NoteError(f"is not signed by {verifier.name} (key {verifier.key_id.hex()})")
    if not all(verifier.accepts(body, one) for one in own):
        raise NoteError(f"the signature of {verifier.name} is not of this text")
    return body


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log has signed: how many entries it has, and the root over them.

    `note` is the text with its signatures, as it is kept and handed on."""

    origin: str
    size: int
    root: bytes
    note: bytes

    @classmethod
    def signed(cls, size: int, root: bytes, signer: Signer) -> Self:
        """Of the log whose origin is the key's name."""
        body = f"{signer.name}\n{size}\n{encode_base64(root)}\n".encode()
        return cls(signer.name, size, root, body + b"\n" + signer.sign(body).line())

    @classmethod
    def parse(cls, note: bytes, verifier: Verifier) -> Self:
        """A checkpoint that this key has signed, of the log of its name. Raises NoteError."""
        lines = check_note(note, verifier).decode().split("\n")[:-1]
        if len(lines) < 3 or not all(lines) or not _SIZE.fullmatch(lines[1]):
            raise NoteError("is no checkpoint: origin, size and root, a line each")
        origin, size, root = lines[0], int(lines[1]), decode_base64(lines[2])
        if origin != verifier.name:
            raise NoteError(f"is of the log {origin!r}, not of {verifier.name!r}")
        if len(root) != HASH_SIZE:
            raise NoteError("has a root that is no SHA-256")
        return cls(origin, size, root, note)


class Cosigned(NamedTuple):
    """That a witness has seen a checkpoint, by its own clock."""

    witness: Verifier
    at_s: int


def cosignatures(note: bytes, witnesses: Iterable[Verifier]) -> Sequence[Cosigned]:
    """Which of these witnesses have cosigned the note. Raises NoteError for a cosignature of one
    of them that is not of this text."""
    body, signatures = split_note(note)
    found = []
    for witness in witnesses:
        for one in filter(witness.is_by, signatures):
            if len(one.content) != 72 or not witness.accepts(body, one):
                raise NoteError(f"the cosignature of {witness.name} is not of this text")
            found.append(Cosigned(witness, int.from_bytes(one.content[:8], "big")))
    return found
