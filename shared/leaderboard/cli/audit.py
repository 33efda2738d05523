"""`leaderboard audit`: what an auditor does with the signed log. See docs/audit.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import Progress

from leaderboard.cli.audit_log import (
    BROKEN,
    NO_SHARD,
    SHOWN_FAULTS,
    Faults,
    Logs,
    check_tombstone_key,
    progress,
    said,
    witness_of,
)
from leaderboard.cli.audit_witness import cosign
from leaderboard.cli.context import CommandError, checked_id, environment
from leaderboard.errors import NoteError
from leaderboard.model import Place
from leaderboard.settings import DatabaseSettings, TombstoneSettings, load

if TYPE_CHECKING:
    from leaderboard.audit.notes import Checkpoint, Verifier
    from leaderboard.audit.reader import AuditReader
    from leaderboard.record_ports import Head

EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
WRITTEN = click.Path(dir_okay=False, path_type=Path)
SHARDS = click.argument("shards", nargs=-1, metavar="[TOPIC/PARTITION]...")
SHOWN = click.option(
    "--show", "shown", type=click.IntRange(0), default=SHOWN_FAULTS, show_default=True,
    help="How many faults are told one by one; all are counted.",
)  # fmt: skip


@click.group(help="The audit log: verify, prove, rebuild, export.")
def audit() -> None:
    """AUDIT_LOG_URL, AUDIT_LOG_ORIGIN and AUDIT_PUBLIC_KEY say where it is and who signs it. Exit
    code 1 where something is not as it was signed; each fault is a line that says where."""


@audit.command()
@SHARDS
@click.option(
    "--checkpoint", "checkpoints", multiple=True, type=EXISTING, metavar="FILE",
    help="A checkpoint that was kept elsewhere: the log must still be that log.",
)  # fmt: skip
@click.option(
    "--consistent", nargs=2, type=EXISTING, metavar="OLD NEW",
    help="Only this: the log of checkpoint OLD is how that of NEW begins.",
)  # fmt: skip
@click.option("--witness", "witnesses", multiple=True, metavar="KEY", help="Of a witness.")
@click.option("--log-only", is_flag=True, help="Don't ask the record how far each shard was.")
@SHOWN
def verify(
    shards: tuple[str, ...],
    checkpoints: tuple[Path, ...],
    consistent: tuple[Path, Path] | None,
    witnesses: tuple[str, ...],
    log_only: bool,
    shown: int,
) -> int:
    """Read every leaf of every shard (or of these), and check it up to the signature.

    The record keeps how far each shard was: one that was cut short, made anew or taken away as a
    whole shows by that, or by a checkpoint that somebody has kept."""
    settings, faults = environment(), Faults(shown)
    logs = Logs(settings)
    if consistent is not None:
        _check_consistency(logs, consistent, faults)
        return faults.end()
    known = [_checkpoint_in(logs, file) for file in checkpoints]
    heads = {} if log_only else _heads(settings, logs)
    wanted = logs.places(shards)
    if not shards:
        wanted = sorted({*wanted, *heads, *(place for place, _ in known)})
    if not wanted:
        raise CommandError(NO_SHARD)
    keys = [witness_of(one) for one in witnesses]
    with progress() as bar:
        for place in wanted:
            kept = [one for at, one in known if at == place]
            _verify(logs, place, heads.get(place), kept, keys, bar, faults)
    return faults.end()


def _verify(
    logs: Logs,
    place: Place,
    head: Head | None,
    known: Sequence[Checkpoint],
    witnesses: Sequence[Verifier],
    bar: Progress,
    faults: Faults,
) -> None:
    from leaderboard.audit.reader import AuditReader
    from leaderboard.audit.verify import verify_log
    from leaderboard.audit_rebuild import AuditError, leaves_in

    store, verifier = logs.store(place), logs.verifier(place)
    task = bar.add_task(f"{place}", total=logs.size(place))
    report = verify_log(
        store, logs.origin_of(place), verifier,
        known=known, witnesses=witnesses, progress=partial(bar.advance, task),
    )  # fmt: skip
    first = last = None
    for problem in report.problems:
        faults.tell(f"{place}/{problem}")
    if report.checkpoint is not None and report.is_sound:
        # The tree is whole: what the leaves say of themselves has to be in order as well.
        reader = AuditReader(store, report.checkpoint, verifier)
        bar.reset(task, total=reader.size, description=f"{place}, leaves")
        try:
            for _, leaf in leaves_in(place, reader.entries(), partial(bar.advance, task)):
                first, last = leaf.offset if first is None else first, leaf.offset
        except AuditError as error:
            faults.tell(str(error))
        if (what := _unlike_head(reader, head)) is not None:
            faults.tell(f"{place}: {what}")
        root = reader.checkpoint.root.hex()
        seen = f", {report.compared} kept checkpoints" if report.compared else ""
        said(f"{place}: {reader.size:,} entries, offsets {first} to {last}{seen}, root {root}")
    for path in report.leftovers:
        said(f"{place}: not signed, beyond the end: {path}")
    bar.remove_task(task)


def _unlike_head(reader: AuditReader, head: Head | None) -> str | None:
    if head is None:
        return None
    if reader.size < head.size:
        return f"has {reader.size} entries, the record has seen {head.size}"
    if reader.root(head.size).hex() != head.root:
        return f"is not the log whose first {head.size} entries the record has seen"
    return None


def _heads(settings: Mapping[str, str], logs: Logs) -> dict[Place, Head]:
    """How far the record has seen this log's shards; nothing where no record is named."""
    if "DATABASE_URL" not in settings:
        return {}
    from leaderboard.adapters import sql_witness

    with _engine(settings) as engine, sql_witness.witness_of(engine, b"") as witness:
        heads = witness.heads()
    return {one.place: one for one in heads if one.origin == logs.origin_of(one.place)}


