"""What every `Board` guarantees, over each of its adapters: in memory, Redis, Valkey, and a real
Redis Cluster of three primaries."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from boards import OPERATORS, SERVERS, make_board, put, shown
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import connect
from leaderboard.errors import BoardBehindError, ForeignLogError, Refusal
from leaderboard.fold import LogEntry
from leaderboard.model import Disposition, Offset, PlayerId, TournamentId
from leaderboard.ports import Board
from logs import (
    ALICE,
    BOB,
    CAROL,
    LOG,
    START_MS,
    TOMBSTONE_KEY,
    T,
    adjusted,
    disqualified,
    ended,
    erased,
    joined,
    random_log,
    scheduled,
    scored,
    wagered,
)

APPLIED = Disposition.APPLIED


def test_first_schedule_makes_the_board(board: Board) -> None:
    assert board.top(T, 10) is None
    applied = put(board, [scheduled(4)])
    assert (applied.offset, applied.sequence, applied.terms_changed) == (4, 4, True)
    assert shown(board.top(T, 10)) == []


def test_events_before_the_first_schedule_are_refused_and_make_no_board(board: Board) -> None:
    applied = put(board, [scored(1, ALICE, 5)])
    assert applied.verdicts == [Refusal.UNKNOWN_TOURNAMENT]
    assert applied.terms is None
    assert board.top(T, 10) is None
    again = put(board, [scored(1, ALICE, 5), scheduled(2), scored(3, BOB, 5)])
    assert again.verdicts == [Refusal.UNKNOWN_TOURNAMENT, APPLIED, APPLIED]
    read_again = put(board, [scored(1, ALICE, 5), scheduled(2)])
    assert read_again.verdicts == [Refusal.UNKNOWN_TOURNAMENT, Disposition.SKIPPED]


def test_scores_add_up_and_rank(board: Board) -> None:
    put(board, [scheduled(0), scored(1, ALICE, 5), scored(2, BOB, 7), scored(3, ALICE, 9)])
    assert shown(board.top(T, 10)) == [(1, ALICE, 14), (2, BOB, 7)]


def test_who_reached_a_score_first_ranks_higher(board: Board) -> None:
    put(board, [scheduled(0), scored(1, BOB, 5), scored(2, ALICE, 5), scored(3, CAROL, 5)])
    assert shown(board.top(T, 10)) == [(1, BOB, 5), (2, ALICE, 5), (3, CAROL, 5)]


def test_who_reached_a_score_first_ranks_higher_in_ascending_order_too(board: Board) -> None:
    log = [scored(1, BOB, 5), scored(2, ALICE, 5), scored(3, CAROL, 4)]
    put(board, [scheduled(0, order="ascending"), *log])
    assert shown(board.top(T, 10)) == [(1, CAROL, 4), (2, BOB, 5), (3, ALICE, 5)]


def test_points_of_zero_make_a_standing_and_keep_its_place(board: Board) -> None:
    put(board, [scheduled(0), scored(1, ALICE, 0), scored(2, BOB, 0), scored(3, ALICE, 0)])
    assert shown(board.top(T, 10)) == [(1, ALICE, 0), (2, BOB, 0)]


def test_joining_alone_makes_no_standing(board: Board) -> None:
    put(board, [scheduled(0), joined(1, ALICE, "Al")])
    assert shown(board.top(T, 10)) == []
    assert board.is_in(T, ALICE)
    assert not board.is_in(T, BOB)


def test_exact_integers_survive_at_both_ends_of_the_range(board: Board) -> None:
    top, low = 2**53 - 1, -(2**53) + 1
    log = [scored(1, ALICE, top - 1), scored(2, BOB, top), scored(3, CAROL, low)]
    put(board, [scheduled(0), *log, scored(4, PlayerId("dan"), low + 1)])
    assert shown(board.top(T, 10)) == [
        (1, BOB, top),
        (2, ALICE, top - 1),
        (3, "dan", low + 1),
        (4, CAROL, low),
    ]


def test_a_sum_beyond_the_range_is_refused_and_changes_nothing(board: Board) -> None:
    put(board, [scheduled(0), scored(1, ALICE, 2**53 - 1)])
    applied = put(board, [scored(2, ALICE, 1), scored(3, BOB, 3)])
    assert applied.verdicts == [Refusal.SCORE_OUT_OF_RANGE, APPLIED]
    assert shown(board.top(T, 10)) == [(1, ALICE, 2**53 - 1), (2, BOB, 3)]


def test_a_refusal_is_told_again_until_it_is_confirmed(board: Board) -> None:
    put(board, [scheduled(0), scored(1, ALICE, 2**53 - 1)])
    entries = [scored(2, ALICE, 1), scored(3, BOB, 3)]
    put(board, entries)
    assert put(board, entries).verdicts == [Refusal.SCORE_OUT_OF_RANGE, Disposition.SKIPPED]
    confirmed = board.apply(T, LOG, None, entries, Offset(3))
    assert confirmed.verdicts == [Disposition.SKIPPED, Disposition.SKIPPED]


def test_a_refusal_by_the_rules_alone_is_told_again_too(board: Board) -> None:
    put(board, [scheduled(0, scoring={"kind": "multiplier"})])
    entries = [wagered(1, ALICE, 1, 2**53 - 1)]
    assert put(board, entries).verdicts == [Refusal.SCORE_OUT_OF_RANGE]
    assert put(board, entries).verdicts == [Refusal.SCORE_OUT_OF_RANGE]


def test_events_read_again_have_no_effect(board: Board) -> None:
    entries = [scheduled(0), scored(1, ALICE, 5), scored(2, BOB, 7)]
    first = put(board, entries)
    again = put(board, entries)
    assert again.verdicts == [Disposition.SKIPPED] * 3
    assert again.unconfirmed == first.unconfirmed
    assert shown(board.top(T, 10)) == [(1, BOB, 7), (2, ALICE, 5)]


def test_a_repeated_event_counts_once(board: Board) -> None:
    put(board, [scheduled(0), scored(1, ALICE, 5, event_id="x")])
    applied = put(board, [scored(2, ALICE, 5, event_id="x"), scored(3, BOB, 1, event_id="y")])
    assert applied.verdicts == [Disposition.DUPLICATE, APPLIED]
    same_batch = put(board, [scored(4, BOB, 1, event_id="z"), scored(5, BOB, 1, event_id="z")])
    assert same_batch.verdicts == [APPLIED, Disposition.DUPLICATE]
    assert shown(board.top(T, 10)) == [(1, ALICE, 5), (2, BOB, 2)]


def test_an_event_that_did_not_count_may_come_again(board: Board) -> None:
    early = scored(1, ALICE, 5, event_id="x", time_ms=START_MS - 1)
    applied = put(board, [scheduled(0), early, scored(2, ALICE, 5, event_id="x")])
    assert applied.verdicts == [APPLIED, Disposition.NOT_STARTED, APPLIED]


def test_a_producer_that_numbers_its_events_is_deduplicated_by_number(board: Board) -> None:
    log = [scored(1, ALICE, 5, sequence=7), scored(2, ALICE, 5, sequence=7)]
    applied = put(board, [scheduled(0), *log, scored(3, ALICE, 5, sequence=8)])
    assert applied.verdicts == [APPLIED, APPLIED, Disposition.DUPLICATE, APPLIED]


@pytest.mark.parametrize("kind", ["memory", *SERVERS])
def test_the_window_of_ids_is_two_generations(kind: str, request: pytest.FixtureRequest) -> None:
    board = make_board(kind, request, remembered_ids=3)
    put(board, [scheduled(0), *(scored(i, ALICE, 1, event_id=f"x{i}") for i in range(1, 6))])
    in_window = put(board, [scored(9, ALICE, 1, event_id="x1")])
    assert in_window.verdicts == [Disposition.DUPLICATE]
    put(board, [scored(10, ALICE, 1, event_id="x10")])
    outlived = put(board, [scored(11, ALICE, 1, event_id="x1")])
    assert outlived.verdicts == [APPLIED]


@pytest.mark.parametrize("kind", ["memory", *SERVERS])
def test_producers_beyond_the_limit_go_by_id(kind: str, request: pytest.FixtureRequest) -> None:
    board = make_board(kind, request, remembered_ids=2)
    log = [scored(i, ALICE, 1, sequence=9, source=f"/s{i}", event_id=f"x{i}") for i in (1, 2, 3)]
    put(board, [scheduled(0), *log])
    third: dict[str, Any] = {"sequence": 5, "source": "/s3"}
    known: dict[str, Any] = {"sequence": 5, "source": "/s1"}
    applied = put(
        board,
        [
            scored(10, ALICE, 1, event_id="new", **third),
            scored(11, ALICE, 1, event_id="x3", **third),
            scored(12, ALICE, 1, event_id="other", **known),
        ],
    )
    assert applied.verdicts == [APPLIED, Disposition.DUPLICATE, Disposition.DUPLICATE]


def test_an_erased_player_is_not_called_disqualified_later(board: Board) -> None:
    log = [scored(1, ALICE, 1), erased(2, ALICE), disqualified(3, ALICE), scored(4, ALICE, 1)]
    assert put(board, [scheduled(0), *log]).verdicts[-1] is Disposition.PLAYER_ERASED


def test_a_caller_who_is_ahead_learns_where_the_board_stands(board: Board) -> None:
    put(board, [scheduled(0), scored(5, ALICE, 5)])
    with pytest.raises(BoardBehindError) as behind:
        put(board, [scored(9, ALICE, 5)], after=8)
    assert behind.value.stands_at == 5
    assert shown(board.top(T, 10)) == [(1, ALICE, 5)]


def test_a_missing_board_is_behind_for_a_caller_who_knew_it(board: Board) -> None:
    with pytest.raises(BoardBehindError) as behind:
        put(board, [scheduled(9)], after=8)
    assert behind.value.stands_at is None
    assert board.top(T, 10) is None


def test_another_log_is_told_apart(board: Board) -> None:
    put(board, [scheduled(0)])
    with pytest.raises(ForeignLogError):
        board.apply(T, "wagers/other/0", None, [scored(1, ALICE, 5)], None)


def test_changes_stay_until_they_are_confirmed(board: Board) -> None:
    first = put(board, [scheduled(0), scored(1, ALICE, 5)])
    second = put(board, [scored(2, BOB, 7)])
    assert [c.sequence for c in first.unconfirmed] == [1]
    assert [c.sequence for c in second.unconfirmed] == [1, 2]
    third = board.apply(T, LOG, Offset(2), [scored(3, ALICE, 9)], Offset(1))
    assert [c.sequence for c in third.unconfirmed] == [2, 3]
    idle = board.apply(T, LOG, Offset(3), [], Offset(3))
    assert list(idle.unconfirmed) == []


def test_what_the_caller_holds_is_kept_and_not_told_again(board: Board) -> None:
    put(board, [scheduled(0), scored(1, ALICE, 5)])
    held = board.apply(T, LOG, Offset(1), [scored(2, BOB, 7)], None, Offset(1))
    assert [c.sequence for c in held.unconfirmed] == [2]
    # Whoever holds nothing, after a crash say, is told all of it.
    assert [c.sequence for c in put(board, []).unconfirmed] == [1, 2]
    confirmed = board.apply(T, LOG, Offset(2), [scored(3, ALICE, 9)], Offset(1), Offset(2))
    assert [c.sequence for c in confirmed.unconfirmed] == [3]
    assert [c.sequence for c in put(board, []).unconfirmed] == [2, 3]


LARGE = 120
"""Events of a batch that is sent, and fetched later."""


def large_batch(first: int) -> list[LogEntry]:
    return [scored(n, f"p{n % 7}", 1 + n % 5) for n in range(first, first + LARGE)]


def test_a_batch_that_was_set_going_ends_as_one_that_was_applied(board: Board) -> None:
    oracle = MemoryBoard(TOMBSTONE_KEY)
    last = None
    for batch in ([scheduled(0), *large_batch(1)], large_batch(1 + LARGE), large_batch(2)):
        going = board.begin(T, LOG, last, batch, last)
        expected = oracle.apply(T, LOG, last, batch, last)
        came = going.result()
        assert (came.offset, came.sequence) == (expected.offset, expected.sequence)
        assert list(came.verdicts) == list(expected.verdicts)
        assert list(came.unconfirmed) == list(expected.unconfirmed)
        last = came.offset
    assert board.top(T, 100) == oracle.top(T, 100)


def test_a_batch_that_was_abandoned_counts_once(board: Board) -> None:
    put(board, [scheduled(0)])
    batch = large_batch(1)
    board.begin(T, LOG, Offset(0), batch, None).abandon()
    again = board.begin(T, LOG, Offset(0), batch, None).result()
    oracle = MemoryBoard(TOMBSTONE_KEY)
    expected = oracle.apply(T, LOG, None, [scheduled(0), *batch], None)
    assert list(again.unconfirmed) == list(expected.unconfirmed)
    assert board.top(T, 100) == oracle.top(T, 100)


def test_a_batch_that_was_set_going_behind_the_board_is_told_so(board: Board) -> None:
    put(board, [scheduled(0)])
    with pytest.raises(BoardBehindError) as behind:
        board.begin(T, LOG, Offset(7), large_batch(8), None).result()
    assert behind.value.stands_at == 0
    assert shown(board.top(T, 10)) == []


def test_terms_that_somebody_else_changed_meanwhile_cost_a_call_and_nothing_else(
    board: Board,
) -> None:
    put(board, [scheduled(0), scored(1, ALICE, 5)])
    other = RedisBoard(board._client, TOMBSTONE_KEY) if isinstance(board, RedisBoard) else board
    put(other, [ended(2)])
    going = board.begin(T, LOG, Offset(1), large_batch(3), None)
    assert set(going.result().verdicts) == {Disposition.TOURNAMENT_ENDED}
    assert shown(board.top(T, 10)) == [(1, ALICE, 5)]


def test_a_change_tells_ranks_score_distance_and_cause(board: Board) -> None:
    log = [scored(1, ALICE, 5), scored(2, BOB, 7), scored(3, ALICE, 1), scored(4, ALICE, 4)]
    applied = put(board, [scheduled(0), *log])
    told = [
        (c.player_id, c.old_rank, c.new_rank, c.score.score, c.distance, c.cause.id)
        for c in applied.unconfirmed
    ]
    assert told == [
        (ALICE, None, 1, 5, None, "e1"),
        (BOB, None, 1, 7, None, "e2"),
        (ALICE, 2, 2, 6, 1, "e3"),
        (ALICE, 2, 1, 10, None, "e4"),
    ]


def test_a_score_that_nobody_sees_is_no_change(board: Board) -> None:
    crowd = [scored(i, f"p{i}", 1000 - i) for i in range(1, 102)]
    put(board, [scheduled(0), *crowd])
    applied = board.apply(T, LOG, None, [scored(200, "p101", -1)], Offset(150))
    assert list(applied.unconfirmed) == []
    seen = board.apply(T, LOG, None, [scored(201, "p100", -2)], Offset(200))
    assert [(c.old_rank, c.new_rank) for c in seen.unconfirmed] == [(100, 101)]


def test_late_wager_does_not_revive_an_erased_player(board: Board) -> None:
    put(board, [scheduled(0), scored(1, ALICE, 50), scored(2, BOB, 10)])
    removal = put(board, [erased(3, ALICE)])
    gone = removal.unconfirmed[-1]
    assert (gone.player_id, gone.old_rank, gone.new_rank) == (ALICE, 1, None)
    late = put(board, [scored(4, ALICE, 70), joined(5, ALICE, "Al")])
    assert late.verdicts == [Disposition.PLAYER_ERASED] * 2
    assert shown(board.top(T, 10)) == [(1, BOB, 10)]
    assert not board.is_in(T, ALICE)


def test_an_ended_board_keeps_an_erased_row_under_another_name(board: Board) -> None:
    put(board, [scheduled(0), scored(1, ALICE, 50), scored(2, BOB, 10), ended(3)])
    applied = put(board, [erased(4, ALICE)])
    assert applied.sequence == 4
    view = board.top(T, 10)
    assert view is not None
    assert [s.rank for s in view.standings] == [1, 2]
    assert view.standings[0].player_id.startswith("erased-")
    assert view.standings[0].score.score == 50
    assert all(c.sequence < 4 for c in applied.unconfirmed)


def test_a_disqualified_player_stays_out(board: Board) -> None:
    log = [scored(1, ALICE, 50), disqualified(2, ALICE), scored(3, ALICE, 1)]
    applied = put(board, [scheduled(0), *log])
    assert applied.verdicts[-1] is Disposition.PLAYER_DISQUALIFIED
    assert shown(board.top(T, 10)) == []


def test_who_has_not_joined_does_not_count_where_joining_is_required(board: Board) -> None:
    log = [scored(1, ALICE, 5), joined(2, ALICE), scored(3, ALICE, 5)]
    applied = put(board, [scheduled(0, join="required"), *log])
    assert applied.verdicts == [APPLIED, Disposition.NOT_JOINED, APPLIED, APPLIED]


def test_a_schedule_counts_for_the_events_after_it_within_a_batch(board: Board) -> None:
    low: dict[str, Any] = {"scoring": {"kind": "stake"}, "min_stake_minor": 10}
    high: dict[str, Any] = {"scoring": {"kind": "stake"}, "min_stake_minor": 100}
    log = [scheduled(0, **low), wagered(1, ALICE, 50), scheduled(2, **high), wagered(3, ALICE, 50)]
    applied = put(board, log)
    assert applied.verdicts == [APPLIED, APPLIED, APPLIED, Disposition.BELOW_MINIMUM]


def test_two_callers_with_old_terms_meet_the_board_as_it_is(
    request: pytest.FixtureRequest,
) -> None:
    first = make_board("redis", request)
    second = RedisBoard(connect(request.getfixturevalue("redis_url")), TOMBSTONE_KEY)
    put(first, [scheduled(0), scored(1, ALICE, 5)])
    put(second, [ended(2)])
    applied = put(first, [scored(1, ALICE, 5), ended(2), scored(3, ALICE, 5)])
    assert applied.verdicts == [
        Disposition.SKIPPED,
        Disposition.SKIPPED,
        Disposition.TOURNAMENT_ENDED,
    ]


def test_an_event_of_before_a_schedule_is_not_judged_by_it(board: Board) -> None:
    """Read again, an early event must not start the tournament under later terms."""
    early = scored(1, ALICE, 5, time_ms=START_MS - 500)
    log = [scheduled(0), early, scheduled(2, starts_ms=START_MS - 1000)]
    put(board, log)
    # Why it did not count is told again, until that has arrived.
    assert put(board, [early]).verdicts == [Disposition.NOT_STARTED]
    again = board.apply(T, LOG, None, [early], Offset(2))
    assert again.verdicts == [Disposition.SKIPPED]
    assert again.terms is not None
    assert again.terms.state == "scheduled"


def test_a_player_is_read_with_distance_and_neighbours(board: Board) -> None:
    log = [scored(i, f"p{i}", 100 - 10 * i) for i in range(1, 8)]
    put(board, [scheduled(0), *log, joined(9, "p4", "Dana")])
    around = board.around(T, PlayerId("p4"), 2)
    assert [row[:2] for row in shown(around)] == [
        (2, "p2"),
        (3, "p3"),
        (4, "p4"),
        (5, "p5"),
        (6, "p6"),
    ]
    player = board.player(T, PlayerId("p4"))
    assert player is not None
    assert (player.distance, player.players, player.sequence) == (10, 7, 9)
    assert [(s.rank, s.display_name) for s in player.standings] == [(4, "Dana")]
    leader = board.around(T, PlayerId("p1"), 2)
    assert leader is not None
    assert leader.distance is None
    assert [row[0] for row in shown(leader)] == [1, 2, 3]
    nobody = board.player(T, PlayerId("nobody"))
    assert nobody is not None
    assert nobody.standings == ()


def test_pages_follow_each_other(board: Board) -> None:
    put(board, [scheduled(0), *(scored(i, f"p{i}", 100 - i) for i in range(1, 8))])
    assert [row[0] for row in shown(board.top(T, 3, after_rank=3))] == [4, 5, 6]
    assert shown(board.top(T, 3, after_rank=7)) == []


def test_scores_are_read_at_any_ranks(board: Board) -> None:
    assert board.scores_at(T, [1]) is None
    put(board, [scheduled(0), *(scored(i, f"p{i}", 100 - i) for i in range(1, 8))])
    curve = board.scores_at(T, [1, 3, 7, 8, 50])
    assert curve is not None
    assert (curve.sequence, list(curve.points)) == (7, [(1, 99), (3, 97), (7, 93)])


def test_second_key_decides_between_equal_scores(board: Board) -> None:
    low = -(2**53) + 1
    log = [scored(1, ALICE, 5, 1), scored(2, BOB, 5, 2), scored(3, CAROL, 5, low)]
    put(board, [scheduled(0, operator="best"), *log, scored(4, PlayerId("dan"), 5, -1)])
    view = board.top(T, 10)
    assert view is not None
    assert [(s.player_id, s.score.subscore) for s in view.standings] == [
        (BOB, 2),
        (ALICE, 1),
        ("dan", -1),
        (CAROL, low),
    ]


def test_an_adjustment_adds_to_the_score(board: Board) -> None:
    put(board, [scheduled(0, operator="best"), scored(1, ALICE, 50), adjusted(2, ALICE, -20)])
    assert shown(board.top(T, 10)) == [(1, ALICE, 30)]


def test_tournaments_do_not_touch_each_other(board: Board) -> None:
    other = TournamentId("t2")
    put(board, [scheduled(0), scored(2, ALICE, 5)])
    board.apply(
        other, LOG, None, [scheduled(1, other), scored(3, BOB, 7, tournament_id=other)], None
    )
    assert shown(board.top(T, 10)) == [(1, ALICE, 5)]
    assert shown(board.top(other, 10)) == [(1, BOB, 7)]


@pytest.mark.parametrize("kind", list(SERVERS))
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("order", ["descending", "ascending"])
def test_a_random_log_in_random_batches_equals_the_oracle(
    kind: str, operator: str, order: str, request: pytest.FixtureRequest
) -> None:
    """Batches overlap, come again and are confirmed now and then, as after crashes."""
    for seed in range(6):
        join = "required" if seed % 3 == 2 else "open"
        log = list(random_log(seed, length=300, operator=operator, order=order, join=join))
        oracle = MemoryBoard(TOMBSTONE_KEY, remembered_ids=20)
        expected = oracle.apply(T, LOG, None, log, None)
        board = make_board(kind, request, remembered_ids=20)
        chance = random.Random(seed)
        emitted = {}
        position, applied, confirmed = 0, None, None
        while position < len(log):
            size = chance.choice((1, 2, 7, 40, 120))
            batch = log[max(position - chance.choice((0, 0, 3, 30)), 0) : position + size]
            applied = board.apply(T, LOG, None, batch, confirmed)
            for entry, verdict in zip(batch, applied.verdicts, strict=True):
                index = log.index(entry)
                if index >= position:
                    assert verdict == expected.verdicts[index], (seed, entry)
            emitted.update({change.sequence: change for change in applied.unconfirmed})
            if chance.random() < 0.5:
                confirmed = applied.offset
            position += size
        assert applied is not None
        assert list(emitted.values()) == list(expected.unconfirmed)
        assert replace(applied, verdicts=(), unconfirmed=(), terms_changed=False) == replace(
            expected, verdicts=(), unconfirmed=(), terms_changed=False
        )
        assert board.top(T, 1000) == oracle.top(T, 1000)
        for number in range(12):
            player_id = PlayerId(f"p{number}")
            assert board.around(T, player_id, 3) == oracle.around(T, player_id, 3)
            assert board.is_in(T, player_id) == oracle.is_in(T, player_id)


def test_an_erasure_is_known_to_be_applied_and_a_disqualification_is_none(board: Board) -> None:
    assert board.is_erased(T, ALICE) is None, "no board, no answer"
    put(board, [scheduled(0), scored(1, ALICE, 1)])
    assert board.is_erased(T, ALICE) is False
    put(board, [erased(2, ALICE), disqualified(3, BOB)])
    assert board.is_erased(T, ALICE) is True
    assert board.is_erased(T, BOB) is False
    put(board, [ended(4), erased(5, CAROL)])
    assert board.is_erased(T, CAROL)
