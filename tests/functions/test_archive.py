"""archive as its own process, fed by a real Kafka: nothing lost, nothing twice, whatever stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

import audit_logs
import logs
from hosting import FUNCTIONS
from leaderboard import events as ev
from leaderboard.adapters import sql_migrations
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.sql_engine import connect, reading
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.codec import encode_kafka
from leaderboard.dead_letters import DeadLetter, bury, mark, read
from leaderboard.errors import Refusal, RefusedError
from leaderboard.events import Record
from leaderboard.fold import LogEntry
from leaderboard.model import TournamentId
from leaderboard.stack.process import LOOPBACK, free_port
from leaderboard.stack.servers import KafkaServer
from logs import LOG, START_MS, TOMBSTONE_KEY
from proxy import Proxy
from records import dump, fresh_database
from running import wait_for
from samples import structured_of

TOPICS = [ev.WAGERS, ev.POSITION_CHANGES, ev.FRAUD_ALERTS, ev.CONNECTIONS, ev.GDPR_EVENTS]
DLQ = ev.dead_letter_topic(ev.WAGERS)
READ_SECONDS = 90.0
SESSION_MS = 2_000
"""How long a killed member keeps its partitions: less than the usual 6 s, since each kill waits
for it."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Kafka of this module's own: archive reads every topic, so no other test's may be there."""
    server = KafkaServer(tmp_path_factory.mktemp("kafka"))
    try:
        server.start()
        admin = AdminClient({"bootstrap.servers": server.bootstrap_servers, "log_level": 2})
        wanted = [NewTopic(one, 2, 1) for one in TOPICS]
        wanted += [NewTopic(ev.dead_letter_topic(one), 1, 1) for one in TOPICS]
        for made in admin.create_topics(wanted).values():
            made.result(30)
        yield server.bootstrap_servers
    finally:
        server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with fresh_database(request.param, request, tmp_path) as made:
        yield made


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with fresh_database("postgresql", request, tmp_path) as made:
        yield made


