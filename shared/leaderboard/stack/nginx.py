"""nginx with Nchan as a child process: the gateway of the local stack and of the tests.

Needs nginx and its Nchan module (Debian: `nginx-light libnginx-mod-nchan`). Works as root and as
anyone else: every path lies in the folder it is given.
"""

from __future__ import annotations

import http.client
import os
import re
import resource
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from leaderboard.stack.process import LOOPBACK, Process, StackError, claim_port

TEMPLATE: Final = Path(__file__).parents[3] / "platform" / "gateway" / "nginx.conf.template"
MODULE_FOLDERS: Final = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/etc/nginx/modules")
MODULE_NAME: Final = "ngx_nchan_module.so"
WORKER_CONNECTIONS: Final = 20_480
"""10,000 sockets, each with a second connection while it is being opened."""
SOCKET_SECONDS: Final = 960
"""A token's 15 minutes and a minute: no socket lives longer, whoever forgets to close it."""
PING_SECONDS: Final = 25
FRAME_KIB: Final = 256
DRAIN_SECONDS: Final = 5
"""After that, a gateway that was told to quit cuts who is still there: nobody publishes to it any
more, so the sooner its players are elsewhere the better."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one pod takes: sockets, and from one address sockets, openings and reads a second, and
    openings at the same time."""

    sockets: int = 10_000
    sockets_of_client: int = 200
    """Many players share an address: a mobile network's, an office's."""
    opening_a_second: int = 20
    opening_burst: int = 100
    asking_a_second: int = 50
    asking_burst: int = 200
    opening_at_once: int = 50
    """A body that comes in drops holds a connection, however small it is."""

    def values(self) -> dict[str, int]:
        return {name.upper(): getattr(self, name) for name in Limits.__slots__}


LAPTOP_LIMITS: Final = Limits(20_000, 20_000, 100_000, 100_000, 100_000, 100_000, 20_000)
"""All players of a laptop have one address."""
_PLACEHOLDER: Final = re.compile(r"\$\{([A-Z_]+)\}")
_SAFE_VALUE: Final = re.compile(r"[^\s;{}\"'#$\\]+( [^\s;{}\"'#$\\]+)*")


def nchan_module() -> Path:
    """Where this machine keeps the Nchan module. Raises StackError when it has none."""
    for folder in MODULE_FOLDERS:
        if (path := Path(folder) / MODULE_NAME).exists():
            return path
    raise StackError(
        "nginx's Nchan module is missing: install it "
        "(Debian: apt-get install nginx-light libnginx-mod-nchan)"
    )


