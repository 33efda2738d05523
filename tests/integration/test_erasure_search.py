"""A player who played, connected, was refused, was exported and erased is looked for everywhere.

Over a whole local stack of its own: every key of Redis, every column of every table, every record
of every topic, what the gateway keeps, every function's metrics, and every file that the stack has
written: logs, traces, stores. It finds what `docs/privacy.md` says is kept, and nothing else. The
same search finds each place that a broken copy of the product leaves out."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Final
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from confluent_kafka.admin import AdminClient

from leaderboard import events as ev
from running import StackCommand, wait_for
from sockets import Players
from whole_path import Path, Socket, event, schedule, unique, wager

PRIVACY: Final = FilePath(__file__).parents[2] / "docs/privacy.md"
KEPT_TITLE: Final = "## What is kept after an erasure"
STORES: Final = ("kafka", "postgres", "redis")
BREAKS: Final = FilePath(__file__).parent / "broken_erasure.py"


def kept_by_the_docs() -> set[str]:
    """The places in the first column of the table, each with why and for how long."""
    text = PRIVACY.read_text("utf-8").partition(KEPT_TITLE)[2].partition("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for row in rows:
        assert len([cell for cell in row.strip("|").split("|") if cell.strip()]) == 4, row
    return {place for row in rows for place in re.findall(r"`([^`]+)`", row.split("|")[1])}


@contextmanager
def stack(
    folder: FilePath, players: Players, settings: dict[str, str] | None = None
) -> Iterator[Path]:
    command = StackCommand(folder, ["stack", "--free-ports", "--traces"], settings)
    command.start()
    path = Path(command, players)
    try:
        yield path
    finally:
        path.close()
        command.stop()


@dataclass(frozen=True)
class Player:
    """Somebody whose every trace can be told from all others'."""

    player_id: str = field(default_factory=lambda: unique("Zq"))
    name: str = field(default_factory=lambda: unique("Nm"))
    agent: str = field(default_factory=lambda: unique("Ua"))

    def traces(self) -> tuple[bytes, ...]:
        return tuple(one.encode() for one in (self.player_id, self.name, self.agent))


