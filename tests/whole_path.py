"""The whole path as its users meet it: a running local stack, its Kafka, its HTTP, its sockets."""

from __future__ import annotations

import contextlib
import math
import queue
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from leaderboard import events as ev
from leaderboard.codec import decode_kafka, encode_kafka
from leaderboard.events import Record
from leaderboard.fold import LogEntry
from leaderboard.model import Offset
from running import StackCommand, wait_for
from sockets import Players, PlayerSocket

TOKEN_RENEWED_SECONDS = 600.0
AGREE_SECONDS = 20.0
LISTED_SECONDS = 10.0


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory, players: Players) -> Iterator[Path]:
    """The local stack by its real command, one for the whole run."""
    stack = StackCommand(tmp_path_factory.mktemp("path"), ["stack", "--free-ports"])
    stack.start()
    opened = Path(stack, players)
    try:
        yield opened
    finally:
        opened.close()
        stack.stop()


def unique(prefix: str) -> str:
    """An id that no other test uses."""
    return f"{prefix}-{uuid.uuid4().hex[:10]}"


class Path:
    """One running stack, from the outside."""

    def __init__(self, stack: StackCommand, players: Players) -> None:
        self.stack = stack
        self.players = players
        self.settings = stack.env()
        self.http = httpx.Client(timeout=10)
        self._tokens: dict[tuple[str, str], tuple[float, str]] = {}
        self._producer = Producer(
            {
                "bootstrap.servers": self.settings["KAFKA_BOOTSTRAP_SERVERS"],
                "partitioner": "murmur2_random",
                "linger.ms": 1,
                "message.max.bytes": 4 * 1024 * 1024,
            }
        )

    def close(self) -> None:
        self.http.close()
        self._producer.flush(10)
        del self._producer  # else it looks for its broker, and complains, until the run ends

    # tokens and HTTP

    def token(self, role: str, subject: str = "someone") -> str:
        made_at, token = self._tokens.get((role, subject), (-math.inf, ""))
        # A run of all tests outlives a token by far.
        if time.monotonic() > made_at + TOKEN_RENEWED_SECONDS:
            answer = self.http.post(
                f"{self.settings['ISSUER_URL']}/token", json={"subject": subject, "roles": [role]}
            )
            made_at, token = time.monotonic(), answer.raise_for_status().json()["token"]
            self._tokens[role, subject] = made_at, token
        return token

    def headers(self, role: str, subject: str = "someone") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(role, subject)}"}

    def get(self, path: str, role: str = "operator", subject: str = "someone") -> httpx.Response:
        """A read, from `query`."""
        url = f"{self.settings['QUERY_URL']}{path}"
        return self.http.get(url, headers=self.headers(role, subject))

    def standings(self, tournament_id: str, limit: int = 1000) -> list[dict[str, Any]]:
        answer = self.get(f"/v1/tournaments/{tournament_id}/standings?limit={limit}")
        rows: list[dict[str, Any]] = answer.raise_for_status().json()["standings"]
        return rows

    def sequence(self, tournament_id: str) -> int:
        """Where the board stands; -1 where there is none yet, and the record answers or nobody."""
        answer = self.get(f"/v1/tournaments/{tournament_id}/standings?limit=1")
        told = answer.json() if answer.status_code == 200 else {"source": "nobody"}
        return int(told["sequence"]) if told["source"] == "board" else -1

    def reached(self, tournament_id: str, offset: int, seconds: float = AGREE_SECONDS) -> None:
        """Wait until the board has applied the event at `offset`."""
        wait_for(lambda: self.sequence(tournament_id) >= offset, seconds)

    # Kafka

    def send(self, records: Sequence[Record]) -> list[Record]:
        """Produce in order and wait; the records with the places they got."""
        placed: list[Record | None] = [None] * len(records)

        def delivered(index: int) -> Callable[[Any, Any], None]:
            def note(error: Any, message: Any) -> None:
                assert error is None, error
                one = records[index]
                placed[index] = Record(
                    one.topic,
                    one.key,
                    one.value,
                    one.headers,
                    message.partition(),
                    message.offset(),
                    message.timestamp()[1],
                )

            return note

        for index, record in enumerate(records):
            while True:
                try:
                    self._producer.produce(
                        record.topic,
                        key=record.key,
                        value=record.value,
                        headers=list(record.headers),
                        on_delivery=delivered(index),
                    )
                    break
                except BufferError:
                    self._producer.poll(0.1)
            self._producer.poll(0)
        assert self._producer.flush(30) == 0
        return [record for record in placed if record is not None]

    def publish(self, events: Sequence[ev.Event], topic: str = ev.WAGERS) -> list[LogEntry]:
        """Publish events; the entries of the log that they became."""
        placed = self.send([encode_kafka(event, topic) for event in events])
        return [entry_of(record) for record in placed]

    def ends(self, topic: str) -> dict[int, int]:
        """Each partition's next offset."""
        with self._reader() as consumer:
            numbers = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            return {
                number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)[1]
                for number in numbers
            }

    def consumed(
        self, topic: str, want: Callable[[Record], bool], since: Mapping[int, int] | None = None
    ) -> list[Record]:
        """Every record that the topic holds now (from `since` on, see `ends`) and that is wanted,
        in order of partition."""
        with self._reader() as consumer:
            found = []
            partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            for number in partitions:
                place = TopicPartition(topic, number, 0)
                low, high = consumer.get_watermark_offsets(place, timeout=10)
                low = max(low, 0 if since is None else since.get(number, 0))
                place.offset = low
                consumer.assign([place])
                position = low
                while position < high:
                    for message in consumer.consume(min(high - position, 1000), timeout=0.2):
                        record = record_of(message)
                        position = record.offset + 1
                        if want(record):
                            found.append(record)
            return found

    def dead_letters(self, tournament_id: str) -> list[Record]:
        key = tournament_id.encode()
        return self.consumed(ev.dead_letter_topic(ev.WAGERS), lambda r: r.key == key)

    def changes(self, tournament_id: str) -> list[ev.PositionChanged]:
        """The tournament's position changes as a reader takes them: nothing twice, none old."""
        return self.changes_of([tournament_id])[tournament_id]

    def changes_of(
        self, tournament_ids: Sequence[str], since: Mapping[int, int] | None = None
    ) -> dict[str, list[ev.PositionChanged]]:
        """The same for several, in one reading of the topic (from `since` on, see `ends`)."""
        kept: dict[str, list[ev.PositionChanged]] = {name: [] for name in tournament_ids}
        keys = {name.encode() for name in tournament_ids}
        for record in self.consumed(ev.POSITION_CHANGES, lambda r: r.key in keys, since):
            data = decode_kafka(record).data
            assert isinstance(data, ev.PositionChanged)
            mine = kept[data.tournament_id]
            if not mine or data.sequence > mine[-1].sequence:
                mine.append(data)
        return kept

    @contextmanager
    def _reader(self) -> Iterator[Consumer]:
        consumer = Consumer(
            {
                "bootstrap.servers": self.settings["KAFKA_BOOTSTRAP_SERVERS"],
                "group.id": unique("tests"),
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                # Each partition would wait behind the long poll of the one before.
                "fetch.wait.max.ms": 10,
            }
        )
        try:
            yield consumer
        finally:
            consumer.close()

    # sockets

    def ticket(self, tournament_id: str, player_id: str) -> httpx.Response:
        return self.http.post(
            f"{self.settings['CONNECT_URL']}/v1/tournaments/{tournament_id}/connections",
            headers=self.headers("player", player_id),
        )

    def socket(self, tournament_id: str, player_id: str) -> Socket:
        answer = self.ticket(tournament_id, player_id)
        until = time.monotonic() + LISTED_SECONDS
        while answer.status_code == HTTPStatus.NOT_FOUND and time.monotonic() < until:
            # Boards are there a moment before the list of tournaments tells of them.
            time.sleep(0.05)
            answer = self.ticket(tournament_id, player_id)
        assert answer.status_code == 201, answer.text
        return Socket(self.players.connect(answer.json()["url"]))


