"""The rows that one batch touches: fetched for all of it at once, changed in memory, written back.

What `sql_fold` decides is kept here until the end of its transaction. Whatever a batch asks about
takes one statement, however many players it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import delete, find, insert, update
from leaderboard.adapters.sql_erasure import forget_changes, forget_inputs
from leaderboard.errors import ForeignLogError
from leaderboard.fold import RemovalReason, Terms
from leaderboard.model import Offset, Score, TournamentId, erased_name
from leaderboard.ranking import rank_key, sign_of

_AT_ONCE: Final = 500
_Rows = list[tuple[Any, ...]]


@dataclass(slots=True)
class KeptPlayer:
    """A player's rows, as this batch leaves them."""

    no: int
    player_id: str
    display_name: str | None
    joined_at: int | None
    out_at: int | None
    score: Score | None
    reached: int
    is_new: bool = False
    is_renewed: bool = False
    """Its row of `players` is another one now."""
    is_rescored: bool = False
    """Its row of `standings` is another one now."""
    had_standing: bool = False


@dataclass(slots=True)
class KeptTournament:
    """A tournament's own row, as this batch leaves it."""

    no: int
    tournament_id: TournamentId
    terms: Terms
    offset: int
    sequence: int
    players: int
    seen: int
    ids_applied: int
    over_at_ms: int | None
    revisions: list[Terms] = field(default_factory=list)
    ends_now: bool = False
    has_out: bool = False
    out: dict[bytes, RemovalReason] = field(default_factory=dict)
    marks: dict[str, bytes] = field(default_factory=dict)
    rows: dict[str, KeptPlayer] = field(default_factory=dict)
    ids: dict[bytes, tuple[int | None, int]] = field(default_factory=dict)
    """Applied ids that the batch asks about: ordinal and offset."""
    numbers: dict[str, int] = field(default_factory=dict)
    producers: int = -1
    """How many producers go by number; -1 until it is asked."""


@dataclass(slots=True)
class Changes:
    """What the transaction will write."""

    inputs: list[tuple[Any, ...]] = field(default_factory=list)
    new_ids: dict[tuple[int, bytes], tuple[int | None, int]] = field(default_factory=dict)
    moved_ids: dict[tuple[int, bytes], tuple[int | None, int]] = field(default_factory=dict)
    numbers: dict[tuple[int, str], int] = field(default_factory=dict)
    known_numbers: set[tuple[int, str]] = field(default_factory=set)
    exclusions: dict[tuple[int, bytes], tuple[str, int]] = field(default_factory=dict)
    known_exclusions: set[tuple[int, bytes]] = field(default_factory=set)
    erasures: list[tuple[int, int, str, int]] = field(default_factory=list)
    renamed: list[tuple[KeptTournament, KeptPlayer, str]] = field(default_factory=list)
    repeats: int = 0


@dataclass(slots=True)
class Asked:
    """What a batch asks the database about, by number of the tournament."""

    players: set[tuple[int, str]] = field(default_factory=set)
    ids: set[tuple[int, bytes]] = field(default_factory=set)
    numbers: set[tuple[int, str]] = field(default_factory=set)
    marks: set[tuple[int, bytes]] = field(default_factory=set)


