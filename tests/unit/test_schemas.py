"""The published JSON Schemas: fresh, sound, and of one mind with the codec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from leaderboard import schemas
from leaderboard.codec import decode_kafka
from leaderboard.errors import RefusedError
from samples import DATA, NAMES, WAGER, any_data, record_of

FOLDER = Path(__file__).parents[2] / "docs/schemas"
SCHEMAS = schemas.schemas()


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(SCHEMAS[name], format_checker=Draft202012Validator.FORMAT_CHECKER)


def test_published_schemas_are_fresh() -> None:
    """If not: `python -m leaderboard.schemas` writes them."""
    published = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert published == schemas.files()


def test_writing_replaces_what_is_stale(tmp_path: Path) -> None:
    (tmp_path / "old.v1.json").write_text("{}")
    schemas.write(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == schemas.files()


def test_every_type_has_a_schema() -> None:
    assert set(SCHEMAS) == set(DATA)


@pytest.mark.parametrize("name", NAMES)
def test_schema_is_sound_and_takes_a_good_event(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])
    validator(name).validate(DATA[name])
    assert SCHEMAS[name]["title"] == f"io.leaderboard.{name}.v1"


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(NAMES), st.data())
def test_schema_takes_what_the_codec_takes(name: str, data: st.DataObject) -> None:
    drawn = data.draw(any_data(name))
    key = drawn["tournament_id"].encode() if "tournament_id" in drawn else None
    decode_kafka(record_of(name, drawn, key=key))
    validator(name).validate(drawn)


BAD: list[tuple[str, dict[str, Any]]] = [
    *(("wager.placed", {"stake_minor": bad}) for bad in (-1, 1.5, "5", None, 2**53, True)),
    *(("wager.placed", {"player_id": bad}) for bad in ("{}", ":", "", "a b", "x" * 65, 5, None)),
    *(("wager.placed", {"currency": bad}) for bad in ("eur", "", "E", "EUROPEAN1")),
    *(("score.submitted", {"score": bad}) for bad in (2**53, -(2**53), 0.5, "1", None)),
    *(("tournament.scheduled", {"rules": bad}) for bad in ({}, {"scoring": {"kind": "x"}}, 5)),
    ("tournament.scheduled", {"rules": {"scoring": {"kind": "stake"}, "order": "up"}}),
    *(("tournament.scheduled", {"starts_at": bad}) for bad in (5, None)),
    *(("player.joined", {"display_name": bad}) for bad in ("", "a\nb", "x" * 65)),
    ("position.changed", {"new_rank": 0}),
    ("fraud.suspected", {"evidence": []}),
    ("fraud.reviewed", {"decision": "maybe"}),
    ("connection.decided", {"allowed": "yes"}),
]


@pytest.mark.parametrize(("name", "changes"), BAD)
def test_schema_refuses_what_the_codec_refuses(name: str, changes: dict[str, Any]) -> None:
    data = {**DATA[name], **changes}
    with pytest.raises(RefusedError):
        decode_kafka(record_of(name, data))
    assert not validator(name).is_valid(data)


@pytest.mark.parametrize("name", NAMES)
def test_schema_wants_the_fields_that_the_codec_wants(name: str) -> None:
    for field in DATA[name]:
        data = {key: value for key, value in DATA[name].items() if key != field}
        try:
            decode_kafka(record_of(name, data))
        except RefusedError as error:
            if "this topic" in error.detail or "key" in error.detail:
                continue  # what depends on the topic no schema of data can say
            assert not validator(name).is_valid(data)
        else:
            validator(name).validate(data)


def test_unknown_fields_are_taken() -> None:
    validator("wager.placed").validate({**WAGER, "x": [1, {"y": None}]})
    assert json.loads((FOLDER / "wager.placed.v1.json").read_text())["additionalProperties"] is True
