"""`leaderboard produce`: one event from options, a file of events, or generated play."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from leaderboard.cli.context import (
    CommandError,
    checked_id,
    console,
    environment,
    first_fault,
    progress_console,
)
from leaderboard.codec import STRUCTURED_TYPE, decode_http, decode_kafka, encode_kafka
from leaderboard.errors import RefusedError
from leaderboard.events import (
    WAGERS,
    Event,
    Record,
    ScoreSubmitted,
    WagerPlaced,
)
from leaderboard.hosts.tracing import tracing_of
from leaderboard.model import TournamentId
from leaderboard.settings import KafkaSettings, TracingSettings, load

if TYPE_CHECKING:
    from leaderboard.stack.sender import Sender

SOURCE = "/cli"


@click.command(
    help="Send events to Kafka and wait for their acknowledgements. One wager from the options, "
    "or --file with CloudEvents, or --count generated wagers."
)
@click.option("--tournament", metavar="ID", help="Whom the wager counts for.")
@click.option("--player", metavar="ID", help="Who plays.")
@click.option("--stake", type=click.IntRange(0), help="Stake in minor units.")
@click.option("--win", type=click.IntRange(0), default=0, help="Win in minor units.")
@click.option("--currency", default="EUR", show_default=True)
@click.option("--game", default="crash-star", show_default=True, metavar="ID")
@click.option("--score", type=int, help="Send score.submitted with this instead of a wager.")
@click.option("--subscore", type=int, help="Second key of --score.")
@click.option("--id", "event_id", help="Id of the event; default: a new one.")
@click.option(
    "--file",
    "file",
    type=click.File("r", encoding="utf-8"),
    help="JSON lines, each a structured CloudEvent; - is standard input.",
)
@click.option("--topic", default=WAGERS, show_default=True, help="For --file.")
@click.option("--count", type=click.IntRange(1), help="Generate this many wagers.")
@click.option("--rate", type=click.FloatRange(min=0.1), help="Wagers a second; default: all.")
@click.option("--players", type=click.IntRange(1, 100_000), default=500, show_default=True)
@click.option("--seed", type=int, help="The same play again (with new ids).")
def produce(  # noqa: PLR0913 - they are options
    *,
    tournament: str | None,
    player: str | None,
    stake: int | None,
    win: int,
    currency: str,
    game: str,
    score: int | None,
    subscore: int | None,
    event_id: str | None,
    file: TextIO | None,
    topic: str,
    count: int | None,
    rate: float | None,
    players: int,
    seed: int | None,
) -> None:
    """Waits for every acknowledgement and says how many there were."""
    from leaderboard.stack.sender import Sender

    if file is not None:
        events, total = _from_file(file, topic), _lines(file)
    else:
        if tournament is None:
            raise click.UsageError("--tournament is wanted, or --file")
        if topic != WAGERS:
            raise click.UsageError("--topic is for --file: wagers and scores go to wagers")
        tournament_id = TournamentId(checked_id(tournament, "tournament"))
        if count is not None:
            total = count
            events = _generated(tournament_id, count, players, currency, seed)
        else:
            total = 1
            data = _data(tournament_id, player, stake, win, currency, game, score, subscore)
            events = iter([_event(data, event_id)])
    settings = environment()
    sender = Sender(load(KafkaSettings, settings))
    with closing(tracing_of("produce", load(TracingSettings, settings))) as tracing:
        records = (encode_kafka(tracing.begun(event, topic), topic) for event in events)
        _send_all(sender, records, total, rate)
    console.print(f"{sender.acknowledged} of {sender.sent} acknowledged", highlight=False)


def _data(  # noqa: PLR0913, PLR0917 - they are options
    tournament_id: TournamentId,
    player: str | None,
    stake: int | None,
    win: int,
    currency: str,
    game: str,
    score: int | None,
    subscore: int | None,
) -> WagerPlaced | ScoreSubmitted:
    if player is None:
        raise click.UsageError("--player is wanted, or --count")
    player = checked_id(player, "player")
    try:
        if score is not None:
            return ScoreSubmitted(
                tournament_id=tournament_id, player_id=player, score=score, subscore=subscore
            )
        if stake is None:
            raise click.UsageError("--stake or --score is wanted")
        return WagerPlaced(
            tournament_id=tournament_id,
            player_id=player,
            game_id=game,
            stake_minor=stake,
            win_minor=win,
            currency=currency,
        )
    except ValueError as error:
        raise CommandError(f"the event would be refused: {first_fault(error)}") from None


def _event(data: WagerPlaced | ScoreSubmitted, event_id: str | None) -> Event:
    event = Event(
        id=event_id or uuid.uuid4().hex,
        source=SOURCE,
        time_ms=time.time_ns() // 1_000_000,
        subject=data.player_id,
        data=data,
    )
    try:
        decode_kafka(
            encode_kafka(event, WAGERS)
        )  # an id is given by hand, and not every one would be taken
    except RefusedError as error:
        raise CommandError(f"{error.reason}: {error.detail}") from None
    return event


def _generated(
    tournament_id: TournamentId, count: int, players: int, currency: str, seed: int | None
) -> Iterator[Event]:
    from leaderboard.stack.play import Crowd, wager

    rounds = Crowd(players, random.Random(seed)).rounds()  # noqa: S311 - no secret
    for _, played in zip(range(count), rounds, strict=False):
        now_ms = time.time_ns() // 1_000_000
        yield wager(played, tournament_id, SOURCE, now_ms, currency)


def _lines(file: TextIO) -> int | None:
    """How many lines a file on disk has; None for a pipe."""
    path = Path(file.name)
    if not path.is_file():
        return None
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _read(file: TextIO) -> Iterator[str]:
    try:
        yield from file
    except UnicodeDecodeError as error:
        raise CommandError(f"{file.name} is no UTF-8: {error.reason}") from None


def _from_file(file: TextIO, topic: str) -> Iterator[Event]:
    for number, line in enumerate(_read(file), start=1):
        if not line.strip():
            continue
        try:
            yield decode_http({"content-type": STRUCTURED_TYPE}, line.encode(), topic)
        except RefusedError as error:
            raise CommandError(f"line {number}: {error.reason}: {error.detail}") from None


def _send_all(
    sender: Sender, records: Iterator[Record], total: int | None, rate: float | None
) -> None:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=progress_console,
        disable=total == 1,
        transient=True,
    ) as progress:
        task = progress.add_task("acknowledged", total=total)
        started = time.monotonic()
        try:
            for index, record in enumerate(records):
                if rate is not None and (ahead := started + index / rate - time.monotonic()) > 0:
                    time.sleep(ahead)
                sender.send_record(record)
                if index % 100 == 0 or rate is not None:
                    progress.update(task, completed=sender.acknowledged)
        finally:
            # Also when a line was wrong: what went before is on its way.
            sender.flush()
            progress.update(task, completed=sender.acknowledged)
