"""What boards are rebuilt from: a tournament in the record, as it stood at any earlier offset.

The record may be further than the consumer whose boards were lost. Then what came later is undone:
each input keeps its player's row as it was before, so the first input from there on tells how a
row stood. All of it is read in one transaction, in chunks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa

from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import reading
from leaderboard.adapters.sql_positions import position_of
from leaderboard.events import TOPICS, WAGERS, Event
from leaderboard.fold import LogEntry, RemovalReason, Terms
from leaderboard.model import (
    BOARD_KEPT_MS,
    REMEMBERED_IDS,
    Disposition,
    Offset,
    PlayerId,
    Score,
    State,
    TournamentId,
)
from leaderboard.ports import PlayerRow, Snapshot
from leaderboard.ranking import sign_of

CHUNK: Final = 5_000
CLOCKS_DIFFER_MS: Final = 60_000
"""The store that lets a board go has a clock of its own: so long before, none is wanted."""
_OVER: Final = (State.ENDED.value, State.CANCELLED.value)
_IN = tables.inputs.c
_ROW = tables.standings.c
_WHO = tables.players.c


class SqlSnapshots:
    """`ports.Snapshots` in SQL. `remembered_ids` must be that of the board."""

    def __init__(
        self,
        engine: sa.Engine,
        remembered_ids: int = REMEMBERED_IDS,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._engine = engine
        self._window = remembered_ids
        self._now_ms = now_ms

    def reached(self, log_id: str, partition: int) -> Offset | None:
        with reading(self._engine) as connection:
            return position_of(connection, WAGERS, partition, log_id)

    def partitions(self) -> Mapping[TournamentId, int]:
        """Every tournament that has to have a board, with the partition of its log."""
        table = tables.tournaments.c
        statement = sa.select(table.tournament_id, table.log_partition).where(self._has_board())
        with reading(self._engine) as connection:
            return {TournamentId(name): number for name, number in connection.execute(statement)}

    def _has_board(self) -> sa.ColumnElement[bool]:
        table = tables.tournaments.c
        return sa.or_(
            table.state.not_in(_OVER),
            table.confirmed_at_ms.is_(None),
            table.confirmed_at_ms > self._now_ms() - BOARD_KEPT_MS + CLOCKS_DIFFER_MS,
        )

    def expected(
        self, partition: int, before: Offset, *, quiet_only: bool = False
    ) -> Mapping[TournamentId, Offset]:
        table = tables.tournaments.c
        statement = sa.select(table.tournament_no, table.tournament_id, table.log_offset)
        found: dict[TournamentId, Offset] = {}
        with reading(self._engine) as connection:
            rows = connection.execute(
                statement.where(table.log_partition == partition, self._has_board())
            ).all()
            for no, name, last in rows:
                if last < before:
                    found[TournamentId(name)] = Offset(last)
                elif not quiet_only:
                    earlier = _last_input(connection, no, before)
                    if earlier is not None:
                        found[TournamentId(name)] = Offset(earlier)
        return found

    @contextmanager
    def taken(self, tournament_id: TournamentId, before: Offset) -> Iterator[Snapshot | None]:
        table = tables.tournaments
        with reading(self._engine) as connection:
            row = connection.execute(
                sa.select(table).where(table.c.tournament_id == tournament_id)
            ).first()
            yield None if row is None else _Past(connection, row, before, self._window).snapshot()

    def erasures(self, tournament_id: TournamentId) -> Sequence[tuple[str, int]]:
        table, erasure = tables.tournaments, tables.erasures.c
        statement = (
            sa.select(erasure.erasure_id, erasure.requested_at_ms)
            .join_from(table, tables.erasures, table.c.tournament_no == erasure.tournament_no)
            .where(table.c.tournament_id == tournament_id)
            .order_by(erasure.log_offset)
        )
        with reading(self._engine) as connection:
            return [(name, at) for name, at in connection.execute(statement)]

    def entries(
        self, partition: int, start: Offset, end: Offset
    ) -> Iterator[tuple[TournamentId, Sequence[LogEntry] | None]]:
        table = tables.tournaments.c
        has_erased = sa.exists().where(tables.erasures.c.tournament_no == table.tournament_no)
        forgetful = sa.case((has_erased, 1), else_=0).label("forgetful")
        with reading(self._engine) as connection:
            named = connection.execute(
                sa.select(table.tournament_no, table.tournament_id, forgetful)
                .where(table.log_partition == partition, table.log_offset >= start)
                .order_by(table.tournament_no)
            ).all()
            for no, name, is_forgetful in named:
                if is_forgetful:
                    yield TournamentId(name), None
                    continue
                inputs = (
                    sa.select(tables.inputs)
                    .where(_IN.tournament_no == no, _IN.log_offset >= start, _IN.log_offset < end)
                    .order_by(_IN.log_offset)
                )
                for rows in _chunks(connection, inputs):
                    yield TournamentId(name), [_entry(row) for row in rows]


class _Past:
    """One tournament, at an offset that the record has passed."""

    def __init__(self, connection: sa.Connection, row: Any, before: Offset, window: int) -> None:
        self._connection = connection
        self._row = row
        self._no: int = row.tournament_no
        self._window = window
        # The present is the past of an offset beyond it.
        present = Offset(row.log_offset + 1)
        self._before = present if self._someone_was_erased_since(before) else min(before, present)
        self._is_present = self._before == present

    def _someone_was_erased_since(self, before: Offset) -> bool:
        table = tables.erasures.c
        found = self._connection.execute(
            sa.select(table.log_offset)
            .where(table.tournament_no == self._no, table.log_offset >= before)
            .limit(1)
        )
        return found.first() is not None

    def snapshot(self) -> Snapshot | None:
        terms = self._terms()
        if terms is None:
            return None
        before = self._rows_before(terms)
        players: int = self._row.players
        for _, row, stands_now in before.values():
            players += (row is not None) - stands_now
        ids = self._ids_applied()
        full = ids // self._window * self._window
        return Snapshot(
            tournament_id=TournamentId(self._row.tournament_id),
            log_id=self._row.log_id,
            offset=self._offset(),
            sequence=self._sequence(terms),
            terms=terms,
            players=players,
            rows=self._rows(terms, before),
            names=self._names(),
            older=self._ids(max(full - self._window, 0), full),
            newer=self._ids(full, ids),
            numbers=self._numbers(),
            out=self._out(),
        )

    def _terms(self) -> Terms | None:
        table = tables.terms_history.c
        text = self._connection.execute(
            sa.select(table.terms)
            .where(table.tournament_no == self._no, table.revision < self._before)
            .order_by(table.revision.desc())
            .limit(1)
        ).scalar()
        return None if text is None else Terms.model_validate_json(text)

    def _offset(self) -> Offset:
        if self._is_present:
            return Offset(self._row.log_offset)
        last = _last_input(self._connection, self._no, self._before)
        if last is None:
            raise AssertionError("there are terms, so there was an event")
        return Offset(last)

    def _sequence(self, terms: Terms) -> Offset:
        if self._is_present:
            return Offset(self._row.sequence)
        applied = self._connection.execute(
            sa.select(_IN.log_offset)
            .where(
                _IN.tournament_no == self._no,
                _IN.log_offset < self._before,
                _IN.disposition == Disposition.APPLIED.value,
            )
            .order_by(_IN.log_offset.desc())
            .limit(1)
        ).scalar()
        return Offset(max(applied or 0, terms.revision))

    # rows

    def _rows_before(self, terms: Terms) -> dict[int, tuple[str, PlayerRow | None, bool]]:
        """Players whose row changed since: name, the row as it was, whether they have one now."""
        if self._is_present:
            return {}
        place = (
            sa.func.row_number()
            .over(partition_by=_IN.player_no, order_by=_IN.log_offset)
            .label("place")
        )
        since = (
            sa.select(
                _IN.player_no, _IN.before_score, _IN.before_subscore, _IN.before_reached, place
            )
            .where(
                _IN.tournament_no == self._no,
                _IN.log_offset >= self._before,
                _IN.touched == sa.true(),
            )
            .subquery()
        )
        stands = sa.and_(_ROW.tournament_no == self._no, _ROW.player_no == since.c.player_no)
        statement = (
            sa.select(since, _WHO.player_id, _ROW.reached.label("now"))
            .select_from(since)
            .join(
                tables.players,
                sa.and_(_WHO.tournament_no == self._no, _WHO.player_no == since.c.player_no),
            )
            .outerjoin(tables.standings, stands)
            .where(since.c.place == 1)
        )
        found: dict[int, tuple[str, PlayerRow | None, bool]] = {}
        for row in self._connection.execute(statement):
            was = None
            if row.before_score is not None:
                score = Score(row.before_score, row.before_subscore)
                was = PlayerRow(PlayerId(row.player_id), score, Offset(row.before_reached))
            found[row.player_no] = (row.player_id, was, row.now is not None)
        return found

    def _rows(
        self, terms: Terms, before: Mapping[int, tuple[str, PlayerRow | None, bool]]
    ) -> Iterator[Sequence[PlayerRow]]:
        sign = sign_of(terms.rules.order)
        statement = (
            sa.select(
                _ROW.player_no, _WHO.player_id, _ROW.rank_score, _ROW.rank_subscore, _ROW.reached
            )
            .join_from(
                tables.standings,
                tables.players,
                sa.and_(_WHO.tournament_no == _ROW.tournament_no, _WHO.player_no == _ROW.player_no),
            )
            .where(_ROW.tournament_no == self._no)
        )
        for chunk in _chunks(self._connection, statement):
            yield [
                PlayerRow(PlayerId(player_id), Score(sign * first, sign * second), Offset(reached))
                for no, player_id, first, second, reached in chunk
                if no not in before
            ]
        were = [row for _, row, _ in before.values() if row is not None]
        for start in range(0, len(were), CHUNK):
            yield were[start : start + CHUNK]

    def _names(self) -> Iterator[Sequence[tuple[PlayerId, str | None]]]:
        statement = sa.select(_WHO.player_id, _WHO.display_name).where(
            _WHO.tournament_no == self._no,
            _WHO.joined_at < self._before,
            sa.or_(_WHO.out_at.is_(None), _WHO.out_at >= self._before),
        )
        for chunk in _chunks(self._connection, statement):
            yield [(PlayerId(player_id), name) for player_id, name in chunk]

    def _out(self) -> Mapping[bytes, RemovalReason]:
        table = tables.exclusions.c
        found = self._connection.execute(
            sa.select(table.mark, table.reason).where(
                table.tournament_no == self._no, table.log_offset < self._before
            )
        )
        return {bytes(mark): RemovalReason(reason) for mark, reason in found}

    # ids

    def _ids_applied(self) -> int:
        if self._is_present:
            return int(self._row.ids_applied)
        last = self._connection.execute(
            sa.select(_IN.ordinal)
            .where(
                _IN.tournament_no == self._no,
                _IN.log_offset < self._before,
                _IN.ordinal.is_not(None),
            )
            .order_by(_IN.log_offset.desc())
            .limit(1)
        ).scalar()
        return 0 if last is None else int(last) + 1

    def _ids(self, first: int, end: int) -> Iterator[Sequence[bytes]]:
        """Ids of the ordinals from `first` to below `end`, newest first: read from the end of the
        log, and bounded by their number, so that nothing older is looked at."""
        if first == end:
            return
        statement = (
            sa.select(_IN.event_key)
            .where(
                _IN.tournament_no == self._no,
                _IN.log_offset < self._before,
                _IN.ordinal >= first,
                _IN.ordinal < end,
            )
            .order_by(_IN.log_offset.desc())
            .limit(end - first)
        )
        for chunk in _chunks(self._connection, statement):
            yield [bytes(key) for (key,) in chunk]

    def _numbers(self) -> Mapping[str, int]:
        table = tables.producer_numbers.c
        rows = self._connection.execute(
            sa.select(table.source, table.number).where(table.tournament_no == self._no)
        )
        numbers: dict[str, int] = {row.source: row.number for row in rows}
        if self._is_present:
            return numbers
        applied = (
            _IN.tournament_no == self._no,
            _IN.number.is_not(None),
            _IN.ordinal.is_(None),
            _IN.disposition == Disposition.APPLIED.value,
        )
        since = self._connection.execute(
            sa.select(_IN.source).distinct().where(*applied, _IN.log_offset >= self._before)
        ).scalars()
        for source in since.all():
            last = self._connection.execute(
                sa.select(_IN.number)
                .where(*applied, _IN.source == source, _IN.log_offset < self._before)
                .order_by(_IN.log_offset.desc())
                .limit(1)
            ).scalar()
            if last is None:
                numbers.pop(source, None)
            else:
                numbers[source] = last
        return numbers


def _last_input(connection: sa.Connection, tournament_no: int, before: Offset) -> int | None:
    """Offset of the tournament's last event below `before`."""
    found: int | None = connection.execute(
        sa.select(_IN.log_offset)
        .where(_IN.tournament_no == tournament_no, _IN.log_offset < before)
        .order_by(_IN.log_offset.desc())
        .limit(1)
    ).scalar()
    return found


def _chunks(connection: sa.Connection, statement: sa.Select[Any]) -> Iterator[Sequence[Any]]:
    """The rows in pieces, the rest staying in the database until it is wanted."""
    streaming = connection.execution_options(yield_per=CHUNK)
    with streaming.execute(statement) as result:
        yield from result.partitions()


def _entry(row: Any) -> LogEntry:
    """An archived input as the entry of the log that it was."""
    model = TOPICS[WAGERS][row.kind]
    data: Any = model.model_validate_json(row.data)
    event = Event(
        id=row.event_id,
        source=row.source,
        time_ms=row.time_ms,
        data=data,
        subject=getattr(data, "player_id", None),
        sequence=row.number,
        traceparent=row.traceparent,
        extensions=json.loads(row.extensions) if row.extensions else {},
    )
    return LogEntry(Offset(row.log_offset), row.logged_at_ms, event)
