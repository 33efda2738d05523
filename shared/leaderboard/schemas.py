"""JSON Schemas of the events' data. `python -m leaderboard.schemas FOLDER` writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from leaderboard.events import TOPICS, TYPE_PREFIX


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema of every event's data, by its name in the contract."""
    return {
        name: {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **model.model_json_schema(mode="validation"),
            "title": f"{TYPE_PREFIX}{name}.v1",
        }
        for models in TOPICS.values()
        for name, model in models.items()
    }


def files() -> dict[str, str]:
    """The text of every schema file, by its name; the same for the same models."""
    return {
        f"{name}.v1.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in schemas().items()
    }


def write(folder: Path) -> None:
    """Make `folder` hold exactly these schemas."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = files()
    for stale in set(folder.glob("*.json")) - {folder / name for name in wanted}:
        stale.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/schemas"))
