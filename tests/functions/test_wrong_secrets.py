"""A store that refuses us at the start is told in `/readyz` and in the log, without the secret."""

from __future__ import annotations

import json
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from hosting import SETTINGS, Hosted, hosted

FOLDERS = ("query", "on-connect", "erase", "tournament", "on-wager")
SECRET = "not-the-password"
TOLD_SECONDS = 20.0


def with_user(url: str) -> str:
    """The same place, as somebody whom it does not know."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"nobody:{SECRET}@{parts.hostname}:{parts.port}").geturl()


def told_of(one: Hosted, dependency: str, word: str) -> str:
    """What `/readyz` says of a dependency, as soon as it has this word."""
    until = time.monotonic() + TOLD_SECONDS
    while True:
        answer = one.client.get("/readyz")
        said: str = answer.get_json()["dependencies"].get(dependency, "")
        if word in said:
            assert answer.status_code == 503
            assert SECRET not in answer.text
            return said
        assert time.monotonic() < until, answer.text
        time.sleep(0.05)


@pytest.mark.parametrize("folder", FOLDERS)
def test_wrong_secret_of_the_database_is_told(
    folder: str, redis_url: str, postgres: str, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {**SETTINGS, "REDIS_URL": redis_url, "DATABASE_URL": with_user(postgres)}
    with hosted(folder, settings) as one:
        said = told_of(one, "database", "does not let us in")
        one.client.get("/readyz")
    place = urlsplit(postgres)
    assert str(place.port) in said
    once_in_the_log("database", capfd.readouterr().err)


@pytest.mark.parametrize("folder", FOLDERS)
def test_wrong_secret_of_redis_is_told(
    folder: str, redis_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record = f"sqlite:///{tmp_path}/record"
    settings = {**SETTINGS, "REDIS_URL": with_user(redis_url), "DATABASE_URL": record}
    with hosted(folder, settings) as one:
        said = told_of(one, "redis", "does not let us in")
        one.client.get("/readyz")
    place = urlsplit(redis_url)
    assert f"{place.hostname}:{place.port}" in said
    once_in_the_log("redis", capfd.readouterr().err)


def once_in_the_log(dependency: str, text: str) -> None:
    assert SECRET not in text
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    reasons = [one["reason"] for one in lines if one["message"] == f"{dependency} is not ready"]
    # On a busy machine it may have been away first.
    assert len([one for one in reasons if "does not let us in" in one]) == 1


def test_store_that_is_only_away_stops_nobody_who_has_another(redis_url: str) -> None:
    with hosted("query", {**SETTINGS, "REDIS_URL": redis_url}) as one:
        for _ in range(10):
            assert one.client.get("/readyz").status_code == 200
            time.sleep(0.05)
