"""The codec: what is read, what is written, and how each bad event is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from leaderboard import codec, codec_writing
from leaderboard.codec import (
    MAX_VALUE_BYTES,
    decode_http,
    decode_kafka,
    encode_data,
    encode_http,
    encode_kafka,
)
from leaderboard.errors import Refusal, RefusedError
from leaderboard.events import (
    GAME_EVENTS,
    GDPR_EVENTS,
    TOPICS,
    WAGERS,
    Event,
    PlayerErased,
    Record,
    WagerPlaced,
    format_time_ms,
    parse_time_ms,
    type_of,
)
from samples import (
    DATA,
    NAMES,
    TOPIC_OF,
    WAGER,
    any_record,
    attributes_of,
    attributes_seen,
    record_of,
    structured_of,
)

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def refusal(record: Record) -> Refusal:
    """The reason for which a record is refused."""
    with pytest.raises(RefusedError) as caught:
        decode_kafka(record)
    assert caught.value.detail
    assert len(caught.value.detail) < 1000
    return caught.value.reason


def http_refusal(headers: dict[str, str], body: bytes, topic: str = WAGERS) -> Refusal:
    with pytest.raises(RefusedError) as caught:
        decode_http(headers, body, topic)
    return caught.value.reason


def http_of(record: Record) -> tuple[dict[str, str], bytes]:
    """A record's event as an HTTP request, in the same mode."""
    headers = {
        name.replace("ce_", "ce-"): codec_writing._header_value(raw)
        if name[:3] == "ce_"
        else raw.decode()
        for name, raw in record.headers
        if raw is not None
    }
    return headers, record.value or b""


# --- round trips -------------------------------------------------------------------------------


@relaxed
@given(any_record())
def test_every_event_survives_reading_and_writing_in_both_modes(given_: tuple[str, Record]) -> None:
    name, record = given_
    event = decode_kafka(record)
    assert type_of(type(event.data)) == f"io.leaderboard.{name}.v1"
    written = encode_kafka(event, record.topic)
    assert decode_kafka(written) == event
    assert encode_kafka(decode_kafka(written), record.topic) == written
    over_http = decode_http(*encode_http(event), record.topic)
    assert over_http == event
    assert decode_http(*http_of(record), record.topic) == event
    assert written.key == (event.tournament_id.encode() if event.tournament_id else None)


@pytest.mark.parametrize("name", NAMES)
def test_every_type_is_read_alike_in_both_modes(name: str) -> None:
    key = b"t1" if "tournament_id" in DATA[name] else None
    binary = decode_kafka(record_of(name, key=key))
    structured = decode_kafka(structured_of(name, key=key or b""))
    assert binary == structured
    assert json.loads(encode_data(binary.data)) == DATA[name]


@pytest.mark.parametrize("name", ["wager.placed", "score.submitted", "position.changed"])
def test_what_we_write_of_a_player_is_read_the_short_way(name: str) -> None:
    given_: Any
    for given_ in ({}, {"subject": "alice"}, {"sequence": "7", "traceparent": "00-1-2-01"}):
        event = codec._decode_any(record_of(name, None, **given_))
        assert codec._decode_plain(encode_kafka(event, TOPIC_OF[name])) == event


def test_names_and_types_are_one_to_one() -> None:
    assert set(TOPIC_OF) == {name for models in TOPICS.values() for name in models} == set(DATA)


def test_unknown_fields_are_kept_and_ignored_and_written_again() -> None:
    extra = {"x": 1.5, "list": [1, None, {"deep": "é"}], "tournament": "other"}
    event = decode_kafka(record_of(data={**WAGER, **extra}))
    assert json.loads(encode_data(event.data)) == {**WAGER, **extra}


def test_fields_that_were_not_given_stay_away() -> None:
    event = decode_kafka(record_of(data={k: v for k, v in WAGER.items() if k != "win_minor"}))
    assert isinstance(event.data, WagerPlaced)
    assert event.data.win_minor == 0
    assert "win_minor" not in json.loads(encode_data(event.data))


