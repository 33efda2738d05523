"""Damaged events on a real Kafka, read by the real processes: they add up there as well."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import pytest
import sqlalchemy as sa

from leaderboard import dead_letters
from leaderboard.adapters import sql_engine
from leaderboard.adapters import sql_schema as tables
from leaderboard.codec import encode_kafka
from leaderboard.events import WAGERS, Record, dead_letter_topic
from leaderboard.model import Disposition
from running import StackCommand, wait_for
from security.accounts import Account
from security.fuzzing import LIVE, SHORT, Fuzz
from security.raw_producer import produce_raw
from sockets import Players
from whole_path import Path, schedule, unique, wager

EVENTS: Final = int(os.environ.get("SECURITY_KAFKA_EVENTS", "5000"))
SEED: Final = 20261127
DONE_SECONDS: Final = 120.0
TIMER: Final = ("ce_source", b"/tournament")
READERS: Final = {"on-wager": "ON_WAGER", "archive": "ARCHIVE"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, players: Players) -> Iterator[Path]:
    """A local stack whose consumers do not stop for what is nearly all of the traffic here."""
    settings = {f"{label}__DEAD_LETTER_CAP_RATIO": "1" for label in READERS.values()}
    folder = tmp_path_factory.mktemp("fuzzed")
    stack = StackCommand(folder, ["stack", "--free-ports"], settings)
    stack.start()
    opened = Path(stack, players)
    try:
        yield opened
    finally:
        opened.close()
        stack.stop()


def sendable(record: Record) -> Record:
    """As a client library can send it: names of headers are texts."""
    headers = tuple((n.encode("utf-8", "replace").decode(), raw) for n, raw in record.headers)
    return record._replace(headers=headers)


def counted(path: Path, label: str, series: str, by: str) -> Counter[str]:
    """A counter of one process, by one of its labels."""
    text = path.http.get(f"{path.settings[f'{label}_HEALTH_URL']}/metrics").text
    found: Counter[str] = Counter()
    for labels, value in re.findall(rf"^{series}_total\{{(.*)\}} (\S+)$", text, re.MULTILINE):
        told = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if told.get("topic", WAGERS) == WAGERS:
            found[told[by]] += int(float(value))
    return found


def sound_and_buried(path: Path) -> tuple[Counter[str], Counter[str]]:
    sound = counted(path, "ON_WAGER", "leaderboard_events", "disposition")
    kept = {name: n for name, n in sound.items() if name in set(map(str, Disposition)) and n}
    buried = counted(path, "ON_WAGER", "leaderboard_dead_letters", "reason")
    return Counter(kept), +buried


@dataclass(frozen=True)
class Before:
    """How things stood before anything was sent: what came earlier is not looked at."""

    ends: Mapping[int, int]
    counted: tuple[Counter[str], Counter[str]]

    def is_later(self, origin: tuple[int, int]) -> bool:
        return origin[1] >= self.ends[origin[0]]


def account(path: Path, sent: Sequence[Record], before: Before) -> Account:
    # The timer starts what it sees scheduled and nobody has played in yet: those count as sent.
    starts = path.consumed(WAGERS, lambda record: TIMER in record.headers, before.ends)
    found = Account(sent={(one.partition, one.offset) for one in (*sent, *starts)})
    for one in path.consumed(dead_letter_topic(WAGERS), lambda record: True):
        letter = dead_letters.read(one)
        assert isinstance(letter, dead_letters.DeadLetter)
        origin = letter.origin.partition, letter.origin_offset
        if not before.is_later(origin):
            continue
        if origin in found.buried:
            found.twice.append(origin)
        found.buried[origin] = letter.reason
    recorded = {(int(p), int(o)): str(what) for p, o, what in inputs(path)}
    found.recorded = {at: what for at, what in recorded.items() if before.is_later(at)}
    found.counted = since(path, before)
    return found


def since(path: Path, before: Before) -> tuple[Counter[str], Counter[str]]:
    """What the metrics counted meanwhile."""
    sound, buried = sound_and_buried(path)
    return sound - before.counted[0], buried - before.counted[1]


def inputs(path: Path, which: sa.ColumnElement[bool] | None = None) -> list[Any]:
    """Partition, offset and disposition of everything that the record has taken in."""
    wanted, known = tables.inputs.c, tables.tournaments.c
    asked = sa.select(known.log_partition, wanted.log_offset, wanted.disposition).join_from(
        tables.inputs, tables.tournaments, wanted.tournament_no == known.tournament_no
    )
    engine = sql_engine.connect(path.settings["DATABASE_URL"].replace("://", "+psycopg://", 1))
    try:
        with engine.connect() as connection:
            chosen = asked if which is None else asked.where(which)
            return list(connection.execute(chosen).all())
    finally:
        engine.dispose()


def test_a_header_that_no_client_can_read_stops_nobody(
    path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Kafka takes any bytes for a name. The record is buried, and all behind it counts."""
    before = pids(path)
    tournament_id = unique("spoilt")
    path.publish([schedule(tournament_id)])
    names = (b"ce_\xff\xfe", b"\xed\xa0\x80", b"\x80")
    server = path.settings["KAFKA_BOOTSTRAP_SERVERS"]
    for name in names:
        sound = encode_kafka(wager(tournament_id, "alice", 1), WAGERS)
        produce_raw(server, sound, name)
    placed = path.publish([wager(tournament_id, "alice", 5)])
    path.reached(tournament_id, placed[-1].offset)
    # The board may be ahead of what its batch buries.
    wait_for(lambda: len(path.dead_letters(tournament_id)) >= len(names), 30)
    letters = map(dead_letters.read, path.dead_letters(tournament_id))
    reasons = [one.reason for one in letters if isinstance(one, dead_letters.DeadLetter)]
    assert reasons == ["schema"] * len(names)
    assert [row["score"] for row in path.standings(tournament_id)] == [5]
    wait_for(lambda: len([1 for _ in inputs_of(path, tournament_id)]) == 2, 30)
    assert pids(path) == before
    record_property("tried", len(names))


def inputs_of(path: Path, tournament_id: str) -> list[Any]:
    """What the record has of one tournament."""
    known = tables.tournaments.c.tournament_id == tournament_id
    return inputs(path, known)


def pids(path: Path) -> dict[str, str]:
    told = path.stack.env()
    return {label: told[f"PID_{label}_1"] for label in READERS.values()}


def test_every_event_is_somewhere_exactly_once_and_no_process_ended(
    path: Path, record_property: Callable[[str, object], None]
) -> None:
    processes, before = pids(path), Before(path.ends(WAGERS), sound_and_buried(path))
    prefix = f"{unique('f')}-"
    fuzz = Fuzz(SEED, time.time_ns() // 1_000_000, prefix)
    records = [*fuzz.schedules(), *islice(iter(fuzz.record, None), EVENTS)]
    sent = path.send([sendable(record) for record in records])
    assert len(sent) == len(records)

    def is_settled() -> bool:
        found = account(path, sent, before)
        everywhere = found.buried.keys() | found.recorded.keys()
        counted = sum(map(Counter.total, found.counted))
        last[:] = [found]
        return counted == len(found.sent) == len(everywhere)

    last: list[Account] = []
    with suppress(AssertionError):  # what is not level by then is told below, by its name
        wait_for(is_settled, DONE_SECONDS)
    record_property("tried", len(sent))
    last[0].check()
    assert pids(path) == processes
    for tournament_id in (*LIVE, *SHORT):
        answer = path.get(f"/v1/tournaments/{prefix}{tournament_id}")
        assert answer.status_code == 200, answer.text
