"""What the simulation has found, each shortened to the steps that show it."""

from __future__ import annotations

import pytest

from leaderboard.model import TournamentId
from simulation.machine import DAY_SECONDS, Machine, Producer, replay
from simulation.machine import Steps as Found
from simulation.rest import check_at_rest, come_to_rest
from simulation.store import SHARDS

FORGOTTEN: Found = [
    ("play", {"played": [("t0", "ann", 3), ("t0", "bea", 4)]}),
    ("all_work", {"records": 50, "again": 2}),
    # Asked again when all have done their part: a request that is done tells nobody anything more.
    ("erase", {"player_id": "ann"}),
    ("all_work", {"records": 50, "again": 2}),
    ("erase", {"player_id": "ann"}),
    ("all_work", {"records": 50, "again": 2}),
    # Its keys are destroyed when the audit log has all that needs them; then it is found done.
    ("wait", {"seconds": 5.0}),
    ("all_work", {"records": 50, "again": 2}),
    ("wait", {"seconds": 5.0}),
    ("all_work", {"records": 50, "again": 2}),
    ("erase", {"player_id": "ann"}),
    ("all_work", {"records": 50, "again": 2}),
]
"""The board of `t0` is on the second shard, the request to forget `ann` on the first."""

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
    # Set back to before a tournament was scheduled, while archive compares that very tournament
    # with its board: the comparison ended the process.
    "record set back under the comparison of a tournament it has forgotten": [
        ("restore_database", {"back": False}),
        ("all_work", {"records": 5, "again": 2}),
        ("restore_database", {"back": True}),
    ],
    # on-rank-change took a board that was being rebuilt for one that had been let go: when it
    # came back with its tournament ended, nobody showed the final board.
    "boards lost just before a tournament ends": [
        ("all_work", {"records": 8, "again": 4}),
        ("play", {"played": [("t1", "ann", 2), ("t1", "cyd", 9)]}),
        ("two_owners", {"name": "on-wager", "index": 0, "learns": False}),
        ("work", {"name": "on-wager", "index": 1, "records": 5}),
        ("decide", {"tournament_id": "t1", "player_id": "bea", "what": 0, "amount": -1}),
        ("lose", {"shard": SHARDS}),
    ],
    # The board was let go, and the gateway still gave its last frame, with the erased player in
    # it, to whoever opened the page of the past tournament.
    "player erased a day after the end": [
        ("score", {"tournament_id": "t1", "player_id": "cyd", "amount": 7, "how": 0}),
        ("decide", {"tournament_id": "t1", "player_id": "bea", "what": 0, "amount": 7}),
        ("all_work", {"records": 50, "again": 4}),
        ("wait", {"seconds": DAY_SECONDS}),
        ("all_work", {"records": 50, "again": 2}),
        ("erase", {"player_id": "cyd"}),
    ],
    # Everything at once: the log has dropped what was read, the store is emptied, the record is
    # away, and the schedule comes again: on-wager began a new board with it.
    "schedule repeated to an emptied store while nobody knows better": [
        ("all_work", {"records": 50, "again": 3}),
        ("lose", {"shard": SHARDS}),
        ("take_away", {"what": "record", "seconds": 20.0}),
        ("processes", {"name": "on-wager", "index": 0, "how": "kill"}),
        ("drop_oldest", {"which": 0}),
        ("drop_oldest", {"which": 1}),
        ("repeat", {"back": 1}),
        ("work", {"name": "on-wager", "index": 0, "records": 5}),
        ("work", {"name": "on-wager", "index": 0, "records": 5}),
    ],
    # Nothing outside of tournaments knew that somebody had been forgotten: what named them and came
    # late stood in the record until its retention was over.
    "late dead letter of who was forgotten": [
        *FORGOTTEN,
        ("score", {"tournament_id": "t0", "player_id": "ann", "amount": 5, "how": 9}),
    ],
    "late attempt of who was forgotten": [
        *FORGOTTEN,
        ("late_attempt", {"tournament_id": "t0", "player_id": "ann"}),
    ],
    # A request is one key: lost with its shard alone, on-connect let the player in again.
    "who was forgotten, the request lost with its shard": [
        *FORGOTTEN,
        ("lose", {"shard": 0}),
        ("connect", {"tournament_id": "t0", "player_id": "ann"}),
    ],
    "who was forgotten, request and boards lost": [
        *FORGOTTEN,
        ("lose", {"shard": SHARDS}),
        ("connect", {"tournament_id": "t0", "player_id": "ann"}),
    ],
    # Not mended but judged: nobody can tell that the tournament exists, because its board has been
    # let go and the record is away. Its dead letter is one too many; to wait would stop everybody.
    "event of a past tournament while the record is away": [
        ("decide", {"tournament_id": "t0", "player_id": "dot", "what": 0, "amount": 7}),
        ("all_work", {"records": 50, "again": 3}),
        ("wait", {"seconds": DAY_SECONDS}),
        ("all_work", {"records": 50, "again": 1}),
        ("take_away", {"what": "record", "seconds": 20.0}),
        ("repeat", {"back": 0}),
        ("all_work", {"records": 50, "again": 4}),
    ],
    # The record reads of a request once more that was done before: it has whom it is about again,
    # until erase looks after what only the record has open.
    "request open again in a record that was set back": [
        *FORGOTTEN[:2],
        ("restore_database", {"back": False}),
        *FORGOTTEN[2:],
        ("restore_database", {"back": True}),
    ],
    # Nobody asks again: it is in the log, and ends by itself.
    "request that the store lost and the record has open": [
        *FORGOTTEN[:4],
        ("lose", {"shard": SHARDS}),
    ],
    # The list of what is open is one key: lost without the request, nobody went on with that.
    "request that is not listed any more": [
        ("erase", {"player_id": "eve"}),
        ("lose", {"shard": 0}),
    ],
    # The same of one that was done and asked again: the record had it closed.
    "request that was asked again, and is not listed any more": [
        ("erase", {"player_id": "dot"}),
        ("all_work", {"records": 1, "again": 3}),
        ("look_after", {}),
        ("erase", {"player_id": "dot"}),
        ("lose", {"shard": 0}),
    ],
    # The record had lost how far the audit log is, and archive took it for told: keys that wait for
    # that were never destroyed.
    "record set back before an erased player's keys are destroyed": [
        ("restore_database", {"back": False}),
        ("score", {"tournament_id": "t0", "player_id": "eve", "amount": 1, "how": 12}),
        ("all_work", {"records": 1, "again": 2}),
        ("erase", {"player_id": "bea"}),
        ("all_work", {"records": 8, "again": 4}),
        ("restore_database", {"back": True}),
    ],
    # A stranger to a tournament whose board had just been let go, and was still in the list: it was
    # noted and never told, so that even who asked again had a request that never ended.
    "stranger forgotten while a board is let go": [
        ("schedule", {"tournament_id": "t4", "how": 2}),
        ("decide", {"tournament_id": "t4", "player_id": "eve", "what": 0, "amount": -3}),
        ("all_work", {"records": 50, "again": 3}),
        ("all_work", {"records": 1, "again": 4}),
        ("wait", {"seconds": DAY_SECONDS}),
        ("erase", {"player_id": "eve"}),
    ],
    # When the request came nobody had read of the tournament, and nobody told it afterwards.
    "tournament that was not read yet when somebody was forgotten": [
        ("erase", {"player_id": "dot"}),
        ("play", {"played": [("t0", "ann", 7), ("t0", "eve", 9), ("t1", "cyd", 8)]}),
        ("play", {"played": [("t6", "bea", 7), ("t6", "eve", 8)]}),
        ("erase", {"player_id": "ann"}),
    ],
    # What on-wager put back of a request to forget said that the board was done: nobody sent the
    # last frame of an ended one anew, and it went on showing the erased player.
    "store emptied between an erasure and the last frame": [
        ("all_work", {"records": 50, "again": 3}),
        ("play", {"played": [("t0", "dot", 4), ("t1", "dot", 3)]}),
        ("decide", {"tournament_id": "t0", "player_id": "eve", "what": 0, "amount": 9}),
        ("erase", {"player_id": "dot"}),
        ("lose", {"shard": SHARDS}),
    ],
    # The board of a listed tournament was lost as the request came, and the record had not read of
    # it yet: it was noted, never told, and the request stayed open.
    "board lost under a request, before the record knows the tournament": [
        (
            "interrupt",
            {"name": "on-wager", "index": 3, "records": 1, "after": 9, "what": "same", "which": 7},
        ),
        (
            "interrupt",
            {
                "name": "erase",
                "index": 0,
                "records": 1,
                "after": 5,
                "what": "fail_over",
                "which": 3,
            },
        ),
    ],
    # Not mended but judged: who was told that it is under way asks again while Kafka is away, and
    # gets an error. What that began waits for who repeats it, as the error says; nobody else does.
    "Kafka away as a request is asked again": [
        ("erase", {"player_id": "eve"}),
        (
            "interrupt",
            {
                "name": "archive",
                "index": 7,
                "records": 2,
                "after": 25,
                "what": "cut_off",
                "which": 2,
            },
        ),
        ("look_after", {}),
        ("take_away", {"what": "kafka", "seconds": 20.0}),
        ("erase", {"player_id": "eve"}),
    ],
    # An erasure after the end of someone who was never on the board changes its
    # sequence and no row, and no frame is sent for it.
    "erasure of a stranger after the end": [
        ("schedule", {"tournament_id": "t4", "how": 0}),
        ("decide", {"tournament_id": "t4", "player_id": "bea", "what": 1, "amount": 0}),
        ("erase", {"player_id": "ann"}),
        ("all_work", {"records": 50, "again": 4}),
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
