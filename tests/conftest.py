"""Fixtures that every test may use."""

from __future__ import annotations

import pytest

pytest_plugins = ["servers", "boards", "sockets", "whole_path"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Pure tests first: they are quick to fail, and no thread of a client draws random numbers
    (to jitter its next attempt) while Hypothesis does."""
    items.sort(key=lambda item: "unit" not in item.path.parts)
