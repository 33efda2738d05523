"""The record's answers: the same reads that a board gives, from SQL, each in one transaction.

A live tournament is read in the order of its index; one that is over from its final standings,
where ranks are stored. Counting who stands above a player costs time by rank, not by players.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import reading
from leaderboard.fold import Terms
from leaderboard.model import Offset, PlayerId, Score, Standing, State, TournamentId
from leaderboard.ports import BoardView, Summary
from leaderboard.ranking import distance, sign_of
from leaderboard.record_ports import Member

_AT_ONCE: Final = 500
_ROW = tables.standings.c
_ORDER: Final = (_ROW.rank_score, _ROW.rank_subscore, _ROW.reached)
_FINAL = tables.final_standings.c
_WHO = tables.players.c


class SqlRecord:
    """`ports.Record` in SQL. Safe for several threads."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def find(self, tournament_id: TournamentId) -> Summary | None:
        table = tables.tournaments
        with reading(self._engine) as connection:
            terms = connection.execute(
                sa.select(table.c.terms).where(table.c.tournament_id == tournament_id)
            ).scalar()
        return None if terms is None else Summary(tournament_id, Terms.model_validate_json(terms))

    def all(self, state: State | None = None) -> Sequence[Summary]:
        table = tables.tournaments
        statement = sa.select(table.c.tournament_id, table.c.terms).order_by(
            table.c.starts_at_ms, table.c.tournament_id
        )
        if state is not None:
            statement = statement.where(table.c.state == state.value)
        with reading(self._engine) as connection:
            found = connection.execute(statement).all()
        return [
            Summary(TournamentId(name), Terms.model_validate_json(terms)) for name, terms in found
        ]

    def sequences(self, tournaments: Sequence[TournamentId]) -> Mapping[TournamentId, Offset]:
        table = tables.tournaments
        found: dict[TournamentId, Offset] = {}
        with reading(self._engine) as connection:
            for start in range(0, len(tournaments), _AT_ONCE):
                some = tournaments[start : start + _AT_ONCE]
                rows = connection.execute(
                    sa.select(table.c.tournament_id, table.c.sequence).where(
                        table.c.tournament_id.in_(some)
                    )
                )
                found |= {TournamentId(name): Offset(sequence) for name, sequence in rows}
        return found

    def top(self, tournament_id: TournamentId, limit: int, after_rank: int = 0) -> BoardView | None:
        with reading(self._engine) as connection:
            board = _Board.open(connection, tournament_id)
            return None if board is None else board.view(board.page(after_rank, limit))

    def player(self, tournament_id: TournamentId, player_id: PlayerId) -> BoardView | None:
        return self.around(tournament_id, player_id, 0)

    def around(
        self, tournament_id: TournamentId, player_id: PlayerId, radius: int
    ) -> BoardView | None:
        with reading(self._engine) as connection:
            board = _Board.open(connection, tournament_id)
            if board is None:
                return None
            rank = board.rank_of(player_id)
            if rank is None:
                return board.view([])
            # One rank more above: its score tells the distance.
            first = max(rank - radius - 1, 1)
            page = board.page(first - 1, rank + radius - first + 1)
            gap = None
            if rank > 1:
                above, own = page[rank - 1 - first], page[rank - first]
                gap = distance(board.terms.rules.order, own.score.score, above.score.score)
            return board.view([one for one in page if one.rank >= rank - radius], gap)

    def member(self, tournament_id: TournamentId, player_id: PlayerId) -> Member:
        statement = (
            sa.select(_WHO.joined_at, _WHO.out_at)
            .join_from(
                tables.tournaments,
                tables.players,
                tables.tournaments.c.tournament_no == _WHO.tournament_no,
            )
            .where(tables.tournaments.c.tournament_id == tournament_id, _WHO.player_id == player_id)
        )
        with reading(self._engine) as connection:
            row = connection.execute(statement).first()
        if row is None:
            return Member(has_joined=False, is_disqualified=False)
        return Member(row.joined_at is not None, row.out_at is not None)

    def tournaments_of(self, player_id: PlayerId) -> Sequence[TournamentId]:
        table = tables.tournaments
        statement = (
            sa.select(table.c.tournament_id)
            .join(tables.players, table.c.tournament_no == _WHO.tournament_no)
            .where(_WHO.player_id == player_id)
            .order_by(table.c.tournament_no)
        )
        with reading(self._engine) as connection:
            return [TournamentId(name) for name in connection.execute(statement).scalars()]

    def is_forgotten(self, erasure_id: str) -> bool:
        mark = tables.forgotten_players.c.erasure_id
        with reading(self._engine) as connection:
            return connection.execute(sa.select(mark).where(mark == erasure_id)).first() is not None

    def pseudonyms(self, erasure_id: str) -> Mapping[TournamentId, bool]:
        ends, keys = tables.pseudonym_ends.c, tables.pseudonym_keys.c
        with reading(self._engine) as connection:
            ended = connection.execute(
                sa.select(ends.tournament_id, ends.destroyed_at_ms).where(
                    ends.erasure_id == erasure_id
                )
            ).all()
            kept = connection.execute(
                sa.select(keys.tournament_id).where(keys.erasure_id == erasure_id)
            ).scalars()
            found = {TournamentId(one.tournament_id): one[1] is not None for one in ended}
            return found | {TournamentId(name): False for name in kept}


