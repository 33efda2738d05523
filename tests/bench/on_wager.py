"""(a) and (b): wagers a second of `on-wager`, against the reference's algorithm and the ceilings.

Whoever reads Kafka finds a backlog; the clock runs from the first tenth of the play to its end.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any

import redis
from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from bench.load import (
    PLAYERS,
    QUIET,
    Log,
    T,
    assert_equal,
    assert_same,
    oracle_of,
    play,
    player_of,
    wager,
    zipf,
)
from bench.machine import Meter, per_million
from bench.report import Bench, Measured
from bench.servers import Servers, servers
from leaderboard import events as ev
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import ask, connect, in_one_trip
from leaderboard.adapters.redis_scripts import keys_of
from leaderboard.codec import decode_kafka
from leaderboard.fold import LogEntry
from leaderboard.hosts.collector import settle
from leaderboard.hosts.kafka_log import record_of
from leaderboard.model import Offset, TournamentId
from leaderboard.stack.process import Process
from logs import LOG, START_MS, TOMBSTONE_KEY
from running import wait_for

BATCH = 1_000
PARTITIONS = 10
TOURNAMENTS = 100
PATIENT = {"KAFKA_SESSION_TIMEOUT_MS": "20000"}
"""Who stands still while the backlog is written stays in the group. (Not longer: members hear of a
rebalance with a heartbeat, a third of this apart.)"""


ANSWER_SECONDS = 5


def one_tournament(bench: Bench) -> None:
    """(a) One process, one tournament, 100,000 players, Zipf play."""
    wagers, players = bench.size(200_000, 2_000), bench.size(PLAYERS, 1_000)
    few = bench.size(6_000, 200)
    bench.in_turns(
        "on-wager",
        "wagers/s",
        {
            "on-wager, every guarantee": lambda run: ours(run, wagers, players),
            "the same without fraud detection": lambda run: ours(
                run, wagers, players, settings={"FRAUD_DETECTION": "off"}
            ),
            "the reference's algorithm": lambda run: reference(run, few, players),
            "ceiling: our script alone": lambda run: script_alone(run, wagers, players),
            "ceiling: consume and produce": lambda run: bare_loop(run, wagers, players),
            "pipelined ZINCRBY, no guarantee": lambda run: zincrby(run, wagers, players),
        },
    )


def many_tournaments(bench: Bench) -> None:
    """(b) The same over 100 tournaments on 10 partitions, and with two processes."""
    wagers = bench.size(3_000, 40)
    players = bench.size(1_000, 20)
    tournaments = bench.size(TOURNAMENTS, 10)
    bench.in_turns(
        "tournaments",
        "wagers/s",
        {
            "two processes": lambda run: spread_out(run, tournaments, wagers, players, 2),
            "one process": lambda run: spread_out(run, tournaments, wagers, players, 1),
        },
    )


# --- ours ----------------------------------------------------------------------------------------


def ours(
    seed: int,
    wagers: int,
    players: int,
    settings: Mapping[str, str] | None = None,
) -> Measured:
    """One `on-wager` works a backlog off; its board is compared with the oracle's, and it has
    published each change that the oracle has, once."""
    with servers() as given:
        log = Log(given.kafka.bootstrap_servers)
        entries = log.write(play(seed, wagers, players))
        client = given.client()
        chosen = {"BATCH_SIZE": str(BATCH), **(settings or {})}
        with given.function("on-wager", chosen) as process:
            first = 1 + players + wagers // 10
            start = _until(lambda: _offset(client), first)
            meter = Meter(
                {"on-wager": process.pid, "redis": given.redis.pid, "kafka": given.kafka.pid}
            )
            started = time.perf_counter()
            end = _until(lambda: _offset(client), len(entries) - 1)
            seconds = time.perf_counter() - started
            usage = meter.read()
        oracle, changes = oracle_of(entries)
        assert_same(RedisBoard(connect(given.redis.url)), oracle)
        published = _end_of(given, ev.POSITION_CHANGES)
        assert published == len(changes), f"{published} changes published of {len(changes)}"
    more = {"seconds": round(seconds, 2), **per_million(usage, end - start), "changes": published}
    return Measured((end - start) / seconds, {**more, "board_equals_oracle": True}, usage)


def _end_of(given: Servers, topic: str) -> int:
    """How many records the topic's first partition has."""
    config = {"bootstrap.servers": given.kafka.bootstrap_servers, "group.id": "bench"}
    reader = Consumer({**config, "log_level": QUIET})
    try:
        end: int = reader.get_watermark_offsets(TopicPartition(topic, 0), timeout=30)[1]
    finally:
        reader.close()
    return end


