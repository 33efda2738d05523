"""(h) Start to ready: from the start of a function's process until `/readyz` answers 200, with its
servers there.

Warm: just after another start. Cold: no bytecode to be found, and no file of ours, of the
packages or of Python's library in memory; libraries that other processes have mapped stay there.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from bench.machine import Meter
from bench.report import Bench, Measured
from bench.servers import ROOT, Servers, servers
from leaderboard.stack.backbone import authorize_url, common_settings, issuer_service
from leaderboard.stack.functions import FUNCTIONS, Function
from leaderboard.stack.nginx import NginxServer
from leaderboard.stack.process import LOOPBACK, Process, free_port
from running import wait_for

NAMES = ("on-wager", "archive", "on-rank-change", "query", "on-connect", "erase", "tournament")
POLL_SECONDS = 0.002
PATIENCE_SECONDS = 60.0


def start(bench: Bench) -> None:
    """Each function warm and cold, in turns."""
    functions = {one.name: one for one in FUNCTIONS}
    with servers(partitions=10, postgres=True) as given, settings_of(given) as settings:
        # To see whether it works one of either host is enough; that all start is tested elsewhere.
        for name in ("on-wager", "query") if bench.small else NAMES:
            function = functions[name]
            bench.in_turns(
                f"start: {name}",
                "ms",
                {
                    "warm": partial(_warm, given.folder, function, settings),
                    "cold cache": partial(_cold, given.folder, function, settings),
                },
                better="lower",
            )


@contextmanager
def settings_of(given: Servers) -> Iterator[dict[str, str]]:
    """All that any function needs, with an issuer and a gateway to go with the servers."""
    ports = {one: free_port() for one in ("ISSUER_PORT", "QUERY_PORT", "CONNECT_PORT")}
    nginx = NginxServer(given.folder / "nginx", authorize_url=authorize_url(ports))
    issuer = issuer_service(given.folder, ports["ISSUER_PORT"])
    with ExitStack() as running:
        issuer.process.start()
        running.callback(issuer.process.stop)
        nginx.start()
        running.callback(nginx.stop)
        wait_for(issuer.answers, 30)
        yield {
            **common_settings(ports, {}),
            **given.settings,
            "PYTHONPATH": str(ROOT / "shared"),
            "GATEWAY_KIND": "nchan",
            "GATEWAY_PUBLISH_URL": nginx.publish_url,
            "GATEWAY_CLIENT_URL": nginx.client_url,
        }


def _warm(folder: Path, function: Function, settings: Mapping[str, str], _run: int) -> Measured:
    # The first start of all writes bytecode and makes Kafka's own topic; one behind a cold one
    # finds bytecode that is out of memory.
    _ready_ms(folder, function, settings)
    return _ready_ms(folder, function, settings)


def _cold(folder: Path, function: Function, settings: Mapping[str, str], _run: int) -> Measured:
    with tempfile.TemporaryDirectory() as empty:
        _forget_files()
        bytecode = {"PYTHONPYCACHEPREFIX": empty, "PYTHONDONTWRITEBYTECODE": "1"}
        return _ready_ms(folder, function, {**settings, **bytecode})


def _ready_ms(folder: Path, function: Function, settings: Mapping[str, str]) -> Measured:
    port = free_port()
    process = Process(
        function.name,
        function.command(ROOT, port),
        environ=function.environ(settings, port),
        log_path=folder / f"{function.name}.log",
    )
    started = time.perf_counter()
    process.start()
    try:
        meter = Meter({function.name: process.pid})
        while not _is_ready(port):
            assert process.is_running(), process.last_line()
            assert time.perf_counter() < started + PATIENCE_SECONDS, process.last_line()
            time.sleep(POLL_SECONDS)
        took_ms = (time.perf_counter() - started) * 1000
        usage = meter.read()
    finally:
        process.stop()
    return Measured(took_ms, {"cpu_s": usage[function.name].cpu_seconds}, usage)


def _is_ready(port: int) -> bool:
    connection = HTTPConnection(LOOPBACK, port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _forget_files() -> None:
    """Ask the kernel to drop from memory what Python would read; only whole, clean pages that
    nobody has mapped go."""
    paths = sysconfig.get_paths()
    folders = {paths["stdlib"], paths["purelib"], paths["platlib"], str(ROOT / "shared")}
    for folder in (*folders, str(Path(sys.executable).resolve().parent)):
        for path in Path(folder).rglob("*"):
            if path.suffix in {".py", ".pyc", ".so", ".lua"} or path.name.startswith("python"):
                _forget(path)


def _forget(path: Path) -> None:
    try:
        opened = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        pass
    finally:
        os.close(opened)
