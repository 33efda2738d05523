"""The record folds `wagers` by itself: the same pure fold as the board's, over rows in SQL.

One transaction takes in one batch of one partition: every input with what became of it, the rows
that it changed, who stays out, terms, and the offset that all of it stands for. So a crash leaves
either none of it or all of it, and of two owners of a partition the later one finds the offset
taken. Nothing is copied from the board: the two are witnesses of each other.

What an input changed is kept beside it (`before_*`), so the record can say how things stood at any
earlier offset: that is what a board is rebuilt from, whose consumer has not come as far as this.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from leaderboard import events as ev
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import delete, find, insert, update, writing
from leaderboard.adapters.sql_erasure import (
    forget_changes,
    forget_inputs,
    pseudonymised,
    pseudonymous_id,
)
from leaderboard.adapters.sql_months import Months, month_of
from leaderboard.adapters.sql_positions import take_position
from leaderboard.errors import ForeignLogError, Refusal
from leaderboard.fold import (
    Action,
    Join,
    LogEntry,
    RemovalReason,
    Remove,
    Terms,
    Verdict,
    decide,
    event_key,
    outcome,
)
from leaderboard.model import (
    REMEMBERED_IDS,
    Disposition,
    Offset,
    Score,
    State,
    TournamentId,
    erased_name,
    tombstone,
)
from leaderboard.ports import Folded, Input
from leaderboard.ranking import rank_key, sign_of

_Rows = list[tuple[Any, ...]]
_OVER: Final = (State.ENDED, State.CANCELLED)


@dataclass(slots=True)
class _Player:
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
class _Tournament:
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
    rows: dict[str, _Player] = field(default_factory=dict)
    ids: dict[bytes, tuple[int | None, int]] = field(default_factory=dict)
    """Applied ids that the batch asks about: ordinal and offset."""
    numbers: dict[str, int] = field(default_factory=dict)
    producers: int = -1
    """How many producers go by number; -1 until it is asked."""


class _Decided(NamedTuple):
    """An input after the first step of the fold: the terms after it, and the verdict."""

    tournament: _Tournament | None
    one: Input
    terms: Terms | None
    verdict: Verdict
    key: bytes | None
    """Of the event's source and id, where it may be applied."""


@dataclass(slots=True)
class _Changes:
    """What the transaction will write."""

    inputs: list[tuple[Any, ...]] = field(default_factory=list)
    new_ids: dict[tuple[int, bytes], tuple[int | None, int]] = field(default_factory=dict)
    moved_ids: dict[tuple[int, bytes], tuple[int | None, int]] = field(default_factory=dict)
    numbers: dict[tuple[int, str], int] = field(default_factory=dict)
    known_numbers: set[tuple[int, str]] = field(default_factory=set)
    exclusions: dict[tuple[int, bytes], tuple[str, int]] = field(default_factory=dict)
    known_exclusions: set[tuple[int, bytes]] = field(default_factory=set)
    erasures: list[tuple[int, int, str, int]] = field(default_factory=list)
    renamed: list[tuple[_Tournament, _Player, str]] = field(default_factory=list)
    repeats: int = 0


