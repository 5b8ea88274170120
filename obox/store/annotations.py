"""The annotations of a user and of the user's mailboxes: what METADATA reads and
writes. RFC 5464.

They are a part of the user's list of mailboxes (`mailbox.Root`), so that a rename keeps
them and a DELETE drops them. This module knows their limits, and no protocol.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from ..errors import Limit, NotFound, TooBig
from ..mailbox import Root, RootDelta, annotation_key
from ..mailbox.names import canonical

ENTRIES_MAX: Final = 1_000
"""Annotations of a user, with those that were removed. The list of mailboxes is read as
a whole at a cold login."""
VALUE_BYTES_MAX: Final = 16 * 1024
"""A value. Clients keep colours, notes and short settings there."""
BYTES_MAX: Final = 256 * 1024
"""All values of a user. Each flush of the list of mailboxes writes them."""


class Annotations:
    """See `api.Annotations`.

    root: returns the list of mailboxes. change: makes a change of it durable. sync:
    waits until earlier changes are durable.
    """

    def __init__(
        self,
        root: Callable[[], Root],
        now_ms: Callable[[], int],
        change: Callable[[RootDelta], Awaitable[None]],
        sync: Callable[[], Awaitable[None]],
    ) -> None:
        self._root, self._now_ms, self._change, self._sync = root, now_ms, change, sync

    def _guid(self, name: str) -> str:
        """Raises NotFound."""
        if not name:
            return ""
        entry = self._root().names().get(canonical(name))
        if entry is None:
            raise NotFound(f"no mailbox {name!r}")
        return entry.guid

    def of(self, name: str) -> Mapping[str, bytes]:
        """See `api.Annotations`."""
        return self._root().annotations_of(self._guid(name))

    def since(self, modseq: int) -> tuple[int, list[tuple[str, str]]]:
        """See `api.Annotations`."""
        root = self._root()
        changed = [key for key, (stamp, _) in root.annotations.items() if stamp > modseq]
        if not changed:
            return root.highestmodseq, []
        names = {entry.guid: name for name, entry in root.names().items()} | {"": ""}
        found = []
        for key in changed:
            guid, slash, entry = key.partition("/")
            if guid in names:
                found.append((names[guid], slash + entry))
        return root.highestmodseq, found

    async def change(self, name: str, values: Mapping[str, bytes | None]) -> None:
        """See `api.Annotations`."""
        root, guid = self._root(), self._guid(name)
        known = root.annotations
        wanted = {}
        for entry, value in values.items():
            key = annotation_key(guid, entry)
            if known.get(key, (0, None))[1] != value:
                wanted[key] = value
        if not wanted:
            # Another session may have staged the same values just now.
            await self._sync()
            return
        self._check(wanted)
        modseq = root.next_modseq(self._now_ms())
        made = {key: (modseq, value) for key, value in wanted.items()}
        await self._change(RootDelta(annotations=made, highestmodseq=modseq))

    def _check(self, wanted: Mapping[str, bytes | None]) -> None:
        """Raises Limit, TooBig."""
        if (largest := max(len(value or b"") for value in wanted.values())) > VALUE_BYTES_MAX:
            raise TooBig(f"a value of {largest} bytes; allowed: {VALUE_BYTES_MAX}")
        known = self._root().annotations
        if len(known.keys() | wanted.keys()) > ENTRIES_MAX:
            raise Limit(f"a user has at most {ENTRIES_MAX} annotations; those that were removed count")
        others = sum(len(value or b"") for key, (_, value) in known.items() if key not in wanted)
        if others + sum(len(value or b"") for value in wanted.values()) > BYTES_MAX:
            raise Limit(f"the annotations of a user have at most {BYTES_MAX} bytes")
