"""Every fault of the runner: how it strikes and when it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from faults.bites import (
    BITES,
    DidNotBiteError,
    Fault,
    Trial,
    at_work,
    boards_wait,
    log_waits,
    record_waits,
    sockets_cut,
)
from faults.cluster_kinds import CLUSTER_FAULTS
from faults.scene import SESSION_MS
from leaderboard import events as ev
from leaderboard.stack.functions import FUNCTIONS
from leaderboard.stack.kafka_jars import project_root
from leaderboard.stack.process import Process, free_port
from running import wait_for

# --- processes --------------------------------------------------------------------------------


SLOW: Final = ("erase", "tournament")
"""Operators insist with long breaths."""


def kill(service: str) -> Fault:
    def strike(trial: Trial) -> str:
        pid = trial.scene.kill(service)
        with at_work(trial, service):
            bite = (sockets_cut if service == "gateway" else BITES[service])(trial)
            trial.scene.wait_back(service, pid)
        return bite

    return Fault(f"kill {service}", strike, slow=service in SLOW)


def stop(service: str) -> Fault:
    def strike(trial: Trial) -> str:
        with contextlib.ExitStack() as stack:
            stopped = trial.scene.stopped(service)
            stopped.__enter__()
            try:
                stack.enter_context(at_work(trial, service))
                bite = BITES[service](trial)
            finally:
                stopped.__exit__(None, None, None)
        return bite

    return Fault(f"stop {service}", strike, slow=service in SLOW)


def outstay(service: str) -> Fault:
    """Stopped for longer than its session: another one owns its partitions when it wakes up with
    a batch in its hands."""

    def strike(trial: Trial) -> str:
        with trial.scene.stopped(service):
            bite = BITES[service](trial)
            time.sleep(SESSION_MS / 1000 + 0.5)
        return f"{bite}; woke up {SESSION_MS + 500} ms later, past its session"

    return Fault(f"outstay {service}", strike)


# --- links ------------------------------------------------------------------------------------


def link_bite(name: str) -> Callable[[Trial], str]:
    function, _, store = name.partition("/")
    if name == "kafka":
        return boards_wait
    if (function, store) == ("on-wager", "postgres"):
        return lambda trial: "the record was out of reach"
    if function == "archive" and store == "redis":
        return lambda trial: "the boards were out of reach of the comparison"
    return BITES[function]


def cut(name: str) -> Fault:
    def strike(trial: Trial) -> str:
        link = trial.scene.links[name]
        broken = link.cut()
        try:
            if not broken:
                raise DidNotBiteError("no connection was open")
            bite = link_bite(name)(trial)
            time.sleep(trial.chance.uniform(0, 0.5))
        finally:
            link.resume()
        return f"{broken} connections reset; {bite}"

    return Fault(f"cut {name}", strike)


def hang(name: str) -> Fault:
    def strike(trial: Trial) -> str:
        link = trial.scene.links[name]
        held = link.hang()
        try:
            if not held:
                raise DidNotBiteError("no connection was open")
            bite = link_bite(name)(trial)
            time.sleep(trial.chance.uniform(0, 1.5))
        finally:
            link.resume()
        return f"{held} connections silent; {bite}"

    return Fault(f"hang {name}", strike)


def slow(name: str) -> Fault:
    def strike(trial: Trial) -> str:
        link = trial.scene.links[name]
        link.slow(trial.chance.uniform(0.1, 0.4))
        before = link.passed
        try:
            time.sleep(2)
        finally:
            link.resume()
        if not (late := link.passed - before):
            raise DidNotBiteError("nothing passed")
        return f"{late} bytes came late"

    return Fault(f"slow {name}", strike)


# --- stores -----------------------------------------------------------------------------------


def empty_redis(trial: Trial) -> str:
    before = trial.boards()
    trial.scene.single.flushall()
    lost = sum(at >= 0 for at in before.values())
    if not lost:
        raise DidNotBiteError("there was no board")
    return f"{lost} boards of this trial were gone, and all others"


SNAPSHOT: Final = """
local all = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  all[#all + 1] = key
  all[#all + 1] = redis.call('DUMP', key)
  all[#all + 1] = redis.call('PEXPIRETIME', key)
end
return all
"""
"""In one step: a replica is never behind with one key of a board and not with another."""


def lose_tail(seconds: float) -> Callable[[Trial], str]:
    """What a failover to a replica that was behind does: all keys are, in one step, what they
    were some time ago, and every connection ends."""

    def strike(trial: Trial) -> str:
        client = trial.scene.single
        found: Any = client.eval(SNAPSHOT, 0)
        before = trial.boards()
        time.sleep(seconds)
        back = client.pipeline(transaction=True)
        for name in trial.play.tournaments:
            back.hget(f"{{{name}}}:board", "offset")
        back.flushall()
        for key, value, expires in zip(found[::3], found[1::3], found[2::3], strict=True):
            back.restore(key, max(expires, 0), value, absttl=expires > 0)
        answers = back.execute()
        acknowledged = [int(at or -1) for at in answers[: len(trial.play.tournaments)]]
        client.client_kill_filter(_type="normal", skipme=True)
        lost = sum(max(0, a - b) for a, b in zip(acknowledged, before.values(), strict=True))
        if not lost:
            raise DidNotBiteError("no board had gone on")
        behind = sum(a > b for a, b in zip(acknowledged, before.values(), strict=True))
        return f"{behind} boards fell back, by {lost} offsets in all"

    return strike


def restart_kafka(trial: Trial) -> str:
    """As an operator does: it is asked to stop, and comes again."""
    pid = trial.scene.pids("kafka")[0]
    os.kill(pid, signal.SIGTERM)
    sent = trial.play.counts["acked"]
    wait_for(lambda: trial.scene.is_back("kafka", pid), 30)
    acked = trial.play.counts["acked"] - sent
    return f"{log_waits(trial)}; {acked} while it went down"


def fill_disk(trial: Trial) -> str:
    """The volume that holds the record's inputs and standings has no room left."""
    small = trial.scene.small_disk
    if small is None:
        raise DidNotBiteError("a file system of our own can't be mounted here")
    filler = small / "filler"
    with filler.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 65_536)
            file.flush()
    try:
        return record_waits_long(trial)
    finally:
        filler.unlink()


def record_waits_long(trial: Trial) -> str:
    """Half-filled pages take some wagers more."""
    for _ in range(15):
        with contextlib.suppress(DidNotBiteError):
            return record_waits(trial)
    raise DidNotBiteError("there was room all the time")


# --- groups and clocks ------------------------------------------------------------------------


@contextmanager
def another(trial: Trial, name: str, group: str | None = None) -> Iterator[Process]:
    """One more process of a function that reads Kafka, in its group or in one of its own."""
    function = next(one for one in FUNCTIONS if one.name == name)
    port = free_port()
    settings = {k: v for k, v in trial.scene.settings.items() if not k.startswith("PID_")}
    environ = function.environ(settings, port)
    environ |= {"KAFKA_SESSION_TIMEOUT_MS": str(SESSION_MS), "HOST": "127.0.0.1"}
    if group is not None:
        environ["KAFKA_GROUP_ID"] = group
    log_path = trial.scene.folder / f"another-{name}-{port}.log"
    process = Process(name, function.command(project_root(), port), log_path=log_path,
                      environ=environ)  # fmt: skip
    process.start()
    try:
        yield process
    finally:
        process.stop(10)


def admin_of(trial: Trial) -> AdminClient:
    return AdminClient(
        {"bootstrap.servers": trial.scene.settings["KAFKA_BOOTSTRAP_SERVERS"], "log_level": 0}
    )


def members(admin: AdminClient, group: str) -> dict[str, int]:
    """Member id -> number of partitions."""
    try:
        found: Any = admin.describe_consumer_groups([group])[group].result(5)
    except KafkaException:
        return {}
    return {
        member.member_id: len(member.assignment.topic_partitions)
        for member in found.members
        if member.assignment is not None
    }


def rebalance(name: str) -> Fault:
    """A consumer is added, takes partitions over in the middle of the work, and goes again."""

    def strike(trial: Trial) -> str:
        admin = admin_of(trial)
        before = members(admin, name)
        with another(trial, name):

            def has_moved() -> bool:
                now = members(admin, name)
                return any(now[one] for one in now.keys() - before.keys())

            wait_for(has_moved, 20)
            moved = sum(n for one, n in members(admin, name).items() if one not in before)
            time.sleep(trial.chance.uniform(0.2, 0.8))
        return f"{moved} partitions went to another process and back"

    return Fault(f"rebalance {name}", strike, slow=True)


def two_owners(trial: Trial) -> str:
    """A second on-wager, in a group of its own, applies the same log to the same boards."""
    admin = admin_of(trial)
    group = f"double-{trial.play.prefix}"
    topic = admin.list_topics(ev.WAGERS, timeout=10).topics[ev.WAGERS]
    placed = committed(admin, "on-wager", [*topic.partitions])
    places = [TopicPartition(ev.WAGERS, number, at) for number, at in placed.items()]
    request = [ConsumerGroupTopicPartitions(group, places)]
    admin.alter_consumer_group_offsets(request)[group].result(10)
    with another(trial, "on-wager", group):

        def advanced() -> int:
            now = committed(admin, group, list(placed))
            return sum(now[number] - at for number, at in placed.items())

        wait_for(lambda: advanced() > 0, 20)
        time.sleep(1.0)
        both = advanced()
    return f"{both} records were handled by two owners"


def committed(admin: AdminClient, group: str, partitions: Sequence[int]) -> dict[int, int]:
    """What a group has committed of `wagers`, 0 where it has nothing."""
    places = [TopicPartition(ev.WAGERS, number) for number in partitions]
    request = [ConsumerGroupTopicPartitions(group, places)]
    found: Any = admin.list_consumer_group_offsets(request)[group].result(10)
    return {one.partition: max(one.offset, 0) for one in found.topic_partitions}


def wrong_clock(hours: int) -> Callable[[Trial], str]:
    def strike(trial: Trial) -> str:
        trial.play.clock_error_ms = hours * 3_600_000
        time.sleep(1.5)
        trial.play.clock_error_ms = 0
        return f"a fifth of the wagers came {hours:+d} h wrong"

    return strike


FAULTS: Final[Sequence[Fault]] = (
    *(kill(service) for service in BITES),
    *(stop(service) for service in BITES),
    *(outstay(service) for service in ("on-wager", "archive", "on-rank-change")),
    *(
        damage(link)
        for link in (
            "kafka",
            "on-wager/redis",
            "archive/postgres",
            "on-rank-change/redis",
            "on-rank-change/gateway",
        )
        for damage in (cut, hang, slow)
    ),
    Fault("empty redis", empty_redis),
    Fault("lose redis tail", lose_tail(0.7)),
    Fault("restart kafka", restart_kafka, slow=True),
    Fault("fill postgres disk", fill_disk),
    *(rebalance(name) for name in ("on-wager", "archive", "on-rank-change")),
    Fault("two owners", two_owners, slow=True),
    Fault("clock an hour slow", wrong_clock(-1)),
    Fault("clock an hour fast", wrong_clock(1)),
    *CLUSTER_FAULTS,
)
