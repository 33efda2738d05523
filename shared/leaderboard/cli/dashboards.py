"""Grafana dashboards as values: what a person looks at, in the metrics of `telemetry`.

Each is a folder's worth of panels with the queries that a test checks against the registry and runs
against a real Prometheus; `leaderboard observability` writes the JSON that Grafana loads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

SCHEMA: Final = 39
WIDTH, HEIGHT = 8, 7
"""Of a panel, in Grafana's grid of 24 columns."""
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_OF_PEOPLE: Final = 'route!~"/healthz|/readyz|/metrics"'
PUSHES: Final = "leaderboard_push_latency_seconds_bucket"


@dataclass(frozen=True, slots=True)
class Panel:
    """A question, and the queries that answer it, by legend. `unit` is Grafana's name."""

    title: str
    unit: str
    queries: Mapping[str, str]
    kind: str = "timeseries"


@dataclass(frozen=True, slots=True)
class Dashboard:
    """`variable` is what is chosen at its top, with the query that lists the choices."""

    uid: str
    title: str
    panels: Sequence[Panel]
    variable: tuple[str, str] | None = None


def _quantile(share: float, metric: str, *by: str) -> str:
    labels = ", ".join((*by, "le"))
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}[5m])))"


def _rate(metric: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) (rate({metric}[5m]))" if by else f"sum(rate({metric}[5m]))"


_LATENCY: Final = {
    f"{frame} since {since} p{share:g}": _quantile(
        share / 100, f'{PUSHES}{{frame="{frame}",since="{since}"}}'
    )
    for frame, since, share in (
        ("position", "ingest", 50),
        ("position", "ingest", 99),
        ("position", "event", 99),
        ("top", "ingest", 99),
    )
}

OVERVIEW: Final = Dashboard(
    "leaderboard-overview",
    "Leaderboard: overview",
    (
        Panel(
            "Pushes slower than 300 ms (1 h; objective 1 %)",
            "percentunit",
            {"slow": "leaderboard:push_slow:ratio_rate1h"},
            "stat",
        ),
        Panel(
            "Requests that failed (1 h; objective 0.05 %)",
            "percentunit",
            {"failed": "leaderboard:requests_failed:ratio_rate1h"},
            "stat",
        ),
        Panel(
            "Wagers that move no rank",
            "percentunit",
            {"unchanged": "leaderboard:rank_unchanged:ratio_rate5m"},
            "stat",
        ),
        Panel("From a wager to its frame", "s", _LATENCY),
        Panel(
            "Events by what became of them",
            "ops",
            {
                "{{disposition}}": _rate(
                    'leaderboard_events_total{function="on-wager"}', "disposition"
                )
            },
        ),
        Panel(
            "Lag",
            "short",
            {"{{function}} {{topic}}": "sum by (function, topic) (leaderboard_lag_records)"},
        ),
        Panel(
            "Requests",
            "reqps",
            {"{{function}}": "leaderboard:requests:rate5m"},
        ),
        Panel(
            "Connections",
            "short",
            {
                "open": "max(leaderboard_connections)",
                "{{reason}} in 5 m": (
                    "sum by (reason) (increase(leaderboard_connection_decisions_total[5m]))"
                ),
            },
        ),
        Panel(
            "Frames, and changes that needed none",
            "ops",
            {
                "frames {{frame}}": _rate("leaderboard_frames_total", "frame"),
                "coalesced {{frame}}": _rate("leaderboard_coalesced_changes_total", "frame"),
            },
        ),
        Panel(
            "Dead letters in 5 m",
            "short",
            {
                "{{topic}} {{reason}}": (
                    "sum by (topic, reason) (increase(leaderboard_dead_letters_total[5m])) > 0"
                )
            },
        ),
        Panel(
            "Suspicions in a quarter of an hour",
            "short",
            {"{{rule}}": "leaderboard:fraud_alerts:increase15m"},
        ),
        Panel(
            "Boards against log and record",
            "short",
            {
                "found behind in 5 m": "sum(increase(leaderboard_boards_behind_total[5m]))",
                "made anew in 5 m": "sum(increase(leaderboard_rebuilds_total[5m]))",
                "differences in 5 m": "sum(increase(leaderboard_record_differences_total[5m]))",
                "compared in 5 m": "sum(increase(leaderboard_record_compared_rows_total[5m]))",
            },
        ),
        Panel(
            "Duties",
            "s",
            {
                "oldest erasure": "max(leaderboard_erasure_oldest_seconds)",
                "oldest of the outbox": "max(leaderboard_outbox_oldest_seconds)",
            },
        ),
    ),
)

