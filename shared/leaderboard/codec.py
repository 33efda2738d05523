"""CloudEvents 1.0 codec for the events of the contract, for Kafka and HTTP.

Read: binary and structured mode. Written: binary mode. The SDKs' own Kafka helpers lose
`partitionkey`, break structured mode and fail on tombstones; this codec is checked against both
of their generations. Bindings: CloudEvents kafka-protocol-binding §3 and http-protocol-binding §3.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote, unquote

from pydantic import ValidationError

from leaderboard.errors import Refusal, RefusedError
from leaderboard.events import (
    TOPICS,
    TYPE_PREFIX,
    WAGERS,
    Data,
    Event,
    Record,
    format_time_ms,
    parse_time_ms,
    type_of,
)

MAX_VALUE_BYTES: Final = 32 * 1024
MAX_ATTRIBUTE_BYTES: Final = 512
JSON_TYPE: Final = "application/json"
STRUCTURED_TYPE: Final = "application/cloudevents+json"

_MODELS: Final = {
    topic: {f"{TYPE_PREFIX}{name}.v1": model for name, model in models.items()}
    for topic, models in TOPICS.items()
}

# --- reading -----------------------------------------------------------------------------------


def decode_kafka(record: Record) -> Event:
    """The event of a record. Raises RefusedError with the reason for the dead-letter topic."""
    value = record.value
    if value is None:
        raise RefusedError(Refusal.SCHEMA, "tombstone: a record without a value is no event")
    if len(value) > MAX_VALUE_BYTES:
        raise RefusedError(Refusal.TOO_LARGE, f"{len(value)} bytes, {MAX_VALUE_BYTES} at most")
    headers = {name.lower(): raw for name, raw in record.headers if raw is not None}
    try:
        content_type = headers.get("content-type", b"").decode()
        if content_type.lower().startswith("application/cloudevents"):
            attributes, body = _open_structured(content_type, value)
        else:
            attributes = {n[3:]: raw.decode() for n, raw in headers.items() if n[:3] == "ce_"}
            body = value
            if content_type:
                attributes["datacontenttype"] = content_type
    except UnicodeDecodeError:
        raise RefusedError(Refusal.SCHEMA, "a header is not UTF-8") from None
    event = _build(attributes, body, record.topic)
    key = (event.tournament_id or "").encode()
    if event.tournament_id is not None and (record.key or b"") != key:
        raise RefusedError(Refusal.WRONG_KEY, "the record's key is not the tournament's id")
    return event


def decode_http(headers: Mapping[str, str], body: bytes, topic: str) -> Event:
    """The event of an HTTP request, of a type that `topic` carries. Raises RefusedError."""
    if len(body) > MAX_VALUE_BYTES:
        raise RefusedError(Refusal.TOO_LARGE, f"{len(body)} bytes, {MAX_VALUE_BYTES} at most")
    lower = {name.lower(): text for name, text in headers.items()}
    content_type = lower.get("content-type", "")
    if content_type.lower().startswith("application/cloudevents"):
        attributes, body = _open_structured(content_type, body)
    else:
        attributes = {n[3:]: unquote(text) for n, text in lower.items() if n[:3] == "ce-"}
        if content_type:
            attributes["datacontenttype"] = content_type
    return _build(attributes, body, topic)


def _open_structured(content_type: str, value: bytes) -> tuple[dict[str, str], bytes]:
    if not content_type.lower().startswith(STRUCTURED_TYPE):
        raise RefusedError(Refusal.SCHEMA, f"can't read {content_type[:80]!r}")
    try:
        envelope = json.loads(value)
    except (ValueError, RecursionError):
        raise RefusedError(Refusal.NOT_JSON, "the structured event is not JSON") from None
    if not isinstance(envelope, dict):
        raise RefusedError(Refusal.SCHEMA, "a structured event is a JSON object")
    body = json.dumps(envelope.pop("data", None)).encode()
    if (encoded := envelope.pop("data_base64", None)) is not None:
        try:
            body = base64.b64decode(encoded, validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise RefusedError(Refusal.SCHEMA, "data_base64 is not base64") from None
    attributes = {}
    for name, attribute in envelope.items():
        if attribute is None:
            continue
        if not isinstance(attribute, str | int | bool):
            raise RefusedError(Refusal.SCHEMA, f"attribute {name[:20]!r} is not a simple value")
        attributes[name] = attribute if isinstance(attribute, str) else json.dumps(attribute)
    return attributes, body


def _build(attributes: dict[str, str], body: bytes, topic: str) -> Event:
    """Checks attributes, then data. `attributes` is consumed: what is left are extensions."""
    take = attributes.pop
    if (version := take("specversion", None)) != "1.0":
        raise RefusedError(Refusal.SCHEMA, f"specversion is {_shown(version)}, 1.0 wanted")
    event_id, source = _wanted(take("id", None), "id"), _wanted(take("source", None), "source")
    event_type = _wanted(take("type", None), "type")
    model = _MODELS[topic].get(event_type)
    if model is None:
        raise RefusedError(Refusal.UNKNOWN_TYPE, f"{_shown(event_type)} is no type of {topic}")
    try:
        time_ms = parse_time_ms(_wanted(take("time", None), "time"))
    except (ValueError, OverflowError) as error:
        raise RefusedError(Refusal.SCHEMA, f"time: {error}") from None
    content = take("datacontenttype", JSON_TYPE).partition(";")[0].strip().lower()
    if content != JSON_TYPE and not content.endswith("+json"):
        raise RefusedError(Refusal.SCHEMA, f"datacontenttype {_shown(content)} is not JSON")
    try:
        data = model.model_validate_json(body)
    except ValidationError as error:
        raise _refusal_of(error) from None
    event = Event(
        id=event_id,
        source=source,
        time_ms=time_ms,
        data=data,
        subject=take("subject", None),
        sequence=_number(take("sequence", None)),
        traceparent=take("traceparent", None),
        extensions=attributes,
    )
    _check_agreement(event, attributes.pop("partitionkey", None), topic)
    return event


def _check_agreement(event: Event, partition_key: str | None, topic: str) -> None:
    tournament_id = event.tournament_id
    if topic == WAGERS and tournament_id is None:
        raise RefusedError(Refusal.SCHEMA, "tournament_id: wanted in this topic")
    if partition_key is not None and tournament_id is not None and partition_key != tournament_id:
        raise RefusedError(Refusal.WRONG_KEY, "partitionkey is not the tournament's id")
    if event.subject is not None and event.player_id not in (None, event.subject):
        raise RefusedError(Refusal.SCHEMA, "subject is not the player of the data")


def _wanted(text: str | None, name: str) -> str:
    if not text:
        raise RefusedError(Refusal.SCHEMA, f"attribute {name} is missing")
    if len(text.encode("utf-8", "surrogatepass")) > MAX_ATTRIBUTE_BYTES:
        raise RefusedError(Refusal.BAD_ID, f"attribute {name} is over {MAX_ATTRIBUTE_BYTES} bytes")
    if not text.isprintable():
        raise RefusedError(Refusal.BAD_ID, f"attribute {name} has characters that can't be shown")
    return text


def _number(text: str | None) -> int | None:
    """A producer's own number. Others use the extension for other orders: those are no numbers."""
    if text is None or not (text.isascii() and text.isdecimal()) or len(text) > 15:
        return None
    return int(text)