class Socket:
    """A player's WebSocket; `frames` are all that have come so far."""

    def __init__(self, socket: PlayerSocket) -> None:
        self._socket = socket
        self._frames: list[dict[str, Any]] = []

    @property
    def frames(self) -> list[dict[str, Any]]:
        with contextlib.suppress(queue.Empty):
            while True:
                self._frames.append(self._socket.next_json(0))
        return self._frames

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["type"] == kind]

    def is_closed(self) -> bool:
        return not self._socket.is_open()

    def close(self) -> None:
        self._socket.close()


def record_of(message: Any) -> Record:
    assert message.error() is None, message.error()
    return Record(
        message.topic(),
        message.key(),
        message.value(),
        tuple(message.headers() or ()),
        message.partition(),
        message.offset(),
        message.timestamp()[1],
    )


def entry_of(record: Record) -> LogEntry:
    return LogEntry(Offset(record.offset), record.timestamp_ms, decode_kafka(record))


def header(record: Record, name: str) -> str:
    found = dict(record.headers)[name]
    assert found is not None
    return found.decode()


def event(data: ev.Data, *, time_ms: int | None = None, event_id: str | None = None) -> ev.Event:
    """An event of now, with an id of its own."""
    return ev.Event(
        id=event_id or uuid.uuid4().hex,
        source="/tests",
        time_ms=int(time.time() * 1000) if time_ms is None else time_ms,
        data=data,
    )


def schedule(
    tournament_id: str,
    *,
    starts_in: float = -60,
    lasts: float = 3600,
    rules: Mapping[str, Any] | None = None,
    floor: int | None = None,
) -> ev.Event:
    """A tournament around now: sum of stakes in euros, unless `rules` say otherwise. `floor`: the
    replicas that it claims (0: none), for once not what holds for every tournament."""
    starts_at = datetime.now(UTC) + timedelta(seconds=starts_in)
    given = rules or {"scoring": {"kind": "stake"}, "currency": "EUR"}
    data = ev.TournamentScheduled(
        tournament_id=tournament_id,
        name="Test Cup",
        starts_at=starts_at,
        ends_at=starts_at + timedelta(seconds=lasts),
        rules=ev.Rules.model_validate(given),
        prewarm=None if floor is None else {"floor": floor},
    )
    return event(data)


def wager(
    tournament_id: str,
    player_id: str,
    stake_minor: int,
    *,
    event_id: str | None = None,
    **more: Any,
) -> ev.Event:
    given = {"game_id": "g1", "currency": "EUR", **more}
    time_ms = given.pop("time_ms", None)
    data = ev.WagerPlaced(
        tournament_id=tournament_id, player_id=player_id, stake_minor=stake_minor, **given
    )
    return event(data, event_id=event_id, time_ms=time_ms)


def submitted(
    tournament_id: str, player_id: str, score: int, *, time_ms: int | None = None
) -> ev.Event:
    data = ev.ScoreSubmitted(tournament_id=tournament_id, player_id=player_id, score=score)
    return event(data, time_ms=time_ms)
