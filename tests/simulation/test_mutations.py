"""The simulation can fail: with a protection switched off it finds what that protects from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import pytest

from leaderboard.adapters import sql_archive, sql_fold, sql_positions
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.errors import TransientError
from leaderboard.fold import LogEntry
from leaderboard.hosts.kafka import Batch, KafkaHost
from leaderboard.model import Offset, Place, TournamentId
from leaderboard.ports import BatchApplied
from simulation.__main__ import simulate
from simulation.machine import Machine, Steps, failure
from simulation.test_found import FOUND
from simulation.world import function

STEPS = 10_000
"""What CI simulates is enough to find any of these."""
Mutations = dict[str, Any]


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_without_looking_at_the_record_a_hole_in_it_stays() -> None:
    class Mutated(Machine):
        mutations: ClassVar[Mutations] = {
            "patches": [(function("archive").Archivist, "_check_stands", lambda *_: None)]
        }

    for steps in (value for name, value in FOUND.items() if name.startswith("record set back")):
        assert failure(steps) is None
        assert failure(steps, Mutated) is not None


def test_without_frames_before_the_commit_a_player_is_not_told() -> None:
    """Two changes within 20 ms: the frame of the second waits, and its process is told to stop."""
    owner = function("on-rank-change").OnRankChange

    class Mutated(Machine):
        mutations: ClassVar[Mutations] = {
            "patches": [(owner, "safe", lambda _self, _place, next_offset: next_offset)]
        }

    steps: Steps = [
        ("all_work", {"records": 50, "again": 3}),
        ("connect", {"tournament_id": "t0", "player_id": "ann"}),
        ("play", {"played": [("t0", "bea", 1), ("t0", "ann", 5)]}),
        ("work", {"name": "on-wager", "index": 0, "records": 50}),
        ("work", {"name": "on-rank-change", "index": 0, "records": 1}),
        ("work", {"name": "on-rank-change", "index": 0, "records": 1}),
        ("processes", {"name": "on-rank-change", "index": 0, "how": "stop"}),
    ]
    assert failure(steps) is None
    assert failure(steps, Mutated) == "AssertionError: a player was not told"


class CountsAgain(MemoryBoard):
    """Compares no offsets: what is read again is applied again."""

    def apply(
        self,
        tournament_id: TournamentId,
        log_id: str,
        after: Offset | None,
        entries: Sequence[LogEntry],
        confirmed: Offset | None,
        told: Offset | None = None,
    ) -> BatchApplied:
        if (kept := self._kept.get(tournament_id)) is not None and entries:
            kept.offset = Offset(-1)
        return super().apply(tournament_id, log_id, None, entries, confirmed, told)


class TellsOnce(MemoryBoard):
    """Keeps no outbox: what a call brought forth is told by that call alone."""

    def apply(
        self,
        tournament_id: TournamentId,
        log_id: str,
        after: Offset | None,
        entries: Sequence[LogEntry],
        confirmed: Offset | None,
        told: Offset | None = None,
    ) -> BatchApplied:
        applied = super().apply(tournament_id, log_id, after, entries, confirmed, told)
        if (kept := self._kept.get(tournament_id)) is not None:
            kept.changes.clear()
        return applied


def commits_first() -> Mutations:
    read = KafkaHost._read

    def committed(host: KafkaHost, place: Place, log_id: str, messages: Sequence[Any]) -> Batch:
        batch = read(host, place, log_id, messages)
        host._group.done(place, batch.next_offset)
        host._group.commit(now=True)
        return batch

    return {"patches": [(KafkaHost, "_read", committed)]}


def buries_if_it_can() -> Mutations:
    bury = KafkaHost._bury

    def perhaps(host: KafkaHost, batch: Batch, refused: Sequence[Any]) -> None:
        try:
            bury(host, batch, refused)
        except TransientError:
            return

    return {"patches": [(KafkaHost, "_bury", perhaps)]}


def test_without_dead_letters_before_the_commit_one_goes_missing() -> None:
    """Kafka does not answer somewhere on the way of an event that nobody can read."""

    class Mutated(Machine):
        mutations: ClassVar[Mutations] = buries_if_it_can()

    def steps(after: int) -> Steps:
        cut = {"name": "on-wager", "index": 0, "records": 5, "what": "cut", "which": 0}
        return [
            ("all_work", {"records": 50, "again": 3}),
            ("garbage", {"tournament_id": "t0", "gap": 0}),
            ("interrupt", {**cut, "after": after}),
        ]

    moments = range(30)
    assert {failure(steps(after)) for after in moments} == {None}
    assert "AssertionError: committed before the dead lett" in {
        failure(steps(after), Mutated) for after in moments
    }


def writes_what_it_has() -> Mutations:
    take = sql_positions.take_position

    def always(*given: Any) -> Offset:
        take(*given)
        return Offset(0)

    return {"patches": [(sql_fold, "take_position", always)]}


def looks_around_never() -> Mutations:
    return {"patches": [(function("on-wager").Losses, "look", lambda *_: 1.0)]}


MUTATIONS: dict[str, Callable[[], Mutations]] = {
    "comparison of offsets": lambda: {"board": CountsAgain},
    "outbox in the board": lambda: {"board": TellsOnce},
    "effects before the commit": commits_first,
    "guard of the record's place": writes_what_it_has,
    "looking around while nothing comes": looks_around_never,
}


SEEDS: dict[str, int] = {
    "comparison of offsets": 6,
    "outbox in the board": 4,
    "effects before the commit": 4,
    "guard of the record's place": 5,
    "looking around while nothing comes": 5,
}
"""Whose simulation comes to it soon: others take some thousand steps, and minutes."""


@pytest.mark.parametrize("protection", MUTATIONS)
def test_without_a_protection_the_simulation_finds_a_counterexample(protection: str) -> None:
    class Mutated(Machine):
        mutations: ClassVar[Mutations] = MUTATIONS[protection]()

    steps, found = simulate(Mutated, SEEDS[protection], STEPS)
    print(f"{protection}: after {steps} steps: {failure(found, Mutated)}")
    assert found, f"{steps} steps show nothing without {protection}"
    assert failure(found) is None, "the same steps fail with it, too"


def test_without_marks_in_the_record_what_comes_late_names_who_was_forgotten() -> None:
    class Mutated(Machine):
        mutations: ClassVar[dict[str, Any]] = {
            "patches": [(sql_archive, "marked", lambda *_: frozenset())]
        }

    for steps in (value for name, value in FOUND.items() if name.startswith("late")):
        assert failure(steps) is None
        assert "knows ann" in str(failure(steps, Mutated))


def test_without_a_look_at_the_record_its_requests_stay_open() -> None:
    class Mutated(Machine):
        mutations: ClassVar[dict[str, Any]] = {
            "patches": [(function("erase"), "_take_up", lambda _ports: None)]
        }

    for steps in (value for name, value in FOUND.items() if name.startswith("request")):
        assert failure(steps) is None
        assert failure(steps, Mutated) == "AssertionError: the record has the request of "


def test_without_a_second_witness_a_lost_request_lets_the_player_in() -> None:
    class Mutated(Machine):
        mutations: ClassVar[dict[str, Any]] = {
            "patches": [
                (
                    function("on-connect"),
                    "is_forgotten",
                    lambda seen, _: seen.is_asked,
                )
            ]
        }

    for steps in (value for name, value in FOUND.items() if name.startswith("who was forgotten")):
        assert failure(steps) is None
        assert "gets in" in str(failure(steps, Mutated))
