"""One way to reach Redis: a server or a cluster, with time limits and our error for "away".

Calls are repeated a few times after a broken connection, so every command or script that goes
through here has to be harmless when it is done twice.
"""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from leaderboard.adapters import redis_alone  # noqa: F401 - first, see there

# isort: split
import redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ClusterError,
    CrossSlotTransactionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from leaderboard.errors import NotLetInError, TransientError

CHECK_SECONDS: Final = 1.0
_NOTHING: Final = object()

RedisClient = redis.Redis | RedisCluster
Command = tuple[Any, ...]
"""A command's name and what belongs to it."""

_AWAY: Final = (
    RedisConnectionError,
    RedisTimeoutError,
    BusyLoadingError,
    ClusterDownError,
    ClusterError,
    RedisClusterException,
    TryAgainError,
    AskError,  # also MOVED: a slot that moved faster than the client could follow
    ReadOnlyError,  # the primary has just become a replica
    OutOfMemoryError,
)
_TELLING: Final = (RedisConnectionError, RedisTimeoutError)
"""Their words are places and what the system says; others' may hold what was sent."""
_AWAY_CODES: Final = frozenset(
    {"BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF"}
    | {"NOREPLICAS", "OOM", "READONLY", "TRYAGAIN"}
)
"""Errors inside a script reach us as plain ResponseErrors that start with their code."""
_REFUSED: Final = re.compile(
    "username-password|WRONGPASS|NOAUTH|Authentication required|DB index is out of range"
)
"""A cluster's client tells in the words of another error why no seed let it in; a database of a
number that there is not is a plain error."""


class _Cluster(RedisCluster):
    """redis-py's client asks a server where the keys of a read-only script call are, each time,
    and always the same server: twice the way, and no reads at all when that one is away."""

    def determine_slot(self, *args: Any) -> int | None:
        command = str(args[0])
        if command in ("EVAL_RO", "EVALSHA_RO"):
            args = (command.removesuffix("_RO"), *args[1:])
        slot: int | None = super().determine_slot(*args)
        return slot


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call waits for a server, each time, and how often it is repeated."""

    connect_seconds: float
    answer_seconds: float
    retries: int
    after: tuple[type[Exception], ...] = (RedisConnectionError, RedisTimeoutError)


PATIENT: Final = Patience(2.0, 5.0, 3)
"""For who has to get it done: 20 s with a server that hangs."""
BRIEF: Final = Patience(0.5, 0.5, 1, (RedisConnectionError,))
"""For who has another one to ask: once, and again only where a connection was broken."""


class _Own(threading.local):
    """A thread's own."""

    def __init__(self) -> None:
        self.riders: list[Rider] = []


class _Pool(redis.ConnectionPool):
    """Hands out what lies ready as it is. redis-py's own pool asks the system each time whether
    the other side has closed it, and wraps that in locks and metrics: as much as a command costs.
    Who gets one that was closed finds out by the command, and repeats that as after any other
    broken connection."""

    def __init__(self, *args: Any, patience: Patience = PATIENT, **settings: Any) -> None:
        self.patience = patience
        self.own = _Own()
        super().__init__(*args, **settings)

    def reset(self) -> None:
        """Begin anew: in a child, which must not speak on its parent's connections."""
        self._lying_ready: deque[Any] = deque()
        super().reset()

    def get_connection(self, *_: Any, **__: Any) -> Any:
        """A connection that nobody else has until `release`."""
        if self.pid == os.getpid():
            try:
                return self._lying_ready.pop()
            except IndexError:
                pass
        return super().get_connection()

    def release(self, connection: Any) -> None:
        """Its answers were all read, or it was disconnected."""
        if connection.pid != os.getpid():
            return
        if connection.should_reconnect():
            connection.disconnect()
        self._lying_ready.append(connection)


def connect(url: str, patience: Patience = PATIENT) -> RedisClient:
    """A client for `url` (`redis://` or `rediss://`); a comma list of hosts is a cluster.

    Answers are bytes. A single server is connected to by the first command, a cluster at once:
    raises TransientError when none of its seeds answers. Never call it before a fork.

    A cluster's client follows slots that move (MOVED, ASK) and asks the seeds anew whenever a
    node does not answer, so a promoted replica is found without a restart; until then calls raise
    TransientError, and those for other shards go on."""
    parts = urlsplit(url)
    seeds = parts.netloc.rpartition("@")[2].split(",")
    if len(seeds) == 1:
        pool = _Pool.from_url(
            url,
            patience=patience,
            socket_connect_timeout=patience.connect_seconds,
            socket_timeout=patience.answer_seconds,
            health_check_interval=30,
            retry=_retry(patience),
            protocol=2,
        )
        return redis.Redis.from_pool(pool)
    places = [urlsplit(f"redis://{seed}") for seed in seeds]
    nodes = [_node(place.hostname or "", place.port or 6379) for place in places]
    with transient():
        return _Cluster(
            startup_nodes=nodes,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            ssl=parts.scheme == "rediss",
            socket_connect_timeout=patience.connect_seconds,
            socket_timeout=patience.answer_seconds,
            retry=_retry(patience),
            # Else the addresses found last take the seeds' place, and a cluster that comes back
            # with new ones is never found again.
            dynamic_startup_nodes=False,
            protocol=2,
        )


