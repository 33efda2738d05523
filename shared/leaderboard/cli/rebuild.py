"""`leaderboard rebuild`: boards made anew from the record, by hand.

The consumers do this by themselves for every board that they find behind. By hand it is for a board
that somebody has spoiled, and for who wants to see it done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from confluent_kafka import Consumer, KafkaException, TopicPartition
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from leaderboard.cli.context import (
    CommandError,
    checked_id,
    console,
    environment,
    progress_console,
)
from leaderboard.errors import TransientError
from leaderboard.events import WAGERS
from leaderboard.model import Offset, TournamentId
from leaderboard.settings import (
    DatabaseSettings,
    KafkaSettings,
    RedisSettings,
    TombstoneSettings,
    load,
)

if TYPE_CHECKING:
    from leaderboard.rebuild import Rebuild

ASK_SECONDS = 10.0


@click.command(
    help="Make the boards of TOURNAMENTS anew from the record, or with --all every one that has "
    "to have a board. One that is not behind the record stays as it is, unless --force is given."
)
@click.argument("tournaments", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every tournament that has to have a board.")
@click.option("--force", is_flag=True, help="Also boards that are not behind.")
@click.option("--group", default="on-wager", show_default=True, help="The consumers of wagers.")
def rebuild(tournaments: tuple[str, ...], every: bool, force: bool, group: str) -> int:
    """Puts each board back as it stood after the last event that the group has done with; its
    consumer applies the rest from the log. Players go on reading meanwhile."""
    if every == bool(tournaments):
        raise click.UsageError("name tournaments, or say --all")
    wanted = [TournamentId(checked_id(text, "tournament")) for text in tournaments]
    settings = environment()
    kafka = load(KafkaSettings, settings)
    made = 0
    with _opened(settings) as (work, places):
        found = places if every else {t: places[t] for t in wanted if t in places}
        if missing := sorted(set(wanted) - set(found)):
            raise CommandError(
                f"the record has no live tournament {', '.join(missing)}: unknown to it, or over "
                "for so long that its board was let go (then reads come from the record)"
            )
        ends = _done(kafka, group, set(found.values()))
        with _bar() as bar:
            for tournament_id, partition in found.items():
                made += _make(work, bar, tournament_id, ends[partition], force=force)
    console.print(f"{made} of {len(found)} boards made anew", highlight=False)
    return 0


@contextmanager
def _opened(settings: Mapping[str, str]) -> Iterator[tuple[Rebuild, dict[TournamentId, int]]]:
    """What rebuilds, and the partition of every tournament in the record."""
    from leaderboard.adapters import sql_engine, sql_migrations
    from leaderboard.adapters.redis_board import RedisBoard
    from leaderboard.adapters.redis_client import check, connect
    from leaderboard.adapters.redis_directory import RedisDirectory
    from leaderboard.adapters.redis_erasures import RedisErasures
    from leaderboard.adapters.sql_snapshot import SqlSnapshots
    from leaderboard.rebuild import Rebuild

    key = load(TombstoneSettings, settings).bytes()
    engine = sql_engine.connect(load(DatabaseSettings, settings).url)
    client = connect(load(RedisSettings, settings).url)
    try:
        sql_migrations.check(engine)
        check(client)
        snapshots = SqlSnapshots(engine)
        board, erasures = RedisBoard(client, key), RedisErasures(client, key)
        work = Rebuild(board, RedisDirectory(client), erasures, snapshots)
        yield work, dict(snapshots.partitions())
    finally:
        client.close()
        engine.dispose()


def _done(kafka: KafkaSettings, group: str, partitions: set[int]) -> dict[int, Offset]:
    """Up to where the group has done with each partition: what lies above, it does itself."""
    own = {"group.id": group, "enable.auto.commit": False, "log_level": 2}
    consumer = Consumer({**kafka.client_config(), **own})
    try:
        asked = [TopicPartition(WAGERS, partition) for partition in sorted(partitions)]
        places = consumer.committed(asked, timeout=ASK_SECONDS)
    except KafkaException as error:
        raise TransientError(f"Kafka does not tell the place of {group}: {error}") from None
    finally:
        consumer.close()
    ends: dict[int, Offset] = {}
    for place in places:
        if place.error is not None or place.offset < 0:
            raise CommandError(f"no consumer of {group} has come by partition {place.partition}")
        ends[place.partition] = Offset(place.offset)
    return ends


def _make(
    work: Rebuild, bar: Progress, tournament_id: TournamentId, upto: Offset, *, force: bool
) -> bool:
    task = bar.add_task(tournament_id, total=None)

    def loaded(rows: int, players: int) -> None:
        bar.update(task, total=players, advance=rows)

    put = work.make(tournament_id, upto, force=force, loaded=loaded)
    told = f"made anew, up to offset {upto - 1}" if put else "is not behind"
    bar.update(task, description=f"{tournament_id} {told}", total=1, completed=1)
    return put


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=progress_console,
    )
