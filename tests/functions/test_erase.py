"""erase through its real host, over a real Redis, a log and a gateway in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY

from hosting import SETTINGS, Hosted, Keeper, bearer, check_description, hosted
from leaderboard import events as ev
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import RedisClient, connect
from leaderboard.adapters.redis_connections import RedisConnections
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.redis_erasures import RedisErasures
from leaderboard.adapters.sql_engine import reading, writing
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.adapters.sql_requests import SqlRequests
from leaderboard.adapters.sql_snapshot import SqlSnapshots
from leaderboard.errors import TransientError
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, PlayerId, TournamentId, erasure_id_of
from leaderboard.ports import Grant
from logs import ALICE, BOB, TOMBSTONE_KEY, entry, scheduled, scored
from ports import Countdown, Interrupted, KnownTokens, MemoryFeed, MemoryGateway
from records import RecordedLog, engine_of, loaded

OPERATOR = bearer("olga", "operator")
PLAYED, JOINED, ENDED, OTHER = map(TournamentId, ("played", "joined", "ended", "other"))
LISTED = (PLAYED, JOINED, ENDED, OTHER)


@dataclass(frozen=True)
class Stage:
    """The function, and everything that knows a player."""

    hosted: Hosted
    ports: Any
    feed: MemoryFeed
    keeper: Keeper
    gateway: MemoryGateway
    redis: RedisClient
    record: SqlRecord
    engine: sa.Engine

    def post(self, player_id: str = "alice") -> tuple[int, str]:
        response = self.hosted.client.post(
            "/v1/erasures", json={"player_id": player_id}, headers=OPERATOR
        )
        return response.status_code, response.get_json(force=True).get("erasure_id", "")

    def state(self, erasure_id: str) -> Any:
        response = self.hosted.client.get(f"/v1/erasures/{erasure_id}", headers=OPERATOR)
        assert response.status_code == 200
        return response.get_json()

    def requests(self) -> dict[str, str | None]:
        """Whom the record's requests are about, by id."""
        with reading(self.engine) as connection:
            row = tables.erasure_requests.c
            found = connection.execute(sa.select(row.erasure_id, row.player_id))
            return {one.erasure_id: one.player_id for one in found}

    def catch_up(self) -> None:
        """Apply the log from its start, as an `on-wager` and an `archive` do that were away."""
        self.keeper.is_away = self.keeper.archive_is_away = False
        for topic in (ev.WAGERS, ev.GDPR_EVENTS):
            for one in self.feed.entries(topic):
                self.keeper(topic, _later(one))

    def knows(self, player_id: str) -> list[str]:
        """Keys of the erasures and leases in which the player's id stands in clear."""
        found = []
        for pattern in ("erasures:*", "*:sockets"):
            for key in self.redis.scan_iter(match=pattern):
                if player_id.encode() in str(self.redis.hgetall(key)).encode():
                    found.append(key.decode())
        return found


def _later(one: LogEntry) -> LogEntry:
    """The same above the offsets at which the tests' boards start."""
    return LogEntry(Offset(one.offset + 1000), one.logged_at_ms, one.event)


def _grant(tournament_id: TournamentId, player_id: PlayerId, connection_id: str) -> Grant:
    return Grant(tournament_id, player_id, connection_id, int(time.time() * 1000) + 60_000)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    with engine_of(loaded(f"sqlite:///{tmp_path}/record.sqlite")) as engine:
        yield engine


@pytest.fixture
def stage(redis_url: str, engine: sa.Engine) -> Iterator[Stage]:
    redis = connect(redis_url)
    redis.flushall()
    board, directory = RedisBoard(redis, TOMBSTONE_KEY), RedisDirectory(redis)
    keeper = Keeper(board, directory, RecordedLog(engine))
    for name in (PLAYED, JOINED, ENDED, OTHER):
        keeper.apply(name, [scheduled(0, name), scored(1, BOB, 10, tournament_id=name)])
    keeper.apply(PLAYED, [scored(2, ALICE, 5, tournament_id=PLAYED)])
    join = ev.PlayerJoined(tournament_id=JOINED, player_id=ALICE, display_name="Alice A")
    keeper.apply(JOINED, [entry(2, join)])
    over = ev.TournamentEnded(tournament_id=ENDED, decided_by="op")
    keeper.apply(ENDED, [scored(2, ALICE, 5, tournament_id=ENDED), entry(3, over)])
    feed = MemoryFeed(lambda topic, one: keeper(topic, _later(one)))
    gateway = MemoryGateway()
    connections = RedisConnections(redis)
    connections.lease(_grant(PLAYED, ALICE, "c-alice"))
    connections.lease(_grant(OTHER, ALICE, "c-watching"))
    connections.lease(_grant(PLAYED, BOB, "c-bob"))
    with hosted("erase", {**SETTINGS, "REDIS_URL": redis_url}) as one:
        record, snapshots = SqlRecord(engine), SqlSnapshots(engine)
        requests = SqlRequests(engine)
        ports = one.main.Ports(
            board=board,
            directory=directory,
            record=lambda: record,
            snapshots=lambda: snapshots,
            requests=lambda: requests,
            erasures=RedisErasures(redis, TOMBSTONE_KEY),
            feed=feed,
            connections=connections,
            gateway=gateway,
        )
        one.main.tokens.put(KnownTokens())
        one.main.ports.put(ports)
        yield Stage(one, ports, feed, keeper, gateway, redis, record, engine)


