"""What stands beside the tournaments forgets a player for good, whichever comes first: the erasure,
or what names the player. SQLite, PostgreSQL."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from leaderboard.adapters import sql_alerts, sql_archive, sql_fold
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_archive import SqlArchive
from leaderboard.adapters.sql_engine import reading
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.errors import Refusal
from leaderboard.events import (
    CauseData,
    ConnectionDecided,
    FraudSuspected,
    PositionChanged,
    Record,
)
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, Place, PlayerId, erasure_id_of
from logs import ALICE, START_MS, TOMBSTONE_KEY, T, entry, erased, scheduled, scored
from records import DIALECTS, dump, engine_of, fold_of, fresh_database, take

NEEDLE = PlayerId("needle-in-a-haystack")
ESCAPED = NEEDLE.replace("n", "\\u006e")
PATIENCE_SECONDS = 20
LONG_ENOUGH_SECONDS = 0.3


@pytest.fixture(params=DIALECTS)
def fresh_engine(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[[], sa.Engine]]:
    """Makes an empty record with each call."""
    with ExitStack() as stack:
        enter = stack.enter_context
        yield lambda: enter(engine_of(enter(fresh_database(request.param, request, tmp_path))))


@pytest.fixture
def engine(fresh_engine: Callable[[], sa.Engine]) -> sa.Engine:
    return fresh_engine()


def archive_of(engine: sa.Engine) -> SqlArchive:
    return SqlArchive(engine, TOMBSTONE_KEY, now_ms=lambda: START_MS)


# --- what comes ----------------------------------------------------------------------------------


def attempt(offset: int, player_id: str | None) -> LogEntry:
    data = ConnectionDecided(
        tournament_id=T,
        player_id=player_id,
        allowed=True,
        reason="allowed",
        address="192.0.2.1",
        user_agent=f"{player_id}'s browser",
    )
    return entry(offset, data, event_id=f"{player_id}/{offset}")


def letter(offset: int, value: bytes | None, subject: str = "", key: str = T) -> Record:
    headers = [("dlq_reason", b"schema"), ("dlq_topic", b"wagers")]
    if subject:
        headers.append(("ce_subject", subject.encode()))
    return Record(
        "wagers-dlq", key.encode(), value, tuple(headers), 0, offset, timestamp_ms=START_MS
    )


def json_of(**data: Any) -> bytes:
    return json.dumps(data).encode()


NAMING: dict[str, tuple[bytes | None, str, str]] = {
    "an attribute": (b"{not json", NEEDLE, T),
    "the data": (json_of(tournament_id=T, player_id=NEEDLE), "", T),
    "a field of another name": (json_of(playerId=NEEDLE), "", T),
    "a structured event": (json_of(subject=NEEDLE, data={"player_id": "x"}), "", T),
    "one of a batch": (b"[" + json_of(data={"player_id": NEEDLE}) + b"]", "", T),
    "the name of a member": (json_of(scores={NEEDLE: 5}), "", T),
    "an escaped text": (f'{{"player_id": "{ESCAPED}"}}'.encode(), "", T),
    "the key": (json_of(score=5), "", NEEDLE),
}
OTHERS: dict[str, tuple[bytes | None, str, str]] = {
    "another player's": (json_of(player_id=ALICE, note="n"), ALICE, T),
    "a longer text": (json_of(player_id=f"{ALICE}-{ALICE}"), "", T),
    "nobody's": (None, "", T),
}


def letters(of: dict[str, tuple[bytes | None, str, str]], first: int) -> list[Record]:
    return [letter(first + n, *one) for n, one in enumerate(of.values())]


def beside(engine: sa.Engine) -> None:
    """Attempts and dead letters of the needle and of others."""
    archive = archive_of(engine)
    attempts = [attempt(0, NEEDLE), attempt(1, ALICE), attempt(2, None), attempt(3, NEEDLE)]
    archive.keep_attempts(Place("connections", 0), "c/0", attempts, Offset(4))
    some = letters(NAMING, 0) + letters(OTHERS, len(NAMING))
    end = Offset(some[-1].offset + 1)
    archive.keep_dead_letters(Place("wagers-dlq", 0), "d/0", some, end)


def forget(engine: sa.Engine, *players: str) -> None:
    """The event that other systems get, too."""
    events = [erased(n, one) for n, one in enumerate(players or (NEEDLE,))]
    end = Offset(len(events))
    assert archive_of(engine).forget(Place("gdpr-events", 0), "g/0", events, end) == len(events)


def erase(engine: sa.Engine) -> None:
    """The event of a tournament that has never heard of the player."""
    take(fold_of(engine), [scheduled(0), scored(1, ALICE, 5), erased(2, NEEDLE)])


def erase_nowhere(engine: sa.Engine) -> None:
    """The event of a tournament that the record does not know (yet)."""
    came = take(fold_of(engine), [erased(0, NEEDLE)])
    assert list(came.verdicts) == [Refusal.UNKNOWN_TOURNAMENT]


STEPS: dict[str, Callable[[sa.Engine], None]] = {
    "beside": beside,
    "forget": forget,
    "erase": erase,
}


# --- whichever comes first -----------------------------------------------------------------------


def names(row: Sequence[object], needle: str) -> bool:
    raw = b"\0".join(one if isinstance(one, bytes) else str(one).encode() for one in row)
    return needle.encode() in raw or ESCAPED.encode() in raw


def test_the_same_is_left_whichever_comes_first(fresh_engine: Callable[[], sa.Engine]) -> None:
    left: list[dict[str, list[tuple[object, ...]]]] = []
    for order in itertools.permutations(STEPS):
        engine = fresh_engine()
        for step in order:
            STEPS[step](engine)
        left.append(dump(engine))
        assert left[-1] == left[0], order
    # Until every other place is done, too: see `SqlRequests.close`.
    assert [row[1] for row in left[0].pop("erasure_requests")] == [NEEDLE]
    for table, rows in left[0].items():
        assert not any(names(row, NEEDLE) for row in rows), table
    attempts, kept = left[0]["connection_attempts"], left[0]["dead_letters"]
    assert [names(row, ALICE) for row in attempts] == [False, True, False, False]
    assert len(kept) == len(NAMING) + len(OTHERS)
    assert [row[8] == "{}" for row in kept] == [True] * len(NAMING) + [False] * len(OTHERS)
    assert [row[9] for row in kept[len(NAMING) :]] == [value for value, _, _ in OTHERS.values()]


@pytest.mark.parametrize("step", [forget, erase, erase_nowhere])
def test_every_erasure_marks_the_player_by_nothing_but_a_keyed_id(
    engine: sa.Engine, step: Callable[[sa.Engine], None]
) -> None:
    step(engine)
    beside(engine)
    mark = erasure_id_of(TOMBSTONE_KEY, NEEDLE)
    ((kept, _),) = dump(engine)["forgotten_players"]
    assert kept == mark
    assert not any(names(row, NEEDLE) for row in dump(engine)["connection_attempts"])
    assert not any(names(row, NEEDLE) for row in dump(engine)["dead_letters"])
    record = SqlRecord(engine)
    assert record.is_forgotten(mark)
    assert not record.is_forgotten(erasure_id_of(TOMBSTONE_KEY, ALICE))
    assert not record.is_forgotten(erasure_id_of(b"the key of another platform", NEEDLE))


def test_nothing_around_the_data_names_the_player_whichever_comes_first(
    engine: sa.Engine,
) -> None:
    """A producer may put anybody into an attribute of its own, also of an event that comes late."""

    def telling(offset: int, points: int) -> LogEntry:
        one = scored(offset, NEEDLE, points)
        extensions = {"playername": f"Mx {NEEDLE}"}
        event = one.event._replace(extensions=extensions, traceparent=f"00-{NEEDLE}-{offset}-01")
        return one._replace(event=event)

    fold = fold_of(engine)
    take(fold, [scheduled(0), telling(1, 5), scored(2, ALICE, 5)])
    assert NEEDLE in str(dump(engine))
    take(fold, [telling(3, 6), erased(4, NEEDLE), telling(5, 7)])
    take(fold_of(engine), [telling(6, 8)])
    assert NEEDLE not in str(dump(engine))


def test_an_erasure_that_comes_again_changes_nothing(engine: sa.Engine) -> None:
    beside(engine)
    erase(engine)
    forget(engine)
    before = dump(engine)
    archive = archive_of(engine)
    assert archive.forget(Place("gdpr-events", 0), "g/0", [erased(0, NEEDLE)], Offset(1)) == 0
    archive.forget(Place("gdpr-events", 0), "g/0", [erased(1, NEEDLE)], Offset(2))
    after = dump(engine)
    assert {**after, "log_positions": None} == {**before, "log_positions": None}


def test_many_players_are_forgotten_at_once(engine: sa.Engine) -> None:
    players = [f"many-{n}" for n in range(60)]
    archive = archive_of(engine)
    attempts = [attempt(n, one) for n, one in enumerate(players)]
    archive.keep_attempts(Place("connections", 0), "c/0", attempts, Offset(60))
    some = [letter(n, json_of(player_id=one)) for n, one in enumerate(players)]
    archive.keep_dead_letters(Place("wagers-dlq", 0), "d/0", some, Offset(60))
    forget(engine, *players[:50], players[0])
    found = dump(engine)
    assert len(found["forgotten_players"]) == 50
    assert [row[6] for row in found["connection_attempts"]] == [None] * 50 + players[50:]
    assert [row[9] is None for row in found["dead_letters"]] == [True] * 50 + [False] * 10


def test_what_nobody_can_read_keeps_the_id(engine: sa.Engine) -> None:
    """The limit that the docs tell of: it goes by retention."""
    hidden = b"\xff" + NEEDLE.encode()
    archive = archive_of(engine)
    for offset in (0, 1):
        one = letter(offset, hidden)
        archive.keep_dead_letters(Place("wagers-dlq", 0), "d/0", [one], Offset(offset + 1))
        if offset == 0:
            forget(engine)
    assert [row[9] for row in dump(engine)["dead_letters"]] == [hidden, hidden]


# --- at the same moment --------------------------------------------------------------------------


class Stopped:
    """The call of a function that waits, once it has done its part, until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> None:
        self.is_there = threading.Event()
        self.go_on = threading.Event()
        real = getattr(where, name)

        def call(*args: Any) -> Any:
            answer = real(*args)
            if not self.is_there.is_set():
                self.is_there.set()
                assert self.go_on.wait(PATIENCE_SECONDS)
            return answer

        monkeypatch.setattr(where, name, call)


