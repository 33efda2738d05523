"""Writing the record: the fold of `wagers`, and beside it what else a regulator asks for.

Every method takes one batch of one partition in one transaction with its offset, so what is given
twice is kept once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from leaderboard import events as ev
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_alerts import keep_alerts
from leaderboard.adapters.sql_engine import find, insert, reading, update, writing
from leaderboard.adapters.sql_erasure import (
    NO_HEADERS,
    NOBODY,
    alone_with_marks,
    forget_beside,
    hold_marks,
    mark_forgotten,
    marked,
    named_in,
)
from leaderboard.adapters.sql_fold import SqlFold
from leaderboard.adapters.sql_months import Months, month_of
from leaderboard.adapters.sql_positions import position_of, take_position
from leaderboard.adapters.sql_requests import put_down_requests
from leaderboard.dead_letters import Mark, read
from leaderboard.fold import LogEntry, RemovalReason, Terms
from leaderboard.model import (
    BOARD_KEPT_MS,
    REMEMBERED_IDS,
    Offset,
    Place,
    PlayerId,
    Score,
    State,
    TournamentId,
    erased_name,
    erasure_id_of,
    tombstone,
)
from leaderboard.ports import PlayerRow
from leaderboard.ranking import sign_of
from leaderboard.record_ports import Folded, Input, Ledger, LedgerPage

_OVER: Final = (State.ENDED.value, State.CANCELLED.value)
_LONGEST_ATTRIBUTE: Final = 512
_LONGEST_AGENT: Final = 8_192
_WHO = tables.players.c
_ROW = tables.standings.c


class SqlArchive:
    """`ports.Archive` in SQL. For one thread; owners of other partitions work beside it.

    `tombstone_key` and `remembered_ids` must be those of the board."""

    def __init__(
        self,
        engine: sa.Engine,
        tombstone_key: bytes,
        remembered_ids: int = REMEMBERED_IDS,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._engine = engine
        self._key = tombstone_key
        self._now_ms = now_ms
        self._months = Months(engine)
        self._fold = SqlFold(engine, tombstone_key, remembered_ids, now_ms)

    def reached(self, place: Place, log_id: str) -> Offset | None:
        with reading(self._engine) as connection:
            return position_of(connection, place.topic, place.partition, log_id)

    def fold(
        self, place: Place, log_id: str, batch: Sequence[Input], next_offset: Offset
    ) -> Folded:
        return self._fold.apply(place.partition, log_id, batch, next_offset)

    # beside the fold

    def keep_changes(
        self, place: Place, log_id: str, entries: Sequence[LogEntry], next_offset: Offset
    ) -> int:
        month = self._month()
        with writing(self._engine) as connection:
            fresh = _fresh(connection, place, log_id, entries, next_offset)
            names = sorted({str(entry.event.tournament_id) for entry in fresh})
            told = _told(connection, names)
            known = dict(told)
            hold_marks(connection)
            erased = self._erased(connection, names, fresh)
            rows: list[tuple[Any, ...]] = []
            for entry in fresh:
                data = entry.event.data
                if not isinstance(data, ev.PositionChanged):
                    raise AssertionError("the codec lets nothing else into position-changes")
                # A reader's own rule: what is not above the last one came before.
                if data.sequence <= told.get(data.tournament_id, -1):
                    continue
                told[data.tournament_id] = data.sequence
                name = erased.get((data.tournament_id, data.player_id))
                rows.append(
                    (
                        data.tournament_id, data.sequence, month, name or data.player_id,
                        data.old_rank, data.new_rank, data.score, data.subscore, data.distance,
                        data.cause.source, NOBODY if name else data.cause.id,
                        entry.event.time_ms,
                    )
                )  # fmt: skip
            insert(connection, tables.position_changes, rows)
            moved = [(name, at) for name, at in told.items() if at != known.get(name)]
            table, keys = tables.told_changes, ("tournament_id",)
            insert(connection, table, [row for row in moved if row[0] not in known])
            update(connection, table, keys, ("sequence",), [r for r in moved if r[0] in known])
        return len(rows)

    def _erased(
        self, connection: sa.Connection, names: Sequence[str], fresh: Sequence[LogEntry]
    ) -> dict[tuple[str, str], str]:
        """Players of these changes whom their tournament has forgotten: a change may be read
        after the erasure that followed it."""
        table = tables.tournaments.c
        numbers: dict[str, int] = {}
        for start in range(0, len(names), 500):
            forgetful = (
                sa.select(table.tournament_id, table.tournament_no)
                .where(table.tournament_id.in_(names[start : start + 500]))
                .where(sa.exists().where(tables.erasures.c.tournament_no == table.tournament_no))
            )
            numbers |= {
                row.tournament_id: row.tournament_no for row in connection.execute(forgetful)
            }
        if not numbers:
            return {}
        marks: dict[tuple[int, bytes], tuple[str, str]] = {}
        for entry in fresh:
            tournament_id, player_id = str(entry.event.tournament_id), str(entry.event.player_id)
            if tournament_id in numbers:
                mark = tombstone(self._key, tournament_id, player_id)
                marks[numbers[tournament_id], mark] = (tournament_id, player_id)
        out = tables.exclusions
        found = find(
            connection,
            sa.select(out.c.tournament_no, out.c.mark).where(
                out.c.reason == RemovalReason.ERASED.value
            ),
            out.c.tournament_no,
            out.c.mark,
            marks,
        )
        return {marks[no, bytes(mark)]: erased_name(bytes(mark)) for no, mark in found}

    def keep_alerts(
        self, place: Place, log_id: str, entries: Sequence[LogEntry], next_offset: Offset
    ) -> int:
        with writing(self._engine) as connection:
            fresh = _fresh(connection, place, log_id, entries, next_offset)
            hold_marks(connection)
            return keep_alerts(connection, fresh, self._key)

    def keep_attempts(
        self, place: Place, log_id: str, entries: Sequence[LogEntry], next_offset: Offset
    ) -> int:
        month = self._month()
        with writing(self._engine) as connection:
            fresh = _fresh(connection, place, log_id, entries, next_offset)
            hold_marks(connection)
            named = {str(player_id) for one in fresh if (player_id := one.event.player_id)}
            forgotten = marked(connection, self._key, named)
            rows = [_attempt(place, one, month, forgotten) for one in fresh]
            insert(connection, tables.connection_attempts, rows)
        return len(rows)

    def keep_dead_letters(
        self, place: Place, log_id: str, records: Sequence[ev.Record], next_offset: Offset
    ) -> int:
        month = self._month()
        with writing(self._engine) as connection:
            start = take_position(connection, place.topic, place.partition, log_id, next_offset)
            if start is None:
                return 0
            rows = [_letter(place, one, month) for one in records if one.offset >= start]
            hold_marks(connection)
            named = [named_in(row) for row in rows]
            forgotten = marked(connection, self._key, frozenset().union(*named))
            insert(
                connection,
                tables.dead_letters,
                [
                    _emptied(row, forgotten) if names & forgotten else row
                    for row, names in zip(rows, named, strict=True)
                ],
            )
        return len(rows)

    def forget(
        self, place: Place, log_id: str, entries: Sequence[LogEntry], next_offset: Offset
    ) -> int:
        with writing(self._engine) as connection:
            fresh = _fresh(connection, place, log_id, entries, next_offset)
            requested = {
                str(player_id): one.event.time_ms
                for one in reversed(fresh)
                if (player_id := one.event.player_id) is not None
            }
            alone_with_marks(connection)
            mark_forgotten(connection, self._key, requested)
            forget_beside(connection, requested, self._key)
            put_down_requests(
                connection,
                {erasure_id_of(self._key, one): (one, at_ms) for one, at_ms in requested.items()},
            )
        return len(fresh)

    # looking back at the fold

    def ledgers(self, partition: int) -> Sequence[Ledger]:
        table = tables.tournaments.c
        live = sa.or_(
            table.state.not_in(_OVER),
            table.confirmed_at_ms.is_(None),
            table.confirmed_at_ms > self._now_ms() - 2 * BOARD_KEPT_MS,
        )
        statement = (
            sa.select(tables.tournaments)
            .where(table.log_partition == partition, live)
            .order_by(table.tournament_no)
        )
        with reading(self._engine) as connection:
            return [
                Ledger(
                    tournament_id=TournamentId(row.tournament_id),
                    sequence=Offset(row.sequence),
                    players=row.players,
                    is_over=row.state in _OVER,
                    confirmed_at_ms=row.confirmed_at_ms,
                )
                for row in connection.execute(statement)
            ]

    def page(self, tournament_id: TournamentId, after: int, limit: int) -> LedgerPage | None:
        table = tables.tournaments
        with reading(self._engine) as connection:
            own = connection.execute(
                sa.select(table).where(table.c.tournament_id == tournament_id)
            ).one_or_none()
            if own is None:
                return None
            sign = sign_of(Terms.model_validate_json(own.terms).rules.order)
            joined = sa.and_(
                _ROW.tournament_no == _WHO.tournament_no, _ROW.player_no == _WHO.player_no
            )
            found = connection.execute(
                sa.select(
                    _ROW.player_no,
                    _WHO.player_id,
                    _ROW.rank_score,
                    _ROW.rank_subscore,
                    _ROW.reached,
                )
                .join_from(tables.standings, tables.players, joined)
                .where(_ROW.tournament_no == own.tournament_no, _ROW.player_no > after)
                .order_by(_ROW.player_no)
                .limit(limit)
            ).all()
            last = found[-1].player_no if len(found) == limit else None
            players = None
            if last is None:
                players = connection.execute(
                    sa.select(sa.func.count()).where(_ROW.tournament_no == own.tournament_no)
                ).scalar_one()
        rows = [
            PlayerRow(PlayerId(name), Score(sign * first, sign * second), Offset(reached))
            for _, name, first, second, reached in found
        ]
        return LedgerPage(Offset(own.sequence), rows, last, players)

    def confirm(self, tournament_id: TournamentId, sequence: Offset) -> int | None:
        table = tables.tournaments
        now_ms = self._now_ms()
        with writing(self._engine) as connection:
            mine = sa.and_(
                table.c.tournament_id == tournament_id,
                table.c.sequence == sequence,
                table.c.state.in_(_OVER),
            )
            connection.execute(
                sa.update(table)
                .where(mine, table.c.confirmed_at_ms.is_(None))
                .values(confirmed_at_ms=now_ms)
            )
            at_ms: int | None = connection.execute(
                sa.select(table.c.confirmed_at_ms).where(mine)
            ).scalar()
        return at_ms

    def _month(self) -> int:
        month = month_of(self._now_ms())
        self._months.ensure(month)
        return month


def _fresh(
    connection: sa.Connection,
    place: Place,
    log_id: str,
    entries: Sequence[LogEntry],
    next_offset: Offset,
) -> list[LogEntry]:
    """Those entries that the record does not have yet; its place is advanced behind them."""
    start = take_position(connection, place.topic, place.partition, log_id, next_offset)
    return [] if start is None else [entry for entry in entries if entry.offset >= start]


def _told(connection: sa.Connection, names: Sequence[str]) -> dict[str, int]:
    table = tables.told_changes
    found: dict[str, int] = {}
    for start in range(0, len(names), 500):
        rows = connection.execute(
            sa.select(table).where(table.c.tournament_id.in_(names[start : start + 500]))
        )
        found |= {row.tournament_id: row.sequence for row in rows}
    return found


def _attempt(
    place: Place, entry: LogEntry, month: int, forgotten: frozenset[str]
) -> tuple[Any, ...]:
    event, data = entry.event, entry.event.data
    if not isinstance(data, ev.ConnectionDecided):
        raise AssertionError("the codec lets nothing else into connections")
    event_id, player_id, address, agent = event.id, data.player_id, data.address, data.user_agent
    if player_id in forgotten:
        event_id, player_id, address, agent = NOBODY, None, None, None
    return (
        place.partition, entry.offset, month, event_id, event.time_ms,
        data.tournament_id, player_id, data.allowed, _short(data.reason),
        _short(address), _short(agent, _LONGEST_AGENT),
    )  # fmt: skip


class _Letter(NamedTuple):
    """A row of `dead_letters`."""

    topic: str
    log_partition: int
    log_offset: int
    month: int
    logged_at_ms: int
    reason: str | None
    tournament_id: str | None
    player_id: str | None
    headers: str
    value: bytes | None
    handled: int


def _letter(place: Place, record: ev.Record, month: int) -> _Letter:
    headers = {
        name: None if value is None else value.decode("utf-8", "backslashreplace")
        for name, value in record.headers
    }
    key = None if record.key is None else record.key.decode("utf-8", "backslashreplace")
    return _Letter(
        place.topic, place.partition, record.offset, month, record.timestamp_ms,
        _short(headers.get("dlq_reason"), 64), _short(key), _short(headers.get("ce_subject")),
        json.dumps(headers), record.value, int(isinstance(read(record), Mark)),
    )  # fmt: skip


def _emptied(letter: _Letter, forgotten: frozenset[str]) -> _Letter:
    key = None if letter.tournament_id in forgotten else letter.tournament_id
    return letter._replace(tournament_id=key, player_id=None, headers=NO_HEADERS, value=None)


def _short(text: str | None, length: int = _LONGEST_ATTRIBUTE) -> str | None:
    # A record's key may be any bytes; no database keeps a zero in a text.
    return None if text is None else text.replace("\0", "\\x00")[:length]
