"""The published OpenAPI documents: fresh, sound, and what the functions themselves tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from hosting import hosted
from leaderboard.cli import api_documents

FOLDER = Path(__file__).parents[2] / "docs/api"
FUNCTIONS = ("erase", "on-connect", "on-wager", "query", "tournament")


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return api_documents.files()


def test_published_documents_are_fresh(generated: dict[str, str]) -> None:
    """If not: `leaderboard openapi` writes them."""
    published = {path.name: path.read_text("utf-8") for path in FOLDER.glob("openapi-*.json")}
    assert published == generated


def test_every_function_that_speaks_http_has_one(generated: dict[str, str]) -> None:
    assert sorted(generated) == sorted(f"openapi-{name}.json" for name in FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_document_is_sound_and_the_one_that_is_served(name: str, generated: dict[str, str]) -> None:
    document = json.loads(generated[f"openapi-{name}.json"])
    OpenAPIV31SpecValidator(document).validate()
    with hosted(name) as one:
        assert one.client.get("/openapi.json").get_json() == document


def test_writing_replaces_what_is_stale(tmp_path: Path, generated: dict[str, str]) -> None:
    (tmp_path / "openapi-old.json").write_text("{}")
    api_documents.write(tmp_path)
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == generated
