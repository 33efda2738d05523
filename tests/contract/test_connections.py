"""The connections port over Redis, Valkey and a Redis Cluster of three primaries."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from leaderboard.adapters.redis_client import RedisClient, connect
from leaderboard.adapters.redis_connections import OPENING_MS, RedisConnections
from leaderboard.model import PlayerId, TournamentId
from leaderboard.ports import Grant

NOW_MS = 1_800_000_000_000
TOKEN_MS = 900_000
P = PlayerId("alice")
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


@pytest.fixture
def t() -> TournamentId:
    return TournamentId(f"t{next(_numbers)}")


def _grant(t: TournamentId, connection_id: str, expires_at_ms: int = NOW_MS + TOKEN_MS) -> Grant:
    return Grant(t, P, connection_id, expires_at_ms)


def test_ticket_stands_for_its_grant_once(connections: RedisConnections, t: TournamentId) -> None:
    ticket = connections.issue(_grant(t, "c1"), 30)
    assert connections.redeem(ticket) == _grant(t, "c1")
    assert connections.redeem(ticket) is None


def test_ticket_is_used_by_one_of_many_at_once(
    connections: RedisConnections, t: TournamentId
) -> None:
    ticket = connections.issue(_grant(t, "c1"), 30)
    found: list[Grant | None] = []
    _at_once([lambda: found.append(connections.redeem(ticket))] * 8)
    assert [grant for grant in found if grant is not None] == [_grant(t, "c1")]


def test_ticket_is_over_after_its_time(connections: RedisConnections, t: TournamentId) -> None:
    ticket = connections.issue(_grant(t, "c1"), 1)
    time.sleep(1.1)
    assert connections.redeem(ticket) is None


@pytest.mark.parametrize("ticket", ["", "unknown", "x" * 10_000, "é\r\n{}", "*"])
def test_unknown_ticket_stands_for_nothing(connections: RedisConnections, ticket: str) -> None:
    assert connections.redeem(ticket) is None


def test_tickets_are_long_unlike_and_kept_hashed(
    connections: RedisConnections, client: RedisClient, t: TournamentId
) -> None:
    tickets = {connections.issue(_grant(t, "c1"), 30) for _ in range(50)}
    assert len(tickets) == 50
    assert min(map(len, tickets)) >= 43  # 32 bytes
    keys = b" ".join(client.scan_iter("ticket:*"))
    assert not any(ticket.encode() in keys for ticket in tickets)


def test_newest_lease_wins_and_tells_the_one_before(
    connections: RedisConnections, t: TournamentId
) -> None:
    assert connections.lease(_grant(t, "c1")) is None
    assert connections.lease(_grant(t, "c2")) == "c1"
    assert connections.holder(t, P) == "c2"
    assert connections.live(t, [P]) == {P}


def test_lease_done_twice_is_done_once(connections: RedisConnections, t: TournamentId) -> None:
    connections.lease(_grant(t, "c1"))
    assert connections.lease(_grant(t, "c1")) is None
    assert connections.holder(t, P) == "c1"
    assert list(connections.due(NOW_MS + OPENING_MS, 10)) == []


def test_one_before_is_due_again_a_second_later_and_the_new_one_at_its_end(
    connections: RedisConnections, t: TournamentId
) -> None:
    connections.lease(_grant(t, "c1"))
    connections.lease(_grant(t, "c2"))
    assert list(connections.due(NOW_MS + OPENING_MS - 1, 10)) == []
    assert list(connections.due(NOW_MS + OPENING_MS, 10)) == ["c1"]
    assert list(connections.due(NOW_MS + TOKEN_MS, 10)) == ["c1", "c2"]
    assert list(connections.due(NOW_MS + TOKEN_MS, 1)) == ["c1"]


def test_closed_connections_are_due_no_more(connections: RedisConnections, t: TournamentId) -> None:
    connections.lease(_grant(t, "c1"))
    connections.lease(_grant(t, "c2"))
    connections.closed(["c1", "never"])
    connections.closed([])
    assert list(connections.due(NOW_MS + TOKEN_MS, 10)) == ["c2"]


def test_of_many_at_once_one_holds_and_all_others_are_due(
    connections: RedisConnections, t: TournamentId
) -> None:
    ids = [f"c{n}" for n in range(8)]
    before: list[str | None] = []

    def lease(connection_id: str) -> Callable[[], None]:
        return lambda: before.append(connections.lease(_grant(t, connection_id)))

    _at_once([lease(connection_id) for connection_id in ids])
    holder = connections.holder(t, P)
    assert holder in ids
    assert sorted(filter(None, before)) == sorted(set(ids) - {holder})
    assert sorted(connections.due(NOW_MS + OPENING_MS, 100)) == sorted(set(ids) - {holder})


def test_lease_ends_with_its_token(
    connections: RedisConnections, clock: Clock, t: TournamentId
) -> None:
    connections.lease(_grant(t, "c1", NOW_MS + 10))
    clock.now_ms += 10
    assert connections.holder(t, P) is None
    assert connections.live(t, [P]) == frozenset()
    assert connections.lease(_grant(t, "c2")) is None


def test_live_tells_only_who_holds_a_connection_in_this_tournament(
    connections: RedisConnections, t: TournamentId
) -> None:
    connections.lease(_grant(t, "c1"))
    other = TournamentId(f"{t}-other")
    everyone = [PlayerId("bob"), P, PlayerId("carol")]
    assert connections.live(t, everyone) == {P}
    assert connections.live(other, everyone) == frozenset()
    assert connections.live(t, []) == frozenset()


def test_release_ends_the_lease_and_leaves_the_socket_due(
    connections: RedisConnections, t: TournamentId
) -> None:
    connections.lease(_grant(t, "c1"))
    assert connections.release(t, P) == "c1"
    assert connections.release(t, P) is None
    assert connections.holder(t, P) is None
    assert list(connections.due(NOW_MS + OPENING_MS, 10)) == ["c1"]


def test_connections_are_counted_until_they_are_closed(
    connections: RedisConnections, t: TournamentId
) -> None:
    assert connections.count() == 0
    connections.lease(_grant(t, "c1"))
    connections.lease(_grant(TournamentId(f"{t}-other"), "c2"))
    connections.release(t, P)
    assert connections.count() == 2
    connections.closed(["c1"])
    assert connections.count() == 1


def test_leases_are_forgotten_when_the_last_has_ended(
    connections: RedisConnections, client: RedisClient, clock: Clock, t: TournamentId
) -> None:
    connections.lease(_grant(t, "c1", NOW_MS + 60_000))
    connections.lease(_grant(t, "c2", NOW_MS + 20_000))
    assert 55_000 < client.pttl(f"{{{t}}}:sockets") <= 60_000


def _at_once(calls: list[Callable[[], object]]) -> None:
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        barrier.wait()
        call()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_socket_that_ended_holds_nothing_and_is_not_due(
    connections: RedisConnections, t: TournamentId, clock: Clock
) -> None:
    grant = _grant(t, "a")
    connections.lease(grant)
    connections.left(grant)
    connections.left(grant)
    assert connections.holder(t, P) is None
    clock.now_ms += 2 * TOKEN_MS
    assert list(connections.due(clock.now_ms, 10)) == []


def test_socket_that_ended_takes_nothing_from_the_newer_one(
    connections: RedisConnections, t: TournamentId
) -> None:
    connections.lease(_grant(t, "a"))
    connections.lease(_grant(t, "b"))
    connections.left(_grant(t, "a"))
    assert connections.holder(t, P) == "b"
    assert list(connections.due(NOW_MS + TOKEN_MS, 10)) == ["b"]
