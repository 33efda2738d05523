"""on-wager killed, cut off and robbed of its boards at every step: the end is always the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis

import logs
from consuming import (
    REMEMBERED,
    TOURNAMENTS,
    Outcome,
    Ports,
    Reader,
    lose_one_board,
    maker,
    memory_ports,
    mixed_log,
    outcome,
    redis_ports,
    restore,
    snapshot,
    undisturbed,
)
from hosting import Hosted
from leaderboard.adapters import redis_board
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.redis_scripts import Script
from leaderboard.events import WAGERS
from leaderboard.fold import LogEntry
from leaderboard.hosts.kafka import Assignment, ReplayError
from leaderboard.model import Offset, Place, TournamentId
from logs import LOG, TOMBSTONE_KEY
from ports import Countdown


def interrupted_at(
    step: int, on_wager: Hosted, entries: Sequence[LogEntry], ports: Ports, **how: Any
) -> tuple[bool, Outcome]:
    """Whether the interruption bit, and how it ended."""
    countdown = Countdown(step)
    reader = Reader(entries, maker(on_wager, ports, countdown), seed=step)
    reader.run(**how)
    return countdown.bit, outcome(reader, ports)


# --- crashes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("survives", [False, True], ids=["killed", "retried"])
@pytest.mark.parametrize("seed", range(6))
def test_interrupted_anywhere_it_ends_as_if_nothing_had_been(
    on_wager: Hosted, seed: int, survives: bool
) -> None:
    entries = mixed_log(seed)
    expected = undisturbed(on_wager, entries)
    bitten = 0
    for step in range(1, 10_000):
        bit, found = interrupted_at(step, on_wager, entries, memory_ports(), survives=survives)
        assert found == expected, f"interrupted at step {step}"
        bitten += bit
        if not bit:
            break
    assert bitten > 50


@pytest.mark.parametrize("seed", range(2))
def test_interrupted_anywhere_it_ends_the_same_on_redis(
    on_wager: Hosted, client: redis.Redis, seed: int
) -> None:
    entries = mixed_log(seed)
    expected = undisturbed(on_wager, entries)
    for step in range(1, 10_000, 5):
        client.flushdb()
        bit, found = interrupted_at(step, on_wager, entries, redis_ports(client))
        assert found == expected, f"interrupted at step {step}"
        if not bit:
            break
    assert step > 50


@pytest.mark.parametrize("seed", range(20))
def test_two_owners_at_once_do_no_harm(on_wager: Hosted, seed: int) -> None:
    entries = mixed_log(seed)
    expected = undisturbed(on_wager, entries)
    ports, chance = memory_ports(), random.Random(seed)
    readers = [Reader(entries, maker(on_wager, ports), seed=seed + i) for i in (0, 100)]
    while not all(reader.is_done() for reader in readers):
        chance.choice(readers).step()
    found = outcome(readers[0], ports)
    found.dead_letters |= readers[1].dead_letters
    assert found == expected


# --- lost boards -------------------------------------------------------------------------------


class Struck:
    """Does something to the store before the n-th call of any port."""

    def __init__(self, at: int, strike: Callable[[], object]) -> None:
        self.left = at
        self.bit = False
        self._strike = strike

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.bit = True
            self._strike()


def check_replayed(found: Outcome, expected: Outcome) -> None:
    """Equal, but that an event may have been refused while its board was away for a moment."""
    assert found.boards == expected.boards
    assert found.changes == expected.changes
    assert found.directory == expected.directory
    assert found.dead_letters.items() >= expected.dead_letters.items()
    surplus = found.dead_letters.keys() - expected.dead_letters.keys()
    assert {found.dead_letters[offset] for offset in surplus} <= {"unknown_tournament"}


@pytest.mark.parametrize("seed", range(2))
def test_emptied_at_any_moment_while_it_runs_the_boards_come_back(
    on_wager: Hosted, client: redis.Redis, seed: int
) -> None:
    entries = mixed_log(seed)
    expected = undisturbed(on_wager, entries)
    bitten = 0
    for at in range(1, 10_000, 7):
        client.flushdb()
        ports = redis_ports(client)
        struck: Any = Struck(at, client.flushdb)
        reader = Reader(entries, maker(on_wager, ports), seed=at)
        reader.step()
        reader.step()
        # From the second batch on: before it there is no witness that could be missed.
        reader._make = maker(on_wager, ports, struck)
        reader.restart()
        reader.run()
        # A loss after the last batch is found at the next start, one at its end at that after it.
        for _ in range(2):
            reader.restart()
            reader.run()
        assert min(reader.replays, default=0) == 0
        check_replayed(outcome(reader, ports), expected)
        bitten += bool(reader.replays)
        if not struck.bit:
            break
    assert bitten > 5


@pytest.mark.parametrize("seed", range(5))
def test_emptied_while_nobody_runs_the_boards_come_back(
    on_wager: Hosted, client: redis.Redis, seed: int
) -> None:
    entries = mixed_log(seed)
    expected = undisturbed(on_wager, entries)
    ports = redis_ports(client)
    reader = Reader(entries, maker(on_wager, ports), seed=seed)
    for _ in range(4):
        reader.step()
    client.flushdb()
    reader.restart()
    reader.run()
    assert reader.replays == [0]
    found = outcome(reader, ports)
    assert found == expected


def run_with_lost_tail(
    on_wager: Hosted,
    client: redis.Redis,
    entries: Sequence[LogEntry],
    taken_at: int,
    lost_at: int,
    of: type | None = None,
) -> tuple[Reader, Ports, bool]:
    """Between two calls the store falls back to what it held some calls before."""
    client.flushdb()
    ports = redis_ports(client)
    kept: dict[bytes, Any] = {}
    takes = Struck(taken_at, lambda: kept.update(snapshot(client)))
    loses = Struck(lost_at, lambda: restore(client, kept))

    class Both:
        def step(self) -> None:
            takes.step()
            loses.step()

    both: Any = Both()
    reader = Reader(entries, maker(on_wager, ports, both, of), seed=taken_at)
    reader.run()
    reader.restart()
    reader.run()
    return reader, ports, loses.bit


@pytest.mark.parametrize("seed", range(3))
def test_what_the_store_lost_at_its_end_is_read_again(
    on_wager: Hosted, client: redis.Redis, seed: int
) -> None:
    """Wherever the cut falls, also between two boards of one batch."""
    entries = mixed_log(seed)
    expected = undisturbed(on_wager, entries)
    chance = random.Random(seed)
    replays = 0
    for _ in range(25):
        taken_at = chance.randint(40, 120)
        lost_at = taken_at + chance.randint(1, 60)
        reader, ports, bit = run_with_lost_tail(on_wager, client, entries, taken_at, lost_at)
        assert bit
        check_replayed(outcome(reader, ports), expected)
        replays += bool(reader.replays)
    assert replays > 15


def test_a_tournament_new_to_the_process_is_not_taken_for_one_that_never_was(
    on_wager: Hosted, client: redis.Redis
) -> None:
    assert lost_while_unknown(on_wager, client, on_wager.main.Losses) == {}


def lost_while_unknown(on_wager: Hosted, client: redis.Redis, of: type) -> dict[int, str]:
    """Dead letters, when the boards go while a process runs that has not met one of them yet."""
    entries = [
        logs.scheduled(0, "t1"),
        logs.scheduled(1, "t2"),
        logs.scored(2, "p1", 5, tournament_id="t1"),
        logs.scored(3, "p1", 7, tournament_id="t2"),
    ]
    ports = redis_ports(client)
    reader = Reader(entries[:3], maker(on_wager, ports, of=of), seed=1)
    reader.run()
    reader.restart()
    reader.step()
    client.flushdb()
    reader.entries = entries
    reader.run()
    view = ports.board.top(TOURNAMENTS[1], 10)
    assert view is not None
    assert [row.score.score for row in view.standings] == [7]
    return reader.dead_letters


# --- one shard of a cluster loses its tail, the witness lies on another ---------------------------


def with_one_board_behind(
    on_wager: Hosted, client: redis.Redis, entries: Sequence[LogEntry], of: type | None = None
) -> tuple[Reader, Ports]:
    """A process that has done its work, and then the board of t2 falls back by some events."""
    client.flushdb()
    ports = redis_ports(client)
    reader = Reader(entries, maker(on_wager, ports, of=of), seed=1)
    for _ in range(4):
        reader.step()
    kept = snapshot(client)
    reader.run()
    before = client.hget("{t2}:board", "offset")
    lose_one_board(client, "t2", kept)
    after = client.hget("{t2}:board", "offset")
    assert before != after, "nothing was lost"
    return reader, ports


def test_quiet_board_that_fell_back_alone_is_found_by_the_next_process(
    on_wager: Hosted, client: redis.Redis
) -> None:
    entries = mixed_log(3)
    expected = undisturbed(on_wager, entries)
    reader, ports = with_one_board_behind(on_wager, client, entries)
    reader.restart()
    reader.run()
    assert len(reader.replays) == 1
    assert reader.replays[0] > 0
    check_replayed(outcome(reader, ports), expected)


def test_quiet_board_that_fell_back_alone_is_found_by_the_running_process(
    on_wager: Hosted, client: redis.Redis
) -> None:
    entries = mixed_log(3)
    expected = undisturbed(on_wager, entries)
    reader, ports = with_one_board_behind(on_wager, client, entries)
    with pytest.raises(ReplayError) as found:
        reader.function.tick()
    assert found.value.place == Place(WAGERS, 0)
    reader._replay(found.value.offset or 0)
    reader.run()
    check_replayed(outcome(reader, ports), expected)


def test_list_that_has_lost_a_tournament_gets_it_back_while_nothing_happens(
    on_wager: Hosted, client: redis.Redis
) -> None:
    ports = redis_ports(client)
    reader = Reader(mixed_log(3), maker(on_wager, ports), seed=1)
    reader.run()
    shown = ports.directory.all()
    client.delete("tournaments")
    reader.function.tick()
    assert ports.directory.all() == shown


def test_board_that_was_let_go_is_not_missed(on_wager: Hosted, client: redis.Redis) -> None:
    ports = redis_ports(client)
    reader = Reader(mixed_log(3), maker(on_wager, ports), seed=1)
    reader.run()
    ports.progress.forget(LOG, 0, [TOURNAMENTS[1]])
    lose_one_board(client, "t2", {})
    reader.restart()
    reader.run()
    reader.function.tick()
    assert reader.replays == []


def test_without_the_witness_of_each_board_a_board_that_fell_back_alone_stays_wrong(
    on_wager: Hosted, client: redis.Redis
) -> None:
    blind = type("Blind", (on_wager.main.Losses,), {"_lost": lambda *_: {}})
    entries = mixed_log(3)
    expected = undisturbed(on_wager, entries)
    reader, ports = with_one_board_behind(on_wager, client, entries, blind)
    reader.restart()
    reader.run()
    assert reader.replays == []
    assert outcome(reader, ports).boards != expected.boards


# --- the tests can fail ------------------------------------------------------------------------


class ForgetfulBoard(MemoryBoard):
    """Keeps no outbox: what a call brings forth is told once."""

    def apply(self, tournament_id: TournamentId, *rest: Any) -> Any:
        if tournament_id in self._kept:
            self._kept[tournament_id].changes.clear()
        return super().apply(tournament_id, *rest)


class BlindBoard(MemoryBoard):
    """Compares no offsets: whatever it is given is new to it."""

    def apply(self, tournament_id: TournamentId, *rest: Any) -> Any:
        if tournament_id in self._kept:
            self._kept[tournament_id].offset = Offset(-1)
        log_id, _, entries, *confirmed = rest
        return super().apply(tournament_id, log_id, None, entries, *confirmed)


@pytest.mark.parametrize("board", [ForgetfulBoard, BlindBoard])
def test_without_outbox_or_offsets_a_crash_shows(on_wager: Hosted, board: type) -> None:
    entries = mixed_log(1)
    expected = undisturbed(on_wager, entries)
    endings = []
    for step in range(20, 60):
        ports = memory_ports()
        ports.board = board(TOMBSTONE_KEY, REMEMBERED)
        _, found = interrupted_at(step, on_wager, entries, ports)
        endings.append(found == expected)
    assert not all(endings)


def test_without_the_script_comparing_offsets_a_crash_shows(
    on_wager: Hosted, client: redis.Redis
) -> None:
    entries = mixed_log(1)
    expected = undisturbed(on_wager, entries)
    compares = "STEPS[(first - 1) * STRIDE + 1] <= before"
    assert redis_board._APPLY.count(compares) == 1
    endings = []
    for step in range(20, 60, 3):
        client.flushdb()
        ports = redis_ports(client)
        script = Script(client, redis_board._APPLY.replace(compares, "false"), read_only=False)
        ports.board._apply = script  # type: ignore[attr-defined]
        _, found = interrupted_at(step, on_wager, entries, ports)
        endings.append(found.boards == expected.boards and found.changes == expected.changes)
    assert not all(endings)


def forgetful(self: Any, assignment: Assignment) -> tuple[Any, Offset | None]:
    """`take_over` that knows of no board."""
    owned, start = type(self).__mro__[1].take_over(self, assignment)  # type: ignore[attr-defined]
    owned.applied.clear()
    return owned, start


def test_without_the_witness_a_lost_board_is_taken_for_one_that_never_was(
    on_wager: Hosted, client: redis.Redis
) -> None:
    blind = type(
        "Blind",
        (on_wager.main.Losses,),
        {"check_witness": lambda *_: None, "_lost": lambda *_: {}, "take_over": forgetful},
    )
    assert lost_while_unknown(on_wager, client, blind) == {3: "unknown_tournament"}


def test_without_asking_all_boards_where_they_stand_a_cut_batch_shows(
    on_wager: Hosted, client: redis.Redis
) -> None:
    def only_one_boards_word(self: Any, owned: Any) -> ReplayError:
        view = self._board.top(next(iter(owned.applied)), 1)
        owned.begin_again(None, {}, owned.low)
        return ReplayError(None if view is None else Offset(view.sequence + 1), owned.place)

    hasty = type("Hasty", (on_wager.main.Losses,), {"replay": only_one_boards_word})
    entries = mixed_log(1)
    expected = undisturbed(on_wager, entries)
    endings = []
    for taken_at in range(40, 140):
        lost_at = taken_at + 30
        reader, ports, _ = run_with_lost_tail(on_wager, client, entries, taken_at, lost_at, hasty)
        endings.append(outcome(reader, ports).boards == expected.boards)
    assert not all(endings)
