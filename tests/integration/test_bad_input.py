"""Bad input over the whole path: refused with its reason and place, and nothing else is harmed.

What can never work ends in the dead-letter topic, or in a precise problem over HTTP. What is
sound and does not count changes nothing, and shows in a metric and a line of the log."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest

from hostile import (
    LIMIT_BYTES,
    MARK,
    Case,
    marked,
    over_http,
    padded,
    record,
    refused_cases,
    wager_data,
)
from leaderboard import events as ev
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.codec import encode_http, encode_kafka
from leaderboard.errors import Refusal, RefusedError
from leaderboard.events import Record
from leaderboard.fold import LogEntry
from leaderboard.model import Disposition, TournamentId
from leaderboard.scoring import SubmittedScoring
from logs import TOMBSTONE_KEY
from running import wait_for
from whole_path import Path, entry_of, event, header, schedule, submitted, unique, wager

DLQ = ev.dead_letter_topic(ev.WAGERS)
HTTP_STATUS = {Refusal.NOT_JSON: 400, Refusal.TOO_LARGE: 413}
CLUSTER_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def sound_entries(placed: Sequence[Record], tournament_id: str) -> list[LogEntry]:
    """What the log of the tournament holds, without what no reader can read."""
    entries = []
    for one in placed:
        if one.key == tournament_id.encode():
            try:
                entries.append(entry_of(one))
            except RefusedError:
                continue
    return entries


def oracle_rows(placed: Sequence[Record], tournament_id: str) -> list[tuple[int, str, int]]:
    """The board as the fold has it."""
    board, name = MemoryBoard(TOMBSTONE_KEY), TournamentId(tournament_id)
    board.apply(name, "oracle", None, sound_entries(placed, tournament_id), None)
    view = board.top(name, 1000)
    assert view is not None
    return [(s.rank, s.player_id, s.score.score) for s in view.standings]


def board_rows(path: Path, tournament_id: str) -> list[tuple[int, str, int]]:
    return [(r["rank"], r["player_id"], r["score"]) for r in path.standings(tournament_id)]


def buried(path: Path, run: str) -> dict[str, list[Record]]:
    """This run's dead letters by the name of their case."""
    found: dict[str, list[Record]] = {}
    for one in path.consumed(DLQ, lambda r: is_of(r, run)):
        found.setdefault(header(one, MARK).partition("/")[2], []).append(one)
    return found


def is_of(one: Record, run: str) -> bool:
    mark = dict(one.headers).get(MARK)
    return mark is not None and mark.startswith(f"{run}/".encode())


def assert_dead_letters(
    path: Path, run: str, reasons: Mapping[str, Refusal], sent: Sequence[Record]
) -> None:
    """Each of these is buried exactly once, whole, with reason and place; nothing else is."""
    wait_for(lambda: buried(path, run).keys() >= reasons.keys(), 20)
    found = buried(path, run)
    assert {name: len(ones) for name, ones in found.items()} == dict.fromkeys(reasons, 1)
    by_name = {header(one, MARK).partition("/")[2]: one for one in sent if is_of(one, run)}
    told = {name: header(ones[0], "dlq_reason") for name, ones in found.items()}
    assert told == {name: reason.value for name, reason in reasons.items()}
    for name, (dead,) in found.items():
        original = by_name[name]
        count = len(original.headers)
        assert dead.value == original.value, name
        assert dead.key == original.key, name
        assert dead.headers[:count] == original.headers, name
        added = {key: (raw or b"").decode() for key, raw in dead.headers[count:]}
        assert added.keys() == {
            *("dlq_reason", "dlq_detail", "dlq_topic", "dlq_partition", "dlq_offset", "dlq_at")
        }
        assert added["dlq_topic"] == ev.WAGERS
        assert added["dlq_partition"] == str(original.partition), name
        assert added["dlq_offset"] == str(original.offset), name
        assert 0 < len(added["dlq_detail"]) <= 500, name
        assert CLUSTER_TIME.fullmatch(added["dlq_at"]), name


