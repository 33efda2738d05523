"""`leaderboard relay` and `leaderboard outbox`: the producer's side, see `leaderboard.producer`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from leaderboard.cli.context import (
    CommandError,
    console,
    environment,
    print_table,
    table_of,
)
from leaderboard.errors import TransientError
from leaderboard.events import format_time_ms
from leaderboard.settings import DatabaseSettings, load

if TYPE_CHECKING:
    import sqlalchemy as sa

    from leaderboard.producer.tables import DialectName


@click.command(
    help="Send what the outbox in DATABASE_URL holds to Kafka, in order, until Ctrl-C. Any number "
    "of relays may run, each with a name of its own. /healthz, /readyz and /metrics are on PORT."
)
@click.option("--name", help="RELAY_NAME; default: the host's name.")
def relay(name: str | None) -> None:
    """Ends with 1 when a relay of this name is running."""
    from leaderboard.producer.service import run

    run(environment(), name)


@click.group(help="The outbox of a game platform, in DATABASE_URL.")
def outbox() -> None:
    """Nothing here sends; that is `leaderboard relay`."""


@outbox.command(help="Print the statements that make the outbox's tables.")
@click.option("--dialect", required=True, type=click.Choice(["postgresql", "mssql", "sqlite"]))
def ddl(dialect: DialectName) -> None:
    """For the database's own client, or a migration of the game platform's."""
    from leaderboard.producer import tables

    click.echo(tables.ddl(dialect), nl=False)


@outbox.command("list", help="Say how many events wait, and show those that were set aside.")
@click.option("--waiting", is_flag=True, help="Show those that wait, too.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="The oldest.")
def list_(waiting: bool, limit: int) -> None:
    """Oldest first. Shows no player."""
    from leaderboard.producer import lanes

    with _Database() as engine:
        rows = lanes.listed(engine, waiting=waiting, limit=limit)
        found = lanes.backlog(engine)
    wide = ("topic", "tournament", "source", "id", "refused")
    table = table_of("position", "written", *wide, wraps=wide)
    for row in rows:
        table.add_row(
            str(row.position),
            format_time_ms(row.written_at_ms),
            *(repr(text)[1:-1] for text in (row.topic, row.tournament_id or "")),
            *(repr(text)[1:-1] for text in (row.source, row.event_id)),
            repr(row.refused)[1:-1] if row.refused is not None else "",
        )
    if rows:
        print_table(table)
    age = f", the oldest for {found.oldest_ms / 1000:.0f} s" if found.waiting else ""
    console.print(
        f"{found.waiting} waiting{age}; {found.refused} refused", highlight=False, soft_wrap=True
    )


@outbox.command(help="Let the event at POSITION wait again, after its row was put right.")
@click.argument("position", type=click.IntRange(1))
def retry(position: int) -> None:
    """It is sent now, after all that was sent before it."""
    from leaderboard.producer import lanes

    with _Database() as engine:
        if not lanes.retry(engine, position):
            raise CommandError(f"there is no refused event at {position}")
    console.print(f"{position} waits again", highlight=False)


class _Database:
    """An engine for one command; the database's errors become one line."""

    def __enter__(self) -> sa.Engine:
        from leaderboard.producer.service import database

        self._engine = database(load(DatabaseSettings, environment()))
        return self._engine

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        self._engine.dispose()
        if isinstance(error, SQLAlchemyError):
            told = str(getattr(error, "orig", error)).strip().splitlines() or ["no reason given"]
            raise TransientError(f"the outbox can't be read: {told[0]}") from None
