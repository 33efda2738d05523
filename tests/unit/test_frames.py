"""Frames: what a socket carries, from what the board and the log say."""

from __future__ import annotations

import json

import pytest

from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.frames import milestone, top_frame
from logs import ALICE, BOB, LOG, TOMBSTONE_KEY, T, ended, erased, joined, scheduled, scored


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (None, 1, "top_10"),
        (None, 10, "top_10"),
        (None, 11, "top_100"),
        (None, 100, "top_100"),
        (None, 101, None),
        (11, 10, "top_10"),
        (10, 9, None),
        (101, 100, "top_100"),
        (101, 1, "top_10"),
        (50, 20, None),
        (5, 50, None),
        (5, None, None),
    ],
)
def test_the_best_circle_that_was_entered_is_named(
    old: int | None, new: int | None, named: str | None
) -> None:
    assert milestone(old, new) == named


def test_top_shows_names_masks_and_erased_rows() -> None:
    board = MemoryBoard(TOMBSTONE_KEY)
    log = [scheduled(0), joined(1, BOB, "Böb"), scored(2, ALICE, 9), scored(3, BOB, 5)]
    board.apply(T, LOG, None, [*log, ended(4), erased(5, ALICE)], None)
    view = board.top(T, 100)
    assert view is not None
    frame = top_frame(view)
    assert frame.channel == f"top.{T}"
    body = json.loads(frame.body)
    (rank, name, shown, score), second = body["standings"]
    assert (rank, score, body["sequence"], body["version"], body["players"]) == (1, 9, 5, 5, 2)
    assert name.startswith("erased-")
    assert ALICE not in frame.body.decode()
    assert shown == f"er***{name[-2:]}"
    assert second == [2, BOB, "Böb", 5]
