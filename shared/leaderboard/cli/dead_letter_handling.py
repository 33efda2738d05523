"""What `dlq replay` and `dlq drop` do: send once more, and mark what is done."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from leaderboard.cli.context import Api, CommandError, progress_console
from leaderboard.codec import decode_kafka
from leaderboard.dead_letters import DeadLetter, Fate, mark, revive
from leaderboard.errors import (
    LeaderboardError,
    NotFoundError,
    RefusedError,
    SettingsError,
    TransientError,
)
from leaderboard.events import (
    WAGERS,
    Record,
    ScoreSubmitted,
    WagerPlaced,
    format_time_ms,
    parse_time_ms,
)
from leaderboard.model import State, TournamentId, is_id
from leaderboard.settings import RedisSettings, load

AT_ONCE: Final = 100
"""So many are sent, acknowledged, and marked: a crash in between repeats no more than these."""
OVER: Final = frozenset({State.ENDED, State.CANCELLED})
SHOWN: Final = 5


class Span(NamedTuple):
    """What decides whether an event comes in time."""

    state: State
    starts_at_ms: int
    ends_at_ms: int


class Sink(Protocol):
    """Where records go: returns when all are acknowledged, else raises TransientError."""

    def send(self, records: Iterable[Record]) -> None: ...


def handle(letters: Sequence[DeadLetter], fate: Fate, by: str, sink: Sink) -> int:
    """Replay or drop these, in order; how many. Safe to repeat: what was sent and not marked is
    sent again, with the same id. Raises TransientError, saying how many are done."""
    done = 0
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=progress_console,
        transient=True,
    ) as progress:
        task = progress.add_task(fate, total=len(letters))
        for start in range(0, len(letters), AT_ONCE):
            some = letters[start : start + AT_ONCE]
            at = format_time_ms(time.time_ns() // 1_000_000)
            try:
                if fate == "replayed":
                    sink.send([revive(letter) for letter in some])
                sink.send([mark(letter, fate, by, at) for letter in some])
            except TransientError as error:
                told = f"{done} of {len(letters)} {fate}, the rest may be tried again: {error}"
                raise TransientError(told) from None
            done += len(some)
            progress.update(task, completed=done)
    return done


def warn_of_ended(
    settings: Mapping[str, str], topic: str, letters: Sequence[DeadLetter], *, force: bool
) -> None:
    """Raises CommandError when events would come too late for their tournament, or happened before
    it starts or after it ends, unless forced; says so where nobody can be asked."""
    if topic != WAGERS:
        return
    named = {name for letter in letters for name in letter.tournaments() if is_id(name)}
    try:
        spans = {name: found for name in sorted(named) if (found := _span(settings, name))}
    except LeaderboardError as error:
        click.echo(f"warning: can't tell which tournaments are over: {error}", err=True)
        return
    over = {name for name, span in spans.items() if span.state in OVER}
    late = [letter for letter in letters if letter.tournaments() & over]
    aside = {name for letter in letters for name in [_out_of_time(letter, spans)] if name} - over
    told = []
    if late:
        told.append(
            f"{len(late)} of {len(letters)} are of tournaments that are over ({_names(over)}): "
            "they will be recorded as tournament_ended or tournament_cancelled and change no score"
        )
    if aside:
        count = sum(1 for letter in letters if _out_of_time(letter, spans) in aside)
        told.append(
            f"{count} of {len(letters)} happened before the start or after the end of their "
            f"tournament ({_names(aside)}): they will be recorded as not_started or "
            "tournament_ended and change no score, unless its schedule is put right first"
        )
    if not told:
        return
    if not force:
        raise CommandError(f"{'; '.join(told)}; --force replays them all the same")
    for one in told:
        click.echo(f"warning: {one}", err=True)


def _names(found: set[str]) -> str:
    return ", ".join(sorted(found)[:SHOWN]) + (" …" if len(found) > SHOWN else "")


def _out_of_time(letter: DeadLetter, spans: Mapping[str, Span]) -> str | None:
    """The tournament of a wager or score that its time keeps from counting; None: of no such."""
    try:
        event = decode_kafka(revive(letter))
    except RefusedError:
        return None
    if not isinstance(event.data, WagerPlaced | ScoreSubmitted):
        return None
    name = event.data.tournament_id
    span = spans.get(name)
    if span is None or span.starts_at_ms <= event.time_ms < span.ends_at_ms:
        return None
    return name


def _span(settings: Mapping[str, str], name: str) -> Span | None:
    """As `query` says, else the directory in Redis; None: unknown there."""
    if "QUERY_URL" in settings:
        try:
            found = Api(settings, "operator", ("operator",)).call(
                "QUERY_URL", "GET", f"/v1/tournaments/{name}"
            )
            starts, ends = (parse_time_ms(found[key]) for key in ("starts_at", "ends_at"))
            return Span(State(found["state"]), starts, ends)
        except NotFoundError:
            return None
        except LeaderboardError:
            if "REDIS_URL" not in settings:
                raise
    if "REDIS_URL" not in settings:
        raise SettingsError("QUERY_URL or REDIS_URL would tell, and none is set")
    from leaderboard.adapters.redis_client import connect
    from leaderboard.adapters.redis_directory import RedisDirectory

    summary = RedisDirectory(connect(load(RedisSettings, settings).url)).find(TournamentId(name))
    if summary is None:
        return None
    terms = summary.terms
    return Span(terms.state, terms.starts_at_ms, terms.ends_at_ms)
