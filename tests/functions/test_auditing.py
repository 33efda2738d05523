"""archive's audit log: a leaf for every record, once, in order, whatever breaks off; keys that are
destroyed when nothing needs them any more, and not before. The function itself, over logs in memory
and a record in SQLite."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from audit_logs import ORIGIN, MemoryLogs, MemoryLogStore, auditor
from leaderboard import events as ev
from leaderboard import telemetry
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.adapters.sql_pseudonyms import SqlPseudonyms
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.audit.store import LogStore
from leaderboard.audit.tiles import TILE_WIDTH, bundle_path, encode_bundle
from leaderboard.audit_leaves import BESIDE, NOBODY, Leaf
from leaderboard.codec import encode_kafka
from leaderboard.errors import (
    ForeignLogError,
    LogConflictError,
    Refusal,
    RefusedError,
    TransientError,
)
from leaderboard.events import (
    CONNECTIONS,
    GDPR_EVENTS,
    POSITION_CHANGES,
    WAGERS,
    ConnectionDecided,
    PlayerErased,
    PositionChanged,
    Record,
)
from leaderboard.fold import LogEntry
from leaderboard.hosts.kafka import Assignment, Batch, Refused
from leaderboard.model import Offset, Place, TournamentId, erasure_id_of
from logs import ALICE, BOB, START_MS, TOMBSTONE_KEY, T, entry, erased, scheduled, scored
from recorded import archive_module, new_record

PLACE = Place(WAGERS, 0)
CHANGES = Place(POSITION_CHANGES, 0)


def batch_in(topic: str, entries: Sequence[LogEntry], log: str = "x") -> Batch:
    records = []
    for one in entries:
        made = encode_kafka(one.event, topic)
        records.append(made._replace(partition=0, offset=one.offset, timestamp_ms=START_MS))
    end = Offset(records[-1].offset + 1)
    return Batch(topic, 0, f"{topic}/{log}/0", list(entries), end, records)


class Boards:
    """How far the boards are, and where position changes end, as a test says."""

    def __init__(self) -> None:
        self.reached: int | None = None
        self.changes_end = 0

    def read(self, log_id: str, partition: int) -> Offset | None:
        return None if self.reached is None else Offset(self.reached)

    def end(self, tournament_id: TournamentId) -> tuple[Place, Offset]:
        return CHANGES, Offset(self.changes_end)


class Scene:
    """archive over one record and one set of logs; `restart` is what a new process finds."""

    def __init__(
        self, folder: Path, store_of: Callable[[LogStore], LogStore] = lambda store: store
    ) -> None:
        self.module = archive_module()
        self.engine = new_record(f"sqlite:///{folder / 'record.sqlite'}")
        self.logs = MemoryLogs(store_of)
        self.boards = Boards()
        self.now = 0.0
        self.restart()

    def restart(self) -> None:
        self.auditor = self.another()
        archive = SqlArchive(self.engine, TOMBSTONE_KEY, now_ms=lambda: START_MS)
        self.function = self.module.Archivist(archive, self.auditor, None)

    def another(self) -> Any:
        """The auditor of a further process."""
        return auditor(
            self.module,
            self.engine,
            self.logs,
            self.boards,
            changes_end=self.boards.end,
            clock=lambda: self.now,
            pseudonyms=SqlPseudonyms(self.engine, TOMBSTONE_KEY, lambda: START_MS),
        )

    def assign(self, topic: str = WAGERS, *, low: int = 0, end: int | None = None) -> Any:
        at = None if end is None else Offset(end)
        given = Assignment(topic, 0, f"{topic}/x/0", Offset(10**6), Offset(low), 1, at)
        return self.function.assigned(given)

    def take(self, batch: Batch) -> None:
        self.function.begin(batch)
        try:
            self.function.join(batch)
        except BaseException:
            self.function.forget(batch)
            raise
        self.function.handle(batch)
        self.function.settle(batch)

    def wagers(self, *entries: LogEntry) -> None:
        self.take(batch_in(WAGERS, entries))

    def leaves(self, place: Place = PLACE) -> list[Leaf]:
        return self.logs.leaves(place)

    def tick(self, seconds: float = 10.0) -> None:
        self.now += seconds
        self.auditor.tick()

    def keys(self, player_id: str = ALICE) -> Mapping[TournamentId, bool]:
        return SqlRecord(self.engine).pseudonyms(erasure_id_of(TOMBSTONE_KEY, player_id))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def offsets(leaves: Iterable[Leaf]) -> list[int]:
    return [leaf.offset for leaf in leaves]


def change(offset: int, player_id: str, sequence: int) -> LogEntry:
    data = PositionChanged(
        tournament_id=T, player_id=player_id, sequence=sequence, old_rank=None, new_rank=1,
        score=5, distance=None, cause=ev.CauseData(source="/tests", id="e1"),
    )  # fmt: skip
    return entry(offset, data, event_id=f"{T}/{sequence}")


def attempt(offset: int, player_id: str | None) -> LogEntry:
    data = ConnectionDecided(tournament_id=T, player_id=player_id, allowed=True, reason="first")
    return entry(offset, data)


def erasure_request(offset: int, player_id: str) -> LogEntry:
    return entry(offset, PlayerErased(player_id=player_id, erasure_id="er-1"))


# --- every record once ---------------------------------------------------------------------------


def test_every_topic_has_its_shard_and_a_player_one_name_in_it(scene: Scene) -> None:
    scene.wagers(scheduled(0), scored(1, ALICE, 5), scored(2, BOB, 6))
    scene.take(batch_in(POSITION_CHANGES, [change(0, ALICE, 1)]))
    scene.take(batch_in(CONNECTIONS, [attempt(0, ALICE), attempt(1, None)]))
    scene.take(batch_in(GDPR_EVENTS, [erasure_request(0, "carol")]))
    schedule, alice, bob = scene.leaves()
    assert (schedule.kind, alice.kind) == ("tournament.scheduled", "score.submitted")
    assert len({alice.player, bob.player, None}) == 3
    (moved,) = scene.leaves(CHANGES)
    assert moved.player == alice.player
    hers, nobodys = scene.leaves(Place(CONNECTIONS, 0))
    assert hers.player not in (None, alice.player)
    assert nobodys.player is None
    (gone,) = scene.leaves(Place(GDPR_EVENTS, 0))
    assert gone.player is None


def test_what_cannot_be_read_has_a_leaf_too(scene: Scene) -> None:
    batch = batch_in(WAGERS, [scheduled(0), scored(2, ALICE, 5)])
    bad = Record(WAGERS, b"t1", b"{", (), 0, 1, START_MS)
    first, last = batch.records
    refused = [Refused(Offset(1), RefusedError(Refusal.NOT_JSON, "no JSON"))]
    scene.take(
        Batch(
            WAGERS, 0, batch.log_id, batch.entries, batch.next_offset, [first, bad, last], refused
        )
    )
    assert [leaf.refused for leaf in scene.leaves()] == [None, "not_json", None]


def test_what_is_read_again_is_not_written_again(scene: Scene) -> None:
    entries = [scheduled(0), *(scored(n, f"p{n % 7}", n) for n in range(1, 600))]
    scene.wagers(*entries[:400])
    scene.wagers(*entries[:400])
    scene.restart()
    assert scene.assign() == 400
    scene.wagers(*entries[200:])
    assert offsets(scene.leaves()) == list(range(600))


def test_record_and_log_catch_up_with_each_other(scene: Scene) -> None:
    """Killed between the two, in either order: what one has is not asked of it again."""
    entries = [scheduled(0), *(scored(n, ALICE, n) for n in range(1, 9))]
    archive = scene.function._archive
    batch = batch_in(WAGERS, entries[:5])
    archive.fold(PLACE, batch.log_id, scene.module.inputs_of(batch), Offset(5))
    scene.restart()
    assert scene.assign() == 0  # the log has nothing yet
    scene.wagers(*entries[:5])
    scene.another().take_in(batch_in(WAGERS, entries[5:]))
    scene.restart()
    assert scene.assign() == 5  # the record has not
    scene.wagers(*entries[5:])
    assert offsets(scene.leaves()) == list(range(9))
    view = SqlRecord(scene.engine).top(T, 1)
    assert view is not None
    assert view.standings[0].score.score == sum(range(1, 9))


def test_two_owners_write_every_leaf_once(scene: Scene) -> None:
    """Each thinks the shard is its own; the one that comes late finds it taken, and goes on."""
    before = telemetry.AUDIT_FENCED._value.get()
    other = scene.another()
    scene.wagers(scheduled(0))
    other.take_in(batch_in(WAGERS, [scheduled(0), scored(1, ALICE, 5)]))
    scene.wagers(scored(1, ALICE, 5), scored(2, ALICE, 6))
    other.take_in(batch_in(WAGERS, [scored(2, ALICE, 6), scored(3, BOB, 1)]))
    assert offsets(scene.leaves()) == [0, 1, 2, 3]
    assert telemetry.AUDIT_FENCED._value.get() >= before + 2


def test_topic_that_was_made_anew_stops_the_log(scene: Scene) -> None:
    scene.wagers(scheduled(0))
    with pytest.raises(ForeignLogError, match="audit log of wagers/0"):
        scene.another().take_in(batch_in(WAGERS, [scheduled(0)], log="another"))


# --- alarms --------------------------------------------------------------------------------------


@pytest.fixture
def gaps() -> Iterator[Callable[[], float]]:
    before = telemetry.AUDIT_GAPS._value.get()
    yield lambda: telemetry.AUDIT_GAPS._value.get() - before


def test_log_that_was_set_back_is_not_written_on(scene: Scene, gaps: Callable[[], float]) -> None:
    scene.wagers(scheduled(0), scored(1, ALICE, 5))
    older = dict(scene.logs.stores[PLACE].files)
    scene.wagers(scored(2, ALICE, 5))
    scene.tick()  # the record knows how far it was
    scene.logs.stores[PLACE].files = older
    scene.restart()
    with pytest.raises(TransientError, match="has 2 leaves and had 3"):
        scene.assign()
    with pytest.raises(TransientError, match="AUDIT_LOG_URL: the log of wagers/0"):
        scene.wagers(scored(3, ALICE, 5))
    with pytest.raises(TransientError, match="AUDIT_LOG_URL"):
        scene.auditor.check()
    assert gaps() == 1, "said once"
    assert offsets(scene.leaves()) == [0, 1]


def test_log_that_is_gone_under_our_feet_is_not_begun_anew(
    scene: Scene, gaps: Callable[[], float]
) -> None:
    """Nor where the record has not been told yet how far it was."""
    scene.wagers(scheduled(0), scored(1, ALICE, 5))
    scene.logs.stores[PLACE].files.clear()
    with pytest.raises(TransientError, match="has 0 leaves and had 2"):
        scene.wagers(scored(2, ALICE, 5))
    assert gaps() == 1


def test_fork_of_the_same_size_is_not_written_on(scene: Scene) -> None:
    scene.wagers(scheduled(0), scored(1, ALICE, 5))
    scene.tick()
    scene.logs.stores[PLACE] = MemoryLogStore()
    other = MemoryLogs()
    twin = auditor(scene.module, scene.engine, other, scene.boards)
    twin._ports.pseudonyms.heads = lambda places: []
    twin.take_in(batch_in(WAGERS, [scheduled(0), scored(1, ALICE, 6)]))
    scene.logs.stores[PLACE] = other.stores[PLACE]
    scene.restart()
    with pytest.raises(TransientError, match="another root"):
        scene.assign()


def test_what_kafka_dropped_unread_and_what_it_lost_are_alarms(
    scene: Scene, gaps: Callable[[], float]
) -> None:
    scene.wagers(scheduled(0), scored(1, ALICE, 5))
    scene.restart()
    scene.assign(low=2, end=2)
    assert gaps() == 0
    scene.restart()
    scene.assign(low=5, end=9)
    assert gaps() == 1
    scene.restart()
    scene.assign(low=0, end=1)
    assert gaps() == 2


def test_store_that_is_away_loses_nothing(tmp_path: Path) -> None:
    away = [False]

    class Away:
        """A store that is not there while a test says so."""

        def __init__(self, store: LogStore) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            if away[0]:
                raise TransientError("the store is away")
            return getattr(self._store, name)

    scene = Scene(tmp_path, Away)
    scene.wagers(scheduled(0))
    away[0] = True
    with pytest.raises(TransientError):
        scene.wagers(scored(1, ALICE, 5))
    away[0] = False
    scene.wagers(scored(1, ALICE, 5))
    assert offsets(scene.leaves()) == [0, 1]


# --- keys ----------------------------------------------------------------------------------------


def test_key_is_destroyed_when_the_last_change_is_signed_and_not_before(scene: Scene) -> None:
    boards = scene.boards
    scene.wagers(scheduled(0), scored(1, ALICE, 5), erased(2, ALICE))
    scene.take(batch_in(POSITION_CHANGES, [change(0, ALICE, 1)]))
    scene.tick()
    scene.tick()
    assert scene.keys() == {T: False}  # the boards have not come to the erasure
    boards.reached, boards.changes_end = 1, 1
    scene.tick()
    scene.tick()
    assert scene.keys() == {T: False}
    boards.reached, boards.changes_end = 2, 2  # one change is in Kafka that the log has not
    scene.tick()
    scene.tick()
    assert scene.keys() == {T: False}
    scene.take(batch_in(POSITION_CHANGES, [change(1, ALICE, 2)]))
    scene.tick()
    scene.tick()
    assert scene.keys() == {T: True}
    named = [leaf.player for leaf in scene.leaves() if leaf.kind != "tournament.scheduled"]
    moved = [leaf.player for leaf in scene.leaves(CHANGES)]
    assert len({*named, *moved}) == 1
    assert None not in named


def test_late_events_are_nobodys_whether_the_key_is_there_or_not(scene: Scene) -> None:
    """In the same batch, in the next one, in another process, and when the key is destroyed."""
    scene.wagers(scheduled(0), scored(1, ALICE, 5), erased(2, ALICE), scored(3, ALICE, 5))
    scene.wagers(scored(4, ALICE, 5))
    scene.restart()
    scene.wagers(scored(5, ALICE, 5))
    scene.boards.reached = 9
    scene.tick()
    scene.tick()
    assert scene.keys() == {T: True}
    scene.wagers(scored(6, ALICE, 5), erased(7, ALICE))
    leaves = scene.leaves()
    assert [leaf.player is None for leaf in leaves[1:]] == [False, False, *[True] * 5]
    assert all(leaf.is_of_nobody for leaf in leaves[3:])
    late = leaves[6].entry()
    assert late is not None
    assert late.event.player_id == NOBODY
    assert scene.keys() == {T: True}


def test_late_events_are_nobodys_however_many_players_are_remembered(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The erasure comes with the player who is one too many for the newer ones."""
    auditing = sys.modules[type(scene.auditor).__module__]
    monkeypatch.setattr(auditing, "CACHED_PLAYERS", 2)
    scene.wagers(scheduled(0), scored(1, ALICE, 5), scored(2, BOB, 5))
    scene.wagers(erased(3, ALICE), erased(4, "carol"))
    scene.wagers(scored(5, ALICE, 5), scored(6, BOB, 5))
    late, sound = scene.leaves()[-2:]
    assert (late.player is None, sound.player is None) == (True, False)


