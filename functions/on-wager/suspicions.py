"""Fraud detection beside the boards: what counted is folded once more, into suspicions.

It holds nothing up and drops nothing: what it finds goes out with the position changes of the
same batch, and is acknowledged with them. What it has seen is kept beside the boards before the
board hears that its changes arrived. So whatever is not kept after a crash is told again by the
board's outbox, and comes to the same alerts under the same ids.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from zlib import crc32

from leaderboard import events as ev
from leaderboard import telemetry
from leaderboard.fold import LogEntry, Terms
from leaderboard.fraud import PLAYERS, Climb, Piece, Suspicion, Wager, Watch, alert_id
from leaderboard.fraud_ports import Watches
from leaderboard.fraud_rules import RULES, parameters_of
from leaderboard.model import Disposition, Offset, PositionChange, State, TournamentId
from leaderboard.ports import BatchApplied

HELD: Final = 250_000
"""Habits and ways up in memory, of all tournaments, some 800 bytes each; what goes is read again
when it is needed, which takes longer than looking at a hundred wagers."""
PLAYED_TURNS: Final = 10_000
"""A tournament without a wager in so many batches of this process is not being played."""
KEPT_WHOLE_AFTER: Final = 4_000
"""Wagers and climbs behind a whole before it is kept anew, or four times as many as it has habits:
that is dear, and so is reading a long tail."""
logger = logging.getLogger("on-wager")


@dataclass(slots=True)
class _Held:
    """One tournament's watch in this process, and what of it is not kept yet."""

    watch: Watch
    log_id: str
    kept: Offset | None
    """Up to where it is kept; None: not at all."""
    seen: Offset
    """Up to where it is folded."""
    behind: int
    """Wagers and climbs behind the whole that is kept."""
    unkept: list[Piece] = field(default_factory=list)
    wants_whole: bool = False
    used: int = 0
    """In which turn of the process."""


