"""The record for who only reads it, and goes on without it."""

from __future__ import annotations

import sqlalchemy as sa

from leaderboard.adapters import sql_migrations
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.errors import SettingsError, TransientError


def opened(engine: sa.Engine) -> SqlRecord:
    """The record in this database.

    Raises TransientError while the database is away, and also while its schema is not the one of
    this version: it may be on its way there, and who reads has boards meanwhile."""
    try:
        sql_migrations.check(engine)
    except SettingsError as error:
        raise TransientError(str(error)) from None
    return SqlRecord(engine)
