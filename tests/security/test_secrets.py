"""Known secrets in a running stack, everything that goes wrong provoked, and then a search.

Nothing that is printed, logged, traced, measured or answered holds one, and no process shows one
to `ps`. A process's environment does: its owner and root may read it, as docs/security.md says."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as Folder
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest
import redis

from leaderboard.events import WAGERS, Record
from leaderboard.stack.functions import FUNCTIONS
from leaderboard.stack.process import LOOPBACK, free_port
from running import LEADERBOARD, StackCommand, command, descendants, wait_for
from sockets import Players
from whole_path import Path, event, schedule, unique, wager

ROOT: Final = Folder(__file__).parents[2]
USER: Final = "functions"
TRACES: Final = ".stack/data/traces.jsonl"
SIGNING_KEY: Final = ".stack/data/audit-signing-key"
SHORTEST: Final = 12
"""No shorter piece of a secret is looked for: it could be anything's."""


def secret(name: str) -> str:
    """A secret that stands out, and holds what URLs and JSON write in another way."""
    return f"{name}-{secrets.token_hex(8)}"


@dataclass
class Secrets:
    """What must not be found, by what it is; and in which spellings it is looked for."""

    known: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, text: str) -> str:
        self.known[name] = text
        return text

    def found_in(self, text: str) -> list[str]:
        """Which of them are in it: plain, percent-encoded, as JSON has it, or its second half."""
        return [name for name, one in self.known.items() if any(s in text for s in spelled(one))]


def spelled(text: str) -> set[str]:
    half = text[len(text) // 2 :]
    found = {text, quote(text, safe=""), json.dumps(text)[1:-1]}
    return found | ({half} if len(half) >= SHORTEST else set())


@dataclass
class Played:
    """A stack that has been played on and disturbed, and what it said meanwhile."""

    path: Path
    secrets: Secrets
    answers: list[str] = field(default_factory=list)
    printed: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, url: str, **how: Any) -> httpx.Response | None:
        """An answer of whatever kind, kept whole; None where there was none."""
        with contextlib.suppress(httpx.HTTPError):
            answer = self.path.http.request(method, url, **how)
            self.answers.append(f"{method} {answer.status_code} {answer.headers} {answer.text}")
            return answer
        return None


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, players: Players) -> Iterator[Played]:
    kept, folder = Secrets(), tmp_path_factory.mktemp("secrets")
    redis_port, sql_port = free_port(), free_port()
    redis_password = kept.add("Redis password", secret("redis"))
    sql_password = kept.add("database password", secret("sql"))
    settings = {
        "REDIS_PORT": str(redis_port),
        "POSTGRES_PORT": str(sql_port),
        "TOMBSTONE_KEY": kept.add("tombstone key", secret("tombstone") + secrets.token_hex(16)),
    }
    for one in FUNCTIONS:
        # As a function has it in a cluster: a user and a password in each URL.
        label = one.label
        settings[f"{label}__REDIS_URL"] = (
            f"redis://{USER}:{redis_password}@{LOOPBACK}:{redis_port}/0"
        )
        settings[f"{label}__DATABASE_URL"] = (
            f"postgresql://postgres:{sql_password}@{LOOPBACK}:{sql_port}/leaderboard"
        )
    stack = StackCommand(folder, ["stack", "--free-ports", "--traces"], settings)
    admin = redis.Redis(LOOPBACK, redis_port)
    letting_in = threading.Thread(target=let_in, args=(admin, redis_password), daemon=True)
    letting_in.start()
    stack.start()
    letting_in.join()
    # Only archive reads it; a stack makes it anew.
    kept.add("audit log's key", (folder / SIGNING_KEY).read_text("utf-8").strip())
    found = Played(Path(stack, players), kept)
    try:
        play(found)
        disturb(found, admin, redis_password)
        yield found
    finally:
        found.path.close()
        stack.stop()
        admin.close()


def asked(admin: redis.Redis, words: str) -> None:
    """A command of Redis."""
    admin.execute_command(*words.split())  # type: ignore[no-untyped-call]


