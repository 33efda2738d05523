"""on-connect through its real host, with a real Redis, real gateways and the real issuer."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY
from redis.connection import AbstractConnection
from werkzeug.serving import make_server

import gateways
from hosting import FUNCTIONS, SETTINGS, Hosted, check_description, hosted
from leaderboard.adapters import sql_engine
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.nchan_gateway import NchanGateway
from leaderboard.adapters.nchan_pods import NchanPods
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import connect
from leaderboard.adapters.redis_connections import RedisConnections
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.redis_entrance import RedisEntrance
from leaderboard.adapters.redis_erasures import RedisErasures
from leaderboard.adapters.redis_scripts import keys_of
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.adapters.stepwise_entrance import StepwiseEntrance
from leaderboard.adapters.web_pubsub_events import signature
from leaderboard.adapters.web_pubsub_gateway import WebPubSubGateway
from leaderboard.callers import Caller
from leaderboard.door import GuardedDoor
from leaderboard.errors import TransientError
from leaderboard.events import CONNECTIONS, ConnectionDecided, PlayerErased, ScoreSubmitted
from leaderboard.fold import LogEntry
from leaderboard.model import PlayerId, TournamentId
from leaderboard.ports import Board, Frame, Grant, Summary
from leaderboard.reads import Tournaments
from leaderboard.settings import EntranceSettings, load
from leaderboard.stack.process import LOOPBACK, Process, accepts, free_port
from logs import START_MS, TOMBSTONE_KEY, entry, scheduled
from ports import KnownTokens, MemoryFeed
from records import RecordedLog, engine_of, loaded
from sockets import Players, PlayerSocket, eventually, players

__all__ = ["players"]
T = TournamentId("cup")
OPEN = f"/v1/tournaments/{T}/connections"


@dataclass
class Scene:
    """on-connect behind a gateway, as players meet them."""

    one: Hosted
    url: str
    gateway: NchanPods | WebPubSubGateway
    feed: MemoryFeed
    connections: RedisConnections
    erasures: RedisErasures
    issuer_url: str
    players: Players
    engine: sa.Engine
    away_status: int
    """What a player is answered when the decision can't be made."""

    def token(self, subject: str, *roles: str) -> dict[str, str]:
        asked = {"subject": subject, "roles": list(roles or ("player",))}
        answer = httpx.post(f"{self.issuer_url}/token", json=asked).json()
        return {"Authorization": f"Bearer {answer['token']}"}

    def post(self, headers: dict[str, str], path: str = OPEN) -> httpx.Response:
        return httpx.post(self.url + path, headers=headers)

    def way_in(self, subject: str) -> dict[str, Any]:
        answer = self.post(self.token(subject))
        assert answer.status_code == 201, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def enter(self, subject: str) -> PlayerSocket:
        agent = {"User-Agent": f"{subject}'s browser"}
        return self.greeted(self.players.connect(self.way_in(subject)["url"], agent))

    def greeted(self, socket: PlayerSocket) -> PlayerSocket:
        """Web PubSub keeps no frame for newcomers: there the function shows them the top."""
        if isinstance(self.gateway, WebPubSubGateway):
            assert socket.next_json()["type"] == "top"
        return socket

    def decided(self) -> list[ConnectionDecided]:
        found = [event.data for event in self.feed.events(CONNECTIONS)]
        return [data for data in found if isinstance(data, ConnectionDecided)]


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The development issuer as its own process; its address."""
    port = free_port()
    environ = {**os.environ, "PORT": str(port), "JWT_AUDIENCE": "leaderboard"}
    argv = [sys.executable, "-m", "leaderboard.stack.issuer"]
    log = tmp_path_factory.mktemp("issuer") / "issuer.log"
    process = Process("issuer", argv, log_path=log, environ=environ)
    process.start()
    try:
        process.wait_until(lambda: accepts(port), 20)
        yield f"http://{LOOPBACK}:{port}"
    finally:
        process.stop()


@pytest.fixture(params=gateways.KINDS)
def scene(
    request: pytest.FixtureRequest,
    redis_url: str,
    issuer: str,
    players: Players,
    tmp_path: Path,
) -> Iterator[Scene]:
    client = connect(redis_url)
    client.flushall()
    _schedule(RedisDirectory(client), RedisBoard(client, TOMBSTONE_KEY))
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    with (
        gateways.running(request.param, tmp_path, url + asks_at(request.param)) as server,
        engine_of(loaded(f"sqlite:///{tmp_path}/record.sqlite")) as engine,
    ):
        settings = {
            **SETTINGS,
            "REDIS_URL": redis_url,
            "DATABASE_URL": str(engine.url),
            "JWT_ISSUER": issuer,
            "JWKS_URL": f"{issuer}/.well-known/jwks.json",
            **gateways.settings_of(server),
        }
        with hosted("on-connect", settings) as one, _served(one, port):
            feed = MemoryFeed()
            connections = RedisConnections(client)
            erasures = RedisErasures(client, TOMBSTONE_KEY)
            gateway, way_in = gateways.publisher(server), gateways.way_in(server)
            directory = RedisDirectory(client)
            tournaments = Tournaments(lambda: directory, one.main._record)
            entrance = RedisEntrance(client, TOMBSTONE_KEY)
            board = RedisBoard(client, TOMBSTONE_KEY)
            one.main.ports.put(
                one.main.Ports(connections, tournaments, entrance, board, feed, gateway, way_in)
            )
            away = 500 if request.param == gateways.WEB_PUBSUB else 503
            yield Scene(
                one, url, gateway, feed, connections, erasures, issuer, players, engine, away
            )
            one.main.closer.stop()
    client.close()


def asks_at(kind: str) -> str:
    """Where a gateway of this kind asks."""
    return "/v1/web-pubsub/events" if kind == gateways.WEB_PUBSUB else "/internal/authorize"


class _served:  # noqa: N801 - reads as a statement
    """The function's app on a real port, in a thread."""

    def __init__(self, one: Hosted, port: int) -> None:
        self._server = make_server(LOOPBACK, port, one.client.application, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _schedule(directory: RedisDirectory, board: Board) -> None:
    applied = board.apply(T, "log", None, [scheduled(0, T, starts_ms=START_MS)], None)
    assert applied.terms is not None
    directory.put(Summary(T, applied.terms))


def test_player_enters_and_hears_the_top_and_their_own_news(scene: Scene) -> None:
    way = scene.way_in("alice")
    assert way["channels"] == [f"top.{T}", f"me.{T}.alice", f"curve.{T}"]
    assert way["expires_at"].endswith("Z")
    socket = scene.greeted(scene.players.connect(way["url"]))
    scene.gateway.publish([Frame(f"top.{T}", b"1"), Frame(f"me.{T}.alice", b"2")])
    assert sorted([socket.next(), socket.next()]) == ["1", "2"]
    scene.gateway.publish([Frame(f"me.{T}.bob", b"3")])
    assert socket.is_silent(0.1)
    assert scene.connections.live(T, [PlayerId("alice")]) == {"alice"}


def test_way_in_is_good_once(scene: Scene) -> None:
    url = scene.way_in("alice")["url"]
    scene.players.connect(url)
    assert scene.players.refused(url) == 403


def test_every_attempt_is_recorded_with_address_and_user_agent(scene: Scene) -> None:
    scene.enter("alice")
    scene.players.refused(f"{scene.way_in('bob')['url'].rpartition('=')[0]}=guessed")
    (allowed, refused) = scene.decided()
    assert (allowed.tournament_id, allowed.player_id, allowed.allowed) == (T, "alice", True)
    assert (allowed.reason, allowed.address) == ("allowed", LOOPBACK)
    assert allowed.user_agent == "alice's browser"
    assert (refused.tournament_id, refused.player_id, refused.allowed) == (None, None, False)
    assert (refused.reason, refused.address) == ("unknown_ticket", LOOPBACK)


def test_newest_connection_wins(scene: Scene) -> None:
    first = scene.enter("alice")
    other = scene.enter("bob")
    second = scene.enter("alice")
    assert first.ends(2)
    assert second.is_open()
    assert other.is_open()
    scene.gateway.publish([Frame(f"me.{T}.alice", b"1")])
    assert second.next() == "1"


def test_socket_ends_with_its_token(scene: Scene) -> None:
    class ShortTokens(KnownTokens):
        def verify(self, token: str) -> Caller:
            expires_at_ms = int(time.time() * 1000) + 1500
            return Caller("alice", frozenset({"player"}), expires_at_ms)

    scene.one.main.tokens.put(ShortTokens())
    answer = scene.post({"Authorization": "Bearer x"})
    socket = scene.players.connect(answer.json()["url"])
    assert not socket.ends(1.0)
    assert socket.ends(3.0)
    late = scene.post({"Authorization": "Bearer x"}).json()["url"]
    time.sleep(1.6)
    assert scene.players.refused(late) == 403
    assert scene.decided()[-1].reason == "token_over"


def test_without_a_sound_token_there_is_no_way_in(scene: Scene) -> None:
    for headers in ({}, {"Authorization": "Bearer a.b.c"}, {"Authorization": "Basic YTpi"}):
        answer = scene.post({**headers, "User-Agent": "a thief"})
        assert answer.status_code == 401
        assert answer.headers["Content-Type"] == "application/problem+json"
        last = scene.decided()[-1]
        assert (last.allowed, last.reason, last.player_id) == (False, "unauthenticated", None)
        assert (last.tournament_id, last.user_agent) == (T, "a thief")
    assert len(scene.decided()) == 3


def test_staff_have_no_connection_of_their_own(scene: Scene) -> None:
    for role in ("operator", "auditor", "service"):
        assert scene.post(scene.token("staff", role)).status_code == 403
        assert scene.decided()[-1].reason == "forbidden"


def test_tournament_that_only_the_record_knows_is_known(scene: Scene, redis_url: str) -> None:
    """A list that was emptied, or a board that went a day after its end."""
    RecordedLog(scene.engine).take(T, [scheduled(0, T, starts_ms=START_MS)])
    directory = RedisDirectory(connect(redis_url))
    directory.remove(T)
    assert scene.post(scene.token("alice")).status_code == 201


def test_lost_list_is_no_empty_one_while_the_record_is_away(scene: Scene, redis_url: str) -> None:
    without_record(scene, redis_url)
    assert scene.post(scene.token("alice")).status_code == 201
    RedisDirectory(connect(redis_url)).remove(T)
    assert scene.post(scene.token("alice")).status_code == 201, "who found it once knows it"
    without_record(scene, redis_url)  # a process that has not found it yet
    answer = scene.post(scene.token("alice"))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert [one.reason for one in scene.decided()] == []


def test_unknown_tournament_is_404_and_recorded(scene: Scene) -> None:
    answer = scene.post(scene.token("alice"), "/v1/tournaments/none/connections")
    assert answer.status_code == 404
    last = scene.decided()[-1]
    assert (last.reason, last.player_id, last.tournament_id) == (
        "unknown_tournament", "alice", "none",
    )  # fmt: skip


def test_hostile_tournament_is_404(scene: Scene) -> None:
    alice = scene.token("alice")
    for name in ("a.b", "{}", "x" * 65, "a%0Ab", "%C3%A4", "a:b"):
        assert scene.post(alice, f"/v1/tournaments/{name}/connections").status_code == 404


def test_erased_player_gets_no_way_in_and_no_record_knows_them(scene: Scene) -> None:
    url = scene.way_in("alice")["url"]
    scene.erasures.begin(PlayerId("alice"), 1)
    assert scene.post(scene.token("alice")).status_code == 403
    assert scene.players.refused(url) == 403
    assert [one.reason for one in scene.decided()] == ["player_erased"] * 2
    assert {one.player_id for one in scene.decided()} == {None}


def forgotten(scene: Scene, redis_url: str, *witnesses: str) -> None:
    """Alice's erasure as `on-wager` and `archive` left it; the request has got lost since."""
    log = [scheduled(0, T, starts_ms=START_MS), erased_in(T, 1, "alice")]
    with closing(connect(redis_url)) as client:
        if "board" in witnesses:
            RedisBoard(client, TOMBSTONE_KEY).apply(T, "log", None, log, None)
        else:
            client.delete(*keys_of(T))
    if "record" in witnesses:
        RecordedLog(scene.engine).take(T, log)
    assert not scene.erasures.is_erased(PlayerId("alice"))


def erased_in(tournament_id: TournamentId, offset: int, player_id: str) -> LogEntry:
    data = PlayerErased(tournament_id=tournament_id, player_id=player_id, erasure_id="er-x")
    return entry(offset, data)


def without_record(scene: Scene, redis_url: str) -> None:
    nowhere = sql_engine.connect(loaded("postgresql://nobody@127.0.0.1:1/nowhere"))
    directory = RedisDirectory(connect(redis_url))
    away = Tournaments(lambda: directory, lambda: SqlRecord(nowhere))
    scene.one.main.ports.put(replace(scene.one.main.ports(), tournaments=away))


@pytest.mark.parametrize("witness", ["board", "record"])
def test_erased_player_gets_no_way_in_although_the_request_is_lost(
    scene: Scene, redis_url: str, witness: str
) -> None:
    """One shard of a cluster has lost its tail, and with it the one key of the request."""
    url = scene.way_in("alice")["url"]
    forgotten(scene, redis_url, witness)
    if witness == "board":
        without_record(scene, redis_url)
    assert scene.post(scene.token("alice")).status_code == 403
    assert scene.players.refused(url) == 403
    assert [one.reason for one in scene.decided()] == ["player_erased"] * 2
    assert {one.player_id for one in scene.decided()} == {None}
    scene.players.connect(scene.way_in("bob")["url"])


def test_where_nobody_can_say_who_was_forgotten_nobody_gets_in(
    scene: Scene, redis_url: str
) -> None:
    url = scene.way_in("alice")["url"]
    forgotten(scene, redis_url)
    without_record(scene, redis_url)
    answer = scene.post(scene.token("alice"))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert scene.players.refused(url) == scene.away_status
    assert scene.decided() == []


def test_board_that_is_away_leaves_it_to_the_record(scene: Scene, redis_url: str) -> None:
    class BoardAway:
        def is_erased(self, *_: Any) -> None:
            raise TransientError("the board is away")

    forgotten(scene, redis_url, "board", "record")
    away: Any = BoardAway()
    entrance = StepwiseEntrance(scene.erasures, away, scene.connections)
    scene.one.main.ports.put(replace(scene.one.main.ports(), entrance=entrance))
    assert scene.post(scene.token("alice")).status_code == 403
    assert scene.post(scene.token("bob")).status_code == 201
    without_record(scene, redis_url)
    assert scene.post(scene.token("bob")).status_code == 503


@pytest.mark.parametrize("scene", gateways.WITH_NCHAN_S_SURFACE, indirect=True)
def test_store_is_asked_six_times_until_a_player_is_in(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of what a connection costs is the way to the store and back. (Web PubSub tells when a
    socket is open and when it ends: the top is read then, and the lease given back.)"""
    sent: list[str] = []
    send: Any = AbstractConnection.send_packed_command

    def counted(connection: Any, *args: Any, **options: Any) -> Any:
        if threading.current_thread().name != "closer":
            sent.append(threading.current_thread().name)
        return send(connection, *args, **options)

    scene.enter("bob")
    token = scene.token("alice")
    monkeypatch.setattr(AbstractConnection, "send_packed_command", counted)
    url = scene.post(token).json()["url"]
    assert len(sent) == 3, "how often they asked, the look, and the ticket"
    first = scene.players.connect(url)
    assert len(sent) == 6, "the ticket, the look, and the lease with all that belongs to it"
    second = scene.enter("alice")
    assert len(sent) == 12, "one more is not dearer"
    assert first.ends(2)
    assert second.is_open()


def test_erasure_during_the_decision_still_closes_the_door(scene: Scene) -> None:
    url = scene.way_in("alice")["url"]
    publish = scene.feed.publish

    def erased_meanwhile(outgoing: Any) -> Any:
        scene.erasures.begin(PlayerId("alice"), 1)
        return publish(outgoing)

    scene.feed.publish = erased_meanwhile  # type: ignore[method-assign]
    assert scene.players.refused(url) == 403
    assert [one.reason for one in scene.decided()] == ["allowed", "player_erased"]
    assert scene.connections.holder(T, PlayerId("alice")) is None


def test_store_that_is_emptied_during_the_decision_leaves_no_older_socket(
    scene: Scene, redis_url: str
) -> None:
    first = scene.enter("alice")
    url = scene.way_in("alice")["url"]
    publish = scene.feed.publish

    def emptied_meanwhile(outgoing: Any) -> Any:
        with closing(connect(redis_url)) as client:
            client.flushall()
        return publish(outgoing)

    scene.feed.publish = emptied_meanwhile  # type: ignore[method-assign]
    second = scene.players.connect(url)
    assert first.ends(1)
    assert second.is_open()


def test_what_can_t_be_recorded_does_not_take_effect(scene: Scene) -> None:
    class FeedAway(MemoryFeed):
        def publish(self, outgoing: Any) -> Any:
            raise TransientError("Kafka is away")

    first = scene.enter("alice")
    url = scene.way_in("alice")["url"]
    known = scene.one.main.ports()
    scene.one.main.ports.put(replace(known, feed=FeedAway()))
    assert scene.players.refused(url) == scene.away_status
    assert scene.post({}).status_code == 503
    assert not first.ends(0.3)


def test_socket_whose_opener_died_is_closed_by_whoever_runs(scene: Scene) -> None:
    """A crash between lease and close: the set of due connections still has the one before."""
    first = scene.enter("alice")
    stolen = Grant(T, PlayerId("alice"), "elsewhere", int(time.time() * 1000) + 60_000)
    assert scene.connections.lease(stolen) is not None
    assert first.ends(3)


def test_due_connections_wait_for_a_gateway_that_is_away(scene: Scene) -> None:
    main = scene.one.main
    known = main.ports()
    nowhere = NchanGateway(f"http://{LOOPBACK}:{free_port()}")
    away = replace(known, gateway=nowhere)
    main.ports.put(away)
    scene.connections.lease(Grant(T, PlayerId("zoe"), "z", int(time.time() * 1000) - 1))
    with pytest.raises(TransientError):
        main.close_due(away, int(time.time() * 1000))
    assert list(scene.connections.due(int(time.time() * 1000), 10)) == ["z"]
    main.ports.put(known)
    main.closer.start()
    eventually(lambda: not scene.connections.due(int(time.time() * 1000), 10))
    scene.connections.lease(Grant(T, PlayerId("zoe"), "z2", int(time.time() * 1000) + 60_000))
    eventually(lambda: REGISTRY.get_sample_value("leaderboard_connections") == 1)


def test_function_describes_itself(scene: Scene) -> None:
    check_description(scene.one, {"/v1/tournaments/{tournament_id}/connections"})


def test_forked_worker_closes_what_is_due_before_any_request(
    redis_url: str, issuer: str, tmp_path: Path
) -> None:
    """The real server: functions-framework under gunicorn, with Kafka away."""
    client = connect(redis_url)
    client.flushall()
    _schedule(RedisDirectory(client), MemoryBoard(TOMBSTONE_KEY))
    connections, port = RedisConnections(client), free_port()
    authorize = f"http://{LOOPBACK}:{port}/internal/authorize"
    with gateways.running(gateways.DEVELOPMENT, tmp_path, authorize) as server:
        settings = {
            **os.environ,
            **SETTINGS,
            "REDIS_URL": redis_url,
            "JWT_ISSUER": issuer,
            "JWKS_URL": f"{issuer}/.well-known/jwks.json",
            "GATEWAY_PUBLISH_URL": server.publish_url,
            "KAFKA_BOOTSTRAP_SERVERS": f"{LOOPBACK}:{free_port()}",
            "HOST": LOOPBACK,
        }
        program = str(Path(sys.executable).with_name("functions-framework"))
        source = str(FUNCTIONS / "on-connect" / "main.py")
        argv = [program, "--source", source, "--target", "on_connect", "--port", str(port)]
        process = Process("on-connect", argv, log_path=tmp_path / "f.log", environ=settings)
        connections.lease(Grant(T, PlayerId("zoe"), "z", int(time.time() * 1000) - 1))
        process.start()
        try:
            process.wait_until(lambda: accepts(port), 20)
            eventually(lambda: not connections.due(int(time.time() * 1000), 10))
            started = time.monotonic()
            answer = httpx.post(f"http://{LOOPBACK}:{port}{OPEN}", timeout=10)
            assert answer.status_code == 503  # refused, but the refusal could not be recorded
            assert time.monotonic() - started < 5
        finally:
            process.stop()
    client.close()


@pytest.mark.parametrize(
    "name",
    ["REDIS_URL", "JWKS_URL", "GATEWAY_CLIENT_URL", "TOMBSTONE_KEY", "KAFKA_BOOTSTRAP_SERVERS"],
)
def test_missing_setting_stops_the_start_and_is_named(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {key: value for key, value in SETTINGS.items() if key != name}
    with pytest.raises(SystemExit), hosted("on-connect", settings):
        pass
    assert name in capsys.readouterr().err


def test_issuer_serves_loopback_pages_only(issuer: str) -> None:
    body = {"subject": "alice", "roles": ["player"]}
    own = {"Origin": "http://localhost:8080"}
    good = httpx.post(f"{issuer}/token", json=body, headers=own)
    assert good.status_code == 200
    assert good.headers["Access-Control-Allow-Origin"] == "http://localhost:8080"
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        assert httpx.post(f"{issuer}/token", json=body, headers=headers).status_code == 403
    assert httpx.post(f"{issuer}/token", json={"subject": "a b"}).status_code == 422
    assert httpx.post(f"{issuer}/token", json={**body, "roles": ["root"]}).status_code == 422


# --- only where the gateway is Azure Web PubSub ------------------------------------------------

over_web_pubsub = pytest.mark.parametrize("scene", [gateways.WEB_PUBSUB], indirect=True)
EVENTS = "/v1/web-pubsub/events"


def told(scene: Scene, kind: str, **headers: str) -> httpx.Response:
    """An event as the service sends it; headers by their names without `ce-`."""
    sound = {
        "type": f"azure.webpubsub.{kind}",
        "connectionId": "c1",
        "hub": gateways.HUB,
        "signature": signature(gateways.KEYS[1].encode(), "c1"),
    }
    ce = {f"ce-{name}": text for name, text in {**sound, **headers}.items()}
    return httpx.post(scene.url + EVENTS, json={}, headers=ce)


@over_web_pubsub
def test_who_enters_sees_the_top_at_once(scene: Scene) -> None:
    data = ScoreSubmitted(tournament_id=T, player_id="zoe", score=7)
    board = scene.one.main.ports().board
    board.apply(T, "log", None, [scheduled(0, T, starts_ms=START_MS), entry(1, data)], None)
    frame = scene.players.connect(scene.way_in("alice")["url"]).next_json()
    assert (frame["type"], frame["sequence"]) == ("top", 1)
    assert [row[:2] for row in frame["standings"]] == [[1, "zoe"]]


@over_web_pubsub
def test_player_who_left_is_sent_nothing_more(scene: Scene) -> None:
    """Each frame for a player is a request that is paid for."""
    socket = scene.enter("alice")
    assert scene.connections.live(T, [PlayerId("alice")]) == {"alice"}
    socket.close()
    eventually(lambda: not scene.connections.live(T, [PlayerId("alice")]))


@over_web_pubsub
def test_one_who_left_takes_nothing_from_the_newer_one(scene: Scene) -> None:
    first = scene.enter("alice")
    second = scene.enter("alice")
    assert first.ends(2)
    time.sleep(0.3)  # `disconnected` of the first one is told after the second one's lease
    assert scene.connections.live(T, [PlayerId("alice")]) == {"alice"}
    scene.gateway.publish([Frame(f"me.{T}.alice", b"1")])
    assert second.next_json() == 1


@over_web_pubsub
def test_only_our_service_may_send_events_here(scene: Scene) -> None:
    ours = scene.gateway._base.split("/")[2]  # type: ignore[union-attr]
    for origin in (ours, "other.webpubsub.azure.com"):
        answer = httpx.options(scene.url + EVENTS, headers={"WebHook-Request-Origin": origin})
        assert (answer.status_code, answer.headers["WebHook-Allowed-Origin"]) == (200, ours)
    answer = httpx.options(scene.url + EVENTS)
    assert answer.status_code == 422
    assert "WebHook-Allowed-Origin" not in answer.headers


@over_web_pubsub
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"signature": ""}, 401),
        ({"signature": signature(b"another key", "c1")}, 401),
        ({"connectionId": "c2"}, 401),
        ({"connectionId": "", "signature": signature(gateways.KEYS[0].encode(), "")}, 401),
        ({"signature": ",".join([signature(gateways.KEYS[0].encode(), "c1")] * 5)}, 401),
        ({"hub": "other"}, 422),
        ({"type": "azure.webpubsub.sys.renamed"}, 422),
        ({"type": "other"}, 422),
    ],
)
def test_event_that_the_service_did_not_send_is_refused(
    scene: Scene, headers: dict[str, str], status: int
) -> None:
    scene.enter("alice")
    for kind in ("sys.connect", "sys.connected", "sys.disconnected", "user.message"):
        assert told(scene, kind, **headers).status_code == status
    assert [one.reason for one in scene.decided()] == ["allowed"]
    assert scene.connections.live(T, [PlayerId("alice")]) == {"alice"}


@over_web_pubsub
def test_event_that_is_signed_is_answered_by_what_it_is(scene: Scene) -> None:
    assert told(scene, "user.message").status_code == 403
    assert told(scene, "sys.connect").status_code == 403
    assert [one.reason for one in scene.decided()] == ["no_ticket"]
    for state in ("", "e30=", "no base64", "W10=", "bnVsbA=="):
        assert told(scene, "sys.connected", connectionState=state).status_code == 422
        assert told(scene, "sys.disconnected", connectionState=state).status_code == 422


@over_web_pubsub
def test_a_body_that_is_no_event_is_refused(scene: Scene) -> None:
    signed = {
        "ce-type": "azure.webpubsub.sys.connect",
        "ce-connectionId": "c1",
        "ce-hub": gateways.HUB,
        "ce-signature": signature(gateways.KEYS[0].encode(), "c1"),
    }
    for body, status in ((b"{", 400), (b"[]", 422), (b'"x"', 422), (b"\xff", 400)):
        answer = httpx.post(scene.url + EVENTS, content=body, headers=signed)
        assert answer.status_code == status
    for body in (b'{"query": []}', b'{"query": {"ticket": "x"}}', b'{"query": {"ticket": []}}'):
        answer = httpx.post(scene.url + EVENTS, content=body, headers=signed)
        assert answer.status_code == 403


def test_gateway_that_is_not_there_is_not_answered(scene: Scene) -> None:
    is_service = isinstance(scene.gateway, WebPubSubGateway)
    asked = httpx.get(f"{scene.url}/internal/authorize", headers={"X-Ticket": "x"})
    assert asked.status_code == (404 if is_service else 403)
    assert httpx.post(scene.url + EVENTS, json={}).status_code == (401 if is_service else 404)


# --- how often, how many, from where -----------------------------------------------------------


@pytest.mark.parametrize("scene", gateways.WITH_NCHAN_S_SURFACE, indirect=True)
def test_ticket_that_was_stolen_opens_nothing_elsewhere(scene: Scene) -> None:
    """And it is used up: not even who was robbed gets in with it, but with a new one."""
    token = scene.token("alice")
    for asked, tried in (
        ("192.0.2.7", LOOPBACK),
        ("2001:db8:1:2::7", LOOPBACK),
        ("6.6.6.6, 192.0.2.7", LOOPBACK),
    ):
        answer = httpx.post(scene.url + OPEN, headers={**token, "X-Forwarded-For": asked})
        assert scene.players.refused(answer.json()["url"]) == 403
        last = scene.decided()[-1]
        assert (last.reason, last.player_id, last.address) == ("other_address", "alice", tried)
        assert scene.players.refused(answer.json()["url"]) == 403
        assert scene.decided()[-1].reason == "unknown_ticket"
    assert scene.connections.holder(T, PlayerId("alice")) is None
    assert scene.enter("alice").is_open()


@pytest.mark.parametrize("scene", gateways.WITH_NCHAN_S_SURFACE, indirect=True)
def test_ticket_may_be_good_from_everywhere(scene: Scene) -> None:
    ports = scene.one.main.ports()
    scene.one.main.ports.put(replace(ports, entry=entry_settings(TICKET_ADDRESS="any")))
    headers = {**scene.token("alice"), "X-Forwarded-For": "192.0.2.7"}
    answer = httpx.post(scene.url + OPEN, headers=headers)
    assert scene.players.connect(answer.json()["url"]).is_open()


def entry_settings(**given: str) -> EntranceSettings:
    return load(EntranceSettings, given)


def test_player_asks_for_so_many_ways_in_a_minute(scene: Scene) -> None:
    alice, began = scene.token("alice"), time.monotonic()
    told = [scene.post(alice) for _ in range(32)]
    passed = time.monotonic() - began
    assert [one.status_code for one in told] == [201] * 30 + [429] * 2
    assert told[29].headers["RateLimit"].startswith('"connections";r=0;')
    assert 59 - passed <= int(told[-1].headers["Retry-After"]) <= 60
    assert [one.reason for one in scene.decided()] == ["too_many"] * 2
    assert {one.address for one in scene.decided()} == {LOOPBACK}
    assert scene.post(scene.token("bob")).status_code == 201
    assert scene.players.connect(told[0].json()["url"]).is_open()


def test_tournament_has_so_many_sockets(scene: Scene) -> None:
    ports = scene.one.main.ports()
    scene.one.main.ports.put(replace(ports, entry=entry_settings(SOCKETS_PER_TOURNAMENT="2")))
    late = scene.way_in("late")["url"]
    alice, bob = scene.enter("alice"), scene.enter("bob")
    full = scene.post(scene.token("carol"))
    assert (full.status_code, full.headers["Retry-After"]) == (503, "1")
    assert scene.players.refused(late) == 403
    assert [one.reason for one in scene.decided()][-2:] == ["full", "full"]
    # Who is in comes in again: that is no connection more.
    again = scene.enter("alice")
    assert alice.ends(2)
    assert again.is_open()
    assert bob.is_open()
    scene.connections.release(T, PlayerId("bob"))
    assert scene.enter("carol").is_open()


def test_leases_that_are_over_take_nobodys_place(scene: Scene) -> None:
    ports = scene.one.main.ports()
    scene.one.main.ports.put(replace(ports, entry=entry_settings(SOCKETS_PER_TOURNAMENT="5")))
    now = int(time.time() * 1000)
    for number in range(40):
        gone = Grant(T, PlayerId(f"gone{number}"), f"c{number}", now - 1000)
        scene.connections.lease(gone)
    scene.connections.lease(Grant(T, PlayerId("stays"), "c", now + 900_000))
    assert scene.connections.sockets(T) == 41
    assert scene.enter("alice").is_open()
    assert scene.connections.sockets(T) == 2


def test_storm_leaves_no_more_than_a_connection_a_player(scene: Scene, redis_url: str) -> None:
    """Three players, each from three programs at once, as fast as they can: what stays is bounded,
    and everybody else is served as if nothing was."""
    tokens = {name: scene.token(name) for name in ("p1", "p2", "p3")}
    statuses: list[int] = []

    def storm(name: str) -> None:
        with httpx.Client() as client:
            for _ in range(60):
                answer = client.post(scene.url + OPEN, headers=tokens[name])
                statuses.append(answer.status_code)
                if answer.status_code == 201:
                    with suppress(aiohttp.WSServerHandshakeError):
                        scene.players.connect(answer.json()["url"])

    storms = [threading.Thread(target=storm, args=(name,)) for name in tokens for _ in range(3)]
    for one in storms:
        one.start()
    began = time.monotonic()
    assert scene.enter("bob").is_open()
    assert time.monotonic() - began < 5
    for one in storms:
        one.join()
    assert statuses.count(201) == 3 * 30
    assert statuses.count(429) == 9 * 60 - 90
    players = [PlayerId(name) for name in tokens]
    eventually(lambda: scene.connections.sockets(T) <= len(tokens) + 1)
    assert scene.connections.live(T, players) <= set(players)
    with closing(connect(redis_url)) as client:
        kept = [key for pattern in ("limit:*", "ticket:*") for key in client.scan_iter(pattern)]
        assert len(kept) <= 4 + 90
        assert all(0 < client.pttl(key) <= 61_000 for key in kept)
    # Those that lost are due, and closed: what is left is one each, and bob's.
    eventually(lambda: scene.connections.count() <= len(tokens) + 1)


def test_way_in_is_refused_while_nobody_can_count(scene: Scene) -> None:
    class Away:
        def begin(self, quota: Any, who: str) -> Any:
            raise TransientError("away")

        def check(self) -> None:
            raise TransientError("away")

    away: Any = Away()
    scene.one.main.app._door = GuardedDoor(lambda: away)
    answer = scene.post(scene.token("alice"))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
