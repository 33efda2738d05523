"""OpenAPI documents of the functions that speak HTTP, written from their own routes."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from leaderboard.cli.context import CommandError
from leaderboard.hosts.http import HttpApp
from leaderboard.stack.functions import FUNCTIONS
from leaderboard.stack.kafka_jars import project_root

FOLDER: Final = Path("docs/api")
ANY_SETTINGS: Final[Mapping[str, str]] = {
    "REDIS_URL": "redis://redis.example:6379",
    "DATABASE_URL": "postgresql://database.example:5432/leaderboard",
    "KAFKA_BOOTSTRAP_SERVERS": "kafka.example:9092",
    "JWT_ISSUER": "https://issuer.example",
    "JWT_AUDIENCE": "leaderboard",
    "JWKS_URL": "https://issuer.example/jwks.json",
    "GATEWAY_KIND": "nchan",
    "GATEWAY_PUBLISH_URL": "http://gateway.example",
    "GATEWAY_CLIENT_URL": "wss://gateway.example/connect",
    "TOMBSTONE_KEY": "0" * 32,
}
"""A function checks its settings when it is imported, and connects to none of them then."""


def files(functions: Path | None = None) -> dict[str, str]:
    """The text of every document, by file name; the same for the same routes.

    `functions` is the folder of the functions, by default this project's own."""
    folder = functions or project_root() / "functions"
    names = sorted({one.folder for one in FUNCTIONS if one.target is not None})
    return {
        f"openapi-{name}.json": json.dumps(_document(folder, name), indent=2, ensure_ascii=False)
        + "\n"
        for name in names
    }


def _document(folder: Path, name: str) -> dict[str, object]:
    module_name = f"function_{name.replace('-', '_')}"
    spec = importlib.util.spec_from_file_location(module_name, folder / name / "main.py")
    if spec is None or spec.loader is None:
        raise CommandError(f"{folder / name}: holds no function")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pydantic look up names there
    with _settings(), _on_path(folder / name):
        spec.loader.exec_module(module)
    app: HttpApp = module.app
    return app.openapi()


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """As a function's host does it: modules beside `main.py` are found."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _settings() -> Iterator[None]:
    kept = dict(os.environ)
    os.environ.clear()
    os.environ.update(ANY_SETTINGS)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


def write(folder: Path) -> None:
    """Make `folder` hold exactly these documents."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = files()
    for stale in set(folder.glob("openapi-*.json")) - {folder / name for name in wanted}:
        stale.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")


@click.command(help="Write the OpenAPI documents of all functions that speak HTTP.")
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=FOLDER,
    show_default=True,
)
@click.option("--check", is_flag=True, help="Write nothing; fail if they are stale.")
def openapi(folder: Path, check: bool) -> None:
    """They are generated from the routes, so they can't disagree with the code."""
    if not check:
        write(folder)
        return
    paths = folder.glob("openapi-*.json")
    found = {path.name: path.read_text(encoding="utf-8") for path in paths}
    wanted = files()
    if stale := sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n)):
        raise CommandError(f"{folder}: stale: {', '.join(stale)}; run `leaderboard openapi`")