def nginx_program() -> str:
    """nginx from PATH, or from where Debian keeps it. Raises StackError."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise StackError("nginx is missing: install it (Debian: apt-get install nginx-light)")
    return program


def render(values: Mapping[str, str | int], template: str | None = None) -> str:
    """The configuration with every `${NAME}` filled.

    Raises ValueError for a placeholder without a value, a value without a placeholder, and a
    value that could end its directive."""
    text = TEMPLATE.read_text(encoding="utf-8") if template is None else template
    code = re.sub(r"(?m)^\s*#.*$", "", text)
    wanted = set(_PLACEHOLDER.findall(code))
    if wanted != set(values):
        raise ValueError(f"placeholders differ in {sorted(wanted ^ set(values))}")
    for name, value in values.items():
        if _SAFE_VALUE.fullmatch(str(value)) is None:
            raise ValueError(f"{name}: {value!r} can't stand in a configuration of nginx")
    return _PLACEHOLDER.sub(lambda found: str(values.get(found[1], found[0])), text)


def backends(authorize_url: str, query_url: str) -> dict[str, str]:
    """The values that say whom the gateway asks."""
    return {
        "AUTHORIZE_HOST": urlsplit(authorize_url).netloc,
        "QUERY_HOST": urlsplit(query_url).netloc,
    }


class NginxServer:
    """One nginx with one worker: players on `public_port`, functions on `publish_port`."""

    def __init__(  # noqa: PLR0913 - all that stacks and tests set for themselves
        self,
        folder: Path,
        *,
        authorize_url: str,
        public_port: int = 0,
        publish_port: int = 0,
        query_url: str | None = None,
        socket_seconds: int = SOCKET_SECONDS,
        ping_seconds: int = PING_SECONDS,
        limits: Limits = LAPTOP_LIMITS,
        tls: str | None = None,
    ) -> None:
        """`authorize_url` is on-connect's route (`http://host:port/internal/authorize`);
        `query_url` where `query` is, by default in the same place. `tls`: the text of a
        configuration file that says with which certificate players are met.

        Raises StackError without nginx or Nchan, PortTakenError naming the setting."""
        program, module = nginx_program(), nchan_module()
        self._folder = folder
        self._tls = tls
        self.public_port = claim_port(public_port, "GATEWAY_PORT")
        self.publish_port = claim_port(publish_port, "GATEWAY_PUBLISH_PORT")
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        open_files = 2 * WORKER_CONNECTIONS
        if hard != resource.RLIM_INFINITY:
            open_files = min(open_files, hard)
        self._values: Mapping[str, str | int] = {
            "NCHAN_MODULE": str(module),
            "WORKERS": 1,
            "OPEN_FILES": open_files,
            "WORKER_CONNECTIONS": min(WORKER_CONNECTIONS, open_files),
            "RUN_FOLDER": str(folder),
            "ERROR_LOG": "stderr",
            "ACCESS_LOG": f"{folder}/attempts.log attempts",
            "MESSAGE_MEMORY": "128M",
            "CONFIG_FOLDER": str(folder),
            "DRAIN_SECONDS": DRAIN_SECONDS,
            "PUBLIC_LISTEN": f"{LOOPBACK}:{self.public_port}{' ssl' if tls else ''}",
            "PUBLISH_LISTEN": f"{LOOPBACK}:{self.publish_port}",
            **backends(authorize_url, query_url or authorize_url.rpartition("/internal/")[0]),
            **limits.values(),
            "PING_SECONDS": ping_seconds,
            "SOCKET_SECONDS": socket_seconds,
            "FRAME_BYTES": f"{FRAME_KIB}k",
        }
        config = folder / "nginx.conf"
        argv = [program, "-e", "stderr", "-p", str(folder), "-c", str(config)]
        # Workers of a killed master would serve on.
        self.process = Process(
            "nginx", argv, log_path=folder / "nginx.log", death_signal=signal.SIGTERM
        )

    @property
    def publish_url(self) -> str:
        """What GATEWAY_PUBLISH_URL has to be."""
        return f"http://{LOOPBACK}:{self.publish_port}"

    @property
    def client_url(self) -> str:
        """What GATEWAY_CLIENT_URL has to be."""
        return f"ws://{LOOPBACK}:{self.public_port}/connect"

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self, timeout_seconds: float = 10) -> None:
        """Write the configuration, start, and wait until it answers. Raises StackError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            # Workers give root up; they have to pass through to their folders.
            self._folder.chmod(0o711)
        (self._folder / "nginx.conf").write_text(render(self._values), encoding="utf-8")
        if self._tls is not None:
            (self._folder / "tls.conf").write_text(self._tls, encoding="utf-8")
        self.process.start()
        self.process.wait_until(self._answers, timeout_seconds)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, self.publish_port, timeout=1)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        """Stop at once; every socket is cut."""
        self.process.stop()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()


def cluster_config() -> str:
    """The configuration of a pod: TLS, production's limits, functions by their names."""
    local = "leaderboard.svc.cluster.local"
    return _container_config(
        "8443 ssl",
        "8081",
        backends(f"http://on-connect.{local}/internal/authorize", f"http://query.{local}"),
        Limits(),
    )


def compose_config() -> str:
    """The configuration of the local stack in containers, at the addresses of its own."""
    functions = backends(f"http://{LOOPBACK}:8401/internal/authorize", f"http://{LOOPBACK}:8400")
    return _container_config(f"{LOOPBACK}:8408", f"{LOOPBACK}:8409", functions, LAPTOP_LIMITS)


def _container_config(
    public: str, publish: str, functions: Mapping[str, str], limits: Limits
) -> str:
    return render(
        {
            "NCHAN_MODULE": f"{MODULE_FOLDERS[0]}/{MODULE_NAME}",
            "WORKERS": 1,
            "OPEN_FILES": 2 * WORKER_CONNECTIONS,
            "WORKER_CONNECTIONS": WORKER_CONNECTIONS,
            "RUN_FOLDER": "/run/nginx",
            "CONFIG_FOLDER": "/etc/gateway",
            "ERROR_LOG": "stderr",
            "ACCESS_LOG": "/dev/stdout attempts",
            "MESSAGE_MEMORY": "128M",
            "DRAIN_SECONDS": DRAIN_SECONDS,
            "PUBLIC_LISTEN": public,
            "PUBLISH_LISTEN": publish,
            **functions,
            **limits.values(),
            "PING_SECONDS": PING_SECONDS,
            "SOCKET_SECONDS": SOCKET_SECONDS,
            "FRAME_BYTES": f"{FRAME_KIB}k",
        }
    )
