"""CloudEvents 1.0 codec for the events of the contract, for Kafka and HTTP.

Read: binary and structured mode. Written: binary mode. The SDKs' own Kafka helpers lose
`partitionkey`, break structured mode and fail on tombstones; this codec is checked against both
of their generations. Bindings: CloudEvents kafka-protocol-binding §3 and http-protocol-binding §3.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from pydantic import ValidationError
from pydantic_core import from_json

from leaderboard.codec_writing import JSON_TYPE, encode_data, encode_http, encode_kafka
from leaderboard.errors import Refusal, RefusedError
from leaderboard.events import TOPICS, WAGERS, Event, Record, parse_time_ms, type_of

__all__ = [
    "JSON_TYPE",
    "data_as_kept",
    "decode_http",
    "decode_kafka",
    "encode_data",
    "encode_http",
    "encode_kafka",
]
MAX_VALUE_BYTES: Final = 32 * 1024
MAX_ATTRIBUTE_BYTES: Final = 512
MAX_CONTENT_TYPE: Final = 255
MAX_EXTENSIONS_BYTES: Final = 16 * 1024
STRUCTURED_TYPE: Final = "application/cloudevents+json"


class _Kind(NamedTuple):
    """What reading needs to know of a type: how its data is read, and whose it is."""

    validate: Callable[[bytes], Any]
    of_tournament: bool
    of_player: bool


_KINDS: Final = {
    topic: {
        type_of(model): _Kind(
            model.__pydantic_validator__.validate_json,
            "tournament_id" in model.model_fields,
            "player_id" in model.model_fields,
        )
        for model in models.values()
    }
    for topic, models in TOPICS.items()
}
_KNOWN: Final = (
    *("specversion", "id", "source", "type", "time"),
    *("subject", "sequence", "traceparent", "partitionkey"),
)
_HEADERS: Final = {"content-type": "datacontenttype", **{f"ce_{name}": name for name in _KNOWN}}
_PLAIN: Final = ("content-type", JSON_TYPE.encode())
"""How nearly all say that their value is the data alone."""
_NAME = re.compile(r"[a-z0-9]+", re.ASCII)
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""What CloudEvents' type String leaves out (non-characters of the further planes apart)."""
_STRINGS: Final = frozenset(
    {"specversion", "id", "source", "type", "time", "subject", "datacontenttype", "dataschema"}
)

# --- reading -----------------------------------------------------------------------------------


def decode_kafka(record: Record) -> Event:
    """The event of a record. Raises RefusedError with the reason for the dead-letter topic."""
    event = _decode_plain(record)
    return _decode_any(record) if event is None else event


def _decode_any(record: Record) -> Event:
    value = record.value
    if value is None:
        raise RefusedError(Refusal.SCHEMA, "tombstone: a record without a value is no event")
    _check_size(value)
    try:
        attributes = _attributes_of(record.headers)
    except UnicodeDecodeError:
        raise RefusedError(Refusal.SCHEMA, "a header is not UTF-8") from None
    if _is_structured(attributes.get("datacontenttype", JSON_TYPE)):
        attributes, value = _open_structured(value)
    if "traceparent" not in attributes and (hop := _hop_of(record.headers)) is not None:
        attributes["traceparent"] = hop
    return _build(attributes, value, record.topic, record.key or b"")


class _Layout(NamedTuple):
    """Where the headers of a plain record lie: those that every one has, and those that some have
    (-1: not there)."""

    specversion: int
    source: int
    type: int
    content_type: int
    id: int
    time: int
    subject: int
    partitionkey: int
    sequence: int
    traceparent: int


_ALWAYS: Final = ("ce_specversion", "ce_source", "ce_type", "content-type", "ce_id", "ce_time")
_SOMETIMES: Final = ("ce_subject", "ce_partitionkey", "ce_sequence", "ce_traceparent")
_HOP: Final = "traceparent"
"""The header of W3C Trace Context, which instrumented producers set beside the event: the event's
trace, where its own extension does not say another one."""


_LAYOUTS: Final[dict[tuple[str, ...], _Layout]] = {}
_MOST_LAYOUTS: Final = 256
_LONGEST_PLAIN: Final = 128


