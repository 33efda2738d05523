"""Who may do what in the record (PostgreSQL): one role a function, named like it.

The owner makes and changes the schema and, daily, the months' tables (`leaderboard record upgrade`
does both); nobody else makes or drops anything. Functions that only read
the record can't change it, and none of them reads what stands beside it: who asked for sockets and
from where, what was refused, what readers were told. But for three: `query` reads all that is held
on a player, for the player; `erase` ends the requests to forget that it has done; `tournament`
reads who is suspected of what, for those who decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import POOL_SIZE
from leaderboard.adapters.sql_login import STATEMENT_SECONDS

OWNER: Final = "migrate"
DATABASE: Final = "leaderboard"
VERSION: Final = "alembic_version"
CEILING: Final = 50
"""Processes of one function at its most."""
CONNECTIONS: Final = 2 * POOL_SIZE * CEILING
"""A pool may grow to twice its size. Behind a pooler far fewer reach the server."""
_ALL: Final = frozenset(tables.metadata.tables)
_REBUILT: Final = frozenset(
    {"erasures", "exclusions", "inputs", "log_positions", "players", "producer_numbers"}
    | {"standings", "terms_history", "tournaments"}
)
"""What a lost board is made anew from."""
_HELD: Final = frozenset(
    {"connection_attempts", "dead_letters", "erasure_requests", "inputs", "position_changes"}
    | {"fraud_alerts", "fraud_reviews"}
)
"""What a player gets with the tournaments, when they ask what is held on them."""
_SHOWN: Final = frozenset({"tournaments", "players", "standings", "final_standings"})
READS: Final[Mapping[str, frozenset[str]]] = {
    "on-wager": _REBUILT,
    "on-wager-http": frozenset({"tournaments"}),
    "archive": _ALL - {"final_standings", "terms_history"},
    "query": _SHOWN | _HELD,
    "on-connect": frozenset({"tournaments", "forgotten_players"}),
    "erase": _SHOWN | {"erasures", "erasure_requests", "forgotten_players", "pseudonym_ends"},
    "tournament": _SHOWN | {"fraud_alerts", "fraud_reviews"},
    "operator": _REBUILT,
}
"""Tables by role; each also reads which version the schema has."""
READS_COLUMNS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "erase": {"pseudonym_keys": ("tournament_id", "erasure_id")},
}
"""Columns of tables by role: whether a key is there still, and not the key."""
WRITER: Final = "archive"
INSERTS: Final = _ALL
UPDATES: Final = _ALL - {
    *("terms_history", "erasures", "erasure_requests", "final_standings", "forgotten_players"),
    "pseudonym_keys",
}
DELETES: Final = frozenset({"standings", "pseudonym_keys"})
"""What the writer does, and nobody else."""
ENDS: Final[Mapping[str, frozenset[str]]] = {"erase": frozenset({"erasure_requests"})}
"""Rows that a reader changes all the same."""


def roles() -> str:
    """The roles, for psql in the record's own database, as the server's administrator; harmless
    again. Before `record upgrade`. They get passwords from who runs it: `\\password`, a secret."""
    database, owner = DATABASE, _quoted(OWNER)
    lines = [_role(OWNER)]
    for role in map(_quoted, READS):
        lines += ["", _role(role.strip('"')), f"ALTER ROLE {role} CONNECTION LIMIT {CONNECTIONS};"]
        lines += [f"ALTER ROLE {role} SET {name} = '{text}';" for name, text in _SETTINGS.items()]
        lines.append(f"GRANT CONNECT ON DATABASE {database} TO {role};")
        lines.append(f"GRANT USAGE ON SCHEMA public TO {role};")
    lines += [
        "",
        f"REVOKE ALL ON DATABASE {database} FROM PUBLIC;",
        f"GRANT CONNECT ON DATABASE {database} TO {owner};",
        "REVOKE ALL ON SCHEMA public FROM PUBLIC;",
        f"GRANT USAGE, CREATE ON SCHEMA public TO {owner};",
    ]
    return "\n".join(lines) + "\n"


def grants() -> str:
    """The rights, for psql as the owner; harmless again. After each `record upgrade`: tables have
    to be there, and a right that the table above has lost is taken away."""
    lines = []
    for role, reads in READS.items():
        who = _quoted(role)
        lines += ["", f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {who};"]
        lines.append(f"GRANT SELECT ON {_listed({VERSION, *reads})} TO {who};")
        for table, columns in READS_COLUMNS.get(role, {}).items():
            lines.append(f"GRANT SELECT ({', '.join(columns)}) ON {table} TO {who};")
    who = _quoted(WRITER)
    for right, names in (("INSERT", INSERTS), ("UPDATE", UPDATES), ("DELETE", DELETES)):
        lines.append(f"GRANT {right} ON {_listed(names)} TO {who};")
    for role, names in ENDS.items():
        lines.append(f"GRANT UPDATE ON {_listed(names)} TO {_quoted(role)};")
    lines.append(f"GRANT USAGE ON SEQUENCE tournaments_tournament_no_seq TO {who};")
    return "\n".join(lines[1:]) + "\n"


_SETTINGS: Final = {
    "statement_timeout": f"{STATEMENT_SECONDS}s",
    "idle_in_transaction_session_timeout": "60s",
    "timezone": "UTC",
}


def _role(name: str) -> str:
    return (
        f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN "
        f"CREATE ROLE {_quoted(name)} LOGIN; END IF; END $$;"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _quoted(name: str) -> str:
    return f'"{name}"'
