"""The keys of a board in Redis, and the scripts that work on them.

How the bytes in those keys lie is written once, in `board_layout.lua`, which stands before each
script; Python sends and gets plain values."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from redis import ConnectionPool, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from leaderboard.adapters.redis_client import (
    Command,
    RedisClient,
    Rider,
    ask,
    look_anew,
    transient,
)
from leaderboard.errors import ForeignLogError
from leaderboard.model import TournamentId

LAST_LOOK_SECONDS: Final = 0.02
"""For an answer that is looked at when its time is over already: it may be there."""
NAMES: Final = ("board", "ranks", "rows", "names", "newer", "older", "numbers", "out", "outbox")


@lru_cache(maxsize=10_000)
def keys_of(tournament_id: TournamentId) -> tuple[bytes, ...]:
    """The nine keys, in the order of `NAMES`. All keys of a tournament share one hash tag, so
    they share one slot of a cluster."""
    return tuple(f"{{{tournament_id}}}:{name}".encode() for name in NAMES)


def text_of(name: str) -> str:
    """A script of this folder with the layout before it."""
    here = Path(__file__)
    layout = here.with_name("board_layout.lua").read_text(encoding="utf-8")
    return layout + here.with_name(f"{name}.lua").read_text(encoding="utf-8")


class Script:
    """A script called by its hash; sent whole to a server that does not know it (yet).

    A call is repeated after a broken connection: a script has to be harmless when done twice."""

    def __init__(self, client: RedisClient, text: str, *, read_only: bool) -> None:
        self._client = client
        self._text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._name, self._whole = ("EVALSHA_RO", "EVAL_RO") if read_only else ("EVALSHA", "EVAL")

    def __call__(self, keys: Sequence[bytes], *args: object) -> Any:
        try:
            return ask(self._client, *self.command(keys, *args))
        except NoScriptError:
            return ask(self._client, self._whole, self._text, len(keys), *keys, *args)

    def command(self, keys: Sequence[bytes], *args: object) -> Command:
        """The call as it is sent first: NoScriptError is an answer to it."""
        return (self._name, self._sha, len(keys), *keys, *args)

    def riding(self, keys: Sequence[bytes], *args: object) -> Callable[[], Any]:
        """The call as a `Rider`, and what gets its answer."""
        client: Any = self._client
        rider = Rider(client, self.command(keys, *args))

        def answer() -> Any:
            try:
                return rider.answer()
            except NoScriptError:
                return self(keys, *args)

        return answer

    def begin(self, keys: Sequence[bytes], *args: object) -> Sent:
        """Send the call and come back at once. Raises TransientError."""
        with transient(), _pool_of(self._client, keys[0]) as pool:
            connection: Any = pool.get_connection()
            try:
                try:
                    connection.send_command(*self.command(keys, *args))
                except RedisConnectionError:
                    # It was closed while it lay ready, and is disconnected now: once more.
                    connection.send_command(*self.command(keys, *args))
            except BaseException:
                connection.disconnect()
                pool.release(connection)
                raise
        return Sent(lambda: self(keys, *args), pool, connection)


class Sent:
    """A call that was sent. Its answer is fetched, or abandoned, once."""

    def __init__(self, again: Callable[[], Any], pool: ConnectionPool, connection: Any) -> None:
        self._again = again
        self._pool = pool
        self._connection = connection
        self._sent_at = time.monotonic()

    def answer(self, *, within_seconds: float | None = None) -> Any:
        """Raises TransientError. Where the answer does not come, or tells to go elsewhere, the
        call is made again in the ordinary way. With `within_seconds`, counted from when it was
        sent, it has failed when it takes longer."""
        try:
            if within_seconds is None:
                answer = self._connection.read_response()
            else:
                left = within_seconds - (time.monotonic() - self._sent_at)
                answer = self._connection.read_response(timeout=max(left, LAST_LOOK_SECONDS))
        except RedisError as error:
            self.abandon()
            if within_seconds is None or not isinstance(error, RedisTimeoutError):
                return self._again()
            with transient():
                raise
        except BaseException:
            self.abandon()
            raise
        self._pool.release(self._connection)
        return answer

    def abandon(self) -> None:
        """Its answer would be taken for that of the next call."""
        self._connection.disconnect()
        self._pool.release(self._connection)


@contextmanager
def _pool_of(client: RedisClient, key: bytes) -> Iterator[ConnectionPool]:
    """The connections to whoever has the key. Where that one can't be reached, whoever has it
    instead is looked for, so that another attempt does not end at the same place."""
    if not isinstance(client, RedisCluster):
        yield client.connection_pool
        return
    cluster: Any = client  # redis-py leaves it untyped
    node = cluster.get_node_from_key(key.decode())
    try:
        yield client.get_redis_connection(node).connection_pool
    except (RedisConnectionError, RedisTimeoutError):
        look_anew(client, node)
        raise


def foreign(tournament_id: TournamentId, found: bytes, log_id: str) -> ForeignLogError:
    """The error for a board that was folded from the log `found`."""
    return ForeignLogError(f"{tournament_id} was folded from {found.decode()}, not {log_id}")