def test_owner_that_comes_back_does_not_go_by_what_it_remembers(scene: Scene) -> None:
    """It met the player before somebody else had the partition, who took in the erasure."""
    scene.wagers(scheduled(0), scored(1, ALICE, 5))
    scene.another().take_in(batch_in(WAGERS, [erased(2, ALICE)]))
    scene.function.revoked(PLACE)
    scene.assign()
    scene.wagers(scored(3, ALICE, 5))
    assert [leaf.player is None for leaf in scene.leaves()[1:]] == [False, False, True]


def test_connections_have_a_key_that_goes_with_the_notice(scene: Scene) -> None:
    scene.take(batch_in(CONNECTIONS, [attempt(0, ALICE)]))
    assert scene.keys() == {BESIDE: False}
    scene.take(batch_in(GDPR_EVENTS, [erasure_request(0, ALICE)]))
    assert scene.keys() == {}
    scene.take(batch_in(CONNECTIONS, [attempt(1, ALICE)]))
    assert [leaf.player is None for leaf in scene.leaves(Place(CONNECTIONS, 0))] == [False, True]
    assert scene.keys() == {}


def test_record_that_was_set_back_destroys_again(scene: Scene, tmp_path: Path) -> None:
    """Its keys are there again, and what it reads once more tells of the erasure."""
    scene.wagers(scheduled(0), scored(1, ALICE, 5))
    with scene.engine.connect() as connection:
        connection.execute(sa.text("PRAGMA wal_checkpoint(TRUNCATE)"))
    kept = (tmp_path / "record.sqlite").read_bytes()
    scene.wagers(erased(2, ALICE))
    scene.boards.reached = 2
    scene.tick()
    scene.tick()
    assert scene.keys() == {T: True}
    scene.engine.dispose()
    for leftover in tmp_path.glob("record.sqlite*"):
        leftover.unlink()
    (tmp_path / "record.sqlite").write_bytes(kept)
    assert scene.keys() == {T: False}
    scene.restart()
    assert scene.assign() == 2
    scene.wagers(erased(2, ALICE))
    scene.tick()
    scene.tick()
    assert scene.keys() == {T: True}
    assert offsets(scene.leaves()) == [0, 1, 2]


