"""An audit says clean only where a source that knows something was asked about everything."""

from __future__ import annotations

from typing import Any

import pytest

from security.audit import CANARY, CLEAN, ROOT, UNKNOWN, VULNERABLE, Report, audit, pinned

LOCK = "a==1.0 \\\n    --hash=sha256:00\nb-c==2 ; python_version >= '3' \\\n    --hash=sha256:11\n"
FAULT = {"id": "PYSEC-1", "fix_versions": ["2.5"]}
SICK: Report = {"dependencies": [{"name": "jinja2", "version": "2.4", "vulns": [FAULT]}]}


def told(*packages: tuple[str, Any]) -> Report:
    return {"dependencies": [{"name": n, "version": "1", **how} for n, how in packages]}


def source(report: Report | None, canary: Report | None = SICK) -> Any:
    return lambda name, packages: canary if packages == CANARY else report


WELL: dict[str, Any] = {"vulns": []}
SKIPPED: dict[str, Any] = {"skip_reason": "not found"}


@pytest.mark.parametrize(
    ("ask", "code", "says"),
    [
        (source(told(("a", WELL), ("b-c", WELL))), CLEAN, "2 packages, no advisory"),
        (source(told(("a", WELL), ("b-c", {"vulns": [FAULT]}))), VULNERABLE, "PYSEC-1"),
        (source(told(("a", SKIPPED), ("b-c", SKIPPED))), UNKNOWN, "does not know it"),
        (source(told(("a", WELL), ("b-c", SKIPPED))), UNKNOWN, "b-c"),
        (source(told(("a", WELL))), UNKNOWN, "of 2 packages 1"),
        (source(told(("a", WELL), ("b-c", WELL)), canary=None), UNKNOWN, "nothing was audited"),
        (
            source(told(("a", WELL), ("b-c", WELL)), canary=told(("jinja2", SKIPPED))),
            UNKNOWN,
            "nothing was audited",
        ),
        (source(None), UNKNOWN, "nothing was audited"),
    ],
)
def test_verdict(ask: Any, code: int, says: str) -> None:
    found, lines = audit(LOCK, ("one", "other"), ask)
    assert found == code
    assert says in "\n".join(lines)


def test_second_source_is_asked_where_the_first_is_away() -> None:
    well = source(told(("a", WELL), ("b-c", WELL)))

    def ask(name: str, packages: str) -> Report | None:
        found: Report | None = well(name, packages) if name == "other" else None
        return found

    assert audit(LOCK, ("one", "other"), ask)[0] == CLEAN


def test_every_package_of_the_lock_is_asked_about() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    names = pinned(lock)
    assert len(names) == lock.count("==") - lock.count("python_version ==")
    assert len(names) > 80
    assert any(name.startswith("sqlalchemy==") for name in names)
