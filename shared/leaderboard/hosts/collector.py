"""When Python's garbage collector looks for cycles, in a process that is a host's own.

Modules, models, schemas and drivers are some hundred thousand objects that stay for good. To look
through them all takes a tenth of a second, in which nobody is answered."""

from __future__ import annotations

import gc
from typing import Final

_BEFORE: Final = gc.get_threshold()
_WHILE_STARTING: Final = 100_000
"""Looking for cycles among what is being imported, and stays, took a seventh of a start."""


def start() -> None:
    """Look rarely until `started`, or until a host decides otherwise. Harmless where neither
    comes."""
    gc.set_threshold(_WHILE_STARTING, *_BEFORE[1:])


def started() -> None:
    """Look as often as ever."""
    gc.set_threshold(*_BEFORE)


def settle() -> None:
    """Never look again at what is there now: it stays as long as the process."""
    gc.collect()
    gc.freeze()


def collect_rarely(after: int) -> None:
    """Never look again at what is there now, nor at what is new before there are so many new
    containers. Without a look first: of a start there is little to be found."""
    gc.freeze()
    gc.set_threshold(after, 10, 100)