class Suspicions:
    """For one process. What `look` found is kept by `keep`, or let go of by `forget`."""

    def __init__(self, watches: Watches, players: int = PLAYERS, held: int = HELD) -> None:
        self._watches = watches
        self._players = players
        self._limit = held
        self._held: OrderedDict[TournamentId, _Held] = OrderedDict()
        self._turn = 0
        for rule in RULES:
            telemetry.FRAUD_ALERTS.labels(rule)  # from 0 on: else nobody sees the first one come

    def look(
        self,
        log_id: str,
        tournament_id: TournamentId,
        entries: Sequence[LogEntry],
        applied: BatchApplied,
    ) -> list[ev.Event]:
        """Alerts over one tournament's part of a batch. Raises TransientError."""
        if applied.terms is None or not entries:
            return []
        last = entries[-1].offset
        held = self._find(log_id, tournament_id, applied.terms)
        if Disposition.SKIPPED in applied.verdicts and held.seen < last and not held.unkept:
            # Somebody else applied these, and may have kept them by now.
            self.forget([tournament_id])
            held = self._find(log_id, tournament_id, applied.terms)
        if last <= held.seen:
            return []
        pieces = pieces_of(entries, applied, held.seen)
        held.seen = last
        if not pieces:
            return []
        found = held.watch.see(pieces)
        held.unkept += pieces
        held.behind += sum(len(one.wagers) + len(one.climbs) for one in pieces)
        if applied.terms.state in (State.ENDED, State.CANCELLED):
            # Nothing counts any more, and nobody's habits need to be known.
            held.watch, held.wants_whole = Watch(parameters_of(_said(applied.terms.rules))), True
        # Who was erased is in what was kept so far.
        held.wants_whole |= any(one.removed is not None for one in pieces)
        for one in found:
            telemetry.FRAUD_ALERTS.labels(one.rule).inc()
        return alerts_of(tournament_id, entries, found)

    def keep(self, tournaments: Iterable[TournamentId]) -> None:
        """What was found is acknowledged: keep what it was found in. Raises TransientError."""
        for tournament_id in tournaments:
            held = self._held.get(tournament_id)
            if held is None or not held.unkept:
                continue
            if not self._kept(tournament_id, held) and not self._put_back(tournament_id, held):
                # Another owner has kept more: it is read from there when it is needed.
                logger.info("seen by another", extra=telemetry.fields(tournament=tournament_id))
                del self._held[tournament_id]
                continue
            held.unkept, held.kept, held.wants_whole = [], held.seen, False
        self._shrink()

    def _kept(self, tournament_id: TournamentId, held: _Held) -> bool:
        limit = max(KEPT_WHOLE_AFTER, 4 * len(held.watch))
        if held.kept is not None and not held.wants_whole and held.behind < limit:
            return self._watches.append(tournament_id, held.kept, held.seen, held.unkept)
        held.behind = 0
        watch, log_id = held.watch, held.log_id
        return self._watches.replace(tournament_id, log_id, held.kept, held.seen, watch)

    def _put_back(self, tournament_id: TournamentId, held: _Held) -> bool:
        """Where the store has lost what was kept, this process still has it."""
        kept = self._watches.read(tournament_id)
        if kept is not None and kept.offset >= held.seen:
            return False
        if kept is not None and held.kept is not None and kept.offset > held.kept:
            return False
        held.kept, held.wants_whole = None if kept is None else kept.offset, True
        return self._kept(tournament_id, held)

    def leave(self, log_id: str) -> None:
        """The log is another process's from now on, or may have been meanwhile."""
        self.forget([name for name, held in self._held.items() if held.log_id == log_id])

    def forget(self, tournaments: Iterable[TournamentId]) -> None:
        """Nothing of it counts as seen that is not kept."""
        for tournament_id in tournaments:
            self._held.pop(tournament_id, None)

    def _find(self, log_id: str, tournament_id: TournamentId, terms: Terms) -> _Held:
        held = self._held.get(tournament_id)
        if held is not None and held.log_id == log_id:
            self._held.move_to_end(tournament_id)
            held.used = self._turn
            return held
        kept = self._watches.read(tournament_id)
        if kept is not None and kept.log_id == log_id:
            watch = Watch.of_plain(kept.plain, self._players)
            watch.see(kept.pieces)
            behind = sum(len(one.wagers) + len(one.climbs) for one in kept.pieces)
            held = _Held(watch, log_id, kept.offset, kept.offset, behind)
        else:
            # Offsets of another log mean nothing; what was kept of it gives way.
            watch = Watch(parameters_of(_said(terms.rules)), self._players)
            stands = None if kept is None else kept.offset
            held = _Held(watch, log_id, stands, Offset(-1), 0, wants_whole=True)
        held.used = self._turn
        self._held[tournament_id] = held
        return held

    def _shrink(self) -> None:
        """Let some go, but the last. Tournaments come in turns: of a few more than fit, the one
        that was used longest ago would always be the next that is needed. So it is always the same
        ones that go, unless there are others that nobody plays in any more."""
        self._turn += 1
        total = sum(len(one.watch) for one in self._held.values())
        if total <= self._limit:
            return
        others = list(self._held)[:-1]
        oldest = self._turn - PLAYED_TURNS
        others.sort(key=lambda name: (self._held[name].used > oldest, crc32(name.encode())))
        for tournament_id in others:
            if total <= self._limit:
                break
            if not (held := self._held[tournament_id]).unkept:
                total -= len(held.watch)
                del self._held[tournament_id]


class Unsuspecting:
    """In the place of `Suspicions` where detection is switched off: nobody is looked at. What was
    kept while it was on may name who is erased now: with an erasure all of it goes."""

    def __init__(self, watches: Watches) -> None:
        self._watches = watches

    def look(
        self,
        log_id: str,
        tournament_id: TournamentId,
        entries: Sequence[LogEntry],
        applied: BatchApplied,
    ) -> list[ev.Event]:
        """No alerts. Raises TransientError."""
        if any(type(entry.event.data) is ev.PlayerErased for entry in entries):
            kept = self._watches.read(tournament_id)
            if kept is not None:
                offset = max(kept.offset, entries[-1].offset)
                # Where that is refused another owner has kept more, and takes the player out.
                self._watches.replace(tournament_id, log_id, kept.offset, offset, Watch())
        return []

    def keep(self, tournaments: Iterable[TournamentId]) -> None:
        """There is nothing to keep."""

    def leave(self, log_id: str) -> None:
        """Nor to let go of."""

    def forget(self, tournaments: Iterable[TournamentId]) -> None:
        """As `leave`."""


