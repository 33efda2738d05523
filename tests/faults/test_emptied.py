"""Redis emptied while nothing happens: found without a wager, and rebuilt from the log."""

from __future__ import annotations

import pytest
import redis

from running import wait_for
from whole_path import Path, schedule, unique, wager


@pytest.mark.timeout(180)
def test_an_emptied_store_is_rebuilt_without_traffic_and_forgets_no_erasure(path: Path) -> None:
    tournament_id, player_id = unique("emptied"), unique("gone")
    entries = path.publish(
        [
            schedule(tournament_id),
            *(wager(tournament_id, f"p{i}", 100 + i) for i in range(50)),
            wager(tournament_id, player_id, 9_999),
        ]
    )
    path.reached(tournament_id, entries[-1].offset)
    erase = f"{path.settings['ERASE_URL']}/v1/erasures"
    asked = path.http.post(
        erase, json={"player_id": player_id}, headers=path.headers("operator")
    ).raise_for_status()
    wait_for(lambda: len(path.standings(tournament_id)) == 50, 10)
    before = path.standings(tournament_id)
    client = redis.Redis.from_url(path.settings["REDIS_URL"])
    client.flushall()
    assert path.sequence(tournament_id) < entries[-1].offset, "the fault did not bite"
    wait_for(lambda: path.sequence(tournament_id) > entries[-1].offset, 90)
    assert path.standings(tournament_id) == before

    def places() -> dict[str, str]:
        told = path.http.get(
            f"{erase}/{asked.json()['erasure_id']}", headers=path.headers("operator")
        )
        found: dict[str, str] = told.raise_for_status().json()["places"]
        return found

    # The board is there a moment before the request is.
    wait_for(lambda: places().get(f"board:{tournament_id}") == "done", 10)
    assert path.ticket(tournament_id, player_id).status_code == 403
