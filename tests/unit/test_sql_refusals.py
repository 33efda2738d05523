"""A database that is there and lets nobody in is told apart from one that is away, by its words."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError

from leaderboard.adapters import sql_engine, sql_login
from leaderboard.errors import NotLetInError, SettingsError, TransientError
from leaderboard.stack.process import free_port

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


def test_who_knocks_where_nobody_is_finds_the_database_away() -> None:
    with pytest.raises(TransientError, match="away") as told:
        sql_login.knock(f"{sql_login.DRIVER}me:secret@127.0.0.1:{free_port()}/none")
    assert type(told.value) is TransientError
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("rest", "reason"),
    [("me:sec%zzret@127.0.0.1/x", "can't read"), ("me:secret@127.0.0.1/x?colour=red", "colour")],
)
def test_address_that_is_none_is_told_without_the_password(rest: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason) as told:
        sql_login.knock(sql_login.DRIVER + rest)
    assert "ret@" not in str(told.value)
