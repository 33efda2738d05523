"""What has to be true of a simulated world: the oracle's fold of the log, told with every record,
and what was emitted, refused, shown and pushed, each compared with it as soon as it is there."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.codec import decode_kafka
from leaderboard.dead_letters import DeadLetter, read
from leaderboard.errors import Refusal, RefusedError
from leaderboard.events import (
    GDPR_EVENTS,
    POSITION_CHANGES,
    WAGERS,
    PlayerErased,
    PositionChanged,
    Record,
    dead_letter_topic,
)
from leaderboard.fold import LogEntry
from leaderboard.frames import top_frame
from leaderboard.model import Offset, Place, PositionChange, TournamentId
from leaderboard.ports import BoardView, Frame
from simulation.kafka import log_id

ALL = 1000


def _of_change(change: PositionChange) -> tuple[Any, ...]:
    return (
        change.player_id,
        change.sequence,
        change.old_rank,
        change.new_rank,
        change.score,
        change.distance,
        tuple(change.cause),
    )


def _of_event(data: PositionChanged) -> tuple[Any, ...]:
    score = (data.score, data.subscore or 0)
    cause = (data.cause.source, data.cause.id)
    return (
        data.player_id,
        data.sequence,
        data.old_rank,
        data.new_rank,
        score,
        data.distance,
        cause,
    )


class Oracle:
    """The pure fold of `wagers`, with all that it ever was."""

    def __init__(self, board: MemoryBoard) -> None:
        self._board = board
        self.views: dict[TournamentId, dict[Offset, BoardView]] = defaultdict(dict)
        """By sequence: everything that any reader may ever see of a tournament."""
        self.last: dict[TournamentId, BoardView] = {}
        self.offsets: dict[TournamentId, list[Offset]] = defaultdict(list)
        """Of the events that its board has to have seen."""
        self.changes: dict[TournamentId, list[tuple[Any, ...]]] = defaultdict(list)
        self.refused: dict[tuple[Place, int], Refusal] = {}
        self.refused_of: dict[tuple[Place, int], TournamentId] = {}
        self.erased: dict[TournamentId, set[str]] = defaultdict(set)

    def take(self, record: Record) -> None:
        place = Place(record.topic, record.partition)
        try:
            event = decode_kafka(record)
        except RefusedError as error:
            self.refused[place, record.offset] = error.reason
            return
        name = event.tournament_id
        assert name is not None
        entry = LogEntry(Offset(record.offset), record.timestamp_ms, event)
        before = Offset(record.offset - 1)
        applied = self._board.apply(name, log_id(place), None, [entry], before)
        if isinstance(verdict := applied.verdicts[0], Refusal):
            self.refused[place, record.offset] = verdict
            self.refused_of[place, record.offset] = name
        view = self._board.top(name, ALL)
        if view is None:
            return
        self.offsets[name].append(entry.offset)
        self.views[name][view.sequence] = self.last[name] = view
        self.changes[name] += map(_of_change, applied.unconfirmed)
        if isinstance(event.data, PlayerErased):
            self.erased[name].add(event.data.player_id)

    def check(self, view: BoardView | None, where: str) -> None:
        """What somebody saw is what the tournament was at that sequence: never a mix."""
        if view is not None:
            assert view == self.views[view.tournament_id].get(view.sequence), f"{where} is a mix"


@dataclass
class Socket:
    """A player's page: what it was sent, after a reader's rule. `hears` is false while its link
    is down; `is_whole` tells that nothing it was to be sent was kept from it."""

    tournament_id: TournamentId
    player_id: str
    connection_id: str
    opened_at: int
    """How many position changes of the tournament there had been."""
    hears: bool = True
    is_whole: bool = True
    top: dict[str, Any] | None = None
    position: dict[str, Any] | None = None

    def take(self, frame: dict[str, Any]) -> None:
        if not self.hears:
            self.is_whole = False
            return
        if frame["type"] == "top" and (self.top is None or frame["version"] >= self.top["version"]):
            self.top = frame
        if frame["type"] == "position" and (
            self.position is None or frame["sequence"] > self.position["sequence"]
        ):
            self.position = frame


@dataclass
class Seen:
    """Everything that left the functions, each compared with the oracle as it came."""

    oracle: Oracle
    emitted: dict[TournamentId, int] = field(default_factory=lambda: defaultdict(int))
    """So many of a tournament's changes a reader of `position-changes` has seen."""
    told: dict[TournamentId, int] = field(default_factory=lambda: defaultdict(lambda: -1))
    leapt: dict[TournamentId, int] = field(default_factory=lambda: defaultdict(lambda: -1))
    """A board that is made anew after an erasure that its consumer has not read yet is made as
    it is now, so that nobody is revived: up to here the changes in between are never told."""
    letters: dict[tuple[Place, int], str] = field(default_factory=dict)
    surplus: dict[tuple[Place, int], str] = field(default_factory=dict)
    """Dead letters that nobody should have written."""
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The last `top` frame of each channel, which the gateway gives to who comes next."""
    shown: dict[TournamentId, int] = field(default_factory=lambda: defaultdict(lambda: -1))
    """The highest version of a `top` frame so far."""
    sockets: dict[str, Socket] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    """Whom a request to forget that is in the log is about: it ends by itself."""

    def logged(self, record: Record) -> None:
        if record.topic == WAGERS:
            self.oracle.take(record)
        elif record.topic == POSITION_CHANGES:
            self._changed(record)
        elif record.topic == dead_letter_topic(WAGERS):
            self._buried(record)
        elif record.topic == GDPR_EVENTS:
            self.accepted.add(str(decode_kafka(record).player_id))

    def _changed(self, record: Record) -> None:
        data = decode_kafka(record).data
        assert isinstance(data, PositionChanged)
        name = TournamentId(data.tournament_id)
        if data.sequence <= self.told[name]:
            return
        self.told[name] = data.sequence
        changes = self.oracle.changes[name]
        while changes[self.emitted[name]][1] < min(data.sequence, self.leapt[name] + 1):
            self.emitted[name] += 1
        expected = changes[self.emitted[name]]
        assert _of_event(data) == expected, "a reader of position changes finds a gap"
        self.emitted[name] += 1

    def _buried(self, record: Record) -> None:
        letter = read(record)
        assert isinstance(letter, DeadLetter)
        key = (letter.origin, letter.origin_offset)
        if self.oracle.refused.get(key) == letter.reason:
            self.letters[key] = letter.reason
        elif not (letter.reason == Refusal.UNKNOWN_TOURNAMENT and self.is_unknowable(record)):
            self.surplus[key] = letter.reason

    def publish(self, frame: Frame) -> None:
        body = json.loads(frame.body)
        name = TournamentId(body["tournament_id"])
        if body["type"] == "top":
            self._check_top(body)
            self.kept[frame.channel] = body
            self.shown[name] = max(self.shown[name], body["version"])
        elif body["type"] == "position":
            self._check_position(frame.channel, body)
        for socket in self.sockets.values():
            mine = f"me.{socket.tournament_id}.{socket.player_id}"
            if frame.channel in (mine, f"top.{socket.tournament_id}"):
                socket.take(body)

    def close(self, channel: str) -> None:
        self.sockets.pop(channel.removeprefix("conn."), None)

    def _check_top(self, body: dict[str, Any]) -> None:
        view = self.oracle.views[TournamentId(body["tournament_id"])].get(Offset(body["version"]))
        assert view is not None, "a top frame is of no sequence"
        expected = json.loads(top_frame(view).body)
        assert body == expected, "a top frame is a mix"

    def _check_position(self, channel: str, body: dict[str, Any]) -> None:
        name = TournamentId(body["tournament_id"])
        (player,) = (one for one in self.oracle.changes[name] if one[1] == body["sequence"])
        assert channel == f"me.{name}.{player[0]}"
        told = (body["new_rank"], body["score"], body["distance"])
        assert told == (player[3], player[4][0], player[5]), "a position frame differs"

    def has_all_below(self, place: Place, offset: int) -> str | None:
        """What is missing of the effects of `place` below `offset`."""
        for name, offsets in self.oracle.offsets.items():
            if not (offsets and place in self._places(name)):
                continue
            due = self.oracle.changes[name][self.emitted[name] :]
            missing = [one[1] for one in due if self.leapt[name] < one[1] < offset]
            if missing:
                return f"the changes {missing} of {name}"
        for (of, at), reason in self.due_letters(place).items():
            if at < offset and (of, at) not in self.letters:
                return f"the dead letter ({reason}) of {at}"
        return None

    def due_letters(self, place: Place) -> dict[tuple[Place, int], str]:
        """Every dead letter that there has to be of what `place` has held."""
        return {
            (of, at): reason.value
            for (of, at), reason in self.oracle.refused.items()
            if of == place and at > self._leapt_of((of, at))
        }

    def _leapt_of(self, key: tuple[Place, int]) -> int:
        name = self.oracle.refused_of.get(key)
        return -1 if name is None else self.leapt[name]

    def _places(self, name: TournamentId) -> set[Place]:
        return {self.place_of[name]} if name in self.place_of else set()

    place_of: dict[TournamentId, Place] = field(default_factory=dict)
    is_unknowable: Callable[[Record], bool] = lambda _: False
    """Whether nobody could tell that a record's tournament exists: its board has been let go, and
    the record was away. Such an event is refused rather than waited for; it did not count anyway.
    """
