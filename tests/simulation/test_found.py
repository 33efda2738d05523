"""What the simulation has found, each shortened to the steps that show it."""

from __future__ import annotations

import pytest

from leaderboard.model import TournamentId
from simulation.machine import Machine, Producer, replay
from simulation.machine import Steps as Found
from simulation.rest import check_at_rest, come_to_rest

FOUND: dict[str, Found] = {
    # PostgreSQL fails over to a replica that lacks the last transactions (or is set back to a
    # backup) while archive runs: it went on behind the hole, and boards were rebuilt from that.
    "record set back under a running archive": [
        ("restore_database", {"back": False}),
        ("play", {"played": [("t0", "ann", 3), ("t0", "bea", 4)]}),
        ("all_work", {"records": 50, "again": 2}),
        ("restore_database", {"back": True}),
        ("play", {"played": [("t0", "cyd", 5), ("t0", "dot", 6)]}),
        ("all_work", {"records": 50, "again": 2}),
    ],
    # The same with nothing new in the log: only a look at the record itself finds it.
    "record set back while nothing comes": [
        ("restore_database", {"back": False}),
        ("play", {"played": [("t0", "ann", 3), ("t0", "bea", 4)]}),
        ("all_work", {"records": 50, "again": 2}),
        ("restore_database", {"back": True}),
    ],
    # The store is emptied in the middle of a request to forget: the request is asked again.
    "store emptied during an erasure": [
        ("play", {"played": [("t0", "ann", 3), ("t4", "ann", 4)]}),
        ("all_work", {"records": 50, "again": 2}),
        (
            "interrupt",
            {
                "name": "erase",
                "index": 0,
                "records": 1,
                "after": 9,
                "what": "empty",
                "which": 0,
            },
        ),
    ],
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(name: str) -> None:
    replay(FOUND[name])


def test_board_made_anew_after_an_erasure_tells_no_changes_of_before() -> None:
    """A limit, and no more than this: on-wager is behind the record, an erasure lies between them,
    and the board is lost. It is made as it is now, so that nobody is revived; what had changed in
    between is on the board and in the record, and was never emitted."""
    machine = Machine()
    world = machine.world
    try:
        machine.begin()
        _erased_while_on_wager_is_behind(machine, machine.producer)
        world.fail_over(0)
        world.fail_over(1)
        come_to_rest(world)
        check_at_rest(world)
        name = TournamentId("t0")
        assert world.seen.leapt[name] > 0
        assert world.seen.emitted[name] < len(world.oracle.changes[name])
    finally:
        world.close()


def _erased_while_on_wager_is_behind(machine: Machine, producer: Producer) -> None:
    machine.all_work(records=50, again=3)
    producer.score("t0", "ann", 5, 0)
    machine.all_work(records=50, again=3)
    producer.score("t0", "bea", 7, 0)
    machine.erase(player_id="ann")
    for _ in range(3):
        machine.work(name="archive", index=0, records=50)
