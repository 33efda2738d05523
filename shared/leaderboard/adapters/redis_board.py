"""Leaderboards in Redis or Valkey, single or clustered: one script call applies one batch.

The terms of a tournament (rules, schedule, state) are folded here, with the pure core; the rows
of its players in `board_apply.lua`, next to their data. The script compares the revision of the
terms that a batch was folded with, so a stale copy of them costs a second call and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from leaderboard import telemetry
from leaderboard.adapters.memory_board import told_again
from leaderboard.adapters.redis_client import Command, RedisClient, transient
from leaderboard.adapters.redis_restore import RedisRestore
from leaderboard.adapters.redis_scripts import Script, Sent, foreign, keys_of, text_of
from leaderboard.adapters.redis_steps import VERDICTS, changes_of, step_of, verdicts_of
from leaderboard.errors import BoardBehindError, Refusal
from leaderboard.fold import LogEntry, Terms, decide
from leaderboard.model import (
    REMEMBERED_IDS,
    TOP_VISIBLE,
    Disposition,
    Offset,
    PlayerId,
    PositionChange,
    Score,
    Standing,
    TournamentId,
    tombstone,
)
from leaderboard.ports import Applied, Applying, BatchApplied, BoardView, Curve, PlayerRow, Snapshot
from leaderboard.ranking import Order, distance

_APPLY: Final = text_of("board_apply")
_WORTH_SENDING: Final = 50
"""Smaller batches are applied before anything else could be done."""
_STALE_LIMIT: Final = 5
"""Tries to meet a board's terms. Two owners of one tournament could change them in turn, but one
of the two loses the comparison of offsets after its next batch."""


@dataclass(slots=True)
class _Folded:
    """A batch after its terms: what the script has to do, and what is decided already."""

    before: Terms | None
    terms: Terms | None
    remembered_ids: int
    verdicts: list[Disposition | Refusal | None]
    """None: the script decides."""
    steps: list[object] = field(default_factory=list)
    refused: list[object] = field(default_factory=list)
    uncounted: list[object] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Applying:
    """A call that was sent, and what is made of its answer."""

    sent: Sent
    applied: Callable[[Any], BatchApplied]

    def result(self) -> BatchApplied:
        return self.applied(self.sent.answer())

    def abandon(self) -> None:
        self.sent.abandon()


class RedisBoard:
    """`ports.Board` in Redis. Safe for several threads.

    `client` answers bytes. `tombstone_key` must be the same for ever; who only reads holds
    none."""

    def __init__(
        self,
        client: RedisClient,
        tombstone_key: bytes | None = None,
        remembered_ids: int = REMEMBERED_IDS,
    ) -> None:
        self._client = client
        self._tombstone_key = tombstone_key
        self._remembered_ids = remembered_ids
        self._terms: dict[TournamentId, Terms] = {}
        self._apply = Script(client, _APPLY, read_only=False)
        self._read = Script(client, text_of("board_read"), read_only=True)
        self._expire = Script(client, text_of("board_expire"), read_only=False)
        self._restore = RedisRestore(client)

    def apply(
        self,
        tournament_id: TournamentId,
        log_id: str,
        after: Offset | None,
        entries: Sequence[LogEntry],
        confirmed: Offset | None,
        told: Offset | None = None,
    ) -> BatchApplied:
        for _ in range(_STALE_LIMIT):
            folded = self._fold(tournament_id, self._terms.get(tournament_id), entries)
            request = _packed(log_id, after, entries, confirmed, told, folded)
            started = time.perf_counter()
            answer = _unpacked(self._apply(keys_of(tournament_id), request))
            telemetry.BOARD_CALLS.labels("apply").observe(time.perf_counter() - started)
            match answer[0]:
                case b"ok":
                    return self._told(tournament_id, entries, confirmed, folded, answer)
                case b"missing":
                    return BatchApplied(None, Offset(0), None, False, _decided(folded), ())
                case b"stale" if answer[2] is False:
                    self._terms.pop(tournament_id, None)
                case b"stale":
                    self._terms[tournament_id] = Terms.model_validate_json(answer[2])
                case b"behind":
                    self._terms.pop(tournament_id, None)
                    stands_at = None if answer[1] < 0 else int(answer[1])
                    raise BoardBehindError(tournament_id, stands_at)
                case _:
                    raise foreign(tournament_id, answer[1], log_id)
        raise RuntimeError(f"the terms of {tournament_id} change under every call")

    def begin(
        self,
        tournament_id: TournamentId,
        log_id: str,
        after: Offset | None,
        entries: Sequence[LogEntry],
        confirmed: Offset | None,
        told: Offset | None = None,
    ) -> Applying:
        if len(entries) < _WORTH_SENDING:
            return Applied(self.apply(tournament_id, log_id, after, entries, confirmed, told))
        folded = self._fold(tournament_id, self._terms.get(tournament_id), entries)
        request = _packed(log_id, after, entries, confirmed, told, folded)
        started = time.perf_counter()
        sent = self._apply.begin(keys_of(tournament_id), request)

        def applied(answer: Any) -> BatchApplied:
            # With what the caller did meanwhile, as long as it takes the caller.
            telemetry.BOARD_CALLS.labels("apply").observe(time.perf_counter() - started)
            if (found := _unpacked(answer))[0] == b"ok":
                return self._told(tournament_id, entries, confirmed, folded, found)
            return self.apply(tournament_id, log_id, after, entries, confirmed, told)

        return _Applying(sent, applied)

    # applying

    def _fold(
        self, tournament_id: TournamentId, terms: Terms | None, entries: Sequence[LogEntry]
    ) -> _Folded:
        folded = _Folded(terms, terms, self._remembered_ids, [])
        for entry in entries:
            if terms is not None and entry.offset <= terms.revision:
                # The board has passed it: these terms were not in force then.
                folded.verdicts.append(told_again(terms, entry))
                continue
            decision = decide(terms, entry)
            terms = decision.terms
            verdict = decision.verdict
            if isinstance(verdict, Disposition):
                folded.verdicts.append(verdict)
                if verdict is not Disposition.APPLIED:
                    folded.uncounted += (entry.offset, verdict.value)
            elif isinstance(verdict, Refusal):
                folded.verdicts.append(verdict)
                folded.refused += (entry.offset, verdict.value)
            else:
                folded.verdicts.append(None)
                if terms is None:
                    raise AssertionError("no action is possible where no board exists")
                mark = self._mark(terms, tournament_id, verdict.player_id)
                folded.steps += step_of(terms, entry, verdict, mark)
        folded.terms = terms
        return folded

    def _mark(self, terms: Terms, tournament_id: TournamentId, player_id: PlayerId) -> bytes:
        """The player's tombstone; empty where nobody is out, as it costs a hash."""
        if not terms.stays_out:
            return b""
        if self._tombstone_key is None:
            raise ValueError("a board that is applied to needs its tombstone key")
        return tombstone(self._tombstone_key, tournament_id, player_id)

    def _told(
        self,
        tournament_id: TournamentId,
        entries: Sequence[LogEntry],
        confirmed: Offset | None,
        folded: _Folded,
        answer: Any,
    ) -> BatchApplied:
        _, before, offset, sequence, codes, chunks = answer
        if folded.terms is None:
            raise AssertionError("the script answered for a board without terms")
        self._terms[tournament_id] = folded.terms
        changes: list[PositionChange] = []
        refusals: dict[int, Disposition | Refusal] = {}
        for chunk in chunks:
            packed_changes, packed_refusals = msgpack.unpackb(chunk[8:], raw=True)
            changes += changes_of(tournament_id, packed_changes, confirmed)
            refusals.update(verdicts_of(packed_refusals))
        verdicts: list[Disposition | Refusal]
        if entries and len(codes) == len(entries) and entries[0].offset > before:
            verdicts = [VERDICTS[code] for code in codes]
        else:
            ruled = iter(codes)
            verdicts = []
            for entry, decided in zip(entries, folded.verdicts, strict=True):
                verdict = VERDICTS[next(ruled)] if decided is None else decided
                if entry.offset <= before:
                    verdict = refusals.get(entry.offset, told_again(folded.terms, entry))
                verdicts.append(verdict)
        was = None if folded.before is None else folded.before.revision
        return BatchApplied(
            offset=Offset(int(offset)),
            sequence=Offset(int(sequence)),
            terms=folded.terms,
            terms_changed=folded.terms.revision != was,
            verdicts=verdicts,
            unconfirmed=changes,
        )

    # putting in place, letting go

    def restore(
        self,
        snapshot: Snapshot,
        *,
        force: bool = False,
        loaded: Callable[[int], None] = lambda rows: None,
    ) -> bool:
        (stands_at,) = self.stands_at(snapshot.log_id, [snapshot.tournament_id])
        if stands_at is not None and stands_at >= snapshot.offset and not force:
            return False
        self._terms.pop(snapshot.tournament_id, None)
        return self._restore(snapshot, force=force, loaded=loaded)

    def expire(self, tournament_id: TournamentId, sequence: Offset, at_ms: int) -> bool:
        return bool(self._expire(keys_of(tournament_id), sequence, at_ms))

    # reading

    def top(self, tournament_id: TournamentId, limit: int, after_rank: int = 0) -> BoardView | None:
        return self._view(tournament_id, "page", after_rank, limit)

    def player(self, tournament_id: TournamentId, player_id: PlayerId) -> BoardView | None:
        return self.around(tournament_id, player_id, 0)

    def around(
        self, tournament_id: TournamentId, player_id: PlayerId, radius: int
    ) -> BoardView | None:
        return self._view(tournament_id, "around", player_id, radius)

    def is_erased(self, tournament_id: TournamentId, player_id: PlayerId) -> bool | None:
        return self.told_erased(self._read(*self._erased_call(tournament_id, player_id)))

    def erased_command(self, tournament_id: TournamentId, player_id: PlayerId) -> Command:
        """What `is_erased` sends, for who sends it together with others; the answer may be
        NoScriptError."""
        return self._read.command(*self._erased_call(tournament_id, player_id))

    def told_erased(self, answer: Any) -> bool | None:
        """What the answer means."""
        return None if answer is None else answer[1] == b"E"

    def _erased_call(self, tournament_id: TournamentId, player_id: PlayerId) -> tuple[Any, ...]:
        if self._tombstone_key is None:
            raise ValueError("only who holds the tombstone key can tell whom one stands for")
        mark = tombstone(self._tombstone_key, tournament_id, player_id)
        keys = keys_of(tournament_id)
        return (*keys[:4], keys[7]), -1, "out", mark

    def scores_at(self, tournament_id: TournamentId, ranks: Sequence[int]) -> Curve | None:
        answer = self._read(keys_of(tournament_id)[:4], -1, "scores", *ranks)
        if answer is None:
            return None
        sequence, scores = answer
        points = [(rank, int(score)) for rank, score in zip(ranks, scores, strict=True) if score]
        return Curve(tournament_id, Offset(int(sequence)), points)

    def is_in(self, tournament_id: TournamentId, player_id: PlayerId) -> bool:
        keys = keys_of(tournament_id)
        with transient():
            return bool(
                self._client.hexists(keys[3].decode(), player_id)
                or self._client.hexists(keys[2].decode(), player_id)
            )

    def rows(
        self, tournament_id: TournamentId, players: Sequence[PlayerId]
    ) -> tuple[Offset, Sequence[PlayerRow | None]] | None:
        answer = self._read(keys_of(tournament_id)[:4], -1, "rows", *players)
        if answer is None:
            return None
        found = [
            None if row is None else PlayerRow(player, Score(row[0], row[1]), Offset(row[2]))
            for player, row in zip(players, answer[1], strict=True)
        ]
        return Offset(int(answer[0])), found

    def stands_at(
        self, log_id: str, tournaments: Sequence[TournamentId]
    ) -> Sequence[Offset | None]:
        with transient():
            pipeline = self._client.pipeline(transaction=False)
            for tournament_id in tournaments:
                pipeline.hmget(keys_of(tournament_id)[0].decode(), "log", "offset")
            answers = pipeline.execute()
        offsets: list[Offset | None] = []
        for tournament_id, (log, offset) in zip(tournaments, answers, strict=True):
            if log is not None and log.decode() != log_id:
                raise foreign(tournament_id, log, log_id)
            offsets.append(None if log is None else Offset(int(offset)))
        return offsets

    def _view(
        self, tournament_id: TournamentId, what: str, first: int | str, second: int
    ) -> BoardView | None:
        known = self._terms.get(tournament_id)
        revision = -1 if known is None else known.revision
        started = time.perf_counter()
        answer = self._read(keys_of(tournament_id)[:4], revision, what, first, second)
        telemetry.BOARD_CALLS.labels(what).observe(time.perf_counter() - started)
        if answer is None:
            self._terms.pop(tournament_id, None)
            return None
        sequence, fresh, players, rank, skipped, *found = answer
        terms = known if fresh is None else Terms.model_validate_json(fresh)
        if terms is None:
            raise AssertionError("the script answered for a board without terms")
        self._terms[tournament_id] = terms
        standings = _standings(skipped, *found)
        own_distance = None
        if rank is not None:
            standings, own_distance = _centred(terms, standings, rank + 1, second)
        return BoardView(
            tournament_id=tournament_id,
            sequence=Offset(int(sequence)),
            terms=terms,
            players=players,
            standings=tuple(standings),
            distance=own_distance,
        )


