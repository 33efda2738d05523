"""Who may do what in Redis: the commands and keys of each call that a function makes of a store.

One user a function, named like it. Rights are those of the calls in `CALLS_OF`, and no others: a
test compares that list with the functions' own text, and another runs every call on a server and
compares what it sends with what stands here. What a script does inside counts as sent by its
caller: a server checks it, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from leaderboard.adapters.redis_scripts import NAMES

ALWAYS: Final = frozenset({"PING"})
"""Of every connection, and what a client of a cluster asks before anything else."""
IN_A_CLUSTER: Final = frozenset({"ASKING", "CLUSTER|SLOTS", "COMMAND"})
_ASIDE: Final = "{*}:aside:*"
_SOCKETS: Final = "{*}:sockets"
_DUE: Final = "connections:due"
_LIST: Final = "tournaments"
_PENDING: Final = "erasures-pending"


@dataclass(frozen=True, slots=True)
class Uses:
    """What one call needs: commands, keys that it writes, and keys that it only reads."""

    commands: frozenset[str]
    writes: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()
    """Read, by a script that is also given keys to write: a server takes all that a script is
    given for written. Nothing but a script may be given them so; what it does is still checked."""

    def __or__(self, other: Uses) -> Uses:
        writes = self.writes | other.writes
        reads = (self.reads | other.reads) - writes
        given = (self.given | other.given) - writes
        return Uses(self.commands | other.commands, writes, reads, given)

    def rules(self) -> list[str]:
        """As an ACL SETUSER takes them, behind `-@all`."""
        keys = [f"~{one}" for one in sorted(self.writes)]
        keys += [f"%R~{one}" for one in sorted(self.reads | self.given)]
        commands = [f"+{name.lower()}" for name in sorted(self.commands)]
        if not self.given:
            return [*keys, *commands]
        scripts = [f"~{one}" for one in sorted(self.writes | self.given)]
        return [*keys, *commands, f"({' '.join([*scripts, '+eval', '+evalsha'])})"]


def _uses(
    commands: str,
    writes: Iterable[str] = (),
    reads: Iterable[str] = (),
    given: Iterable[str] = (),
) -> Uses:
    sets = (frozenset(one) for one in (commands.split(), writes, reads, given))
    return Uses(*sets)


def _of_board(*names: str) -> list[str]:
    return [f"{{*}}:{name}" for name in names]


_WHOLE: Final = _of_board(*NAMES)
_SHOWN: Final = _of_board("board", "ranks", "rows", "names")
_SCRIPT, _READING = "EVAL EVALSHA", "EVAL_RO EVALSHA_RO"
_VIEW: Final = _uses(f"{_READING} HGET HMGET ZCARD ZRANGE ZRANK ZREVRANGE ZREVRANK", reads=_SHOWN)
CALLS: Final[Mapping[str, Uses]] = {
    "board.apply": _uses(
        f"{_SCRIPT} EXISTS HDEL HEXISTS HGET HLEN HMGET HSET LINDEX LPOP LRANGE PEXPIREAT RENAME "
        "RPUSH SADD SCARD SMISMEMBER UNLINK ZADD ZRANGE ZRANK ZREM ZREVRANGE ZREVRANK",
        _WHOLE,
    ),
    "board.restore": _uses(
        f"{_SCRIPT} HLEN HMGET HSET PERSIST PEXPIRE RENAME SADD SCARD UNLINK ZADD ZCARD",
        [*_WHOLE, _ASIDE],
    ),
    "board.expire": _uses(f"{_SCRIPT} HGET HSET PEXPIREAT", _WHOLE),
    "board.stands_at": _uses("HMGET", reads=_of_board("board")),
    "board.top": _VIEW,
    "board.player": _VIEW,
    "board.rows": _uses(f"{_READING} HMGET ZSCORE", reads=_SHOWN),
    "board.scores_at": _uses(f"{_READING} HMGET ZRANGE ZREVRANGE", reads=_SHOWN),
    "board.is_in": _uses("HEXISTS", reads=_of_board("names", "rows")),
    "board.is_erased": _uses(f"{_READING} HGET HMGET", reads=[*_SHOWN, *_of_board("out")]),
    "directory.put": _uses("EVAL HGET HSET", [_LIST]),
    "directory.find": _uses("HGET", reads=[_LIST]),
    "directory.all": _uses("HGETALL", reads=[_LIST]),
    "directory.remove": _uses("HDEL", [_LIST]),
    "progress.read": _uses("HGET", reads=["progress:*"]),
    "progress.boards": _uses("HGETALL", reads=["progress:*"]),
    "progress.advance": _uses(f"{_SCRIPT} HGET HSET", ["progress:*"]),
    "progress.forget": _uses("HDEL", ["progress:*"]),
    "watches.read": _uses("LRANGE", reads=_of_board("watch")),
    "watches.append": _uses(f"{_SCRIPT} EXPIRE LINDEX RPUSH", _of_board("watch")),
    "watches.replace": _uses(f"{_SCRIPT} EXPIRE LINDEX RPUSH UNLINK", _of_board("watch")),
    "erasures.begin": _uses("EVAL HEXISTS HGETALL HSET HSETNX ZADD", ["erasures:*", _PENDING]),
    "erasures.find": _uses("HGETALL", reads=["erasures:*"]),
    "erasures.mark": _uses(
        "EVAL EXISTS HDEL HGET HGETALL HSET HSETNX ZADD ZREM", ["erasures:*", _PENDING]
    ),
    "erasures.pending": _uses("HGETALL ZADD ZCARD ZRANGE ZREM", [_PENDING], ["erasures:*"]),
    "erasures.opened_before": _uses("ZCOUNT", reads=[_PENDING]),
    "erasures.restore": _uses("HSETNX", ["erasures:*"]),
    "erasures.is_erased": _uses("EXISTS", reads=["erasures:*"]),
    "connections.issue": _uses("SET", ["ticket:*"]),
    "connections.redeem": _uses("GETDEL", ["ticket:*"]),
    "connections.lease": _uses("EVAL HGET HLEN HSET PEXPIRE PTTL ZADD", [_SOCKETS, _DUE]),
    "connections.release": _uses("EVAL HDEL HGET ZADD", [_SOCKETS, _DUE]),
    "connections.holder": _uses("HGET", reads=[_SOCKETS]),
    "connections.live": _uses("HMGET", reads=[_SOCKETS]),
    "connections.is_spread": _uses("HEXISTS", reads=[_SOCKETS]),
    "connections.sockets": _uses("HLEN", reads=[_SOCKETS]),
    "connections.let_go": _uses("EVAL HDEL HLEN HRANDFIELD", [_SOCKETS]),
    "connections.due": _uses("ZRANGEBYSCORE", reads=[_DUE]),
    "connections.closed": _uses("ZREM", [_DUE]),
    "connections.count": _uses("ZCARD", reads=[_DUE]),
    "connections.left": _uses("EVAL HDEL HGET ZREM", [_SOCKETS, _DUE]),
    "entrance.look": _uses(
        f"{_READING} EXISTS HGET HLEN HMGET",
        reads=[*_SHOWN, *_of_board("out"), _SOCKETS, "erasures:*"],
    ),
    "entrance.enter": _uses(
        f"{_SCRIPT} EXISTS HGET HLEN HSET PEXPIRE PTTL ZADD",
        [_SOCKETS, _DUE],
        given=["erasures:*"],
    ),
    "limits.begin": _uses(f"{_SCRIPT} LINDEX LLEN LPOP PEXPIRE RPUSH TIME UNLINK", ["limit:*"]),
    "replies.begin": _uses("SET", ["request:*"]),
    "replies.keep": _uses("SET", ["request:*"]),
}
"""By port and call; `begin` of a board is `apply`, and `around` is `player`."""

_REBUILD: Final = (
    "board.apply", "board.restore", "board.stands_at", "directory.put", "erasures.restore",
)  # fmt: skip
_READS: Final = ("board.top", "board.player", "directory.all", "directory.find")
CALLS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "on-wager": (
        *_REBUILD, "progress.advance", "progress.boards", "progress.read", "watches.append",
        "watches.read", "watches.replace",
    ),
    "on-wager-http": ("directory.find",),
    "on-rank-change": (
        "board.scores_at", "board.top", "connections.is_spread", "connections.live",
        "directory.all",
    ),
    "archive": (
        "board.expire", "board.rows", "board.top", "directory.remove", "progress.forget",
        "progress.read",
    ),
    "query": (*_READS, "limits.begin"),
    "on-connect": (
        "board.is_erased", "board.top", "connections.closed", "connections.count",
        "connections.due", "connections.holder", "connections.issue", "connections.lease",
        "connections.left", "connections.let_go", "connections.redeem", "connections.release",
        "connections.sockets", "directory.find", "entrance.enter", "entrance.look",
        "erasures.is_erased", "limits.begin",
    ),
    "erase": (
        "board.is_erased", "board.is_in", "board.player", "board.top", "connections.holder",
        "connections.release", "directory.all", "directory.find", "erasures.begin",
        "erasures.find", "erasures.mark", "erasures.opened_before", "erasures.pending",
    ),
    "tournament": (
        "board.is_in", "board.player", "board.top", "directory.all", "directory.find",
        "replies.begin", "replies.keep",
    ),
    # Staff with `leaderboard rebuild`.
    "operator": _REBUILD,
}  # fmt: skip
SERVERS_OWN: Final[Mapping[str, str]] = {
    "default": "off",
    "admin": "on {password} ~* &* +@all",
    "replica": "on {password} resetchannels -@all +ping +psync +replconf",
    "probe": "on nopass resetchannels -@all +ping +cluster|info",
}
"""Users that no function has: whom a replica is, whom a person with all rights, whom a probe."""


def rights_of(user: str) -> Uses:
    """All that a function's user may do."""
    every = Uses(ALWAYS | IN_A_CLUSTER)
    for call in CALLS_OF[user]:
        every |= CALLS[call]
    return every


def rules_of(user: str, password: str) -> str:
    """The rules of an ACL SETUSER; `password` as ACL rules spell one (`>…`, or `#` and a hash)."""
    return " ".join(["on", password, "resetchannels", "-@all", *rights_of(user).rules()])


def acl_file(password_of: Mapping[str, str]) -> str:
    """An `aclfile` with every user. Raises KeyError for one whose password is not given.

    A password is as ACL rules spell one: `>` and the password, or `#` and its SHA-256 in hex."""
    lines = [
        f"user {name} {rules.format(password=password_of[name] if '{' in rules else '')}"
        for name, rules in SERVERS_OWN.items()
    ]
    lines += [f"user {name} {rules_of(name, password_of[name])}" for name in CALLS_OF]
    return "\n".join(lines) + "\n"


def users_with_passwords() -> list[str]:
    return [name for name, rules in SERVERS_OWN.items() if "{" in rules] + list(CALLS_OF)
