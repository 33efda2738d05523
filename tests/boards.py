"""Boards for the contract suites: the same tests over each adapter, on real servers; snapshots of
what a fold has come to; and who applies logs to boards, with a store of a test's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import pytest
import redis

from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import connect
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, TournamentId
from leaderboard.ports import BatchApplied, Board, BoardView, PlayerRow, Snapshot
from logs import LOG, TOMBSTONE_KEY, T

if TYPE_CHECKING:
    from hosting import Hosted

Value = TypeVar("Value")
SERVERS = {"redis": "redis_url", "valkey": "valkey_url", "cluster": "redis_cluster_url"}
OPERATORS = ("sum", "best", "last", "count")


@pytest.fixture(scope="module")
def on_wager() -> Iterator[Hosted]:
    """The function behind its real host; it is given its ports by the test."""
    from hosting import hosted

    with hosted("on-wager") as one:
        yield one


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A database that only one test at a time has, so that it may be emptied."""
    found = connect(redis_url.rpartition("/")[0] + "/8")
    assert isinstance(found, redis.Redis)
    found.flushdb()
    yield found
    found.flushdb()
    found.close()


def make_board(kind: str, request: pytest.FixtureRequest, remembered_ids: int = 100_000) -> Board:
    if kind == "memory":
        return MemoryBoard(TOMBSTONE_KEY, remembered_ids)
    client = connect(request.getfixturevalue(SERVERS[kind]))
    request.addfinalizer(client.close)
    client.flushall()
    return RedisBoard(client, TOMBSTONE_KEY, remembered_ids)


@pytest.fixture(params=["memory", *SERVERS])
def board(request: pytest.FixtureRequest) -> Board:
    return make_board(request.param, request)


def put(board: Board, entries: Sequence[LogEntry], after: int | None = None) -> BatchApplied:
    return board.apply(T, LOG, None if after is None else Offset(after), entries, None)


def shown(view: BoardView | None) -> list[tuple[int, str, int]]:
    assert view is not None
    return [(s.rank, s.player_id, s.score.score) for s in view.standings]


def folded(entries: Sequence[LogEntry], remembered_ids: int = 100_000) -> MemoryBoard:
    """What the log comes to, in memory, with everything confirmed."""
    board = MemoryBoard(TOMBSTONE_KEY, remembered_ids)
    put(board, entries)
    board.apply(T, LOG, None, [], entries[-1].offset)
    return board


def snapshot_of(board: MemoryBoard, tournament_id: TournamentId = T, chunk: int = 3) -> Snapshot:
    """A snapshot of the board as it stands, in small chunks."""
    kept = board._kept[tournament_id]
    standings = kept.standings
    rows = [PlayerRow(p, row.score, row.reached) for p, row in standings._rows.items()]

    return Snapshot(
        tournament_id=tournament_id,
        log_id=kept.log_id,
        offset=kept.offset,
        sequence=standings.sequence,
        terms=kept.terms,
        players=len(rows),
        rows=_cut(rows, chunk),
        names=_cut(list(standings._names.items()), chunk),
        older=_cut(list(standings._seen.older), chunk),
        newer=_cut(list(standings._seen.newer), chunk),
        numbers=standings._seen.numbers,
        out=standings._out,
    )


def _cut(values: Sequence[Value], chunk: int) -> Iterator[Sequence[Value]]:
    return (values[first : first + chunk] for first in range(0, len(values), chunk))
