"""Leaves of the audit log: what is written of each Kafka record, and how it is read back.

A leaf is canonical JSON (RFC 8785; no fractions occur): place and kind of the record, and of its
data what the fold needs. The player stands under a pseudonym of their own for each tournament, the
event's id under a keyed hash; what else the record says (names, addresses, free text, unknown
fields) is in `commitment` only, which shows it to nobody but can be opened, leaf by leaf. So with
the player's key goes all that could tell whom the leaves are about, and the log verifies as before.

A leaf depends on the record and on keys alone. It is checked as it is stored: byte for byte.
"""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from functools import lru_cache
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ValidationError

from leaderboard import events as ev
from leaderboard.codec import data_as_kept
from leaderboard.errors import Refusal
from leaderboard.model import SCORE_LIMIT, Offset, Place, PlayerId, TournamentId
from leaderboard.terms import LogEntry

VERSION: Final = 1
MOST_BYTES: Final = 60 * 1024
"""No record of at most 32 KiB makes a longer leaf; a log's entry has at most 65,535 bytes."""
NOBODY: Final = "erased"
"""In place of what a leaf does not tell and a type wants, and of a player who was erased before."""
KEY_BYTES: Final = 32
AUDITED: Final = (ev.WAGERS, ev.POSITION_CHANGES, ev.CONNECTIONS, ev.GDPR_EVENTS, ev.FRAUD_ALERTS)
"""Topics that have leaves. `game-events` has none: what counts of it is copied to `wagers`."""

# --- keys ----------------------------------------------------------------------------------------


class PlayerKey(NamedTuple):
    """What one player is in the leaves of one tournament, for as long as the key exists."""

    pseudonym: str
    secret: bytes


def player_key(secret: bytes) -> PlayerKey:
    """From the random bytes that were drawn for one player in one tournament."""
    return PlayerKey(_short(hmac.digest(secret, b"audit/pseudonym", "sha256")), secret)


class LogKeys(NamedTuple):
    """Of the whole deployment: for ids of events, and for what belongs to no player."""

    ids: bytes
    others: bytes

    def id_of(self, source: str, event_id: str) -> str:
        """What stands for an event's id: the same for the same source and id, wherever it is
        named, so that repetitions are seen; and telling nothing to who has no key."""
        return _short(hmac.digest(self.ids, f"{source}\n{event_id}".encode(), "sha256"))


def log_keys(tombstone_key: bytes) -> LogKeys:
    """Derived from the deployment's one lasting secret."""
    return LogKeys(
        hmac.digest(tombstone_key, b"audit/ids", "sha256"),
        hmac.digest(tombstone_key, b"audit/others", "sha256"),
    )


def opening(secret: bytes, topic: str, partition: int, offset: int) -> bytes:
    """The key of one leaf's commitment. Given away it opens that leaf and no other: see
    `commitment`."""
    return hmac.digest(
        secret, b"audit/leaf %b/%d/%d" % (topic.encode(), partition, offset), "sha256"
    )


def commitment(key: bytes, said: bytes) -> str:
    """HMAC-SHA-256 (hex) of what a record said, see `said`, under the key of one leaf."""
    return hmac.digest(key, said, "sha256").hex()


def said(event_id: str | None, value: bytes | None) -> bytes:
    """What is committed to: the event's id, a line feed, and its data as `codec.data_as_kept` has
    them; of a record that can't be read no id, and its value as it came."""
    return b"%b\n%b" % ((event_id or "").encode(), value or b"")


def _short(digest: bytes) -> str:
    """16 bytes as 22 characters that an id may have."""
    return urlsafe_b64encode(digest[:16])[:22].decode()


# --- writing -------------------------------------------------------------------------------------


def canonical(value: object) -> bytes:
    """RFC 8785 of what has no fractions, no integers beyond 2^53 and no keys beyond the BMP."""
    return _dumps(value).encode()


_dumps = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
).encode


@lru_cache(maxsize=4096)
def _quoted(text: str) -> str:
    return _dumps(text)


Who = tuple[TournamentId, PlayerId]
"""Whose key a leaf wants; the tournament is empty where the key is the player's beside all."""
BESIDE: Final = TournamentId("")


