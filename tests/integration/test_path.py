"""A wager reaches a player's screen, and everything around it, over the whole local stack."""

from __future__ import annotations

import os
import signal
import time

from leaderboard import events as ev
from leaderboard.codec import encode_http
from running import wait_for
from whole_path import Path, Socket, event, schedule, unique, wager


def test_a_wager_by_kafka_and_one_by_http_stand_on_the_same_board(path: Path) -> None:
    tournament_id = unique("both")
    entries = path.publish([schedule(tournament_id), wager(tournament_id, "alice", 500)])
    path.reached(tournament_id, entries[-1].offset)
    headers, body = encode_http(wager(tournament_id, "bob", 700))
    answer = path.http.post(
        path.settings["ON_WAGER_URL"], content=body, headers=headers | path.headers("service")
    )
    assert answer.status_code == 202, answer.text
    path.reached(tournament_id, answer.json()["offset"])
    rows = path.standings(tournament_id)
    assert [(r["rank"], r["player_id"], r["score"]) for r in rows] == [
        (1, "bob", 700),
        (2, "alice", 500),
    ]


def test_a_wager_moves_the_frames_of_its_player_and_of_everyone(path: Path) -> None:
    tournament_id = unique("frames")
    entries = path.publish(
        [
            schedule(tournament_id),
            wager(tournament_id, "alice", 500),
            wager(tournament_id, "bob", 700),
        ]
    )
    path.reached(tournament_id, entries[-1].offset)
    wait_for(lambda: len(path.changes(tournament_id)) == 2, 10)
    alice = path.socket(tournament_id, "alice")
    try:
        wait_for(lambda: bool(alice.of_type("top")), 10)
        moved = path.publish([wager(tournament_id, "alice", 1000)])[0]
        wait_for(lambda: bool(alice.of_type("position")), 10)
        frame = alice.of_type("position")[0]
        assert frame == {
            "type": "position",
            "tournament_id": tournament_id,
            "sequence": moved.offset,
            "old_rank": 2,
            "new_rank": 1,
            "score": 1500,
            "distance": None,
            "milestone": None,
        }
        wait_for(lambda: alice.of_type("top")[-1]["sequence"] >= moved.offset, 10)
        wait_for(lambda: _newest_curve(alice) >= moved.offset, 10)
        assert alice.of_type("curve")[-1]["points"] == [[1, 1500], [2, 700]]
        top = alice.of_type("top")[-1]
        assert top["standings"] == [[1, "alice", "al***ce", 1500], [2, "bob", "b***", 700]]
        assert (top["players"], top["version"]) == (2, moved.offset)
    finally:
        alice.close()


def _newest_curve(socket: Socket) -> int:
    frames = socket.of_type("curve")
    return int(frames[-1]["sequence"]) if frames else -1


def test_top_comes_again_on_a_quiet_tournament(path: Path) -> None:
    tournament_id = unique("quiet")
    entries = path.publish([schedule(tournament_id), wager(tournament_id, "alice", 500)])
    path.reached(tournament_id, entries[-1].offset)
    socket = path.socket(tournament_id, "alice")
    try:
        wait_for(lambda: len(socket.of_type("top")) >= 2, 15)
    finally:
        socket.close()


def test_top_is_coalesced_to_four_a_second(path: Path) -> None:
    tournament_id = unique("burst")
    path.publish([schedule(tournament_id), wager(tournament_id, "alice", 500)])
    socket = None
    try:
        wait_for(lambda: path.sequence(tournament_id) >= 0, 10)
        socket = path.socket(tournament_id, "alice")
        wait_for(lambda: bool(socket.of_type("top")), 10)
        before, started = len(socket.of_type("top")), time.monotonic()
        while time.monotonic() < started + 3:
            path.publish([wager(tournament_id, f"p{i}", i + 1) for i in range(50)])
        elapsed = time.monotonic() - started
        sent = len(socket.of_type("top")) - before
        assert sent <= 4 * elapsed + 2
        last = path.publish([wager(tournament_id, "alice", 1)])[0]
        wait_for(lambda: socket.of_type("top")[-1]["sequence"] >= last.offset, 10)
        versions = [frame["version"] for frame in socket.of_type("top")]
        assert versions == sorted(versions)
    finally:
        if socket is not None:
            socket.close()


