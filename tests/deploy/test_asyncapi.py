"""The AsyncAPI document: fresh, sound by AsyncAPI's own schema, and of one mind with the code."""

from __future__ import annotations

import copy
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import pytest
from jsonschema import Draft7Validator

from deploy.checking import ROOT, Tools
from leaderboard import dead_letters
from leaderboard import events as ev
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.cli import async_document
from leaderboard.codec import decode_kafka
from leaderboard.codec_writing import encode_kafka
from leaderboard.errors import Refusal, RefusedError
from leaderboard.frames import curve_frame, position_frame, top_frame, tournament_frame
from leaderboard.model import Offset, Place
from leaderboard.ports import Curve, Frame
from leaderboard.stack.access import KAFKA
from leaderboard.stack.topics import topics
from logs import ALICE, LOG, TOMBSTONE_KEY, T, scheduled, scored
from running import command
from samples import DATA, NAMES, TOPIC_OF, record_of

Json = dict[str, Any]
DOCUMENT: Final[Json] = json.loads((ROOT / async_document.FILE).read_text("utf-8"))
MESSAGES: Final[Mapping[str, Json]] = DOCUMENT["components"]["messages"]
OWN: Final = "package/schemas/3.0.0-without-$id.json"


@pytest.fixture(scope="module")
def own_schema() -> Draft7Validator:
    """What the makers of AsyncAPI take for a document of theirs."""
    with tarfile.open(Tools().asyncapi()) as archive:
        file = archive.extractfile(OWN)
        assert file is not None
        return Draft7Validator(json.load(file))


def test_published_document_is_fresh() -> None:
    """If not: `leaderboard asyncapi` writes it."""
    assert async_document.document() == DOCUMENT
    assert (ROOT / async_document.FILE).read_text("utf-8") == async_document.text()


def test_stale_document_is_told(tmp_path: Any) -> None:
    (tmp_path / "old.json").write_text("{}")
    done = command(["asyncapi", "--check", "--to", "old.json"], tmp_path)
    assert done.returncode == 1
    assert "old.json: stale; run `leaderboard asyncapi`" in done.stderr
    assert command(["asyncapi", "--to", "old.json"], tmp_path).returncode == 0
    assert command(["asyncapi", "--check", "--to", "old.json"], tmp_path).returncode == 0


def test_document_is_sound(own_schema: Draft7Validator) -> None:
    assert [error.message for error in own_schema.iter_errors(DOCUMENT)] == []
    for reference in _references(DOCUMENT):
        assert _found(reference) is not None
    for name, schema in DOCUMENT["components"]["schemas"].items():
        Draft7Validator.check_schema(schema)
        assert "$defs" not in schema, name


BROKEN: Final[list[Callable[[Json], object]]] = [
    lambda one: one.update(chanels={}),
    lambda one: one["operations"]["query.receive.wagers"].update(action="read"),
    lambda one: one["servers"]["kafka"].pop("protocol"),
    lambda one: one["components"]["messages"]["wager.placed"].update(titel="x"),
    lambda one: one["channels"]["wagers"]["bindings"]["kafka"].update(partitions="many"),
]


@pytest.mark.parametrize("fault", BROKEN)
def test_fault_of_a_document_is_found(
    fault: Callable[[Json], object], own_schema: Draft7Validator
) -> None:
    broken = copy.deepcopy(DOCUMENT)
    broken["operations"]["query.receive.wagers"] = {
        "action": "receive", "channel": {"$ref": "#/channels/wagers"},
    }  # fmt: skip
    assert own_schema.is_valid(broken)
    fault(broken)
    assert not own_schema.is_valid(broken)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for one in value.values():
            yield from _references(one)
    elif isinstance(value, list):
        for one in value:
            yield from _references(one)


def _found(reference: str) -> Any:
    value: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        value = value[part]
    return value


# --- agreement -----------------------------------------------------------------------------------


def test_every_topic_is_a_channel_with_its_events() -> None:
    channels = DOCUMENT["channels"]
    assert channels.keys() == {one.name for one in topics()} | {"frames"}
    for one in topics():
        binding = channels[one.name]["bindings"]["kafka"]
        assert binding["partitions"] == one.partitions
        assert binding["topicConfiguration"]["retention.ms"] == one.retention_ms
        carried = set(channels[one.name]["messages"])
        assert carried == set(ev.TOPICS.get(one.name, {"refused": None, "handled": None}))
    assert channels["wagers"]["bindings"]["kafka"]["partitions"] == 50


