"""OpenTelemetry spans around batches and pushes, linked to the wagers in them.

A wager's context is its event's `traceparent` (W3C Trace Context), which boards and position
changes carry along. A batch holds wagers of many traces, so its span belongs to none of them: it is
the root of a trace of its own, with a *link* to each sampled wager (OpenTelemetry's conventions for
batches in messaging). What a wager went through is found by its trace id among the links.

The sampler is asked for each wager, by its context, and a span is made when at least one is wanted:
so `parentbased_*` follows the producer's decision, and `traceidratio` picks the same wagers in
every function. Names of channels and spans hold tournaments, never players.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
    use_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes

from leaderboard import telemetry
from leaderboard.errors import LeaderboardError
from leaderboard.events import POSITION_CHANGES, Event
from leaderboard.fold import LogEntry
from leaderboard.hosts.kafka_handler import Assignment, Batch, Handler, Refused
from leaderboard.model import Offset, Place
from leaderboard.ports import Frame, Gateway
from leaderboard.settings import TracingSettings

PUSHED: Final = {"me": "position", "top": "top"}
"""Frames that show a wager, by the kind of their channel."""
MOST_WAITING: Final = 1024
"""Sampled changes of one tournament that wait for their frames; the oldest are let go first."""
_PROPAGATOR: Final = TraceContextTextMapPropagator()


class Spans:
    """`Tracing` where it is on. Exports in a thread of its own, over OTLP/HTTP; `exporter` is for
    tests."""

    def __init__(
        self, name: str, settings: TracingSettings, exporter: SpanExporter | None = None
    ) -> None:
        self._sampler = _sampler_of(settings)
        service = settings.service_name or name
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # whether a span is made is decided by what it is linked to
            resource=Resource.create({"service.name": service}),
            span_limits=SpanLimits(max_links=settings.most_links),
            shutdown_on_exit=False,
        )
        exporter = exporter or OTLPSpanExporter(endpoint=settings.endpoint())
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("leaderboard")
        self._changes: _Changes | None = None
        telemetry.current_trace_id = _current_trace_id

    def handler(self, make: Callable[[], Handler], topic: str) -> Callable[[], Handler]:
        if topic == POSITION_CHANGES:
            self._changes = _Changes()
        return lambda: _TracedHandler(make(), self, self._changes)

    def gateway(self, gateway: Gateway) -> Gateway:
        return _TracedGateway(gateway, self)

    def close(self) -> None:
        self._provider.force_flush(3000)
        self._provider.shutdown()

    def sampled(self, event: Event) -> SpanContext | None:
        """The context of an event whose trace is wanted."""
        if event.traceparent is None:
            return None
        context = _PROPAGATOR.extract({"traceparent": event.traceparent}, Context())
        found = get_current_span(context).get_span_context()
        if not found.is_valid:
            return None
        told = self._sampler.should_sample(context, found.trace_id, "wager")
        return found if told.decision is Decision.RECORD_AND_SAMPLE else None

    def start(
        self, name: str, kind: SpanKind, wagers: Iterable[SpanContext], attributes: Attributes
    ) -> Span:
        """A span that belongs to no wager's trace, linked to all of them."""
        found = {(one.trace_id, one.span_id): Link(one) for one in wagers}  # each once
        links = list(found.values())
        return self._tracer.start_span(
            name, Context(), kind=kind, links=links, attributes=attributes
        )

    def begun(self, event: Event, topic: str) -> Event:
        if event.traceparent is not None:
            return event
        attributes = {**_messaging("send", topic), "messaging.message.id": event.id}
        span = self._tracer.start_span(
            f"send {topic}", Context(), kind=SpanKind.PRODUCER, attributes=attributes
        )
        trace_id = span.get_span_context().trace_id
        told = self._sampler.should_sample(Context(), trace_id, "send")
        if told.decision is not Decision.RECORD_AND_SAMPLE:
            return event  # a span that never ends is never exported
        carrier: dict[str, str] = {}
        with use_span(span, end_on_exit=True):
            _PROPAGATOR.inject(carrier)
        return event._replace(traceparent=carrier["traceparent"])

    @property
    def changes(self) -> _Changes | None:
        """Those that wait for their frames, in a process that pushes them."""
        return self._changes


def _sampler_of(settings: TracingSettings) -> Sampler:
    ratio = TraceIdRatioBased(settings.sampler_arg)
    kinds: dict[str, Sampler] = {
        "always_on": ALWAYS_ON,
        "always_off": ALWAYS_OFF,
        "traceidratio": ratio,
        "parentbased_always_on": ParentBased(ALWAYS_ON),
        "parentbased_always_off": ParentBased(ALWAYS_OFF),
        "parentbased_traceidratio": ParentBased(ratio),
    }
    return kinds[settings.sampler]


def _messaging(operation: str, topic: str) -> dict[str, str]:
    """Attributes by OpenTelemetry's conventions for messaging."""
    return {
        "messaging.system": "kafka",
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
    }


def _current_trace_id() -> str | None:
    context = get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None


# --- batches -----------------------------------------------------------------------------------


