"""The entrance port over Redis, Valkey and a Redis Cluster, and call by call over the same."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.connection import AbstractConnection
from redis.exceptions import ResponseError

from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import (
    BRIEF,
    RedisClient,
    answer_of,
    connect,
    in_one_trip,
)
from leaderboard.adapters.redis_connections import OPENING_MS, RedisConnections
from leaderboard.adapters.redis_entrance import RedisEntrance
from leaderboard.adapters.redis_erasures import RedisErasures, erasure_key
from leaderboard.adapters.stepwise_entrance import StepwiseEntrance
from leaderboard.errors import TransientError
from leaderboard.events import PlayerErased
from leaderboard.frames import SOCKETS_A_PART, SPREAD_FROM, part_of
from leaderboard.model import PlayerId, TournamentId, erasure_id_of
from leaderboard.ports import Entered, Entrance, Grant, Sight
from leaderboard.stack.process import LOOPBACK, free_port
from leaderboard.stack.redis_cluster import RedisCluster
from logs import START_MS, TOMBSTONE_KEY, entry, scheduled

NOW_MS = 1_800_000_000_000
TOKEN_MS = 900_000
_numbers = itertools.count(1)


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture(scope="module", params=["redis_url", "valkey_url", "redis_cluster_url"])
def client(request: pytest.FixtureRequest) -> Iterator[RedisClient]:
    opened = connect(request.getfixturevalue(request.param))
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def connections(client: RedisClient, clock: Clock) -> RedisConnections:
    client.delete("connections:due")
    return RedisConnections(client, clock)


@pytest.fixture(params=["redis", "stepwise"])
def entrance(
    request: pytest.FixtureRequest, client: RedisClient, connections: RedisConnections, clock: Clock
) -> Entrance:
    if request.param == "redis":
        return RedisEntrance(client, TOMBSTONE_KEY, clock)
    erasures, board = RedisErasures(client, TOMBSTONE_KEY), RedisBoard(client, TOMBSTONE_KEY)
    return StepwiseEntrance(erasures, board, connections)


@pytest.fixture
def t() -> TournamentId:
    return TournamentId(f"door{next(_numbers)}")


@pytest.fixture
def p(t: TournamentId) -> PlayerId:
    return PlayerId(f"player-of-{t}")


def grant(
    t: TournamentId, p: PlayerId, connection_id: str, expires_at_ms: int = NOW_MS + TOKEN_MS
) -> Grant:
    return Grant(t, p, connection_id, expires_at_ms)


def opened(client: RedisClient, t: TournamentId, *erased: PlayerId) -> None:
    log = [scheduled(0, t, starts_ms=START_MS)]
    for offset, player_id in enumerate(erased, 1):
        data = PlayerErased(tournament_id=t, player_id=player_id, erasure_id="er-x")
        log.append(entry(offset, data))
    RedisBoard(client, TOMBSTONE_KEY).apply(t, "log", None, log, None)


def erasure_id(p: PlayerId) -> str:
    return erasure_id_of(TOMBSTONE_KEY, p)


def test_look_at_a_stranger_where_no_board_is(
    entrance: Entrance, t: TournamentId, p: PlayerId
) -> None:
    assert entrance.look(t, p) == Sight(erasure_id(p), is_asked=False, tombstone=None, holder=None)


def test_look_tells_what_the_board_says_and_who_holds(
    entrance: Entrance,
    client: RedisClient,
    connections: RedisConnections,
    t: TournamentId,
    p: PlayerId,
) -> None:
    other = PlayerId(f"other-{p}")
    opened(client, t, other)
    connections.lease(grant(t, p, "c1"))
    expected = Sight(erasure_id(p), is_asked=False, tombstone=False, holder="c1", sockets=1)
    assert entrance.look(t, p) == expected
    seen = entrance.look(t, other)
    assert (seen.is_asked, seen.tombstone, seen.holder) == (False, True, None)


def test_look_finds_the_request(
    entrance: Entrance, client: RedisClient, t: TournamentId, p: PlayerId
) -> None:
    opened(client, t)
    RedisErasures(client, TOMBSTONE_KEY).begin(p, 1)
    assert entrance.look(t, p) == Sight(erasure_id(p), is_asked=True)


def test_lease_that_is_over_has_no_holder(
    entrance: Entrance,
    connections: RedisConnections,
    clock: Clock,
    t: TournamentId,
    p: PlayerId,
) -> None:
    connections.lease(grant(t, p, "c1", NOW_MS + 10))
    assert entrance.look(t, p).holder == "c1"
    clock.now_ms += 10
    assert entrance.look(t, p).holder is None
    assert entrance.enter(grant(t, p, "c2")) == Entered(None, is_erased=False, sockets=1)


def test_newest_entry_wins_and_tells_the_one_before(
    entrance: Entrance, connections: RedisConnections, t: TournamentId, p: PlayerId
) -> None:
    assert entrance.enter(grant(t, p, "c1")) == Entered(None, is_erased=False, sockets=1)
    assert entrance.enter(grant(t, p, "c2")) == Entered("c1", is_erased=False, sockets=1)
    assert connections.holder(t, p) == "c2"
    assert list(connections.due(NOW_MS + OPENING_MS - 1, 10)) == []
    assert list(connections.due(NOW_MS + OPENING_MS, 10)) == ["c1"]
    assert list(connections.due(NOW_MS + TOKEN_MS - 1, 10)) == ["c1"]
    assert sorted(connections.due(NOW_MS + TOKEN_MS, 10)) == ["c1", "c2"]


def test_entry_done_twice_is_done_once(
    entrance: Entrance, connections: RedisConnections, t: TournamentId, p: PlayerId
) -> None:
    connections.lease(grant(t, p, "c0"))
    entrance.enter(grant(t, p, "c1"))
    assert entrance.enter(grant(t, p, "c1")) == Entered(None, is_erased=False, sockets=1)
    assert connections.holder(t, p) == "c1"
    assert list(connections.due(NOW_MS + OPENING_MS, 10)) == ["c0"]


def test_leases_live_as_long_as_the_last_of_them(
    entrance: Entrance, client: RedisClient, t: TournamentId, p: PlayerId
) -> None:
    entrance.enter(grant(t, p, "c1", NOW_MS + 60_000))
    entrance.enter(grant(t, p, "c2", NOW_MS + 20_000))
    assert 55_000 < client.pttl(f"{{{t}}}:sockets") <= 60_000


def test_erasure_since_the_look_is_told_when_the_lease_stands(
    entrance: Entrance,
    client: RedisClient,
    connections: RedisConnections,
    t: TournamentId,
    p: PlayerId,
) -> None:
    assert not entrance.look(t, p).is_asked
    RedisErasures(client, TOMBSTONE_KEY).begin(p, 1)
    assert entrance.enter(grant(t, p, "c1")) == Entered(None, is_erased=True, sockets=1)
    assert connections.holder(t, p) == "c1", "the eraser would find it; the caller releases it"


def test_lease_is_not_given_where_it_can_t_be_put_down_as_due(
    entrance: Entrance,
    client: RedisClient,
    connections: RedisConnections,
    t: TournamentId,
    p: PlayerId,
) -> None:
    client.set("connections:due", "no sorted set: every write to it is refused")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        entrance.enter(grant(t, p, "c1"))
    client.delete("connections:due")
    assert connections.holder(t, p) is None


@pytest.mark.parametrize("url", ["redis_url", "valkey_url"])
def test_on_one_server_each_question_is_one_round_trip(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    one = connect(request.getfixturevalue(url))
    entrance = RedisEntrance(one, TOMBSTONE_KEY)
    t, p = TournamentId("trips"), PlayerId("ann")
    opened(one, t)
    one.script_flush()  # the first calls find a server that knows no script
    assert entrance.look(t, p).tombstone is False
    entrance.enter(grant(t, p, "c0"))
    sent: list[Any] = []
    send: Any = AbstractConnection.send_packed_command

    def counted(connection: Any, command: Any, *args: Any, **options: Any) -> Any:
        sent.append(command)
        return send(connection, command, *args, **options)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", counted)
    assert entrance.look(t, p).holder is not None
    assert len(sent) == 1
    entrance.enter(grant(t, p, "c1"))
    assert len(sent) == 2
    one.close()


def test_error_of_one_command_leaves_the_other_answers(redis_url: str) -> None:
    one = connect(redis_url)
    assert isinstance(one, redis.Redis)
    one.set("in-one-trip", "a string")
    first, wrong, last = in_one_trip(
        one, ("GET", "in-one-trip"), ("HGET", "in-one-trip", "x"), ("STRLEN", "in-one-trip")
    )
    assert (answer_of(first), answer_of(last)) == (b"a string", 8)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        answer_of(wrong)
    with pytest.raises(TransientError, match="OOM"):
        answer_of(ResponseError("OOM command not allowed"))
    one.close()


def test_shard_that_is_away_tells_nothing_and_the_others_go_on(
    tmp_path: Path, t: TournamentId, caplog: pytest.LogCaptureFixture
) -> None:
    """A board's shard takes its leases with it; the requests to forget have slots of their own."""
    cluster = RedisCluster(tmp_path, replicas=0)
    try:
        cluster.start()
        one = connect(cluster.url, BRIEF)
        entrance = RedisEntrance(one, TOMBSTONE_KEY)
        away = cluster.node_of(t)
        elsewhere, beside = (
            next(
                player_id
                for player_id in (PlayerId(f"p{n}") for n in range(1000))
                if (cluster.node_of(erasure_key(erasure_id(player_id))) is away) is on_it
            )
            for on_it in (False, True)
        )
        opened(one, t, elsewhere)
        assert entrance.look(t, elsewhere).tombstone is True
        away.stop()
        with caplog.at_level(logging.WARNING):
            assert entrance.look(t, elsewhere) == Sight(erasure_id(elsewhere), is_asked=False)
        assert "the board is away" in caplog.messages
        RedisErasures(one, TOMBSTONE_KEY).begin(elsewhere, 1)
        assert entrance.look(t, elsewhere).is_asked
        with pytest.raises(TransientError):
            entrance.look(TournamentId("any"), beside)
        with pytest.raises(TransientError):
            entrance.enter(grant(t, elsewhere, "c1"))
        one.close()
    finally:
        cluster.stop()


