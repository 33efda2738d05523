"""The contract once more, in straight lines: a second opinion on the fold.

Written from the contract, not from `leaderboard.fold`: no sorted containers, no
increments. After every event everything is counted again from plain lists. Slow, and meant to be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from leaderboard import events as ev
from leaderboard.fold import LogEntry

LIMIT = 2**53
Change = tuple[str, int, int | None, int | None, int, int, int | None]
"""player, sequence, old rank, new rank, score, subscore, distance"""


@dataclass
class Tournament:
    """One tournament's whole history, and what it comes to."""

    generation: int = 100_000
    state: str | None = None
    rules: ev.Rules | None = None
    starts: datetime = datetime.min
    ends: datetime = datetime.min
    sequence: int = 0
    control: list[tuple[str, str]] = field(default_factory=list)
    ids: list[tuple[str, str]] = field(default_factory=list)
    """Applied events without a number, oldest first."""
    numbers: list[tuple[str, int]] = field(default_factory=list)
    joined: list[str] = field(default_factory=list)
    out: list[tuple[str, str]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """player, score, subscore, reached"""

    # order

    def ranking(self) -> list[dict[str, Any]]:
        """The rows from the first rank to the last."""
        assert self.rules is not None
        rows = sorted(self.rows, key=lambda row: row["reached"])
        more_is_better = self.rules.order == "descending"
        return sorted(rows, key=lambda r: (r["score"], r["subscore"]), reverse=more_is_better)

    def rank(self, player: str) -> int | None:
        for index, row in enumerate(self.ranking()):
            if row["player"] == player:
                return index + 1
        return None

    def row(self, player: str) -> dict[str, Any] | None:
        return next((row for row in self.rows if row["player"] == player), None)

    # events

    def take(self, entry: LogEntry) -> tuple[str, Change | None]:
        """What becomes of the event, by its name in the contract, and what everyone is told."""
        data = entry.event.data
        if isinstance(data, ev.TournamentScheduled):
            return self._schedule(entry, data), None
        if self.state is None:
            return "unknown_tournament", None
        if isinstance(data, ev.PlayerErased):
            return self._remove(entry, data.player_id, "player_erased")
        if self.state in ("ended", "cancelled"):
            return f"tournament_{self.state}", None
        if isinstance(data, ev.TournamentStarted):
            return self._control(entry, "running"), None
        if isinstance(data, ev.TournamentEnded):
            return self._control(entry, "ended"), None
        if isinstance(data, ev.TournamentCancelled):
            return self._control(entry, "cancelled"), None
        if isinstance(data, ev.PlayerDisqualified):
            return self._remove(entry, data.player_id, "player_disqualified")
        if isinstance(data, ev.PlayerJoined):
            return self._join(entry, data), None
        if isinstance(data, ev.ScoreAdjusted):
            if self.state == "scheduled":
                return "not_started", None
            return self._score(entry, data.player_id, delta=data.delta)
        if isinstance(data, ev.WagerPlaced | ev.ScoreSubmitted):
            return self._play(entry, data)
        return "unsupported", None

    def _schedule(self, entry: LogEntry, data: ev.TournamentScheduled) -> str:
        name = (entry.event.source, entry.event.id)
        if name in self.control:
            return "duplicate"
        if self.state in ("ended", "cancelled"):
            return f"tournament_{self.state}"
        if data.rules.scoring.kind in ("ratio", "tiers") or data.rules.operator == "best_of":
            return "unsupported"
        if self.state == "running":
            assert self.rules is not None
            for part in ("order", "operator"):
                if getattr(self.rules, part) != getattr(data.rules, part):
                    return "unsupported"
            if self.rules.scoring.kind != data.rules.scoring.kind:
                return "unsupported"
        self.control.append(name)
        self.rules, self.starts, self.ends = data.rules, data.starts_at, data.ends_at
        self.state = self.state or "scheduled"
        self.sequence = entry.offset
        return "applied"

    def _control(self, entry: LogEntry, state: str) -> str:
        name = (entry.event.source, entry.event.id)
        if name in self.control:
            return "duplicate"
        self.control.append(name)
        self.state = state
        self.sequence = entry.offset
        return "applied"

    def _run(self, entry: LogEntry) -> None:
        """The first event in its time starts a tournament."""
        if self.state == "scheduled":
            self.state = "running"
            self.sequence = entry.offset

    def _play(
        self, entry: LogEntry, data: ev.WagerPlaced | ev.ScoreSubmitted
    ) -> tuple[str, Change | None]:
        assert self.rules is not None
        time = datetime.fromtimestamp(entry.event.time_ms / 1000, UTC)
        if time < self.starts:
            return "not_started", None
        if time >= self.ends:
            return "tournament_ended", None
        self._run(entry)
        kind = self.rules.scoring.kind
        if isinstance(data, ev.WagerPlaced):
            if self.rules.currency is not None and data.currency != self.rules.currency:
                return "wrong_currency", None
            if self.rules.games is not None and data.game_id not in self.rules.games:
                return "wrong_game", None
            if data.stake_minor < (self.rules.min_stake_minor or 0):
                return "below_minimum", None
            if kind == "submitted":
                return "unsupported", None
            if kind == "multiplier" and data.stake_minor == 0:
                return "below_minimum", None
            points = {
                "stake": data.stake_minor,
                "win": data.win_minor,
                "count": 1,
                "multiplier": 100 * data.win_minor // max(data.stake_minor, 1),
            }[kind]
            if points >= LIMIT:
                return "score_out_of_range", None
            return self._score(entry, data.player_id, points=(points, 0))
        if kind == "count":
            return self._score(entry, data.player_id, points=(1, 0))
        if kind != "submitted":
            return "unsupported", None
        return self._score(entry, data.player_id, points=(data.score, data.subscore or 0))

    def _join(self, entry: LogEntry, data: ev.PlayerJoined) -> str:
        time = datetime.fromtimestamp(entry.event.time_ms / 1000, UTC)
        if time >= self.ends:
            return "tournament_ended"
        if time >= self.starts:
            self._run(entry)
        if (why := self._kept_away(entry, data.player_id)) is not None:
            return why
        self.joined.append(data.player_id)
        self._applied(entry)
        return "applied"

    def _kept_away(self, entry: LogEntry, player: str) -> str | None:
        if self._is_repeated(entry.event):
            return "duplicate"
        reasons = [why for who, why in self.out if who == player]
        return reasons[-1] if reasons else None

    def _score(
        self,
        entry: LogEntry,
        player: str,
        points: tuple[int, int] = (0, 0),
        delta: int | None = None,
    ) -> tuple[str, Change | None]:
        assert self.rules is not None
        if (why := self._kept_away(entry, player)) is not None:
            return why, None
        if self.rules.join == "required" and player not in self.joined:
            return "not_joined", None
        row = self.row(player)
        had = None if row is None else (row["score"], row["subscore"])
        new = self._combined(had, points, delta)
        if abs(new[0]) >= LIMIT or abs(new[1]) >= LIMIT:
            return "score_out_of_range", None
        self._applied(entry)
        if new == had:
            return "applied", None
        old_rank = self.rank(player)
        if row is not None:
            self.rows.remove(row)
        self.rows.append(
            {"player": player, "score": new[0], "subscore": new[1], "reached": entry.offset}
        )
        new_rank = self.rank(player)
        assert new_rank is not None
        if old_rank == new_rank and new_rank > 100:
            return "applied", None
        return "applied", (player, entry.offset, old_rank, new_rank, *new, self.distance(new_rank))

    def _combined(
        self, had: tuple[int, int] | None, points: tuple[int, int], delta: int | None
    ) -> tuple[int, int]:
        assert self.rules is not None
        operator, more_is_better = self.rules.operator, self.rules.order == "descending"
        if delta is not None:
            return (delta, 0) if had is None else (had[0] + delta, had[1])
        if operator == "count":
            return (1, 0) if had is None else (had[0] + 1, 0)
        if had is None or operator == "last":
            return points
        if operator == "sum":
            return (had[0] + points[0], had[1] + points[1])
        return max(had, points) if more_is_better else min(had, points)

    def distance(self, rank: int) -> int | None:
        """Points to the next rank up."""
        if rank == 1:
            return None
        ranking = self.ranking()
        return abs(int(ranking[rank - 2]["score"] - ranking[rank - 1]["score"]))

    def _remove(self, entry: LogEntry, player: str, why: str) -> tuple[str, Change | None]:
        if self._is_repeated(entry.event):
            return "duplicate", None
        old_rank, row = self.rank(player), self.row(player)
        if (player, "player_erased") not in self.out:
            self.out.append((player, why))
        self.joined = [one for one in self.joined if one != player]
        self._applied(entry)
        if row is None:
            return "applied", None
        if self.state in ("ended", "cancelled"):
            row["player"] = f"erased {player}"
            return "applied", None
        self.rows.remove(row)
        return "applied", (
            player,
            entry.offset,
            old_rank,
            None,
            row["score"],
            row["subscore"],
            None,
        )

    # repeats

    def _is_repeated(self, event: ev.Event) -> bool:
        if event.sequence is not None and self._is_numbered(event.source):
            return any(s == event.source and n >= event.sequence for s, n in self.numbers)
        full = len(self.ids) // self.generation
        remembered = self.ids[max(0, (full - 1) * self.generation) :]
        return (event.source, event.id) in remembered

    def _is_numbered(self, source: str) -> bool:
        """Only so many producers go by their numbers."""
        sources = {known for known, _ in self.numbers}
        return source in sources or len(sources) < self.generation

    def _applied(self, entry: LogEntry) -> None:
        event = entry.event
        if event.sequence is not None and self._is_numbered(event.source):
            self.numbers.append((event.source, event.sequence))
        else:
            self.ids.append((event.source, event.id))
        self.sequence = entry.offset
