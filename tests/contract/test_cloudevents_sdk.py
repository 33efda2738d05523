"""What we write the CloudEvents SDKs read, and the other way round: 1.12, which lives beside
functions-framework, and 2.x, which needs an environment of its own. Traps of theirs that our codec
was made for are asserted where they are, so that we notice when they go."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cloudevents import conversion
from cloudevents import http as v1_http
from cloudevents import kafka as v1_kafka
from cloudevents.exceptions import DataUnmarshallerError

from leaderboard.codec import decode_http, decode_kafka, encode_http, encode_kafka
from leaderboard.errors import Refusal, RefusedError
from leaderboard.events import WAGERS, Event, Record, format_time_ms
from samples import DATA, NAMES, TOPIC_OF, attributes_of

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "tests/cloudevents2/requirements.lock"
SCRIPT = ROOT / "tests/cloudevents2/speak.py"
Speak = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]

both_ways = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="session")
def sdk2() -> Speak:
    """Answers of the SDK 2.x. Its environment is made on first use, from the pinned lock."""
    folder = ROOT / ".cache/cloudevents2"
    python, made_from = folder / "bin/python", folder / "made-from.lock"
    if not made_from.exists() or made_from.read_text() != LOCK.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "--require-hashes", "-r", str(LOCK)], check=True, timeout=240)
        made_from.write_text(LOCK.read_text())

    def speak(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        done = subprocess.run(
            [python, SCRIPT],
            input=json.dumps(tasks),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        return answers

    return speak


def extras_of(name: str) -> dict[str, Any]:
    """Attributes besides the required ones, as the relay and others send them."""
    extras = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    extras |= {"sequence": "41", "tenant": "blue", "datacontenttype": "application/json"}
    if isinstance(DATA[name].get("player_id"), str):
        extras["subject"] = DATA[name]["player_id"]
    if "tournament_id" in DATA[name]:
        extras["partitionkey"] = DATA[name]["tournament_id"]
    return extras


def sample(name: str) -> Event:
    """A full event of the type, made by reading its structured form."""
    envelope = {**attributes_of(name), **extras_of(name), "data": DATA[name]}
    headers = {"content-type": "application/cloudevents+json"}
    return decode_http(headers, json.dumps(envelope).encode(), TOPIC_OF[name])


def key_of(name: str) -> bytes | None:
    return b"t1" if "tournament_id" in DATA[name] else None


def assert_same(seen: dict[str, Any], name: str) -> None:
    """The SDK saw every attribute of the sample, as text or as a time."""
    wanted = {**attributes_of(name), **extras_of(name)}
    moment = datetime.fromisoformat(str(seen["time"]))
    assert moment == datetime.fromisoformat(wanted.pop("time"))
    assert {key: value for key, value in seen.items() if key != "time"} == wanted


# --- 2.x ---------------------------------------------------------------------------------------


def test_sdk_2_reads_what_we_write_to_kafka_and_http(sdk2: Speak) -> None:
    tasks = []
    for name in NAMES:
        record = encode_kafka(sample(name), TOPIC_OF[name])
        headers = {n: raw.decode("latin-1") for n, raw in record.headers if raw is not None}
        key = None if record.key is None else record.key.decode()
        value = (record.value or b"").decode("latin-1")
        tasks.append({"do": "read", "binding": "kafka", "headers": headers, "key": key})
        tasks[-1]["value"] = value
        http_headers, body = encode_http(sample(name))
        tasks.append({"do": "read", "binding": "http", "headers": http_headers})
        tasks[-1]["value"] = body.decode("latin-1")
    answers = sdk2(tasks)
    for name, pair in zip(NAMES, zip(answers[::2], answers[1::2], strict=True), strict=True):
        for answer in pair:
            assert "error" not in answer, answer
            assert answer["data"] == DATA[name]
            assert_same(answer["attributes"], name)


@pytest.mark.parametrize("mode", ["binary", "structured"])
@pytest.mark.parametrize("binding", ["kafka", "http"])
def test_we_read_what_sdk_2_writes(sdk2: Speak, binding: str, mode: str) -> None:
    common = {"do": "write", "binding": binding, "mode": mode}
    tasks = [
        {**common, "attributes": {**attributes_of(n), **extras_of(n)}, "data": DATA[n]}
        for n in NAMES
    ]
    for name, answer in zip(NAMES, sdk2(tasks), strict=True):
        assert "error" not in answer, answer
        value = answer["value"].encode("latin-1")
        if binding == "http":
            event = decode_http(answer["headers"], value, TOPIC_OF[name])
        else:
            headers = tuple((n, v.encode("latin-1")) for n, v in answer["headers"].items())
            event = decode_kafka(Record(TOPIC_OF[name], key_of(name), value, headers))
        assert event == sample(name)


def test_sdk_2_reads_our_percent_encoding_and_we_read_its(sdk2: Speak) -> None:
    hard = 'a "b" é€😀 100% %41'
    event = sample("wager.placed")._replace(id=hard)
    headers, body = encode_http(event)
    read = {"do": "read", "binding": "http", "headers": headers, "value": body.decode()}
    attributes = {**attributes_of("wager.placed", id=hard), **extras_of("wager.placed")}
    write = {"do": "write", "binding": "http", "mode": "binary", "attributes": attributes}
    seen, written = sdk2([read, {**write, "data": DATA["wager.placed"]}])
    assert seen["attributes"]["id"] == hard
    ours = decode_http(written["headers"], written["value"].encode("latin-1"), WAGERS)
    assert ours.id == hard


def test_sdk_2_still_breaks_on_a_batch_and_takes_the_mode_from_any_header(sdk2: Speak) -> None:
    batch = {"content-type": "application/cloudevents-batch+json"}
    envelope = json.dumps({**attributes_of("wager.placed"), "data": DATA["wager.placed"]})
    structured = {"content-type": "application/cloudevents+json", "ce_x": "1"}
    answers = sdk2(
        [
            {"do": "read", "binding": "http", "headers": batch, "value": "[]"},
            {
                "do": "read",
                "binding": "kafka",
                "headers": structured,
                "value": envelope,
                "key": None,
            },
        ]
    )
    assert answers[0]["error"] == "AttributeError"
    assert "error" in answers[1]
    headers = tuple((name, text.encode()) for name, text in structured.items())
    event = decode_kafka(Record(WAGERS, b"t1", envelope.encode(), headers))
    assert event.id == "e-1"
    with pytest.raises(RefusedError):
        decode_http(batch, b"[]", WAGERS)


# --- 1.12 --------------------------------------------------------------------------------------


def v1_event(name: str, **changes: Any) -> v1_http.CloudEvent:
    attributes = {**attributes_of(name), **extras_of(name), **changes}
    given = {key: value for key, value in attributes.items() if value is not None}
    return v1_http.CloudEvent(given, DATA[name])


def record_from_v1(message: v1_kafka.KafkaMessage, name: str, **changes: bytes) -> Record:
    headers = {**message.headers, **{k.replace("_", "-"): v for k, v in changes.items()}}
    value = message.value if isinstance(message.value, bytes) else str(message.value).encode()
    return Record(TOPIC_OF[name], key_of(name), value, tuple(headers.items()))


@both_ways
def test_sdk_1_reads_what_we_write_to_kafka(name: str) -> None:
    record = encode_kafka(sample(name), TOPIC_OF[name])
    headers = {n: raw for n, raw in record.headers if raw is not None}
    seen = v1_kafka.from_binary(v1_kafka.KafkaMessage(headers, record.key, record.value or b""))
    attributes = dict(seen.get_attributes())
    if record.key is not None:
        # The trap: the key as bytes where the attribute was text.
        assert attributes["partitionkey"] == record.key
        attributes["partitionkey"] = record.key.decode()
    assert_same(attributes, name)
    assert seen.get_data() == DATA[name]


@both_ways
def test_sdk_1_reads_what_we_write_to_http(name: str) -> None:
    headers, body = encode_http(sample(name))
    seen = v1_http.from_http(headers, body)
    assert_same(dict(seen.get_attributes()), name)
    assert seen.get_data() == DATA[name]


@both_ways
def test_we_read_what_sdk_1_writes_to_http(name: str) -> None:
    for to in (conversion.to_binary, conversion.to_structured):
        headers, body = to(v1_event(name))
        assert decode_http(headers, body, TOPIC_OF[name]) == sample(name)


@both_ways
def test_we_read_what_sdk_1_writes_to_kafka(name: str) -> None:
    binary = v1_kafka.to_binary(v1_event(name))
    assert "ce_partitionkey" not in binary.headers  # the trap
    assert decode_kafka(record_from_v1(binary, name)) == sample(name)
    structured = v1_kafka.to_structured(v1_event(name, datacontenttype=None))
    right = {"content_type": b"application/cloudevents+json"}
    event = decode_kafka(record_from_v1(structured, name, **right))
    # Without its content type, as the SDK leaves it, nobody could tell that it is structured.
    assert event._replace(extensions={}) == sample(name)._replace(extensions={})


def test_sdk_1_still_writes_structured_events_under_the_content_type_of_the_data() -> None:
    message = v1_kafka.to_structured(v1_event("wager.placed"))
    assert message.headers["content-type"] == b"application/json"
    with pytest.raises(RefusedError) as caught:
        decode_kafka(record_from_v1(message, "wager.placed"))
    assert caught.value.reason is Refusal.SCHEMA


def test_sdk_1_still_wants_a_content_type_and_fails_on_tombstones() -> None:
    with pytest.raises(KeyError):
        v1_kafka.to_binary(v1_event("wager.placed", datacontenttype=None))
    record = encode_kafka(sample("wager.placed"), WAGERS)
    headers = {n: raw for n, raw in record.headers if raw is not None}
    tombstone: Any = None
    with pytest.raises(DataUnmarshallerError):
        v1_kafka.from_binary(v1_kafka.KafkaMessage(headers, b"t1", tombstone))
    with pytest.raises(RefusedError):
        decode_kafka(record._replace(value=None))


def test_sdk_1_still_takes_bad_json_for_data_and_never_percent_decodes() -> None:
    headers, _ = encode_http(sample("wager.placed")._replace(id="a b"))
    seen = v1_http.from_http(headers, b"{nonsense")
    assert seen.get_data() == b"{nonsense"
    assert seen["id"] == "a%20b"
    with pytest.raises(RefusedError) as caught:
        decode_http(headers, b"{nonsense", WAGERS)
    assert caught.value.reason is Refusal.NOT_JSON


def test_times_of_both_are_ours_to_the_millisecond() -> None:
    event = sample("wager.placed")
    headers, body = conversion.to_binary(v1_event("wager.placed"))
    assert format_time_ms(decode_http(headers, body, WAGERS).time_ms) == format_time_ms(
        event.time_ms
    )
