"""Forgetting a player in the record.

What the fold needs stays, under a name that stands for nobody; what could tell who it was goes:
ids that producers made (players' names are often part of them), names, rounds, unknown fields.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import among, insert, update
from leaderboard.dead_letters import ids_in
from leaderboard.events import Event
from leaderboard.fold import event_key
from leaderboard.fraud_ports import NO_EVIDENCE
from leaderboard.model import erased_name, erasure_id_of, tombstone

_KEPT: Final = frozenset(
    {"tournament_id", "game_id", "stake_minor", "win_minor", "currency", "score", "subscore"}
    | {"delta", "erasure_id"}
)
"""Fields that the fold needs, or that say how much was played, and not by whom."""
NOBODY: Final = "erased"
NO_HEADERS: Final = "{}"
"""Of a dead letter that named somebody; its value is gone as well."""
_LOCK: Final = 5_318_010
"""Of PostgreSQL's advisory locks; the two before are of the months and the migrations."""
_AT_ONCE: Final = 500
_LOOKED_FOR_AT_ONCE: Final = 20
"""For more players than that it takes the database longer to look than to hand all of them over."""


def pseudonymised(body: str, name: str) -> str:
    """An event's data with `name` for its player, and nothing else that could point to them."""
    data: dict[str, Any] = json.loads(body)
    kept = {key: value for key, value in data.items() if key in _KEPT}
    # Free text and references to other events; required by their types, so they stay as words.
    for key in ("reason", "decided_by"):
        if key in data:
            kept[key] = NOBODY
    if "wager" in data:
        kept["wager"] = {"source": NOBODY, "id": NOBODY}
    return json.dumps({**kept, "player_id": name}, separators=(",", ":"))


def pseudonymous_id(event: Event) -> str:
    """An id for an erased player's event: the same for its repetitions, and nobody's name."""
    return _hidden(event_key(event))


def _hidden(key: bytes | None) -> str:
    return f"{NOBODY}-{(key or b'').hex()}"


def forget_inputs(connection: sa.Connection, tournament_no: int, player_no: int, name: str) -> None:
    """Rewrite every input of a player. Reads all inputs of the tournament: erasures are rare, and
    an index for them would cost every wager."""
    row = tables.inputs.c
    found = connection.execute(
        sa.select(
            row.tournament_no, row.log_offset, row.month, row.event_key, row.event_id, row.data
        ).where(row.tournament_no == tournament_no, row.player_no == player_no)
    ).all()
    update(
        connection,
        tables.inputs,
        ("tournament_no", "log_offset", "month"),
        ("event_id", "traceparent", "extensions", "data"),
        [
            (
                one.tournament_no,
                one.log_offset,
                one.month,
                # Without a key it never counted, so nothing has to know it again.
                _hidden(one.event_key or str(one.log_offset).encode()),
                None,
                None,
                pseudonymised(one.data, name),
            )
            for one in found
        ],
    )


def forget_changes(
    connection: sa.Connection, tournament_id: str, player_id: str, name: str
) -> None:
    """Rewrite the position changes of a player in one tournament."""
    row = tables.position_changes.c
    connection.execute(
        sa.update(tables.position_changes)
        .where(row.tournament_id == tournament_id, row.player_id == player_id)
        .values(player_id=name, cause_id=NOBODY)
    )


# --- beside the tournaments ----------------------------------------------------------------------


def hold_marks(connection: sa.Connection) -> None:
    """No player is forgotten between here and the end of this transaction, which therefore sees
    every mark that counts for what it writes: who forgets waits for it, or it for them.

    For who writes what may name players; any number of them hold the marks at once."""
    _lock(connection, postgres="pg_advisory_xact_lock_shared", mssql="Shared")


def alone_with_marks(connection: sa.Connection) -> None:
    """Wait for who holds the marks, and keep others waiting, until this transaction ends: what
    they wrote is seen by its next statements, and what it writes by them. For who forgets."""
    _lock(connection, postgres="pg_advisory_xact_lock", mssql="Exclusive")


