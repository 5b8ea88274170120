"""What a driver is: one request to the store per call, and no more.

Invariant: `put` is create-only; every call is one attempt. A batch is at most REQUEST_KEYS_MAX keys, a page at most
page_keys; the retry layer above loops over them, so that statistics below it count every request that was sent.

Refuses to know: retries, deadlines, statistics, prefixes, what an object holds.

Diagnostics: a driver raises StoreError kinds only (anything else is a bug) and logs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

Kind = Literal["mail", "index", "journal", "fts", "format"]
"""What an object is for: statistics are kept by it."""

REQUEST_KEYS_MAX = 1000
"""Keys in one LIST page and in one bulk DELETE: the limit of S3 for both."""


class ObjectInfo(NamedTuple):
    """One line of a LIST. `modified`: unix seconds by the store's clock."""

    key: str
    size: int
    modified: float


class Page(NamedTuple):
    """One answer to LIST, in key order. `more`: ask again after the last key."""

    items: list[ObjectInfo]
    more: bool


class ObjectStore(Protocol):
    """The bucket as the rooms above see it. Errors are StoreError kinds; cancellation always passes.

    Keys are `/`-separated non-empty elements; a LIST prefix is "" or ends with `/`.
    """

    async def put(self, key: str, data: bytes, *, kind: Kind) -> None:
        """Store a new object; durable on return. Never replaces one.

        Raises: AlreadyExists (also when an earlier attempt of this very call had landed: use put_once),
        OutcomeUnknown, Unreachable, Refused.
        """
        ...

    async def replace(self, key: str, data: bytes, *, kind: Kind) -> None:
        """Store an object in the place of the one under the key; durable on return, and no reader sees half of it.

        For new bytes that mean the same, an object's newer format alone: an attempt may land after it was given up.
        Raises: Unreachable, Refused.
        """
        ...

    async def get(self, key: str, *, kind: Kind, start: int = 0, end: int | None = None) -> bytes:
        """Return bytes start..end (end excluded, cut at the object's end; b"" where there are none).

        Raises: Missing, Truncated, Unreachable, Refused.
        """
        ...

    async def list(self, prefix: str, *, kind: Kind, after: str = "", limit: int | None = None) -> list[ObjectInfo]:
        """Return the objects below prefix with key > after in key order, at most limit; as many requests as needed."""
        ...

    async def delete(self, keys: Sequence[str], *, kind: Kind) -> None:
        """Delete objects, 1000 a request. Keys that are not there are fine."""
        ...

    async def copy(self, source: str, target: str, *, kind: Kind) -> None:
        """Copy inside the store, create-only; server side where the store does both at once, else GET and PUT.

        Raises: as get and put.
        """
        ...

    async def close(self) -> None:
        """Free connections and threads. The store is not usable afterwards."""
        ...


class Driver(Protocol):
    """One kind of store. Every method is one request, named as in ObjectStore but for `list` and `delete`.

    copies_create_only: `copy` is known never to replace an object. Where it is False, the layer above copies by GET and
    PUT; `probe` sets it. page_keys: the most that list_page returns.
    """

    copies_create_only: bool

    @property
    def page_keys(self) -> int: ...

    async def put(self, key: str, data: bytes, *, kind: Kind) -> None: ...

    async def replace(self, key: str, data: bytes, *, kind: Kind) -> None: ...

    async def get(self, key: str, *, kind: Kind, start: int = 0, end: int | None = None) -> bytes: ...

    async def list_page(self, prefix: str, *, kind: Kind, after: str, limit: int) -> Page:
        """Return up to limit (<= page_keys) objects below prefix with key > after."""
        ...

    async def delete_batch(self, keys: Sequence[str], *, kind: Kind) -> None:
        """Delete at most REQUEST_KEYS_MAX objects; missing ones are fine."""
        ...

    async def copy(self, source: str, target: str, *, kind: Kind) -> None: ...

    async def close(self) -> None: ...
