"""An event: what a change did, as a value, and its bytes.

Invariant: an event has a line of the journal, whose place it names. The same line gives
the same events, so an event that comes twice has the same identity. Unknown keys of an
encoded event belong to newer versions and are ignored.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

Kind = Literal[
    "Added",
    "Expunged",
    "FlagsUpdated",
    "Moved",
    "MailboxAdded",
    "MailboxDeleted",
    "MailboxRenamed",
    "Subscribed",
    "AclUpdated",
    "QuotaUsageUpdated",
    "Rescan",
]
"""The kinds; docs/events.md says when each is made."""

Format = Literal["msgpack", "json"]
Ranges = tuple[tuple[int, int], ...]
"""UIDs as pairs of the first and the last, ascending."""


class Place(NamedTuple):
    """The journal object that has the line of an event."""

    backend: str
    boot: str
    seq: int


class Event(msgspec.Struct, omit_defaults=True, frozen=True, kw_only=True):
    """An event; see docs/events.md, "Kinds".

    user: storage id. mailbox: GUID. stamp: MODSEQ of the change. size: octets of all
    mails that were added. flags: flag, whether it was set, and of which UIDs. name, on:
    of a mailbox or a subscription. target, target_uids: where mails were moved. rights:
    what the identifier `name` has in the mailbox now, "" for no entry.
    """

    kind: Kind
    user: str
    mailbox: str = ""
    uids: Ranges = ()
    stamp: int = 0
    backend: str = ""
    boot: str = ""
    seq: int = 0
    size: int = 0
    flags: tuple[tuple[str, bool, Ranges], ...] = ()
    name: str = ""
    on: bool = False
    target: str = ""
    target_uids: Ranges = ()
    rights: str = ""

    @property
    def place(self) -> Place:
        """Return the journal object that has the line."""
        return Place(self.backend, self.boot, self.seq)

    @property
    def identity(self) -> str:
        """Return a text that only this event has, also if its line is read again."""
        uids = ",".join(f"{first}-{last}" if last > first else str(first) for first, last in self.uids)
        return f"{self.user}/{self.mailbox}/{uids or self.name}/{self.kind}/{self.stamp}"

    def encode(self, form: Format) -> bytes:
        """Return the event as a map."""
        return msgspec.json.encode(self) if form == "json" else msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes, form: Format) -> Event:
        """Undo `encode`. Raises ValueError."""
        return msgspec.json.decode(data, type=cls) if form == "json" else msgspec.msgpack.decode(data, type=cls)
