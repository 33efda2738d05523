"""`leaderboard stack`, `run`, `token`, `schemas`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import click

from leaderboard.cli.context import CommandError, console, environment, issue_token

FIRST_PLAYER = "player-001"


def _replicas(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, int]:
    wanted: dict[str, int] = {}
    for text in values:
        name, _, count = text.partition("=")
        if not count.isdecimal():
            raise click.BadParameter(f"{text!r} is not of the form on-wager=2")
        wanted[name] = int(count)
    return wanted


@click.command(help="Run a stack until Ctrl-C; write its settings and pids to .stack.env.")
@click.option(
    "--kind",
    type=click.Choice(["local", "embedded"]),
    default="local",
    show_default=True,
    help="local: real Kafka, Redis, PostgreSQL, nginx. embedded: Python packages only.",
)
@click.option(
    "--redis",
    type=click.Choice(["single", "cluster"]),
    default="single",
    show_default=True,
    help="Of the local stack: one server, or three primaries with a replica each.",
)
@click.option("--free-ports", is_flag=True, help="Any free ports instead of the fixed ones.")
@click.option("--traces", is_flag=True, help="Trace wagers into a file, for `leaderboard trace`.")
@click.option(
    "--replicas",
    multiple=True,
    callback=_replicas,
    metavar="FUNCTION=N",
    help="Processes of a function that reads Kafka, e.g. on-wager=2. May be given again.",
)
def stack(
    kind: Literal["local", "embedded"],
    redis: str,
    free_ports: bool,
    traces: bool,
    replicas: dict[str, int],
) -> None:
    """The functions and all that they stand on, each its own process."""
    _run(
        kind,
        free_ports=free_ports,
        replicas=replicas,
        redis_cluster=redis == "cluster",
        traces=traces,
    )


@click.command(help="Run the embedded stack with sample players; print the board's address.")
@click.option("--free-ports", is_flag=True, help="Any free ports instead of the fixed ones.")
def run(free_ports: bool) -> None:
    """The first minute: nothing to install, something to see."""
    _run("embedded", free_ports=free_ports, sample_play=True)


def _run(
    kind: Literal["local", "embedded"],
    *,
    free_ports: bool,
    replicas: Mapping[str, int] | None = None,
    sample_play: bool = False,
    redis_cluster: bool = False,
    traces: bool = False,
) -> None:
    # Only these commands need the stack's packages.
    from leaderboard.stack.stack import (
        ENV_FILE,
        StackOptions,
        run_stack,
    )

    def tell(message: str) -> None:
        console.print(f"[dim]{kind} stack:[/dim] {message}", highlight=False)

    def ready(settings: Mapping[str, str]) -> None:
        console.print(f"[green]ready[/green], settings in {ENV_FILE}, logs in .stack/logs")
        page = f"{settings['QUERY_URL']}/?player={FIRST_PLAYER}"
        console.print(f"board: [bold]{page}[/bold]", highlight=False, soft_wrap=True)
        console.print("Ctrl-C stops everything")

    options = StackOptions(
        kind=kind,
        folder=Path.cwd(),
        free_ports=free_ports,
        replicas=replicas or {},
        sample_play=sample_play,
        redis_cluster=redis_cluster,
        traces=traces,
    )
    run_stack(options, tell, ready)


@click.command(help="Print a token of the stack's development issuer.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(["player", "operator", "auditor", "service"]),
    default=("player",),
    show_default=True,
    help="May be given again.",
)
@click.option("--subject", required=True, help="Id of the player or of the staff member.")
def token(roles: tuple[str, ...], subject: str) -> None:
    """For `curl` and friends."""
    click.echo(issue_token(environment(), subject, roles))


@click.command(help="Write the JSON Schemas of all events.")
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("docs/schemas"),
    show_default=True,
)
@click.option("--check", is_flag=True, help="Write nothing; fail if they are stale.")
def schemas(folder: Path, check: bool) -> None:
    """They are generated from the code's own models."""
    from leaderboard.schemas import files, write

    if not check:
        write(folder)
        return
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    wanted = files()
    if stale := sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n)):
        raise CommandError(f"{folder}: stale: {', '.join(stale)}; run `leaderboard schemas`")
