"""The boards' store in this process: two shards, each of which loses what it held on its own.

Boards are `MemoryBoard`s, which keep the same contract as those on Redis. What lies beside them
there lies beside them here: the directory, the witness of progress, erasures, leases.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from leaderboard.adapters.memory_board import MemoryBoard, _Kept
from leaderboard.errors import NotFoundError
from leaderboard.fold import Row, SeenIds, Standings
from leaderboard.model import Offset, PlayerId, TournamentId, erasure_id_of
from leaderboard.ports import Erasure, Snapshot, Summary

SHARDS: Final = 2


@dataclass
class Beside:
    """What a shard holds beside its boards."""

    shown: dict[TournamentId, Summary] = field(default_factory=dict)
    stands: dict[str, Offset] = field(default_factory=dict)
    told: dict[str, dict[TournamentId, Offset]] = field(default_factory=dict)
    erasures: dict[str, Erasure] = field(default_factory=dict)
    leases: dict[tuple[str, str], str] = field(default_factory=dict)
    open: dict[str, int] = field(default_factory=dict)
    """Requests to forget that are not done, with the time at which they were opened."""


Saved = tuple[dict[TournamentId, _Kept], Beside]


class Shard:
    """One primary: boards and what lies beside them."""

    def __init__(self, make: Callable[[], MemoryBoard]) -> None:
        self._make = make
        self.boards = make()
        self.beside = Beside()

    def save(self) -> Saved:
        """All of it as it stands: what a replica would have that is never told more."""
        kept = {t: _copied(one) for t, one in self.boards._kept.items()}
        beside = Beside(
            dict(self.beside.shown),
            dict(self.beside.stands),
            copy.deepcopy(self.beside.told),
            dict(self.beside.erasures),
            dict(self.beside.leases),
            dict(self.beside.open),
        )
        return kept, beside

    def fail_over(self, saved: Saved) -> None:
        """The replica takes over: what came after it was last told is lost."""
        self.boards._kept, self.beside = saved

    def empty(self) -> None:
        self.fail_over(({}, Beside()))


def _copied(kept: _Kept) -> _Kept:
    old = kept.standings
    new = Standings(old._tournament_id, old._mark, old._seen.limit)
    seen = SeenIds(
        old._seen.limit, set(old._seen.newer), set(old._seen.older), dict(old._seen.numbers)
    )
    rows = {p: Row(row.score, row.reached) for p, row in old._rows.items()}
    new.take_over(old._order, old.sequence, rows, dict(old._names), dict(old._out), seen)
    return replace(kept, standings=new, changes=list(kept.changes), refusals=dict(kept.refusals))


class Store:
    """All shards, and the ports over them."""

    def __init__(self, make: Callable[[], MemoryBoard], key: bytes) -> None:
        self.shards = [Shard(make) for _ in range(SHARDS)]
        self.board = Boards(self)
        self.directory = Directory(self)
        self.progress = Progress(self)
        self.erasures = Erasures(self, key)
        self.connections = Connections(self)

    def of(self, tournament_id: str) -> Shard:
        return self.shards[zlib.crc32(tournament_id.encode()) % SHARDS]


class Boards:
    """`ports.Board`: each tournament on its shard."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        def call(tournament_id: TournamentId, *args: Any) -> Any:
            return getattr(self._store.of(tournament_id).boards, name)(tournament_id, *args)

        return call

    def stands_at(
        self, log_id: str, tournaments: Sequence[TournamentId]
    ) -> Sequence[Offset | None]:
        return [self._store.of(t).boards.stands_at(log_id, [t])[0] for t in tournaments]

    def restore(self, snapshot: Snapshot, **how: Any) -> bool:
        return self._store.of(snapshot.tournament_id).boards.restore(snapshot, **how)


