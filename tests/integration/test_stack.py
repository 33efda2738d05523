"""Both stacks by their real command: started, told, healed, ended; nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from leaderboard.stack.functions import FUNCTIONS, SERVER_PORTS
from leaderboard.stack.kafka_jars import project_root
from leaderboard.stack.supervisor import StopRequestedError, Supervisor, restart_delay
from running import StackCommand, command, descendants, is_alive, wait_for

CONTRACT_SETTINGS = {
    "KAFKA_BOOTSTRAP_SERVERS",
    "REDIS_URL",
    "DATABASE_URL",
    "GATEWAY_KIND",
    "GATEWAY_PUBLISH_URL",
    "GATEWAY_CLIENT_URL",
    "JWT_ISSUER",
    "JWT_AUDIENCE",
    "JWKS_URL",
    "QUERY_URL",
    "CONNECT_URL",
    "ERASE_URL",
    "TOURNAMENT_URL",
}
SERVERS = {
    "embedded": {"PID_REDIS", "PID_ISSUER", "PID_GATEWAY"},
    "local": {"PID_REDIS", "PID_ISSUER", "PID_GATEWAY", "PID_KAFKA", "PID_POSTGRES"},
}
RESTART_SECONDS = 20.0
HTTP_FUNCTIONS = [f for f in FUNCTIONS if f.url_setting is not None]


@pytest.fixture(scope="module", params=["embedded", "local"])
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StackCommand]:
    """One of each kind, with two processes of `on-wager`."""
    words = ["stack", "--kind", request.param, "--free-ports", "--replicas", "on-wager=2"]
    running = StackCommand(tmp_path_factory.mktemp(request.param), words)
    running.start()
    try:
        yield running
    finally:
        running.stop()


def kind_of(stack: StackCommand) -> str:
    return {"development": "embedded", "nchan": "local"}[stack.env()["GATEWAY_KIND"]]


def test_stack_tells_settings_and_the_pid_of_every_process(stack: StackCommand) -> None:
    env = stack.env()
    assert set(env) >= CONTRACT_SETTINGS
    wanted = {f"PID_{f.label}_1" for f in FUNCTIONS} | {"PID_ON_WAGER_2", "PID_STACK"}
    assert {name for name in env if name.startswith("PID_")} == wanted | SERVERS[kind_of(stack)]
    assert all(is_alive(int(env[name])) for name in env if name.startswith("PID_"))
    assert stack.env_path.stat().st_mode & 0o077 == 0, "it holds secrets"


def test_every_function_is_ready(stack: StackCommand) -> None:
    for function in HTTP_FUNCTIONS:
        assert function.url_setting is not None
        answer = httpx.get(f"{stack.env()[function.url_setting]}/readyz", timeout=5)
        assert (function.name, answer.status_code) == (function.name, 200), answer.text


def test_killed_function_is_started_again_and_its_line_rewritten(stack: StackCommand) -> None:
    before = stack.env()
    killed = ["PID_ON_WAGER_1", "PID_QUERY_1"]
    for name in killed:
        os.kill(int(before[name]), signal.SIGKILL)
    wait_for(lambda: all(stack.env()[name] != before[name] for name in killed), RESTART_SECONDS)
    wait_for(lambda: is_ready(stack.env()["QUERY_URL"]), RESTART_SECONDS)
    others = {n: v for n, v in stack.env().items() if n not in killed}
    assert others == {n: v for n, v in before.items() if n not in killed}, "others were touched"


def test_killed_gateway_is_started_again_on_its_port(stack: StackCommand) -> None:
    before = stack.env()
    os.kill(int(before["PID_GATEWAY"]), signal.SIGKILL)
    wait_for(lambda: stack.env()["PID_GATEWAY"] != before["PID_GATEWAY"], RESTART_SECONDS)
    health = f"{before['GATEWAY_PUBLISH_URL']}/healthz"
    wait_for(lambda: answers(health), RESTART_SECONDS)


def test_second_stack_in_the_same_folder_is_refused(stack: StackCommand) -> None:
    done = command(["stack", "--kind", "embedded", "--free-ports"], stack.folder)
    assert done.returncode == 1
    assert "another stack is running" in done.stderr
    assert stack.env_path.exists(), "the first one's settings are gone"


def test_ctrl_c_stops_everything(stack: StackCommand) -> None:
    below = descendants(stack.pid)
    assert len(below) >= len(FUNCTIONS), "the test looks at the wrong processes"
    assert stack.stop(signal.SIGINT) == 0
    assert [pid for pid in below if is_alive(pid)] == []
    assert not stack.env_path.exists()


def test_nothing_outlives_a_killed_stack(tmp_path: Path) -> None:
    stack = StackCommand(tmp_path, ["stack", "--kind", "embedded", "--free-ports"])
    stack.start()
    below = descendants(stack.pid)
    assert len(below) >= len(FUNCTIONS)
    os.kill(stack.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, below)), RESTART_SECONDS)
    stack.stop()


@pytest.mark.parametrize("setting", ["QUERY_PORT", "REDIS_PORT", "GATEWAY_PUBLISH_PORT"])
def test_taken_port_is_named_with_the_setting_that_moves_it(tmp_path: Path, setting: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        words = ["stack", "--kind", "embedded", "--free-ports"]
        done = command(words, tmp_path, {setting: port})
    assert done.returncode == 1
    assert port in done.stderr
    assert setting in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / ".stack" / "logs").exists(), "something was started"


@pytest.mark.parametrize("setting", [*SERVER_PORTS, *(f.port_setting for f in FUNCTIONS)])
def test_port_that_is_none_is_refused(tmp_path: Path, setting: str) -> None:
    done = command(["stack", "--free-ports", "--traces"], tmp_path, {setting: "eighty"})
    assert done.returncode == 2
    assert f"{setting}: 'eighty' is no port" in done.stderr


def test_wrong_setting_stops_the_stack_naming_the_variable(tmp_path: Path) -> None:
    words = ["stack", "--kind", "embedded", "--free-ports"]
    done = command(words, tmp_path, {"BATCH_SIZE": "many"})
    assert done.returncode == 1
    assert "on-wager" in done.stderr
    assert "BATCH_SIZE" in done.stderr
    assert not (tmp_path / ".stack.env").exists()


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_function_without_settings_names_what_is_missing(function: object, tmp_path: Path) -> None:
    chosen = next(f for f in FUNCTIONS if f is function)
    environ = {"PATH": os.environ["PATH"], "PORT": "0"}
    done = subprocess.run(
        chosen.command(project_root(), 0),
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "REDIS_URL: is missing" in done.stderr or "KAFKA_BOOTSTRAP_SERVERS" in done.stderr
    assert "Traceback" not in done.stderr


def test_restarts_wait_longer_each_time_and_not_for_ever() -> None:
    delays = [restart_delay(failures) for failures in range(40)]
    assert delays == sorted(delays)
    assert delays[0] <= 0.1
    assert delays[-1] == 10


@pytest.fixture
def own_signals() -> Iterator[None]:
    """What a supervisor makes of signals does not outlast the test."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_signals")
def test_stop_that_was_asked_for_inside_a_finalizer_is_not_forgotten(tmp_path: Path) -> None:
    """As when a signal comes while garbage is collected: what its handler raises is ignored."""
    supervisor = Supervisor(tmp_path / "state", tmp_path / "env", lambda line: None)
    supervisor.open()
    with contextlib.suppress(StopRequestedError):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(StopRequestedError):
        supervisor.run()
    supervisor.stop()


def test_embedded_stack_needs_no_program_but_python(tmp_path: Path) -> None:
    settings = {"PATH": str(Path(sys.executable).parent)}
    stack = StackCommand(tmp_path, ["stack", "--kind", "embedded", "--free-ports"], settings)
    stack.start()
    stack.stop()


def is_ready(url: str) -> bool:
    return answers(f"{url}/readyz")


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