def _layout_of(names: tuple[str, ...]) -> _Layout | None:
    """None unless all headers are known, each there once, and written as the binding has them."""
    found = set(names)
    if len(found) < len(names) or not found.issuperset(_ALWAYS):
        return None
    if not found.issubset({*_ALWAYS, *_SOMETIMES, _HOP, "tracestate"}):
        return None
    where = {name: index for index, name in enumerate(names)}
    where.setdefault("ce_traceparent", where.get(_HOP, -1))
    layout = _Layout(*(where.get(name, -1) for name in (*_ALWAYS, *_SOMETIMES)))
    if len(_LAYOUTS) < _MOST_LAYOUTS:
        _LAYOUTS[names] = layout
    return layout


@lru_cache(maxsize=1024)
def _plain_kind(
    topic: str, version: bytes, source: bytes, type_: bytes, content_type: bytes
) -> tuple[str, _Kind] | None:
    """Source and kind, the same for thousands of events; None where they are not plain."""
    try:
        kind = _KINDS.get(topic, {}).get(type_.decode())
        if version != b"1.0" or kind is None or not (kind.of_tournament and kind.of_player):
            return None
        if _is_structured(content_type.decode()):
            return None
        return _wanted(source.decode(), "source"), kind
    except (UnicodeDecodeError, RefusedError):
        return None


def _decode_plain(record: Record) -> Event | None:
    """The event of a record as nearly all are written: binary mode, known headers, of one player
    in one tournament. None for all else: `_build` reads it, or says what is wrong.

    No rules of its own: what comes out here comes out there as well (a test compares them)."""
    topic, key, value, headers = record[:4]
    if not headers or value is None or len(value) > MAX_VALUE_BYTES:
        return None
    names, values = zip(*headers, strict=True)
    layout = _LAYOUTS.get(names) or _layout_of(names)
    if layout is None or None in values:
        return None
    version, source, type_, content_type, id_, time, subject, partition, number, trace = layout
    common = values[version], values[source], values[type_], values[content_type]
    if sum(map(len, common)) > _LONGEST_PLAIN:
        return None  # also: nothing larger is remembered
    known = _plain_kind(topic, *common)
    if known is None:
        return None
    try:
        if (78 in value or 73 in value) and (b"NaN" in value or b"Infinity" in value):
            return None
        data = known[1].validate(value)
        event_id = values[id_].decode()
        time_ms = parse_time_ms(values[time].decode())
        player_id, tournament = data.player_id, data.tournament_id.encode()
        sequence = traceparent = None
        if number >= 0:
            text = values[number].decode()
            sequence = _number(text)
            if str(sequence) != text:
                return None
        if trace >= 0:
            traceparent = values[trace].decode() or None
            if traceparent is not None and len(traceparent) > _LONGEST_PLAIN:
                return None
            _check_text(traceparent or "", "traceparent")
        if (
            not 0 < len(event_id) <= 128
            or not event_id.isprintable()
            or key != tournament
            or (partition >= 0 and values[partition] != tournament)
            or (subject >= 0 and values[subject] != player_id.encode())
        ):
            return None
    except (ValueError, AttributeError, RefusedError):
        return None
    return Event(
        event_id,
        known[0],
        time_ms,
        data,
        player_id if subject >= 0 else None,
        sequence,
        traceparent,
    )


def decode_http(headers: Mapping[str, str], body: bytes, topic: str) -> Event:
    """The event of an HTTP request, of a type that `topic` carries. Raises RefusedError."""
    _check_size(body)
    lower = {name.lower(): text for name, text in headers.items()}
    content_type = lower.get("content-type", JSON_TYPE)
    if _is_structured(content_type):
        attributes, body = _open_structured(body)
    else:
        attributes = {n[3:]: _plain(text) for n, text in lower.items() if n[:3] == "ce-"}
        attributes["datacontenttype"] = content_type
    if (hop := lower.get(_HOP, "")) and len(hop) <= 128 and hop.isprintable():
        attributes.setdefault("traceparent", hop)
    return _build(attributes, body, topic)


def data_as_kept(record: Record, event: Event) -> bytes:
    """The data of a record's event as they came; of a structured one, where they lay inside of the
    event, as they are written once they were read. What the record keeps, and leaves commit to."""
    value = record.value or b""
    if _PLAIN in record.headers:
        return value
    for name, raw in record.headers:
        if name.lower() == "content-type" and raw and _is_structured(raw.decode()):
            return encode_data(event.data)
    return value


def traceparent_of(record: Record) -> str | None:
    """The `traceparent` of a record, also of one that can't be read."""
    found = {name.lower(): raw for name, raw in record.headers if raw is not None}
    raw = found.get("ce_traceparent", found.get(_HOP))
    return None if raw is None else raw.decode("ascii", "replace")