class Life:
    """What the player does, up to the erasure and after it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.player = Player()
        self.live, self.past = unique("live"), unique("past")
        self.bob = unique("bob")

    def played(self) -> None:
        """On a board that goes on and one that ends, over a socket, and in events that are bad."""
        path, who = self.path, self.player.player_id
        for name in (self.live, self.past):
            join = ev.PlayerJoined(tournament_id=name, player_id=who, display_name=self.player.name)
            last = path.publish(
                [
                    schedule(name),
                    event(join, event_id=f"{who}-joins-{name}"),
                    wager(name, self.bob, 500),
                    _traced(wager(name, who, 900, event_id=f"{who}-1", round_id=f"{who}-r1")),
                    wager(name, who, 50, event_id=f"{who}-2-{name}", note=self.player.name),
                    wager(name, self.bob, 100),
                ]
            )[-1]
            path.reached(name, last.offset)
        socket = self.socket(who, self.live)
        wait_for(lambda: bool(socket.of_type("top")), 20)
        self.refused("before")
        self.suspected()
        over = ev.TournamentEnded(tournament_id=self.past, decided_by="operator")
        ended = path.publish([event(over)])[-1]
        path.reached(self.past, ended.offset)
        assert self.player.name in str(self.last_frame(self.past)), "a frame that the gateway keeps"
        wait_for(lambda: len(self.exported("refused_event")) == 2, 30)
        wait_for(lambda: len(self.exported("event")) == 6, 30)
        wait_for(lambda: len(self.exported("connection_attempt")) >= 1, 30)
        wait_for(lambda: len(self.exported("fraud_alert")) == 2, 30)
        assert self.player.name in str(self.exported("fraud_alert"))
        assert self.player.name in str(self.exported("tournament"))
        assert self.player.agent in str(self.exported("connection_attempt"))

    def suspected(self) -> None:
        """Of fraud, and named beside somebody else; an operator had something to say about it."""
        who, note = self.player.player_id, {"note": self.player.name}
        alerts = [
            ev.FraudSuspected(tournament_id=self.live, player_id=who, rule="own", evidence=note),
            ev.FraudSuspected(
                tournament_id=self.live,
                player_id=self.bob,
                rule="other",
                evidence={"with_player_id": who, **note},
            ),
        ]
        names = [f"{self.live}/7/{one.rule}" for one in alerts]
        reviews = [
            ev.FraudReviewed(
                tournament_id=self.live,
                alert_id=name,
                decision="dismissed",
                decided_by="operator",
                reason=f"{who} called",
            )
            for name in names
        ]
        told = [event(one, event_id=name) for one, name in zip(alerts, names, strict=True)]
        self.path.publish([*told, *map(event, reviews)], ev.FRAUD_ALERTS)

    def refused(self, when: str) -> None:
        """Events that can never work, with the player in value, subject and key."""
        who, key = self.player.player_id, self.live.encode()
        value = f'{{"player_id": "{who}", "stake_minor": -1, "note": "{self.player.name}"}}'
        kind = (("ce_specversion", b"1.0"), ("ce_type", b"io.leaderboard.wager.placed.v1"))
        own = (("ce_id", f"{who}-{when}".encode()), ("ce_source", b"/t"))
        told = ("ce_time", b"2026-01-01T00:00:00Z"), ("content-type", b"application/json")
        subject = ("ce_subject", who.encode())
        headers = (*kind, *own, *told, subject)
        records = [
            ev.Record(ev.WAGERS, key, value.encode(), headers),
            ev.Record(ev.WAGERS, key, b"no json of " + who.encode(), headers),
        ]
        self.path.send(records)

    def socket(self, player_id: str, tournament_id: str) -> Socket:
        is_own = player_id == self.player.player_id
        agent = {"User-Agent": self.player.agent if is_own else "other"}
        answer = self.path.http.post(
            f"{self.path.settings['CONNECT_URL']}/v1/tournaments/{tournament_id}/connections",
            headers={**self.path.headers("player", player_id), **agent},
        )
        assert answer.status_code == 201, answer.text
        return Socket(self.path.players.connect(answer.json()["url"], agent))

    def last_frame(self, tournament_id: str) -> dict[str, Any]:
        """What the gateway has for a newcomer."""
        socket = self.socket(self.bob, tournament_id)
        try:
            wait_for(lambda: bool(socket.of_type("top")), 20)
            frames = socket.of_type("top")
            return dict(frames[0])
        finally:
            socket.close()

    def exported(self, kind: str) -> list[Any]:
        things, after = [], ""
        while True:
            answer = self.path.get(
                f"/v1/players/{self.player.player_id}/export?limit=500{after}",
                role="player",
                subject=self.player.player_id,
            )
            told = answer.raise_for_status().json()
            things += [one for one in told["things"] if one["kind"] == kind]
            if told["next"] is None:
                return things
            after = f"&after={told['next']}"

    def erased(self, seconds: float = 60) -> None:
        path, url = self.path, f"{self.path.settings['ERASE_URL']}/v1/erasures"
        operator = path.headers("operator")
        asked = path.http.post(url, json={"player_id": self.player.player_id}, headers=operator)
        erasure_id = asked.raise_for_status().json()["erasure_id"]

        def is_done() -> bool:
            told = path.http.get(f"{url}/{erasure_id}", headers=operator).raise_for_status()
            return bool(told.json()["state"] == "done")

        wait_for(is_done, seconds)

    def came_late(self) -> None:
        """What is on its way when a player is forgotten comes all the same."""
        path, who = self.path, self.player.player_id
        late = [wager(name, who, 7, event_id=f"{who}-3-{name}") for name in (self.live, self.past)]
        other = [wager(self.live, self.bob, 1)]
        last = path.publish([*late, *other])[-1]
        path.reached(self.live, last.offset)
        self.refused("after")
        assert path.ticket(self.live, who).status_code == 403
        ends = {topic: path.ends(topic) for topic in (ev.WAGERS, "wagers-dlq", ev.CONNECTIONS)}
        # Letters are buried by a consumer that may still be at it: those of others prove it is not.
        wait_for(lambda: len(path.dead_letters(self.live)) == 4, 30)
        ends["wagers-dlq"] = path.ends("wagers-dlq")
        wait_for(lambda: _is_recorded(path, ends), 30)
        assert [row["player_id"] for row in path.standings(self.live)] == [self.bob]


def _traced(one: ev.Event) -> ev.Event:
    return one._replace(traceparent=f"00-{uuid.uuid4().hex}-{uuid.uuid4().hex[:16]}-01")


def _is_recorded(path: Path, ends: dict[str, dict[int, int]]) -> bool:
    """Whether the record has read so far."""
    with psycopg.connect(_database(path)) as connection:
        rows = connection.execute("SELECT topic, log_partition, next_offset FROM log_positions")
        reached = {(topic, number): offset for topic, number, offset in rows}
    return all(
        reached.get((topic, number), 0) >= end
        for topic, partitions in ends.items()
        for number, end in partitions.items()
        if end
    )


def _database(path: Path) -> str:
    return path.settings["DATABASE_URL"].replace("postgresql+psycopg://", "postgresql://")


# --- the search ----------------------------------------------------------------------------------


class Search:
    """Where any of the traces is, as places with what was found there."""

    def __init__(self, path: Path, traces: Sequence[bytes]) -> None:
        self.path, self.traces = path, traces
        self.found: dict[str, list[str]] = {}
        self.looked_at: dict[str, int] = {}

    def look(self, place: str, raw: Iterable[bytes | str | None]) -> None:
        for one in raw:
            self.looked_at[place] = self.looked_at.get(place, 0) + 1
            text = one.encode() if isinstance(one, str) else one or b""
            if any(trace in text for trace in self.traces):
                self.found.setdefault(place, []).append(repr(text[:200]))

    def everywhere(self) -> Search:
        self.redis()
        self.sql()
        self.kafka()
        self.metrics()
        self.files()
        return self

    def redis(self) -> None:
        client = redis.Redis.from_url(self.path.settings["REDIS_URL"])
        for key in client.scan_iter(count=1000):
            place = "redis:" + re.sub(r"\{[^}]*\}", "{t}", key.decode("utf-8", "replace"))
            place = re.sub(r"(er-|ticket:)[0-9a-f]+", r"\1…", place)
            self.look(place, [key, *_values(client, key)])

    def sql(self) -> None:
        with psycopg.connect(_database(self.path)) as connection:
            names = connection.execute(
                "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE c.relkind IN ('r', 'm') AND n.nspname NOT IN "
                "('pg_catalog', 'information_schema', 'pg_toast')"
            ).fetchall()
            for (name,) in names:
                table = psycopg.sql.Identifier(name)
                query = psycopg.sql.SQL("SELECT * FROM {}").format(table)
                for row in connection.execute(query):
                    place = "sql:" + re.sub(r"_\d{6}$", "", name)
                    self.look(place, [v if isinstance(v, bytes) else str(v) for v in row])

    def kafka(self) -> None:
        servers = self.path.settings["KAFKA_BOOTSTRAP_SERVERS"]
        for topic in AdminClient({"bootstrap.servers": servers}).list_topics(timeout=10).topics:
            for one in self.path.consumed(topic, lambda record: True):
                headers = [part for pair in one.headers for part in pair]
                self.look(f"kafka:{topic}", [one.key, one.value, *headers])

    def metrics(self) -> None:
        for name, url in self.path.settings.items():
            if re.fullmatch(r"[A-Z_]+_URL", name) and url.startswith("http"):
                base = f"{urlsplit(url).scheme}://{urlsplit(url).netloc}"
                answer = self.path.http.get(f"{base}/metrics")
                if answer.status_code == 200:
                    self.look(f"metrics:{name}", [answer.text])

    def files(self) -> None:
        folder = self.path.stack.folder
        for file in sorted(folder.rglob("*")):
            if not file.is_file() or file.is_symlink():
                continue
            name = file.relative_to(folder).as_posix().removeprefix(".stack/")
            parts = name.split("/")
            is_store = len(parts) > 2 and parts[0] == "data" and parts[1] in STORES
            # Also where it is empty: it was looked at.
            place = "file:" + ("/".join(parts[:2]) if is_store else name)
            self.look(place, [b"", *_pieces(file)])


def _values(client: Any, key: bytes) -> Iterable[bytes]:
    match client.type(key):
        case b"string":
            return [client.get(key) or b""]
        case b"hash":
            return [part for pair in client.hgetall(key).items() for part in pair]
        case b"zset":
            return list(client.zrange(key, 0, -1))
        case b"set":
            return list(client.smembers(key))
        case b"list":
            return list(client.lrange(key, 0, -1))
        case b"stream":
            return [repr(client.xrange(key)).encode()]
        case kind:
            raise AssertionError(f"{key!r} is a {kind!r}: how is it looked through?")


def _pieces(file: FilePath) -> Iterator[bytes]:
    """A file's content, in pieces that overlap."""
    before = b""
    try:
        with file.open("rb") as opened:
            while piece := opened.read(8 * 1024 * 1024):
                yield before + piece
                before = piece[-64:]
    except FileNotFoundError:  # a store's own, done with meanwhile
        return


