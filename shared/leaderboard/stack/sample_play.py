"""Sample players for `make run`: a tournament after the other, played by a believable crowd.

Runs as a process of its own, with the stack's settings in its environment, until it is stopped.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import httpx
from pydantic import BaseModel, ConfigDict, Field

from leaderboard import telemetry
from leaderboard.errors import SettingsError, TransientError
from leaderboard.events import WAGERS
from leaderboard.model import TournamentId
from leaderboard.settings import HttpUrl, KafkaSettings, load
from leaderboard.stack.play import Crowd, joining, wager
from leaderboard.stack.sender import Sender

SOURCE: Final = "/sample-play"
CURRENCY: Final = "EUR"
PREFIX: Final = "sample-"
BREAK_SECONDS: Final = 3.0
TITLES: Final = ("Evening Sprint", "Neon Cup", "River Rush", "High Noon", "Midnight Dash")
logger = logging.getLogger(__name__)


class SamplePlaySettings(BaseModel):
    """How much play. In-process Kafka keeps 5 MiB a partition, some 10,000 wagers: far more than
    any function is behind at the highest rate allowed here."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    tournament_url: HttpUrl = Field(alias="TOURNAMENT_URL")
    query_url: HttpUrl = Field(alias="QUERY_URL")
    issuer_url: HttpUrl = Field(alias="ISSUER_URL")
    players: Annotated[int, Field(ge=2, le=1000)] = Field(150, alias="SAMPLE_PLAYERS")
    rate: Annotated[float, Field(gt=0, le=100)] = Field(8.0, alias="SAMPLE_RATE")
    """Wagers a second, on average."""
    minutes: Annotated[float, Field(gt=0, le=24 * 60)] = Field(10.0, alias="SAMPLE_MINUTES")
    """How long one tournament takes."""


class SamplePlay:
    """Schedules, joins and plays until `stopping` is set."""

    def __init__(
        self, settings: SamplePlaySettings, sender: Sender, stopping: threading.Event
    ) -> None:
        self._settings = settings
        self._sender = sender
        self._stopping = stopping
        self._http = httpx.Client(timeout=10)
        # Not for secrets: which player wins a demonstration.
        self._random = random.Random()  # noqa: S311 - play, no secret
        self._crowd = Crowd(settings.players, self._random)

    def run(self) -> None:
        """Returns when `stopping` is set."""
        while not self._stopping.is_set():
            try:
                tournament_id, ends_at = self._running() or self._schedule()
                self._join(tournament_id)
                self._play(tournament_id, ends_at)
            except (httpx.HTTPError, TransientError) as error:
                logger.warning("sample play waits", extra=telemetry.fields(error=str(error)))
            self._stopping.wait(BREAK_SECONDS)

    def _running(self) -> tuple[TournamentId, datetime] | None:
        """The sample tournament that an earlier process of ours has left."""
        url = f"{self._settings.query_url}/v1/tournaments"
        now = datetime.now(UTC)
        for one in self._ask("GET", url, params={"state": "running"})["tournaments"]:
            ends_at = datetime.fromisoformat(one["ends_at"])
            if one["tournament_id"].startswith(PREFIX) and ends_at > now:
                return TournamentId(one["tournament_id"]), ends_at
        return None

    def _schedule(self) -> tuple[TournamentId, datetime]:
        starts_at = datetime.now(UTC)
        ends_at = starts_at + timedelta(minutes=self._settings.minutes)
        tournament_id = TournamentId(f"{PREFIX}{starts_at:%m%d-%H%M%S}")
        body = {
            "tournament_id": tournament_id,
            "name": self._random.choice(TITLES),
            "starts_at": starts_at.isoformat(timespec="milliseconds"),
            "ends_at": ends_at.isoformat(timespec="milliseconds"),
            "rules": {"scoring": {"kind": "stake"}, "operator": "sum", "currency": CURRENCY},
        }
        self._ask("POST", f"{self._settings.tournament_url}/v1/tournaments", json=body)
        logger.info("scheduled", extra=telemetry.fields(tournament_id=tournament_id))
        return tournament_id, ends_at

    def _join(self, tournament_id: TournamentId) -> None:
        for player in self._crowd.players:
            name = self._crowd.display_name(player)
            event = joining(player, name, tournament_id, SOURCE, time.time_ns() // 1_000_000)
            self._sender.send(event, WAGERS)
        self._sender.flush()

    def _play(self, tournament_id: TournamentId, ends_at: datetime) -> None:
        for played in self._crowd.rounds():
            if self._stopping.wait(self._random.expovariate(self._settings.rate)):
                return
            if datetime.now(UTC) >= ends_at:
                break
            event = wager(played, tournament_id, SOURCE, time.time_ns() // 1_000_000, CURRENCY)
            self._sender.send(event, WAGERS)
        self._sender.flush()

    def _ask(self, method: str, url: str, **request: Any) -> Any:
        headers = {"Authorization": f"Bearer {self._token()}"}
        response = self._http.request(method, url, headers=headers, **request)
        response.raise_for_status()
        return response.json()

    def _token(self) -> str:
        """A fresh one for each call: there are a few in ten minutes."""
        body = {"subject": "sample-play", "roles": ["service", "operator"]}
        response = self._http.post(f"{self._settings.issuer_url}/token", json=body)
        response.raise_for_status()
        return str(response.json()["token"])


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Play until SIGTERM or SIGINT; 2 for a wrong setting."""
    telemetry.log_json()
    try:
        settings = load(SamplePlaySettings, environ)
        sender = Sender(load(KafkaSettings, environ))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    SamplePlay(settings, sender, stopping).run()
    sender.flush(5)
    return 0


if __name__ == "__main__":
    sys.exit(main())