BOARDS = {"board:played", "board:joined", "board:ended", "board:other"}
BESIDE = {"gdpr-events", "tournaments", "sockets", "record", "audit", "request"}
PLACES = BOARDS | BESIDE
DEADLINE_MS = 60_000


def _check_forgotten(stage: Stage, erasure_id: str) -> None:
    told = stage.state(erasure_id)
    assert told["state"] == "done"
    assert PLACES >= told["places"].keys() >= BESIDE
    assert set(told["places"].values()) == {"done"}
    assert stage.record.tournaments_of(ALICE) == []
    assert len(stage.record.tournaments_of(BOB)) == 4
    for name in (PLAYED, JOINED, ENDED, OTHER):
        assert not stage.ports.board.is_in(name, ALICE)
        assert stage.ports.board.is_in(name, BOB)
    ids = [one.id for one in stage.feed.events(ev.WAGERS)]
    assert set(ids) == {f"{erasure_id}/{name}" for name in (PLAYED, JOINED, ENDED, OTHER)}
    gdpr = stage.feed.events(ev.GDPR_EVENTS)
    assert {(one.id, one.player_id, one.tournament_id) for one in gdpr} == {
        (erasure_id, ALICE, None)
    }
    closed = set(stage.gateway.closed)
    assert closed >= {"conn.c-alice", "conn.c-watching", *(f"me.{t}.alice" for t in LISTED)}
    assert not any(one.endswith(("bob", "-bob")) for one in closed)
    assert stage.requests() == {erasure_id: None}
    kept = {frame.channel: frame.body for frame in stage.gateway.frames}
    assert b"erased-" in kept[f"top.{ENDED}"]
    assert all(b"alice" not in body for body in kept.values())
    assert stage.ports.connections.holder(PLAYED, ALICE) is None
    assert stage.ports.connections.holder(PLAYED, BOB) == "c-bob"
    assert stage.knows("alice") == []
    assert stage.ports.erasures.is_erased(ALICE)


def test_player_is_forgotten_everywhere(stage: Stage) -> None:
    status, erasure_id = stage.post()
    assert status == 202
    _check_forgotten(stage, erasure_id)
    events = stage.feed.events(ev.WAGERS)
    assert len(events) == 4
    for one in [*events, *stage.feed.events(ev.GDPR_EVENTS)]:
        assert (one.source, one.subject) == ("/erase", "alice")
        assert isinstance(one.data, ev.PlayerErased)
        assert one.data.erasure_id == erasure_id
    told = stage.state(erasure_id)
    assert told["places"].keys() == PLACES
    assert "alice" not in str(told)


def test_row_of_an_ended_board_stays_under_another_name(stage: Stage) -> None:
    stage.post()
    view = stage.ports.board.top(ENDED, 10)
    assert len(view.standings) == 2
    assert view.standings[1].player_id.startswith("erased-")


def test_board_is_pending_until_it_no_longer_shows_the_player(stage: Stage) -> None:
    stage.keeper.is_away = True
    _, erasure_id = stage.post()
    told = stage.state(erasure_id)
    assert told["state"] == "pending"
    assert told["places"] == {
        **dict.fromkeys([*BOARDS, "record", "audit", "request"], "pending"),
        **dict.fromkeys(["gdpr-events", "sockets", "tournaments"], "done"),
    }
    assert stage.ports.erasures.is_erased(ALICE)
    stage.catch_up()
    _check_forgotten(stage, erasure_id)


def test_same_request_again_has_the_same_id_and_changes_nothing(stage: Stage) -> None:
    first = stage.post()
    assert stage.post() == first
    assert stage.post() == first
    _check_forgotten(stage, first[1])
    assert len(stage.feed.events(ev.GDPR_EVENTS)) == 1
    assert len(stage.feed.events(ev.WAGERS)) == 4


def test_other_players_have_other_ids_that_tell_nothing(stage: Stage) -> None:
    (_, one), (_, other) = stage.post("alice"), stage.post("bob")
    assert one != other
    assert one == erasure_id_of(TOMBSTONE_KEY, ALICE)
    assert one != erasure_id_of(b"another key, of another platform", ALICE)
    assert one.startswith("er-")
    assert len(one) == 35


def test_player_of_no_tournament_is_erased_all_the_same(stage: Stage) -> None:
    status, erasure_id = stage.post("stranger")
    assert status == 202
    told = stage.state(erasure_id)
    assert told["state"] == "done"
    open_still = {f"board:{name}" for name in (PLAYED, JOINED, OTHER)}
    assert told["places"].keys() == open_still | BESIDE
    assert stage.ports.erasures.is_erased(PlayerId("stranger"))


