"""Forgetting a player in the record.

What the fold needs stays, under a name that stands for nobody; what could tell who it was goes:
ids that producers made (players' names are often part of them), names, rounds, unknown fields.
"""

from __future__ import annotations

import json
from typing import Any, Final

import sqlalchemy as sa

from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import update
from leaderboard.events import Event
from leaderboard.fold import event_key

_KEPT: Final = frozenset(
    {"tournament_id", "game_id", "stake_minor", "win_minor", "currency", "score", "subscore"}
    | {"delta", "erasure_id"}
)
"""Fields that the fold needs, or that say how much was played, and not by whom."""
NOBODY: Final = "erased"


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
        ("event_id", "extensions", "data"),
        [
            (
                one.tournament_no,
                one.log_offset,
                one.month,
                # Without a key it never counted, so nothing has to know it again.
                _hidden(one.event_key or str(one.log_offset).encode()),
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


def forget_attempts(connection: sa.Connection, player_id: str) -> None:
    """Rewrite who asked for sockets, and the refused events that named the player."""
    row = tables.connection_attempts.c
    connection.execute(
        sa.update(tables.connection_attempts)
        .where(row.player_id == player_id)
        .values(player_id=None, address=None, user_agent=None, event_id=NOBODY)
    )
    letter = tables.dead_letters.c
    connection.execute(
        sa.update(tables.dead_letters)
        .where(letter.player_id == player_id)
        .values(player_id=None, headers="{}", value=None)
    )
