"""`leaderboard dlq`: what was refused and why; send it once more, or be done with it."""

from __future__ import annotations

import getpass
import re
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

from leaderboard.cli.context import CommandError, console, environment, print_table, table_of
from leaderboard.cli.dead_letter_handling import handle, warn_of_ended
from leaderboard.cli.dead_letter_log import Kept, dead_letters
from leaderboard.dead_letters import DeadLetter, Fate
from leaderboard.errors import Refusal
from leaderboard.events import WAGERS, dead_letter_topic, parse_time_ms
from leaderboard.settings import KafkaSettings, load

SHOWN_BYTES: Final = 2000
_AGO: Final = re.compile(r"(\d{1,6})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
F = TypeVar("F", bound=Callable[..., Any])


def _moment(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """A time with a zone, or how long ago; as milliseconds since 1970."""
    if text is None:
        return None
    if (found := _AGO.fullmatch(text)) is not None:
        return time.time_ns() // 1_000_000 - int(found[1]) * _SECONDS[found[2]] * 1000
    try:
        return parse_time_ms(text)
    except ValueError:
        message = f"{text!r} is no time like 2026-01-31T18:00:00Z, 90s, 10m, 2h, 1d"
        raise click.BadParameter(message) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which dead letters a command is about: those for which all that is given holds."""

    topic: str
    places: tuple[str, ...] = ()
    reason: str | None = None
    since: int | None = None
    until: int | None = None
    tournament: str | None = None
    partition: int | None = None
    offset: int | None = None

    @property
    def is_of_everything(self) -> bool:
        given = (self.reason, self.since, self.until, self.tournament, self.partition, self.offset)
        return not self.places and all(one is None for one in given)

    def takes(self, letter: DeadLetter) -> bool:
        place = f"{letter.record.partition}:{letter.record.offset}"
        return (
            (not self.places or place in self.places)
            and self.reason in (None, letter.reason)
            and (self.since is None or letter.at_ms >= self.since)
            and (self.until is None or letter.at_ms < self.until)
            and self.partition in (None, letter.origin.partition)
            and self.offset in (None, letter.origin_offset)
            and (self.tournament is None or self.tournament in letter.tournaments())
        )


_SELECTION: Final = (
    click.option("--topic", default=WAGERS, show_default=True, help="Where they were refused."),
    click.option("--reason", type=click.Choice([one.value for one in Refusal])),
    click.option("--since", callback=_moment, help="Refused then or later: a time, or 2h (ago)."),
    click.option("--until", callback=_moment, help="Refused before: a time, or 10m (ago)."),
    click.option("--tournament", help="Named by key, attribute or data."),
    click.option("--partition", type=click.IntRange(0), help="Of TOPIC, where it was refused."),
    click.option("--offset", type=click.IntRange(0), help="In TOPIC, where it was refused."),
)
_HANDLING: Final = (
    click.argument("places", nargs=-1),
    click.option("--everything", is_flag=True, help="All that were not handled yet."),
    click.option("--dry-run", is_flag=True, help="Say which, and do nothing."),
    click.option("--yes", is_flag=True, help="Don't ask."),
    click.option("--by", help="Who decides it; default: the user of this machine."),
)


def _with(options: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.group(help="Dead letters: list, show, replay, drop.")
def dlq() -> None:
    """Kafka keeps them 14 days, whatever is done here."""


@dlq.command("list")
@_with(_SELECTION)
@click.option("--all", "with_handled", is_flag=True, help="Also replayed and dropped ones.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="The newest.")
def list_(*, with_handled: bool, limit: int, **given: Any) -> None:
    """List the events that were refused and not handled yet, the newest last.

    `again` says how often an event was replayed before it was refused once more."""
    selection = Selection(**given)
    found = dead_letters(environment(), selection.topic, selection.takes, with_values=False)
    kept = [one for one in found if with_handled or one.mark is None]
    kept.sort(key=lambda one: one.letter.at_ms)
    if kept:
        _show_table(kept[-limit:], with_handled=with_handled)
    handled = sum(one.mark is not None for one in found)
    told = f"{len(found) - handled} in {dead_letter_topic(selection.topic)}"
    console.print(told + (f", {handled} handled" if handled else ""), highlight=False)


def _show_table(kept: Sequence[Kept], *, with_handled: bool = False) -> None:
    columns = ["place", "reason", "from", "at", "again", *(["handled"] if with_handled else [])]
    table = table_of(*columns, "detail", wraps=("detail",))
    for one in kept:
        letter = one.letter
        row = [one.place, letter.reason, f"{letter.origin}@{letter.origin_offset}", letter.at]
        row.append(str(letter.attempts) if letter.attempts else "")
        if with_handled:
            row.append("" if one.mark is None else one.mark.fate)
        table.add_row(*map(_text, row), _text(letter.detail))
    print_table(table)


@dlq.command("show")
@click.argument("place")
@click.option("--topic", default=WAGERS, show_default=True)
def show(place: str, topic: str) -> None:
    """Show one refused event as it came: headers, key, value. PLACE as `dlq list` has it."""
    found = dead_letters(environment(), topic, Selection(topic=topic, places=(place,)).takes)
    if not found:
        raise CommandError(f"nothing at {place} in {dead_letter_topic(topic)}")
    (one,) = found
    for name, raw in one.letter.record.headers:
        click.echo(f"{_text(name)}: {_text(raw)}")
    if one.mark is not None:
        click.echo(f"handled: {one.mark.fate} by {_text(one.mark.by)} at {_text(one.mark.at)}")
    click.echo(f"key: {_text(one.letter.record.key)}")
    click.echo()
    click.echo(_text(one.letter.record.value))


@dlq.command()
@_with(_HANDLING)
@_with(_SELECTION)
@click.option("--force", is_flag=True, help="Also into tournaments that are over.")
@click.option("--again", is_flag=True, help="Also what was replayed or dropped before.")
def replay(
    *,
    everything: bool,
    dry_run: bool,
    yes: bool,
    by: str | None,
    force: bool,
    again: bool,
    **given: Any,
) -> None:
    """Send refused events once more: to the topic they came to, with the same key, value, id and
    source. PLACES as `dlq list` has them, or a selection by options.

    What is replayed twice counts once: boards know an event by source and id. Each one is marked
    as handled when Kafka has it; a crash before the mark leaves it in the list, and it may be
    replayed again. One that is refused once more comes back to the list, with a count.

    An event of a tournament that is over, or that happened outside its time, would change no score:
    that wants --force."""
    selection = Selection(**given)
    letters = _chosen(selection, everything=everything, again=again)
    warn_of_ended(environment(), selection.topic, letters, force=force or dry_run)
    _handle(letters, "replayed", f"to {selection.topic}", dry_run=dry_run, yes=yes, by=by)


@dlq.command()
@_with(_HANDLING)
@_with(_SELECTION)
def drop(*, everything: bool, dry_run: bool, yes: bool, by: str | None, **given: Any) -> None:
    """Be done with refused events without sending them: they leave the list. PLACES as `dlq list`
    has them, or a selection by options.

    Kafka can't take a record away: a mark is written behind it, `dlq list --all` and `dlq show`
    still have it until its 14 days are over, and `dlq replay --again` can send it."""
    selection = Selection(**given)
    letters = _chosen(selection, everything=everything)
    _handle(letters, "dropped", "for good", dry_run=dry_run, yes=yes, by=by)


def _chosen(selection: Selection, *, everything: bool, again: bool = False) -> list[DeadLetter]:
    if selection.is_of_everything != everything:
        raise click.UsageError("PLACES or a selection is wanted, or else --everything")
    found = dead_letters(environment(), selection.topic, selection.takes)
    letters = [one for one in found if again or one.mark is None]
    for missing in set(selection.places) - {one.place for one in letters}:
        was = [one.mark.fate for one in found if one.place == missing and one.mark]
        why = f"was {was[0]} already" if was else "is not in " + dead_letter_topic(selection.topic)
        raise CommandError(f"{missing} {why}")
    if letters:
        _show_table(letters[:20])
        if len(letters) > 20:
            console.print(f"… and {len(letters) - 20} more", highlight=False)
    return [one.letter for one in letters]


def _handle(
    letters: Sequence[DeadLetter], fate: Fate, how: str, *, dry_run: bool, yes: bool, by: str | None
) -> None:
    count = len(letters)
    if dry_run or not letters:
        console.print(f"{count} would be {fate}" if dry_run else "nothing to do", highlight=False)
        return
    if not yes:
        verb = "Replay" if fate == "replayed" else "Drop"
        click.confirm(f"{verb} {count} dead letter{'s' * (count > 1)} {how}?", abort=True)
    from leaderboard.adapters.kafka_feed import KafkaFeed

    with closing(KafkaFeed(load(KafkaSettings, environment()))) as feed:
        done = handle(letters, fate, by or _user(), feed)
    console.print(f"{done} {fate}", highlight=False)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def _text(raw: bytes | str | None) -> str:
    """Bytes as something that can't play tricks on a terminal."""
    if raw is None:
        return "(none)"
    size = len(raw)
    shown = raw[:SHOWN_BYTES]
    text = shown.decode("utf-8", "backslashreplace") if isinstance(shown, bytes) else shown
    safe = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return safe + (f" … {size} bytes" if size > SHOWN_BYTES else "")
