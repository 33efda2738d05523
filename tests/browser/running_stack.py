"""An embedded stack as a child process, and a producer that speaks to its Kafka directly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from confluent_kafka import Producer

START_SECONDS = 90.0
STOP_SECONDS = 40.0
BOARD_SECONDS = 30.0
_PROGRAM = """
import sys
from pathlib import Path
from leaderboard.stack.stack import StackOptions, run_stack
options = StackOptions(kind="embedded", folder=Path(sys.argv[1]), free_ports=True)
run_stack(options, lambda text: print(text, flush=True), lambda settings: None)
"""


class RunningStack:
    """The stack of this folder, from `start` to `stop`; nothing else is ever touched."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "stack.log"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until every function answers. Fails with the stack's own words."""
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(self._folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._env_path.exists():
            ended = self._child.poll()
            if ended is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"the stack did not start (exit {ended}):\n{self._told()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ask it to stop, as Ctrl-C does; it ends its children itself."""
        if self._child is None:
            return
        self._child.send_signal(signal.SIGINT)
        try:
            self._child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
            raise AssertionError(f"the stack did not stop:\n{self._told()}") from None

    def setting(self, name: str) -> str:
        """A line of `.stack.env` as it is now: process ids change when one is started again."""
        lines = self._env_path.read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines)[name]

    def kill_gateway(self) -> int:
        """Kill the gateway with SIGKILL; its process id."""
        pid = int(self.setting("PID_GATEWAY"))
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_for_players(self, tournament_id: str, players: int) -> None:
        """Until `query` answers with this many players: all that was produced is on the board."""
        asked = httpx.post(
            f"{self.setting('ISSUER_URL')}/token",
            json={"subject": "tests", "roles": ["auditor"]},
        )
        headers = {"Authorization": f"Bearer {asked.raise_for_status().json()['token']}"}
        url = f"{self.setting('QUERY_URL')}/v1/tournaments/{tournament_id}/standings?limit=1"
        deadline = time.monotonic() + BOARD_SECONDS
        while True:
            answer = httpx.get(url, headers=headers)
            if answer.status_code == 200 and answer.json()["players"] == players:
                return
            assert time.monotonic() < deadline, f"{answer.status_code} {answer.text}"
            time.sleep(0.05)

    @property
    def _env_path(self) -> Path:
        return self._folder / ".stack.env"

    def _told(self) -> str:
        logs = [self._log, *sorted((self._folder / ".stack" / "logs").glob("*.log"))]
        ends = [path.read_text(encoding="utf-8", errors="replace")[-2000:] for path in logs]
        return "\n".join(f"--- {path.name}\n{end}" for path, end in zip(logs, ends, strict=True))


@dataclass(frozen=True, slots=True)
class Contest:
    """One running tournament in which a wager's stake is its points.

    Writes to `wagers` what any producer would: CloudEvents in binary mode, keyed by tournament,
    put together by hand, so that the contract is what is tested and not our own codec."""

    tournament_id: str
    producer: Producer

    def schedule(self, name: str) -> None:
        now = datetime.now(UTC)
        self._send(
            "tournament.scheduled",
            {
                "name": name,
                "starts_at": (now - timedelta(minutes=1)).isoformat(),
                "ends_at": (now + timedelta(hours=2)).isoformat(),
                "rules": {
                    "scoring": {"kind": "stake"},
                    "operator": "sum",
                    "order": "descending",
                    "currency": "EUR",
                    "join": "open",
                },
            },
        )

    def join(self, player_id: str, display_name: str) -> None:
        self._send("player.joined", {"player_id": player_id, "display_name": display_name})

    def wager(self, player_id: str, stake_minor: int) -> None:
        """One wager, acknowledged when this returns."""
        self.wagers([(player_id, stake_minor)])

    def wagers(self, placed: Iterable[tuple[str, int]]) -> None:
        for player_id, stake_minor in placed:
            data = {
                "player_id": player_id,
                "game_id": "roulette",
                "stake_minor": stake_minor,
                "win_minor": 0,
                "currency": "EUR",
            }
            self._send("wager.placed", data)
        self.flush()

    def flush(self) -> None:
        """Wait until Kafka has everything."""
        assert self.producer.flush(20) == 0, "Kafka did not take every event"

    def _send(self, name: str, data: Mapping[str, object]) -> None:
        whole = {"tournament_id": self.tournament_id, **data}
        headers = {
            "ce_specversion": "1.0",
            "ce_type": f"io.leaderboard.{name}.v1",
            "ce_source": "/tests/browser",
            "ce_id": uuid.uuid4().hex,
            "ce_time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "ce_partitionkey": self.tournament_id,
            "content-type": "application/json",
        }
        if "player_id" in whole:
            headers["ce_subject"] = str(whole["player_id"])
        self.producer.produce(
            "wagers",
            key=self.tournament_id,
            value=json.dumps(whole),
            headers=[(key, text.encode()) for key, text in headers.items()],
        )
