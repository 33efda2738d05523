"""What `dlq replay` and `dlq drop` do: send once more, and mark what is done."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from leaderboard.cli.context import Api, CommandError, progress_console
from leaderboard.dead_letters import DeadLetter, Fate, mark, revive
from leaderboard.errors import LeaderboardError, NotFoundError, SettingsError, TransientError
from leaderboard.events import WAGERS, Record, format_time_ms
from leaderboard.model import State, TournamentId, is_id
from leaderboard.settings import RedisSettings, load

AT_ONCE: Final = 100
"""So many are sent, acknowledged, and marked: a crash in between repeats no more than these."""
OVER: Final = frozenset({State.ENDED, State.CANCELLED})
SHOWN: Final = 5


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
    """Raises CommandError when events would come too late for their tournament, unless forced;
    says so where nobody can be asked."""
    if topic != WAGERS:
        return
    named = {name for letter in letters for name in letter.tournaments() if is_id(name)}
    try:
        over = {name for name in sorted(named) if _state(settings, name) in OVER}
    except LeaderboardError as error:
        click.echo(f"warning: can't tell which tournaments are over: {error}", err=True)
        return
    if not over:
        return
    count = sum(1 for letter in letters if letter.tournaments() & over)
    shown = ", ".join(sorted(over)[:SHOWN]) + (" …" if len(over) > SHOWN else "")
    told = f"{count} of {len(letters)} are of tournaments that are over ({shown}): they will be"
    told += " recorded as tournament_ended or tournament_cancelled and change no score"
    if not force:
        raise CommandError(f"{told}; --force replays them all the same")
    click.echo(f"warning: {told}", err=True)


def _state(settings: Mapping[str, str], name: str) -> State | None:
    """As `query` says, else the directory in Redis; None: unknown there."""
    if "QUERY_URL" in settings:
        try:
            found = Api(settings, "operator", ("operator",)).call(
                "QUERY_URL", "GET", f"/v1/tournaments/{name}"
            )
            return State(found["state"])
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
    return None if summary is None else summary.terms.state