class Directory:
    """`ports.Directory` on the first shard."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def _shown(self) -> dict[TournamentId, Summary]:
        return self._store.shards[0].beside.shown

    def put(self, summary: Summary) -> None:
        shown = self._shown.get(summary.tournament_id)
        if shown is None or shown.terms.revision <= summary.terms.revision:
            self._shown[summary.tournament_id] = summary

    def find(self, tournament_id: TournamentId) -> Summary | None:
        return self._shown.get(tournament_id)

    def all(self) -> Sequence[Summary]:
        return sorted(self._shown.values(), key=lambda s: (s.terms.starts_at_ms, s.tournament_id))

    def remove(self, tournament_id: TournamentId) -> None:
        self._shown.pop(tournament_id, None)


class Progress:
    """`ports.Progress`: each partition on a shard."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def _beside(self, partition: int) -> Beside:
        return self._store.shards[partition % SHARDS].beside

    def read(self, log_id: str, partition: int) -> Offset | None:
        return self._beside(partition).stands.get(log_id)

    def boards(self, log_id: str, partition: int) -> Mapping[TournamentId, Offset]:
        return dict(self._beside(partition).told.get(log_id, {}))

    def advance(
        self,
        log_id: str,
        partition: int,
        known: Offset | None,
        offset: Offset,
        boards: Mapping[TournamentId, Offset],
    ) -> Offset | None:
        beside = self._beside(partition)
        stood = beside.stands.get(log_id)
        if known is None or (stood is not None and stood >= known):
            beside.stands[log_id] = offset if stood is None else max(stood, offset)
            told = beside.told.setdefault(log_id, {})
            for tournament_id, at in boards.items():
                told[tournament_id] = max(told.get(tournament_id, at), at)
        return stood

    def forget(self, log_id: str, partition: int, tournaments: Sequence[TournamentId]) -> None:
        for tournament_id in tournaments:
            self._beside(partition).told.get(log_id, {}).pop(tournament_id, None)


class Erasures:
    """`ports.Erasures`: each request on a shard, and the list of those that are open on one."""

    def __init__(self, store: Store, key: bytes) -> None:
        self._store = store
        self._key = key

    def _all(self, erasure_id: str) -> dict[str, Erasure]:
        return self._store.of(erasure_id).beside.erasures

    @property
    def _open(self) -> dict[str, int]:
        return self._store.of("erasures-pending").beside.open

    def id_of(self, player_id: PlayerId) -> str:
        return erasure_id_of(self._key, player_id)

    def begin(self, player_id: PlayerId, now_ms: int) -> Erasure:
        erasure_id = self.id_of(player_id)
        self._open.setdefault(erasure_id, now_ms)
        known = self._all(erasure_id).get(erasure_id, Erasure(erasure_id, now_ms, {}, None))
        opened_at_ms = now_ms if known.player_id is None else known.opened_at_ms
        return self._keep(replace(known, player_id=player_id, opened_at_ms=opened_at_ms))

    def find(self, erasure_id: str) -> Erasure | None:
        return self._all(erasure_id).get(erasure_id)

    def mark(self, erasure_id: str, places: Mapping[str, str]) -> Erasure:
        known = self.find(erasure_id)
        if known is None:
            raise NotFoundError("there is no such erasure")
        done = {place for place, state in known.places.items() if state == "done"}
        marked = {**known.places, **{p: s for p, s in places.items() if p not in done}}
        is_over = bool(marked) and "pending" not in marked.values()
        player_id = None if is_over else known.player_id
        if player_id is None:
            self._open.pop(erasure_id, None)
        return self._keep(replace(known, places=marked, player_id=player_id))

    def restore(self, erasure_id: str, requested_at_ms: int) -> None:
        self._keep(self.find(erasure_id) or Erasure(erasure_id, requested_at_ms, {}, None))

    def pending(self, limit: int) -> tuple[int, Sequence[Erasure]]:
        found = []
        for erasure_id in sorted(self._open, key=lambda one: (self._open[one], one))[:limit]:
            erasure = self.find(erasure_id)
            if erasure is None or erasure.player_id is None:
                del self._open[erasure_id]
            else:
                found.append(erasure)
        return len(self._open), found

    def opened_before(self, at_ms: int) -> int:
        return sum(opened_at_ms < at_ms for opened_at_ms in self._open.values())

    def is_erased(self, player_id: PlayerId) -> bool:
        return self.find(self.id_of(player_id)) is not None

    def _keep(self, erasure: Erasure) -> Erasure:
        self._all(erasure.erasure_id)[erasure.erasure_id] = erasure
        return erasure


class Connections:
    """What the functions under test use of `ports.Connections`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def lease(self, tournament_id: str, player_id: str, connection_id: str) -> str | None:
        leases = self._store.of(tournament_id).beside.leases
        before = leases.get((tournament_id, player_id))
        leases[tournament_id, player_id] = connection_id
        return before

    def holder(self, tournament_id: str, player_id: str) -> str | None:
        return self._store.of(tournament_id).beside.leases.get((tournament_id, player_id))

    def live(self, tournament_id: str, players: Sequence[PlayerId]) -> frozenset[PlayerId]:
        return frozenset(p for p in players if self.holder(tournament_id, p) is not None)

    def sockets(self, tournament_id: str) -> int:
        return len(self._store.of(tournament_id).beside.leases)

    def let_go(self, tournament_id: str) -> int:
        return self.sockets(tournament_id)

    def is_spread(self, tournament_id: str) -> bool:
        return False

    def release(self, tournament_id: str, player_id: str) -> str | None:
        return self._store.of(tournament_id).beside.leases.pop((tournament_id, player_id), None)
