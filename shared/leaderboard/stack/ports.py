"""Which port belongs to whom: fixed defaults, each moved by a setting, all checked first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from leaderboard.errors import SettingsError
from leaderboard.stack.functions import FUNCTIONS, SERVER_PORTS
from leaderboard.stack.process import StackError, free_port, is_free


def default_ports() -> dict[str, int]:
    """Every setting that moves a port, with its default."""
    return {f.port_setting: f.default_port for f in FUNCTIONS} | dict(SERVER_PORTS)


def choose_ports(
    environ: Mapping[str, str], *, free: bool = False, unused: Iterable[str] = ()
) -> dict[str, int]:
    """The port of every setting; 0 in the environment (or `free`) means any free one.

    Raises SettingsError for a value that is no port, for two settings with one port, and
    StackError naming every port that is taken, before anything was started."""
    chosen: dict[str, int] = {}
    for name, default in default_ports().items():
        if name in unused:
            continue
        text = environ.get(name) or ("0" if free else str(default))
        if not text.isdecimal() or int(text) > 65_535:
            raise SettingsError(f"{name}: {text!r} is no port (0 to 65535)")
        port = int(text)
        if port and port in chosen.values():
            other = next(key for key, value in chosen.items() if value == port)
            raise SettingsError(f"{name}: {port} is the port of {other} as well")
        chosen[name] = port
    taken = [f"{port} ({name})" for name, port in chosen.items() if port and not is_free(port)]
    if taken:
        several = len(taken) > 1
        raise StackError(
            f"{'ports' if several else 'port'} taken by another program: {', '.join(taken)}; "
            f"set {'these settings' if several else 'that setting'} to another port "
            "(0: any free one), or use --free-ports"
        )
    return {name: port or _another(chosen) for name, port in chosen.items()}


def _another(chosen: Mapping[str, int]) -> int:
    while (port := free_port()) in chosen.values():
        pass
    return port
