"""The rules of fraud detection, each against play that is on either side of its threshold."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from leaderboard import fraud
from leaderboard.fraud import Piece, Suspicion, Wager, Watch
from leaderboard.fraud_rules import DEFAULTS, RULES, Parameters, parameters_of

MINUTE = 60_000


def only(rule: str, **numbers: Any) -> Parameters:
    """Nothing but this rule."""
    given: dict[str, Any] = dict.fromkeys(RULES)
    more = {name: numbers.pop(name) for name in ("cooldown_seconds", "alerts_a_minute") if
            name in numbers}  # fmt: skip
    return Parameters.model_validate({**given, rule: numbers, **more})


def wagers(*given: tuple[int, str, int], game: str = "g1") -> list[Wager]:
    """(time, player, stake); the offset is the place."""
    return [(n, at, player, stake, game) for n, (at, player, stake) in enumerate(given)]


def seen(parameters: Parameters, given: Sequence[Wager], climbs: Any = ()) -> list[Suspicion]:
    return Watch(parameters).see([Piece(given, climbs)])


# --- rank rise -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("climbs", "offsets"),
    [
        ([(1, 0, "p", 150, 50)], []),
        ([(1, 0, "p", 151, 50)], [1]),
        ([(1, 0, "p", 200, 150), (2, 299_999, "p", 150, 99)], [2]),
        ([(1, 0, "p", 200, 150), (2, 300_000, "p", 150, 99)], []),
        # Pushed down between two of their own: the largest counts.
        ([(1, 0, "p", 120, 80), (2, 1000, "p", 190, 60)], [2]),
        ([(1, 0, "p", 151, 100), (2, 1000, "q", 100, 49)], []),
    ],
    ids=["exactly 100", "101", "in steps", "a window apart", "pushed down", "two players"],
)
def test_a_rise_counts_from_the_largest_rank_of_the_window(
    climbs: Sequence[fraud.Climb], offsets: Sequence[int]
) -> None:
    assert [one.offset for one in seen(DEFAULTS, (), climbs)] == offsets


def test_a_rise_says_from_where_to_where() -> None:
    (one,) = seen(DEFAULTS, (), [(1, 0, "p", 900, 300), (2, 1500, "p", 310, 200)][:1])
    assert one.evidence == {
        "from_rank": 900, "to_rank": 300, "ranks": 600, "within_seconds": 0.0,
        "limit": 100, "window_seconds": 300, "severity": 1.58,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("climbs", "offsets"),
    [
        # Its first rank is of another time than what came before it in the log.
        ([(1, 900_000, "p", 400, 300), (2, 100_000, "p", 320, 290)], []),
        # Neither does a time that is wrong hide what comes behind it, nor is it taken for recent.
        ([(1, 9_000_000, "p", 900, 870), (2, 0, "p", 880, 850), (3, 9_000, "p", 850, 775)], [3]),
        ([(1, 9_000_000, "p", 900, 870), (2, 0, "p", 860, 850), (3, 9_000, "p", 850, 775)], []),
        # A little late is still within the window.
        ([(1, 9_000, "p", 300, 250), (2, 8_000, "p", 260, 199)], [2]),
    ],
    ids=["late", "after a wrong time", "a wrong time", "a little late"],
)
def test_what_came_late_has_not_risen_from_ranks_of_another_time(
    climbs: Sequence[fraud.Climb], offsets: Sequence[int]
) -> None:
    found = seen(DEFAULTS, (), climbs)
    assert [one.offset for one in found] == offsets
    assert all(0 <= one.evidence["within_seconds"] < 300 for one in found)


def test_rises_equal_those_of_a_naive_look_at_the_window() -> None:
    chance = random.Random(5)
    rule = only("rank_rise", ranks=20, window_seconds=10, cooldown_seconds=1, alerts_a_minute=9999)
    climbs: list[fraud.Climb] = []
    at, ranks = 0, dict.fromkeys("abc", 100)
    for offset in range(3000):
        at += chance.randrange(1000, 3000)
        player = chance.choice("abc")
        old = ranks[player] + chance.randrange(8)
        new = max(old - chance.randrange(1, 14), 1)
        ranks[player] = new if new > 20 else 100
        climbs.append((offset, at, player, old, new))
    naive = [
        offset
        for offset, at, player, _, new in climbs
        if max(c[3] for c in climbs if c[2] == player and at - 10_000 < c[1] <= at) - new > 20
    ]
    assert len(naive) > 50
    assert [one.offset for one in seen(rule, (), climbs)] == naive


# --- velocity ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("apart_ms", "is_told"), [(600, False), (599, True)])
def test_more_than_a_hundred_in_any_minute_are_too_many(apart_ms: int, is_told: bool) -> None:
    given = wagers(*((n * apart_ms, "p", 100) for n in range(101)))
    found = seen(only("velocity"), given)
    assert [one.rule for one in found] == ["velocity"] * is_told
    if is_told:
        assert (found[0].offset, found[0].evidence["wagers"]) == (100, 101)


def test_velocity_looks_at_every_minute_and_not_at_those_of_the_clock() -> None:
    at = [59_000 + n for n in range(51)] + [60_000 + n for n in range(50)]
    assert len(seen(only("velocity"), wagers(*((t, "p", 100) for t in at)))) == 1


def test_a_late_wager_is_not_of_the_minute_in_which_it_comes() -> None:
    fast = [(900_000 + n * 590, "p", 100) for n in range(100)]
    late = (100_000, "p", 100)
    assert seen(only("velocity"), wagers(*fast, late)) == []
    (one,) = seen(only("velocity"), wagers(*fast, late, (959_000, "p", 100)))
    assert (one.offset, one.evidence["wagers"]) == (101, 101)
    assert one.evidence["within_seconds"] == 59.0


def test_a_wrong_time_hides_nobody_who_is_too_fast() -> None:
    wrong = [(90_000_000, "p", 100)]
    fast = [(n * 100, "p", 100) for n in range(102)]
    assert [one.offset for one in seen(only("velocity"), wagers(*wrong, *fast))] == [101]


@pytest.mark.parametrize("seed", range(3))
def test_who_is_told_of_was_too_fast_whatever_came_late(seed: int) -> None:
    """Two producers, one of them minutes behind: what they send is not added up."""
    chance = random.Random(seed)
    rule = only("velocity", wagers=10, window_seconds=10, cooldown_seconds=1, alerts_a_minute=9999)
    given, at = [], 0
    for _ in range(4000):
        at += chance.choice((100, 900, 2500))
        behind = 300_000 if chance.random() < 0.3 else chance.randrange(3_000)
        given.append((max(at - behind, 0), "p", 100))
    found = seen(rule, wagers(*given))
    assert len(found) > 100
    for one in found:
        near = sorted(at for at, _, _ in given[: one.offset + 1] if abs(at - one.time_ms) < 10_000)
        assert any(last - first < 10_000 for first, last in zip(near, near[10:], strict=False))
        assert one.evidence["within_seconds"] < 10


def test_velocity_remembers_no_more_than_its_limit() -> None:
    watch = Watch(only("velocity"))
    watch.see([Piece(wagers(*((n, "p", 100) for n in range(5000))), ())])
    assert len(watch.plain()[1][0][0][1][0]) == 100


# --- stakes --------------------------------------------------------------------------------------


def habit(stakes: Iterable[int]) -> list[Wager]:
    return wagers(*((n * 1000, "p", stake) for n, stake in enumerate(stakes)))


def test_a_stake_far_above_the_own_habit_is_told() -> None:
    chance = random.Random(1)
    usual = [round(math.exp(chance.gauss(5, 0.3))) for _ in range(60)]
    assert seen(only("stake_outlier"), habit(usual)) == []
    (one,) = seen(only("stake_outlier"), habit([*usual, 5000]))
    assert one.evidence["stake_minor"] == 5000
    assert 120 < one.evidence["usual_stake_minor"] < 180
    assert one.evidence["deviations"] > 4


def test_nobody_is_judged_before_they_have_a_habit() -> None:
    assert seen(only("stake_outlier"), habit([100] * 19 + [100_000])) == []
    assert len(seen(only("stake_outlier"), habit([100] * 20 + [100_000]))) == 1


def test_who_always_stakes_the_same_may_stake_a_little_more() -> None:
    assert seen(only("stake_outlier"), habit([100] * 50 + [250])) == []
    assert len(seen(only("stake_outlier"), habit([100] * 50 + [300]))) == 1


def test_less_than_usual_is_no_suspicion_and_outliers_do_not_become_the_habit() -> None:
    rule = only("stake_outlier", cooldown_seconds=1)
    assert seen(rule, habit([100] * 50 + [1])) == []
    found = seen(rule, habit([100] * 50 + [50_000] * 3))
    assert len(found) == 3


# --- pairs ---------------------------------------------------------------------------------------


def crowd(chance: random.Random, length: int) -> list[tuple[int, str, int]]:
    """Twenty honest players, who meet by chance."""
    return [
        (n * 700, f"h{chance.randrange(20)}", chance.choice((100, 200, 500))) for n in range(length)
    ]


def numbered(given: Iterable[tuple[int, str, int]]) -> list[Wager]:
    return wagers(*sorted(given))


def test_honest_players_who_meet_by_chance_are_no_pair() -> None:
    assert seen(only("collusion"), numbered(crowd(random.Random(2), 4000))) == []


def test_two_in_step_are_synchronised() -> None:
    chance = random.Random(3)
    pair = []
    for n in range(14):
        stake, at = chance.randrange(1000, 9000), n * 30_000
        pair += [(at, "x", stake), (at + 400, "y", stake)]
    found = seen(only("collusion"), numbered([*crowd(chance, 700), *pair]))
    assert [(one.player_id, one.evidence["kind"]) for one in found] == [("y", "synchronised")]
    assert found[0].evidence["with_player_id"] == "x"
    assert found[0].evidence["meetings"] == 12


def test_two_in_turn_are_alternating() -> None:
    chance = random.Random(4)
    pair = [(n * 5_000, "xy"[n % 2], 777) for n in range(30)]
    found = seen(only("collusion"), numbered([*crowd(chance, 300), *pair]))
    assert [one.evidence["kind"] for one in found] == ["alternating"]


@pytest.mark.parametrize("late_ms", [11_000, 600_000])
def test_two_next_to_each_other_in_the_log_alone_are_no_pair(late_ms: int) -> None:
    """The second one's events come late: they were not at the same time, nor in turn."""
    given = crowd(random.Random(6), 700)
    for n in range(14):
        given += [(600_000 + n * 30_000, "x", 4000 + n), (600_400 + n * 30_000, "y", 4000 + n)]
    given.sort()
    late = [(at - late_ms if who == "y" else at, who, stake) for at, who, stake in given]
    assert [one.player_id for one in seen(only("collusion"), wagers(*given))] == ["y"]
    assert seen(only("collusion"), wagers(*late)) == []


