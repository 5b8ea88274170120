"""Stores in memory that behave as real stores have been seen to. A backend must not
rely on more than they do.

MinioLike and SeaweedLike list as the tested versions of these two servers. Racy lets
several create-only PUTs of the same key succeed that come at the same time, as some
small servers do. Stubborn lists what a DELETE has removed, and Stale does so once. PUTs
of Late take effect after a DELETE.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from obox.objectstore import AlreadyExists, Cursor, Kind, MemoryDriver, ObjectInfo, Page

MINIO_SCAN_KEYS = 1066
"""How many keys MinIO looks at behind the beginning, in the measurements that showed
its behaviour."""


class Listing(MemoryDriver):
    """A store whose LIST has pages of page_keys. A continuation token is not a key, and
    can be used once."""

    def __init__(self, *, page_keys: int = 1000, **words: Any) -> None:
        super().__init__(**words)
        self.page_keys = page_keys
        self._tokens: dict[str, str] = {}
        self._serial = itertools.count()

    def order(self, key: str) -> Any:
        return key

    def started(self, prefix: str, after: str) -> tuple[list[str], bool]:
        """Return the keys behind `after` in the store's order, and whether the answer
        may say that there are more."""
        keys = sorted((key for key in self.keys if key.startswith(prefix)), key=self.order)
        return [key for key in keys if not after or self.order(key) > self.order(after)], True

    async def list_page(
        self, prefix: str, *, kind: Kind, after: str, limit: int, cursor: Cursor = None, exact: bool = False
    ) -> Page:
        if cursor is not None:
            after = self._tokens.pop(cursor)
            keys = sorted((key for key in self.keys if key.startswith(prefix)), key=self.order)
            keys, may_have_more = [key for key in keys if self.order(key) > self.order(after)], True
        else:
            keys, may_have_more = self.started(prefix, after)
        page, rest = keys[: self.page_keys], keys[self.page_keys :]
        items = [ObjectInfo(key, len(self.objects[key][0]), self.objects[key][1]) for key in page]
        if not rest or not may_have_more:
            return Page(items, None)
        token = f"token {next(self._serial)}"
        self._tokens[token] = page[-1]
        return Page(items, token)


class MinioLike(Listing):
    """A LIST in byte order as MinIO makes it. Two directories may have names such as
    `a` and `a-b`, where the longer name goes on with a byte below `/`. If start-after
    lies inside `a`, the keys of `a-b` count as looked at. So the answer has few keys,
    and says that there are no more."""

    def __init__(self, *, scan_keys: int = MINIO_SCAN_KEYS, **words: Any) -> None:
        super().__init__(**words)
        self.scan_keys = scan_keys

    def started(self, prefix: str, after: str) -> tuple[list[str], bool]:
        keys, _ = super().started(prefix, after)
        name, slash, _ = after.removeprefix(prefix).partition("/")
        if not after.startswith(prefix) or not slash:
            return keys, True
        beside = sum(1 for key in self.keys if key.startswith(prefix + name) and "!" <= key[len(prefix + name)] < "/")
        if not beside:
            return keys, True
        return keys[: max(0, self.scan_keys - beside)], False


class SeaweedLike(Listing):
    """A LIST in the order of directories' names instead of byte order: all of `a/`
    comes before all of `a-b/`."""

    def order(self, key: str) -> Any:
        return key.split("/")


class Racy(MemoryDriver):
    """A PUT first looks whether the key exists and writes later. All PUTs that look at
    the same time succeed."""

    creates_at_once = False

    def __init__(self, **words: Any) -> None:
        super().__init__(**words)
        self.every = 1
        """Each key whose number is a multiple of this has a race."""
        self._count = 0

    async def put(self, key: str, data: bytes, *, kind: Kind) -> None:
        self._count += 1
        if key in self.objects or self._count % self.every:
            await super().put(key, data, kind=kind)
            return
        await asyncio.sleep(0)
        if key in self.objects:
            self.objects[key] = (bytes(data), self._wall())
        else:
            await super().put(key, data, kind=kind)


class Stubborn(MemoryDriver):
    """A DELETE of these keys is answered as if it were done, but they stay."""

    def __init__(self, keys: Sequence[str], **words: Any) -> None:
        super().__init__(**words)
        self.stay = set(keys)

    async def delete_batch(self, keys: Sequence[str], *, kind: Kind) -> None:
        await super().delete_batch([key for key in keys if key not in self.stay], kind=kind)


class Late(MemoryDriver):
    """The first PUTs of a race are not answered. They take effect after later DELETEs:
    a single PUT after each DELETE."""

    creates_at_once = False

    def __init__(self, *, late: int = 3, **words: Any) -> None:
        super().__init__(**words)
        self._hold = late
        self.held: list[tuple[str, bytes, Kind]] = []

    async def put(self, key: str, data: bytes, *, kind: Kind) -> None:
        if self._hold and key.startswith("_probe/") and key.endswith("/00"):
            self._hold -= 1
            self.held.append((key, data, kind))
            await asyncio.Event().wait()
        await super().put(key, data, kind=kind)

    async def delete_batch(self, keys: Sequence[str], *, kind: Kind) -> None:
        await super().delete_batch(keys, kind=kind)
        if self.held and not self._hold:
            key, data, kind = self.held.pop()
            with suppress(AlreadyExists):
                await super().put(key, data, kind=kind)


class Stale(MemoryDriver):
    """A LIST still names what was deleted just before."""

    def __init__(self, **words: Any) -> None:
        super().__init__(**words)
        self._gone: list[ObjectInfo] = []

    async def delete_batch(self, keys: Sequence[str], *, kind: Kind) -> None:
        before = (await super().list_page("", kind=kind, after="", limit=1000)).items
        await super().delete_batch(keys, kind=kind)
        self._gone = [info for info in before if info.key in keys]

    async def list_page(
        self, prefix: str, *, kind: Kind, after: str, limit: int, cursor: Cursor = None, exact: bool = False
    ) -> Page:
        page = await super().list_page(prefix, kind=kind, after=after, limit=limit, cursor=cursor, exact=exact)
        gone, self._gone = self._gone, []
        return page._replace(items=[*page.items, *(info for info in gone if info.key.startswith(prefix))])
