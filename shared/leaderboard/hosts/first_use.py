"""Making things on first use: the framework imports a function, then forks its workers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class FirstUse(Generic[T]):
    """Calls `make` on the first call, keeps what it made, and hands that out ever after.

    Safe for several threads; when `make` raises, nothing is kept and the next call tries again."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: list[T] = []
        self._lock = threading.Lock()

    def __call__(self) -> T:
        if not self._made:
            with self._lock:
                if not self._made:
                    self._made.append(self._make())
        return self._made[0]

    def made(self) -> T | None:
        """What was made; None where nothing was yet."""
        return self._made[0] if self._made else None

    def put(self, made: T) -> None:
        """Hand this out from now on: ports of a test, or of a stack in one process."""
        self._made[:] = [made]