def _offset(client: redis.Redis, name: TournamentId = T) -> int:
    found: Any = client.hget(f"{{{name}}}:board", "offset")
    return int(found or -1)


def _until(reached: Callable[[], int], wanted: int, timeout_seconds: float = 300) -> int:
    deadline = time.monotonic() + timeout_seconds
    while (found := reached()) < wanted:
        assert time.monotonic() < deadline, f"only {found} of {wanted} after {timeout_seconds} s"
        time.sleep(0.01)
    return found


def spread_out(seed: int, tournaments: int, wagers: int, players: int, processes: int) -> Measured:
    """Some processes work off a backlog of many tournaments on ten partitions."""
    names = [TournamentId(f"bench-{number}") for number in range(tournaments)]
    with servers(PARTITIONS) as given:
        log = Log(given.kafka.bootstrap_servers)
        client = given.client()
        with ExitStack() as running:
            started_all = [
                running.enter_context(given.function("on-wager", PATIENT, str(number)))
                for number in range(processes)
            ]
            # Who owns what is settled before the clock runs, and the standings are there.
            servers_of = given.kafka.bootstrap_servers
            wait_for(lambda: _shares(servers_of) == [PARTITIONS // processes] * processes, 120)
            for number, name in enumerate(names):
                opening = play(seed, 0, players, name)
                log.write(opening, partition=number % PARTITIONS)
            _until(lambda: _settled(client, names, players), tournaments)
            chance = random.Random(seed)
            total = tournaments * wagers
            load = _interleaved(chance, names, total, players)
            pids = {f"on-wager {n}": one.pid for n, one in enumerate(started_all)}
            signal_all(started_all, signal.SIGSTOP)
            for partition, events in load.items():
                log.write(events, partition=partition)
            meter = Meter({**pids, "redis": given.redis.pid, "kafka": given.kafka.pid})
            ends = {name: max(e.offset for e in log.of(name)) for name in names}
            started = time.perf_counter()
            signal_all(started_all, signal.SIGCONT)
            _until(lambda: sum(_at(client, ends)), tournaments)
            seconds = time.perf_counter() - started
            usage = meter.read()
            # A broker that is busy may answer late.
            wait_for(lambda: bool(_shares(servers_of)), 30)
            assert _shares(servers_of) == [PARTITIONS // processes] * processes, (
                "the group has moved"
            )
        board = RedisBoard(connect(given.redis.url))
        for name in names:
            assert_equal(board, list(log.of(name)), name)
    more = {"seconds": round(seconds, 2), **per_million(usage, total)}
    return Measured(total / seconds, {**more, "boards_equal_oracle": True}, usage)


def _shares(bootstrap_servers: str) -> list[int]:
    """How many partitions each member of the group has; empty while it rebalances. A client of its
    own for each question: one that asked too early may wait for its answer for long."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": QUIET})
    try:
        # A broker that has just started knows no groups yet, and may keep the question for long.
        told = admin.describe_consumer_groups(["on-wager"], request_timeout=2)
        group = told["on-wager"].result(ANSWER_SECONDS)
    except (KafkaException, TimeoutError):
        return []
    if group.state is not ConsumerGroupState.STABLE:
        return []
    return [len(member.assignment.topic_partitions) for member in group.members]


def signal_all(processes: Sequence[Process], number: int) -> None:
    for one in processes:
        os.kill(one.pid, number)


def _interleaved(
    chance: random.Random, names: Sequence[TournamentId], total: int, players: int
) -> dict[int, list[ev.Event]]:
    load: dict[int, list[ev.Event]] = {}
    for number, player in enumerate(zipf(chance, total, players)):
        place = number % len(names)
        event = wager(player, chance.randint(1, 1000), 10**7 + number, name=names[place])
        load.setdefault(place % PARTITIONS, []).append(event)
    return load


def _settled(client: redis.Redis, names: Sequence[TournamentId], players: int) -> int:
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.zcard(f"{{{name}}}:ranks")
    return sum(found == players for found in pipeline.execute())


def _at(client: redis.Redis, ends: Mapping[TournamentId, int]) -> list[bool]:
    pipeline = client.pipeline(transaction=False)
    for name in ends:
        pipeline.hget(f"{{{name}}}:board", "offset")
    found = pipeline.execute()
    return [int(at or -1) >= end for at, end in zip(found, ends.values(), strict=True)]


# --- rivals --------------------------------------------------------------------------------------


def _consumer(given: Servers, group: str) -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": given.kafka.bootstrap_servers,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "log_level": QUIET,
        }
    )
    consumer.assign([TopicPartition(ev.WAGERS, 0, 0)])
    return consumer


def _producer(given: Servers, linger_ms: float) -> Producer:
    return Producer(
        {
            "bootstrap.servers": given.kafka.bootstrap_servers,
            "enable.idempotence": True,
            "linger.ms": linger_ms,
            "delivery.report.only.error": True,
            "queue.buffering.max.messages": 200_000,
            "log_level": QUIET,
        }
    )


def reference(seed: int, wagers: int, players: int) -> Measured:
    """The reference's algorithm as careful as ours: hiredis, our own short way to it, our decoder,
    an idempotent producer without linger, commits in the background, a collector that leaves alone
    what stays; but one wager after the other, as it is designed: ZREVRANK, ZINCRBY, ZREVRANK, and a
    moved rank is produced and waited for. The clock runs from the first tenth to the end."""
    with servers() as given:
        events = play(seed, wagers, players)
        Log(given.kafka.bootstrap_servers).write(events[1 + players :])
        client, chance = connect(given.redis.url), random.Random(seed)
        scores = {player_of(p): chance.randint(1, 10_000) for p in range(players)}
        client.zadd("reference", scores)
        consumer, producer = _consumer(given, "reference"), _producer(given, 0)
        first = wagers // 10
        settle()
        for number in range(wagers):
            message = consumer.poll(30)
            assert message is not None
            if number == first:
                meter, started = _meter(given, "the algorithm"), time.perf_counter()
            data = decode_kafka(record_of(message, ev.WAGERS, 0)).data
            assert isinstance(data, ev.WagerPlaced)
            player = data.player_id
            old = ask(client, "ZREVRANK", "reference", player)
            ask(client, "ZINCRBY", "reference", data.stake_minor, player)
            new = ask(client, "ZREVRANK", "reference", player)
            if old != new:
                producer.produce(ev.POSITION_CHANGES, message.value(), message.key())
                producer.flush()
            if number % 100 == 0:
                consumer.commit(message=message, asynchronous=True)
        seconds, count = time.perf_counter() - started, wagers - first
        usage = meter.read()
        consumer.close()
        _assert_summed(client, "reference", scores, map(_stake, events[1 + players :]))
    return Measured(count / seconds, per_million(usage, count), usage)


def _meter(given: Servers, own: str) -> Meter:
    """Of a rival that runs in this process, and of its servers."""
    return Meter({"redis": given.redis.pid, "kafka": given.kafka.pid}, own)


def _stake(event: ev.Event) -> tuple[str, int]:
    assert isinstance(event.data, ev.WagerPlaced)
    return event.data.player_id, event.data.stake_minor


def _assert_summed(
    client: Any, key: str, scores: Mapping[str, int], stakes: Iterable[tuple[str, int]]
) -> None:
    """A rival's set has every score: it did what it was measured at."""
    wanted = dict(scores)
    for player, stake in stakes:
        wanted[player] += stake
    found = client.zrange(key, 0, -1, withscores=True)
    assert {player.decode(): int(score) for player, score in found} == wanted


def script_alone(seed: int, wagers: int, players: int) -> Measured:
    """The ceiling of any caller of our script: its requests made beforehand, answers unread."""
    # Here, so that commits without them can be measured for the rest.
    from leaderboard.adapters.redis_board import _packed, _unpacked

    entries = [
        LogEntry(Offset(offset), START_MS, event)
        for offset, event in enumerate(play(seed, wagers, players))
    ]
    with servers() as given:
        board = RedisBoard(connect(given.redis.url), TOMBSTONE_KEY)
        requests: list[bytes] = []
        terms, after = None, None
        for start in range(0, len(entries), BATCH):
            batch = entries[start : start + BATCH]
            folded = board._fold(T, terms, batch)
            requests.append(_packed(LOG, after, batch, after, after, folded))
            terms, after = folded.terms, batch[-1].offset
        keys, call = keys_of(T), board._apply
        calls, skipped = iter(requests), 1 + (1 + players + wagers // 10) // BATCH
        for request in islice(calls, skipped):
            assert _unpacked(call(keys, request))[0] == b"ok"
        count = len(entries) - skipped * BATCH
        settle()
        meter, started = Meter({"redis": given.redis.pid}, "the caller"), time.perf_counter()
        for request in calls:
            call(keys, request)
        seconds = time.perf_counter() - started
        usage = meter.read()
        assert_equal(board, entries)
    more = {**per_million(usage, count), "board_equals_oracle": True}
    return Measured(count / seconds, more, usage)


def bare_loop(seed: int, wagers: int, players: int) -> Measured:
    """The ceiling of any consumer in Python: the same log consumed in batches, and a record of a
    change's size produced for each; nothing is decoded or kept."""
    with servers() as given:
        Log(given.kafka.bootstrap_servers).write(play(seed, wagers, players))
        consumer, producer = _consumer(given, "bare"), _producer(given, 1)
        value, headers = b"x" * 200, [(f"ce_h{n}", b"y" * 20) for n in range(8)]
        given_headers: Any = headers
        left, started, count = 1 + players + wagers, 0.0, 0
        skipped, meter = 1 + players + wagers // 10, _meter(given, "the loop")
        settle()
        while left > 0:
            messages = consumer.consume(min(BATCH, left), timeout=30)
            assert messages
            for message in messages:
                producer.produce(ev.POSITION_CHANGES, value, message.key(), headers=given_headers)
            assert producer.flush(30) == 0
            consumer.commit(message=messages[-1], asynchronous=True)
            left -= len(messages)
            if started:
                count += len(messages)
            elif 1 + players + wagers - left >= skipped:
                meter, started = _meter(given, "the loop"), time.perf_counter()
        seconds = time.perf_counter() - started
        usage = meter.read()
        consumer.close()
    return Measured(count / seconds, per_million(usage, count), usage)


def zincrby(seed: int, wagers: int, players: int) -> Measured:
    """What a score costs when nothing else is promised: no ranks, no ids, no order, no changes."""
    chance = random.Random(seed)
    with servers() as given:
        client = connect(given.redis.url)
        assert isinstance(client, redis.Redis)
        scores = {player_of(p): chance.randint(1, 10_000) for p in range(players)}
        client.zadd("plain", scores)
        played = [(player_of(p), chance.randint(1, 1000)) for p in zipf(chance, wagers, players)]
        first = wagers // 10
        settle()
        for start in (0, *range(first, wagers, BATCH)):
            if start == first:
                meter, started = (
                    Meter({"redis": given.redis.pid}, "the caller"),
                    time.perf_counter(),
                )
            some = played[start : min(start + BATCH, wagers) if start else first]
            in_one_trip(client, *(("ZINCRBY", "plain", stake, player) for player, stake in some))
        seconds, count = time.perf_counter() - started, wagers - first
        usage = meter.read()
        _assert_summed(client, "plain", scores, played)
    return Measured(count / seconds, per_million(usage, count), usage)


__all__ = ["many_tournaments", "one_tournament", "ours"]
