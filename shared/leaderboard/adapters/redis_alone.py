"""Imports redis-py without OpenTelemetry's metrics.

It imports them wherever they are installed, in case somebody asks for metrics of its own: 60 ms of
a start, and nobody does here."""

from __future__ import annotations

import sys
from typing import Any, Final

_UNWANTED: Final = ("opentelemetry.metrics", "opentelemetry.sdk.metrics")
_modules: dict[str, Any] = sys.modules
_hidden = [name for name in _UNWANTED if name not in _modules]
for name in _hidden:
    _modules[name] = None  # an import of it fails, and redis-py goes on without
try:
    import redis.cluster  # noqa: F401 - for its effect: it stays in sys.modules
finally:
    for name in _hidden:
        del _modules[name]