@pytest.mark.parametrize("why", ["few players", "half of what they play", "too far apart"])
def test_no_pair(why: str) -> None:
    chance = random.Random(5)
    apart = 11_000 if why == "too far apart" else 400
    honest = [] if why == "few players" else crowd(chance, 700)
    own = 3 if why == "half of what they play" else 0
    pair = []
    for n in range(14):
        at = n * 30_000
        pair += [(at, "x", 4000 + n), (at + apart, "y", 4000 + n)]
        pair += [(at + 15_000 + i, name, 5000 + 40 * n + i * 7 + ord(name))
                 for i in range(own) for name in "xy"]  # fmt: skip
    assert seen(only("collusion"), numbered([*honest, *pair])) == []


# --- how often, how much -------------------------------------------------------------------------


def test_a_player_is_told_of_once_within_the_cooldown() -> None:
    given = wagers(*((n * 10, "p", 100) for n in range(200)))
    given += [(n, at + 600_000, player, stake, game) for n, at, player, stake, game in given]
    assert [one.offset for one in seen(only("velocity"), given)] == [100, 100]


def test_a_flood_is_held_back_half_of_it_kept_for_the_top_and_counted() -> None:
    rule = only("rank_rise", alerts_a_minute=10)
    far = [(n, n, f"far{n}", 900, 500) for n in range(50)]
    near = [(100 + n, 100 + n, f"near{n}", 900, 50) for n in range(50)]
    later = [(200, MINUTE, "later", 900, 500)]
    found = seen(rule, (), [*far, *near, *later])
    assert [one.player_id for one in found] == [
        *(f"far{n}" for n in range(5)), *(f"near{n}" for n in range(5)), "later"
    ]  # fmt: skip
    held_back = sum(one.evidence.get("held_back", 0) for one in found)
    assert held_back + 10 == 100