def test_event_on_its_way_does_not_bring_the_player_onto_a_board(stage: Stage) -> None:
    """The consumer is behind: the board has not shown the player yet when it is asked."""
    stage.keeper.is_away = True
    _, erasure_id = stage.post()
    assert stage.state(erasure_id)["places"]["board:other"] == "pending"
    stage.keeper.apply(OTHER, [scored(5, ALICE, 99, tournament_id=OTHER)])
    assert stage.ports.board.is_in(OTHER, ALICE)
    assert stage.state(erasure_id)["places"]["board:other"] == "pending"
    stage.catch_up()
    _check_forgotten(stage, erasure_id)


def test_repeated_request_finds_what_the_player_entered_meanwhile(stage: Stage) -> None:
    _, erasure_id = stage.post()
    late = TournamentId("late")
    entries = [scheduled(4, late), scored(5, ALICE, 99, tournament_id=late)]
    stage.keeper.apply(late, entries)
    assert stage.post() == (202, erasure_id)
    assert not stage.ports.board.is_in(late, ALICE)
    told = stage.state(erasure_id)
    assert told["places"]["board:late"] == "done"
    assert stage.feed.events(ev.WAGERS)[-1].id == f"{erasure_id}/late"
    assert stage.knows("alice") == []


def test_late_event_does_not_bring_the_player_back(stage: Stage) -> None:
    stage.post()
    stage.keeper.apply(PLAYED, [scored(5000, ALICE, 99, tournament_id=PLAYED)])
    assert not stage.ports.board.is_in(PLAYED, ALICE)


def test_board_that_is_away_is_pending_and_asked_again(stage: Stage) -> None:
    _record_goes_away(stage)
    for key in stage.redis.scan_iter(match="{played}*"):
        if not key.endswith(b"sockets"):
            stage.redis.delete(key)
    _, erasure_id = stage.post()
    assert stage.state(erasure_id)["places"]["board:played"] == "pending"
    assert f"{erasure_id}/played" not in [one.id for one in stage.feed.events(ev.WAGERS)]
    entries = [scheduled(0, PLAYED), scored(1, BOB, 1, tournament_id=PLAYED)]
    stage.keeper.apply(PLAYED, [*entries, scored(2, ALICE, 5, tournament_id=PLAYED)])
    assert stage.state(erasure_id)["places"]["board:played"] == "pending"
    stage.hosted.main.ports.put(stage.ports)
    assert stage.post() == (202, erasure_id)
    _check_forgotten(stage, erasure_id)


# --- the record ----------------------------------------------------------------------------------


def _away() -> Any:
    raise TransientError("the database is away")


def _record_goes_away(stage: Stage) -> None:
    stage.hosted.main.ports.put(replace(stage.ports, record=_away, snapshots=_away, requests=_away))


def _let_go(stage: Stage, tournament_id: TournamentId) -> None:
    """A day after the end."""
    for key in stage.redis.scan_iter(match=f"{{{tournament_id}}}*"):
        stage.redis.delete(key)
    stage.ports.directory.remove(tournament_id)


def test_player_is_forgotten_in_tournaments_whose_boards_went_long_ago(stage: Stage) -> None:
    _let_go(stage, ENDED)
    _, erasure_id = stage.post()
    assert f"{erasure_id}/ended" in [one.id for one in stage.feed.events(ev.WAGERS)]
    told = stage.state(erasure_id)
    assert (told["state"], told["places"]["record"]) == ("done", "done")
    assert told["places"]["board:ended"] == "done"
    assert stage.record.tournaments_of(ALICE) == []
    view = stage.record.top(ENDED, 10)
    assert view is not None
    assert view.standings[1].player_id.startswith("erased-")


def test_record_is_pending_until_it_has_applied_the_erasure(stage: Stage) -> None:
    stage.keeper.archive_is_away = True
    _, erasure_id = stage.post()
    for _ in range(2):
        told = stage.state(erasure_id)
        assert told["state"] == "pending"
        assert [p for p, state in told["places"].items() if state == "pending"] == [
            "audit",
            "record",
            "request",
        ]
    stage.catch_up()
    _check_forgotten(stage, erasure_id)


def test_record_that_has_not_met_the_player_yet_is_not_done(stage: Stage) -> None:
    """What it will read lies before the erasure in the log, and it has not read that either."""
    stage.keeper.archive_is_away = True
    carol = PlayerId("carol")
    early = scored(3, carol, 7, tournament_id=OTHER)
    stage.keeper.apply(OTHER, [early])
    _, erasure_id = stage.post(carol)
    assert stage.record.tournaments_of(carol) == []
    assert stage.state(erasure_id)["places"]["record"] == "pending"
    stage.keeper.archive_is_away = False
    stage.keeper.apply(OTHER, [early])
    assert stage.record.tournaments_of(carol) == [OTHER]
    assert stage.state(erasure_id)["places"]["record"] == "pending"
    stage.catch_up()
    assert stage.state(erasure_id)["state"] == "done"
    assert stage.record.tournaments_of(carol) == []


