"""Whether a process can do its work, and what is said where it can't: the same for both hosts.

A reason names where something was asked, and never a password: it is for the engineer who looks at
`/readyz`, and stands in the log once for each change.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from leaderboard import telemetry
from leaderboard.errors import LeaderboardError, NotLetInError

READY: Final = "ready"
START_SECONDS: Final = 30.0
"""So long from the first look a store may refuse us and keep us unready by that."""
_USER: Final = re.compile(r"//[^/@\s]*@")
_LONGEST: Final = 300
FIRST_SECONDS: Final = 4.0
"""So long a look waits for what stores say, until the process was ready once: less than a probe."""
logger = logging.getLogger(__name__)
Check = Callable[[], object]
"""Raises while a dependency is away."""


class Needs(NamedTuple):
    """What a process needs, by name.

    `always` are asked each time, and all have to answer. `stores` are those that the process can
    do without for a while: each is asked in the background until it has let us in once. One that
    refuses us (NotLetInError) at the start keeps the process unready until it lets us in, as a
    wrong Secret is no outage. One that was away then and refuses us later (it came back empty, with
    other users) is only told: it refuses all replicas at once, and each of them can go on. Who has
    let us in is not asked again, so that a password changed later stops nobody either.
    Nobody is ready before they were asked once: Knative gives a new revision everything as soon as
    it is, and takes nothing back. Not in line with the rest, as one that hangs must not stop us."""

    always: Mapping[str, Check]
    stores: Mapping[str, Check]


class Readiness:
    """Asks what the process called `name` needs, and tells each change once in the log. Safe for
    several threads; one of them asks."""

    def __init__(
        self,
        name: str,
        needs: Mapping[str, Check] | Needs,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._clock = clock
        self._started_until = math.inf
        self._was_ready = False
        always, stores = needs if isinstance(needs, Needs) else (needs, {})
        self._needed, self._stores = dict(always), dict(stores)
        self._refused: dict[str, str] = {}
        """Reasons of stores that refuse us."""
        self._held_by: set[str] = set()
        """Those of them that did so at the start."""
        self._told: dict[str, str] = {}
        """Of what is away: the kind of error that was told last."""
        self._asking: threading.Thread | None = None
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._seen: tuple[bool, dict[str, str]] = (False, {})
        self._seen_at = -math.inf

    def look(self) -> tuple[bool, dict[str, str]]:
        """Whether all is well, and of each dependency `ready` or the reason why it is not.

        Who has waited here while another thread asked takes its answer: asking one after the other,
        probes of a dependency that hangs would pile up and take every thread of the host."""
        came_at = self._clock()
        with self._looking:
            if self._seen_at <= came_at:
                self._seen = self._look()
                self._seen_at = self._clock()
            return self._seen

    def _look(self) -> tuple[bool, dict[str, str]]:
        if self._started_until == math.inf:
            self._started_until = self._clock() + START_SECONDS
        if self._stores and (self._asking is None or not self._asking.is_alive()):
            self._asking = threading.Thread(target=self.ask_stores, name="stores", daemon=True)
            self._asking.start()
        waits_until = time.monotonic() + FIRST_SECONDS
        state = {name: self._asked(name, check)[1] for name, check in self._needed.items()}
        if self._asking is not None and not self._was_ready:
            self._asking.join(max(waits_until - time.monotonic(), 0.0))
        is_ready = all(one == READY for one in state.values()) and not self._held_by
        self._was_ready = self._was_ready or is_ready
        state.update(dict(self._refused))
        telemetry.READY.labels(self._name).set(int(is_ready))
        return is_ready, state

    def ask_stores(self) -> None:
        """Once all that have not let us in yet. Blocks."""
        for name, check in tuple(self._stores.items()):
            error, reason = self._asked(name, check)
            if isinstance(error, NotLetInError):
                self._refused[name] = reason
                if self._clock() < self._started_until:
                    self._held_by.add(name)
            elif error is None:
                self._refused.pop(name, None)
                self._held_by.discard(name)
                self._stores.pop(name, None)

    def _asked(self, name: str, check: Check) -> tuple[Exception | None, str]:
        try:
            check()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not ready
            reason = reason_of(error)
            self._tell(name, type(error).__name__, reason)
            return error, reason
        self._tell(name, None, READY)
        return None, READY

    def _tell(self, name: str, kind: str | None, reason: str) -> None:
        with self._lock:
            before = self._told.get(name)
            if before == kind:
                return
            if kind is None:
                del self._told[name]
                logger.info("%s answers again", name)
                return
            self._told[name] = kind
        logger.warning("%s is not ready", name, extra=telemetry.fields(reason=reason))


def reason_of(error: Exception) -> str:
    """What may be told of an error: of ours all but users in addresses, of others only what kind
    it is, as nobody knows what is in its words."""
    if not isinstance(error, LeaderboardError):
        return type(error).__name__
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return _USER.sub("//", said)[:_LONGEST]
