"""Leaderboards in Redis or Valkey, single or clustered: one script call applies one batch.

The terms of a tournament (rules, schedule, state) are folded here, with the pure core; the rows
of its players in `board_apply.lua`, next to their data. The script compares the revision of the
terms that a batch was folded with, so a stale copy of them costs a second call and nothing else.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgpack
from redis.exceptions import NoScriptError

from leaderboard import telemetry
from leaderboard.adapters.memory_board import told_again
from leaderboard.adapters.redis_client import RedisClient, transient
from leaderboard.errors import BoardBehindError, ForeignLogError, Refusal
from leaderboard.fold import (
    Action,
    Adjust,
    Earn,
    Join,
    LogEntry,
    RemovalReason,
    Remove,
    Terms,
    decide,
    event_key,
)
from leaderboard.model import (
    REMEMBERED_IDS,
    TOP_VISIBLE,
    Cause,
    Disposition,
    Offset,
    PlayerId,
    PositionChange,
    Score,
    Standing,
    TournamentId,
    erased_name,
    tombstone,
)
from leaderboard.ports import BatchApplied, BoardView, Curve
from leaderboard.ranking import Order, distance

_APPLY: Final = Path(__file__).with_name("board_apply.lua").read_text(encoding="utf-8")
_READ: Final = Path(__file__).with_name("board_read.lua").read_text(encoding="utf-8")
_KEYS: Final = ("board", "ranks", "rows", "names", "newer", "older", "numbers", "out", "outbox")
_STALE_LIMIT: Final = 5
"""Tries to meet a board's terms. Two owners of one tournament could change them in turn, but one
of the two loses the comparison of offsets after its next batch."""

_EARN, _ADJUST, _JOIN, _ERASE, _DISQUALIFY, _ERASE_KEEPING, _MUST_JOIN = 1, 2, 3, 4, 5, 6, 10
_CODES: Final[dict[int, Disposition | Refusal]] = {
    ord("A"): Disposition.APPLIED,
    ord("D"): Disposition.DUPLICATE,
    ord("E"): Disposition.PLAYER_ERASED,
    ord("Q"): Disposition.PLAYER_DISQUALIFIED,
    ord("J"): Disposition.NOT_JOINED,
    ord("R"): Refusal.SCORE_OUT_OF_RANGE,
    ord("S"): Disposition.SKIPPED,
}
_CHANGE_FIELDS: Final = 11


@dataclass(slots=True)
class _Folded:
    """A batch after its terms: what the script has to do, and what is decided already."""

    before: Terms | None
    terms: Terms | None
    verdicts: list[Disposition | Refusal | None]
    """None: the script decides."""
    steps: list[object] = field(default_factory=list)
    refused: list[object] = field(default_factory=list)


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
        self._apply = _Script(client, _APPLY, read_only=False)
        self._read = _Script(client, _READ, read_only=True)

    def apply(
        self,
        tournament_id: TournamentId,
        log_id: str,
        after: Offset | None,
        entries: Sequence[LogEntry],
        confirmed: Offset | None,
    ) -> BatchApplied:
        for _ in range(_STALE_LIMIT):
            folded = self._fold(tournament_id, self._terms.get(tournament_id), entries)
            answer = self._call(tournament_id, log_id, after, entries, confirmed, folded)
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
                    raise ForeignLogError(
                        f"{tournament_id} was folded from {answer[1].decode()}, not {log_id}"
                    )
        raise RuntimeError(f"the terms of {tournament_id} change under every call")

    # applying

    def _fold(
        self, tournament_id: TournamentId, terms: Terms | None, entries: Sequence[LogEntry]
    ) -> _Folded:
        folded = _Folded(terms, terms, [])
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
            elif isinstance(verdict, Refusal):
                folded.verdicts.append(verdict)
                folded.refused += (entry.offset, verdict.value)
            else:
                folded.verdicts.append(None)
                if terms is None:
                    raise AssertionError("no action is possible where no board exists")
                folded.steps += self._step(tournament_id, terms, entry, verdict)
        folded.terms = terms
        return folded

    def _step(
        self, tournament_id: TournamentId, terms: Terms, entry: LogEntry, action: Action
    ) -> tuple[object, ...]:
        """The thirteen fields of one step, in the script's order."""
        event = entry.event
        op, score, name, mark = _ERASE, Score(0), b"", b""
        if terms.stays_out:
            if self._tombstone_key is None:
                raise ValueError("a board that is applied to needs its tombstone key")
            mark = tombstone(self._tombstone_key, tournament_id, action.player_id)
        match action:
            case Earn():
                op, score = _EARN, action.points
            case Adjust():
                op, score = _ADJUST, Score(action.delta)
            case Join():
                op, name = _JOIN, (action.display_name or "").encode()
            case Remove(reason=RemovalReason.DISQUALIFIED):
                op = _DISQUALIFY
            case Remove(keep_row=True):
                op, name = _ERASE_KEEPING, erased_name(mark).encode()
        if terms.rules.join == "required" and op in (_EARN, _ADJUST):
            op += _MUST_JOIN
        return (
            entry.offset,
            op,
            action.player_id,
            event_key(event),
            score.score,
            score.subscore,
            name,
            mark or False,
            event.source,
            event.id,
            event.time_ms,
            event.traceparent or False,
            False if event.sequence is None else event.sequence,
        )

    def _call(
        self,
        tournament_id: TournamentId,
        log_id: str,
        after: Offset | None,
        entries: Sequence[LogEntry],
        confirmed: Offset | None,
        folded: _Folded,
    ) -> Any:
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
            self._remembered_ids,
            folded.steps,
            folded.refused,
        )
        packed = msgpack.packb(request, use_bin_type=False)
        started = time.perf_counter()
        answer = self._apply(_keys(tournament_id), packed)
        telemetry.BOARD_CALLS.labels("apply").observe(time.perf_counter() - started)
        return msgpack.unpackb(answer, raw=True, strict_map_key=False)

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
        refusals: dict[int, Refusal] = {}
        for chunk in chunks:
            packed_changes, packed_refusals = msgpack.unpackb(chunk[8:], raw=True)
            changes += _changes(tournament_id, packed_changes, confirmed)
            for i in range(0, len(packed_refusals), 2):
                refusals[packed_refusals[i]] = Refusal(packed_refusals[i + 1].decode())
        ruled = iter(codes)
        verdicts: list[Disposition | Refusal] = []
        for entry, decided in zip(entries, folded.verdicts, strict=True):
            verdict = _CODES[next(ruled)] if decided is None else decided
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

    # reading

    def top(self, tournament_id: TournamentId, limit: int, after_rank: int = 0) -> BoardView | None:
        return self._view(tournament_id, "page", after_rank, limit)

    def player(self, tournament_id: TournamentId, player_id: PlayerId) -> BoardView | None:
        return self.around(tournament_id, player_id, 0)

    def around(
        self, tournament_id: TournamentId, player_id: PlayerId, radius: int
    ) -> BoardView | None:
        return self._view(tournament_id, "around", player_id, radius)

    def is_erased(self, tournament_id: TournamentId, player_id: PlayerId) -> bool:
        if self._tombstone_key is None:
            raise ValueError("only who holds the tombstone key can tell whom one stands for")
        mark = tombstone(self._tombstone_key, tournament_id, player_id)
        with transient():
            return bool(self._client.hget(_keys(tournament_id)[7].decode(), mark) == b"E")

    def scores_at(self, tournament_id: TournamentId, ranks: Sequence[int]) -> Curve | None:
        answer = self._read(_keys(tournament_id)[:4], -1, "scores", *ranks)
        if answer is None:
            return None
        sequence, scores = answer
        points = [(rank, int(score)) for rank, score in zip(ranks, scores, strict=True) if score]
        return Curve(tournament_id, Offset(int(sequence)), points)

    def is_in(self, tournament_id: TournamentId, player_id: PlayerId) -> bool:
        keys = _keys(tournament_id)
        with transient():
            return bool(
                self._client.hexists(keys[3].decode(), player_id)
                or self._client.hexists(keys[2].decode(), player_id)
            )

    def _view(
        self, tournament_id: TournamentId, what: str, first: int | str, second: int
    ) -> BoardView | None:
        known = self._terms.get(tournament_id)
        revision = -1 if known is None else known.revision
        started = time.perf_counter()
        answer = self._read(_keys(tournament_id)[:4], revision, what, first, second)
        telemetry.BOARD_CALLS.labels(what).observe(time.perf_counter() - started)
        if answer is None:
            self._terms.pop(tournament_id, None)
            return None
        sequence, _, fresh, players, rank, skipped, found, names = answer
        terms = known if fresh is None else Terms.model_validate_json(fresh)
        if terms is None:
            raise AssertionError("the script answered for a board without terms")
        self._terms[tournament_id] = terms
        standings = list(_standings(terms, skipped, found, names))
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


