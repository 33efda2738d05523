"""The whole of a log against its signature: every entry, every hash, every checkpoint known.

Where something does not fit it goes on and says where; a log that was cut or forked by whoever
has its key fits by itself, and shows only beside a checkpoint that somebody else has kept: those
of witnesses, and those that an auditor brings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from leaderboard.audit import tree
from leaderboard.audit.notes import Checkpoint, Verifier, cosignatures
from leaderboard.audit.reader import (
    AuditReader,
    first_difference,
    read_bundle,
    read_edge,
    read_tile,
)
from leaderboard.audit.store import LogStore
from leaderboard.audit.tiles import (
    CHECKPOINT,
    COSIGNED,
    TILE_BITS,
    TILE_WIDTH,
    levels,
    parse_path,
    tile_path,
    tile_width,
)
from leaderboard.audit.tree import HASH_SIZE
from leaderboard.errors import LogCorruptError, NoteError

LEFTOVERS_NAMED: Final = 100


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was signed: in which file, from which entry on (None where no
    entry is to be named)."""

    place: str
    problem: str
    index: int | None = None

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Report:
    """What became of it. `checkpoint` is None where there is none that is signed."""

    checkpoint: Checkpoint | None
    problems: Sequence[Problem]
    compared: int = 0
    """How many checkpoints that are known from elsewhere it was compared with."""
    leftovers: Sequence[str] = ()
    """Files beyond what is signed, at most LEFTOVERS_NAMED: an append broke off there, or waits
    for its signature. They are no part of the log, and no problem."""

    @property
    def is_sound(self) -> bool:
        return not self.problems


def verify_log(
    store: LogStore,
    origin: str,
    verifier: Verifier,
    *,
    known: Sequence[Checkpoint] = (),
    witnesses: Sequence[Verifier] = (),
    progress: Callable[[int], None] = lambda entries: None,
) -> Report:
    """Read all of a log. `verifier` is the log's public key, under any name; `known` are
    checkpoints of it that were kept elsewhere; `progress` is told the entries of each bundle.

    Memory is bounded, whatever the log's size. Raises TransientError when the store is away."""
    verifier = verifier.named(origin)
    note = store.read(CHECKPOINT)
    if note is None:
        if known:
            largest = max(one.size for one in known)
            gone = f"is missing; a checkpoint of {largest} entries is known"
            return Report(None, [Problem(CHECKPOINT, gone)])
        return Report(None, [Problem(CHECKPOINT, "is missing")])
    try:
        checkpoint = Checkpoint.parse(note, verifier)
    except NoteError as error:
        return Report(None, [Problem(CHECKPOINT, str(error))])
    problems = list(_Tiles(store, checkpoint.size, progress).problems())
    held, bad = _cosigned(store, verifier, witnesses)
    problems += bad
    held += known
    try:
        read_edge(store, checkpoint)
    except LogCorruptError as error:
        told = {problem.place for problem in problems}
        if error.place not in told:
            problems.append(Problem(error.place, error.problem, error.index))
    if not problems:
        problems += _against(held, AuditReader(store, checkpoint, verifier))
    return Report(checkpoint, problems, len(held), _leftovers(store, checkpoint.size))


