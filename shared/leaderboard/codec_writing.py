"""The codec's other half: events as records and requests, always in binary mode. See `codec`."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from leaderboard.events import TOPICS, Data, Event, Record, format_time_ms, type_of

JSON_TYPE: Final = "application/json"
_SPECVERSION: Final = ("ce_specversion", b"1.0")
_CONTENT_TYPE: Final = ("content-type", JSON_TYPE.encode())
_TYPES: Final = {
    model: ("ce_type", type_of(model).encode())
    for models in TOPICS.values()
    for model in models.values()
}


def encode_kafka(event: Event, topic: str) -> Record:
    """The record of an event in binary mode, keyed by its tournament."""
    data = event.data
    headers = [
        _SPECVERSION,
        ("ce_id", event.id.encode()),
        ("ce_source", event.source.encode()),
        _TYPES[type(data)],
        ("ce_time", format_time_ms(event.time_ms).encode()),
    ]
    if event.subject is not None:
        headers.append(("ce_subject", event.subject.encode()))
    tournament_id = event.tournament_id
    key = None if tournament_id is None else tournament_id.encode()
    if key is not None:
        headers.append(("ce_partitionkey", key))
    if event.sequence is not None and "sequence" not in event.extensions:
        headers.append(("ce_sequence", b"%d" % event.sequence))
    if event.traceparent is not None:
        headers.append(("ce_traceparent", event.traceparent.encode()))
    if event.extensions:
        headers += [(f"ce_{name}", text.encode()) for name, text in event.extensions.items()]
    headers.append(_CONTENT_TYPE)
    return Record(topic, key, encode_data(data), tuple(headers))


def encode_http(event: Event) -> tuple[dict[str, str], bytes]:
    """Headers and body of an event in binary mode; values are percent-encoded as HTTP wants."""
    record = encode_kafka(event, "")
    headers = {
        f"ce-{name[3:]}": _header_value(raw)
        for name, raw in record.headers
        if raw is not None and name is not _CONTENT_TYPE[0]
    }
    headers["content-type"] = JSON_TYPE
    return headers, record.value or b""


def encode_data(data: Data) -> bytes:
    """The data as JSON; fields that were not given stay away."""
    return data.__pydantic_serializer__.to_json(data, exclude_unset=True)


_SAFE: Final = "".join(map(chr, range(0x21, 0x7F))).replace('"', "").replace("%", "")


def _header_value(raw: bytes) -> str:
    """Percent-encodes what CloudEvents' HTTP binding §3.1.3.2 names: space, quote, percent and
    everything outside printable ASCII."""
    return quote(raw, safe=_SAFE)
