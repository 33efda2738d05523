"""Leaves of the audit log: canonical, the same again, nothing personal, and the fold reads them."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leaderboard import events as ev
from leaderboard.audit_leaves import (
    AUDITED,
    MOST_BYTES,
    NOBODY,
    Leaf,
    LeafError,
    Leaves,
    Who,
    canonical,
    commitment,
    decode,
    leaves_of,
    log_keys,
    opening,
    player_key,
    said,
    who,
)
from leaderboard.codec import MAX_VALUE_BYTES, decode_kafka
from leaderboard.errors import Refusal
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, Place, PlayerId, TournamentId
from samples import DATA, NAMES, TOPIC_OF, any_record, record_of

ANY = any_record().filter(lambda named: named[1].topic in AUDITED)
OURS = [name for name in NAMES if TOPIC_OF[name] in AUDITED]
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
KEYS = log_keys(b"a secret of the whole deployment, long enough")
LOG_ID = "/Xq/1"
"""As Kafka may name a topic."""
ALICE = player_key(b"a" * 32)


def leaf_of(record: ev.Record, offset: int = 7, *, is_gone: bool = False) -> bytes:
    event = decode_kafka(record)
    leaves = Leaves(Place(record.topic, 3), f"{record.topic}/{LOG_ID}/3", KEYS)
    whose = who(record.topic, event)
    key = None if whose is None or is_gone else ALICE
    return leaves.of_event(LogEntry(Offset(offset), 1_000, event), record.value, key)


def test_leaf_of_a_wager_is_this_text() -> None:
    """The format as docs/audit.md shows it: who changes it changes its version."""
    record = record_of(sequence="12")
    value = record.value or b""
    key = hmac.digest(b"a" * 32, b"audit/leaf wagers/3/7", "sha256")
    sealed = hmac.digest(key, b"e-1\n" + value, "sha256").hex()
    assert leaf_of(record).decode() == (
        f'{{"commitment":"{sealed}"'
        ',"data":{"currency":"EUR","game_id":"slots","stake_minor":250,"win_minor":100}'
        f',"id":"{KEYS.id_of("/game/platform", "e-1")}","log":"/Xq/1","logged_ms":1000'
        f',"number":12,"offset":7,"partition":3,"player":"{ALICE.pseudonym}"'
        ',"source":"/game/platform","time_ms":1759999000123,"topic":"wagers"'
        ',"tournament":"t1","type":"wager.placed","v":1}'
    ).replace("1759999000123", str(ev.parse_time_ms("2025-10-09T08:53:20.123Z")))


@given(ANY, st.integers(0, 2**53), st.booleans())
@relaxed
def test_every_leaf_is_canonical_and_reads_back(
    named: tuple[str, ev.Record], offset: int, is_gone: bool
) -> None:
    name, record = named
    raw = leaf_of(record, offset, is_gone=is_gone)
    assert raw == leaf_of(record, offset, is_gone=is_gone)
    assert raw == canonical(json.loads(raw))
    leaf = decode(raw)
    assert (leaf.kind, leaf.offset, leaf.place) == (name, offset, Place(record.topic, 3))
    event = decode_kafka(record)
    read = leaf.entry()
    assert read is not None
    assert (read.event.time_ms, read.event.sequence) == (event.time_ms, event.sequence)
    assert read.event.tournament_id == event.tournament_id
    assert type(read.event.data) is type(event.data)


FOLDED = {
    ev.WagerPlaced: ("game_id", "stake_minor", "win_minor", "currency"),
    ev.ScoreSubmitted: ("score", "subscore"),
    ev.ScoreAdjusted: ("delta",),
    ev.TournamentScheduled: ("name", "starts_at", "ends_at"),
    ev.PositionChanged: ("sequence", "old_rank", "new_rank", "score", "subscore", "distance"),
    ev.ConnectionDecided: ("allowed", "reason"),
}


@given(ANY)
@relaxed
def test_what_the_fold_needs_comes_back_as_it_was(named: tuple[str, ev.Record]) -> None:
    event = decode_kafka(named[1])
    read = decode(leaf_of(named[1])).entry()
    assert read is not None
    for field in FOLDED.get(type(event.data), ()):
        assert getattr(read.event.data, field) == getattr(event.data, field)


def test_rules_come_back_without_what_nobody_understands() -> None:
    rules = {
        "scoring": {"kind": "tiers", "tiers": [[1, 2]], "x-odd": 1.5},
        **{"operator": "best", "order": "ascending", "games": ["a", "b"]},
        **{"min_stake_minor": 5, "currency": "EUR", "join": "required", "x-odd": {"a": 0.1}},
    }
    schedule = {**DATA["tournament.scheduled"], "rules": rules, "prizes": [{"rank": 1, "eur": 5}]}
    read = decode(leaf_of(record_of("tournament.scheduled", schedule))).entry()
    assert read is not None
    data = read.event.data
    assert isinstance(data, ev.TournamentScheduled)
    assert data.rules.scoring.kind == "tiers"
    assert data.rules.games == ["a", "b"]
    assert (data.rules.operator, data.rules.order) == ("best", "ascending")
    assert (data.rules.min_stake_minor, data.rules.join) == (5, "required")
    assert data.rules.model_extra == {}
    assert data.prizes == [{"rank": 1, "eur": 5}]


def test_schedule_keeps_what_is_finer_than_a_millisecond() -> None:
    close = {
        "starts_at": "2025-10-09T08:00:00.000100Z",
        "ends_at": "2025-10-09T10:00:00.000900+02:00",
    }
    read = decode(
        leaf_of(record_of("tournament.scheduled", {**DATA["tournament.scheduled"], **close}))
    ).entry()
    assert read is not None  # else the end would not come after the start


PERSONAL = "Zoe-marker"


@pytest.mark.parametrize("name", OURS)
def test_nothing_personal_is_in_a_leaf(name: str) -> None:
    """A marker in every text that a producer or a player chooses, wherever its type allows it."""
    data: dict[str, Any] = {**DATA[name], "x-name": PERSONAL, "nested": {"who": [PERSONAL]}}
    for field in ("player_id", "display_name", "team_id", "region", "round_id", "address"):
        if field in ev.TOPICS[TOPIC_OF[name]][name].model_fields:
            data[field] = PERSONAL
    if name != "connection.decided":
        data |= {"reason": PERSONAL} if "reason" in data else {}
    data |= {"user_agent": PERSONAL} if name == "connection.decided" else {}
    data |= {"evidence": {"player": PERSONAL}} if name == "fraud.suspected" else {}
    if "wager" in data:
        data["wager"] = {"source": "/game", "id": f"{PERSONAL}/1"}
    if "cause" in data:
        data["cause"] = {"source": "/game", "id": f"{PERSONAL}/1"}
    record = record_of(name, data, id=f"w/{PERSONAL}/1", traceparent=PERSONAL, xname=PERSONAL)
    raw = leaf_of(record)
    assert PERSONAL.encode() in (record.value or b"")  # else there is nothing to find
    assert PERSONAL.encode() not in raw
    assert PERSONAL.encode().hex().encode() not in raw


def test_refused_record_leaves_its_place_and_reason_only() -> None:
    leaves = Leaves(Place("wagers", 3), f"wagers/{LOG_ID}/3", KEYS)
    value = b'{"player_id": "Zoe-marker"'
    leaf = decode(leaves.of_refused(9, 1_000, value, Refusal.NOT_JSON))
    key = opening(KEYS.others, "wagers", 3, 9)
    assert leaf == Leaf(
        Place("wagers", 3), Offset(9), LOG_ID, 1_000, commitment(key, said(None, value)), "not_json"
    )
    assert leaf.entry() is None


def test_pseudonyms_and_openings_tell_nothing_of_each_other() -> None:
    """One player in two tournaments, and two leaves of one player, share nothing."""
    other = player_key(b"b" * 32)
    assert ALICE.pseudonym != other.pseudonym
    assert len(ALICE.pseudonym) == 22
    one, two = opening(ALICE.secret, "wagers", 3, 7), opening(ALICE.secret, "wagers", 3, 8)
    leaf = decode(leaf_of(record_of(), 7))
    told = said("e-1", record_of().value)
    assert commitment(one, told) == leaf.commitment
    assert commitment(two, told) != leaf.commitment
    assert hashlib.sha256(told).hexdigest() != leaf.commitment


def test_ids_of_events_are_equal_where_the_events_are() -> None:
    """Else the fold could not find repetitions, whoever they are about."""
    first = decode(leaf_of(record_of(), 1))
    again = decode(leaf_of(record_of(data={**DATA["wager.placed"], "player_id": "bob"}), 2))
    cause = decode(leaf_of(record_of("position.changed"), 3))
    assert first.id == again.id
    assert cause.data is not None
    assert cause.data["cause"] == {"id": KEYS.id_of("/game", "w-1"), "source": "/game"}
    assert KEYS.id_of("/game", "w-1") != log_keys(b"another").id_of("/game", "w-1")


def test_leaf_of_a_decision_names_the_leaf_of_the_suspicion() -> None:
    told = record_of("fraud.suspected", id="t1/7/velocity", source=ev.POSITION_SOURCE)
    suspected = decode(leaf_of(told))
    why = {**DATA["fraud.reviewed"], "reason": PERSONAL}
    reviewed = decode(leaf_of(record_of("fraud.reviewed", why)))
    assert reviewed.data == {
        "alert_id": suspected.id,
        "decision": "confirmed",
        "decided_by": "olga",
    }
    assert (suspected.player, reviewed.player) == (ALICE.pseudonym, None)


def test_longest_record_makes_a_leaf_that_a_log_takes() -> None:
    def schedule(games: int) -> bytes:
        rules = {"scoring": {"kind": "stake"}, "games": ["\x01" * 5] * games}
        return json.dumps({**DATA["tournament.scheduled"], "rules": rules}).encode()

    games = max(n for n in range(1_001) if len(schedule(n)) <= MAX_VALUE_BYTES)
    record = record_of("tournament.scheduled", raw=schedule(games), source="\u00e9" * 256)
    assert MAX_VALUE_BYTES - 40 < len(record.value or b"") <= MAX_VALUE_BYTES
    assert len(leaf_of(record)) <= MOST_BYTES


ERASED = record_of("player.erased", {**DATA["player.erased"]})


def test_who_is_erased_has_no_key_in_what_comes_behind() -> None:
    """Also where the key is at hand still: what is written depends on the log, not on the hour."""
    records = [
        one._replace(offset=at, timestamp_ms=1)
        for at, one in enumerate([record_of(), ERASED, record_of(id="e-2")])
    ]
    entries = [LogEntry(Offset(one.offset), 1, decode_kafka(one)) for one in records]
    whose: Who = (TournamentId("t1"), PlayerId("alice"))
    leaves = Leaves(Place("wagers", 3), f"wagers/{LOG_ID}/3", KEYS)
    made = leaves_of(leaves, records, entries, {}, {whose: ALICE}, {whose: Offset(1)})
    read = [decode(one) for one in made]
    assert [one.player for one in read] == [ALICE.pseudonym, ALICE.pseudonym, None]
    assert [one.is_of_nobody for one in read] == [False, False, True]
    late = read[2].entry()
    assert late is not None
    assert late.event.player_id == NOBODY


def test_batch_has_a_leaf_for_every_record() -> None:
    records = [
        record_of()._replace(offset=4, timestamp_ms=1),
        record_of(raw=b"{")._replace(offset=6, timestamp_ms=1),
        record_of("tournament.started")._replace(offset=9, timestamp_ms=1),
    ]
    entries = [LogEntry(Offset(o.offset), 1, decode_kafka(o)) for o in (records[0], records[2])]
    whose: Who = (TournamentId("t1"), PlayerId("alice"))
    leaves = Leaves(Place("wagers", 3), f"wagers/{LOG_ID}/3", KEYS)
    made = leaves_of(leaves, records, entries, {6: Refusal.NOT_JSON}, {whose: ALICE}, {})
    assert [decode(one).offset for one in made] == [4, 6, 9]
    assert [decode(one).refused for one in made] == [None, "not_json", None]


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw[:-1],
        lambda raw: raw + b" ",
        lambda raw: raw.replace(b'"v":1', b'"v":2'),
        lambda raw: raw.replace(b",", b", ", 1),
        lambda raw: raw.replace(b'"offset":7', b'"offset":7.0'),
        lambda raw: raw.replace(b'"offset":7', b'"offset":"7"'),
        lambda raw: raw.replace(b'"type":"wager.placed"', b'"type":"wager.lost"'),
        lambda raw: raw.replace(b'"log":"/Xq/1"', b'"log":1'),
        lambda raw: raw.replace(b'"log":"/Xq/1",', b""),
        lambda raw: raw.replace(b'"log":', b'"a":1,"log":'),
        lambda raw: raw.replace(b"slots", b"sl\\u006fts"),
        lambda raw: b"[" + raw + b"]",
        lambda raw: b"\xff" + raw,
    ],
)
def test_bytes_that_are_no_leaf_are_refused(change: Any) -> None:
    raw = leaf_of(record_of())
    decode(raw)
    with pytest.raises(LeafError, match=r"."):
        decode(change(raw))
