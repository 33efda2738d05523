"""How long the record keeps what, by jurisdiction, and the removal of what is older.

Whole tournaments go when their end lies further back than the policy; one that is not over, or
whose end board and record have not confirmed, is never touched. What stands beside tournaments
goes by its own age. On PostgreSQL a month in which nothing has to stay is dropped in one piece;
all else is deleted in chunks, each a transaction, so nothing is locked for long, and a run that is
cut off is simply repeated: a tournament's own row goes last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import reading, writing
from leaderboard.adapters.sql_months import LOCK, Months, month_of, partition_name
from leaderboard.errors import SettingsError
from leaderboard.model import State
from leaderboard.settings import RetentionSettings

CHUNK: Final = 10_000
"""Rows that one transaction deletes."""
_LOCK_SECONDS: Final = 5
_DAY_MS: Final = 24 * 3600 * 1000
TEN_YEARS: Final = 3_653
FIVE_YEARS: Final = 1_827
"""In days, with as many leap days as may lie in them."""


class Policy(NamedTuple):
    """Days for which things are kept, and where that is written."""

    tournaments: int
    """After a tournament's end: all that the record has of it."""
    connection_attempts: int
    dead_letters: int
    is_law: bool
    """Whether `tournaments` is a minimum that no setting may go below."""
    source: str


_ATTEMPTS: Final = 30
"""Addresses and user agents are personal data, kept for finding shared accounts; the contract
names this number, and no source that we know asks for more."""
_LETTERS: Final = 90
"""Six times what the topic keeps: enough to find a fault and replay, and they hold what nobody
could read, personal data perhaps, so no longer than that."""
POLICIES: Final[Mapping[str, Policy]] = {
    "default": Policy(
        TEN_YEARS, _ATTEMPTS, _LETTERS, False, "the longest that we know of any jurisdiction"
    ),
    "us-nj": Policy(
        TEN_YEARS, _ATTEMPTS, _LETTERS, True, "New Jersey, N.J.A.C. 13:69O-1.8(d): 10 years"
    ),
    "us-pa": Policy(
        TEN_YEARS, _ATTEMPTS, _LETTERS, True, "Pennsylvania, 58 Pa. Code § 811a.7(d): 10 years"
    ),
    "us-wv": Policy(
        FIVE_YEARS, _ATTEMPTS, _LETTERS, True, "West Virginia, W. Va. CSR 179-10-10: 5 years"
    ),
}


def policy_of(settings: RetentionSettings) -> Policy:
    """The jurisdiction's policy with the settings' numbers in it.

    Raises SettingsError for a number below what the jurisdiction asks for."""
    policy = POLICIES[settings.jurisdiction]
    wanted = settings.tournaments_days
    if wanted is not None and policy.is_law and wanted < policy.tournaments:
        raise SettingsError(
            f"RETENTION_TOURNAMENTS_DAYS: {wanted} is below {policy.tournaments}, which "
            f"JURISDICTION {settings.jurisdiction} asks for ({policy.source})"
        )
    return policy._replace(
        tournaments=wanted or policy.tournaments,
        connection_attempts=settings.connection_attempts_days or policy.connection_attempts,
        dead_letters=settings.dead_letters_days or policy.dead_letters,
    )


class Removal(NamedTuple):
    """Something that is older than the policy. `rows` counts what goes with it."""

    what: str
    rows: int


class _Aged(NamedTuple):
    """A table whose rows go by their own age."""

    table: sa.Table
    at_ms: sa.Column[Any]
    days: int
    stays: sa.ColumnElement[bool] | None = None
    """Which rows stay whatever their age."""


_T = tables.tournaments.c
_OF_NO: Final = (
    # The log is what all else could be made from again, so it goes after that.
    tables.final_standings,
    tables.standings,
    tables.event_ids,
    tables.producer_numbers,
    tables.exclusions,
    tables.erasures,
    tables.players,
    tables.terms_history,
    tables.inputs,
)
_OF_ID: Final = (
    tables.position_changes,
    tables.told_changes,
    tables.pseudonym_keys,
    tables.pseudonym_ends,
    tables.fraud_reviews,
    tables.fraud_alerts,
)