def test_server_that_is_away_answers_nobody(t: TournamentId, p: PlayerId) -> None:
    entrance = RedisEntrance(connect(f"redis://{LOOPBACK}:{free_port()}"), TOMBSTONE_KEY)
    with pytest.raises(TransientError):
        entrance.look(t, p)
    with pytest.raises(TransientError):
        entrance.enter(grant(t, p, "c1"))


def test_many_sockets_are_counted_and_noted_before_a_later_part_is_given_out(
    entrance: Entrance, connections: RedisConnections, t: TournamentId
) -> None:
    counts = []
    for number in range(SOCKETS_A_PART + 5):
        assert connections.is_spread(t) == (number > SPREAD_FROM)
        counts.append(entrance.enter(grant(t, PlayerId(f"p{number}"), f"c{number}")).sockets)
    assert all(later in (before + 1, before + 2) for before, later in pairwise(counts))
    assert {part_of(count) for count in counts} == {0, 1}
    for number in range(SOCKETS_A_PART + 5):
        connections.release(t, PlayerId(f"p{number}"))
    assert connections.is_spread(t), "one of them may still be open"


def test_note_of_many_sockets_is_nobodys_lease(
    entrance: Entrance, connections: RedisConnections, t: TournamentId
) -> None:
    for number in range(SPREAD_FROM + 1):
        entrance.enter(grant(t, PlayerId(f"p{number}"), f"c{number}"))
    assert connections.is_spread(t)
    assert connections.holder(t, PlayerId("")) is None
    assert connections.live(t, [PlayerId(""), PlayerId("p1")]) == {"p1"}