def test_record_that_has_no_mark_of_the_player_yet_is_not_done(stage: Stage) -> None:
    """No tournament has to hear of it; attempts and dead letters may still name the player."""
    for name in (PLAYED, JOINED, OTHER):
        over = ev.TournamentEnded(tournament_id=name, decided_by="op")
        stage.keeper.apply(name, [entry(9, over)])
    stage.keeper.archive_is_away = True
    _, erasure_id = stage.post("stranger")
    assert stage.feed.events(ev.WAGERS) == []
    told = stage.state(erasure_id)
    assert told["places"] == {
        **dict.fromkeys(BESIDE, "done"),
        **dict.fromkeys(["record", "audit", "request"], "pending"),
    }
    stage.catch_up()
    assert stage.state(erasure_id)["state"] == "done"


def test_repeated_request_marks_the_player_in_a_record_that_has_no_mark(
    stage: Stage, engine: sa.Engine
) -> None:
    """An archive of the version before read the erasure, and marked nobody."""
    stage.keeper.archive_is_away = True
    _, erasure_id = stage.post()
    stage.catch_up()
    with writing(engine) as connection:
        connection.execute(sa.delete(tables.forgotten_players))
    assert stage.state(erasure_id)["places"]["record"] == "pending"
    assert stage.post() == (202, erasure_id)
    _check_forgotten(stage, erasure_id)


def test_record_that_is_away_is_pending_and_whom_it_knows_is_told_later(stage: Stage) -> None:
    _let_go(stage, ENDED)
    _record_goes_away(stage)
    status, erasure_id = stage.post()
    assert status == 202
    for _ in range(2):
        told = stage.state(erasure_id)
        assert told["state"] == "pending"
        pending = [place for place, state in told["places"].items() if state == "pending"]
        assert pending == ["audit", "record", "request", "tournaments"]
    assert f"{erasure_id}/ended" not in [one.id for one in stage.feed.events(ev.WAGERS)]
    assert ALICE in stage.record.top(ENDED, 10).standings[1].player_id  # type: ignore[union-attr]
    stage.hosted.main.ports.put(stage.ports)
    assert stage.state(erasure_id)["state"] == "done"
    assert f"{erasure_id}/ended" in [one.id for one in stage.feed.events(ev.WAGERS)]
    assert stage.record.tournaments_of(ALICE) == []
    assert stage.knows("alice") == []


def overdue() -> tuple[float | None, ...]:
    """How many are pending, the age of the oldest, and how many are overdue."""
    names = ("erasures_open", "erasure_oldest_seconds", "erasures_overdue")
    return tuple(REGISTRY.get_sample_value(f"leaderboard_{name}") for name in names)


def test_pending_request_is_gone_on_with_where_nobody_asks(stage: Stage) -> None:
    stage.keeper.is_away = stage.keeper.archive_is_away = True
    _, erasure_id = stage.post()
    before_ms = int(time.time() * 1000) - 90_000
    stage.redis.hset(f"erasures:{erasure_id}", "opened_at_ms", str(before_ms))
    stage.redis.zadd("erasures-pending", {erasure_id: before_ms})
    stage.hosted.main.look_after(stage.ports, DEADLINE_MS)
    many, oldest, late = overdue()
    assert (many, late) == (1, 1)
    assert oldest == pytest.approx(90, abs=5)
    stage.catch_up()
    stage.hosted.main.look_after(stage.ports, DEADLINE_MS)
    assert overdue() == (0, 0, 0)
    _check_forgotten(stage, erasure_id)


def test_request_that_broke_off_at_once_is_gone_on_with(stage: Stage) -> None:
    erasure = stage.ports.erasures.begin(ALICE, int(time.time() * 1000))
    stage.hosted.main.look_after(stage.ports, DEADLINE_MS)
    assert overdue() == (0, 0, 0)
    _check_forgotten(stage, erasure.erasure_id)


def test_repeated_request_is_no_success_while_the_record_is_away(stage: Stage) -> None:
    """All was done before; what came since then may be known to the record alone."""
    _, erasure_id = stage.post()
    _check_forgotten(stage, erasure_id)
    _record_goes_away(stage)
    assert stage.post()[0] == 503
    stage.hosted.main.ports.put(stage.ports)
    assert stage.post() == (202, erasure_id)


def test_board_that_was_let_go_before_it_was_asked_is_done_by_the_record(stage: Stage) -> None:
    stage.keeper.is_away = stage.keeper.archive_is_away = True
    _, erasure_id = stage.post()
    assert stage.state(erasure_id)["places"]["board:ended"] == "pending"
    _let_go(stage, ENDED)
    assert stage.state(erasure_id)["places"]["board:ended"] == "pending"
    stage.catch_up()
    assert stage.state(erasure_id)["state"] == "done"


def test_last_frame_of_a_board_that_was_let_go_is_sent_anew_from_the_record(stage: Stage) -> None:
    """The gateway may keep it for as long as a board is kept, and sends it to who comes next."""
    _let_go(stage, ENDED)
    _, erasure_id = stage.post()
    assert stage.state(erasure_id)["state"] == "done"
    kept = {frame.channel: frame.body for frame in stage.gateway.frames}
    assert b"erased-" in kept["top.ended"]
    assert b"alice" not in kept["top.ended"]


