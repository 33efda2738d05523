"""Speaks for the cloudevents SDK 2.x, from an environment of its own.

Tasks come as JSON on stdin, answers go as JSON to stdout. Bytes travel as latin-1 text. An error of
the SDK is answered by its name."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

from cloudevents.core.bindings import http, kafka
from cloudevents.core.v1.event import CloudEvent


def read(task: dict[str, Any]) -> dict[str, Any]:
    """Attributes and data of a message."""
    headers = task["headers"]
    if task["binding"] == "kafka":
        raw = {name: text.encode("latin-1") for name, text in headers.items()}
        message = kafka.KafkaMessage(raw, task["key"], task["value"].encode("latin-1"))
        event = kafka.from_kafka_event(message)
    else:
        event = http.from_http_event(http.HTTPMessage(headers, task["value"].encode("latin-1")))
    attributes = {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in event.get_attributes().items()
    }
    data = event.get_data()
    if isinstance(data, bytes | str):
        data = json.loads(data)
    return {"attributes": attributes, "data": data}


def write(task: dict[str, Any]) -> dict[str, Any]:
    """A message of the given mode."""
    attributes = dict(task["attributes"])
    attributes["time"] = datetime.fromisoformat(attributes["time"])
    event = CloudEvent(attributes, task["data"])
    if task["binding"] == "kafka":
        to = kafka.to_binary_event if task["mode"] == "binary" else kafka.to_structured_event
        message = to(event)
        key = message.key.decode() if isinstance(message.key, bytes) else message.key
        headers = {name: raw.decode("latin-1") for name, raw in message.headers.items()}
        return {"headers": headers, "key": key, "value": message.value.decode("latin-1")}
    to_http = http.to_binary_event if task["mode"] == "binary" else http.to_structured_event
    request = to_http(event)
    return {"headers": request.headers, "key": None, "value": request.body.decode("latin-1")}


def answer(task: dict[str, Any]) -> dict[str, Any]:
    try:
        return read(task) if task["do"] == "read" else write(task)
    except Exception as error:  # noqa: BLE001 - the test says which one it expects
        return {"error": type(error).__name__, "detail": str(error)}


if __name__ == "__main__":
    json.dump([answer(task) for task in json.load(sys.stdin)], sys.stdout)
