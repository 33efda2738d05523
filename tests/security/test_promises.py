"""The table of promises names tests that exist, and so does the threat model."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import pytest

from security.promises import (
    BEGIN,
    END,
    PAGE,
    PROMISES,
    ROOT,
    Promise,
    names_in,
    put_into_page,
    rows,
    selected,
    table,
)

MODEL: Final = ROOT / "docs/threat-model.md"
NAMED: Final = re.compile(r"`(test_\w+)`")
ARROWS: Final = re.compile(r"^### (\d+)\. ", re.MULTILINE)
STRIDE: Final = ("S", "T", "R", "I", "D", "E")


def all_tests() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        # Two folders may have files of one name.
        found.setdefault(path.name, []).extend(names_in(path))
    return found


@pytest.mark.parametrize("promise", PROMISES, ids=lambda one: one.text[:40])
def test_tests_of_a_promise_exist(promise: Promise) -> None:
    known = all_tests()
    for pattern in promise.tests:
        file, _, name = pattern.partition("::")
        assert file in known, pattern
        assert any(fnmatchcase(test, name) for test in known[file]), pattern


def test_what_is_run_beside_the_folder_is_there() -> None:
    found = list(selected())
    assert "tests/integration/test_kafka_access.py" in found
    assert all((ROOT / one.partition("::")[0]).exists() for one in found)
    assert any("::test_page_keeps_to_its_own_policy" in one for one in found)


def threats(text: str) -> list[list[str]]:
    """The rows of the model's tables: letter, threat, control, tests."""
    lines = [line for line in text.splitlines() if re.match(r"\| [STRIDE] \|", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def wrong_with(text: str) -> list[str]:
    """What the threat model says that is not so."""
    known = {test for tests in all_tests().values() for test in tests}
    wrong = []
    for row in threats(text):
        named = NAMED.findall(row[3])
        if not named and not row[3].startswith("not tested: "):
            wrong.append(f"no test, and no reason: {row[1]}")
        wrong += [f"no such test: {name}" for name in named if name not in known]
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        letters = [row[0] for row in threats(section)]
        if set(letters) != set(STRIDE):
            wrong.append(f"not all of STRIDE: {section.splitlines()[0]}")
    return wrong


def test_every_threat_has_a_control_and_a_test_that_exists() -> None:
    text = MODEL.read_text(encoding="utf-8")
    assert len(ARROWS.findall(text)) >= 12
    assert len(threats(text)) > 70
    assert not wrong_with(text)


def test_a_model_that_names_nothing_is_found() -> None:
    text = MODEL.read_text(encoding="utf-8")
    assert wrong_with(text.replace("`test_", "`test_no_such_", 1))
    first = threats(text)[0]
    assert wrong_with(text.replace(first[3], "", 1))
    assert wrong_with(text.replace("\n| S |", "\n| T |", 1))


def case_of(promise: Promise, tried: int) -> str:
    file, _, name = promise.tests[0].partition("::")
    module, test = file.removesuffix(".py"), name.replace("*", "")
    told = f'<properties><property name="tried" value="{tried}"/></properties>'
    return f'<testcase classname="tests.x.{module}" name="{test}[1]">{told}</testcase>'


def test_report_is_read_and_written_into_the_page(tmp_path: Path) -> None:
    whole = "".join(case_of(p, 7 + n) for n, p in enumerate(PROMISES))
    whole = f"<testsuites><testsuite>{whole}</testsuite></testsuites>"
    report = tmp_path / "report.xml"
    report.write_text(whole)
    found = rows(report)
    assert found[0].tried == 7
    assert all(row.tried == row.held for row in found)
    report.write_text(whole.replace("</properties>", "</properties><failure/>", 1))
    assert rows(report)[0].held == 0
    assert "**0**" in table(rows(report))
    report.write_text("<testsuites/>")
    with pytest.raises(ValueError, match="nothing tried"):
        rows(report)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old\n{END}\nafter\n")
    put_into_page("new\n", page)
    assert page.read_text() == f"before\n{BEGIN}new\n{END}\nafter\n"
    assert BEGIN in PAGE.read_text(encoding="utf-8")