class _Script:
    """A script called by its hash; sent whole to a server that does not know it (yet)."""

    def __init__(self, client: RedisClient, text: str, *, read_only: bool) -> None:
        self._text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._evalsha: Callable[..., Any] = client.evalsha_ro if read_only else client.evalsha
        self._eval: Callable[..., Any] = client.eval_ro if read_only else client.eval

    def __call__(self, keys: Sequence[bytes], *args: object) -> Any:
        with transient():
            try:
                return self._evalsha(self._sha, len(keys), *keys, *args)
            except NoScriptError:
                return self._eval(self._text, len(keys), *keys, *args)


@lru_cache(maxsize=10_000)
def _keys(tournament_id: TournamentId) -> tuple[bytes, ...]:
    """All keys of a tournament share one hash tag, so they share one slot of a cluster."""
    return tuple(f"{{{tournament_id}}}:{name}".encode() for name in _KEYS)


def _decided(folded: _Folded) -> list[Disposition | Refusal]:
    return [verdict for verdict in folded.verdicts if verdict is not None]


def _changes(
    tournament_id: TournamentId, packed: Sequence[Any], confirmed: Offset | None
) -> Iterator[PositionChange]:
    for i in range(0, len(packed), _CHANGE_FIELDS):
        at, player, old, new, score, sub, gap, source, event_id, time_ms, trace = packed[
            i : i + _CHANGE_FIELDS
        ]
        if confirmed is not None and at <= confirmed:
            continue
        yield PositionChange(
            tournament_id=tournament_id,
            player_id=PlayerId(player.decode()),
            sequence=Offset(at),
            old_rank=old or None,
            new_rank=new or None,
            score=Score(score, sub),
            distance=None if gap is False else gap,
            cause=Cause(source.decode(), event_id.decode()),
            time_ms=time_ms,
            traceparent=trace.decode() if trace else None,
        )


def _standings(
    terms: Terms, skipped: int, found: Sequence[bytes], names: Sequence[bytes | None]
) -> Iterator[Standing]:
    prefix = 15 if terms.has_subscores else 7
    for i, name in enumerate(names):
        member = found[2 * i]
        subscore = 0
        if terms.has_subscores:
            sign, size = member[0], int.from_bytes(member[1:8], "big")
            subscore = size if sign else size - 2**53
        yield Standing(
            rank=skipped + i + 1,
            player_id=PlayerId(member[prefix:].decode()),
            display_name=name.decode() if name else None,
            score=Score(int(found[2 * i + 1]), subscore),
        )


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