def _hop_of(headers: Sequence[tuple[str, bytes | None]]) -> str | None:
    """What the header of the way says; None where that is no text that an event could carry."""
    raw = next((raw for name, raw in headers if name.lower() == _HOP and raw), b"")
    text = raw.decode("utf-8", "replace")
    return text if 0 < len(text) <= 128 and text.isprintable() and "\ufffd" not in text else None


def _attributes_of(headers: Sequence[tuple[str, bytes | None]]) -> dict[str, str]:
    try:
        # As producers write them: every header known, in lower case, once.
        attributes = {_HEADERS[header]: raw.decode() for header, raw in headers if raw}
        if len(attributes) == len(headers):
            return attributes
    except KeyError:
        pass
    attributes = {}
    for header, raw in headers:
        name = header.lower()
        name = _HEADERS.get(name) or (name[3:] if name[:3] == "ce_" else "")
        # The binding gives the content type one place only.
        if raw is None or not name or header[3:].lower() == "datacontenttype":
            continue
        if name in attributes:
            raise RefusedError(Refusal.SCHEMA, f"header {_shown(header)} is there twice")
        attributes[name] = raw.decode()
    return attributes


def _is_structured(content_type: str) -> bool:
    """Whether the body holds the whole event; if not, it has to be JSON. Raises RefusedError."""
    if len(content_type) > MAX_CONTENT_TYPE:
        raise RefusedError(Refusal.SCHEMA, f"content type of {len(content_type)} characters")
    return _names_structured(content_type)


