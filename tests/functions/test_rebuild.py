"""Boards lost while the record reads the same log at its own pace: the end is always the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

import logs
from consuming import (
    REMEMBERED,
    TOURNAMENTS,
    MemoryDirectory,
    MemoryProgress,
    Outcome,
    Ports,
    Reader,
    lose_one_board,
    maker,
    mixed_log,
    outcome,
    restore,
    snapshot,
    undisturbed,
)
from hosting import Hosted
from leaderboard import events as ev
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.redis_erasures import RedisErasures
from leaderboard.adapters.redis_progress import RedisProgress
from leaderboard.adapters.sql_snapshot import SqlSnapshots
from leaderboard.errors import TransientError
from leaderboard.fold import LogEntry
from leaderboard.model import BOARD_KEPT_MS, Offset, TournamentId
from logs import LOG, TOMBSTONE_KEY
from ports import RestoredErasures
from recorded import ArchiveReader, archive_module, new_record
from records import fresh_database

T1, T2, T3 = TOURNAMENTS


@pytest.fixture(scope="module")
def archive() -> Any:
    return archive_module()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    with opened(request.param, request, tmp_path) as engine:
        yield engine


@pytest.fixture
def sqlite(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    with opened("sqlite", request, tmp_path) as engine:
        yield engine


@contextmanager
def opened(dialect: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[sa.Engine]:
    with fresh_database(dialect, request, folder) as url:
        engine = new_record(url)
        try:
            yield engine
        finally:
            engine.dispose()


def early_log(seed: int, length: int = 25) -> list[LogEntry]:
    """As `mixed_log`, and events that come before the tournaments that they name."""
    early = [logs.scored(i, "p1", 3, tournament_id=t) for i, t in enumerate(TOURNAMENTS)]
    later = [
        LogEntry(Offset(one.offset + 3), one.logged_at_ms, one.event)
        for one in mixed_log(seed, length)
    ]
    return early + later


class WatchedSnapshots(SqlSnapshots):
    """Remembers which snapshots were of a later offset than was asked for: somebody has been
    erased since, and the way there is not told any more."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.leaps: list[tuple[TournamentId, int, int]] = []

    @contextmanager
    def taken(self, tournament_id: TournamentId, before: Offset) -> Iterator[Any]:
        with super().taken(tournament_id, before) as found:
            if found is not None and found.offset >= before:
                self.leaps.append((tournament_id, before, found.offset))
            yield found

    def was_leapt(self, tournament_id: str, offset: int) -> bool:
        return any(t == tournament_id and a <= offset <= b for t, a, b in self.leaps)


