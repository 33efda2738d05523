"""`leaderboard trace`: what one wager went through, from its producer to its frames."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from rich.table import Table

from leaderboard.cli.context import CommandError, console, environment, setting
from leaderboard.errors import SettingsError

SETTING: Final = "TRACES_FILE"
POLL_SECONDS: Final = 0.2
LAST: Final = "push top"
"""A frame that everyone gets; a `position` frame comes only where somebody has a socket."""
_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")
_SHOWN: Final = {
    "messaging.message.id": "id",
    "messaging.destination.name": "topic",
    "messaging.destination.partition.id": "partition",
    "messaging.kafka.offset": "offset",
    "messaging.batch.message_count": "messages",
    "leaderboard.tournament": "tournament",
}


@dataclass(frozen=True, slots=True)
class TracedSpan:
    """A span as the file tells it. Times are nanoseconds since 1970."""

    service: str
    name: str
    trace_id: str
    links: frozenset[str]
    """Trace ids."""
    start_ns: int
    end_ns: int
    attributes: Mapping[str, str]
    events: tuple[tuple[int, str], ...]

    def is_of(self, trace_id: str) -> bool:
        """Whether the wager of this trace is in it."""
        return trace_id == self.trace_id or trace_id in self.links


def spans_in(path: Path) -> Iterator[TracedSpan]:
    """All spans of a file of OTLP/JSON lines. A last line that is still being written is left."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                return
            for resource in json.loads(line).get("resourceSpans", []):
                service = _attributes(resource.get("resource", {})).get("service.name", "?")
                for scope in resource.get("scopeSpans", []):
                    yield from (_span(service, one) for one in scope.get("spans", []))


def _span(service: str, one: Mapping[str, Any]) -> TracedSpan:
    return TracedSpan(
        service,
        one["name"],
        one["traceId"],
        frozenset(link["traceId"] for link in one.get("links", [])),
        int(one["startTimeUnixNano"]),
        int(one["endTimeUnixNano"]),
        _attributes(one),
        tuple((int(e["timeUnixNano"]), e["name"]) for e in one.get("events", [])),
    )


def _attributes(one: Mapping[str, Any]) -> dict[str, str]:
    """Attributes as texts: a value is `{"stringValue": …}` or the like."""
    return {a["key"]: str(next(iter(a["value"].values()))) for a in one.get("attributes", [])}


def trace_id_among(spans: list[TracedSpan], wanted: str | None) -> str | None:
    """The trace that a person means: by its id, by the id of the event that began it, or the
    newest that was begun."""
    if wanted is not None and _TRACE_ID.fullmatch(wanted):
        return wanted
    begun = [one for one in spans if "messaging.message.id" in one.attributes]
    if wanted is not None:
        begun = [one for one in begun if one.attributes["messaging.message.id"] == wanted]
    return max(begun, key=lambda one: one.start_ns).trace_id if begun else None


@click.command(
    help="Print what one wager went through, from its producer to the frames that show it. WAGER "
    "is a trace id or the id of an event sent by `leaderboard produce`; by default the newest of "
    "these. Wants a stack that traces: `leaderboard stack --traces`."
)
@click.argument("wager", required=False)
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="OTLP/JSON lines of another collector's file exporter.",
)
@click.option(
    "--wait",
    "seconds",
    type=click.FloatRange(min=0),
    default=10,
    show_default=True,
    help="How long to wait for the frame.",
)
def trace(wager: str | None, path: Path | None, seconds: float) -> None:
    """Fails when no frame came in time, with what there is."""
    try:
        file = path or Path(setting(environment(), SETTING))
    except SettingsError:
        told = f"{SETTING}: is missing; set it, or start `leaderboard stack --traces` here"
        raise SettingsError(told) from None
    until = time.monotonic() + seconds
    while True:
        spans = list(spans_in(file)) if file.is_file() else []
        trace_id = trace_id_among(spans, wager)
        found = [one for one in spans if trace_id is not None and one.is_of(trace_id)]
        if any(one.name == LAST for one in found) or time.monotonic() > until:
            break
        time.sleep(POLL_SECONDS)
    if trace_id is None or not found:
        raise CommandError(f"{file}: no trace of {wager or 'any wager'} in {seconds:g} s")
    found.sort(key=lambda one: one.start_ns)
    console.print(f"trace {trace_id}", highlight=False)
    console.print(_table(found))
    if not any(one.name == LAST for one in found):
        raise CommandError(f"no frame shows it yet, after {seconds:g} s")
    pushed = min(one.end_ns for one in found if one.name.startswith("push "))
    took_ms = (pushed - found[0].start_ns) / 1e6
    console.print(f"{took_ms:.1f} ms from {found[0].service} to the gateway", highlight=False)


def _table(spans: list[TracedSpan]) -> Table:
    table = Table("at, ms", "took, ms", "service", "span", "what")
    first_ns = spans[0].start_ns
    for one in spans:
        table.add_row(
            f"{(one.start_ns - first_ns) / 1e6:.1f}",
            f"{(one.end_ns - one.start_ns) / 1e6:.1f}",
            one.service,
            one.name,
            ", ".join(_told(one, first_ns)),
        )
    return table


def _told(one: TracedSpan, first_ns: int) -> Iterator[str]:
    for name, short in _SHOWN.items():
        if name in one.attributes:
            yield f"{short} {one.attributes[name]}"
    if one.links:
        yield f"linked to {len(one.links)}"
    for at_ns, name in one.events:
        yield f"{name} at {(at_ns - first_ns) / 1e6:.1f}"
