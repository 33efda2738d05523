"""Every function as its image, on real servers, as confined as in a cluster: ready in time, at work
together from a wager to a frame and into the record, gone when told.

    make images BASE=... && make images-check

Containers share the machine's network, so the servers listen on loopback only. Prints a table, with
the first start (nothing of the image is in memory, Kafka may have to make its own topics) and the
median, which is judged, and the slowest of three after it. Ends with 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any, Final

from audit_logs import settings_in
from leaderboard.adapters import sql_engine
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.model import TournamentId
from leaderboard.settings import DatabaseSettings, load
from leaderboard.stack.backbone import answers_ok, common_settings
from leaderboard.stack.functions import FUNCTIONS, SERVER_PORTS, Function
from leaderboard.stack.local import LocalBackbone
from leaderboard.stack.process import LOOPBACK, free_port
from running import wait_for
from sockets import Players, eventually
from whole_path import Path, schedule, unique, wager

READY_SECONDS: Final = 2.0
GONE_SECONDS: Final = 20
RUNS: Final = 3
CONFINED: Final = (
    *("--network", "host", "--read-only", "--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges"),
)
HOSTILE: Final = "id -u; touch /app/x /opt/x /tmp/x /etc/x 2>&1 | grep -vc 'Read-only file system'"


@dataclass(frozen=True)
class Docker:
    """The program, and the images' version."""

    program: str
    version: str

    def __call__(self, *words: str, check: bool = True) -> str:
        done = subprocess.run([self.program, *words], capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(words[:2])}: {done.stderr.strip()[-2000:]}")
        return done.stdout.strip()

    def image(self, name: str) -> str:
        return f"leaderboard/{name}:{self.version}"

    def size_mb(self, name: str) -> float:
        return int(self("image", "inspect", "--format", "{{.Size}}", self.image(name))) / 1e6


class Containers:
    """The functions of one stack as containers; stands where `running.StackCommand` stands."""

    def __init__(self, docker: Docker, ports: Mapping[str, int], settings: dict[str, str]) -> None:
        self._docker, self._ports, self._settings = docker, ports, settings
        self.ids: dict[str, str] = {}

    def env(self) -> dict[str, str]:
        return self._settings

    def start(self, function: Function) -> float:
        """Start it and wait until it is ready; the seconds that took."""
        port = self._ports[function.port_setting]
        settings = {**self._settings, "PORT": str(port), "HOST": LOOPBACK, "THREADS": "16"}
        told = [word for name, text in settings.items() for word in ("--env", f"{name}={text}")]
        started = time.perf_counter()
        container = self._docker(
            *("run", "-d", *CONFINED, *told, self._docker.image(function.folder)),
            *command_of(function),
        )
        self.ids[function.name] = container
        while not answers_ok(f"http://{LOOPBACK}:{port}/readyz"):
            assert time.perf_counter() < started + 60, self.log(function.name)
            time.sleep(0.01)
        return time.perf_counter() - started

    def stop(self, name: str) -> tuple[float, int]:
        """Ask it to end, as Kubernetes does; the seconds that took, and its exit code."""
        container, started = self.ids.pop(name), time.perf_counter()
        self._docker("stop", "--time", str(GONE_SECONDS), container)
        took = time.perf_counter() - started
        code = int(self._docker("inspect", "--format", "{{.State.ExitCode}}", container))
        self._docker("rm", container)
        return took, code

    def log(self, name: str) -> str:
        return self._docker("logs", "--tail", "30", self.ids[name], check=False)

    def remove(self) -> None:
        for container in self.ids.values():
            self._docker("rm", "--force", container, check=False)


def again(containers: Containers, function: Function) -> float:
    """End it and start it; the seconds until it was ready."""
    containers.stop(function.name)
    return containers.start(function)


def command_of(function: Function) -> list[str]:
    """As the manifests run it: see tests/deploy/test_manifests.py."""
    source = f"functions/{function.folder}/main.py"
    if function.target is None:
        return ["python", source]
    return ["functions-framework", "--source", source, "--target", function.target]


@contextmanager
def servers(folder: Folder) -> Iterator[tuple[dict[str, int], dict[str, str]]]:
    """Kafka, Redis, PostgreSQL, nginx + Nchan and the issuer; ports, and settings for functions."""
    names = [*SERVER_PORTS, *(one.port_setting for one in FUNCTIONS)]
    ports = {name: free_port() for name in names}
    for name in ("data", "logs"):
        (folder / name).mkdir()
    backbone = LocalBackbone(folder / "data", folder / "logs", ports)
    with ExitStack() as running:
        for service in backbone.services():
            service.start()
            running.callback(service.process.stop)
        for service in backbone.services():
            wait_for(service.answers, service.ready_seconds)
        backbone.prepare()
        urls = {
            f.url_setting: f"http://{LOOPBACK}:{ports[f.port_setting]}"
            for f in FUNCTIONS
            if f.url_setting is not None
        }
        # In the container's own memory: nothing else of it can be written to.
        log = {**settings_in(folder / "audit-log"), "AUDIT_LOG_URL": "file:///dev/shm"}
        yield ports, {**backbone.settings(), **common_settings(ports, {}), **log, **urls}


