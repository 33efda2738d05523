"""`leaderboard record`: schema and retention of the system of record, in DATABASE_URL."""

from __future__ import annotations

import time

import click

from leaderboard.cli.context import console, environment
from leaderboard.settings import DatabaseSettings, RetentionSettings, load


@click.group(help="The system of record, in DATABASE_URL.")
def record() -> None:
    """Nothing here touches a schema that is newer than this version, or not ours."""


@record.command(help="Take the schema forward, on an empty database or a filled one.")
@click.argument("revision", default="head")
def upgrade(revision: str) -> None:
    """Harmless when it is there already; two at once wait for each other."""
    from leaderboard.adapters import sql_migrations

    with console.status("taking the schema forward"):
        reached = sql_migrations.upgrade(_url(), revision)
    console.print(f"the record is at {reached}", highlight=False)


@record.command(help="Take the schema back to REVISION (`base`: nothing of it is left).")
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Don't ask.")
def downgrade(revision: str, yes: bool) -> None:
    """Says what will be lost, and asks."""
    from leaderboard.adapters import sql_migrations

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
    from leaderboard.adapters import sql_engine, sql_migrations

    engine = sql_engine.connect(_url(), pool_size=1)
    try:
        found = sql_migrations.status(engine)
    finally:
        engine.dispose()
    console.print(f"{found.fit}: the database {found.detail}", highlight=False, soft_wrap=True)
    return 0 if found.fit is sql_migrations.Fit.CURRENT else 1


@record.command(help="Say what is older than the policy of JURISDICTION keeps; --apply removes it.")
@click.option("--apply", "is_applied", is_flag=True, help="Remove it, for good.")
def retention(is_applied: bool) -> None:
    """Also makes the partitions of this month and the next."""
    from leaderboard.adapters import sql_engine, sql_migrations, sql_retention

    settings = environment()
    chosen = load(RetentionSettings, settings)
    policy = sql_retention.policy_of(chosen)
    console.print(
        f"{chosen.jurisdiction}: tournaments {policy.tournaments:,} days after their end, "
        f"connection attempts {policy.connection_attempts:,}, "
        f"dead letters {policy.dead_letters:,} ({policy.source})",
        highlight=False,
        soft_wrap=True,
    )
    engine = sql_engine.connect(_url(), pool_size=1)
    try:
        sql_migrations.check(engine)
        now_ms = time.time_ns() // 1_000_000
        work = sql_retention.Retention(engine, policy, now_ms)
        if is_applied:
            work.apply(lambda one: _tell("removed", one.what, one.rows))
        else:
            for one in work.plan():
                _tell("would remove", one.what, one.rows)
    finally:
        engine.dispose()


def _tell(verb: str, what: str, rows: int) -> None:
    console.print(f"{verb} {what}: {rows:,} rows", highlight=False, markup=False, soft_wrap=True)


def _url() -> str:
    return load(DatabaseSettings, environment()).url
