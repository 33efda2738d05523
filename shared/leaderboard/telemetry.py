"""Every metric of the platform, in one place, and structured logs.

Logs are JSON lines without personal data: tournaments and offsets may stand in them, players,
addresses, tokens and tickets may not.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

EVENTS: Final = Counter(
    "leaderboard_events", "Events by what became of them.", ["function", "disposition"]
)
DEAD_LETTERS: Final = Counter(
    "leaderboard_dead_letters", "Events sent to a dead-letter topic.", ["topic", "reason"]
)
UNREADABLE_SHARE: Final = Gauge(
    "leaderboard_unreadable_share",
    "Share of the latest records of a topic that can't be read, when last one could not.",
    ["function", "topic"],
)
CAP_STOPS: Final = Counter(
    "leaderboard_dead_letter_cap_stops",
    "Times that the cap on dead letters stopped the consumer.",
    ["function", "topic"],
)
LEFT_UNREAD: Final = Counter(
    "leaderboard_left_unread",
    "Records that can't be read, left to the consumer that buries those of their topic.",
    ["function", "topic", "reason"],
)
BATCH_SIZE: Final = Histogram(
    "leaderboard_batch_events",
    "Events in one batch of a consumer.",
    ["function"],
    buckets=(1, 3, 10, 30, 100, 300, 1000, 3000, 10_000),
)
BOARD_CALLS: Final = Histogram(
    "leaderboard_board_call_seconds",
    "Time of one board call.",
    ["call"],
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2),
)
POSITION_CHANGES: Final = Counter(
    "leaderboard_position_changes", "Visible position changes published.", ["function"]
)
FRAMES: Final = Counter("leaderboard_frames", "Frames handed to the gateway.", ["type"])
COALESCED: Final = Counter(
    "leaderboard_coalesced_changes", "Changes that a later frame made needless.", ["type"]
)
CONNECTIONS: Final = Counter(
    "leaderboard_connection_decisions", "Connection attempts decided.", ["reason"]
)
RETRIES: Final = Counter(
    "leaderboard_retries", "Calls repeated because a dependency was away.", ["function"]
)
LATE_REPEATS: Final = Counter(
    "leaderboard_late_repeats", "Events applied again: repeated after their ids were forgotten."
)
RECORD_GAPS: Final = Counter(
    "leaderboard_record_gaps", "Partitions whose log dropped what the record had not read."
)
RECORD_COMPARED: Final = Counter(
    "leaderboard_record_compared_rows", "Standings of the record compared with their boards."
)
RECORD_DIFFERENCES: Final = Counter(
    "leaderboard_record_differences", "Standings in which board and record contradict each other."
)
REBUILDS: Final = Counter("leaderboard_rebuilds", "Boards made anew from the record.")
RELAYED: Final = Counter("leaderboard_relayed_events", "Outbox events that Kafka acknowledged.")
OUTBOX_WAITING: Final = Gauge("leaderboard_outbox_waiting", "Outbox events not sent yet.")
OUTBOX_REFUSED: Final = Gauge("leaderboard_outbox_refused", "Outbox events set aside.")
OUTBOX_OLDEST: Final = Gauge(
    "leaderboard_outbox_oldest_seconds", "Age of the oldest outbox event not sent yet."
)
READS: Final = Counter("leaderboard_reads", "Boards read, by who answered.", ["source"])
AWAY: Final = Counter(
    "leaderboard_away", "Times that a dependency was found away by a reader.", ["dependency"]
)
FLOOR: Final = Gauge(
    "leaderboard_floor_replicas",
    "Replicas of a function that the schedule wants now.",
    ["function"],
)
FLOOR_CLAIMED: Final = Gauge(
    "leaderboard_floor_claimed_replicas", "Replicas that tournaments claim now, ceiling or not."
)
PREWARM_CONCERNS: Final = Counter(
    "leaderboard_prewarm_concerns", "Schedules that can't be prepared for as wanted.", ["reason"]
)
REVISION_FLOORS: Final = Counter(
    "leaderboard_revision_floors",
    "Changes of a Knative revision's floor, by what became of them.",
    ["service", "outcome"],
)
READY: Final = Gauge("leaderboard_ready", "1 when the process can do its work.", ["function"])
REQUESTS: Final = Histogram(
    "leaderboard_request_seconds",
    "Time of one HTTP request, by route.",
    ["function", "route", "status"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1, 3),
)

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def metrics_text() -> bytes:
    """All metrics of this process in Prometheus' text exposition."""
    return generate_latest(REGISTRY)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_json(level: int = logging.INFO) -> None:
    """Send this process's logs to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def fields(**values: object) -> dict[str, dict[str, object]]:
    """Named values for a log line: `logger.info("…", extra=fields(partition=3))`."""
    return {"fields": values}
