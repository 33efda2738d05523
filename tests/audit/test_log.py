"""The writer: what it leaves wherever it stops, and beside another one."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audits import (
    ORIGIN,
    SIGNER,
    VERIFIER,
    MemoryLogStore,
    entries_of,
    log_in,
    reader_of,
    written,
)
from leaderboard.adapters.directory_log import DirectoryLogStore
from leaderboard.audit import tree
from leaderboard.audit.log import AuditLog
from leaderboard.audit.tiles import LARGEST_ENTRY, bundle_path, tile_path, tile_width
from leaderboard.audit.verify import verify_log
from leaderboard.errors import (
    FencedError,
    LogConflictError,
    LogCorruptError,
    NotFoundError,
    TransientError,
)

ROOT = Path(__file__).parents[2]


def root_over(entries: list[bytes]) -> bytes:
    return tree.root_of(tree.leaf_hashes(entries))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 600), min_size=1, max_size=8), st.integers(0, 1))
def test_what_was_appended_is_there_signed_and_proved(batches: list[int], reopen: int) -> None:
    store, entries = MemoryLogStore(), entries_of(sum(batches))
    log, at = AuditLog.open(store, ORIGIN, SIGNER), 0
    for batch in batches:
        if reopen:
            log = AuditLog.open(store, ORIGIN, SIGNER)
        checkpoint = log.append(entries[at : at + batch])
        at += batch
        assert (checkpoint.size, checkpoint.root) == (at, root_over(entries[:at]))
        assert (log.size, log.last_entry(), log.checkpoint) == (at, entries[at - 1], checkpoint)
    reader = reader_of(store)
    assert list(reader.entries()) == entries
    index = len(entries) // 3
    assert reader.entry(index) == entries[index]
    assert list(reader.entries(index, index + 300)) == entries[index : index + 300]
    proof = reader.inclusion(index)
    root, leaf = reader.checkpoint.root, tree.leaf_hash(entries[index])
    assert tree.includes(leaf, index, len(entries), proof, root)
    before = reader.root(index)
    assert before == root_over(entries[:index])
    steps = reader.consistency(index, reader.size)
    assert tree.is_consistent(index, before, reader.size, root, steps)
    assert verify_log(store, ORIGIN, VERIFIER).is_sound
    # Exactly the files that are signed: partial ones went with what they became.
    assert store.files.keys() == signed_files(batches)


def signed_files(batches: list[int]) -> set[str]:
    """Full ones, and partial ones of every size that was signed, unless the full one is there."""
    sizes, found = list(itertools.accumulate(batches)), {"checkpoint"}
    for size, level in itertools.product(sizes, range(3)):
        for number in range(((size >> (8 * level)) + 255) // 256):
            width, now = (tile_width(level, number, one) for one in (size, sizes[-1]))
            if width == 256 or now < 256:
                found.add(tile_path(level, number, width))
                found |= {bundle_path(number, width)} if level == 0 else set()
    return found


def test_empty_log_is_one() -> None:
    store = MemoryLogStore()
    log = AuditLog.open(store, ORIGIN, SIGNER)
    assert (log.size, log.last_entry(), log.checkpoint) == (0, None, None)
    with pytest.raises(ValueError, match="nothing to append"):
        log.append([])
    with pytest.raises(NotFoundError, match=f"no checkpoint of {ORIGIN}"):
        reader_of(store)


def test_entry_may_be_as_long_as_its_length_can_be_told() -> None:
    store = MemoryLogStore()
    log = AuditLog.open(store, ORIGIN, SIGNER)
    with pytest.raises(ValueError, match="entry 1 has 65536 bytes"):
        log.append([b"x", bytes(LARGEST_ENTRY + 1)])
    assert store.files == {}
    log.append([bytes(LARGEST_ENTRY), b"", b"x"])
    assert list(reader_of(store).entries()) == [bytes(LARGEST_ENTRY), b"", b"x"]


def test_indexes_that_are_not_there_are_said_to_be_so() -> None:
    store = MemoryLogStore()
    written(store, entries_of(3))
    reader = reader_of(store)
    calls: list[Callable[[], object]] = [
        lambda: reader.entry(3), lambda: reader.entry(-1), lambda: reader.inclusion(3),
        lambda: reader.consistency(2, 4), lambda: reader.root(4),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(NotFoundError, match=ORIGIN):
            call()


class Stops(Exception):  # noqa: N818 - no error: the process is gone
    """The process ends here."""


class StoppingStore(MemoryLogStore):
    """Stops before its nth step, each file of a `write` being one, in an order by chance."""

    def __init__(self, files: Mapping[str, bytes], after: int, seed: int, how: type[Exception]):
        super().__init__(files)
        self.left = after
        self.how = how
        self._chance = random.Random(seed)

    def _step(self) -> None:
        if self.left == 0:
            raise self.how("stopped")
        self.left -= 1

    def write(self, files: Mapping[str, bytes]) -> None:
        order = list(files)
        self._chance.shuffle(order)
        for path in order:
            self._step()
            super().write({path: files[path]})

    def replace_checkpoint(self, before: bytes | None, after: bytes) -> None:
        self._step()
        super().replace_checkpoint(before, after)
        self._step()

    def remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            self._step()
            super().remove([path])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("signed", [0, 5, 256, 300, 65_530])
def test_stopped_between_any_two_writes_it_opens_where_it_was_signed(
    signed: int, seed: int
) -> None:
    entries = entries_of(signed + 600)
    before = base_of(signed)
    stopped = 0
    for after in itertools.count():
        store = StoppingStore(before, after, seed * 1000 + after, Stops)
        log = AuditLog.open(store, ORIGIN, SIGNER)
        try:
            log.append(entries[signed:])
        except Stops:
            stopped += 1
        else:
            break
        # What comes back sees a whole log, of one size or the other ...
        store.left = -1
        again = AuditLog.open(store, ORIGIN, SIGNER)
        assert again.size in (signed, signed + 600)
        if again.size:
            assert again.last_entry() == entries[again.size - 1]
            assert reader_of(store).checkpoint.root == root_of_first(again.size)
        # ... and goes on with other batches than before.
        rest = entries[again.size :]
        for at in range(0, len(rest), 77):
            again.append(rest[at : at + 77])
        assert reader_of(store).checkpoint.root == root_of_first(signed + 600)
        if signed < 1000:  # all of it was read often enough
            assert verify_log(store, ORIGIN, VERIFIER).is_sound
    assert stopped > 5, "it was stopped at too few places"


BASES: dict[int, dict[str, bytes]] = {}
ROOTS: dict[int, bytes] = {}


def base_of(signed: int) -> dict[str, bytes]:
    if signed not in BASES:
        store = MemoryLogStore()
        written(store, entries_of(signed), batch=max(1, signed))
        BASES[signed] = store.files
    return BASES[signed]


def root_of_first(size: int) -> bytes:
    if size not in ROOTS:
        ROOTS[size] = root_over(entries_of(size))
    return ROOTS[size]


@pytest.mark.parametrize("after", range(8))
def test_store_that_was_away_is_asked_again_by_the_same_log(after: int) -> None:
    entries = entries_of(900)
    store = StoppingStore({}, after, after, TransientError)
    log = AuditLog.open(store, ORIGIN, SIGNER)
    with pytest.raises(TransientError):
        log.append(entries)
    assert (log.size, log.last_entry()) == (0, None)
    store.left = -1
    assert log.append(entries).root == root_over(entries)
    assert list(reader_of(store).entries()) == entries


def test_store_that_goes_away_after_the_signature_undoes_nothing() -> None:
    """Nobody waits for old files to be removed."""
    entries = entries_of(300)
    store = StoppingStore({}, -1, 0, TransientError)
    log = AuditLog.open(store, ORIGIN, SIGNER)
    log.append(entries[:10])
    store.left = 2 + 2 + 1 + 2  # two bundles, two tiles, one above, the checkpoint's two steps
    assert log.append(entries[10:]).size == 300
    assert "tile/entries/000.p/10" in store.files
    assert verify_log(store, ORIGIN, VERIFIER).is_sound


def test_second_writer_is_fenced_and_goes_on_after_opening_anew() -> None:
    store, entries = MemoryLogStore(), entries_of(700)
    one = written(store, entries[:100])
    other = AuditLog.open(store, ORIGIN, SIGNER)
    one.append(entries[100:400])
    with pytest.raises(FencedError):
        other.append(entries[100:650])
    with pytest.raises(FencedError):
        other.append([b"something else", *entries[101:400]])
    assert other.size == 100
    again = AuditLog.open(store, ORIGIN, SIGNER)
    again.append(entries[again.size :])
    with pytest.raises(FencedError):
        one.append(entries[400:500])
    assert list(reader_of(store).entries()) == entries


def test_both_may_have_signed_the_same() -> None:
    """As a retry whose first answer was lost, they can't be told apart, and need not be."""
    store, entries = MemoryLogStore(), entries_of(200)
    one, other = (AuditLog.open(store, ORIGIN, SIGNER) for _ in range(2))
    assert one.append(entries) == other.append(entries)


