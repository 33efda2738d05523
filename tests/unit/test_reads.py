"""Board and record as one, in memory and with a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import pytest

from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.errors import TransientError
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, PlayerId, State, TournamentId
from leaderboard.ports import BoardView, Summary
from leaderboard.reads import BEHIND_SECONDS, LIST_SECONDS, Reads, Seen, Source, Tournaments
from leaderboard.record_ports import Member
from logs import ALICE, BOB, CAROL, LOG, TOMBSTONE_KEY, T, ended, joined, scheduled, scored
from records import moved
from running import wait_for

V = TypeVar("V")
NOWHERE = TournamentId("nowhere")


class Store:
    """Boards and directory of one witness: what Redis is, and what the record is."""

    def __init__(self) -> None:
        self.board = MemoryBoard(TOMBSTONE_KEY)
        self.listed: dict[TournamentId, Summary] = {}
        self.is_away = False
        self.calls = 0

    def say(self, *entries: LogEntry) -> None:
        for one in entries:
            name = TournamentId(str(one.event.tournament_id))
            applied = self.board.apply(name, LOG, None, [one], None)
            if applied.terms is not None:
                self.listed[name] = Summary(name, applied.terms)

    def lose(self) -> None:
        self.board, self.listed = MemoryBoard(TOMBSTONE_KEY), {}

    def answer(self, read: Callable[[], V]) -> V:
        self.calls += 1
        if self.is_away:
            raise TransientError("away")
        return read()

    # what both ports have

    def find(self, tournament_id: TournamentId) -> Summary | None:
        return self.answer(lambda: self.listed.get(tournament_id))

    def top(self, tournament_id: TournamentId, limit: int, after_rank: int = 0) -> BoardView | None:
        return self.answer(lambda: self.board.top(tournament_id, limit, after_rank))

    def player(self, tournament_id: TournamentId, player_id: PlayerId) -> BoardView | None:
        return self.answer(lambda: self.board.player(tournament_id, player_id))

    def around(
        self, tournament_id: TournamentId, player_id: PlayerId, radius: int
    ) -> BoardView | None:
        return self.answer(lambda: self.board.around(tournament_id, player_id, radius))


class Near(Store):
    """The parts of `ports.Board` and `ports.Directory` that reads use."""

    def all(self) -> Sequence[Summary]:
        return self.answer(lambda: list(self.listed.values()))

    def is_in(self, tournament_id: TournamentId, player_id: PlayerId) -> bool:
        return self.answer(lambda: self.board.is_in(tournament_id, player_id))


class Far(Store):
    """`ports.Record`."""

    def __init__(self) -> None:
        super().__init__()
        self.forgotten: set[str] = set()
        self.disqualified: set[PlayerId] = set()

    def all(self, state: State | None = None) -> Sequence[Summary]:
        found = [one for one in self.listed.values() if state in (None, one.terms.state)]
        return self.answer(lambda: found)

    def sequences(self, tournaments: Sequence[TournamentId]) -> Mapping[TournamentId, Offset]:
        views = {name: self.board.top(name, 1) for name in tournaments}
        return self.answer(
            lambda: {name: view.sequence for name, view in views.items() if view is not None}
        )

    def tournaments_of(self, player_id: PlayerId) -> Sequence[TournamentId]:
        return self.answer(lambda: [t for t in self.listed if self.board.is_in(t, player_id)])

    def member(self, tournament_id: TournamentId, player_id: PlayerId) -> Member:
        has_joined = self.board.is_in(tournament_id, player_id)
        return self.answer(lambda: Member(has_joined, player_id in self.disqualified))

    def is_forgotten(self, erasure_id: str) -> bool:
        return self.answer(lambda: erasure_id in self.forgotten)

    def pseudonyms(self, erasure_id: str) -> dict[TournamentId, bool]:
        return self.answer(dict)


class Scene:
    """Both witnesses of one log, and who reads them."""

    def __init__(self) -> None:
        self.near, self.far, self.now = Near(), Far(), 1000.0
        self.reads = Reads(
            lambda: self.near,  # type: ignore[arg-type,return-value]  # a part of the port
            lambda: self.near,  # type: ignore[arg-type,return-value]
            lambda: self.far,
            clock=lambda: self.now,
        )

    def say(self, *entries: LogEntry) -> None:
        self.near.say(*entries)
        self.far.say(*entries)

    def top(self) -> tuple[Source, int]:
        seen = self.reads.top(T, 10)
        assert seen is not None
        return seen.source, seen.view.sequence

    def two_seconds_later(self) -> None:
        self.reads.ask_record()
        self.now += BEHIND_SECONDS


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    scene.say(scheduled(0), scored(1, "alice", 10), scored(2, "bob", 20))
    yield scene
    scene.now += 3600  # nobody reads any more: the thread ends


def test_sound_board_answers_and_the_record_is_not_asked(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leaderboard.reads.ASK_SECONDS", 0.05)
    for _ in range(1000):
        assert scene.top() == (Source.BOARD, 2)
    wait_for(lambda: scene.far.calls > 2, 5)
    assert scene.far.calls < 100, "in the background, so often a second whoever reads"


def test_every_read_falls_back(scene: Scene) -> None:
    reads: list[Callable[[], Seen | None]] = [
        lambda: scene.reads.top(T, 1, 1),
        lambda: scene.reads.player(T, ALICE),
        lambda: scene.reads.around(T, ALICE, 3),
    ]
    before = [read() for read in reads]
    scene.near.lose()
    for was, read in zip(before, reads, strict=True):
        now = read()
        assert was is not None and now is not None
        assert (was.source, now.source) == (Source.BOARD, Source.RECORD)
        assert now.view == was.view


def test_member_is_whom_either_of_the_two_knows(scene: Scene) -> None:
    scene.far.disqualified.add(BOB)
    scene.near.say(joined(3, CAROL))
    assert scene.reads.member(T, BOB) == Member(has_joined=True, is_disqualified=True)
    assert scene.reads.member(T, CAROL) == Member(has_joined=True, is_disqualified=False)
    scene.far.is_away = True
    assert scene.reads.member(T, CAROL) == Member(has_joined=True, is_disqualified=False)
    assert scene.reads.member(T, BOB) == Member(has_joined=True, is_disqualified=False)
    scene.far.is_away = False
    wait_for(lambda: scene.reads.member(T, BOB).is_disqualified, 5)
    assert not scene.reads.member(T, PlayerId("dave")).has_joined
    scene.near.is_away = True
    # The record has not come as far as her join: that is no reason to say there is none.
    assert scene.reads.member(T, CAROL) == Member(has_joined=True, is_disqualified=False)
    assert scene.reads.member(T, BOB) == Member(has_joined=True, is_disqualified=True)
    scene.far.is_away = True
    with pytest.raises(TransientError):
        scene.reads.member(T, BOB)


def test_board_is_behind_what_the_record_had_two_seconds_ago_and_not_what_it_has(
    scene: Scene,
) -> None:
    scene.top()
    scene.far.say(scored(3, "alice", 10))
    scene.reads.ask_record()
    scene.now += BEHIND_SECONDS - 0.1
    assert scene.top() == (Source.BOARD, 2), "the board may be on its way"
    scene.far.say(scored(4, "alice", 10))
    scene.now += 0.1
    assert scene.top() == (Source.RECORD, 4)
    scene.near.say(scored(3, "alice", 10), scored(4, "alice", 10))
    assert scene.top() == (Source.BOARD, 4)


def test_reader_does_not_step_back_from_what_the_record_showed(scene: Scene) -> None:
    scene.near.is_away = True
    scene.far.say(scored(3, "alice", 10))
    assert scene.top() == (Source.RECORD, 3)
    scene.near.is_away = False
    wait_for(lambda: scene.reads.find(T) is not None and not scene.reads._near._is_away, 5)
    assert scene.top() == (Source.RECORD, 3), "the board is at 2"
    scene.near.say(scored(3, "alice", 10))
    assert scene.top() == (Source.BOARD, 3)


def test_board_that_is_behind_is_shown_to_nobody(scene: Scene) -> None:
    scene.top()
    scene.far.say(scored(3, "alice", 10))
    scene.two_seconds_later()
    scene.far.is_away = True
    with pytest.raises(TransientError):
        scene.top()


def test_what_the_record_said_counts_on_while_it_is_away(scene: Scene) -> None:
    scene.say(scored(3, "alice", 10))
    scene.top()
    scene.two_seconds_later()
    scene.far.is_away = True
    with pytest.raises(TransientError):
        scene.reads.ask_record()
    scene.now += 3600
    assert scene.top() == (Source.BOARD, 3)
    scene.near.lose()
    scene.near.say(scheduled(0), scored(1, "alice", 10))
    with pytest.raises(TransientError):
        scene.top()


def test_record_that_went_back_is_older_than_the_board(scene: Scene) -> None:
    scene.say(scored(3, "alice", 10))
    scene.top()
    scene.far.say(scored(9, "alice", 10))
    scene.two_seconds_later()
    scene.far.lose()
    scene.far.say(scheduled(0))
    assert scene.top() == (Source.BOARD, 3)


def test_unknown_is_said_only_when_both_were_asked(scene: Scene) -> None:
    assert scene.reads.top(NOWHERE, 1) is None
    assert scene.reads.find(NOWHERE) is None
    scene.near.is_away = True
    for read in (lambda: scene.reads.top(NOWHERE, 1), lambda: scene.reads.find(NOWHERE)):
        with pytest.raises(TransientError):
            read()


def test_unknown_is_not_said_while_the_record_is_away(scene: Scene) -> None:
    scene.far.is_away = True
    for read in (lambda: scene.reads.top(NOWHERE, 1), lambda: scene.reads.find(NOWHERE)):
        with pytest.raises(TransientError):
            read()
    assert scene.top() == (Source.BOARD, 2)
    assert scene.reads.find(T) is not None


def test_listed_tournament_that_nobody_can_show_is_not_unknown(scene: Scene) -> None:
    scene.far.lose()
    scene.near.board = MemoryBoard(TOMBSTONE_KEY)
    with pytest.raises(TransientError):
        scene.top()


def test_list_has_live_and_past_ones_and_the_newer_of_two(scene: Scene) -> None:
    past, live = scheduled(0, "past"), scheduled(0, "live")
    scene.far.say(past, moved(ended(1), "past", 1))
    scene.near.say(live)
    scene.far.say(ended(5))
    told = {one.tournament_id: one.terms.state for one in scene.reads.all()}
    assert told == {"live": State.SCHEDULED, "past": State.ENDED, T: State.ENDED}
    assert [one.tournament_id for one in scene.reads.all(State.SCHEDULED)] == ["live"]
    scene.near.say(ended(6))
    assert {one.tournament_id for one in scene.reads.all(State.ENDED)} == {"past", T}


def test_list_goes_on_while_one_of_the_two_is_away(scene: Scene) -> None:
    scene.far.say(scheduled(0, "past"))
    scene.near.is_away = True
    assert {one.tournament_id for one in scene.reads.all()} == {"past", T}
    scene.far.is_away = True
    scene.now += LIST_SECONDS
    with pytest.raises(TransientError):
        scene.reads.all()


def test_list_without_the_record_is_the_directory(scene: Scene) -> None:
    scene.far.is_away = True
    assert [one.tournament_id for one in scene.reads.all()] == [T]


def test_functions_that_ask_seldom_try_each_time(scene: Scene) -> None:
    near, far = scene.near, scene.far
    tournaments = Tournaments(lambda: near, lambda: far)  # type: ignore[arg-type,return-value]
    far.is_away = near.is_away = True
    for _ in range(3):
        with pytest.raises(TransientError):
            tournaments.find(T)
    near.is_away = False
    assert tournaments.find(T) is not None


def test_tournament_that_was_found_stays_known(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = scene.near, scene.far
    tournaments = Tournaments(lambda: near, lambda: far)  # type: ignore[arg-type,return-value]
    assert not tournaments.knows(TournamentId("none"))
    assert tournaments.knows(T)
    far.is_away = near.is_away = True
    assert tournaments.knows(T)
    with pytest.raises(TransientError):
        tournaments.knows(TournamentId("none"))
    near.is_away = far.is_away = False
    monkeypatch.setattr("leaderboard.reads.KNOWN", 1)
    near.listed[TournamentId("next")] = near.listed[T]
    assert tournaments.knows(TournamentId("next"))
    far.is_away = near.is_away = True
    with pytest.raises(TransientError):
        tournaments.knows(T)


def test_thread_ends_with_the_readers(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaderboard.reads.ASK_SECONDS", 0.02)
    floors = scene.reads._floors
    for _ in range(2):
        scene.top()
        assert floors._thread is not None
        scene.now += 61
        wait_for(lambda: floors._thread is None, 5)
