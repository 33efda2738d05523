"""Suspicions: a pure fold over what counted in one tournament's log.

Four rules, declared in `fraud_rules` with their numbers. Each is a few lines over what its players
did lately, so a reviewer can check it by hand. No clock and no chance: time is the event's, order
is the log's, and what is forgotten is forgotten by the log's order too. So whoever folds the same
log comes to the same suspicions, with the same ids, and may have begun with what another one had
come to (`Watch.plain`).

A suspicion changes nothing. An operator decides, and that is an event in the log.

What is remembered is bounded for each tournament, see `PLAYERS`, `KEYS`, `PAIRS`, `LONGEST_CLIMB`:
each table has two generations, and when the newer one is full the older one is forgotten. A
player who is forgotten so is a new one when they come again.

Events may come late, or with a time that is wrong: the log's order is then not that of their times.
What lies further apart than a rule's window is never taken together, whichever came first.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from math import expm1, log1p, log2, sqrt
from typing import Any, Final, NamedTuple

from leaderboard.fraud_rules import (
    DEFAULTS,
    RULES,
    Collusion,
    Parameters,
    RankRise,
    StakeOutlier,
    Velocity,
    parameters_of,
)
from leaderboard.fraud_tables import Recent, joint
from leaderboard.model import TOP_VISIBLE, Offset, PlayerId, TournamentId

PLAYERS: Final = 20_000
"""Players of one generation: those of the latest so many stay known, at most twice as many."""
KEYS: Final = 4_096
"""Games with a stake, whose last player is remembered, of one generation."""
PAIRS: Final = 4_096
"""Candidates for collusion of one generation."""
LONGEST_CLIMB: Final = 64
"""Steps of one player's climb within the window; of more, the smallest are left out."""
SURE: Final = 2
"""Times that a player met the same one, beyond those with others, before the pair is looked at: by
chance one meets whoever comes (the majority vote of Boyer and Moore, 1981)."""
MINUTE_MS: Final = 60_000
_PRUNED_EVERY: Final = 7
"""A player's times that have left the window are dropped with every eighth wager (a mask)."""
PAIR_KEPT_MS: Final = 600_000
"""Of event time: two who have not met for so long begin anew."""


# --- what goes in, and what comes out ------------------------------------------------------------

Wager = tuple[int, int, str, int, str]
"""A wager that counted: offset, time (ms), player, stake (minor units), game."""
Climb = tuple[int, int, str, int, int]
"""A rank that a player's own event improved: offset, time (ms), player, old rank, new rank."""


class Piece(NamedTuple):
    """A stretch of the log, then what ends it, if anything: who was removed from the tournament,
    or other parameters."""

    wagers: Sequence[Wager]
    climbs: Sequence[Climb]
    removed: str | None = None
    parameters: Any = None
    """As `rules.fraud` says; only where `is_ruled`."""
    is_ruled: bool = False


class Suspicion(NamedTuple):
    """Something to look at. At most one of a rule for each offset of a tournament's log."""

    offset: Offset
    time_ms: int
    player_id: PlayerId
    rule: str
    evidence: dict[str, Any]
    """For a reviewer: what was seen, and the numbers that it was compared with. `severity` is how
    far it went, 1 at the threshold; only comparable within a rule."""


def alert_id(tournament_id: TournamentId, offset: int, rule: str) -> str:
    """The id of a suspicion's event: the same from whoever folds the log."""
    return f"{tournament_id}/{offset}/{rule}"


# --- what is remembered of players and pairs, by its places ------------------------------------

