"""The way to a single Redis: connections that lie ready, trips, and who rides along."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from leaderboard.adapters.redis_client import (
    BRIEF,
    PATIENT,
    Patience,
    Rider,
    answer_of,
    ask,
    check,
    connect,
    in_one_trip,
    may_ride,
)
from leaderboard.adapters.redis_scripts import Script
from leaderboard.errors import NotLetInError, TransientError

_numbers = count()
ADD = "return redis.call('INCR', KEYS[1])"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    opened: Any = connect(redis_url, BRIEF)
    yield opened
    opened.close()


@pytest.fixture
def key() -> str:
    return f"redis-client-{os.getpid()}-{next(_numbers)}"


def cut_all(redis_url: str) -> None:
    """As a server does that closes what has lain idle, or was started anew."""
    other = redis.Redis.from_url(redis_url)
    other.client_kill_filter(_type="normal", skipme=True)
    other.close()


def lay_ready(client: redis.Redis, how_many: int) -> None:
    """So many connections, each used once."""
    pool = client.connection_pool
    held: list[Any] = [pool.get_connection() for _ in range(how_many)]
    for one in held:
        one.disconnect()  # it may be one that was closed
        one.send_command("PING")
        assert one.read_response() == b"PONG"
    for one in held:
        pool.release(one)


def break_all(client: redis.Redis, how_many: int) -> None:
    """What lies ready can't even be sent on."""
    pool = client.connection_pool
    held: list[Any] = [pool.get_connection() for _ in range(how_many)]
    for one in held:
        one._sock.shutdown(socket.SHUT_RDWR)
        pool.release(one)


@pytest.mark.parametrize("patience", [BRIEF, PATIENT])
def test_connections_that_were_closed_while_they_lay_ready_cost_no_answer(
    redis_url: str, key: str, patience: Patience
) -> None:
    client: Any = connect(redis_url, patience)
    lay_ready(client, 3)
    for _ in range(3):
        cut_all(redis_url)
        assert ask(client, "SET", key, "a") == b"OK"
        assert in_one_trip(client, ("GET", key), ("EXISTS", key)) == [b"a", 1]
        cut_all(redis_url)
        assert client.get(key) == b"a"
        cut_all(redis_url)
        assert Script(client, ADD, read_only=False).begin([f"{key}-n".encode()]).answer() > 0
        lay_ready(client, 3)
        break_all(client, 3)
        assert Script(client, ADD, read_only=False).begin([f"{key}-n".encode()]).answer() > 0
        assert ask(client, "GET", key) == b"a"
    client.close()


def test_connection_is_one_callers_alone(client: redis.Redis, key: str) -> None:
    """Eight threads, each with answers of its own."""
    wrong: list[Any] = []
    pool = client.connection_pool
    held = {id(pool.get_connection()) for _ in range(3)}
    lay_ready(client, 3)
    assert len({id(pool.get_connection()) for _ in range(3)} | held) == 6

    def work(number: int) -> None:
        for turn in range(300):
            mine = f"{number}-{turn}".encode()
            told = in_one_trip(client, ("ECHO", mine), ("GET", key), ("ECHO", mine))
            if told != [mine, None, mine]:
                wrong.append(told)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []


def test_child_does_not_speak_on_its_parents_connections(client: redis.Redis) -> None:
    lay_ready(client, 2)
    parents = {client.client_id()}
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, str(client.client_id()).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reading, 100)) not in parents
    assert client.client_id() in parents
    os.close(reading)
    os.close(writing)


def test_error_among_answers_is_an_answer(client: redis.Redis, key: str) -> None:
    told = in_one_trip(client, ("SET", key, "text"), ("LLEN", key), ("GET", key))
    assert (told[0], told[2]) == (b"OK", b"text")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        answer_of(told[1])
    assert ask(client, "GET", key) == b"text", "the connection is in step"


def test_rider_goes_with_the_next_trip_of_its_thread(client: redis.Redis, key: str) -> None:
    rider = Rider(client, ("INCR", key))
    assert in_one_trip(connect_again(client), ("GET", key)) == [None], "not sent so far"
    elsewhere = threading.Thread(target=lambda: ask(client, "PING"))
    elsewhere.start()
    elsewhere.join()
    assert in_one_trip(connect_again(client), ("GET", key)) == [None], "not by another thread"
    assert ask(client, "GET", key) == b"1", "first, and in the same trip"
    assert rider.answer() == 1
    ask(client, "PING")
    assert ask(client, "GET", key) == b"1", "once"


def connect_again(client: redis.Redis) -> redis.Redis:
    """Another client of the same server."""
    place = client.connection_pool.connection_kwargs
    return redis.Redis(host=place["host"], port=place["port"], protocol=2)


def test_rider_goes_alone_where_nothing_else_does(client: redis.Redis, key: str) -> None:
    first, second = Rider(client, ("INCR", key)), Rider(client, ("INCR", key))
    assert [second.answer(), first.answer()] == [2, 1]


def test_rider_is_told_that_its_trip_was_in_vain() -> None:
    away: Any = connect("redis://127.0.0.1:1", BRIEF)
    rider = Rider(away, ("INCR", "n"))
    with pytest.raises(TransientError):
        ask(away, "GET", "n")
    away.connection_pool.get_connection = None  # nobody waits for the same server twice
    with pytest.raises(TransientError):
        rider.answer()


def test_who_waits_longer_than_counting_may_take_does_not_ride(redis_url: str) -> None:
    assert may_ride(connect(redis_url, BRIEF), 0.5)
    assert not may_ride(connect(redis_url, PATIENT), 2.0)
    assert not may_ride(redis.Redis.from_url(redis_url), 9.0)


def test_database_that_there_is_not_lets_nobody_in(redis_url: str) -> None:
    other: Any = connect(urlsplit(redis_url)._replace(path="/99999").geturl(), BRIEF)
    with pytest.raises(NotLetInError, match="DB index"):
        check(other)
    other.close()
