"""Every metric of the platform, in one place, and structured logs.

A metric is declared here and nowhere else: name, kind, unit, labels, meaning. `docs/metrics.md` is
written from these declarations, and rules and dashboards are checked against them.

Logs are JSON lines without personal data: tournaments and offsets may stand in them, players,
addresses, tokens and tickets may not.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

LABELS: Final = {
    "call": "what was asked of the board: `apply`, `swap`, `page`, `around`",
    "dependency": "what was found away",
    "disposition": "what became of an event: `applied`, `skipped`, or the reason why it does not "
    "count (`duplicate`, `not_started` …)",
    "frame": "type of frame: `position`, `top`, `curve`",
    "function": "name of the function, or `relay`",
    "outcome": "what became of it",
    "reason": "why: of a dead letter `dlq_reason`, of a connection the decision's reason "
    "(`allowed` is the good one), of a request the quota (`requests`, `connections`, "
    "`strangers`), of a concern what can't be as wanted",
    "route": "the route as declared, with its variables' names; `none` where none matched",
    "rule": "rule of fraud detection: `rank_rise`, `velocity`, `stake_outlier`, `collusion`",
    "service": "name of a Knative Service",
    "since": "where the clock started: `event` (the event's own time), `ingest` (when Kafka took "
    "it in)",
    "source": "who answered: `board`, `record`",
    "status": "HTTP status",
    "topic": "Kafka topic",
    "tournament": "a tournament that is watched now; its series end when it is over",
}
"""Every label, and what its values are. None holds a player or an address; and tournaments, which
become many, only where their series end with them."""

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """What is known of a metric. `exposed` is its name in queries (a histogram's has `_bucket`,
    `_sum` and `_count` behind it)."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()

    @property
    def exposed(self) -> str:
        return f"{self.name}_total" if self.kind == "counter" else self.name

    @property
    def series(self) -> frozenset[str]:
        """The names under which Prometheus knows it."""
        if self.kind == "histogram":
            return frozenset(f"{self.name}_{end}" for end in ("bucket", "sum", "count"))
        return frozenset({self.exposed})


METRICS: Final[dict[str, Metric]] = {}
"""All of them, by name."""


def _declared(metric: Metric) -> Metric:
    if metric.name in METRICS or not set(metric.labels) <= LABELS.keys():
        raise ValueError(f"{metric.name}: declared twice, or with a label that is not")
    METRICS[metric.name] = metric
    return metric


def _counter(name: str, unit: str, meaning: str, *labels: str) -> Counter:
    metric = _declared(Metric(name, "counter", unit, labels, meaning))
    return Counter(metric.name, metric.meaning, labels)


def _gauge(name: str, unit: str, meaning: str, *labels: str) -> Gauge:
    metric = _declared(Metric(name, "gauge", unit, labels, meaning))
    return Gauge(metric.name, metric.meaning, labels)


def _histogram(
    name: str, unit: str, meaning: str, *labels: str, buckets: Sequence[float]
) -> Histogram:
    metric = _declared(Metric(name, "histogram", unit, labels, meaning, tuple(buckets)))
    return Histogram(metric.name, metric.meaning, labels, buckets=metric.buckets)


# events, from Kafka to the boards

EVENTS: Final = _counter(
    "leaderboard_events", "events", "Events by what became of them.", "function", "disposition"
)
DEAD_LETTERS: Final = _counter(
    "leaderboard_dead_letters", "events", "Events sent to a dead-letter topic.", "topic", "reason"
)
UNREADABLE_SHARE: Final = _gauge(
    "leaderboard_unreadable_share",
    "ratio",
    "Share of the latest records of a topic that can't be read, when last one could not.",
    "function",
    "topic",
)
CAP_STOPS: Final = _counter(
    "leaderboard_dead_letter_cap_stops",
    "stops",
    "Times that the cap on dead letters stopped the consumer.",
    "function",
    "topic",
)
LEFT_UNREAD: Final = _counter(
    "leaderboard_left_unread",
    "events",
    "Records that can't be read, left to the consumer that buries those of their topic.",
    "function",
    "topic",
    "reason",
)
LAG: Final = _gauge(
    "leaderboard_lag_records",
    "records",
    "Records of the partitions that this process owns, without effects so far.",
    "function",
    "topic",
)
BATCH_SIZE: Final = _histogram(
    "leaderboard_batch_events",
    "events",
    "Events in one batch of a consumer.",
    "function",
    buckets=(1, 3, 10, 30, 100, 300, 1000, 3000, 10_000),
)
BATCH_AGE: Final = _histogram(
    "leaderboard_batch_age_seconds",
    "seconds",
    "How long ago Kafka took in the oldest record of a batch when its turn came.",
    "function",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
)
BOARD_CALLS: Final = _histogram(
    "leaderboard_board_call_seconds",
    "seconds",
    "Time of one board call.",
    "call",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2),
)
BOARDS_BEHIND: Final = _counter(
    "leaderboard_boards_behind",
    "times",
    "Times that boards were found to have lost writes; their partition is read again then.",
)
REBUILDS: Final = _counter("leaderboard_rebuilds", "boards", "Boards made anew from the record.")
POSITION_CHANGES: Final = _counter(
    "leaderboard_position_changes",
    "changes",
    "Visible position changes published.",
    "function",
)
RANK_CHANGES: Final = _counter(
    "leaderboard_rank_changes",
    "changes",
    "Those of them in which a rank moved (else it is a score in the top 100).",
    "function",
)
FRAUD_ALERTS: Final = _counter(
    "leaderboard_fraud_alerts",
    "alerts",
    "Suspicions found; again after a crash, under the same ids.",
    "rule",
)
RETRIES: Final = _counter(
    "leaderboard_retries",
    "calls",
    "Calls repeated because a dependency was away.",
    "function",
)

