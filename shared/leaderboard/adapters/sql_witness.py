"""The record as a witness of the audit log: all that it says, in one consistent view, in the order
in which the log says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa

from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import reading
from leaderboard.audit_leaves import PlayerKey, player_key
from leaderboard.events import WAGERS
from leaderboard.fold import Terms
from leaderboard.model import (
    ERASED,
    Offset,
    Place,
    PlayerId,
    Score,
    TournamentId,
    erasure_id_of,
    tombstone,
)
from leaderboard.ranking import sign_of
from leaderboard.record_ports import (
    AccountRow,
    AlertRow,
    AttemptRow,
    ChangeRow,
    FinalRow,
    Head,
    InputRow,
    MemberRow,
    ReviewRow,
    StandingRow,
)
from leaderboard.terms import event_key_of

CHUNK: Final = 2_000
"""Rows that a cursor hands over at a time."""
_IN = tables.inputs.c
_WHO = tables.players.c
_OF = tables.tournaments.c


class SqlWitness:
    """`record_ports.Witness` over one transaction. `tombstone_key` is that of the record.

    With `engine`, a key that the transaction does not see is looked for beside it: `archive` draws
    keys for the log a moment after the record has the rows."""

    def __init__(
        self, connection: sa.Connection, tombstone_key: bytes, engine: sa.Engine | None = None
    ) -> None:
        self._connection = connection
        self._engine = engine
        self._key = tombstone_key
        self._secrets: dict[TournamentId, dict[str, bytes]] = {}
        self._requests: dict[TournamentId, dict[str, str]] = {}
        self._keys: dict[tuple[TournamentId, str], PlayerKey | None] = {}
        self._changed: dict[TournamentId, int] | None = None

    def ends(self) -> Mapping[Place, tuple[str, Offset]]:
        table = tables.log_positions.c
        rows = self._connection.execute(
            sa.select(table.topic, table.log_partition, table.log_id, table.next_offset)
        )
        return {Place(topic, number): (log, Offset(at)) for topic, number, log, at in rows}

    def heads(self) -> Sequence[Head]:
        """How far the shards of the audit log were when they were last looked at."""
        rows = self._connection.execute(sa.select(tables.audit_heads))
        return [
            Head(
                row.origin, Place(row.topic, row.log_partition), row.size, row.root,
                Offset(row.next_offset),
            )
            for row in rows
        ]  # fmt: skip

    def inputs(self, partition: int) -> Iterator[InputRow]:
        statement = self._inputs().where(_OF.log_partition == partition)
        for row in self._stream(statement.order_by(_IN.log_offset, _OF.tournament_id)):
            yield InputRow(*row)

    def input_at(self, tournament_id: TournamentId, offset: Offset) -> InputRow | None:
        """One of them; None where the record has no such."""
        place = sa.and_(_OF.tournament_id == tournament_id, _IN.log_offset == offset)
        row = self._connection.execute(self._inputs().where(place)).first()
        return None if row is None else InputRow(*row)

    @staticmethod
    def _inputs() -> sa.Select[Any]:
        owns = sa.and_(_WHO.tournament_no == _IN.tournament_no, _WHO.player_no == _IN.player_no)
        return (
            sa.select(
                _OF.tournament_id, _IN.log_offset, _IN.player_no, _WHO.player_id,
                _IN.logged_at_ms, _IN.kind, _IN.source, _IN.event_id, _IN.time_ms, _IN.number,
                _IN.data, _IN.disposition, _IN.event_key, _IN.ordinal, _IN.touched,
                _IN.before_score, _IN.before_subscore, _IN.before_reached,
            )
            .select_from(tables.inputs)
            .join(tables.tournaments, _OF.tournament_no == _IN.tournament_no)
            .outerjoin(tables.players, owns)
        )  # fmt: skip

    def changes(self, tournament_id: TournamentId) -> Iterator[ChangeRow]:
        row = tables.position_changes.c
        statement = (
            sa.select(
                row.sequence, row.player_id, row.old_rank, row.new_rank, row.score, row.subscore,
                row.distance, row.cause_source, row.cause_id, row.time_ms,
            )
            .where(row.tournament_id == tournament_id)
            .order_by(row.sequence)
        )  # fmt: skip
        for one in self._stream(statement):
            yield ChangeRow(*one)

    def changed(self) -> Mapping[TournamentId, int]:
        if self._changed is None:
            row, told = tables.position_changes.c, tables.told_changes.c
            names = self._connection.execute(sa.select(row.tournament_id).distinct()).scalars()
            marks = self._connection.execute(sa.select(told.tournament_id, told.sequence))
            self._changed = {TournamentId(name): -1 for name in names}
            self._changed |= {TournamentId(name): at for name, at in marks}
        return self._changed

    def accounts(self, partition: int) -> Sequence[AccountRow]:
        rows = self._connection.execute(
            sa.select(tables.tournaments)
            .where(_OF.log_partition == partition)
            .order_by(_OF.tournament_no)
        ).all()
        return [
            AccountRow(
                row.tournament_no, TournamentId(row.tournament_id), Offset(row.log_offset),
                Offset(row.sequence), row.state, row.starts_at_ms, row.ends_at_ms,
                Terms.model_validate_json(row.terms), row.players, row.players_seen,
                row.ids_applied, row.over_at_ms,
            )
            for row in rows
        ]  # fmt: skip

    def revisions(self, account: AccountRow) -> Sequence[tuple[int, Terms]]:
        table = tables.terms_history.c
        rows = self._connection.execute(
            sa.select(table.revision, table.terms)
            .where(table.tournament_no == account.no)
            .order_by(table.revision)
        )
        return [(at, Terms.model_validate_json(text)) for at, text in rows]

    def members(self, account: AccountRow) -> Iterator[MemberRow]:
        statement = (
            sa.select(
                _WHO.player_no, _WHO.player_id, _WHO.display_name, _WHO.joined_at, _WHO.out_at
            )
            .where(_WHO.tournament_no == account.no)
            .order_by(_WHO.player_no)
        )
        for row in self._stream(statement):
            yield MemberRow(*row)

    def standings(self, account: AccountRow) -> Iterator[StandingRow]:
        row = tables.standings.c
        sign = sign_of(account.terms.rules.order)
        statement = (
            sa.select(row.player_no, row.rank_score, row.rank_subscore, row.reached)
            .where(row.tournament_no == account.no)
            .order_by(row.rank_score, row.rank_subscore, row.reached, row.player_no)
        )
        for no, first, second, reached in self._stream(statement):
            yield StandingRow(no, Score(sign * first, sign * second), Offset(reached))

    def final(self, account: AccountRow) -> Iterator[FinalRow]:
        row = tables.final_standings.c
        statement = (
            sa.select(row.standing_rank, row.player_no, row.score, row.subscore, row.reached)
            .where(row.tournament_no == account.no)
            .order_by(row.standing_rank)
        )
        for rank, no, first, second, reached in self._stream(statement):
            yield FinalRow(rank, StandingRow(no, Score(first, second), Offset(reached)))

    def exclusions(self, account: AccountRow) -> Sequence[tuple[int, str, bytes]]:
        row = tables.exclusions.c
        statement = sa.select(row.log_offset, row.reason, row.mark).where(
            row.tournament_no == account.no
        )
        return sorted((at, why, bytes(mark)) for at, why, mark in self._stream(statement))

    def erasures(self, account: AccountRow) -> Sequence[tuple[int, str, int]]:
        row = tables.erasures.c
        statement = sa.select(row.log_offset, row.erasure_id, row.requested_at_ms).where(
            row.tournament_no == account.no
        )
        return sorted((at, name, asked) for at, name, asked in self._stream(statement))

    def attempts(self, partition: int) -> Iterator[AttemptRow]:
        row = tables.connection_attempts.c
        statement = (
            sa.select(
                row.log_offset, row.event_id, row.time_ms, row.tournament_id, row.player_id,
                row.allowed, row.reason, row.address, row.user_agent,
            )
            .where(row.log_partition == partition)
            .order_by(row.log_offset, row.month)
        )  # fmt: skip
        for one in self._stream(statement):
            yield AttemptRow(*one)

    def alerts(self) -> Iterator[AlertRow]:
        row = tables.fraud_alerts.c
        statement = sa.select(
            row.alert_id, row.tournament_id, row.sequence, row.rule, row.player_id,
            row.other_player_id, row.time_ms, row.severity_hundredths, row.evidence,
        ).order_by(row.tournament_id, row.alert_id)  # fmt: skip
        for one in self._stream(statement):
            yield AlertRow(*one)

    def reviews(self) -> Iterator[ReviewRow]:
        row = tables.fraud_reviews.c
        statement = sa.select(
            row.alert_id, row.tournament_id, row.decision, row.decided_by, row.decided_at_ms,
            row.reason,
        ).order_by(row.tournament_id, row.alert_id)  # fmt: skip
        for one in self._stream(statement):
            yield ReviewRow(*one)

    def key_of(self, tournament_id: TournamentId, player_id: PlayerId | str) -> PlayerKey | None:
        place = tournament_id, str(player_id)
        if place not in self._keys:
            request = erasure_id_of(self._key, str(player_id))
            secret = self._secrets_of(tournament_id).get(request)
            if secret is None and not player_id.startswith(ERASED):
                secret = self._drawn_since(tournament_id, request)
            self._keys[place] = None if secret is None else player_key(secret)
        return self._keys[place]

    def _drawn_since(self, tournament_id: TournamentId, request: str) -> bytes | None:
        if self._engine is None:
            return None
        row = tables.pseudonym_keys.c
        statement = sa.select(row.secret).where(
            row.tournament_id == tournament_id, row.erasure_id == request
        )
        with reading(self._engine) as connection:
            secret = connection.execute(statement).scalar()
        return None if secret is None else bytes(secret)

    def requests_of(self, tournament_id: TournamentId) -> Mapping[str, str]:
        known = self._requests.get(tournament_id)
        if known is None:
            secrets = self._secrets_of(tournament_id)
            known = {player_key(secret).pseudonym: name for name, secret in secrets.items()}
            self._requests[tournament_id] = known
        return known

    def mark_of(self, tournament_id: TournamentId, player_id: str) -> bytes:
        return tombstone(self._key, tournament_id, player_id)

    def done_with(self, tournaments: Sequence[TournamentId]) -> None:
        """Nobody will ask for keys of these again: there may be millions of players."""
        for tournament_id in tournaments:
            self._secrets.pop(tournament_id, None)
            self._requests.pop(tournament_id, None)
        gone = set(tournaments)
        self._keys = {place: key for place, key in self._keys.items() if place[0] not in gone}

    def _secrets_of(self, tournament_id: TournamentId) -> dict[str, bytes]:
        known = self._secrets.get(tournament_id)
        if known is None:
            row = tables.pseudonym_keys.c
            statement = sa.select(row.erasure_id, row.secret).where(
                row.tournament_id == tournament_id
            )
            known = {name: bytes(secret) for name, secret in self._stream(statement)}
            self._secrets[tournament_id] = known
        return known

    def _stream(self, statement: sa.Select[Any]) -> Iterator[Any]:
        """The rows, the rest staying in the database until it is wanted."""
        with self._connection.execution_options(yield_per=CHUNK).execute(statement) as result:
            yield from result


@contextmanager
def witness_of(engine: sa.Engine, tombstone_key: bytes) -> Iterator[SqlWitness]:
    """The record as it stands now, for as long as this is open."""
    with reading(engine) as connection:
        yield SqlWitness(connection, tombstone_key, engine)


def where_applied(
    engine: sa.Engine, source: str, event_id: str, tournament_id: str | None = None
) -> Sequence[tuple[Place, Offset]]:
    """Where in `wagers` an event was applied, in each tournament that it was applied in, also of
    a player who was erased since. Reads all ids: no index leads from one to its tournaments."""
    table = tables.event_ids.c
    key = event_key_of(source, event_id)
    statement = (
        sa.select(_OF.log_partition, table.log_offset)
        .join_from(tables.event_ids, tables.tournaments, _OF.tournament_no == table.tournament_no)
        .where(table.event_key == key)
        .order_by(_OF.tournament_no)
    )
    if tournament_id is not None:
        statement = statement.where(_OF.tournament_id == tournament_id)
    with reading(engine) as connection:
        return [(Place(WAGERS, no), Offset(at)) for no, at in connection.execute(statement)]