def whole_path(containers: Containers, players: Players, seconds: float = 20) -> None:
    """A tournament, a socket, a wager; the frame, the board, the record; each within `seconds`."""
    settings = containers.env()
    path = Path(containers, players)  # type: ignore[arg-type]  # it is asked for its settings only
    try:
        tournament_id = TournamentId(unique("cup"))
        path.publish([schedule(tournament_id), wager(tournament_id, "alice", 500)])
        eventually(lambda: path.get(f"/v1/tournaments/{tournament_id}").status_code == 200, seconds)
        socket = path.socket(tournament_id, "alice")
        try:
            path.publish([wager(tournament_id, "alice", 250)])
            eventually(lambda: socket.of_type("position"), seconds)
            eventually(lambda: socket.of_type("top")[-1:] != [], seconds)
        finally:
            socket.close()
        eventually(lambda: path.standings(tournament_id)[0]["score"] == 750, seconds)
        eventually(lambda: scores_on_record(settings, tournament_id) == [750], seconds)
        staff = path.headers("operator")
        cup = f"{settings['TOURNAMENT_URL']}/v1/tournaments/{tournament_id}"
        body = {"reason": "the test is over"}
        answer = path.http.post(f"{cup}/end", json=body, headers=staff)
        assert answer.status_code == 202, answer.text
        told = f"/v1/tournaments/{tournament_id}"
        eventually(lambda: path.get(told).json()["state"] == "ended", seconds)
        asked = f"{settings['ERASE_URL']}/v1/erasures"
        answer = path.http.post(asked, json={"player_id": "alice"}, headers=staff)
        assert answer.status_code == 202, answer.text
        at = f"{asked}/{answer.json()['erasure_id']}"
        eventually(lambda: path.http.get(at, headers=staff).json()["state"] == "done", seconds)
        assert path.http.post(settings["ON_WAGER_URL"], json={}).status_code == 401
    finally:
        path.close()


def scores_on_record(settings: Mapping[str, str], tournament_id: TournamentId) -> list[int]:
    """What `archive` has made of the log by itself."""
    engine = sql_engine.connect(load(DatabaseSettings, settings).url)
    try:
        view = SqlRecord(engine).top(tournament_id, 10)
    finally:
        engine.dispose()
    return [] if view is None else [one.score.score for one in view.standings]


def confined(docker: Docker, name: str) -> list[str]:
    """What is wrong with how an image runs: its user, what it may write, its health command."""
    told = docker("run", "--rm", *CONFINED, docker.image(name), "sh", "-c", HOSTILE, check=False)
    wrong = [] if told.split() == ["65532", "0"] else [f"user and writable places: {told.split()}"]
    health = docker(
        "image", "inspect", "--format", "{{.Config.Healthcheck.Test}}", docker.image(name)
    )
    return wrong if "functions/healthy.py" in health else [*wrong, f"health: {health}"]


def check(docker: Docker, names: list[str], folder: Folder, players: Players) -> list[str]:
    """Everything; what is wrong. Prints the table."""
    wrong = [f"{name}: {one}" for name in names for one in confined(docker, name)]
    chosen = [one for one in FUNCTIONS if one.folder in names]
    with servers(folder) as (ports, settings):
        containers = Containers(docker, ports, settings)
        try:
            first: dict[str, float] = {}
            ready: dict[str, list[float]] = {}
            for function in chosen:
                first[function.name] = containers.start(function)
                ready[function.name] = sorted(again(containers, function) for _ in range(RUNS))
            if len(chosen) == len(FUNCTIONS):
                whole_path(containers, players)
                print("whole path: a wager in Kafka to a frame, the board and its reads")
            print("function             MB  first s  ready s  slowest  gone s  exit")
            for function in chosen:
                health = health_of(docker, containers.ids[function.name])
                gone, code = containers.stop(function.name)
                name, slowest = function.name, ready[function.name][-1]
                seconds = ready[function.name][RUNS // 2]
                times = f"{first[name]:9.2f}{seconds:9.2f}{slowest:9.2f}{gone:8.2f}"
                print(f"{name:16}{docker.size_mb(function.folder):7.0f}{times}  {code}")
                if seconds > READY_SECONDS:
                    wrong.append(f"{name}: ready after {seconds:.2f} s")
                if code or gone > GONE_SECONDS:
                    wrong.append(f"{name}: ended with {code} after {gone:.1f} s")
                if health:
                    wrong.append(f"{name}: {health}")
        finally:
            containers.remove()
    if "tools" in names:
        print(f"{'tools':16}{docker.size_mb('tools'):7.0f}")
        status = ["run", "--rm", *CONFINED, docker.image("tools"), "leaderboard", "--help"]
        if "rebuild" not in docker(*status, check=False):
            wrong.append("tools: `leaderboard --help` does not answer")
    return wrong


def health_of(docker: Docker, container: str) -> str:
    """What the image's own health command says; empty if all is well."""
    command = ["exec", container, "python", "functions/healthy.py"]
    done = subprocess.run([docker.program, *command], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"health: {done.stderr.strip()}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="images")
    parser.add_argument("--docker", default="docker")
    parser.add_argument("--version", required=True)
    parser.add_argument("names", nargs="+")
    asked: Any = parser.parse_args(arguments)
    players = Players()
    try:
        with tempfile.TemporaryDirectory() as folder:
            Folder(folder).chmod(0o711)  # PostgreSQL and nginx's worker are other users
            wrong = check(Docker(asked.docker, asked.version), asked.names, Folder(folder), players)
    finally:
        players.stop()
    for one in wrong:
        print(one, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
