"""The simulation can fail: with a protection switched off it finds what that protects from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
from hypothesis import Phase

from leaderboard.adapters import sql_archive, sql_fold
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.hosts.kafka_group import Membership
from leaderboard.model import Offset, TournamentId
from simulation.machine import Machine, failure
from simulation.test_found import FOUND
from simulation.test_simulation import run
from simulation.world import function


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class BlindBoard(MemoryBoard):
    """Compares no offsets: whatever it is given is new to it."""

    def apply(self, tournament_id: TournamentId, *rest: Any) -> Any:
        log_id, _, entries, confirmed = rest
        kept = self._kept.get(tournament_id)
        if kept is None or not entries:
            return super().apply(tournament_id, log_id, None, entries, confirmed)
        stood, kept.offset = kept.offset, Offset(-1)
        applied = super().apply(tournament_id, log_id, None, entries, confirmed)
        kept.offset = max(kept.offset, stood)
        return applied


class ForgetfulBoard(MemoryBoard):
    """Keeps no outbox: what a call brings forth is told once."""

    def apply(self, tournament_id: TournamentId, *rest: Any) -> Any:
        if tournament_id in self._kept:
            self._kept[tournament_id].changes.clear()
        return super().apply(tournament_id, *rest)


def unguarded(*_: Any) -> Offset:
    """The record takes whatever it is given, however often."""
    return Offset(0)


_take = Membership.take


def commit_first(self: Membership, place: Any, limit: int) -> Sequence[Any]:
    """Offsets are committed when records are taken, before their effects."""
    messages = _take(self, place, limit)
    last = messages[-1].offset()
    assert last is not None
    self.done(place, Offset(last + 1))
    self.commit(now=True)
    return messages


MUTATIONS: dict[str, dict[str, Any]] = {
    "offset comparison": {"board": BlindBoard},
    "outbox in the board": {"board": ForgetfulBoard},
    "sequence guard in SQL": {
        "patches": [
            (sql_fold, "take_position", unguarded),
            (sql_archive, "take_position", unguarded),
        ]
    },
    "commit after effects": {"patches": [(Membership, "take", commit_first)]},
}


@pytest.mark.parametrize("protection", MUTATIONS)
def test_without_it_the_simulation_finds_a_counterexample(protection: str) -> None:
    class Mutated(Machine):
        mutations: ClassVar[dict[str, Any]] = MUTATIONS[protection]

    with pytest.raises(Exception):  # noqa: B017 - whatever shows it
        run(Mutated, 7, runs=60, steps=60, phases=(Phase.generate,))


def test_without_looking_at_the_record_a_hole_in_it_stays() -> None:
    class Mutated(Machine):
        mutations: ClassVar[dict[str, Any]] = {
            "patches": [(function("archive").Archivist, "_check_stands", lambda *_: None)]
        }

    for steps in (value for name, value in FOUND.items() if name.startswith("record set back")):
        assert failure(steps) is None
        assert failure(steps, Mutated) is not None
