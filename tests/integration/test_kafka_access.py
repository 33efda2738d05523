"""A broker that refuses what nobody is allowed: topics and access lists put there by the commands,
and each function's clients at work as its user."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # not in its stubs
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourcePatternType,
    ResourceType,
)

from leaderboard import events as ev
from leaderboard.adapters.kafka_feed import KafkaFeed
from leaderboard.errors import TransientError
from leaderboard.hosts.kafka_group import Membership, group_config
from leaderboard.hosts.kafka_log import TopicLogs
from leaderboard.model import Offset, Place
from leaderboard.settings import ConsumerSettings, KafkaSettings, load
from leaderboard.stack.access import KAFKA, OPERATOR, RELAY
from leaderboard.stack.functions import FUNCTIONS
from leaderboard.stack.process import LOOPBACK, free_port
from leaderboard.stack.servers import KafkaServer, KafkaUsers
from leaderboard.stack.topics import topics
from passwords import give_password
from running import wait_for

ROOT = Path(__file__).parents[2]
PASSWORD: Final = "a password of tests"
SMALL: Final = ("--partitions", "5", "--replicas", "1", "--in-sync", "1")
CONSUMERS: Final = [user for user, rights in KAFKA.items() if rights.groups]
TOPICS: Final = sorted(topic.name for topic in topics())
DENIED: Final = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}


class Guarded:
    """A broker, by its administrator and by its users."""

    def __init__(self, server: KafkaServer, users_port: int) -> None:
        self._server, self._users_port = server, users_port
        self.admin = AdminClient({"bootstrap.servers": server.bootstrap_servers, "log_level": 2})

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        environ = {"KAFKA_BOOTSTRAP_SERVERS": self._server.bootstrap_servers, "PATH": "/usr/bin"}
        return subprocess.run(
            [sys.executable, "-m", "leaderboard.cli", *words],
            env=environ, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def settings(self, user: str, password: str = PASSWORD) -> KafkaSettings:
        told = {
            "KAFKA_BOOTSTRAP_SERVERS": f"{LOOPBACK}:{self._users_port}",
            "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
            "KAFKA_SASL_USERNAME": user,
            "KAFKA_SASL_PASSWORD": password,
        }
        return load(KafkaSettings, told)

    def config(self, user: str, **more: Any) -> dict[str, Any]:
        return {**self.settings(user).client_config(), "log_level": 2, **more}

    def put(self, topic: str, count: int = 1) -> None:
        """Records in partition 0, by the administrator."""
        producer = Producer({"bootstrap.servers": self._server.bootstrap_servers})
        for _ in range(count):
            producer.produce(topic, b"{}", b"t1", partition=0)
        assert producer.flush(20) == 0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    port = free_port()
    server = KafkaServer(tmp_path_factory.mktemp("guarded"), users=KafkaUsers(port))
    try:
        server.start()
        guarded = Guarded(server, port)
        give_password(guarded.admin, KAFKA, PASSWORD)
        yield guarded
    finally:
        server.stop()


@pytest.fixture(scope="module")
def ready(broker: Guarded) -> Guarded:
    """With its topics and access lists."""
    for words in (("topics", *SMALL), ("acls",)):
        done = broker.command(*words)
        assert done.returncode == 0, done.stdout + done.stderr
    return broker


# --- the commands ------------------------------------------------------------------------------


def test_topics_are_made_once_and_what_differs_is_told(broker: Guarded) -> None:
    before = broker.command("topics", *SMALL, "--check")
    assert before.returncode == 1
    assert before.stdout.count("missing: topic") == len(TOPICS)
    made = broker.command("topics", *SMALL)
    assert made.returncode == 0
    assert made.stdout.count("made: topic") == len(TOPICS)
    again = broker.command("topics", *SMALL)
    assert (again.returncode, again.stdout) == (0, "all as it should be\n")

    place = ConfigResource(ConfigResource.Type.TOPIC, "wagers")
    place.add_incremental_config(
        ConfigEntry("retention.ms", "1000", incremental_operation=AlterConfigOpType.SET)
    )
    broker.admin.incremental_alter_configs([place])[place].result(20)
    told = wait_for_output(broker, "topics", *SMALL)
    assert told.returncode == 1
    assert told.stdout == "differs: topic wagers: retention.ms is 1000 instead of 604800000\n"
    place = ConfigResource(ConfigResource.Type.TOPIC, "wagers")
    place.add_incremental_config(
        ConfigEntry("retention.ms", "604800000", incremental_operation=AlterConfigOpType.SET)
    )
    broker.admin.incremental_alter_configs([place])[place].result(20)

    production = broker.command("topics", "--check")
    assert production.returncode == 1
    for told_of in ("5 partitions instead of 50", "1 replicas instead of 3"):
        assert f"differs: topic wagers: {told_of}" in production.stdout


def wait_for_output(broker: Guarded, *words: str) -> subprocess.CompletedProcess[str]:
    """A broker hears of a change a little later than its controller."""
    deadline = time.monotonic() + 10
    while True:
        done = broker.command(*words)
        if done.returncode != 0 or time.monotonic() > deadline:
            return done


def test_more_in_sync_than_replicas_is_refused(broker: Guarded) -> None:
    done = broker.command("topics", "--replicas", "1")
    assert done.returncode == 2
    assert "--in-sync 2 is above --replicas 1" in done.stderr


def test_acls_are_made_once_and_what_is_beyond_them_is_told(broker: Guarded) -> None:
    assert "missing: query" not in broker.command("acls", "--check").stdout
    made = broker.command("acls")
    assert made.returncode == 0
    assert "made: on-wager: Read on topic wagers\n" in made.stdout
    again = broker.command("acls")
    assert (again.returncode, again.stdout) == (0, "all as it should be\n")
    surplus = AclBinding(
        ResourceType.TOPIC, "wagers", ResourcePatternType.LITERAL, "User:query", "*",
        AclOperation.READ, AclPermissionType.ALLOW,
    )  # fmt: skip
    broker.admin.create_acls([surplus])[surplus].result(20)
    told = wait_for_output(broker, "acls")
    assert told.returncode == 1
    assert told.stdout == "differs: query: Read on topic wagers: not wanted\n"
    anything: Any = None
    of_query = AclBindingFilter(
        ResourceType.ANY, anything, ResourcePatternType.ANY, "User:query", anything,
        AclOperation.ANY, AclPermissionType.ANY,
    )  # fmt: skip
    (gone,) = broker.admin.delete_acls([of_query]).values()
    assert len(gone.result(20)) == 1
    wait_for(lambda: broker.command("acls", "--check").returncode == 0, 10)


# --- the functions' own text ---------------------------------------------------------------------


def text_of(name: str) -> str:
    function = next(one for one in FUNCTIONS if one.name == name)
    folder = ROOT / "functions" / function.folder
    over_http = folder / "intake.py"
    if over_http.exists() and function.target is not None:
        return over_http.read_text("utf-8")
    files = sorted(path for path in folder.glob("*.py") if path != over_http)
    return "\n".join(path.read_text("utf-8") for path in files)


def constant(name: str) -> str:
    found: str = getattr(ev, name.removeprefix("ev."))
    return found


@pytest.mark.parametrize("name", [one.name for one in FUNCTIONS if one.target is not None])
def test_http_function_may_write_what_it_writes(name: str) -> None:
    written = {constant(one) for one in re.findall(r"Outgoing\(\s*([\w.]+),", text_of(name))}
    rights = KAFKA[name]
    assert rights.writes == written
    assert not rights.acls() - {acl for acl in rights.acls() if acl.operation == "Write"}


@pytest.mark.parametrize("name", [one.name for one in FUNCTIONS if one.target is None])
def test_consumer_may_read_and_write_what_it_reads_and_writes(name: str) -> None:
    text = text_of(name)
    assert f'NAME = "{name}"' in text
    called = re.search(r"KafkaHost\(\s*NAME,\s*(\w+),\s*\w+,\s*\w+[,(]", text)
    assert called is not None
    read = called[1]
    if read == "TOPICS":
        names = re.search(r"^TOPICS = \((.*), \*OURS, \*LETTERS\)", text, re.M)
        ours = re.search(r"^OURS = \((.*)\)", text, re.M)
        assert names and ours and "buries=OURS" in text
        own = {constant(one) for one in ours[1].split(", ")}
        live = {constant(one) for one in names[1].split(", ")} | own
        reads = live | set(map(ev.dead_letter_topic, live))
        letters = set(map(ev.dead_letter_topic, own))
    else:
        reads = {constant(read)}
        letters = {ev.dead_letter_topic(constant(read))}
    changes = {ev.POSITION_CHANGES, ev.FRAUD_ALERTS} if "begin_changes(" in text else set()
    rights = KAFKA[name]
    assert rights.reads == reads
    assert rights.writes == letters | changes
    assert rights.groups == {name}


def test_nobody_may_create_alter_or_delete() -> None:
    assert {acl.operation for one in KAFKA.values() for acl in one.acls()} == {
        "Read", "Write", "Describe",
    }  # fmt: skip
    assert KAFKA.keys() == {one.name for one in FUNCTIONS} | {RELAY, OPERATOR}
    assert KAFKA["query"].acls() == frozenset() or "Kafka" not in text_of("query")
    for rights in KAFKA.values():
        assert rights.reads | rights.writes <= set(TOPICS)


# --- at work -------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", [user for user, one in KAFKA.items() if one.writes])
def test_user_writes_its_topics_and_no_others(user: str, ready: Guarded) -> None:
    """By the feed that the functions have: idempotent, all replicas in sync."""
    settings = ready.settings(user)
    with closing(KafkaFeed(settings, timeout_seconds=30)) as feed:
        for topic in sorted(KAFKA[user].writes):
            feed.send([ev.Record(topic, b"t1", b"{}", ())])
    forbidden = sorted(set(TOPICS) - KAFKA[user].writes)
    with ThreadPoolExecutor(max(len(forbidden), 1)) as waiting:  # an operator may write all
        told = list(waiting.map(partial(refusal, settings), forbidden))
    assert all(re.search("(?i)authorization|did not take", one) for one in told), told


def refusal(settings: KafkaSettings, topic: str) -> str:
    """Who may not describe a topic waits for it to appear, as long as the feed may; that the broker
    is slow to give a producer its number says nothing."""
    deadline = time.monotonic() + 40
    with closing(KafkaFeed(settings, timeout_seconds=2)) as feed:
        while True:
            with pytest.raises(TransientError) as refused:
                feed.send([ev.Record(topic, b"t1", b"{}", ())])
            told = str(refused.value)
            if "in time" not in told or time.monotonic() > deadline:
                return told


@pytest.mark.parametrize("user", CONSUMERS)
def test_consumer_takes_part_reads_and_commits(user: str, ready: Guarded) -> None:
    """By the membership and the questions of the Kafka host."""
    reads = sorted(KAFKA[user].reads)
    for topic in reads:
        ready.put(topic, 3)
    settings = ready.settings(user)
    told = load(ConsumerSettings, {})
    group = Membership(reads, group_config(user, settings, told), lambda _: None, lambda _, n: n)
    logs = TopicLogs(reads, settings)
    try:
        group.join()
        seen: set[str] = set()
        deadline = time.monotonic() + 40
        while seen != set(reads):
            assert time.monotonic() < deadline, f"only {seen}"
            group.receive(0.2, 1000)
            for place in group.fresh():
                assert group.committed(place) is None
                group.take_over(place, logs.low(place))
            for place in group.waiting():
                messages = group.take(place, 1000)
                group.done(place, Offset((messages[-1].offset() or 0) + 1))
                if place.partition == 0:
                    seen.add(place.topic)
            group.commit(now=True)
        for topic in reads:
            place = Place(topic, 0)
            assert (group.committed(place) or 0) >= 3
            assert logs.log_id(place).startswith(f"{topic}/")
            # The look back of the cap on dead letters: beside the group.
            assert len(list(logs.before(place, Offset(3), 2))) == 2
        logs.check()
    finally:
        group.leave()
        logs.close()


@pytest.mark.parametrize("user", CONSUMERS)
def test_keda_sees_the_lag_as_the_function(user: str, ready: Guarded) -> None:
    """It asks for ends and for the group's place, by an administrator's client."""
    admin = AdminClient(ready.config(user))
    places = [TopicPartition(topic, 0) for topic in sorted(KAFKA[user].reads)]
    (group,) = admin.list_consumer_group_offsets(
        [ConsumerGroupTopicPartitions(user, places)]
    ).values()
    found = group.result(20).topic_partitions
    assert {one.topic for one in found if one.error is None} == KAFKA[user].reads
    latest: Any = OffsetSpec
    for future in admin.list_offsets(dict.fromkeys(places, latest.latest())).values():
        assert future.result(20).offset >= 0


def reading(consumer: Consumer, topic: str) -> int | None:
    """The error of reading the topic; None where records come."""
    consumer.assign([TopicPartition(topic, 0, 0)])
    for _ in range(10):
        message = consumer.poll(2)
        if message is not None:
            error = message.error()
            return None if error is None else error.code()
    raise AssertionError("neither records nor an error")


@pytest.mark.parametrize("user", KAFKA)
def test_nobody_does_anything_else(user: str, ready: Guarded) -> None:
    rights = KAFKA[user]
    for topic in ("wagers", "position-changes", "fraud-alerts"):
        if topic not in rights.reads:
            ready.put(topic)
            group = next(iter(rights.groups | rights.describes_groups), "other")
            consumer = Consumer(ready.config(user, **{"group.id": group}))
            try:
                described = consumer.list_topics(topic, timeout=10).topics[topic].error
                code = reading(consumer, topic) if described is None else described.code()
                assert code in DENIED
            finally:
                consumer.close()
    admin = AdminClient(ready.config(user))
    place = ConfigResource(ConfigResource.Type.TOPIC, "wagers")
    place.add_incremental_config(
        ConfigEntry("retention.ms", "1", incremental_operation=AlterConfigOpType.SET)
    )
    group = next(iter(rights.groups), "on-wager")
    tried: Sequence[Callable[[], dict[Any, Any]]] = (
        lambda: admin.delete_topics(["wagers"]),
        lambda: admin.create_topics([NewTopic("other", 1, 1)]),
        lambda: admin.delete_records([TopicPartition("wagers", 0, 1)]),
        lambda: admin.incremental_alter_configs([place]),
        lambda: admin.delete_consumer_groups([group]),
    )
    for attempt in tried:
        (future,) = attempt().values()
        with pytest.raises(KafkaException) as caught:
            future.result(20)
        # Who may not describe a topic does not hear who leads it.
        assert caught.value.args[0].code() in DENIED | {KafkaError._NOENT}


def test_who_is_not_known_gets_nowhere(ready: Guarded) -> None:
    failed = threading.Event()
    config: dict[str, Any] = {**ready.settings("query", "wrong").client_config(), "log_level": 0}

    def note(error: KafkaError) -> None:
        if error.code() == KafkaError._AUTHENTICATION:
            failed.set()

    told: Any = {**config, "error_cb": note}
    client = AdminClient(told)
    with pytest.raises(KafkaException):
        client.list_topics(timeout=3)
    client.poll(0)
    assert failed.is_set()
