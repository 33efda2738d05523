"""Metrics: declared in one place, used, described as they are; logs name no person."""

from __future__ import annotations

import ast
import json
import logging
import re
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import REGISTRY

from leaderboard import telemetry
from leaderboard.cli.observability import PAGE, page
from leaderboard.settings import KafkaSettings, load
from leaderboard.stack.process import free_port

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "shared").rglob("*.py"), *(ROOT / "functions").rglob("*.py")])
PRODUCT = "leaderboard_"
KINDS: dict[str, type[MetricWrapperBase]] = {
    "counter": Counter,
    "gauge": Gauge,
    "histogram": Histogram,
}


def declared() -> dict[str, MetricWrapperBase]:
    """The metric objects of `telemetry`, by their constant's name."""
    found = vars(telemetry).items()
    return {name: one for name, one in found if isinstance(one, MetricWrapperBase)}


def importers(sources: list[Path]) -> set[str]:
    """Who imports the metrics library."""
    found = set()
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if any(name.split(".")[0] == "prometheus_client" for name in names):
                found.add(path.name)
    return found


def registered() -> dict[str, str]:
    """What this process serves under our name: names and kinds, as Prometheus reads them."""
    text = generate_latest(REGISTRY).decode()
    types = re.findall(r"^# TYPE (leaderboard_\w+) (\w+)$", text, re.MULTILINE)
    return {name: kind for name, kind in types if not name.endswith("_created")}


def test_nobody_else_declares_a_metric() -> None:
    assert importers(SOURCES) == {"telemetry.py"}


def test_a_declaration_elsewhere_would_be_found(tmp_path: Path) -> None:
    stray = tmp_path / "stray.py"
    stray.write_text("from prometheus_client import Counter\n", encoding="utf-8")
    assert "stray.py" in importers([*SOURCES, stray])


def test_what_is_served_is_what_is_declared() -> None:
    wanted = {one.exposed: one.kind for one in telemetry.METRICS.values()}
    assert registered() == wanted
    described = [(one, told) for one in declared().values() for told in one.describe()]
    assert {told.name for _, told in described} == telemetry.METRICS.keys()
    for one, told in described:
        metric = telemetry.METRICS[told.name]
        assert type(one) is KINDS[metric.kind]
        assert told.documentation == metric.meaning


def test_every_metric_is_set_somewhere() -> None:
    texts = [path.read_text("utf-8") for path in SOURCES if path.name != "telemetry.py"]
    used = {name for text in texts for name in re.findall(r"\btelemetry\.([A-Z_]+)\b", text)}
    assert declared().keys() <= used


def test_names_say_their_unit() -> None:
    for one in telemetry.METRICS.values():
        assert one.name.startswith(PRODUCT)
        assert (one.unit == "seconds") == one.name.endswith("_seconds"), one.name
        assert one.meaning.endswith("."), one.name


def test_no_label_holds_a_person_or_grows_without_end() -> None:
    used = {label for one in telemetry.METRICS.values() for label in one.labels}
    assert used == telemetry.LABELS.keys()
    assert not used & {"player", "player_id", "tournament_id", "address", "subject"}
    ended = {one.describe()[0].name for one in telemetry.OF_TOURNAMENTS}  # type: ignore[index]
    named = {one.name for one in telemetry.METRICS.values() if "tournament" in one.labels}
    assert named == ended


def test_series_of_a_tournament_end_with_it() -> None:
    for name in ("t-over", "t-running"):
        telemetry.TOURNAMENT_PLAYERS.labels(name).set(7)
        telemetry.TOURNAMENT_FRAMES.labels(name, "top").inc()
    telemetry.forget_tournament("t-over")
    telemetry.forget_tournament("t-never")
    text = telemetry.metrics_text()
    assert b"t-over" not in text
    assert text.count(b't-running"') >= 2
    telemetry.forget_tournament("t-running")


def test_a_metric_is_declared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    known = telemetry.METRICS["leaderboard_events"]
    monkeypatch.setattr(telemetry, "REGISTRY", CollectorRegistry())
    with pytest.raises(ValueError, match="leaderboard_events: declared twice"):
        telemetry._declared(known)


def test_the_page_is_written_from_the_declarations() -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert text == page(), "run `leaderboard observability`"
    for one in telemetry.METRICS.values():
        assert f"| `{one.exposed}` | {one.kind} |" in text


def client_line(
    broker: str, reason: str = "Connection refused", kind: str = "FAIL"
) -> logging.LogRecord:
    """As Kafka's client writes it."""
    said = f"[thrd:sasl_ssl://{broker}/bootstrap]: {broker}/bootstrap: Connect failed: {reason}"
    args = (kind, "rdkafka#producer-1", said)
    return logging.LogRecord("librdkafka", logging.ERROR, "", 0, "%s [%s] %s", args, None)


def test_of_each_broker_that_is_away_a_line_is_written_in_ten_seconds() -> None:
    now = [0.0]
    once = telemetry.OncePerBroker(lambda: now[0])
    written = []
    for second in range(25):
        now[0] = float(second)
        for broker in ("kafka-0:9093", "kafka-1:9093"):
            line = client_line(broker)
            if once.filter(line):
                written.append((second, line.fields["broker"], line.fields["left_out"]))  # type: ignore[attr-defined]
    assert written == [
        (0, "kafka-0:9093", 0),
        (0, "kafka-1:9093", 0),
        (10, "kafka-0:9093", 9),
        (10, "kafka-1:9093", 9),
        (20, "kafka-0:9093", 9),
        (20, "kafka-1:9093", 9),
    ]


def test_another_complaint_of_the_same_broker_is_told() -> None:
    once = telemetry.OncePerBroker(lambda: 0.0)
    assert once.filter(client_line("kafka-0:9093"))
    assert once.filter(client_line("kafka-0:9093", kind="REQTMOUT"))
    assert not once.filter(client_line("kafka-0:9093"))


def test_every_client_of_kafka_tells_its_troubles_in_our_log(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing on standard error by itself, which would be no JSON."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(logging.getLogger("librdkafka"), "filters", [])
    telemetry.log_json()
    place = f"127.0.0.1:{free_port()}"
    config = load(KafkaSettings, {"KAFKA_BOOTSTRAP_SERVERS": place}).client_config()
    for client in (Producer(config), Consumer({**config, "group.id": "reads-only"})):
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            client.poll(0.1)
        client.close()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(one["logger"], one["broker"]) for one in lines if one.get("broker")] == [
        ("librdkafka", place)
    ]
