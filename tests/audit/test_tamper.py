"""Whatever is changed in a log is found, and the report says where. Each change is made at many
random places; an untouched log passes, so nothing here is found by luck."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audits import (
    ORIGIN,
    SIGNER,
    VERIFIER,
    MemoryLogStore,
    cosigned,
    entries_of,
    witness_key,
    written,
)
from leaderboard.audit.notes import Checkpoint, Signer
from leaderboard.audit.reader import AuditReader
from leaderboard.audit.tiles import (
    bundle_path,
    decode_bundle,
    encode_bundle,
    levels,
    parse_path,
    tile_path,
    tile_width,
)
from leaderboard.audit.verify import Problem, Report, verify_log
from leaderboard.audit.witness import keep
from leaderboard.errors import LogCorruptError, NoteError, NotFoundError

PLACES = 60
SIZES = (1, 3, 255, 256, 257, 1_000, 3_000)
BIG = 66_000
"""Three levels of tiles."""


ANY = 1 << 62

Told = Callable[[str, object], None]


@cache
def files_of(size: int) -> dict[str, bytes]:
    store = MemoryLogStore()
    written(store, entries_of(size), batch=7_001)
    return store.files


@cache
def bundles(size: int) -> list[str]:
    return [path for path in files_of(size) if path.startswith("tile/entries/")]


@dataclass
class Log:
    """A log to be changed, and where the change will be looked for."""

    size: int
    chance: random.Random
    store: MemoryLogStore = field(init=False)
    known: list[Checkpoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = MemoryLogStore(files_of(self.size))

    @property
    def files(self) -> dict[str, bytes]:
        return self.store.files

    def verify(self) -> Report:
        return verify_log(self.store, ORIGIN, VERIFIER, known=self.known)

    def bundle(self) -> tuple[str, int, list[bytes]]:
        """A bundle by chance: its path, the index of its first entry, its entries."""
        path = self.chance.choice(bundles(self.size))
        parts = parse_path(path)
        assert parts is not None
        return path, parts[1] * 256, list(decode_bundle(self.files[path]))

    def tile(self) -> str:
        found = [path for path in files_of(self.size) if path.startswith("tile/")]
        return self.chance.choice([path for path in found if "entries" not in path])


@dataclass(frozen=True)
class Where:
    """A change is found if a problem names this file, or an entry of these alone; where it names
    both, both must be right."""

    place: str
    first: int = 0
    stop: int = ANY

    def is_told_by(self, problem: Problem) -> bool:
        here = self.place == problem.place or self.place in problem.problem
        if problem.index is None:
            return here
        return self.first <= problem.index < self.stop and (here or self.stop < ANY)


def flip(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) * 8)
    changed = bytearray(content)
    changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


def edit_entry(log: Log) -> Where:
    path, first, entries = log.bundle()
    at = log.chance.randrange(len(entries))
    entries[at] = flip(entries[at], log.chance)
    log.files[path] = encode_bundle(entries)
    return Where(path, first + at, first + at + 1)


def flip_any_bit_of_a_bundle(log: Log) -> Where:
    path, first, entries = log.bundle()
    log.files[path] = flip(log.files[path], log.chance)
    return Where(path, first, first + len(entries) + 1)


def drop_entry(log: Log) -> Where:
    path, first, entries = log.bundle()
    at = log.chance.randrange(len(entries))
    del entries[at]
    log.files[path] = encode_bundle(entries)
    return Where(path, first + at, first + at + 1)


def insert_entry(log: Log) -> Where:
    path, first, entries = log.bundle()
    at = log.chance.randint(0, len(entries))
    entries.insert(at, b'{"forged":%d}' % log.chance.randrange(10**9))
    log.files[path] = encode_bundle(entries)
    return Where(path, first + at, first + at + 1)


def reorder_entries(log: Log) -> Where:
    path, first, entries = log.bundle()
    if len(entries) < 2:
        return drop_entry(log)
    one, other = sorted(log.chance.sample(range(len(entries)), 2))
    entries[one], entries[other] = entries[other], entries[one]
    log.files[path] = encode_bundle(entries)
    return Where(path, first + one, first + one + 1)


def move_boundary(log: Log) -> Where:
    """The same bytes, cut into entries at another place."""
    path, first, entries = log.bundle()
    if len(entries) < 2:
        return edit_entry(log)
    at = log.chance.randrange(len(entries) - 1)
    entries[at], entries[at + 1] = entries[at] + entries[at + 1][:1], entries[at + 1][1:]
    log.files[path] = encode_bundle(entries)
    return Where(path, first + at, first + at + 1)


def swap_bundles(log: Log) -> Where:
    whole = [path for path in bundles(log.size) if ".p/" not in path]
    if len(whole) < 2:
        return reorder_entries(log)
    one, other = sorted(log.chance.sample(whole, 2))
    log.files[one], log.files[other] = log.files[other], log.files[one]
    parts = parse_path(one)
    assert parts is not None
    return Where(one, parts[1] * 256, parts[1] * 256 + 1)


def truncate_bundle(log: Log) -> Where:
    path, first, entries = log.bundle()
    log.files[path] = log.files[path][: log.chance.randrange(len(log.files[path]))]
    return Where(path, first, first + len(entries))


def edit_entry_and_its_hash(log: Log) -> Where:
    """Entry and tile fit each other; the tile above, or the root, does not."""
    from leaderboard.audit.tree import leaf_hashes

    path, first, entries = log.bundle()
    at = log.chance.randrange(len(entries))
    entries[at] += b" "
    log.files[path] = encode_bundle(entries)
    tile = tile_path(0, first // 256, len(entries))
    log.files[tile] = leaf_hashes(entries)
    return Where(tile, first, first + len(entries))


def rebuild_up_to_the_top(log: Log) -> Where:
    """All tiles made anew over an entry that was changed: only the signature tells."""
    entries = entries_of(log.size)
    at = log.chance.randrange(log.size)
    entries[at] = b"forged"
    forged = MemoryLogStore()
    written(forged, entries, batch=7_001)
    log.store.files = {**forged.files, "checkpoint": log.files["checkpoint"]}
    top = (log.size.bit_length() + 7) // 8
    edges = [tile_path(level, (log.size >> 8 * level) // 256, width) for level in range(top)
             if (width := tile_width(level, (log.size >> 8 * level) // 256, log.size))]  # fmt: skip
    return Where(edges[0])


def edit_tile(log: Log) -> Where:
    path = log.tile()
    log.files[path] = flip(log.files[path], log.chance)
    return Where(path, *covered(path, log.size))


def covered(path: str, size: int) -> tuple[int, int]:
    """The entries below a tile."""
    parts = parse_path(path)
    assert parts is not None
    level, number, _ = parts
    span = 256 ** ((level or 0) + 1)
    return number * span, min(size, (number + 1) * span)


def drop_file(log: Log) -> Where:
    path = log.chance.choice([*log.files])
    del log.files[path]
    return Where(path)


def truncate_tile(log: Log) -> Where:
    path = log.tile()
    log.files[path] = log.files[path][: log.chance.randrange(len(log.files[path]))]
    return Where(path)


def lengthen_tile(log: Log) -> Where:
    path = log.tile()
    log.files[path] += log.chance.randbytes(32)
    return Where(path)


def reorder_hashes(log: Log) -> Where:
    path = log.tile()
    hashes = list(struct.iter_unpack("32s", log.files[path]))
    if len(hashes) < 2:
        return edit_tile(log)
    one, other = log.chance.sample(range(len(hashes)), 2)
    hashes[one], hashes[other] = hashes[other], hashes[one]
    log.files[path] = b"".join(one for (one,) in hashes)
    return Where(path, *covered(path, log.size))


def edit_checkpoint(log: Log) -> Where:
    log.files["checkpoint"] = flip(log.files["checkpoint"], log.chance)
    return Where("checkpoint")


def sign_with_another_key(log: Log) -> Where:
    known = Checkpoint.parse(log.files["checkpoint"], VERIFIER)
    other = Signer.generate(ORIGIN)
    log.files["checkpoint"] = Checkpoint.signed(known.size, known.root, other).note
    return Where("checkpoint")


# What only a checkpoint can tell that somebody else has kept: whoever has the key signs it all.


def put_back(log: Log) -> Where:
    """The checkpoint of some time ago in the place of the present one."""
    log.known = [Checkpoint.parse(log.files["checkpoint"], VERIFIER)]
    before = log.chance.randrange(log.size) if log.size > 1 else 0
    root = AuditReader(log.store, log.known[0], VERIFIER).root(before)
    log.files["checkpoint"] = Checkpoint.signed(before, root, SIGNER).note
    for level in range(levels(before)):  # an honest log of that size has these files, too
        number = (before >> 8 * level) // 256
        if width := tile_width(level, number, before):
            for path in [tile_path(level, number, width), bundle_path(number, width)]:
                cut_from_larger(log, path, width)
    return Where("checkpoint", before, before + 1)


def cut_from_larger(log: Log, path: str, width: int) -> None:
    full = path.split(".p/", maxsplit=1)[0]
    found = [one for one in log.files if one == full or one.startswith(f"{full}.p/")]
    content = log.files[max(found, key=lambda one: len(log.files[one]))] if found else b""
    if "entries" in path:
        log.files[path] = encode_bundle(list(decode_bundle(content))[:width])
    else:
        log.files[path] = content[: width * 32]


def truncate_log(log: Log) -> Where:
    log.known = [Checkpoint.parse(log.files["checkpoint"], VERIFIER)]
    left = log.chance.randrange(log.size)
    store = MemoryLogStore()
    written(store, entries_of(log.size)[:left], batch=7_001)
    log.store = store
    return Where("checkpoint", left, left + 1) if left else Where("checkpoint")


def fork_log(log: Log) -> Where:
    """Another history from some entry on, signed with the log's own key, as long or longer."""
    log.known = [Checkpoint.parse(log.files["checkpoint"], VERIFIER)]
    entries = entries_of(log.size + log.chance.randint(0, 300))
    at = log.chance.randrange(log.size)
    if at > 1:  # somebody has seen an earlier one, from which both histories go on
        held = log.chance.randrange(1, at)
        root = AuditReader(log.store, log.known[0], VERIFIER).root(held)
        log.known.append(Checkpoint.signed(held, root, SIGNER))
    entries[at:] = [entry + b" " for entry in entries[at:]]
    store = MemoryLogStore()
    written(store, entries, batch=7_001)
    log.store = store
    first = log.known[-1].size if len(log.known) > 1 else 0
    return Where("checkpoint", first, at + 1)