def test_newest_connection_wins_and_the_one_before_is_closed(path: Path) -> None:
    tournament_id = unique("newest")
    entries = path.publish([schedule(tournament_id), wager(tournament_id, "alice", 500)])
    path.reached(tournament_id, entries[-1].offset)
    first = path.socket(tournament_id, "alice")
    wait_for(lambda: bool(first.of_type("top")), 10)
    second = path.socket(tournament_id, "alice")
    wait_for(first.is_closed, 10)
    wait_for(lambda: bool(second.of_type("top")), 10)
    time.sleep(1.5)
    assert not second.is_closed()
    second.close()


def test_a_ticket_is_good_once(path: Path) -> None:
    tournament_id = unique("once")
    entries = path.publish([schedule(tournament_id), wager(tournament_id, "alice", 500)])
    path.reached(tournament_id, entries[-1].offset)
    url = path.ticket(tournament_id, "alice").json()["url"]
    path.players.connect(url).close()
    assert path.players.refused(url) == 403


def test_an_erasure_waits_for_events_that_are_on_their_way(path: Path) -> None:
    tournament_id, player_id = unique("lag"), unique("late")
    scheduled = path.publish([schedule(tournament_id)])[0]
    path.reached(tournament_id, scheduled.offset)
    pid = int(path.stack.env()["PID_ON_WAGER_1"])
    url, operator = f"{path.settings['ERASE_URL']}/v1/erasures", path.headers("operator")
    os.kill(pid, signal.SIGSTOP)
    try:
        last = path.publish([wager(tournament_id, player_id, 777), wager(tournament_id, "bob", 1)])[
            -1
        ]
        asked = path.http.post(url, json={"player_id": player_id}, headers=operator).json()
        told = path.http.get(f"{url}/{asked['erasure_id']}", headers=operator).json()
        assert told["state"] == "pending"
    finally:
        os.kill(pid, signal.SIGCONT)
    path.reached(tournament_id, last.offset + 1)
    assert [row["player_id"] for row in path.standings(tournament_id)] == ["bob"]

    def state() -> str:
        answer = path.http.get(f"{url}/{asked['erasure_id']}", headers=operator)
        return str(answer.raise_for_status().json()["state"])

    wait_for(lambda: state() == "done", 40)


def test_every_connection_attempt_is_recorded(path: Path) -> None:
    tournament_id = unique("recorded")
    entries = path.publish([schedule(tournament_id), wager(tournament_id, "alice", 500)])
    path.reached(tournament_id, entries[-1].offset)
    path.socket(tournament_id, "alice").close()
    key = tournament_id.encode()

    def decided() -> list[ev.ConnectionDecided]:
        records = path.consumed(ev.CONNECTIONS, lambda r: r.key == key)
        return [ev.ConnectionDecided.model_validate_json(r.value or b"") for r in records]

    wait_for(lambda: any(one.allowed and one.address for one in decided()), 10)
    assert {one.player_id for one in decided()} == {"alice"}


def test_an_erased_player_disappears_everywhere_and_stays_out(path: Path) -> None:
    tournament_id, player_id = unique("erase"), unique("p")
    entries = path.publish(
        [
            schedule(tournament_id),
            wager(tournament_id, player_id, 900),
            wager(tournament_id, "bob", 100),
        ]
    )
    path.reached(tournament_id, entries[-1].offset)
    socket = path.socket(tournament_id, player_id)
    wait_for(lambda: bool(socket.of_type("top")), 10)
    url, operator = f"{path.settings['ERASE_URL']}/v1/erasures", path.headers("operator")
    asked = path.http.post(url, json={"player_id": player_id}, headers=operator)
    assert asked.status_code == 202, asked.text
    erasure_id = asked.json()["erasure_id"]
    again = path.http.post(url, json={"player_id": player_id}, headers=operator)
    assert again.json()["erasure_id"] == erasure_id
    wait_for(socket.is_closed, 10)
    wait_for(lambda: len(path.standings(tournament_id)) == 1, 10)

    def places() -> dict[str, str]:
        answer = path.http.get(f"{url}/{erasure_id}", headers=operator).raise_for_status()
        found: dict[str, str] = answer.json()["places"]
        return found

    wait_for(lambda: set(places().values()) == {"done"}, 10)
    assert f"board:{tournament_id}" in places()
    late = path.publish([wager(tournament_id, player_id, 50), wager(tournament_id, "bob", 1)])
    path.reached(tournament_id, late[-1].offset)
    assert [row["player_id"] for row in path.standings(tournament_id)] == ["bob"]
    told = path.consumed(ev.GDPR_EVENTS, lambda r: player_id.encode() in (r.value or b""))
    assert len(told) >= 1
    refused = path.ticket(tournament_id, player_id)
    assert refused.status_code == 403


