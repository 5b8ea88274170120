"""`memory://`: a dict and a sorted list of its keys, for tests and for trying things
out.

Invariant: the same behaviour as other drivers, so that a test on this driver is
meaningful: create-only, key order, ranges. Each MemoryDriver is a separate bucket; pass
the same driver to two stores to let two backends share it.

Nothing is durable: the content is gone with the process.

Diagnostics: AlreadyExists and Missing are its only failures.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence

from obox.objectstore._driver import REQUEST_KEYS_MAX, Cursor, Kind, ObjectInfo, Page
from obox.objectstore._errors import AlreadyExists, Missing


class MemoryDriver:
    """A bucket in memory."""

    copies_create_only = True
    creates_at_once = True
    page_keys = REQUEST_KEYS_MAX

    def __init__(self, *, wall: Callable[[], float] = time.time) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.keys: list[str] = []
        self._wall = wall

    async def put(self, key: str, data: bytes, *, kind: Kind) -> None:
        if key in self.objects:
            raise AlreadyExists(f"put {key}: there is an object already")
        self.objects[key] = (bytes(data), self._wall())
        insort(self.keys, key)

    async def replace(self, key: str, data: bytes, *, kind: Kind) -> None:
        if key not in self.objects:
            insort(self.keys, key)
        self.objects[key] = (bytes(data), self._wall())

    async def get(self, key: str, *, kind: Kind, start: int = 0, end: int | None = None) -> bytes:
        found = self.objects.get(key)
        if found is None:
            raise Missing(f"get {key}: no such object")
        return found[0][start:end]

    async def list_page(
        self, prefix: str, *, kind: Kind, after: str, limit: int, cursor: Cursor = None, exact: bool = False
    ) -> Page:
        items: list[ObjectInfo] = []
        at = bisect_right(self.keys, max(after, cursor or ""))
        at = max(at, bisect_left(self.keys, prefix))
        while at < len(self.keys) and self.keys[at].startswith(prefix):
            key = self.keys[at]
            if len(items) == limit:
                return Page(items, items[-1].key)
            data, modified = self.objects[key]
            items.append(ObjectInfo(key, len(data), modified))
            at += 1
        return Page(items, None)

    async def list_names(self, prefix: str, *, kind: Kind) -> list[str]:
        names = []
        at = bisect_left(self.keys, prefix)
        while at < len(self.keys) and self.keys[at].startswith(prefix):
            name, slash, _ = self.keys[at][len(prefix) :].partition("/")
            if slash:
                names.append(name)
                # the first key behind all of `name/`
                at = bisect_left(self.keys, f"{prefix}{name}0")
            else:
                at += 1
        return names

    async def delete_batch(self, keys: Sequence[str], *, kind: Kind) -> None:
        gone = {key for key in keys if self.objects.pop(key, None) is not None}
        if len(gone) > 10:
            self.keys = [key for key in self.keys if key not in gone]
        else:
            for key in gone:
                del self.keys[bisect_left(self.keys, key)]

    async def copy(self, source: str, target: str, *, kind: Kind) -> None:
        await self.put(target, await self.get(source, kind=kind), kind=kind)

    async def close(self) -> None:
        """Keep everything: a test may open the same driver again."""
