"""What Knative Eventing delivers: to whom, of which types, and what becomes of what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Final

from deploy.checking.building import Built, Manifest, Problem
from hosting import hosted
from leaderboard.events import TOPICS, WAGERS, type_of

RECEIVERS: Final = frozenset({"erase", "on-wager-http", "tournament"})
"""Services that take CloudEvents at their root."""
ORDER: Final = "kafka.eventing.knative.dev/delivery.order"
_DELIVERY: Final = ("retry", "backoffPolicy", "backoffDelay", "deadLetterSink")


def problems(built: Built) -> Iterator[Problem]:
    """Whoever would lose an event, or bring it to someone who does not take it."""
    for kind, end in (("KafkaSource", "sink"), ("Trigger", "subscriber")):
        for one in built.of_kind(kind):
            for what in _delivered(built, one, end):
                yield built.problem(one, what)
    for one in built.of_kind("Broker"):
        for what in _delivery(built, one):
            yield built.problem(one, what)


def _delivered(built: Built, one: Manifest, end: str) -> Iterator[str]:
    spec = one["spec"]
    target = spec[end].get("ref", {}).get("name")
    if target not in RECEIVERS:
        yield f"{end} {target} takes no events"
    if one["kind"] == "KafkaSource":
        yield from _delivery(built, one)
        if spec.get("ordering") != "ordered":
            yield "ordering has to be ordered: a tournament is one order"
        return
    if one["metadata"].get("annotations", {}).get(ORDER) != "ordered":
        yield f"annotation {ORDER} has to be ordered: the default is not"
    if built.find("Broker", spec["broker"]) is None:
        yield f"broker {spec['broker']}: there is no such Broker"
    types = set(_types(spec))
    if not types:
        yield "has to filter by type: the function would be asked for every event"
    for unknown in sorted(types - _taken(target or "")):
        yield f"type {unknown} is none that {target} takes"


def _delivery(built: Built, one: Manifest) -> Iterator[str]:
    delivery = one["spec"].get("delivery", {})
    for key in _DELIVERY:
        if not delivery.get(key):
            yield f"delivery.{key} is missing: say what becomes of an event that is refused"
    letters = delivery.get("deadLetterSink", {}).get("ref", {})
    if letters and built.find(letters["kind"], letters["name"]) is None:
        yield f"deadLetterSink {letters['name']}: there is no such {letters['kind']}"


def _types(spec: Manifest) -> Iterator[str]:
    if "type" in spec.get("filter", {}).get("attributes", {}):
        yield spec["filter"]["attributes"]["type"]
    for outer in spec.get("filters", []):
        for inner in outer.get("any", [outer]):
            if "type" in inner.get("exact", {}):
                yield inner["exact"]["type"]


@cache
def _taken(target: str) -> set[str]:
    if target == "erase":
        with hosted("erase") as one:
            return {one.main.REQUESTED}
    return {type_of(model) for model in TOPICS[WAGERS].values()}
