"""The audit of record and boards against the log: an untouched play passes, on every database and
board; what is changed by hand in record or board, in many random places, is found, and where."""

from __future__ import annotations

import contextlib
import itertools
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
import redis
import sqlalchemy as sa

from audited import AuditedPlay, binary, structured
from boards import SERVERS, make_board
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import connect
from leaderboard.adapters.sql_witness import SqlWitness
from leaderboard.audit_accounts import Fault
from leaderboard.audit_boards import pages_of
from leaderboard.audit_leaves import decode
from leaderboard.audit_rebuild import Ends, PartitionRebuild, Scope
from leaderboard.events import POSITION_CHANGES, WAGERS, Record
from leaderboard.fold import LogEntry
from leaderboard.model import Place, TournamentId
from leaderboard.ports import Board
from logs import START_MS, TOMBSTONE_KEY, erased, scored
from records import DIALECTS, engine_of, fresh_database, interleaved, loaded, moved

WINDOW: Final = 40
"""Of ids, so that some are forgotten and come again."""
PIECE: Final = 37
PLACES: Final = 20

Told = Callable[[str, object], None]
"""Random places in which each thing is done."""
KINDS: Final[tuple[dict[str, str], ...]] = (
    {},
    {"order": "ascending", "operator": "best"},
    {"operator": "last"},
    {"operator": "count"},
    {"join": "required"},
)


def played(play: AuditedPlay, log: Sequence[LogEntry]) -> None:
    for start in range(0, len(log), PIECE):
        play.take(log[start : start + PIECE])


@contextlib.contextmanager
def sqlite_play(folder: Path, board: Board | None = None) -> Iterator[AuditedPlay]:
    with engine_of(loaded(f"sqlite:///{folder / 'record.sqlite'}")) as engine:
        yield AuditedPlay(
            folder / "log", engine, board or MemoryBoard(TOMBSTONE_KEY, WINDOW), WINDOW
        )


# --- untouched -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_untouched_play_passes_before_and_after_its_keys_are_destroyed(
    tmp_path: Path, kind: dict[str, str], seed: int
) -> None:
    with sqlite_play(tmp_path) as play:
        log = interleaved(seed, tournaments=3, length=150, **kind)
        played(play, log)
        for is_gone in (False, True):
            faults, counted = play.rebuild(board=play.board)
            assert faults == []
            assert counted.inputs == counted.record_inputs == len(log)
            assert counted.changes == counted.record_changes > 0
            assert counted.boards == counted.tournaments == 3
            if not is_gone:
                assert play.destroy_keys() > 0
        faults, counted = play.rebuild(log_only=True)
        assert (faults, counted.inputs, counted.record_inputs) == ([], len(log), 0)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("store", SERVERS)
def test_untouched_play_passes_on_real_servers(
    request: pytest.FixtureRequest, tmp_path: Path, dialect: str, store: str
) -> None:
    board = make_board(store, request, WINDOW)
    with fresh_database(dialect, request, tmp_path) as url, engine_of(url) as engine:
        play = AuditedPlay(tmp_path / "log", engine, board, WINDOW)
        log = interleaved(5, tournaments=3, length=150)
        played(play, log)
        play.destroy_keys()
        faults, counted = play.rebuild(board=board)
        assert faults == []
        assert (counted.boards, counted.record_inputs) == (3, len(log))


def test_late_events_of_erased_players_and_refused_records_are_folded_as_nothing(
    tmp_path: Path,
) -> None:
    with sqlite_play(tmp_path) as play:
        log = interleaved(8, tournaments=2, length=100)
        played(play, log)
        play.take([moved(erased(0, "p1"), "t0", 10_000)])
        play.destroy_keys()
        late = [
            moved(scored(0, "p1", 99, event_id="late"), "t0", 10_001),
            moved(erased(0, "p1"), "t0", 10_003),
            moved(scored(0, "p1", 99), "nobodys-cup", 10_004),
        ]
        refused = Record(WAGERS, b"t0", b"no json", (), 0, 10_002, START_MS)
        play.take(late, [refused])
        faults, counted = play.rebuild(board=play.board)
        assert faults == []
        assert counted.inputs == len(log) + 5


