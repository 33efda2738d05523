"""The load of one trial: wagers of several sources, by every way in, while somebody watches.

Everything is drawn from one seed. What was acknowledged is kept, and what was refused or cut."""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import httpx
import psycopg
from confluent_kafka import Producer

from faults.scene import Scene
from leaderboard import events as ev
from leaderboard.codec import encode_http, encode_kafka
from leaderboard.events import Record
from leaderboard.producer.outbox import put
from whole_path import schedule

PLAYERS: Final = 300
ZIPF: Final = 1.1
REPEATS: Final = 0.01
CHUNK: Final = 40
CHUNK_SECONDS: Final = 0.05
TOURNAMENTS: Final = 6
LASTS_SECONDS: Final = 1_800
ATTEMPT_SECONDS: Final = 2.0
OPERATOR_SECONDS: Final = 4.0
RULES: Final = (
    {"scoring": {"kind": "stake"}, "currency": "EUR"},
    {"scoring": {"kind": "submitted"}, "operator": "best"},
    {"scoring": {"kind": "count"}, "currency": "EUR"},
    {"scoring": {"kind": "submitted"}, "operator": "last", "order": "ascending"},
    {"scoring": {"kind": "stake"}, "currency": "EUR"},
    {"scoring": {"kind": "multiplier"}, "operator": "best", "currency": "EUR"},
)
UNNUMBERED, NUMBERED, OUTBOX, HTTP, ASTRAY = (
    "/games/eu", "/games/us", "/games/outbox", "/games/http", "/games/astray",
)  # fmt: skip
"""ASTRAY is the producer whose clock is wrong by an hour, when that is the fault."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An answer of `query`, to be held against the log afterwards."""

    tournament_id: str
    source: str
    sequence: int
    standings: tuple[tuple[int, str, int], ...]


