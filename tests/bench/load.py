"""The load of the benchmarks: tournaments, wagers as players play them, and the log of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Protocol

from confluent_kafka import Producer

from leaderboard import events as ev
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.codec import encode_kafka
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, PositionChange, TournamentId
from leaderboard.ports import BoardView
from logs import END_MS, LOG, START_MS, TOMBSTONE_KEY, moment

T = TournamentId("bench")
PLAYERS = 100_000
QUIET = 2
"""No errors: the client also tells that a broker has gone, when it is stopped."""
EXPONENT = 1.1
"""Of Zipf's law: how much more the keenest players play."""


def player_of(number: int) -> str:
    return f"player-{number:06d}"


@lru_cache(maxsize=4)
def _weights(players: int) -> list[float]:
    return list(accumulate(1 / (rank**EXPONENT) for rank in range(1, players + 1)))


def zipf(chance: random.Random, count: int, players: int = PLAYERS) -> list[int]:
    """Players by Zipf's law, as their numbers from 0."""
    return chance.choices(range(players), cum_weights=_weights(players), k=count)


def wager(
    player: int, stake: int, number: int, time_ms: int = START_MS + 1, name: TournamentId = T
) -> ev.Event:
    data = ev.WagerPlaced(
        tournament_id=name,
        player_id=player_of(player),
        game_id="slots-7",
        stake_minor=stake,
        currency="EUR",
    )
    return ev.Event(f"w-{number}", "/bench", time_ms, data, subject=player_of(player))


def schedule(starts_ms: int = START_MS, ends_ms: int = END_MS, name: TournamentId = T) -> ev.Event:
    data = ev.TournamentScheduled(
        tournament_id=name,
        name="Bench",
        starts_at=moment(starts_ms),
        ends_at=moment(ends_ms),
        rules=ev.Rules.model_validate({"scoring": {"kind": "stake"}, "currency": "EUR"}),
    )
    return ev.Event(f"s-{name}", "/bench", starts_ms, data)


def play(seed: int, wagers: int, players: int = PLAYERS, name: TournamentId = T) -> list[ev.Event]:
    """A schedule, one wager of every player, then Zipf play: what most benchmarks work off."""
    chance = random.Random(seed)
    opening = (wager(p, chance.randint(1, 10_000), p, name=name) for p in range(players))
    later = (
        wager(p, chance.randint(1, 1000), players + n, name=name)
        for n, p in enumerate(zipf(chance, wagers, players))
    )
    return [schedule(name=name), *opening, *later]


class Tops(Protocol):
    """Boards, or the record of them."""

    def top(
        self, tournament_id: TournamentId, limit: int, after_rank: int = 0
    ) -> BoardView | None: ...


class Log:
    """Puts events into topics, and remembers them with the offsets that they have."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "enable.idempotence": True,
                "linger.ms": 5,
                "queue.buffering.max.messages": 1_000_000,
                "log_level": QUIET,
            }
        )
        self.entries: dict[int, list[LogEntry]] = {}
        """By partition."""

    def write(
        self, events: Sequence[ev.Event], topic: str = ev.WAGERS, partition: int = 0
    ) -> list[LogEntry]:
        entries = self.entries.setdefault(partition, []) if topic == ev.WAGERS else []
        for event in events:
            record = encode_kafka(event, topic)
            headers: list[tuple[str, str | bytes | None]] = list(record.headers)
            self._producer.produce(topic, record.value, record.key, partition, headers=headers)
            entries.append(LogEntry(Offset(len(entries)), START_MS, event))
            self._producer.poll(0)
        assert self._producer.flush(120) == 0
        return entries

    def of(self, name: TournamentId) -> Iterator[LogEntry]:
        """One tournament's events."""
        for entries in self.entries.values():
            yield from (one for one in entries if one.event.tournament_id == name)


def oracle_of(
    entries: Sequence[LogEntry], name: TournamentId = T
) -> tuple[MemoryBoard, Sequence[PositionChange]]:
    """The log's own fold, and what of it someone can see."""
    oracle = MemoryBoard(TOMBSTONE_KEY)
    return oracle, oracle.apply(name, LOG, None, entries, None).unconfirmed


def assert_equal(board: Tops, entries: Sequence[LogEntry], name: TournamentId = T) -> None:
    """The board shows every rank as the log's own fold has it."""
    assert_same(board, oracle_of(entries, name)[0], name)


def assert_same(board: Tops, oracle: Tops, name: TournamentId = T) -> None:
    """Both show every rank alike."""
    skipped = 0
    while True:
        wanted, found = oracle.top(name, 1000, skipped), board.top(name, 1000, skipped)
        assert wanted is not None
        assert found is not None
        assert (found.sequence, list(found.standings)) == (
            wanted.sequence,
            list(wanted.standings),
        ), f"the board differs from the oracle's after rank {skipped}"
        if not wanted.standings:
            return
        skipped += 1000