def test_events_in_structured_mode_are_proved_like_the_others(tmp_path: Path) -> None:
    with sqlite_play(tmp_path) as play:
        log = interleaved(9, tournaments=2, length=80)
        play.take(log, record_of=lambda one: (structured if one.offset % 3 else binary)(one))
        faults, counted = play.rebuild(board=play.board)
        assert faults == []
        assert counted.record_inputs == len(log)


def test_change_told_again_after_a_crash_is_no_fault_and_a_wrong_one_is(tmp_path: Path) -> None:
    board = MemoryBoard(TOMBSTONE_KEY, WINDOW)
    with sqlite_play(tmp_path, board) as play:
        log = interleaved(3, tournaments=1, length=80)
        told = play._changes(log)
        play.take(log)  # the board skips it, so nothing is told by this
        play.tell(told[:30])
        play.tell(told[20:])
        faults, counted = play.rebuild(board=board)
        assert faults == []
        assert counted.changes == counted.record_changes + 10
        play.tell([told[7]._replace(distance=4_711)])
        (fault,) = play.rebuild()[0]
        assert f"({told[7].tournament_id}/{told[7].sequence})" in fault.where
        assert "with other words" in fault.what


def test_change_told_again_of_a_player_who_is_forgotten_by_then_is_no_fault(
    tmp_path: Path,
) -> None:
    board = MemoryBoard(TOMBSTONE_KEY, WINDOW)
    with sqlite_play(tmp_path, board) as play:
        log = [*interleaved(3, tournaments=1, length=80)]
        gone = str(next(p for entry in reversed(log) if (p := entry.event.player_id)))
        log.append(moved(erased(0, gone), "t0", log[-1].offset + 1))
        told = play._changes(log)
        play.take(log)
        play.tell(told)
        play.destroy_keys()
        play.tell(told)
        leaves = [decode(raw) for raw in play.entries(POSITION_CHANGES)]
        assert any(leaf.player is None for leaf in leaves)
        assert play.rebuild(board=board)[0] == []


# --- the log's own leaves ------------------------------------------------------------------------


def test_change_that_was_never_told_is_missed_once_it_is_late(tmp_path: Path) -> None:
    board = MemoryBoard(TOMBSTONE_KEY, WINDOW)
    with sqlite_play(tmp_path, board) as play:
        log = interleaved(4, tournaments=1, length=60)
        told = play._changes(log)
        play.take(log)
        play.tell(told[:-3])
        faults, counted = play.rebuild(late_before_ms=START_MS)
        assert (faults, counted.waiting) == ([], 3)
        faults, _ = play.rebuild(late_before_ms=START_MS + 1)
        assert [f"({one.tournament_id}/{one.sequence})" in fault.where
                for one, fault in zip(told[-3:], faults, strict=True)] == [True] * 3  # fmt: skip


@pytest.mark.parametrize("seed", range(PLACES))
def test_change_that_its_writer_made_up_is_found(tmp_path: Path, seed: int) -> None:
    """Signed and all, by who holds the key: the inputs don't give it."""
    chance = random.Random(seed)
    board = MemoryBoard(TOMBSTONE_KEY, WINDOW)
    with sqlite_play(tmp_path, board) as play:
        log = interleaved(seed, tournaments=1, length=60)
        told = play._changes(log)
        play.take(log)
        at = chance.randrange(len(told))
        one = told[at]
        wrong: dict[str, Any] = chance.choice(
            [
                {"score": one.score._replace(score=one.score.score + 1)},
                {"new_rank": (one.new_rank or 0) + 1},
                {"old_rank": (one.old_rank or 0) + 1},
                {"distance": (one.distance or 0) + 1},
                {"time_ms": one.time_ms + 1},
                {"player_id": "p99"},
                {"cause": one.cause._replace(id="another")},
            ]
        )
        play.tell([*told[:at], one._replace(**wrong), *told[at + 1 :]])
        faults, _ = play.rebuild(log_only=True)
        assert len(faults) == 1
        assert f"({one.tournament_id}/{one.sequence})" in faults[0].where