class Retention:
    """Removes what `policy` does not keep at the time `now_ms`."""

    def __init__(self, engine: sa.Engine, policy: Policy, now_ms: int) -> None:
        self._engine = engine
        self._policy = policy
        self._now_ms = now_ms
        self._has_months = engine.dialect.name == "postgresql"

    def plan(self) -> Iterator[Removal]:
        """What `apply` would remove. Changes nothing. Raises TransientError."""
        with reading(self._engine) as connection:
            for row in connection.execute(self._expired()).all():
                count = sum(
                    _count(connection, table, mine) for table, mine in _belongings(row)
                )  # fmt: skip
                yield Removal(_told(row), count + 1)
            for aged in self._aged():
                count = _count(connection, aged.table, self._is_old(aged))
                if count:
                    yield Removal(f"{aged.table.name} of more than {aged.days} days", count)

    def apply(self, removed: Callable[[Removal], None] = lambda one: None) -> None:
        """Remove it, and make the partitions of this month and the next. `removed` is told of
        each piece when it is gone. Raises TransientError; then run it again."""
        Months(self._engine).ensure(month_of(self._now_ms))
        if self._has_months:
            self._drop_months(removed)
        with reading(self._engine) as connection:
            expired = connection.execute(self._expired()).all()
        for row in expired:
            count = sum(self._delete(table, mine) for table, mine in _belongings(row))
            count += self._delete(tables.tournaments, _T.tournament_no == row.tournament_no)
            removed(Removal(_told(row), count))
        for aged in self._aged():
            count = self._delete(aged.table, self._is_old(aged))
            if count:
                removed(Removal(f"{aged.table.name} of more than {aged.days} days", count))

    # what is old

    def _before_ms(self, days: int) -> int:
        return self._now_ms - days * _DAY_MS

    def _is_expired(self) -> sa.ColumnElement[bool]:
        return sa.and_(
            _T.state.in_([State.ENDED.value, State.CANCELLED.value]),
            _T.confirmed_at_ms.is_not(None),
            _T.over_at_ms < self._before_ms(self._policy.tournaments),
        )

    def _expired(self) -> sa.Select[Any]:
        return (
            sa.select(_T.tournament_no, _T.tournament_id, _T.over_at_ms)
            .where(self._is_expired())
            .order_by(_T.tournament_no)
        )

    def _aged(self) -> Sequence[_Aged]:
        attempts, letters = tables.connection_attempts, tables.dead_letters
        changes, policy = tables.position_changes, self._policy
        # Changes go with their tournament; these are of one that the record has never seen.
        known = sa.exists().where(_T.tournament_id == changes.c.tournament_id)
        return (
            _Aged(attempts, attempts.c.time_ms, policy.connection_attempts),
            _Aged(letters, letters.c.logged_at_ms, policy.dead_letters),
            _Aged(changes, changes.c.time_ms, policy.tournaments, known),
        )

    def _is_old(self, aged: _Aged) -> sa.ColumnElement[bool]:
        """By the month of writing, which is also that of the partition; within the last one by
        the row's own time, which its producer may have got wrong."""
        before_ms, month = self._before_ms(aged.days), aged.table.c.month
        boundary = month_of(before_ms)
        old = sa.or_(month < boundary, sa.and_(month == boundary, aged.at_ms < before_ms))
        return old if aged.stays is None else sa.and_(old, ~aged.stays)

    # removing

    def _delete(self, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
        statement, count = deletion(table, which, self._engine.dialect.name), 0
        while True:
            with writing(self._engine) as connection:
                done = connection.execute(statement).rowcount
            count += done
            if done < CHUNK:
                return count

    def _drop_months(self, removed: Callable[[Removal], None]) -> None:
        stay = sa.select(_T.tournament_no, _T.tournament_id).where(~self._is_expired()).subquery()
        inputs, changes = tables.inputs.c, tables.position_changes.c
        days = self._policy.tournaments
        attempts, letters, _ = self._aged()
        self._drop(attempts.table, attempts.days, None, removed)
        self._drop(letters.table, letters.days, None, removed)
        of_no = sa.exists().where(stay.c.tournament_no == inputs.tournament_no)
        self._drop(tables.inputs, days, of_no, removed)
        of_id = sa.exists().where(stay.c.tournament_id == changes.tournament_id)
        self._drop(tables.position_changes, days, of_id, removed)

    def _drop(
        self,
        table: sa.Table,
        days: int,
        stays: sa.ColumnElement[bool] | None,
        removed: Callable[[Removal], None],
    ) -> None:
        """Drop the months that lie wholly before the policy's day and hold nothing that stays."""
        boundary = month_of(self._before_ms(days))
        with reading(self._engine) as connection:
            months = [month for month in months_of(connection, table) if month < boundary]
        for month in months:
            name = partition_name(table, month)
            with writing(self._engine) as connection:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'")
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
                connection.exec_driver_sql(f'LOCK TABLE "{name}" IN ACCESS EXCLUSIVE MODE')
                of_month = table.c.month == month
                if stays is not None:
                    one = sa.select(sa.literal(1)).select_from(table).where(of_month, stays)
                    if connection.execute(one.limit(1)).first() is not None:
                        continue
                count = _count(connection, table, of_month)
                connection.exec_driver_sql(f'ALTER TABLE "{table.name}" DETACH PARTITION "{name}"')
                connection.exec_driver_sql(f'DROP TABLE "{name}"')
            removed(Removal(name, count))


def deletion(table: sa.Table, which: sa.ColumnElement[bool], dialect: str) -> sa.Delete:
    """Deletes at most CHUNK of these rows."""
    if dialect == "mssql":
        return sa.delete(table).where(which).prefix_with(f"TOP ({CHUNK})")
    keys = list(table.primary_key.columns)
    some = sa.select(*keys).where(which).limit(CHUNK)
    return sa.delete(table).where(sa.tuple_(*keys).in_(some))


def months_of(connection: sa.Connection, table: sa.Table) -> list[int]:
    """The months for which this table has partitions, the oldest first (PostgreSQL)."""
    names = connection.execute(
        sa.text(
            "SELECT child.relname FROM pg_inherits "
            "JOIN pg_class child ON child.oid = inhrelid WHERE inhparent = to_regclass(:name)"
        ),
        {"name": table.name},
    ).scalars()
    found = (re.fullmatch(rf"{table.name}_(\d{{6}})", name) for name in names)
    return sorted(int(one[1]) for one in found if one is not None)


def _belongings(row: Any) -> Iterator[tuple[sa.Table, sa.ColumnElement[bool]]]:
    for table in _OF_ID:
        yield table, table.c.tournament_id == row.tournament_id
    for table in _OF_NO:
        yield table, table.c.tournament_no == row.tournament_no


def _count(connection: sa.Connection, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
    statement = sa.select(sa.func.count()).select_from(table).where(which)
    return int(connection.execute(statement).scalar_one())


def _told(row: Any) -> str:
    day = datetime.fromtimestamp(row.over_at_ms / 1000, UTC)
    return f"tournament {row.tournament_id}, over since {day:%Y-%m-%d}"
