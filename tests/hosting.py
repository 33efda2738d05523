"""Functions as they are hosted: `main.py` imported by path by functions-framework itself."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import functions_framework
from flask import Flask
from flask.testing import FlaskClient
from openapi_spec_validator import OpenAPIV31SpecValidator

from audit_logs import ORIGIN, SIGNER
from leaderboard import events as ev
from leaderboard.adapters.kafka_feed import KafkaFeed
from leaderboard.fold import LogEntry
from leaderboard.hosts.first_use import FirstUse
from leaderboard.hosts.repeating import Repeating
from leaderboard.model import TournamentId
from leaderboard.ports import Board, Directory, Summary
from logs import LOG, TOMBSTONE_KEY
from records import RecordedLog

FUNCTIONS = Path(__file__).parents[1] / "functions"

SETTINGS = {
    "REDIS_URL": "redis://127.0.0.1:1",
    "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere",
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "JWT_ISSUER": "https://issuer.example",
    "JWT_AUDIENCE": "leaderboard",
    "JWKS_URL": "https://issuer.example/.well-known/jwks.json",
    "GATEWAY_KIND": "development",
    "GATEWAY_PUBLISH_URL": "http://127.0.0.1:1",
    "GATEWAY_CLIENT_URL": "ws://127.0.0.1:1/ws",
    "TOMBSTONE_KEY": TOMBSTONE_KEY.decode(),
    "AUDIT_LOG_URL": "file:///nowhere",
    "AUDIT_LOG_ORIGIN": ORIGIN,
    "AUDIT_SIGNING_KEY": SIGNER.private_text(),
}


@dataclass(frozen=True)
class Hosted:
    """A function behind its real host, and its module, whose ports a test may put."""

    client: FlaskClient
    main: Any


@contextmanager
def hosted(folder: str, settings: Mapping[str, str] | None = None) -> Iterator[Hosted]:
    """The function in `functions/<folder>`, with exactly these settings in its environment."""
    source = FUNCTIONS / folder / "main.py"
    target = folder.replace("-", "_")
    kept: ModuleType | None = sys.modules.get("main")
    path = list(sys.path)
    known = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environ = {**known, **(SETTINGS if settings is None else settings)}
    with patch.dict(os.environ, environ, clear=True):
        try:
            create_app: Callable[..., Flask] = functions_framework.create_app
            app = create_app(target, str(source), "http")
            yield Hosted(app.test_client(), sys.modules["main"])
        finally:
            # A function's own thread: left alone it would look for its servers for ever.
            for own in vars(sys.modules["main"]).values():
                if isinstance(own, Repeating):
                    own.stop()
                if isinstance(own, FirstUse) and isinstance(feed := own.made(), KafkaFeed):
                    feed.close()
            _stop_logging()
            sys.path[:] = path
            sys.modules.pop("main", None)
            if kept is not None:
                sys.modules["main"] = kept


def _stop_logging() -> None:
    """The function logs to what standard error was when it was loaded: with `capsys` something that
    is closed by the time a guard's thread has found out that a store is back."""
    for handler in logging.root.handlers[:]:
        if type(handler) is logging.StreamHandler:
            logging.root.removeHandler(handler)


def bearer(subject: str, *roles: str) -> dict[str, str]:
    """The header of a token that `ports.KnownTokens` believes."""
    return {"Authorization": f"Bearer {subject}:{','.join(roles)}"}


def check_description(one: Hosted, paths: set[str]) -> None:
    """The function describes itself in valid OpenAPI, with at least these paths."""
    told = one.client.get("/openapi.json").get_json()
    OpenAPIV31SpecValidator(told).validate()
    assert paths <= told["paths"].keys()


class Keeper:
    """What `on-wager` does to boards and directory, and `archive` to the record where one is given,
    without a broker: see `MemoryFeed`."""

    def __init__(
        self, board: Board, directory: Directory, recorded: RecordedLog | None = None
    ) -> None:
        self._board = board
        self._directory = directory
        self._recorded = recorded
        self.is_away = False
        self.archive_is_away = False

    def __call__(self, topic: str, entry: LogEntry) -> None:
        """Apply one entry of `wagers`; only the record reads `gdpr-events`."""
        if topic == ev.GDPR_EVENTS and self._recorded is not None and not self.archive_is_away:
            self._recorded.forget(entry)
        tournament_id = entry.event.tournament_id
        if topic != ev.WAGERS or tournament_id is None or self.is_away:
            return
        self.apply(tournament_id, [entry])

    def apply(self, tournament_id: TournamentId, entries: list[LogEntry]) -> None:
        applied = self._board.apply(tournament_id, LOG, None, entries, None)
        if applied.terms is not None and applied.terms_changed:
            self._directory.put(Summary(tournament_id, applied.terms))
        if self._recorded is not None and not self.archive_is_away:
            self._recorded.take(tournament_id, entries)
