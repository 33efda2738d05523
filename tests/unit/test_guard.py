"""A dependency that is away or hangs, behind a guard."""

from __future__ import annotations

import threading
import time

import pytest

from leaderboard.errors import TransientError
from leaderboard.guard import Guard
from running import wait_for


class Dependency:
    """Answers, is away, or hangs; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.is_away = False
        self.answering = threading.Event()
        self.answering.set()

    def __call__(self) -> int:
        self.calls += 1
        self.answering.wait(20)
        if self.is_away:
            raise TransientError("away")
        return self.calls


@pytest.fixture
def dependency() -> Dependency:
    return Dependency()


def test_answer_and_error_pass_as_they_are(dependency: Dependency) -> None:
    for guard in (Guard("it"), Guard("it", seconds=5)):
        assert guard(dependency) > 0
        with pytest.raises(KeyError, match="mine"):
            guard(lambda: {"other": 1}["mine"])
        assert guard(dependency) > 0


def test_who_is_away_is_asked_by_nobody_until_back(dependency: Dependency) -> None:
    guard = Guard("it", again_seconds=0.05)
    dependency.is_away = True
    for _ in range(1000):
        with pytest.raises(TransientError):
            guard(dependency)
    assert dependency.calls < 20
    dependency.is_away = False
    wait_for(lambda: _answers(guard), 2)


def _answers(guard: Guard) -> bool:
    try:
        return guard(lambda: True)
    except TransientError:
        return False


def test_trials_end_with_the_callers(
    dependency: Dependency, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leaderboard.guard.FORGOTTEN_SECONDS", 0.2)
    guard = Guard("it", again_seconds=0.05)
    dependency.is_away = True
    with pytest.raises(TransientError):
        guard(dependency)
    wait_for(lambda: not any(one.name == "try it" for one in threading.enumerate()), 3)
    assert dependency.calls < 10
    with pytest.raises(TransientError):
        guard(dependency)


def test_what_is_tried_may_be_lighter_than_what_failed(dependency: Dependency) -> None:
    guard = Guard("it", again_seconds=0.02, trial=lambda: None)
    dependency.is_away = True
    with pytest.raises(TransientError):
        guard(dependency)
    wait_for(lambda: _answers(guard), 2)
    assert dependency.calls == 1


def test_without_breaks_everyone_tries(dependency: Dependency) -> None:
    guard = Guard("it", breaks=False)
    dependency.is_away = True
    for _ in range(3):
        with pytest.raises(TransientError):
            guard(dependency)
    assert dependency.calls == 3


def test_call_that_hangs_is_waited_for_so_long_and_no_longer(dependency: Dependency) -> None:
    guard = Guard("it", seconds=0.2, at_once=2, breaks=False)
    dependency.answering.clear()
    started = time.monotonic()
    for _ in range(3):
        with pytest.raises(TransientError):
            guard(dependency)
    assert 0.5 < time.monotonic() - started < 3
    assert dependency.calls == 2, "no third one while two hang"
    dependency.answering.set()
    wait_for(lambda: _answers(guard), 2)


def test_question_that_is_too_much_holds_up_nobody_else(dependency: Dependency) -> None:
    guard = Guard("it", seconds=0.1, trial=lambda: None)
    dependency.answering.clear()
    with pytest.raises(TransientError):
        guard(dependency)
    for _ in range(20):
        assert guard(lambda: 1) == 1
        time.sleep(0.01)
    dependency.answering.set()


def test_who_hangs_is_away_as_soon_as_the_trial_says_so(dependency: Dependency) -> None:
    guard = Guard("it", seconds=0.1, trial=dependency)
    dependency.answering.clear()
    with pytest.raises(TransientError):
        guard(dependency)
    wait_for(lambda: not _answers(guard), 2)
    dependency.answering.set()
    wait_for(lambda: _answers(guard), 5)


def test_trials_of_who_hangs_keep_to_their_number(dependency: Dependency) -> None:
    guard = Guard("it", seconds=0.05, at_once=2, again_seconds=0.02)
    dependency.answering.clear()
    for _ in range(20):
        with pytest.raises(TransientError):
            guard(dependency)
        time.sleep(0.02)
    assert dependency.calls <= 2
    dependency.answering.set()
    wait_for(lambda: _answers(guard), 2)
