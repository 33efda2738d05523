"""Events of every kind, whole and damaged, as a hostile or broken producer sends them.

Each begins as a sound event of some type and is then damaged, or not, in the places where reading
can go wrong: the JSON text, its values, the headers, the mode, the key. A seed gives the same
events again."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from leaderboard.events import WAGERS, Record, format_time_ms
from samples import DATA, attributes_of

LIVE: Final = ("t0", "t1", "t4", "t6")
"""Scheduled at the beginning, and running: what is sound counts."""
SHORT: Final = ("s0", "s1", "s2", "s3")
"""Scheduled too; their controls are sent at any time, so that they end, or are cancelled."""
UNKNOWN: Final = "nobodys"
PLAYERS: Final = tuple(f"p{number}" for number in range(40))
LARGE: Final = 32 * 1024
DEEP: Final = (30, 127, 128, 129, 255, 256, 1_000, 14_000)
KINDS: Final[Mapping[str, float]] = {
    "wager.placed": 55,
    "score.submitted": 15,
    "player.joined": 8,
    "score.adjusted": 6,
    "wager.voided": 3,
    "player.disqualified": 1,
    # Each is looked for in all that was refused so far.
    "player.erased": 0.02,
    "tournament.scheduled": 2,
    "tournament.started": 2,
    "tournament.ended": 1,
    "tournament.cancelled": 1,
    "position.changed": 2,
    "connection.decided": 1,
}
NUMBERS: Final = (
    *(0, 1, -1, 2**31, -(2**31), 2**53 - 1, 2**53, -(2**53), 2**63, 2**64, 10**40, -(10**400)),
    *(0.5, 10.0, 1e308, -0.0, 1e-320, float("nan"), float("inf"), float("-inf")),
)
TEXTS: Final = (
    *("", " ", "\x00", "t\x000", "a\nb", "\r\n\r\n", "\ud800", "\udfff\ud800", "\ufffe", "é名🎲"),
    *("{t0}", "*", "../..", "%00", "%0A", "' OR 1=1 --", "<script>", "${jndi:ldap://x}", "x" * 65),
    *("x" * 5_000, "1", "NaN", "null", "\u202e", "\u0130", "١٢٣", "t0\u200b", "\x7f", "\x1b[31m"),
)
TIMES: Final = (
    *("", "yesterday", "2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z"),
    *("2026-02-29T00:00:00Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z"),
    *("2026-01-01T24:00:00Z", "2026-06-30T23:59:60Z", "2026-01-01T00:00:00+99:99"),
    *("1970-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "2026-01-01t00:00:00z", "1767225600"),
    *("2026-01-01T00:00:00.1234567890123Z", "+2026-01-01T00:00:00Z", "２０２６-01-01T00:00:00Z"),
)
CONTENT_TYPES: Final = (
    *("text/plain", "", "application/cloudevents-batch+json", "application/cloudevents+avro"),
    *("application/json; charset=utf-16", "APPLICATION/JSON", "application/x+json", "a" * 300),
    *("application/cloudevents+json", "application/cloudevents+json; charset=UTF-8", "\x00"),
)
Headers = list[tuple[str, bytes | None]]


class Fuzz:
    """A stream of records for `wagers`. `now_ms` is the time around which they happen."""

    def __init__(self, seed: int, now_ms: int, prefix: str = "") -> None:
        self._chance = random.Random(seed)
        self._now_ms = now_ms
        self._prefix = prefix
        self._made = 0
        self._ids: list[tuple[str, str]] = []

    def name(self, tournament_id: str) -> str:
        return f"{self._prefix}{tournament_id}"

    def schedules(self) -> Iterator[Record]:
        """What makes the tournaments known; every other event comes behind."""
        rules: Sequence[dict[str, Any]] = (
            {"scoring": {"kind": "stake"}},
            {"scoring": {"kind": "submitted"}, "operator": "best", "order": "ascending"},
            {"scoring": {"kind": "win"}, "operator": "last", "join": "required"},
            {"scoring": {"kind": "multiplier"}, "games": ["slots"], "currency": "EUR"},
        )
        for number, tournament_id in enumerate((*LIVE, *SHORT)):
            data = {
                "tournament_id": self.name(tournament_id),
                "name": "Cup",
                "starts_at": self._time(-3_600_000),
                "ends_at": self._time(24 * 3_600_000),
                "rules": rules[number % len(rules)],
            }
            yield self._binary("tournament.scheduled", data, self._attributes("schedule", data))

    def record(self) -> Record:
        """The next one: three of ten are sound, the others have one to three things wrong."""
        kind = self._one(list(KINDS), list(KINDS.values()))
        data = self._data(kind)
        attributes = self._attributes(kind, data)
        if self._chance.random() < 0.3:
            build = self._structured if self._chance.random() < 0.3 else self._binary
            return build(kind, data, attributes)
        # Values first: a text that is damaged has none any more.
        for _ in range(self._chance.choice((0, 1, 1, 2))):
            self._chance.choice((self._change_data, self._change_attributes))(data, attributes)
        structured = self._chance.random() < 0.3
        found = (self._structured if structured else self._binary)(kind, data, attributes)
        for _ in range(self._chance.choice((0, 0, 1, 1, 2))):
            found = self._chance.choice(self._damages())(found)
        return found

    # sound events

    def _data(self, kind: str) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(json.dumps(DATA[kind]))
        chance = self._chance
        names = SHORT if kind.startswith("tournament.") else (*LIVE * 4, *SHORT, UNKNOWN)
        data["tournament_id"] = self.name(chance.choice(names))
        if data.get("player_id") is not None:
            data["player_id"] = chance.choice(PLAYERS)
        for field in ("stake_minor", "win_minor", "score", "subscore", "delta"):
            if field in data:
                data[field] = chance.randrange(10_000)
        if kind in ("player.erased", "player.disqualified"):
            # Nobody who plays: in the end they would all be out.
            data["player_id"] = f"gone{self._made}"
        if kind == "tournament.scheduled":
            data |= {"starts_at": self._time(-3_600_000), "ends_at": self._time(24 * 3_600_000)}
        return data

    def _attributes(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        self._made += 1
        source, event_id = "/fuzz", f"{self._prefix}{self._made}"
        if self._ids and self._chance.random() < 0.05:
            source, event_id = self._chance.choice(self._ids)
        elif self._chance.random() < 0.02:
            self._ids.append((source, event_id))
        found = attributes_of(
            "wager.placed", id=event_id, source=source, time=self._time(self._spread())
        )
        name = "tournament.scheduled" if kind == "schedule" else kind
        found["type"] = f"io.leaderboard.{name}.v1"
        found["partitionkey"] = data["tournament_id"]
        if "player_id" in data and self._chance.random() < 0.5:
            found["subject"] = data["player_id"]
        return {key: text for key, text in found.items() if text is not None}

    def _spread(self) -> int:
        # Some came before the start, and count for nothing.
        return self._chance.choice((0, 0, 0, 0, 1, -1, 60_000, 600_000, -7_200_000))

    def _time(self, plus_ms: int) -> str:
        return format_time_ms(self._now_ms + plus_ms)

    def _binary(self, kind: str, data: Any, attributes: dict[str, Any]) -> Record:
        headers: Headers = [
            (f"ce_{name}", _text(value).encode("utf-8", "surrogatepass"))
            for name, value in attributes.items()
        ]
        headers.append(("content-type", b"application/json"))
        return Record(WAGERS, self._key_of(data), _json(data), tuple(headers))

    def _structured(self, kind: str, data: Any, attributes: dict[str, Any]) -> Record:
        envelope = dict(attributes)
        if self._chance.random() < 0.2:
            envelope["data_base64"] = base64.b64encode(_json(data)).decode()
            if self._chance.random() < 0.1:
                envelope["data"] = data
        else:
            envelope["data"] = data
        headers = (("content-type", b"application/cloudevents+json"),)
        return Record(WAGERS, self._key_of(data), _json(envelope), headers)

    def _key_of(self, data: Any) -> bytes | None:
        name = data.get("tournament_id") if isinstance(data, dict) else None
        return name.encode("utf-8", "replace") if isinstance(name, str) else b"t0"

    # damage to values

    def _change_data(self, data: dict[str, Any], attributes: dict[str, Any]) -> None:
        chance = self._chance
        field = chance.choice(sorted(data)) if data else "player_id"
        match chance.randrange(8):
            case 0:
                data.pop(field, None)
            case 1:
                data[field] = chance.choice(NUMBERS)
            case 2:
                data[field] = chance.choice(TEXTS)
            case 3:
                data[field] = chance.choice((None, True, [], {}, [data.get(field)], {"a": None}))
            case 4:
                data[chance.choice(TEXTS)] = self._anything(3)
            case 5:
                data[field] = self._anything(4)
            case 6:
                data["rules" if "rules" in data else field] = self._anything(3)
            case _:
                data["more"] = "x" * chance.choice((1, 1_000, LARGE - 300, LARGE, 200_000))

    def _change_attributes(self, data: dict[str, Any], attributes: dict[str, Any]) -> None:
        chance = self._chance
        name = chance.choice(sorted(attributes)) if attributes else "id"
        match chance.randrange(7):
            case 0:
                attributes.pop(name, None)
            case 1:
                attributes[name] = chance.choice(TEXTS)
            case 2:
                attributes["time"] = chance.choice(TIMES)
            case 3:
                attributes[name] = chance.choice((7, True, None, [], {}, 1.5, 10**30))
            case 4:
                attributes["sequence"] = chance.choice(("7", "007", "-1", "9" * 40, "٣", "abc"))
            case 5:
                attributes[chance.choice((*TEXTS, "x-y", "unknown", "data", "DATA"))] = "kept"
            case _:
                attributes["traceparent"] = chance.choice((*TEXTS, "00-1-2-01"))

    def _anything(self, depth: int) -> Any:
        chance = self._chance
        if depth == 0 or chance.random() < 0.4:
            return chance.choice((None, True, *NUMBERS, *TEXTS))
        if chance.random() < 0.5:
            return [self._anything(depth - 1) for _ in range(chance.randrange(4))]
        return {
            chance.choice((*TEXTS, "kind", "scoring")): self._anything(depth - 1)
            for _ in range(chance.randrange(4))
        }

    # damage to the record

    def _damages(self) -> Sequence[Callable[[Record], Record]]:
        return (
            *(self._cut, self._flip, self._insert, self._repeat_field, self._nest),
            *(self._recode, self._no_value, self._lose_header, self._double_header),
            *(self._spoil_header, self._respell_header, self._retype, self._rekey),
        )

    def _cut(self, record: Record) -> Record:
        value = record.value or b""
        return record._replace(value=value[: self._chance.randint(0, len(value))])

    def _flip(self, record: Record) -> Record:
        value = bytearray(record.value or b"{}")
        for _ in range(self._chance.choice((1, 1, 2, 20))):
            value[self._chance.randrange(len(value))] = self._chance.randrange(256)
        return record._replace(value=bytes(value))

    def _insert(self, record: Record) -> Record:
        value = record.value or b""
        at = self._chance.randint(0, len(value))
        piece = self._chance.choice(
            (b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b'"', b"\\", b"\\u0000", b"\\ud800", b"{", b"]")
        )
        return record._replace(value=value[:at] + piece + value[at:])

    def _repeat_field(self, record: Record) -> Record:
        """The same name twice: which one counts has to be the same for every reader."""
        value = record.value or b""
        field = self._chance.choice(("player_id", "tournament_id", "stake_minor", "id", "data"))
        told = f'{{"{field}": {_json(self._anything(1)).decode("utf-8", "replace")}, '.encode()
        return record._replace(value=told + value[1:]) if value[:1] == b"{" else record

    def _nest(self, record: Record) -> Record:
        depth, value = self._chance.choice(DEEP), record.value or b"{}"
        opened, closed = self._chance.choice(((b"[", b"]"), (b'{"a":', b"}")))
        closed = closed * depth if self._chance.random() < 0.7 else b""
        inner = opened * depth + b"1" + closed
        match self._chance.randrange(3):
            case 0:
                return record._replace(value=inner)
            case 1:
                return record._replace(value=b'{"more": ' + inner + b", " + value[1:])
            case _:
                return record._replace(value=b'{"player_id": ' + inner + b", " + value[1:])

    def _recode(self, record: Record) -> Record:
        text = (record.value or b"").decode("utf-8", "replace")
        how = self._chance.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7", "latin-1"))
        return record._replace(value=text.encode(how, "replace"))

    def _no_value(self, record: Record) -> Record:
        return record._replace(value=self._chance.choice((None, b"", b"null", b"[]", b'""', b"0")))

    def _lose_header(self, record: Record) -> Record:
        lost = self._chance.randrange(max(len(record.headers), 1))
        return record._replace(headers=record.headers[:lost] + record.headers[lost + 1 :])

    def _double_header(self, record: Record) -> Record:
        again = self._some_header(record)
        return record._replace(headers=(*record.headers, *again))

    def _spoil_header(self, record: Record) -> Record:
        spoilt = (None, b"", b"\xff\xfe", b"\x00", b"x" * 20_000, b"\xed\xa0\x80", b"1.0")
        raw = self._chance.choice(spoilt)
        return self._with_header(record, lambda name: name, lambda _: raw)

    def _respell_header(self, record: Record) -> Record:
        spellings: Sequence[Callable[[str], str]] = (
            *(str.upper, str.title, lambda name: f"{name} ", lambda name: name.replace("_", "-")),
            *(lambda name: "ce_", lambda name: "dlq_reason"),
        )
        return self._with_header(record, self._chance.choice(spellings), lambda raw: raw)

    def _with_header(
        self,
        record: Record,
        name: Callable[[str], str],
        raw: Callable[[bytes | None], bytes | None],
    ) -> Record:
        """One header changed, where there is one."""
        headers = list(record.headers)
        if headers:
            at = self._chance.randrange(len(headers))
            headers[at] = (name(headers[at][0]), raw(headers[at][1]))
        return record._replace(headers=tuple(headers))

    def _some_header(self, record: Record) -> Headers:
        return [self._chance.choice(record.headers)] if record.headers else []

    def _retype(self, record: Record) -> Record:
        kept = tuple(one for one in record.headers if one[0] != "content-type")
        told = self._chance.choice(CONTENT_TYPES).encode()
        return record._replace(headers=(*kept, ("content-type", told)))

    def _rekey(self, record: Record) -> Record:
        keys = (None, b"", b"t0", b"another", b"\xff\xfe", b"x" * 300)
        return record._replace(key=self._chance.choice(keys))

    def _one(self, values: Sequence[str], weights: Sequence[float]) -> str:
        return self._chance.choices(values, weights)[0]


def _json(data: Any) -> bytes:
    """As lax producers write it: NaN as a word, and sometimes what is no UTF-8 at all."""
    return json.dumps(data, ensure_ascii=len(repr(data)) % 2 == 0).encode("utf-8", "surrogatepass")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