class Rows:
    """The rows of one transaction."""

    def __init__(self, connection: sa.Connection, log_id: str, partition: int) -> None:
        self._connection = connection
        self._log_id = log_id
        self._partition = partition
        self.tournaments: dict[str, KeptTournament] = {}
        self.changes = Changes()

    # fetching

    def load_tournaments(self, wanted: Iterable[str]) -> None:
        """Fetch these. Raises ForeignLogError for one of another log."""
        names = sorted(set(wanted))
        table = tables.tournaments
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            rows = self._connection.execute(sa.select(table).where(table.c.tournament_id.in_(some)))
            for row in rows:
                if row.log_id != self._log_id:
                    raise ForeignLogError(
                        f"{row.tournament_id} was folded from {row.log_id}, not {self._log_id}"
                    )
                terms = Terms.model_validate_json(row.terms)
                self.tournaments[row.tournament_id] = KeptTournament(
                    no=row.tournament_no,
                    tournament_id=TournamentId(row.tournament_id),
                    terms=terms,
                    offset=row.log_offset,
                    sequence=row.sequence,
                    players=row.players,
                    seen=row.players_seen,
                    ids_applied=row.ids_applied,
                    over_at_ms=row.over_at_ms,
                    has_out=terms.stays_out,
                )

    def begin(self, tournament_id: TournamentId, terms: Terms) -> KeptTournament:
        """Put down a tournament that its first schedule has just made."""
        table = tables.tournaments
        values = {
            "tournament_id": tournament_id,
            "log_partition": self._partition,
            "log_id": self._log_id,
            "log_offset": terms.created,
            "sequence": terms.created,
            "state": terms.state.value,
            "starts_at_ms": terms.starts_at_ms,
            "ends_at_ms": terms.ends_at_ms,
            "terms": terms.model_dump_json(),
            "players": 0,
            "players_seen": 0,
            "ids_applied": 0,
        }
        no = self._connection.execute(
            sa.insert(table).values(values).returning(table.c.tournament_no)
        ).scalar_one()
        begun = KeptTournament(
            no, tournament_id, terms, terms.created, terms.created, 0, 0, 0, None, [terms]
        )
        self.tournaments[tournament_id] = begun
        return begun

    def load(self, asked: Asked) -> None:
        """Fetch all that a batch asks about."""
        by_no = {one.no: one for one in self.tournaments.values()}
        for no, mark, reason in find(
            self._connection,
            sa.select(
                tables.exclusions.c.tournament_no,
                tables.exclusions.c.mark,
                tables.exclusions.c.reason,
            ),
            tables.exclusions.c.tournament_no,
            tables.exclusions.c.mark,
            asked.marks,
        ):
            by_no[no].out[bytes(mark)] = RemovalReason(reason)
            self.changes.known_exclusions.add((no, bytes(mark)))
            asked.players.add((no, erased_name(bytes(mark))))
        self._load_players(by_no, asked.players)
        table = tables.event_ids
        for no, key, ordinal, at in find(
            self._connection, sa.select(table), table.c.tournament_no, table.c.event_key, asked.ids
        ):
            by_no[no].ids[bytes(key)] = (ordinal, at)
        table = tables.producer_numbers
        for no, source, number in find(
            self._connection, sa.select(table), table.c.tournament_no, table.c.source, asked.numbers
        ):
            by_no[no].numbers[source] = number
            self.changes.known_numbers.add((no, source))

    def _load_players(self, by_no: dict[int, KeptTournament], wanted: set[tuple[int, str]]) -> None:
        who, row = tables.players, tables.standings
        joined = who.outerjoin(
            row,
            sa.and_(who.c.tournament_no == row.c.tournament_no, who.c.player_no == row.c.player_no),
        )
        statement = sa.select(
            who, row.c.rank_score, row.c.rank_subscore, row.c.reached
        ).select_from(joined)
        found = find(self._connection, statement, who.c.tournament_no, who.c.player_id, wanted)
        for no, player_no, player_id, name, joined_at, out_at, first, second, reached in found:
            tournament = by_no[no]
            score = None if first is None else _score(tournament.terms, first, second)
            tournament.rows[player_id] = KeptPlayer(
                player_no, player_id, name, joined_at, out_at, score, reached or 0,
                had_standing=score is not None,
            )  # fmt: skip

    def producers_of(self, tournament: KeptTournament) -> int:
        """How many producers of a tournament go by their numbers."""
        if tournament.producers < 0:
            table = tables.producer_numbers
            count = sa.select(sa.func.count()).where(table.c.tournament_no == tournament.no)
            tournament.producers = self._connection.execute(count).scalar_one()
        return tournament.producers

    # writing

    def write(self) -> None:
        """Write back what the batch has changed."""
        connection, changes = self._connection, self.changes
        insert(connection, tables.inputs, changes.inputs)
        insert(
            connection,
            tables.event_ids,
            [(no, key, *value) for (no, key), value in changes.new_ids.items()],
        )
        update(
            connection,
            tables.event_ids,
            ("tournament_no", "event_key"),
            ("ordinal", "log_offset"),
            [(no, key, *value) for (no, key), value in changes.moved_ids.items()],
        )
        self._write_players()
        self._write_marks()
        for tournament in self.tournaments.values():
            self._write_tournament(tournament)
        for tournament, player, _ in changes.renamed:
            forget_inputs(connection, tournament.no, player.no, player.player_id)

    def forget_changes(self) -> None:
        """Rewrite the position changes of whom this batch has erased; alone with the marks."""
        for tournament, player, name in self.changes.renamed:
            forget_changes(self._connection, tournament.tournament_id, name, player.player_id)

    def _write_players(self) -> None:
        new: _Rows = []
        renewed: _Rows = []
        scored: _Rows = []
        rescored: _Rows = []
        gone: _Rows = []
        for tournament in self.tournaments.values():
            no, terms = tournament.no, tournament.terms
            for player in tournament.rows.values():
                if player.is_new or player.is_renewed:
                    (new if player.is_new else renewed).append(
                        (no, player.no, player.player_id, player.display_name,
                         player.joined_at, player.out_at)
                    )  # fmt: skip
                if player.score is None:
                    if player.had_standing:
                        gone.append((no, player.no))
                elif player.is_rescored:
                    first, second, reached = rank_key(
                        terms.rules.order, player.score, Offset(player.reached)
                    )
                    row = (no, player.no, first, second, reached)
                    (rescored if player.had_standing else scored).append(row)
        connection, keys = self._connection, ("tournament_no", "player_no")
        insert(connection, tables.players, new)
        who = ("player_id", "display_name", "joined_at", "out_at")
        update(connection, tables.players, keys, who, renewed)
        insert(connection, tables.standings, scored)
        score = ("rank_score", "rank_subscore", "reached")
        update(connection, tables.standings, keys, score, rescored)
        delete(connection, tables.standings, keys, gone)

    def _write_marks(self) -> None:
        connection, changes = self._connection, self.changes
        keys: tuple[str, ...] = ("tournament_no", "source")
        given = [(*place, number) for place, number in changes.numbers.items()]
        known = [row for row in given if row[:2] in changes.known_numbers]
        insert(
            connection,
            tables.producer_numbers,
            [row for row in given if row[:2] not in changes.known_numbers],
        )
        update(connection, tables.producer_numbers, keys, ("number",), known)
        keys = ("tournament_no", "mark")
        marks = [(*place, *why) for place, why in changes.exclusions.items()]
        insert(
            connection,
            tables.exclusions,
            [row for row in marks if row[:2] not in changes.known_exclusions],
        )
        known_marks = [row for row in marks if row[:2] in changes.known_exclusions]
        update(connection, tables.exclusions, keys, ("reason", "log_offset"), known_marks)
        insert(connection, tables.erasures, changes.erasures)

    def _write_tournament(self, tournament: KeptTournament) -> None:
        terms = tournament.terms
        insert(
            self._connection,
            tables.terms_history,
            [(tournament.no, one.revision, one.model_dump_json()) for one in tournament.revisions],
        )
        changed: dict[str, Any] = {
            "log_offset": tournament.offset,
            "sequence": tournament.sequence,
            "players": tournament.players,
            "players_seen": tournament.seen,
            "ids_applied": tournament.ids_applied,
        }
        if tournament.revisions:
            changed |= {
                "state": terms.state.value,
                "starts_at_ms": terms.starts_at_ms,
                "ends_at_ms": terms.ends_at_ms,
                "terms": terms.model_dump_json(),
                "over_at_ms": tournament.over_at_ms,
            }
        table = tables.tournaments
        self._connection.execute(
            sa.update(table).where(table.c.tournament_no == tournament.no).values(changed)
        )
        if tournament.ends_now:
            self._keep_final(tournament)

    def _keep_final(self, tournament: KeptTournament) -> None:
        """The board as the end left it, for good: later reads need no sorting."""
        row = tables.standings.c
        sign = sign_of(tournament.terms.rules.order)
        order = (row.rank_score, row.rank_subscore, row.reached)
        ranked = sa.select(
            row.tournament_no,
            sa.func.row_number().over(order_by=order),
            row.player_no,
            row.rank_score * sign,
            row.rank_subscore * sign,
            row.reached,
        ).where(row.tournament_no == tournament.no)
        names = [column.name for column in tables.final_standings.columns]
        self._connection.execute(sa.insert(tables.final_standings).from_select(names, ranked))


def _score(terms: Terms, first: int, second: int) -> Score:
    """A score from the two numbers of its rank key."""
    sign = sign_of(terms.rules.order)
    return Score(sign * first, sign * second)
