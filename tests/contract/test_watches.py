"""What fraud detection has seen: kept by compare, over memory, Redis, Valkey and a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from consuming import MemoryWatches
from leaderboard.adapters.redis_client import RedisClient, connect
from leaderboard.adapters.redis_watches import KEPT_SECONDS, RedisWatches
from leaderboard.fraud import Piece, Watch
from leaderboard.fraud_ports import Watches
from leaderboard.fraud_rules import DEFAULTS
from leaderboard.model import Offset
from logs import LOG, T

PIECES = [
    Piece([(1, 1000, "p1", 50, "g1"), (2, 2000, "p2", 50, "g1")], [(2, 2000, "p2", 9, 1)]),
    Piece((), (), removed="p2"),
    Piece((), (), parameters={"velocity": {"wagers": 5}}, is_ruled=True),
]


@pytest.fixture(params=["memory", "redis_url", "valkey_url", "redis_cluster_url"])
def watches(request: pytest.FixtureRequest) -> Iterator[Watches]:
    if request.param == "memory":
        yield MemoryWatches()
        return
    client = connect(request.getfixturevalue(request.param))
    client.flushall()
    yield RedisWatches(client)
    client.close()


def folded() -> Watch:
    watch = Watch()
    watch.see(PIECES)
    return watch


def test_nothing_is_there_before_it_is_kept_and_nothing_is_added_to_it(watches: Watches) -> None:
    assert watches.read(T) is None
    assert not watches.append(T, Offset(0), Offset(1), PIECES)
    assert watches.read(T) is None


def test_a_whole_and_what_was_seen_after_it_come_back_as_they_were(watches: Watches) -> None:
    watch = Watch()
    assert watches.replace(T, LOG, None, Offset(0), watch)
    assert watches.append(T, Offset(0), Offset(2), PIECES[:1])
    assert watches.append(T, Offset(2), Offset(4), PIECES[1:])
    kept = watches.read(T)
    assert kept is not None
    assert (kept.log_id, kept.offset) == (LOG, 4)
    again = Watch.of_plain(kept.plain)
    again.see(kept.pieces)
    assert plain(again) == plain(folded())
    assert plain(again) != plain(Watch())


def plain(watch: Watch) -> Any:
    """Tuples and lists are one here."""
    return repr(watch.plain()).replace("(", "[").replace(")", "]")


def test_a_whole_takes_the_place_of_all_before_it(watches: Watches) -> None:
    watches.replace(T, LOG, None, Offset(0), Watch())
    watches.append(T, Offset(0), Offset(2), PIECES)
    assert watches.replace(T, "another/log", Offset(2), Offset(5), folded())
    kept = watches.read(T)
    assert kept is not None
    assert (kept.log_id, kept.offset, list(kept.pieces)) == ("another/log", 5, [])
    assert plain(Watch.of_plain(kept.plain)) == plain(folded())


def test_who_comes_from_elsewhere_changes_nothing(watches: Watches) -> None:
    watches.replace(T, LOG, None, Offset(3), Watch(DEFAULTS))
    before = watches.read(T)
    assert not watches.append(T, Offset(2), Offset(9), PIECES)
    assert not watches.append(T, Offset(4), Offset(9), PIECES)
    assert not watches.replace(T, LOG, None, Offset(9), folded())
    assert not watches.replace(T, LOG, Offset(2), Offset(9), folded())
    assert watches.read(T) == before


def test_the_same_again_after_its_answer_was_lost_is_kept_once(watches: Watches) -> None:
    watches.replace(T, LOG, None, Offset(0), Watch())
    assert watches.append(T, Offset(0), Offset(2), PIECES[:1])
    assert watches.append(T, Offset(0), Offset(2), PIECES[:1])
    kept = watches.read(T)
    assert kept is not None
    assert len(kept.pieces) == 1


def test_it_goes_with_the_log(redis_url: str) -> None:
    client: RedisClient = connect(redis_url)
    RedisWatches(client).replace(T, LOG, None, Offset(0), Watch())
    ttl: Any = client.ttl(f"{{{T}}}:watch")
    assert 0 < ttl <= KEPT_SECONDS
    client.close()
