"""Tables of bounded size for what fraud detection remembers: two generations each. When the newer
one is full the older one is forgotten, by the order in which keys came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

K = TypeVar("K")


class Recent(Generic[K]):
    """Values by key, the latest ones. Values are lists, as they are packed and changed in place."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.newer: dict[K, list[Any]] = {}
        self.older: dict[K, list[Any]] = {}

    def __len__(self) -> int:
        return len(self.newer) + len(self.older)

    def kept(self, key: K) -> list[Any] | None:
        """One that is not in the newer generation: brought there from the older one."""
        value = self.older.pop(key, None)
        if value is not None:
            self.put(key, value)
        return value

    def put(self, key: K, value: list[Any]) -> None:
        newer = self.newer
        if len(newer) >= self.limit:
            # In place: loops hold on to both.
            self.older.clear()
            self.older.update(newer)
            newer.clear()
        newer[key] = value

    def find(self, key: K) -> list[Any] | None:
        value = self.newer.get(key)
        return self.older.get(key) if value is None else value

    def remove(self, key: K) -> None:
        self.newer.pop(key, None)
        self.older.pop(key, None)

    def plain(self) -> list[Any]:
        return [list(one.items()) for one in (self.newer, self.older)]

    def take(self, plain: Sequence[Sequence[tuple[K, Any]]]) -> None:
        for into, items in zip((self.newer, self.older), plain, strict=True):
            into.update(items)


def joint(plain: Sequence[Sequence[tuple[Any, Any]]]) -> list[list[tuple[Any, Any]]]:
    """Keys that are tuples come back as lists."""
    return [[(tuple(key), value) for key, value in items] for items in plain]