def test_other_entries_beyond_the_signed_end_are_no_reason_to_go_on() -> None:
    store, entries = MemoryLogStore(), entries_of(600)
    stopping = StoppingStore({}, 3, 1, Stops)
    with pytest.raises(Stops):
        AuditLog.open(stopping, ORIGIN, SIGNER).append(entries)
    store.files = stopping.files
    changed = [entry + b" " for entry in entries]
    with pytest.raises(LogConflictError, match="tile/"):
        AuditLog.open(store, ORIGIN, SIGNER).append(changed)


@pytest.mark.parametrize("path", ["tile/0/001.p/44", "tile/entries/001.p/44", "tile/1/000.p/1"])
@pytest.mark.parametrize("how", ["gone", "short", "changed"])
def test_log_whose_end_is_not_what_was_signed_does_not_open(path: str, how: str) -> None:
    store = MemoryLogStore()
    written(store, entries_of(300))
    content = store.files.pop(path)
    if how == "short":
        store.files[path] = content[:-1]
    elif how == "changed":
        store.files[path] = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(LogCorruptError, match=path.split(".", maxsplit=1)[0]):
        AuditLog.open(store, ORIGIN, SIGNER)


def test_partial_file_that_is_gone_is_found_in_the_full_one(tmp_path: Path) -> None:
    """A reader of an old checkpoint, while the log grows."""
    entries = entries_of(700)
    store = log_in(tmp_path, entries[:300])
    reader = reader_of(store)
    written(store, entries)
    assert store.read("tile/entries/001.p/44") is None
    assert list(reader.entries()) == entries[:300]
    again = type(reader)(store, reader.checkpoint, reader.verifier)
    assert again.root(300) == reader.checkpoint.root