# --- refused, from Kafka -----------------------------------------------------------------------


def test_every_wrong_event_is_buried_once_and_all_sound_ones_around_count(path: Path) -> None:
    tournament_id, run = unique("bad"), unique("run")
    cases = list(refused_cases(tournament_id))
    assert len({case.name for case in cases}) == len(cases)
    assert {case.reason for case in cases} == set(Refusal) - {Refusal.UNKNOWN_TOURNAMENT}
    records = [encode_kafka(schedule(tournament_id), ev.WAGERS)]
    totals: Counter[str] = Counter()
    for index, case in enumerate(cases):
        player_id, stake = f"p{index % 7}", 100 + index
        totals[player_id] += stake
        sound = encode_kafka(wager(tournament_id, player_id, stake), ev.WAGERS)
        records += [marked(case, run), sound]
    placed = path.send(records)
    path.reached(tournament_id, placed[-1].offset)
    rows = board_rows(path, tournament_id)
    assert {player: score for _, player, score in rows} == totals
    assert rows == oracle_rows(placed, tournament_id)
    assert_dead_letters(path, run, {case.name: case.reason for case in cases}, placed)


def test_what_the_board_refuses_is_buried_and_leaves_the_score_alone(path: Path) -> None:
    sums, multiplied, unknown = unique("sums"), unique("multiplied"), unique("unknown")
    run, most = unique("run"), 2**53 - 1
    rules = {"scoring": {"kind": "multiplier"}, "operator": "best"}

    def bad(name: str, sent: ev.Event) -> Record:
        return marked(Case(name, Refusal.SCHEMA, encode_kafka(sent, ev.WAGERS)), run)

    submits = schedule(sums, rules={"scoring": SubmittedScoring(kind="submitted")})
    records = [
        *(encode_kafka(one, ev.WAGERS) for one in (submits, schedule(multiplied, rules=rules))),
        encode_kafka(submitted(sums, "alice", most), ev.WAGERS),
        bad("sum above", submitted(sums, "alice", 1)),
        encode_kafka(submitted(sums, "bob", -most), ev.WAGERS),
        bad("sum below", submitted(sums, "bob", -1)),
        encode_kafka(submitted(sums, "alice", -41), ev.WAGERS),
        bad("sum far above", submitted(sums, "alice", most)),
        bad("multiplied", wager(multiplied, "alice", 1, win_minor=most)),
        encode_kafka(wager(multiplied, "alice", 200, win_minor=251), ev.WAGERS),
        bad("unknown tournament", wager(unknown, "alice", 5)),
        bad("end of an unknown", event(ev.TournamentEnded(tournament_id=unknown, decided_by="x"))),
        encode_kafka(submitted(sums, "carol", 3), ev.WAGERS),
    ]
    placed = path.send(records)
    path.reached(sums, placed[-1].offset)
    path.reached(multiplied, placed[9].offset)
    over, nobody = Refusal.SCORE_OUT_OF_RANGE, Refusal.UNKNOWN_TOURNAMENT
    reasons = dict.fromkeys(("sum above", "sum below", "sum far above", "multiplied"), over)
    reasons |= dict.fromkeys(("unknown tournament", "end of an unknown"), nobody)
    assert_dead_letters(path, run, reasons, placed)
    assert board_rows(path, sums) == [
        (1, "alice", most - 41),
        (2, "carol", 3),
        (3, "bob", -most),
    ]
    assert board_rows(path, sums) == oracle_rows(placed, sums)
    assert board_rows(path, multiplied) == [(1, "alice", 125)]
    assert path.get(f"/v1/tournaments/{unknown}").status_code == 404


