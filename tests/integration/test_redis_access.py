"""Each call of a store sends what the table of rights says, no more and no less; each function
makes the calls that the table gives it; and a server with that table lets it do nothing else."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import quote

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError
from redis.retry import Retry

from boards import folded, snapshot_of
from certificates import make_certificates
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import RedisClient, check, connect
from leaderboard.adapters.redis_connections import RedisConnections
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.redis_entrance import RedisEntrance
from leaderboard.adapters.redis_erasures import RedisErasures
from leaderboard.adapters.redis_limits import RedisLimits, key_of
from leaderboard.adapters.redis_progress import RedisProgress
from leaderboard.adapters.redis_replies import RedisReplies
from leaderboard.adapters.redis_watches import RedisWatches
from leaderboard.callers import Quota
from leaderboard.fraud import Piece, Watch
from leaderboard.model import Offset
from leaderboard.ports import Grant, Summary
from leaderboard.repetitions import Reply
from leaderboard.stack.access_redis import (
    ALWAYS,
    CALLS,
    CALLS_OF,
    Uses,
    rights_of,
    users_with_passwords,
)
from leaderboard.stack.functions import FUNCTIONS
from leaderboard.stack.process import LOOPBACK, Process, accepts, free_port
from leaderboard.stack.redis_cluster import ask
from logs import (
    ALICE,
    BOB,
    CAROL,
    LOG,
    START_MS,
    TOMBSTONE_KEY,
    T,
    erased,
    joined,
    scheduled,
    scored,
)

ROOT = Path(__file__).parents[2]
BASE: Final = ROOT / "platform/redis/base"
PASSWORD: Final = "a password of tests"
Entry = Any


def stores(client: RedisClient) -> SimpleNamespace:
    return SimpleNamespace(
        board=RedisBoard(client, TOMBSTONE_KEY, remembered_ids=2),
        directory=RedisDirectory(client),
        progress=RedisProgress(client),
        connections=RedisConnections(client, lambda: START_MS),
        erasures=RedisErasures(client, TOMBSTONE_KEY),
        entrance=RedisEntrance(client, TOMBSTONE_KEY, lambda: START_MS),
        limits=RedisLimits(client),
        replies=RedisReplies(client),
        watches=RedisWatches(client),
    )


def small_log(**changes: Any) -> list[Entry]:
    return [
        scheduled(0, **changes),
        joined(1, ALICE, "Alice"),
        joined(2, BOB),
        scored(3, ALICE, 50, 1),
        scored(4, BOB, 60, 2, source="/numbers", sequence=1),
        scored(5, ALICE, 5, 1),
    ]


def prepared(admin: RedisClient, **changes: Any) -> None:
    """A board, a list, requests, sockets: as the calls find them."""
    made = stores(admin)
    made.board.apply(T, LOG, None, small_log(**changes), None)
    terms = made.board.top(T, 1).terms
    made.directory.put(Summary(T, terms))
    made.progress.advance(LOG, 0, None, Offset(5), {T: Offset(5)})
    made.erasures.begin(CAROL, START_MS)


def grant(number: int = 1) -> Grant:
    return Grant(T, ALICE, f"c{number}", START_MS + 900_000)


def applies(s: SimpleNamespace, admin: SimpleNamespace) -> None:
    """Both orders, a required join, duplicates, an erasure, an end that is set."""
    for order in ("ascending", "descending"):
        admin.client.flushall()
        log = small_log(order=order, join="required")
        s.board.apply(T, LOG, None, log, None)
        s.board.apply(T, LOG, Offset(5), [scored(6, ALICE, 90, 3)], Offset(5), Offset(5))
        s.board.apply(T, LOG, Offset(6), [erased(7, BOB)], Offset(5))
        s.board.apply(T, LOG, Offset(7), [scored(8, BOB, 90)], None)
        admin.board.expire(T, admin.board.top(T, 1).sequence, START_MS * 10)
        s.board.apply(T, LOG, Offset(8), [scored(9, ALICE, 90)], None)
        # What another process finds: terms that it does not know.
        stores(s.client).board.apply(T, LOG, Offset(9), [scored(10, ALICE, 1)], None)


def restores(s: SimpleNamespace, admin: SimpleNamespace) -> None:
    admin.client.flushall()
    log = [*small_log(), erased(6, BOB)]
    s.board.restore(snapshot_of(folded(log, 2)))
    stale = snapshot_of(folded(small_log(), 2))
    s.board._restore(stale, force=False, loaded=lambda rows: None)


def views(call: Callable[[RedisBoard], object]) -> Callable[..., None]:
    def drive(s: SimpleNamespace, admin: SimpleNamespace) -> None:
        for order in ("ascending", "descending"):
            admin.client.flushall()
            prepared(admin.client, order=order)
            admin.client.script_flush()
            call(stores(s.client).board)

    return drive


def leases(s: SimpleNamespace, admin: SimpleNamespace) -> None:
    s.connections.lease(grant(1))
    s.connections.lease(grant(2))


def releases(s: SimpleNamespace, admin: SimpleNamespace) -> None:
    admin.connections.lease(grant(1))
    s.connections.release(T, ALICE)


def redeems(s: SimpleNamespace, admin: SimpleNamespace) -> None:
    assert s.connections.redeem(admin.connections.issue(grant(), 30)) == grant()


def leaves(s: SimpleNamespace, admin: SimpleNamespace) -> None:
    admin.connections.lease(grant(1))
    s.connections.left(grant(1))


def lets_go(s: SimpleNamespace, admin: SimpleNamespace) -> None:
    """One that is over, one that is not."""
    admin.connections.lease(Grant(T, ALICE, "c1", START_MS - 1))
    admin.connections.lease(Grant(T, BOB, "c2", START_MS + 900_000))
    assert s.connections.let_go(T) == 1


def looks(s: SimpleNamespace, admin: SimpleNamespace) -> None:
    """As a server that was started anew finds it, too: it knows no script."""
    admin.client.script_flush()
    s.entrance.look(T, BOB)


def counts(s: SimpleNamespace, admin: SimpleNamespace) -> None:
    """Within, too many, after the window, and after the clock was put back."""
    quota, over = Quota("q", 1), Quota("p", 1, seconds=0)
    admin.client.rpush(key_of(over, "b"), 2**52)
    for one, who in ((quota, "a"), (quota, "a"), (over, "a"), (over, "a"), (over, "b")):
        s.limits.begin(one, who).answer()


def open_again(s: SimpleNamespace, admin: SimpleNamespace) -> None:
    """From now on somebody opens each request again in the moment in which it leaves the list."""
    take_off = s.client.zrem

    def zrem(name: str, erasure_id: str) -> object:
        answer = take_off(name, erasure_id)
        told = {"player_id": CAROL, "requested_at_ms": START_MS}
        admin.client.hset(f"erasures:{erasure_id}", mapping=told)
        return answer

    s.client.zrem = zrem


def marks(s: SimpleNamespace, admin: SimpleNamespace) -> None:
    open_again(s, admin)
    s.erasures.mark(s.erasures.id_of(CAROL), {"record": "done"})


def pends(s: SimpleNamespace, admin: SimpleNamespace) -> None:
    """One that is pending, one that is done and still listed."""
    admin.client.zadd("erasures-pending", {"er-done": 1})
    open_again(s, admin)
    assert s.erasures.pending(10)[0] == 2


def puts(s: SimpleNamespace, admin: SimpleNamespace) -> None:
    s.directory.put(Summary(T, admin.board.top(T, 1).terms))


def replaces(s: SimpleNamespace, admin: SimpleNamespace) -> None:
    admin.client.script_flush()
    assert s.watches.replace(T, LOG, None, Offset(5), Watch())


def appends(s: SimpleNamespace, admin: SimpleNamespace) -> None:
    admin.watches.replace(T, LOG, None, Offset(5), Watch())
    admin.client.script_flush()
    assert s.watches.append(T, Offset(5), Offset(6), [Piece((), ())])


DRIVES: Final[dict[str, Callable[[Any, Any], object]]] = {
    "board.apply": applies,
    "board.restore": restores,
    "board.expire": lambda s, a: s.board.expire(T, a.board.top(T, 1).sequence, START_MS * 10),
    "board.stands_at": lambda s, a: s.board.stands_at(LOG, [T]),
    "board.top": views(lambda b: (b.top(T, 10), b.around(T, ALICE, 1))),
    "board.player": views(lambda b: (b.player(T, ALICE), b.around(T, ALICE, 1))),
    "board.rows": lambda s, a: s.board.rows(T, [ALICE, BOB]),
    "board.scores_at": views(lambda b: b.scores_at(T, [1, 2])),
    "board.is_in": lambda s, a: s.board.is_in(T, CAROL),
    "board.is_erased": lambda s, a: s.board.is_erased(T, BOB),
    "directory.put": puts,
    "directory.find": lambda s, a: s.directory.find(T),
    "directory.all": lambda s, a: s.directory.all(),
    "directory.remove": lambda s, a: s.directory.remove(T),
    "progress.read": lambda s, a: s.progress.read(LOG, 0),
    "progress.boards": lambda s, a: s.progress.boards(LOG, 0),
    "progress.advance": lambda s, a: s.progress.advance(LOG, 0, None, Offset(9), {T: Offset(9)}),
    "progress.forget": lambda s, a: s.progress.forget(LOG, 0, [T]),
    "erasures.begin": lambda s, a: s.erasures.begin(BOB, START_MS),
    "erasures.find": lambda s, a: s.erasures.find(s.erasures.id_of(CAROL)),
    "erasures.mark": marks,
    "erasures.restore": lambda s, a: s.erasures.restore("er-2", START_MS),
    "erasures.opened_before": lambda s, a: s.erasures.opened_before(START_MS),
    "erasures.is_erased": lambda s, a: s.erasures.is_erased(CAROL),
    "connections.issue": lambda s, a: s.connections.issue(grant(), 30),
    "connections.redeem": redeems,
    "connections.lease": leases,
    "connections.release": releases,
    "connections.holder": lambda s, a: s.connections.holder(T, ALICE),
    "connections.live": lambda s, a: s.connections.live(T, [ALICE]),
    "connections.is_spread": lambda s, a: s.connections.is_spread(T),
    "connections.sockets": lambda s, a: s.connections.sockets(T),
    "connections.due": lambda s, a: s.connections.due(START_MS, 10),
    "connections.closed": lambda s, a: s.connections.closed(["c1"]),
    "connections.let_go": lets_go,
    "connections.count": lambda s, a: s.connections.count(),
    "connections.left": leaves,
    "entrance.look": looks,
    "entrance.enter": lambda s, a: (s.entrance.enter(grant(1)), s.entrance.enter(grant(2))),
    "erasures.pending": pends,
    "limits.begin": counts,
    "replies.begin": lambda s, a: [s.replies.begin("k", "0" * 64) for _ in range(2)],
    "replies.keep": lambda s, a: s.replies.keep("k", "0" * 64, Reply(202, {}, {})),
    "watches.read": lambda s, a: s.watches.read(T),
    "watches.append": appends,
    "watches.replace": replaces,
}


@contextmanager
def user_with(admin: redis.Redis, uses: Uses) -> Iterator[None]:
    """A user who may do just this, while it lasts."""
    rules = ["reset", "on", f">{PASSWORD}", *uses.rules()]
    ask(admin, "ACL", "SETUSER", "tested", *rules)
    try:
        yield
    finally:
        ask(admin, "ACL", "DELUSER", "tested")


def as_user(url: str, user: str) -> redis.Redis:
    place = url.rpartition("@")[2].removeprefix("redis://").partition("/")[0]
    host, _, port = place.rpartition(":")
    return redis.Redis(host, int(port), username=user, password=PASSWORD, protocol=2)


@pytest.mark.parametrize("name", CALLS)
def test_call_sends_what_it_is_given_the_right_to(name: str, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url, protocol=2) as admin:
        admin.flushall()
        admin.script_flush()
        prepared(admin)
        admin.script_flush()
        uses = CALLS[name]
        as_admin = stores(admin)
        as_admin.client = admin
        with user_with(admin, uses | Uses(ALWAYS)):
            sent = run(name, redis_url, as_admin)
    # A connection says who it is: everybody may.
    commands = {words[0].upper() for words in sent} - {"AUTH"}
    assert commands == uses.commands
    words = {word for one in sent for word in one[1:]}
    for pattern in uses.writes | uses.reads | uses.given:
        assert any(fnmatchcase(word, pattern) for word in words), f"{pattern} is never used"


def run(name: str, url: str, as_admin: SimpleNamespace) -> list[list[str]]:
    """Make the call as the user `tested`: what that client sent, and what its scripts did."""
    with as_user(url, "tested") as client, redis.Redis.from_url(url, protocol=2) as marker:
        client.ping()
        made = stores(client)
        made.client = client
        with redis.Redis.from_url(url, protocol=2) as watcher, watcher.monitor() as monitor:
            DRIVES[name](made, as_admin)
            users = {one["addr"]: one["user"] for one in marker.client_list()}
            marker.execute_command("ECHO", "over")
            sent, by = [], ""
            while (one := monitor.next_command())["command"] != "ECHO over":
                if one["client_type"] != "lua":
                    by = users.get(f"{one['client_address']}:{one['client_port']}", "")
                if by == "tested":
                    sent.append(one["command"].split(" "))
            return sent


# --- the functions' own text ---------------------------------------------------------------------

PORTS: Final = (
    "board", "directory", "progress", "erasures", "connections", "entrance", "watches", "replies",
)  # fmt: skip
SAME: Final = {"board.begin": "board.apply", "board.around": "board.player"}
JOINED: Final = {
    "reads.top": {"board.top", "directory.find"},
    "reads.player": {"board.player", "directory.find"},
    "reads.around": {"board.player", "directory.find"},
    "reads.member": {"board.is_in"},
    "reads.all": {"directory.all"},
    "reads.find": {"directory.find"},
    "tournaments.find": {"directory.find"},
    "tournaments.knows": {"directory.find"},
    "tournaments.has_forgotten": set(),
    "entrance.look": {
        "entrance.look",
        "board.is_erased",
        "connections.holder",
        "connections.sockets",
        "erasures.is_erased",
    },
    "entrance.enter": {
        "entrance.enter",
        "connections.lease",
        "connections.sockets",
        "erasures.is_erased",
    },
}
"""What reads.py makes of a call to it, and an entrance where the store is a cluster."""
PURE: Final = {"erasures.id_of"}


def calls_in(text: str) -> set[str]:
    """Calls of the stores' ports (`self._board.top(`, `ports.board.top(`) in a module."""
    found = {
        f"{port}.{call}"
        for port, call in re.findall(
            rf"\b(?:ports\.|self\._|_)?({'|'.join([*PORTS, 'reads', 'tournaments'])})\.([a-z_]+)\(",
            text,
        )
    }
    joined = [JOINED[one] for one in found if one in JOINED]
    plain = {SAME.get(one, one) for one in found - JOINED.keys()} - PURE
    return plain.union(*joined)


