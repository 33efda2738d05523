"""on-rank-change: what someone can see, brought to their screens.

From `position-changes` to the gateway. A `position` frame goes to each player who moved and has
a live socket; a `top` frame, the top 100 as the board has it, goes to everyone. Thousands get
theirs one part after the other, for the gateway does nothing else meanwhile. Both are coalesced
(a later frame makes the one before needless), so their number does not grow with the wagers; and
`top` comes again every five seconds, so that who missed a frame is level again.

An input is committed when every frame that it calls for is with the gateway. After a crash frames
come again; readers drop what is not newer than what they have.
"""

from __future__ import annotations

import leaderboard.hosts.starting  # noqa: F401 - before all else: see there

# isort: split
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from leaderboard import telemetry
from leaderboard.adapters.kafka_feed import KafkaFeed
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import check, connect
from leaderboard.adapters.redis_connections import RedisConnections
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.errors import SettingsError
from leaderboard.events import POSITION_CHANGES, PositionChanged
from leaderboard.frames import (
    PARTS,
    curve_frame,
    curve_ranks,
    for_part,
    position_frame,
    top_frame,
    tournament_frame,
)
from leaderboard.hosts.first_use import FirstUse
from leaderboard.hosts.kafka import Assignment, Batch, InOneStep, KafkaHost, Refused
from leaderboard.hosts.tracing import tracing_of
from leaderboard.model import TOP_VISIBLE, Offset, Place, PlayerId, State, TournamentId
from leaderboard.partitioning import partition_of
from leaderboard.ports import Board, BoardView, Connections, Directory, Frame, Gateway
from leaderboard.settings import (
    ConsumerSettings,
    GatewaySettings,
    KafkaSettings,
    RedisSettings,
    TracingSettings,
    load,
)
from leaderboard.wiring import gateway_of

NAME = "on-rank-change"
POSITION_SECONDS = 0.02
"""At most so often are a tournament's `position` frames sent: one a player and time."""
TOP_SECONDS = 0.25
CURVE_SECONDS = 1.0
AGAIN_SECONDS = 5.0
OVER = frozenset({State.ENDED, State.CANCELLED})


class Times(NamedTuple):
    """When a wager happened, and when Kafka took it in (or one before it)."""

    event_ms: int
    ingest_ms: int

    def pushed(self, tournament_id: TournamentId, frame: str, now_ms: int) -> None:
        """What shows the wager is with the gateway."""
        seconds = max(now_ms - self.ingest_ms, 0) / 1000
        telemetry.TOURNAMENT_LATENCY.labels(tournament_id, frame).set(seconds)
        for since, then_ms in (("event", self.event_ms), ("ingest", self.ingest_ms)):
            seconds = max(now_ms - then_ms, 0) / 1000
            telemetry.PUSH_LATENCY.labels(frame, since).observe(seconds)


NEVER: Final = Times(0, 0)


@dataclass(slots=True)
class _Moved:
    """A player's changes since their last frame: where they were, and the newest of them."""

    old_rank: int | None
    newest: PositionChanged


@dataclass(slots=True)
class _Watched:
    """One tournament, and what its watchers have not been told yet."""

    place: Place
    moved: dict[PlayerId, _Moved] = field(default_factory=dict)
    moved_since: Offset | None = None
    top_since: Offset | None = None
    """The first input that no `top` frame covers yet."""
    parts: int = 1
    """In how many parts the sockets are."""
    part: int = 0
    """Whose turn it is in the round of `top` frames that is under way; 0: none is."""
    round_since: Offset | None = None
    """The first input that the round covers, and not everyone was shown yet."""
    sequence: int = -1
    positions_at: float = -math.inf
    top_at: float = -math.inf
    shown: tuple[int, int] = (-1, 0)
    """Sequence and players of the board when `top` was last sent."""
    moved_times: Times = NEVER
    """Of the oldest wager that no `position` frame shows yet."""
    top_times: Times = NEVER
    round_times: Times = NEVER
    has_new_curve: bool = False
    curve_at: float = -math.inf
    curve_left: list[Frame] = field(default_factory=list)
    """Of the curve that is going round: the frames of the parts that wait for it."""
    state: State | None = None

    def top_due(self) -> float:
        """When the next `top` frame goes out, if nothing new happens."""
        if self.part:
            return self.top_at + self.part * TOP_SECONDS / self.parts
        return self.top_at + (AGAIN_SECONDS if self.top_since is None else TOP_SECONDS)

    def curve_due(self) -> float:
        """When the next `curve` frame goes out; never without something new."""
        if self.curve_left:
            gone = self.parts - len(self.curve_left)
            return self.curve_at + gone * CURVE_SECONDS / self.parts
        return self.curve_at + CURVE_SECONDS if self.has_new_curve else math.inf


