"""Imported by a function before all else: the collector of garbage rests until the start is over.

A start makes a hundred thousand objects that stay for good. To look through them again and again
while they are being made takes a sixth of it, and finds nothing. Hosts set the collector to what
they want when they are ready (`collector`)."""

from __future__ import annotations

import gc
from typing import Final

OBJECTS: Final = 200_000
"""More new containers than a start makes."""

gc.set_threshold(OBJECTS, 10, 10)