def test_list_that_was_emptied_hides_no_live_tournament(stage: Stage) -> None:
    stage.ports.directory.remove(OTHER)
    _, erasure_id = stage.post()
    assert stage.state(erasure_id)["places"].keys() == PLACES
    assert f"{erasure_id}/other" in [one.id for one in stage.feed.events(ev.WAGERS)]


def test_socket_that_opened_while_we_closed_the_other_is_closed_too(stage: Stage) -> None:
    class Opening(MemoryGateway):
        def close(self, channel: str) -> None:
            if channel == "conn.c-alice":
                stage.ports.connections.lease(_grant(PLAYED, ALICE, "c-newer"))
            super().close(channel)

    gateway = Opening()
    stage.hosted.main.ports.put(replace(stage.ports, gateway=gateway))
    stage.post()
    assert {"conn.c-alice", "conn.c-newer"} <= set(gateway.closed)


def test_lease_that_ran_out_does_not_keep_the_players_id(stage: Stage) -> None:
    now = time.time()
    connections = RedisConnections(stage.redis, lambda: int((now - 7200) * 1000))
    expired = Grant(JOINED, ALICE, "c-old", int((now - 3600) * 1000))
    connections.lease(expired)
    stage.redis.persist(f"{{{JOINED}}}:sockets")
    stage.post()
    assert stage.knows("alice") == []


PORTS = ("board", "directory", "erasures", "feed", "connections", "gateway")


def _interrupt_at(stage: Stage, steps: int) -> Countdown:
    countdown = Countdown(steps)
    ports = {name: Interrupted(getattr(stage.ports, name), countdown) for name in PORTS}
    # The record away is another matter: see the tests of it.
    ports |= {name: getattr(stage.ports, name) for name in ("record", "snapshots", "requests")}
    stage.hosted.main.ports.put(stage.hosted.main.Ports(**ports))
    return countdown


# Calls of ports in one request, each before and after its effect, with a consumer that applies
# the events at once and with one that is away.
STEPS = {False: 82, True: 72}


@pytest.mark.parametrize(
    ("consumer_is_away", "steps"),
    [(away, step) for away, last in STEPS.items() for step in range(1, last + 1)],
)
def test_request_broken_off_anywhere_is_completed_by_the_same_again(
    stage: Stage, steps: int, consumer_is_away: bool
) -> None:
    countdown = _interrupt_at(stage, steps)
    stage.keeper.is_away = consumer_is_away
    assert stage.post()[0] == 503
    assert countdown.bit
    expected = erasure_id_of(TOMBSTONE_KEY, ALICE)
    if stage.ports.erasures.find(expected) is not None:
        assert stage.ports.erasures.is_erased(ALICE)
        # Whatever is told in between is no promise that was not kept.
        if stage.state(expected)["state"] == "done":
            _check_forgotten(stage, expected)
    status, erasure_id = stage.post()
    assert (status, erasure_id) == (202, expected)
    if consumer_is_away:
        assert stage.state(erasure_id)["state"] == "pending"
        stage.catch_up()
    _check_forgotten(stage, erasure_id)


@pytest.mark.parametrize("consumer_is_away", [False, True])
def test_every_step_of_a_request_was_broken_off(stage: Stage, consumer_is_away: bool) -> None:
    countdown = _interrupt_at(stage, 10_000)
    stage.keeper.is_away = consumer_is_away
    stage.post()
    assert 10_000 - countdown.left == STEPS[consumer_is_away]


# --- killed: what was accepted is done, also where nobody asks again -----------------------------


class KilledError(BaseException):
    """The process ends here."""


def _kill_at(stage: Stage, steps: int) -> Countdown:
    """The function's ports, with the end of the process at this step of the ports' calls."""
    countdown = Countdown(steps, KilledError())
    ports: dict[str, Any] = {n: Interrupted(getattr(stage.ports, n), countdown) for n in PORTS}
    for name in ("record", "snapshots", "requests"):
        one = Interrupted(getattr(stage.ports, name)(), countdown)
        ports[name] = lambda one=one: one
    stage.hosted.main.ports.put(stage.hosted.main.Ports(**ports))
    return countdown


def _lose_requests(stage: Stage) -> None:
    """A shard that was emptied, and has the requests."""
    for key in [*stage.redis.scan_iter(match="erasures*")]:
        stage.redis.delete(key)


def _go_on(stage: Stage) -> None:
    """Looks of a process that was started anew."""
    stage.hosted.main.ports.put(stage.ports)
    for _ in range(3):
        stage.hosted.main.look_after(stage.ports, DEADLINE_MS)


def _ask_once_more(stage: Stage, erasure_id: str) -> None:
    """Nothing is left to do. What the store lost the record still has, and whoever decides about a
    connection asks it."""
    assert stage.ports.record().is_forgotten(erasure_id)
    assert stage.post() == (202, erasure_id)


# Those of a request that goes on in one go, and of one whose consumers are away and look after.
KILLED = {False: 110, True: 86}


