"""Work that a process does again and again beside what it serves, in a thread of its own."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Final

from leaderboard import telemetry
from leaderboard.errors import TransientError

STOP_SECONDS: Final = 10.0
logger = logging.getLogger(__name__)


class Repeating:
    """Calls `work` every `seconds` from `start` on, until `stop`.

    The framework forks its workers after the import, and a fork leaves threads behind: give
    `after_fork` to `os.register_at_fork`, and call `start` with each request as well, for a server
    that does not fork. What is away is said once, as what can't be done (`trouble`)."""

    def __init__(self, name: str, seconds: float, work: Callable[[], object], trouble: str) -> None:
        self._name = name
        self._seconds = seconds
        self._work = work
        self._trouble = trouble
        self._pid: int | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start the thread unless this process has it."""
        if self._pid == os.getpid():
            return
        with self._lock:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for that; it is not started again."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def after_fork(self) -> None:
        """A lock that another thread held is held for ever in the child: take a new one."""
        self._lock = threading.Lock()
        self.start()

    def _run(self) -> None:
        was_away = False
        while not self._stopped.wait(self._seconds):
            try:
                self._work()
                was_away = False
            except TransientError as error:
                if not was_away:
                    logger.warning(self._trouble, extra=telemetry.fields(error=str(error)))
                was_away = True
            except Exception:
                logger.exception("bug: %s", self._trouble)
