"""What every `Board` guarantees about being put in place of another, and about going: over each of
its adapters, as test_board.py."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from boards import OPERATORS, SERVERS, folded, make_board, put, shown, snapshot_of
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import RedisClient, connect
from leaderboard.adapters.redis_restore import RedisRestore
from leaderboard.adapters.redis_scripts import NAMES, Script
from leaderboard.errors import BoardBehindError, ForeignLogError, TransientError
from leaderboard.model import Disposition, Offset, PlayerId, Score, TournamentId
from leaderboard.ports import Board, PlayerRow
from logs import ALICE, BOB, CAROL, LOG, TOMBSTONE_KEY, T, erased, joined, random_log, scheduled
from logs import scored as scored_entry

OLD = [scheduled(0), scored_entry(1, ALICE, 5)]
NEW = [*OLD, scored_entry(2, BOB, 7), joined(3, ALICE, "Al"), erased(4, CAROL)]
SHOWN_OLD = [(1, ALICE, 5)]
SHOWN_NEW = [(1, BOB, 7), (2, ALICE, 5)]


@pytest.fixture(params=list(SERVERS))
def client(request: pytest.FixtureRequest) -> Iterator[RedisClient]:
    client = connect(request.getfixturevalue(SERVERS[request.param]))
    client.flushall()
    yield client
    client.close()


def keys(client: RedisClient) -> set[str]:
    return {key.decode() for key in client.scan_iter("{t1}:*")}


NINE = {f"{{t1}}:{name}" for name in NAMES}


def test_a_snapshot_makes_the_board(board: Board) -> None:
    told: list[int] = []
    assert board.restore(snapshot_of(folded(NEW), chunk=1), loaded=told.append)
    assert told == [1, 1]
    view = board.top(T, 10)
    assert shown(view) == SHOWN_NEW
    assert view == folded(NEW).top(T, 10)
    assert board.stands_at(LOG, [T]) == [4]
    assert board.is_erased(T, CAROL)
    applied = put(board, [*NEW, scored_entry(5, BOB, 1)], after=4)
    assert applied.verdicts == [Disposition.SKIPPED] * 5 + [Disposition.APPLIED]
    assert [change.sequence for change in applied.unconfirmed] == [5]


def test_a_board_below_the_snapshot_gives_way(board: Board) -> None:
    put(board, OLD)
    assert board.restore(snapshot_of(folded(NEW)))
    assert shown(board.top(T, 10)) == SHOWN_NEW
    assert list(put(board, []).unconfirmed) == []


@pytest.mark.parametrize("is_further", [False, True])
def test_a_board_at_or_above_the_snapshot_stays_unless_forced(
    board: Board, is_further: bool
) -> None:
    log = [*NEW, scored_entry(9, CAROL, 1)] if is_further else NEW
    put(board, log)
    before = board.top(T, 10)
    assert not board.restore(snapshot_of(folded(NEW)))
    assert board.top(T, 10) == before
    assert board.restore(snapshot_of(folded(OLD)), force=True)
    assert shown(board.top(T, 10)) == SHOWN_OLD
    assert not board.is_erased(T, CAROL)
    assert put(board, NEW, after=1).offset == 4
    assert shown(board.top(T, 10)) == SHOWN_NEW


def test_a_board_that_went_on_meanwhile_stays(board: Board) -> None:
    put(board, OLD)
    snapshot = snapshot_of(folded(NEW), chunk=1)
    went_on = [*NEW, scored_entry(5, BOB, 1)]

    def meanwhile(rows: int) -> None:
        put(board, went_on)

    assert not board.restore(snapshot, loaded=meanwhile)
    assert shown(board.top(T, 10)) == [(1, BOB, 8), (2, ALICE, 5)]


@pytest.mark.parametrize("force", [False, True])
def test_a_board_of_another_log_is_never_replaced(board: Board, force: bool) -> None:
    put(board, OLD)
    snapshot = replace(snapshot_of(folded(NEW)), log_id="wagers/another/0")
    with pytest.raises(ForeignLogError):
        board.restore(snapshot, force=force)
    assert shown(board.top(T, 10)) == SHOWN_OLD


def test_a_snapshot_that_is_not_whole_is_not_taken(board: Board) -> None:
    put(board, OLD)
    with pytest.raises(ValueError, match="2 rows instead of 3"):
        board.restore(replace(snapshot_of(folded(NEW)), players=3))
    assert shown(board.top(T, 10)) == SHOWN_OLD


def test_a_snapshot_without_players_makes_a_board(board: Board) -> None:
    put(board, [scheduled(0), scored_entry(1, ALICE, 5), joined(2, ALICE, "Al")])
    assert board.restore(snapshot_of(folded([scheduled(3)])))
    assert shown(board.top(T, 10)) == []
    assert not board.is_in(T, ALICE)


@pytest.mark.parametrize("kind", ["memory", *SERVERS])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("order", ["descending", "ascending"])
def test_a_restored_board_goes_on_exactly_as_the_original(
    kind: str, operator: str, order: str, request: pytest.FixtureRequest
) -> None:
    for seed in range(6):
        chance = random.Random(f"{seed}{operator}{order}")
        join = "required" if seed % 3 == 2 else "open"
        log = list(random_log(seed + 50, length=300, operator=operator, order=order, join=join))
        cut = chance.choice((1, 5, 60, 200, len(log) - 2))
        remembered_ids = chance.choice((2, 20, 70))
        original = folded(log[:cut], remembered_ids)
        board = make_board(kind, request, remembered_ids)
        assert board.restore(snapshot_of(original, chunk=chance.choice((1, 7, 1000))))
        assert_alike(board, original)
        position = cut
        while position < len(log):
            size = chance.choice((1, 7, 40, 120))
            batch = log[max(position - chance.choice((0, 30)), 0) : position + size]
            after = log[position - 1].offset
            came = board.apply(T, LOG, after, batch, after)
            expected = original.apply(T, LOG, after, batch, after)
            assert list(came.verdicts) == list(expected.verdicts), (seed, position)
            assert list(came.unconfirmed) == list(expected.unconfirmed), (seed, position)
            assert (came.offset, came.sequence) == (expected.offset, expected.sequence)
            assert came.terms == expected.terms
            position += size
        assert_alike(board, original)


def assert_alike(board: Board, original: Board) -> None:
    players = [PlayerId(f"p{number}") for number in range(12)]
    assert board.top(T, 1000) == original.top(T, 1000)
    assert board.rows(T, players) == original.rows(T, players)
    assert board.stands_at(LOG, [T]) == original.stands_at(LOG, [T])
    for player_id in players:
        assert board.around(T, player_id, 3) == original.around(T, player_id, 3)
        assert board.is_in(T, player_id) == original.is_in(T, player_id)
        assert board.is_erased(T, player_id) == original.is_erased(T, player_id)


def test_rows_are_read_with_the_sequence_that_reached_them(board: Board) -> None:
    low = -(2**53) + 1
    assert board.rows(T, [ALICE]) is None
    log = [scored_entry(3, ALICE, low, 2**53 - 1), scored_entry(5, BOB, 2**53 - 1, low)]
    put(board, [scheduled(0), *log, scored_entry(8, ALICE, 0)])
    crowd = [PlayerId(f"nobody-{number}") for number in range(2500)]
    found = board.rows(T, [BOB, *crowd, ALICE])
    assert found is not None
    assert found[0] == 8
    assert found[1] == [
        PlayerRow(BOB, Score(2**53 - 1, low), Offset(5)),
        *[None] * 2500,
        PlayerRow(ALICE, Score(low, 2**53 - 1), Offset(3)),
    ]
    assert board.rows(T, []) == (8, [])


def test_many_boards_are_asked_at_once_where_they_stand(board: Board) -> None:
    names = [TournamentId(f"cup-{number}") for number in range(40)]
    for number, name in enumerate(names[:30]):
        log = [scheduled(number, name)]
        board.apply(name, LOG, None, log, None)
    assert board.stands_at(LOG, names) == [*range(30), *[None] * 10]
    assert board.stands_at(LOG, []) == []
    with pytest.raises(ForeignLogError, match="cup-0"):
        board.stands_at("wagers/another/0", names)


def in_ms(ms: int) -> int:
    return time.time_ns() // 1_000_000 + ms


def test_a_board_goes_at_its_time_if_it_stands_where_the_caller_saw_it(board: Board) -> None:
    put(board, OLD)
    assert not board.expire(T, Offset(0), in_ms(0))
    assert not board.expire(TournamentId("t2"), Offset(1), in_ms(0))
    assert board.expire(T, Offset(1), in_ms(300))
    put(board, NEW)
    assert shown(board.top(T, 10)) == SHOWN_NEW
    wait_until(lambda: board.top(T, 10) is None)
    assert board.stands_at(LOG, [T]) == [None]
    assert board.rows(T, [ALICE]) is None
    assert not board.is_in(T, ALICE)
    with pytest.raises(BoardBehindError):
        put(board, [scored_entry(5, BOB, 1)], after=4)


def test_a_board_whose_time_is_over_goes_at_once(board: Board) -> None:
    put(board, OLD)
    assert board.expire(T, Offset(1), in_ms(-1000))
    assert board.top(T, 10) is None
    assert put(board, NEW).verdicts == [Disposition.APPLIED] * len(NEW)


def test_a_restored_board_does_not_go(board: Board) -> None:
    put(board, OLD)
    assert board.expire(T, Offset(1), in_ms(500))
    assert board.restore(snapshot_of(folded(NEW)))
    time.sleep(0.6)
    put(board, [scored_entry(5, CAROL, 1), scored_entry(6, BOB, 1)])
    assert shown(board.top(T, 10)) == [(1, BOB, 8), (2, ALICE, 5)]


def wait_until(holds: Callable[[], bool], seconds: float = 5) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


# Redis and its relatives: keys, crashes, two at once


def test_keys_of_an_expiring_board_that_are_made_later_go_with_it(client: RedisClient) -> None:
    board = RedisBoard(client, TOMBSTONE_KEY, remembered_ids=2)
    put(board, [scheduled(0)])
    at_ms = in_ms(60_000)
    assert board.expire(T, Offset(0), at_ms)
    numbered = scored_entry(5, ALICE, 1, sequence=4)
    put(board, [joined(1, ALICE), scored_entry(2, ALICE, 5), scored_entry(3, BOB, 5)])
    put(board, [numbered, erased(6, CAROL), scored_entry(7, BOB, 5)])
    assert keys(client) == NINE
    assert {client.pexpiretime(key) for key in NINE} == {at_ms}


def test_a_swap_leaves_no_key_aside_and_none_that_expires(client: RedisClient) -> None:
    board = RedisBoard(client, TOMBSTONE_KEY, remembered_ids=2)
    log = [*NEW, scored_entry(5, BOB, 1, sequence=1), scored_entry(6, BOB, 1)]
    put(board, log)
    assert board.restore(snapshot_of(folded(log, remembered_ids=2)), force=True)
    left = keys(client)
    assert left == NINE - {"{t1}:outbox"}
    assert {client.pttl(key) for key in left} == {-1}
    assert not board.restore(snapshot_of(folded(OLD)))
    assert keys(client) == left


def fails_at(restore: Any, name: str, call: int) -> None:
    """The script `name` of the restore can't be reached at its nth call."""
    script: Script = getattr(restore, name)
    calls = iter(range(1, 1_000))

    def called(*args: Any) -> Any:
        if next(calls) == call:
            raise TransientError("the link was cut")
        return script(*args)

    setattr(restore, name, called)