def test_record_that_was_set_back_under_us_is_told_again_how_far_the_log_is(scene: Scene) -> None:
    """Nothing new comes: what the record has lost of it keys would wait for, for ever."""
    scene.wagers(scheduled(0), scored(1, ALICE, 5), erased(2, ALICE))
    scene.take(batch_in(POSITION_CHANGES, [change(0, ALICE, 1)]))
    scene.tick()
    table = tables.audit_heads
    with scene.engine.begin() as connection:
        before = connection.execute(sa.select(table).order_by(table.c.origin)).all()
        connection.execute(sa.delete(table))
    scene.boards.reached, scene.boards.changes_end = 2, 1
    scene.tick()
    with scene.engine.connect() as connection:
        assert connection.execute(sa.select(table).order_by(table.c.origin)).all() == before
    scene.tick()
    assert scene.keys() == {T: True}
    with scene.engine.begin() as connection:
        connection.execute(sa.update(table).values(size=table.c.size - 1))
    scene.tick()
    with scene.engine.connect() as connection:
        assert connection.execute(sa.select(table).order_by(table.c.origin)).all() == before


# --- an append that broke off --------------------------------------------------------------------


def unsigned(scene: Scene, entries: Sequence[LogEntry], place: Place) -> dict[str, bytes]:
    """The files that a process killed between files and checkpoint leaves."""
    store = scene.logs.stores[place]
    keep = store.replace_checkpoint
    store.replace_checkpoint = _killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        scene.another().take_in(batch_in(place.topic, entries))
    store.replace_checkpoint = keep  # type: ignore[method-assign]
    return store.files


