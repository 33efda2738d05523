"""Trials in CI: a fresh seed each time, all kinds of faults in turn over the runs; and the runner
itself, which has to see what it is there to see."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from faults.kinds import FAULTS
from faults.runner import Result, line_of, run, schedule_of, table, write

TRIALS = 12
SECONDS = 600.0


@pytest.mark.timeout(900)
def test_twelve_faults_leave_all_five_views_level(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}: make faults TRIALS={TRIALS} SEED={seed}")
    results = run(TRIALS, seed, "", tmp_path, print, SECONDS)
    write(results, seed, "", tmp_path / "results")
    print(table(results))
    assert not [one for one in results if one.mismatches]
    # A loaded machine may be too slow for a fault here and there, not for most of them.
    assert sum(one.is_clean for one in results) > TRIALS * 0.6


def test_schedule_has_every_kind_in_turn_and_is_the_same_for_its_seed() -> None:
    everything = sorted(fault.name for fault in FAULTS)
    quick = sorted(fault.name for fault in FAULTS if not fault.slow)
    planned = schedule_of(len(everything) + len(quick), 7, "")
    assert sorted(fault.name for fault, _ in planned) == sorted(everything + quick)
    assert planned == schedule_of(len(planned), 7, "")
    assert planned != schedule_of(len(planned), 8, "")
    assert len({seed for _, seed in planned}) == len(planned)


def test_a_single_trial_is_repeated_with_the_seed_that_it_told() -> None:
    ((fault, seed),) = schedule_of(1, 4711, "kill redis")
    assert (fault.name, seed) == ("kill redis", 4711)


def test_unknown_fault_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(SystemExit, match="kill on-wager"):
        schedule_of(1, 1, "flood")


def test_a_difference_is_told_with_the_command_that_repeats_it() -> None:
    told = line_of(3, Result("cut kafka", 99, mismatches=["board differs"]))
    assert "DIFFERS" in told
    assert 'make faults TRIALS=1 SEED=99 ONLY="cut kafka"' in told


def test_a_fault_that_did_not_bite_is_no_clean_trial() -> None:
    idle = Result("cut kafka", 1, has_bitten=False, recovery_seconds=1.0)
    bitten = Result("cut kafka", 2, has_bitten=True, recovery_seconds=2.0)
    assert not idle.is_clean
    assert "| cut kafka | 2 | 1 | 1 | 2.0 s | 2.0 s | 0 |" in table([idle, bitten])