def test_a_flood_of_two_minutes_in_turn_is_held_back_too() -> None:
    """Two producers, one of them behind: each minute has what it may have, however often the log
    goes from one to the other; and a third one is not silenced."""
    rule = only("rank_rise", alerts_a_minute=10)
    climbs = [(n, n % 2 * 5 * MINUTE + n, f"p{n}", 900, 50) for n in range(200)]
    later = [(500, 6 * MINUTE, "later", 900, 50)]
    whole = seen(rule, (), [*climbs, *later])
    assert [one.offset for one in whole] == [*range(20), 500]
    watch, found = Watch(rule), []
    for one in (*climbs, *later):
        found += watch.see([Piece((), [one])])
        watch = Watch.of_plain(json.loads(json.dumps(watch.plain())))
    assert found == whole


def test_budgets_of_an_earlier_version_are_read() -> None:
    watch = Watch(only("rank_rise", alerts_a_minute=10))
    watch.see([Piece((), [(n, n, f"p{n}", 900, 50) for n in range(12)])])
    plain = watch.plain()
    plain[5] = {name: one[:3] for name, one in plain[5].items()}
    found = Watch.of_plain(plain).see(
        [Piece((), [(20, 20, "q", 900, 50), (21, MINUTE, "r", 900, 50)])]
    )
    assert [(one.offset, one.evidence["held_back"]) for one in found] == [(21, 3)]