@pytest.mark.parametrize(("name", "call"), [("_load", 1), ("_load", 3), ("_load", 6), ("_swap", 1)])
def test_a_try_that_breaks_off_leaves_the_old_board_whole_and_vanishes(
    client: RedisClient, name: str, call: int
) -> None:
    board = RedisBoard(client, TOMBSTONE_KEY)
    put(board, OLD)
    before = keys(client)
    restore = board._restore = RedisRestore(client, aside_seconds=0.5)
    fails_at(restore, name, call)
    with pytest.raises(TransientError):
        board.restore(snapshot_of(folded(NEW), chunk=1))
    aside = keys(client) - before
    assert aside or call == 1
    assert all(0 < client.pttl(key) <= 500 for key in aside)
    assert shown(board.top(T, 10)) == SHOWN_OLD
    wait_until(lambda: keys(client) == before)
    board._restore = RedisRestore(client)
    assert board.restore(snapshot_of(folded(NEW)))
    assert shown(board.top(T, 10)) == SHOWN_NEW


def test_a_swap_whose_answer_was_lost_is_known_for_done(client: RedisClient) -> None:
    board = RedisBoard(client, TOMBSTONE_KEY)
    restore = board._restore
    swap = restore._swap

    def twice(*args: Any) -> Any:
        swap(*args)
        put(board, [scored_entry(5, ALICE, 4)])
        return swap(*args)

    restore._swap = twice  # type: ignore[assignment]
    assert board.restore(snapshot_of(folded(NEW)), force=True)
    assert shown(board.top(T, 10)) == [(1, ALICE, 9), (2, BOB, 7)]