def test_unusual_but_sound_events_count(path: Path) -> None:
    """What looks odd and is within the contract: it must not be refused by caution."""
    tournament_id, run = unique("odd"), unique("run")
    odd_ids = ["{}", ":", '"quoted"\\', "é名", "a b", "%0A", "<script>", "' OR 1=1", "x" * 512]
    data = wager_data(tournament_id, player_id="alice", stake_minor=1)
    extra = {**data, "unknown_field": {"deep": [1, None, "x"]}, "extra": "é"}
    sound = [
        *(record(tournament_id, data, id=name, source=f"/odd/{name[:9]}") for name in odd_ids),
        record(tournament_id, extra),
        record(tournament_id, padded(tournament_id, LIMIT_BYTES)),
        record(tournament_id, data, content_type=None),
        record(tournament_id, data, content_type="application/json; charset=utf-8"),
        record(tournament_id, data, partitionkey=None),
        record(tournament_id, data, subject="alice"),
        record(tournament_id, data, unknownattribute="kept"),
    ]
    sent = [marked(Case(str(i), Refusal.SCHEMA, one), run) for i, one in enumerate(sound)]
    placed = path.send([encode_kafka(schedule(tournament_id), ev.WAGERS), *sent])
    path.reached(tournament_id, placed[-1].offset)
    assert board_rows(path, tournament_id) == [(1, "mallory", 500), (2, "alice", len(sound) - 1)]
    wait_for(lambda: causes(path, tournament_id) >= set(odd_ids), 10)
    assert buried(path, run) == {}


def causes(path: Path, tournament_id: str) -> set[str]:
    return {change.cause.id for change in path.changes(tournament_id)}


# --- sound, but not counting -------------------------------------------------------------------


def counted(path: Path) -> Counter[str]:
    """on-wager's events by what became of them, from its metrics."""
    text = path.http.get(f"{path.settings['ON_WAGER_HEALTH_URL']}/metrics").text
    pattern = r'leaderboard_events_total\{disposition="(\w+)",function="on-wager"\} (\S+)'
    return Counter({name: int(float(value)) for name, value in re.findall(pattern, text)})


def log_lines(path: Path) -> list[dict[str, Any]]:
    """What on-wager has logged, line by line."""
    log = path.stack.folder / ".stack" / "logs" / "on-wager-1.log"
    found = []
    for line in log.read_text(encoding="utf-8").splitlines():
        if line.startswith("{"):
            found.append(json.loads(line))
    return found


