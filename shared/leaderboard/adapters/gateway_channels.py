"""What every gateway adapter refuses before anything is sent: channels that no event could name,
and frames that are too large."""

from __future__ import annotations

import re
from typing import Final

from leaderboard.ports import Frame

MAX_FRAME_BYTES: Final = 256 * 1024

_CHANNEL: Final = re.compile(
    r"(?:top|curve)\.[A-Za-z0-9_-]{1,64}(?:\.[1-7])?|conn\.[A-Za-z0-9_-]{1,64}"
    r"|me\.[A-Za-z0-9_-]{1,64}\.[A-Za-z0-9_-]{1,64}"
)


def channel_name(name: str) -> str:
    """The name, safe in a path as it is. Raises ValueError for any other."""
    if _CHANNEL.fullmatch(name) is None:
        raise ValueError(f"no channel has such a name: {name[:80]!r}")
    return name


def frame_length(frame: Frame) -> int:
    """Bytes of the body. Raises ValueError above 256 KiB."""
    length = len(frame.body)
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame has {MAX_FRAME_BYTES} bytes at most, not {length}")
    return length
