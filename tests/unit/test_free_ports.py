"""Ports for servers that start in several processes at once: nobody gets one twice."""

from __future__ import annotations

import subprocess
import sys

from leaderboard.stack import process

OFFERED = """
from leaderboard.stack import process
process._SHUFFLED = iter([{first}, *range(15_000, 32_000)])
print(process.free_port())
"""


def of_another_process(first: int) -> int:
    """What another process gets that tries `first` before all others."""
    argv = [sys.executable, "-c", OFFERED.format(first=first)]
    return int(subprocess.run(argv, capture_output=True, check=True, timeout=60).stdout)


def test_port_that_was_given_is_given_to_no_other_process_though_nobody_listens() -> None:
    port = process.free_port()
    assert process.is_free(port)
    assert of_another_process(port) != port


def test_port_of_a_process_that_ended_may_be_given_again() -> None:
    port = of_another_process(31_999)
    assert process._reserve(port)
