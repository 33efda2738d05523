"""A hundred thousand damaged events: none is lost, none stops a consumer, each is accounted for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import pytest

from leaderboard.codec import decode_kafka
from leaderboard.errors import Refusal, RefusedError
from leaderboard.events import WAGERS, Record
from leaderboard.hosts.kafka import KafkaHost, Refused
from leaderboard.hosts.kafka_buried import Buried
from leaderboard.model import Disposition
from logs import START_MS
from security.accounts import Account, accounts
from security.fuzzing import LIVE, SHORT, UNKNOWN, Fuzz

EVENTS: Final = int(os.environ.get("SECURITY_EVENTS", "100000"))
PARTS: Final = 4
"""Each has a log of its own."""
SEED: Final = int(os.environ.get("SECURITY_SEED", "20261126"))
AT_ONCE: Final = 5_000
FEW: Final = 1_500


def stream(seed: int) -> Iterator[Record]:
    fuzz = Fuzz(seed, START_MS)
    yield from fuzz.schedules()
    while True:
        yield fuzz.record()


def run(folder: Path, seed: int, count: int) -> Account:
    """Send so many events and let everybody work them off. Fails where board and record differ."""
    records = stream(seed)
    with accounts(folder) as one:
        for start in range(0, count, AT_ONCE):
            one.take(islice(records, min(AT_ONCE, count - start)))
        for name, (board, record) in one.boards((*LIVE, *SHORT, UNKNOWN)).items():
            assert board == record, f"board and record of {name} differ"
        return one.account()


@pytest.mark.parametrize("part", range(PARTS))
def test_every_fuzzed_event_is_applied_recorded_or_buried_exactly_once(
    tmp_path: Path, record_property: Callable[[str, object], None], part: int
) -> None:
    count = EVENTS // PARTS
    found = run(tmp_path, SEED + part, count)
    record_property("tried", len(found.sent))
    assert len(found.sent) == count
    found.check()
    # All of it was there: sound events that count, that do not count, and each way to be refused.
    reasons = Counter(found.buried.values())
    assert set(reasons) == set(map(str, Refusal)), set(map(str, Refusal)) - set(reasons)
    kinds = Counter(found.recorded.values())
    assert kinds[Disposition.APPLIED] > count // 10
    assert len(kinds) > 6, kinds
    record_property("outcomes", dict(kinds + reasons))


@pytest.mark.parametrize("seed", range(3))
def test_another_seed_is_other_events_and_they_add_up_too(tmp_path: Path, seed: int) -> None:
    run(tmp_path, seed, FEW).check()
    assert list(islice(stream(seed), 50)) == list(islice(stream(seed), 50))
    assert list(islice(stream(seed), 50)) != list(islice(stream(seed + 1), 50))


# --- what a mistake would look like ------------------------------------------------------------


def test_an_event_that_is_dropped_silently_is_found(tmp_path: Path) -> None:
    bury = KafkaHost._bury

    def forgetful(self: Any, batch: Any, refused: Sequence[Any]) -> None:
        bury(self, batch, [one for one in refused if one.offset % 50])

    with patch.object(KafkaHost, "_bury", forgetful):
        found = run(tmp_path, SEED, FEW)
    with pytest.raises(AssertionError, match="lost"):
        found.check()


def test_an_event_that_is_buried_twice_is_found(tmp_path: Path) -> None:
    bury = KafkaHost._bury

    def again(self: Any, batch: Any, refused: Sequence[Any]) -> None:
        bury(self, batch, refused)
        self._buried = Buried()
        bury(self, batch, refused[:1])

    with patch.object(KafkaHost, "_bury", again):
        found = run(tmp_path, SEED, FEW)
    with pytest.raises(AssertionError, match="buried twice"):
        found.check()


def test_an_event_that_is_buried_although_it_is_sound_is_found(tmp_path: Path) -> None:
    """By the record, which reads on its own."""
    read = KafkaHost._read

    def caution(self: Any, *args: Any) -> Any:
        batch = read(self, *args)
        if self._name != "on-wager" or not batch.entries:
            return batch
        error = RefusedError(Refusal.SCHEMA, "looks odd")
        refused = Refused(batch.entries[-1].offset, error)
        unreadable = [*batch.unreadable, refused]
        return replace(batch, entries=batch.entries[:-1], unreadable=unreadable)

    with patch.object(KafkaHost, "_read", caution), pytest.raises(AssertionError):
        run(tmp_path, SEED, FEW).check()


def test_an_error_that_is_no_refusal_stops_the_run(tmp_path: Path) -> None:
    def careless(record: Record) -> Any:
        if (record.value or b"")[:1] != b"{":
            raise KeyError("value")
        return decode_kafka(record)

    with (
        patch.object(KafkaHost.__init__, "__kwdefaults__", {
            **(KafkaHost.__init__.__kwdefaults__ or {}), "decode": careless,
        }),
        pytest.raises(KeyError),
    ):  # fmt: skip
        run(tmp_path, SEED, FEW)


def test_topic_of_every_event_is_wagers() -> None:
    assert {record.topic for record in islice(stream(1), FEW)} == {WAGERS}
