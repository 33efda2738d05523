"""Batches that overlap: in which order their steps come, and what a failure of any step leaves."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from leaderboard.errors import TransientError
from leaderboard.hosts.kafka import Batch, Refused, ReplayError
from leaderboard.model import Offset, Place
from recording import Log, Recorder, running
from running import wait_for

BATCHES, SIZE = 6, 20
STEPS = ("begin", "join", "handle", "settle")


class Steps(Recorder):
    """Puts down each step of each batch, by the batch's number; raises where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[str, int]] = []
        self.forgotten: list[int] = []
        self.fails: dict[tuple[str, int], Exception] = {}
        self._open: set[int] = set()

    def _step(self, name: str, batch: Batch) -> None:
        number = batch.records[0].offset // SIZE
        if (error := self.fails.pop((name, number), None)) is not None:
            raise error
        self.steps.append((name, number))

    def begin(self, batch: Batch) -> None:
        assert batch.next_offset not in self._open, "begun twice"
        self._open.add(batch.next_offset)
        self._step("begin", batch)

    def join(self, batch: Batch) -> None:
        assert batch.next_offset in self._open
        self._step("join", batch)

    def handle(self, batch: Batch) -> Sequence[Refused]:
        assert batch.next_offset in self._open
        self._step("handle", batch)
        return super().handle(batch)

    def settle(self, batch: Batch) -> None:
        self._step("settle", batch)
        self._open.remove(batch.next_offset)
        super().settle(batch)

    def forget(self, batch: Batch) -> None:
        self.forgotten.append(batch.records[0].offset // SIZE)
        self._open.discard(batch.next_offset)

    def revoked(self, place: Place) -> None:
        assert not self._open, "a batch of a partition that went was not forgotten"
        super().revoked(place)


def worked_off(kafka: str, steps: Steps) -> Log:
    """A backlog of full batches, and a rest."""
    log = Log(kafka)
    log.send(BATCHES * SIZE + 3)
    with running(log, steps, batch_size=SIZE):
        wait_for(lambda: log.committed() == BATCHES * SIZE + 3, 30)
    return log


def test_the_next_batch_is_begun_before_the_one_before_is_handled(kafka: str) -> None:
    steps = Steps()
    worked_off(kafka, steps)
    assert steps.offsets() == list(range(BATCHES * SIZE + 3))
    first = [steps.steps.index(("handle", n)) for n in range(BATCHES)]
    began = [steps.steps.index(("begin", n)) for n in range(BATCHES + 1)]
    assert any(began[n + 1] < first[n] for n in range(BATCHES)), "nothing overlapped"
    for number in range(BATCHES + 1):
        order = [steps.steps.index((name, number)) for name in STEPS]
        assert order == sorted(order)
    for name in STEPS:
        came = [number for step, number in steps.steps if step == name]
        assert sorted(set(came)) == list(dict.fromkeys(came)), f"{name} out of order"
    assert steps.forgotten == []


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [TransientError("away"), ReplayError(Offset(0))])
def test_whatever_step_fails_everything_is_settled_in_order(
    kafka: str, step: str, number: int, error: Exception
) -> None:
    steps = Steps()
    steps.fails[step, number] = error
    worked_off(kafka, steps)
    assert not steps.fails, "the fault did not bite"
    assert number in steps.forgotten
    settled = steps.offsets()
    assert sorted(set(settled)) == list(range(BATCHES * SIZE + 3))
    # What comes again begins at or before what was not settled: never behind a hole.
    done = -1
    for offset in settled:
        assert offset <= done + 1
        done = max(done, offset)
    if isinstance(error, TransientError):
        assert settled == list(range(BATCHES * SIZE + 3)), "settled twice"
