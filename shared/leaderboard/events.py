"""The events of the contract: types, data models, topics. `codec` reads and writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from leaderboard.model import ID_PATTERN, SCORE_LIMIT, PlayerId, TournamentId
from leaderboard.ranking import Operator, Order
from leaderboard.scoring import Scoring

TYPE_PREFIX: Final = "io.leaderboard."

_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:[0-5]\d)", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLIS: Final = {f".{milli:03d}Z": milli for milli in range(1000)}
_EARLIEST: Final = datetime(2, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(9999, 1, 1, tzinfo=UTC)
"""The first and the last year that a datetime can say are left out: no zone leads beyond them."""


def parse_time_ms(text: str) -> int:
    """An RFC 3339 time with its zone, as milliseconds since 1970. Raises ValueError."""
    # What `format_time_ms` writes, in a second that was met before.
    if (milli := _MILLIS.get(text[19:])) is not None:
        return _second_of(text[:19]) + milli
    return _parse_time_ms(text)


@lru_cache(maxsize=4096)
def _second_of(text: str) -> int:
    return _parse_time_ms(text + "Z")


def _parse_time_ms(text: str) -> int:
    return to_ms(_parse_time(text))


def _parse_time(text: str) -> datetime:
    if _RFC3339.fullmatch(text) is None:
        raise ValueError("not an RFC 3339 time with a zone")
    return _within_years(datetime.fromisoformat(text.upper()))


def to_ms(moment: datetime) -> int:
    """An aware time as milliseconds since 1970, rounded down."""
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def from_ms(time_ms: int) -> datetime:
    """Milliseconds since 1970 as a time in UTC, exactly."""
    return _EPOCH + timedelta(milliseconds=time_ms)


def format_time_ms(time_ms: int) -> str:
    """Milliseconds since 1970 as RFC 3339 in UTC, always with three decimals."""
    whole, milli = divmod(time_ms, 1000)
    return f"{_stamp_of(whole)}.{milli:03d}Z"


@lru_cache(maxsize=4096)
def _stamp_of(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).isoformat()[:19]


def _within_years(moment: datetime) -> datetime:
    if not _EARLIEST <= moment < _LATEST:
        raise ValueError("a time between the years 2 and 9998 is wanted")
    return moment


def _read_time(value: object) -> object:
    # A validator before pydantic's own makes it forget that the text came from JSON, and strict
    # models then take no text for a time: so it is read here, whole.
    return _parse_time(value) if isinstance(value, str) else value


_DATE_TIME: Final = WithJsonSchema({"type": "string", "format": "date-time"})
Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
Money = Annotated[int, Field(ge=0, lt=SCORE_LIMIT)]
Number = Annotated[int, Field(gt=-SCORE_LIMIT, lt=SCORE_LIMIT)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_SHOWABLE: Final = (
    r"^[^\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]{1,64}$"
)
Name = Annotated[str, StringConstraints(pattern=_SHOWABLE)]
"""What people see: no control or formatting characters, which could turn others' text round."""
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9]{2,7}$")]
Time = Annotated[
    AwareDatetime,
    BeforeValidator(_read_time, json_schema_input_type=Annotated[str, _DATE_TIME]),
    AfterValidator(_within_years),
]


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
    # A wish that nobody understands is no reason to refuse a tournament: any JSON is taken here.
    prewarm: Any = Field(
        None, description="Of its size: `floor`, `expected_players`, `lead_minutes`; all optional."
    )

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


class FraudReviewed(_Data):
    """What an operator decided about a suspicion. The last decision counts; of one that is
    confirmed, the player is disqualified by an event of its own."""

    tournament_id: Id
    alert_id: Text
    decision: Literal["confirmed", "dismissed"]
    decided_by: Text
    reason: Text | None = None


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
    | FraudReviewed
    | ConnectionDecided
    | GameRoundSettled
)

WAGERS: Final = "wagers"
POSITION_CHANGES: Final = "position-changes"
FRAUD_ALERTS: Final = "fraud-alerts"
GDPR_EVENTS: Final = "gdpr-events"
CONNECTIONS: Final = "connections"
GAME_EVENTS: Final = "game-events"
POSITION_SOURCE: Final = "/leaderboard/on-wager"
"""Who publishes position changes, and suspicions."""

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
    FRAUD_ALERTS: {"fraud.suspected": FraudSuspected, "fraud.reviewed": FraudReviewed},
    GDPR_EVENTS: {"player.erased": PlayerErased},
    CONNECTIONS: {"connection.decided": ConnectionDecided},
    GAME_EVENTS: {"game.round.settled": GameRoundSettled},
}
"""Which events each topic carries, by their name in the contract."""

_OF_TOURNAMENT: Final = frozenset(
    m for models in TOPICS.values() for m in models.values() if "tournament_id" in m.model_fields
)
_OF_PLAYER: Final = frozenset(
    m for models in TOPICS.values() for m in models.values() if "player_id" in m.model_fields
)
_NAMES: Final[Mapping[type[BaseModel], str]] = {
    model: name for models in TOPICS.values() for name, model in models.items()
}


def type_of(model: type[BaseModel]) -> str:
    """The CloudEvents type of a data model, `io.leaderboard.<name>.v1`."""
    return f"{TYPE_PREFIX}{_NAMES[model]}.v1"


def name_of(model: type[BaseModel]) -> str:
    """The name of a data model in the contract."""
    return _NAMES[model]


def dead_letter_topic(topic: str) -> str:
    """Where the events of `topic` go that can never work."""
    return f"{topic}-dlq"


_NO_EXTENSIONS: Final[Mapping[str, str]] = MappingProxyType({})


class Event(NamedTuple):
    """One CloudEvent with its data already checked (a tuple, as it is made for every wager).

    `sequence` is the producer's own number (the CloudEvents extension), where it is a decimal;
    `extensions` are the attributes that we do not know and pass on (also a `sequence` in words
    of its own)."""

    id: str
    source: str
    time_ms: int
    data: Data
    subject: str | None = None
    sequence: int | None = None
    traceparent: str | None = None
    extensions: Mapping[str, str] = _NO_EXTENSIONS

    @property
    def tournament_id(self) -> TournamentId | None:
        """The tournament that the event belongs to, and so its partition key.

        Only a field of the type counts: an unknown extra one of that name may hold anything."""
        if type(self.data) not in _OF_TOURNAMENT:
            return None
        return self.data.tournament_id  # type: ignore[return-value, union-attr]  # see above

    @property
    def player_id(self) -> PlayerId | None:
        """The player that the event is about; None for events of a whole tournament."""
        if type(self.data) not in _OF_PLAYER:
            return None
        return self.data.player_id  # type: ignore[return-value, union-attr]  # see above


class Record(NamedTuple):
    """A Kafka record as it came or as it goes; `offset` and `timestamp_ms` of one read."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    partition: int = -1
    offset: int = -1
    timestamp_ms: int = -1
