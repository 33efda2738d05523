"""The load, as a process of its own: `python -m bench.pace`, spoken to in lines.

    > the plan, JSON    < {"encoded": n}
    > go                < {"begun": s, "ended": s, "offsets": [...]}

Times are of the machine's monotonic clock, as the players' are (`bench.watch`).

Open loop: each wager is produced at the time it is due, however the ones before it fare. Encoded
before the clock runs, so that the load costs little of the machine that it shares.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

from confluent_kafka import Producer

from bench.load import QUIET, wager
from leaderboard import events as ev
from leaderboard.codec import encode_kafka

BEFORE_SECONDS: Final = 0.2


def main() -> None:
    plan = json.loads(sys.stdin.readline())
    rate, first = plan["rate"], plan["first_number"]
    producer = Producer(
        {
            "bootstrap.servers": plan["bootstrap_servers"],
            "partitioner": "murmur2_random",
            "enable.idempotence": True,  # also keeps the order, so offsets come in it
            "linger.ms": 5,
            "queue.buffering.max.messages": 1_000_000,
            "log_level": QUIET,
        }
    )
    now_ms = int(time.time() * 1000)
    records: list[tuple[Any, Any, Any]] = []
    for index, (player, stake) in enumerate(plan["wagers"]):
        record = encode_kafka(wager(player, stake, first + index, now_ms), ev.WAGERS)
        records.append((record.value, record.key, list(record.headers)))
    offsets: list[int] = []

    def delivered(error: Any, message: Any) -> None:
        assert error is None, error
        offsets.append(message.offset())

    producer.list_topics(timeout=10)
    print(json.dumps({"encoded": len(records)}), flush=True)
    sys.stdin.readline()
    begun = time.monotonic() + BEFORE_SECONDS
    for index, (value, key, headers) in enumerate(records):
        due = begun + index / rate
        while (left := due - time.monotonic()) > 0:
            producer.poll(0)
            time.sleep(min(left, 0.001))
        producer.produce(ev.WAGERS, value, key, headers=headers, on_delivery=delivered)
    ended = time.monotonic()
    assert producer.flush(60) == 0
    print(json.dumps({"begun": begun, "ended": ended, "offsets": offsets}), flush=True)
    sys.stdin.read()  # until what it used has been read


if __name__ == "__main__":
    main()
