"""Reads over HTTP while what they are made from is killed, hangs, comes back, or is emptied.

`query` runs by its real command, over a Redis and a PostgreSQL that are real. Each test proves that
its fault bit: who answered changed, or a place could not be asked."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import redis

from hosting import FUNCTIONS, SETTINGS, Keeper
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import connect
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.fold import LogEntry
from leaderboard.stack.postgres import PostgresServer
from leaderboard.stack.process import LOOPBACK, Process, accepts, free_port
from leaderboard.stack.servers import RedisServer
from logs import TOMBSTONE_KEY, T, joined, scheduled, scored
from records import engine_of, fold_of, loaded, take
from running import descendants, wait_for

BOARD = f"/v1/tournaments/{T}/standings?limit=20"
FIRST_SECONDS = 2.0
"""What the one reader that finds a store away may wait, on a busy machine."""
BACK_SECONDS = 15.0


class Told(NamedTuple):
    """One answer."""

    at: float
    seconds: float
    status: int
    source: str
    sequence: int


class Reader:
    """Reads one path all the time, as a page that polls, and keeps what it was told."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._url = url
        self._client = httpx.Client(headers=headers, timeout=20)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.told: list[Told] = []

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._stopped.wait(0.01):
            started = time.monotonic()
            answer = self._client.get(self._url)
            body = answer.json() if answer.status_code == 200 else {}
            self.told.append(
                Told(
                    started,
                    time.monotonic() - started,
                    answer.status_code,
                    body.get("source", ""),
                    body.get("sequence", -1),
                )
            )

    def wait_for(self, source: str) -> None:
        """Until an answer that was asked for from now on comes from there."""
        now = time.monotonic()
        wait_for(lambda: self.told[-1].at >= now and self.told[-1].source == source, BACK_SECONDS)


@dataclass
class Scene:
    """A running `query`, and what it reads."""

    url: str
    redis: RedisServer
    postgres: PostgresServer
    headers: dict[str, str]
    client: httpx.Client
    log: list[LogEntry]

    def reader(self, path: str = BOARD) -> Reader:
        return Reader(self.url + path, self.headers)

    def get(self, path: str) -> httpx.Response:
        return self.client.get(self.url + path, headers=self.headers)

    def keeper(self) -> Keeper:
        client = connect(self.redis.url)
        return Keeper(RedisBoard(client, TOMBSTONE_KEY), RedisDirectory(client))


@contextmanager
def running(name: str, argv: list[str], port: int, folder: Path, **environ: str) -> Iterator[str]:
    process = Process(
        name, argv, log_path=folder / f"{name}.log", environ={**os.environ, **environ}
    )
    process.start()
    try:
        process.wait_until(lambda: accepts(port), 30)
        yield f"http://{LOOPBACK}:{port}"
    finally:
        process.stop()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with ExitStack() as stack:
        store, database = RedisServer(tmp_path / "redis"), PostgresServer(tmp_path / "postgres")
        for server in (store, database):
            stack.callback(server.stop)
            server.start()
        engine = stack.enter_context(engine_of(loaded(database.url)))
        ports = free_port(), free_port()
        python = [sys.executable, "-m"]
        issuer = stack.enter_context(
            running(
                "issuer",
                [*python, "leaderboard.stack.issuer"],
                ports[0],
                tmp_path,
                PORT=str(ports[0]),
                JWT_AUDIENCE="leaderboard",
            )
        )
        settings = {
            **SETTINGS,
            "REDIS_URL": store.url,
            "DATABASE_URL": database.url,
            "JWT_ISSUER": issuer,
            "JWKS_URL": f"{issuer}/.well-known/jwks.json",
            "THREADS": "16",
            # A player's, so counted in Redis; and never too many.
            "REQUESTS_PER_MINUTE": "100000",
        }
        source = str(FUNCTIONS / "query" / "main.py")
        command = ["functions_framework", "--source", source, "--target", "query"]
        place = ["--host", LOOPBACK, "--port", str(ports[1])]
        url = stack.enter_context(
            running("query", [*python, *command, *place], ports[1], tmp_path, **settings)
        )
        asked = httpx.post(f"{issuer}/token", json={"subject": "p1", "roles": ["player"]})
        headers = {"Authorization": f"Bearer {asked.json()['token']}"}
        log = [scheduled(0), joined(1, "p1", "One")]
        log += [scored(10 + i, f"p{i % 50}", 1 + i) for i in range(400)]
        client = stack.enter_context(httpx.Client(timeout=20))
        scene = Scene(url, store, database, headers, client, log)
        scene.keeper().apply(T, log)
        take(fold_of(engine), log)
        yield scene