CHANGES: list[Callable[[Log], Where]] = [
    edit_entry, flip_any_bit_of_a_bundle, drop_entry, insert_entry, reorder_entries, move_boundary,
    swap_bundles, truncate_bundle, edit_entry_and_its_hash, rebuild_up_to_the_top, edit_tile,
    drop_file, truncate_tile, lengthen_tile, reorder_hashes, edit_checkpoint,
    sign_with_another_key, put_back, truncate_log, fork_log,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_is_found_where_it_is(
    change: Callable[[Log], Where], record_property: Told
) -> None:
    changed = 0
    for seed in range(PLACES):
        chance = random.Random(f"{change.__name__} {seed}")
        log = Log(chance.choice(SIZES), chance)
        before = dict(log.files)
        where = change(log)
        if log.files == before:
            continue  # swapped what is the same
        changed += 1
        report = log.verify()
        told = f"seed {seed}, size {log.size}: {[str(one) for one in report.problems]}"
        assert not report.is_sound, f"{where} was not found, {told}"
        found = any(where.is_told_by(one) for one in report.problems)
        assert found, f"found, but not at {where}: {told}"
    assert changed >= PLACES - 5, "it hardly changed anything"
    record_property("tried", changed)


@pytest.mark.parametrize("change", CHANGES[:17], ids=lambda change: change.__name__)
def test_reader_answers_nothing_that_was_changed(
    change: Callable[[Log], Where], record_property: Told
) -> None:
    """Who reads without verifying all is told as well, as soon as a changed file is read."""
    record_property("tried", 12)
    for seed in range(12):
        chance = random.Random(f"{change.__name__} {seed}")
        log = Log(chance.choice([700, 1_000, 3_000]), chance)
        change(log)
        with pytest.raises((LogCorruptError, NoteError, NotFoundError)):
            list(AuditReader.open(log.store, ORIGIN, VERIFIER).entries())


@pytest.mark.parametrize("size", SIZES)
def test_untouched_log_is_sound(size: int) -> None:
    log = Log(size, random.Random(size))
    reader = AuditReader.open(log.store, ORIGIN, VERIFIER)
    for held in {0, 1, size // 2, size}:
        log.known.append(Checkpoint.signed(held, reader.root(held), SIGNER))
    told: list[int] = []
    report = verify_log(log.store, ORIGIN, VERIFIER, known=log.known, progress=told.append)
    assert report.problems == []
    assert report.leftovers == []
    assert (sum(told), report.compared) == (size, len(log.known))
    assert report.checkpoint == reader.checkpoint


@pytest.mark.parametrize("change", [edit_entry, edit_tile, drop_file, edit_entry_and_its_hash])
def test_in_a_log_of_three_levels_too(change: Callable[[Log], Where]) -> None:
    untouched = Log(BIG, random.Random(0))
    assert untouched.verify().is_sound
    for seed in range(4):
        log = Log(BIG, random.Random(seed))
        where = change(log)
        report = log.verify()
        assert any(where.is_told_by(one) for one in report.problems), f"{where}: {report.problems}"
        assert len(report.problems) <= 2, "one change is told once or twice"


def test_everything_that_is_wrong_is_told() -> None:
    log = Log(3_000, random.Random(1))
    places = ["tile/entries/002", "tile/0/005", "tile/entries/011.p/184"]
    for path in places:
        log.files[path] = flip(log.files[path], log.chance)
    del log.files["tile/entries/007"]
    beside = ["tile/entries/005", "tile/entries/007"]  # the tile of the one, the other is gone
    assert {one.place for one in log.verify().problems} == {*places, *beside}


def test_log_that_is_gone_is_told() -> None:
    log = Log(300, random.Random(1))
    log.known = [Checkpoint.parse(log.files["checkpoint"], VERIFIER)]
    log.store.files = {}
    report = log.verify()
    assert [str(one) for one in report.problems] == [
        "checkpoint: is missing; a checkpoint of 300 entries is known"
    ]


def test_log_under_another_name_is_another_log() -> None:
    log = Log(300, random.Random(1))
    report = verify_log(log.store, "example.com/audit/wagers/4", VERIFIER)
    assert not report.is_sound


def test_checkpoint_that_a_witness_has_signed_gives_a_fork_away() -> None:
    """Nobody brings a checkpoint along: the witness's is kept beside the log."""
    private = Ed25519PrivateKey.generate()
    witness = witness_key(private, "witness.example/1")
    entries = entries_of(900)
    store = MemoryLogStore()
    written(store, entries[:500])
    reader = AuditReader.open(store, ORIGIN, VERIFIER)
    note = cosigned(reader.checkpoint.note, private, witness, 1_700_000_000)
    keep(store, reader, [witness], note)
    written(store, entries)
    report = verify_log(store, ORIGIN, VERIFIER, witnesses=[witness])
    assert (report.is_sound, report.compared, report.leftovers) == (True, 1, [])

    path = next(store.paths("cosigned/"))
    forked = MemoryLogStore({path: store.files[path]})
    written(forked, [entry + b" " for entry in entries])
    assert "does not go on from the 500 entries" in str(verified(forked).problems[0])
    short = MemoryLogStore({path: store.files[path]})
    written(short, entries[:400])
    assert "signs 400 entries, and 500 were signed before" in str(verified(short).problems[0])
    store.files[path] = flip(store.files[path], random.Random(3))
    report = verify_log(store, ORIGIN, VERIFIER, witnesses=[witness])
    assert [one.place for one in report.problems] == [path]


def verified(store: MemoryLogStore) -> Report:
    return verify_log(store, ORIGIN, VERIFIER)


def test_what_an_append_left_unsigned_is_told_and_no_problem() -> None:
    log = Log(300, random.Random(1))
    log.files["tile/0/002"] = bytes(8192)
    log.files["tile/entries/001.p/99"] = b"x"
    log.files["notes.txt"] = b"x"
    report = log.verify()
    assert report.is_sound
    assert report.leftovers == ["notes.txt", "tile/0/002", "tile/entries/001.p/99"]