_TIMES, _COUNT, _MEAN, _VARIANCE, _PARTNER, _VOTES = range(6)
"""A habit (the hot path takes it apart by its places): times of the wagers in the window, rising;
how many there ever were; mean and variance of the stakes' logarithm; whom the player met most of
late, and by how many votes; then `_TOLD`."""
_CLIMB: Final = 0
"""A way up: (time, rank) of the window, flat, ranks falling, of ranks from which the rule can be
broken; then `_TOLD`."""
_TOLD: Final = -1
"""Rule → when it last told of the player; None before."""
_LINKS, _CLOSE, _TURNS, _LAST, _FIRST_COUNT, _SECOND_COUNT, _LATEST, _BEGAN = range(8)
"""Of a pair: meetings; close ones; those in turn; who came last; what both had wagered before;
time of the last meeting and of the first."""
_TAKEN, _OF_MINUTE, _HELD_BACK, _BEFORE = range(4)
"""Of a budget: alerts of a minute, which minute, what was held back since the last one; and the
same of the minutes before, as (minute, alerts), to which late events come back."""
_MINUTES: Final = 8


def _leave_after(times: list[int], horizon: int) -> None:
    """Drop the times up to `horizon` from the front."""
    gone = 1
    while times[gone] <= horizon:
        gone += 1
    del times[:gone]


def _turn_to(budget: list[Any], minute: int) -> None:
    """From now on alerts are of this minute, which may have had some before."""
    before = budget[_BEFORE]
    known = [place for place, (of, _) in enumerate(before) if of == minute]
    taken = before.pop(known[0])[1] if known else 0
    before.append([budget[_OF_MINUTE], budget[_TAKEN]])
    del before[:-_MINUTES]
    budget[_TAKEN], budget[_OF_MINUTE] = taken, minute