class OnRankChange(InOneStep):
    """The function. `clock` counts seconds and never goes back."""

    def __init__(
        self,
        board: Board,
        directory: Directory,
        connections: Connections,
        gateway: Gateway,
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._board = board
        self._directory = directory
        self._connections = connections
        self._gateway = gateway
        self._clock = clock
        self._now_ms = now_ms
        self._partitions: dict[Place, int] = {}
        """Owned ones, with the number of partitions that their topic has."""
        self._watched: dict[TournamentId, _Watched] = {}
        self._over: set[TournamentId] = set()
        """Those whose watchers have been told that it is over."""
        self._looked_at = -math.inf

    def assigned(self, assignment: Assignment) -> Offset | None:
        self._partitions[assignment.place] = assignment.partitions
        self._looked_at = -math.inf
        return None

    def revoked(self, place: Place) -> None:
        count = self._partitions.pop(place, None)
        if count is not None:
            # Should it come back, it comes from an owner who may have told less than we did.
            gone = {t for t in self._over if partition_of(t.encode(), count) == place.partition}
            self._over -= gone
        for tournament_id in [t for t, w in self._watched.items() if w.place == place]:
            self._let_go(tournament_id)

    def _let_go(self, tournament_id: TournamentId) -> None:
        self._watched.pop(tournament_id, None)
        telemetry.forget_tournament(tournament_id)

    def handle(self, batch: Batch) -> Sequence[Refused]:
        """Note what changed; send what may be sent now, the rest follows by `tick`."""
        for entry in batch.entries:
            data = entry.event.data
            if not isinstance(data, PositionChanged):
                raise AssertionError("the codec lets nothing else into position-changes")
            tournament_id = TournamentId(data.tournament_id)
            watched = self._watched.setdefault(tournament_id, _Watched(batch.place))
            if data.sequence > watched.sequence:
                note(watched, data, entry.offset, Times(entry.event.time_ms, entry.logged_at_ms))
        self.tick()
        return ()

    def settle(self, batch: Batch) -> None:
        """Nothing more: what is open holds the commit back (see `safe`)."""

    def safe(self, place: Place, next_offset: Offset) -> Offset:
        """Up to the first input whose frames are not with the gateway yet."""
        open_since = [
            since
            for watched in self._watched.values()
            if watched.place == place
            for since in (watched.moved_since, watched.top_since, watched.round_since)
            if since is not None
        ]
        return min(open_since, default=next_offset)

    def tick(self) -> float:
        """Send the frames that are due; the seconds until the next one is."""
        now = self._clock()
        self._look_around(now)
        wanted = AGAIN_SECONDS
        for tournament_id, watched in list(self._watched.items()):
            if watched.moved and now >= watched.positions_at + POSITION_SECONDS:
                self._send_positions(tournament_id, watched, now)
            if now >= watched.top_due():
                self._send_top(tournament_id, watched, now)
            if now >= watched.curve_due():
                self._send_curve(tournament_id, watched, now)
            if watched.moved:
                wanted = min(wanted, watched.positions_at + POSITION_SECONDS - now)
            wanted = min(wanted, watched.top_due() - now, watched.curve_due() - now)
        return max(wanted, 0.0)

    def _look_around(self, now: float) -> None:
        """Also a quiet tournament is watched, so that its board comes again; and one that is
        over until its last frames are sent, for the owner before may not have come to that."""
        if now < self._looked_at + AGAIN_SECONDS:
            return
        for summary in self._directory.all():
            tournament_id = summary.tournament_id
            is_over = summary.terms.state in OVER
            if not is_over:
                self._over.discard(tournament_id)
            if tournament_id in self._watched or tournament_id in self._over:
                continue
            key = tournament_id.encode()
            for place, count in self._partitions.items():
                if partition_of(key, count) == place.partition:
                    self._watched[tournament_id] = _Watched(place)
        self._looked_at = now

    def _send_positions(self, tournament_id: TournamentId, watched: _Watched, now: float) -> None:
        live = self._connections.live(tournament_id, list(watched.moved))
        frames = [
            position_frame(moved.old_rank, moved.newest)
            for player_id, moved in watched.moved.items()
            if player_id in live
        ]
        self._gateway.publish(frames)
        telemetry.FRAMES.labels("position").inc(len(frames))
        telemetry.TOURNAMENT_FRAMES.labels(tournament_id, "position").inc(len(frames))
        if frames:
            watched.moved_times.pushed(tournament_id, "position", self._now_ms())
        watched.moved.clear()
        watched.moved_since = None
        watched.positions_at = now

    def _send_top(self, tournament_id: TournamentId, watched: _Watched, now: float) -> None:
        """To the part whose turn it is. A new state goes to all at once, first, because the
        gateway keeps only the last frame for new subscribers."""
        view = self._board.top(tournament_id, TOP_VISIBLE)
        if watched.part == 0 and self._connections.is_spread(tournament_id):
            # The later parts have no curve yet, and get none where nothing happens.
            watched.has_new_curve |= watched.parts == 1
            watched.parts = PARTS
        part, upto = watched.part, watched.part + 1
        if view is not None:
            frames = [top_frame(view)]
            if view.terms.state is not watched.state:
                frames.insert(0, tournament_frame(view))
                part, upto = 0, watched.parts
            self._gateway.publish(
                [for_part(frame, one) for one in range(part, upto) for frame in frames]
            )
            watched.state = view.terms.state
        if part == 0:
            # Each part's frame covers what had happened when the round began, and more.
            watched.top_at = now
            watched.round_since, watched.round_times = watched.top_since, watched.top_times
            watched.top_since = None
        watched.part = upto
        if view is None or upto == watched.parts:
            self._end_round(tournament_id, watched, view)

    def _end_round(
        self, tournament_id: TournamentId, watched: _Watched, view: BoardView | None
    ) -> None:
        """Everyone has been shown the top, or there is none any more."""
        if view is not None:
            telemetry.FRAMES.labels("top").inc()
            telemetry.TOURNAMENT_FRAMES.labels(tournament_id, "top").inc()
            telemetry.TOURNAMENT_PLAYERS.labels(tournament_id).set(view.players)
            telemetry.TOURNAMENT_SEQUENCE.labels(tournament_id).set(view.sequence)
            if watched.round_since is not None:
                watched.round_times.pushed(tournament_id, "top", self._now_ms())
            shown = (view.sequence, view.players)
            watched.has_new_curve |= shown != watched.shown
            watched.shown = shown
        watched.part, watched.round_since = 0, None
        if watched.moved:
            return
        if view is None:
            # Let go, or lost: where it comes back the list says so, and it is watched anew.
            self._let_go(tournament_id)
        elif view.terms.state in OVER and watched.top_since is None:
            if watched.has_new_curve or watched.curve_left:
                self._send_curve(tournament_id, watched, self._clock(), to_all=True)
            self._over.add(tournament_id)
            self._let_go(tournament_id)

    def _send_curve(
        self, tournament_id: TournamentId, watched: _Watched, now: float, *, to_all: bool = False
    ) -> None:
        """The curve as it is now to the first part, or the one that is going round to the next."""
        if to_all or not watched.curve_left:
            curve = self._board.scores_at(tournament_id, curve_ranks(watched.shown[1]))
            watched.curve_left.clear()
            if curve is not None and curve.points:
                frame = curve_frame(curve)
                watched.curve_left += [for_part(frame, part) for part in range(watched.parts)]
            watched.has_new_curve, watched.curve_at = False, now
        if not watched.curve_left:
            return
        count = len(watched.curve_left) if to_all else 1
        self._gateway.publish(watched.curve_left[:count])
        del watched.curve_left[:count]
        if not watched.curve_left:
            telemetry.FRAMES.labels("curve").inc()
            telemetry.TOURNAMENT_FRAMES.labels(tournament_id, "curve").inc()


def note(watched: _Watched, data: PositionChanged, offset: Offset, times: Times) -> None:
    """Remember a change until its frames are sent."""
    watched.sequence = data.sequence
    player_id = PlayerId(data.player_id)
    before = watched.moved.get(player_id)
    if before is not None:
        telemetry.COALESCED.labels("position").inc()
    old_rank = data.old_rank if before is None else before.old_rank
    watched.moved[player_id] = _Moved(old_rank, data)
    if watched.moved_since is None:
        watched.moved_since, watched.moved_times = offset, times
    if watched.top_since is None:
        watched.top_since, watched.top_times = offset, times
    else:
        telemetry.COALESCED.labels("top").inc()


# --- wiring ------------------------------------------------------------------------------------


def consume() -> None:
    """Run the Kafka host until it is told to stop."""
    kafka, consumer = load(KafkaSettings, os.environ), load(ConsumerSettings, os.environ)
    redis = load(RedisSettings, os.environ)
    gateway = gateway_of(load(GatewaySettings, os.environ))
    tracing = tracing_of(NAME, load(TracingSettings, os.environ))
    telemetry.log_json()
    client = FirstUse(lambda: connect(redis.url))

    def function() -> OnRankChange:
        board = RedisBoard(client())
        directory, connections = RedisDirectory(client()), RedisConnections(client())
        return OnRankChange(board, directory, connections, tracing.gateway(gateway()))

    ready = {"redis": lambda: check(client()), "gateway": lambda: gateway().check()}
    make = tracing.handler(function, POSITION_CHANGES)
    with closing(tracing):
        KafkaHost(
            NAME,
            POSITION_CHANGES,
            make,
            KafkaFeed(kafka),
            kafka,
            consumer,
            ready,
            spacing_seconds=POSITION_SECONDS,
        ).run()


if __name__ == "__main__":
    try:
        consume()
    except SettingsError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
