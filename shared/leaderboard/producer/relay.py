"""`leaderboard relay`: sends what the outbox holds to Kafka, in order, for as long as it runs.

    a turn in SQL (put down what is acknowledged, number what is next)  →  produce  →  wait  →  …

No transaction is open while Kafka is waited for. Any number of relays may run; they share the
lanes, and one that dies is replaced after its lease. What a crash costs is that the batch on its
way goes out again with the same ids and numbers; see `lanes` for why that is harmless.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from threading import Event
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from leaderboard import telemetry
from leaderboard.producer.lanes import Backlog, Batch, Lanes, backlog, reading
from leaderboard.producer.sending import GaplessProducer

logger = logging.getLogger(__name__)

IDLE_SECONDS: Final = 0.02
TURN_SECONDS: Final = 0.5
"""The longest without a turn: new lanes and lost names are found by it."""
BACKLOG_SECONDS: Final = 5.0
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 5.0
TOLD_SECONDS: Final = 10.0
"""How often a wait for Kafka is told."""
STUCK_SECONDS: Final = 120.0
_AWAY: Final = "the database is away"


class Relay:
    """One relay's loop. `run` returns after `stop`; while SQL or Kafka is away it tries again."""

    def __init__(
        self, engine: sa.Engine, lanes: Lanes, producer: GaplessProducer, lease_ms: int
    ) -> None:
        self._engine = engine
        self._lanes = lanes
        self._producer = producer
        self._renew_seconds = lease_ms / 3000
        self._stopping = Event()
        self._resting: dict[int, tuple[float, int]] = {}
        self._done: list[Batch] = []
        self._again = 0
        self._moved_at = self._renewed_at = time.monotonic()
        self._told_at = self._turned_at = self._counted_at = self._pruned_at = 0.0

    def stop(self) -> None:
        """End after what is being sent; safe in a signal handler."""
        self._stopping.set()

    def is_alive(self) -> bool:
        """Whether the loop moves."""
        return time.monotonic() < self._moved_at + STUCK_SECONDS

    def check_database(self) -> None:
        """Raises while the database does not answer."""
        with reading(self._engine).connect() as connection:
            connection.execute(sa.text("SELECT 1"))

    def run(self) -> None:
        """Relay until stopped. Raises RelayNameTakenError, and whatever is a bug."""
        if not self._registered():
            return
        while not self._stopping.is_set():
            self._moved_at = time.monotonic()
            self._steadily(self._round)
        self._steadily(self._finish, once=True)
        self._producer.close()

    def _registered(self) -> bool:
        """Wait until the name is free: a relay that was killed holds it for its lease."""
        seen: int | None = None
        registered = False

        def register() -> None:
            nonlocal seen, registered
            seen = self._lanes.register(seen)
            registered = seen is None
            if not registered:
                logger.info("waiting for the name's lease to end")
                self._stopping.wait(0.5)

        while not registered and not self._stopping.is_set():
            self._moved_at = time.monotonic()
            self._steadily(register)
        return registered

    def _steadily(self, step: Callable[[], None], *, once: bool = False) -> None:
        """Do a step; when the database is away, say so and pause before the next."""
        try:
            step()
            self._again = 0
        except SQLAlchemyError as error:
            if not _is_passing(error):
                raise
            telemetry.RETRIES.labels("relay").inc()
            self._again += 1
            told = str(getattr(error, "orig", error)).splitlines()[:1]
            lacking = isinstance(error, sa.exc.ProgrammingError)
            message = "the outbox can't be used (are its tables there?)" if lacking else _AWAY
            logger.warning(message, extra=telemetry.fields(error=told))
            if not once:
                self._stopping.wait(_pause(self._again))

    def _round(self) -> None:
        if not self._is_due():
            self._tidy()
            self._stopping.wait(IDLE_SECONDS)
            return
        resting = {lane for lane, (until, _) in self._resting.items() if until > time.monotonic()}
        batches = self._lanes.turn(self._done, resting)
        self._turned_at = self._renewed_at = time.monotonic()
        self._done = []
        if batches:
            self._send(batches)
        self._tidy()

    def _is_due(self) -> bool:
        if self._done or time.monotonic() > self._turned_at + TURN_SECONDS:
            return True
        return bool(self._lanes.owned) and self._lanes.anything_waits()

    def _send(self, batches: list[Batch]) -> None:
        self._told_at = time.monotonic()
        failed = self._producer.send(batches, self._go_on)
        for batch in batches:
            if batch.lane not in failed:
                self._resting.pop(batch.lane, None)
                self._done.append(batch)
                telemetry.RELAYED.inc(len(batch.records))
                continue
            attempts = self._resting.get(batch.lane, (0.0, 0))[1] + 1
            self._resting[batch.lane] = (time.monotonic() + _pause(attempts), attempts)
            telemetry.RETRIES.labels("relay").inc()
        if failed:
            reasons = sorted(set(failed.values()))
            logger.warning(
                "Kafka did not take a batch; it goes again with the same numbers",
                extra=telemetry.fields(lanes=len(failed), reasons=reasons),
            )

    def _go_on(self) -> bool:
        """While Kafka is waited for: stay alive for the other relays."""
        self._moved_at = time.monotonic()
        if self._moved_at > self._told_at + TOLD_SECONDS:
            self._told_at = self._moved_at
            logger.warning("Kafka acknowledges nothing; waiting")
        if self._moved_at > self._renewed_at + self._renew_seconds:
            # Also when it fails: to lose the lanes costs no more than sending twice.
            self._renewed_at = self._moved_at
            self._steadily(self._lanes.renew, once=True)
            self._tidy()
        return not self._stopping.is_set()

    def _tidy(self) -> None:
        now = time.monotonic()
        if now > self._counted_at + BACKLOG_SECONDS:
            self._counted_at = now
            self._steadily(lambda: show(backlog(self._engine)), once=True)
        if now > self._pruned_at + 1 and self._lanes.owned:
            self._pruned_at = now
            # As much as is written in a second has to go in a second.
            while self._prune() and time.monotonic() < now + 0.2:
                pass

    def _prune(self) -> bool:
        gone = 0

        def prune() -> None:
            nonlocal gone
            gone = self._lanes.prune()

        self._steadily(prune, once=True)
        return gone > 0

    def _finish(self) -> None:
        if self._done:
            # Marks what is done; what it numbers beyond that is the next relay's.
            self._lanes.turn(self._done, range(64))
        self._lanes.leave()


def show(found: Backlog) -> None:
    """Tell the metrics."""
    telemetry.OUTBOX_WAITING.set(found.waiting)
    telemetry.OUTBOX_REFUSED.set(found.refused)
    telemetry.OUTBOX_OLDEST.set(found.oldest_ms / 1000)


def _pause(attempts: int) -> float:
    longest: float = min(FIRST_PAUSE_SECONDS * 2 ** min(attempts - 1, 10), LONGEST_PAUSE_SECONDS)
    return longest * random.uniform(0.5, 1)  # noqa: S311 - no secret


def _is_passing(error: SQLAlchemyError) -> bool:
    """Whether the same statement may work later. A table that is missing is no bug of ours
    either: it is told and waited for."""
    if isinstance(error, sa.exc.TimeoutError):
        return True
    return isinstance(error, DBAPIError) and isinstance(
        error, sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.ProgrammingError
    )