def _packed(
    log_id: str,
    after: Offset | None,
    entries: Sequence[LogEntry],
    confirmed: Offset | None,
    told: Offset | None,
    folded: _Folded,
) -> bytes:
    """What the script is asked."""
    before, terms = folded.before, folded.terms
    changed = terms is not None and terms is not before
    request = (
        log_id,
        False if after is None else after,
        False if confirmed is None else confirmed,
        -1 if before is None else before.revision,
        -1 if terms is None else terms.revision,
        terms.model_dump_json() if terms is not None and changed else False,
        terms is not None and terms.rules.order is Order.ASCENDING,
        "" if terms is None else terms.rules.operator.value,
        terms is not None and terms.has_subscores,
        entries[-1].offset if entries else -1,
        TOP_VISIBLE,
        folded.remembered_ids,
        folded.steps,
        folded.refused,
        False if told is None else told,
        folded.uncounted,
    )
    packed: bytes = msgpack.packb(request, use_bin_type=False)
    return packed


def _unpacked(answer: bytes) -> Any:
    return msgpack.unpackb(answer, raw=True, strict_map_key=False)


def _decided(folded: _Folded) -> list[Disposition | Refusal]:
    return [verdict for verdict in folded.verdicts if verdict is not None]


def _standings(
    skipped: int,
    players: Sequence[bytes],
    scores: Sequence[bytes],
    subscores: Sequence[int],
    names: Sequence[bytes | None],
) -> list[Standing]:
    found = zip(players, scores, subscores, names, strict=True)
    return [
        Standing(
            rank=rank,
            player_id=PlayerId(player.decode()),
            display_name=name.decode() if name else None,
            score=Score(int(score), subscore),
        )
        for rank, (player, score, subscore, name) in enumerate(found, skipped + 1)
    ]


def _centred(
    terms: Terms, standings: list[Standing], rank: int, radius: int
) -> tuple[list[Standing], int | None]:
    """Drops the one rank more that was read for the player's distance."""
    by_rank = {standing.rank: standing for standing in standings}
    gap = None
    if (above := by_rank.get(rank - 1)) is not None:
        own = by_rank[rank]
        gap = distance(terms.rules.order, own.score.score, above.score.score)
    return [standing for standing in standings if standing.rank >= rank - radius], gap
