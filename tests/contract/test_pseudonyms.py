"""Keys of the audit log's pseudonyms: drawn once for all, ended by an erasure, destroyed for good.
SQLite, PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.adapters.sql_engine import reading
from leaderboard.adapters.sql_pseudonyms import SqlPseudonyms
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.audit_leaves import BESIDE, Who
from leaderboard.events import GDPR_EVENTS, POSITION_CHANGES, WAGERS, PlayerErased
from leaderboard.model import Offset, Place, PlayerId, TournamentId, erasure_id_of
from leaderboard.record_ports import Ending, Head
from logs import ALICE, BOB, LOG, START_MS, TOMBSTONE_KEY, T, entry, scheduled
from records import DIALECTS, dump, engine_of, fold_of, fresh_database, take

HERS: Who = (T, ALICE)
HIS: Who = (T, BOB)
BESIDE_HERS: Who = (BESIDE, ALICE)
UNKNOWN: Who = (TournamentId("t-unknown"), ALICE)
CHANGES = Place(POSITION_CHANGES, 3)


@pytest.fixture(params=DIALECTS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """A record that knows the tournament T."""
    with (
        fresh_database(request.param, request, tmp_path) as url,
        engine_of(url) as made,
    ):
        take(fold_of(made), [scheduled(0)])
        yield made


@pytest.fixture
def keys(engine: sa.Engine) -> SqlPseudonyms:
    return SqlPseudonyms(engine, TOMBSTONE_KEY, lambda: START_MS)


def forget_alice(engine: sa.Engine) -> None:
    data = PlayerErased(player_id=ALICE, erasure_id="er-1")
    archive = SqlArchive(engine, TOMBSTONE_KEY, now_ms=lambda: START_MS)
    archive.forget(Place(GDPR_EVENTS, 0), LOG, [entry(0, data)], Offset(1))


def pseudonym(keys: SqlPseudonyms, whose: Who, *, of_wagers: bool = True) -> str | None:
    key = keys.of([whose], of_wagers=of_wagers)[whose].key
    return None if key is None else key.pseudonym


def test_key_is_drawn_once_and_the_same_for_everybody(
    keys: SqlPseudonyms, engine: sa.Engine
) -> None:
    first = keys.of([HERS, HIS], of_wagers=True)
    other = SqlPseudonyms(engine, TOMBSTONE_KEY)
    assert other.of([HIS, HERS], of_wagers=False) == first
    assert first[HERS].key != first[HIS].key
    beside = pseudonym(keys, BESIDE_HERS, of_wagers=False)
    assert beside not in (None, pseudonym(keys, HERS))
    # Alone, and by somebody who has not met her: its row has no tournament's name.
    assert pseudonym(other, BESIDE_HERS, of_wagers=False) == beside


def test_table_names_nobody(keys: SqlPseudonyms, engine: sa.Engine) -> None:
    keys.of([HERS, BESIDE_HERS], of_wagers=False)
    keys.end(3, {HERS: Offset(7)})
    rows = [dump(engine)[name] for name in ("pseudonym_keys", "pseudonym_ends")]
    assert all(rows)
    assert ALICE not in repr(rows)


def test_none_is_drawn_for_a_tournament_that_the_record_does_not_know(
    keys: SqlPseudonyms,
) -> None:
    """Nobody could be told of their erasure there, and the fold refuses what it says."""
    assert pseudonym(keys, UNKNOWN) is None
    assert keys.end(3, {UNKNOWN: Offset(7)}) == {}
    # Position changes may be read before the schedule: they have one, so it is known for sure.
    assert pseudonym(keys, UNKNOWN, of_wagers=False) is not None


def test_owners_that_meet_one_player_at_the_same_moment_draw_one_key(
    keys: SqlPseudonyms, engine: sa.Engine
) -> None:
    wanted: list[Who] = [(T, PlayerId(f"p{number}")) for number in range(300)]
    found: list[object] = []
    barrier = threading.Barrier(4)

    def draw() -> None:
        own = SqlPseudonyms(engine, TOMBSTONE_KEY)
        barrier.wait()
        found.append({w: known.key for w, known in own.of(wanted, of_wagers=True).items()})

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(found) == 4
    assert all(one == found[0] for one in found)
    assert None not in found[0].values()  # type: ignore[attr-defined]


def test_first_erasure_is_the_end(keys: SqlPseudonyms) -> None:
    keys.of([HERS], of_wagers=True)
    assert keys.end(3, {HERS: Offset(7)}) == {HERS: 7}
    assert keys.end(3, {HERS: Offset(9)}) == {HERS: 7}
    known = keys.of([HERS], of_wagers=True)[HERS]
    assert (known.key is None, known.ended) == (False, 7)


def ended(keys: SqlPseudonyms) -> Ending:
    keys.of([HERS, HIS], of_wagers=True)
    keys.end(3, {HERS: Offset(7)})
    (one,) = keys.endings(3, 10)
    return one


def test_ending_waits_for_the_changes_and_is_gone_with_its_key(keys: SqlPseudonyms) -> None:
    one = ended(keys)
    assert (one.tournament_id, one.offset, one.changes) == (T, 7, None)
    assert keys.endings(2, 10) == []
    keys.wait_for([Ending(T, one.erasure_id, one.offset, CHANGES, Offset(40))])
    (waiting,) = keys.endings(3, 10)
    assert (waiting.changes, waiting.changes_until) == (CHANGES, 40)
    keys.destroy([waiting])
    assert keys.endings(3, 10) == []
    # For ever, whoever asks.
    assert keys.of([HERS], of_wagers=True)[HERS] == (None, 7)
    assert pseudonym(keys, HERS, of_wagers=False) is None
    assert pseudonym(keys, HIS) is not None


def test_record_says_where_keys_are(keys: SqlPseudonyms, engine: sa.Engine) -> None:
    record, hers = SqlRecord(engine), erasure_id_of(TOMBSTONE_KEY, ALICE)
    assert record.pseudonyms(hers) == {}
    keys.of([BESIDE_HERS], of_wagers=False)
    one = ended(keys)
    assert record.pseudonyms(hers) == {BESIDE: False, T: False}
    keys.destroy([one])
    assert record.pseudonyms(hers) == {BESIDE: False, T: True}
    keys.destroy_beside([ALICE])
    assert record.pseudonyms(hers) == {T: True}


def test_who_is_forgotten_gets_no_key_beside_the_tournaments(
    keys: SqlPseudonyms, engine: sa.Engine
) -> None:
    forget_alice(engine)
    assert pseudonym(keys, BESIDE_HERS, of_wagers=False) is None
    assert pseudonym(keys, (BESIDE, BOB), of_wagers=False) is not None


def test_head_never_goes_back(keys: SqlPseudonyms) -> None:
    place = Place(WAGERS, 3)
    head = Head("o/wagers/3", place, 10, "aa", Offset(12))
    keys.put_heads([head])
    keys.put_heads([head._replace(size=9, root="bb", next_offset=Offset(11))])
    assert keys.heads([place, CHANGES]) == [head]
    further = head._replace(size=11, root="cc", next_offset=Offset(13))
    other = head._replace(origin="another/wagers/3", size=1)
    keys.put_heads([further, other])
    assert set(keys.heads([place])) == {further, other}
    assert keys.heads([CHANGES]) == []


def test_tables_hold_no_secret_of_who_was_erased(keys: SqlPseudonyms, engine: sa.Engine) -> None:
    one = ended(keys)
    with reading(engine) as connection:
        row = tables.pseudonym_keys.c
        secret = bytes(
            connection.execute(
                sa.select(row.secret).where(row.erasure_id == one.erasure_id)
            ).scalar_one()
        )
    keys.destroy([one])
    assert secret.hex() not in repr(dump(engine))
    assert repr(secret)[2:-1] not in repr(dump(engine))