class NotCounting:
    """Five tournaments, and one event for each reason for which a sound one does not count."""

    def __init__(self) -> None:
        self.plain, self.joins = unique("plain"), unique("joins")
        self.ended, self.cancelled, self.multiplied = (
            unique(name) for name in ("ended", "cancelled", "multiplied")
        )
        self.never = unique("never")
        self.alice, self.bob, self.erased, self.banned = (unique("player") for _ in range(4))
        self.players = (self.alice, self.bob, self.erased, self.banned)
        self.first = wager(self.plain, self.alice, 500)
        self.begun_ms = self.first.time_ms - 60_000
        self.boards = (self.plain, self.joins, self.ended, self.cancelled, self.multiplied)

    def before(self) -> list[ev.Event]:
        stake = {"scoring": {"kind": "stake"}, "currency": "EUR"}
        strict = {**stake, "games": ["g1"], "min_stake_minor": 100}
        erased = ev.PlayerErased(
            tournament_id=self.plain, player_id=self.erased, erasure_id="er-test"
        )
        banned = ev.PlayerDisqualified(
            tournament_id=self.plain, player_id=self.banned, reason="x", decided_by="y"
        )
        joined = ev.PlayerJoined(tournament_id=self.joins, player_id=self.alice)
        return [
            schedule(self.plain, starts_in=-600, lasts=1200, rules=strict),
            schedule(self.joins, rules={**stake, "join": "required"}),
            schedule(self.ended),
            schedule(self.cancelled),
            schedule(self.multiplied, rules={"scoring": {"kind": "multiplier"}}),
            self.first,
            wager(self.plain, self.erased, 900),
            wager(self.plain, self.banned, 800),
            event(erased),
            event(banned),
            event(joined),
            *(wager(board, self.alice, 300) for board in self.boards[1:]),
            event(ev.TournamentEnded(tournament_id=self.ended, decided_by="x")),
            event(ev.TournamentCancelled(tournament_id=self.cancelled, decided_by="x")),
        ]

    def events(self) -> list[tuple[Disposition, ev.Event]]:
        now_ms, d = self.first.time_ms, Disposition
        voided = ev.WagerVoided(
            tournament_id=self.plain,
            player_id=self.alice,
            wager=ev.CauseData(source=self.first.source, id=self.first.id),
            reason="x",
        )
        tiers = {"scoring": {"kind": "tiers"}}
        alice = (self.plain, self.alice, 500)
        return [
            (d.DUPLICATE, self.first),
            (d.DUPLICATE, wager(self.plain, self.bob, 700, event_id=self.first.id)),
            (d.NOT_STARTED, wager(*alice, time_ms=now_ms - 3_600_000)),
            (d.TOURNAMENT_ENDED, wager(*alice, time_ms=now_ms + 3_600_000)),
            (d.TOURNAMENT_ENDED, wager(self.ended, self.alice, 500)),
            (d.TOURNAMENT_ENDED, wager(self.ended, self.bob, 500)),
            (d.TOURNAMENT_CANCELLED, wager(self.cancelled, self.bob, 500)),
            (d.NOT_JOINED, wager(self.joins, self.bob, 500)),
            (d.WRONG_GAME, wager(*alice, game_id="g2")),
            (d.BELOW_MINIMUM, wager(self.plain, self.bob, 99)),
            (d.BELOW_MINIMUM, wager(self.multiplied, self.alice, 0, win_minor=500)),
            (d.WRONG_CURRENCY, wager(*alice, currency="USD")),
            (d.PLAYER_ERASED, wager(self.plain, self.erased, 500)),
            (d.PLAYER_DISQUALIFIED, wager(self.plain, self.banned, 500)),
            (d.UNSUPPORTED, event(voided)),
            (d.UNSUPPORTED, submitted(self.plain, self.bob, 500)),
            (d.UNSUPPORTED, schedule(self.plain, rules=tiers)),
            (d.UNSUPPORTED, schedule(self.never, rules=tiers)),
        ]


def test_sound_events_that_do_not_count_change_nothing_and_are_told(path: Path) -> None:
    case, run = NotCounting(), unique("run")
    before = path.publish(case.before())
    for entry in before:
        path.reached(str(entry.event.tournament_id), entry.offset)
    dispositions = [disposition for disposition, _ in case.events()]
    assert set(dispositions) == set(Disposition) - {Disposition.APPLIED, Disposition.SKIPPED}
    rows = {board: board_rows(path, board) for board in case.boards}
    sequences = {board: path.sequence(board) for board in case.boards}
    counts = counted(path)

    events = case.events()
    records = [
        marked(Case(str(i), Refusal.SCHEMA, encode_kafka(one, ev.WAGERS)), run)
        for i, (_, one) in enumerate(events)
    ]
    placed = path.send(records)
    expected = Counter(disposition.value for disposition, _ in events)
    wait_for(lambda: (counted(path) - counts).keys() >= expected.keys(), 10)
    wait_for(lambda: (counted(path) - counts).total() >= len(events), 10)
    grown = counted(path) - counts
    assert {name: grown[name] for name in expected} == expected
    assert {board: board_rows(path, board) for board in case.boards} == rows
    assert {board: path.sequence(board) for board in case.boards} == sequences
    assert path.get(f"/v1/tournaments/{case.never}").status_code == 404
    assert buried(path, run) == {}
    told = [
        (line["tournament"], line["offset"], line["reason"])
        for line in log_lines(path)
        if line["message"] == "event does not count"
    ]
    for (disposition, one), sent in zip(events, placed, strict=True):
        assert told.count((one.tournament_id, sent.offset, disposition.value)) == 1
    text = json.dumps(log_lines(path))
    assert not [player_id for player_id in case.players if player_id in text]


