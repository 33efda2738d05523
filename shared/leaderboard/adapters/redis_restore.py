"""Snapshots into Redis: loaded into keys aside, chunk by chunk, then swapped in by compare.

Until the swap nothing is touched that anyone reads, and the swap is one script: a crash at any
point leaves the old board whole. The keys aside live a minute longer than the try. Two tries at
once have keys of their own, and the swap decides between them.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

import msgpack

from leaderboard import telemetry
from leaderboard.adapters.redis_client import RedisClient
from leaderboard.adapters.redis_scripts import Script, foreign, keys_of, text_of
from leaderboard.errors import TransientError
from leaderboard.fold import RemovalReason
from leaderboard.model import TournamentId
from leaderboard.ports import Snapshot
from leaderboard.ranking import Order

ASIDE_SECONDS: Final = 60
"""How long keys aside outlive a try that breaks off; one that stands still as long is over too."""
_ASIDE: Final = ("ranks", "rows", "names", "newer", "older", "numbers", "out")
_SLICE: Final = {"ranks": 500}
_SLICE_OF_OTHERS: Final = 2000
"""Entries of one call, by target: Redis serves others after some 5 ms."""
_SENDERS: Final = 2
"""Threads that load while the next chunk is read from where the snapshot comes from: one packs
while Redis works for the other. What is loaded has no order."""
_OUT: Final = {RemovalReason.ERASED: "E", RemovalReason.DISQUALIFIED: "Q"}

_Load = tuple[str, Sequence[Any]]
"""A chunk and the key aside that it belongs to; rows go to `ranks` (and to `rows` by that)."""


class RedisRestore:
    """`Board.restore` in Redis. Safe for several threads."""

    def __init__(self, client: RedisClient, aside_seconds: float = ASIDE_SECONDS) -> None:
        self._aside_ms = int(aside_seconds * 1000)
        self._load = Script(client, text_of("board_load"), read_only=False)
        self._swap = Script(client, text_of("board_swap"), read_only=False)

    def __call__(self, snapshot: Snapshot, *, force: bool, loaded: Callable[[int], None]) -> bool:
        """Whether the snapshot is the board now. Raises TransientError also where what was loaded
        went lost meanwhile, and ValueError for a snapshot that has not as many rows as it says."""
        attempt = secrets.token_hex(8)
        aside = _aside_of(snapshot.tournament_id, attempt)
        counts = self._load_all(snapshot, aside, loaded)
        if counts["ranks"] != snapshot.players:
            told = f"{counts['ranks']} rows instead of {snapshot.players}"
            raise ValueError(f"the snapshot of {snapshot.tournament_id} has {told}")
        request = (
            snapshot.log_id,
            snapshot.offset,
            snapshot.sequence,
            snapshot.terms.revision,
            snapshot.terms.model_dump_json(),
            *_shape(snapshot),
            attempt,
            force,
            [counts[name] for name in _ASIDE],
        )
        packed = msgpack.packb(request, use_bin_type=False)
        started = time.perf_counter()
        answer = self._swap([*keys_of(snapshot.tournament_id), *aside], packed)
        telemetry.BOARD_CALLS.labels("swap").observe(time.perf_counter() - started)
        match answer[0]:
            case b"swapped":
                return True
            case b"stays":
                return False
            case b"foreign":
                raise foreign(snapshot.tournament_id, answer[1], snapshot.log_id)
            case _:
                raise TransientError(f"Redis: {answer[1].decode()} is not what was loaded")

    def _load_all(
        self, snapshot: Snapshot, aside: Sequence[bytes], loaded: Callable[[int], None]
    ) -> dict[str, int]:
        """Loads every chunk while the next one is read; answers how many entries each key got."""
        counts = dict.fromkeys(_ASIDE, 0)
        shape = [int(one) for one in _shape(snapshot)]
        waiting: list[tuple[Future[None], int]] = []
        is_over = threading.Event()

        def wait_for_one() -> None:
            sent, rows = waiting.pop(0)
            sent.result()
            if rows:
                loaded(rows)

        def send(target: str, chunk: Sequence[Any]) -> None:
            packed = msgpack.packb(chunk, use_bin_type=False)
            self._load(aside, target, packed, self._aside_ms, *shape)

        def send_all(target: str, chunk: Sequence[Any]) -> None:
            size = _SLICE.get(target, _SLICE_OF_OTHERS)
            for first in range(0, len(chunk), size):
                send(target, chunk[first : first + size])

        def keep() -> None:
            """A chunk may be long in coming; an empty one renews what is there."""
            while not is_over.wait(self._aside_ms / 4000):
                with suppress(TransientError):  # the swap looks at what is there
                    send("out", ())

        pool = ThreadPoolExecutor(_SENDERS + 1, "restore")
        try:
            pool.submit(keep)
            for target, chunk in _loads(snapshot):
                counts[target] += len(chunk)
                rows = len(chunk) if target == "ranks" else 0
                waiting.append((pool.submit(send_all, target, chunk), rows))
                if len(waiting) > _SENDERS:
                    wait_for_one()
            while waiting:
                wait_for_one()
        finally:
            is_over.set()
            pool.shutdown(cancel_futures=True)
        counts["rows"] = counts["ranks"]
        return counts


def _aside_of(tournament_id: TournamentId, attempt: str) -> list[bytes]:
    return [f"{{{tournament_id}}}:aside:{attempt}:{name}".encode() for name in _ASIDE]


def _shape(snapshot: Snapshot) -> tuple[bool, bool]:
    """What the bytes of a member depend on: whether small scores lead, whether there are
    subscores."""
    terms = snapshot.terms
    return terms.rules.order is Order.ASCENDING, terms.has_subscores


def _loads(snapshot: Snapshot) -> Iterator[_Load]:
    for rows in snapshot.rows:
        yield "ranks", rows
    for names in snapshot.names:
        yield "names", names
    for ids in snapshot.older:
        yield "older", ids
    for ids in snapshot.newer:
        yield "newer", ids
    yield "numbers", [(source, str(number)) for source, number in snapshot.numbers.items()]
    yield "out", [(mark, _OUT[reason]) for mark, reason in snapshot.out.items()]