class Play:
    """Six tournaments and their wagers, from `start` to `finish`."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene = scene
        self.seed = seed
        self.prefix = f"f{uuid.uuid4().hex[:8]}"
        self.tournaments = [f"{self.prefix}-{number}" for number in range(TOURNAMENTS)]
        self.acknowledged: dict[tuple[str, str], str] = {}
        """Events that somebody promised to keep, and who."""
        self.placed: dict[str, int] = dict.fromkeys(self.tournaments, -1)
        """The last offset of each tournament that Kafka has acknowledged."""
        self.counts: Counter[str] = Counter()
        """sent, acked, and who refused what."""
        self.samples: list[Sample] = []
        self.erased: list[str] = []
        self.clock_error_ms = 0
        self._weights = list(itertools.accumulate(1 / rank**ZIPF for rank in range(1, PLAYERS + 1)))
        self._ids = itertools.count()
        self._numbers: Counter[str] = Counter()
        self._recent: list[Record] = []
        self._stopping = threading.Event()
        self._failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._producer = Producer(
            {
                "bootstrap.servers": scene.settings["KAFKA_BOOTSTRAP_SERVERS"],
                "partitioner": "murmur2_random",
                "enable.idempotence": True,
                "linger.ms": 1,
                "message.timeout.ms": 90_000,
                "reconnect.backoff.max.ms": 200,
                "log_level": 0,
            }
        )

    # from beginning to end

    def schedule(self) -> None:
        """The tournaments, acknowledged."""
        for name, rules in zip(self.tournaments, RULES, strict=True):
            data = schedule(name, lasts=LASTS_SECONDS, rules=rules, floor=self.scene.floor)
            self._produce(encode_kafka(data, ev.WAGERS))
        assert self._producer.flush(30) == 0

    def start(self) -> None:
        for number, work in enumerate(
            (self._by_kafka, self._by_http, self._by_outbox, self._ask, self._knock)
        ):
            thread = threading.Thread(
                target=self._guarded, args=(work, random.Random(self.seed * 10 + number))
            )
            self._threads.append(thread)
            thread.start()

    def finish(self) -> None:
        """No more wagers; what was begun is brought to its end."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        assert not self._failures, self._failures
        assert self._producer.flush(60) == 0, "Kafka did not take what it was sent"

    def end(self) -> None:
        """The tournaments are over: nobody has to look after them any more."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        for name in self.tournaments:
            data = ev.TournamentEnded(tournament_id=name, decided_by="faults")
            self._produce(encode_kafka(self._event("/faults", data), ev.WAGERS))
        self._producer.flush(30)

    def _guarded(self, work: Callable[[random.Random], None], chance: random.Random) -> None:
        try:
            work(chance)
        except BaseException as error:  # noqa: BLE001 - raised again by finish
            self._failures.append(error)

    # events

    def _event(self, source: str, data: ev.Data, number: int | None = None) -> ev.Event:
        with self._lock:
            event_id = f"{self.prefix}-{next(self._ids)}"
        time_ms = int(time.time() * 1000)
        if source == ASTRAY:
            time_ms += self.clock_error_ms
        player: str | None = getattr(data, "player_id", None)
        return ev.Event(event_id, source, time_ms, data, subject=player, sequence=number)

    def player(self, chance: random.Random) -> str:
        (index,) = chance.choices(range(PLAYERS), cum_weights=self._weights)
        return f"p{index:03d}"

    def _play(self, chance: random.Random, name: str) -> ev.Data:
        player = self.player(chance)
        if RULES[self.tournaments.index(name)]["scoring"] == {"kind": "submitted"}:
            return ev.ScoreSubmitted(
                tournament_id=name, player_id=player, score=chance.randint(-999, 999)
            )
        stake = int(chance.lognormvariate(5, 1)) + 1
        win = int(stake * chance.expovariate(1 / 3)) if chance.random() < 0.3 else 0
        return ev.WagerPlaced(
            tournament_id=name,
            player_id=player,
            game_id="g1",
            stake_minor=stake,
            win_minor=win,
            currency="EUR",
        )

    def _record(self, chance: random.Random) -> Record:
        """What comes next from Kafka's own producers."""
        name, roll = chance.choice(self.tournaments), chance.random()
        if roll < REPEATS and self._recent:
            self.counts["repeats"] += 1
            return chance.choice(self._recent)
        data: ev.Data
        if roll < 0.02:
            data = ev.PlayerJoined(
                tournament_id=name, player_id=self.player(chance), display_name="N"
            )
        elif roll < 0.021:
            data = ev.PlayerDisqualified(
                tournament_id=name, player_id=self.player(chance), reason="r", decided_by="op"
            )
        elif roll < 0.023:
            data = ev.ScoreAdjusted(
                tournament_id=name,
                player_id=self.player(chance),
                delta=chance.randint(-50, 50),
                reason="r",
                decided_by="op",
            )
        elif roll < 0.025:
            # More than a score may be: refused by the rows, not by the codec.
            whale = ev.ScoreAdjusted(
                tournament_id=name,
                player_id="whale",
                delta=2**53 - 1,
                reason="r",
                decided_by="op",
            )
            first = encode_kafka(self._event(UNNUMBERED, whale), ev.WAGERS)
            self._produce(first)
            data = whale
        elif roll < 0.027:
            return Record(ev.WAGERS, name.encode(), b"{no json", ())
        else:
            data = self._play(chance, name)
        if self.clock_error_ms and chance.random() < 0.2:
            return encode_kafka(self._event(ASTRAY, data), ev.WAGERS)
        if chance.random() < 0.4:
            self._numbers[name] += 1
            event = self._event(NUMBERED, data, self._numbers[name])
        else:
            event = self._event(UNNUMBERED, data)
        return encode_kafka(event, ev.WAGERS)

    # ways in

    def _by_kafka(self, chance: random.Random) -> None:
        while not self._stopping.is_set():
            for _ in range(CHUNK):
                record = self._record(chance)
                self._produce(record)
                self._recent = [*self._recent[-500:], record]
            self._producer.poll(0)
            spent = self.counts["sent"] > self.scene.most_events
            self._stopping.wait(0.5 if spent else CHUNK_SECONDS)
            self._producer.poll(0)

    def _produce(self, record: Record) -> None:
        headers = dict(record.headers)
        source, event_id = headers.get("ce_source"), headers.get("ce_id")

        def delivered(error: Any, message: Any) -> None:
            if error is not None:
                self.counts["failed"] += 1
                return
            self.counts["acked"] += 1
            name = record.key.decode() if record.key else ""
            with self._lock:
                self.placed[name] = max(self.placed.get(name, -1), message.offset())
                if source is not None and event_id is not None:
                    self.acknowledged[source.decode(), event_id.decode()] = "kafka"

        self.counts["sent"] += 1
        self._producer.produce(
            record.topic,
            key=record.key,
            value=record.value,
            headers=list(record.headers),
            on_delivery=delivered,
        )

    def _by_http(self, chance: random.Random) -> None:
        """A producer that repeats what was not taken, with the same id."""
        headers = self.scene.path.headers("service", "game")
        with httpx.Client(timeout=ATTEMPT_SECONDS) as client:
            while not self._stopping.wait(0.1):
                name = chance.choice(self.tournaments)
                event = self._event(HTTP, self._play(chance, name))
                told, body = encode_http(event)

                def post(told: Any = told, body: bytes = body) -> int:
                    url = f"{self.scene.settings['ON_WAGER_URL']}/"
                    return client.post(url, content=body, headers={**told, **headers}).status_code

                if self.insistent(post, "on-wager-http") == 202:
                    with self._lock:
                        self.acknowledged[event.source, event.id] = "on-wager-http"

    def insistent(self, ask: Callable[[], int], who: str) -> int:
        """Ask until the answer is no 5xx and no 429; every other one is counted as refused."""
        deadline = time.monotonic() + 60
        while True:
            try:
                status = ask()
            except httpx.HTTPError:
                status = 503
            # 422: a tournament that a store which is being rebuilt does not know yet.
            if status < 500 and status not in (404, 422, 429):
                return status
            self.counts[who] += 1
            if time.monotonic() > deadline:
                raise AssertionError(f"{who} answers {status} for a minute")
            time.sleep(0.1)

    def _by_outbox(self, chance: random.Random) -> None:
        """A game platform: ten events a transaction, made again when its database went away."""
        connection: psycopg.Connection | None = None
        while not self._stopping.wait(0.1):
            names = [chance.choice(self.tournaments) for _ in range(10)]
            events = [self._event(OUTBOX, self._play(chance, name)) for name in names]
            deadline = time.monotonic() + 60
            while True:
                try:
                    if connection is None:
                        connection = psycopg.connect(self.scene.outbox_url, connect_timeout=2)
                    for event in events:
                        put(connection, event)
                    connection.commit()
                    break
                except psycopg.Error:
                    if connection is not None:
                        connection.close()
                    connection = None
                    self.counts["outbox"] += 1
                    assert time.monotonic() < deadline, "the game's database stays away"
                    time.sleep(0.1)
            with self._lock:
                for event in events:
                    self.acknowledged[event.source, event.id] = "outbox"
        if connection is not None:
            connection.close()

    # who only looks

    def _ask(self, chance: random.Random) -> None:
        """A reader of boards; its answers are held against the log in the end."""
        headers = self.scene.path.headers("operator")
        with httpx.Client(timeout=ATTEMPT_SECONDS) as client:
            while not self._stopping.wait(0.1):
                name = chance.choice(self.tournaments)
                url = f"{self.scene.settings['QUERY_URL']}/v1/tournaments/{name}/standings?limit=10"
                try:
                    answer = client.get(url, headers=headers)
                except httpx.HTTPError:
                    self.counts["query"] += 1
                    continue
                if answer.status_code != 200:
                    self.counts["query"] += 1
                    continue
                told = answer.json()
                self.counts[f"read from {told['source']}"] += 1
                rows = tuple((r["rank"], r["player_id"], r["score"]) for r in told["standings"])
                self.samples.append(Sample(name, told["source"], told["sequence"], rows))

    def _knock(self, chance: random.Random) -> None:
        """Players who ask for a way in; they do not come in."""
        with httpx.Client(timeout=ATTEMPT_SECONDS) as client:
            while not self._stopping.wait(0.3):
                name, player = chance.choice(self.tournaments), "passing"
                url = f"{self.scene.settings['CONNECT_URL']}/v1/tournaments/{name}/connections"
                try:
                    answer = client.post(url, headers=self.scene.path.headers("player", player))
                    refused = answer.status_code != 201
                except httpx.HTTPError:
                    refused = True
                self.counts["on-connect"] += refused

    # operators

    def erase(self, player: str) -> str:
        """Forget a player, insisting; the erasure's id."""
        url = f"{self.scene.settings['ERASE_URL']}/v1/erasures"
        found: list[str] = []

        def post() -> int:
            answer = httpx.post(
                url,
                json={"player_id": player},
                headers=self.scene.path.headers("operator"),
                timeout=OPERATOR_SECONDS,
            )
            if answer.status_code == 202:
                found.append(answer.json()["erasure_id"])
            return answer.status_code

        status = self.insistent(post, "erase")
        assert status == 202, status
        self.erased.append(found[0])
        return found[0]

    def adjust(self, name: str, player: str) -> None:
        """An operator corrects a score, insisting."""
        url = f"{self.scene.settings['TOURNAMENT_URL']}/v1/tournaments/{name}/adjustments"
        body = {"player_id": player, "delta": 7, "reason": "fault"}
        key = f"{self.prefix}-adjusted-{player}"

        def post() -> int:
            headers = {**self.scene.path.headers("operator"), "Idempotency-Key": key}
            return httpx.post(url, json=body, headers=headers, timeout=OPERATOR_SECONDS).status_code

        status = self.insistent(post, "tournament")
        assert status < 300, status
        with self._lock:
            self.acknowledged["/tournament", key] = "tournament"