# --- over HTTP ---------------------------------------------------------------------------------


def post(
    path: Path, headers: Mapping[str, str], body: bytes, role: str = "service"
) -> httpx.Response:
    """A producer's request, as it stands."""
    url = path.settings["ON_WAGER_URL"]
    return path.http.post(url, content=body, headers={**headers, **path.headers(role)})


def assert_problem(answer: httpx.Response, status: int, reason: Refusal | None = None) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem.get("reason") == (None if reason is None else reason.value), problem


def in_wagers(path: Path) -> int:
    """How many records the topic holds that are not the clock's."""
    return len(
        path.consumed(ev.WAGERS, lambda r: dict(r.headers).get("ce_source") != b"/tournament")
    )


@pytest.fixture(scope="module")
def open_cup(path: Path) -> str:
    """A tournament that runs."""
    tournament_id = unique("http")
    entries = path.publish([schedule(tournament_id), wager(tournament_id, "alice", 1)])
    path.reached(tournament_id, entries[-1].offset)
    return tournament_id


def test_every_wrong_event_over_http_is_a_precise_problem_and_not_produced(
    path: Path, open_cup: str
) -> None:
    held = in_wagers(path)
    asked = 0
    for case in refused_cases(open_cup):
        if case.over_http:
            try:
                answer = post(path, *over_http(case.record))
                assert_problem(answer, HTTP_STATUS.get(case.reason, 422), case.reason)
            except (AssertionError, httpx.HTTPError) as error:
                raise AssertionError(f"{case.name}: {error}") from error
            asked += 1
    assert asked > 80
    headers, body = encode_http(wager(unique("unknown"), "alice", 5))
    assert_problem(post(path, headers, body), 422, Refusal.UNKNOWN_TOURNAMENT)
    assert in_wagers(path) == held
    assert board_rows(path, open_cup) == [(1, "alice", 1)]


def test_the_way_in_over_http_is_for_producers_and_for_posts_only(
    path: Path, open_cup: str
) -> None:
    held = in_wagers(path)
    url = path.settings["ON_WAGER_URL"]
    headers, body = encode_http(wager(open_cup, "alice", 5))
    refused = path.http.get(url, headers=path.headers("service"))
    assert_problem(refused, 405)
    assert refused.headers["allow"] == "POST"
    for token in ({}, {"Authorization": "Bearer x.y.z"}, {"Authorization": "Basic eDp5"}):
        answer = path.http.post(url, content=body, headers={**headers, **token})
        assert_problem(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
    for role in ("player", "auditor"):
        assert_problem(post(path, headers, body, role), 403)
    assert_problem(path.http.post(f"{url}/elsewhere", content=body, headers=headers), 404)
    assert in_wagers(path) == held


def test_what_the_producer_said_beyond_the_contract_is_kept_in_the_log(
    path: Path, open_cup: str
) -> None:
    data = wager_data(open_cup, player_id="extra", unknown_field={"deep": [1, None, "é"]})
    sent = record(open_cup, data, unknownattribute="kept as it is")
    answer = post(path, *over_http(sent))
    assert answer.status_code == 202, answer.text
    offset = answer.json()["offset"]
    path.reached(open_cup, offset)
    key = open_cup.encode()
    (kept,) = path.consumed(ev.WAGERS, lambda r: r.key == key and r.offset == offset)
    assert json.loads(kept.value or b"") == data
    assert header(kept, "ce_unknownattribute") == "kept as it is"


def test_who_sends_too_much_over_http_gets_the_answer_and_may_go_on_at_once(
    path: Path, open_cup: str
) -> None:
    """Not a broken connection: neither for this request nor for the next one on it."""
    huge = over_http(record(open_cup, padded(open_cup, 2 * 1024 * 1024)))
    headers, body = encode_http(wager(open_cup, "bob", 1))
    for _ in range(5):
        assert_problem(post(path, *huge), 413, Refusal.TOO_LARGE)
        assert post(path, headers, body).status_code == 202