KILLED = """
    import random, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from audits import ORIGIN, entries_of
    from leaderboard.adapters.directory_log import DirectoryLogStore
    from leaderboard.audit.log import AuditLog
    from leaderboard.audit.notes import Signer

    entries, chance = entries_of(40_000), random.Random()
    log = AuditLog.open(DirectoryLogStore(Path({folder!r})), ORIGIN, Signer.parse(input()))
    print(log.size, flush=True)
    while log.size < len(entries):
        log.append(entries[log.size : log.size + chance.randint(1, 400)])
        print(log.size, flush=True)
"""


def test_killed_process_leaves_what_it_was_told_is_signed(tmp_path: Path) -> None:
    folder, chance = tmp_path / "log", random.Random(7)
    program = textwrap.dedent(KILLED.format(tests=str(ROOT / "tests"), folder=str(folder)))
    told, leftovers = 0, 0
    for _ in range(12):
        command = [sys.executable, "-c", program]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{SIGNER.private_text()}\n")
        process.stdin.flush()
        assert int(process.stdout.readline()) >= told, "it lost what was signed"
        time.sleep(chance.uniform(0.005, 0.15))
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split("\n")  # a line that is cut off was not told
        process.wait()
        process.stdin.close()
        process.stdout.close()
        told = max([told, *(int(line) for line in rest[:-1])])
        if not told:
            continue
        report = verify_log(DirectoryLogStore(folder), ORIGIN, VERIFIER)
        assert report.is_sound, report.problems
        assert report.checkpoint is not None
        assert report.checkpoint.size >= told
        leftovers += bool(report.leftovers)
    assert told > 1000, "it was killed before it did anything"
    assert leftovers, "it was never killed in the midst of something"
    reader = reader_of(DirectoryLogStore(folder))
    assert list(reader.entries()) == entries_of(40_000)[: reader.size]
