"""Membership of a consumer group: which partitions are ours, what was received of them and not yet
handled, and how far the group is told that we are.

Everything received lies in one inbox, by partition. When a partition goes, its part of the inbox
goes with it, so nothing that was read under an earlier assignment is ever handled under a later
one. Offsets are committed for what was reported as done, never for what was only received.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from leaderboard import telemetry
from leaderboard.errors import TransientError
from leaderboard.hosts.kafka_log import ASK_SECONDS
from leaderboard.model import Offset, Place
from leaderboard.settings import ConsumerSettings, KafkaSettings

COMMIT_SECONDS: Final = 0.05
COMMIT_AGAIN_SECONDS: Final = 1.0
"""How long a commit that failed is left alone before it is tried again."""
ANSWER_SECONDS: Final = 10.0
"""One commit is under way at a time: in a rebalance they would pile up, to fail all at once."""
WAIT_SECONDS: Final = 0.2
REJOIN_SECONDS: Final = 15.0
"""So long after its partitions were lost a client that has none again is given up, once. Seen: a
broker hangs for longer than the session, and librdkafka's requests to the coordinator wait in
their queue for ever afterwards."""
SPARE_SECONDS: Final = 10.0
"""A member of a group that rebalances in six seconds has its partitions by then."""
logger = logging.getLogger(__name__)


class Membership:
    """The partitions of some topics, as the group hands them to this process.

    An assigned partition is *fresh* until `take_over`, *owned* from then on. `revoked` is called
    for every partition that goes; `safe` answers how far an owned one may be committed, given
    how far it is done. Partitions come and go one by one, whatever their topic. For one thread,
    but for `is_member` and `lag`."""

    def __init__(
        self,
        topics: Sequence[str],
        config: Mapping[str, object],
        revoked: Callable[[Place], None],
        safe: Callable[[Place, Offset], Offset],
    ) -> None:
        self._topics = list(topics)
        self._revoked = revoked
        self._safe = safe
        self._config = {**config, "on_commit": self._on_commit}
        self._consumer = Consumer(self._config)
        self._rejoin_at = math.inf
        self._ends: dict[Place, int] = {}
        self._given_up: list[Consumer] = []
        """Closing in threads of their own; what they still tell is not about us."""
        self._ours: dict[tuple[str | None, int | None], Place] = {}
        """Fresh and owned ones, by what a message says (making a Place of each would cost)."""
        self._fresh: set[Place] = set()
        self._next: dict[Place, Offset] = {}
        """Owned partitions, with the offset after the last one whose effects are done."""
        self._inbox: dict[Place, list[Message]] = {}
        self._paused: set[Place] = set()
        self._committed: dict[Place, Offset] = {}
        self._sent_at = 0.0
        self._commit_at = 0.0
        """When the next commit may be made."""
        self._joined_at: float | None = None
        self._was_assigned = False

    def join(self) -> None:
        self._joined_at = time.monotonic()
        self._consumer.subscribe(
            self._topics,
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    def _rejoin(self) -> None:
        """With another client. Of the old one nothing is wanted: it owns no partition, and to
        close it may take as long as it hangs."""
        logger.warning("joining the group anew, with another client")
        old, self._rejoin_at = self._consumer, math.inf
        self._given_up.append(old)
        threading.Thread(target=self._close, args=(old,), name="closing", daemon=True).start()
        self._consumer = Consumer(self._config)
        self.join()

    def _close(self, given_up: Consumer) -> None:
        given_up.close()
        self._given_up.remove(given_up)

    def leave(self) -> None:
        """Commit what is done and give all partitions back."""
        self._ends = {}
        self.commit(now=True)
        self._consumer.close()

    def is_member(self) -> bool:
        """Whether the group has given us partitions, or has had time to: a spare member gets
        none. From any thread. (librdkafka's own `memberid` may block while a member joins.)"""
        joined_at = self._joined_at
        is_spare = joined_at is not None and time.monotonic() > joined_at + SPARE_SECONDS
        return self._was_assigned or is_spare

    # records

    def receive(self, timeout_seconds: float, limit: int, gather_seconds: float = 0.0) -> int:
        """Put what is there into the inbox, `limit` records in it at most; how many there are.
        Waits for the first record only with an empty inbox, and for more behind it only
        `gather_seconds`."""
        if time.monotonic() > self._rejoin_at:
            self._rejoin()
        held = sum(map(len, self._inbox.values()))
        first = self._consumer.poll(0 if held else max(timeout_seconds, 0.0))
        if first is None:
            return held
        self._keep([first])
        if (room := limit - held - 1) <= 0:
            return held + 1
        more = self._consumer.consume(room, timeout=max(gather_seconds, 0.0))
        self._keep(more)
        return held + 1 + len(more)

    def waiting(self) -> list[Place]:
        """Owned partitions with something in the inbox."""
        return [place for place in self._inbox if place in self._next]

    def take(self, place: Place, limit: int) -> Sequence[Message]:
        """The oldest records of a partition, out of the inbox."""
        messages = self._inbox.pop(place)
        if len(messages) > limit:
            self._inbox[place] = messages[limit:]
        return messages[:limit]

    def wait(self, seconds: float, stopping: threading.Event) -> None:
        """Let time pass while staying a member. Fetching pauses, so that the inbox stays small;
        what was under way already is kept."""
        until = time.monotonic() + seconds
        while not stopping.is_set() and (left := until - time.monotonic()) > 0:
            # Also those that are assigned meanwhile.
            flowing = (self._next.keys() | self._fresh) - self._paused
            self._consumer.pause(_kafkas(flowing))
            self._paused |= flowing
            message = self._consumer.poll(min(left, WAIT_SECONDS))
            if message is not None:
                self._keep([message])
        paused, self._paused = self._paused, set()
        self._consumer.resume(_kafkas(paused))

    def _keep(self, messages: Sequence[Message]) -> None:
        ours, inbox = self._ours, self._inbox
        for message in messages:
            error = message.error()
            if error is None:
                place = ours.get((message.topic(), message.partition()))
                if place is None:
                    continue
                if (held := inbox.get(place)) is None:
                    held = inbox[place] = []
                held.append(message)
            elif error.fatal():
                raise KafkaException(error)
            else:
                logger.warning("Kafka reports an error", extra=telemetry.fields(error=error.str()))

    # partitions

    def fresh(self) -> list[Place]:
        """Partitions that are assigned and not taken over yet."""
        return sorted(self._fresh)

    def is_fresh(self, place: Place) -> bool:
        return place in self._fresh

    def owned(self) -> Mapping[Place, Offset]:
        """The owned partitions, with the offset up to which each is done."""
        return self._next

    def owns(self, place: Place) -> bool:
        return place in self._next

    def lag(self, topic: str) -> int:
        """How many records of the topic's owned partitions are not done, of those that were there
        when `look_at_ends` looked last. From any thread."""
        ends = self._ends
        done = self._next.copy()
        return sum(
            max(end - done.get(place, end), 0)
            for place, end in ends.items()
            if place.topic == topic
        )

    def look_at_ends(self) -> None:
        """See how far the owned partitions reach, as this client has heard; asks nobody.

        Never beside `poll`: the client then waits for a lock of its own with Python's in its hand,
        and nothing goes on any more."""
        ends: dict[Place, int] = {}
        for place in self._next:
            # Of one that it has not begun to fetch it knows nothing.
            with suppress(KafkaException):
                asked = TopicPartition(*place)
                ends[place] = self._consumer.get_watermark_offsets(asked, cached=True)[1]
        self._ends = ends

    def committed(self, place: Place) -> Offset | None:
        """Where the group stands. Raises TransientError."""
        try:
            found = self._consumer.committed(_kafkas([place]), timeout=ASK_SECONDS)[0]
        except KafkaException as error:
            raise TransientError(f"Kafka does not tell the group's place: {error}") from None
        if found.error is not None:
            raise TransientError(f"Kafka does not tell the group's place: {found.error}")
        return Offset(found.offset) if found.offset >= 0 else None

    def take_over(self, place: Place, offset: Offset) -> None:
        """Own a fresh partition, done up to `offset`. The next `commit` says so to the group,
        also when it is no news: to KEDA a partition without a commit is one of full lag."""
        self._fresh.discard(place)
        self._next[place] = offset
        # One that went while it was paused comes back as it went.
        self._consumer.resume(_kafkas([place]))

    def done(self, place: Place, offset: Offset) -> None:
        """Everything before `offset` has had its effects."""
        self._next[place] = offset

    def rewind(self, place: Place, offset: Offset) -> None:
        """Read an owned partition again from `offset`; may be repeated while it raises
        TransientError. Committed before anything is read, so that a crash loses nothing."""
        self._next[place] = offset
        self._inbox.pop(place, None)
        self._commit_surely(place, self._safe(place, offset))
        try:
            self._consumer.seek(TopicPartition(*place, offset))
        except KafkaException as error:
            # One assigned this moment is not fetched yet, and can't be sought until it is.
            raise TransientError(f"not to be sought yet: {error}") from None

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if consumer in self._given_up:
            return
        logger.info("assigned", extra=telemetry.fields(partitions=_shown(partitions)))
        self._was_assigned = True
        self._rejoin_at = math.inf
        places = _places(partitions)
        self._ours.update((place, place) for place in places)
        self._fresh.update(places)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if consumer in self._given_up:
            return
        logger.info("revoked", extra=telemetry.fields(partitions=_shown(partitions)))
        self.commit(now=True, only=_places(partitions))
        self._forget(partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if consumer in self._given_up:
            return
        # Somebody else may have gone on from our last commit: ours would take theirs back.
        logger.warning("lost", extra=telemetry.fields(partitions=_shown(partitions)))
        self._joined_at, self._was_assigned = time.monotonic(), False
        self._rejoin_at = self._joined_at + REJOIN_SECONDS
        self._forget(partitions)

    def _forget(self, partitions: list[TopicPartition]) -> None:
        for place in _places(partitions):
            self._ours.pop(place, None)
            self._inbox.pop(place, None)
            self._paused.discard(place)
            self._committed.pop(place, None)
            self._fresh.discard(place)
            self._next.pop(place, None)
            self._revoked(place)

    # commits

    def commit(self, *, now: bool = False, only: Iterable[Place] | None = None) -> None:
        """Tell the group how far the owned partitions are done, where it does not know.

        `now` waits for the answer; else the call is cheap, does nothing while the last one was
        just made or is not answered, and a failure is made good by a later call."""
        if not now and time.monotonic() < self._commit_at:
            return
        wanted: dict[Place, Offset] = {}
        for place in self._next if only is None else self._next.keys() & set(only):
            safe = self._safe(place, self._next[place])
            if self._committed.get(place) != safe:
                wanted[place] = safe
        if not wanted:
            return
        self._sent_at = time.monotonic()
        self._commit_at = self._sent_at + ANSWER_SECONDS
        self._committed.update(wanted)
        places = [TopicPartition(*place, at) for place, at in wanted.items()]
        try:
            if now:
                self._on_commit(None, self._consumer.commit(offsets=places, asynchronous=False))
            else:
                self._consumer.commit(offsets=places, asynchronous=True)
        except KafkaException as error:
            self._on_commit(error.args[0], places)

    def _commit_surely(self, place: Place, offset: Offset) -> None:
        wanted = TopicPartition(*place, offset)
        try:
            answer = self._consumer.commit(offsets=[wanted], asynchronous=False)[0]
        except KafkaException as error:
            raise TransientError(f"Kafka did not take a commit: {error}") from None
        if answer.error is not None:
            raise TransientError(f"Kafka did not take a commit: {answer.error}")
        self._committed[place] = offset

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """What failed is not known to the group: the next `commit` says it again. Until then a
        start would read again, which is harmless."""
        failed = [place for place in partitions if error is not None or place.error is not None]
        if not failed:
            self._commit_at = self._sent_at + COMMIT_SECONDS
            return
        logger.warning(
            "commit failed",
            extra=telemetry.fields(partitions=_shown(failed), error=str(error or failed[0].error)),
        )
        self._commit_at = time.monotonic() + COMMIT_AGAIN_SECONDS
        for place in _places(failed):
            self._committed.pop(place, None)


def group_config(name: str, kafka: KafkaSettings, settings: ConsumerSettings) -> dict[str, Any]:
    """How a function's consumer is set up: by hand committed, cooperative, from the start of the
    log where the group has no place yet."""
    config: dict[str, Any] = {
        **kafka.client_config(),
        "group.id": settings.group_id or name,
        "group.protocol": settings.group_protocol,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        # The default of a second is how long a full local queue would delay the next fetch.
        "fetch.queue.backoff.ms": 10,
    }
    if settings.group_protocol == "classic":
        config["partition.assignment.strategy"] = "cooperative-sticky"
        config["session.timeout.ms"] = settings.session_timeout_ms
        config["heartbeat.interval.ms"] = settings.session_timeout_ms // 3
    return config


def _places(partitions: Iterable[TopicPartition]) -> list[Place]:
    return [Place(one.topic, one.partition) for one in partitions]


def _kafkas(places: Iterable[Place]) -> list[TopicPartition]:
    return [TopicPartition(*place) for place in sorted(places)]


def _shown(partitions: Iterable[TopicPartition]) -> list[str]:
    return [str(place) for place in _places(partitions)]
