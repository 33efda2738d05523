"""The relay with a real Kafka and real databases: killed, doubled, cut off; nothing lost, nothing
counted twice, every tournament in its order."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from leaderboard import events as ev
from leaderboard.codec import decode_kafka, encode_kafka
from leaderboard.model import Disposition, PlayerId
from leaderboard.producer.outbox import put
from leaderboard.stack.process import LOOPBACK
from leaderboard.stack.servers import KafkaServer
from leaderboard.stack.topics import create_topics
from outboxes import (
    SOURCE,
    Boards,
    Log,
    Outbox,
    RelayProcess,
    first_seen,
    fresh_postgres,
    fresh_sqlite,
    run_relay,
    scheduled,
    scored,
)
from running import command, wait_for

PARTITIONS = 5
TOURNAMENTS = 20
PLAYERS = 50
READ_SECONDS = 60.0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A Kafka of these tests' own: they stop it."""
    server = KafkaServer(tmp_path_factory.mktemp("kafka-of-relays"))
    server.start()
    try:
        create_topics(server.bootstrap_servers, PARTITIONS)
        yield server
    finally:
        server.stop()


@pytest.fixture
def outbox(postgres: str) -> Iterator[Outbox]:
    with fresh_postgres(postgres) as made:
        yield made


@pytest.fixture
def log(broker: KafkaServer) -> Iterator[Log]:
    made = Log(broker.bootstrap_servers)
    try:
        yield made
    finally:
        made.close()


class Game:
    """Writers of a game platform: some transactions stay open while others commit."""

    def __init__(
        self, outbox: Outbox, writers: int, events: int, seed: int, *, first: int = 0
    ) -> None:
        """`events` by each writer at least, and more until `may_end` is set. Writers have
        numbers from `first` on, and ids begin with theirs."""
        self._outbox = outbox
        self._events = events
        self.may_end = threading.Event()
        self.scores: Counter[tuple[str, str]] = Counter()
        self.order: dict[tuple[str, int], list[str]] = defaultdict(list)
        self.seconds: list[float] = []
        self.played: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._write, args=(writer, random.Random(seed + writer)))
            for writer in range(first, first + writers)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        self.may_end.set()
        for thread in self._threads:
            thread.join()
        assert not self._failures, self._failures

    def _write(self, writer: int, chance: random.Random) -> None:
        try:
            self._play(writer, chance)
        except BaseException as error:  # noqa: BLE001 - told by join
            self._failures.append(error)

    def _play(self, writer: int, chance: random.Random) -> None:
        """Two connections: what the second one holds back commits after later positions."""
        with psycopg.connect(self._outbox.url) as quick, psycopg.connect(self._outbox.url) as slow:
            held = 0
            for index in itertools.count():
                if index >= self._events and self.may_end.is_set():
                    break
                tournament = f"t{chance.randrange(TOURNAMENTS)}"
                player, score = f"p{chance.randrange(PLAYERS)}", chance.randrange(1, 100)
                name = f"{writer}-{index}"
                event = scored(name, tournament, player, score)
                is_late = chance.random() < 0.1
                started = time.perf_counter()
                put(slow if is_late else quick, event)
                if is_late:
                    held += 1
                    if held % 5 == 0:
                        slow.commit()
                elif chance.random() < 0.3:
                    quick.commit()
                    self.seconds.append(time.perf_counter() - started)
                self.played[writer] += 1
                with self._lock:
                    self.scores[tournament, player] += score
                    if not is_late:
                        self.order[tournament, writer].append(name)
            quick.commit()
            slow.commit()


def schedule(outbox: Outbox) -> None:
    with outbox.engine.begin() as connection:
        for index in range(TOURNAMENTS):
            put(connection, scheduled(f"t{index}"))


def assert_numbers_go_up(records: list[ev.Record]) -> None:
    """The rule that boards count on: whatever is new has a number above all before it."""
    last: dict[str | None, int] = defaultdict(int)
    given: dict[tuple[str | None, str], int] = {}
    for event in map(decode_kafka, records):
        assert event.sequence is not None
        place = event.tournament_id, event.id
        if place in given:
            assert given[place] == event.sequence, "sent again under another number"
            continue
        given[place] = event.sequence
        assert event.sequence > last[event.tournament_id]
        last[event.tournament_id] = event.sequence


