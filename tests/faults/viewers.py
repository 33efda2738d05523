"""Players in front of their screens: real sockets, opened again when cut, as a page does."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import aiohttp
import httpx

from faults.scene import Scene
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, PositionChange, TournamentId, masked
from whole_path import Socket

AGAIN_SECONDS: Final = 0.25
REFUSED: Final = (httpx.HTTPError, aiohttp.ClientError, TimeoutError, AssertionError, OSError)


class Viewer:
    """One player of one tournament. `sockets` are all that were opened; the last is the screen."""

    def __init__(self, scene: Scene, tournament_id: str, player_id: str) -> None:
        self.tournament_id, self.player_id = tournament_id, player_id
        self.sockets: list[Socket] = []
        self.refused = 0
        self._scene = scene
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopping.wait(AGAIN_SECONDS if self.sockets else 0.01):
            if self.sockets and not self.sockets[-1].is_closed():
                continue
            try:
                self.sockets.append(self._scene.path.socket(self.tournament_id, self.player_id))
            except REFUSED:
                self.refused += 1
                self._stopping.wait(AGAIN_SECONDS)

    @property
    def is_open(self) -> bool:
        return bool(self.sockets) and not self.sockets[-1].is_closed()

    @property
    def cuts(self) -> int:
        """How often a socket of theirs was closed on them."""
        return sum(socket.is_closed() for socket in self.sockets)

    def frames(self, kind: str) -> list[dict[str, Any]]:
        """Of the present socket."""
        return self.sockets[-1].of_type(kind) if self.sockets else []

    def count(self) -> int:
        return sum(len(socket.frames) for socket in self.sockets)

    def knows(self, changes: Sequence[PositionChange]) -> bool:
        """Whether the last `position` frame tells the last of the player's changes."""
        own = [change.sequence for change in changes if change.player_id == self.player_id]
        frames = self.frames("position")
        return not own or bool(frames and frames[-1]["sequence"] >= own[-1])

    def shows(self, board: MemoryBoard) -> bool:
        """Whether the last `top` on the screen is this board's."""
        view = board.top(TournamentId(self.tournament_id), 100)
        tops = self.frames("top")
        if view is None or not tops:
            return False
        return tops[-1]["sequence"] >= view.sequence and bool(tops[-1]["standings"] == rows(view))

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        for socket in self.sockets:
            if not socket.is_closed():
                socket.close()


def rows(view: Any) -> list[list[Any]]:
    """A board's rows as a `top` frame has them."""
    return [
        [s.rank, s.player_id, s.display_name or masked(s.player_id), s.score.score]
        for s in view.standings
    ]


def wrong_frames(
    viewer: Viewer,
    entries: Sequence[LogEntry],
    changes: Sequence[PositionChange],
    tombstone_key: bytes,
    *,
    spared: bool,
    goes_back: bool,
) -> list[str]:
    """What any of the viewer's sockets showed that never was.

    `spared`: nothing on the way of frames was hit, so that also the ranks that they start from
    follow one another. `goes_back`: frames may come that readers drop, as they are not newer than
    what they have: boards lost writes, or what was sent is sent again."""
    told: list[str] = []
    who = f"{viewer.tournament_id} {viewer.player_id}"
    own = {c.sequence: c for c in changes if c.player_id == viewer.player_id}
    for socket in viewer.sockets:
        for kind in ("top", "position", "curve"):
            at = [frame["sequence"] for frame in socket.of_type(kind)]
            if at != sorted(at) and not goes_back:
                told.append(f"{who}: {kind} frames go back")
        for frame in socket.of_type("position"):
            change = own.get(frame["sequence"])
            seen = (frame["new_rank"], frame["score"])
            if change is None or seen != (change.new_rank, change.score.score):
                told.append(f"{who}: position frame {frame['sequence']} is no change of theirs")
        told += _wrong_tops(who, socket.of_type("top"), entries, tombstone_key)
    if spared:
        told += _wrong_steps(who, viewer.frames("position"), list(own.values()))
    return told[:5]


def _wrong_steps(
    who: str, frames: Sequence[Mapping[str, Any]], own: Sequence[PositionChange]
) -> list[str]:
    """A frame's old rank is that of the first change that no frame before it told."""
    position = 0
    for frame in frames:
        if position >= len(own) or frame["old_rank"] != own[position].old_rank:
            return [f"{who}: position frame {frame['sequence']} starts from the wrong rank"]
        while position < len(own) and own[position].sequence <= frame["sequence"]:
            position += 1
    return [] if position == len(own) else [f"{who}: the last position frame did not come"]


def _wrong_tops(
    who: str,
    frames: Sequence[Mapping[str, Any]],
    entries: Sequence[LogEntry],
    tombstone_key: bytes,
) -> list[str]:
    oracle, position = MemoryBoard(tombstone_key), 0
    for frame in sorted(frames, key=lambda one: one["sequence"]):
        end = position
        while end < len(entries) and entries[end].offset <= Offset(frame["sequence"]):
            end += 1
        name = TournamentId(str(entries[0].event.tournament_id))
        oracle.apply(name, "oracle", None, entries[position:end], Offset(2**62))
        position = end
        view = oracle.top(name, 100)
        if view is None or frame["standings"] != rows(view):
            return [f"{who}: top frame {frame['sequence']} is not the board at that sequence"]
    return []
