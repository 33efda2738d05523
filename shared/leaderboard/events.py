"""The events of the contract and their CloudEvents 1.0 codec, for Kafka and HTTP.

Read: binary and structured mode. Written: binary mode. The SDKs' own Kafka helpers lose
`partitionkey`, break structured mode and fail on tombstones; this codec is checked against both
of their generations. Bindings: CloudEvents kafka-protocol-binding §3 and http-protocol-binding §3.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote, unquote

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from leaderboard.errors import Refusal, RefusedError
from leaderboard.model import ID_PATTERN, SCORE_LIMIT, PlayerId, TournamentId
from leaderboard.ranking import Operator, Order
from leaderboard.scoring import Scoring

MAX_VALUE_BYTES: Final = 32 * 1024
MAX_ATTRIBUTE_BYTES: Final = 512
TYPE_PREFIX: Final = "io.leaderboard."
JSON_TYPE: Final = "application/json"
STRUCTURED_TYPE: Final = "application/cloudevents+json"

_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_time_ms(text: str) -> int:
    """An RFC 3339 time with its zone, as milliseconds since 1970. Raises ValueError."""
    if _RFC3339.fullmatch(text) is None:
        raise ValueError(f"not an RFC 3339 time with a zone: {text[:40]!r}")
    delta = datetime.fromisoformat(text.upper()) - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1000 + delta.microseconds // 1000


def format_time_ms(time_ms: int) -> str:
    """Milliseconds since 1970 as RFC 3339 in UTC, always with three decimals."""
    whole, milli = divmod(time_ms, 1000)
    stamp = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{stamp.rjust(19, '0')}.{milli:03d}Z"


def _only_rfc3339(value: object) -> object:
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or _RFC3339.fullmatch(value) is None:
        raise ValueError("not an RFC 3339 time with a zone")
    return value


Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
Money = Annotated[int, Field(ge=0, lt=SCORE_LIMIT)]
Number = Annotated[int, Field(gt=-SCORE_LIMIT, lt=SCORE_LIMIT)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Name = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,64}$")]
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9]{2,7}$")]
Time = Annotated[AwareDatetime, BeforeValidator(_only_rfc3339, json_schema_input_type=str)]


class Rules(BaseModel):
    """How a tournament counts. Unknown fields are kept and ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    scoring: Scoring
    operator: Annotated[Operator, Field(strict=False)] = Operator.SUM
    best_of: Annotated[int, Field(ge=1, le=1000)] | None = None
    order: Annotated[Order, Field(strict=False)] = Order.DESCENDING
    games: Annotated[list[Label], Field(max_length=1000)] | None = None
    min_stake_minor: Money | None = None
    currency: Currency | None = None
    join: Literal["open", "required"] = "open"


