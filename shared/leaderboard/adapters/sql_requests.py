"""Requests to forget in the record: see `record_ports.Requests`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import among, insert, reading, writing
from leaderboard.model import PlayerId, TournamentId
from leaderboard.record_ports import Requested

_ROW = tables.erasure_requests.c


class SqlRequests:
    """`record_ports.Requests` in SQL. Safe for several threads."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def pending(self, limit: int) -> Sequence[Requested]:
        statement = (
            sa.select(tables.erasure_requests)
            .where(_ROW.player_id.is_not(None))
            .order_by(_ROW.requested_at_ms, _ROW.erasure_id)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            return [_requested(row) for row in connection.execute(statement)]

    def find(self, erasure_id: str) -> Requested | None:
        statement = sa.select(tables.erasure_requests).where(_ROW.erasure_id == erasure_id)
        with reading(self._engine) as connection:
            row = connection.execute(statement).first()
        return None if row is None else _requested(row)

    def applied_in(self, erasure_id: str) -> Sequence[TournamentId]:
        of, row = tables.tournaments.c, tables.erasures.c
        statement = (
            sa.select(of.tournament_id)
            .distinct()
            .join_from(tables.erasures, tables.tournaments, row.tournament_no == of.tournament_no)
            .where(row.erasure_id == erasure_id)
        )
        with reading(self._engine) as connection:
            return [TournamentId(name) for name in connection.execute(statement).scalars()]

    def reopen(self, erasure_id: str, player_id: PlayerId) -> None:
        statement = sa.update(tables.erasure_requests).where(_ROW.erasure_id == erasure_id)
        with writing(self._engine) as connection:
            connection.execute(statement.values(player_id=player_id))

    def close(self, erasure_id: str, done_at_ms: Mapping[str, int], now_ms: int) -> bool:
        told = json.dumps(dict(done_at_ms), separators=(",", ":"))
        kept = {"done_at_ms": sa.func.coalesce(_ROW.done_at_ms, now_ms), "player_id": None}
        kept["places"] = sa.func.coalesce(_ROW.places, told)
        statement = sa.update(tables.erasure_requests).where(_ROW.erasure_id == erasure_id)
        with writing(self._engine) as connection:
            return connection.execute(statement.values(kept)).rowcount > 0


def put_down_requests(connection: sa.Connection, requested: Mapping[str, tuple[str, int]]) -> None:
    """Keep these requests, by id with player and time; those that are there stay as they are."""
    column = _ROW.erasure_id
    known = {one for (one,) in among(connection, sa.select(column), column, requested)}
    rows = [
        (erasure_id, player_id, at_ms, None, None)
        for erasure_id, (player_id, at_ms) in sorted(requested.items())
        if erasure_id not in known
    ]
    insert(connection, tables.erasure_requests, rows)


def _requested(row: Any) -> Requested:
    return Requested(
        erasure_id=row.erasure_id,
        requested_at_ms=row.requested_at_ms,
        player_id=None if row.player_id is None else PlayerId(row.player_id),
        done_at_ms={} if row.places is None else json.loads(row.places),
    )
