"""Play in money for tests of fraud detection: a log with cheats, bursts and all else in it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, Final

from consuming import REMEMBERED
from leaderboard import events as ev
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, TournamentId
from logs import LOG, START_MS, TOMBSTONE_KEY, disqualified, entry, erased, scheduled

SENSITIVE: Final[dict[str, Any]] = {
    "rank_rise": {"ranks": 3},
    "velocity": {"wagers": 4, "window_seconds": 20},
    "stake_outlier": {"warm_up": 3, "deviations": 1.5},
    "collusion": {"repeats": 3, "share": 0.4, "least_players": 2},
    "cooldown_seconds": 5,
    "alerts_a_minute": 500,
}
"""So touchy that a short log has alerts of every kind."""
MONEY: Final[dict[str, Any]] = {"scoring": {"kind": "stake"}, "currency": "EUR"}


def played(
    offset: int, player_id: str, stake_minor: int, *, after_ms: int = 0, **more: Any
) -> LogEntry:
    """A wager, so long after the start."""
    data = ev.WagerPlaced(
        tournament_id=more.pop("tournament_id", "t1"),
        player_id=player_id,
        game_id=more.pop("game_id", "g1"),
        stake_minor=stake_minor,
        currency="EUR",
    )
    return entry(offset, data, time_ms=START_MS + after_ms, **more)


def suspicious_log(seed: int, length: int = 160, players: int = 8) -> Iterator[LogEntry]:
    """One tournament, judged by `SENSITIVE`: repeats, wrong games, who is erased or disqualified
    and comes again, another schedule in the middle."""
    chance = random.Random(seed)
    yield scheduled(0, **MONEY, games=["g1", "g2"], fraud=SENSITIVE)
    offset, after_ms, turn = 0, 0, 0
    written: list[LogEntry] = []
    for number in range(length):
        offset += chance.choice((1, 1, 2, 4))
        after_ms += chance.choice((0, 10, 300, 2_000, 9_000))
        player = f"p{chance.randrange(players)}"
        roll = chance.random()
        if roll < 0.08 and written:
            one = LogEntry(Offset(offset), START_MS,
                           chance.choice(written).event)  # fmt: skip
        elif roll < 0.12:
            one = played(offset, player, 50, after_ms=after_ms, game_id="g9")
        elif roll < 0.13:
            one = erased(offset, player)
        elif roll < 0.14:
            one = disqualified(offset, player)
        elif number == length // 2:
            fraud = {**SENSITIVE, "velocity": {"wagers": 2}}
            one = scheduled(offset, **MONEY, games=["g1", "g2"], fraud=fraud)
        else:
            stake = chance.choice((10, 10, 20, 50, 4_000))
            game = chance.choice(("g1", "g2"))
            if roll > 0.8:
                # Two who always stake the same, in turn.
                turn += 1
                player, stake, game = f"c{turn % 2}", 770, "g1"
            one = played(offset, player, stake, after_ms=after_ms, game_id=game)
        written.append(one)
        yield one


def oracle_alerts(suspicions: Any, entries: Sequence[LogEntry]) -> dict[str, ev.Event]:
    """The alerts over the whole log of each tournament, folded in one piece, by id.

    `suspicions` is the module of on-wager that turns entries into pieces."""
    found: dict[str, ev.Event] = {}
    for name in sorted({str(one.event.tournament_id) for one in entries}):
        mine = [one for one in entries if one.event.tournament_id == name]
        board = MemoryBoard(TOMBSTONE_KEY, REMEMBERED)
        applied = board.apply(TournamentId(name), LOG, None, mine, None)
        if applied.terms is None:
            continue
        watch = suspicions.Watch(suspicions.parameters_of(None))
        seen = watch.see(suspicions.pieces_of(mine, applied, -1))
        found |= {one.id: one for one in suspicions.alerts_of(TournamentId(name), mine, seen)}
    return found