@pytest.mark.parametrize("name", [one.name for one in FUNCTIONS])
def test_function_makes_the_calls_that_it_has_the_rights_for(name: str) -> None:
    function = next(one for one in FUNCTIONS if one.name == name)
    folder = ROOT / "functions" / function.folder
    files = {path.name: path for path in folder.glob("*.py")}
    over_http = files.pop("intake.py", None)
    paths = list(files.values())
    if over_http is not None and function.target is not None:
        paths = [over_http]
    text = "\n".join(path.read_text("utf-8") for path in paths)
    if "Rebuild(" in text:
        text += (ROOT / "shared/leaderboard/rebuild.py").read_text("utf-8")
    counted = {"limits.begin"} if "door=door_of(" in text else set()
    assert calls_in(text) | counted == set(CALLS_OF[name])


def test_every_right_is_somebodys() -> None:
    assert {call for calls in CALLS_OF.values() for call in calls} == CALLS.keys()
    assert DRIVES.keys() == CALLS.keys()


# --- platform/redis, on servers ------------------------------------------------------------------


class GuardedCluster:
    """Three nodes started and joined by the scripts and files of platform/redis."""

    def __init__(self, folder: Path) -> None:
        self.certificates = make_certificates(folder / "tls")
        self._secrets, self._folder = folder / "secrets", folder
        self._secrets.mkdir()
        for user in users_with_passwords():
            (self._secrets / user).write_text(f"{user} {PASSWORD}\n")
        self.ports = [free_port() for _ in range(3)]
        self.processes = [self._node(port) for port in self.ports]

    def _node(self, port: int) -> Process:
        folder = self._folder / str(port)
        folder.mkdir()
        tls = self.certificates
        argv = [
            "sh", str(BASE / "start.sh"), "--tls-port", str(port),
            "--cluster-port", str(free_port()), "--bind", LOOPBACK,
            # A busy machine is no failed node.
            "--cluster-node-timeout", "15000",
            "--tls-cert-file", str(tls.certificate), "--tls-key-file", str(tls.key),
            "--tls-ca-cert-file", str(tls.authority),
        ]  # fmt: skip
        environ = {**os.environ, "CONFIG": str(BASE), "SECRETS": str(self._secrets)}
        environ |= {"RUN": str(folder), "DATA": str(folder), "HOST": "localhost"}
        return Process("redis", argv, log_path=folder / "redis.log", environ=environ)

    def start(self) -> None:
        for process in self.processes:
            process.start()
        for port, process in zip(self.ports, self.processes, strict=True):
            process.wait_until(partial(accepts, port), 15)
        self.form()

    def form(self) -> str:
        environ = {**os.environ, "SECRETS": str(self._secrets), "REPLICAS": "0", "TRIES": "10"}
        environ["TLS"] = str(self.certificates.authority.parent)
        places = [f"localhost:{port}" for port in self.ports]
        return subprocess.run(
            ["sh", str(BASE / "form.sh"), *places],
            env=environ, check=True, capture_output=True, text=True, timeout=60,
        ).stdout  # fmt: skip

    def url(self, user: str) -> str:
        places = ",".join(f"localhost:{port}" for port in self.ports)
        return f"rediss://{user}:{quote(f'{user} {PASSWORD}')}@{places}"

    def node(self, user: str | None, index: int = 0, **options: Any) -> redis.Redis:
        who: dict[str, Any] = (
            {} if user is None else {"username": user, "password": f"{user} {PASSWORD}"}
        )
        return redis.Redis(
            "localhost", self.ports[index], ssl=True, protocol=2,
            ssl_ca_certs=str(self.certificates.authority), **who, **options,
        )  # fmt: skip

    def stop(self) -> None:
        for process in self.processes:
            process.stop()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedCluster]:
    cluster = GuardedCluster(tmp_path_factory.mktemp("guarded"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def as_role(
    guarded: GuardedCluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], RedisClient]]:
    """Clients as the functions make them: only the authority is told from outside."""
    monkeypatch.setenv("SSL_CERT_FILE", str(guarded.certificates.authority))
    opened: list[RedisClient] = []

    def client(user: str) -> RedisClient:
        opened.append(connect(guarded.url(user)))
        return opened[-1]

    yield client
    for one in opened:
        one.close()