def test_who_reads_and_writes_is_what_the_access_lists_say() -> None:
    """Read off the rights as they are put into a cluster."""
    told = {
        (name.split(".")[0], one["action"], one["channel"]["$ref"].removeprefix("#/channels/"))
        for name, one in DOCUMENT["operations"].items()
    }
    actions = {"Read": "receive", "Write": "send"}
    rights = {
        (user, actions[acl.operation], acl.name)
        for user, one in KAFKA.items()
        for acl in one.acls()
        if acl.kind == "topic"
    }
    assert told == rights | {("gateway", "send", "frames")}
    assert not [user for user, _, _ in told if user == "query"]


def _validator(schema: Json) -> Draft7Validator:
    """AsyncAPI's own dialect is a superset of draft 07."""
    return Draft7Validator({"allOf": [schema], "components": DOCUMENT["components"]})


def _headers(record: ev.Record) -> dict[str, str]:
    return {name: (raw or b"").decode() for name, raw in record.headers}


@pytest.mark.parametrize("name", NAMES)
def test_event_as_it_is_written_is_the_message(name: str) -> None:
    event = decode_kafka(record_of(name, key=b"t1" if "tournament_id" in DATA[name] else None))
    record = encode_kafka(event, TOPIC_OF[name])
    message = MESSAGES[name]
    _validator(message["headers"]).validate(_headers(record))
    payload = _validator(message["payload"])
    payload.validate(json.loads(record.value or b""))
    assert ("key" in message["bindings"]["kafka"]) == (record.key is not None)
    for field in DATA[name]:
        if field in _found(message["payload"]["$ref"]).get("required", ()):
            assert not payload.is_valid({k: v for k, v in DATA[name].items() if k != field})
    other = MESSAGES["wager.voided" if name != "wager.voided" else "wager.placed"]
    assert not _validator(other["headers"]).is_valid(_headers(record))


def test_dead_letters_and_their_marks_are_messages() -> None:
    error = RefusedError(Refusal.SCHEMA, "no such field")
    letter = dead_letters.bury(record_of(), error, "2025-10-09T08:53:20.123Z")
    refused, handled = (_validator(MESSAGES[name]["headers"]) for name in ("refused", "handled"))
    refused.validate(_headers(letter))
    assert not refused.is_valid({**_headers(letter), "dlq_reason": "whatever"})
    origin = Place("wagers", 3)
    buried = dead_letters.DeadLetter(
        letter, "schema", "no such field", "2025-10-09T08:53:20.123Z", origin, 7, 0
    )
    marked = dead_letters.mark(buried, "dropped", "olga", "2025-10-09T09:00:00.000Z")
    handled.validate(_headers(marked))
    assert not refused.is_valid(_headers(marked))


def frames() -> Iterator[tuple[str, Frame]]:
    board = MemoryBoard(TOMBSTONE_KEY)
    board.apply(T, LOG, None, [scheduled(0), scored(1, ALICE, 9)], None)
    view = board.top(T, 100)
    assert view is not None
    changed = ev.PositionChanged.model_validate(DATA["position.changed"])
    yield "top", top_frame(view)
    yield "position", position_frame(None, changed)
    yield "position", position_frame(7, changed.model_copy(update={"new_rank": None}))
    yield "curve", curve_frame(Curve(T, Offset(7), [(1, 9), (2, 5)]))
    yield "tournament", tournament_frame(view)


@pytest.mark.parametrize(("name", "frame"), list(frames()))
def test_frame_as_it_is_pushed_is_the_message(name: str, frame: Frame) -> None:
    body = json.loads(frame.body)
    payload = MESSAGES[f"frame.{name}"]["payload"]
    _validator(payload).validate(body)
    assert body.keys() == payload["properties"].keys() == set(payload["required"])
    others = async_document.FRAMES.keys() - {name}
    assert not [
        one for one in others if _validator(MESSAGES[f"frame.{one}"]["payload"]).is_valid(body)
    ]
