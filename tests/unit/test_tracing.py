"""Traces: off nothing of them is there; on, batches and pushes are linked to the wagers in them."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from hosting import FUNCTIONS
from leaderboard import events as ev
from leaderboard import telemetry
from leaderboard.cli.trace import spans_in, trace_id_among
from leaderboard.codec import decode_http, decode_kafka, encode_http, encode_kafka
from leaderboard.errors import SettingsError, TransientError
from leaderboard.fold import LogEntry
from leaderboard.hosts.kafka_handler import Batch, InOneStep, Refused
from leaderboard.hosts.tracing import NoTracing, tracing_of
from leaderboard.hosts.tracing_spans import Spans
from leaderboard.model import Offset, Place
from leaderboard.ports import Frame
from leaderboard.settings import TracingSettings, load
from leaderboard.stack.process import LOOPBACK
from leaderboard.stack.trace_collector import Collector, line_of
from logs import T, entry, scored
from ports import MemoryGateway

ON = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{LOOPBACK}:1"}


def traceparent(number: int, *, sampled: bool = True) -> str:
    return f"00-{number:032x}-{number:016x}-{'01' if sampled else '00'}"


def settings(**given: str) -> TracingSettings:
    return load(TracingSettings, {**ON, **given})


class Quiet(InOneStep):
    """A handler that notes what it was asked, and fails when it is told to."""

    def __init__(self) -> None:
        self.traces: list[str | None] = []
        self.fails = False

    def assigned(self, assignment: object) -> None:
        return None

    def revoked(self, place: Place) -> None:
        pass

    def handle(self, batch: Batch) -> Sequence[Refused]:
        self.traces.append(telemetry.current_trace_id())
        if self.fails:
            raise TransientError("alice's server is away")
        return ()

    def settle(self, batch: Batch) -> None:
        pass

    def safe(self, place: Place, next_offset: Offset) -> Offset:
        return next_offset

    def tick(self) -> float:
        return 1.0


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    yield InMemorySpanExporter()
    telemetry.current_trace_id = telemetry._no_trace


def batch_of(entries: Sequence[LogEntry], topic: str = ev.WAGERS) -> Batch:
    return Batch(topic, 3, "log", entries, Offset(entries[-1].offset + 1))


def wagers(*traceparents: str | None) -> Batch:
    entries = [scored(n, f"p{n}", 1) for n in range(len(traceparents))]
    return batch_of(
        [
            one._replace(event=one.event._replace(traceparent=text))
            for one, text in zip(entries, traceparents, strict=True)
        ]
    )


def changes(*players: tuple[str, str]) -> Batch:
    """Position changes of these players, each with its traceparent."""
    cause = ev.CauseData(source="/tests", id="any")
    entries = []
    for n, (player_id, text) in enumerate(players):
        data = ev.PositionChanged(
            tournament_id=T, player_id=player_id, sequence=n, old_rank=2, new_rank=1,
            score=1, distance=None, cause=cause,
        )  # fmt: skip
        one = entry(n, data)
        entries.append(one._replace(event=one.event._replace(traceparent=text)))
    return batch_of(entries, ev.POSITION_CHANGES)


def done(handler: Any, batch: Batch) -> None:
    for step in (handler.begin, handler.join, handler.handle, handler.settle):
        step(batch)


def exported(spans: Spans, exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    spans._provider.force_flush()
    found = list(exporter.get_finished_spans())
    exporter.clear()
    return found


def linked(span: ReadableSpan) -> set[int]:
    return {link.context.trace_id for link in span.links}


def test_off_everything_is_what_it_was() -> None:
    tracing = tracing_of("on-wager", load(TracingSettings, {}))
    assert isinstance(tracing, NoTracing)
    make, gateway = Quiet, MemoryGateway()
    assert tracing.handler(make, ev.WAGERS) is make
    assert tracing.gateway(gateway) is gateway
    off = {**ON, "OTEL_SDK_DISABLED": "true"}
    assert isinstance(tracing_of("on-wager", load(TracingSettings, off)), NoTracing)


@pytest.mark.parametrize("name", ["on-wager", "on-rank-change"])
def test_off_no_function_imports_opentelemetry(name: str) -> None:
    script = (
        "import runpy, sys; sys.path.insert(0, sys.argv[1]);"
        "runpy.run_path(sys.argv[1] + '/main.py', run_name='consumer');"
        "from leaderboard.hosts.tracing import tracing_of;"
        "from leaderboard.settings import TracingSettings, load;"
        "tracing_of('x', load(TracingSettings, {}));"
        "print(sorted(n for n in sys.modules if n.startswith('opentelemetry')))"
    )
    from hosting import SETTINGS

    ended = subprocess.run(
        [sys.executable, "-c", script, str(FUNCTIONS / name)],
        env={"PATH": "", **SETTINGS}, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER: Input should be 'none' or"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "OTEL_TRACES_SAMPLER: "),
        ("OTEL_TRACES_SAMPLER_ARG", "7", "OTEL_TRACES_SAMPLER_ARG: "),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector", "OTEL_EXPORTER_OTLP_ENDPOINT: is no URL"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL: "),
    ],
)
def test_wrong_setting_is_named(name: str, text: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        settings(**{name: text})


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "leaderboard.hosts.tracing_spans", None)
    with pytest.raises(SettingsError, match=r"OTEL_TRACES_EXPORTER.*extra `tracing`"):
        tracing_of("on-wager", settings())


def test_a_batch_is_linked_to_its_wagers_and_a_child_of_none(
    exporter: InMemorySpanExporter,
) -> None:
    spans, quiet = Spans("on-wager", settings(), exporter), Quiet()
    handler = spans.handler(lambda: quiet, ev.WAGERS)()
    done(handler, wagers(traceparent(1), None, traceparent(2), traceparent(1), "nonsense"))
    (span,) = exported(spans, exporter)
    assert span.name == "process wagers"
    assert span.parent is None
    assert linked(span) == {1, 2}
    assert len(span.links) == 2
    assert span.context is not None
    assert span.context.trace_id not in {1, 2}
    assert [event.name for event in span.events] == ["joined", "handled", "settled"]
    assert quiet.traces == [f"{span.context.trace_id:032x}"], "log lines have the batch's trace"
    assert span.resource.attributes["service.name"] == "on-wager"
    assert telemetry.current_trace_id() is None


def test_a_batch_without_anything_sampled_has_no_span(exporter: InMemorySpanExporter) -> None:
    spans = Spans("on-wager", settings(), exporter)
    handler = spans.handler(Quiet, ev.WAGERS)()
    done(handler, wagers(None, traceparent(1, sampled=False)))
    assert exported(spans, exporter) == []


@pytest.mark.parametrize(
    ("sampler", "ratio", "wanted"),
    [
        ("always_on", "1", {1, 2}),
        ("always_off", "1", set()),
        ("parentbased_always_off", "1", {1}),
        ("traceidratio", "0", set()),
        ("traceidratio", "1", {1, 2}),
        ("parentbased_traceidratio", "0", {1}),
    ],
)
def test_the_sampler_is_asked_for_each_wager(
    exporter: InMemorySpanExporter, sampler: str, ratio: str, wanted: set[int]
) -> None:
    how = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": ratio}
    spans = Spans("on-wager", settings(**how), exporter)
    done(spans.handler(Quiet, ev.WAGERS)(), wagers(traceparent(1), traceparent(2, sampled=False)))
    assert {one for span in exported(spans, exporter) for one in linked(span)} == wanted


def test_a_batch_that_is_begun_again_has_two_spans_and_names_nobody(
    exporter: InMemorySpanExporter,
) -> None:
    spans, quiet = Spans("on-wager", settings(), exporter), Quiet()
    handler: Any = spans.handler(lambda: quiet, ev.WAGERS)()
    batch = wagers(traceparent(1))
    quiet.fails = True
    with pytest.raises(TransientError):
        done(handler, batch)
    handler.forget(batch)
    quiet.fails = False
    done(handler, batch)
    first, second = exported(spans, exporter)
    assert (first.status.is_ok, second.status.is_ok) == (False, True)
    assert "interrupted" in [event.name for event in first.events]
    assert "alice" not in first.to_json() + second.to_json()


def frame(channel: str) -> Frame:
    return Frame(channel, b"{}")


def test_a_push_is_linked_to_what_it_shows_once(exporter: InMemorySpanExporter) -> None:
    spans, sink = Spans("on-rank-change", settings(), exporter), MemoryGateway()
    handler, gateway = spans.handler(Quiet, ev.POSITION_CHANGES)(), spans.gateway(sink)
    gateway.publish([frame(f"top.{T}")])
    handler.begin(changes(("alice", traceparent(1)), ("bob", traceparent(2))))
    gateway.publish([frame(f"me.{T}.bob"), frame(f"me.{T}.nobody")])
    gateway.publish([frame(f"curve.{T}")])
    gateway.publish([frame("top.another")])
    gateway.publish([frame(f"top.{T}")])
    gateway.publish([frame(f"me.{T}.alice")])
    gateway.publish([])
    for channel in (f"me.{T}.alice", f"me.{T}.bob", f"top.{T}"):
        gateway.publish([frame(channel)])
    found = exported(spans, exporter)
    assert [(span.name, linked(span)) for span in found] == [
        ("push position", {2}),
        ("push top", {1, 2}),
        ("push position", {1}),
    ]
    assert len(sink.frames) == 10
    assert spans.changes is not None
    assert spans.changes.waiting == {}
    told = "".join(span.to_json() for span in found)
    assert "alice" not in told
    assert "bob" not in told
    assert T in told


def test_frames_for_who_has_no_socket_are_not_waited_for(exporter: InMemorySpanExporter) -> None:
    spans = Spans("on-rank-change", settings(), exporter)
    handler, gateway = spans.handler(Quiet, ev.POSITION_CHANGES)(), spans.gateway(MemoryGateway())
    handler.begin(changes(("alice", traceparent(1))))
    for _ in range(3):
        gateway.publish([frame(f"top.{T}")])
    assert spans.changes is not None
    assert spans.changes.waiting == {}


def test_a_push_that_failed_comes_again(exporter: InMemorySpanExporter) -> None:
    class Away(MemoryGateway):
        def publish(self, frames: Sequence[Frame]) -> None:
            raise TransientError("the gateway is away")

    spans = Spans("on-rank-change", settings(), exporter)
    spans.handler(Quiet, ev.POSITION_CHANGES)().begin(changes(("alice", traceparent(1))))
    with pytest.raises(TransientError):
        spans.gateway(Away()).publish([frame(f"top.{T}")])
    spans.gateway(MemoryGateway()).publish([frame(f"top.{T}")])
    assert [linked(span) for span in exported(spans, exporter)] == [{1}, {1}]


def test_a_producer_begins_a_trace_unless_the_event_has_one(
    exporter: InMemorySpanExporter,
) -> None:
    spans = Spans("produce", settings(), exporter)
    event = scored(0, "alice", 1).event
    begun = spans.begun(event, ev.WAGERS)
    (span,) = exported(spans, exporter)
    assert span.context is not None
    assert telemetry.trace_id_of(begun.traceparent) == f"{span.context.trace_id:032x}"
    assert spans.begun(begun, ev.WAGERS) is begun
    off = Spans("produce", settings(OTEL_TRACES_SAMPLER="always_off"), exporter)
    assert off.begun(event, ev.WAGERS) is event
    assert exported(off, exporter) == []


# --- the context of an event --------------------------------------------------------------------

HOP = ("traceparent", traceparent(7).encode())


def record_with(*more: tuple[str, bytes], own: str | None = None) -> ev.Record:
    event = scored(0, "alice", 1).event._replace(traceparent=own)
    record = encode_kafka(event, ev.WAGERS)
    return record._replace(headers=(*record.headers, *more))


def test_the_header_of_the_way_is_the_context_where_the_event_has_none() -> None:
    assert decode_kafka(record_with(HOP)).traceparent == traceparent(7)
    state = ("tracestate", b"a=b")
    assert decode_kafka(record_with(HOP, state)).traceparent == traceparent(7)
    unknown = ("x-other", b"1")
    assert decode_kafka(record_with(HOP, unknown)).traceparent == traceparent(7)
    assert decode_kafka(record_with(HOP, own=traceparent(8))).traceparent == traceparent(8)
    assert decode_kafka(record_with(HOP, unknown, own=traceparent(8))).traceparent == traceparent(8)


@pytest.mark.parametrize("value", [b"", b"\xff", b"\x00", b"x" * 200])
def test_a_header_of_the_way_that_is_hostile_refuses_no_event(value: bytes) -> None:
    plain = decode_kafka(record_with())
    assert decode_kafka(record_with(("traceparent", value))) == plain


def test_http_requests_have_it_too() -> None:
    headers, body = encode_http(scored(0, "alice", 1).event)
    headers["traceparent"] = traceparent(7)
    assert decode_http(headers, body, ev.WAGERS).traceparent == traceparent(7)
    headers["ce-traceparent"] = traceparent(8)
    assert decode_http(headers, body, ev.WAGERS).traceparent == traceparent(8)


@pytest.mark.parametrize("text", [None, "", "x", traceparent(0), traceparent(1).upper() + "-1"])
def test_what_is_no_traceparent_has_no_trace_id(text: str | None) -> None:
    assert telemetry.trace_id_of(text) is None


# --- the stack's collector ----------------------------------------------------------------------


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = tmp_path / "traces.jsonl"
    with Collector(path, 0) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield path, server.server_address[1]
        server.shutdown()
        thread.join()


def test_what_is_exported_is_found_in_the_collectors_file(collector: tuple[Path, int]) -> None:
    path, port = collector
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{LOOPBACK}:{port}"}
    spans = Spans("on-wager", settings(**endpoint))
    event = spans.begun(scored(0, "alice", 1, event_id="e-1").event, ev.WAGERS)
    done(spans.handler(Quiet, ev.WAGERS)(), wagers(event.traceparent))
    spans.close()
    telemetry.current_trace_id = telemetry._no_trace
    found = list(spans_in(path))
    trace_id = trace_id_among(found, "e-1")
    assert trace_id == telemetry.trace_id_of(event.traceparent) == trace_id_among(found, None)
    assert [one.name for one in found if one.is_of(trace_id or "")] == [
        "send wagers",
        "process wagers",
    ]
    assert trace_id_among(found, "e-2") is None
    # As OpenTelemetry's file exporter writes it: ids in hex, one export a line.
    for line in path.read_text(encoding="utf-8").splitlines():
        (resource,) = json.loads(line)["resourceSpans"]
        for span in resource["scopeSpans"][0]["spans"]:
            assert (len(span["traceId"]), len(span["spanId"])) == (32, 16)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"resourceSpans": [{"half')
    assert list(spans_in(path)) == found


@pytest.mark.parametrize(
    ("route", "kind", "body", "status"),
    [
        ("/v1/traces", "application/x-protobuf", b"\xff\xff nonsense", 400),
        ("/v1/traces", "application/json", b"{}", 415),
        ("/v1/logs", "application/x-protobuf", b"", 404),
    ],
)
def test_the_collector_refuses_what_is_no_export(
    collector: tuple[Path, int], route: str, kind: str, body: bytes, status: int
) -> None:
    path, port = collector
    request = urllib.request.Request(
        f"http://{LOOPBACK}:{port}{route}", data=body, headers={"Content-Type": kind}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=5)  # noqa: S310 - loopback
    assert refused.value.code == status
    refused.value.close()
    assert not path.exists()
    with pytest.raises(ValueError, match="no export"):
        line_of(b"\xff\xff nonsense")
