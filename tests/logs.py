"""Logs for tests: entries as a log would hold them, written in one line each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from leaderboard import events as ev
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, PlayerId, TournamentId

T = TournamentId("t1")
ALICE, BOB, CAROL = PlayerId("alice"), PlayerId("bob"), PlayerId("carol")
START_MS = 1_760_000_000_000
END_MS = START_MS + 3_600_000
TOMBSTONE_KEY = b"a key of tests, made for nothing else"
LOG = "wagers/test/0"


def rules(**changes: Any) -> ev.Rules:
    """Sum of stakes, descending, open to all; `changes` say what differs."""
    given: dict[str, Any] = {"scoring": {"kind": "submitted"}, "operator": "sum"}
    return ev.Rules.model_validate({**given, **changes})


def entry(
    offset: int,
    data: ev.Data,
    *,
    time_ms: int = START_MS + 1000,
    event_id: str | None = None,
    source: str = "/tests",
    sequence: int | None = None,
    logged_at_ms: int = START_MS,
) -> LogEntry:
    event = ev.Event(
        id=event_id or f"e{offset}",
        source=source,
        time_ms=time_ms,
        data=data,
        sequence=sequence,
    )
    return LogEntry(Offset(offset), logged_at_ms, event)


def moment(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, UTC)


def scheduled(
    offset: int,
    tournament_id: str = T,
    *,
    starts_ms: int = START_MS,
    ends_ms: int = END_MS,
    event_id: str | None = None,
    **changes: Any,
) -> LogEntry:
    data = ev.TournamentScheduled(
        tournament_id=tournament_id,
        name="Cup",
        starts_at=moment(starts_ms),
        ends_at=moment(ends_ms),
        rules=rules(**changes),
    )
    return entry(offset, data, event_id=event_id, time_ms=START_MS - 1000)


def scored(
    offset: int,
    player_id: str,
    score: int,
    subscore: int | None = None,
    *,
    tournament_id: str = T,
    time_ms: int = START_MS + 1000,
    event_id: str | None = None,
    sequence: int | None = None,
    source: str = "/tests",
) -> LogEntry:
    data = ev.ScoreSubmitted(
        tournament_id=tournament_id, player_id=player_id, score=score, subscore=subscore
    )
    return entry(offset, data, time_ms=time_ms, event_id=event_id, sequence=sequence, source=source)


def wagered(
    offset: int,
    player_id: str,
    stake_minor: int,
    win_minor: int = 0,
    *,
    tournament_id: str = T,
    game_id: str = "g1",
    currency: str = "EUR",
    time_ms: int = START_MS + 1000,
    event_id: str | None = None,
) -> LogEntry:
    data = ev.WagerPlaced(
        tournament_id=tournament_id,
        player_id=player_id,
        game_id=game_id,
        stake_minor=stake_minor,
        win_minor=win_minor,
        currency=currency,
    )
    return entry(offset, data, time_ms=time_ms, event_id=event_id)


def joined(offset: int, player_id: str, name: str | None = None) -> LogEntry:
    return entry(offset, ev.PlayerJoined(tournament_id=T, player_id=player_id, display_name=name))


def erased(offset: int, player_id: str) -> LogEntry:
    return entry(offset, ev.PlayerErased(tournament_id=T, player_id=player_id, erasure_id="er-1"))


def disqualified(offset: int, player_id: str) -> LogEntry:
    data = ev.PlayerDisqualified(
        tournament_id=T, player_id=player_id, reason="cheating", decided_by="op"
    )
    return entry(offset, data)


def adjusted(offset: int, player_id: str, delta: int) -> LogEntry:
    data = ev.ScoreAdjusted(
        tournament_id=T, player_id=player_id, delta=delta, reason="fault", decided_by="op"
    )
    return entry(offset, data)


def started(offset: int) -> LogEntry:
    return entry(offset, ev.TournamentStarted(tournament_id=T, decided_by="op"))


def ended(offset: int) -> LogEntry:
    return entry(offset, ev.TournamentEnded(tournament_id=T, decided_by="op"))


def cancelled(offset: int) -> LogEntry:
    return entry(offset, ev.TournamentCancelled(tournament_id=T, decided_by="op"))


def random_log(seed: int, *, length: int, players: int = 12, **changes: Any) -> Iterator[LogEntry]:
    """A log with everything in it: gaps in its offsets, repeats, late and early events, players
    who come, go and come again, schedules and states that change."""
    chance = random.Random(seed)
    yield scheduled(0, **changes)
    offset = 0
    written: list[LogEntry] = []
    for _ in range(length):
        offset += chance.choice((1, 1, 1, 2, 5))
        player = f"p{chance.randrange(players)}"
        roll = chance.random()
        if roll < 0.08 and written:
            again = chance.choice(written)
            one = LogEntry(Offset(offset), START_MS, again.event)
        elif roll < 0.12:
            time_ms = chance.choice((START_MS - 1, END_MS, END_MS + 5))
            one = scored(offset, player, 5, time_ms=time_ms)
        elif roll < 0.16:
            one = joined(offset, player, chance.choice((None, f"N-{player}", "é名")))
        elif roll < 0.17:
            one = erased(offset, player)
        elif roll < 0.18:
            one = disqualified(offset, player)
        elif roll < 0.22:
            one = adjusted(offset, player, chance.randint(-20, 20))
        elif roll < 0.23:
            one = scheduled(offset, ends_ms=END_MS + chance.randint(0, 9), **changes)
        elif roll < 0.235:
            one = started(offset)
        elif roll < 0.24:
            big = chance.choice((2**53 - 1, -(2**53) + 1))
            one = scored(offset, player, big, big)
        elif roll < 0.30:
            number = chance.randrange(max(offset - 3, 0), offset + 1)
            one = scored(offset, player, chance.randint(-9, 9), sequence=number)
        else:
            second = chance.choice((None, 0, 1, -1, 2**53 - 1, -(2**53) + 1))
            one = scored(offset, player, chance.randint(-9, 9), second)
        written.append(one)
        yield one
    if chance.random() < 0.7:
        yield chance.choice((ended, cancelled))(offset + 1)
        yield scored(offset + 2, "p1", 3)
        yield erased(offset + 3, "p2")
        yield scored(offset + 4, "p2", 3)