def test_what_is_written_is_binary_mode_with_the_partition_key() -> None:
    event = decode_kafka(structured_of(subject="alice", traceparent="00-1-2-01", tenant="x y"))
    record = encode_kafka(event, WAGERS)
    assert dict(record.headers) == {
        "ce_specversion": b"1.0",
        "ce_id": b"e-1",
        "ce_source": b"/game/platform",
        "ce_type": b"io.leaderboard.wager.placed.v1",
        "ce_time": b"2025-10-09T08:53:20.123Z",
        "ce_subject": b"alice",
        "ce_partitionkey": b"t1",
        "ce_traceparent": b"00-1-2-01",
        "ce_tenant": b"x y",
        "content-type": b"application/json",
    }
    assert record.key == b"t1"


def test_header_names_match_in_any_case_and_foreign_headers_are_none_of_ours() -> None:
    record = record_of(subject="alice")
    upper = tuple((name.upper(), raw) for name, raw in record.headers)
    foreign = (("traceparent", b"\xff"), ("x", None), ("ce_nothing", None))
    assert decode_kafka(record._replace(headers=upper + foreign)) == decode_kafka(record)


def test_missing_content_type_means_json() -> None:
    record = record_of()
    assert decode_kafka(record._replace(headers=record.headers[:-1])) == decode_kafka(record)
    headers, body = http_of(record)
    del headers["content-type"]
    assert decode_http(headers, body, WAGERS) == decode_kafka(record)


def test_percent_encoding_of_http_is_undone_and_done() -> None:
    event = decode_kafka(record_of(id='a "b" é€😀 100%', source="/x/\\~"))
    headers, body = encode_http(event)
    assert headers["ce-id"] == "a%20%22b%22%20%C3%A9%E2%82%AC%F0%9F%98%80%20100%25"
    assert headers["ce-source"] == "/x/\\~"
    assert decode_http(headers, body, WAGERS).id == event.id
    assert decode_http({**headers, "ce-id": '"a\\"b"'}, body, WAGERS).id == 'a"b'


def test_erasure_goes_with_a_tournament_to_wagers_and_without_one_to_others() -> None:
    data = PlayerErased(player_id="alice", erasure_id="er-1")
    record = encode_kafka(Event("e", "/s", 0, data), GDPR_EVENTS)
    assert record.key is None
    assert decode_kafka(record).tournament_id is None
    keyed = record._replace(headers=(*record.headers, ("ce_partitionkey", b"alice")))
    assert encode_kafka(decode_kafka(keyed), GDPR_EVENTS).headers[-2] == keyed.headers[-1]
    assert refusal(record._replace(topic=WAGERS)) is Refusal.SCHEMA


@pytest.mark.parametrize("sequence", ["12", "000012"])
def test_producers_number_is_read_and_written_as_it_was(sequence: str) -> None:
    event = decode_kafka(record_of(sequence=sequence))
    assert event.sequence == 12
    assert ("ce_sequence", sequence.encode()) in encode_kafka(event, WAGERS).headers


@pytest.mark.parametrize("sequence", ["a7", "-1", "1.5", "٣", "9" * 16, " 1"])
def test_sequence_that_is_no_number_is_passed_on(sequence: str) -> None:
    event = decode_kafka(record_of(sequence=sequence))
    assert event.sequence is None
    assert ("ce_sequence", sequence.encode()) in encode_kafka(event, WAGERS).headers


# --- time --------------------------------------------------------------------------------------


@given(st.integers(parse_time_ms("0002-01-01T00:00:00Z"), parse_time_ms("9998-12-31T23:59:59Z")))
def test_times_survive_to_the_millisecond(time_ms: int) -> None:
    assert parse_time_ms(format_time_ms(time_ms)) == time_ms


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00.5z", 500),
        ("1970-01-01T01:00:00.123456789+01:00", 123),
        ("1969-12-31T23:59:59.9999Z", -1),
        ("2024-02-29T12:00:00-00:00", 1_709_208_000_000),
    ],
)
def test_times_are_read_as_rfc_3339_says(text: str, time_ms: int) -> None:
    assert parse_time_ms(text) == time_ms


