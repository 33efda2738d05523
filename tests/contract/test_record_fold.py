"""The record folds the log as the pure fold does, whatever way it comes: SQLite, PostgreSQL.

How it stands up to crashes and servers that go away: test_record_crash.py."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.adapters.sql_engine import reading
from leaderboard.adapters.sql_fold import SqlFold
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.adapters.sql_requests import SqlRequests
from leaderboard.errors import ForeignLogError, Refusal, TransientError
from leaderboard.events import ConnectionDecided, PositionChanged, Record
from leaderboard.fold import LogEntry
from leaderboard.model import Disposition, Offset, Place, PlayerId, TournamentId
from leaderboard.record_ports import Member
from logs import (
    ALICE,
    BOB,
    CAROL,
    LOG,
    START_MS,
    TOMBSTONE_KEY,
    T,
    disqualified,
    ended,
    entry,
    erased,
    joined,
    scheduled,
    scored,
)
from records import (
    DIALECTS,
    Oracle,
    assert_boards_equal,
    assert_equal,
    dump,
    engine_of,
    fold_of,
    fresh_database,
    interleaved,
    moved,
    put_down,
    take,
)

APPLIED = Disposition.APPLIED
RULES: tuple[dict[str, str], ...] = (
    {},
    {"order": "ascending", "operator": "best"},
    {"operator": "best"},
    {"operator": "last"},
    {"operator": "count"},
    {"join": "required"},
)


@pytest.fixture(params=DIALECTS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    with fresh_database(request.param, request, tmp_path) as url, engine_of(url) as made:
        yield made


def pieces(log: Sequence[LogEntry], seed: int) -> Iterator[Sequence[LogEntry]]:
    """The log in batches of many sizes."""
    chance = random.Random(seed)
    start = 0
    while start < len(log):
        size = chance.choice((1, 2, 7, 40, 150))
        yield log[start : start + size]
        start += size


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("window", [3, 10, 100_000])
def test_record_equals_the_pure_fold_after_every_batch(
    engine: sa.Engine, rules: dict[str, str], window: int
) -> None:
    for seed in range(2):
        # Each log in a partition of its own, so that one database serves them all.
        log = [
            renamed(one, f"s{seed}") for one in interleaved(seed, tournaments=3, length=70, **rules)
        ]
        log_id = f"wagers/test/{seed}"
        oracle, fold, record = Oracle(window, log_id), fold_of(engine, window), SqlRecord(engine)
        repeats = 0
        for part in pieces(log, seed):
            came = take(fold, part, partition=seed, log_id=log_id)
            assert list(came.verdicts) == oracle.take(part)
            repeats += came.repeats
            assert_boards_equal(oracle, record, part)
        assert_equal(oracle, record, log)
        assert repeats == len(oracle.repeats)
        assert repeats_in(engine, seed) == oracle.repeats


def test_members_are_told_by_what_they_did_and_what_was_done_to_them(engine: sa.Engine) -> None:
    fold, record = fold_of(engine), SqlRecord(engine)
    log = [scheduled(0), joined(1, ALICE), scored(2, BOB, 5), joined(3, CAROL), scored(4, CAROL, 1)]
    log += [disqualified(5, ALICE), disqualified(6, PlayerId("never-seen")), erased(7, CAROL)]
    take(fold, log)
    told = {
        ALICE: Member(has_joined=True, is_disqualified=True),
        BOB: Member(has_joined=False, is_disqualified=False),
        PlayerId("never-seen"): Member(has_joined=False, is_disqualified=True),
        CAROL: Member(has_joined=False, is_disqualified=False),
        PlayerId("nobody"): Member(has_joined=False, is_disqualified=False),
    }
    assert {player_id: record.member(T, player_id) for player_id in told} == told
    assert record.member(TournamentId("unknown"), ALICE) == Member(False, False)


def renamed(one: LogEntry, prefix: str) -> LogEntry:
    return moved(one, f"{prefix}-{one.event.tournament_id}", one.offset)


def repeats_in(engine: sa.Engine, partition: int) -> dict[Offset, Offset]:
    row = tables.inputs.c
    of_partition = (
        sa.select(row.log_offset, row.repeats)
        .join_from(
            tables.inputs,
            tables.tournaments,
            row.tournament_no == tables.tournaments.c.tournament_no,
        )
        .where(tables.tournaments.c.log_partition == partition, row.repeats.is_not(None))
    )
    with reading(engine) as connection:
        return {Offset(at): Offset(before) for at, before in connection.execute(of_partition)}


def test_batches_that_come_again_or_overlap_change_nothing(engine: sa.Engine) -> None:
    log = interleaved(7, tournaments=2, length=150)
    fold, record, oracle = fold_of(engine), SqlRecord(engine), Oracle()
    oracle.take(log)
    chance = random.Random(7)
    reached = 0
    while reached < len(log):
        start = max(reached - chance.randrange(30), 0)
        end = min(reached + chance.randrange(1, 40), len(log))
        came = take(fold, log[start:end])
        assert set(came.verdicts[: reached - start]) <= {Disposition.SKIPPED}
        assert Disposition.SKIPPED not in came.verdicts[reached - start :]
        reached = end
        before = dump(engine)
        assert set(take(fold, log[start:end]).verdicts) == {Disposition.SKIPPED}
        assert dump(engine) == before
    assert_equal(oracle, record, log)


def test_every_input_is_kept_with_what_became_of_it(engine: sa.Engine) -> None:
    log = interleaved(4, tournaments=2, length=150)
    oracle, fold = Oracle(), fold_of(engine)
    verdicts = dict(zip([one.offset for one in log], oracle.take(log), strict=True))
    for part in pieces(log, 4):
        take(fold, part)
    row = tables.inputs.c
    with reading(engine) as connection:
        kept = connection.execute(sa.select(row.log_offset, row.disposition)).all()
    assert len(kept) == len(log)
    assert {Offset(at): became for at, became in kept} == verdicts


def test_an_empty_batch_takes_the_offset_further(engine: sa.Engine) -> None:
    fold = fold_of(engine)
    fold.apply(0, LOG, [], Offset(41))
    assert set(take(fold, [scheduled(7)]).verdicts) == {Disposition.SKIPPED}
    assert list(take(fold, [scheduled(41)]).verdicts) == [APPLIED]


def test_an_event_before_any_schedule_is_refused_and_leaves_no_row(engine: sa.Engine) -> None:
    came = take(fold_of(engine), [scored(0, ALICE, 5), scheduled(1), scored(2, ALICE, 6)])
    assert list(came.verdicts) == [Refusal.UNKNOWN_TOURNAMENT, APPLIED, APPLIED]
    assert len(dump(engine)["inputs"]) == 2


def test_a_numbered_producer_costs_one_row_and_its_repetitions_count_once(
    engine: sa.Engine,
) -> None:
    fold, log = fold_of(engine), [scheduled(0)]
    log += [
        scored(1 + n, ALICE, 1, sequence=n, event_id=f"e{n}", source="/games/eu") for n in range(20)
    ]
    log += [scored(30, ALICE, 1, sequence=7, event_id="other", source="/games/eu")]
    came = [take(fold, [one]).verdicts[0] for one in log]
    assert came == [APPLIED] * 21 + [Disposition.DUPLICATE]
    assert dump(engine)["producer_numbers"] == [(1, "/games/eu", 19)]


def test_what_outlives_the_window_counts_and_shows(engine: sa.Engine) -> None:
    """With a window of 3, between 3 and 6 ids are known."""
    fold, oracle = fold_of(engine, 3), Oracle(3)
    log = [scheduled(0), *(scored(n, ALICE, 1, event_id=f"e{n}") for n in range(1, 10))]
    log.append(scored(10, ALICE, 1, event_id="e9"))
    log.append(scored(11, ALICE, 1, event_id="e1"))
    came = take(fold, log)
    assert list(came.verdicts) == oracle.take(log)
    assert list(came.verdicts[-2:]) == [Disposition.DUPLICATE, APPLIED]
    assert came.repeats == 1
    assert repeats_in(engine, 0) == {Offset(11): Offset(1)}


def test_two_owners_of_one_partition_take_each_input_in_once(engine: sa.Engine) -> None:
    """Round by round both fold from where the record stands, with batches of different sizes."""
    log = interleaved(11, tournaments=3, length=80)
    offsets = [one.offset for one in log]
    started, settled = threading.Barrier(2), threading.Barrier(2)
    took: list[dict[int, Disposition | Refusal]] = [{}, {}]
    failed: list[BaseException] = []

    def own(number: int) -> None:
        fold = fold_of(engine)
        try:
            for turn in range(len(log)):
                settled.wait(30)
                done = len(took[0] | took[1])
                started.wait(30)
                if done == len(log):
                    return
                time.sleep(0.002 * ((turn + number) % 2))
                part = log[done : done + (3, 5)[number]]
                for one, verdict in zip(part, patiently(fold, part), strict=True):
                    if verdict is not Disposition.SKIPPED:
                        took[number][one.offset] = verdict
        except BaseException as error:  # noqa: BLE001 - told to the test
            failed.append(error)
            settled.abort()
            started.abort()

    together(own, 2)
    assert failed == []
    assert not took[0].keys() & took[1].keys()
    oracle = Oracle()
    assert took[0] | took[1] == dict(zip(offsets, oracle.take(log), strict=True))
    assert all(took), "one owner did everything: they never met"
    assert_equal(oracle, SqlRecord(engine), log)


def patiently(fold: SqlFold, part: Sequence[LogEntry]) -> Sequence[Disposition | Refusal]:
    """As the host does it: what may pass is tried again."""
    while True:
        try:
            return take(fold, part).verdicts
        except TransientError:
            time.sleep(0.01)


def together(run: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_partitions_are_folded_beside_each_other(engine: sa.Engine) -> None:
    logs = [
        [renamed(one, f"p{number}") for one in interleaved(number, tournaments=2, length=100)]
        for number in range(3)
    ]
    failed: list[BaseException] = []

    def own(number: int) -> None:
        try:
            fold = fold_of(engine)
            for part in pieces(logs[number], number):
                take(fold, part, partition=number)
        except BaseException as error:  # noqa: BLE001 - told to the test
            failed.append(error)

    together(own, 3)
    assert failed == []
    for log in logs:
        oracle = Oracle()
        oracle.take(log)
        assert_equal(oracle, SqlRecord(engine), log)


def test_a_log_that_is_another_one_is_refused_whole(engine: sa.Engine) -> None:
    fold = fold_of(engine)
    take(fold, [scheduled(0), scored(1, ALICE, 5)])
    before = dump(engine)
    with pytest.raises(ForeignLogError):
        take(fold, [scored(9, ALICE, 5)], log_id="wagers/made-anew/0")
    # The same tournament from another partition: its producer has another partitioner.
    with pytest.raises(ForeignLogError):
        take(fold, [scored(9, ALICE, 5)], partition=1, log_id="wagers/test/1")
    assert dump(engine) == before


# --- forgetting ----------------------------------------------------------------------------------

NEEDLE = PlayerId("needle-in-a-haystack")


def of_needle(offset: int, **more: str) -> LogEntry:
    """A score whose id, round and display name all say who it is."""
    one = scored(offset, NEEDLE, 7, event_id=f"{NEEDLE}-{offset}")
    data = one.event.data.model_validate(
        {**one.event.data.model_dump(), "note": f"of {NEEDLE}", **more}
    )
    return entry(offset, data, event_id=one.event.id)


def assert_nowhere(engine: sa.Engine, needle: str) -> None:
    """No column of any table, partitions and indexes included, has it in any form."""
    spellings = {needle.encode(), needle.encode().hex().encode()}
    for name, rows in dump(engine).items():
        for row in rows:
            for value in row:
                raw = value if isinstance(value, bytes) else str(value).encode()
                assert not any(one in raw for one in spellings), f"{name}: {row}"


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "a batch each"])
@pytest.mark.parametrize("when", ["running", "ended"])
def test_after_an_erasure_no_column_of_any_table_has_the_player(
    engine: sa.Engine, when: str, together: bool
) -> None:
    log = [
        scheduled(0),
        joined(1, NEEDLE, f"The {NEEDLE}"),
        of_needle(2),
        scored(3, BOB, 9),
        of_needle(4),
        of_needle(4 + 1),
    ]
    if when == "ended":
        log.append(ended(6))
    log += [erased(7, NEEDLE), of_needle(8), joined(9, NEEDLE, str(NEEDLE)), erased(10, NEEDLE)]
    log += [scored(11, CAROL, 5)]
    fold, oracle = fold_of(engine), Oracle()
    beside(engine, before=True)
    for part in [log] if together else [[one] for one in log]:
        assert list(take(fold, part).verdicts) == oracle.take(part)
    beside(engine, before=False)
    requests = SqlRequests(engine)
    for one in requests.pending(10):  # as `erase` does when every place is done
        assert requests.close(one.erasure_id, {}, START_MS)
    assert_nowhere(engine, NEEDLE)
    assert_equal(oracle, SqlRecord(engine), log)
    assert SqlRecord(engine).player(T, NEEDLE) == oracle.board.player(T, NEEDLE)


def beside(engine: sa.Engine, *, before: bool) -> None:
    """A change of the player, an attempt and a dead letter, then (after) the erasure's event for
    all that stands beside the tournaments, and a change that is read too late."""
    archive = SqlArchive(engine, TOMBSTONE_KEY, now_ms=lambda: START_MS)
    changes, attempts = Place("position-changes", 0), Place("connections", 0)
    if before:
        archive.keep_changes(changes, "c/0", [changed(0, 2)], Offset(1))
        asked = ConnectionDecided.model_validate(
            {
                "tournament_id": T,
                "player_id": NEEDLE,
                "allowed": True,
                "reason": "ok",
                "address": "192.0.2.1",
                "user_agent": f"{NEEDLE}'s browser",
            }
        )
        archive.keep_attempts(attempts, "a/0", [entry(0, asked, event_id=f"{NEEDLE}/1")], Offset(1))
        letter = Record(
            topic="wagers-dlq", partition=0, offset=0, key=T.encode(),
            headers=(("ce_subject", NEEDLE.encode()), ("dlq_reason", b"schema")),
            value=f'{{"player_id": "{NEEDLE}"}}'.encode(), timestamp_ms=START_MS,
        )  # fmt: skip
        archive.keep_dead_letters(Place("wagers-dlq", 0), "d/0", [letter], Offset(1))
        assert len(dump(engine)["connection_attempts"]) == 1
        assert len(dump(engine)["dead_letters"]) == 1
    else:
        archive.keep_changes(changes, "c/0", [changed(1, 4)], Offset(2))
        assert len(dump(engine)["position_changes"]) == 2
        archive.forget(Place("gdpr-events", 0), "g/0", [erased(0, NEEDLE)], Offset(1))


def changed(offset: int, sequence: int) -> LogEntry:
    data = PositionChanged.model_validate(
        {
            "tournament_id": T, "player_id": NEEDLE, "sequence": sequence, "old_rank": None,
            "new_rank": 1, "score": 7, "distance": None,
            "cause": {"source": "/tests", "id": f"{NEEDLE}-{sequence}"},
        }
    )  # fmt: skip
    return entry(offset, data, event_id=f"{T}/{sequence}")


def test_a_disqualified_player_stays_out_and_stays_named(engine: sa.Engine) -> None:
    log = [scheduled(0), scored(1, ALICE, 5), scored(2, BOB, 3), disqualified(3, ALICE)]
    log += [scored(4, ALICE, 9)]
    fold, oracle = fold_of(engine), Oracle()
    assert list(take(fold, log).verdicts) == oracle.take(log)
    assert_equal(oracle, SqlRecord(engine), log)
    with reading(engine) as connection:
        names = connection.execute(sa.select(tables.players.c.player_id)).scalars().all()
    assert ALICE in names


# --- the end -------------------------------------------------------------------------------------


def test_the_final_board_is_kept_as_the_end_left_it(engine: sa.Engine) -> None:
    fold, oracle = fold_of(engine), Oracle()
    log = [scheduled(0), *(scored(n, f"p{n % 5}", n % 7) for n in range(1, 40)), ended(40)]
    log += [scored(41, "p1", 99), erased(42, "p2"), scored(43, "p2", 1)]
    for part in pieces(log, 1):
        assert list(take(fold, part).verdicts) == oracle.take(part)
    assert_equal(oracle, SqlRecord(engine), log)
    final = dump(engine)["final_standings"]
    assert [row[1] for row in final] == [1, 2, 3, 4, 5]
    expected = oracle.board.top(T, 10)
    assert expected is not None
    assert [row[3] for row in final] == [one.score.score for one in expected.standings]


def test_a_record_knows_every_tournament_of_a_player(engine: sa.Engine) -> None:
    take(fold_of(engine), interleaved(2, tournaments=3, length=80))
    record = SqlRecord(engine)
    assert sorted(record.tournaments_of(PlayerId("p1"))) == ["t0", "t1", "t2"]
    assert list(record.tournaments_of(PlayerId("nobody"))) == []
    assert [one.tournament_id for one in record.all()] == ["t0", "t1", "t2"]
    assert record.find(TournamentId("none")) is None
    assert record.top(TournamentId("none"), 5) is None


def test_an_end_is_confirmed_at_the_sequence_that_was_compared_and_no_other(
    engine: sa.Engine,
) -> None:
    log = [scheduled(0), scored(1, "p1", 5), ended(2), erased(3, "p1")]
    fold_of(engine).apply(0, LOG, put_down(log[:2]), Offset(2))
    archive = SqlArchive(engine, TOMBSTONE_KEY, now_ms=lambda: START_MS)
    assert archive.confirm(T, Offset(1)) is None  # it is not over
    fold_of(engine).apply(0, LOG, put_down(log), Offset(4))
    assert archive.confirm(T, Offset(2)) is None
    assert archive.confirm(T, Offset(3)) == START_MS
    later = SqlArchive(engine, TOMBSTONE_KEY, now_ms=lambda: START_MS + 1)
    assert later.confirm(T, Offset(3)) == START_MS
    assert later.confirm(TournamentId("none"), Offset(0)) is None
    assert later.page(TournamentId("none"), -1, 10) is None


def test_a_fold_of_other_size_windows_reads_as_the_board_does(engine: sa.Engine) -> None:
    """The window is counted in applied ids, so a batch may begin and end anywhere in it."""
    log = interleaved(21, tournaments=1, length=400)
    for size, window in ((1, 4), (13, 4)):
        name = f"w{size}"
        part_log = [renamed(one, name) for one in log]
        oracle, fold = Oracle(window), SqlFold(engine, TOMBSTONE_KEY, window, lambda: START_MS)
        for start in range(0, len(part_log), size):
            part = part_log[start : start + size]
            came = fold.apply(size, LOG, put_down(part), Offset(part[-1].offset + 1))
            assert list(came.verdicts) == oracle.take(part)
        assert_equal(oracle, SqlRecord(engine), part_log)