@pytest.mark.parametrize(
    ("consumer_is_away", "steps"),
    [(away, step) for away, last in KILLED.items() for step in range(1, last + 1)],
)
def test_request_killed_anywhere_is_completed_where_nobody_asks_again(
    stage: Stage, steps: int, consumer_is_away: bool
) -> None:
    """Where consumers are there, the store loses its requests as well: then the log has to do."""
    loses_requests = not consumer_is_away
    countdown = _kill_at(stage, steps)
    stage.keeper.is_away = stage.keeper.archive_is_away = consumer_is_away
    with pytest.raises(KilledError):
        stage.hosted.main.forget(ALICE, stage.hosted.main.ports())
    assert countdown.bit
    expected = erasure_id_of(TOMBSTONE_KEY, ALICE)
    is_accepted = bool(stage.feed.events(ev.GDPR_EVENTS))
    is_begun = stage.ports.erasures.find(expected) is not None
    is_done = stage.requests() == {expected: None}
    if loses_requests:
        _lose_requests(stage)
    _go_on(stage)
    if consumer_is_away:
        stage.catch_up()
        _go_on(stage)
    if is_done and loses_requests:
        _ask_once_more(stage, expected)
    if is_accepted or (is_begun and not loses_requests):
        _check_forgotten(stage, expected)
    else:  # the caller was told of an error, and asks again
        assert stage.post() == (202, expected)
        if consumer_is_away:
            stage.catch_up()
        _check_forgotten(stage, expected)


@pytest.mark.parametrize("consumer_is_away", [False, True])
def test_a_request_was_killed_at_every_step(stage: Stage, consumer_is_away: bool) -> None:
    countdown = _kill_at(stage, 10_000)
    stage.keeper.is_away = stage.keeper.archive_is_away = consumer_is_away
    stage.hosted.main.forget(ALICE, stage.hosted.main.ports())
    assert 10_000 - countdown.left == KILLED[consumer_is_away]


LOOKED = 68
"""Steps of a look that comes to the end of a request."""


def _about_to_end(stage: Stage) -> str:
    """A request of which the last steps are left, from boards to the request itself."""
    stage.keeper.is_away = stage.keeper.archive_is_away = True
    _, erasure_id = stage.post()
    stage.catch_up()
    return erasure_id


def test_a_look_was_killed_at_every_step(stage: Stage) -> None:
    _about_to_end(stage)
    countdown = _kill_at(stage, 10_000)
    stage.hosted.main.look_after(stage.hosted.main.ports(), DEADLINE_MS)
    assert 10_000 - countdown.left == LOOKED


@pytest.mark.parametrize("steps", range(1, LOOKED + 1))
def test_look_killed_anywhere_is_completed_by_the_next_ones(stage: Stage, steps: int) -> None:
    erasure_id = _about_to_end(stage)
    countdown = _kill_at(stage, steps)
    with pytest.raises(KilledError):
        stage.hosted.main.look_after(stage.hosted.main.ports(), DEADLINE_MS)
    assert countdown.bit
    is_done = stage.requests() == {erasure_id: None}
    _lose_requests(stage)
    _go_on(stage)
    if is_done:
        _ask_once_more(stage, erasure_id)
    _check_forgotten(stage, erasure_id)


def test_request_accepted_while_the_record_was_away_outlives_the_store(stage: Stage) -> None:
    _let_go(stage, ENDED)
    _record_goes_away(stage)
    stage.keeper.archive_is_away = True
    status, erasure_id = stage.post()
    assert status == 202
    _lose_requests(stage)
    _go_on(stage)
    answer = stage.hosted.client.get(f"/v1/erasures/{erasure_id}", headers=OPERATOR)
    assert answer.status_code == 404
    stage.catch_up()
    assert stage.requests() == {erasure_id: "alice"}
    _go_on(stage)
    assert stage.requests() == {erasure_id: None}
    assert stage.state(erasure_id)["state"] == "done"
    assert stage.record.tournaments_of(ALICE) == []
    assert stage.knows("alice") == []


def test_request_that_is_done_is_shown_by_the_record_where_the_store_has_lost_it(
    stage: Stage,
) -> None:
    _, erasure_id = stage.post()
    before = stage.state(erasure_id)
    assert before["done_at"].keys() == before["places"].keys()
    _lose_requests(stage)
    stage.ports.erasures.restore(erasure_id, 1)  # by `on-wager`, from the log
    after = stage.state(erasure_id)
    assert after["state"] == "done"
    assert after["places"] == before["places"]
    assert after["done_at"].keys() == before["done_at"].keys()


def test_repeated_request_outlives_the_store_as_well(stage: Stage) -> None:
    _, erasure_id = stage.post()
    late = TournamentId("late")
    stage.keeper.apply(late, [scheduled(4, late), scored(5, ALICE, 99, tournament_id=late)])
    stage.keeper.is_away = stage.keeper.archive_is_away = True
    assert stage.post() == (202, erasure_id)
    assert stage.requests() == {erasure_id: "alice"}
    _lose_requests(stage)
    stage.catch_up()
    _go_on(stage)
    assert stage.requests() == {erasure_id: None}
    assert not stage.ports.board.is_in(late, ALICE)
    assert stage.knows("alice") == []
    assert b"alice" not in {one.channel: one.body for one in stage.gateway.frames}["top.late"]


