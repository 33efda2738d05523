"""Dead letters as values: what is kept of an event, and what no producer can forge."""

from __future__ import annotations

import pytest

from leaderboard import dead_letters
from leaderboard.dead_letters import DeadLetter, Mark, bury, mark, revive
from leaderboard.errors import Refusal, RefusedError
from leaderboard.events import Record
from leaderboard.model import Place

AT = "2026-11-22T10:00:00.000Z"
EVENT = Record(
    "wagers", b"t1", b'{"tournament_id": "t1"', (("ce_id", b"e1"), ("mine", None)), 3, 41, 1
)
ERROR = RefusedError(Refusal.NOT_JSON, "not whole")


def letter_of(record: Record, offset: int = 7) -> DeadLetter:
    """The dead letter of a record, as it lies at this offset."""
    found = dead_letters.read(bury(record, ERROR, AT)._replace(partition=0, offset=offset))
    assert isinstance(found, DeadLetter)
    return found


def test_a_dead_letter_tells_why_where_and_when() -> None:
    letter = letter_of(EVENT)
    assert (letter.record.topic, letter.reason, letter.detail) == (
        "wagers-dlq",
        "not_json",
        "not whole",
    )
    assert (letter.origin, letter.origin_offset) == (Place("wagers", 3), 41)
    assert (letter.at, letter.at_ms, letter.attempts) == (AT, 1_795_341_600_000, 0)


def test_a_replayed_event_is_the_one_that_came_but_for_a_count() -> None:
    once = revive(letter_of(EVENT))
    assert (once.topic, once.key, once.value) == (EVENT.topic, EVENT.key, EVENT.value)
    assert once.headers == (*EVENT.headers, ("dlq_attempts", b"1"))
    again = letter_of(once._replace(partition=3, offset=90))
    assert again.attempts == 1
    assert revive(again).headers == (*EVENT.headers, ("dlq_attempts", b"2"))


def test_a_mark_names_its_letter_and_every_copy_of_it() -> None:
    letter = letter_of(EVENT)
    found = dead_letters.read(mark(letter, "dropped", "ann", AT)._replace(partition=0, offset=8))
    assert isinstance(found, Mark)
    assert (found.fate, found.by, found.at, found.offset) == ("dropped", "ann", AT, 7)
    assert found.identity == letter.identity == letter_of(EVENT, offset=9).identity


def test_headers_of_a_producer_make_no_mark_and_no_other_letter() -> None:
    """Neither do they hide what the host has said, nor come back to it."""
    letter = letter_of(EVENT)
    forged = mark(letter, "dropped", "x", AT)
    victim = letter_of(EVENT._replace(headers=(*EVENT.headers, *forged.headers), offset=50))
    assert victim.origin_offset == 50
    lies = EVENT._replace(headers=(("dlq_reason", b"schema"), ("dlq_attempts", b"-1")))
    assert (letter_of(lies).reason, letter_of(lies).attempts) == ("not_json", 0)
    assert [name for name, _ in revive(letter_of(lies)).headers] == ["dlq_attempts"]


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("dlq_reason", b"schema"),),
        (("dlq_topic", b"t"), ("dlq_partition", b"x"), ("dlq_offset", b"1")),
        (("dlq_topic", b"t"), ("dlq_partition", b"0"), ("dlq_offset", b"1")),
        (
            ("dlq_topic", b"t"),
            ("dlq_partition", b"0"),
            ("dlq_offset", b"1"),
            ("dlq_handled", b"eaten"),
        ),
    ],
)
def test_what_is_neither_is_nothing(headers: tuple[tuple[str, bytes | None], ...]) -> None:
    assert dead_letters.read(Record("wagers-dlq", None, None, headers)) is None


@pytest.mark.parametrize(
    ("record", "named"),
    [
        (Record("wagers", b"t1", b'{"tournament_id": "t2"}'), {"t1", "t2"}),
        (Record("wagers", None, b'{"data": {"tournament_id": "t3"}}'), {"t3"}),
        (Record("wagers", b"\xff", None, (("ce_partitionkey", b"t4"),)), {"\ufffd", "t4"}),
        (Record("wagers", None, b"[]"), set()),
        (Record("wagers", None, b'{"tournament_id": ' + b"[" * 9000), set()),
    ],
)
def test_a_letter_is_found_by_every_tournament_that_it_names(
    record: Record, named: set[str]
) -> None:
    assert letter_of(record).tournaments() == named


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b'{"player_id": "ann", "score": 5}', {"player_id", "ann", "score"}),
        (b'[{"data": {"by": ["ann"]}}, "bea"]', {"data", "by", "ann", "bea"}),
        (b'"\\u0061nn"', {"ann"}),
        (b'{"player_id": 17, "score": 18}', {"player_id", "17", "score"}),
        (b'{"of": "ann and bea", "at": "10:00"}', {"of", "at"}),
        (b'"\\ud800"', set()),
        (b"", set()),
        (b"{", set()),
        (b"\xff", set()),
        ('"ann"'.encode("utf-16"), set()),
        (b"[" * 50_000 + b"]" * 10_000, set()),
        (b"9" * 10_000, set()),
        (b'["' + b"ann" * 30_000 + b'"]', set()),
        (b'["ann", "' + b"." * dead_letters.MAX_SEARCHED_BYTES + b'"]', set()),
    ],
)
def test_ids_are_found_in_what_can_be_read(value: bytes, found: set[str]) -> None:
    assert dead_letters.ids_in(None, {}, value) == found


def test_key_and_subject_may_be_ids_and_other_headers_are_not() -> None:
    headers = {"ce_id": "e1", "CE_Subject": "ann", "dlq_offset": "7", "mine": None}
    assert dead_letters.ids_in("t1", headers, None) == {"t1", "ann"}
    assert dead_letters.ids_in("no id", {"ce_subject": None}, None) == frozenset()
