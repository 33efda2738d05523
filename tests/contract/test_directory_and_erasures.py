"""The list of tournaments and the requests to forget, over every kind of Redis."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from leaderboard.adapters.redis_client import RedisClient, connect, transient
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.redis_erasures import RedisErasures
from leaderboard.errors import NotFoundError, TransientError
from leaderboard.fold import decide
from leaderboard.model import PlayerId, TournamentId
from leaderboard.ports import Summary
from logs import ALICE, BOB, START_MS, TOMBSTONE_KEY, T, scheduled


@pytest.fixture(params=["redis_url", "valkey_url", "redis_cluster_url"])
def client(request: pytest.FixtureRequest) -> Iterator[RedisClient]:
    one = connect(request.getfixturevalue(request.param))
    one.flushall()
    yield one
    one.close()


def _summary(name: str = T, *, revision: int = 0, starts_ms: int = START_MS) -> Summary:
    terms = decide(None, scheduled(revision, name, starts_ms=starts_ms)).terms
    assert terms is not None
    return Summary(TournamentId(name), terms)


def test_directory_shows_what_was_put_in_order_of_start_and_id(client: RedisClient) -> None:
    directory = RedisDirectory(client)
    assert directory.all() == []
    late, b, a = _summary("late", starts_ms=START_MS + 1), _summary("b"), _summary("a")
    for one in (late, b, a):
        directory.put(one)
    assert directory.all() == [a, b, late]
    assert directory.find(late.tournament_id) == late
    assert directory.find(TournamentId("nobody")) is None


def test_newer_revision_wins_in_whatever_order_they_come(client: RedisClient) -> None:
    directory = RedisDirectory(client)
    old, new = _summary(revision=5), _summary(revision=2**53 - 1, starts_ms=START_MS + 9)
    for one in (old, new, old):
        directory.put(one)
    assert directory.all() == [new]
    directory.put(new)
    assert directory.all() == [new]


def test_directory_keeps_the_newest_of_many_writers(client: RedisClient) -> None:
    directory = RedisDirectory(client)
    summaries = [_summary(revision=n) for n in range(40)]
    orders = (summaries[::-1], summaries, summaries[::3])

    def put(part: list[Summary]) -> None:
        for one in part:
            directory.put(one)

    threads = [threading.Thread(target=put, args=(part,)) for part in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert directory.all() == [summaries[-1]]


def test_erasure_is_the_same_for_the_same_player(client: RedisClient) -> None:
    erasures = RedisErasures(client, TOMBSTONE_KEY)
    assert not erasures.is_erased(ALICE)
    first = erasures.begin(ALICE, 1000)
    assert (first.requested_at_ms, first.places, first.player_id) == (1000, {}, ALICE)
    assert erasures.begin(ALICE, 2000) == first
    assert erasures.find(first.erasure_id) == first
    assert erasures.is_erased(ALICE)
    assert not erasures.is_erased(BOB)
    assert erasures.begin(BOB, 1).erasure_id != first.erasure_id


def test_player_is_forgotten_when_nothing_is_pending_and_not_before(client: RedisClient) -> None:
    erasures = RedisErasures(client, TOMBSTONE_KEY)
    erasure_id = erasures.begin(ALICE, 1000).erasure_id
    assert erasures.mark(erasure_id, {}).player_id == ALICE
    two = erasures.mark(erasure_id, {"sockets": "pending", "board:t1": "pending"})
    assert two.places == {"sockets": "pending", "board:t1": "pending"}
    assert erasures.mark(erasure_id, {"sockets": "done"}).player_id == ALICE
    done = erasures.mark(erasure_id, {"board:t1": "done"})
    assert done.player_id is None
    assert done.places == {"sockets": "done", "board:t1": "done"}
    assert erasures.find(erasure_id) == done
    assert erasures.is_erased(ALICE)
    assert b"alice" not in client.dump(f"erasures:{erasure_id}")  # type: ignore[operator]


def test_what_is_done_stays_done_and_new_places_open_the_request(client: RedisClient) -> None:
    erasures = RedisErasures(client, TOMBSTONE_KEY)
    erasure_id = erasures.begin(ALICE, 1000).erasure_id
    erasures.mark(erasure_id, {"sockets": "done"})
    again = erasures.begin(ALICE, 2000)
    assert (again.player_id, again.requested_at_ms) == (ALICE, 1000)
    later = erasures.mark(erasure_id, {"sockets": "pending", "board:t2": "pending"})
    assert later.places == {"sockets": "done", "board:t2": "pending"}
    assert later.player_id == ALICE
    assert erasures.mark(erasure_id, {"board:t2": "done"}).player_id is None


def test_pending_requests_are_listed_the_oldest_first(client: RedisClient) -> None:
    erasures = RedisErasures(client, TOMBSTONE_KEY)
    assert erasures.pending(10) == (0, [])
    bob = erasures.begin(BOB, 3000)
    alice = erasures.begin(ALICE, 1000)
    assert erasures.pending(10) == (2, [alice, bob])
    assert erasures.pending(1) == (2, [alice])
    erasures.mark(alice.erasure_id, {"sockets": "pending"})
    assert erasures.pending(10)[0] == 2
    erasures.mark(alice.erasure_id, {"sockets": "done"})
    assert erasures.pending(10) == (1, [bob])
    # Done, and the process died before it had taken it off the list.
    client.zadd("erasures-pending", {alice.erasure_id: 1000})
    assert erasures.pending(10) == (1, [bob])
    assert not erasures.is_erased(PlayerId("carol"))


def test_a_look_between_the_two_calls_of_a_request_does_not_lose_it(
    client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    erasures, other = RedisErasures(client, TOMBSTONE_KEY), RedisErasures(client, TOMBSTONE_KEY)
    real = client.eval

    def looked_at_before(*args: Any) -> Any:
        monkeypatch.undo()
        assert other.pending(10) == (0, [])
        return real(*args)

    monkeypatch.setattr(client, "eval", looked_at_before)
    alice = erasures.begin(ALICE, 1000)
    assert erasures.pending(10) == (1, [alice])


def test_request_that_is_opened_again_as_it_is_found_done_stays_on_the_list(
    client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    erasures, other = RedisErasures(client, TOMBSTONE_KEY), RedisErasures(client, TOMBSTONE_KEY)
    alice = erasures.begin(ALICE, 1000)
    real = client.zrem

    def opened_before(*args: Any) -> Any:
        monkeypatch.undo()
        other.begin(ALICE, 2000)
        return real(*args)

    monkeypatch.setattr(client, "zrem", opened_before)
    assert erasures.mark(alice.erasure_id, {"sockets": "done"}).player_id is None
    count, (again,) = erasures.pending(10)
    assert (count, again.player_id, again.opened_at_ms) == (1, ALICE, 2000)
    assert (erasures.opened_before(2000), erasures.opened_before(2001)) == (0, 1)


def test_each_place_has_the_time_at_which_it_was_done(client: RedisClient) -> None:
    times = iter((10, 20, 30))
    erasures = RedisErasures(client, TOMBSTONE_KEY, now_ms=lambda: next(times))
    erasure_id = erasures.begin(ALICE, 5).erasure_id
    erasures.mark(erasure_id, {"sockets": "done", "record": "pending"})
    erasures.mark(erasure_id, {"sockets": "done", "record": "pending"})
    done = erasures.mark(erasure_id, {"record": "done"})
    assert done.done_at_ms == {"sockets": 10, "record": 30}


def test_unknown_erasure_is_not_made_by_marking_it(client: RedisClient) -> None:
    erasures = RedisErasures(client, TOMBSTONE_KEY)
    assert erasures.find("er-1") is None
    with pytest.raises(NotFoundError):
        erasures.mark("er-1", {"sockets": "done"})
    assert erasures.find("er-1") is None


def test_error_inside_a_script_that_may_pass_is_transient(client: RedisClient) -> None:
    script = "return redis.error_reply('READONLY You can not write against a replica')"
    with pytest.raises(TransientError), transient():
        client.eval(script, 1, "k")
    with pytest.raises(Exception, match="BROKEN"), transient():
        client.eval("return redis.error_reply('BROKEN by us')", 1, "k")


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{0}", "redis://127.0.0.1:{0},127.0.0.1:{0}"])
def test_server_that_is_away_is_transient(url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, never listening: nobody else gets it
        with pytest.raises(TransientError):
            RedisDirectory(connect(url.format(taken.getsockname()[1]))).all()


def test_what_the_log_says_of_an_erasure_survives_an_emptied_store(client: RedisClient) -> None:
    erasures = RedisErasures(client, TOMBSTONE_KEY)
    erasure_id = erasures.begin(ALICE, 5).erasure_id
    erasures.mark(erasure_id, {"board:t1": "pending"})
    erasures.restore(erasure_id, 7)
    known = erasures.find(erasure_id)
    assert known is not None
    assert (known.requested_at_ms, known.places, known.player_id) == (
        5,
        {"board:t1": "pending"},
        ALICE,
    )
    client.flushall()
    assert not erasures.is_erased(ALICE)
    erasures.restore(erasure_id, 7)
    again = erasures.find(erasure_id)
    assert again is not None
    assert (again.requested_at_ms, again.places, again.player_id) == (7, {}, None)
    assert erasures.is_erased(ALICE)