def keep_attempt(engine: sa.Engine) -> None:
    place = Place("connections", 0)
    archive_of(engine).keep_attempts(place, "c/0", [attempt(0, NEEDLE)], Offset(1))


def keep_letter(engine: sa.Engine) -> None:
    place, one = Place("wagers-dlq", 0), letter(0, None, NEEDLE)
    archive_of(engine).keep_dead_letters(place, "d/0", [one], Offset(1))


def keep_change(engine: sa.Engine) -> None:
    cause = CauseData(source="/tests", id=f"{NEEDLE}-1")
    data = PositionChanged(
        tournament_id=T, player_id=NEEDLE, sequence=1, old_rank=None, new_rank=1, score=5,
        distance=None, cause=cause,
    )  # fmt: skip
    place = Place("position-changes", 0)
    archive_of(engine).keep_changes(place, "p/0", [entry(0, data)], Offset(1))


def keep_alert(engine: sa.Engine) -> None:
    evidence = {"note": NEEDLE}
    data = FraudSuspected(tournament_id=T, player_id=NEEDLE, rule="velocity", evidence=evidence)
    place, one = Place("fraud-alerts", 0), entry(0, data, event_id=f"{T}/1/velocity")
    archive_of(engine).keep_alerts(place, "f/0", [one], Offset(1))


