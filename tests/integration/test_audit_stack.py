"""The audit of what the real stack wrote: archive's log, PostgreSQL, Redis, after a Formula 1
season and a play with joins, disqualifications, erasures, ends and late events."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path as FilePath

from integration.test_f1 import read_results, round_events, season_schedule
from leaderboard import events as ev
from leaderboard.adapters import sql_engine
from leaderboard.adapters.sql_record import SqlRecord
from leaderboard.model import TournamentId
from running import command, wait_for
from whole_path import Path, event, schedule, unique, wager

SEASON = 2024
VERIFIER = FilePath(__file__).parents[2] / "docs/audit/verify.py"
CAUGHT_UP_SECONDS = 120.0


def season(name: str) -> list[ev.Event]:
    found = [season_schedule(name, SEASON)]
    for at, results in sorted(read_results().items()):
        if at[0] == SEASON:
            found += round_events(name, at, results)
    return [*found, event(ev.TournamentEnded(tournament_id=name, decided_by="steward"))]


def play(path: Path, name: str) -> list[ev.Event]:
    """Wagers with all that may come between them; two players are erased on the way."""
    chance = random.Random(7)
    players = [f"{name[-6:]}-{number}" for number in range(30)]
    events = [schedule(name)]
    for number in range(400):
        who = chance.choice(players)
        roll = chance.random()
        if roll < 0.08:
            data: ev.Data = ev.PlayerJoined(
                tournament_id=name, player_id=who, display_name=f"Name {number}"
            )
            events.append(event(data))
        elif roll < 0.10:
            events.append(
                event(
                    ev.PlayerDisqualified(
                        tournament_id=name, player_id=who, reason="x", decided_by="op"
                    )
                )
            )
        elif roll < 0.14:
            late = int(time.time() * 1000) - 7_200_000
            events.append(wager(name, who, 5, time_ms=late))
        elif roll < 0.20:
            events.append(chance.choice(events[1:] or events))
        else:
            events.append(wager(name, who, chance.randint(1, 500)))
    path.publish(events)
    for who in players[:2]:
        erase(path, who)
    path.publish([wager(name, who, 9) for who in players[:4]])
    return events


def erase(path: Path, player_id: str) -> None:
    url = f"{path.settings['ERASE_URL']}/v1/erasures"
    asked = path.http.post(
        url, json={"player_id": player_id}, headers=path.headers("operator")
    ).raise_for_status()
    erasure_id = asked.json()["erasure_id"]

    def is_gone() -> bool:
        answer = path.http.get(f"{url}/{erasure_id}", headers=path.headers("operator")).json()
        return all(state == "done" for place, state in answer["places"].items() if place != "audit")

    wait_for(is_gone, CAUGHT_UP_SECONDS)


def audit(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = command(["audit", *words], path.stack.folder)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def faults(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What was found, but for the boards that the tests of `rebuild` spoil by hand and let wagers
    come to: their changes are not what the inputs give, and are told."""
    lines = [line for line in done.stdout.splitlines() if line.startswith("fault:")]
    return [line for line in lines if "(rebuilt-" not in line and "of rebuilt-" not in line]


def test_season_and_a_wild_play_are_verified_rebuilt_and_proved(
    path: Path, tmp_path: FilePath
) -> None:
    f1, cup = unique("f1"), unique("cup")
    events = season(f1)
    last = path.publish(events)[-1].offset
    play(path, cup)
    end = path.publish([event(ev.TournamentEnded(tournament_id=cup, decided_by="op"))])[0].offset
    after = path.publish([wager(cup, "late-comer", 5)])[0].offset
    engine = sql_engine.connect(path.settings["DATABASE_URL"])
    try:
        record = SqlRecord(engine)
        for name, at in ((f1, last), (cup, end)):
            key = TournamentId(name)
            wait_for(
                lambda key=key, at=at: record.sequences([key]).get(key) == at,  # type: ignore[misc]
                CAUGHT_UP_SECONDS,
            )
    finally:
        engine.dispose()
    assert after > end

    done = audit(path, "verify")
    assert done.returncode == 0, done.stdout
    done = audit(path, "rebuild", "--late", "5", "--show", "100000")
    assert [line for line in faults(done) if "board of" not in line] == []
    assert [line for line in faults(done) if f1 in line or cup in line] == []
    alone = audit(path, "rebuild", "--log-only", "--late", "5", "--show", "100000")
    assert faults(alone) == []
    assert "inputs of" in alone.stdout

    chosen = random.Random(3).choice(events[1:-1])
    file = tmp_path / "wager.tlog-proof"
    done = audit(
        path, "prove", "--source", chosen.source, "--id", chosen.id, "--tournament", f1,
        "--out", str(file),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    clean = tmp_path / "clean"
    clean.mkdir()
    shutil.copy(VERIFIER, clean)
    shutil.move(file, clean / file.name)
    (clean / "key.txt").write_text(path.settings["AUDIT_PUBLIC_KEY"], encoding="utf-8")
    proved = subprocess.run(
        [sys.executable, "-I", "verify.py", file.name, "key.txt"],
        cwd=clean, env={}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (proved.returncode, proved.stderr) == (0, ""), proved.stderr
    assert f'"tournament":"{f1}"' in proved.stdout
