"""The boards' witness, over Redis, Valkey and a cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from leaderboard.adapters.redis_client import RedisClient, check, connect
from leaderboard.adapters.redis_progress import RedisProgress
from leaderboard.errors import TransientError
from leaderboard.model import Offset, TournamentId
from leaderboard.stack.process import LOOPBACK, free_port
from logs import LOG

ONE, TWO = TournamentId("t1"), TournamentId("t2")


@pytest.fixture(params=["redis_url", "valkey_url", "redis_cluster_url"])
def client(request: pytest.FixtureRequest) -> Iterator[RedisClient]:
    found = connect(request.getfixturevalue(request.param))
    found.flushall()
    yield found
    found.close()


def at(offset: int, **boards: int) -> tuple[Offset, dict[TournamentId, Offset]]:
    return Offset(offset), {TournamentId(name): Offset(one) for name, one in boards.items()}


def test_nothing_is_known_before_it_is_told(client: RedisClient) -> None:
    progress = RedisProgress(client)
    assert progress.read(LOG, 0) is None
    assert progress.boards(LOG, 0) == {}
    assert progress.advance(LOG, 0, None, *at(0, t1=0)) is None
    assert progress.read(LOG, 0) == 0
    assert progress.boards(LOG, 0) == {ONE: 0}


def test_it_goes_forward_only_each_board_by_itself(client: RedisClient) -> None:
    progress = RedisProgress(client)
    progress.advance(LOG, 0, None, *at(9, t1=9, t2=5))
    assert progress.advance(LOG, 0, Offset(9), *at(7, t1=3, t2=7)) == 9
    assert progress.read(LOG, 0) == 9
    assert progress.boards(LOG, 0) == {ONE: 9, TWO: 7}


def test_a_witness_that_fell_back_is_told_nothing(client: RedisClient) -> None:
    progress = RedisProgress(client)
    progress.advance(LOG, 0, None, *at(4, t1=4))
    assert progress.advance(LOG, 0, Offset(8), *at(12, t1=12)) == 4
    assert progress.read(LOG, 0) == 4
    assert progress.boards(LOG, 0) == {ONE: 4}
    client.flushall()
    assert progress.advance(LOG, 0, Offset(8), *at(12)) is None
    assert progress.read(LOG, 0) is None


def test_partitions_and_logs_know_nothing_of_one_another(client: RedisClient) -> None:
    progress = RedisProgress(client)
    progress.advance(LOG, 0, None, *at(4, t1=4))
    assert progress.read(LOG, 1) is None
    assert progress.boards("wagers/another/0", 0) == {}


def test_what_was_forgotten_is_missed_no_more(client: RedisClient) -> None:
    progress = RedisProgress(client)
    progress.advance(LOG, 0, None, *at(4, t1=4, t2=3))
    progress.forget(LOG, 0, [TWO])
    progress.forget(LOG, 0, [])
    assert progress.boards(LOG, 0) == {ONE: 4}
    assert progress.read(LOG, 0) == 4


def test_a_client_says_whether_its_servers_answer(client: RedisClient) -> None:
    check(client)


def test_nobody_there_is_a_transient_error() -> None:
    with pytest.raises(TransientError):
        connect(f"redis://{LOOPBACK}:{free_port()},{LOOPBACK}:{free_port()}")
    single = connect(f"redis://{LOOPBACK}:{free_port()}")
    with pytest.raises(TransientError):
        check(single)
    single.close()
