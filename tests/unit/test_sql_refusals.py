"""A database that is there and lets nobody in is told apart from one that is away, by its words."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError

from leaderboard.adapters import sql_engine
from leaderboard.errors import NotLetInError, TransientError

REFUSED = (
    'FATAL:  password authentication failed for user "archive"',
    'FATAL:  role "archive" does not exist',
    'FATAL:  database "leaderboard" does not exist',
    'FATAL:  permission denied for database "leaderboard"',
    "FATAL:  no such database: leaderboard",  # PgBouncer's
    "[28000] [Microsoft][ODBC Driver 18 for SQL Server]Login failed for user 'archive'.",
    '[42000] Cannot open database "leaderboard" requested by the login. The login failed.',
)
AWAY = (
    "FATAL:  the database system is starting up",
    "FATAL:  sorry, too many clients already",
    "connection is bad: Connection refused",
)


def told_of(words: str) -> TransientError:
    with pytest.raises(TransientError) as told, sql_engine.transient():
        raise OperationalError("SELECT 1", None, Exception(words))
    return told.value


@pytest.mark.parametrize("words", REFUSED)
def test_who_is_refused_is_not_let_in(words: str) -> None:
    assert type(told_of(words)) is NotLetInError


@pytest.mark.parametrize("words", AWAY)
def test_who_is_away_has_refused_nobody(words: str) -> None:
    assert type(told_of(words)) is TransientError
