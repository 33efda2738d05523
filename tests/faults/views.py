"""The five views of a tournament, compared: the log's fold, boards, record, position changes,
screens. The first one is the judge: it is folded here from what Kafka holds."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg
import redis
import sqlalchemy as sa
from confluent_kafka import Consumer, KafkaException, TopicPartition

from faults.play import Play
from faults.scene import TOMBSTONE_KEY, Scene
from faults.viewers import Viewer, wrong_frames
from leaderboard import events as ev
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.codec import decode_kafka
from leaderboard.errors import Refusal, RefusedError, TransientError
from leaderboard.events import Record
from leaderboard.fold import LogEntry
from leaderboard.model import Disposition, Offset, PositionChange, TournamentId
from whole_path import record_of

TOPICS: Final = (ev.WAGERS, ev.POSITION_CHANGES, ev.dead_letter_topic(ev.WAGERS))
AWAY: Final = (redis.RedisError, sa.exc.SQLAlchemyError, psycopg.Error, TransientError)
EVERYTHING: Final = Offset(2**62)


class Tail:
    """What the topics got since this was made."""

    def __init__(self, servers: str) -> None:
        config: dict[str, Any] = {
            "bootstrap.servers": servers,
            "group.id": "faults",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 10,
            "reconnect.backoff.max.ms": 200,
            "log_level": 0,
        }
        # Two clients: a question would wait behind a fetch that waits for records.
        self._asking, self._consumer = Consumer(config), Consumer(config)
        self._next: dict[tuple[str, int], int] = {}
        for topic in TOPICS:
            for number in self._asking.list_topics(topic, timeout=10).topics[topic].partitions:
                self._next[topic, number] = self._end(topic, number)
        self._consumer.assign([TopicPartition(*p, at) for p, at in self._next.items()])

    def _end(self, topic: str, number: int) -> int:
        place = TopicPartition(topic, number)
        return int(self._asking.get_watermark_offsets(place, timeout=5)[1])

    def read(self) -> list[Record]:
        """What has come since the last call, each partition in its order and up to its end.

        Raises TransientError while the broker is away; then nothing is lost, all is read later."""
        found: list[Record] = []
        try:
            ends = {place: self._end(*place) for place in self._next}
        except KafkaException as error:
            raise TransientError(str(error)) from None
        deadline = time.monotonic() + 10
        while any(self._next[place] < end for place, end in ends.items()):
            for message in self._consumer.consume(2_000, 0.05):
                if message.error() is None:
                    record = record_of(message)
                    self._next[record.topic, record.partition] = record.offset + 1
                    found.append(record)
            if time.monotonic() > deadline:
                break
        return found

    def close(self) -> None:
        self._asking.close()
        self._consumer.close()


class Views:
    """What the five views of one trial's tournaments say, read as often as wanted."""

    def __init__(
        self,
        scene: Scene,
        play: Play,
        viewers: Sequence[Viewer],
        *,
        spares_frames: bool,
        sends_back: bool,
    ) -> None:
        """`spares_frames`: the fault hits nothing on the way of frames, so each one is due;
        `sends_back`: older ones may come once more."""
        self.scene, self.play, self.viewers = scene, play, viewers
        self._spares_frames, self._sends_back = spares_frames, sends_back
        self._tail = Tail(scene.settings["KAFKA_BOOTSTRAP_SERVERS"])
        self._names = set(play.tournaments)
        self.oracle = MemoryBoard(TOMBSTONE_KEY)
        self.entries: dict[str, list[LogEntry]] = defaultdict(list)
        self.verdicts: dict[str, dict[int, Disposition | Refusal]] = defaultdict(dict)
        self.changes: dict[str, list[PositionChange]] = defaultdict(list)
        self.told: dict[str, list[ev.PositionChanged]] = defaultdict(list)
        self._raw: dict[str, tuple[Any, ...]] = {}
        self.contradictions: list[str] = []
        self.repeated_changes = 0
        self.unreadable: set[tuple[int, int]] = set()
        """Places in `wagers` whose record no codec reads."""
        self.refused: set[tuple[int, int]] = set()
        self.buried: Counter[tuple[int, int]] = Counter()

    def close(self) -> None:
        self._tail.close()

    def read(self) -> None:
        """Take in what the topics got. Raises TransientError."""
        for record in self._tail.read():
            if (record.key or b"").decode("utf-8", "replace") not in self._names:
                continue
            if record.topic == ev.WAGERS:
                self._fold(record)
            elif record.topic == ev.POSITION_CHANGES:
                self._tell(record)
            else:
                headers = dict(record.headers)
                place = [int(headers[f"dlq_{part}"] or b"") for part in ("partition", "offset")]
                self.buried[place[0], place[1]] += 1

    def _fold(self, record: Record) -> None:
        try:
            event = decode_kafka(record)
        except RefusedError:
            self.unreadable.add((record.partition, record.offset))
            return
        entry = LogEntry(Offset(record.offset), record.timestamp_ms, event)
        name = TournamentId(str(event.tournament_id))
        self.entries[name].append(entry)
        applied = self.oracle.apply(name, "oracle", None, [entry], EVERYTHING)
        self.verdicts[name][entry.offset] = applied.verdicts[0]
        if isinstance(applied.verdicts[0], Refusal):
            self.refused.add((record.partition, record.offset))
        self.changes[name] += applied.unconfirmed

    def _tell(self, record: Record) -> None:
        """As a reader takes them: nothing that is not above the last one."""
        event = decode_kafka(record)
        data = event.data
        assert isinstance(data, ev.PositionChanged)
        content = comparable(data)
        if self._raw.setdefault(event.id, content) != content:
            self.contradictions.append(f"{event.id} was told twice, differently")
        told = self.told[data.tournament_id]
        if told and data.sequence <= told[-1].sequence:
            self.repeated_changes += 1
            return
        told.append(data)

    # comparisons

    def differences(self) -> list[str]:
        """What is not level (yet), the first view first; empty when all five say the same."""
        with contextlib.suppress(TransientError):
            self.read()
            for compare in (self._log, self._boards, self._record, self._told, self._screens):
                try:
                    if found := compare():
                        return found
                except AWAY as error:
                    return [f"{compare.__name__}: {str(error)[:80]}"]
            return []
        return ["Kafka is away"]

    def _log(self) -> list[str]:
        """Whatever was acknowledged is in the log, and what can't be read has been buried."""
        there = {(e.event.source, e.event.id) for log in self.entries.values() for e in log}
        lost = [key for key in self.play.acknowledged if key not in there]
        found = [f"acknowledged by {self.play.acknowledged[k]}, not in the log: {k}" for k in lost]
        open_graves = (self.unreadable | self.refused) - self.buried.keys()
        found += [f"refused and not buried: {place}" for place in sorted(open_graves)]
        wrong = self.buried.keys() - self.unreadable - self.refused
        found += [f"buried although sound: {place}" for place in sorted(wrong)]
        for name, log in self.entries.items():
            applied = Counter(
                (e.event.source, e.event.id)
                for e in log
                if self.verdicts[name][e.offset] is Disposition.APPLIED
            )
            found += [f"{name}: applied twice: {key}" for key, n in applied.items() if n > 1]
        return found[:5]

    def _boards(self) -> list[str]:
        found = []
        for name in self.play.tournaments:
            mine = self.oracle.top(TournamentId(name), 100_000)
            theirs = self.scene.board.top(TournamentId(name), 100_000)
            if mine != theirs:
                found.append(f"{name}: {unlike('board', mine, theirs)}")
        return found

    def _record(self) -> list[str]:
        found = []
        for name in self.play.tournaments:
            mine = self.oracle.top(TournamentId(name), 100_000)
            theirs = self.scene.record.top(TournamentId(name), 100_000)
            if mine != theirs:
                found.append(f"{name}: {unlike('record', mine, theirs)}")
        return found or self._inputs() or self._kept_changes()

    def _inputs(self) -> list[str]:
        statement = sa.text(
            "SELECT i.log_offset, i.disposition FROM inputs i JOIN tournaments t"
            " USING (tournament_no) WHERE t.tournament_id = :name"
        )
        found = []
        with self.scene.engine.connect() as connection:
            for name in self.play.tournaments:
                read = connection.execute(statement, {"name": name})
                rows: dict[int, str] = {row[0]: row[1] for row in read}
                wanted = {at: verdict.value for at, verdict in self.verdicts[name].items()}
                if rows != wanted:
                    differ = sorted(set(rows.items()) ^ set(wanted.items()))[:2]
                    found.append(f"{name}: inputs of the record differ: {differ}")
        return found

    def _kept_changes(self) -> list[str]:
        """What readers of position-changes were told is in the record, each once."""
        statement = sa.text(
            "SELECT sequence FROM position_changes WHERE tournament_id = :name ORDER BY sequence"
        )
        found = []
        with self.scene.engine.connect() as connection:
            for name in self.play.tournaments:
                rows = list(connection.execute(statement, {"name": name}).scalars())
                if rows != [one.sequence for one in self.changes[name]]:
                    found.append(f"{name}: position changes of the record differ ({len(rows)})")
        return found

    def _told(self) -> list[str]:
        found = list(self.contradictions)
        for name in self.play.tournaments:
            mine = [comparable(change) for change in self.changes[name]]
            theirs = [comparable(change) for change in self.told[name]]
            if mine != theirs:
                differ = next((p for p in zip(mine, theirs, strict=False) if p[0] != p[1]), None)
                found.append(f"{name}: {len(mine)} changes, told {len(theirs)}: {differ}")
        return found

    def _screens(self) -> list[str]:
        dark = [one for one in self.viewers if not one.is_open or not one.shows(self.oracle)]
        found = [f"{one.tournament_id}: the screen of {one.player_id} is behind" for one in dark]
        if self._spares_frames:
            found += [
                f"{one.tournament_id}: {one.player_id} does not know their own last move"
                for one in self.viewers
                if not one.knows(self.changes[one.tournament_id])
            ]
        return found

    # once, in the end

    def final_differences(self) -> list[str]:
        """What was wrong on the way, although all is level now."""
        found = []
        for viewer in self.viewers:
            name = viewer.tournament_id
            found += wrong_frames(
                viewer,
                self.entries[name],
                self.changes[name],
                TOMBSTONE_KEY,
                spared=self._spares_frames,
                goes_back=self._sends_back,
            )
        return found + self._wrong_reads() + self._sums()

    def _wrong_reads(self) -> list[str]:
        """Every answer of `query`, whoever gave it, is the board as it stood at its sequence."""
        found = []
        for name in self.play.tournaments:
            oracle, position, log = MemoryBoard(TOMBSTONE_KEY), 0, self.entries[name]
            samples = [one for one in self.play.samples if one.tournament_id == name]
            for one in sorted(samples, key=lambda s: s.sequence):
                end = position
                while end < len(log) and log[end].offset <= one.sequence:
                    end += 1
                key = TournamentId(name)
                oracle.apply(key, "oracle", None, log[position:end], EVERYTHING)
                position = end
                view = oracle.top(key, 10)
                assert view is not None
                rows = tuple((s.rank, str(s.player_id), s.score.score) for s in view.standings)
                if (view.sequence, rows) != (one.sequence, one.standings):
                    found.append(f"{name}: a read from the {one.source} at {one.sequence} is wrong")
        return found[:5]

    def _sums(self) -> list[str]:
        """Without the fold: the points of a plain tournament are the sum over distinct ids."""
        name = self.play.tournaments[0]
        points: Counter[str] = Counter()
        special = set()
        seen = set()
        for entry in self.entries[name]:
            event, data = entry.event, entry.event.data
            if (event.source, event.id) in seen:
                continue
            seen.add((event.source, event.id))
            if isinstance(data, ev.WagerPlaced):
                if self.verdicts[name][entry.offset] not in OUT_OF_TIME:
                    points[data.player_id] += data.stake_minor
            elif event.player_id is not None and not isinstance(data, ev.PlayerJoined):
                special.add(event.player_id)
        view = self.scene.board.top(TournamentId(name), 100_000)
        assert view is not None
        shown = {str(s.player_id): s.score.score for s in view.standings}
        wrong = [p for p in points if p not in special and points[p] != shown.get(p)]
        return [f"{name}: {p} has {shown.get(p)}, wagered {points[p]}" for p in wrong[:3]]