def _lock(connection: sa.Connection, *, postgres: str, mssql: str) -> None:
    """SQLite's writers are alone anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"SELECT {postgres}(:key)"), {"key": _LOCK})
    elif connection.dialect.name == "mssql":
        connection.execute(
            sa.text(
                "DECLARE @got INT; EXEC @got = sp_getapplock @Resource = 'leaderboard marks', "
                f"@LockMode = '{mssql}'; IF @got < 0 THROW 50001, 'no lock on the marks', 1"
            )
        )


def marked(connection: sa.Connection, key: bytes, names: Iterable[str]) -> frozenset[str]:
    """Those of `names` that are ids of forgotten players."""
    by_mark = {erasure_id_of(key, name): name for name in names}
    column = tables.forgotten_players.c.erasure_id
    found = among(connection, sa.select(column), column, by_mark)
    return frozenset(by_mark[mark] for (mark,) in found)


def mark_forgotten(
    connection: sa.Connection, key: bytes, requested: Mapping[str, int]
) -> Collection[str]:
    """Mark these players, given with the time of the request; those who had no mark yet.

    To be called alone with the marks."""
    fresh = requested.keys() - marked(connection, key, requested)
    insert(
        connection,
        tables.forgotten_players,
        [(erasure_id_of(key, one), requested[one]) for one in sorted(fresh)],
    )
    return fresh


def forget_beside(connection: sa.Connection, players: Collection[str], key: bytes) -> None:
    """Rewrite who asked for sockets, suspicions, and the refused events that name these players.

    Reads all dead letters: erasures are rare, and nothing else asks whom they name."""
    if not players:
        return
    wanted = sorted(players)
    attempts = tables.connection_attempts
    for start in range(0, len(wanted), _AT_ONCE):
        connection.execute(
            sa.update(attempts)
            .where(attempts.c.player_id.in_(wanted[start : start + _AT_ONCE]))
            .values(player_id=None, address=None, user_agent=None, event_id=NOBODY)
        )
    forget_alerts(connection, wanted, key)
    table = tables.dead_letters
    keys = list(table.primary_key.columns)
    names = frozenset(wanted)
    suspects = sa.select(*keys, table.c.tournament_id, table.c.headers, table.c.value)
    if len(wanted) <= _LOOKED_FOR_AT_ONCE:
        suspects = suspects.where(may_name(wanted, connection.dialect.name))
    found = connection.execute(suspects.execution_options(yield_per=_AT_ONCE))
    named = [tuple(one[: len(keys)]) for one in found if names & named_in(one)]
    places, left = [key.name for key in keys], ("player_id", "headers", "value")
    update(connection, table, places, left, [(*one, None, NO_HEADERS, None) for one in named])
    for start in range(0, len(wanted), _AT_ONCE):
        # A producer that took the player for the key: it stands where a tournament should.
        is_key = table.c.tournament_id.in_(wanted[start : start + _AT_ONCE])
        connection.execute(sa.update(table).where(is_key).values(tournament_id=None))


def forget_alerts(connection: sa.Connection, players: Collection[str], key: bytes) -> None:
    """Leave of suspicions about these players that there was one: by which rule, in which
    tournament, when, and what was decided."""
    row = tables.fraud_alerts.c
    emptied: list[tuple[Any, ...]] = []
    for column in (row.player_id, row.other_player_id):
        found = sa.select(row.alert_id, row.tournament_id, row.player_id)
        for alert_id, tournament_id, player in among(connection, found, column, sorted(players)):
            name = player
            if player in players:
                name = erased_name(tombstone(key, tournament_id, player))
            emptied.append((alert_id, name, None, NO_EVIDENCE))
    left = ("player_id", "other_player_id", "evidence")
    update(connection, tables.fraud_alerts, ("alert_id",), left, emptied)
    # A reason may name anybody.
    reasons = sorted({(one[0], NOBODY) for one in emptied})
    update(connection, tables.fraud_reviews, ("alert_id",), ("reason",), reasons)


def named_in(letter: Any) -> frozenset[str]:
    """Everything in a kept dead letter that may be the id of a player."""
    return ids_in(letter.tournament_id, json.loads(letter.headers), letter.value)


def may_name(players: Sequence[str], dialect: str) -> sa.ColumnElement[bool]:
    """Whether a dead letter has to be looked at: true for each that names one of the players."""
    letter = tables.dead_letters.c
    quoted = (letter.headers.contains(f'"{one}"', autoescape=True) for one in players)
    # A text with escapes may be any.
    held = (_holds(letter.value, raw, dialect) for raw in (b"\\u", *map(str.encode, players)))
    return sa.or_(letter.tournament_id.in_(players), *quoted, *held)


def _holds(column: sa.Column[Any], raw: bytes, dialect: str) -> sa.ColumnElement[bool]:
    given = sa.literal(raw, sa.LargeBinary)
    if dialect == "postgresql":
        return sa.func.position(given.op("IN")(column)) > 0
    if dialect == "sqlite":
        return sa.func.instr(column, given) > 0
    return column.is_not(None)
