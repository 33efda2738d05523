"""One good event of every type, and Hypothesis strategies for any other."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from leaderboard.events import TOPICS, TYPE_PREFIX, Event, Record

WAGER = {
    "tournament_id": "t1",
    "player_id": "alice",
    "game_id": "slots",
    "stake_minor": 250,
    "win_minor": 100,
    "currency": "EUR",
}
STAFF = {"tournament_id": "t1", "player_id": "alice", "reason": "fault", "decided_by": "op-1"}
CONTROL = {"tournament_id": "t1", "decided_by": "op-1"}
SCHEDULE = {
    "tournament_id": "t1",
    "name": "Cup",
    "starts_at": "2025-10-09T08:00:00Z",
    "ends_at": "2025-10-09T10:00:00+01:00",
    "rules": {"scoring": {"kind": "stake"}, "operator": "sum", "order": "descending"},
}
DATA: dict[str, dict[str, Any]] = {
    "wager.placed": WAGER,
    "score.submitted": {"tournament_id": "t1", "player_id": "alice", "score": 25, "subscore": 1},
    "wager.voided": {
        **{"tournament_id": "t1", "player_id": "alice", "reason": "fault"},
        "wager": {"source": "/game", "id": "w-1"},
    },
    "score.adjusted": {**STAFF, "delta": -5},
    "player.joined": {"tournament_id": "t1", "player_id": "alice", "display_name": "Alice é"},
    "player.disqualified": STAFF,
    "player.erased": {"tournament_id": "t1", "player_id": "alice", "erasure_id": "er-1"},
    "tournament.scheduled": SCHEDULE,
    "tournament.started": CONTROL,
    "tournament.ended": {**CONTROL, "reason": "over"},
    "tournament.cancelled": CONTROL,
    "position.changed": {
        **{"tournament_id": "t1", "player_id": "alice", "sequence": 7, "old_rank": None},
        **{"new_rank": 3, "score": 25, "distance": 4, "cause": {"source": "/game", "id": "w-1"}},
    },
    "fraud.suspected": {
        **{"tournament_id": "t1", "player_id": "alice", "rule": "velocity"},
        "evidence": {"wagers": 140},
    },
    "fraud.reviewed": {
        **{"tournament_id": "t1", "alert_id": "t1/7/velocity", "decision": "confirmed"},
        "decided_by": "olga",
    },
    "connection.decided": {
        **{"tournament_id": "t1", "player_id": None, "allowed": False, "reason": "no token"},
        "address": "203.0.113.9",
    },
    "game.round.settled": {key: WAGER[key] for key in WAGER if key != "tournament_id"},
}
TOPIC_OF = {name: topic for topic, models in TOPICS.items() for name in models}
TOPIC_OF["player.erased"] = "wagers"
NAMES = sorted(DATA)


def attributes_of(name: str, **changes: Any) -> dict[str, Any]:
    """Required attributes of a sound event, with changes; None leaves one out."""
    given = {
        "specversion": "1.0",
        "id": "e-1",
        "source": "/game/platform",
        "type": f"{TYPE_PREFIX}{name}.v1",
        "time": "2025-10-09T08:53:20.123Z",
        **changes,
    }
    return {key: value for key, value in given.items() if value is not None}


def record_of(
    name: str = "wager.placed",
    data: Any = None,
    *,
    raw: bytes | None = None,
    key: bytes | None = b"t1",
    **changes: Any,
) -> Record:
    """A record in binary mode. `raw` is its value as it is, else `data`, else the sample."""
    value = json.dumps(DATA[name] if data is None else data).encode() if raw is None else raw
    headers = [(f"ce_{n}", v.encode()) for n, v in attributes_of(name, **changes).items()]
    headers.append(("content-type", b"application/json"))
    return Record(TOPIC_OF[name], key, value, tuple(headers))


def structured_of(
    name: str = "wager.placed", *, key: bytes | None = b"t1", **changes: Any
) -> Record:
    """A record in structured mode; `changes` may also be `data` and `data_base64`."""
    envelope = {**attributes_of(name, **changes), "data": changes.get("data", DATA[name])}
    headers = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)
    return Record(TOPIC_OF[name], key, json.dumps(envelope).encode(), headers)


# --- any event ---------------------------------------------------------------------------------

IDS = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
PRINTABLE = st.characters(exclude_categories=["C", "Z"])
SOURCES = st.text(PRINTABLE, min_size=1, max_size=60)
TEXTS = st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable())
NUMBERS = st.integers(-(2**53) + 1, 2**53 - 1)
MONEY = st.integers(0, 2**53 - 1)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("tournament_id", "player_id", "erasure_id", "team_id"), IDS),
    **dict.fromkeys(("stake_minor", "win_minor"), MONEY),
    **dict.fromkeys(("score", "subscore", "delta", "distance"), NUMBERS),
    **dict.fromkeys(("reason", "decided_by"), TEXTS),
    **dict.fromkeys(("old_rank", "new_rank"), st.integers(1, 10**6)),
    **{"wager": st.fixed_dictionaries({"source": TEXTS, "id": TEXTS}), "sequence": MONEY},
    **{"evidence": st.dictionaries(TEXTS, JSON_VALUES, max_size=3), "prizes": JSON_VALUES},
}


@st.composite
def any_data(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Sound data of a type, with fields of its own that we do not know."""
    data = {
        field: draw(FIELDS[field]) if field in FIELDS and value is not None else value
        for field, value in DATA[name].items()
    }
    extra = draw(st.dictionaries(TEXTS.map("x-{}".format), JSON_VALUES, max_size=2))
    return {**data, **extra}


@st.composite
def any_record(draw: st.DrawFn) -> tuple[str, Record]:
    """A sound record of any type, and the type's name."""
    name = draw(st.sampled_from(NAMES))
    data = draw(any_data(name))
    tournament_id = data.get("tournament_id")
    changes: dict[str, Any] = {"id": draw(SOURCES), "source": draw(SOURCES)}
    if isinstance(data.get("player_id"), str) and draw(st.booleans()):
        changes["subject"] = data["player_id"]
    if draw(st.booleans()):
        changes["sequence"] = draw(
            st.integers(0, 10**15 - 1).map(str) | st.sampled_from(["007", "a"])
        )
    if tournament_id is not None and draw(st.booleans()):
        changes["partitionkey"] = tournament_id
    extensions = st.from_regex(r"x[a-z0-9]{1,10}", fullmatch=True)
    changes |= draw(st.dictionaries(extensions, SOURCES, max_size=2))
    build = structured_of if draw(st.booleans()) else record_of
    key = None if tournament_id is None else tournament_id.encode()
    return name, build(name, data=data, key=key, **changes)


def attributes_seen(event: Event) -> dict[str, Any]:
    """What an event says apart from its data, to compare two."""
    return {key: value for key, value in event._asdict().items() if key != "data"}