def fold_erasure(engine: sa.Engine) -> None:
    take(fold_of(engine), [erased(2, NEEDLE)])


KEEPERS = [keep_attempt, keep_letter, keep_alert, keep_change]
RACES = [(keep, fold_erasure) for keep in KEEPERS] + [(keep, forget) for keep in KEEPERS[:3]]


def race(engine: sa.Engine, first: Any, stopped: Stopped, second: Any) -> None:
    """`second` begins while `first` has done its work, and not committed it."""
    threads = [threading.Thread(target=one, args=(engine,)) for one in (first, second)]
    threads[0].start()
    assert stopped.is_there.wait(PATIENCE_SECONDS)
    threads[1].start()
    threads[1].join(LONG_ENOUGH_SECONDS)
    waited = threads[1].is_alive()
    stopped.go_on.set()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    found = dump(engine)
    tables_kept = ("connection_attempts", "dead_letters", "fraud_alerts", "position_changes")
    kept = [found[name] for name in tables_kept]
    (row,) = (row for rows in kept for row in rows)
    assert not names(row, NEEDLE)
    assert waited, "they never met"


@pytest.mark.parametrize(("keep", "forgets"), RACES)
def test_what_is_being_kept_while_the_player_is_forgotten_is_forgotten(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, keep: Any, forgets: Any
) -> None:
    take(fold_of(engine), [scheduled(0), scored(1, NEEDLE, 5)])
    archive_of(engine)._months.ensure(202510)
    where = sql_alerts if keep is keep_alert else sql_archive
    race(engine, keep, Stopped(monkeypatch, where, "insert"), forgets)


@pytest.mark.parametrize(("keep", "forgets"), RACES)
def test_what_comes_while_the_player_is_being_forgotten_waits_and_names_nobody(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, keep: Any, forgets: Any
) -> None:
    take(fold_of(engine), [scheduled(0), scored(1, NEEDLE, 5)])
    where = sql_fold if forgets is fold_erasure else sql_archive
    race(engine, forgets, Stopped(monkeypatch, where, "forget_beside"), keep)


def test_who_keeps_does_not_wait_for_others_who_keep(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine.dialect.name == "sqlite":
        return  # its writers are alone
    stopped = Stopped(monkeypatch, sql_archive, "insert")
    thread = threading.Thread(target=keep_attempt, args=(engine,))
    thread.start()
    assert stopped.is_there.wait(PATIENCE_SECONDS)
    keep_letter(engine)
    with reading(engine) as connection:
        count = sa.select(sa.func.count()).select_from(tables.dead_letters)
        assert connection.execute(count).scalar_one() == 1
    stopped.go_on.set()
    thread.join(PATIENCE_SECONDS)