@lru_cache(maxsize=64)
def _names_structured(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type.startswith("application/cloudevents"):
        if media_type != STRUCTURED_TYPE:
            raise RefusedError(Refusal.SCHEMA, f"can't read {_shown(media_type)}")
        return True
    if media_type != JSON_TYPE and not media_type.endswith("+json"):
        raise RefusedError(Refusal.SCHEMA, f"content type {_shown(media_type)} is not JSON")
    return False


def _plain(text: str) -> str:
    """A header's value as HTTP binding §3.1.3.2 wants it read: unquoted, percent-decoded."""
    if not text.isascii():
        # Servers guess at such bytes; two ids must never become one by a guess.
        raise RefusedError(Refusal.SCHEMA, "a header has bytes that are not percent-encoded")
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = re.sub(r"\\(.)", r"\1", text[1:-1])
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise RefusedError(Refusal.SCHEMA, "a header is not UTF-8") from None


def _check_size(value: bytes) -> None:
    if len(value) > MAX_VALUE_BYTES:
        raise RefusedError(Refusal.TOO_LARGE, f"{len(value)} bytes, {MAX_VALUE_BYTES} at most")


def _open_structured(value: bytes) -> tuple[dict[str, str], bytes]:
    try:
        envelope = json.loads(value.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise RefusedError(Refusal.NOT_JSON, "the structured event is not JSON") from None
    if not isinstance(envelope, dict):
        raise RefusedError(Refusal.SCHEMA, "a structured event is a JSON object")
    body = _body_of(envelope)
    attributes = {}
    for name, attribute in envelope.items():
        if attribute is None:
            continue
        simple = str if name in _STRINGS else str | int
        if not isinstance(attribute, simple):
            raise RefusedError(Refusal.SCHEMA, f"attribute {_shown(name)} is of the wrong type")
        attributes[name] = attribute if isinstance(attribute, str) else json.dumps(attribute)
    attributes.setdefault("datacontenttype", JSON_TYPE)
    if _is_structured(attributes["datacontenttype"]):
        raise RefusedError(Refusal.SCHEMA, "an event in an event")
    return attributes, body


def _body_of(envelope: dict[str, Any]) -> bytes:
    """Takes the data out of a structured event."""
    data, encoded = envelope.pop("data", None), envelope.pop("data_base64", None)
    if encoded is None:
        try:
            return json.dumps(data).encode()
        except RecursionError:
            raise RefusedError(Refusal.NOT_JSON, "data is nested too deep") from None
    if data is not None:
        raise RefusedError(Refusal.SCHEMA, "data and data_base64 exclude each other")
    try:
        return base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise RefusedError(Refusal.SCHEMA, "data_base64 is not base64") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _build(attributes: dict[str, str], body: bytes, topic: str, key: bytes | None = None) -> Event:
    """Checks attributes, then data. `attributes` is consumed: what is left are extensions."""
    take = attributes.pop
    if (version := take("specversion", None)) != "1.0":
        raise RefusedError(Refusal.SCHEMA, f"specversion is {_shown(version)}, 1.0 wanted")
    event_id, source = _wanted(take("id", None), "id"), _wanted(take("source", None), "source")
    event_type = take("type", None)
    if not event_type:
        raise RefusedError(Refusal.SCHEMA, "attribute type is missing")
    kind = _KINDS[topic].get(event_type)
    if kind is None:
        raise RefusedError(Refusal.UNKNOWN_TYPE, f"{_shown(event_type)} is no type of {topic}")
    try:
        time_ms = parse_time_ms(take("time", ""))
    except ValueError as error:
        raise RefusedError(Refusal.SCHEMA, f"time: {error}") from None
    take("datacontenttype", None)
    data = _data_of(kind, body)
    if kind.of_tournament:
        _check_tournament(data.tournament_id, attributes, topic, key)
    if (subject := take("subject", None)) is not None:
        if not kind.of_player or data.player_id is None:
            _check_text(subject, "subject")
        elif subject != data.player_id:
            raise RefusedError(Refusal.SCHEMA, "subject is not the player of the data")
    if (traceparent := take("traceparent", None) or None) is not None:
        _check_text(traceparent, "traceparent")
    sequence = None
    if (text := attributes.get("sequence")) is not None:
        sequence = _number(text)
        if str(sequence) == text:
            del attributes["sequence"]  # else the number can't tell how it was written
    if attributes:
        _check_extensions(attributes)
    return Event(event_id, source, time_ms, data, subject, sequence, traceparent, attributes)


def _data_of(kind: _Kind, body: bytes) -> Any:
    try:
        # JSON has no such words; inside a string they are fine: then a strict reader tells. To
        # look for their first letters (78 is N, 73 is I) costs a tenth of looking for them.
        if (78 in body or 73 in body) and (b"NaN" in body or b"Infinity" in body):
            from_json(body, allow_inf_nan=False)
        return kind.validate(body)
    except ValidationError as error:
        raise _refusal_of(error) from None
    except ValueError:
        raise RefusedError(Refusal.NOT_JSON, "NaN and Infinity are not JSON") from None


def _check_tournament(
    tournament_id: str | None, attributes: dict[str, str], topic: str, key: bytes | None
) -> None:
    if tournament_id is None:
        if topic == WAGERS:
            raise RefusedError(Refusal.SCHEMA, "tournament_id: wanted in this topic")
        return
    if attributes.pop("partitionkey", tournament_id) != tournament_id:
        raise RefusedError(Refusal.WRONG_KEY, "partitionkey is not the tournament's id")
    if key is not None and key != tournament_id.encode():
        raise RefusedError(Refusal.WRONG_KEY, "the record's key is not the tournament's id")


def _check_extensions(extensions: Mapping[str, str]) -> None:
    """They go out again as headers: names and values have to be what headers can hold."""
    size = 0
    for name, text in extensions.items():
        if _NAME.fullmatch(name) is None or len(name) > 64 or name == "data":
            raise RefusedError(Refusal.SCHEMA, f"{_shown(name)} is no name of an attribute")
        if _FORBIDDEN.search(text) is not None:
            raise RefusedError(Refusal.SCHEMA, f"attribute {name} has forbidden characters")
        size += len(name) + len(text.encode())
    if size > MAX_EXTENSIONS_BYTES:
        raise RefusedError(
            Refusal.TOO_LARGE, f"{size} bytes of extensions, {MAX_EXTENSIONS_BYTES} at most"
        )


def _check_text(text: str, name: str) -> None:
    if len(text) <= 128 and text.isprintable():
        return
    if _FORBIDDEN.search(text) is not None or len(text.encode()) > MAX_ATTRIBUTE_BYTES:
        raise RefusedError(Refusal.SCHEMA, f"attribute {name} is too long or hostile")


def _wanted(text: str | None, name: str) -> str:
    if not text:
        raise RefusedError(Refusal.SCHEMA, f"attribute {name} is missing")
    # No character takes more than four bytes: short texts need not be encoded to know.
    if len(text) > 128 and len(text.encode("utf-8", "surrogatepass")) > MAX_ATTRIBUTE_BYTES:
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