# --- tests ---------------------------------------------------------------------------------------


@pytest.mark.timeout(400)
def test_search_finds_what_the_docs_say_is_kept_and_nothing_else(
    tmp_path: FilePath, players: Players, record_property: Callable[[str, object], None]
) -> None:
    with stack(tmp_path, players) as path:
        life = Life(path)
        life.played()
        before = Search(path, life.player.traces()).everywhere()
        kept = kept_by_the_docs()
        assert before.found.keys() > kept - {"kafka:gdpr-events"}, "the search sees what there is"
        rows = ("players", "inputs", "connection_attempts", "fraud_alerts", "fraud_reviews")
        for place in ("redis:{t}:", "redis:{t}:watch", *(f"sql:{one}" for one in rows)):
            assert any(one.startswith(place) for one in before.found), place
        life.erased()
        # Also while nothing comes that would push it out.
        wait_for(lambda: not in_redis(path, life), 20)
        life.came_late()
        # Appended to until it is written anew, which a store does by itself when it has grown.
        redis.Redis.from_url(path.settings["REDIS_URL"]).bgrewriteaof()
        time.sleep(1)
        after = Search(path, life.player.traces()).everywhere()
        record_property("tried", len(after.looked_at))
        unexpected = {p: told[:3] for p, told in after.found.items() if p not in kept}
        assert not unexpected
        frame = str(life.last_frame(life.past))
        assert "erased-" in frame
        assert not any(one.decode() in frame for one in life.player.traces())
        assert life.exported("event") == []
        assert after.looked_at.keys() >= before.looked_at.keys() - before.found.keys()
        # What is said to be kept is: else the docs say too much.
        assert kept - after.found.keys() <= {"file:data/redis"}
        traces = (path.stack.folder / ".stack/data/traces.jsonl").read_text("utf-8")
        assert "spanId" in traces, "there is something to look through"
    _check_looked_at(after)


