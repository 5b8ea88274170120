"""The contract of a driver: each call sends a single request to the store.

Invariant: `put` is create-only; every call is a single attempt. A batch is at most
REQUEST_KEYS_MAX keys, a page at most page_keys. The retry layer above loops over them,
so that the statistics below it count every request that was sent.

This module does not know retries, deadlines, statistics, prefixes, or the content of
objects.

Diagnostics: a driver raises only StoreError kinds (anything else is a bug) and logs
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

Kind = Literal["mail", "index", "journal", "fts", "events", "format"]
"""The purpose of an object. Statistics are kept for each kind."""

REQUEST_KEYS_MAX = 1000
"""Keys in a LIST page and in a bulk DELETE: the limit of S3 for both."""

PROBES = "_probe/"
"""The prefix of the objects that probes make and remove."""


class ObjectInfo(NamedTuple):
    """A line of a LIST. `modified`: unix seconds by the store's clock."""

    key: str
    size: int
    modified: float


Objects: TypeAlias = list[ObjectInfo]
Names: TypeAlias = list[str]
"""These names are for classes whose own `list` hides the type."""

Cursor: TypeAlias = Any
"""The place from which a LIST continues. It belongs to the driver and is used once.
None: from the start; in a Page: the LIST is complete.
"""


class Page(NamedTuple):
    """An answer to LIST, in the store's order.

    `next`: where to continue; None: the LIST is complete.
    """

    items: list[ObjectInfo]
    next: Cursor


class Sending:
    """How far one attempt has come: a driver says so, the retry layer reads it."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = False
        """The attempt waits for a connection of ours. If it ends there, it was never
    sent.
    """


SENDING: ContextVar[Sending | None] = ContextVar("obox_objectstore_sending", default=None)
"""The attempt that the present call is."""


class ObjectStore(Protocol):
    """The bucket as the rooms above see it. Errors are StoreError kinds; cancellation
    always passes.

    Keys are `/`-separated non-empty elements; a LIST prefix is "" or ends with `/`.
    """

    async def put(self, key: str, data: bytes, *, kind: Kind) -> None:
        """Store a new object; durable on return. Never replaces an object.

        Raises: AlreadyExists (also if an earlier attempt of this very call succeeded:
        use put_once), OutcomeUnknown, Unreachable, Refused.
        """
        ...

    async def replace(self, key: str, data: bytes, *, kind: Kind) -> None:
        """Store an object in place of the object under the key.

        It is durable on return, and no reader sees half of it. This is only for a newer
        format of the same content: an attempt may succeed after it was given up.
        Raises: Unreachable, Refused.
        """
        ...

    async def get(self, key: str, *, kind: Kind, start: int = 0, end: int | None = None) -> bytes:
        """Return bytes start..end (end excluded, limited to the object; b"" if there
        are none).

        Raises: Missing, Truncated, Unreachable, Refused.
        """
        ...

    async def list(
        self, prefix: str, *, kind: Kind, after: str = "", limit: int | None = None, exact: bool = False
    ) -> list[ObjectInfo]:
        """Return the objects below prefix with key > after, sorted by key; as many
        requests as needed.

        after: only if keys below prefix have the same length and no `/` (mails of a
        mailbox, bundles of a box, a boot's journal): some stores leave out keys after a
        key if another directory lies next to its directory. limit: the largest number
        of keys, which are those that the store names first. exact: keys as they are,
        including those that obox never makes (see CloudDriver). This is slower; code
        that deletes such keys needs it.
        """
        ...

    async def list_as_stored(self, prefix: str, *, kind: Kind, after: str = "") -> Objects:
        """LIST in the store's own order, for code that checks the store."""
        ...

    async def list_names(self, prefix: str, *, kind: Kind) -> Names:
        """Return the names directly below prefix that have objects below them, sorted.

        `a` for `<prefix>a/b`. A store may name more: directories that are empty now.
        """
        ...

    async def delete(self, keys: Sequence[str], *, kind: Kind) -> None:
        """Delete objects, 1000 in a request. Missing keys are no error."""
        ...

    async def copy(self, source: str, target: str, *, kind: Kind) -> None:
        """Copy inside the store, create-only.

        Server side if the store does both in a single request, else by GET and PUT.
        Raises: as get and put.
        """
        ...

    async def close(self) -> None:
        """Release connections and threads. The store is not usable afterwards."""
        ...


class Driver(Protocol):
    """A kind of store. Every method is a request, named as in ObjectStore except for
    `list` and `delete`.

    creates_at_once: of several PUTs of the same key at the same time one succeeds, by
    construction: nobody needs to try it. copies_create_only: whether `copy` is known
    never to replace an object. If it is False, the layer above copies by GET and PUT;
    `probe` sets it. page_keys: the maximum of list_page.
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
        """Return the next objects below prefix with key > after: about limit (<=
        page_keys).

        The store may return fewer or more. cursor: of the page before, from this
        driver, for the same prefix and after.
        """
        ...

    async def list_names(self, prefix: str, *, kind: Kind) -> list[str]:
        """Return all names that look like directories directly below prefix."""
        ...

    async def delete_batch(self, keys: Sequence[str], *, kind: Kind) -> None:
        """Delete at most REQUEST_KEYS_MAX objects; missing objects are no error."""
        ...

    async def copy(self, source: str, target: str, *, kind: Kind) -> None: ...

    async def close(self) -> None: ...


class Around:
    """What a driver around another driver has in common with it."""

    def __init__(self, inner: Driver) -> None:
        self.inner = inner

    @property
    def copies_create_only(self) -> bool:
        return self.inner.copies_create_only

    @copies_create_only.setter
    def copies_create_only(self, value: bool) -> None:
        self.inner.copies_create_only = value

    @property
    def creates_at_once(self) -> bool:
        return self.inner.creates_at_once

    @property
    def page_keys(self) -> int:
        return self.inner.page_keys
