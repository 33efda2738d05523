"""Which functions a stack runs: their commands, ports and names, in one table."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from leaderboard.stack.process import LOOPBACK


@dataclass(frozen=True, slots=True)
class Function:
    """One way in which a function runs.

    `target` is the HTTP entry, None for the Kafka host. `port_setting` moves its port; a Kafka
    host serves /healthz, /readyz and /metrics there. `url_setting` is where `.stack.env` tells
    the address (of several processes: the first one's)."""

    name: str
    folder: str
    port_setting: str
    default_port: int
    target: str | None = None
    url_setting: str | None = None

    @property
    def label(self) -> str:
        """As it stands in `PID_<label>_<n>`."""
        return self.name.upper().replace("-", "_")

    def command(self, root: Path, port: int) -> list[str]:
        """The program and its arguments, the same as in a container."""
        source = str(root / "functions" / self.folder / "main.py")
        if self.target is None:
            return [sys.executable, source]
        return [
            sys.executable, "-m", "functions_framework", "--source", source,
            "--target", self.target, "--host", LOOPBACK, "--port", str(port),
        ]  # fmt: skip

    def environ(self, settings: Mapping[str, str], port: int) -> dict[str, str]:
        """This process's environment, the stack's settings, and what only this function needs.

        `ON_WAGER__REDIS_URL` in the environment is REDIS_URL for this function alone: so something
        can be put between one function and what it stands on."""
        kept = {name: text for name, text in os.environ.items() if name not in _NOT_PASSED_ON}
        mark = f"{self.label}__"
        own = {n.removeprefix(mark): text for n, text in os.environ.items() if n.startswith(mark)}
        return {**kept, "THREADS": "16", **settings, **own, "PORT": str(port)}


_NOT_PASSED_ON: Final = frozenset(
    {"KAFKA_GROUP_ID", "FUNCTION_TARGET", "FUNCTION_SOURCE", "FUNCTION_SIGNATURE_TYPE", "HOST"}
)
"""Right for one process, wrong for all: one group id would put every function into one group."""

FUNCTIONS: Final = (
    Function("query", "query", "QUERY_PORT", 8400, "query", "QUERY_URL"),
    Function("on-connect", "on-connect", "CONNECT_PORT", 8401, "on_connect", "CONNECT_URL"),
    Function("erase", "erase", "ERASE_PORT", 8402, "erase", "ERASE_URL"),
    Function("tournament", "tournament", "TOURNAMENT_PORT", 8403, "tournament", "TOURNAMENT_URL"),
    Function("on-wager-http", "on-wager", "ON_WAGER_HTTP_PORT", 8404, "on_wager", "ON_WAGER_URL"),
    Function("on-wager", "on-wager", "ON_WAGER_PORT", 8405, url_setting="ON_WAGER_HEALTH_URL"),
    Function(
        "on-rank-change",
        "on-rank-change",
        "ON_RANK_CHANGE_PORT",
        8406,
        url_setting="ON_RANK_CHANGE_HEALTH_URL",
    ),
    Function("archive", "archive", "ARCHIVE_PORT", 8413, url_setting="ARCHIVE_HEALTH_URL"),
)
SERVER_PORTS: Final[Mapping[str, int]] = {
    "ISSUER_PORT": 8407,
    "GATEWAY_PORT": 8408,
    "GATEWAY_PUBLISH_PORT": 8409,
    "KAFKA_PORT": 8410,
    "REDIS_PORT": 8411,
    "POSTGRES_PORT": 8412,
    "TRACES_PORT": 8414,
}