def _killed(before: bytes | None, after: bytes) -> None:
    raise KeyboardInterrupt


def test_leaves_that_were_written_before_a_key_was_destroyed_are_kept_as_they_are(
    scene: Scene,
) -> None:
    """The one case in which the same record makes another leaf: a change that is repeated late."""
    before = telemetry.AUDIT_ADOPTED._value.get()
    many = [change(n, BOB if n % 3 else ALICE, 1) for n in range(1, 2 * TILE_WIDTH)]
    scene.wagers(scheduled(0), scored(1, ALICE, 5), erased(2, ALICE))
    scene.take(batch_in(POSITION_CHANGES, [change(0, ALICE, 1)]))
    scene.boards.reached, scene.boards.changes_end = 2, 1
    scene.tick()  # how far the changes are is put down, the key is there
    unsigned(scene, many, CHANGES)
    scene.tick()
    assert scene.keys() == {T: True}
    scene.restart()
    scene.take(batch_in(POSITION_CHANGES, many))
    assert telemetry.AUDIT_ADOPTED._value.get() == before + 1
    leaves = scene.leaves(CHANGES)
    assert offsets(leaves) == list(range(2 * TILE_WIDTH))
    assert len({leaf.player for leaf in leaves}) == 2
    assert None not in {leaf.player for leaf in leaves}


