"""on-rank-change by a clock that a test moves: what reaches the gateway, when, and how often."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
from confluent_kafka import Producer
from prometheus_client import REGISTRY

from hosting import FUNCTIONS
from leaderboard import events as ev
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.errors import TransientError
from leaderboard.fold import LogEntry
from leaderboard.frames import PARTS, in_part
from leaderboard.hosts.kafka import Assignment, Batch
from leaderboard.model import Offset, Place, PlayerId, PositionChange, TournamentId
from leaderboard.partitioning import partition_of
from leaderboard.ports import Frame, Grant, Summary
from logs import LOG, START_MS, TOMBSTONE_KEY, T, ended, scheduled, scored
from ports import MemoryGateway
from recording import Log

PARTITIONS = 4
PUSHED_MS = START_MS + 2000
"""What the clock on the wall shows at second 0 of a test."""
HOME = Place(ev.POSITION_CHANGES, partition_of(T.encode(), PARTITIONS))


def _loaded() -> ModuleType:
    path = FUNCTIONS / "on-rank-change" / "main.py"
    spec = importlib.util.spec_from_file_location("on_rank_change_main", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


on_rank_change: Any = _loaded()


class Clock:
    """Seconds, which pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedGateway(MemoryGateway):
    """Knows when each frame came; takes none while `is_away`, the first `takes` of them else."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.times: list[float] = []
        self.is_away = False
        self._clock = clock

    def publish(self, frames: Sequence[Frame]) -> None:
        if self.is_away:
            # Half of them arrived, as it happens.
            super().publish(frames[: len(frames) // 2])
            self.times += [self._clock.now] * (len(frames) // 2)
            raise TransientError("the gateway is away")
        super().publish(frames)
        self.times += [self._clock.now] * len(frames)

    def on(self, channel: str) -> list[tuple[float, dict[str, Any]]]:
        """Time and content of what came on a channel."""
        return [
            (at, json.loads(frame.body))
            for at, frame in zip(self.times, self.frames, strict=True)
            if frame.channel == channel
        ]


class ListedDirectory:
    """`ports.Directory` as a list."""

    def __init__(self) -> None:
        self.shown: dict[TournamentId, Summary] = {}

    def put(self, summary: Summary) -> None:
        self.shown[summary.tournament_id] = summary

    def find(self, tournament_id: TournamentId) -> Summary | None:
        return self.shown.get(tournament_id)

    def all(self) -> Sequence[Summary]:
        return list(self.shown.values())

    def remove(self, tournament_id: TournamentId) -> None:
        self.shown.pop(tournament_id, None)


class LivePlayers:
    """`ports.Connections`, as far as on-rank-change asks: who holds a socket."""

    def __init__(self, *players: str) -> None:
        self.players = {PlayerId(player) for player in players}
        self.are_many = False

    def live(self, tournament_id: TournamentId, players: Sequence[PlayerId]) -> frozenset[PlayerId]:
        return frozenset(self.players.intersection(players))

    def is_spread(self, tournament_id: TournamentId) -> bool:
        return self.are_many

    def sockets(self, tournament_id: TournamentId) -> int:
        raise NotImplementedError

    def left(self, grant: Grant) -> None:
        raise NotImplementedError

    def issue(self, grant: Grant, ttl_seconds: int) -> str:
        raise NotImplementedError

    def redeem(self, ticket: str) -> Grant | None:
        raise NotImplementedError

    def lease(self, grant: Grant) -> str | None:
        raise NotImplementedError

    def holder(self, tournament_id: TournamentId, player_id: PlayerId) -> str | None:
        raise NotImplementedError

    def release(self, tournament_id: TournamentId, player_id: PlayerId) -> str | None:
        raise NotImplementedError

    def due(self, now_ms: int, limit: int) -> Sequence[str]:
        raise NotImplementedError

    def closed(self, connection_ids: Sequence[str]) -> None:
        raise NotImplementedError

    def count(self) -> int:
        raise NotImplementedError


class Scene:
    """A board that is played on, and the function that watches it."""

    def __init__(self, *live: str) -> None:
        self.clock = Clock()
        self.board = MemoryBoard(TOMBSTONE_KEY)
        self.directory = ListedDirectory()
        self.gateway = TimedGateway(self.clock)
        self.live = LivePlayers(*live)
        self._input = 0
        self._played = 0
        self.function = self.another()

    def another(self) -> Any:
        """A process that owns the partition from now on."""
        function = on_rank_change.OnRankChange(
            self.board,
            self.directory,
            self.live,
            self.gateway,
            self.clock,
            lambda: PUSHED_MS + round(self.clock.now * 1000),
        )
        function.assigned(Assignment(*HOME, "log", None, Offset(0), PARTITIONS))
        return function

    def play(self, *entries: LogEntry) -> list[LogEntry]:
        """What on-wager does with them; the inputs that come of it."""
        applied = self.board.apply(T, LOG, None, entries, Offset(self._played))
        self._played = max(entry.offset for entry in entries)
        if applied.terms is not None:
            self.directory.put(Summary(T, applied.terms))
        return [self.input(change) for change in applied.unconfirmed]

    def input(self, change: PositionChange) -> LogEntry:
        data = ev.PositionChanged(
            tournament_id=change.tournament_id,
            player_id=change.player_id,
            sequence=change.sequence,
            old_rank=change.old_rank,
            new_rank=change.new_rank,
            score=change.score.score,
            distance=change.distance,
            cause=ev.CauseData(source="/tests", id="any"),
        )
        self._input += 1
        event = ev.Event(f"{T}/{change.sequence}", "/on-wager", change.time_ms, data)
        return LogEntry(Offset(self._input - 1), PUSHED_MS - 200, event)

    def deliver(self, entries: Sequence[LogEntry]) -> None:
        batch = Batch(*HOME, "log", entries, Offset(entries[-1].offset + 1))
        self.function.handle(batch)
        self.function.settle(batch)

    def let_pass(self, seconds: float) -> int:
        """Call `tick` when it asks to be called, as the host does; how often that was."""
        until, calls = self.clock.now + seconds, 0
        while True:
            wanted = self.function.tick()
            calls += 1
            assert wanted >= 0
            if self.clock.now + wanted > until:
                self.clock.now = until
                return calls
            self.clock.now += max(wanted, 1e-6)

    def safe(self) -> int:
        return int(self.function.safe(HOME, Offset(self._input)))

    def tops(self) -> list[tuple[float, dict[str, Any]]]:
        return [(at, f) for at, f in self.gateway.on(f"top.{T}") if f["type"] == "top"]

    def states(self) -> list[str]:
        return [f["state"] for _, f in self.gateway.on(f"top.{T}") if f["type"] == "tournament"]

    def positions(self, player: str) -> list[dict[str, Any]]:
        return [frame for _, frame in self.gateway.on(f"me.{T}.{player}")]


@pytest.fixture
def scene() -> Iterator[Scene]:
    """Alice and Bob look on; the tournament runs."""
    one = Scene("alice", "bob")
    one.deliver([*one.play(scheduled(0), scored(1, "alice", 10))])
    one.let_pass(1.0)
    one.gateway.frames.clear()
    one.gateway.times.clear()
    yield one


def test_top_comes_at_most_four_times_a_second_and_covers_the_last_change(scene: Scene) -> None:
    for n in range(250):
        scene.deliver(scene.play(scored(2 + n, f"p{n % 7}", 1)))
        scene.let_pass(0.01)
    scene.let_pass(1.0)
    tops = scene.tops()
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(tops)]
    assert min(gaps) >= 0.25 - 1e-9
    assert 10 <= len(tops) <= 12
    view = scene.board.top(T, 100)
    assert view is not None
    last = tops[-1][1]
    assert last["sequence"] == last["version"] == view.sequence == 251
    assert last["players"] == 8
    assert [row[0] for row in last["standings"]] == list(range(1, 9))
    assert last["standings"][0] == [1, "p0", "p***", 36]


def by_part(scene: Scene, kind: str) -> list[list[tuple[float, dict[str, Any]]]]:
    """What came to each part of a large tournament."""
    return [
        [(at, frame) for at, frame in scene.gateway.on(in_part(f"{kind}.{T}", part))]
        for part in range(PARTS)
    ]


def test_a_large_tournament_s_parts_get_theirs_in_turns_as_often_as_before(scene: Scene) -> None:
    scene.live.are_many = True
    scene.let_pass(5.0)
    scene.gateway.frames.clear()
    scene.gateway.times.clear()
    begun = scene.clock.now
    for n in range(300):
        scene.deliver(scene.play(scored(2 + n, f"p{n % 7}", 1)))
        scene.let_pass(0.01)
    scene.let_pass(2.0)
    tops = by_part(scene, "top")
    for part in tops:
        gaps = [later - earlier for (earlier, _), (later, _) in pairwise(part)]
        assert min(gaps) >= 0.25 - 1e-9
        assert 11 <= len(part) <= 14
        assert part[-1][1]["sequence"] == 301
    firsts = [at for at, _ in tops[0]]
    for number, part in enumerate(tops):
        turns = [at - first for first, (at, _) in zip(firsts, part, strict=True)]
        assert turns == pytest.approx([number * 0.25 / PARTS] * len(turns), abs=0.011)
    for part in by_part(scene, "curve"):
        assert 3 <= len(part) <= 5
        assert part[-1][1]["sequence"] == 301
        assert part[0][0] >= begun


def test_nothing_is_committed_before_the_last_part_has_its_frame(scene: Scene) -> None:
    scene.live.are_many = True
    scene.let_pass(5.5)
    inputs = scene.play(scored(2, "carol", 5))
    scene.deliver(inputs)
    assert scene.safe() == inputs[0].offset, "seven of eight have not seen it"
    later = scene.play(scored(3, "carol", 5))
    scene.let_pass(0.1)
    scene.deliver(later)
    scene.let_pass(0.25 * 7 / PARTS - 0.1)
    assert scene.safe() == later[0].offset, "the round did not cover what came during it"
    scene.let_pass(0.5)
    assert scene.safe() == later[-1].offset + 1
    assert [part[-1][1]["sequence"] for part in by_part(scene, "top")] == [3] * PARTS


def test_a_part_that_failed_is_the_next_one_again(scene: Scene) -> None:
    scene.live.are_many = True
    scene.let_pass(5.5)
    scene.deliver(scene.play(scored(2, "carol", 5)))
    scene.let_pass(0.25 * 3 / PARTS - 0.01)
    scene.gateway.is_away = True
    scene.clock.now += 0.01
    with pytest.raises(TransientError):
        scene.function.tick()
    scene.gateway.is_away = False
    scene.let_pass(0.5)
    assert all(2 in [frame["sequence"] for _, frame in part] for part in by_part(scene, "top"))
    assert scene.safe() == scene._input


def test_the_end_is_told_to_all_parts_at_once(scene: Scene) -> None:
    scene.live.are_many = True
    scene.let_pass(5.5)
    scene.deliver(scene.play(scored(2, "carol", 5)))
    scene.let_pass(0.1)
    scene.play(ended(3))
    scene.let_pass(6.0)
    for part in by_part(scene, "top"):
        kinds = [(frame["type"], frame["sequence"]) for _, frame in part]
        assert kinds[-2:] == [("tournament", 3), ("top", 3)]
    for part in by_part(scene, "curve"):
        assert part[-1][1]["sequence"] == 3
    assert scene.safe() == scene._input


def test_a_change_in_a_quiet_tournament_is_sent_at_once(scene: Scene) -> None:
    scene.let_pass(0.3)
    scene.deliver(scene.play(scored(2, "bob", 3)))
    assert [at for at, _ in scene.tops()] == [scene.clock.now]
    assert scene.positions("bob")[0]["new_rank"] == 2


def test_top_comes_again_every_five_seconds_without_any_change(scene: Scene) -> None:
    calls = scene.let_pass(20.5)
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(scene.tops())]
    assert len(gaps) == 3
    assert all(abs(gap - 5.0) < 0.01 for gap in gaps)
    assert calls < 20, "it does not wake up for nothing"


def test_a_tournament_known_only_from_the_directory_is_watched_too(scene: Scene) -> None:
    scene.function = scene.another()
    scene.let_pass(0.0)
    scene.let_pass(10.5)
    assert scene.states() == ["running"]
    assert [at for at, _ in scene.tops()] == pytest.approx([1.0, 6.0, 11.0], abs=0.01)


def test_only_the_owner_of_its_partition_watches_a_tournament(scene: Scene) -> None:
    other = Place(HOME.topic, (HOME.partition + 1) % PARTITIONS)
    scene.function.revoked(HOME)
    scene.function.assigned(Assignment(*other, "log", None, Offset(0), PARTITIONS))
    scene.let_pass(20)
    assert scene.gateway.frames == []


def test_positions_go_only_to_players_with_a_socket(scene: Scene) -> None:
    scene.deliver(scene.play(scored(2, "carol", 50), scored(3, "bob", 20)))
    scene.let_pass(1)
    channels = {frame.channel for frame in scene.gateway.frames}
    assert channels == {f"top.{T}", f"curve.{T}", f"me.{T}.bob"}
    assert scene.positions("bob") == [
        {
            "type": "position",
            "tournament_id": T,
            "sequence": 3,
            "old_rank": None,
            "new_rank": 2,
            "score": 20,
            "distance": 30,
            "milestone": "top_10",
        }
    ]


def test_a_player_gets_one_frame_for_many_changes_from_the_first_to_the_newest(
    scene: Scene,
) -> None:
    scene.deliver(scene.play(scored(2, "bob", 1), scored(3, "carol", 5), scored(4, "dave", 3)))
    scene.gateway.frames.clear()
    scene.gateway.times.clear()
    # Within one flush: from rank 4 to 3, to 2, to 1.
    scene.deliver(scene.play(*(scored(5 + n, "bob", 3) for n in range(4))))
    scene.let_pass(1)
    (frame,) = scene.positions("bob")
    assert (frame["sequence"], frame["old_rank"], frame["new_rank"]) == (8, 4, 1)
    assert (frame["score"], frame["distance"], frame["milestone"]) == (13, None, None)


def latency(frame: str, since: str) -> tuple[float, float]:
    """Observations so far, and their sum in seconds."""
    labels = {"frame": frame, "since": since}
    name = "leaderboard_push_latency_seconds"
    count = REGISTRY.get_sample_value(f"{name}_count", labels) or 0.0
    return count, REGISTRY.get_sample_value(f"{name}_sum", labels) or 0.0


def test_a_push_tells_how_old_the_oldest_wager_in_it_is(scene: Scene) -> None:
    scene.let_pass(0.3)
    kinds = [(frame, since) for frame in ("position", "top") for since in ("event", "ingest")]
    before = {kind: latency(*kind) for kind in kinds}
    scene.gateway.is_away = True
    # Happened at second -1, taken in at -0.2; the one after it is newer, and in the same push.
    with pytest.raises(TransientError):
        scene.deliver(scene.play(scored(2, "bob", 3), scored(3, "carol", 4)))
    assert {kind: latency(*kind) for kind in kinds} == before, "nothing is pushed yet"
    scene.gateway.is_away = False
    scene.clock.now = 5.0
    scene.function.tick()
    wanted = {"event": 1.0 + 5.0, "ingest": 0.2 + 5.0}
    for kind in kinds:
        count, seconds = latency(*kind)
        assert count == before[kind][0] + 1
        assert seconds - before[kind][1] == pytest.approx(wanted[kind[1]])


def test_what_nobody_sees_is_no_push(scene: Scene) -> None:
    scene.let_pass(0.3)
    before = latency("position", "event")
    scene.deliver(scene.play(scored(2, "carol", 3)))
    scene.let_pass(8)
    assert latency("position", "event") == before, "carol has no socket"


def test_nothing_is_committed_whose_frames_are_not_with_the_gateway(scene: Scene) -> None:
    assert scene.safe() == 1
    scene.deliver(scene.play(scored(2, "bob", 1)))
    assert scene.safe() == 2, "both were due at once"
    scene.deliver(scene.play(scored(3, "bob", 1)))
    scene.deliver(scene.play(scored(4, "alice", 1)))
    assert scene.safe() == 2
    scene.let_pass(0.1)
    assert len(scene.positions("alice")) == 1
    assert scene.safe() == 2, "no top frame covers them yet"
    scene.let_pass(0.2)
    assert scene.safe() == 4


def test_a_crash_anywhere_leaves_no_player_with_an_old_rank(scene: Scene) -> None:
    """The next process starts at `safe`: what it sends covers all that was not sent."""
    inputs: list[LogEntry] = []
    for n in range(60):
        new = scene.play(scored(2 + n, ("alice", "bob")[n % 2], 1 + n % 5))
        inputs += new
        if new:
            scene.deliver(new)
        scene.let_pass(0.007)
        if n % 5 == 4:
            safe = scene.safe()
            scene.function = scene.another()
            if again := [one for one in inputs if one.offset >= safe]:
                scene.deliver(again)
    scene.let_pass(1)
    view = scene.board.top(T, 10)
    assert view is not None
    last_frames = {p: scene.positions(p)[-1] for p in ("alice", "bob")}
    newest = {one.event.data.player_id: one.event.data for one in inputs}  # type: ignore[union-attr]
    for player, frame in last_frames.items():
        assert frame["sequence"] == newest[player].sequence  # type: ignore[union-attr]
        assert frame["score"] == newest[player].score  # type: ignore[union-attr]
    assert scene.tops()[-1][1]["sequence"] == view.sequence


def test_while_the_gateway_is_away_nothing_is_lost_and_nothing_committed(scene: Scene) -> None:
    scene.let_pass(1)
    before = scene.safe()
    scene.gateway.is_away = True
    batch = scene.play(scored(2, "bob", 1), scored(3, "alice", 1), scored(4, "bob", 30))
    for _ in range(3):
        with pytest.raises(TransientError):
            scene.deliver(batch)
        assert scene.safe() == before
        with pytest.raises(TransientError):
            scene.function.tick()
        scene.clock.now += 1
    scene.gateway.is_away = False
    scene.deliver(batch)
    scene.let_pass(1)
    assert scene.positions("bob")[-1]["old_rank"] is None
    assert scene.positions("bob")[-1]["new_rank"] == 1
    assert scene.positions("alice")[-1]["sequence"] == 3
    assert scene.tops()[-1][1]["sequence"] == 4
    assert scene.safe() == before + 3


def test_a_change_that_comes_again_is_dropped(scene: Scene) -> None:
    batch = scene.play(scored(2, "bob", 1))
    scene.deliver(batch)
    scene.let_pass(4)
    count = len(scene.gateway.frames)
    scene.deliver(batch)
    scene.let_pass(0.5)
    assert len(scene.gateway.frames) == count
    assert scene.safe() == 2


def test_a_new_state_is_told_before_the_board_that_new_subscribers_keep(scene: Scene) -> None:
    scene.deliver(scene.play(scored(2, "bob", 1)))
    scene.play(ended(3))
    scene.let_pass(6)
    frames = [frame for _, frame in scene.gateway.on(f"top.{T}")]
    assert [frame["type"] for frame in frames] == ["top", "tournament", "top"]
    assert frames[1] == {"type": "tournament", "tournament_id": T, "sequence": 3, "state": "ended"}
    assert frames[2]["sequence"] == 3


def test_curve_comes_once_a_second_while_the_board_changes(scene: Scene) -> None:
    for offset in range(2, 42):
        scene.deliver(scene.play(scored(offset, "alice", 1)))
        scene.let_pass(0.1)
    scene.let_pass(2)
    curves = [json.loads(f.body) for f in scene.gateway.frames if f.channel == f"curve.{T}"]
    assert 4 <= len(curves) <= 6
    assert curves[-1]["sequence"] == 41
    assert [rank for rank, _ in curves[-1]["points"]] == [1]


def test_a_tournament_that_has_ended_is_let_go(scene: Scene) -> None:
    scene.play(ended(2))
    scene.let_pass(6)
    assert scene.states() == ["ended"]
    count = len(scene.gateway.frames)
    scene.let_pass(60)
    assert len(scene.gateway.frames) == count
    assert scene.function._watched == {}


def test_the_next_owner_tells_an_end_that_the_one_before_may_not_have_told(scene: Scene) -> None:
    scene.play(ended(2))
    scene.function = scene.another()
    scene.let_pass(0.1)
    assert scene.states() == ["ended"]
    assert scene.tops()[-1][1]["sequence"] == 2
    count = len(scene.gateway.frames)
    scene.let_pass(60)
    assert len(scene.gateway.frames) == count
    scene.function.revoked(HOME)
    scene.function.assigned(Assignment(*HOME, "log", None, Offset(0), PARTITIONS))
    scene.let_pass(1)
    assert scene.states() == ["ended", "ended"]


def test_a_board_that_is_gone_holds_nothing_back_and_is_watched_when_it_is_back(
    scene: Scene,
) -> None:
    kept = dict(scene.board._kept)
    batch = scene.play(scored(2, "bob", 1))
    scene.board._kept.clear()
    scene.deliver(batch)
    scene.let_pass(1)
    assert scene.safe() == 2
    assert scene.tops() == []
    scene.board._kept.update(kept)
    scene.let_pass(5)
    assert scene.tops()[-1][1]["sequence"] == 2


def test_a_key_lies_in_the_partition_that_kafka_gives_it(kafka: str) -> None:
    log, landed = Log(kafka, partitions=7), {}
    producer = Producer(
        {"bootstrap.servers": kafka, "log_level": 2, "partitioner": "murmur2_random"}
    )
    keys = [f"tournament-{n}" * (1 + n % 3) + "é名"[: n % 3] for n in range(200)]

    def delivered(error: Any, message: Any) -> None:
        assert error is None
        landed[message.key()] = message.partition()

    for key in keys:
        producer.produce(log.topic, key=key.encode(), value=b"x", on_delivery=delivered)
    assert producer.flush(30) == 0
    assert landed == {key.encode(): partition_of(key.encode(), 7) for key in keys}
    assert set(landed.values()) == set(range(7))