# from the boards to the screens

PUSH_LATENCY: Final = _histogram(
    "leaderboard_push_latency_seconds",
    "seconds",
    "From a wager to the gateway's acknowledgement of the frames that show it: one observation a "
    "push, of the oldest wager in it. By ingest: since Kafka took in the first wager of that "
    "wager's batch, so never too little.",
    "frame",
    "since",
    buckets=(0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 3, 10, 60),
)
FRAMES: Final = _counter(
    "leaderboard_frames",
    "frames",
    "Frames handed to the gateway; one for everyone counts once, over however many channels.",
    "frame",
)
COALESCED: Final = _counter(
    "leaderboard_coalesced_changes", "changes", "Changes that a later frame made needless.", "frame"
)
TOURNAMENT_PLAYERS: Final = _gauge(
    "leaderboard_tournament_players",
    "players",
    "Players of the board, as last shown.",
    "tournament",
)
TOURNAMENT_SEQUENCE: Final = _gauge(
    "leaderboard_tournament_sequence",
    "offset",
    "The board's sequence, as last shown: the offset of the last event that changed it.",
    "tournament",
)
TOURNAMENT_FRAMES: Final = _counter(
    "leaderboard_tournament_frames",
    "frames",
    "Frames of the tournament handed to the gateway.",
    "tournament",
    "frame",
)
TOURNAMENT_LATENCY: Final = _gauge(
    "leaderboard_tournament_push_latency_seconds",
    "seconds",
    "As the latency by ingest, of the tournament's last push.",
    "tournament",
    "frame",
)
OF_TOURNAMENTS: Final = (
    TOURNAMENT_PLAYERS,
    TOURNAMENT_SEQUENCE,
    TOURNAMENT_FRAMES,
    TOURNAMENT_LATENCY,
)


def forget_tournament(tournament_id: str) -> None:
    """End the series of a tournament that is not watched any more."""
    for metric in OF_TOURNAMENTS:
        metric.remove_by_labels({"tournament": tournament_id})


CONNECTIONS: Final = _counter(
    "leaderboard_connection_decisions", "attempts", "Connection attempts decided.", "reason"
)
OPEN_CONNECTIONS: Final = _gauge(
    "leaderboard_connections",
    "connections",
    "Connections that are leased or about to be closed, of the whole platform: every process "
    "tells the same.",
)

# the record

LATE_REPEATS: Final = _counter(
    "leaderboard_late_repeats",
    "events",
    "Events applied again: repeated after their ids were forgotten.",
)
RECORD_GAPS: Final = _counter(
    "leaderboard_record_gaps",
    "partitions",
    "Partitions whose log dropped what the record had not read.",
)
RECORD_COMPARED: Final = _counter(
    "leaderboard_record_compared_rows",
    "standings",
    "Standings of the record compared with their boards.",
)
RECORD_DIFFERENCES: Final = _counter(
    "leaderboard_record_differences",
    "standings",
    "Standings in which board and record contradict each other.",
)

AUDIT_LEAVES: Final = _counter(
    "leaderboard_audit_leaves",
    "leaves",
    "Leaves signed into the audit log.",
    "topic",
)
AUDIT_FENCED: Final = _counter(
    "leaderboard_audit_fenced",
    "appends",
    "Appends to the audit log that another owner of the shard was ahead of.",
)
AUDIT_ADOPTED: Final = _counter(
    "leaderboard_audit_adopted",
    "appends",
    "Appends that took over leaves which were written and not signed.",
)
AUDIT_GAPS: Final = _counter(
    "leaderboard_audit_gaps",
    "shards",
    "Shards of the audit log that can't be whole: set back, or behind what Kafka still has.",
)
AUDIT_KEYS_DESTROYED: Final = _counter(
    "leaderboard_audit_keys_destroyed",
    "keys",
    "Keys of erased players that were destroyed.",
)

