"""How a fault shows that it bit: what stood still, was cut or refused meanwhile.

A trial whose fault interrupted nothing shows nothing, and does not count as clean."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import psycopg
import redis
import sqlalchemy as sa

from faults.play import Play
from faults.scene import Scene
from faults.viewers import Viewer
from leaderboard.errors import TransientError
from running import wait_for

NOTICED_SECONDS: Final = 6.0
AWAY: Final = (redis.RedisError, sa.exc.SQLAlchemyError, psycopg.Error, TransientError)


class DidNotBiteError(Exception):
    """The fault interrupted, lost and refused nothing: the trial shows nothing."""


@dataclass(slots=True)
class Trial:
    """What a fault gets to work on."""

    scene: Scene
    play: Play
    viewers: Sequence[Viewer]
    chance: random.Random

    def waiting(self, offsets: Callable[[], Mapping[str, int]], seconds: float) -> int:
        """How many tournaments stood still for so long with acknowledged wagers before them."""
        before = self._asked(offsets)
        time.sleep(seconds)
        after = self._asked(offsets)
        placed = dict(self.play.placed)
        return sum(after[name] == at < placed[name] for name, at in before.items())

    def _asked(self, offsets: Callable[[], Mapping[str, int]]) -> Mapping[str, int]:
        """What a store says within a second; -2 for all when it says nothing: it may hang."""
        found: list[Mapping[str, int]] = []

        def ask() -> None:
            with contextlib.suppress(*AWAY):
                found.append(offsets())

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(1.0)
        return found[0] if found else dict.fromkeys(self.play.tournaments, -2)

    def boards(self) -> Mapping[str, int]:
        return self.scene.board_offsets(self.play.tournaments)

    def record(self) -> Mapping[str, int]:
        return self.scene.record_offsets(self.play.tournaments)

    def frames(self) -> int:
        return sum(viewer.count() for viewer in self.viewers)


@dataclass(frozen=True, slots=True)
class Fault:
    """`strike` returns when the fault is over, with what it interrupted. Raises DidNotBiteError."""

    name: str
    strike: Callable[[Trial], str]
    cluster: bool = False
    """On a stack whose Redis is a cluster."""
    slow: bool = False
    """It takes long, because a process has to start first: in every third round only."""


# --- proofs that something bit ----------------------------------------------------------------


def boards_wait(trial: Trial) -> str:
    for _ in range(4):
        if found := trial.waiting(trial.boards, 0.3):
            return f"{found} boards stood still"
    raise DidNotBiteError("all boards went on")


def record_waits(trial: Trial) -> str:
    for _ in range(4):
        if found := trial.waiting(trial.record, 0.3):
            return f"the record of {found} tournaments stood still"
    raise DidNotBiteError("the record went on")


def screens_wait(trial: Trial) -> str:
    time.sleep(0.15)  # what is on its way still comes
    before, boards = trial.frames(), trial.boards()
    for _ in range(10):
        time.sleep(0.3)
        if (came := trial.frames()) != before:
            before, boards = came, trial.boards()
            continue
        moved = sum(at != boards[name] for name, at in trial.boards().items())
        if moved:
            return f"no frame came while {moved} boards moved"
    raise DidNotBiteError("frames came all the time")


def sockets_cut(trial: Trial) -> str:
    wait_for_some(lambda: any(viewer.cuts for viewer in trial.viewers))
    return f"{sum(viewer.cuts for viewer in trial.viewers)} sockets were cut"


def log_waits(trial: Trial) -> str:
    time.sleep(0.2)
    before, sent = trial.play.counts["acked"], trial.play.counts["sent"]
    time.sleep(0.3)
    asked = trial.play.counts["sent"] - sent
    if trial.play.counts["acked"] != before or not asked:
        raise DidNotBiteError("Kafka took wagers all the time")
    return f"{asked} wagers were not taken at once"


def outbox_waits(trial: Trial) -> str:
    before = trial.scene.unsent()
    time.sleep(0.5)
    if not (unsent := trial.scene.unsent()) > before:
        raise DidNotBiteError("the outbox was emptied all the time")
    return f"{unsent} rows waited in the outbox"


def refused_by(who: str) -> Callable[[Trial], str]:
    def refused(trial: Trial) -> str:
        before = trial.play.counts[who]
        wait_for_some(lambda: trial.play.counts[who] > before)
        return f"{trial.play.counts[who] - before} requests to {who} were refused"

    return refused


def wait_for_some(holds: Callable[[], bool]) -> None:
    try:
        wait_for(holds, NOTICED_SECONDS)
    except AssertionError:
        raise DidNotBiteError("nothing was refused or cut") from None


@contextmanager
def operating(trial: Trial, service: str) -> Iterator[None]:
    """An operator at work on `erase` or `tournament` for as long as this lasts, insisting."""
    name = trial.chance.choice(trial.play.tournaments)
    player = f"p{trial.chance.randrange(5, 40):03d}"
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for number in range(3 if service == "tournament" else 1):
                if service == "erase":
                    trial.play.erase(player)
                else:
                    trial.play.adjust(name, f"{player}-{number}")
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise failures[0]


BITES: Final[Mapping[str, Callable[[Trial], str]]] = {
    "on-wager": boards_wait,
    "on-rank-change": screens_wait,
    "archive": record_waits,
    "query": refused_by("query"),
    "on-connect": refused_by("on-connect"),
    "on-wager-http": refused_by("on-wager-http"),
    "erase": refused_by("erase"),
    "tournament": refused_by("tournament"),
    "kafka": log_waits,
    "redis": boards_wait,
    "postgres": record_waits,
    "gateway": screens_wait,
    "relay": outbox_waits,
}


def at_work(trial: Trial, service: str) -> contextlib.AbstractContextManager[None]:
    """Operators come only when it is their function's turn."""
    if service in ("erase", "tournament"):
        return operating(trial, service)
    return contextlib.nullcontext()