def let_in(admin: redis.Redis, password: str) -> None:
    """Make the functions' user as soon as the server is there: they have been refused before."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(redis.ConnectionError):
            time.sleep(0.3)
            asked(admin, f"ACL SETUSER {USER} on >{password} ~* &* +@all")
            return


def play(one: Played) -> None:
    """Sound calls, and calls with secrets in all the wrong places."""
    path, kept = one.path, one.secrets
    name = unique("cup")
    placed = path.publish([schedule(name), wager(name, "alice", 5)])
    path.reached(name, placed[-1].offset)
    traced = ["produce", "--tournament", name, "--player", "alice", "--stake", "7"]
    assert command(traced, path.stack.folder).returncode == 0
    player = kept.add("player's token", path.token("player", "alice"))
    operator = kept.add("operator's token", path.token("operator"))
    spoilt = {"tournament_id": name, "player_id": operator, operator: 1}
    headers = (("ce_type", operator.encode()), (operator, b"1"), ("ce_id", operator.encode()))
    path.send([Record(WAGERS, name.encode(), json.dumps(spoilt).encode(), headers)])
    forged = kept.add("forged token", operator[:-8] + "AAAAAAAA")
    answer = path.ticket(name, "alice").json()
    kept.add("ticket", answer["url"].partition("ticket=")[2])
    path.players.connect(answer["url"])
    unused = path.ticket(name, "bob").json()["url"]
    kept.add("unused ticket", unused.partition("ticket=")[2])
    wrong = kept.add("wrong ticket", secret("ticket"))
    with contextlib.suppress(Exception):
        path.players.connect(unused.partition("=")[0] + f"={wrong}")
    for setting in ("QUERY_URL", "CONNECT_URL", "ERASE_URL", "TOURNAMENT_URL", "ON_WAGER_URL"):
        url = path.settings[setting]
        for token in (player, operator, forged):
            bearer = {"Authorization": f"Bearer {token}"}
            one.ask("GET", f"{url}/v1/tournaments?state=nonsense", headers=bearer)
            one.ask("GET", f"{url}/v1/tournaments/{name}?token={token}", headers=bearer)
            one.ask("GET", f"{url}/v1/{token}/x")
            one.ask("POST", f"{url}/v1/erasures", headers=bearer, json={"player_id": token})
            one.ask("POST", f"{url}/v1/tournaments", headers=bearer, json={"name": token})
            one.ask("POST", url, headers={**bearer, "ce-id": token, "ce-type": token})
            one.ask("GET", f"{url}/healthz", headers={"Authorization": token, "Cookie": token})
            one.ask("BREW", url, headers=bearer)


def disturb(one: Played, admin: redis.Redis, password: str) -> None:
    """Stores go, come back, and refuse the password that was right a moment ago."""
    path = one.path
    name = unique("later")
    path.publish([schedule(name), wager(name, "alice", 7)])
    asked(admin, f"ACL SETUSER {USER} resetpass >another-password")
    asked(admin, f"CLIENT KILL USER {USER}")
    ask_around(one, name)
    time.sleep(1.5)
    asked(admin, f"ACL SETUSER {USER} >{password}")
    for server in ("PID_POSTGRES", "PID_REDIS"):
        os.kill(int(path.stack.env()[server]), signal.SIGKILL)
        ask_around(one, name)
        time.sleep(1)
        if server == "PID_REDIS":
            let_in(admin, password)
    os.kill(int(path.stack.env()["PID_ON_WAGER_1"]), signal.SIGKILL)
    path.publish([event(wager(name, "alice", 9).data)])
    wait_for(lambda: path.get(f"/v1/tournaments/{name}").status_code == 200, 40)
    wait_for((path.stack.folder / TRACES).exists, 20)


def ask_around(one: Played, name: str) -> None:
    path = one.path
    for _ in range(3):
        for role in ("player", "operator"):
            headers = path.headers(role, "alice")
            one.ask("GET", f"{path.settings['QUERY_URL']}/v1/tournaments/{name}", headers=headers)
            one.ask("GET", f"{path.settings['QUERY_URL']}/readyz")
            connect = f"{path.settings['CONNECT_URL']}/v1/tournaments/{name}/connections"
            one.ask("POST", connect, headers=headers)
            where = f"{path.settings['TOURNAMENT_URL']}/v1/tournaments/{name}/start"
            one.ask("POST", where, headers=headers)


# --- the search --------------------------------------------------------------------------------


def searched(one: Played) -> Iterator[tuple[str, str]]:
    """Everything that somebody may read: where it stands, and what it says."""
    folder = one.path.stack.folder
    yield "stack.log", (folder / "stack.log").read_text("utf-8", "replace")
    for path in sorted((folder / ".stack/logs").rglob("*")):
        if path.is_file():
            yield path.name, path.read_text("utf-8", "replace")
    yield "traces", (folder / TRACES).read_text("utf-8", "replace")
    for number, answer in enumerate(one.answers):
        yield f"answer {number}", answer
    for function in FUNCTIONS:
        if function.url_setting is not None:
            url = one.path.settings[function.url_setting]
            for route in ("/metrics", "/readyz", "/healthz", "/openapi.json"):
                with contextlib.suppress(httpx.HTTPError):
                    yield f"{function.name}{route}", one.path.http.get(f"{url}{route}").text


def command_lines(pid: int) -> Iterator[tuple[str, str]]:
    """What `ps` shows of every process below this one."""
    for child in sorted(descendants(pid)):
        with contextlib.suppress(OSError):
            line = Folder(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ")
            yield f"command line of {child}", line.decode("utf-8", "replace")


def test_nothing_that_a_stack_says_holds_a_secret(
    played: Played, record_property: Callable[[str, object], None]
) -> None:
    places = list(searched(played))
    told = "\n".join(text for _, text in places)
    # It did go wrong, and was told.
    for sign in ("is away", "event refused", '"status": 401', '"status": 422', '"status": 503'):
        assert sign in told, f"nothing provoked {sign!r}"
    assert len(played.secrets.known) > 7
    record_property("tried", len(places) * len(played.secrets.known))
    found = {name: hits for name, text in places if (hits := played.secrets.found_in(text))}
    assert not found


def test_no_process_shows_a_secret_in_its_command_line(
    played: Played, record_property: Callable[[str, object], None]
) -> None:
    lines = list(command_lines(played.path.stack.pid))
    record_property("tried", len(lines) * len(played.secrets.known))
    assert len(lines) >= len(FUNCTIONS) + 4
    assert not {name: hits for name, text in lines if (hits := played.secrets.found_in(text))}


def test_the_file_of_settings_is_its_owners_alone(played: Played) -> None:
    path = played.path.stack.env_path
    assert path.stat().st_mode & 0o077 == 0
    assert (played.path.stack.folder / SIGNING_KEY).stat().st_mode & 0o077 == 0
    assert played.secrets.found_in(path.read_text("utf-8")) == ["tombstone key"]


# --- processes that can't start ----------------------------------------------------------------

WORD: Final = "hunter2-do-not-print-me"
SOUND: Final = {
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "REDIS_URL": "redis://127.0.0.1:1",
    "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere",
    "TOMBSTONE_KEY": WORD * 3,
    "JWT_ISSUER": "https://issuer.example",
    "JWT_AUDIENCE": "leaderboard",
    "JWKS_URL": "https://issuer.example/jwks.json",
    "GATEWAY_KIND": "nchan",
    "GATEWAY_PUBLISH_URL": "http://127.0.0.1:1",
    "GATEWAY_CLIENT_URL": "ws://127.0.0.1:1/ws",
    "PORT": "0",
    "HOST": LOOPBACK,
}
BROKEN: Final[Mapping[str, Mapping[str, str]]] = {
    "a port that is none": {"REDIS_URL": f"redis://u:{WORD}@127.0.0.1:port/0"},
    "a host with a space": {"REDIS_URL": f"redis://u:{WORD}@127.0 .0.1:1/0"},
    "another scheme": {"REDIS_URL": f"http://u:{WORD}@127.0.0.1:1/0"},
    "a password without an end": {"REDIS_URL": f"redis://u:{WORD}"},
    "brackets": {"REDIS_URL": f"redis://u:{WORD}@[::1/0"},
    "a database's port": {"DATABASE_URL": f"postgresql://u:{WORD}@127.0.0.1:port/x"},
    "a database's scheme": {"DATABASE_URL": f"postgress://u:{WORD}@127.0.0.1:1/x"},
    "a database without a host": {"DATABASE_URL": f"postgresql://u:{WORD}@/x?host={WORD}:y"},
    "a short key": {"TOMBSTONE_KEY": WORD},
    "a password without a user": {
        "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "KAFKA_SASL_PASSWORD": WORD,
    },
    "a mechanism that is none": {
        "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "KAFKA_SASL_MECHANISM": "GUESS",
        "KAFKA_SASL_USERNAME": "u",
        "KAFKA_SASL_PASSWORD": WORD,
    },
    "a file that is not there": {"TOMBSTONE_KEY": "", "TOMBSTONE_KEY_FILE": "/nowhere/at/all"},
}


def started(
    words: Sequence[str], settings: Mapping[str, str], folder: Folder, seconds: float
) -> tuple[int | None, str]:
    """Exit code and everything that was printed; None: it had to be stopped."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    process = subprocess.Popen(
        words, cwd=folder, env={**kept, **settings}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        return process.wait(seconds), process.communicate()[0]
    except subprocess.TimeoutExpired:
        process.terminate()
        return None, process.communicate()[0]