def test_memory_is_bounded_and_who_was_long_away_is_new() -> None:
    watch = Watch(only("stake_outlier"), players=10)
    for n in range(1000):
        watch.see([Piece([(n, n, f"p{n}", 100, "g")], ())])
        assert len(watch) <= 20
    regular = [(n, n, f"p{980 + n % 20}", 100, "g") for n in range(1000, 1400)]
    assert len(Watch(players=10)) == 0
    watch.see([Piece(regular, ())])
    assert len(watch) == 20


# --- the same from whoever folds it --------------------------------------------------------------


def some_play(seed: int, length: int = 3000) -> tuple[list[Wager], list[fraud.Climb]]:
    chance = random.Random(seed)
    at, given, climbs = 0, [], []
    for offset in range(length):
        at += chance.choice((0, 5, 200, 1500))
        player = f"p{min(int(chance.expovariate(0.15)), 39)}"
        stake = chance.choice((10, 20, 50, 50, 5000))
        if offset % 9 < 2:
            player, stake = f"pair{offset % 9}", 770  # always one after the other
        given.append((offset, at, player, stake, f"g{chance.randrange(3)}"))
        if chance.random() < 0.5:
            old = chance.randrange(2, 900)
            climbs.append((offset, at, player, old, chance.randrange(1, old)))
    return given, climbs


def cut(given: Sequence[Any], climbs: Sequence[Any], chance: random.Random) -> list[Piece]:
    pieces, start = [], 0
    while start < len(given):
        end = min(start + chance.randrange(1, 60), len(given))
        mine = [one for one in climbs if start <= one[0] < end]
        pieces.append(Piece(given[start:end], mine))
        start = end
    return pieces


@pytest.mark.parametrize("seed", range(5))
def test_however_the_log_is_cut_and_whoever_goes_on_suspicions_are_the_same(seed: int) -> None:
    given, climbs = some_play(seed)
    touchy = Parameters.model_validate(
        {"velocity": {"wagers": 10}, "cooldown_seconds": 60, "collusion": {"repeats": 3,
         "share": 0.1}, "stake_outlier": {"deviations": 1.5}}
    )  # fmt: skip
    whole = Watch(touchy, players=12).see([Piece(given, climbs)])
    assert {one.rule for one in whole} == set(RULES)
    chance, found = random.Random(seed), []
    watch = Watch(touchy, players=12)
    for piece in cut(given, climbs, chance):
        found += watch.see([piece])
        if chance.random() < 0.3:
            watch = Watch.of_plain(json.loads(json.dumps(watch.plain())), players=12)
    assert found == whole


def test_who_is_removed_is_nowhere_in_what_is_remembered() -> None:
    given, climbs = some_play(9)
    watch = Watch(only("collusion"))
    watch.see([Piece(given, climbs)])
    assert '"p3"' in json.dumps(watch.plain())
    watch.see([Piece((), (), removed="p3")])
    assert '"p3"' not in json.dumps(watch.plain())


# --- parameters ----------------------------------------------------------------------------------


def test_a_tournament_has_numbers_of_its_own_from_its_schedule_on() -> None:
    watch = Watch()
    fast = wagers(*((n, "p", 100) for n in range(5)))
    assert watch.see([Piece(fast, ())]) == []
    watch.see([Piece((), (), parameters={"velocity": {"wagers": 6}}, is_ruled=True)])
    assert [one.rule for one in watch.see([Piece(fast, ())])] == ["velocity"]


@pytest.mark.parametrize(
    "given", [17, "x", [], {"velocity": {"wagers": 0}}, {"velocty": {}}, {"velocity": {"a": 1}}]
)
def test_what_nobody_understands_counts_as_nothing_said_and_is_refused_where_asked(
    given: Any,
) -> None:
    assert parameters_of(given) == DEFAULTS
    with pytest.raises(ValidationError):
        Parameters.model_validate(given)


def test_a_rule_can_be_left_out() -> None:
    given = wagers(*((n, "p", 100) for n in range(300)))
    assert seen(parameters_of({"velocity": None}), given) == []


@pytest.mark.parametrize(
    ("rule", "number"),
    [("stake_outlier", "forgetting"), ("stake_outlier", "deviations"),
     ("stake_outlier", "least_deviation"), ("collusion", "share")],
)  # fmt: skip
@pytest.mark.parametrize("small", [0, 5e-324, 1e-320, 1e-310, 1e-18, 1e-9])
def test_no_number_is_so_small_that_another_one_becomes_infinite(
    rule: str, number: str, small: float
) -> None:
    """Such a one counts as nothing said: it stopped whoever folded by it."""
    assert parameters_of({rule: {number: small}}) is DEFAULTS