BAD_TIMES = [
    *("", "now", "2025-10-09", "2025-10-09T08:00:00", "2025-10-09 08:00:00Z", "1760000000"),
    *("2025-02-29T00:00:00Z", "2025-10-09T24:00:00Z", "2025-10-09T08:00:60Z", "20251009T080000Z"),
    *("2025-10-09T08:00:00+25:00", "2025-10-09T08:00:00+01:60", "2025-10-09T08:00:00.Z"),
    *("0000-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"),
    *("２025-10-09T08:00:00Z", "2025-10-09T08:00:00.12٣Z", "2025-10-09T08:00:00Z\n", "9" * 9000),
    *("2025-13-01T00:00:00.000Z", "x025-10-09T08:00:00.000Z", "2025-10-09T08:00:00.+12Z"),
]


@pytest.mark.parametrize("text", BAD_TIMES)
def test_no_other_time_is_read(text: str) -> None:
    assert refusal(record_of(time=text)) is Refusal.SCHEMA
    schedule = {**DATA["tournament.scheduled"], "starts_at": text}
    assert refusal(record_of("tournament.scheduled", schedule)) is Refusal.SCHEMA


# --- refusals: attributes ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type", "time"])
@pytest.mark.parametrize("build", [record_of, structured_of])
def test_missing_attribute_is_refused(name: str, build: Any) -> None:
    assert refusal(build(**{name: None})) is Refusal.SCHEMA
    assert refusal(build(**{name: ""})) is Refusal.SCHEMA
    record = build(**{name: None})
    assert http_refusal(*http_of(record)) is Refusal.SCHEMA


@pytest.mark.parametrize(
    "type_",
    [
        "io.leaderboard.wager.placed.v2",
        "wager.placed",
        "x" * 10_000,
        "io.leaderboard.position.changed.v1",
    ],
)
def test_unknown_type_or_version_or_one_of_another_topic_is_refused(type_: str) -> None:
    assert refusal(record_of(type=type_)) is Refusal.UNKNOWN_TYPE


@pytest.mark.parametrize("version", ["0.3", "1.1", "1", "2.0"])
def test_other_versions_of_cloudevents_are_refused(version: str) -> None:
    assert refusal(record_of(specversion=version)) is Refusal.SCHEMA


HOSTILE = ["a\nb", "a\x00b", "a\tb", "x" * 10_240, "é" * 300, "\u202eabc", "\u2028", "\x7f"]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", ["id", "source"])
def test_hostile_event_id_is_refused(name: str, text: str) -> None:
    changes: dict[str, Any] = {name: text}
    assert refusal(record_of(**changes)) is Refusal.BAD_ID
    assert refusal(structured_of(**changes)) is Refusal.BAD_ID
    assert http_refusal(*http_of(record_of(**changes))) is Refusal.BAD_ID


@pytest.mark.parametrize("text", ["{}", ":", "a b", "ключ", "😀", "x" * 512])
def test_strange_but_harmless_event_id_is_read(text: str) -> None:
    assert decode_kafka(record_of(id=text)).id == text


@pytest.mark.parametrize("name", ["id", "source", "subject", "traceparent", "xtension"])
def test_lone_surrogate_in_an_attribute_is_refused(name: str) -> None:
    changes: dict[str, Any] = {name: "\ud800"}
    assert refusal(structured_of(**changes)) in (Refusal.BAD_ID, Refusal.SCHEMA)


@pytest.mark.parametrize("text", ["a\nb", "a\x00b", "x" * 20_000])
@pytest.mark.parametrize("name", ["traceparent", "xtension", "subject"])
def test_hostile_attribute_never_gets_into_what_we_write(name: str, text: str) -> None:
    changes: dict[str, Any] = {name: text}
    reasons = (Refusal.SCHEMA, Refusal.TOO_LARGE)
    assert refusal(structured_of("tournament.started", **changes)) in reasons
    assert refusal(record_of("tournament.started", **changes)) in reasons


@pytest.mark.parametrize("name", ["x_y", "x-y", "X", "é", "", "a\r\nb", "x" * 65, "data"])
def test_name_that_no_attribute_can_have_is_refused(name: str) -> None:
    record = record_of()
    headers = (*record.headers, (f"ce_{name}", b"1"))
    if name not in ("X", ""):  # read in any case; no name, no attribute
        assert refusal(record._replace(headers=headers)) is Refusal.SCHEMA
    if name != "data":
        changes: dict[str, Any] = {name: "1"}
        assert refusal(structured_of(**changes)) is Refusal.SCHEMA


