"""Ports for tests that keep what they are given in this process, and keep their contracts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from leaderboard import events as ev
from leaderboard.callers import Caller
from leaderboard.codec import decode_kafka, encode_kafka
from leaderboard.errors import TransientError, UnauthenticatedError
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, PositionChange
from leaderboard.ports import Frame, Outgoing

P = TypeVar("P")


class MemoryFeed:
    """`ports.Feed` with one partition a topic: what was published, in order, as records are.

    `on_publish` is called with each entry as it is logged: a consumer without a broker."""

    def __init__(self, on_publish: Callable[[str, LogEntry], None] | None = None) -> None:
        self._topics: dict[str, list[tuple[int, ev.Record]]] = {}
        self._lock = threading.Lock()
        self._on_publish = on_publish

    def publish(self, outgoing: Sequence[Outgoing]) -> Mapping[int, Offset]:
        offsets = {}
        for index, one in enumerate(outgoing):
            with self._lock:
                log = self._topics.setdefault(one.topic, [])
                offsets[index] = Offset(len(log))
                log.append((int(time.time() * 1000), encode_kafka(one.event, one.topic)))
                entry = self.entries(one.topic)[-1]
            if self._on_publish is not None:
                self._on_publish(one.topic, entry)
        return offsets

    def begin_changes(
        self,
        changes: Sequence[PositionChange],
        taken_in_ms: int = 0,
        alerts: Sequence[ev.Event] = (),
    ) -> int:
        self.publish_changes(changes)
        self.publish([Outgoing(ev.FRAUD_ALERTS, one) for one in alerts])
        return 0

    def confirm_changes(self, begun: int) -> None:
        pass

    def publish_changes(self, changes: Sequence[PositionChange]) -> None:
        for change in changes:
            data = ev.PositionChanged(
                tournament_id=change.tournament_id,
                player_id=change.player_id,
                sequence=change.sequence,
                old_rank=change.old_rank,
                new_rank=change.new_rank,
                score=change.score.score,
                subscore=change.score.subscore,
                distance=change.distance,
                cause=ev.CauseData(source=change.cause.source, id=change.cause.id),
            )
            event_id = f"{change.tournament_id}/{change.sequence}"
            event = ev.Event(event_id, "/on-wager", change.time_ms, data, change.player_id)
            self.publish([Outgoing(ev.POSITION_CHANGES, event)])

    def entries(self, topic: str) -> list[LogEntry]:
        """Everything in the topic, read back from its records: what can't be read raises."""
        return [
            LogEntry(Offset(offset), logged_at_ms, decode_kafka(record))
            for offset, (logged_at_ms, record) in enumerate(self._topics.get(topic, ()))
        ]

    def events(self, topic: str) -> list[ev.Event]:
        """The events of the topic, in order."""
        return [entry.event for entry in self.entries(topic)]


class KnownTokens:
    """`callers.Tokens` for tokens of the form `<subject>:<role>[,<role>]`."""

    def known(self, token: str) -> Caller | None:
        return None

    def verify(self, token: str) -> Caller:
        subject, _, roles = token.partition(":")
        if not roles:
            raise UnauthenticatedError("the token proves nothing")
        expires_at_ms = int(time.time() * 1000) + 900_000
        return Caller(subject, frozenset(roles.split(",")), expires_at_ms)


class RestoredErasures:
    """The part of `ports.Erasures` that a consumer uses: what the log says of requests."""

    def __init__(self) -> None:
        self.restored: set[str] = set()

    def restore(self, erasure_id: str, requested_at_ms: int) -> None:
        self.restored.add(erasure_id)


class MemoryGateway:
    """`ports.Gateway` that holds no sockets: frames and closed channels, in order."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.closed: list[str] = []

    def publish(self, frames: Sequence[Frame]) -> None:
        self.frames.extend(frames)

    def close(self, channel: str) -> None:
        self.closed.append(channel)


class Interrupted(Generic[P]):
    """A port whose calls stop working once, before or after the effect of the n-th call.

    What a process killed there would leave behind; `bit` tells that it happened."""

    def __init__(self, port: P, countdown: Countdown) -> None:
        self._port = port
        self._countdown = countdown

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._countdown.step()
            answer = method(*args, **kwargs)
            self._countdown.step()
            return answer

        return call


class Countdown:
    """Raises TransientError at the n-th step, shared by all ports of one test; then never again.

    `killed` is raised in its place, for a process that does not live to handle it."""

    def __init__(self, steps: int, killed: BaseException | None = None) -> None:
        self.left = steps
        self.bit = False
        self._error = killed or TransientError("interrupted here")

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.bit = True
            raise self._error
