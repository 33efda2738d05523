"""How PostgreSQL is reached, and whether it lets us in, without SQLAlchemy: to import that takes a
fifth of a second, and who only asks at a start has better to do."""

from __future__ import annotations

import re
from typing import Any, Final

from leaderboard.errors import NotLetInError, SettingsError, TransientError

CONNECT_SECONDS: Final = 5
STATEMENT_SECONDS: Final = 120
"""The longest single statement is the final board of a million players."""
POSTGRESQL: Final[dict[str, Any]] = {
    "connect_timeout": CONNECT_SECONDS,
    "options": f"-c statement_timeout={STATEMENT_SECONDS}s -c timezone=UTC",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "application_name": "leaderboard",
}
"""Of each connection, whoever opens it."""
DRIVER: Final = "postgresql+psycopg://"
"""How the settings write the address of a database that `knock` knows."""
_REFUSED: Final = re.compile(
    r'(password|\w+) authentication failed|(role|database) ".*" does not exist'
    r"|no pg_hba\.conf entry|not permitted to log in|no password supplied|Login failed for user"
    r"|permission denied for database|no such (database|user)|Cannot open database"
)
"""A connection that is refused comes without a state, only with words."""


def knock(url: str) -> None:
    """One connection and one short question; `url` begins with DRIVER. Raises TransientError while
    the database is away, NotLetInError where it refuses us, SettingsError for an address that is
    none."""
    import psycopg  # noqa: PLC0415 - whoever has another database need not have it

    address = "postgresql://" + url.removeprefix(DRIVER)
    try:
        with psycopg.connect(address, **POSTGRESQL) as connection:
            connection.execute("SELECT 1")
    except psycopg.OperationalError as error:
        raise away(error) from None
    except psycopg.Error as error:
        # What can't be read is repeated by the driver, and has the password in it.
        is_option = "invalid URI query parameter" in str(error)
        reason = told(error) if is_option else "the driver can't read this address"
        raise SettingsError(f"DATABASE_URL: {reason}") from None


def away(error: BaseException) -> TransientError:
    """What passes by itself, as our error: NotLetInError where its words say we are refused."""
    if _REFUSED.search(str(error)):
        return NotLetInError(f"the database does not let us in: {told(error)}")
    return TransientError(f"the database is away: {told(error)}")


def told(error: BaseException) -> str:
    """The first line of it: the rest would show values."""
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