@contextmanager
def hanging(pid: int) -> Iterator[None]:
    """The process and its children, stopped for as long as this lasts."""
    pids = [pid, *descendants(pid)]
    try:
        for each in pids:
            os.kill(each, signal.SIGSTOP)
        yield
    finally:
        for each in pids:
            os.kill(each, signal.SIGCONT)


def assert_whole(told: list[Told], sequence: int) -> None:
    """Every answer was one, at this sequence or above, and one or two waited."""
    assert {one.status for one in told} == {200}
    assert min(one.sequence for one in told) >= sequence
    slow = [one.seconds for one in told if one.seconds > 0.4]
    assert len(slow) <= 2, slow
    assert max(one.seconds for one in told) < FIRST_SECONDS


def test_record_answers_while_redis_hangs_and_the_board_when_it_is_back(scene: Scene) -> None:
    with scene.reader() as reader:
        wait_for(lambda: bool(reader.told), 10)
        reader.wait_for("board")
        with hanging(scene.redis.pid):
            reader.wait_for("record")
            time.sleep(2)
            assert reader.told[-1].source == "record"
            assert scene.get("/readyz").status_code == 200
            assert len(scene.get("/v1/tournaments").json()["tournaments"]) == 1
        reader.wait_for("board")
    assert_whole(reader.told, 409)


def test_record_answers_while_redis_is_dead_and_until_its_boards_are_back(scene: Scene) -> None:
    with scene.reader() as reader:
        wait_for(lambda: bool(reader.told), 10)
        reader.wait_for("board")
        os.kill(scene.redis.pid, signal.SIGKILL)
        scene.redis.process.kill()
        reader.wait_for("record")
        time.sleep(1)
        scene.redis.start()
        with redis.Redis.from_url(scene.redis.url) as client:
            client.flushall()
        time.sleep(1.5)
        assert reader.told[-1].source == "record", "the store is back, the board is not"
        scene.keeper().apply(T, scene.log)
        reader.wait_for("board")
    assert_whole(reader.told, 409)


def test_board_that_is_folded_anew_is_not_shown_before_it_is_where_it_was(scene: Scene) -> None:
    with scene.reader() as reader:
        wait_for(lambda: bool(reader.told), 10)
        reader.wait_for("board")
        with redis.Redis.from_url(scene.redis.url) as client:
            client.flushall()
        reader.wait_for("record")
        keeper = scene.keeper()
        keeper.apply(T, scene.log[:200])
        time.sleep(0.5)
        assert reader.told[-1].source == "record", "the board is half way"
        keeper.apply(T, scene.log[200:])
        reader.wait_for("board")
    assert_whole(reader.told, 409)


@pytest.mark.parametrize("is_killed", [False, True])
def test_boards_do_not_wait_for_a_record_that_is_away(scene: Scene, is_killed: bool) -> None:
    def answers(path: str, status: int) -> Callable[[], bool]:
        return lambda: scene.get(path).status_code == status

    with scene.reader() as reader:
        wait_for(lambda: bool(reader.told), 10)
        reader.wait_for("board")
        assert answers("/v1/tournaments/nowhere", 404)()
        with ExitStack() as stack:
            if is_killed:
                os.kill(scene.postgres.pid, signal.SIGKILL)
                scene.postgres.process.kill()
            else:
                stack.enter_context(hanging(scene.postgres.pid))
            wait_for(answers("/v1/tournaments/nowhere", 503), 10)
            started = time.monotonic()
            for _ in range(20):
                assert len(scene.get("/v1/tournaments").json()["tournaments"]) == 1
            assert time.monotonic() - started < 2 + FIRST_SECONDS
            assert scene.get("/readyz").status_code == 200
        if is_killed:
            scene.postgres.start()
        wait_for(answers("/v1/tournaments/nowhere", 404), BACK_SECONDS)
    assert {one.source for one in reader.told} == {"board"}
    assert_whole(reader.told, 409)


def test_both_away_is_said_at_once_and_passes_by_itself(scene: Scene) -> None:
    assert scene.get(BOARD).status_code == 200
    with hanging(scene.postgres.pid), hanging(scene.redis.pid):
        wait_for(lambda: scene.get(BOARD).status_code == 503, 10)
        started = time.monotonic()
        for _ in range(10):
            answer = scene.get(BOARD)
            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "1"
        # One of them may still have been who found the record hanging; the others don't wait.
        assert time.monotonic() - started < 2 * FIRST_SECONDS
        assert scene.get("/readyz").status_code == 503
    wait_for(lambda: scene.get("/readyz").status_code == 200, BACK_SECONDS)
    wait_for(lambda: scene.get(BOARD).status_code == 200, BACK_SECONDS)