def test_stranger_is_forgotten_while_a_board_is_let_go(stage: Stage) -> None:
    """It has gone, and is still in the list: it can't be asked, and the record knows nobody of
    that name there."""
    for key in stage.redis.scan_iter(match=f"{{{ENDED}}}*"):
        stage.redis.delete(key)
    _, erasure_id = stage.post("stranger")
    stage.ports.directory.remove(ENDED)
    _go_on(stage)
    told = stage.state(erasure_id)
    assert (told["state"], told["places"]["board:ended"]) == ("done", "done")
    assert stage.requests() == {erasure_id: None}


def test_list_of_open_requests_that_was_lost_alone_is_made_again(stage: Stage) -> None:
    """It is a key of its own, on a shard of its own."""
    stage.keeper.is_away = stage.keeper.archive_is_away = True
    _, erasure_id = stage.post()
    stage.catch_up()
    assert stage.redis.delete("erasures-pending") == 1
    _go_on(stage)
    assert stage.requests() == {erasure_id: None}, "before anybody asks for its state"
    _check_forgotten(stage, erasure_id)


def test_tournament_that_nobody_had_read_of_is_told_once_the_record_knows_it(stage: Stage) -> None:
    """Its consumers lag: when the request came, nobody knew that there was such a tournament."""
    stage.keeper.archive_is_away = True
    _, erasure_id = stage.post()
    stage.keeper.archive_is_away = False
    late = TournamentId("late")
    stage.keeper.apply(late, [scheduled(4, late), scored(5, ALICE, 99, tournament_id=late)])
    stage.catch_up()
    assert stage.record.tournaments_of(ALICE) == [late]
    _go_on(stage)
    assert stage.state(erasure_id)["places"]["board:late"] == "done"
    assert not stage.ports.board.is_in(late, ALICE)
    assert stage.record.tournaments_of(ALICE) == []
    assert stage.requests() == {erasure_id: None}


def test_request_that_the_log_alone_told_of_shows_nothing_done_that_is_not(stage: Stage) -> None:
    """A store that was emptied just after the boards had applied it: whoever comes next is given
    the last frame, and that still has the player in it."""
    stage.keeper.is_away = stage.keeper.archive_is_away = True
    _, erasure_id = stage.post()
    stage.catch_up()
    _lose_requests(stage)
    stage.ports.erasures.restore(erasure_id, 1)  # by `on-wager`, with the boards
    assert stage.gateway.frames == []
    _go_on(stage)
    _check_forgotten(stage, erasure_id)


def test_record_that_was_set_back_is_cleared_of_whom_it_reads_of_again(
    stage: Stage, engine: sa.Engine
) -> None:
    _, erasure_id = stage.post()
    with writing(engine) as connection:
        row = tables.erasure_requests
        connection.execute(sa.update(row).values(player_id="alice", done_at_ms=None, places=None))
    assert stage.requests() == {erasure_id: "alice"}
    _go_on(stage)
    assert stage.requests() == {erasure_id: None}
    _check_forgotten(stage, erasure_id)


def test_request_shows_when_it_is_due_and_when_each_place_was_done(stage: Stage) -> None:
    _, erasure_id = stage.post()
    told = stage.state(erasure_id)
    requested, due = (datetime.fromisoformat(told[name]) for name in ("requested_at", "due_at"))
    assert (due - requested).total_seconds() == 3600
    for at in told["done_at"].values():
        assert requested <= datetime.fromisoformat(at) <= due


def test_request_opened_again_is_due_from_then_on(stage: Stage) -> None:
    _, erasure_id = stage.post()
    long_ago = int(time.time() * 1000) - 90 * 24 * 3600 * 1000
    for name in ("requested_at_ms", "opened_at_ms"):
        stage.redis.hset(f"erasures:{erasure_id}", name, str(long_ago))
    stage.keeper.is_away = True
    late = TournamentId("late")
    stage.keeper.apply(late, [scheduled(4, late), scored(5, ALICE, 99, tournament_id=late)])
    stage.post()
    stage.hosted.main.look_after(stage.ports, DEADLINE_MS)
    assert overdue()[0] == 1
    assert overdue()[2] == 0
    assert stage.state(erasure_id)["requested_at"] < stage.state(erasure_id)["due_at"]


def test_two_requests_at_once_lose_nothing(stage: Stage) -> None:
    """The second finishes, and forgets the id, while the first is about to note its places."""
    erasures = stage.ports.erasures

    class Overtaken:
        def __getattr__(self, name: str) -> Any:
            return getattr(erasures, name)

        def begin(self, player_id: PlayerId, now_ms: int) -> Any:
            opened = erasures.begin(player_id, now_ms)
            if not overtaken:
                overtaken.append(True)
                stage.hosted.main.forget(player_id, stage.ports)
            return opened

    overtaken: list[bool] = []
    stage.hosted.main.ports.put(replace(stage.ports, erasures=Overtaken()))
    _, erasure_id = stage.post()
    _check_forgotten(stage, erasure_id)


