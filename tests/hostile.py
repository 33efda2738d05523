"""Events that can never work, one for each way to be wrong, with the reason that they must get.

Each is a sound wager with one thing changed. Ids in them are of the tournament that is given, so
that they land in its partition, between its sound events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from leaderboard import events as ev
from leaderboard.errors import Refusal
from leaderboard.events import Record, format_time_ms

MARK = "x-case"
"""A header of no meaning: by it a test finds its event again in the dead-letter topic."""
WAGER, SUBMITTED = ev.type_of(ev.WagerPlaced), ev.type_of(ev.ScoreSubmitted)
LIMIT_BYTES = 32 * 1024
TEN_KB = "x" * 10_240
HOSTILE_IDS: Mapping[str, str] = {
    "empty": "",
    "braces": "{}",
    "braces around": "{t1}",
    "colon": "t:1",
    "newline": "t1\n",
    "newline inside": "t\n1",
    "10 KB": TEN_KB,
    "unicode": "Älice",
    "digits of another script": "١٢٣",
    "nul": "t\x001",
    "star": "*",
    "slash": "../t1",
    "space": "t 1",
    "dot": "me.t1",
}


class Case(NamedTuple):
    """One wrong event. `over_http` False: nothing of it can be said over HTTP."""

    name: str
    reason: Refusal
    record: Record
    over_http: bool = True


def wager_data(tournament_id: str, /, **changes: Any) -> dict[str, Any]:
    """The data of a wager; a value of None leaves the field out."""
    data: dict[str, Any] = {
        "tournament_id": tournament_id,
        "player_id": "mallory",
        "game_id": "g1",
        "stake_minor": 500,
        "currency": "EUR",
        **changes,
    }
    return {name: value for name, value in data.items() if value is not None}


def record(
    tournament_id: str,
    data: object,
    *,
    key: str | None = None,
    **attributes: str | None,
) -> Record:
    """A record in binary mode. `attributes` change its CloudEvents headers; None leaves out."""
    given: dict[str, str | None] = {
        "specversion": "1.0",
        "id": uuid.uuid4().hex,
        "source": "/tests/hostile",
        "type": WAGER,
        "time": format_time_ms(time.time_ns() // 1_000_000),
        "partitionkey": tournament_id,
        "content_type": "application/json",
        **attributes,
    }
    content_type = given.pop("content_type")
    headers = [(f"ce_{name}", text.encode()) for name, text in given.items() if text is not None]
    if content_type is not None:
        headers.append(("content-type", content_type.encode()))
    value = data if isinstance(data, bytes) else json.dumps(data).encode()
    return Record(ev.WAGERS, (key or tournament_id).encode(), value, tuple(headers))


def structured(tournament_id: str, **attributes: Any) -> bytes:
    """A wager as a structured event; a value of None leaves the attribute out."""
    envelope = {
        "specversion": "1.0",
        "id": uuid.uuid4().hex,
        "source": "/tests/hostile",
        "type": WAGER,
        "time": "2026-01-01T00:00:00Z",
        "partitionkey": tournament_id,
        "data": wager_data(tournament_id),
        **attributes,
    }
    return json.dumps({n: value for n, value in envelope.items() if value is not None}).encode()


def refused_cases(tournament_id: str) -> Iterator[Case]:
    """Everything that the codec refuses; no case needs a board."""
    yield from _unreadable(tournament_id)
    yield from _wrong_fields(tournament_id)
    yield from _wrong_attributes(tournament_id)
    yield from _wrong_keys(tournament_id)
    yield from _hostile_ids(tournament_id)


def _unreadable(t: str) -> Iterator[Case]:
    texts = {
        "no JSON": b"stake=500",
        "cut JSON": json.dumps(wager_data(t)).encode()[:-5],
        "no bytes": b"",
        "bytes that are no UTF-8": b'{"tournament_id": "\xff\xfe"}',
        "NaN": json.dumps(wager_data(t, stake_minor=float("nan"))).encode(),
        "nested deep": b"[" * 20_000,
    }
    for name, value in texts.items():
        yield Case(name, Refusal.NOT_JSON, record(t, value))
    others: dict[str, object] = {"list": [], "null": None, "text": "500", "number": 500}
    for name, data in others.items():
        yield Case(f"JSON, but a {name}", Refusal.SCHEMA, record(t, data))
    cloud = "application/cloudevents+json"
    cut = structured(t)[:-3]
    yield Case("cut structured", Refusal.NOT_JSON, record(t, cut, content_type=cloud))
    yield Case("structured list", Refusal.SCHEMA, record(t, [], content_type=cloud))
    for size in (LIMIT_BYTES + 1, 2 * 1024 * 1024):
        yield Case(f"{size} bytes", Refusal.TOO_LARGE, record(t, padded(t, size)))
    tombstone = record(t, b"")._replace(value=None)
    yield Case("tombstone", Refusal.SCHEMA, tombstone, over_http=False)


def padded(tournament_id: str, size: int) -> bytes:
    """A wager of exactly `size` bytes, by an extra field."""
    bare = json.dumps(wager_data(tournament_id, more="")).encode()
    return bare[:-2] + b"x" * (size - len(bare)) + bare[-2:]


def _wrong_fields(t: str) -> Iterator[Case]:
    changes: dict[str, dict[str, Any]] = {
        "stake as text": {"stake_minor": "500"},
        "stake true": {"stake_minor": True},
        "stake in a list": {"stake_minor": [500]},
        "player a number": {"player_id": 7},
        "tournament a list": {"tournament_id": [t]},
        "currency a number": {"currency": 978},
        "negative stake": {"stake_minor": -1},
        "negative win": {"win_minor": -500},
        "fractional stake": {"stake_minor": 10.5},
        "stake with a point": {"stake_minor": 10.0},
        "fractional win": {"win_minor": 0.1},
        "currency no code": {"currency": "euros"},
        "no game": {"game_id": None},
        "no stake": {"stake_minor": None},
        "no currency": {"currency": None},
        "no player": {"player_id": None},
        "no tournament": {"tournament_id": None},
    }
    for name, change in changes.items():
        yield Case(name, Refusal.SCHEMA, record(t, wager_data(t, **change)))
    for name, change in {
        "stake of 2^53": {"stake_minor": 2**53},
        "win of 2^64": {"win_minor": 2**64},
    }.items():
        yield Case(name, Refusal.SCORE_OUT_OF_RANGE, record(t, wager_data(t, **change)))
    submitted: dict[str, Any] = {"tournament_id": t, "player_id": "mallory"}
    for score in (2**53, -(2**53), 10**40):
        data = {**submitted, "score": score}
        sent = record(t, data, type=SUBMITTED)
        yield Case(f"score {score:.3g}", Refusal.SCORE_OUT_OF_RANGE, sent)
    data = {**submitted, "score": 1, "subscore": 2**53}
    sent = record(t, data, type=SUBMITTED)
    yield Case("subscore of 2^53", Refusal.SCORE_OUT_OF_RANGE, sent)
    sent = record(t, {**submitted, "score": 1.5}, type=SUBMITTED)
    yield Case("fractional score", Refusal.SCHEMA, sent)


def _wrong_attributes(t: str) -> Iterator[Case]:
    data = wager_data(t)
    absent: dict[str, str | None] = dict.fromkeys(("specversion", "id", "source", "type", "time"))
    for name in absent:
        yield Case(f"without {name}", Refusal.SCHEMA, record(t, data, **{name: None}))
    for name, text in {
        "specversion": "0.3",
        "time": "yesterday",
        "subject": "somebody-else",
        "content_type": "text/plain",
    }.items():
        yield Case(f"wrong {name}", Refusal.SCHEMA, record(t, data, **{name: text}))
    yield Case("time without zone", Refusal.SCHEMA, record(t, data, time="2026-01-01T00:00:00"))
    cloud = "application/cloudevents+json"
    for name in absent:
        sent = record(t, structured(t, **{name: None}), content_type=cloud)
        yield Case(f"structured without {name}", Refusal.SCHEMA, sent)
    for kind in (
        "io.leaderboard.wager.placed.v2",
        "io.leaderboard.wager.placed",
        "io.leaderboard.position.changed.v1",
        "com.example.anything",
    ):
        yield Case(f"type {kind}", Refusal.UNKNOWN_TYPE, record(t, data, type=kind))


def _wrong_keys(t: str) -> Iterator[Case]:
    data = wager_data(t)
    other = record(t, data, key="another")
    yield Case("key of another", Refusal.WRONG_KEY, other, over_http=False)
    keyless = other._replace(key=None)
    yield Case("no key", Refusal.WRONG_KEY, keyless, over_http=False)
    sent = record(t, data, partitionkey="another")
    yield Case("partitionkey of another", Refusal.WRONG_KEY, sent)


def _hostile_ids(t: str) -> Iterator[Case]:
    for name, text in HOSTILE_IDS.items():
        sent = record(t, wager_data(t, player_id=text))
        yield Case(f"player id: {name}", Refusal.BAD_ID, sent)
        sent = record(t, wager_data(t, tournament_id=text), partitionkey=None, key=text or t)
        yield Case(f"tournament id: {name}", Refusal.BAD_ID, sent)
    data = wager_data(t)
    cloud = "application/cloudevents+json"
    for name in ("id", "source"):
        for kind in ("newline inside", "nul", "10 KB"):
            hostile = {name: HOSTILE_IDS[kind]}
            if kind != "10 KB":
                yield Case(f"{name}: {kind}", Refusal.BAD_ID, record(t, data, **hostile))
            sent = record(t, structured(t, **hostile), content_type=cloud)
            yield Case(f"structured {name}: {kind}", Refusal.BAD_ID, sent)
        # Servers of HTTP have their own limit for a header, so this one is Kafka's alone.
        long = record(t, data, **{name: TEN_KB})
        yield Case(f"{name}: 10 KB", Refusal.BAD_ID, long, over_http=False)


def marked(case: Case, run: str) -> Record:
    """The case's record with the header by which it is found again."""
    header = (MARK, f"{run}/{case.name}".encode())
    return case.record._replace(headers=(*case.record.headers, header))


def over_http(sent: Record) -> tuple[dict[str, str], bytes]:
    """The same event as an HTTP request, in the mode that it has."""
    headers = {}
    for name, raw in sent.headers:
        if name[:3] == "ce_":
            headers[f"ce-{name[3:]}"] = quote(raw or b"")
        else:
            headers[name] = (raw or b"").decode()
    return headers, sent.value or b""