class _Board:
    """One tournament inside one reading transaction."""

    def __init__(self, connection: sa.Connection, row: Any) -> None:
        self._connection = connection
        self._no = row.tournament_no
        self._players = row.players
        self._sequence = Offset(row.sequence)
        self._tournament_id = TournamentId(row.tournament_id)
        self.terms = Terms.model_validate_json(row.terms)
        self._is_over = row.over_at_ms is not None
        self._sign = sign_of(self.terms.rules.order)

    @classmethod
    def open(cls, connection: sa.Connection, tournament_id: TournamentId) -> _Board | None:
        table = tables.tournaments
        row = connection.execute(
            sa.select(table).where(table.c.tournament_id == tournament_id)
        ).first()
        return None if row is None else cls(connection, row)

    def view(self, standings: Sequence[Standing], gap: int | None = None) -> BoardView:
        return BoardView(
            tournament_id=self._tournament_id,
            sequence=self._sequence,
            terms=self.terms,
            players=self._players,
            standings=tuple(standings),
            distance=gap,
        )

    def page(self, after_rank: int, limit: int) -> list[Standing]:
        """Standings of the ranks `after_rank` + 1 and on."""
        if after_rank >= self._players:
            return []
        statement = (self._final if self._is_over else self._live)(after_rank, limit)
        return [
            Standing(
                after_rank + i,
                PlayerId(player_id),
                name,
                Score(score, subscore),
            )
            for i, (player_id, name, score, subscore) in enumerate(
                self._connection.execute(statement), start=1
            )
        ]

    def _live(self, after_rank: int, limit: int) -> sa.Select[Any]:
        # The page first, then its players: joined before, every row that is passed over would
        # cost a look at its player.
        page = (
            sa.select(_ROW.player_no, *_ORDER)
            .where(_ROW.tournament_no == self._no)
            .order_by(*_ORDER)
            .limit(limit)
            .offset(after_rank)
            .subquery("page")
        )
        return (
            sa.select(
                _WHO.player_id,
                _WHO.display_name,
                page.c.rank_score * self._sign,
                page.c.rank_subscore * self._sign,
            )
            .join_from(page, tables.players, page.c.player_no == _WHO.player_no)
            .where(_WHO.tournament_no == self._no)
            .order_by(page.c.rank_score, page.c.rank_subscore, page.c.reached)
        )

    def _final(self, after_rank: int, limit: int) -> sa.Select[Any]:
        return (
            sa.select(_WHO.player_id, _WHO.display_name, _FINAL.score, _FINAL.subscore)
            .join_from(tables.final_standings, tables.players, _same_player(_FINAL, _WHO))
            .where(
                _FINAL.tournament_no == self._no,
                _FINAL.standing_rank > after_rank,
                _FINAL.standing_rank <= after_rank + limit,
            )
            .order_by(_FINAL.standing_rank)
        )

    def rank_of(self, player_id: PlayerId) -> int | None:
        """The player's rank, None for who has no standing."""
        own = self._connection.execute(
            sa.select(_WHO.player_no, *_ORDER)
            .join_from(tables.players, tables.standings, _same_player(_WHO, _ROW))
            .where(_WHO.tournament_no == self._no, _WHO.player_id == player_id)
        ).first()
        if own is None:
            return None
        if self._is_over:
            final = sa.select(_FINAL.standing_rank).where(
                _FINAL.tournament_no == self._no, _FINAL.player_no == own.player_no
            )
            rank: int = self._connection.execute(final).scalar_one()
            return rank
        above = sa.select(sa.func.count()).where(
            _ROW.tournament_no == self._no,
            # The first condition bounds the part of the index that is read.
            _ROW.rank_score <= own.rank_score,
            sa.or_(
                _ROW.rank_score < own.rank_score,
                _ROW.rank_subscore < own.rank_subscore,
                sa.and_(_ROW.rank_subscore == own.rank_subscore, _ROW.reached < own.reached),
            ),
        )
        return int(self._connection.execute(above).scalar_one()) + 1


def _same_player(one: Any, other: Any) -> sa.ColumnElement[bool]:
    return sa.and_(one.tournament_no == other.tournament_no, one.player_no == other.player_no)
