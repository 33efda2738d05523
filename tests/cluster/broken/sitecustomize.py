"""Python imports this by itself at its start, in the image beside."""

import itertools
from typing import Any

from leaderboard.reads import Reads

_NUMBERS = itertools.count(1)
_top = Reads.top


def _sometimes(self: Reads, *arguments: Any) -> Any:
    if next(_NUMBERS) % 3 == 0:
        raise AssertionError("the broken image fails every third read")
    return _top(self, *arguments)


Reads.top = _sometimes  # type: ignore[method-assign, assignment]