@contextmanager
def transient() -> Iterator[None]:
    """Raises TransientError for what another attempt may cure; all else passes as it is."""
    try:
        yield
    except CrossSlotTransactionError:
        raise  # a bug of ours, although it descends from the cluster's troubles
    except _AWAY as error:
        if isinstance(error, AuthenticationError) or _REFUSED.search(str(error)):
            raise NotLetInError(f"Redis does not let us in: {error}") from error
        told = f": {error}" if isinstance(error, _TELLING) else ""
        raise TransientError(f"Redis: {type(error).__name__}{told}") from error
    except ResponseError as error:
        if _REFUSED.search(str(error)):
            raise NotLetInError(f"Redis does not let us in: {error}") from error
        if str(error).partition(" ")[0] in _AWAY_CODES:
            raise TransientError(f"Redis: {str(error).partition(' ')[0]}") from error
        raise


def ask(client: RedisClient, *command: Any) -> Any:
    """The answer to a command, of a single server or of the cluster's right one, as it came.
    Raises TransientError, and what the server answers as an error."""
    if not isinstance(client, RedisCluster):
        return answer_of(in_one_trip(client, command)[0])
    cluster: Any = client  # redis-py leaves it untyped
    with transient():
        return cluster.execute_command(*command)


def in_one_trip(client: redis.Redis, *commands: Command) -> list[Any]:
    """The answers of a single server to these commands, done in this order: one round trip.

    Commands of others may come in between. An answer may be an error: see `answer_of`. Raises
    TransientError where the server does not answer; then any of them may be done."""
    pool: Any = client.connection_pool
    riders = pool.own.riders if isinstance(pool, _Pool) else []
    if not riders:
        return _trip(client, commands)
    pool.own.riders = []
    try:
        answers = _trip(client, (*(one.command for one in riders), *commands))
    except Exception as error:
        for one in riders:
            one.told = error
        raise
    for one, answer in zip(riders, answers, strict=False):
        one.told = answer
    return answers[len(riders) :]


class Rider:
    """A command that goes with the next trip of this thread to the same server, as its first; or
    alone, when its answer is wanted before there was one. Made and asked by one thread."""

    def __init__(self, client: redis.Redis, command: Command) -> None:
        self.command = command
        self.told: Any = _NOTHING
        self._client = client
        pool: Any = client.connection_pool
        pool.own.riders.append(self)

    def answer(self) -> Any:
        """As of `ask`; raises TransientError also where only the trip's own part was in vain."""
        if self.told is _NOTHING:
            in_one_trip(self._client)
        return answer_of(self.told)


def may_ride(client: RedisClient, within_seconds: float) -> bool:
    """Whether a `Rider` can be made, and is told within that time, or that it can't be."""
    pool = None if isinstance(client, RedisCluster) else client.connection_pool
    return isinstance(pool, _Pool) and pool.patience.answer_seconds <= within_seconds


def _trip(client: redis.Redis, commands: Sequence[Command]) -> list[Any]:
    with transient():
        pool = client.connection_pool
        connection: Any = pool.get_connection()

        def once() -> list[Any]:
            connection.send_packed_command(connection.pack_commands(commands))
            return [_answer_on(connection) for _ in commands]

        def broken(_: Exception) -> None:
            connection.disconnect()  # the next attempt connects again

        try:
            answers: list[Any] = connection.retry.call_with_retry(once, broken)
        except BaseException:
            connection.disconnect()  # what is left of its answers would be taken for the next ones
            raise
        finally:
            pool.release(connection)
    return answers


def _answer_on(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def answer_of(answer: Any) -> Any:
    """The answer, if it is none that has to be raised; TransientError as everywhere."""
    if isinstance(answer, Exception):
        with transient():
            raise answer
    return answer


def check(client: RedisClient) -> None:
    """Raises TransientError unless the server (of a cluster: every primary) answers.

    Connections of its own, a second to answer: the client's patience with a server that hangs
    (20 s with its repeats) is longer than any probe waits. A cluster is looked at anew before it
    counts as away: who was promoted may not have been asked for anything yet."""
    with transient():
        if not isinstance(client, RedisCluster):
            _ping(client)
            return
        silent = _silent(client)
        if silent is not None:
            look_anew(client, silent)
            if (still := _silent(client)) is not None:
                raise RedisConnectionError(f"{still.name} does not answer")


def look_anew(client: RedisCluster, silent: ClusterNode) -> None:
    """Find out who has the slots now that this node does not answer. The client does so itself
    where it sends a command; whoever writes on a node's connection has to ask for it."""
    client.nodes_manager.initialize(last_failed_node_name=silent.name)


def _silent(client: RedisCluster) -> ClusterNode | None:
    """The first primary that does not answer."""
    for node in client.get_primaries():  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        try:
            if node.redis_connection is not None:
                _ping(node.redis_connection)
        except _AWAY:
            found: ClusterNode = node
            return found
    return None


def _ping(client: redis.Redis) -> None:
    pool = client.connection_pool
    settings = {
        **pool.connection_kwargs,
        "socket_connect_timeout": CHECK_SECONDS,
        "socket_timeout": CHECK_SECONDS,
        "retry": Retry(NoBackoff(), 0),
    }
    connection = pool.connection_class(**settings)
    try:
        connection.send_command("PING", check_health=False)
        connection.read_response()
    except _TELLING as error:
        place = f"{settings.get('host')}:{settings.get('port')}"
        # Not all of them say whom they asked.
        raise error if place in str(error) else type(error)(f"{error} ({place})") from None
    finally:
        connection.disconnect()


def _retry(patience: Patience) -> Retry:
    """The next attempts within half a second: longer waits are the caller's to decide."""
    backoff = ExponentialWithJitterBackoff(base=0.02, cap=0.3)
    return Retry(backoff, patience.retries, patience.after)


def _node(host: str, port: int) -> ClusterNode:
    return ClusterNode(host, port)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