@pytest.mark.parametrize("seed", range(PLACES))
def test_input_that_is_missing_in_the_log_shows_at_its_place(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with sqlite_play(tmp_path) as play:
        played(play, interleaved(seed, tournaments=2, length=60))
        inputs = play.entries(WAGERS)
        at = chance.randrange(2, len(inputs))
        faults, _ = play.rebuild(inputs=[*inputs[:at], *inputs[at + 1 :]])
        assert any("of the log has no such" in fault.what for fault in faults)


@pytest.mark.parametrize("topic", [WAGERS, POSITION_CHANGES])
def test_log_that_ends_before_the_record_does_is_found(tmp_path: Path, topic: str) -> None:
    with sqlite_play(tmp_path) as play:
        played(play, interleaved(1, tournaments=2, length=60))
        cut = play.entries(topic)[:-5]
        faults, _ = play.rebuild(**{"inputs" if topic == WAGERS else "changes": cut})  # type: ignore[arg-type]
        assert any(fault.where == f"{topic}/0 of the log" for fault in faults)


# --- the record ----------------------------------------------------------------------------------

UNPROVED: Final = {"month", "traceparent", "extensions", "repeats"}
"""Columns that the log says nothing of: docs/audit.md names them."""
TAMPERED: Final = {
    table.name: table
    for table in (
        *(tables.inputs, tables.position_changes, tables.standings, tables.final_standings),
        *(tables.players, tables.tournaments, tables.terms_history, tables.exclusions),
        tables.erasures,
    )
}


@pytest.fixture(scope="module")
def shared_play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditedPlay]:
    """One that nobody changes for good."""
    with sqlite_play(tmp_path_factory.mktemp("play")) as play:
        played(play, interleaved(6, tournaments=4, length=90))
        play.destroy_keys()
        faults, _ = play.rebuild(board=play.board)
        assert faults == []
        yield play


@pytest.fixture(scope="module")
def entries(shared_play: AuditedPlay) -> tuple[list[bytes], list[bytes]]:
    return shared_play.entries(WAGERS), shared_play.entries(POSITION_CHANGES)


def faults_after(
    play: AuditedPlay,
    entries: tuple[list[bytes], list[bytes]],
    change: Callable[[sa.Connection], Any],
) -> tuple[list[Fault], Any]:
    """What is found after a change to the record, which is taken back; and what it tells of it."""
    faults: list[Fault] = []
    with play.engine.connect() as connection, connection.begin() as transaction:
        told = change(connection)
        witness = SqlWitness(connection, TOMBSTONE_KEY)
        ends = witness.ends()
        upto = Ends(ends[Place(WAGERS, 0)][1], ends[Place(POSITION_CHANGES, 0)][1])
        scope = Scope(witness, play.keys, {}, START_MS + 1)
        PartitionRebuild(0, scope, faults.append, WINDOW).run(*entries, upto)
        transaction.rollback()
    return faults, told


def row_of(connection: sa.Connection, table: sa.Table, chance: random.Random) -> sa.Row[Any]:
    rows = connection.execute(sa.select(table).order_by(*table.primary_key)).all()
    assert rows, f"{table.name} is empty: nothing would be changed"
    return chance.choice(rows)


def named(table: sa.Table, row: sa.Row[Any]) -> sa.ColumnElement[bool]:
    return sa.and_(*(column == getattr(row, column.name) for column in table.primary_key))


def other(value: Any, column: sa.Column[Any], chance: random.Random) -> Any:
    """Another value that the column could hold."""
    if isinstance(column.type, sa.Boolean):
        return not value
    if isinstance(column.type, sa.LargeBinary):
        raw = bytearray(value or bytes(16))
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        return bytes(raw)
    if isinstance(column.type, sa.Integer | sa.BigInteger):
        if column.name == "player_no":
            return 10_000  # of nobody; another player's would be a row too many for its index
        return (value or 0) + chance.choice((-1, 1, 7))
    if value is None:
        return "x"
    if column.name == "terms":
        return value.replace('"Cup"', '"Cap"')
    at = chance.randrange(len(value))
    return value[:at] + ("x" if value[at] != "x" else "y") + value[at + 1 :]