def in_redis(path: Path, life: Life) -> dict[str, list[str]]:
    search = Search(path, life.player.traces())
    search.redis()
    return search.found


def _check_looked_at(search: Search) -> None:
    """No kind of place was left out."""
    kinds = {place.partition(":")[0] for place in search.looked_at}
    assert kinds == {"redis", "sql", "kafka", "metrics", "file"}
    topics = {place for place in search.looked_at if place.startswith("kafka:")}
    assert topics >= {
        f"kafka:{one}" for one in ("wagers", "gdpr-events", "connections", "fraud-alerts")
    }
    files = {place for place in search.looked_at if place.startswith("file:")}
    logs = ("archive-1", "erase-1", "gateway", "kafka", "on-wager-1", "postgres", "query-1")
    assert files >= {*(f"file:logs/{name}.log" for name in logs), "file:data/traces.jsonl"}
    assert sum(place.startswith("metrics:") for place in search.looked_at) >= 8


BROKEN: Final = {
    "beside": {"sql:connection_attempts", "sql:dead_letters"},
    "alerts": {"sql:fraud_alerts", "sql:fraud_reviews"},
    "watch": {"redis:{t}:watch"},
    "lease": {"redis:{t}:sockets"},
    "request": {"sql:erasure_requests"},
    "log": {"file:logs/erase-1.log"},
}
"""What a copy of the product leaves out (`broken_erasure.py`), and where it shows."""


@pytest.mark.timeout(400)
def test_search_finds_each_place_that_a_broken_copy_leaves_out(
    tmp_path: FilePath, players: Players
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(BREAKS.read_text("utf-8"))
    (broken / "broken.txt").write_text(" ".join([*BROKEN, "frame"]))
    settings = {"PYTHONPATH": str(broken)}
    folder = tmp_path / "stack"
    folder.mkdir()
    with stack(folder, players, settings) as path:
        life = Life(path)
        life.played()
        life.erased()
        found = Search(path, life.player.traces()).everywhere().found.keys()
        frame = str(life.last_frame(life.past))
    for name, places in BROKEN.items():
        assert places <= found, name
    assert life.player.name in frame, "frame"
