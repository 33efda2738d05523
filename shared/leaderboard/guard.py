"""Calls to a dependency that may be away or hang, so that its absence costs few callers little.

The first call that finds it away pays for that; those after it are told at once. Whether it is
back is tried in the background, so no caller pays for the trials either.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, TypeVar

from leaderboard import telemetry
from leaderboard.errors import TransientError

T = TypeVar("T")
AGAIN_SECONDS: Final = 0.5
"""Between two trials of who was away."""
FORGOTTEN_SECONDS: Final = 10.0
"""Trials end when nobody has asked for so long; the next caller finds out."""
logger = logging.getLogger(__name__)


class _TooLongError(TransientError):
    """No answer in time: the dependency hangs, or it was too much to ask."""


class Guard:
    """One dependency's calls. Safe for several threads; make it after a fork.

    `seconds` bounds a call from here, for drivers that can wait for ever; then at most `at_once`
    of them run, and one that hangs keeps a thread of its own until it ends. `trial` is what is
    tried while the dependency is away, else the very call that failed; where there is one, a call
    that took too long counts only if the trial does not answer either. Without `breaks` every
    caller tries for themselves."""

    def __init__(
        self,
        name: str,
        *,
        seconds: float | None = None,
        at_once: int = 8,
        trial: Callable[[], object] | None = None,
        breaks: bool = True,
        again_seconds: float = AGAIN_SECONDS,
    ) -> None:
        self._name = name
        self._seconds = seconds
        self._free = threading.BoundedSemaphore(at_once)
        self._trial = trial
        self._breaks = breaks
        self._again_seconds = again_seconds
        self._lock = threading.Lock()
        self._is_away = False
        self._is_tried = False
        """A thread tries it: there is one at most."""
        self._asked_at = 0.0

    def __call__(self, call: Callable[[], T]) -> T:
        """What `call` answers; it has to be harmless when it is done again.

        Raises what it raises, and TransientError while the dependency is known to be away or when
        it takes longer than allowed."""
        if self._is_away:
            self._asked_at = time.monotonic()
            raise TransientError(f"{self._name} is away")
        try:
            return self._bounded(call)
        except TransientError as error:
            if self._breaks:
                is_sure = self._trial is None or not isinstance(error, _TooLongError)
                self._look_after(self._trial or call, error, is_sure=is_sure)
            raise

    def _bounded(self, call: Callable[[], T]) -> T:
        if self._seconds is None:
            return call()
        until = time.monotonic() + self._seconds
        if not self._free.acquire(timeout=self._seconds):
            raise _TooLongError(f"{self._name} is busy with calls that take too long")
        answered: SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = SimpleQueue()

        def run() -> None:
            try:
                answered.put((call(), None))
            except BaseException as error:  # noqa: BLE001 - raised again by who waits for it
                answered.put((None, error))
            finally:
                self._free.release()

        threading.Thread(target=run, name=f"ask {self._name}", daemon=True).start()
        try:
            answer, error = answered.get(timeout=max(until - time.monotonic(), 0.0))
        except Empty:
            raise _TooLongError(f"{self._name} takes too long") from None
        if error is not None:
            raise error
        return answer  # type: ignore[return-value]  # mypy sees no pair in the two halves

    def _look_after(
        self, trial: Callable[[], object], error: TransientError, *, is_sure: bool
    ) -> None:
        with self._lock:
            if is_sure:
                self._found_away(error)
            if self._is_tried:
                return
            self._is_tried = True
            self._asked_at = time.monotonic()
        threading.Thread(
            target=self._try_until_back, args=(trial,), name=f"try {self._name}", daemon=True
        ).start()

    def _found_away(self, error: TransientError) -> None:
        if not self._is_away:
            self._is_away = True
            telemetry.AWAY.labels(self._name).inc()
            logger.warning("%s is away", self._name, extra=telemetry.fields(error=str(error)))

    def _try_until_back(self, trial: Callable[[], object]) -> None:
        while time.monotonic() < self._asked_at + FORGOTTEN_SECONDS:
            if self._is_away:
                time.sleep(self._again_seconds)
            try:
                self._bounded(trial)
            except TransientError as error:
                with self._lock:
                    self._found_away(error)
                continue
            except Exception:
                logger.exception("bug while trying whether %s is back", self._name)
            break
        with self._lock:
            if self._is_away:
                logger.info("%s is asked again", self._name)
            self._is_away = self._is_tried = False