TOURNAMENT: Final = Dashboard(
    "leaderboard-tournament",
    "Leaderboard: one tournament",
    (
        Panel(
            "Players",
            "short",
            {"players": 'max(leaderboard_tournament_players{tournament="$tournament"})'},
            "stat",
        ),
        Panel(
            "Sequence of its board",
            "short",
            {"sequence": 'max(leaderboard_tournament_sequence{tournament="$tournament"})'},
            "stat",
        ),
        Panel(
            "How far its board moves on in the log",
            "ops",
            {
                "offsets": (
                    'max(deriv(leaderboard_tournament_sequence{tournament="$tournament"}[5m]))'
                )
            },
        ),
        Panel(
            "Frames",
            "ops",
            {
                "{{frame}}": _rate(
                    'leaderboard_tournament_frames_total{tournament="$tournament"}', "frame"
                )
            },
        ),
        Panel(
            "Latency of its last pushes, by ingest",
            "s",
            {
                "{{frame}}": (
                    "max by (frame) (leaderboard_tournament_push_latency_seconds"
                    '{tournament="$tournament"})'
                )
            },
        ),
    ),
    ("tournament", "label_values(leaderboard_tournament_players, tournament)"),
)

FUNCTION: Final = Dashboard(
    "leaderboard-function",
    "Leaderboard: one function",
    (
        Panel(
            "Processes that are ready",
            "short",
            {"ready": 'sum(leaderboard_ready{function="$function"})'},
            "stat",
        ),
        Panel(
            "Lag",
            "short",
            {"{{topic}}": 'sum by (topic) (leaderboard_lag_records{function="$function"})'},
        ),
        Panel(
            "Events in a batch",
            "short",
            {
                f"p{share:g}": _quantile(
                    share / 100, 'leaderboard_batch_events_bucket{function="$function"}'
                )
                for share in (50, 99)
            },
        ),
        Panel(
            "How long ago Kafka took in what is worked on",
            "s",
            {
                f"p{share:g}": _quantile(
                    share / 100, 'leaderboard_batch_age_seconds_bucket{function="$function"}'
                )
                for share in (50, 99)
            },
        ),
        Panel(
            "Events by what became of them",
            "ops",
            {
                "{{disposition}}": _rate(
                    'leaderboard_events_total{function="$function"}', "disposition"
                )
            },
        ),
        Panel(
            "Repeated calls",
            "ops",
            {"retries": _rate('leaderboard_retries_total{function="$function"}')},
        ),
        Panel(
            "Requests by route, p99",
            "s",
            {
                "{{route}}": _quantile(
                    0.99,
                    f'leaderboard_request_seconds_bucket{{function="$function",{_OF_PEOPLE}}}',
                    "route",
                )
            },
        ),
        Panel(
            "Requests by status",
            "reqps",
            {
                "{{status}}": _rate(
                    f'leaderboard_request_seconds_count{{function="$function",{_OF_PEOPLE}}}',
                    "status",
                )
            },
        ),
        Panel(
            "Board calls of all functions, p99",
            "s",
            {"{{call}}": _quantile(0.99, "leaderboard_board_call_seconds_bucket", "call")},
        ),
    ),
    ("function", "label_values(leaderboard_ready, function)"),
)

ALL: Final = (OVERVIEW, TOURNAMENT, FUNCTION)


def document(one: Dashboard) -> str:
    """What Grafana loads, as JSON."""
    body = {
        "uid": one.uid,
        "title": one.title,
        "tags": ["leaderboard"],
        "schemaVersion": SCHEMA,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": _variables(one)},
        "panels": [_panel(number, panel) for number, panel in enumerate(one.panels)],
    }
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def _variables(one: Dashboard) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": "datasource", "type": "datasource", "query": "prometheus"}
    ]
    if one.variable is not None:
        name, query = one.variable
        found.append(
            {
                "name": name,
                "type": "query",
                "datasource": _SOURCE,
                "query": {"query": query, "refId": name},
                "refresh": 2,
                "sort": 1,
            }
        )
    return found


def _panel(number: int, one: Panel) -> dict[str, Any]:
    row, column = divmod(number, 24 // WIDTH)
    targets = [
        {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend}
        for index, (legend, query) in enumerate(one.queries.items())
    ]
    return {
        "id": number + 1,
        "title": one.title,
        "type": one.kind,
        "datasource": _SOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": one.unit}, "overrides": []},
        "targets": targets,
    }
