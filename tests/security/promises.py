"""What is promised of security, and the tests that try it: the table of docs/security.md.

`tests` are patterns of test ids as pytest has them, `FILE::NAME`; what a test tried it tells itself
(`record_property("tried", n)`), else each test that ran is one try."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs/security.md"
BEGIN, END = "<!-- table: make security -->\n", "<!-- end -->"


@dataclass(frozen=True)
class Promise:
    """`unit` is what is counted. `also`: files outside of tests/security that are run with it."""

    text: str
    how: str
    unit: str
    tests: Sequence[str]


@dataclass(frozen=True)
class Row:
    """A promise, and how it went."""

    promise: Promise
    tried: int
    held: int


PROMISES: Final = (
    Promise(
        "Every event is applied, recorded or buried, exactly once, and none stops a consumer",
        "damaged events through the codec, hosts and handlers of `on-wager` and `archive`; board, "
        "record, dead letters and metrics have to add up",
        "events",
        ["test_fuzz.py::test_every_fuzzed*", "test_fuzz.py::test_another_seed*"],
    ),
    Promise(
        "The same on Kafka, with the real processes",
        "damaged events produced to the local stack's `wagers`",
        "events",
        ["test_fuzz_kafka.py::*"],
    ),
    Promise(
        "No request gets a 5xx or an answer that is not documented",
        "Schemathesis over every operation of every function, as player, operator, service and "
        "auditor",
        "requests",
        ["test_api.py::test_every_operation*"],
    ),
    Promise(
        "Nothing is done without a token that proves who calls",
        "every operation with tokens that prove nothing",
        "requests",
        ["test_api.py::test_a_token_that_proves_nothing*"],
    ),
    Promise(
        "Attacks on tokens, roles, tickets and connections fail",
        "algorithms, claims, keys, another player's ids, stolen and replayed tickets",
        "attacks",
        ["test_attacks.py::*", "test_jwks_tokens.py::*"],
    ),
    Promise(
        "Nobody is served beyond their limit, and slow clients cost nothing lasting",
        "bursts, storms, slow and half-open clients",
        "tests",
        ["test_limits.py::*", "test_slow_clients.py::*", "test_edge.py::*"],
    ),
    Promise(
        "What is no request is a problem, and nothing of it comes back",
        "raw bytes to every function",
        "requests",
        ["test_api.py::test_what_is_no_request*"],
    ),
    Promise(
        "Another page can do nothing in a player's name",
        "every operation from another origin, with cookies, and its preflight",
        "requests",
        ["test_api.py::test_a_page_elsewhere*"],
    ),
    Promise(
        "The page runs only its own scripts and styles",
        "Chromium: no violation of its policy while it is used, and what is slipped in is refused",
        "tests",
        ["test_page.py::test_page_keeps_to_its_own_policy*", "test_page.py::test_hostile_name*"],
    ),
    Promise(
        "No secret is printed, logged, traced, measured, answered or shown to `ps`",
        "known secrets in a stack that is disturbed, then searched for",
        "searches",
        ["test_secrets.py::*"],
    ),
    Promise(
        "SQL gets values by bound parameters only",
        "every statement in the sources",
        "statements",
        ["test_sql.py::*"],
    ),
    Promise(
        "Each function may do in Kafka, Redis and SQL what it does, and nothing else",
        "real servers with the platform's own rights",
        "tests",
        ["test_kafka_access.py::*", "test_redis_access.py::*", "test_record_access.py::*"],
    ),
    Promise(
        "What was changed behind our back is found, and where",
        "log, tiles, SQL rows and boards edited, dropped, reordered, cut and forked",
        "changes",
        [
            *("test_tamper.py::*", "test_audit_rebuild.py::*", "test_audit_beside.py::*"),
            "test_standing_check.py::test_what_was_tampered*",
        ],
    ),
    Promise(
        "Who was erased is found nowhere but where docs say so",
        "a search for the id over every store, topic, log and metric",
        "searches",
        ["test_erasure_search.py::*", "test_record_forgotten.py::*"],
    ),
)


def selected(promises: Sequence[Promise] = PROMISES) -> Iterator[str]:
    """What pytest is given beside tests/security: files of other folders that promises name."""
    here = {path.name for path in (ROOT / "tests/security").glob("test_*.py")}
    for name in sorted({one.partition("::")[0] for p in promises for one in p.tests}):
        if name in here:
            continue
        (found,) = (ROOT / "tests").rglob(name)
        wanted = sorted(
            {one.partition("::")[2] for p in promises for one in p.tests if one.startswith(name)}
        )
        if wanted == ["*"]:
            yield str(found.relative_to(ROOT))
        else:
            for test in names_in(found):
                if any(fnmatchcase(test, one) for one in wanted):
                    yield f"{found.relative_to(ROOT)}::{test}"


def names_in(path: Path) -> list[str]:
    """Names of the tests in a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line[4:].partition("(")[0] for line in lines if line.startswith("def test_")]


def rows(report: Path) -> list[Row]:
    """How each promise went in a JUnit report. Raises ValueError for one that nothing tried."""
    cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 - pytest wrote it
    found = []
    for promise in PROMISES:
        mine = [case for case in cases if any(_is_of(case, one) for one in promise.tests)]
        if not mine:
            raise ValueError(f"nothing tried: {promise.text}")
        tried = sum(map(_tried, mine))
        held = sum(_tried(case) for case in mine if not _failed(case))
        found.append(Row(promise, tried, held))
    return found


def _is_of(case: ElementTree.Element, pattern: str) -> bool:
    file, _, test = pattern.partition("::")
    name = case.get("classname", "").rpartition(".")[2]
    stem = file.removesuffix(".py")
    return fnmatchcase(name, stem) and fnmatchcase(case.get("name", "").partition("[")[0], test)


def _tried(case: ElementTree.Element) -> int:
    told = [one.get("value") for one in case.iter("property") if one.get("name") == "tried"]
    return int(told[0] or 1) if told else 1


def _failed(case: ElementTree.Element) -> bool:
    return any(case.find(name) is not None for name in ("failure", "error", "skipped"))


def table(found: Sequence[Row]) -> str:
    """As Markdown."""
    lines = ["| promise | how it is tested | tried | held |", "|---|---|---:|---:|"]
    for row in found:
        one = row.promise
        lines.append(
            f"| {one.text} | {one.how} | {row.tried:,} {one.unit} | "
            f"{'all' if row.held == row.tried else f'**{row.held:,}**'} |"
        )
    return "\n".join(lines) + "\n"


def as_json(found: Sequence[Row], machine: Mapping[str, Any]) -> str:
    told = [
        {"promise": r.promise.text, "unit": r.promise.unit, "tried": r.tried, "held": r.held}
        for r in found
    ]
    return json.dumps({**machine, "promises": told}, indent=2) + "\n"


def put_into_page(text: str, page: Path = PAGE) -> None:
    """The table in docs/security.md, in the place of the one before."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}{text}{END}{after}", encoding="utf-8")
