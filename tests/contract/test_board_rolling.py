"""Boards in Redis while a release rolls out: who ran before it and who runs it share an outbox.

Before suspicions were looked for, the outbox told changes and refusals, and nothing of sound events
that do not count. `read_before` is how it was read then."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import msgpack
import pytest

from boards import SERVERS, put
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import RedisClient, connect
from leaderboard.adapters.redis_steps import changes_of
from leaderboard.errors import Refusal
from leaderboard.fold import LogEntry
from leaderboard.model import Disposition, PositionChange
from logs import ALICE, BOB, CAROL, START_MS, TOMBSTONE_KEY, T, erased, scheduled, scored

OUTBOX: Final = "{t1}:outbox"
BATCHES: Final[Sequence[Sequence[LogEntry]]] = [
    [scheduled(0), scored(1, ALICE, 2**53 - 1, event_id="x"), scored(2, ALICE, 5, event_id="x")],
    [scored(3, ALICE, 5), scored(4, BOB, 7), erased(5, BOB), scored(6, BOB, 9)],
    [scored(7, CAROL, 1, time_ms=START_MS - 1), scored(8, CAROL, 2, event_id="x")],
]
"""Also a repetition, a score beyond the range, a forgotten player's and one before the start; the
last batch has nothing that counts."""
LOG_OF_ALL: Final = [one for batch in BATCHES for one in batch]
UNCOUNTED: Final = {
    2: Disposition.DUPLICATE,
    6: Disposition.PLAYER_ERASED,
    7: Disposition.NOT_STARTED,
    8: Disposition.DUPLICATE,
}
REFUSED: Final = {3: Refusal.SCORE_OUT_OF_RANGE}


@pytest.fixture(params=list(SERVERS))
def client(request: pytest.FixtureRequest) -> Iterator[RedisClient]:
    client = connect(request.getfixturevalue(SERVERS[request.param]))
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def board(client: RedisClient) -> RedisBoard:
    """All batches applied, nothing confirmed."""
    board = RedisBoard(client, TOMBSTONE_KEY)
    for batch in BATCHES:
        put(board, batch)
    return board


def chunks_of(client: RedisClient) -> list[bytes]:
    return cast("list[bytes]", client.lrange(OUTBOX, 0, -1))


def read_before(chunks: Sequence[bytes]) -> tuple[list[PositionChange], dict[Any, Refusal]]:
    changes: list[PositionChange] = []
    refusals: dict[Any, Refusal] = {}
    for chunk in chunks:
        packed_changes, packed_refusals = msgpack.unpackb(chunk[8:], raw=True)
        changes += changes_of(T, packed_changes, None)
        for i in range(0, len(packed_refusals), 2):
            refusals[packed_refusals[i]] = Refusal(packed_refusals[i + 1].decode())
    return changes, refusals


def written_before(chunks: Sequence[bytes]) -> list[bytes]:
    """The same chunks without what was not told then; those that told of nothing else were not
    written."""
    written = []
    for chunk in chunks:
        changes, refusals = msgpack.unpackb(chunk[8:], raw=True)
        pairs = zip(refusals[::2], refusals[1::2], strict=True)
        known = [part for pair in pairs if isinstance(pair[0], int) for part in pair]
        if changes or known:
            written.append(chunk[:8] + msgpack.packb([changes, known], use_bin_type=False))
    return written


def test_who_ran_before_reads_the_outbox_of_who_runs_now(
    client: RedisClient, board: RedisBoard
) -> None:
    changes, refusals = read_before(chunks_of(client))
    told = put(board, LOG_OF_ALL)
    assert changes == list(told.unconfirmed)
    assert len(changes) > 2
    by_entry = {one.offset: refusals.get(one.offset) for one in LOG_OF_ALL if one.offset != 3}
    assert not any(by_entry.values()), "to them what does not count was skipped, as it was then"
    assert refusals[3] is Refusal.SCORE_OUT_OF_RANGE


def test_a_reason_in_plain_sight_would_stop_who_ran_before() -> None:
    chunk = struct.pack("<d", 2) + msgpack.packb([[], [2, "duplicate"]], use_bin_type=False)
    with pytest.raises(ValueError, match="duplicate"):
        read_before([chunk])


def test_who_runs_now_reads_the_outbox_of_who_ran_before(
    client: RedisClient, board: RedisBoard
) -> None:
    now = put(board, LOG_OF_ALL)
    assert now.verdicts == [
        UNCOUNTED.get(one.offset, REFUSED.get(one.offset, Disposition.SKIPPED))
        for one in LOG_OF_ALL
    ]
    old = written_before(chunks_of(client))
    assert len(old) < len(BATCHES)
    client.delete(OUTBOX)
    client.rpush(OUTBOX, *old)
    told = put(RedisBoard(client, TOMBSTONE_KEY), LOG_OF_ALL)
    assert list(told.unconfirmed) == list(now.unconfirmed)
    assert told.verdicts == [REFUSED.get(one.offset, Disposition.SKIPPED) for one in LOG_OF_ALL], (
        "why something did not count was not told then"
    )