class Archives:
    """Processes of archive over one database, as a group of their own."""

    def __init__(
        self, servers: str, url: str, redis_url: str, folder: Path, group: str | None = None
    ) -> None:
        self.group = group or f"archive-{uuid.uuid4().hex[:8]}"
        self.running: list[subprocess.Popen[bytes]] = []
        self.logs: list[Path] = []
        self._folder = folder
        self._environ = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "KAFKA_BOOTSTRAP_SERVERS": servers,
            "KAFKA_GROUP_ID": self.group,
            "KAFKA_SESSION_TIMEOUT_MS": str(SESSION_MS),
            "REDIS_URL": redis_url,
            "DATABASE_URL": url,
            "TOMBSTONE_KEY": TOMBSTONE_KEY.decode(),
            "BATCH_SIZE": "500",
            "HOST": LOOPBACK,
            **audit_logs.settings_in(folder / "audit-log"),
        }

    def start(self, **changes: str) -> subprocess.Popen[bytes]:
        path = self._folder / f"archive-{len(self.logs)}.log"
        self.logs.append(path)
        with path.open("wb") as log:
            one = subprocess.Popen(
                [sys.executable, str(FUNCTIONS / "archive" / "main.py")],
                env={**self._environ, "PORT": str(free_port()), **changes},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.running.append(one)
        return one

    def stop(self, one: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> int:
        one.send_signal(number)
        self.running.remove(one)
        return one.wait(30)

    def told(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in self.logs)

    def close(self) -> None:
        for one in self.running:
            one.kill()
            one.wait()


@pytest.fixture
def archives(servers: str, url: str, redis_url: str, tmp_path: Path) -> Iterator[Archives]:
    sql_migrations.upgrade(url)
    made = Archives(servers, url, redis_url, tmp_path)
    yield made
    made.close()


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    made = connect(url)
    yield made
    made.dispose()


def send(servers: str, records: Sequence[Record]) -> None:
    """Produce in order, acknowledged."""
    producer = Producer(
        {"bootstrap.servers": servers, "log_level": 2, "partitioner": "murmur2_random"}
    )
    for one in records:
        while True:
            try:
                producer.produce(one.topic, one.value, one.key, headers=list(one.headers))
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(60) == 0
    del producer


def unique(prefix: str) -> TournamentId:
    return TournamentId(f"{prefix}-{uuid.uuid4().hex[:8]}")


def count(engine: sa.Engine, table: sa.Table, *where: Any) -> int:
    with reading(engine) as connection:
        found: int = connection.execute(
            sa.select(sa.func.count()).select_from(table).where(*where)
        ).scalar_one()
    return found


def inputs_of(engine: sa.Engine, tournament_id: str) -> int:
    """How many inputs of the tournament are kept."""
    one, own = tables.inputs.c, tables.tournaments.c
    with reading(engine) as connection:
        found: int = connection.execute(
            sa.select(sa.func.count())
            .select_from(tables.inputs)
            .join(tables.tournaments, one.tournament_no == own.tournament_no)
            .where(own.tournament_id == tournament_id)
        ).scalar_one()
    return found


def load_of(tournament_id: str, wagers: int, players: int = 300) -> list[LogEntry]:
    """A schedule, then wagers of many players."""
    entries = [logs.scheduled(0, tournament_id, event_id=f"{tournament_id}/s")]
    entries += [
        logs.scored(
            number,
            f"p{number * 7919 % players}",
            number % 97 - 20,
            tournament_id=tournament_id,
            event_id=f"{tournament_id}/{number}",
        )
        for number in range(1, wagers + 1)
    ]
    return entries


def records_of(entries: Sequence[LogEntry]) -> list[Record]:
    return [encode_kafka(one.event, ev.WAGERS) for one in entries]


def check_equal(engine: sa.Engine, tournament_id: TournamentId, entries: list[LogEntry]) -> None:
    """Inputs, standings and players as the pure fold has them: nothing lost, nothing twice."""
    board = MemoryBoard(TOMBSTONE_KEY)
    board.apply(tournament_id, LOG, None, entries, entries[-1].offset)
    expected = board.top(tournament_id, 1000)
    found = SqlRecord(engine).top(tournament_id, 1000)
    assert expected is not None
    assert found is not None
    assert found.standings == expected.standings
    assert found.players == expected.players
    assert inputs_of(engine, tournament_id) == len(entries)


# --- what is kept --------------------------------------------------------------------------------


def change_of(tournament_id: str, sequence: int) -> Record:
    data = ev.PositionChanged(
        tournament_id=tournament_id,
        player_id="p1",
        sequence=sequence,
        old_rank=None,
        new_rank=1,
        score=sequence,
        distance=None,
        cause=ev.CauseData(source="/tests", id="e"),
    )
    event = ev.Event(f"{tournament_id}/{sequence}", "/on-wager", START_MS, data, "p1")
    return encode_kafka(event, ev.POSITION_CHANGES)


def attempt_of(tournament_id: str, player_id: str) -> Record:
    data = ev.ConnectionDecided(
        tournament_id=tournament_id,
        player_id=player_id,
        allowed=True,
        reason="first",
        address="203.0.113.9",
        user_agent="Browser é",
    )
    return encode_kafka(ev.Event(uuid.uuid4().hex, "/on-connect", START_MS, data), ev.CONNECTIONS)


def alert_of(tournament_id: str, player_id: str) -> Record:
    data = ev.FraudSuspected(
        tournament_id=tournament_id, player_id=player_id, rule="velocity", evidence={"wagers": 101}
    )
    alert_id = f"{tournament_id}/{player_id}/velocity"
    return encode_kafka(ev.Event(alert_id, "/t", START_MS, data), ev.FRAUD_ALERTS)


def letters_of(tournament_id: str) -> list[Record]:
    """A dead letter, the mark that it was handled, and one whose bytes are hostile."""
    key = tournament_id.encode()
    came = Record(ev.WAGERS, key, b"{not json", (("ce_id", b"e9"),), 0, 9, START_MS)
    at = "2026-01-01T00:00:00.000Z"
    refused = bury(came, RefusedError(Refusal.SCHEMA, "no wager"), at)
    letter = read(refused._replace(partition=0, offset=0))
    assert isinstance(letter, DeadLetter)
    hostile = refused._replace(key=b"\x00\xff" + key, value=b"\x00\xff")
    hostile = hostile._replace(headers=(("h", None), *refused.headers))
    return [refused, mark(letter, "dropped", "/tests", at), hostile]


def test_every_topic_is_kept_as_it_came(
    archives: Archives, engine: sa.Engine, servers: str
) -> None:
    t = unique("all")
    wagers = records_of(load_of(t, 5))
    structured = structured_of(
        "score.submitted",
        key=t.encode(),
        data={"tournament_id": t, "player_id": "p1", "score": 50, "own": "field"},
        id=f"{t}/structured",
        time="2025-10-09T08:53:30Z",
    )
    garbage = Record(ev.WAGERS, t.encode(), b"\xff", ())
    erased = ev.PlayerErased(player_id="p7", erasure_id="er-7")
    gone = encode_kafka(ev.Event(f"{t}/gone", "/erase", START_MS, erased, "p7"), ev.GDPR_EVENTS)
    before = [*wagers, structured, garbage, *letters_of(t)]
    before += [change_of(t, 3), change_of(t, 4), change_of(t, 3)]
    before += [attempt_of(t, "p1"), attempt_of(t, "p7")]
    before += [alert_of(t, "p1"), alert_of(t, "p7")]
    before += [Record(ev.CONNECTIONS, t.encode(), b"\xff garbage", ())]
    before += [Record(ev.FRAUD_ALERTS, t.encode(), b"\xff garbage", ())]
    send(servers, before)
    archives.start()
    attempts, letters = tables.connection_attempts, tables.dead_letters
    mine = attempts.c.tournament_id == t
    wait_for(lambda: count(engine, attempts, mine) == 2, READ_SECONDS)
    send(servers, [gone])
    emptied = (tables.fraud_alerts.c.tournament_id == t, tables.fraud_alerts.c.evidence == "{}")
    wait_for(lambda: count(engine, tables.fraud_alerts, *emptied) == 1, READ_SECONDS)
    assert count(engine, tables.fraud_alerts, emptied[0]) == 2
    unnamed = (mine, attempts.c.player_id.is_(None))
    wait_for(lambda: count(engine, attempts, *unnamed) == 1, READ_SECONDS)
    wait_for(lambda: inputs_of(engine, t) == 7, READ_SECONDS)
    own = letters.c.tournament_id.like(f"%{t}")
    # Three of `wagers`, and the two that archive buried itself; garbage in `wagers` is not its.
    wait_for(lambda: count(engine, letters, own) == 5, READ_SECONDS)
    with reading(engine) as connection:
        kept = connection.execute(
            sa.select(letters).where(own).order_by(letters.c.topic, letters.c.log_offset)
        ).all()
        changes = connection.execute(
            sa.select(tables.position_changes.c.sequence)
            .where(tables.position_changes.c.tournament_id == t)
            .order_by(tables.position_changes.c.sequence)
        ).scalars()
        assert list(changes) == [3, 4]
        bodies = connection.execute(sa.select(tables.inputs.c.data)).scalars().all()
    buried = [ev.dead_letter_topic(one) for one in (ev.CONNECTIONS, ev.FRAUD_ALERTS)]
    assert [one.topic for one in kept] == [*buried, DLQ, DLQ, DLQ]
    refused, marked, hostile = kept[2:]
    assert (refused.reason, refused.value, refused.handled) == ("schema", b"{not json", 0)
    assert json.loads(refused.headers)["dlq_offset"] == "9"
    assert marked.handled == 1
    assert hostile.value == b"\x00\xff"
    assert any('"own"' in body and "50" in body for body in bodies)
    view = SqlRecord(engine).top(t, 1)
    assert view is not None
    assert view.standings[0].player_id == "p1"


def test_what_comes_after_an_erasure_names_nobody(
    archives: Archives, engine: sa.Engine, servers: str
) -> None:
    """An attempt and a dead letter that were on their way; the log of `wagers` is told first."""
    t = unique("late")
    gone, other = f"{t}-gone", f"{t}-other"
    erased = ev.PlayerErased(tournament_id=t, player_id=gone, erasure_id=f"er-{t}")
    log = records_of([logs.scheduled(0, t, event_id=f"{t}/s"), logs.entry(1, erased)])
    send(servers, [*log, attempt_of(t, gone)])
    archives.start()
    attempts, letters = tables.connection_attempts, tables.dead_letters
    mine = (attempts.c.tournament_id == t, attempts.c.player_id.is_(None))
    wait_for(lambda: inputs_of(engine, t) == 2, READ_SECONDS)
    wait_for(lambda: count(engine, attempts, *mine) == 1, READ_SECONDS)
    came = Record(ev.WAGERS, t.encode(), json.dumps({"playerId": gone}).encode(), (), 0, 9)
    refused = bury(came, RefusedError(Refusal.SCHEMA, "no wager"), "2026-01-01T00:00:00.000Z")
    send(servers, [attempt_of(t, gone), attempt_of(t, other), refused])
    wait_for(lambda: count(engine, attempts, *mine) == 2, READ_SECONDS)
    wait_for(lambda: count(engine, letters, letters.c.tournament_id == t) == 1, READ_SECONDS)
    assert count(engine, attempts, attempts.c.player_id == other) == 1
    for table, rows in dump(engine).items():
        assert not any(gone in str(row) for row in rows), table


# --- stopped -------------------------------------------------------------------------------------


def test_killed_in_the_middle_of_a_load_nothing_is_lost_and_nothing_twice(
    archives: Archives, engine: sa.Engine, servers: str
) -> None:
    t = unique("killed")
    entries = load_of(t, 20_000)
    send(servers, records_of(entries))
    kills = 0
    while kills < 3:
        one, before = archives.start(), inputs_of(engine, t)
        wait_for(lambda before=before: inputs_of(engine, t) > before, READ_SECONDS)  # type: ignore[misc]
        assert inputs_of(engine, t) < len(entries), "the load was over before the kill"
        archives.stop(one, signal.SIGKILL)
        kills += 1
    archives.start(BATCH_SIZE="5000")
    wait_for(lambda: inputs_of(engine, t) >= len(entries), READ_SECONDS)
    check_equal(engine, t, entries)


def test_two_processes_and_one_that_leaves_share_the_log(
    archives: Archives, engine: sa.Engine, servers: str
) -> None:
    names = [unique("shared") for _ in range(4)]
    loads = {name: load_of(name, 2_000) for name in names}
    first = archives.start()
    send(servers, [one for part in zip(*map(records_of, loads.values())) for one in part])  # noqa: B905
    wait_for(lambda: inputs_of(engine, names[0]) > 0, READ_SECONDS)
    archives.start()
    time.sleep(2)
    assert archives.stop(first) == 0, archives.told()
    for name, entries in loads.items():
        wait_for(lambda name=name: inputs_of(engine, name) >= 2_001, READ_SECONDS)  # type: ignore[misc]
        check_equal(engine, name, entries)


def test_new_database_beside_an_old_group_starts_with_the_oldest_of_the_log(
    archives: Archives,
    engine: sa.Engine,
    servers: str,
    redis_url: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    t = unique("anew")
    entries = load_of(t, 500)
    send(servers, records_of(entries))
    one = archives.start()
    wait_for(lambda: inputs_of(engine, t) == len(entries), READ_SECONDS)
    assert archives.stop(one) == 0, archives.told()
    with fresh_database("sqlite", request, tmp_path) as other:
        sql_migrations.upgrade(other)
        fresh = connect(other)
        second = Archives(servers, other, redis_url, tmp_path, archives.group)
        try:
            second.start()
            wait_for(lambda: inputs_of(fresh, t) >= len(entries), READ_SECONDS)
            check_equal(fresh, t, entries)
        finally:
            second.close()
            fresh.dispose()


def through(postgres_url: str, proxy: Proxy) -> str:
    return sa.make_url(postgres_url).set(port=proxy.port).render_as_string(hide_password=False)


def test_database_that_is_away_at_start_and_in_the_middle_is_waited_for(
    servers: str, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    t = unique("away")
    entries = load_of(t, 6_000)
    sql_migrations.upgrade(postgres_url)
    engine = connect(postgres_url)
    target = sa.make_url(postgres_url).port
    assert target is not None
    with Proxy(target) as proxy:
        archives = Archives(servers, through(postgres_url, proxy), redis_url, tmp_path)
        try:
            proxy.cut()
            one = archives.start()
            send(servers, records_of(entries))
            time.sleep(4)
            assert one.poll() is None, archives.told()
            proxy.resume()
            wait_for(lambda: inputs_of(engine, t) > 0, READ_SECONDS)
            assert proxy.cut() > 0
            stood = inputs_of(engine, t)
            time.sleep(2)
            assert inputs_of(engine, t) - stood <= 500
            proxy.resume()
            wait_for(lambda: inputs_of(engine, t) >= len(entries), READ_SECONDS)
            assert one.poll() is None, archives.told()
            check_equal(engine, t, entries)
            assert "away" in archives.told()
        finally:
            archives.close()
            engine.dispose()


# --- started wrongly -----------------------------------------------------------------------------


def newer(url: str) -> None:
    sql_migrations.upgrade(url)
    engine = connect(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'record_9999'")
    engine.dispose()


@pytest.mark.parametrize("prepare", [lambda url: None, newer], ids=["missing", "newer"])
def test_schema_that_does_not_fit_stops_the_start_with_the_name_of_the_setting(
    servers: str, url: str, redis_url: str, tmp_path: Path, prepare: Any
) -> None:
    prepare(url)
    archives = Archives(servers, url, redis_url, tmp_path)
    try:
        one = archives.start()
        assert one.wait(60) == 2, archives.told()
        assert "archive: DATABASE_URL: " in archives.told()
    finally:
        archives.close()


@pytest.mark.parametrize(
    ("name", "text"), [("DATABASE_URL", "mysql://nowhere"), ("REDIS_URL", ""), ("BATCH_SIZE", "0")]
)
def test_wrong_setting_stops_the_start_with_its_name(
    servers: str, redis_url: str, tmp_path: Path, name: str, text: str
) -> None:
    changes: Mapping[str, str] = {name: text}
    archives = Archives(servers, "sqlite:////nowhere/at/all.sqlite", redis_url, tmp_path)
    try:
        one = archives.start(**changes)
        assert one.wait(60) == 2, archives.told()
        assert f"archive: {name}" in archives.told()
    finally:
        archives.close()


def test_archive_says_whether_it_is_ready(
    servers: str, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    sql_migrations.upgrade(postgres_url)
    archives, port = Archives(servers, postgres_url, redis_url, tmp_path), free_port()

    def is_ready() -> bool:
        try:
            return httpx.get(f"http://{LOOPBACK}:{port}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    try:
        archives.start(PORT=str(port))
        wait_for(is_ready, 60)
    finally:
        archives.close()
