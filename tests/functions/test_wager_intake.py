"""A producer's way in: which tournaments it knows, by list or record."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from hosting import SETTINGS, hosted
from leaderboard.adapters.redis_client import connect
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.errors import Refusal, RefusedError, TransientError
from leaderboard.events import WAGERS
from leaderboard.hosts.http import Call
from leaderboard.ports import Summary
from leaderboard.reads import Tournaments
from logs import T, scheduled
from ports import MemoryFeed
from records import RecordedLog, engine_of, loaded
from samples import DATA, attributes_of

NOWHERE = "redis://127.0.0.1:1"


@pytest.fixture(scope="module")
def intake_of() -> Iterator[Callable[..., Any]]:
    """Makes an intake that waits for no tournament for long."""
    with hosted("on-wager"):
        module = importlib.import_module("intake")
        yield partial(module.WagerIntake, known_seconds=0.3)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    with engine_of(loaded(f"sqlite:///{tmp_path}/record.sqlite")) as engine:
        RecordedLog(engine).take(T, [scheduled(0)])
        yield engine


@pytest.fixture
def directory(redis_url: str) -> RedisDirectory:
    client = connect(redis_url)
    client.flushall()
    return RedisDirectory(client)


def wager(tournament_id: str) -> Call:
    headers = {f"ce-{name}": text for name, text in attributes_of("wager.placed").items()}
    body = json.dumps({**DATA["wager.placed"], "tournament_id": tournament_id}).encode()
    return Call({}, {**headers, "content-type": "application/json"}, body, "", None)


def away() -> Any:
    raise TransientError("the database is away")


def test_tournament_that_the_list_has_lost_takes_wagers(
    intake_of: Callable[..., Any], engine: sa.Engine, directory: RedisDirectory
) -> None:
    feed = MemoryFeed()
    for redis in (directory, RedisDirectory(connect(NOWHERE))):
        tournaments = Tournaments(lambda redis=redis: redis, lambda: SqlRecord(engine))  # type: ignore[misc]
        answer = intake_of(tournaments, feed).accept(wager(T))
        assert answer.status == 202
    assert len(feed.events(WAGERS)) == 2


def test_unknown_tournament_is_refused_when_both_say_so(
    intake_of: Callable[..., Any], engine: sa.Engine, directory: RedisDirectory
) -> None:
    tournaments = Tournaments(lambda: directory, lambda: SqlRecord(engine))
    with pytest.raises(RefusedError) as refused:
        intake_of(tournaments, MemoryFeed()).accept(wager("nowhere"))
    assert refused.value.reason is Refusal.UNKNOWN_TOURNAMENT


def test_lost_list_refuses_nobody_while_the_record_is_away(
    intake_of: Callable[..., Any], engine: sa.Engine, directory: RedisDirectory
) -> None:
    feed = MemoryFeed()
    intake = intake_of(Tournaments(lambda: directory, away), feed)
    with pytest.raises(TransientError):
        intake.accept(wager(T))
    assert feed.events(WAGERS) == []
    known = SqlRecord(engine).find(T)
    assert known is not None
    directory.put(Summary(T, known.terms))
    assert intake.accept(wager(T)).status == 202


@pytest.mark.parametrize(("switched", "status"), [("off", 401), ("on", 422)])
def test_event_without_a_token_is_taken_only_where_that_is_switched_on(
    switched: str, status: int
) -> None:
    """Taken, in so far as it is the event that is refused then: it is none."""
    with hosted("on-wager", {**SETTINGS, "EVENTS_FROM_ANYONE": switched}) as one:
        assert one.client.post("/", data=b"no event").status_code == status
