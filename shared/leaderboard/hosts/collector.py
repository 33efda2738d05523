"""When Python's garbage collector looks for cycles, in a process that is a host's own.

Modules, models, schemas and drivers are some hundred thousand objects that stay for good. To look
through them all takes a tenth of a second, in which nobody is answered."""

from __future__ import annotations

import gc
from typing import Final

USUAL: Final = (700, 10, 10)
"""Python's own thresholds."""


def settle() -> None:
    """Never look again at what is there now: it stays as long as the process. What comes from now
    on is looked at as usual, also where the start was not (`starting`)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*USUAL)


def collect_rarely(after: int) -> None:
    """Never look again at what is there now, nor at what is new before there are so many new
    containers. Without a look first: of a start there is little to be found."""
    gc.freeze()
    gc.set_threshold(after, 10, 100)
