"""Keys of requests on real servers: one request has a key, and its answer, for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import count

import pytest
import redis

from leaderboard.adapters.redis_client import BRIEF, PATIENT, RedisClient, connect
from leaderboard.adapters.redis_replies import KEPT_SECONDS, RedisReplies, key_of
from leaderboard.errors import TransientError
from leaderboard.repetitions import Begun, Replies, Reply, fingerprint_of

ONE, OTHER = fingerprint_of("POST", "one"), fingerprint_of("POST", "other")
ANSWER = Reply(201, {"Location": "/v1/tournaments/t1"}, {"offset": 7, "prewarm": {"é": [1, None]}})
_numbers = count()


@pytest.fixture(
    scope="module",
    params=[("redis_url", PATIENT), ("valkey_url", BRIEF), ("redis_cluster_url", PATIENT)],
    ids=["redis", "valkey-brief", "cluster"],
)
def client(request: pytest.FixtureRequest) -> Iterator[RedisClient]:
    url, patience = request.param
    opened = connect(request.getfixturevalue(url), patience)
    yield opened
    opened.close()


@pytest.fixture
def replies(client: RedisClient) -> Replies:
    return RedisReplies(client)


@pytest.fixture
def key() -> str:
    """Which no other test has used."""
    return f"key-of-alice-{next(_numbers)}-{time.time_ns()}"


def test_same_request_finds_its_answer(replies: Replies, key: str) -> None:
    assert replies.begin(key, ONE) == Begun()
    assert replies.begin(key, ONE) == Begun(), "nobody has answered yet: it may be handled again"
    replies.keep(key, ONE, ANSWER)
    for _ in range(2):
        assert replies.begin(key, ONE) == Begun(reply=ANSWER)


def test_another_request_is_told_so_before_and_after_the_answer(replies: Replies, key: str) -> None:
    replies.begin(key, ONE)
    assert replies.begin(key, OTHER) == Begun(is_for_another=True)
    replies.keep(key, ONE, ANSWER)
    assert replies.begin(key, OTHER) == Begun(is_for_another=True)
    assert replies.begin(key, ONE) == Begun(reply=ANSWER), "what was refused has changed nothing"
    assert replies.begin(f"{key}'", OTHER) == Begun()


def test_of_many_at_once_one_gets_the_key(client: RedisClient, key: str) -> None:
    fingerprints = [fingerprint_of(str(number)) for number in range(8)]
    told: list[Begun] = []
    ready = threading.Barrier(len(fingerprints))

    def ask(fingerprint: str) -> None:
        replies = RedisReplies(client)
        ready.wait()
        told.append(replies.begin(key, fingerprint))

    threads = [threading.Thread(target=ask, args=(one,)) for one in fingerprints]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(one.is_for_another for one in told) == [False] + [True] * 7


def test_key_ends_by_itself_and_names_nobody(client: RedisClient, key: str) -> None:
    replies = RedisReplies(client)
    replies.begin(key, ONE)
    replies.keep(key, ONE, ANSWER)
    assert KEPT_SECONDS - 60 < client.ttl(key_of(key)) <= KEPT_SECONDS
    assert b"alice" not in key_of(key)
    short = RedisReplies(client, kept_seconds=1)
    short.begin(f"{key}-short", ONE)
    time.sleep(1.2)
    assert short.begin(f"{key}-short", OTHER) == Begun()


def test_parts_of_a_request_are_told_apart() -> None:
    assert fingerprint_of("a", "b") != fingerprint_of("ab") != fingerprint_of("", "ab")
    assert len(ONE) == 64


def test_redis_with_rights_of_an_older_version_is_transient(redis_url: str) -> None:
    """An operator must be able to end a tournament before the rights are brought in, too."""
    with redis.Redis.from_url(redis_url, protocol=2) as admin:
        admin.acl_setuser("older", enabled=True, passwords=["+p"], commands=["+ping"], reset=True)
        replies = RedisReplies(connect(redis_url.replace("redis://", "redis://older:p@"), BRIEF))
        with pytest.raises(TransientError):
            replies.begin("k", ONE)
        with pytest.raises(TransientError):
            replies.keep("k", ONE, ANSWER)
        admin.acl_deluser("older")


def test_redis_that_is_away_is_transient() -> None:
    replies = RedisReplies(connect("redis://127.0.0.1:1", BRIEF))
    with pytest.raises(TransientError):
        replies.begin("k", ONE)
    with pytest.raises(TransientError):
        replies.keep("k", ONE, ANSWER)
