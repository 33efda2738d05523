"""The README names what is there: every setting that the code reads, every folder and file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from leaderboard.adapters.sql_retention import POLICIES
from leaderboard.stack.functions import FUNCTIONS, SERVER_PORTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
LINKS = sorted(
    link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")
)


def settings_read() -> set[str]:
    names = {one.port_setting for one in FUNCTIONS} | SERVER_PORTS.keys()
    for folder in ("shared", "functions", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text("utf-8")
            if folder != "tests":
                names |= set(re.findall(r'alias="([A-Z][A-Z_]+)"', text))
            found = r'(?:environ|settings)\.get\(\s*"([A-Z][A-Z_]+)"'
            names |= set(re.findall(found, text))
    return names


def test_every_setting_is_described() -> None:
    described = set(re.findall(r"`([A-Z][A-Z_]+)`", README))
    assert settings_read() - described == set()


@pytest.mark.parametrize("link", LINKS)
def test_every_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.parametrize(
    "main", sorted((ROOT / "functions").glob("*/main.py")), ids=lambda path: path.parent.name
)
def test_every_function_is_in_the_table(main: Path) -> None:
    assert f"| [`{main.parent.name}`](functions/{main.parent.name}) |" in README


def test_players_are_told_how_long_the_record_keeps_what_is_theirs() -> None:
    """docs/privacy.md says what `leaderboard record retention` does."""
    page = (ROOT / "docs/privacy.md").read_text("utf-8")
    policy = POLICIES["default"]
    kept = {
        "connection_attempts": f"{policy.connection_attempts} days",
        "dead_letters": f"{policy.dead_letters} days",
    }
    for table, days in kept.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| SQL `{table}`")]
        assert row.split("|")[5].strip().startswith(days), table
    assert f"{policy.tournaments // 365} years after a tournament's end" in page.replace("\n", " ")