def test_header_that_is_there_twice_is_refused() -> None:
    record = record_of()
    for again in (("ce_id", b"other"), ("CE_ID", b"other"), ("content-type", b"text/plain")):
        assert refusal(record._replace(headers=(*record.headers, again))) is Refusal.SCHEMA


@pytest.mark.parametrize("header", ["ce_id", "ce_xtension", "content-type"])
def test_header_that_is_not_utf_8_is_refused(header: str) -> None:
    kept = tuple(one for one in record_of().headers if one[0] != header)
    record = record_of()._replace(headers=(*kept, (header, b"\xff\xfe")))
    assert refusal(record) is Refusal.SCHEMA


@pytest.mark.parametrize("text", ["%ff", "caf\xe9", "\udcff"])
def test_http_header_that_only_a_guess_could_read_is_refused(text: str) -> None:
    headers, body = http_of(record_of())
    assert http_refusal({**headers, "ce-id": text}, body) is Refusal.SCHEMA


@pytest.mark.parametrize(
    "content_type",
    [
        *("text/plain", "application/xml", "", " ", "application/cloudevents-batch+json"),
        *(
            "application/cloudevents",
            "application/cloudevents+avro",
            "application/cloudevents+jsonx",
        ),
    ],
)
def test_content_that_is_not_json_is_refused(content_type: str) -> None:
    headers = (*record_of().headers[:-1], ("content-type", content_type.encode()))
    assert refusal(record_of()._replace(headers=headers)) is Refusal.SCHEMA


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_is_known_by_its_other_spellings(content_type: str) -> None:
    headers = (*record_of().headers[:-1], ("content-type", content_type.encode()))
    assert decode_kafka(record_of()._replace(headers=headers)) == decode_kafka(record_of())


def test_wrong_key_is_refused() -> None:
    for key in (None, b"", b"t2", b"T1", b"t1 ", b"\xff"):
        assert refusal(record_of(key=key)) is Refusal.WRONG_KEY
    assert refusal(record_of(partitionkey="t2")) is Refusal.WRONG_KEY
    assert http_refusal(*http_of(record_of(partitionkey="t2"))) is Refusal.WRONG_KEY


def test_subject_that_is_another_player_is_refused() -> None:
    assert refusal(record_of(subject="bob")) is Refusal.SCHEMA
    assert decode_kafka(record_of("tournament.started", subject="anything")).subject == "anything"


# --- refusals: bodies --------------------------------------------------------------------------


def test_tombstone_is_refused() -> None:
    assert refusal(record_of()._replace(value=None)) is Refusal.SCHEMA


def test_payload_over_the_limit_is_refused_before_it_is_read() -> None:
    for size in (MAX_VALUE_BYTES + 1, 2 * 1024 * 1024):
        assert refusal(record_of(raw=b"[" * size)) is Refusal.TOO_LARGE
        assert http_refusal({}, b"[" * size) is Refusal.TOO_LARGE
    room = MAX_VALUE_BYTES - len(json.dumps({**WAGER, "x": ""}))
    decode_kafka(record_of(data={**WAGER, "x": "x" * room}))


NOT_JSON = [
    *(
        b"",
        b" ",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b'{"a":1}x',
        b"{'a':1}",
        b'{"a":01}',
        b"\xef\xbb\xbf{}",
    ),
    *(b"[" * 30_000, b'{"a":' * 5_000, json.dumps(WAGER).encode("utf-16")),
    json.dumps(WAGER).encode()[:-1] + b',"x":NaN}',
    json.dumps(WAGER).encode()[:-1] + b',"x":-Infinity}',
    json.dumps(WAGER).encode()[:-1] + b',"x":"\xed\xa0\x80"}',
    json.dumps(WAGER).encode()[:-1] + b',"x":"\\ud800"}',
]


@pytest.mark.parametrize("raw", NOT_JSON)
def test_value_that_is_not_json_is_refused(raw: bytes) -> None:
    assert refusal(record_of(raw=raw)) is Refusal.NOT_JSON
    envelope = json.dumps(attributes_of("wager.placed")).encode()[:-1] + b',"data":' + raw + b"}"
    record = structured_of()._replace(value=envelope)
    assert refusal(record) is Refusal.NOT_JSON
    assert refusal(record._replace(value=raw)) is not None


