"""Frames: what a socket carries, from what the board and the log say."""

from __future__ import annotations

import itertools
import json

import pytest

from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.frames import (
    PARTS,
    SOCKETS_A_PART,
    SPREAD_FROM,
    curve_ranks,
    in_part,
    milestone,
    part_of,
    top_frame,
)
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


def test_sockets_fill_one_part_after_the_other_and_then_all_alike() -> None:
    parts = [part_of(sockets) for sockets in range(1, 10_001)]
    assert set(parts[:SOCKETS_A_PART]) == {0}
    assert parts[SOCKETS_A_PART] == 1
    assert SPREAD_FROM < SOCKETS_A_PART, "all parts are served before one is given out"
    sizes = [parts.count(part) for part in range(PARTS)]
    assert max(sizes) - min(sizes) <= SOCKETS_A_PART


def test_first_part_has_the_channel_that_a_small_tournament_has() -> None:
    assert in_part("top.t", 0) == "top.t"
    assert in_part("top.t", 3) == "top.t.3"


@pytest.mark.parametrize("players", [0, 1, 99, 100, 101, 150, 1_000, 100_000, 1_000_000])
def test_curve_is_exact_at_the_top_and_dense_enough_below(players: int) -> None:
    ranks = curve_ranks(players)
    assert ranks == sorted(set(ranks))
    assert ranks[:100] == list(range(1, min(players, 100) + 1))
    assert len(ranks) <= 200
    if players:
        assert ranks[-1] == players
    steps = [(below - above) / above for above, below in itertools.pairwise(ranks)]
    allowed = {1_000: 0.03, 100_000: 0.08, 1_000_000: 0.105}.get(players, 1.0)
    assert all(step <= allowed for step in steps[100:])
