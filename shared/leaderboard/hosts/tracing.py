"""Whether a process traces, and where a trace touches a function.

Off, which is the default, nothing of it is there: handlers and gateways stay what they are, and
OpenTelemetry is not imported. On, they are wrapped (`tracing_spans`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from leaderboard.errors import SettingsError
from leaderboard.events import Event
from leaderboard.hosts.kafka_handler import Handler
from leaderboard.ports import Gateway
from leaderboard.settings import TracingSettings


class Tracing(Protocol):
    """What a composition root hands its parts through."""

    def handler(self, make: Callable[[], Handler], topic: str) -> Callable[[], Handler]:
        """The same handler, with a span for each batch that holds something sampled."""

    def gateway(self, gateway: Gateway) -> Gateway:
        """The same gateway, with a span for each push that shows something sampled."""

    def begun(self, event: Event, topic: str) -> Event:
        """An event as its producer sends it: with the context of a span that begins its trace,
        unless it has one or the sampler does not want it."""

    def close(self) -> None:
        """Export what is left, within a few seconds."""


class NoTracing:
    """Off: everything is what it was."""

    def handler(self, make: Callable[[], Handler], topic: str) -> Callable[[], Handler]:
        return make

    def gateway(self, gateway: Gateway) -> Gateway:
        return gateway

    def begun(self, event: Event, topic: str) -> Event:
        return event

    def close(self) -> None:
        """Nothing is left."""


def tracing_of(name: str, settings: TracingSettings) -> Tracing:
    """The tracing of the process `name`. Connects to nothing. Raises SettingsError where tracing
    is asked for and its packages are not installed."""
    if not settings.is_on():
        return NoTracing()
    try:
        from leaderboard.hosts.tracing_spans import Spans  # noqa: PLC0415 - only who traces pays
    except ImportError as error:
        raise SettingsError(
            f"OTEL_TRACES_EXPORTER: is {settings.exporter}, and {error.name} is not installed: "
            "it comes with the extra `tracing`"
        ) from None
    return Spans(name, settings)
