"""The record for who only reads it, and goes on without it."""

from __future__ import annotations

import sqlalchemy as sa

from leaderboard.adapters import sql_migrations
from leaderboard.adapters.sql_alerts import SqlAlerts
from leaderboard.adapters.sql_holdings import SqlHoldings
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.adapters.sql_requests import SqlRequests
from leaderboard.errors import SettingsError, TransientError


def opened(engine: sa.Engine) -> SqlRecord:
    """The record in this database.

    Raises TransientError while the database is away, and also while its schema is not the one of
    this version: it may be on its way there, and who reads has boards meanwhile."""
    _check(engine)
    return SqlRecord(engine)


def requests_in(engine: sa.Engine) -> SqlRequests:
    """The requests to forget in this database. Raises as `opened`."""
    _check(engine)
    return SqlRequests(engine)


def holdings_in(engine: sa.Engine) -> SqlHoldings:
    """What this database holds on players. Raises as `opened`."""
    _check(engine)
    return SqlHoldings(engine)


def opened_alerts(engine: sa.Engine) -> SqlAlerts:
    """The operators' queue in this database. Raises as `opened`."""
    _check(engine)
    return SqlAlerts(engine)


def _check(engine: sa.Engine) -> None:
    try:
        sql_migrations.check(engine)
    except SettingsError as error:
        raise TransientError(str(error)) from None