@contextmanager
def _engine(settings: Mapping[str, str]) -> Iterator[Any]:
    from leaderboard.adapters import sql_engine, sql_migrations

    engine = sql_engine.connect(load(DatabaseSettings, settings).url, pool_size=1)
    try:
        sql_migrations.check(engine)
        yield engine
    finally:
        engine.dispose()


def _checkpoint_in(logs: Logs, file: Path) -> tuple[Place, Checkpoint]:
    """The checkpoint in a file, and which shard's it is. Raises UsageError for one that is not
    of this log, or not signed by its key."""
    from leaderboard.audit.notes import Checkpoint

    note = file.read_bytes()
    origin = note.partition(b"\n")[0].decode("utf-8", "replace")
    if not origin.startswith(f"{logs.origin}/"):
        raise click.UsageError(f"{file}: is no checkpoint of {logs.origin}")
    (place,) = logs.places([origin.removeprefix(f"{logs.origin}/")])
    try:
        return place, Checkpoint.parse(note, logs.verifier(place))
    except NoteError as error:
        raise CommandError(f"{file}: {error}") from None


def _check_consistency(logs: Logs, files: tuple[Path, Path], faults: Faults) -> None:
    from leaderboard.audit.tree import is_consistent

    (place, old), (other, new) = (_checkpoint_in(logs, file) for file in files)
    if place != other:
        raise click.UsageError(f"the checkpoints are of two shards: {place} and {other}")
    if old.size > new.size:
        told = f"OLD has {old.size} entries and NEW {new.size}: the other way round"
        raise click.UsageError(told)
    where = f"{place} from {old.size} to {new.size}"
    try:
        reader = logs.open(place)
        path = reader.consistency(old.size, new.size)
        if is_consistent(old.size, old.root, new.size, new.root, path):
            said(f"{where}: consistent")
            return
        ours = [name for name, one in (("OLD", old), ("NEW", new))
                if reader.root(one.size) == one.root]  # fmt: skip
    except BROKEN as error:
        faults.tell(f"{where}: {error}")
        return
    told = f"only {ours[0]} is" if ours else "neither is"
    faults.tell(f"{where}: the checkpoints are of two different logs; {told} of this one")


# --- prove ---------------------------------------------------------------------------------------


