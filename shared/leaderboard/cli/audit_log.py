"""What the commands of `leaderboard audit` share: the log's shards as AUDIT_LOG_URL has them,
checked with AUDIT_PUBLIC_KEY; progress; faults."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Final

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from leaderboard.cli.context import CommandError, console, progress_console
from leaderboard.errors import LogCorruptError, NoteError, NotFoundError, SettingsError
from leaderboard.model import Place
from leaderboard.settings import AuditReaderSettings, load

if TYPE_CHECKING:
    from leaderboard.audit.notes import Verifier
    from leaderboard.audit.reader import AuditReader
    from leaderboard.audit.store import LogStore
    from leaderboard.audit_accounts import Fault
    from leaderboard.audit_leaves import LogKeys

SHOWN_FAULTS: Final = 100
POLL_SECONDS: Final = 0.5
LOOKED_AT: Final = 20
"""Leaves of each shard by which a wrong TOMBSTONE_KEY is known."""
NO_SHARD: Final = "there is no shard at AUDIT_LOG_URL"
BROKEN: Final = (LogCorruptError, NoteError, NotFoundError)
"""What is wrong with a log, or with a checkpoint of it."""


class Logs:
    """The shards of one audit log."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        from leaderboard.audit.notes import Verifier
        from leaderboard.wiring import log_stores_of

        loaded = load(AuditReaderSettings, settings)
        self.origin = loaded.origin
        try:
            self._verifier = Verifier.parse(loaded.public_key)
        except NoteError as error:
            raise SettingsError(f"AUDIT_PUBLIC_KEY: {error}") from None
        self._stores = log_stores_of(loaded)

    def places(self, wanted: Sequence[str] = ()) -> list[Place]:
        """The shards that there are; those alone that are wanted, whether there are any or not.

        Raises UsageError for a word that names no shard."""
        if not wanted:
            return [Place(*shard) for shard in self._stores.shards()]
        return [_place_of(word) for word in wanted]

    def found(self, wanted: Sequence[str] = ()) -> list[Place]:
        """The same. Raises CommandError where there is none: a folder that is not mounted, or a
        wrong prefix, looks like a log of which there is nothing to say."""
        places = self.places(wanted)
        if not places:
            raise CommandError(NO_SHARD)
        return places

    def origin_of(self, place: Place) -> str:
        return f"{self.origin}/{place}"

    def verifier(self, place: Place) -> Verifier:
        """The public key under the shard's name."""
        return self._verifier.named(self.origin_of(place))

    def store(self, place: Place) -> LogStore:
        """The shard's files."""
        from leaderboard.audit.store import Shard

        return self._stores.shard(Shard(*place))

    def size(self, place: Place) -> int | None:
        """How many entries its checkpoint says it has, signed or not; for a bar."""
        from leaderboard.audit.tiles import CHECKPOINT

        lines = (self.store(place).read(CHECKPOINT) or b"").split(b"\n", 2)
        return int(lines[1]) if len(lines) > 1 and lines[1].isdigit() else None

    def open(self, place: Place) -> AuditReader:
        """Raises one of BROKEN, with the file."""
        from leaderboard.audit.reader import AuditReader

        return AuditReader.open(self.store(place), self.origin_of(place), self._verifier)

    def open_at(self, place: Place, offset: int, wait_seconds: float) -> AuditReader | None:
        """The same when its last leaf is at `offset` or beyond: whoever writes it may be a batch
        behind. As it is after the wait; None where there is no such shard."""
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                reader = self.open(place)
            except NotFoundError:
                reader = None
            if reader is not None and last_offset(reader) >= offset:
                return reader
            if (reader is None and offset < 0) or time.monotonic() > deadline:
                return reader
            time.sleep(POLL_SECONDS)


def witness_of(text: str) -> Verifier:
    """A witness's key. Raises UsageError."""
    from leaderboard.audit.notes import Verifier

    try:
        return Verifier.parse(text)
    except NoteError as error:
        raise click.UsageError(f"a witness's key: {error}") from None


def last_offset(reader: AuditReader) -> int:
    """Of the last leaf; -1 in an empty log."""
    from leaderboard.audit_leaves import decode

    return decode(reader.entry(reader.size - 1)).offset if reader.size else -1


def check_tombstone_key(logs: Logs, keys: LogKeys) -> None:
    """Raises SettingsError where this is not the key that the log was written with.

    A position change's id follows from what its leaf says, so its keyed hash is known: of the
    first ones of each shard one has to fit. A log without any is believed."""
    from leaderboard.events import POSITION_CHANGES

    looked_at = 0
    for place in logs.places():
        if place.topic != POSITION_CHANGES:
            continue
        try:
            leaves = islice(logs.open(place).entries(), LOOKED_AT)
            fit = [fits for raw in leaves if (fits := _fits(raw, keys)) is not None]
        except BROKEN:
            continue  # to be told by who reads it all
        if any(fit):
            return
        looked_at += len(fit)
    if looked_at:
        raise SettingsError(
            f"TOMBSTONE_KEY: is not the key that the log at AUDIT_LOG_URL was written with: none "
            f"of {looked_at} position changes has the id that it gives"
        )


def _fits(raw: bytes, keys: LogKeys) -> bool | None:
    """None: a leaf that proves nothing."""
    from leaderboard.audit_leaves import LeafError, decode
    from leaderboard.events import POSITION_SOURCE

    try:
        leaf = decode(raw)
    except LeafError:
        return None
    if leaf.data is None or leaf.source != POSITION_SOURCE:
        return None
    return leaf.id == keys.id_of(leaf.source, f"{leaf.tournament_id}/{leaf.data.get('sequence')}")


def _place_of(word: str) -> Place:
    topic, _, number = word.rpartition("/")
    if not topic or not number.isascii() or not number.isdecimal():
        raise click.UsageError(f"{word[:80]!r} is no shard like wagers/3")
    return Place(topic, int(number))


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars on standard error; nothing where that is no terminal."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=progress_console,
        disable=not progress_console.is_terminal,
    )
    with bar:
        yield bar


class Faults:
    """Tells the first `shown` faults as they are found, on standard output, and counts all."""

    def __init__(self, shown: int = SHOWN_FAULTS) -> None:
        self.count = 0
        self._shown = shown

    def put(self, fault: Fault) -> None:
        self.tell(str(fault))

    def tell(self, what: str) -> None:
        self.count += 1
        if self.count <= self._shown:
            click.echo(f"fault: {what}")

    def end(self) -> int:
        """The command's exit code."""
        if self.count > self._shown:
            click.echo(f"fault: {self.count - self._shown} more")
        return 1 if self.count else 0


def said(text: str) -> None:
    """A line of the answer."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)
