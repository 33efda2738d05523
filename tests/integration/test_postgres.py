"""PostgreSQL as stacks and tests start it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psycopg
import pytest

from leaderboard.stack import postgres as module
from leaderboard.stack.postgres import PostgresServer
from leaderboard.stack.process import PortTakenError, StackError, accepts, free_port
from running import is_alive


def asked(server: PostgresServer, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(server.url) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def test_server_keeps_its_data_through_restart_and_kill(tmp_path: Path) -> None:
    # As temporary folders are: nobody but the owner may pass.
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    server = PostgresServer(closed / "postgres", extra={"wal_level": "logical"})
    try:
        server.start()
        asked(server, "CREATE TABLE kept (name text)")
        asked(server, "INSERT INTO kept VALUES ('ä')")
        server.stop()
        assert not is_alive(server.pid)
        assert not accepts(server.port)
        server.start()
        asked(server, "INSERT INTO kept VALUES ('B')")
        os.kill(server.pid, signal.SIGKILL)
        server.process.kill()
        server.start()
        # C collation: by bytes.
        assert asked(server, "SELECT name FROM kept ORDER BY name") == [("B",), ("ä",)]
        told = [asked(server, f"SHOW {name}")[0][0] for name in ("fsync", "wal_level", "timezone")]
        assert told == ["on", "logical", "UTC"]
        assert closed.stat().st_mode & 0o777 == 0o700
    finally:
        server.stop()
    assert not is_alive(server.pid)


def test_client_that_stays_does_not_hold_up_the_end(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "postgres")
    server.start()
    try:
        client = psycopg.connect(server.url)
    finally:
        server.stop()
    assert not is_alive(server.pid)
    with pytest.raises(psycopg.OperationalError):
        client.execute("SELECT 1")
    client.close()


def test_port_that_is_taken_is_named_with_its_setting(postgres: str, tmp_path: Path) -> None:
    port = psycopg.conninfo.conninfo_to_dict(postgres)["port"]
    assert port is not None
    with pytest.raises(PortTakenError, match="POSTGRES_PORT"):
        PostgresServer(tmp_path, port=int(port))


def test_missing_programs_are_named_with_their_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "_DEBIAN", tmp_path)
    with pytest.raises(StackError, match="apt-get install postgresql"):
        PostgresServer(tmp_path / "postgres", port=free_port())


def test_setting_that_the_server_refuses_is_told(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "postgres", extra={"wal_level": "chatty"})
    with pytest.raises(StackError, match="Available values: minimal"):
        server.start()