class _TracedHandler:
    """A handler whose batches have spans, from `begin` to `settle`."""

    def __init__(self, handler: Handler, spans: Spans, changes: _Changes | None) -> None:
        self._handler = handler
        self._spans = spans
        self._changes = changes
        self._open: dict[tuple[Place, Offset], Span] = {}

    def assigned(self, assignment: Assignment) -> Offset | None:
        return self._handler.assigned(assignment)

    def revoked(self, place: Place) -> None:
        self._handler.revoked(place)

    def begin(self, batch: Batch) -> None:
        found = [(self._spans.sampled(entry.event), entry) for entry in batch.entries]
        wanted = [(context, entry) for context, entry in found if context is not None]
        if wanted:
            self._open[_name_of(batch)] = self._spans.start(
                f"process {batch.topic}",
                SpanKind.CONSUMER,
                (context for context, _ in wanted),
                {
                    **_messaging("process", batch.topic),
                    "messaging.batch.message_count": len(batch.entries),
                    "messaging.destination.partition.id": str(batch.partition),
                    "messaging.kafka.offset": int(wanted[0][1].offset),
                },
            )
            if self._changes is not None:
                for context, entry in wanted:
                    self._changes.add(context, entry)
        with self._inside(batch):
            self._handler.begin(batch)

    def join(self, batch: Batch) -> None:
        with self._inside(batch, "joined"):
            self._handler.join(batch)

    def handle(self, batch: Batch) -> Sequence[Refused]:
        with self._inside(batch, "handled"):
            return self._handler.handle(batch)

    def settle(self, batch: Batch) -> None:
        with self._inside(batch, "settled"):
            self._handler.settle(batch)
        self._end(batch)

    def forget(self, batch: Batch) -> None:
        self._end(batch, Status(StatusCode.ERROR, "not finished as it was begun"))
        self._handler.forget(batch)

    def safe(self, place: Place, next_offset: Offset) -> Offset:
        return self._handler.safe(place, next_offset)

    def tick(self) -> float:
        return self._handler.tick()

    @contextmanager
    def _inside(self, batch: Batch, done: str | None = None) -> Iterator[None]:
        span = self._open.get(_name_of(batch))
        if span is None:
            yield
            return
        with use_span(span, record_exception=False, set_status_on_exception=False):
            try:
                yield
            except LeaderboardError as error:
                # Not its message: what a store or a broker says may name anything.
                span.add_event("interrupted", {"error.type": type(error).__name__})
                raise
        if done is not None:
            span.add_event(done)

    def _end(self, batch: Batch, status: Status | None = None) -> None:
        span = self._open.pop(_name_of(batch), None)
        if span is not None:
            if status is not None:
                span.set_status(status)
            span.end()


def _name_of(batch: Batch) -> tuple[Place, Offset]:
    return batch.place, batch.next_offset


# --- pushes ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Change:
    """A sampled position change, and which frames have shown it."""

    context: SpanContext
    player_id: str
    tops: int = 0
    is_told: bool = False


@dataclass(slots=True)
class _Changes:
    """Sampled position changes whose frames are still to come, by tournament.

    A `top` frame shows all that no other has shown, a player's own frame what is theirs. That comes
    within the time of two `top` frames, or never: then it is not waited for any more."""

    waiting: dict[str, deque[_Change]] = field(default_factory=dict)

    def add(self, context: SpanContext, entry: LogEntry) -> None:
        event = entry.event
        if event.tournament_id is not None and event.player_id is not None:
            fresh: deque[_Change] = deque(maxlen=MOST_WAITING)
            changes = self.waiting.setdefault(event.tournament_id, fresh)
            changes.append(_Change(context, event.player_id))

    def shown_by(self, frames: Sequence[Frame]) -> list[_Change]:
        """The changes that this push shows: its frames are all of one kind and tournament."""
        kind, tournament_id, _ = _parts_of(frames[0])
        changes = self.waiting.get(tournament_id, ())
        if kind == "top":
            return [change for change in changes if change.tops == 0]
        players = {_parts_of(frame)[2] for frame in frames}
        return [change for change in changes if not change.is_told and change.player_id in players]

    def pushed(self, frames: Sequence[Frame], shown: Sequence[_Change]) -> None:
        """They are with the gateway."""
        kind, tournament_id, _ = _parts_of(frames[0])
        changes = self.waiting.get(tournament_id, ())
        for change in changes if kind == "top" else shown:
            if kind == "top":
                change.tops += 1
            else:
                change.is_told = True
        kept = [c for c in changes if c.tops < 1 or not (c.is_told or c.tops > 1)]
        if kept:
            self.waiting[tournament_id] = deque(kept, MOST_WAITING)
        else:
            self.waiting.pop(tournament_id, None)


def _parts_of(frame: Frame) -> tuple[str, str, str]:
    """Kind, tournament and (of `me`) player of a frame's channel."""
    kind, _, name = frame.channel.partition(".")
    tournament_id, _, player_id = name.partition(".")
    return kind, tournament_id, player_id


class _TracedGateway:
    """A gateway whose pushes have spans, where they show something sampled."""

    def __init__(self, gateway: Gateway, spans: Spans) -> None:
        self._gateway = gateway
        self._spans = spans

    def publish(self, frames: Sequence[Frame]) -> None:
        changes = self._spans.changes
        if changes is None or not frames or _parts_of(frames[0])[0] not in PUSHED:
            self._gateway.publish(frames)
            return
        shown = changes.shown_by(frames)
        if shown:
            with use_span(self._started(frames, shown), end_on_exit=True, record_exception=False):
                self._gateway.publish(frames)
        else:
            self._gateway.publish(frames)
        changes.pushed(frames, shown)

    def _started(self, frames: Sequence[Frame], shown: Sequence[_Change]) -> Span:
        kind, tournament_id, _ = _parts_of(frames[0])
        attributes: dict[str, str | int] = {
            "messaging.system": "websocket",
            "messaging.operation.type": "send",
            "messaging.destination.template": f"{kind}.<tournament>",
            "messaging.batch.message_count": len(frames),
            "leaderboard.tournament": tournament_id,
        }
        wagers = (change.context for change in shown)
        return self._spans.start(f"push {PUSHED[kind]}", SpanKind.PRODUCER, wagers, attributes)

    def close(self, channel: str) -> None:
        self._gateway.close(channel)
