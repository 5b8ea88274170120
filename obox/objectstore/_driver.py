"""What a driver is: one request to the store per call, and no more.

Invariant: `put` is create-only; every call is one attempt. A batch is at most REQUEST_KEYS_MAX keys, a page at most
page_keys; the retry layer above loops over them, so that statistics below it count every request that was sent.

Refuses to know: retries, deadlines, statistics, prefixes, what an object holds.

Diagnostics: a driver raises StoreError kinds only (anything else is a bug) and logs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

Kind = Literal["mail", "index", "journal", "fts", "format"]
"""What an object is for: statistics are kept by it."""

REQUEST_KEYS_MAX = 1000
"""Keys in one LIST page and in one bulk DELETE: the limit of S3 for both."""


class ObjectInfo(NamedTuple):
    """One line of a LIST. `modified`: unix seconds by the store's clock."""

    key: str
    size: int
    modified: float


Objects: TypeAlias = list[ObjectInfo]
Names: TypeAlias = list[str]
"""For classes whose own `list` hides the type."""

Cursor: TypeAlias = Any
"""What a LIST is continued from: the driver's own, used once. None: from the start; in a Page: there is no more."""


class Page(NamedTuple):
    """One answer to LIST, in the store's order. `next`: what to continue from; None: this was all."""

    items: list[ObjectInfo]
    next: Cursor


class Sending:
    """How far one attempt has come: a driver says so, the retry layer reads it."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = False
        """The attempt waits for a connection of ours. One that ends meanwhile was never sent."""


SENDING: ContextVar[Sending | None] = ContextVar("obox_objectstore_sending", default=None)
"""The attempt that the present call is."""


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

    async def list(
        self, prefix: str, *, kind: Kind, after: str = "", limit: int | None = None, exact: bool = False
    ) -> list[ObjectInfo]:
        """Return the objects below prefix with key > after, sorted by key; as many requests as needed.

        after: where keys below prefix have one length and no `/` (mails of a mailbox, bundles of a box, a boot's
        journal): some stores leave keys out after a key beside whose directory there is another.
        limit: at most so many, of those that the store names first.
        exact: keys as they are, also those that obox never makes (see CloudDriver); slower, for what deletes them.
        """
        ...

    async def list_as_stored(self, prefix: str, *, kind: Kind, after: str = "") -> Objects:
        """As list, in the store's own order: for who checks the store."""
        ...

    async def list_names(self, prefix: str, *, kind: Kind) -> Names:
        """Return the names directly below prefix that have objects below them, sorted: `a` for `<prefix>a/b`.

        A store may name more of them: directories that are empty now.
        """
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

    creates_at_once: of several PUTs of one key at the same time one succeeds, by construction: nobody needs to try it.
    copies_create_only: `copy` is known never to replace an object. Where it is False, the layer above copies by GET and
    PUT; `probe` sets it. page_keys: the most that list_page returns.
    """

    copies_create_only: bool

    @property
    def creates_at_once(self) -> bool: ...

    @property
    def page_keys(self) -> int: ...

    async def put(self, key: str, data: bytes, *, kind: Kind) -> None: ...

    async def replace(self, key: str, data: bytes, *, kind: Kind) -> None: ...

    async def get(self, key: str, *, kind: Kind, start: int = 0, end: int | None = None) -> bytes: ...

    async def list_page(
        self, prefix: str, *, kind: Kind, after: str, limit: int, cursor: Cursor = None, exact: bool = False
    ) -> Page:
        """Return the next objects below prefix with key > after: about limit (<= page_keys), by the store's mind.

        cursor: of the page before, from this driver, for the same prefix and after.
        """
        ...

    async def list_names(self, prefix: str, *, kind: Kind) -> list[str]:
        """Return the names of what looks like directories directly below prefix, all of them."""
        ...

    async def delete_batch(self, keys: Sequence[str], *, kind: Kind) -> None:
        """Delete at most REQUEST_KEYS_MAX objects; missing ones are fine."""
        ...

    async def copy(self, source: str, target: str, *, kind: Kind) -> None: ...

    async def close(self) -> None: ...
