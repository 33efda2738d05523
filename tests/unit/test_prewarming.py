"""How many replicas the schedule wants: by example, and for any schedule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard import events as ev
from leaderboard.fold import Terms, decide
from leaderboard.model import State, TournamentId
from leaderboard.ports import Revision, Summary
from leaderboard.prewarming import (
    BY_PARTITION,
    KNOWN,
    LATE_MS,
    MIN_SCALE,
    RAISED,
    Claim,
    Concern,
    Policy,
    change_of,
    claim_of,
    claimed,
    claims_of,
    concerns,
    floor_of,
    peak,
    wishes_of,
)
from leaderboard.stack.functions import FUNCTIONS
from logs import END_MS, START_MS, T, entry, scheduled

POLICY = Policy()
MINUTE_MS = 60_000
OVER_MS = END_MS + POLICY.end_grace_ms


def terms_of(prewarm: Any = None) -> Terms:
    """Terms as the fold makes them of a schedule, read back as the stores keep them."""
    planned = scheduled(0).event.data
    assert isinstance(planned, ev.TournamentScheduled)
    decision = decide(None, entry(0, planned.model_copy(update={"prewarm": prewarm})))
    assert decision.terms is not None
    return Terms.model_validate_json(decision.terms.model_dump_json())


def after(terms: Terms, data: ev.Data) -> Terms:
    changed = decide(terms, entry(terms.revision + 1, data)).terms
    assert changed is not None
    return changed


def wanted(terms: Terms, now_ms: int, function: str = "on-wager") -> int:
    claims = claims_of([Summary(T, terms)], POLICY)
    return floor_of(function, claimed(claims, now_ms), POLICY)


# --- when --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now_ms", "floor"),
    [
        (START_MS - 30 * MINUTE_MS - 1, 2),
        (START_MS - 30 * MINUTE_MS, 10),
        (START_MS, 10),
        (END_MS, 10),
        (OVER_MS - 1, 10),
        (OVER_MS, 2),
    ],
)
def test_two_become_ten_half_an_hour_before_and_two_again_when_it_is_over(
    now_ms: int, floor: int
) -> None:
    assert wanted(terms_of(), now_ms) == floor


def test_lead_of_the_tournament_goes_before_the_policys() -> None:
    terms = terms_of({"lead_minutes": 90})
    assert wanted(terms, START_MS - 90 * MINUTE_MS) == 10
    assert wanted(terms, START_MS - 90 * MINUTE_MS - 1) == 2
    assert wanted(terms_of({"lead_minutes": 0}), START_MS - 1) == 2


@pytest.mark.parametrize("model", [ev.TournamentEnded, ev.TournamentCancelled])
def test_floor_is_let_go_when_a_tournament_ends_or_is_cancelled(model: Any) -> None:
    terms = terms_of()
    over = after(terms, model(tournament_id=T, decided_by="olga"))
    assert wanted(terms, START_MS) == 10
    assert wanted(over, START_MS) == 2


def test_tournament_that_staff_start_early_has_its_floor_at_once() -> None:
    started = after(terms_of(), ev.TournamentStarted(tournament_id=T, decided_by="olga"))
    assert started.state is State.RUNNING
    assert wanted(started, START_MS - 300 * MINUTE_MS) == 10


def test_backfilled_tournament_wants_nothing() -> None:
    decided = decide(None, scheduled(0)._replace(logged_at_ms=END_MS))
    assert decided.terms is not None
    assert decided.terms.backfilled
    assert claim_of(T, decided.terms, POLICY) is None


# --- how many ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prewarm", "by_partition", "other"),
    [
        (None, 10, 10),
        ({}, 10, 10),
        ({"floor": 0}, 2, 2),
        ({"floor": 1}, 2, 2),
        ({"floor": 3}, 5, 3),
        ({"floor": 11}, 25, 11),
        ({"floor": 26}, 50, 26),
        ({"floor": 999}, 50, 50),
        ({"expected_players": 0}, 2, 2),
        ({"expected_players": 100_000}, 10, 10),
        ({"expected_players": 100_001}, 25, 11),
        ({"expected_players": 10**9}, 50, 50),
        ({"expected_players": 10**6, "floor": 5}, 5, 5),
    ],
)
def test_size_is_as_the_tournament_says(prewarm: Any, by_partition: int, other: int) -> None:
    terms = terms_of(prewarm)
    assert {wanted(terms, START_MS, name) for name in BY_PARTITION} == {by_partition}
    assert {wanted(terms, START_MS, name) for name in KNOWN - BY_PARTITION} == {other}


@pytest.mark.parametrize(
    "prewarm",
    ["lots", 7, [], {"floor": -1}, {"floor": "ten"}, {"floor": 1.5}, {"lead_minutes": 10**6}],
)
def test_wishes_that_nobody_understands_are_as_none(prewarm: Any) -> None:
    """The log takes them: a tournament is not refused for that."""
    assert wishes_of(terms_of(prewarm)) == wishes_of(terms_of())
    assert wanted(terms_of(prewarm), START_MS) == 10


def test_wishes_that_are_unknown_are_ignored() -> None:
    assert wanted(terms_of({"floor": 25, "mood": "high"}), START_MS) == 25


def test_tournaments_that_overlap_add_up_below_the_ceiling() -> None:
    def floor(count: int) -> int:
        found = [Summary(TournamentId(f"t{n}"), terms_of()) for n in range(count)]
        return floor_of("query", claimed(claims_of(found, POLICY), START_MS), POLICY)

    assert [floor(count) for count in (0, 1, 2, 4, 5, 6, 60)] == [2, 10, 20, 40, 50, 50, 50]


def test_every_function_of_the_platform_is_known_but_those_that_no_player_loads() -> None:
    assert {one.name for one in FUNCTIONS} - {"erase", "tournament"} | {"gateway"} == KNOWN


# --- for any schedule --------------------------------------------------------------------------

SMALL_POLICIES = st.builds(
    lambda ceiling, least, floor, lead, grace: Policy(
        min(least, ceiling), min(floor, ceiling), ceiling, 100, lead, grace
    ),
    *(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60)),
    *(st.integers(0, 90), st.integers(0, 5).map(lambda minutes: minutes * MINUTE_MS)),
)
CLAIMS = st.lists(
    st.builds(
        lambda n, replicas, begins, lasts: Claim(
            TournamentId(f"t{n}"), replicas, begins, begins + lasts
        ),
        *(st.integers(0, 99), st.integers(1, 40), st.integers(0, 50), st.integers(1, 30)),
    ),
    max_size=8,
)


@given(SMALL_POLICIES, st.integers(0, 10**6), st.sampled_from(sorted(KNOWN)))
def test_floor_lies_between_least_and_ceiling_and_divides_it_where_it_has_to(
    policy: Policy, replicas: int, function: str
) -> None:
    floor = floor_of(function, replicas, policy)
    assert policy.least <= floor <= policy.ceiling
    assert floor >= min(replicas, policy.ceiling)
    if function in BY_PARTITION:
        assert policy.ceiling % floor == 0
    assert floor_of(function, replicas + 1, policy) >= floor


@given(CLAIMS, st.integers(0, 60), st.integers(1, 40))
def test_peak_is_the_largest_sum_of_any_moment(
    claims: list[Claim], begins_ms: int, lasts_ms: int
) -> None:
    sums = {now: claimed(claims, now) for now in range(begins_ms, begins_ms + lasts_ms)}
    found = peak(claims, begins_ms, begins_ms + lasts_ms)
    assert found.replicas == max(sums.values())
    assert sums[found.at_ms] == found.replicas
    assert found.at_ms == min(now for now, value in sums.items() if value == found.replicas)
    within = [one for one in claims if one.begins_ms <= found.at_ms < one.ends_ms]
    assert sum(one.replicas for one in within) == found.replicas
    assert list(found.tournaments) == [one.tournament_id for one in within]


# --- what a schedule can't have ----------------------------------------------------------------


def told(terms: Terms, now_ms: int, *others: Claim) -> dict[Concern, str]:
    claim = claim_of(T, terms, POLICY)
    assert claim is not None
    return concerns(claim, terms, others, now_ms, POLICY)


def test_schedule_in_good_time_and_below_the_ceiling_raises_no_concern() -> None:
    assert told(terms_of(), START_MS - 30 * MINUTE_MS) == {}
    # A moment on the way from who schedules to here is not worth a word.
    assert told(terms_of(), START_MS - 30 * MINUTE_MS + LATE_MS) == {}


def test_start_that_is_too_near_is_told_with_what_is_left_of_the_lead() -> None:
    found = told(terms_of(), START_MS - 4 * MINUTE_MS)
    assert found.keys() == {Concern.TOO_LATE}
    assert "in 4 min" in found[Concern.TOO_LATE]
    assert "30 min before" in found[Concern.TOO_LATE]
    assert told(terms_of(), START_MS + 5 * MINUTE_MS).keys() == {Concern.TOO_LATE}


def test_running_tournament_that_gets_another_schedule_is_not_too_late() -> None:
    started = after(terms_of(), ev.TournamentStarted(tournament_id=T, decided_by="olga"))
    assert told(started, START_MS + 5 * MINUTE_MS) == {}


def test_two_tournaments_that_claim_more_than_the_ceiling_are_named() -> None:
    now_ms = START_MS - 60 * MINUTE_MS
    other = Claim(TournamentId("cup"), 30, START_MS + 10 * MINUTE_MS, END_MS)
    found = told(terms_of({"floor": 30}), now_ms, other)
    assert found.keys() == {Concern.ABOVE_CEILING}
    text = found[Concern.ABOVE_CEILING]
    for part in ("60 replicas", "cup, t1", "50 is the ceiling", ev.format_time_ms(other.begins_ms)):
        assert part in text
    assert told(terms_of({"floor": 20}), now_ms, other) == {}


def test_claims_that_never_meet_raise_no_concern() -> None:
    now_ms = START_MS - 60 * MINUTE_MS
    before = Claim(TournamentId("before"), 50, 0, START_MS - 30 * MINUTE_MS)
    behind = Claim(TournamentId("behind"), 50, OVER_MS, OVER_MS + 1)
    assert told(terms_of({"floor": 50}), now_ms, before, behind) == {}


def test_tournament_that_is_scheduled_anew_does_not_meet_itself() -> None:
    known = Claim(T, 50, START_MS - 30 * MINUTE_MS, END_MS)
    assert told(terms_of({"floor": 50}), START_MS - 60 * MINUTE_MS, known) == {}


# --- revisions ---------------------------------------------------------------------------------

MAX_SCALE = "autoscaling.knative.dev/max-scale"
ACTIVATION_SCALE = "autoscaling.knative.dev/activation-scale"


def revision(annotations: Mapping[str, str], *, is_routed: bool = True) -> Revision:
    return Revision("query-00001", "query", "1", is_routed, annotations)


def patched(
    annotations: Mapping[str, str], floor: int, *, is_routed: bool = True
) -> dict[str, str]:
    """The annotations after the change, as a merge patch makes it."""
    change = change_of(revision(annotations, is_routed=is_routed), floor)
    return {name: text for name, text in {**annotations, **change}.items() if text is not None}


@pytest.mark.parametrize("own", [{MIN_SCALE: "2"}, {MIN_SCALE: "0"}, {}, {MIN_SCALE: "none"}])
def test_revision_is_raised_and_gets_its_own_floor_back(own: dict[str, str]) -> None:
    raised = patched(own, 10)
    assert raised[MIN_SCALE] == "10"
    assert patched(raised, 10) == raised
    assert patched(raised, 25)[MIN_SCALE] == "25"
    assert patched(patched(raised, 25), 0) == own


def test_change_names_nothing_that_stays_as_it_is() -> None:
    assert change_of(revision({MIN_SCALE: "2"}), 2) == {}
    assert change_of(revision({}), 0) == {}
    assert change_of(revision(patched({MIN_SCALE: "2"}, 10)), 10) == {}


def test_floor_that_is_higher_by_itself_stays() -> None:
    assert change_of(revision({MIN_SCALE: "20"}), 10) == {}
    raised = patched({MIN_SCALE: "20"}, 25)
    assert patched(raised, 10) == {MIN_SCALE: "20"}


def test_floor_never_goes_above_what_the_revision_may_have() -> None:
    assert patched({MIN_SCALE: "2", MAX_SCALE: "8"}, 10)[MIN_SCALE] == "8"
    assert patched({MIN_SCALE: "2", "autoscaling.knative.dev/maxScale": "8"}, 10)[MIN_SCALE] == "8"
    assert patched({MIN_SCALE: "2", ACTIVATION_SCALE: "4"}, 10)[MIN_SCALE] == "4"
    assert patched({MIN_SCALE: "2", MAX_SCALE: "0"}, 10)[MIN_SCALE] == "10"
    assert change_of(revision({MIN_SCALE: "8", MAX_SCALE: "8"}), 10) == {}


def test_revision_without_traffic_is_left_alone_and_let_go() -> None:
    assert change_of(revision({MIN_SCALE: "2"}, is_routed=False), 10) == {}
    raised = patched({MIN_SCALE: "2"}, 10)
    assert patched(raised, 10, is_routed=False) == {MIN_SCALE: "2"}


def test_value_that_somebody_set_over_ours_is_their_own() -> None:
    raised = {**patched({MIN_SCALE: "2"}, 10), MIN_SCALE: "4"}
    again = patched(raised, 10)
    assert again[MIN_SCALE] == "10"
    assert patched(again, 2) == {MIN_SCALE: "4"}


@pytest.mark.parametrize(
    "mark", ["", "{", "[]", "{}", '{"set": 10}', '{"own": 2, "set": "10"}', '"10"']
)
def test_mark_that_is_none_of_ours_is_forgotten(mark: str) -> None:
    assert patched({MIN_SCALE: "10", RAISED: mark}, 2) == {MIN_SCALE: "10"}


def test_mark_goes_to_the_autoscaler_and_never_to_the_pods() -> None:
    """Any other annotation of a revision is in its pods' template: all would be replaced."""
    changes = change_of(revision({MIN_SCALE: "2"}), 10)
    assert all(name.startswith("autoscaling.knative.dev/") for name in changes)
    assert json.loads(str(changes[RAISED])) == {"own": "2", "set": "10"}


SCALES = st.integers(0, 60).map(str)
OWN = st.fixed_dictionaries({}, optional={MIN_SCALE: SCALES, MAX_SCALE: SCALES})


@given(OWN, st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=8))
def test_whatever_happened_between_its_own_floor_comes_back(
    own: dict[str, str], passes: list[tuple[int, bool]]
) -> None:
    annotations: Mapping[str, str] = own
    least = int(own.get(MIN_SCALE, "0"))
    most = int(own.get(MAX_SCALE, "0")) or 60
    for floor, is_routed in passes:
        annotations = patched(annotations, floor, is_routed=is_routed)
        shown = int(annotations.get(MIN_SCALE, "0"))
        wanted = max(least, min(floor, most)) if is_routed else least
        assert shown == wanted
        assert patched(annotations, floor, is_routed=is_routed) == annotations
    assert patched(annotations, 0) == own