@dataclass
class Scene:
    """on-wager and archive over one log and one store."""

    on_wager: Hosted
    entries: Sequence[LogEntry]
    ports: Ports
    reader: Reader
    record: ArchiveReader
    client: redis.Redis | None = None
    kept: list[dict[bytes, Any]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)

    @property
    def leaps(self) -> WatchedSnapshots:
        found: WatchedSnapshots = self.ports.snapshots
        return found

    def finish(self) -> Outcome:
        """Everybody reads to the end; then on-wager is replaced, and looks around."""
        self.record.read_to(self.entries[-1].offset + 1)
        self.reader.run()
        self.reader.restart()
        self.reader.run()
        for _ in range(3):
            self.reader.tick()
            self.reader.run()
        return outcome(self.reader, self.ports)

    def is_request_known(self) -> bool:
        """Whether the store knows the erasure request of these logs."""
        erasures = self.ports.erasures
        if isinstance(erasures, RestoredErasures):
            return "er-1" in erasures.restored
        return erasures.find("er-1") is not None

    def restart(self) -> None:
        self.reader.restart()

    def set_back(self) -> None:
        if self.reader.committed is not None:
            self.reader.committed = Offset(self.reader.committed // 2)
        self.reader.restart()

    def empty(self) -> None:
        if self.client is not None:
            self.client.flushdb()
        else:
            self.ports.board._kept.clear()  # type: ignore[attr-defined]
            self.ports.directory._shown.clear()  # type: ignore[attr-defined]
            self.ports.progress.__init__()  # type: ignore[misc]
            self.ports.erasures.restored.clear()

    def empty_and_restart(self) -> None:
        self.empty()
        self.reader.restart()

    def keep(self) -> None:
        if self.client is not None:
            self.kept.append(snapshot(self.client))

    def lose_tail(self) -> None:
        if self.client is not None and self.kept:
            restore(self.client, self.kept[-1])

    def remove_board(self, chance: random.Random) -> None:
        tournament_id = chance.choice(TOURNAMENTS)
        if self.client is not None:
            kept = chance.choice(self.kept) if self.kept and chance.random() < 0.5 else {}
            lose_one_board(self.client, tournament_id, kept)
        else:
            self.ports.board._kept.pop(tournament_id, None)  # type: ignore[attr-defined]

    def empty_directory(self) -> None:
        if self.client is not None:
            self.client.delete("tournaments")
        else:
            self.ports.directory._shown.clear()  # type: ignore[attr-defined]


def scene_of(
    on_wager: Hosted,
    archive: Any,
    engine: sa.Engine,
    entries: Sequence[LogEntry],
    client: redis.Redis | None = None,
    seed: int = 1,
) -> Scene:
    if client is not None:
        client.flushdb()
        board: Any = RedisBoard(client, TOMBSTONE_KEY, REMEMBERED)
        ports = Ports(board, RedisDirectory(client), RedisProgress(client), engine=engine)
        ports.erasures = RedisErasures(client, TOMBSTONE_KEY)
    else:
        board = MemoryBoard(TOMBSTONE_KEY, REMEMBERED)
        ports = Ports(board, MemoryDirectory(), MemoryProgress(), engine=engine)
    ports.snapshots = WatchedSnapshots(engine, REMEMBERED, lambda: ports.now_ms())  # noqa: PLW0108 - tests set it later
    check = archive.StandingCheck(None, ports.board, ports.directory, ports.progress)
    record = ArchiveReader(archive, engine, entries, REMEMBERED, check)
    reader = Reader(entries, maker(on_wager, ports), seed=seed)
    return Scene(on_wager, entries, ports, reader, record, client)


def check_outcome(scene: Scene, found: Outcome, expected: Outcome) -> None:
    """As the oracle, but for what a leap over an erasure does not tell."""
    leaps, told = scene.leaps, {(one.tournament_id, one.sequence): one for one in found.changes}
    assert found.boards == expected.boards
    assert found.directory == expected.directory
    for one in expected.changes:
        if (one.tournament_id, one.sequence) not in told:
            assert leaps.was_leapt(one.tournament_id, one.sequence), one
    wanted = {(one.tournament_id, one.sequence): one for one in expected.changes}
    assert all(wanted[key] == one for key, one in told.items())
    for offset, reason in expected.dead_letters.items():
        if offset not in found.dead_letters:
            assert any(a <= offset <= b for _, a, b in leaps.leaps), (offset, reason)
    surplus = found.dead_letters.keys() - expected.dead_letters.keys()
    assert {found.dead_letters[offset] for offset in surplus} <= {"unknown_tournament"}
    erased = {
        TournamentId(str(one.event.tournament_id))
        for one in scene.entries
        if isinstance(one.event.data, ev.PlayerErased)
    }
    assert scene.is_request_known() <= bool(erased)
    assert scene.is_request_known() or all(expected.boards[t] is None for t in erased)


PACES = {"behind": 0.15, "level": 1.0, "ahead": 3.0}


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_lost_whenever_the_end_is_the_same(
    on_wager: Hosted, archive: Any, sqlite: sa.Engine, client: redis.Redis, seed: int, pace: str
) -> None:
    entries = early_log(seed)
    expected = undisturbed(on_wager, entries)
    chance = random.Random(f"{seed}{pace}")
    in_memory = seed % 4 == 3
    scene = scene_of(on_wager, archive, sqlite, entries, None if in_memory else client, seed)
    strikes = disturb(scene, chance, PACES[pace])
    assert strikes >= 4
    check_outcome(scene, scene.finish(), expected)


def disturb(scene: Scene, chance: random.Random, pace: float) -> int:
    """Run to on-wager's end with faults on the way; how many there were."""
    faults: list[Callable[[], object]] = [
        scene.empty,
        scene.empty_and_restart,
        scene.lose_tail,
        lambda: scene.remove_board(chance),
        scene.empty_directory,
        scene.restart,
        scene.set_back,
    ]
    strikes, budget, credit = 0, 10, 0.0
    while not (scene.reader.is_done() and not budget):
        if scene.reader.is_done() or (budget and chance.random() < 0.15):
            chance.choice(faults)()
            budget -= 1
            strikes += 1
        if chance.random() < 0.3:
            scene.keep()
        scene.reader.step()
        if scene.reader.function is not None and chance.random() < 0.3:
            scene.reader.tick()
        credit += pace
        while credit >= 1:
            scene.record.step(chance.randint(1, 12))
            credit -= 1
    return strikes


@pytest.mark.parametrize("seed", range(2))
def test_postgresql_as_record_ends_the_same(
    on_wager: Hosted,
    archive: Any,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    client: redis.Redis,
    seed: int,
) -> None:
    entries = early_log(100 + seed)
    expected = undisturbed(on_wager, entries)
    with opened("postgresql", request, tmp_path) as engine:
        scene = scene_of(on_wager, archive, engine, entries, client, seed)
        disturb(scene, random.Random(seed), 1.0)
        check_outcome(scene, scene.finish(), expected)


# --- one thing at a time -------------------------------------------------------------------------


class AwayRecord:
    """`ports.Record` and `ports.Snapshots` of a database that is away."""

    def __getattr__(self, name: str) -> Any:
        def call(*_args: Any, **_named: Any) -> Any:
            raise TransientError("the database is away")

        return call


def take_record_away(scene: Scene) -> Callable[[], None]:
    """Until what is answered is called."""
    kept = scene.ports.record, scene.ports.snapshots
    scene.ports.record = scene.ports.snapshots = AwayRecord()
    losses = None if scene.reader.function is None else scene.reader.function._losses
    if losses is not None:
        losses._record, losses._rebuild._snapshots = AwayRecord(), AwayRecord()

    def bring_back() -> None:
        scene.ports.record, scene.ports.snapshots = kept
        if losses is not None:
            losses._record, losses._rebuild._snapshots = kept

    return bring_back


def level(scene: Scene) -> Scene:
    """Both have read everything."""
    scene.record.read_to(scene.entries[-1].offset + 1)
    scene.reader.run()
    return scene


def test_board_that_is_gone_comes_from_the_record_without_reading_the_log_again(
    on_wager: Hosted, archive: Any, engine: sa.Engine, client: redis.Redis
) -> None:
    entries = early_log(1)
    expected = undisturbed(on_wager, entries)
    scene = level(scene_of(on_wager, archive, engine, entries, client))
    told = list(scene.ports.feed.changes)
    scene.empty_and_restart()
    scene.reader.run()
    assert scene.reader.replays == []
    assert scene.ports.feed.changes == told
    check_outcome(scene, scene.finish(), expected)
    assert not scene.leaps.leaps


def test_record_that_is_away_lets_an_untouched_store_start(
    on_wager: Hosted, archive: Any, sqlite: sa.Engine, client: redis.Redis
) -> None:
    entries = early_log(2)
    expected = undisturbed(on_wager, entries)
    scene = level(scene_of(on_wager, archive, sqlite, entries, client))
    scene.restart()
    back = take_record_away(scene)
    scene.reader.run()
    scene.reader.tick()
    back()
    check_outcome(scene, scene.finish(), expected)


@pytest.mark.parametrize("running", [True, False])
def test_loss_while_the_record_is_away_waits_for_it(
    on_wager: Hosted, archive: Any, sqlite: sa.Engine, client: redis.Redis, running: bool
) -> None:
    entries = early_log(3)
    expected = undisturbed(on_wager, entries)
    scene = scene_of(on_wager, archive, sqlite, entries, client)
    for _ in range(5):
        scene.reader.step()
    scene.record.read_to(entries[-1].offset + 1)
    scene.empty()
    if not running:
        scene.restart()
    back = take_record_away(scene)
    for _ in range(3):
        with pytest.raises(TransientError):
            scene.reader.step()
    assert client.keys("*") == []
    back()
    check_outcome(scene, scene.finish(), expected)


def test_garbage_while_the_record_is_away_is_a_dead_letter_and_stops_nobody(
    on_wager: Hosted, archive: Any, sqlite: sa.Engine, client: redis.Redis
) -> None:
    entries = [
        logs.scheduled(0, T1),
        logs.scored(1, "p1", 5, tournament_id=T1),
        logs.scored(2, "p1", 5, tournament_id="nobodys"),
        logs.scored(3, "p1", 5, tournament_id=T1),
        logs.scheduled(4, T2),
    ]
    scene = scene_of(on_wager, archive, sqlite, entries, client)
    back = take_record_away(scene)
    # A start needs the record only where something is missing.
    scene.reader.run()
    back()
    assert scene.reader.dead_letters == {2: "unknown_tournament"}
    view = scene.ports.board.top(T1, 5)
    assert view is not None
    assert view.standings[0].score.score == 10
    assert scene.ports.board.top(T2, 5) is not None


def test_what_comes_before_the_first_schedule_is_no_lost_board_to_a_record_that_is_ahead(
    on_wager: Hosted, archive: Any, engine: sa.Engine, client: redis.Redis
) -> None:
    entries = [
        logs.scored(0, "p1", 5, tournament_id=T1),
        logs.scheduled(7, T1),
        logs.scored(8, "p1", 5, tournament_id=T1),
    ]
    scene = scene_of(on_wager, archive, engine, entries[:1], client)
    scene.record.entries = entries
    scene.record.read_to(9)
    scene.reader.run()
    scene.reader.entries = entries
    scene.reader.run()
    assert scene.reader.dead_letters == {0: "unknown_tournament"}
    assert scene.reader.replays == []


def test_changes_that_nobody_had_emitted_are_emitted_by_a_record_that_is_ahead(
    on_wager: Hosted, archive: Any, engine: sa.Engine, client: redis.Redis
) -> None:
    entries = [logs.scheduled(0, T1)]
    entries += [logs.scored(i, f"p{i % 7}", i, tournament_id=T1) for i in range(1, 60)]
    scene = scene_of(on_wager, archive, engine, entries, client)
    scene.record.read_to(60)
    for _ in range(4):
        scene.reader.step()
    before = len(scene.ports.feed.changes)
    scene.empty_and_restart()
    scene.reader.run()
    assert scene.reader.replays == []
    changes = scene.ports.feed.changes
    assert len(changes) > before > 0
    assert [one.sequence for one in changes] == list(range(1, 60))


def test_what_the_log_has_dropped_comes_from_the_archived_inputs(
    on_wager: Hosted, archive: Any, engine: sa.Engine, client: redis.Redis
) -> None:
    entries = [logs.scheduled(0, T1), logs.scheduled(1, T2)]
    entries += [logs.scored(i, f"p{i % 7}", i, tournament_id=(T1, T2)[i % 2]) for i in range(2, 80)]
    entries[20] = logs.scored(20, "p1", 3, tournament_id="nobodys")
    expected = undisturbed_of(on_wager, entries)
    scene = scene_of(on_wager, archive, engine, entries, client)
    for _ in range(3):
        scene.reader.step()
    assert (scene.reader.committed or 0) < 50
    scene.record.read_to(70)
    scene.restart()
    scene.reader.low = Offset(60)
    found = scene.finish()
    assert found.boards == expected.boards
    assert found.changes == expected.changes


@pytest.mark.parametrize("erased_at", [5, 45, 65])
def test_who_was_erased_stays_out_of_what_is_taken_from_archived_inputs(
    on_wager: Hosted, archive: Any, engine: sa.Engine, client: redis.Redis, erased_at: int
) -> None:
    """Before, in, and behind what the log has dropped."""
    entries = [logs.scheduled(0, T1)]
    entries += [logs.scored(i, f"p{i % 7}", i, tournament_id=T1) for i in range(1, 80)]
    entries[erased_at] = logs.erased(erased_at, "p3")
    expected = undisturbed_of(on_wager, entries)
    scene = scene_of(on_wager, archive, engine, entries, client)
    for _ in range(3):
        scene.reader.step()
    scene.record.read_to(80)
    scene.restart()
    scene.reader.low = Offset(60)
    assert scene.finish().boards == expected.boards
    assert scene.is_request_known()


def undisturbed_of(on_wager: Hosted, entries: Sequence[LogEntry]) -> Outcome:
    board = MemoryBoard(TOMBSTONE_KEY, REMEMBERED)
    ports = Ports(board, MemoryDirectory(), MemoryProgress())
    reader = Reader(entries, maker(on_wager, ports), seed=0)
    reader.run()
    return outcome(reader, ports)


def over_and_gone(on_wager: Hosted, archive: Any, engine: sa.Engine, client: redis.Redis) -> Scene:
    """A tournament that has ended, was confirmed, and whose board has expired a day later."""
    entries = [
        logs.scheduled(0, T1),
        logs.scored(1, "p1", 5, tournament_id=T1),
        logs.ended(2),
        logs.scheduled(3, T2),
    ]
    scene = level(scene_of(on_wager, archive, engine, entries, client))
    confirmed_at = scene.record.archive.confirm(T1, Offset(2))
    assert confirmed_at is not None
    scene.ports.progress.forget(LOG, 0, [T1])
    scene.ports.now_ms = lambda: confirmed_at + BOARD_KEPT_MS + 1
    lose_one_board(client, T1, {})
    scene.ports.directory.remove(T1)
    return scene


@pytest.mark.parametrize("replaced", [False, True])
def test_tournament_that_is_over_for_long_goes_on_in_the_record_alone(
    on_wager: Hosted, archive: Any, engine: sa.Engine, client: redis.Redis, replaced: bool
) -> None:
    scene = over_and_gone(on_wager, archive, engine, client)
    if replaced:
        scene.restart()
    scene.entries = scene.reader.entries = scene.record.entries = [
        *scene.entries,
        logs.scored(4, "p1", 7, tournament_id=T1),
        logs.erased(5, "p1"),
        logs.scheduled(6, T1, event_id="again"),
        logs.scored(7, "p1", 7, tournament_id="nobodys"),
        logs.scored(8, "p2", 7, tournament_id=T2),
    ]
    found = scene.finish()
    assert found.boards[T1] is None
    assert found.boards[T2] is not None
    assert found.dead_letters == {7: "unknown_tournament"}
    assert [one.tournament_id for one in found.directory] == [T2]
    assert scene.is_request_known()
    kept = scene.ports.record.top(T1, 5)
    assert [row.player_id.startswith("erased-") for row in kept.standings] == [True]
    assert client.keys(f"{{{T1}}}*") == []


def test_board_that_has_gone_is_not_asked_of_a_record_that_is_away(
    on_wager: Hosted, archive: Any, sqlite: sa.Engine, client: redis.Redis
) -> None:
    scene = over_and_gone(on_wager, archive, sqlite, client)
    back = take_record_away(scene)
    scene.reader.function.tick()
    back()
    scene.reader.function.tick()
    assert scene.reader.replays == []
    assert client.keys(f"{{{T1}}}*") == []


@pytest.mark.parametrize("seed", range(4))
def test_two_owners_and_a_loss_end_the_same(
    on_wager: Hosted, archive: Any, sqlite: sa.Engine, client: redis.Redis, seed: int
) -> None:
    entries = early_log(seed)
    expected = undisturbed(on_wager, entries)
    scene = scene_of(on_wager, archive, sqlite, entries, client, seed)
    other = Reader(entries, scene.reader._make, seed=seed + 100)
    chance, turns = random.Random(seed), 0
    while not (scene.reader.is_done() and other.is_done()):
        one = chance.choice((scene.reader, other))
        one.step()
        scene.record.step(chance.randint(1, 5))
        turns += 1
        if turns in (9, 23):
            chance.choice((scene.empty, lambda: scene.remove_board(chance)))()
    found = scene.finish()
    found.dead_letters |= other.dead_letters
    check_outcome(scene, found, expected)
