"""The fold: what each event does, compared with the naive model of the same contract."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import naive
from leaderboard import events as ev
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.errors import Refusal
from leaderboard.fold import LogEntry, SeenIds, Standings, Terms, decide, event_key
from leaderboard.model import (
    SCORE_LIMIT,
    Disposition,
    Offset,
    PlayerId,
    PositionChange,
    State,
    erased_name,
    tombstone,
)
from logs import (
    END_MS,
    START_MS,
    TOMBSTONE_KEY,
    T,
    adjusted,
    cancelled,
    disqualified,
    ended,
    entry,
    erased,
    joined,
    random_log,
    scheduled,
    scored,
    started,
    wagered,
)

EDGE = SCORE_LIMIT - 1


@dataclass
class Told:
    """What a log came to: a verdict for each entry, every change, and where it ended."""

    verdicts: list[str] = field(default_factory=list)
    changes: list[PositionChange] = field(default_factory=list)
    terms: Terms | None = None
    standings: list[tuple[int, str, int, int]] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    sequence: int = 0
    sequences: list[int] = field(default_factory=list)


def fold(log: Sequence[LogEntry], *, remembered_ids: int = 100_000, batch: int = 1) -> Told:
    """The log through the fold, in batches."""
    told, board = Told(), MemoryBoard(TOMBSTONE_KEY, remembered_ids)
    after: Offset | None = None
    for start in range(0, len(log), batch):
        applied = board.apply(T, "log", after, log[start : start + batch], after)
        told.verdicts += [verdict.value for verdict in applied.verdicts]
        told.changes += applied.unconfirmed
        after, told.sequence, told.terms = applied.offset, applied.sequence, applied.terms
        told.sequences.append(applied.sequence)
    if (view := board.top(T, 1000)) is not None:
        told.standings = [(s.rank, s.player_id, *s.score) for s in view.standings]
        told.names = [s.display_name for s in view.standings]
    return told


def verdicts(*log: LogEntry) -> list[str]:
    return fold(log).verdicts


def moves(told: Told) -> list[tuple[str, int | None, int | None, int, int | None]]:
    return [(c.player_id, c.old_rank, c.new_rank, c.score.score, c.distance) for c in told.changes]


# --- examples ----------------------------------------------------------------------------------


def test_new_player_and_overtaking_are_told_with_ranks_and_distance() -> None:
    told = fold([scheduled(0), scored(1, "a", 10), scored(2, "b", 4), scored(3, "b", 9)])
    assert moves(told) == [
        ("a", None, 1, 10, None),
        ("b", None, 2, 4, 6),
        ("b", 2, 1, 13, None),
    ]
    assert [change.sequence for change in told.changes] == [1, 2, 3]
    assert told.changes[2].cause == ("/tests", "e3")


def test_equal_scores_stand_in_the_order_in_which_they_were_reached() -> None:
    for order in ("descending", "ascending"):
        log = [scheduled(0, order=order), scored(1, "a", 1), scored(2, "b", 3), scored(3, "a", 2)]
        assert [row[1] for row in fold(log).standings] == ["b", "a"]


def test_event_that_leaves_the_pair_keeps_the_place_among_equals() -> None:
    log = [scheduled(0), scored(1, "a", 3), scored(2, "b", 3), scored(3, "a", 0)]
    told = fold(log)
    assert [row[1] for row in told.standings] == ["a", "b"]
    assert told.verdicts[3] == "applied"
    assert (told.sequence, len(told.changes)) == (3, 2)


def test_event_of_no_points_makes_a_standing_and_joining_alone_does_not() -> None:
    told = fold([scheduled(0), joined(1, "a", "Ann"), scored(2, "b", 0)])
    assert told.standings == [(1, "b", 0, 0)]


def test_repeated_event_counts_once() -> None:
    log = [scheduled(0), scored(1, "a", 5, event_id="x"), scored(2, "a", 5, event_id="x")]
    told = fold(log)
    assert told.verdicts[2] == "duplicate"
    assert (told.sequence, told.standings) == (1, [(1, "a", 5, 0)])


def test_event_that_did_not_count_is_no_first_of_two() -> None:
    late = scored(1, "a", 5, event_id="x", time_ms=END_MS)
    assert verdicts(scheduled(0), late, scored(2, "a", 5, event_id="x"))[1:] == [
        "tournament_ended",
        "applied",
    ]


def test_same_id_of_another_source_is_another_event() -> None:
    one = scored(1, "a", 5, event_id="x")
    other = entry(2, one.event.data, event_id="x", source="/others")
    assert verdicts(scheduled(0), one, other)[1:] == ["applied", "applied"]


def test_numbered_events_of_a_producer_never_count_twice() -> None:
    log = [scheduled(0), *(scored(i, "a", 1, sequence=n) for i, n in enumerate([3, 3, 2, 4, 0], 1))]
    assert fold(log).verdicts[1:] == ["applied", "duplicate", "duplicate", "applied", "duplicate"]


def test_ids_are_remembered_for_one_generation_at_least_and_two_at_most() -> None:
    plays = [scored(i, "a", 1, event_id=f"x{i}") for i in range(1, 8)]
    # Seven applied: generations (1 2 3) and (4 5 6) are full, 7 opens the third.
    for number in range(1, 8):
        again = scored(9, "a", 1, event_id=f"x{number}")
        told = fold([scheduled(0), *plays, again], remembered_ids=3)
        assert told.verdicts[-1] == ("applied" if number <= 3 else "duplicate")


def test_only_applied_ids_take_a_place_in_the_window() -> None:
    repeats = [scored(i, "a", 1, event_id="x1") for i in range(2, 9)]
    early = [scored(i, "a", 1, time_ms=START_MS - 1) for i in range(10, 19)]
    log = [scheduled(0), scored(1, "a", 1, event_id="x1"), *repeats, *early]
    told = fold([*log, scored(30, "a", 1, event_id="x1")], remembered_ids=2)
    assert told.verdicts[-1] == "duplicate"


def test_keys_of_events_part_source_from_id() -> None:
    one = scored(1, "a", 1).event
    assert event_key(one._replace(source="/a", id="b")) != event_key(
        one._replace(source="/", id="ab")
    )


@pytest.mark.parametrize(
    ("time_ms", "verdict"),
    [
        (START_MS - 1, "not_started"),
        (START_MS, "applied"),
        (END_MS - 1, "applied"),
        (END_MS, "tournament_ended"),
    ],
)
def test_event_counts_by_its_own_time(time_ms: int, verdict: str) -> None:
    assert verdicts(scheduled(0), scored(1, "a", 5, time_ms=time_ms))[1] == verdict


def test_first_event_in_its_time_starts_the_tournament() -> None:
    told = fold([scheduled(0), scored(1, "a", 5)])
    assert told.terms is not None
    assert (told.terms.state, told.terms.revision) == (State.RUNNING, 1)


def test_wager_of_the_wrong_game_starts_the_tournament_and_the_sequence_shows_it() -> None:
    told = fold([scheduled(0, scoring={"kind": "stake"}, games=["g2"]), wagered(5, "a", 3)])
    assert told.verdicts == ["applied", "wrong_game"]
    assert told.terms is not None
    assert (told.terms.state, told.terms.revision, told.sequence) == (State.RUNNING, 5, 5)


def test_event_that_changes_nothing_leaves_the_sequence() -> None:
    log = [scheduled(0, scoring={"kind": "stake"}, games=["g2"]), wagered(5, "a", 3)]
    assert fold([*log, wagered(6, "a", 3), scored(7, "a", 5)]).sequence == 5


def test_rules_of_the_wager_are_looked_at_in_order() -> None:
    terms: dict[str, Any] = {"scoring": {"kind": "stake"}, "games": ["g1"], "currency": "EUR"}
    log = [
        scheduled(0, **terms, min_stake_minor=10),
        wagered(1, "a", 5, game_id="g2", currency="USD"),
        wagered(2, "a", 5, game_id="g2"),
        wagered(3, "a", 9),
        wagered(4, "a", 10),
        scored(5, "a", 3),
    ]
    assert verdicts(*log)[1:] == [
        "wrong_currency",
        "wrong_game",
        "below_minimum",
        "applied",
        "unsupported",
    ]


@pytest.mark.parametrize("score", [EDGE, -EDGE])
def test_sum_that_leaves_the_range_is_refused_and_harms_nothing(score: int) -> None:
    one = 1 if score > 0 else -1
    log = [scheduled(0), scored(1, "a", score), scored(2, "a", one), scored(3, "a", -one)]
    told = fold(log)
    assert told.verdicts[1:] == ["applied", "score_out_of_range", "applied"]
    assert told.standings == [(1, "a", score - one, 0)]


def test_second_key_and_adjustment_can_leave_the_range_too() -> None:
    log = [scheduled(0), scored(1, "a", 1, EDGE), scored(2, "a", 1, 1), adjusted(3, "a", EDGE)]
    assert verdicts(*log)[2:] == ["score_out_of_range", "score_out_of_range"]


def test_multiplier_beyond_the_range_is_refused() -> None:
    log = [scheduled(0, scoring={"kind": "multiplier"}), wagered(1, "a", 1, EDGE)]
    assert verdicts(*log)[1] == "score_out_of_range"


def test_adjustment_adds_whatever_the_operator() -> None:
    log = [scheduled(0, operator="best"), scored(1, "a", 5, 9), adjusted(2, "a", -3)]
    assert fold(log).standings == [(1, "a", 2, 9)]
    assert fold([*log, adjusted(3, "b", 7)]).standings == [(1, "b", 7, 0), (2, "a", 2, 9)]
    assert verdicts(scheduled(0), adjusted(1, "a", 1))[1] == "not_started"


def test_joining_is_required_where_the_rules_say_so() -> None:
    log = [
        scheduled(0, join="required"),
        scored(1, "a", 5),
        joined(2, "a", "Ann"),
        scored(3, "a", 5),
        adjusted(4, "b", 5),
    ]
    told = fold(log)
    assert told.verdicts[1:] == ["not_joined", "applied", "applied", "not_joined"]
    assert told.names == ["Ann"]


def test_erased_player_leaves_a_live_board_and_never_comes_back() -> None:
    log = [
        scheduled(0),
        scored(1, "a", 9),
        scored(2, "b", 5),
        erased(3, "a"),
        scored(4, "a", 50),
        joined(5, "a", "Ann"),
        adjusted(6, "a", 1),
    ]
    told = fold(log)
    assert told.verdicts[3:] == ["applied", *["player_erased"] * 3]
    assert told.standings == [(1, "b", 5, 0)]
    assert moves(told)[-1] == ("a", 1, None, 9, None)


def test_erased_player_of_an_ended_tournament_keeps_the_row_without_the_name() -> None:
    log = [scheduled(0), joined(1, "a", "Ann"), scored(2, "a", 9), scored(3, "b", 5), ended(4)]
    told = fold([*log, erased(5, "a")])
    name = erased_name(tombstone(TOMBSTONE_KEY, T, "a"))
    assert told.standings == [(1, name, 9, 0), (2, "b", 5, 0)]
    assert told.names == [None, None]
    assert (told.sequence, len(told.changes)) == (5, 2)


def test_player_erased_before_ever_playing_stays_out() -> None:
    assert verdicts(scheduled(0), erased(1, "a"), scored(2, "a", 1))[2] == "player_erased"


def test_disqualified_player_stays_out() -> None:
    log = [scheduled(0), scored(1, "a", 9), disqualified(2, "a"), scored(3, "a", 1), joined(4, "a")]
    told = fold(log)
    assert told.verdicts[3:] == ["player_disqualified"] * 2
    assert told.standings == []


def test_erasure_counts_in_every_state() -> None:
    for state in ((), (started(1),), (ended(1),), (cancelled(1),)):
        assert verdicts(scheduled(0), *state, erased(2, "a"))[-1] == "applied"


@pytest.mark.parametrize(
    ("over", "verdict"), [(ended, "tournament_ended"), (cancelled, "tournament_cancelled")]
)
def test_nothing_counts_after_the_end_whatever_its_time(over: object, verdict: str) -> None:
    assert callable(over)
    later = [
        scored(3, "a", 1),
        joined(4, "a"),
        adjusted(5, "a", 1),
        disqualified(6, "a"),
        scheduled(7),
        started(8),
        ended(9),
        cancelled(10),
    ]
    told = fold([scheduled(0), scored(1, "a", 1), over(2), *later])
    assert told.verdicts[3:] == [verdict] * len(later)
    assert told.sequence == 2


def test_tournament_can_end_or_be_cancelled_before_it_started() -> None:
    for over in (ended, cancelled):
        told = fold([scheduled(0), over(1), scored(2, "a", 1)])
        assert told.verdicts[1] == "applied"
        assert told.standings == []


def test_operator_starts_before_the_first_event() -> None:
    told = fold([scheduled(0), started(1), adjusted(2, "a", 1), started(3)])
    assert told.verdicts == ["applied"] * 4
    assert verdicts(scheduled(0), started(1), scored(2, "a", 1, time_ms=START_MS - 1))[-1] == (
        "not_started"
    )


def test_repeated_control_event_counts_once() -> None:
    log = [scheduled(0, event_id="s"), scheduled(1, event_id="s"), started(2)]
    again = LogEntry(Offset(3), START_MS, log[2].event)
    told = fold([*log, again])
    assert told.verdicts == ["applied", "duplicate", "applied", "duplicate"]
    assert told.sequence == 2


def test_schedule_counts_for_the_events_after_it_also_within_a_batch() -> None:
    log = [
        scheduled(0, ends_ms=START_MS + 500),
        scored(1, "a", 1),
        scheduled(2),
        scored(3, "a", 1),
        scheduled(4, ends_ms=START_MS + 500),
        scored(5, "a", 1),
    ]
    for batch in (1, 6):
        assert fold(log, batch=batch).verdicts[1::2] == [
            "tournament_ended",
            "applied",
            "tournament_ended",
        ]


def test_order_can_change_before_the_start_and_never_while_running() -> None:
    log = [scheduled(0), scheduled(1, order="ascending"), scored(2, "a", 1), scored(3, "b", 2)]
    assert [row[1] for row in fold(log).standings] == ["a", "b"]
    unlike: tuple[dict[str, Any], ...] = ({}, {"order": "ascending", "operator": "best"})
    for changes in unlike:
        assert fold([*log, scheduled(4, **changes)]).verdicts[-1] == "unsupported"
    assert fold([*log, scheduled(4, order="ascending", join="required")]).verdicts[-1] == "applied"


@pytest.mark.parametrize(
    "changes",
    [{"scoring": {"kind": "ratio"}}, {"scoring": {"kind": "tiers"}}, {"operator": "best_of"}],
)
def test_rules_of_later_versions_are_recorded_as_unsupported(changes: dict[str, Any]) -> None:
    told = fold([scheduled(0, **changes), scored(1, "a", 1)])
    assert told.verdicts == ["unsupported", "unknown_tournament"]
    assert told.terms is None


def test_voided_wager_is_recorded_as_unsupported() -> None:
    wager = ev.CauseData(source="/s", id="1")
    voided = ev.WagerVoided(tournament_id=T, player_id="a", wager=wager, reason="fault")
    assert verdicts(scheduled(0), entry(1, voided))[1] == "unsupported"


def test_schedule_after_its_own_end_is_a_backfill() -> None:
    schedule = scheduled(0)
    for logged_at_ms, backfilled in ((END_MS - 1, False), (END_MS, True)):
        decision = decide(None, LogEntry(Offset(0), logged_at_ms, schedule.event))
        assert decision.terms is not None
        assert decision.terms.backfilled is backfilled


def test_event_before_the_first_schedule_is_refused() -> None:
    assert verdicts(scored(0, "a", 1), erased(1, "a"), started(2)) == ["unknown_tournament"] * 3
    later = decide(fold([scheduled(5)]).terms, scored(4, "a", 1))
    assert later.verdict is Refusal.UNKNOWN_TOURNAMENT


@pytest.mark.parametrize(
    ("starts_at", "ends_at"),
    [
        ("0002-01-01T00:00:00-14:00", "9999-01-01T12:59:59.999+14:00"),
        ("2025-01-01T00:00:00.000999Z", "2025-01-01t00:00:00.001z"),
    ],
)
def test_schedule_at_the_edge_of_the_calendar_can_be_folded(starts_at: str, ends_at: str) -> None:
    raw = {"tournament_id": T, "name": "Cup", "starts_at": starts_at, "ends_at": ends_at}
    text = json.dumps({**raw, "rules": {"scoring": {"kind": "stake"}}})
    terms = decide(None, entry(0, ev.TournamentScheduled.model_validate_json(text))).terms
    assert terms is not None
    assert terms.starts_at_ms == ev.parse_time_ms(starts_at)
    assert terms.ends_at_ms == ev.parse_time_ms(ends_at)
    assert ev.parse_time_ms(ev.format_time_ms(terms.starts_at_ms)) == terms.starts_at_ms
    assert ev.to_ms(terms.starts_at) == terms.starts_at_ms
    assert ev.to_ms(ev.from_ms(terms.ends_at_ms)) == terms.ends_at_ms


def test_scores_below_the_top_hundred_are_told_only_when_a_rank_moves() -> None:
    log = [scheduled(0), *(scored(i, f"p{i}", 1000 - i) for i in range(1, 103))]
    quiet = fold([*log, scored(200, "p101", 0, 1)])
    assert quiet.changes[-1].sequence == 102
    visible = fold([*log, scored(200, "p100", 0, 1)])
    assert moves(visible)[-1] == ("p100", 100, 100, 900, 1)


# --- properties --------------------------------------------------------------------------------

PLAYERS = st.sampled_from(["a", "b", "c", "d", "e", "f"])
SMALL = st.integers(-4, 4)
POINTS = st.one_of(SMALL, SMALL, st.sampled_from([EDGE, -EDGE, EDGE - 1, 2**52]))
TIMES = st.sampled_from([START_MS + 1, START_MS, END_MS - 1, START_MS - 1, END_MS, END_MS + 9])
KINDS = ["submitted", "submitted", "stake", "win", "count", "multiplier"]
RULES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "scoring": st.sampled_from(
            ["submitted", "submitted", "stake", "win", "count", "multiplier"]
        ).map(lambda kind: {"kind": kind}),
        "operator": st.sampled_from(["sum", "best", "last", "count"]),
        "order": st.sampled_from(["descending", "ascending"]),
    },
    optional={
        "join": st.sampled_from(["open", "required"]),
        "games": st.just(["g1"]),
        "currency": st.just("EUR"),
        "min_stake_minor": st.just(2),
    },
)


@st.composite
def logs(draw: st.DrawFn, length: int = 40) -> list[LogEntry]:
    """Any log of one tournament: repeats, numbered producers, states, all sorts of players."""
    rules = draw(RULES)
    log = [scheduled(draw(st.integers(0, 3)), event_id="schedule", **rules)]
    sorts = ["play"] * 12 + ["wager"] * 8 + ["again"] * 3 + ["numbered"] * 3 + ["join"] * 3
    sorts += ["adjust", "adjust", "erase", "disqualify", "reschedule", "rules", "state"]
    for _ in range(draw(st.integers(0, length))):
        offset = log[-1].offset + draw(st.sampled_from([1, 1, 2, 7]))
        player = draw(PLAYERS)
        one: LogEntry
        match draw(st.sampled_from(sorts)):
            case "play":
                time_ms = draw(TIMES)
                second = draw(st.none() | POINTS)
                one = scored(offset, player, draw(POINTS), second, time_ms=time_ms)
            case "wager":
                game = draw(st.sampled_from(["g1", "g1", "g2"]))
                money = draw(st.sampled_from(["EUR", "EUR", "USD"]))
                stake, win = draw(st.integers(0, 4)), draw(st.sampled_from([0, 1, 5, EDGE]))
                one = wagered(offset, player, stake, win, game_id=game, currency=money)
            case "again":
                one = LogEntry(Offset(offset), START_MS, draw(st.sampled_from(log)).event)
            case "numbered":
                number = draw(st.integers(0, 12))
                one = scored(offset, player, draw(SMALL), sequence=number)
            case "join":
                one = joined(offset, player, draw(st.sampled_from([None, "Ann"])))
            case "adjust":
                one = adjusted(offset, player, draw(POINTS))
            case "erase":
                one = erased(offset, player)
            case "disqualify":
                one = disqualified(offset, player)
            case "reschedule":
                one = scheduled(offset, ends_ms=END_MS - draw(st.integers(0, 5)), **rules)
            case "rules":
                one = scheduled(offset, **draw(RULES))
            case _:
                one = draw(st.sampled_from([started, started, ended, cancelled]))(offset)
        log.append(one)
    return log


many = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@many
@given(logs(), st.integers(1, 4))
def test_fold_agrees_with_the_naive_model(log: list[LogEntry], remembered_ids: int) -> None:
    model = naive.Tournament(generation=remembered_ids)
    expected = [model.take(one) for one in log]
    told = fold(log, remembered_ids=remembered_ids)
    assert told.verdicts == [verdict for verdict, _ in expected]
    changes = [
        (c.player_id, c.sequence, c.old_rank, c.new_rank, *c.score, c.distance)
        for c in told.changes
    ]
    assert changes == [change for _, change in expected if change is not None]
    assert told.sequence == model.sequence
    assert told.terms is not None
    assert told.terms.state == model.state
    rows = model.ranking()
    assert [(score, second) for _, _, score, second in told.standings] == [
        (row["score"], row["subscore"]) for row in rows
    ]
    shown = [
        erased_name(tombstone(TOMBSTONE_KEY, T, row["player"].removeprefix("erased ")))
        if " " in row["player"]
        else row["player"]
        for row in rows
    ]
    assert [player for _, player, _, _ in told.standings] == shown


@many
@given(logs(), st.integers(2, 50))
def test_fold_is_the_same_however_the_log_is_cut(log: list[LogEntry], batch: int) -> None:
    one_by_one, cut = fold(log), fold(log, batch=batch)
    one_by_one.sequences, cut.sequences = [], []
    assert one_by_one == cut
    assert fold(log) == fold(log)


@many
@given(logs())
def test_sequence_rises_with_every_event_that_changed_something(log: list[LogEntry]) -> None:
    told, terms, before = fold(log), None, -1
    for at, (one, verdict) in enumerate(zip(log, told.verdicts, strict=True)):
        after = decide(terms, one).terms
        moved = verdict == "applied" or after is not terms
        assert told.sequences[at] == (one.offset if moved else before)
        terms, before = after, told.sequences[at]


@many
@given(logs())
@example([scheduled(0), *random_log(7, length=300)][1:])
def test_player_can_follow_everyone_elses_moves(log: list[LogEntry]) -> None:
    """Who holds rank r knows their own rank from the changes of all the others alone."""
    told = fold(log)
    ranks: dict[str, int] = {}
    for change in told.changes:
        player, old, new = change.player_id, change.old_rank, change.new_rank
        assert ranks.get(player) == old
        for other, rank in list(ranks.items()):
            if other == player:
                continue
            came_from_below = old is None or old > rank
            if came_from_below and new is not None and new <= rank:
                ranks[other] = rank + 1
            elif old is not None and old < rank and (new is None or new >= rank):
                ranks[other] = rank - 1
        if new is None:
            del ranks[player]
        else:
            ranks[player] = new
    assert sorted(ranks.values()) == [rank for rank, *_ in told.standings]
    live = {player: rank for rank, player, *_ in told.standings if not player.startswith("erased-")}
    assert {player: ranks[player] for player in live} == live


@many
@given(logs())
def test_fold_never_writes_to_what_it_was_given(log: list[LogEntry]) -> None:
    terms: Terms | None = None
    for one in log:
        kept = None if terms is None else terms.model_dump_json()
        after = decide(terms, one).terms
        assert kept is None or terms is None or terms.model_dump_json() == kept
        terms = after


@given(st.lists(st.tuples(PLAYERS, SMALL), max_size=30))
def test_pages_put_together_are_the_whole_board(plays: list[tuple[str, int]]) -> None:
    standings = Standings(T, lambda player: tombstone(TOMBSTONE_KEY, T, player))
    terms = decide(None, scheduled(0)).terms
    assert terms is not None
    for offset, (player, points) in enumerate(plays, 1):
        decision = decide(terms, scored(offset, player, points))
        assert not isinstance(decision.verdict, Disposition | Refusal)
        standings.apply(terms.rules, scored(offset, player, points), decision.verdict)
    whole = standings.page(0, 100)
    assert [s for at in range(0, 7, 2) for s in standings.page(at, 2)] == whole
    assert [standings.find(s.player_id) for s in whole] == whole
    assert len(standings) == len(whole)
    assert standings.find(PlayerId("nobody")) is None
    assert all(standings.is_in(s.player_id) for s in whole)


def test_terms_survive_being_kept_as_json() -> None:
    told = fold([scheduled(0, games=["g1"], min_stake_minor=5, currency="EUR"), erased(1, "a")])
    assert told.terms is not None
    assert Terms.model_validate_json(told.terms.model_dump_json()) == told.terms


def test_remembered_ids_do_not_grow_beyond_two_generations() -> None:
    seen = SeenIds(limit=10)
    for offset in range(1000):
        seen.add(scored(offset, "a", 1).event)
        assert len(seen.newer) + len(seen.older) <= 20