class Slow:
    """Chunks that come with pauses between them."""

    def __init__(self, chunks: Sequence[Any], seconds: float) -> None:
        self._chunks = chunks
        self._seconds = seconds

    def __iter__(self) -> Iterator[Any]:
        for chunk in self._chunks:
            yield chunk
            time.sleep(self._seconds)


def test_what_is_loaded_lives_while_the_next_chunk_is_long_in_coming(client: RedisClient) -> None:
    board = RedisBoard(client, TOMBSTONE_KEY)
    board._restore = RedisRestore(client, aside_seconds=0.4)
    snapshot = snapshot_of(folded(NEW), chunk=1)
    assert board.restore(replace(snapshot, rows=Slow(list(snapshot.rows), 0.9)))
    assert shown(board.top(T, 10)) == SHOWN_NEW


@pytest.mark.parametrize("name", ["ranks", "rows", "names"])
def test_a_try_that_lost_what_it_loaded_changes_nothing(client: RedisClient, name: str) -> None:
    """As one whose process stood still until its keys had gone."""
    board = RedisBoard(client, TOMBSTONE_KEY)
    put(board, OLD)
    restore = board._restore
    swap, gone = restore._swap, []

    def late(*args: Any) -> Any:
        aside = [key for key in keys(client) - NINE if key.endswith(f":{name}")]
        gone.append(client.delete(*aside))
        return swap(*args)

    restore._swap = late  # type: ignore[assignment]
    with pytest.raises(TransientError, match=f"{name} is not what was loaded"):
        board.restore(snapshot_of(folded(NEW), chunk=1))
    assert gone == [1]
    assert shown(board.top(T, 10)) == SHOWN_OLD


