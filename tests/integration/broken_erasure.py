"""What a broken erasure leaves out: put in front of every process of a stack as `sitecustomize`.

Nothing of the product is changed; modules are altered as they are imported, by the names in
`broken.txt` beside it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


def _beside(module: Any) -> None:
    module.forget_beside = lambda connection, players, key: None


def _alerts(module: Any) -> None:
    module.forget_alerts = lambda connection, players, key: None


def _watch(module: Any) -> None:
    module.Watch._forget = lambda self, player: None


def _lease(module: Any) -> None:
    module.RedisConnections.release = module.RedisConnections.holder


def _request(module: Any) -> None:
    module.SqlRequests.close = lambda self, erasure_id, done_at_ms, now_ms: True


def _log(module: Any) -> None:
    begin = module.RedisErasures.begin

    def told(self: Any, player_id: str, now_ms: int) -> Any:
        print(f"forgetting {player_id}", file=sys.stderr, flush=True)
        return begin(self, player_id, now_ms)

    module.RedisErasures.begin = told


def _frame(module: Any) -> None:
    publish = module.NchanPods.publish

    def published(self: Any, frames: Sequence[Any]) -> None:
        # All of a publication, for a new state goes before the top, and would be kept in its place.
        if not any(b"erased-" in one.body for one in frames):
            publish(self, frames)

    module.NchanPods.publish = published


ALL: dict[str, dict[str, Callable[[Any], None]]] = {
    "beside": {
        "leaderboard.adapters.sql_archive": _beside,
        "leaderboard.adapters.sql_fold": _beside,
    },
    "alerts": {"leaderboard.adapters.sql_erasure": _alerts},
    "watch": {"leaderboard.fraud": _watch},
    "lease": {"leaderboard.adapters.redis_connections": _lease},
    "request": {"leaderboard.adapters.sql_requests": _request},
    "log": {"leaderboard.adapters.redis_erasures": _log},
    "frame": {"leaderboard.adapters.nchan_pods": _frame},
}


class _Breaking(importlib.abc.MetaPathFinder):
    def __init__(self, changes: dict[str, Callable[[Any], None]]) -> None:
        self._changes = changes

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        change = self._changes.get(name)
        if change is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            change(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


wanted = Path(__file__).with_name("broken.txt")
if wanted.exists():
    names = wanted.read_text("utf-8").split()
    sys.meta_path.insert(0, _Breaking({k: v for name in names for k, v in ALL[name].items()}))
