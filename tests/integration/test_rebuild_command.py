"""`leaderboard rebuild` by its real command, on the whole local stack: a board that somebody has
spoiled comes back from the record, and whoever asks for what can't be done is told why."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from leaderboard.adapters import sql_engine
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.model import TournamentId
from running import command, wait_for
from whole_path import Path, schedule, unique, wager

PLAYERS = [f"p{number:02d}" for number in range(40)]


@pytest.fixture
def store(path: Path) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(path.settings["REDIS_URL"])
    yield client
    client.close()


@pytest.fixture
def record(path: Path) -> Iterator[SqlRecord]:
    engine = sql_engine.connect(path.settings["DATABASE_URL"])
    yield SqlRecord(engine)
    engine.dispose()


def rebuild(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return command(["rebuild", *words], path.stack.folder)


def played(path: Path, record: SqlRecord) -> tuple[str, list[dict[str, Any]]]:
    """A tournament on its board and in the record: its id, and the board's rows."""
    name = unique("rebuilt")
    wagers = [wager(name, player, 10 * n + 10) for n, player in enumerate(PLAYERS)]
    last = path.publish([schedule(name), *wagers])[-1].offset
    path.reached(name, last)
    wait_for(lambda: record.sequences([TournamentId(name)]).get(TournamentId(name)) == last, 20)
    return name, path.standings(name)


def spoil(store: redis.Redis, name: str) -> None:
    """As a hand does that should not: the best player is gone, the board says nothing of it."""
    assert store.zremrangebyrank(f"{{{name}}}:ranks", -1, -1) == 1
    assert store.hdel(f"{{{name}}}:rows", PLAYERS[-1]) == 1


def test_a_board_that_was_spoiled_by_hand_comes_back_by_force(
    path: Path, store: redis.Redis, record: SqlRecord
) -> None:
    name, before = played(path, record)
    spoil(store, name)
    assert len(path.standings(name)) == len(PLAYERS) - 1
    mild = rebuild(path, name)
    assert (mild.returncode, "0 of 1 boards made anew" in mild.stdout) == (0, True)
    done = rebuild(path, name, "--force")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 boards made anew" in done.stdout
    assert path.standings(name) == before
    # What comes after it counts on, once.
    last = path.publish([wager(name, PLAYERS[0], 5000)])[-1].offset
    path.reached(name, last)
    assert path.standings(name)[0]["player_id"] == PLAYERS[0]
    assert path.standings(name)[0]["score"] == 5010
    wait_for(lambda: record.sequences([TournamentId(name)])[TournamentId(name)] == last, 20)
    view = record.top(TournamentId(name), len(PLAYERS))
    assert view is not None
    assert [row.score.score for row in view.standings] == [
        row["score"] for row in path.standings(name)
    ]


def test_all_boards_are_made_anew_while_wagers_come(
    path: Path, store: redis.Redis, record: SqlRecord
) -> None:
    name, before = played(path, record)
    spoil(store, name)
    more = [wager(name, player, 1) for player in PLAYERS[:-1] for _ in range(5)]
    half = len(more) // 2
    path.publish(more[:half])
    done = rebuild(path, "--all", "--force")
    last = path.publish(more[half:])[-1].offset
    assert done.returncode == 0, done.stderr
    path.reached(name, last)
    expected = {row["player_id"]: row["score"] + 5 for row in before}
    expected[PLAYERS[-1]] -= 5
    assert {row["player_id"]: row["score"] for row in path.standings(name)} == expected


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nobodys-cup"], "the record has no live tournament nobodys-cup"),
        (["not an id"], "tournament"),
        ([], "name tournaments, or say --all"),
        (["--all", "some-cup"], "name tournaments, or say --all"),
        (["--all", "--group", "nobodys-group"], "no consumer of nobodys-group has come by"),
    ],
)
def test_what_cannot_be_rebuilt_is_said_and_nothing_is_touched(
    path: Path, store: redis.Redis, record: SqlRecord, words: list[str], told: str
) -> None:
    name, before = played(path, record)
    spoil(store, name)
    refused = rebuild(path, *words, "--force")
    assert refused.returncode != 0
    assert told in refused.stderr
    assert "Traceback" not in refused.stderr
    assert len(path.standings(name)) == len(before) - 1
    assert rebuild(path, name, "--force").returncode == 0


def test_a_known_name_beside_an_unknown_one_is_not_rebuilt_either(
    path: Path, store: redis.Redis, record: SqlRecord
) -> None:
    name, before = played(path, record)
    spoil(store, name)
    refused = rebuild(path, name, "nobodys-cup", "--force")
    assert refused.returncode != 0
    assert len(path.standings(name)) == len(before) - 1
    assert rebuild(path, name, "--force").returncode == 0
    assert path.standings(name) == before


def test_a_rebuild_without_its_servers_says_which_one_is_away(path: Path) -> None:
    for variable, url in (
        ("REDIS_URL", "redis://127.0.0.1:1/0"),
        ("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none"),
        ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1"),
    ):
        done = command(["rebuild", "--all"], path.stack.folder, {variable: url})
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert done.stderr.strip(), variable
