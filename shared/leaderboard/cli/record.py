"""`leaderboard record`: the schema of the system of record, in DATABASE_URL."""

from __future__ import annotations

import click

from leaderboard.cli.context import console, environment
from leaderboard.settings import DatabaseSettings, load


@click.group(help="The system of record, in DATABASE_URL.")
def record() -> None:
    """Nothing here touches a schema that is newer than this version, or not ours."""


@record.command(help="Take the schema forward, on an empty database or a filled one.")
@click.argument("revision", default="head")
def upgrade(revision: str) -> None:
    """Harmless when it is there already; two at once wait for each other."""
    from leaderboard.adapters import sql_migrations  # noqa: PLC0415 - only who needs it loads it

    with console.status("taking the schema forward"):
        reached = sql_migrations.upgrade(_url(), revision)
    console.print(f"the record is at {reached}", highlight=False)


@record.command(help="Take the schema back to REVISION (`base`: nothing of it is left).")
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Don't ask.")
def downgrade(revision: str, yes: bool) -> None:
    """Says what will be lost, and asks."""
    from leaderboard.adapters import sql_migrations  # noqa: PLC0415

    lost = sql_migrations.lost(_url(), revision)
    for name, rows in lost.items():
        console.print(f"lost: {name} with {rows:,} rows", highlight=False)
    if lost and not yes:
        click.confirm("Drop these tables for good?", abort=True)
    reached = sql_migrations.downgrade(_url(), revision)
    console.print(f"the record is at {reached}", highlight=False)


@record.command(
    help="Say at which revision the schema is; exit code 1 unless it is this version's."
)
def status() -> int:
    """Changes nothing."""
    from leaderboard.adapters import sql_engine, sql_migrations  # noqa: PLC0415

    engine = sql_engine.connect(_url(), pool_size=1)
    try:
        found = sql_migrations.status(engine)
    finally:
        engine.dispose()
    console.print(f"{found.fit}: the database {found.detail}", highlight=False, soft_wrap=True)
    return 0 if found.fit is sql_migrations.Fit.CURRENT else 1


def _url() -> str:
    return load(DatabaseSettings, environment()).url