def who(topic: str, event: ev.Event) -> Who | None:
    """Whose key the leaf of an event wants; None where it is about no player.

    What asks for sockets has a key beside the tournaments', so that the two can be destroyed
    apart. The notice to other systems needs none: it has the id of the request."""
    player_id = event.player_id
    if player_id is None or topic == ev.GDPR_EVENTS:
        return None
    if topic == ev.CONNECTIONS:
        return BESIDE, player_id
    return event.tournament_id or BESIDE, player_id


class Leaves:
    """Writes the leaves of one partition's records. `log_id` is `topic/topic id/partition`."""

    def __init__(self, place: Place, log_id: str, keys: LogKeys) -> None:
        self._topic, self._partition = place
        self._keys = keys
        # Kafka's ids of topics may have slashes themselves.
        self._log = _quoted(log_id.removeprefix(f"{place.topic}/").removesuffix(f"/{place[1]}"))
        topic = _quoted(self._topic)
        self._end = f',"v":{VERSION}}}'
        self._middle = f',"partition":{self._partition},"player":'
        self._of_topic = f',"topic":{topic}'

    def of_event(self, entry: LogEntry, value: bytes | None, key: PlayerKey | None) -> bytes:
        """The leaf of an event; `key` is None where it is about nobody, or nobody any more."""
        offset, logged_at_ms, event = entry
        data = event.data
        secret = self._keys.others if key is None else key.secret
        sealed = commitment(
            opening(secret, self._topic, self._partition, offset), said(event.id, value)
        )
        number = event.sequence
        tournament_id = event.tournament_id
        player = "null" if key is None else f'"{key.pseudonym}"'
        # Keys in their order; what may not be there carries its comma with it.
        return "".join(
            (
                f'{{"commitment":"{sealed}","data":{self._data_of(data)}',
                f',"id":"{self._keys.id_of(event.source, event.id)}","log":{self._log}',
                f',"logged_ms":{logged_at_ms}',
                "" if number is None else f',"number":{number}',
                f',"offset":{offset}{self._middle}{player},"source":{_quoted(event.source)}',
                f',"time_ms":{event.time_ms}{self._of_topic}',
                "" if tournament_id is None else f',"tournament":"{tournament_id}"',
                f',"type":"{ev.name_of(type(data))}"{self._end}',
            )
        ).encode()

    def of_refused(
        self, offset: int, logged_at_ms: int, value: bytes | None, reason: Refusal
    ) -> bytes:
        """The leaf of a record that can't be read."""
        key = opening(self._keys.others, self._topic, self._partition, offset)
        sealed = commitment(key, said(None, value))
        return (
            f'{{"commitment":"{sealed}","log":{self._log},"logged_ms":{logged_at_ms}'
            f',"offset":{offset},"partition":{self._partition},"refused":"{reason.value}"'
            f"{self._of_topic}{self._end}"
        ).encode()

    def _data_of(self, data: ev.Data) -> str:
        if isinstance(data, ev.WagerPlaced):
            return (
                f'{{"currency":"{data.currency}","game_id":{_quoted(data.game_id)}'
                f',"stake_minor":{data.stake_minor},"win_minor":{data.win_minor}}}'
            )
        if isinstance(data, ev.PositionChanged):
            cause = data.cause
            return "".join(
                (
                    f'{{"cause":{{"id":"{self._keys.id_of(cause.source, cause.id)}"',
                    f',"source":{_quoted(cause.source)}}},"distance":{_or_null(data.distance)}',
                    f',"new_rank":{_or_null(data.new_rank)},"old_rank":{_or_null(data.old_rank)}',
                    f',"score":{data.score},"sequence":{data.sequence}',
                    "}" if data.subscore is None else f',"subscore":{data.subscore}}}',
                )
            )
        if isinstance(data, ev.WagerVoided):
            wager = data.wager
            cause_id = self._keys.id_of(wager.source, wager.id)
            return _dumps({"wager": {"id": cause_id, "source": wager.source}})
        if isinstance(data, ev.FraudReviewed):
            # As the leaf of the suspicion has it.
            alert_id = self._keys.id_of(ev.POSITION_SOURCE, data.alert_id)
            return _dumps({"alert_id": alert_id, **_told(data)})
        return _dumps(_told(data))


def _or_null(number: int | None) -> int | str:
    return "null" if number is None else number


