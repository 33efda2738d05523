"""What every command needs: settings, tokens, HTTP with clear errors, a console."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

import click
import httpx
from rich.console import Console
from rich.table import Table

from leaderboard.errors import (
    ForbiddenError,
    LeaderboardError,
    NotFoundError,
    SettingsError,
    TransientError,
    UnauthenticatedError,
)
from leaderboard.model import is_id

STACK_ENV: Final = ".stack.env"
TIMEOUT_SECONDS: Final = 15.0
PIPED_WIDTH: Final = 100_000

console: Final = Console()
"""Answers go to standard output; progress and errors to standard error."""
progress_console: Final = Console(stderr=True)


def table_of(*columns: str, right: Collection[str] = (), wraps: Collection[str] = ()) -> Table:
    """An empty table for `print_table`. A cell has one line, but in the columns that `wraps` names
    as many as a terminal makes of it."""
    table = Table(box=None, pad_edge=False)
    for name in columns:
        justify = "right" if name in right else "left"
        table.add_column(name, overflow="fold", no_wrap=name not in wraps, justify=justify)  # type: ignore[arg-type]
    return table


def print_table(table: Table) -> None:
    """To a terminal as wide as it is; where a program reads it a line a row, with whole values."""
    wide = console if console.is_terminal else Console(width=PIPED_WIDTH)
    wide.print(table, highlight=False, markup=False)


class CommandError(LeaderboardError):
    """A command can't do what it was asked for; the message is all that a person needs."""


def environment(folder: Path | None = None) -> dict[str, str]:
    """The environment over `.stack.env` of the working directory."""
    path = (folder or Path.cwd()) / STACK_ENV
    found: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            name, equals, value = line.partition("=")
            if equals and not name.startswith("#"):
                found[name.strip()] = value
    return found | {name: value for name, value in os.environ.items() if value}


def setting(settings: Mapping[str, str], name: str) -> str:
    """One setting. Raises SettingsError telling where it could come from."""
    value = settings.get(name)
    if value is None:
        raise SettingsError(f"{name}: is missing; set it, or start `leaderboard stack` here")
    return value


def checked_id(text: str, what: str) -> str:
    """`text` if it may name a tournament or a player. Raises CommandError."""
    if not is_id(text):
        raise CommandError(f"{what} {text[:80]!r} is no id: 1 to 64 of A-Z a-z 0-9 _ -")
    return text


def first_fault(error: ValueError) -> str:
    """What is wrong with an event, in one line: the first fault that its model finds."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    one = errors()[0]
    place = ".".join(map(str, one["loc"]))
    return f"{place}: {one['msg']}" if place else str(one["msg"])


class Api:
    """The functions over HTTP, with a token of the development issuer or LEADERBOARD_TOKEN."""

    def __init__(self, settings: Mapping[str, str], subject: str, roles: tuple[str, ...]) -> None:
        self._settings = settings
        self._subject = subject
        self._roles = roles
        self._token: str | None = settings.get("LEADERBOARD_TOKEN")

    def call(self, url_setting: str, method: str, path: str, **request: Any) -> Any:
        """The JSON answer. Raises a LeaderboardError that says what the function said."""
        url = setting(self._settings, url_setting) + path
        if self._token is None:
            self._token = issue_token(self._settings, self._subject, self._roles)
        headers = {"Authorization": f"Bearer {self._token}"}
        return _json(_request(method, url, headers=headers, **request), url)


def operator_api() -> Api:
    """The functions, for an operator."""
    return Api(environment(), "cli", ("operator",))


def add_decision(
    group: click.Group,
    verb: str,
    about: str,
    help_text: str,
    decide: Callable[[str, str, str | None], None],
    question: str | None = None,
) -> None:
    """A command `verb` of the group: `decide` is told which thing, the verb, and why. With
    `question` it asks first; --yes answers."""

    @group.command(verb, help=help_text)
    @click.argument(about)
    @click.option("--reason")
    def command(reason: str | None, **given: str) -> None:
        decide(given[about], verb, reason)

    if question is not None:
        click.confirmation_option(prompt=question)(command)


def issue_token(settings: Mapping[str, str], subject: str, roles: tuple[str, ...]) -> str:
    """A token of the stack's own issuer."""
    url = f"{setting(settings, 'ISSUER_URL')}/token"
    body = {"subject": subject, "roles": list(roles)}
    return str(_json(_request("POST", url, json=body), url)["token"])


def _request(method: str, url: str, **request: Any) -> httpx.Response:
    try:
        return httpx.request(method, url, timeout=TIMEOUT_SECONDS, **request)
    except httpx.HTTPError as error:
        raise TransientError(f"{url} does not answer: {error}") from None


def _json(response: httpx.Response, url: str) -> Any:
    try:
        body = response.json() if response.content else {}
    except ValueError:
        body = {}
    if response.is_success:
        return body
    told = body if isinstance(body, dict) else {}
    detail = told.get("detail") or told.get("error") or response.reason_phrase
    faults = "; ".join(f"{one.get('field')}: {one.get('detail')}" for one in told.get("errors", []))
    message = f"{response.status_code} from {url}: {detail}" + (f" ({faults})" if faults else "")
    match response.status_code:
        case 401:
            raise UnauthenticatedError(message)
        case 403:
            raise ForbiddenError(message)
        case 404:
            raise NotFoundError(message)
        case code if code == 429 or code >= 500:
            raise TransientError(message)
        case _:
            raise CommandError(message)