# --- who, and what -----------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["player", "auditor", "stranger"])
def test_only_operators_and_services_erase(stage: Stage, role: str) -> None:
    client, body = stage.hosted.client, {"player_id": "alice"}
    headers = bearer("alice", role)
    assert client.post("/v1/erasures", json=body).status_code == 401
    assert client.post("/v1/erasures", json=body, headers=headers).status_code == 403
    assert client.get("/v1/erasures/er-1").status_code == 401
    assert client.get("/v1/erasures/er-1", headers=headers).status_code == 403
    assert stage.feed.events(ev.GDPR_EVENTS) == []


def test_service_may_erase(stage: Stage) -> None:
    response = stage.hosted.client.post(
        "/v1/erasures", json={"player_id": "alice"}, headers=bearer("crm", "service")
    )
    assert response.status_code == 202
    assert response.headers["Location"] == f"/v1/erasures/{response.get_json()['erasure_id']}"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"player_id": 5}', 422),
        (b'{"player_id": ""}', 422),
        (b'{"player_id": "a b"}', 422),
        (b'{"player_id": "{}"}', 422),
        (b'{"player_id": "\\u0000"}', 422),
        (b'{"player_id": "' + b"x" * 65 + b'"}', 422),
        (b'{"player_id": "' + b"x" * 70_000 + b'"}', 413),
    ],
)
def test_bad_request_is_refused_and_erases_nobody(stage: Stage, body: bytes, status: int) -> None:
    response = stage.hosted.client.post("/v1/erasures", data=body, headers=OPERATOR)
    assert response.status_code == status
    assert response.content_type == "application/problem+json"
    assert list(stage.redis.scan_iter(match="erasures:*")) == []


@pytest.mark.parametrize("erasure_id", ["er-1", "x" * 65, "a:b", "%0A"])
def test_unknown_erasure_is_404(stage: Stage, erasure_id: str) -> None:
    response = stage.hosted.client.get(f"/v1/erasures/{erasure_id}", headers=OPERATOR)
    assert response.status_code == 404


def test_function_describes_itself(stage: Stage) -> None:
    check_description(stage.hosted, {"/v1/erasures", "/v1/erasures/{erasure_id}"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("TOMBSTONE_KEY", "short"), ("GATEWAY_KIND", "web-pubsub"), ("GATEWAY_PUBLISH_URL", "x")],
)
def test_wrong_setting_stops_the_start_and_is_named(
    name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), hosted("erase", {**SETTINGS, name: value}):
        pass
    told = capsys.readouterr().err
    assert name in told
    assert "short" not in told


def test_store_emptied_during_the_request_is_an_error_to_repeat(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def emptied(topic: str, one: LogEntry) -> None:
        stage.redis.flushdb()

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(stage.feed, "_on_publish", emptied)
        assert stage.post()[0] == 503
    assert stage.post()[0] == 202


# --- asked by an event ---------------------------------------------------------------------------


REQUESTED = {"ce-type": "io.leaderboard.erasure.requested.v1", "ce-id": "1", "ce-source": "/crm"}


def test_event_forgets_the_player_as_a_request_does(stage: Stage) -> None:
    headers = {**bearer("crm", "service"), **REQUESTED}
    answer = stage.hosted.client.post("/", json={"player_id": ALICE}, headers=headers)
    assert answer.status_code == 202
    erasure_id = answer.get_json()["erasure_id"]
    _check_forgotten(stage, erasure_id)
    # Delivered at least once: the same again is the same erasure.
    again = stage.hosted.client.post("/", json={"player_id": ALICE}, headers=headers)
    assert again.get_json()["erasure_id"] == erasure_id


def test_event_without_a_token_is_refused_unless_that_is_switched_on(redis_url: str) -> None:
    settings = {**SETTINGS, "REDIS_URL": redis_url}
    body = {"player_id": ALICE}
    with hosted("erase", settings) as one:
        assert one.client.post("/", json=body, headers=REQUESTED).status_code == 401
    with hosted("erase", {**settings, "EVENTS_FROM_ANYONE": "on"}) as one:
        # Taken as far as Kafka, which is not there: Eventing has to deliver it again.
        assert one.client.post("/", json=body, headers=REQUESTED).status_code == 503
        # The way for people still wants one.
        assert one.client.post("/v1/erasures", json=body).status_code == 401


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({**REQUESTED, "ce-type": "io.leaderboard.player.erased.v1"}, {"player_id": "a"}, 422),
        ({}, {"player_id": "a"}, 422),
        (REQUESTED, {"player": "a"}, 422),
        (REQUESTED, {"player_id": "no id!"}, 422),
    ],
)
def test_event_that_can_never_work_goes_to_the_dead_letters(
    stage: Stage, headers: dict[str, str], body: dict[str, str], status: int
) -> None:
    """What Eventing does with a 422: no retry."""
    sent = {**bearer("crm", "service"), **headers}
    answer = stage.hosted.client.post("/", json=body, headers=sent)
    assert answer.status_code == status
    assert stage.feed.events(ev.WAGERS) == []