OUT_OF_TIME: Final = (Disposition.NOT_STARTED, Disposition.TOURNAMENT_ENDED)


def comparable(change: PositionChange | ev.PositionChanged) -> tuple[Any, ...]:
    """What a change says, whoever wrote it down."""
    if isinstance(change, PositionChange):
        score, subscore = change.score.score, change.score.subscore
    else:
        score, subscore = change.score, change.subscore or 0
    cause = (change.cause.source, change.cause.id)
    ranks = (change.old_rank, change.new_rank)
    return (
        change.sequence, str(change.player_id), *ranks, score, subscore, change.distance, cause,
    )  # fmt: skip


def unlike(view: str, mine: Any, theirs: Any) -> str:
    """How two boards differ, in a line."""
    if mine is None or theirs is None:
        return f"{view}: {'none' if theirs is None else 'one that the log does not have'}"
    if mine.sequence != theirs.sequence:
        return f"{view} at {theirs.sequence}, the log at {mine.sequence}"
    pairs = zip(mine.standings, theirs.standings, strict=False)
    differ = next(((a, b) for a, b in pairs if a != b), (mine.players, theirs.players))
    return f"{view} differs at {mine.sequence}: {differ}"


def level_within(
    differences: Callable[[], list[str]], seconds: float
) -> tuple[float | None, list[str], str]:
    """When the views became level (monotonic) and stayed it, or what was not level at the end;
    and what was level last."""
    deadline = time.monotonic() + seconds
    last = ""
    while True:
        found = differences()
        if not found:
            at = time.monotonic()
            time.sleep(0.25)
            if not (found := differences()):
                return at, [], last
        last = found[0]
        if time.monotonic() > deadline:
            return None, found, last
        time.sleep(0.1)