RESTORES_FOR_EVER = """
import sys, time
from dataclasses import replace
from boards import folded, snapshot_of
from leaderboard.adapters.redis_client import connect
from leaderboard.adapters.redis_restore import RedisRestore
from leaderboard.ports import PlayerRow
from logs import scheduled

def rows():
    for number in range(10**9):
        yield [PlayerRow(f"q{number}", (number, 0), number)]
        time.sleep(0.005)

snapshot = replace(snapshot_of(folded([scheduled(0)])), rows=rows(), players=10**9, offset=10**9)
restore = RedisRestore(connect(sys.argv[1]), aside_seconds=1)
restore(snapshot, force=False, loaded=lambda rows: print("loaded", flush=True))
"""


@pytest.mark.parametrize("kind", list(SERVERS))
def test_a_process_killed_while_it_restores_leaves_nothing(
    kind: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(SERVERS[kind])
    board = make_board(kind, request)
    put(board, OLD)
    client = connect(url)
    before = keys(client)
    program = [sys.executable, "-c", RESTORES_FOR_EVER, url]
    places = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(program, stdout=subprocess.PIPE, env=places) as process:
        assert process.stdout is not None
        for _ in range(20):
            assert process.stdout.readline() == b"loaded\n"
        process.kill()
    ranks = next(key for key in keys(client) - before if key.endswith(":ranks"))
    assert client.zcard(ranks) >= 20
    assert shown(board.top(T, 10)) == SHOWN_OLD
    wait_until(lambda: keys(client) == before)
    assert board.restore(snapshot_of(folded(NEW)))
    client.close()


def test_of_two_restores_at_once_the_further_one_stands(client: RedisClient) -> None:
    crowd = [scheduled(0), *(scored_entry(i, f"p{i % 50}", i) for i in range(1, 400))]
    board = RedisBoard(client, TOMBSTONE_KEY)
    for attempt in range(5):
        client.flushall()
        ends = (300 + attempt, 400)
        results: dict[int, bool] = {}
        start = threading.Barrier(len(ends))

        def one(end: int, results: dict[int, bool], start: threading.Barrier) -> None:
            snapshot = snapshot_of(folded(crowd[:end]), chunk=7)
            start.wait()
            results[end] = board.restore(snapshot)

        threads = [threading.Thread(target=one, args=(end, results, start)) for end in ends]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results[400]
        assert board.top(T, 100) == folded(crowd).top(T, 100)
        assert keys(client) <= NINE


def test_readers_see_the_old_board_or_the_new_one(client: RedisClient) -> None:
    crowd = [scheduled(0), *(scored_entry(i, f"p{i % 50}", i) for i in range(1, 400))]
    old, new = folded(crowd[:200]), folded(crowd)
    board = RedisBoard(client, TOMBSTONE_KEY)
    expected = {199: old.top(T, 100), 399: new.top(T, 100)}
    assert board.restore(snapshot_of(old))
    seen: list[int] = []
    is_over = threading.Event()

    def read() -> None:
        reader = RedisBoard(client)
        while not is_over.is_set():
            view = reader.top(T, 100)
            assert view is not None
            assert view == expected[view.sequence]
            seen.append(view.sequence)

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(20):
        assert board.restore(snapshot_of(new, chunk=10), force=True)
        assert board.restore(snapshot_of(old, chunk=10), force=True)
    is_over.set()
    thread.join()
    assert set(seen) == {199, 399}
