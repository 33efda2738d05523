"""Takes the record's schema forward and back, and says whether it is the one of this version.

Each command is one transaction: a schema is at one revision or at another, never between. Two
that run at once wait for each other (an advisory lock of PostgreSQL, the writer's lock of SQLite,
an application lock of SQL Server). A schema that is newer than this version, or not ours, is never
touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import sqlalchemy as sa

from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import connect, reading, writing
from leaderboard.adapters.sql_months import Months, month_of
from leaderboard.errors import SettingsError

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

BASE: Final = "base"
HEAD: Final = "head"
_PREFIX: Final = "record_"
_VERSIONS: Final = sa.table("alembic_version", sa.column("version_num", sa.String))
_LOCK: Final = 5_318_009
"""Of PostgreSQL's advisory locks; the months' partitions have the one before."""
_LOCK_SECONDS: Final = 10
"""How long a change of a table waits for who uses it. Others queue up behind the one that waits,
so it gives up soon, and the command can be repeated."""


class Fit(StrEnum):
    """How the schema that is there relates to the one of this version."""

    EMPTY = "empty"
    OLDER = "older"
    CURRENT = "current"
    NEWER = "newer"
    FOREIGN = "foreign"


class Schema(NamedTuple):
    """What was found. `revision` is None for an empty database, and for a foreign one without a
    version; `detail` is for people."""

    fit: Fit
    revision: str | None
    detail: str


def upgrade(url: str, revision: str = HEAD) -> str:
    """Take the schema forward to `revision` (`head`, `0001`, `record_0001`), filled or not; the
    revision that it is at then. One that is there already, or further, is left as it is.

    Raises SettingsError for a schema that is newer than this version or not ours, and for an
    unknown revision; TransientError when the database is away, or others hold a table too long.
    Then nothing was changed."""
    reached = _move(url, revision, _forward)
    if reached == _places()[-1]:
        # Who writes makes them, too, where it owns the tables; in a cluster it does not.
        with _engine(url) as engine:
            Months(engine).ensure(month_of(time.time_ns() // 1_000_000))
    return reached


def downgrade(url: str, revision: str) -> str:
    """Take the schema back to `revision` (`base` for none at all); the revision that it is at
    then. The tables that later revisions made are lost, see `lost`. Raises as `upgrade`."""
    return _move(url, revision, _backward)


def status(engine: sa.Engine) -> Schema:
    """What the database holds. Raises TransientError."""
    with reading(engine) as connection:
        return _found(connection)


def check(engine: sa.Engine) -> None:
    """Raises SettingsError, naming the setting and what to do, unless the schema is exactly the
    one of this version; TransientError when the database is away."""
    found = status(engine)
    if found.fit is not Fit.CURRENT:
        raise SettingsError(f"DATABASE_URL: {found.detail}")


def lost(url: str, revision: str) -> dict[str, int]:
    """The tables that `downgrade` would drop, with their numbers of rows. Raises as `upgrade`."""
    with _engine(url) as engine, reading(engine) as connection:
        scripts = _scripts()
        found = _ours(connection)
        places = _places()
        target = _target(revision)
        going: list[str] = []
        for name in places[places.index(target) + 1 : places.index(found.revision or BASE) + 1]:
            going += scripts.get_revision(name).module.TABLES
        count = sa.func.count()
        return {
            name: connection.execute(
                sa.select(count).select_from(tables.metadata.tables[name])
            ).scalar_one()
            for name in going
        }


_Step = Callable[["Config", str, str, Sequence[str]], None]


def _forward(config: Config, now: str, target: str, places: Sequence[str]) -> None:
    from alembic import command  # noqa: PLC0415 - only who changes the schema pays

    if places.index(now) < places.index(target):
        command.upgrade(config, target)


def _backward(config: Config, now: str, target: str, places: Sequence[str]) -> None:
    from alembic import command  # noqa: PLC0415 - only who changes the schema pays

    if places.index(now) < places.index(target):
        raise SettingsError(f"the schema is at {now}, before {target}: that would be an upgrade")
    if now != target:
        command.downgrade(config, target)


def _move(url: str, revision: str, step: _Step) -> str:
    target = _target(revision)
    with _engine(url) as engine, writing(engine) as connection:
        _alone(connection)
        found = _ours(connection)
        config = _config()
        config.attributes["connection"] = connection
        step(config, found.revision or BASE, target, _places())
        return _found(connection).revision or BASE


@contextmanager
def _engine(url: str) -> Iterator[sa.Engine]:
    engine = connect(url, pool_size=1)
    try:
        yield engine
    finally:
        engine.dispose()


def _alone(connection: sa.Connection) -> None:
    """Wait until no other command is at work here. SQLite's writers are alone anyway."""
    if connection.dialect.name == "postgresql":
        # Filling a new column or index may take its time.
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'")
    elif connection.dialect.name == "mssql":
        connection.exec_driver_sql(
            "EXEC sp_getapplock @Resource = 'leaderboard record', @LockMode = 'Exclusive'"
        )


