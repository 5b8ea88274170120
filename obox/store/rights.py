"""The ACLs of a user's mailboxes, and the owners who share something with the user. RFC
4314.

They are a part of the user's list of mailboxes (`mailbox.Root`), so that a rename keeps
them and a DELETE drops them. This module knows their limits and what the rights of a
name are now. It knows no protocol and no other user.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from ..errors import Limit, NotFound, Unavailable
from ..mailbox import Root, RootDelta, rights_key
from ..mailbox.names import canonical
from ..mailbox.rights import effective

FORM: Final = "sharing"
"""The form in `obox.forms` that allows ACLs."""
ENTRIES_MAX: Final = 100
"""Entries of the ACL of a mailbox. GETACL answers them in one line."""
ALL_ENTRIES_MAX: Final = 2_000
"""Entries of all ACLs of a user, with those that were removed. The list of mailboxes is
read as a whole at a cold login."""
OWNERS_MAX: Final = 100
"""Owners who share with a user and whom LIST shows. LIST opens the mail of each."""


class Rights:
    """See `api.Rights`.

    root: returns the list of mailboxes; it is empty once the user is deleted. change:
    makes a change of it durable. sync: waits until earlier changes are durable.
    allowed: whether the bucket may have ACLs.
    """

    def __init__(
        self,
        root: Callable[[], Root],
        now_ms: Callable[[], int],
        change: Callable[[RootDelta], Awaitable[None]],
        sync: Callable[[], Awaitable[None]],
        allowed: Callable[[], bool],
    ) -> None:
        self._root, self._now_ms, self._change, self._sync, self._allowed = root, now_ms, change, sync, allowed

    def _guid(self, name: str) -> str:
        """Raises NotFound."""
        entry = self._root().names().get(canonical(name))
        if entry is None:
            raise NotFound(f"no mailbox {name!r}")
        return entry.guid

    def _entries(self, guid: str) -> dict[str, str]:
        found = {}
        for key, (_, rights) in self._root().rights.items():
            whose, _, identifier = key.partition("/")
            if whose == guid and rights is not None:
                found[identifier] = rights.decode()
        return found

    def of(self, name: str) -> dict[str, str]:
        """See `api.Rights`."""
        return self._entries(self._guid(name))

    def held(self, guid: str, who: str) -> str:
        """See `api.Rights`."""
        root = self._root()
        if not root.rights:
            return ""

        def entry(identifier: str) -> str:
            return (root.rights.get(rights_key(guid, identifier), (0, None))[1] or b"").decode()

        return effective(entry, who)

    def granted(self, name: str, who: str) -> str:
        """See `api.Rights`."""
        entry = self._root().names().get(canonical(name))
        return "" if entry is None else self.held(entry.guid, who)

    def shared(self) -> list[str]:
        """See `api.Rights`."""
        root = self._root()
        guids = {key.partition("/")[0] for key, (_, rights) in root.rights.items() if rights}
        return [name for name, entry in root.names().items() if entry.guid in guids] if guids else []

    def owners(self) -> list[str]:
        """See `api.Rights`."""
        return sorted(self._entries(""))

    async def change(self, name: str, entries: Mapping[str, str]) -> None:
        """See `api.Rights`."""
        guid = self._guid(name)
        there = self._entries(guid)
        if len({*there, *(one for one, rights in entries.items() if rights)}) > max(ENTRIES_MAX, len(there)):
            raise Limit(f"the ACL of a mailbox has at most {ENTRIES_MAX} entries")
        await self._register({rights_key(guid, one): rights.encode() or None for one, rights in entries.items()})

    async def note_owner(self, owner: str, *, on: bool) -> None:
        """See `api.Rights`."""
        if on and owner not in (known := self.owners()) and len(known) >= OWNERS_MAX:
            raise Limit(f"at most {OWNERS_MAX} owners are listed")
        await self._register({rights_key("", owner): b"" if on else None})

    async def _register(self, values: Mapping[str, bytes | None]) -> None:
        """Raises Limit, Unavailable."""
        if not self._allowed():
            raise Unavailable("this bucket may not have ACLs yet: `oboxadm cluster upgrade` allows them")
        root = self._root()
        wanted = {key: value for key, value in values.items() if root.rights.get(key, (0, None))[1] != value}
        if not wanted:
            # Another session may have staged the same values just now.
            await self._sync()
            return
        if len(root.rights.keys() | wanted.keys()) > max(ALL_ENTRIES_MAX, len(root.rights)):
            raise Limit(f"the ACLs of a user have at most {ALL_ENTRIES_MAX} entries; those that were removed count")
        modseq = root.next_modseq(self._now_ms())
        made = {key: (modseq, value) for key, value in wanted.items()}
        await self._change(RootDelta(rights=made, highestmodseq=modseq))
