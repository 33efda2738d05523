"""`leaderboard asyncapi`: what goes through Kafka and the players' sockets, as AsyncAPI 3.0.

Topics, who reads and writes each, the events' data and their headers are taken from where the code
has them, so the document can't disagree with it. Of a frame there is no model, as none is ever
read here: its shape stands below, and a test holds frames against it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import click
from pydantic.json_schema import models_json_schema

from leaderboard import events as ev
from leaderboard.cli.context import CommandError
from leaderboard.dead_letters import Fate
from leaderboard.errors import Refusal
from leaderboard.model import ID_PATTERN, State
from leaderboard.stack.access import KAFKA
from leaderboard.stack.topics import PRODUCTION_IN_SYNC, PRODUCTION_REPLICAS, Topic, topics

FILE: Final = Path("docs/api/asyncapi.json")
Json = dict[str, Any]
_SCHEMA: Final = "#/components/schemas/{model}"
_BINDING: Final = "0.5.0"
LETTERS: Final[Mapping[str, tuple[str, Sequence[str]]]] = {
    "refused": (
        "An event that can never work: its value, key and headers as they came, and why.",
        ("dlq_reason", "dlq_detail", "dlq_topic", "dlq_partition", "dlq_offset", "dlq_at"),
    ),
    "handled": (
        "What became of a dead letter: it was sent once more, or dropped.",
        (
            *("dlq_handled", "dlq_handled_partition", "dlq_handled_offset", "dlq_handled_by"),
            *("dlq_handled_at", "dlq_topic", "dlq_partition", "dlq_offset"),
        ),
    ),
}
"""What lies in a dead-letter topic, with the headers that each has."""
_ID: Final[Json] = {"type": "string", "pattern": ID_PATTERN}
_NUMBER: Final[Json] = {"type": "integer"}
_RANK: Final[Json] = {"type": ["integer", "null"], "minimum": 1}
_NAMED: Final[Json] = {"tournament_id": _ID, "sequence": {"type": "integer", "minimum": 0}}
FRAMES: Final[Mapping[str, Json]] = {
    "top": {
        **_NAMED,
        "version": {"type": "integer", "minimum": 0},
        "players": {"type": "integer", "minimum": 0},
        "standings": {
            "type": "array",
            "maxItems": 100,
            "description": "Rank, player, name as others see it, score.",
            "items": {
                "type": "array",
                "minItems": 4,
                "maxItems": 4,
                "items": [_NUMBER, {"type": "string"}, {"type": "string"}, _NUMBER],
            },
        },
    },
    "position": {
        **_NAMED,
        "old_rank": _RANK,
        "new_rank": _RANK,
        "score": _NUMBER,
        "distance": {"type": ["integer", "null"]},
        "milestone": {"enum": ["top_10", "top_100", None]},
    },
    "curve": {
        **_NAMED,
        "points": {
            "type": "array",
            "description": "Rank and score.",
            "items": {"type": "array", "minItems": 2, "maxItems": 2, "items": _NUMBER},
        },
    },
    "tournament": {**_NAMED, "state": {"enum": [one.value for one in State]}},
}
"""Fields of each type of frame; all of them are always there."""


def document() -> Json:
    """The document, the same for the same code."""
    models = {model for named in ev.TOPICS.values() for model in named.values()}
    ordered = sorted(models, key=ev.name_of)
    _, definitions = models_json_schema(
        [(model, "validation") for model in ordered], ref_template=_SCHEMA
    )
    messages = {ev.name_of(model): _message(model) for model in ordered}
    messages |= {name: _letter(name, *told) for name, told in LETTERS.items()}
    messages |= {f"frame.{name}": _frame(name, fields) for name, fields in FRAMES.items()}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "leaderboard",
            "version": "1",
            "description": "Events (CloudEvents 1.0) in Kafka, and frames on the sockets of "
            "players. Binary mode is what is written; structured mode is read as well.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {
                "host": "kafka.example.com:9093",
                "protocol": "kafka-secure",
                "security": [{"type": "scramSha512", "description": "A user a function."}],
            },
            "gateway": {
                "host": "live.example.com",
                "protocol": "wss",
                "description": "A way in, good once, comes from POST "
                "/v1/tournaments/{tournament_id}/connections (openapi-on-connect.json).",
            },
        },
        "channels": {one.name: _channel(one) for one in topics()} | {"frames": _frames()},
        "operations": dict(_operations()),
        "components": {
            "schemas": _plain(definitions["$defs"]),
            "messages": messages,
        },
    }


def _channel(topic: Topic) -> Json:
    names = list(ev.TOPICS.get(topic.name, LETTERS))
    return {
        "address": topic.name,
        "servers": [{"$ref": "#/servers/kafka"}],
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "replicas": PRODUCTION_REPLICAS,
                "topicConfiguration": _configuration(topic),
                "bindingVersion": _BINDING,
            }
        },
    }


def _configuration(topic: Topic) -> Json:
    """Of what the binding knows (the number of replicas in sync it does not)."""
    config = topic.config(PRODUCTION_IN_SYNC)
    return {
        "cleanup.policy": config["cleanup.policy"].split(","),
        "retention.ms": int(config["retention.ms"]),
        "max.message.bytes": int(config["max.message.bytes"]),
    }


def _frames() -> Json:
    return {
        "address": "/connect",
        "servers": [{"$ref": "#/servers/gateway"}],
        "description": "A reader drops what is not newer than what it has.",
        "bindings": {
            "ws": {
                "method": "GET",
                "query": {
                    "type": "object",
                    "required": ["ticket"],
                    "properties": {
                        "ticket": {"type": "string", "description": "Good once, for 30 seconds."}
                    },
                },
                "bindingVersion": "0.1.0",
            }
        },
        "messages": {
            f"frame.{name}": {"$ref": f"#/components/messages/frame.{name}"} for name in FRAMES
        },
    }


def _operations() -> Iterator[tuple[str, Json]]:
    """Who reads and writes what, by the access lists; dead letters beside their topics."""
    for user, rights in sorted(KAFKA.items()):
        for action, names in (("receive", rights.reads), ("send", rights.writes)):
            for name in sorted(names):
                channel = {"$ref": f"#/channels/{name}"}
                yield f"{user}.{action}.{name}", {"action": action, "channel": channel}
    yield "gateway.send.frames", {"action": "send", "channel": {"$ref": "#/channels/frames"}}


def _message(model: type[ev.Data]) -> Json:
    of_tournament = "tournament_id" in model.model_fields
    key: Json = {"type": "string", "description": "The tournament."} if of_tournament else {}
    return {
        "name": ev.type_of(model),
        "title": ev.name_of(model),
        "summary": " ".join((model.__doc__ or "").split()),
        "contentType": "application/json",
        "headers": _headers(ev.type_of(model), of_player="player_id" in model.model_fields),
        "payload": {"$ref": _SCHEMA.format(model=model.__name__)},
        "bindings": {
            "kafka": {**({"key": key} if key else {}), "bindingVersion": _BINDING},
        },
    }


def _headers(kind: str, *, of_player: bool) -> Json:
    """Attributes as headers, as CloudEvents' Kafka binding has them in binary mode."""
    text: Json = {"type": "string", "minLength": 1, "maxLength": 512}
    subject: Json = {"ce_subject": {"type": "string", "description": "The player."}}
    return {
        "type": "object",
        "required": ["ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "content-type"],
        "properties": {
            "ce_specversion": {"const": "1.0"},
            "ce_id": {**text, "description": "With the source what repetitions are known by."},
            "ce_source": text,
            "ce_type": {"const": kind},
            "ce_time": {"type": "string", "format": "date-time", "description": "When it happened"},
            **(subject if of_player else {}),
            "ce_partitionkey": {"type": "string", "description": "The record's key."},
            "ce_sequence": {
                "type": "string",
                "description": "The producer's own number within its source and tournament.",
            },
            "ce_traceparent": {"type": "string", "description": "W3C Trace Context."},
            "content-type": {"const": "application/json"},
        },
    }


def _letter(name: str, summary: str, headers: Sequence[str]) -> Json:
    known: Json = {
        "dlq_reason": {"enum": sorted(one.value for one in Refusal)},
        "dlq_handled": {"enum": list(get_args(Fate))},
    }
    return {
        "name": name,
        "title": name,
        "summary": summary,
        "headers": {
            "type": "object",
            "required": list(headers),
            "properties": {one: known.get(one, {"type": "string"}) for one in headers},
        },
        "payload": {"description": "Anything." if name == "refused" else "None."},
        "bindings": {"kafka": {"bindingVersion": _BINDING}},
    }


def _frame(name: str, fields: Json) -> Json:
    return {
        "name": name,
        "title": f"frame {name}",
        "contentType": "application/json",
        "payload": {
            "type": "object",
            "required": ["type", *fields],
            "properties": {"type": {"const": name}, **fields},
        },
    }


def _plain(schema: Any) -> Any:
    """Without `discriminator`: OpenAPI's is an object, which AsyncAPI does not know."""
    if isinstance(schema, dict):
        kept = {k: one for k, one in schema.items() if k != "discriminator"}
        return {key: _plain(one) for key, one in kept.items()}
    return [_plain(one) for one in schema] if isinstance(schema, list) else schema


def text() -> str:
    """The file's."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


@click.command(help="Write the AsyncAPI document of topics and sockets.")
@click.option(
    "--to", "path", type=click.Path(dir_okay=False, path_type=Path), default=FILE, show_default=True
)
@click.option("--check", is_flag=True, help="Write nothing; fail if it is stale.")
def asyncapi(path: Path, check: bool) -> None:
    """It is generated from topics, rights and models, so it can't disagree with the code."""
    wanted = text()
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted, encoding="utf-8")
    elif not path.is_file() or path.read_text(encoding="utf-8") != wanted:
        raise CommandError(f"{path}: stale; run `leaderboard asyncapi`")