class _Tiles:
    """Entries against the tiles of level 0, and every tile against the one above."""

    def __init__(self, store: LogStore, size: int, progress: Callable[[int], None]) -> None:
        self._store = store
        self._size = size
        self._progress = progress
        self._above: tuple[int, int, bytes | None] | None = None

    def problems(self) -> Iterator[Problem]:
        for level in range(levels(self._size)):
            number = 0
            while width := tile_width(level, number, self._size):
                yield from self._one(level, number, width)
                number += 1

    def _one(self, level: int, number: int, width: int) -> Iterator[Problem]:
        path, hashes = tile_path(level, number, width), None
        try:
            path, hashes = read_tile(self._store, level, number, width)
        except LogCorruptError as error:
            yield Problem(error.place, error.problem, number << (TILE_BITS * (level + 1)))
        signed = self._signed(level, number, width)
        fits = hashes is None or signed is None or tree.root_of(hashes) == signed
        found: bytes | None = None
        if level == 0:
            found, bad = self._entries(number, width, hashes)
            yield from bad
            self._progress(width)
        if fits:
            return
        if found is not None and tree.root_of(found) == signed:
            index = number * TILE_WIDTH + first_difference(hashes or b"", found)
            yield Problem(path, f"the hash of entry {index} is not what was signed", index)
        else:
            above = tile_path(level + 1, number // TILE_WIDTH, self._width_above(level, number))
            start = number << (TILE_BITS * (level + 1))
            stop = start + (width << (TILE_BITS * level))
            what = f"does not make up hash {number % TILE_WIDTH} of {above}: one of the two is not"
            yield Problem(path, f"{what} what was signed (entries {start} to {stop - 1})", start)

    def _entries(
        self, number: int, width: int, hashes: bytes | None
    ) -> tuple[bytes | None, list[Problem]]:
        """The hashes of a bundle's entries, and how they differ from the tile's."""
        try:
            path, entries = read_bundle(self._store, number, width, hashes)
        except LogCorruptError as error:
            first = number * TILE_WIDTH if error.index is None else error.index
            return None, [Problem(error.place, error.problem, first)]
        found = tree.leaf_hashes(entries)
        if hashes is None or found == hashes:
            return found, []
        first = first_difference(found, hashes)
        differ = sum(
            found[at : at + HASH_SIZE] != hashes[at : at + HASH_SIZE]
            for at in range(0, len(hashes), HASH_SIZE)
        )
        index = number * TILE_WIDTH + first
        others = f", nor are {differ - 1} behind it" if differ > 1 else ""
        return found, [Problem(path, f"entry {index} is not what its hash says{others}", index)]

    def _width_above(self, level: int, number: int) -> int:
        return tile_width(level + 1, number // TILE_WIDTH, self._size)

    def _signed(self, level: int, number: int, width: int) -> bytes | None:
        """What the tile above says of a full tile; None where it is not full, or that is gone."""
        if width < TILE_WIDTH:
            return None
        wanted = (level + 1, number // TILE_WIDTH)
        if self._above is None or self._above[:2] != wanted:
            content = None
            with suppress(LogCorruptError):  # told when its own turn comes
                _, content = read_tile(self._store, *wanted, self._width_above(level, number))
            self._above = (*wanted, content)
        at = number % TILE_WIDTH * HASH_SIZE
        content = self._above[2]
        return None if content is None else content[at : at + HASH_SIZE]


def _cosigned(
    store: LogStore, verifier: Verifier, witnesses: Sequence[Verifier]
) -> tuple[list[Checkpoint], list[Problem]]:
    """The checkpoints that were kept with a witness's signature."""
    held, problems = [], []
    for path in sorted(store.paths(COSIGNED)):
        try:
            note = store.read(path)
            if note is not None:
                held.append(Checkpoint.parse(note, verifier))
                cosignatures(note, witnesses)
        except NoteError as error:
            problems.append(Problem(path, str(error)))
    return held, problems


def _against(known: Sequence[Checkpoint], reader: AuditReader) -> Iterator[Problem]:
    """Whether the log goes on from every checkpoint that is known."""
    same = 0
    for one in sorted(known, key=lambda one: one.size):
        if one.origin != reader.checkpoint.origin:
            yield Problem(CHECKPOINT, f"one that is known is of another log, {one.origin}")
        elif one.size > reader.size:
            what = f"signs {reader.size} entries, and {one.size} were signed before"
            yield Problem(CHECKPOINT, f"{what}: it was cut or put back", reader.size)
        elif reader.root(one.size) != one.root:
            what = f"the log does not go on from the {one.size} entries that were signed before"
            where = f"another entry lies between {same} and {one.size - 1}"
            yield Problem(CHECKPOINT, f"{what}: {where}", same)
            return
        else:
            same = one.size


def _leftovers(store: LogStore, size: int) -> list[str]:
    found = []
    for path in store.paths():
        parts = parse_path(path)
        if parts is None:
            needed = path == CHECKPOINT or path.startswith(COSIGNED)
        else:
            level, number, width = parts
            needed = width <= tile_width(level or 0, number, size)
        if not needed:
            found.append(path)
        if len(found) == LEFTOVERS_NAMED:
            break
    return sorted(found)
