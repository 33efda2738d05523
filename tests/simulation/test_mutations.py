"""The simulation can fail: with a protection switched off it finds what that protects from."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from simulation.machine import Machine, failure
from simulation.test_found import FOUND
from simulation.world import function


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_without_looking_at_the_record_a_hole_in_it_stays() -> None:
    class Mutated(Machine):
        mutations: ClassVar[dict[str, Any]] = {
            "patches": [(function("archive").Archivist, "_check_stands", lambda *_: None)]
        }

    for steps in (value for name, value in FOUND.items() if name.startswith("record set back")):
        assert failure(steps) is None
        assert failure(steps, Mutated) is not None
