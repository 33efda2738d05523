"""A log and its witness: what it signs is checked and kept, and nobody shows it two histories."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from audits import ORIGIN, VERIFIER, MemoryLogStore, cosigned, entries_of, reader_of, written
from leaderboard.adapters.http_witness import HttpWitness
from leaderboard.audit.notes import cosignatures
from leaderboard.audit.witness import cosign, keep
from leaderboard.errors import LogCorruptError, NoteError, TransientError
from witnessing import PRIVATE, SIZE_TYPE, WITNESS, WitnessServer, witness_server


@pytest.fixture
def server() -> Iterator[WitnessServer]:
    with witness_server(VERIFIER) as server:
        yield server


@pytest.fixture
def witness(server: WitnessServer) -> Iterator[HttpWitness]:
    with httpx.Client() as client:
        yield HttpWitness(server.url, client)


def log_of(entries: list[bytes]) -> MemoryLogStore:
    store = MemoryLogStore()
    written(store, entries)
    return store


def test_witness_follows_the_log_and_what_it_signs_is_kept(
    server: WitnessServer, witness: HttpWitness
) -> None:
    entries = entries_of(1_000)
    store, sizes = MemoryLogStore(), [1, 300, 300, 777, 1_000]
    for size in sizes:
        written(store, entries[:size])
        seen = cosign(store, reader_of(store), witness, WITNESS)
        assert (seen.size, server.seen[ORIGIN][0]) == (size, size)
    kept = sorted(store.paths("cosigned/"))
    assert [int(path.split("/")[1].split("-")[0]) for path in kept] == sizes
    for path in kept:
        (one,) = cosignatures(store.files[path], [WITNESS])
        assert path.endswith(f"-{WITNESS.key_id.hex()}-{one.at_s}")


def test_witness_that_is_further_or_behind_says_where(
    server: WitnessServer, witness: HttpWitness
) -> None:
    entries = entries_of(900)
    store = log_of(entries[:400])
    cosign(store, reader_of(store), witness, WITNESS)
    lost = MemoryLogStore()  # what was kept is not here: the witness knows by itself
    written(lost, entries)
    assert cosign(lost, reader_of(lost), witness, WITNESS).size == 900
    server.seen = {}  # a new witness under the same key
    assert cosign(lost, reader_of(lost), witness, WITNESS).size == 900


def test_fork_is_not_signed(server: WitnessServer, witness: HttpWitness) -> None:
    entries = entries_of(900)
    store = log_of(entries[:400])
    cosign(store, reader_of(store), witness, WITNESS)
    forked = [*entries[:200], b"another", *entries[201:]]
    for size in (401, 900):
        other = log_of(forked[:size])
        with pytest.raises(NoteError, match="says 422"):
            cosign(other, reader_of(other), witness, WITNESS)
        assert list(other.paths("cosigned/")) == []
    same = log_of(forked[:400])
    with pytest.raises(LogCorruptError, match="has seen another log of 400 entries"):
        cosign(same, reader_of(same), witness, WITNESS)
    short = log_of(entries[:399])
    with pytest.raises(LogCorruptError, match=r"signs 399 entries, .* has seen 400"):
        cosign(short, reader_of(short), witness, WITNESS)


@pytest.mark.parametrize(
    ("answer", "error", "what"),
    [
        ((200, "text/plain", b""), NoteError, "not cosigned by any of the witnesses"),
        ((200, "text/plain", b"hello\n"), NoteError, "among its signatures that is none"),
        ((200, "text/plain", b"x" * 70_000), NoteError, "its answer has 70000 bytes"),
        ((403, "text/plain", b"who are you"), NoteError, "says 403: 'who are you'"),
        ((404, "text/plain", b""), NoteError, "says 404"),
        ((409, "text/plain", b"5\n"), NoteError, "says 409"),
        ((409, SIZE_TYPE, b"five\n"), NoteError, "says 409"),
        ((409, SIZE_TYPE, b"0\n"), LogCorruptError, "another log of 0 entries"),
        ((409, SIZE_TYPE, b"999\n"), LogCorruptError, "has seen 999"),
        ((429, "text/plain", b""), TransientError, "says 429"),
        ((500, "text/plain", b""), TransientError, "says 500"),
        ((302, "text/plain", b""), NoteError, "says 302"),
    ],
)
def test_bad_answer_is_refused_and_nothing_kept(
    server: WitnessServer, witness: HttpWitness, answer: tuple[int, str, bytes],
    error: type[Exception], what: str,
) -> None:  # fmt: skip
    store = log_of(entries_of(300))
    server.forced = answer
    with pytest.raises(error, match=what):
        cosign(store, reader_of(store), witness, WITNESS)
    assert list(store.paths("cosigned/")) == []


def test_witness_that_is_away_is_asked_again_later() -> None:
    store = log_of(entries_of(3))
    with httpx.Client() as client, pytest.raises(TransientError, match="witness at http://127"):
        cosign(store, reader_of(store), HttpWitness("http://127.0.0.1:1", client), WITNESS)


def test_what_was_cosigned_elsewhere_is_checked_before_it_is_kept() -> None:
    entries = entries_of(500)
    store = log_of(entries)
    reader = reader_of(store)
    part = reader_of(log_of(entries[:200])).checkpoint.note
    kept = keep(store, reader, [WITNESS], cosigned(part, PRIVATE, WITNESS, 1_700_000_000))
    assert kept.size == 200
    forked = reader_of(log_of([b"another", *entries[1:200]])).checkpoint.note
    longer = reader_of(log_of(entries_of(501))).checkpoint.note
    for note, error, what in [
        (part, NoteError, "not cosigned"),
        (cosigned(forked, PRIVATE, WITNESS, 1), LogCorruptError, "has seen 200 entries"),
        (cosigned(longer, PRIVATE, WITNESS, 1), LogCorruptError, "signs 500 entries"),
        (part.replace(ORIGIN.encode(), b"example.com/other"), NoteError, "not signed by"),
    ]:
        with pytest.raises(error, match=what):
            keep(store, reader, [WITNESS], note)
    assert len(list(store.paths("cosigned/"))) == 1
