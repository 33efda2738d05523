"""`leaderboard manifests`: the generated part of platform/."""

from __future__ import annotations

from pathlib import Path

import click

from leaderboard.cli.context import CommandError


@click.command(help="Write the files of platform/ that come from the code's own tables.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("platform"),
    show_default=True,
)
@click.option("--check", is_flag=True, help="Write nothing; fail if they are stale.")
def manifests(folder: Path, check: bool) -> None:
    """Topics, users and their rights, the gateway's configuration."""
    from leaderboard.stack.manifests import files

    stale = []
    for name, text in files().items():
        path = folder / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if check and stale:
        raise CommandError(f"{folder}: stale: {', '.join(stale)}; run `leaderboard manifests`")