def test_a_tournament_is_scheduled_started_and_ended_by_operators_and_the_clock(
    path: Path,
) -> None:
    from datetime import UTC, datetime, timedelta

    tournament_id = unique("clock")
    starts_at = datetime.now(UTC) + timedelta(seconds=2)
    body = {
        "tournament_id": tournament_id,
        "name": "Clock Cup",
        "starts_at": starts_at.isoformat(),
        "ends_at": (starts_at + timedelta(hours=1)).isoformat(),
        "rules": {"scoring": {"kind": "stake"}, "currency": "EUR"},
    }
    url, operator = path.settings["TOURNAMENT_URL"], path.headers("operator")
    made = path.http.post(f"{url}/v1/tournaments", json=body, headers=operator)
    assert made.status_code == 201, made.text

    def state() -> str:
        return str(path.get(f"/v1/tournaments/{tournament_id}").json()["state"])

    assert state() == "scheduled"
    early = path.publish([wager(tournament_id, "alice", 5)])[0]
    wait_for(lambda: state() == "running", 15)
    counted = path.publish([wager(tournament_id, "alice", 7)])[0]
    path.reached(tournament_id, counted.offset)
    assert [row["score"] for row in path.standings(tournament_id)] == [7]
    assert early.offset < counted.offset
    ended = path.http.post(f"{url}/v1/tournaments/{tournament_id}/end", json={}, headers=operator)
    assert ended.status_code == 202, ended.text
    wait_for(lambda: state() == "ended", 10)
    path.publish([wager(tournament_id, "alice", 9)])
    time.sleep(1)
    assert [row["score"] for row in path.standings(tournament_id)] == [7]


def test_reads_say_what_the_contract_says(path: Path) -> None:
    tournament_id = unique("reads")
    names = [f"p{i:02d}" for i in range(20)]
    path.publish(
        [schedule(tournament_id), *(wager(tournament_id, p, 1000 - i) for i, p in enumerate(names))]
    )
    joined = path.publish(
        [
            event(
                ev.PlayerJoined(
                    tournament_id=tournament_id, player_id="p05", display_name="Fünf <b>"
                )
            )
        ]
    )[0]
    path.reached(tournament_id, joined.offset)
    base = f"/v1/tournaments/{tournament_id}"
    page = path.get(f"{base}/standings?limit=3&after_rank=4", "player", "p05")
    assert page.headers["etag"].strip('W/"') == str(joined.offset)
    body = page.json()
    assert (body["source"], body["players"], body["sequence"]) == ("board", 20, joined.offset)
    assert [(r["rank"], r["display_name"]) for r in body["standings"]] == [
        (5, "p***"),
        (6, "Fünf <b>"),
        (7, "p***"),
    ]
    own = path.get(f"{base}/players/p05", "player", "p05").json()
    assert (own["rank"], own["score"], own["distance"]) == (6, 995, 1)
    assert own["percentile"] == round(100 * 14 / 19, 2)
    assert path.get(f"{base}/players/p06", "player", "p05").status_code == 403
    around = path.get(f"{base}/players/p05/around?radius=2", "player", "p05").json()
    assert [r["rank"] for r in around["standings"]] == [4, 5, 6, 7, 8]
    assert path.get(f"{base}/standings?limit=1001").status_code in (400, 422)
    assert path.get("/v1/tournaments/nobody-knows").status_code == 404
    assert path.http.get(f"{path.settings['QUERY_URL']}{base}").status_code == 401
    listed = path.get("/v1/tournaments?state=running").json()
    assert tournament_id in str(listed)
