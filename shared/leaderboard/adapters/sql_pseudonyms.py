"""Keys of the audit log's pseudonyms, in the record's database (`record_ports.Pseudonyms`).

Players stand under the id that a request to forget them has, a keyed hash: who has the table and
not the deployment's secret can't tell whose key is whose. A destroyed key is a row less.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import among, delete, find, insert, reading, update, writing
from leaderboard.adapters.sql_erasure import alone_with_marks, hold_marks, marked
from leaderboard.audit_leaves import BESIDE, KEY_BYTES, Who, player_key
from leaderboard.errors import TransientError
from leaderboard.events import POSITION_CHANGES
from leaderboard.model import Offset, Place, PlayerId, TournamentId, erasure_id_of
from leaderboard.record_ports import Ending, Head, Known

T = TypeVar("T")
_KEYS = tables.pseudonym_keys
_ENDS = tables.pseudonym_ends
_HEADS = tables.audit_heads
_TRIES: Final = 5
"""Owners of two partitions may meet one player at the same moment; both want to draw the key."""


class SqlPseudonyms:
    """For one thread; owners of other partitions work beside it. `tombstone_key` must be that of
    the record."""

    def __init__(
        self,
        engine: sa.Engine,
        tombstone_key: bytes,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._engine = engine
        self._key = tombstone_key
        self._now_ms = now_ms

    def of(self, wanted: Collection[Who], *, of_wagers: bool) -> Mapping[Who, Known]:
        names = self._names(wanted)
        with reading(self._engine) as connection:
            found = _found(connection, names)
        missing = {n: w for n, w in names.items() if w not in found}
        if missing:
            found |= self._again(lambda: self._draw(missing, of_wagers=of_wagers))
        return found

    def _draw(self, names: Mapping[tuple[str, str], Who], *, of_wagers: bool) -> dict[Who, Known]:
        with writing(self._engine) as connection:
            hold_marks(connection)  # nobody's key is destroyed between the look and the drawing
            found = _found(connection, names)
            missing = {n: w for n, w in names.items() if w not in found}
            barred = {w for w in missing.values() if w[0] == BESIDE}
            barred &= self._forgotten(connection, barred)
            if of_wagers:
                known = _known_tournaments(connection, {w[0] for w in missing.values()})
                barred |= {w for w in missing.values() if w[0] not in known}
            drawn = {
                name: secrets.token_bytes(KEY_BYTES)
                for name, whose in sorted(missing.items())
                if whose not in barred
            }
            insert(connection, _KEYS, [(*name, secret) for name, secret in drawn.items()])
        found |= {names[name]: Known(player_key(one), None) for name, one in drawn.items()}
        return found | {whose: Known(None, None) for whose in barred}

    def _forgotten(self, connection: sa.Connection, beside: Collection[Who]) -> set[Who]:
        marks = marked(connection, self._key, {player_id for _, player_id in beside})
        return {whose for whose in beside if whose[1] in marks}

    def end(self, partition: int, erased: Mapping[Who, Offset]) -> Mapping[Who, Offset]:
        return self._again(lambda: self._end(partition, erased))

    def _end(self, partition: int, erased: Mapping[Who, Offset]) -> dict[Who, Offset]:
        names = self._names(erased)
        with writing(self._engine) as connection:
            ends = _ends(connection, names)
            known = _known_tournaments(connection, {whose[0] for whose in names.values()})
            fresh = {
                name: erased[whose]
                for name, whose in sorted(names.items())
                if name not in ends and whose[0] in known
            }
            rows = [(*name, partition, at, None, None, None) for name, at in fresh.items()]
            insert(connection, _ENDS, rows)
        return {names[name]: at for name, at in (ends | fresh).items()}

    def endings(self, partition: int, limit: int) -> Sequence[Ending]:
        row = _ENDS.c
        open_ = sa.and_(row.log_partition == partition, row.destroyed_at_ms.is_(None))
        statement = sa.select(_ENDS).where(open_).order_by(row.log_offset).limit(limit)
        with reading(self._engine) as connection:
            return [_ending(one) for one in connection.execute(statement)]

    def wait_for(self, endings: Sequence[Ending]) -> None:
        values = ("changes_partition", "changes_until")
        rows = [
            (one.tournament_id, one.erasure_id, one.changes.partition, one.changes_until)
            for one in endings
            if one.changes is not None
        ]
        with writing(self._engine) as connection:
            update(connection, _ENDS, _WHOSE, values, rows)

    def destroy(self, endings: Sequence[Ending]) -> None:
        rows = sorted((str(one.tournament_id), one.erasure_id) for one in endings)
        now_ms = self._now_ms()
        with writing(self._engine) as connection:
            alone_with_marks(connection)
            delete(connection, _KEYS, _WHOSE, rows)
            done = [(*row, now_ms) for row in rows]
            update(connection, _ENDS, _WHOSE, ("destroyed_at_ms",), done)

    def destroy_beside(self, players: Collection[PlayerId]) -> None:
        rows = sorted((str(BESIDE), erasure_id_of(self._key, one)) for one in players)
        with writing(self._engine) as connection:
            alone_with_marks(connection)
            delete(connection, _KEYS, _WHOSE, rows)

    def heads(self, places: Collection[Place]) -> Sequence[Head]:
        topics = sa.select(_HEADS).where(_HEADS.c.topic.in_({place.topic for place in places}))
        with reading(self._engine) as connection:
            rows = [_head(one) for one in connection.execute(topics)]
        return [one for one in rows if one.place in places]

    def put_heads(self, heads: Sequence[Head]) -> None:
        self._again(lambda: self._put_heads(sorted(heads)))

    def _put_heads(self, heads: Sequence[Head]) -> None:
        column = _HEADS.c.origin
        with writing(self._engine) as connection:
            statement = sa.select(column, _HEADS.c.size)
            origins = [head.origin for head in heads]
            found = among(connection, statement, column, origins)
            known: dict[str, int] = {one.origin: one.size for one in found}
            insert(connection, _HEADS, [_row(one) for one in heads if one.origin not in known])
            values = ("size", "root", "next_offset")
            further = [
                (one.origin, one.size, one.root, one.next_offset)
                for one in heads
                if one.size > known.get(one.origin, one.size)
            ]
            update(connection, _HEADS, ("origin",), values, further)

    def _names(self, wanted: Collection[Who]) -> dict[tuple[str, str], Who]:
        return {(str(w[0]), erasure_id_of(self._key, w[1])): w for w in wanted}

    def _again(self, work: Callable[[], T]) -> T:
        """Somebody else may put down the same rows at the same moment; then they are there."""
        for _ in range(_TRIES):
            try:
                return work()
            except sa.exc.IntegrityError as error:
                last = error
        raise TransientError(f"others draw the same keys again and again: {last.orig}")


_WHOSE: Final = ("tournament_id", "erasure_id")


def _found(connection: sa.Connection, names: Mapping[tuple[str, str], Who]) -> dict[Who, Known]:
    row = _KEYS.c
    keys = find(connection, sa.select(_KEYS), row.tournament_id, row.erasure_id, names)
    by_name = {(one.tournament_id, one.erasure_id): bytes(one.secret) for one in keys}
    ends = _ends(connection, names)
    return {
        whose: Known(
            player_key(by_name[name]) if name in by_name else None,
            ends.get(name),
        )
        for name, whose in names.items()
        if name in by_name or name in ends
    }


def _ends(connection: sa.Connection, names: Collection[Any]) -> dict[tuple[str, str], Offset]:
    row = _ENDS.c
    statement = sa.select(row.tournament_id, row.erasure_id, row.log_offset)
    found = find(connection, statement, row.tournament_id, row.erasure_id, names)
    return {(tournament_id, who): Offset(at) for tournament_id, who, at in found}


def _known_tournaments(connection: sa.Connection, names: Collection[str]) -> set[str]:
    column = tables.tournaments.c.tournament_id
    return {name for (name,) in among(connection, sa.select(column), column, names)}


def _ending(row: Any) -> Ending:
    changes = None
    if row.changes_partition is not None:
        changes = Place(POSITION_CHANGES, row.changes_partition)
    return Ending(
        tournament_id=TournamentId(row.tournament_id),
        erasure_id=row.erasure_id,
        offset=Offset(row.log_offset),
        changes=changes,
        changes_until=Offset(row.changes_until or 0),
    )


def _head(row: Any) -> Head:
    place = Place(row.topic, row.log_partition)
    return Head(row.origin, place, row.size, row.root, Offset(row.next_offset))


def _row(head: Head) -> tuple[Any, ...]:
    return (head.origin, *head.place, head.size, head.root, head.next_offset)
