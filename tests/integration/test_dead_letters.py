"""`leaderboard dlq` by its real command: a topic and its dead letters in a real Kafka, and, where
something has to count, the whole local stack."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path as Folder
from typing import Any

import pytest

from leaderboard import events as ev
from leaderboard.codec import encode_kafka
from leaderboard.events import Record
from recording import Log, Recorder, garbage, running, sound
from running import command, wait_for
from whole_path import Path, event, header, schedule, unique, wager

Dlq = Callable[..., subprocess.CompletedProcess[str]]

KILLED_BEFORE_THE_MARKS = """
import os, signal, sys
from leaderboard.adapters.kafka_feed import KafkaFeed
from leaderboard.cli import main
send, calls = KafkaFeed.send, []
def once(self, records):
    if calls:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(1)
    send(self, records)
KafkaFeed.send = once
sys.argv = ["leaderboard", *sys.argv[1:]]
main()
"""


@pytest.fixture
def log(kafka: str) -> Log:
    return Log(kafka)


@pytest.fixture
def dlq(log: Log, tmp_path: Folder) -> Dlq:
    """`leaderboard dlq <what> --topic <the test's own> …`."""
    settings = {"KAFKA_BOOTSTRAP_SERVERS": log.servers}
    return lambda what, *words: command(
        ["dlq", what, "--topic", log.topic, *words], tmp_path, settings
    )


def refuse(log: Log, *records: Record) -> None:
    """Have the real host refuse them, whatever else lies in the topic."""
    before = log.buried()
    for record in records:
        log.send_record(record)
    with running(log, Recorder()):
        wait_for(lambda: log.buried() >= before + len(records), 20)


def listed(dlq: Dlq, *words: str) -> list[list[str]]:
    """The words of each row: place, reason, from, at, …"""
    done = dlq("list", *words)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()[1:-1]]


def in_topic(log: Log, count: int) -> list[Any]:
    """The first records of the topic itself."""
    from confluent_kafka import Consumer, TopicPartition

    reads = Consumer({"bootstrap.servers": log.servers, "group.id": "reads-only"})
    reads.assign([TopicPartition(log.topic, 0, 0)])
    found: list[Any] = []
    try:
        while len(found) < count:
            message = reads.poll(10)
            assert message is not None, f"only {len(found)} records"
            found.append(message)
    finally:
        reads.close()
    return found


def test_letters_are_listed_and_shown_by_what_is_known_of_them(log: Log, dlq: Dlq) -> None:
    other = sound(1)._replace(key=b"t2", value=b'{"tournament_id": "t2"}')
    hostile = garbage(2, "/\x1b[2J")
    refuse(log, garbage(0, "/a"), other, hostile)
    rows = listed(dlq)
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("0:0", "not_json", f"{log.topic}/0@0"),
        ("0:1", "schema", f"{log.topic}/0@1"),
        ("0:2", "bad_id", f"{log.topic}/0@2"),
    ]
    refused_at = rows[1][3]
    for words, places in (
        (("--reason", "schema"), ["0:1"]),
        (("--tournament", "t2"), ["0:1"]),
        (("--offset", "2"), ["0:2"]),
        (("--partition", "1"), []),
        (("--since", "1h"), ["0:0", "0:1", "0:2"]),
        (("--until", "1h"), []),
        (("--since", refused_at, "--reason", "schema"), ["0:1"]),
        (("--until", refused_at, "--reason", "schema"), []),
    ):
        assert [row[0] for row in listed(dlq, *words)] == places, words
    shown = dlq("show", "0:2")
    assert shown.returncode == 0
    assert "dlq_reason: bad_id" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert "key: t1" in shown.stdout
    for wrong in (
        ["show", "0:9"],
        ["replay", "0:9", "--yes"],
        ["list", "--since", "yesterday"],
        ["list", "--topic", "no-such-topic"],
        ["replay", "--offset", "1", "--everything", "--yes"],
    ):
        done = dlq(*wrong)
        assert done.returncode in (1, 2)
        assert done.stderr.strip()


def test_a_replayed_letter_leaves_the_list_and_comes_back_with_a_count(log: Log, dlq: Dlq) -> None:
    bad = garbage(7, "/a")
    refuse(log, bad)
    assert dlq("replay", "0:0", "--dry-run").returncode == 0
    asked = dlq("replay", "0:0")
    assert asked.returncode != 0, "nobody has said yes"
    assert len(listed(dlq)) == 1
    done = dlq("replay", "0:0", "--yes", "--by", "ann")
    assert done.returncode == 0, done.stderr
    assert "1 replayed" in done.stdout
    assert listed(dlq) == []
    assert "replayed" in listed(dlq, "--all")[0]
    assert "handled: replayed by ann at" in dlq("show", "0:0").stdout
    came, again = in_topic(log, 2)
    assert (again.key(), again.value()) == (came.key(), came.value())
    assert again.headers() == [*came.headers(), ("dlq_attempts", b"1")]
    with running(log, Recorder()):
        wait_for(lambda: log.committed() == 2, 20)
    (row,) = listed(dlq)
    assert row[:5] == ["0:2", "not_json", f"{log.topic}/0@1", row[3], "1"]
    refused = dlq("replay", "0:0", "--yes")
    assert refused.returncode == 1
    assert "replayed already" in refused.stderr
    assert dlq("replay", "0:0", "--yes", "--again").returncode == 0


def test_a_dropped_letter_is_sent_nowhere_and_stays_to_be_read(log: Log, dlq: Dlq) -> None:
    refuse(log, garbage(0, "/a"), garbage(1, "/a"), garbage(2, "/a"))
    done = dlq("drop", "--offset", "1", "--yes")
    assert done.returncode == 0, done.stderr
    assert [row[0] for row in listed(dlq)] == ["0:0", "0:2"]
    assert len(listed(dlq, "--all")) == 3
    assert "handled: dropped" in dlq("show", "0:1").stdout
    assert dlq("drop", "--yes").returncode == 2, "all of them by mistake"
    assert dlq("drop", "--yes", "--everything").returncode == 0
    assert listed(dlq) == []
    assert "nothing to do" in dlq("replay", "--everything", "--yes").stdout
    log.send_record(sound(9))
    assert [message.offset() for message in in_topic(log, 4)] == [0, 1, 2, 3]


def test_copies_of_a_letter_are_one_and_handled_as_one(log: Log, dlq: Dlq) -> None:
    """The host buries at least once: here the group was set back, as after a crash."""
    refuse(log, garbage(0, "/a"))
    log.group += "-again"
    with running(log, Recorder()):
        wait_for(lambda: log.buried() == 2, 20)
    assert [row[0] for row in listed(dlq)] == ["0:1"]
    assert dlq("replay", "--everything", "--yes").returncode == 0
    assert listed(dlq) == []
    assert len(in_topic(log, 2)) == 2


def test_many_are_replayed_in_the_order_in_which_they_came(log: Log, dlq: Dlq) -> None:
    refuse(log, *(garbage(n, "/a") for n in range(250)))
    done = dlq("replay", "--reason", "not_json", "--yes")
    assert "250 replayed" in done.stdout
    again = in_topic(log, 500)[250:]
    assert [dict(m.headers())["ce_id"] for m in again] == [b"e%d" % n for n in range(250)]


# over the whole stack


def early(path: Path, tournament_id: str, *events: ev.Event) -> None:
    """Send before the schedule: refused as of an unknown tournament."""
    before = len(path.dead_letters(tournament_id))
    path.publish(events)
    wait_for(lambda: len(path.dead_letters(tournament_id)) == before + len(events), 20)


def on_stack(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return command(["dlq", *words], path.stack.folder)


def scores(path: Path, tournament_id: str) -> dict[str, int]:
    return {row["player_id"]: row["score"] for row in path.standings(tournament_id)}


def replayed(path: Path, tournament_id: str, count: int) -> list[Record]:
    """The tournament's replayed events, once there are so many."""
    key = tournament_id.encode()

    def found() -> list[Record]:
        names = "dlq_attempts"
        return path.consumed(
            ev.WAGERS, lambda r: r.key == key and names in {name for name, _ in r.headers}
        )

    wait_for(lambda: len(found()) == count, 20)
    return found()