@pytest.mark.parametrize("name", BROKEN)
def test_a_setting_that_is_wrong_is_named_and_not_shown(
    tmp_path: Folder, name: str, record_property: Callable[[str, object], None]
) -> None:
    changed = BROKEN[name]
    main = [sys.executable, str(ROOT / "functions/on-wager/main.py")]
    code, told = started(main, {**SOUND, **changed}, tmp_path, 20)
    assert code == 2, told
    assert any(one in told for one in (*changed, "KAFKA_SASL_USERNAME", "KAFKA_SASL_MECHANISM"))
    assert WORD not in told
    assert "Traceback" not in told
    record_property("tried", 1)


@pytest.mark.parametrize(
    "key", [WORD, f"PRIVATE+KEY+audit+0a1b2c3d+{base64.b64encode(WORD.encode()).decode()}"]
)
def test_a_signing_key_that_is_wrong_is_named_and_not_shown(
    tmp_path: Folder, key: str, record_property: Callable[[str, object], None]
) -> None:
    main = [sys.executable, str(ROOT / "functions/archive/main.py")]
    log = {"AUDIT_LOG_URL": tmp_path.as_uri(), "AUDIT_LOG_ORIGIN": "audit"}
    code, told = started(main, {**SOUND, **log, "AUDIT_SIGNING_KEY": key}, tmp_path, 20)
    assert code == 2, told
    assert told.startswith("archive: AUDIT_SIGNING_KEY")
    assert key.rpartition("+")[2] not in told
    record_property("tried", 1)