@pytest.mark.parametrize("cuts", [(100, 300), (1, 2, 255, 256, 257, 400), (200,)])
def test_so_they_are_in_whichever_pieces_the_same_records_come_again(
    scene: Scene, cuts: Sequence[int]
) -> None:
    """Kafka gives other batches than before: what is signed first must be how the files that lie
    there begin, or nobody could ever fill them."""
    many = [change(n, BOB if n % 3 else ALICE, 1) for n in range(1, 2 * TILE_WIDTH)]
    scene.wagers(scheduled(0), scored(1, ALICE, 5), erased(2, ALICE))
    scene.take(batch_in(POSITION_CHANGES, [change(0, ALICE, 1)]))
    scene.boards.reached, scene.boards.changes_end = 2, 1
    scene.tick()
    unsigned(scene, many, CHANGES)
    unsigned(scene, many[:150], CHANGES)
    scene.tick()
    assert scene.keys() == {T: True}
    scene.restart()
    for start, end in itertools.pairwise((0, *cuts, len(many))):
        scene.take(batch_in(POSITION_CHANGES, many[start:end]))
    leaves = scene.leaves(CHANGES)
    assert offsets(leaves) == list(range(2 * TILE_WIDTH))
    assert None not in {leaf.player for leaf in leaves}
    more = [change(2 * TILE_WIDTH, ALICE, 1)]  # nothing lies there
    scene.take(batch_in(POSITION_CHANGES, more))
    assert scene.leaves(CHANGES)[-1].player is None