def test_every_function_does_its_work_on_the_guarded_cluster(
    guarded: GuardedCluster, as_role: Callable[[str], RedisClient]
) -> None:
    admin = as_role("admin")
    as_admin = stores(admin)
    as_admin.client = admin
    for user, calls in CALLS_OF.items():
        client = as_role(user)
        check(client)
        made = stores(client)
        made.client = client
        for call in calls:
            admin.flushall(target_nodes="primaries")
            prepared(admin)
            DRIVES[call](made, as_admin)
    for index in range(3):
        with guarded.node("admin", index) as node:
            refused = {(one["username"], one["object"]) for one in node.acl_log()}
            # The client's own name, which servers before 7.2 don't know.
            assert {one for one in refused if one[1] not in ("client|setinfo", "client")} == set()


OTHERS: Final = {
    "query": [
        "SET ticket:x y",
        "HSET {t1}:board offset 1",
        "HGETALL erasures:x",
        "DEL tournaments",
    ],
    "on-wager-http": ["HGET {t1}:board offset", "HSET tournaments a b", "EVAL return(1) 0"],
    "on-rank-change": ["HSET {t1}:sockets a b", "ZADD {t1}:ranks 1 a", "HGET {t1}:out a"],
    "archive": ["HGET {t1}:sockets a", "GETDEL ticket:x", "HGETALL erasures:x"],
    "on-connect": ["HSET {t1}:board offset 1", "HDEL tournaments t1", "HSET erasures:x a b"],
    "erase": ["HSET {t1}:board offset 1", "HSET tournaments t1 x", "GETDEL ticket:x"],
    "tournament": ["HSET {t1}:board offset 1", "HGETALL erasures:x", "HSET tournaments t1 x"],
    "on-wager": ["GETDEL ticket:x", "HGET {t1}:sockets alice", "ZADD connections:due 1 a"],
    "operator": ["GETDEL ticket:x", "HGET progress:a:1 b"],
}
NOBODYS: Final = (
    "FLUSHALL", "KEYS *", "SCAN 0", "CONFIG GET *", "DEL {t1}:board", "MONITOR",
    "SCRIPT FLUSH", "ACL LIST", "SHUTDOWN", "FUNCTION LIST", "CLUSTER RESET",
)  # fmt: skip