# the outbox

RELAYED: Final = _counter(
    "leaderboard_relayed_events", "events", "Outbox events that Kafka acknowledged."
)
OUTBOX_WAITING: Final = _gauge(
    "leaderboard_outbox_waiting", "events", "Outbox events not sent yet."
)
OUTBOX_REFUSED: Final = _gauge("leaderboard_outbox_refused", "events", "Outbox events set aside.")
OUTBOX_OLDEST: Final = _gauge(
    "leaderboard_outbox_oldest_seconds",
    "seconds",
    "Age of the oldest outbox event not sent yet.",
)

# requests

READS: Final = _counter("leaderboard_reads", "reads", "Boards read, by who answered.", "source")
AWAY: Final = _counter(
    "leaderboard_away",
    "times",
    "Times that a dependency was found away by a reader.",
    "dependency",
)
TURNED_AWAY: Final = _counter(
    "leaderboard_turned_away",
    "requests",
    "Requests answered with 429, by the quota that was used up.",
    "function",
    "route",
    "reason",
)
READY: Final = _gauge(
    "leaderboard_ready", "1 or 0", "1 when the process can do its work.", "function"
)
REQUESTS: Final = _histogram(
    "leaderboard_request_seconds",
    "seconds",
    "Time of one HTTP request, by route.",
    "function",
    "route",
    "status",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1, 3),
)
ERASURES_OPEN: Final = _gauge(
    "leaderboard_erasures_open",
    "requests",
    "Requests to forget a player that are not done everywhere; every process tells the same.",
)
ERASURE_OLDEST: Final = _gauge(
    "leaderboard_erasure_oldest_seconds",
    "seconds",
    "Age of the oldest of them, 0 where there is none.",
)
ERASURES_OVERDUE: Final = _gauge(
    "leaderboard_erasures_overdue",
    "requests",
    "Those of them that are older than ERASURE_DEADLINE_SECONDS.",
)

# the floors that the schedule wants

FLOOR: Final = _gauge(
    "leaderboard_floor_replicas",
    "replicas",
    "Replicas of a function that the schedule wants now; every process tells the same.",
    "function",
)
FLOOR_CLAIMED: Final = _gauge(
    "leaderboard_floor_claimed_replicas",
    "replicas",
    "Replicas that tournaments claim now, ceiling or not.",
)
PREWARM_CONCERNS: Final = _counter(
    "leaderboard_prewarm_concerns",
    "schedules",
    "Schedules that can't be prepared for as wanted.",
    "reason",
)
REVISION_FLOORS: Final = _counter(
    "leaderboard_revision_floors",
    "changes",
    "Changes of a Knative revision's floor, by what became of them.",
    "service",
    "outcome",
)

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def metrics_text() -> bytes:
    """All metrics of this process in Prometheus' text exposition."""
    return generate_latest(REGISTRY)


def _no_trace() -> str | None:
    return None


current_trace_id: Callable[[], str | None] = _no_trace
"""Of the span that the calling thread works in; set where a process traces."""


def trace_id_of(traceparent: str | None) -> str | None:
    """The trace id in a W3C `traceparent`, for a line about one event; None where it is none."""
    found = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
    return None if found is None else found[1]


_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        # That of the event which the line is about; else that of the batch at hand.
        if (trace_id := line.pop("trace_id", None) or current_trace_id()) is not None:
            line["trace_id"] = trace_id
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


BROKER_SECONDS: Final = 10.0
_BROKER: Final = re.compile(r"([^\s/:\[\]]+:\d+)/(?:bootstrap|\d+)")


class OncePerBroker(logging.Filter):
    """Of what Kafka's client says of one broker, a line of each kind in ten seconds: it tries each
    one that is away about once a second, and there are several clients in a process.

    The line names the broker, and how many were left out since the last one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._told: dict[tuple[str, str], float] = {}
        self._left_out: dict[tuple[str, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        found = _BROKER.search(message)
        # The client puts the kind first; another complaint of the same broker is news.
        about = (found[1] if found else "", message.partition(" ")[0])
        if self._clock() < self._told.get(about, -math.inf) + BROKER_SECONDS:
            self._left_out[about] = self._left_out.get(about, 0) + 1
            return False
        self._told[about] = self._clock()
        left_out = self._left_out.pop(about, 0)
        record.fields = {"broker": found[1] if found else None, "left_out": left_out}
        return True


def log_json(level: int = logging.INFO) -> None:
    """Send this process's logs to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    client = logging.getLogger("librdkafka")
    if not any(isinstance(one, OncePerBroker) for one in client.filters):
        client.addFilter(OncePerBroker())
    for noisy in ("httpx", "httpcore", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def fields(**values: object) -> dict[str, dict[str, object]]:
    """Named values for a log line: `logger.info("…", extra=fields(partition=3))`."""
    return {"fields": values}