_TOLD: Final[Mapping[type[BaseModel], tuple[str, ...]]] = {
    ev.ScoreSubmitted: ("score", "subscore"),
    ev.ScoreAdjusted: ("delta", "decided_by"),
    ev.PlayerJoined: (),
    ev.PlayerDisqualified: ("decided_by",),
    ev.TournamentStarted: ("decided_by",),
    ev.TournamentEnded: ("decided_by",),
    ev.TournamentCancelled: ("decided_by",),
    ev.ConnectionDecided: ("allowed", "reason"),
    ev.FraudSuspected: ("rule",),
    ev.FraudReviewed: ("decision", "decided_by"),
}
"""What is told of each type as it is: what the fold needs, and who decided. Never free text, never
what only a producer understands."""


def _told(data: ev.Data) -> dict[str, Any]:
    if isinstance(data, ev.TournamentScheduled):
        told: dict[str, Any] = {
            "ends_at": data.ends_at.astimezone(UTC).isoformat(),
            "name": data.name,
            "rules": _rules(data.rules),
            "starts_at": data.starts_at.astimezone(UTC).isoformat(),
        }
        if data.prizes is not None and _is_exact(data.prizes):
            told["prizes"] = data.prizes
        return told
    if isinstance(data, ev.PlayerErased):
        # In the notice there is no pseudonym that the request's id could lead to.
        return {} if data.tournament_id is not None else {"erasure_id": data.erasure_id}
    found = {name: getattr(data, name) for name in _TOLD[type(data)]}
    return {name: value for name, value in found.items() if value is not None}


def _rules(rules: ev.Rules) -> dict[str, Any]:
    """Every field that the fold knows, without those that it ignores."""
    told = _known_fields(rules)
    told["scoring"] = _known_fields(rules.scoring)
    return {name: value for name, value in told.items() if value is not None and _is_exact(value)}


def _known_fields(model: BaseModel) -> dict[str, Any]:
    names = set(type(model).model_fields)
    return model.model_dump(mode="json", include=names, exclude_none=True)


def _is_exact(value: object) -> bool:
    """Whether there is only one way to write this JSON canonically, whoever does."""
    if isinstance(value, Mapping):
        return all(
            isinstance(name, str) and _is_plain(name) and _is_exact(one)
            for name, one in value.items()
        )
    if isinstance(value, list | tuple):
        return all(map(_is_exact, value))
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return abs(value) < SCORE_LIMIT
    return isinstance(value, str) and not any("\ud800" <= sign <= "\udfff" for sign in value)


def _is_plain(name: str) -> bool:
    return all(sign <= "\uffff" and not "\ud800" <= sign <= "\udfff" for sign in name)


# --- reading -------------------------------------------------------------------------------------


class LeafError(ValueError):
    """Bytes that are no leaf of this version. The message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a leaf says. Of a record that can't be read there are place and `refused` only."""

    place: Place
    offset: Offset
    log: str
    """The topic's own id."""
    logged_ms: int
    commitment: str
    refused: str | None = None
    kind: str = ""
    """The event's name in the contract."""
    source: str = ""
    id: str = ""
    """See `LogKeys.id_of`."""
    time_ms: int = 0
    number: int | None = None
    tournament_id: TournamentId | None = None
    player: PlayerId | None = None
    """The pseudonym; None for an event about no player, or about one who was erased before."""
    data: Mapping[str, Any] | None = None

    @property
    def is_of_nobody(self) -> bool:
        """Whether it is about a player, of whom no key was left: it counted for nobody."""
        return self.data is not None and self.player is None and "player_id" in self._fields

    @property
    def _fields(self) -> Mapping[str, Any]:
        return self._model.model_fields

    @property
    def _model(self) -> type[ev.Data]:
        return ev.TOPICS[self.place.topic][self.kind]

    def entry(self) -> LogEntry | None:
        """The event as the fold takes it, the pseudonym for its player, `NOBODY` where there is
        none; None for a record that could not be read. Raises LeafError."""
        if self.data is None:
            return None
        fields = self._fields
        given: dict[str, Any] = dict(self.data)
        if self.tournament_id is not None:
            given["tournament_id"] = self.tournament_id
        if "player_id" in fields:
            given["player_id"] = self.player or NOBODY
        for name, field in fields.items():
            if field.is_required() and name not in given:
                given[name] = _UNTOLD.get(name, NOBODY)
        try:
            data = self._model.__pydantic_validator__.validate_json(_dumps(given))
        except ValidationError as error:
            raise LeafError(f"{self.kind} at {self.place}/{self.offset}: {error}") from None
        event = ev.Event(self.id, self.source, self.time_ms, data, self.player, self.number, None)
        return LogEntry(self.offset, self.logged_ms, event)


