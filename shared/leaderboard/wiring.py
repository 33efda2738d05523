"""What composition roots of HTTP functions share: drivers that a first request needs and a start
does not, imported then.

SQLAlchemy, joserfc and httpx were a third of a start; who is ready has time for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from leaderboard.hosts.first_use import FirstUse
from leaderboard.ports import Revisions, Tokens
from leaderboard.record_ports import Record, Snapshots
from leaderboard.settings import DatabaseSettings, TokenSettings

if TYPE_CHECKING:
    from sqlalchemy import Engine


def engine_of(settings: DatabaseSettings) -> FirstUse[Engine]:
    """The record's database."""

    def make() -> Engine:
        from leaderboard.adapters import sql_engine  # noqa: PLC0415 - see above

        return sql_engine.connect(settings.url)

    return FirstUse(make)


def record_of(engine: Callable[[], Engine]) -> FirstUse[Record]:
    """The record, for who reads it."""

    def make() -> Record:
        from leaderboard.adapters import sql_reading  # noqa: PLC0415 - see above

        return sql_reading.opened(engine())

    return FirstUse(make)


def snapshots_of(engine: Callable[[], Engine]) -> FirstUse[Snapshots]:
    """The record's snapshots of boards."""

    def make() -> Snapshots:
        from leaderboard.adapters.sql_snapshot import SqlSnapshots  # noqa: PLC0415 - see above

        return SqlSnapshots(engine())

    return FirstUse(make)


def revisions_of(api_url: str, account_folder: Path) -> FirstUse[Revisions]:
    """The revisions of Knative Services, seen and changed as this pod's ServiceAccount."""

    def make() -> Revisions:
        from leaderboard.adapters.knative_revisions import (  # noqa: PLC0415 - see above
            KnativeRevisions,
        )

        return KnativeRevisions(api_url, account_folder)

    return FirstUse(make)


def tokens_of(settings: TokenSettings) -> FirstUse[Tokens]:
    """Who checks bearer tokens."""

    def make() -> Tokens:
        from leaderboard.adapters.jwks_tokens import JwksTokens  # noqa: PLC0415 - see above

        return JwksTokens(settings)

    return FirstUse(make)
