"""What the functions stand on in a stack: Kafka, stores, gateway, issuer, with their settings."""

from __future__ import annotations

import os
import secrets
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final, Protocol

from leaderboard.adapters import sql_migrations
from leaderboard.audit.notes import Signer
from leaderboard.settings import DatabaseSettings, load
from leaderboard.stack.process import LOOPBACK, Process
from leaderboard.stack.servers import RedisServer
from leaderboard.stack.supervisor import Service

AUDIENCE: Final = "leaderboard"
STORES, EDGE, FUNCTIONS, PLAY = 1, 2, 3, 4
"""Stages of the end: who produces stops before who stores."""


class Backbone(Protocol):
    """The servers of one kind of stack."""

    needless_ports: ClassVar[tuple[str, ...]]
    """Settings of ports that this kind does not use."""

    def services(self) -> list[Service]:
        """The servers, to be started together before anything else."""

    def prepare(self) -> None:
        """Called once when the servers are ready: topics, the record's tables, and a
        cluster of what are several."""

    def settings(self) -> dict[str, str]:
        """The part of the contract's settings that depends on the kind."""

    def close(self) -> None:
        """Called last."""


def answers_ok(url: str) -> bool:
    """Whether a GET of this loopback address says 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own address
            return bool(response.status == 200)
    except OSError:
        return False


def redis_service(server: RedisServer, logs: Path, label: str = "REDIS") -> Service:
    """A Redis, or one of several."""
    server.process.log_path = logs / f"{label.lower().replace('_', '-')}.log"
    return Service(label, server.process, server.launch, server.answers, STORES)


def issuer_service(logs: Path, port: int) -> Service:
    """The development issuer of tokens."""
    environ = {**os.environ, "PORT": str(port), "JWT_AUDIENCE": AUDIENCE}
    argv = [sys.executable, "-m", "leaderboard.stack.issuer"]
    process = Process("issuer", argv, log_path=logs / "issuer.log", environ=environ)
    jwks_url = f"http://{LOOPBACK}:{port}/.well-known/jwks.json"
    return Service("ISSUER", process, process.start, lambda: answers_ok(jwks_url), EDGE)


def traces_service(logs: Path, file: Path, port: int) -> Service:
    """The collector of traces, which writes `file`."""
    environ = {**os.environ, "PORT": str(port), "TRACES_FILE": str(file)}
    argv = [sys.executable, "-m", "leaderboard.stack.trace_collector"]
    process = Process("traces", argv, log_path=logs / "traces.log", environ=environ)
    healthy = f"http://{LOOPBACK}:{port}/healthz"
    return Service("TRACES", process, process.start, lambda: answers_ok(healthy), EDGE)


def traces_settings(file: Path, port: int, environ: Mapping[str, str]) -> dict[str, str]:
    """What makes every process of the stack, and commands beside it, trace."""
    return {
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{LOOPBACK}:{port}",
        # Somebody may be waiting to see them.
        "OTEL_BSP_SCHEDULE_DELAY": environ.get("OTEL_BSP_SCHEDULE_DELAY") or "250",
        "TRACES_FILE": str(file),
    }


def common_settings(ports: Mapping[str, int], environ: Mapping[str, str]) -> dict[str, str]:
    """The contract's settings that are the same in every stack, and the functions' addresses."""
    issuer_url = f"http://{LOOPBACK}:{ports['ISSUER_PORT']}"
    connect_url = f"http://{LOOPBACK}:{ports['CONNECT_PORT']}"
    pages = [f"http://{host}:{ports['QUERY_PORT']}" for host in (LOOPBACK, "localhost")]
    return {
        "JWT_ISSUER": issuer_url,
        "JWT_AUDIENCE": AUDIENCE,
        "JWKS_URL": f"{issuer_url}/.well-known/jwks.json",
        "ISSUER_URL": issuer_url,
        "TOMBSTONE_KEY": environ.get("TOMBSTONE_KEY") or secrets.token_hex(32),
        "ALLOWED_ORIGINS": environ.get("ALLOWED_ORIGINS") or ",".join(pages),
        "PAGE_TOKEN_URL": f"{issuer_url}/token",
        "PAGE_CONNECT_URL": connect_url,
    }


AUDIT_ORIGIN: Final = "leaderboard.local/audit"
"""Where nobody else's log could be called so: a stack's is checked with the key of that stack."""


def audit_settings(data: Path) -> dict[str, str]:
    """An audit log of its own, with a new key: in a file that only archive reads."""
    folder, key_file = data.absolute() / "audit-log", data.absolute() / "audit-signing-key"
    folder.mkdir()
    signer = Signer.generate(AUDIT_ORIGIN)
    key_file.touch(mode=0o600)
    key_file.write_text(f"{signer.private_text()}\n", encoding="utf-8")
    return {
        "AUDIT_LOG_URL": folder.as_uri(),
        "AUDIT_LOG_ORIGIN": AUDIT_ORIGIN,
        "AUDIT_SIGNING_KEY_FILE": str(key_file),
        "AUDIT_PUBLIC_KEY": str(signer.verifier),
    }


def make_record(database_url: str) -> None:
    """The tables of the record, before anything is started that reads or writes them."""
    sql_migrations.upgrade(load(DatabaseSettings, {"DATABASE_URL": database_url}).url)


def authorize_url(ports: Mapping[str, int]) -> str:
    """Whom the gateway asks before it opens a socket."""
    return f"http://{LOOPBACK}:{ports['CONNECT_PORT']}/internal/authorize"