def _shown(text: str | None) -> str:
    return "missing" if text is None else repr(text[:80])


_ID_FIELDS: Final = {"tournament_id", "player_id", "team_id", "erasure_id"}
_SHAPE_ERRORS: Final = {"string_pattern_mismatch", "string_too_long", "string_too_short"}
_RANGE_ERRORS: Final = {"less_than", "greater_than"}


def _refusal_of(error: ValidationError) -> RefusedError:
    """The contract's one reason for pydantic's many: what can't be parsed first, ids next."""
    found: dict[Refusal, str] = {}
    for one in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in one["loc"])
        if one["type"] == "json_invalid":
            reason = Refusal.NOT_JSON
        elif one["type"] in _SHAPE_ERRORS and one["loc"] and one["loc"][-1] in _ID_FIELDS:
            reason = Refusal.BAD_ID
        elif one["type"] in _RANGE_ERRORS:
            reason = Refusal.SCORE_OUT_OF_RANGE
        else:
            reason = Refusal.SCHEMA
        found.setdefault(reason, f"{where[:200]}: {one['msg'][:200]}" if where else one["msg"])
    for reason in (Refusal.NOT_JSON, Refusal.BAD_ID, Refusal.SCHEMA, Refusal.SCORE_OUT_OF_RANGE):
        if reason in found:
            return RefusedError(reason, found[reason])
    raise AssertionError("a validation error without errors")


# --- writing -----------------------------------------------------------------------------------


def encode_kafka(event: Event, topic: str) -> Record:
    """The record of an event in binary mode, keyed by its tournament."""
    key = event.tournament_id
    headers = [(f"ce_{name}", text.encode()) for name, text in _attributes(event)]
    headers.append(("content-type", JSON_TYPE.encode()))
    return Record(
        topic=topic,
        key=None if key is None else key.encode(),
        value=encode_data(event.data),
        headers=tuple(headers),
    )


def encode_http(event: Event) -> tuple[dict[str, str], bytes]:
    """Headers and body of an event in binary mode; values are percent-encoded as HTTP wants."""
    headers = {f"ce-{name}": _header_value(text) for name, text in _attributes(event)}
    headers["content-type"] = JSON_TYPE
    return headers, encode_data(event.data)


def encode_data(data: Data) -> bytes:
    """The data as JSON; fields that were not given stay away."""
    return data.model_dump_json(exclude_unset=True).encode()


def _attributes(event: Event) -> Iterable[tuple[str, str]]:
    yield "specversion", "1.0"
    yield "id", event.id
    yield "source", event.source
    yield "type", type_of(type(event.data))
    yield "time", format_time_ms(event.time_ms)
    if event.subject is not None:
        yield "subject", event.subject
    if event.tournament_id is not None:
        yield "partitionkey", event.tournament_id
    if event.sequence is not None:
        yield "sequence", str(event.sequence)
    if event.traceparent is not None:
        yield "traceparent", event.traceparent
    yield from event.extensions.items()


def _header_value(text: str) -> str:
    """Percent-encodes what CloudEvents' HTTP binding §3.1.3.2 names: space, quote, percent and
    everything outside printable ASCII."""
    safe = "".join(map(chr, range(0x21, 0x7F))).replace('"', "").replace("%", "")
    return quote(text, safe=safe)