def test_brackets_a_hundred_thousand_deep_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_VALUE_BYTES", 10**6)
    for raw in (b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000):
        assert refusal(record_of(raw=raw)) is Refusal.NOT_JSON
        assert refusal(structured_of()._replace(value=raw)) is Refusal.NOT_JSON


@pytest.mark.parametrize("depth", [100, 190, 250, 900, 990, 2000])
def test_nesting_of_any_depth_is_read_or_refused_alike(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    whole = json.dumps(WAGER).encode()[:-1] + b',"x":' + deep + b"}"
    envelope = json.dumps(attributes_of("wager.placed")).encode()[:-1] + b',"data":' + whole + b"}"
    for record in (record_of(raw=whole), structured_of()._replace(value=envelope)):
        if depth < 195:
            event = decode_kafka(record)
            assert decode_kafka(encode_kafka(event, WAGERS)) == event
        else:
            assert refusal(record) is Refusal.NOT_JSON


def test_nan_inside_a_text_is_a_text() -> None:
    data = {**WAGER, "x": "NaN or Infinity"}
    assert json.loads(encode_data(decode_kafka(record_of(data=data)).data)) == data


@pytest.mark.parametrize("data", [None, [], "x", 1, True, {}, [WAGER]])
def test_data_of_another_shape_is_refused(data: Any) -> None:
    raw = json.dumps(data).encode()
    assert refusal(record_of(raw=raw)) is Refusal.SCHEMA
    assert refusal(structured_of(data=data)) is Refusal.SCHEMA


@pytest.mark.parametrize("name", NAMES)
def test_missing_field_is_refused_and_named(name: str) -> None:
    optional = {"win_minor", "subscore", "display_name", "address"}
    if name.startswith("tournament"):
        optional |= {"reason"}
    for field in set(DATA[name]) - optional:
        data = {key: value for key, value in DATA[name].items() if key != field}
        with pytest.raises(RefusedError, match=field) as caught:
            decode_kafka(record_of(name, data))
        assert caught.value.reason is Refusal.SCHEMA


@pytest.mark.parametrize("value", [-1, 1.0, 1.5, "5", True, None, [], {}, "", 1e300])
@pytest.mark.parametrize("field", ["stake_minor", "win_minor"])
def test_money_that_is_no_sum_is_refused(field: str, value: object) -> None:
    assert refusal(record_of(data={**WAGER, field: value})) is Refusal.SCHEMA


@pytest.mark.parametrize("number", [2**53, 2**63, 2**64, 10**400])
def test_number_beyond_two_to_the_53_is_out_of_range(number: int) -> None:
    wager = {**WAGER, "stake_minor": number}
    assert refusal(record_of(data=wager)) is Refusal.SCORE_OUT_OF_RANGE
    assert refusal(structured_of(data=wager)) is Refusal.SCORE_OUT_OF_RANGE
    for score in (number, -number):
        data = {**DATA["score.submitted"], "score": score}
        assert refusal(record_of("score.submitted", data)) is Refusal.SCORE_OUT_OF_RANGE
    edge = {**DATA["score.submitted"], "score": -(2**53) + 1, "subscore": 2**53 - 1}
    decode_kafka(record_of("score.submitted", edge))


@pytest.mark.parametrize("digits", [4300, 5000, 30_000])
def test_number_of_thousands_of_digits_is_refused(digits: int) -> None:
    for field in ("stake_minor", "x"):
        huge = json.dumps({**WAGER, field: "huge"}).replace('"huge"', "9" * digits).encode()
        reasons = (Refusal.SCORE_OUT_OF_RANGE, Refusal.NOT_JSON, Refusal.SCHEMA)
        try:
            event = decode_kafka(record_of(raw=huge))
        except RefusedError as error:
            assert error.reason in reasons
        else:
            assert field == "x"
            assert decode_kafka(encode_kafka(event, WAGERS)) == event


BAD_IDS = [
    "{}",
    ":",
    "a\n",
    "\n",
    "\x00",
    "a" * 65,
    "a" * 10_240,
    "é",
    "😀",
    "",
    "a b",
    "..",
    "a/b",
]


@pytest.mark.parametrize("text", BAD_IDS)
@pytest.mark.parametrize("field", ["tournament_id", "player_id"])
def test_hostile_id_is_refused(field: str, text: str) -> None:
    data: dict[str, Any] = {**WAGER, field: text}
    assert refusal(record_of(data=data, key=data["tournament_id"].encode())) is Refusal.BAD_ID
    assert refusal(structured_of(data=data)) is Refusal.BAD_ID
    assert http_refusal(*http_of(record_of(data=data))) is Refusal.BAD_ID


@pytest.mark.parametrize("value", [5, None, [], {}, True])
def test_id_of_another_type_is_refused(value: object) -> None:
    assert refusal(record_of(data={**WAGER, "player_id": value})) is Refusal.SCHEMA


@pytest.mark.parametrize("value", [5, {}, [], "{}", "other"])
def test_unknown_field_with_a_known_name_is_only_a_field(value: object) -> None:
    data = {**DATA["game.round.settled"], "tournament_id": value}
    event = decode_kafka(record_of("game.round.settled", data, key=None))
    assert event.tournament_id is None
    assert encode_kafka(event, GAME_EVENTS).key is None
    started = {**DATA["tournament.started"], "player_id": value}
    assert decode_kafka(record_of("tournament.started", started, subject="x")).player_id is None


def test_first_thing_wrong_is_the_one_that_is_told() -> None:
    data = {**WAGER, "player_id": "{}", "stake_minor": 2**53, "currency": 5}
    assert refusal(record_of(data=data)) is Refusal.BAD_ID
    assert refusal(record_of(data={**data, "player_id": "a"})) is Refusal.SCHEMA


def test_detail_never_shows_who_it_was() -> None:
    for data in ({**WAGER, "player_id": "secret{}"}, {**WAGER, "stake_minor": "secret"}):
        with pytest.raises(RefusedError) as caught:
            decode_kafka(record_of(data=data))
        assert "secret" not in str(caught.value)


def test_of_two_fields_of_one_name_the_last_counts() -> None:
    raw = json.dumps(WAGER).encode()[:-1] + b',"stake_minor":7}'
    envelope = json.dumps(attributes_of("wager.placed")).encode()[:-1] + b',"data":' + raw + b"}"
    for record in (record_of(raw=raw), structured_of()._replace(value=envelope)):
        data = decode_kafka(record).data
        assert isinstance(data, WagerPlaced)
        assert data.stake_minor == 7


# --- structured mode ---------------------------------------------------------------------------


def test_base64_data_is_read() -> None:
    encoded = base64.b64encode(json.dumps(WAGER).encode()).decode()
    assert decode_kafka(structured_of(data=None, data_base64=encoded)) == decode_kafka(record_of())


@pytest.mark.parametrize("encoded", ["%%%", 5, [], {}, True, "é", "YQ"])
def test_base64_that_is_none_is_refused(encoded: object) -> None:
    assert refusal(structured_of(data=None, data_base64=encoded)) is Refusal.SCHEMA


def test_data_in_both_forms_is_refused() -> None:
    encoded = base64.b64encode(json.dumps(WAGER).encode()).decode()
    assert refusal(structured_of(data_base64=encoded)) is Refusal.SCHEMA


@pytest.mark.parametrize("value", [1, True, 1.5, [], {}])
@pytest.mark.parametrize("name", ["specversion", "id", "source", "type", "time", "subject"])
def test_attribute_of_another_type_is_refused(name: str, value: object) -> None:
    changes: dict[str, Any] = {name: value}
    assert refusal(structured_of(**changes)) is Refusal.SCHEMA


def test_extensions_may_be_numbers_and_truths() -> None:
    event = decode_kafka(structured_of(count=5, fresh=True, sequence=7))
    assert (dict(event.extensions), event.sequence) == ({"count": "5", "fresh": "true"}, 7)
    assert refusal(structured_of(ratio=1.5)) is Refusal.SCHEMA
    assert refusal(structured_of(where={})) is Refusal.SCHEMA


@pytest.mark.parametrize("raw", [b"[]", b"1", b'"x"', b"null"])
def test_envelope_that_is_no_object_is_refused(raw: bytes) -> None:
    assert refusal(structured_of()._replace(value=raw)) is Refusal.SCHEMA


def test_event_inside_an_event_is_refused() -> None:
    inner = "application/cloudevents+json"
    assert refusal(structured_of(datacontenttype=inner)) is Refusal.SCHEMA


# --- anything at all ---------------------------------------------------------------------------

KNOWN = [f"ce_{name}" for name in (*attributes_of("wager.placed"), "subject", "x", "")]
HEADER_NAMES = st.sampled_from([*KNOWN, "content-type"]) | st.text(max_size=12)
SOUND = [raw for _, raw in record_of().headers if raw is not None]
RAW = st.binary(max_size=40) | st.sampled_from([*SOUND, b"application/cloudevents+json"])
LOOSE_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*WAGER, "data", "id", "specversion"]) | st.text(), inner)
    ),
    max_leaves=10,
)
VALUES = st.none() | st.binary(max_size=60) | LOOSE_JSON.map(lambda v: json.dumps(v).encode())