# --- what is there -------------------------------------------------------------------------------


def _ours(connection: sa.Connection) -> Schema:
    found = _found(connection)
    if found.fit in (Fit.NEWER, Fit.FOREIGN):
        raise SettingsError(f"DATABASE_URL: {found.detail}; nothing was changed")
    return found


def _found(connection: sa.Connection) -> Schema:
    names = set(sa.inspect(connection).get_table_names())
    versions: list[str] = []
    if _VERSIONS.name in names:
        versions = list(connection.execute(sa.select(_VERSIONS.c.version_num)).scalars())
    if not versions:
        taken = sorted(names & set(tables.metadata.tables))
        if not taken:
            return Schema(
                Fit.EMPTY, None, "has no record yet; make it with `leaderboard record upgrade`"
            )
        return Schema(
            Fit.FOREIGN,
            None,
            f"holds tables with names of the record's ({', '.join(taken[:3])} …) that no migration "
            "made; give the record a database of its own",
        )
    return _judged(versions)


def _judged(versions: Sequence[str]) -> Schema:
    revision, places = versions[0], _places()
    if len(versions) > 1 or not revision.startswith(_PREFIX):
        told = ", ".join(repr(one) for one in sorted(versions)[:3])
        return Schema(
            Fit.FOREIGN,
            None,
            f"is under the migrations of another project (alembic_version says {told}); give the "
            "record a database of its own",
        )
    if revision not in places:
        return Schema(
            Fit.NEWER,
            revision,
            f"holds a record of a newer version ({revision!r}; this one knows {places[-1]}); run "
            "that version, or take the record back with its `leaderboard record downgrade`",
        )
    if revision != places[-1]:
        return Schema(
            Fit.OLDER,
            revision,
            f"holds a record of an older version ({revision}, wanted {places[-1]}); take it "
            "forward with `leaderboard record upgrade`",
        )
    return Schema(Fit.CURRENT, revision, f"holds a record of this version ({revision})")


# --- alembic -------------------------------------------------------------------------------------


def _folder() -> Path:
    return Path(str(files("leaderboard") / "migrations"))


def _config() -> Config:
    from alembic.config import Config  # noqa: PLC0415 - only who changes the schema pays

    config = Config()
    # Alembic's settings are a format of their own, where % begins a reference.
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    return config


def _scripts() -> ScriptDirectory:
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - only who changes the schema pays

    return ScriptDirectory.from_config(_config())


def _places() -> list[str]:
    """All revisions from the oldest on, after `base`: each is a file of that name, numbered.

    Read from the folder, as every start of a function compares them, and to import Alembic for
    that would be a sixth of it."""
    return [BASE, *sorted(path.stem for path in (_folder() / "versions").glob(f"{_PREFIX}*.py"))]


def _target(revision: str) -> str:
    places = _places()
    if revision == HEAD:
        return places[-1]
    for name in (revision, f"{_PREFIX}{revision}"):
        if name in places:
            return name
    raise SettingsError(f"{revision!r} is no revision: {', '.join(places)} or {HEAD}")