def _farthest(times: Sequence[int]) -> int:
    """Which end of rising times is the farther one from most of them."""
    middle = times[len(times) // 2]
    return 0 if middle - times[0] >= times[-1] - middle else -1


def _start_of(climb: Sequence[int], at: int, window_ms: int) -> int | None:
    """Where the largest rank of the window stands in a way up; None where there is none. It is
    the first place, but for what came late or had a wrong time."""
    for start in range(0, len(climb), 2):
        if abs(at - climb[start]) < window_ms:
            return start
    return None


# --- the fold ------------------------------------------------------------------------------------


class Watch:
    """What is known of one tournament's play, and the fold that goes on from there."""

    def __init__(self, parameters: Parameters = DEFAULTS, players: int = PLAYERS) -> None:
        self._habits: Recent[str] = Recent(players)
        self._ways_up: Recent[str] = Recent(players)
        self._keys: Recent[tuple[str, int]] = Recent(KEYS)
        self._pairs: Recent[tuple[str, str]] = Recent(PAIRS)
        self._budgets: dict[str, list[Any]] = {rule: [0, 0, 0, []] for rule in RULES}
        self._found: list[Suspicion] = []
        self._rule_by(parameters)

    def __len__(self) -> int:
        """How much is remembered: habits and ways up."""
        return len(self._habits) + len(self._ways_up)

    def _rule_by(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._cooldown_ms = parameters.cooldown_seconds * 1000
        velocity, outlier, pairs = (
            parameters.velocity, parameters.stake_outlier, parameters.collusion,
        )  # fmt: skip
        self._hot_rules = (velocity, outlier, pairs)
        # What the hot path compares with; of a rule that is not asked, nothing that matters.
        of, out = velocity or Velocity(), outlier or StakeOutlier()
        self._hot = (
            of.wagers, of.window_seconds * 1000, out.warm_up, out.forgetting,
            int(1 / out.forgetting), out.deviations**2, out.least_deviation**2,
            out.deviations * out.least_deviation, (pairs or Collusion()).turn_ms,
        )  # fmt: skip

    def see(self, pieces: Iterable[Piece]) -> list[Suspicion]:
        """Fold these in, in log order; what is suspicious, in log order."""
        self._found = []
        for piece in pieces:
            self._see_wagers(piece.wagers)
            if self._parameters.rank_rise is not None:
                self._see_climbs(piece.climbs, self._parameters.rank_rise)
            if piece.removed is not None:
                self._forget(piece.removed)
            if piece.is_ruled:
                self._rule_by(parameters_of(piece.parameters))
        found, self._found = self._found, []
        found.sort(key=lambda one: one.offset)
        return found

    def plain(self) -> list[Any]:
        """All of it as lists, dicts, texts and numbers."""
        return [
            self._parameters.model_dump(), self._habits.plain(), self._ways_up.plain(),
            self._keys.plain(), self._pairs.plain(), self._budgets,
        ]  # fmt: skip

    @classmethod
    def of_plain(cls, plain: Sequence[Any], players: int = PLAYERS) -> Watch:
        """What `plain` was made of, also after a way through JSON or MessagePack."""
        watch = cls(parameters_of(plain[0]), players)
        watch._habits.take(plain[1])
        watch._ways_up.take(plain[2])
        watch._keys.take(joint(plain[3]))
        watch._pairs.take(joint(plain[4]))
        # An earlier version knew of one minute.
        watch._budgets.update({rule: [*one, []][:4] for rule, one in plain[5].items()})
        return watch

    # each wager: the hot path

    def _see_wagers(self, wagers: Sequence[Wager]) -> None:  # noqa: PLR0915 - a call costs as much
        velocity, outlier, pairs = self._hot_rules
        most, window_ms, warm_up, forgetting, settled, squared, floor, least, turn_ms = self._hot
        habit_of, last_of = self._habits.newer.get, self._keys.newer.get
        remaining = 1 - forgetting
        for offset, at, player, stake, game in wagers:
            habit = habit_of(player)
            if habit is None:
                habit = self._habits.kept(player)
                if habit is None:
                    habit = [[], 0, 0.0, 0.0, "", 0, None]
                    self._habits.put(player, habit)
            times, count, mean, variance, partner, votes, told = habit
            habit[1] = count = count + 1
            if velocity is not None:
                if times and times[-1] > at:
                    insort(times, at)
                else:
                    times.append(at)
                # For the memory now and then, and before the count is believed.
                if not count & _PRUNED_EVERY or len(times) > most:
                    if times[0] <= at - window_ms:
                        _leave_after(times, at - window_ms)
                    if len(times) > most:
                        is_one_window = times[-1] - times[0] < window_ms
                        if is_one_window and self._wants(told, "velocity", at):
                            self._too_fast(offset, at, player, habit, velocity)
                        # So many and no more are kept, and the next one is above the limit again.
                        del times[0 if is_one_window else _farthest(times)]
            if outlier is not None:
                away = log1p(stake) - mean
                if (
                    away > least
                    and count > warm_up
                    and away * away > squared * (variance if variance > floor else floor)
                ):
                    if self._wants(told, "stake_outlier", at):
                        self._too_much(offset, at, player, stake, habit, outlier)
                    # What is far outside is not the habit: it may move it as far as it may go.
                    away = sqrt(squared * max(variance, floor))
                if count > settled:
                    moved = forgetting * away
                    habit[3] = remaining * (variance + moved * away)
                else:
                    moved = away / count
                    habit[3] = (1 - 1 / count) * (variance + moved * away)
                habit[2] = mean + moved
            if pairs is not None:
                last = last_of((game, stake))
                if last is None:
                    last = self._keys.kept((game, stake))
                    if last is None:
                        self._keys.put((game, stake), [player, at])
                        continue
                other, when = last
                last[1] = at
                if other == player:
                    continue
                last[0] = player
                if not -turn_ms <= at - when <= turn_ms:
                    continue
                if partner == other:
                    habit[5] = votes + 1
                    if votes >= SURE:
                        self._met(offset, at, player, (other, when), pairs)
                elif votes:
                    habit[5] = votes - 1
                else:
                    habit[4], habit[5] = other, 1

    def _too_fast(
        self, offset: int, at: int, player: str, habit: list[Any], rule: Velocity
    ) -> None:
        times = habit[_TIMES]
        count = len(times)
        seconds = max(times[-1] - times[0], 1) / 1000
        evidence = {
            "wagers": count,
            "within_seconds": round(seconds, 3),
            "limit": rule.wagers,
            "window_seconds": rule.window_seconds,
        }
        severity = rule.window_seconds / seconds
        self._tell(offset, at, player, habit, ("velocity", severity, evidence))

    def _too_much(
        self, offset: int, at: int, player: str, stake: int, habit: list[Any], rule: StakeOutlier
    ) -> None:
        deviation = max(sqrt(habit[_VARIANCE]), rule.least_deviation)
        away = (log1p(stake) - habit[_MEAN]) / deviation
        evidence = {
            "stake_minor": stake,
            "usual_stake_minor": round(expm1(habit[_MEAN])),
            "deviations": round(away, 2),
            "limit": rule.deviations,
            "wagers_seen": habit[_COUNT] - 1,
        }
        severity = away / rule.deviations
        self._tell(offset, at, player, habit, ("stake_outlier", severity, evidence))

    # pairs

    def _met(
        self, offset: int, at: int, player: str, last: tuple[str, int], rule: Collusion
    ) -> None:
        """The player wagers the same as somebody else just before."""
        other, when = last
        names = (other, player) if other < player else (player, other)
        counts = [self._count_of(name) for name in names]
        pair = self._pairs.newer.get(names) or self._pairs.kept(names)
        if pair is None:
            pair = [0, 0, 0, other, 0, 0, 0, 0]
            self._pairs.put(names, pair)
        most = max(counts[0] - pair[_FIRST_COUNT], counts[1] - pair[_SECOND_COUNT])
        if (
            not pair[_LINKS]
            or abs(at - pair[_LATEST]) > PAIR_KEPT_MS
            or most > 4 * pair[_LINKS] + 8
            or counts[0] <= pair[_FIRST_COUNT]
            or counts[1] <= pair[_SECOND_COUNT]
        ):
            # Met by chance before, or one of them was forgotten meanwhile: counted from here.
            pair[:] = [0, 0, 0, other, counts[0] - 1, counts[1] - 1, at, when]
        pair[_LINKS] += 1
        pair[_CLOSE] += abs(at - when) <= rule.close_ms
        pair[_TURNS] += pair[_LAST] == other
        pair[_LAST], pair[_LATEST] = player, at
        if max(pair[_CLOSE], pair[_TURNS] // 2) >= rule.repeats:
            self._judge_pair(offset, names, counts, pair, rule)

    def _judge_pair(
        self,
        offset: int,
        names: tuple[str, str],
        counts: Sequence[int],
        pair: list[Any],
        rule: Collusion,
    ) -> None:
        played = [counts[0] - pair[_FIRST_COUNT], counts[1] - pair[_SECOND_COUNT]]
        close = pair[_CLOSE] / max(played)
        in_turn = pair[_TURNS] / sum(played)
        kind, share = ("synchronised", close) if close >= in_turn else ("alternating", in_turn)
        repeats = pair[_CLOSE] if kind == "synchronised" else pair[_TURNS] // 2
        if share < rule.share or repeats < rule.repeats or len(self._habits) < rule.least_players:
            return
        at, player = pair[_LATEST], pair[_LAST]
        habit = self._habits.find(player)
        if habit is None:
            raise AssertionError("who has just wagered is known")
        pair[_LINKS] = 0
        if not self._wants(habit[_TOLD], "collusion", at):
            return
        other = names[0] if player == names[1] else names[1]
        evidence = {
            "kind": kind,
            "with_player_id": other,
            "meetings": repeats,
            "share": round(min(share, 1.0), 3),
            "wagers": played[names.index(player)],
            "wagers_of_other": played[names.index(other)],
            "within_seconds": round(abs(at - pair[_BEGAN]) / 1000, 3),
            "limit": rule.repeats,
        }
        severity = repeats / rule.repeats * min(share, 1.0) / rule.share
        self._tell(offset, at, player, habit, ("collusion", severity, evidence))

    def _count_of(self, player: str) -> int:
        habit = self._habits.find(player)
        return 0 if habit is None else int(habit[_COUNT])

    # each climb

    def _see_climbs(self, climbs: Sequence[Climb], rule: RankRise) -> None:
        window_ms, least = rule.window_seconds * 1000, rule.ranks
        way_of, older = self._ways_up.newer.get, self._ways_up.older
        for offset, at, player, old, new in climbs:
            way = way_of(player)
            is_start = old - 1 > least  # nearer to the top nobody rises that far
            if way is None:
                if not is_start and player not in older:
                    continue
                way = self._ways_up.kept(player)
                if way is None:
                    way = [[], None]
                    self._ways_up.put(player, way)
            climb, told = way
            if is_start:
                # Ranks fall from the front on, so the largest of the window stands first.
                while climb and climb[-1] <= old:
                    del climb[-2:]
                climb += (at, old)
            while climb and climb[0] <= at - window_ms:
                del climb[:2]
            if not climb:
                continue
            if climb[1] - new > least:
                start = _start_of(climb, at, window_ms)
                is_far = start is not None and climb[start + 1] - new > least
                if is_far and self._wants(told, "rank_rise", at, is_top=new <= TOP_VISIBLE):
                    self._rose(offset, at, player, new, way, rule)
            if len(climb) > 2 * LONGEST_CLIMB:
                del climb[-2:]

    def _rose(
        self, offset: int, at: int, player: str, new: int, way: list[Any], rule: RankRise
    ) -> None:
        climb = way[_CLIMB]
        start = _start_of(climb, at, rule.window_seconds * 1000) or 0
        since, old = climb[start : start + 2]
        evidence = {
            "from_rank": old,
            "to_rank": new,
            "ranks": old - new,
            "within_seconds": round(abs(at - since) / 1000, 3),
            "limit": rule.ranks,
            "window_seconds": rule.window_seconds,
        }
        # Where many stand close together a single wager passes hundreds: the same rise weighs
        # more the nearer it comes to the top.
        severity = log2(old / new)
        self._tell(offset, at, player, way, ("rank_rise", severity, evidence))

    # telling, forgetting

    def _wants(
        self, told: dict[str, int] | None, rule: str, at: int, *, is_top: bool = True
    ) -> bool:
        """Whether an alert may go out now. Asked before its evidence is made: of a flood nearly
        all is held back."""
        # On both sides: one event of a wrong time must not silence a rule for ever.
        if told is not None and rule in told and abs(at - told[rule]) < self._cooldown_ms:
            return False
        budget = self._budgets[rule]
        minute = at // MINUTE_MS
        if minute != budget[_OF_MINUTE]:
            _turn_to(budget, minute)
        limit = self._parameters.alerts_a_minute
        if budget[_TAKEN] >= (limit if is_top else limit // 2):
            budget[_HELD_BACK] += 1
            return False
        return True

    def _tell(
        self,
        offset: int,
        at: int,
        player: str,
        known: list[Any],
        what: tuple[str, float, dict[str, Any]],
    ) -> None:
        """It is wanted."""
        rule, severity, evidence = what
        budget = self._budgets[rule]
        budget[_TAKEN] += 1
        known[_TOLD] = {**(known[_TOLD] or {}), rule: at}
        if budget[_HELD_BACK]:
            evidence["held_back"], budget[_HELD_BACK] = budget[_HELD_BACK], 0
        evidence["severity"] = round(severity, 2)
        self._found.append(Suspicion(Offset(offset), at, PlayerId(player), rule, evidence))

    def _forget(self, player: str) -> None:
        self._habits.remove(player)
        for known in (self._habits.newer, self._habits.older):
            for habit in known.values():
                if habit[_PARTNER] == player:
                    habit[_PARTNER], habit[_VOTES] = "", 0
        self._ways_up.remove(player)
        for table in (self._pairs.newer, self._pairs.older):
            for names in [names for names in table if player in names]:
                del table[names]
        for keys in (self._keys.newer, self._keys.older):
            for key in [key for key, last in keys.items() if last[0] == player]:
                del keys[key]