STRANGE: Final[Mapping[str, Mapping[str, str]]] = {
    "stores that are not there": {
        "REDIS_URL": f"redis://u:{WORD}@127.0.0.1:1/0",
        "DATABASE_URL": f"postgresql://u:{WORD}@127.0.0.1:1/x",
    },
    "a broker that wants no password": {
        "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": "u",
        "KAFKA_SASL_PASSWORD": WORD,
    },
    "a key that opens nothing": {
        "KAFKA_SECURITY_PROTOCOL": "SSL",
        "KAFKA_SSL_KEY_LOCATION": "/nowhere/key.pem",
        "KAFKA_SSL_KEY_PASSWORD": WORD,
    },
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_function_that_reaches_nothing_complains_without_its_secrets(
    tmp_path: Folder, played: Played, name: str, record_property: Callable[[str, object], None]
) -> None:
    broker = {"KAFKA_BOOTSTRAP_SERVERS": played.path.settings["KAFKA_BOOTSTRAP_SERVERS"]}
    main = [sys.executable, str(ROOT / "functions/on-wager/main.py")]
    settings = {**SOUND, **broker, "KAFKA_GROUP_ID": unique("strange"), **STRANGE[name]}
    _, told = started(main, settings, tmp_path, 6)
    assert told, "it said nothing at all"
    assert WORD not in told
    record_property("tried", 1)


COMMANDS: Final = (
    ["record", "status"],
    ["record", "upgrade"],
    ["rebuild", "--all"],
    ["tournament", "list"],
    ["dlq", "list"],
    ["topics", "--check"],
)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_that_fails_tells_no_password(
    tmp_path: Folder, words: list[str], record_property: Callable[[str, object], None]
) -> None:
    settings = {
        **{name: text for name, text in SOUND.items() if name not in ("PORT", "HOST")},
        **STRANGE["stores that are not there"],
        **{"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA_SASL_MECHANISM": "PLAIN"},
        **{"KAFKA_SASL_USERNAME": "u", "KAFKA_SASL_PASSWORD": WORD},
    }
    code, told = started([*LEADERBOARD, *words], settings, tmp_path, 40)
    assert code not in (0, None), told
    assert WORD not in told
    record_property("tried", 1)


# --- the search finds what is there ------------------------------------------------------------


def test_a_secret_that_is_printed_is_found() -> None:
    token = "a.b.c-0123456789abcdef-zyxwv"
    kept = Secrets({"password": "se%cret/with+signs-0123456789", "token": token})
    for text in ("… se%cret/with+signs-0123456789 …", "se%25cret%2Fwith%2Bsigns-0123456789"):
        assert kept.found_in(text) == ["password"]
    assert kept.found_in(f"Bearer {token}") == ["token"]
    assert kept.found_in("only the end: 89abcdef-zyxwv") == ["token"]
    assert kept.found_in("nothing of the kind") == []


def test_a_secret_on_a_command_line_is_found() -> None:
    kept = Secrets({"password": secret("shown")})
    program = "import time; print(flush=True); time.sleep(60)"
    parent = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}, sys.argv[1]])"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, kept.known["password"]])
    try:
        wait_for(lambda: any(kept.found_in(t) for _, t in command_lines(os.getpid())), 10)
        below = [name for name, text in command_lines(process.pid) if kept.found_in(text)]
        assert len(below) <= 1
    finally:
        for child in descendants(process.pid):
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()