def attempt(record: Record) -> None:
    """Nothing but RefusedError comes out, and what is read can be written and read again.

    Where the short way reads a record, the long one reads the same."""
    plain = codec._decode_plain(record)
    if plain is not None:
        long = codec._decode_any(record)
        assert (plain, plain.data.model_fields_set) == (long, long.data.model_fields_set)
        assert [*map(type, plain[:7])] == [*map(type, long[:7])]
    try:
        event = decode_kafka(record)
    except RefusedError:
        return
    again = decode_kafka(encode_kafka(event, record.topic))
    assert attributes_seen(again) == attributes_seen(event)
    assert decode_http(*encode_http(event), record.topic) == again


@relaxed
@given(st.sampled_from(sorted(TOPICS)), VALUES, st.lists(st.tuples(HEADER_NAMES, st.none() | RAW)))
def test_nothing_but_a_refusal_comes_of_any_record(
    topic: str, value: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    attempt(Record(topic, b"t1", value, tuple(headers)))


@relaxed
@given(any_record(), st.data())
def test_nothing_but_a_refusal_comes_of_a_damaged_record(
    given_: tuple[str, Record], data: st.DataObject
) -> None:
    record = given_[1]
    attempt(record)
    headers, value = list(record.headers), record.value or b""
    match data.draw(st.sampled_from(["value", "header", "drop", "add", "field"])):
        case "value":
            at = data.draw(st.integers(0, len(value)))
            cut = data.draw(st.integers(0, 8))
            value = value[:at] + data.draw(st.binary(max_size=6)) + value[at + cut :]
        case "header":
            at = data.draw(st.integers(0, len(headers) - 1))
            headers[at] = (headers[at][0], data.draw(st.none() | RAW))
        case "drop":
            headers.pop(data.draw(st.integers(0, len(headers) - 1)))
        case "add":
            headers.append((data.draw(HEADER_NAMES), data.draw(RAW)))
        case _:
            fields = json.loads(value)
            fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(LOOSE_JSON)
            value = json.dumps(fields).encode()
    attempt(record._replace(headers=tuple(headers), value=value))


HTTP_HEADERS = st.dictionaries(
    HEADER_NAMES.map(lambda name: name.replace("_", "-")),
    st.text(max_size=20) | RAW.map(lambda raw: raw.decode("latin-1")),
)


@relaxed
@given(HTTP_HEADERS, VALUES)
@example({"content-type": "application/cloudevents+json"}, b'{"specversion":"1.0","id":{}}')
def test_nothing_but_a_refusal_comes_of_any_request(
    headers: dict[str, str], value: bytes | None
) -> None:
    try:
        decode_http(headers, value or b"", WAGERS)
    except RefusedError as error:
        assert error.detail


def test_caches_keep_nothing_large() -> None:
    for size in (300, 30_000):
        content_type = f"application/json;x={'x' * size}".encode()
        headers = (*record_of().headers[:-1], ("content-type", content_type))
        assert refusal(record_of()._replace(headers=headers)) is Refusal.SCHEMA
