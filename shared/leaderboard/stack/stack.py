"""Starts a stack, keeps it running, ends it. `leaderboard stack` and `leaderboard run` call it."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from leaderboard.errors import SettingsError
from leaderboard.stack.backbone import (
    FUNCTIONS as FUNCTIONS_STAGE,
)
from leaderboard.stack.backbone import (
    PLAY,
    Backbone,
    answers_ok,
    audit_settings,
    common_settings,
    traces_service,
    traces_settings,
)
from leaderboard.stack.embedded import EmbeddedBackbone
from leaderboard.stack.functions import FUNCTIONS, Function
from leaderboard.stack.kafka_jars import project_root
from leaderboard.stack.local import LocalBackbone
from leaderboard.stack.ports import choose_ports
from leaderboard.stack.process import LOOPBACK, Process, free_port
from leaderboard.stack.supervisor import Service, StopRequestedError, Supervisor

TICK_SECONDS: Final = 1.0
ENV_FILE: Final = ".stack.env"
FOLDER: Final = ".stack"


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What was asked for. `replicas` counts processes of a function that reads Kafka;
    `redis_cluster` makes the local stack's Redis three primaries with a replica each; `traces`
    starts a collector, and has every process trace."""

    kind: Literal["embedded", "local"]
    folder: Path
    free_ports: bool = False
    sample_play: bool = False
    redis_cluster: bool = False
    traces: bool = False
    replicas: Mapping[str, int] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


def run_stack(
    options: StackOptions,
    tell: Callable[[str], None],
    ready: Callable[[Mapping[str, str]], None],
) -> None:
    """Run until SIGINT or SIGTERM. `ready` gets the settings as soon as everything answers.

    Raises StackError or SettingsError when it can't start; then nothing is left running."""
    _check_replicas(options.replicas)
    if options.redis_cluster and options.kind == "embedded":
        raise SettingsError("--redis: the embedded stack has one Redis; use --kind local")
    state = options.folder / FOLDER
    supervisor = Supervisor(state, options.folder / ENV_FILE, tell)
    supervisor.open()
    try:
        settings = _start(options, state, supervisor, tell)
        ready(settings)
        supervisor.run()
    except StopRequestedError:
        tell("stopping")
    finally:
        supervisor.stop()


def _start(
    options: StackOptions, state: Path, supervisor: Supervisor, tell: Callable[[str], None]
) -> dict[str, str]:
    backbone_class = EmbeddedBackbone if options.kind == "embedded" else LocalBackbone
    needless = (*backbone_class.needless_ports, *(() if options.traces else ("TRACES_PORT",)))
    ports = choose_ports(options.environ, free=options.free_ports, unused=needless)
    logs, data = state / "logs", state / "data"
    for folder in (logs, data):
        # Boards, log and record belong together: a stack starts with none of them.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    backbone: Backbone
    if options.kind == "embedded":
        backbone = EmbeddedBackbone(data, logs, ports)
    else:
        backbone = LocalBackbone(data, logs, ports, redis_cluster=options.redis_cluster)
    supervisor.at_end(backbone.close)
    tell("starting servers")
    traces_file = data / "traces.jsonl"
    traces = [traces_service(logs, traces_file, ports["TRACES_PORT"])] if options.traces else []
    supervisor.start([*backbone.services(), *traces])
    backbone.prepare()
    settings = backbone.settings() | common_settings(ports, options.environ)
    settings |= audit_settings(data)
    if options.traces:
        settings |= traces_settings(traces_file, ports["TRACES_PORT"], options.environ)
    settings |= {
        f.url_setting: f"http://{LOOPBACK}:{ports[f.port_setting]}"
        for f in FUNCTIONS
        if f.url_setting is not None
    }
    tell("starting functions")
    supervisor.start(
        [
            service
            for function in FUNCTIONS
            for service in _replicas(function, options, ports, settings, logs)
        ]
    )
    threading.Thread(
        target=_tick, args=(settings["TOURNAMENT_URL"], supervisor.stopping), daemon=True
    ).start()
    if options.sample_play:
        supervisor.start([_sample_play(settings, logs)])
    supervisor.publish(settings)
    return settings


def _check_replicas(replicas: Mapping[str, int]) -> None:
    known = {f.name for f in FUNCTIONS if f.target is None}
    for name, count in replicas.items():
        if name not in known:
            raise SettingsError(f"--replicas: {name!r} is none of {', '.join(sorted(known))}")
        if not 1 <= count <= 50:
            raise SettingsError(f"--replicas: {name}={count} is not from 1 to 50")


def _replicas(
    function: Function,
    options: StackOptions,
    ports: Mapping[str, int],
    settings: Mapping[str, str],
    logs: Path,
) -> list[Service]:
    """The processes of one function; only the first has the fixed port."""
    services = []
    for number in range(1, options.replicas.get(function.name, 1) + 1):
        port = ports[function.port_setting] if number == 1 else free_port()
        process = Process(
            f"{function.name}-{number}",
            function.command(project_root(), port),
            environ=function.environ(settings, port),
            log_path=logs / f"{function.name}-{number}.log",
        )
        services.append(
            Service(
                f"{function.label}_{number}", process, process.start, _ready(port), FUNCTIONS_STAGE
            )
        )
    return services


def _ready(port: int) -> Callable[[], bool]:
    return lambda: answers_ok(f"http://{LOOPBACK}:{port}/readyz")


def _sample_play(settings: Mapping[str, str], logs: Path) -> Service:
    process = Process(
        "sample-play",
        [sys.executable, "-m", "leaderboard.stack.sample_play"],
        environ={**os.environ, **settings},
        log_path=logs / "sample-play.log",
    )
    return Service("SAMPLE_PLAY", process, process.start, lambda: True, PLAY)


def _tick(tournament_url: str, stopping: threading.Event) -> None:
    """The clock of the stack: an event a second, as a PingSource sends it in a cluster."""
    while not stopping.wait(TICK_SECONDS):
        request = urllib.request.Request(  # noqa: S310 - our own address
            f"{tournament_url}/",
            method="POST",
            data=b"{}",
            headers={
                "ce-specversion": "1.0",
                "ce-id": uuid.uuid4().hex,
                "ce-source": "/stack/timer",
                "ce-type": "io.leaderboard.timer.ticked.v1",
                "ce-time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "content-type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=5):  # noqa: S310 - our own address
                pass
        except OSError:
            # The function is being started again; the next tick finds it.
            continue