def test_what_another_process_has_written_meanwhile_is_taken_as_it_is(scene: Scene) -> None:
    many = [change(n, ALICE, 1) for n in range(1, TILE_WIDTH)]
    scene.wagers(scheduled(0), scored(1, ALICE, 5), erased(2, ALICE))
    scene.take(batch_in(POSITION_CHANGES, [change(0, ALICE, 1)]))
    scene.boards.reached, scene.boards.changes_end = 2, 1
    scene.tick()
    unsigned(scene, many, CHANGES)  # behind the end of what this one has open
    scene.tick()
    assert scene.keys() == {T: True}
    scene.take(batch_in(POSITION_CHANGES, many))
    assert None not in {leaf.player for leaf in scene.leaves(CHANGES)}


def test_files_that_somebody_else_put_there_are_not_signed(scene: Scene) -> None:
    entries = [scheduled(0), *(scored(n, ALICE, n) for n in range(1, TILE_WIDTH + 9))]
    scene.wagers(entries[0])
    files = unsigned(scene, entries[1:], PLACE)
    path = bundle_path(0)
    forged = files[path].replace(b'"score":7}', b'"score":9}')
    assert forged != files[path]
    files[path] = forged
    scene.restart()
    with pytest.raises(LogConflictError, match="tile/entries/000"):
        scene.wagers(*entries[1:])
    assert offsets(scene.leaves()) == [0]
    files[path] = encode_bundle([])
    scene.restart()
    with pytest.raises(LogConflictError):
        scene.wagers(*entries[1:])


def test_head_says_how_far_a_shard_is(scene: Scene) -> None:
    scene.wagers(scheduled(0), scored(1, ALICE, 5))
    scene.tick()
    (head,) = SqlPseudonyms(scene.engine, TOMBSTONE_KEY).heads([PLACE])
    assert (head.origin, head.size, head.next_offset) == (f"{ORIGIN}/wagers/0", 2, 2)


def test_head_is_of_one_moment_also_while_a_batch_is_being_signed(tmp_path: Path) -> None:
    """Heads are put down beside the thread that signs: size and offset belong together, or keys
    would wait for an offset that nobody tells any more."""

    class Looking:
        """A store that is slow with the last thing that an append does."""

        def __init__(self, store: LogStore) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        def remove(self, paths: Iterable[str]) -> None:
            looked.tick()
            self._store.remove(paths)

    looked = Scene(tmp_path, Looking)
    looked.wagers(scheduled(0), scored(1, ALICE, 5))
    looked.wagers(*(scored(n, ALICE, 5) for n in range(2, TILE_WIDTH + 9)))
    looked.tick()
    (head,) = SqlPseudonyms(looked.engine, TOMBSTONE_KEY).heads([PLACE])
    assert (head.size, head.next_offset) == (TILE_WIDTH + 9, TILE_WIDTH + 9)