class SqlFold:
    """Takes `wagers` into the record. For one thread; owners of other partitions work beside it.

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
        self._window = remembered_ids
        self._now_ms = now_ms
        self._months = Months(engine)

    def apply(
        self, partition: int, log_id: str, batch: Sequence[Input], next_offset: Offset
    ) -> Folded:
        """Take in the inputs (in log order) that lie above the record's own offset, and advance
        that to `next_offset`.

        Raises ForeignLogError when the record was folded from another log, TransientError when
        the database is away (nothing is written then)."""
        month = month_of(self._now_ms())
        self._months.ensure(month)
        with writing(self._engine) as connection:
            fold = _Fold(connection, self._key, self._window, partition, month)
            return fold.apply(log_id, batch, next_offset)


class _Fold:
    """One transaction."""

    def __init__(
        self, connection: sa.Connection, key: bytes, window: int, partition: int, month: int
    ) -> None:
        self._connection = connection
        self._key = key
        self._window = window
        self._partition = partition
        self._month = month
        self._log_id = ""
        self._tournaments: dict[str, _Tournament] = {}
        self._changes = _Changes()

    def apply(self, log_id: str, batch: Sequence[Input], next_offset: Offset) -> Folded:
        self._log_id = log_id
        start = take_position(self._connection, ev.WAGERS, self._partition, log_id, next_offset)
        if start is None:
            return Folded([Disposition.SKIPPED] * len(batch), 0)
        fresh = [one for one in batch if one.entry.offset >= start]
        verdicts: list[Disposition | Refusal] = [Disposition.SKIPPED] * (len(batch) - len(fresh))
        self._load_tournaments(fresh)
        decided = self._decide(fresh)
        self._load_rows(decided)
        for tournament, one, terms, verdict, key in decided:
            if tournament is None or terms is None:
                # Its dead letter says more than a row without a tournament could.
                verdicts.append(Refusal.UNKNOWN_TOURNAMENT)
            else:
                verdicts.append(self._take(tournament, one, terms.rules, verdict, key))
        self._write()
        return Folded(verdicts, self._changes.repeats)

    # the terms

    def _load_tournaments(self, batch: Sequence[Input]) -> None:
        names = sorted({str(one.entry.event.tournament_id) for one in batch})
        table = tables.tournaments
        for start in range(0, len(names), 500):
            some = names[start : start + 500]
            rows = self._connection.execute(sa.select(table).where(table.c.tournament_id.in_(some)))
            for row in rows:
                if row.log_id != self._log_id:
                    raise ForeignLogError(
                        f"{row.tournament_id} was folded from {row.log_id}, not {self._log_id}"
                    )
                terms = Terms.model_validate_json(row.terms)
                self._tournaments[row.tournament_id] = _Tournament(
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

    def _decide(self, batch: Sequence[Input]) -> list[_Decided]:
        decided: list[_Decided] = []
        for one in batch:
            entry = one.entry
            tournament_id = entry.event.tournament_id
            if tournament_id is None:
                raise AssertionError("the codec lets no event without a tournament into wagers")
            known = self._tournaments.get(tournament_id)
            decision = decide(None if known is None else known.terms, entry)
            if known is None and decision.terms is not None:
                known = self._begin(tournament_id, decision.terms)
            elif known is not None and decision.terms is not known.terms:
                if decision.terms is None:
                    raise AssertionError("terms never go away")
                self._change_terms(known, decision.terms, entry)
            if known is not None:
                known.offset = entry.offset
            verdict = decision.verdict
            is_settled = isinstance(verdict, Disposition | Refusal)
            key = None if is_settled else event_key(entry.event)
            decided.append(_Decided(known, one, decision.terms, verdict, key))
        return decided

    def _begin(self, tournament_id: TournamentId, terms: Terms) -> _Tournament:
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
        begun = _Tournament(
            no, tournament_id, terms, terms.created, terms.created, 0, 0, 0, None, [terms]
        )
        self._tournaments[tournament_id] = begun
        return begun

    def _change_terms(self, known: _Tournament, terms: Terms, entry: LogEntry) -> None:
        if terms.state in _OVER and known.terms.state not in _OVER:
            known.ends_now = True
            known.over_at_ms = entry.event.time_ms
        known.terms = terms
        known.sequence = entry.offset
        known.revisions.append(terms)
        known.has_out = terms.stays_out

    # the rows

    def _load_rows(self, decided: Sequence[_Decided]) -> None:
        """Fetch what the batch asks about: players with their standing, ids, numbers, marks."""
        by_no: dict[int, _Tournament] = {}
        players: set[tuple[int, str]] = set()
        ids: set[tuple[int, bytes]] = set()
        numbers: set[tuple[int, str]] = set()
        marks: set[tuple[int, bytes]] = set()
        for tournament, one, _, _, key in decided:
            if tournament is None:
                continue
            no = tournament.no
            by_no[no] = tournament
            event = one.entry.event
            player_id = event.player_id
            if player_id is not None:
                players.add((no, player_id))
                if tournament.has_out:
                    marks.add((no, self._mark(tournament, player_id)))
            if key is not None:
                ids.add((no, key))
                if event.sequence is not None:
                    numbers.add((no, event.source))
        for no, mark, reason in find(
            self._connection,
            sa.select(
                tables.exclusions.c.tournament_no,
                tables.exclusions.c.mark,
                tables.exclusions.c.reason,
            ),
            tables.exclusions.c.tournament_no,
            tables.exclusions.c.mark,
            marks,
        ):
            by_no[no].out[bytes(mark)] = RemovalReason(reason)
            self._changes.known_exclusions.add((no, bytes(mark)))
            players.add((no, erased_name(bytes(mark))))
        self._load_players(by_no, players)
        table = tables.event_ids
        for no, key, ordinal, at in find(
            self._connection, sa.select(table), table.c.tournament_no, table.c.event_key, ids
        ):
            by_no[no].ids[bytes(key)] = (ordinal, at)
        table = tables.producer_numbers
        for no, source, number in find(
            self._connection, sa.select(table), table.c.tournament_no, table.c.source, numbers
        ):
            by_no[no].numbers[source] = number
            self._changes.known_numbers.add((no, source))

    def _load_players(self, by_no: dict[int, _Tournament], wanted: set[tuple[int, str]]) -> None:
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
            tournament.rows[player_id] = _Player(
                player_no, player_id, name, joined_at, out_at, score, reached or 0,
                had_standing=score is not None,
            )  # fmt: skip

    def _mark(self, tournament: _Tournament, player_id: str) -> bytes:
        mark = tournament.marks.get(player_id)
        if mark is None:
            mark = tombstone(self._key, tournament.tournament_id, player_id)
            tournament.marks[player_id] = mark
        return mark

    def _player(self, tournament: _Tournament, player_id: str) -> _Player:
        """The player's rows; who is erased has those of the name that stands for them."""
        if tournament.has_out:
            mark = self._mark(tournament, player_id)
            if tournament.out.get(mark) is RemovalReason.ERASED:
                player_id = erased_name(mark)
        player = tournament.rows.get(player_id)
        if player is None:
            player = _Player(tournament.seen, player_id, None, None, None, None, 0, is_new=True)
            tournament.seen += 1
            tournament.rows[player_id] = player
        return player

    def _take(
        self,
        tournament: _Tournament,
        one: Input,
        rules: ev.Rules,
        verdict: Verdict,
        key: bytes | None,
    ) -> Disposition | Refusal:
        """Do what an input does, and keep it with what became of it."""
        entry, event = one.entry, one.entry.event
        became: Disposition | Refusal
        ordinal: int | None = None
        repeats: int | None = None
        before: tuple[Score, int] | None = None
        touched = False
        player_id = event.player_id
        player = None
        if player_id is not None and not self._names_nobody(tournament, event):
            player = self._player(tournament, player_id)
        if isinstance(verdict, Disposition | Refusal):
            became = verdict
        elif key is None:
            raise AssertionError("what may be applied has a key")
        else:
            by_number = self._goes_by_number(tournament, event)
            came = self._outcome(
                tournament,
                rules,
                verdict,
                player,
                is_known=self._is_known(tournament, event, key, by_number=by_number),
            )
            if isinstance(came, Score) or came is Disposition.APPLIED:
                ordinal, repeats = self._remember(
                    tournament, event, key, entry.offset, by_number=by_number
                )
                if player is not None and player.score is not None:
                    before = (player.score, player.reached)
                touched = self._act(tournament, verdict, came, player, entry)
                # The terms are a pass ahead, and may have brought the sequence further.
                tournament.sequence = max(tournament.sequence, entry.offset)
                became = Disposition.APPLIED
            else:
                became = came
        effect = (key, ordinal, repeats, touched, before if touched else None)
        self._keep(tournament, one, player, became, effect)
        return became

    def _names_nobody(self, tournament: _Tournament, event: ev.Event) -> bool:
        """An erasure of somebody who was never here is no reason to write down their name."""
        return isinstance(event.data, ev.PlayerErased) and event.player_id not in tournament.rows

    def _outcome(
        self,
        tournament: _Tournament,
        rules: ev.Rules,
        action: Action,
        player: _Player | None,
        *,
        is_known: bool,
    ) -> Score | Disposition | Refusal:
        out = None
        if tournament.has_out:
            out = tournament.out.get(self._mark(tournament, action.player_id))
        return outcome(
            rules,
            action,
            is_known=is_known,
            out=out,
            has_joined=player is not None and player.joined_at is not None,
            current=None if player is None else player.score,
        )

    def _goes_by_number(self, tournament: _Tournament, event: ev.Event) -> bool:
        if event.sequence is None:
            return False
        if event.source in tournament.numbers:
            return True
        if tournament.producers < 0:
            table = tables.producer_numbers
            count = sa.select(sa.func.count()).where(table.c.tournament_no == tournament.no)
            tournament.producers = self._connection.execute(count).scalar_one()
        return tournament.producers < self._window

    def _is_known(
        self, tournament: _Tournament, event: ev.Event, key: bytes, *, by_number: bool
    ) -> bool:
        """As `fold.SeenIds`: the ordinals of an id's generation and of the one before count."""
        if by_number and event.sequence is not None:
            return event.sequence <= tournament.numbers.get(event.source, -1)
        ordinal = tournament.ids.get(key, (None, 0))[0]
        if ordinal is None:
            return False
        window = self._window
        return ordinal // window >= tournament.ids_applied // window - 1

    def _remember(
        self, tournament: _Tournament, event: ev.Event, key: bytes, at: int, *, by_number: bool
    ) -> tuple[int | None, int | None]:
        """Puts an applied event's id down; its ordinal, and the offset of an earlier one."""
        changes, place = self._changes, (tournament.no, key)
        before = tournament.ids.get(key)
        ordinal = None
        if by_number and event.sequence is not None:
            if event.source not in tournament.numbers:
                tournament.producers += 1
            tournament.numbers[event.source] = event.sequence
            changes.numbers[tournament.no, event.source] = event.sequence
        else:
            ordinal = tournament.ids_applied
            tournament.ids_applied += 1
        tournament.ids[key] = (ordinal, at)
        if before is None:
            changes.new_ids[place] = (ordinal, at)
            return ordinal, None
        changes.repeats += 1
        if place in changes.new_ids:
            changes.new_ids[place] = (ordinal, at)
        else:
            changes.moved_ids[place] = (ordinal, at)
        return ordinal, before[1]

    def _act(
        self,
        tournament: _Tournament,
        action: Action,
        came: Score | Disposition,
        player: _Player | None,
        entry: LogEntry,
    ) -> bool:
        """Changes the rows; whether the player's standing is another one now."""
        if isinstance(action, Remove):
            return self._remove(tournament, action, player, entry)
        if player is None:
            raise AssertionError("only who is erased may be unknown")
        if isinstance(action, Join):
            player.display_name = action.display_name
            if player.joined_at is None:
                player.joined_at = entry.offset
            player.is_renewed = True
            return False
        if not isinstance(came, Score):
            raise AssertionError(f"{type(action).__name__} makes a score")
        if came == player.score:
            return False
        if player.score is None:
            tournament.players += 1
        player.score, player.reached = came, entry.offset
        player.is_rescored = True
        return True

    def _remove(
        self, tournament: _Tournament, action: Remove, player: _Player | None, entry: LogEntry
    ) -> bool:
        mark = self._mark(tournament, action.player_id)
        known = tournament.out.get(mark)
        if known is None or (known is not action.reason and known is not RemovalReason.ERASED):
            # The first removal's offset stays: from then on the player was out.
            tournament.out[mark] = action.reason
            self._changes.exclusions[tournament.no, mark] = (action.reason.value, entry.offset)
        if isinstance(entry.event.data, ev.PlayerErased):
            self._changes.erasures.append(
                (tournament.no, entry.offset, entry.event.data.erasure_id, entry.event.time_ms)
            )
        if player is None:
            return False
        player.is_renewed = True
        player.out_at = entry.offset if player.out_at is None else player.out_at
        touched = player.score is not None and not action.keep_row
        if touched:
            tournament.players -= 1
            player.score = None
        if action.reason is RemovalReason.ERASED:
            name = erased_name(mark)
            self._changes.renamed.append((tournament, player, player.player_id))
            tournament.rows.pop(player.player_id, None)
            tournament.rows[name] = player
            player.player_id, player.display_name = name, None
        return touched

    def _keep(
        self,
        tournament: _Tournament,
        one: Input,
        player: _Player | None,
        verdict: Disposition | Refusal,
        effect: tuple[bytes | None, int | None, int | None, bool, tuple[Score, int] | None],
    ) -> None:
        entry, event = one.entry, one.entry.event
        key, ordinal, repeats, touched, before = effect
        kind, body, event_id = ev.name_of(type(event.data)), one.body, event.id
        if event.player_id is not None and (player is None or player.player_id != event.player_id):
            # Erased, now or before: nothing of it may name them.
            mark = self._mark(tournament, event.player_id)
            body = pseudonymised(body, erased_name(mark))
            event_id = pseudonymous_id(event)
        self._changes.inputs.append(
            (
                tournament.no, entry.offset, self._month, entry.logged_at_ms, kind,
                event.source, event_id, event.time_ms, None if player is None else player.no,
                event.sequence, event.traceparent,
                json.dumps(dict(event.extensions)) if event.extensions else None,
                body, verdict.value, key, ordinal, repeats, touched,
                None if before is None else before[0].score,
                None if before is None else before[0].subscore,
                None if before is None else before[1],
            )
        )  # fmt: skip

    # writing

    def _write(self) -> None:
        connection, changes = self._connection, self._changes
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
        for tournament in self._tournaments.values():
            self._write_tournament(tournament)
        for tournament, player, name in changes.renamed:
            forget_inputs(connection, tournament.no, player.no, player.player_id)
            forget_changes(connection, tournament.tournament_id, name, player.player_id)

    def _write_players(self) -> None:
        new: _Rows = []
        renewed: _Rows = []
        scored: _Rows = []
        rescored: _Rows = []
        gone: _Rows = []
        for tournament in self._tournaments.values():
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
        connection, changes = self._connection, self._changes
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

    def _write_tournament(self, tournament: _Tournament) -> None:
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

    def _keep_final(self, tournament: _Tournament) -> None:
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