class _Data(BaseModel):
    """Strict in type, open in shape: unknown extra fields are kept and ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")


class _Played(_Data):
    tournament_id: Id
    player_id: Id


class _Money(_Data):
    game_id: Label
    stake_minor: Money
    win_minor: Money = 0
    currency: Currency
    round_id: Label | None = None


class CauseData(_Data):
    """Which event is meant: `source` and `id` together are unique."""

    source: Text
    id: Text


class WagerPlaced(_Played, _Money):
    """An accepted stake on one round, and what it won (minor units)."""


class GameRoundSettled(_Money):
    """A wager whose producer knows no tournaments; routed to every one it counts for."""

    player_id: Id


class ScoreSubmitted(_Played):
    """A score that a game computed itself; no money involved."""

    score: Number
    subscore: Number | None = None


class WagerVoided(_Played):
    """A wager that turned out not to have happened."""

    wager: CauseData
    reason: Text


class ScoreAdjusted(_Played):
    """A correction by staff: `delta` points are added."""

    delta: Number
    reason: Text
    decided_by: Text


class PlayerJoined(_Played):
    """A player enters a tournament; a later one renews the name."""

    display_name: Name | None = None
    team_id: Id | None = None
    region: Label | None = None


class PlayerDisqualified(_Played):
    """Staff take a player off the board, for good."""

    reason: Text
    decided_by: Text


class PlayerErased(_Data):
    """A player is to be forgotten; with a tournament in `wagers`, without in `gdpr-events`."""

    tournament_id: Id | None = None
    player_id: Id
    erasure_id: Id


class TournamentScheduled(_Data):
    """Rules and schedule: counts for the events that follow it in the log."""

    tournament_id: Id
    name: Name
    starts_at: Time
    ends_at: Time
    rules: Rules
    prizes: Any = None

    @model_validator(mode="after")
    def _ends_after_start(self) -> TournamentScheduled:
        if self.ends_at <= self.starts_at:
            raise ValueError("ends_at must come after starts_at")
        return self


class _Decision(_Data):
    tournament_id: Id
    decided_by: Text
    reason: Text | None = None


class TournamentStarted(_Decision):
    """The tournament runs, if no event in its time came first."""


class TournamentEnded(_Decision):
    """Nothing that comes later in the log counts."""


class TournamentCancelled(_Decision):
    """The tournament does not take place; nothing counts any more."""


class PositionChanged(_Played):
    """Something that someone sees has changed (see `model.PositionChange`)."""

    sequence: Annotated[int, Field(ge=0)]
    old_rank: Annotated[int, Field(ge=1)] | None
    new_rank: Annotated[int, Field(ge=1)] | None
    score: Number
    subscore: Number | None = None
    distance: int | None
    cause: CauseData


class FraudSuspected(_Played):
    """Something to look at; it changes no rank."""

    rule: Label
    evidence: dict[str, Any]


class ConnectionDecided(_Data):
    """What `on-connect` answered, and to whom. Ids are null where none could be established."""

    tournament_id: Id | None
    player_id: Id | None
    allowed: bool
    reason: Text
    address: str | None = None
    user_agent: str | None = None


Data = (
    WagerPlaced
    | ScoreSubmitted
    | WagerVoided
    | ScoreAdjusted
    | PlayerJoined
    | PlayerDisqualified
    | PlayerErased
    | TournamentScheduled
    | TournamentStarted
    | TournamentEnded
    | TournamentCancelled
    | PositionChanged
    | FraudSuspected
    | ConnectionDecided
    | GameRoundSettled
)

WAGERS: Final = "wagers"
POSITION_CHANGES: Final = "position-changes"
FRAUD_ALERTS: Final = "fraud-alerts"
GDPR_EVENTS: Final = "gdpr-events"
CONNECTIONS: Final = "connections"
GAME_EVENTS: Final = "game-events"

TOPICS: Final[Mapping[str, Mapping[str, type[Data]]]] = {
    WAGERS: {
        "wager.placed": WagerPlaced,
        "score.submitted": ScoreSubmitted,
        "wager.voided": WagerVoided,
        "score.adjusted": ScoreAdjusted,
        "player.joined": PlayerJoined,
        "player.disqualified": PlayerDisqualified,
        "player.erased": PlayerErased,
        "tournament.scheduled": TournamentScheduled,
        "tournament.started": TournamentStarted,
        "tournament.ended": TournamentEnded,
        "tournament.cancelled": TournamentCancelled,
    },
    POSITION_CHANGES: {"position.changed": PositionChanged},
    FRAUD_ALERTS: {"fraud.suspected": FraudSuspected},
    GDPR_EVENTS: {"player.erased": PlayerErased},
    CONNECTIONS: {"connection.decided": ConnectionDecided},
    GAME_EVENTS: {"game.round.settled": GameRoundSettled},
}
"""Which events each topic carries, by their name in the contract."""

_MODELS: Final = {
    topic: {f"{TYPE_PREFIX}{name}.v1": model for name, model in models.items()}
    for topic, models in TOPICS.items()
}
_NAMES: Final = {model: name for models in TOPICS.values() for name, model in models.items()}


def type_of(model: type[BaseModel]) -> str:
    """The CloudEvents type of a data model, `io.leaderboard.<name>.v1`."""
    return f"{TYPE_PREFIX}{_NAMES[model]}.v1"  # type: ignore[index]


def dead_letter_topic(topic: str) -> str:
    """Where the events of `topic` go that can never work."""
    return f"{topic}-dlq"


@dataclass(frozen=True, slots=True)
class Event:
    """One CloudEvent with its data already checked.

    `sequence` is the producer's own number (the CloudEvents extension), where it is a decimal;
    `extensions` are the attributes that we do not know and pass on."""

    id: str
    source: str
    time_ms: int
    data: Data
    subject: str | None = None
    sequence: int | None = None
    traceparent: str | None = None
    extensions: Mapping[str, str] = field(default_factory=dict)

    @property
    def tournament_id(self) -> TournamentId | None:
        """The tournament that the event belongs to, and so its partition key."""
        found = getattr(self.data, "tournament_id", None)
        return None if found is None else TournamentId(found)

    @property
    def player_id(self) -> PlayerId | None:
        found = getattr(self.data, "player_id", None)
        return None if found is None else PlayerId(found)


@dataclass(frozen=True, slots=True)
class Record:
    """A Kafka record as it came or as it goes; `offset` and `timestamp_ms` of one read."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    partition: int = -1
    offset: int = -1
    timestamp_ms: int = -1


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


# --- schemas -----------------------------------------------------------------------------------


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema of every event's data, by its name in the contract."""
    return {
        name: {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": f"{TYPE_PREFIX}{name}.v1",
            **model.model_json_schema(mode="validation"),
        }
        for models in TOPICS.values()
        for name, model in models.items()
    }
