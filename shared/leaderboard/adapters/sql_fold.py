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
from typing import Final, NamedTuple

import sqlalchemy as sa

from leaderboard import events as ev
from leaderboard.adapters.sql_engine import writing
from leaderboard.adapters.sql_erasure import (
    alone_with_marks,
    forget_beside,
    mark_forgotten,
    pseudonymised,
    pseudonymous_id,
)
from leaderboard.adapters.sql_months import Months, month_of
from leaderboard.adapters.sql_positions import take_position
from leaderboard.adapters.sql_rows import Asked, KeptPlayer, KeptTournament, Rows
from leaderboard.errors import Refusal
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
    PlayerId,
    Score,
    State,
    erased_name,
    tombstone,
)
from leaderboard.record_ports import Folded, Input

_OVER: Final = (State.ENDED, State.CANCELLED)


class _Decided(NamedTuple):
    """An input after the first step of the fold: the terms after it, and the verdict."""

    tournament: KeptTournament | None
    one: Input
    terms: Terms | None
    verdict: Verdict
    key: bytes | None
    """Of the event's source and id, where it may be applied."""
    player_id: PlayerId | None


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
        self._forgetting: list[ev.Event] = []

    def apply(self, log_id: str, batch: Sequence[Input], next_offset: Offset) -> Folded:
        start = take_position(self._connection, ev.WAGERS, self._partition, log_id, next_offset)
        if start is None:
            return Folded([Disposition.SKIPPED] * len(batch), 0)
        fresh = [one for one in batch if one.entry.offset >= start]
        verdicts: list[Disposition | Refusal] = [Disposition.SKIPPED] * (len(batch) - len(fresh))
        rows = self._rows = Rows(self._connection, log_id, self._partition)
        rows.load_tournaments(str(one.entry.event.tournament_id) for one in fresh)
        decided = self._decide(fresh)
        rows.load(self._asked(decided))
        for one in decided:
            if one.tournament is None or one.terms is None:
                # Its dead letter says more than a row without a tournament could.
                verdicts.append(Refusal.UNKNOWN_TOURNAMENT)
            else:
                verdicts.append(self._take(one.tournament, one, one.terms.rules))
        rows.write()
        self._forget_beside()
        return Folded(verdicts, rows.changes.repeats)

    def _forget_beside(self) -> None:
        """What stands beside the tournaments forgets whoever asks for it in any of them, whatever
        becomes of the event there. Last of all, because others wait meanwhile."""
        requested = {str(event.player_id): event.time_ms for event in reversed(self._forgetting)}
        if not requested:
            return
        alone_with_marks(self._connection)
        self._rows.forget_changes()
        fresh = mark_forgotten(self._connection, self._key, requested)
        forget_beside(self._connection, fresh, self._key)

    # the terms

    def _decide(self, batch: Sequence[Input]) -> list[_Decided]:
        decided: list[_Decided] = []
        for one in batch:
            entry = one.entry
            tournament_id = entry.event.tournament_id
            if tournament_id is None:
                raise AssertionError("the codec lets no event without a tournament into wagers")
            known = self._rows.tournaments.get(tournament_id)
            decision = decide(None if known is None else known.terms, entry)
            if known is None and decision.terms is not None:
                known = self._rows.begin(tournament_id, decision.terms)
            elif known is not None and decision.terms is not known.terms:
                if decision.terms is None:
                    raise AssertionError("terms never go away")
                self._change_terms(known, decision.terms, entry)
            if known is not None:
                known.offset = entry.offset
            if type(entry.event.data) is ev.PlayerErased:
                self._forgetting.append(entry.event)
            verdict = decision.verdict
            is_settled = isinstance(verdict, Disposition | Refusal)
            key = None if is_settled else event_key(entry.event)
            player_id = entry.event.player_id
            decided.append(_Decided(known, one, decision.terms, verdict, key, player_id))
        return decided

    def _change_terms(self, known: KeptTournament, terms: Terms, entry: LogEntry) -> None:
        if terms.state in _OVER and known.terms.state not in _OVER:
            known.ends_now = True
            known.over_at_ms = entry.event.time_ms
        known.terms = terms
        known.sequence = entry.offset
        known.revisions.append(terms)
        known.has_out = terms.stays_out

    # the rows

    def _asked(self, decided: Sequence[_Decided]) -> Asked:
        asked = Asked()
        for tournament, one, _, _, key, player_id in decided:
            if tournament is None:
                continue
            no, event = tournament.no, one.entry.event
            if player_id is not None:
                asked.players.add((no, player_id))
                if tournament.has_out:
                    asked.marks.add((no, self._mark(tournament, player_id)))
            if key is not None:
                asked.ids.add((no, key))
                if event.sequence is not None:
                    asked.numbers.add((no, event.source))
        return asked

    def _mark(self, tournament: KeptTournament, player_id: str) -> bytes:
        mark = tournament.marks.get(player_id)
        if mark is None:
            mark = tombstone(self._key, tournament.tournament_id, player_id)
            tournament.marks[player_id] = mark
        return mark

    def _player(self, tournament: KeptTournament, player_id: str) -> KeptPlayer:
        """The player's rows; who is erased has those of the name that stands for them."""
        if tournament.has_out:
            mark = self._mark(tournament, player_id)
            if tournament.out.get(mark) is RemovalReason.ERASED:
                player_id = erased_name(mark)
        player = tournament.rows.get(player_id)
        if player is None:
            player = KeptPlayer(tournament.seen, player_id, None, None, None, None, 0, is_new=True)
            tournament.seen += 1
            tournament.rows[player_id] = player
        return player

    def _take(
        self,
        tournament: KeptTournament,
        one: _Decided,
        rules: ev.Rules,
    ) -> Disposition | Refusal:
        """Do what an input does, and keep it with what became of it."""
        _, (entry, body), _, verdict, key, player_id = one
        event = entry.event
        became: Disposition | Refusal
        ordinal: int | None = None
        repeats: int | None = None
        before: tuple[Score, int] | None = None
        touched = False
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
        self._keep(tournament, entry, body, player_id, player, became, effect)
        return became

    def _names_nobody(self, tournament: KeptTournament, event: ev.Event) -> bool:
        """An erasure of somebody who was never here is no reason to write down their name."""
        return isinstance(event.data, ev.PlayerErased) and event.player_id not in tournament.rows

    def _outcome(
        self,
        tournament: KeptTournament,
        rules: ev.Rules,
        action: Action,
        player: KeptPlayer | None,
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

    def _goes_by_number(self, tournament: KeptTournament, event: ev.Event) -> bool:
        if event.sequence is None:
            return False
        if event.source in tournament.numbers:
            return True
        return self._rows.producers_of(tournament) < self._window

    def _is_known(
        self, tournament: KeptTournament, event: ev.Event, key: bytes, *, by_number: bool
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
        self, tournament: KeptTournament, event: ev.Event, key: bytes, at: int, *, by_number: bool
    ) -> tuple[int | None, int | None]:
        """Puts an applied event's id down; its ordinal, and the offset of an earlier one."""
        changes, place = self._rows.changes, (tournament.no, key)
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
        tournament: KeptTournament,
        action: Action,
        came: Score | Disposition,
        player: KeptPlayer | None,
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
        self, tournament: KeptTournament, action: Remove, player: KeptPlayer | None, entry: LogEntry
    ) -> bool:
        mark = self._mark(tournament, action.player_id)
        known = tournament.out.get(mark)
        if known is None or (known is not action.reason and known is not RemovalReason.ERASED):
            # The first removal's offset stays: from then on the player was out.
            tournament.out[mark] = action.reason
            self._rows.changes.exclusions[tournament.no, mark] = (action.reason.value, entry.offset)
        if isinstance(entry.event.data, ev.PlayerErased):
            self._rows.changes.erasures.append(
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
            self._rows.changes.renamed.append((tournament, player, player.player_id))
            tournament.rows.pop(player.player_id, None)
            tournament.rows[name] = player
            player.player_id, player.display_name = name, None
        return touched

    def _keep(
        self,
        tournament: KeptTournament,
        entry: LogEntry,
        body: str,
        player_id: PlayerId | None,
        player: KeptPlayer | None,
        verdict: Disposition | Refusal,
        effect: tuple[bytes | None, int | None, int | None, bool, tuple[Score, int] | None],
    ) -> None:
        event = entry.event
        key, ordinal, repeats, touched, before = effect
        kind, event_id = ev.name_of(type(event.data)), event.id
        trace, extensions = event.traceparent, event.extensions
        if player_id is not None and (player is None or player.player_id != player_id):
            # Erased, now or before: nothing of it may name them.
            mark = self._mark(tournament, player_id)
            body = pseudonymised(body, erased_name(mark))
            event_id = pseudonymous_id(event)
            trace, extensions = None, {}  # a producer may have put anything into them
        self._rows.changes.inputs.append(
            (
                tournament.no, entry.offset, self._month, entry.logged_at_ms, kind,
                event.source, event_id, event.time_ms, None if player is None else player.no,
                event.sequence, trace, json.dumps(dict(extensions)) if extensions else None,
                body, verdict.value, key, ordinal, repeats, touched,
                None if before is None else before[0].score,
                None if before is None else before[0].subscore,
                None if before is None else before[1],
            )
        )  # fmt: skip