def pieces_of(entries: Sequence[LogEntry], applied: BatchApplied, above: Offset) -> list[Piece]:
    """What counted of these entries, from above an offset on. One that the board has skipped
    counted before: of those that did not, it says again why."""
    pieces: list[Piece] = []
    wagers: list[Wager] = []
    staff: set[int] = set()
    cuts: list[tuple[int, Any]] = []
    counted, skipped = Disposition.APPLIED, Disposition.SKIPPED
    if applied.verdicts.count(counted) == len(entries) and entries[0].offset > above:
        # Nearly all there is: a batch of wagers that all counted.
        wagers = [
            (offset, event.time_ms, data.player_id, data.stake_minor, data.game_id)
            for offset, _, event in entries
            if type(data := event.data) is ev.WagerPlaced
        ]
    if len(wagers) != len(entries):
        wagers = []
        for (offset, _, event), verdict in zip(entries, applied.verdicts, strict=True):
            if offset <= above or (verdict is not counted and verdict is not skipped):
                continue
            one: Any = event.data
            kind = type(one)
            if kind is ev.WagerPlaced:
                stake = one.stake_minor
                wagers.append((offset, event.time_ms, one.player_id, stake, one.game_id))
            elif kind is ev.ScoreAdjusted:
                staff.add(offset)
            elif kind in _CUTS:
                cuts.append((offset, one))
    # Changes of earlier batches may be told again as well: those events are not at hand.
    first = Offset(entries[0].offset - 1)
    climbs = climbs_of(applied.unconfirmed, max(above, first), entries[-1].offset, staff)
    for end, data in cuts:
        mine = [one for one in wagers if one[0] <= end]
        steps = [one for one in climbs if one[0] <= end]
        wagers, climbs = wagers[len(mine) :], climbs[len(steps) :]
        if isinstance(data, ev.TournamentScheduled):
            pieces.append(Piece(mine, steps, None, _said(data.rules), is_ruled=True))
        else:
            pieces.append(Piece(mine, steps, data.player_id))
    if wagers or climbs:
        pieces.append(Piece(wagers, climbs))
    return pieces


_CUTS: Final = frozenset({ev.PlayerErased, ev.PlayerDisqualified, ev.TournamentScheduled})


def climbs_of(
    changes: Sequence[PositionChange], above: Offset, last: Offset, staff: set[int]
) -> list[Climb]:
    """Ranks that players' own events improved, of those above `above` and up to `last`."""
    climbs = [
        (sequence, time_ms, player, old, new)
        for _, player, sequence, old, new, _, _, _, time_ms, _ in changes
        if new is not None and old is not None and new < old and above < sequence <= last
    ]
    return [one for one in climbs if one[0] not in staff] if staff else climbs  # type: ignore[return-value]  # ids are texts


def alerts_of(
    tournament_id: TournamentId, entries: Sequence[LogEntry], found: Sequence[Suspicion]
) -> list[ev.Event]:
    """The events that tell of these, with the event of the log that was one too many."""
    if not found:
        return []
    by_offset = {entry.offset: entry.event for entry in entries}
    events = []
    for one in found:
        cause = by_offset[one.offset]
        data = ev.FraudSuspected(
            tournament_id=tournament_id,
            player_id=one.player_id,
            rule=one.rule,
            evidence={
                **one.evidence,
                "sequence": one.offset,
                "cause": {"source": cause.source, "id": cause.id},
            },
        )
        events.append(
            ev.Event(
                id=alert_id(tournament_id, one.offset, one.rule),
                source=ev.POSITION_SOURCE,
                time_ms=one.time_ms,
                data=data,
                subject=one.player_id,
                traceparent=cause.traceparent,
            )
        )
    return events


def _said(rules: ev.Rules) -> Any:
    return (rules.model_extra or {}).get("fraud")