def test_a_replay_counts_once_however_often_and_wherever_it_is_killed(path: Path) -> None:
    tournament_id = unique("early")
    early(path, tournament_id, wager(tournament_id, "ann", 300), wager(tournament_id, "bob", 200))
    path.reached(tournament_id, path.publish([schedule(tournament_id)])[0].offset)
    words = ["replay", "--tournament", tournament_id, "--reason", "unknown_tournament", "--yes"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_THE_MARKS, "dlq", *words],
        cwd=path.stack.folder,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    replayed(path, tournament_id, 2)
    assert tournament_id in on_stack(path, "show", place(path, tournament_id)).stdout
    for more in ([], ["--again"]):
        done = on_stack(path, *words, *more)
        assert "2 replayed" in done.stdout, done.stderr
    last = replayed(path, tournament_id, 6)[-1]
    path.reached(tournament_id, path.publish([wager(tournament_id, "cat", 1)])[0].offset)
    assert last.offset > 0
    assert scores(path, tournament_id) == {"ann": 300, "bob": 200, "cat": 1}
    assert len({header(one, "ce_id") for one in replayed(path, tournament_id, 6)}) == 2


def place(path: Path, tournament_id: str) -> str:
    """Where the first dead letter of the tournament lies."""
    first = path.dead_letters(tournament_id)[0]
    return f"{first.partition}:{first.offset}"