@audit.command()
@click.option("--source", help="Of the wager (or another input): its source …")
@click.option("--id", "event_id", help="… and its id.")
@click.option("--tournament", help="Of the rank change: its tournament …")
@click.option("--sequence", type=click.IntRange(0), help="… and its sequence.")
@click.option("--entry", metavar="TOPIC/PARTITION:INDEX", help="A leaf by its number.")
@click.option("--out", type=WRITTEN, help="The file; default: named like the leaf.")
@click.option("--opening", type=WRITTEN, help="A file for what opens the leaf's commitment.")
def prove(
    source: str | None,
    event_id: str | None,
    tournament: str | None,
    sequence: int | None,
    entry: str | None,
    out: Path | None,
    opening: Path | None,
) -> int:
    """Write one file that proves one wager or one rank change, offline, with nothing but the
    public key."""
    from leaderboard.audit_leaves import decode, log_keys
    from leaderboard.cli.audit_proving import (
        Sought,
        find_change,
        find_entry,
        find_event,
        opening_of,
    )

    settings = environment()
    logs = Logs(settings)
    by_event = source is not None and event_id is not None
    by_change = tournament is not None and sequence is not None
    if by_event + (sequence is not None) + (entry is not None) != 1 or (
        sequence is not None and not by_change
    ):
        message = "name --source and --id, or --tournament and --sequence, or --entry"
        raise click.UsageError(message)
    if tournament is not None:
        checked_id(tournament, "tournament")
    with _maybe_engine(settings) as engine, progress() as bar:
        wants_key = by_event or opening is not None
        key = load(TombstoneSettings, settings).bytes() if wants_key else b""
        if wants_key:
            check_tombstone_key(logs, log_keys(key))
        sought = Sought(logs, bar, engine, key)
        if entry is not None:
            place, index, reader = find_entry(sought, entry)
        elif by_event:
            place, index, reader = find_event(sought, source or "", event_id or "", tournament)
        else:
            place, index, reader = find_change(sought, tournament or "", sequence or 0)
        if opening is not None:
            opened = opening_of(sought, decode(reader.entry(index)))
            opening.write_text(json.dumps(opened, indent=1) + "\n", encoding="utf-8")
    return _write_proof(place, index, reader, out)


def _write_proof(place: Place, index: int, reader: AuditReader, out: Path | None) -> int:
    from leaderboard.audit.proofs import Proof

    raw = reader.entry(index)
    proof = Proof(raw, index, reader.inclusion(index), reader.checkpoint)
    file = out or Path(f"{place.topic}-{place.partition}-{index}.tlog-proof")
    file.write_bytes(proof.text())
    said(raw.decode())
    said(f"{file}: entry {index:,} of {reader.size:,} in {reader.checkpoint.origin}")
    return 0


@contextmanager
def _maybe_engine(settings: Mapping[str, str]) -> Iterator[Any]:
    """The record, where one is named: it knows where things are, and nothing else is asked."""
    if "DATABASE_URL" not in settings:
        yield None
        return
    with _engine(settings) as engine:
        yield engine


# --- rebuild, export -----------------------------------------------------------------------------


@audit.command()
@click.option("--partition", "partitions", type=click.IntRange(0), multiple=True, help="Of wagers.")
@click.option("--log-only", is_flag=True, help="Ask neither the record nor the boards.")
@click.option(
    "--late", type=click.FloatRange(0), default=60.0, show_default=True,
    help="Seconds after which a change has to be in the log.",
)  # fmt: skip
@click.option(
    "--wait", type=click.FloatRange(0), default=30.0, show_default=True,
    help="Seconds for the log to come as far as record and boards.",
)  # fmt: skip
@SHOWN
def rebuild(
    partitions: tuple[int, ...], log_only: bool, late: float, wait: float, shown: int
) -> int:
    """Fold the log again, and compare every position change, every row of the record, and every
    board with what it comes to."""
    from leaderboard.cli.audit_rebuilding import rebuilt

    settings = environment()
    return rebuilt(
        settings, Logs(settings), set(partitions),
        log_only=log_only, late_s=late, wait_s=wait, shown=shown,
    )  # fmt: skip


@audit.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@SHARDS
def export(folder: Path, shards: tuple[str, ...]) -> int:
    """Write the leaves as Parquet files into FOLDER, one a shard, for an auditor's queries.

    Each row has its leaf's number, hash and bytes; what is exported was verified on the way."""
    return _export(Logs(environment()), folder, shards)


def _export(logs: Logs, folder: Path, shards: Sequence[str]) -> int:
    try:
        from leaderboard.adapters.parquet_leaves import write_leaves
    except ModuleNotFoundError as error:
        raise CommandError(
            f"{error.name} is not installed: it comes with leaderboard[audit-export]"
        ) from None
    from leaderboard.audit_rebuild import AuditError

    faults, places = Faults(), logs.found(shards)
    folder.mkdir(parents=True, exist_ok=True)
    with progress() as bar:
        for place in places:
            file = folder / f"{place.topic}-{place.partition}.parquet"
            task = bar.add_task(f"{place}", total=None)
            try:
                reader = logs.open(place)
                bar.update(task, total=reader.size)
                rows = write_leaves(
                    file, place, reader.entries(), reader.checkpoint.note,
                    partial(bar.advance, task),
                )  # fmt: skip
            except (*BROKEN, AuditError) as error:
                faults.tell(f"{place}: {error}")
            else:
                said(f"{file}: {rows:,} rows")
            bar.remove_task(task)
    return faults.end()


audit.add_command(cosign)