@pytest.mark.parametrize("user", CALLS_OF)
def test_nobody_does_anything_else(user: str, guarded: GuardedCluster) -> None:
    with guarded.node(user) as node:
        for words in (*OTHERS[user], *NOBODYS):
            with pytest.raises(NoPermissionError):
                node.execute_command(*words.split(" "))


def test_what_a_script_is_only_given_it_does_not_write(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url, protocol=2) as admin:
        admin.delete("erasures:x")
        with user_with(admin, rights_of("on-connect")), as_user(redis_url, "tested") as client:
            reads = "return redis.call('EXISTS', KEYS[1])"
            assert client.eval(reads, 1, "erasures:x") == 0
            for command in ("HSET", "SET", "ZADD"):
                writes = f"return redis.call('{command}', KEYS[1], '1', '1')"
                with pytest.raises(ResponseError, match=r"can't (access|run)"):
                    client.eval(writes, 1, "erasures:x")
        assert not admin.exists("erasures:x")


def test_who_does_not_say_who_they_are_gets_nothing(guarded: GuardedCluster) -> None:
    with guarded.node(None) as nobody, pytest.raises(AuthenticationError):
        nobody.ping()
    with guarded.node("query") as wrong:
        wrong.connection_pool.connection_kwargs["password"] = "wrong"
        with pytest.raises(AuthenticationError):
            wrong.ping()
    plain = redis.Redis("localhost", guarded.ports[0], retry=Retry(NoBackoff(), 0))
    with plain, pytest.raises(redis.ConnectionError):
        plain.ping()
    context = ssl.create_default_context(cafile=str(guarded.certificates.authority))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("localhost", guarded.ports[0]), timeout=5) as raw,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(raw, server_hostname="localhost")


def test_settings_of_a_node_are_those_that_the_platform_counts_on(guarded: GuardedCluster) -> None:
    wanted = {"maxmemory-policy": "noeviction", "appendonly": "yes", "tls-replication": "yes"}
    wanted |= {"tls-cluster": "yes", "port": "0", "cluster-require-full-coverage": "no"}
    with guarded.node("admin") as node:
        assert {name: node.config_get(name)[name] for name in wanted} == wanted
    assert "formed already" in guarded.form()


def test_node_without_a_users_password_says_whose(tmp_path: Path) -> None:
    environ = {**os.environ, "CONFIG": str(BASE), "SECRETS": str(tmp_path), "RUN": str(tmp_path)}
    for user in users_with_passwords():
        (tmp_path / user).write_text("x")
    (tmp_path / "query").unlink()
    done = subprocess.run(
        ["sh", str(BASE / "start.sh")], env={**environ, "HOST": "localhost"},
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no password of the user query" in done.stderr