def place_of(connection: sa.Connection, table: sa.Table, row: Any) -> str:
    """How a fault at this row begins."""
    if table is tables.position_changes:
        return f"position_changes of {row.tournament_id}"
    column = tables.tournaments.c
    if table is tables.tournaments:
        return f"tournaments, {row.tournament_id}"
    name = connection.execute(
        sa.select(column.tournament_id).where(column.tournament_no == row.tournament_no)
    ).scalar_one()
    return f"{table.name} of {name}" + (
        f" at offset {row.log_offset}" if table is tables.inputs else ""
    )


@pytest.mark.parametrize("name", TAMPERED)
def test_edited_column_of_the_record_is_found_where_it_is(
    shared_play: AuditedPlay,
    entries: tuple[list[bytes], list[bytes]],
    name: str,
    record_property: Told,
) -> None:
    table, chance = TAMPERED[name], random.Random(name)
    tried = 0
    for column in table.columns:
        if column.name in UNPROVED or column.primary_key or column.name in OF_THE_MACHINE:
            continue

        def edit(connection: sa.Connection, column: sa.Column[Any] = column) -> tuple[str, Any]:
            row = row_of(connection, table, chance)
            value = other(getattr(row, column.name), column, chance)
            connection.execute(
                sa.update(table).where(named(table, row)).values({column.name: value})
            )
            return place_of(connection, table, row), (getattr(row, column.name), value)

        for _ in range(PLACES if len(table.columns) < 12 else PLACES // 4):
            faults, (where, values) = faults_after(shared_play, entries, edit)
            found = [fault for fault in faults if fault.where.startswith(where)]
            assert found, f"{where}: {column.name} from {values}: {faults[:3]}"
            tried += 1
    record_property("tried", tried)


OF_THE_MACHINE: Final = {"tournament_no", "log_partition", "log_id", "confirmed_at_ms"}
"""How the record keeps things, not what happened."""


@pytest.mark.parametrize("name", TAMPERED)
def test_deleted_row_of_the_record_is_found_where_it_was(
    shared_play: AuditedPlay,
    entries: tuple[list[bytes], list[bytes]],
    name: str,
    record_property: Told,
) -> None:
    table, chance = TAMPERED[name], random.Random(name)

    def drop(connection: sa.Connection) -> str:
        row = row_of(connection, table, chance)
        where = place_of(connection, table, row)
        connection.execute(sa.delete(table).where(named(table, row)))
        return where

    record_property("tried", PLACES)
    for _ in range(PLACES):
        faults, where = faults_after(shared_play, entries, drop)
        assert any(fault.where.startswith(where) for fault in faults), f"{where}: {faults[:3]}"


MOVED: Final = {
    "inputs": "log_offset",
    "position_changes": "sequence",
    "standings": "player_no",
    "final_standings": "standing_rank",
    "players": "player_no",
    "terms_history": "revision",
    "erasures": "log_offset",
}
"""By which column an inserted copy of a row stands elsewhere."""


@pytest.mark.parametrize("name", MOVED)
def test_inserted_row_of_the_record_is_found_where_it_is(
    shared_play: AuditedPlay,
    entries: tuple[list[bytes], list[bytes]],
    name: str,
    record_property: Told,
) -> None:
    table, key, chance = TAMPERED[name], MOVED[name], random.Random(name)

    def put(connection: sa.Connection) -> str:
        row = row_of(connection, table, chance)
        values = dict(row._mapping)
        taken = set(connection.execute(sa.select(table.c[key])).scalars())
        values[key] = next(
            one for _ in range(1000) if (one := chance.randrange(max(taken) + 50)) not in taken
        )
        if name == "players":
            values["player_id"] = f"new-{values[key]}"
        if name == "final_standings":
            values["player_no"] = 10_000 + values[key]
        connection.execute(sa.insert(table).values(values))
        return place_of(connection, table, SimpleNamespace(**values))

    record_property("tried", PLACES)
    for _ in range(PLACES):
        faults, where = faults_after(shared_play, entries, put)
        assert any(fault.where.startswith(where) for fault in faults), f"{where}: {faults[:3]}"


@pytest.mark.parametrize("name", ["inputs", "position_changes", "standings", "final_standings"])
def test_reordered_rows_of_the_record_are_found_where_they_are(
    shared_play: AuditedPlay,
    entries: tuple[list[bytes], list[bytes]],
    name: str,
    record_property: Told,
) -> None:
    """Two rows of one tournament change places: all but what they are found by."""
    table, chance = TAMPERED[name], random.Random(name)
    stays = {column.name for column in table.primary_key}

    def swap(connection: sa.Connection) -> str:
        one = row_of(connection, table, chance)
        of = "tournament_id" if name == "position_changes" else "tournament_no"
        others = connection.execute(
            sa.select(table).where(table.c[of] == getattr(one, of), ~named(table, one))
        ).all()
        two = chance.choice(others)
        if name == "final_standings":
            # Its players are unique: out of the way first.
            connection.execute(sa.update(table).where(named(table, one)).values(player_no=-1))
        for row, given in ((two, one), (one, two)):
            values = {n: v for n, v in given._mapping.items() if n not in stays}
            connection.execute(sa.update(table).where(named(table, row)).values(values))
        return place_of(connection, table, one)

    record_property("tried", PLACES)
    for _ in range(PLACES):
        faults, where = faults_after(shared_play, entries, swap)
        assert any(fault.where.startswith(where) for fault in faults), f"{where}: {faults[:3]}"


def test_tournament_that_is_taken_away_whole_is_missed_unless_it_is_old(
    shared_play: AuditedPlay, entries: tuple[list[bytes], list[bytes]]
) -> None:
    def take_away(connection: sa.Connection) -> None:
        for table in tables.metadata.sorted_tables:
            if "tournament_no" in table.c:
                connection.execute(sa.delete(table).where(table.c.tournament_no == 1))

    faults, _ = faults_after(shared_play, entries, take_away)
    assert any(fault.where.startswith("tournaments, ") for fault in faults)


# --- boards --------------------------------------------------------------------------------------

Store = Any


def _at_random(
    store: Store, chance: random.Random, name: str
) -> tuple[bytes, bytes, float, list[tuple[bytes, float]]]:
    """A board's key of ranks, and one of its members with its score; all of them."""
    key = f"{{{name}}}:ranks".encode()
    members = store.zrange(key, 0, -1, withscores=True)
    member, score = chance.choice(members)
    return key, member, score, members


def change_score(store: Store, chance: random.Random, name: str) -> None:
    key, member, score, _ = _at_random(store, chance, name)
    store.zadd(key, {member: score + chance.choice((-1, 1, 1000))})


def drop_member(store: Store, chance: random.Random, name: str) -> None:
    key, member, _, _ = _at_random(store, chance, name)
    store.zrem(key, member)


def add_member(store: Store, chance: random.Random, name: str) -> None:
    key, member, score, _ = _at_random(store, chance, name)
    store.zadd(key, {member + b"x": score})


def rename_member(store: Store, chance: random.Random, name: str) -> None:
    key, member, score, _ = _at_random(store, chance, name)
    store.zrem(key, member)
    store.zadd(key, {member[:-1] + (b"8" if member[-1:] != b"8" else b"9"): score})


def swap_scores(store: Store, chance: random.Random, name: str) -> None:
    key, member, score, members = _at_random(store, chance, name)
    other_member, other_score = chance.choice([one for one in members if one[1] != score])
    store.zadd(key, {member: other_score, other_member: score})


def turn_tie_round(store: Store, chance: random.Random, name: str) -> None:
    """Of two with one score: who was second becomes the first."""
    key, _, score, members = _at_random(store, chance, name)
    ties = [(a, b) for a, b in itertools.pairwise(members) if a[1] == b[1]]
    if not ties:
        return
    (first, score), (second, _) = chance.choice(ties)
    head = 15  # the place among equals; what follows is the player
    store.zrem(key, first, second)
    store.zadd(key, {first[:head] + second[head:]: score, second[:head] + first[head:]: score})


def change_row(store: Store, chance: random.Random, name: str) -> None:
    """What the next event goes on from; no rank shows it yet."""
    key = f"{{{name}}}:rows"
    player = chance.choice(store.hkeys(key))
    numbers = list(struct.unpack("<ddd", store.hget(key, player)))
    numbers[chance.randrange(3)] += chance.choice((-1, 1, 50))
    store.hset(key, player, struct.pack("<ddd", *numbers))


def drop_row(store: Store, chance: random.Random, name: str) -> None:
    key = f"{{{name}}}:rows"
    store.hdel(key, chance.choice(store.hkeys(key)))


def change_sequence(store: Store, chance: random.Random, name: str) -> None:
    key = f"{{{name}}}:board"
    store.hset(key, "sequence", int(store.hget(key, "sequence")) + chance.randint(1, 3))


TAMPERINGS = (
    *(change_score, drop_member, add_member, rename_member, swap_scores, turn_tie_round),
    *(change_row, drop_row, change_sequence),
)


@pytest.fixture(scope="module")
def redis_play(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[AuditedPlay, RedisBoard, Any]]:
    client, store = connect(redis_url), redis.Redis.from_url(redis_url)
    store.flushall()
    board = RedisBoard(client, TOMBSTONE_KEY, WINDOW)
    with sqlite_play(tmp_path_factory.mktemp("boards"), board) as play:
        played(play, interleaved(6, tournaments=4, length=90))
        play.destroy_keys()
        assert play.rebuild(board=board)[0] == []
        yield play, board, store
    client.close()
    store.close()


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda one: str(one.__name__))
def test_board_that_a_hand_has_changed_is_found(
    redis_play: tuple[AuditedPlay, RedisBoard, Any],
    entries: tuple[list[bytes], list[bytes]],
    tamper: Callable[[Any, random.Random, str], None],
    record_property: Told,
) -> None:
    play, board, store = redis_play
    inputs, changes = play.entries(WAGERS), play.entries(POSITION_CHANGES)
    chance = random.Random(tamper.__name__)
    record_property("tried", PLACES)
    done = 0
    while done < PLACES:
        name = TournamentId(f"t{chance.randrange(4)}")
        kept = {
            key: store.dump(key)
            for part in ("ranks", "rows", "board")
            if store.exists(key := f"{{{name}}}:{part}")
        }
        before = pages_of(board, name)
        tamper(store, chance, name)
        if tamper is turn_tie_round and pages_of(board, name) == before:
            continue  # a board without ties
        assert pages_of(board, name) != before, "nothing was changed"
        done += 1
        faults, _ = play.rebuild(board=board, inputs=inputs, changes=changes)
        assert [fault for fault in faults if fault.where == f"board of {name}"], faults
        assert not [fault for fault in faults if fault.where != f"board of {name}"]
        for key, content in kept.items():
            store.restore(key, 0, content, replace=True)
    assert play.rebuild(board=board, inputs=inputs, changes=changes)[0] == []


def test_board_of_a_live_tournament_that_is_gone_is_missed(
    redis_play: tuple[AuditedPlay, RedisBoard, Any],
) -> None:
    play, board, store = redis_play
    name = next(
        TournamentId(f"t{number}")
        for number in range(4)
        if (view := board.top(TournamentId(f"t{number}"), 1)) is not None
        and view.terms.state == "running"
    )
    key = f"{{{name}}}:board"
    content = store.dump(key)
    store.delete(key)
    faults, _ = play.rebuild(board=board)
    assert [(fault.where, "is missing" in fault.what) for fault in faults] == [
        (f"board of {name}", True)
    ]
    store.restore(key, 0, content)