def assert_all_came(game: Game, records: list[ev.Record], total: int) -> None:
    events = first_seen(records)
    assert len(events) == total
    assert_numbers_go_up(records)
    came: dict[tuple[str, int], list[str]] = defaultdict(list)
    for event in events:
        if "-" in event.id:
            came[str(event.tournament_id), int(event.id.partition("-")[0])].append(event.id)
    for place, names in game.order.items():
        wanted = set(names)
        assert [name for name in came[place] if name in wanted] == names, place
    boards = Boards(records)
    assert boards.scores() == dict(game.scores)
    assert boards.dispositions[Disposition.APPLIED] == total
    assert boards.dispositions[Disposition.DUPLICATE] == len(records) - total
    assert set(boards.dispositions) <= {Disposition.APPLIED, Disposition.DUPLICATE}


def all_sent(outbox: Outbox) -> bool:
    return outbox.count("sent_at_ms IS NULL AND refused IS NULL") == 0


def metrics(relay: RelayProcess) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{LOOPBACK}:{relay.port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def readiness(relay: RelayProcess) -> dict[str, str]:
    try:
        url = f"http://{LOOPBACK}:{relay.port}/readyz"
        with urllib.request.urlopen(url, timeout=5) as answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        body = error.read()
    except OSError:
        return {}
    told: dict[str, str] = json.loads(body)["dependencies"]
    return told


def test_three_relays_killed_again_and_again_lose_nothing_and_count_once(
    outbox: Outbox, broker: KafkaServer, log: Log, tmp_path: Path
) -> None:
    seed = 20_261
    schedule(outbox)
    game = Game(outbox, writers=4, events=2500, seed=seed)
    settings = {"BATCH_SIZE": "200"}
    relays = [
        RelayProcess(tmp_path, outbox, broker.bootstrap_servers, f"relay-{index}", settings)
        for index in range(3)
    ]
    chance = random.Random(seed)
    kills = cut_short = 0
    with contextlib.ExitStack() as stack:
        for relay in relays:
            stack.callback(relay.kill)
            relay.start()
        game.start()
        try:
            deadline = time.monotonic() + 90
            while kills < 8 or cut_short < 3:
                assert time.monotonic() < deadline, (kills, cut_short)
                time.sleep(chance.uniform(0.1, 0.4))
                one = chance.choice(relays)
                if not readiness(one):
                    continue
                one.kill()
                kills += 1
                cut_short += bool(unfinished(outbox, one.name))
                one.start()
        finally:
            game.join()
        wait_for(lambda: all_sent(outbox), 120)
        wait_for(lambda: all(map(readiness, relays)), 30)
        assert [relay.stop() for relay in relays] == [0, 0, 0]
    records = log.read()
    total = game.played.total() + TOURNAMENTS
    print(f"{kills} kills, {cut_short} of them in a batch; {total} events, {len(records)} records")
    assert total > 10_000
    assert_all_came(game, records, total)


def unfinished(outbox: Outbox, name: str) -> int:
    """Lanes whose batch a relay had numbered and not marked."""
    text = """SELECT count(*) FROM leaderboard_outbox_lanes l JOIN leaderboard_outbox_relays r
              ON l.owner = r.instance WHERE r.name = %s AND l.batch <> ''"""
    with psycopg.connect(outbox.url) as connection:
        found = connection.execute(text, (name,)).fetchone()
    assert found is not None
    return int(found[0])


def test_batch_that_was_produced_and_not_marked_goes_again_and_counts_once(
    outbox: Outbox, broker: KafkaServer, log: Log, tmp_path: Path
) -> None:
    """The database is held still after the turn, so that the kill falls between produce and mark:
    every event of the batch is in Kafka twice."""
    schedule(outbox)
    with outbox.engine.begin() as connection:
        for index in range(300):
            put(connection, scored(f"0-{index}", f"t{index % 3}", f"p{index % 7}"))
    outbox.execute(HOLD_MARKS)
    first = RelayProcess(tmp_path, outbox, broker.bootstrap_servers, "one")
    second = RelayProcess(tmp_path, outbox, broker.bootstrap_servers, "two")
    with contextlib.ExitStack() as stack:
        stack.callback(first.kill)
        stack.callback(second.kill)
        first.start()
        wait_for(lambda: len(log.read()) == 320, 60)
        assert outbox.count("sent_at_ms IS NOT NULL") == 0
        first.kill()
        # The database notices late that its client is gone (see `service.database`).
        outbox.execute(END_OTHERS)
        outbox.execute("DROP TRIGGER hold ON leaderboard_outbox")
        second.start()
        wait_for(lambda: all_sent(outbox), 60)
        assert second.stop() == 0
    records = log.read()
    assert Counter(Counter(decode_kafka(one).id for one in records).values()) == {2: 320}
    assert_numbers_go_up(records)
    boards = Boards(records)
    assert sum(boards.scores().values()) == 300
    assert boards.dispositions[Disposition.DUPLICATE] == 320


END_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
HOLD_MARKS = """
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_sleep(600); RETURN NEW; END $$;
CREATE TRIGGER hold BEFORE UPDATE ON leaderboard_outbox FOR EACH STATEMENT EXECUTE FUNCTION hold();
"""


def test_relay_that_was_stopped_for_longer_than_its_lease_does_no_harm(
    outbox: Outbox, broker: KafkaServer, log: Log, tmp_path: Path
) -> None:
    """SIGSTOP, and its lanes are another's; when it goes on it has old batches in its hands."""
    schedule(outbox)
    game = Game(outbox, writers=2, events=1000, seed=7)
    settings = {"BATCH_SIZE": "100"}
    paused = RelayProcess(tmp_path, outbox, broker.bootstrap_servers, "paused", settings)
    other = RelayProcess(tmp_path, outbox, broker.bootstrap_servers, "other", settings)
    with contextlib.ExitStack() as stack:
        stack.callback(paused.kill)
        stack.callback(other.kill)
        paused.start()
        game.start()
        wait_for(lambda: outbox.count("sent_at_ms IS NOT NULL") > 100, 60)
        os.kill(paused.process.pid, signal.SIGSTOP)
        other.start()
        game.join()
        wait_for(lambda: all_sent(outbox), 150)
        # Its lanes were taken: the other one has sent all there is.
        assert metrics(other)["leaderboard_relayed_events_total"] > 0
        os.kill(paused.process.pid, signal.SIGCONT)
        with outbox.engine.begin() as connection:
            put(connection, scored("9-last", "t0", "p0"))
        game.scores["t0", "p0"] += 1
        wait_for(lambda: all_sent(outbox), 150)
        paused.stop()
        other.stop()
    assert_all_came(game, log.read(), game.played.total() + TOURNAMENTS + 1)


def test_game_goes_on_while_kafka_is_away_and_all_arrives_afterwards(
    outbox: Outbox, broker: KafkaServer, log: Log, tmp_path: Path
) -> None:
    schedule(outbox)
    relay = RelayProcess(tmp_path, outbox, broker.bootstrap_servers, "one")
    with contextlib.ExitStack() as stack:
        stack.callback(relay.kill)
        relay.start()
        before = Game(outbox, writers=2, events=400, seed=1)
        before.start()
        before.join()
        wait_for(lambda: all_sent(outbox), 60)
        broker.process.kill()
        try:
            away = Game(outbox, writers=2, events=400, seed=2, first=2)
            away.start()
            away.join()
            wait_for(lambda: readiness(relay).get("kafka", "").startswith("Kafka is away"), 15)
            assert readiness(relay)["database"] == "ready"
            wait_for(lambda: metrics(relay)["leaderboard_outbox_waiting"] >= 700, 15)
            assert metrics(relay)["leaderboard_outbox_oldest_seconds"] > 0
            # It ends when it is asked to, whoever is away; the next one finds what it had.
            assert relay.stop() == 0
            relay.start()
        finally:
            broker.start()
        wait_for(lambda: all_sent(outbox), 60)
        assert relay.stop() == 0
    # The platform's transactions do not know: they take as long as they did, and no longer than
    # a commit takes on a machine with other work to do.
    middle = [sorted(game.seconds)[len(game.seconds) // 2] for game in (before, away)]
    assert middle[1] < max(3 * middle[0], 0.02)
    assert sorted(away.seconds)[int(len(away.seconds) * 0.99)] < 1
    before.scores.update(away.scores)
    before.order.update(away.order)
    total = before.played.total() + away.played.total() + TOURNAMENTS
    assert_all_came(before, log.read(), total)


def test_record_that_kafka_refuses_is_overtaken_by_nothing(
    outbox: Outbox, broker: KafkaServer, log: Log, tmp_path: Path
) -> None:
    """What follows in the same tournament waits: with a higher number it would make the board
    take the refused one for a duplicate. Other tournaments go on."""
    schedule(outbox)
    relay = RelayProcess(tmp_path, outbox, broker.bootstrap_servers, "one")
    with contextlib.ExitStack() as stack:
        stack.callback(relay.kill)
        stack.callback(limit_records, broker, 4 * 1024 * 1024)
        relay.start()
        wait_for(lambda: all_sent(outbox), 60)
        # Each of the large ones is refused, what comes behind them is not.
        limit_records(broker, 20_000)
        with psycopg.connect(outbox.url) as connection:
            for index in range(42):
                put(connection, large(f"1-{index}"))
            for index in range(20):
                put(connection, scored(f"2-{index}", "t0", "p1"))
        wait_for(lambda: "MSG_SIZE" in relay.log() or "too large" in relay.log(), 30)
        with psycopg.connect(outbox.url) as connection:
            for index in range(1, TOURNAMENTS):
                put(connection, scored(f"3-{index}", f"t{index}", "p1"))
        # Lanes that are in the same round as the refused record are tried again with it.
        wait_for(lambda: came(log, "3-") == TOURNAMENTS - 1, 60)
        assert came(log, "1-") == came(log, "2-") == 0
        limit_records(broker, 4 * 1024 * 1024)
        wait_for(lambda: all_sent(outbox), 60)
        assert metrics(relay)['leaderboard_retries_total{function="relay"}'] > 0
        assert relay.stop() == 0
    records = log.read()
    assert_numbers_go_up(records)
    assert Boards(records).scores()["t0", "p1"] == 62


def large(event_id: str) -> ev.Event:
    """An event of 25 kB."""
    event = scored(event_id, "t0", "p1")
    return event._replace(data=event.data.model_copy(update={"note": "n" * 25_000}))


def came(log: Log, start: str) -> int:
    return len({event.id for event in map(decode_kafka, log.read()) if event.id.startswith(start)})


def limit_records(broker: KafkaServer, size: int) -> None:
    """How large a record of `wagers` may be."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    entry = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, ev.WAGERS, incremental_configs=[entry])
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(10)


def test_relay_waits_for_a_database_that_is_away(
    broker: KafkaServer, log: Log, tmp_path: Path
) -> None:
    from leaderboard.stack.postgres import PostgresServer

    server = PostgresServer(tmp_path / "postgres")
    server.start()
    outbox = Outbox(server.url)
    relay = RelayProcess(tmp_path, outbox, broker.bootstrap_servers, "one")
    try:
        schedule(outbox)
        server.process.kill()
        relay.start()
        wait_for(lambda: readiness(relay).get("database") == "OperationalError", 30)
        assert readiness(relay)["kafka"] == "ready"
        server.start()
        wait_for(lambda: len(log.read()) == TOURNAMENTS, 60)
        os.kill(server.pid, signal.SIGKILL)
        server.process.kill()
        server.start()
        with psycopg.connect(server.url) as connection:
            put(connection, scored("0-1", "t1", "p1"))
        wait_for(lambda: len(first_seen(log.read())) == TOURNAMENTS + 1, 60)
        assert metrics(relay)['leaderboard_retries_total{function="relay"}'] > 0
        assert relay.stop() == 0
    finally:
        relay.kill()
        outbox.close()
        server.stop()
    assert_numbers_go_up(log.read())


def test_row_that_cannot_be_encoded_is_shown_and_blocks_nobody(
    outbox: Outbox, broker: KafkaServer, log: Log, tmp_path: Path
) -> None:
    schedule(outbox)
    with outbox.engine.begin() as connection:
        for name in ("0-1", "bad", "0-2"):
            put(connection, scored(name, "t1", "p1"))
    outbox.execute("UPDATE leaderboard_outbox SET data = 'no json' WHERE event_id = 'bad'")
    relay = RelayProcess(tmp_path, outbox, broker.bootstrap_servers, "one")
    try:
        relay.start()
        wait_for(lambda: all_sent(outbox), 60)
        wait_for(lambda: metrics(relay)["leaderboard_outbox_refused"] == 1, 15)
        shown = command(["outbox", "list"], tmp_path, {"DATABASE_URL": outbox.url})
        assert "not_json" in shown.stdout
        assert "0 waiting; 1 refused" in shown.stdout
    finally:
        relay.stop()
    ids = [decode_kafka(one).id for one in log.read()]
    assert [name for name in ids if "scheduled" not in name] == ["0-1", "0-2"]


def test_relay_on_sqlite_beside_writers(broker: KafkaServer, log: Log, tmp_path: Path) -> None:
    import sqlite3

    with fresh_sqlite(tmp_path) as outbox:
        relay = RelayProcess(tmp_path, outbox, broker.bootstrap_servers, "one")
        try:
            relay.start()
            connection = sqlite3.connect(outbox.url.removeprefix("sqlite:///"), timeout=10)
            put(connection, scheduled("t1"))
            for index in range(300):
                put(connection, scored(f"0-{index}", "t1", f"p{index % 5}"))
                connection.commit()
                if index == 150:
                    relay.kill()
                    relay.start()
            connection.close()
            wait_for(lambda: all_sent(outbox), 60)
        finally:
            relay.stop()
    records = log.read()
    assert [event.id for event in first_seen(records)][1:] == [f"0-{i}" for i in range(300)]
    assert_numbers_go_up(records)
    assert sum(Boards(records).scores().values()) == 300


def test_numbers_can_be_left_out(
    outbox: Outbox, broker: KafkaServer, log: Log, tmp_path: Path
) -> None:
    schedule(outbox)
    relay = RelayProcess(
        tmp_path, outbox, broker.bootstrap_servers, "one", {"RELAY_NUMBERS": "off"}
    )
    try:
        relay.start()
        wait_for(lambda: all_sent(outbox), 60)
    finally:
        relay.stop()
    came = {(one.key, one.value, one.headers) for one in log.read()}
    sent = (encode_kafka(scheduled(f"t{index}"), ev.WAGERS) for index in range(TOURNAMENTS))
    assert came == {(one.key, one.value, one.headers) for one in sent}


def test_second_relay_of_a_name_ends_with_a_clear_error(
    outbox: Outbox, broker: KafkaServer, tmp_path: Path
) -> None:
    relay = RelayProcess(tmp_path, outbox, broker.bootstrap_servers, "one")
    try:
        relay.start()
        wait_for(lambda: readiness(relay).get("database") == "ready", 30)
        settings = {
            "DATABASE_URL": outbox.url,
            "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "RELAY_LEASE_SECONDS": "1",
            "HOST": LOOPBACK,
        }
        wait_for(lambda: bool(named(outbox)), 30)
        done = command(["relay", "--name", "one"], tmp_path, {**settings, "PORT": "0"})
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == (
            "error: a relay named 'one' is running: give this one another name (RELAY_NAME)"
        )
        assert relay.process.is_running()
        # One that was killed holds its name for its lease, then the next one has it.
        relay.kill()
        relay.start()
        wait_for(lambda: readiness(relay).get("database") == "ready", 30)
    finally:
        relay.stop()


def named(outbox: Outbox) -> list[str]:
    with psycopg.connect(outbox.url) as connection:
        found = connection.execute("SELECT name FROM leaderboard_outbox_relays").fetchall()
    return [row[0] for row in found]


def test_settings_that_are_wrong_stop_the_start_by_name() -> None:
    done = run_relay({"RELAY_LEASE_SECONDS": "0"})
    assert done.returncode == 2
    assert done.stderr.startswith("error: RELAY_LEASE_SECONDS: ")


def test_players_are_named_nowhere_in_the_log_of_a_relay(
    outbox: Outbox, broker: KafkaServer, tmp_path: Path
) -> None:
    with outbox.engine.begin() as connection:
        put(connection, scored("0-1", "t1", "somebody-special"))
    outbox.execute("UPDATE leaderboard_outbox SET time = 'x'")
    relay = RelayProcess(tmp_path, outbox, broker.bootstrap_servers, "one")
    try:
        relay.start()
        wait_for(lambda: outbox.count("refused IS NOT NULL") == 1, 60)
    finally:
        relay.stop()
    assert "somebody-special" not in relay.log()
    assert SOURCE not in relay.log()
    assert PlayerId("somebody-special") not in outbox.rows("refused")[0]["refused"]