def test_a_replay_into_a_tournament_that_is_over_wants_force_and_changes_nothing(
    path: Path,
) -> None:
    tournament_id = unique("over")
    early(path, tournament_id, wager(tournament_id, "ann", 300))
    ended = ev.TournamentEnded(tournament_id=tournament_id, decided_by="ops")
    log = [schedule(tournament_id), wager(tournament_id, "bob", 200), event(ended)]
    path.reached(tournament_id, path.publish(log)[-1].offset)
    words = ["replay", "--tournament", tournament_id, "--yes"]
    # By `query`, and without it by the directory.
    for settings in ({}, {"QUERY_URL": "http://127.0.0.1:1"}):
        refused = command(["dlq", *words], path.stack.folder, settings)
        assert refused.returncode == 1
        assert "are over" in refused.stderr
        assert "--force" in refused.stderr
    assert replayed(path, tournament_id, 0) == []
    done = on_stack(path, *words, "--force")
    assert "1 replayed" in done.stdout, done.stderr
    assert "tournament_ended" in done.stderr
    (came,) = replayed(path, tournament_id, 1)
    # Behind it in the same partition: what is read of this is after that.
    witness = witness_of(path, tournament_id)
    path.reached(witness, path.publish([schedule(witness)])[0].offset)
    assert came.offset > 0
    assert scores(path, tournament_id) == {"bob": 200}
    letters = [one for one in path.dead_letters(tournament_id) if one.value is not None]
    assert len(letters) == 1, "it was sound, and did not count"


def test_a_replay_of_what_happened_before_the_start_wants_force_until_the_schedule_is_right(
    path: Path,
) -> None:
    tournament_id = unique("early")
    early(path, tournament_id, wager(tournament_id, "ann", 300))
    words = ["replay", "--tournament", tournament_id, "--yes"]
    # As the command does it by default: from now on, which is after the wager.
    path.reached(tournament_id, path.publish([schedule(tournament_id, starts_in=3600)])[0].offset)
    for settings in ({}, {"QUERY_URL": "http://127.0.0.1:1"}):
        refused = command(["dlq", *words], path.stack.folder, settings)
        assert refused.returncode == 1
        assert "not_started" in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert replayed(path, tournament_id, 0) == []
    path.reached(tournament_id, path.publish([schedule(tournament_id)])[0].offset)
    done = on_stack(path, *words)
    assert "1 replayed" in done.stdout, done.stderr
    wait_for(lambda: scores(path, tournament_id) == {"ann": 300}, 20)


def witness_of(path: Path, tournament_id: str) -> str:
    """Another tournament in the same partition."""
    from leaderboard.partitioning import partition_of
    from leaderboard.stack.topics import LAPTOP_PARTITIONS

    home = partition_of(tournament_id.encode(), LAPTOP_PARTITIONS)
    while True:
        name = unique("witness")
        if partition_of(name.encode(), LAPTOP_PARTITIONS) == home:
            return name


def test_an_event_that_was_spoilt_on_its_way_is_replayed_as_it_came(path: Path) -> None:
    tournament_id = unique("spoilt")
    path.publish([schedule(tournament_id)])
    good = encode_kafka(wager(tournament_id, "ann", 5), ev.WAGERS)
    assert json.loads(good.value or b"")
    path.send([good._replace(value=b"{")])
    wait_for(lambda: len(path.dead_letters(tournament_id)) == 1, 20)
    assert "1 replayed" in on_stack(path, "replay", "--tournament", tournament_id, "--yes").stdout
    wait_for(lambda: len(path.dead_letters(tournament_id)) == 3, 20)
    letter, mark, again = path.dead_letters(tournament_id)
    marks = {one.value for one in (letter, mark, again)}
    assert marks == {b"{", None}
    told = on_stack(path, "list", "--tournament", tournament_id).stdout.splitlines()
    assert len(told) == 3
    assert told[1].split()[4] == "1"