_UNTOLD: Final[Mapping[str, Any]] = {"evidence": {}, "tournament_id": None}
_ALWAYS: Final = frozenset({"commitment", "log", "logged_ms", "offset", "partition", "topic", "v"})
_OF_REFUSED: Final = _ALWAYS | {"refused"}
_OF_EVENT: Final = _ALWAYS | {"data", "id", "player", "source", "time_ms", "type"}
_NUMBERS: Final = ("logged_ms", "offset", "partition", "time_ms", "number")
_TEXTS: Final = ("commitment", "log", "topic", "refused", "id", "source", "type", "tournament")


def decode(raw: bytes) -> Leaf:
    """What a leaf says. Raises LeafError, also where the same could be written in another way."""
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError):
        raise LeafError("no JSON") from None
    if not isinstance(told, dict) or told.get("v") != VERSION:
        raise LeafError(f"no leaf of version {VERSION}")
    names = told.keys() - {"number", "tournament"} if "data" in told else told.keys()
    if names not in (_OF_EVENT, _OF_REFUSED):
        raise LeafError(f"has the fields {', '.join(sorted(map(str, told)))}")
    for name in _NUMBERS:
        if type(told.get(name, 0)) is not int:
            raise LeafError(f"{name} is no integer")
    for name in _TEXTS:
        if not isinstance(told.get(name, ""), str):
            raise LeafError(f"{name} is no text")
    try:
        if canonical(told) != raw:
            raise LeafError("not canonical JSON")
    except (ValueError, RecursionError):
        raise LeafError("not canonical JSON") from None
    return _leaf(told)


def _leaf(told: dict[str, Any]) -> Leaf:
    place = Place(told["topic"], told["partition"])
    common = (place, Offset(told["offset"]), told["log"], told["logged_ms"], told["commitment"])
    if "refused" in told:
        return Leaf(*common, refused=told["refused"])
    player, data = told["player"], told["data"]
    if not isinstance(data, dict) or not isinstance(player, str | None):
        raise LeafError("data or player is of the wrong type")
    if told["type"] not in ev.TOPICS.get(place.topic, {}):
        raise LeafError(f"{told['type']!r} is no type of {place.topic}")
    return Leaf(
        *common,
        kind=told["type"],
        source=told["source"],
        id=told["id"],
        time_ms=told["time_ms"],
        number=told.get("number"),
        tournament_id=told.get("tournament"),
        player=None if player is None else PlayerId(player),
        data=data,
    )


def differs_by_key_only(one: bytes, other: bytes) -> bool:
    """Whether two leaves say the same of one record, but for whose it is: of the two one was
    written when the key was there, or the other key."""
    try:
        said_by_one, said_by_other = json.loads(one), json.loads(other)
    except (ValueError, RecursionError):
        return False
    if not isinstance(said_by_one, dict) or not isinstance(said_by_other, dict):
        return False
    for told in (said_by_one, said_by_other):
        for name in ("player", "commitment"):
            told.pop(name, None)
    return said_by_one == said_by_other


def leaves_of(
    leaves: Leaves,
    records: Sequence[ev.Record],
    entries: Sequence[LogEntry],
    refused: Mapping[int, Refusal],
    keys: Mapping[Who, PlayerKey | None],
    ended: Mapping[Who, Offset],
) -> list[bytes]:
    """The leaves of a batch's records, in their order: each is an entry or refused.

    `ended` are offsets of erasures in this log: of what comes behind one nobody has a key."""
    topic = records[0].topic if records else ""
    waiting = iter(entries)
    made: list[bytes] = []
    for record in records:
        if (reason := refused.get(record.offset)) is not None:
            made.append(leaves.of_refused(record.offset, record.timestamp_ms, record.value, reason))
            continue
        entry = next(waiting)
        if entry.offset != record.offset:
            raise AssertionError("every record is an entry or refused")
        whose = who(topic, entry.event)
        key = None
        if whose is not None and (whose not in ended or entry.offset <= ended[whose]):
            key = keys[whose]
        made.append(leaves.of_event(entry, data_as_kept(record, entry.event), key))
    return made
