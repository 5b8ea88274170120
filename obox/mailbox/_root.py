"""A user's mailboxes: names, subscriptions, totals.

Names and subscriptions are last-write-wins registers, stamped with a modseq. A deleted
mailbox never comes back. If two mailboxes claim a name, the older mailbox keeps it and
the other gets a suffix; both backends come to the same result. Totals are derived from
the state of each mailbox and are never merged: the higher modseq is the later truth.
Annotations are registers, too, and so are the entries of ACLs. Those of a deleted
mailbox are dropped.

The identity of a user is the GUID of the INBOX that the user was made with. A root
ignores fragments of another identity: they are of a user who was deleted, and had the
same storage id.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import msgspec

from ..types import Guid


class Totals(NamedTuple):
    """What STATUS and quota need of a mailbox that is not open.

    recent: mails that no session has seen as recent.
    """

    modseq: int = 0
    messages: int = 0
    unseen: int = 0
    bytes: int = 0
    uidnext: int = 1
    recent: int = 0
    deleted: int = 0
    garbage: int = 0
    """Unix milliseconds of the earliest expunge whose object is still in the bucket; 0
    for none.
    """


Annotation: TypeAlias = tuple[int, bytes | None]
"""The stamp and the value of an entry of METADATA."""


def annotation_key(guid: str, entry: str) -> str:
    """Return the key of an entry, which begins with `/`. guid: of the mailbox, or ""
    for the user's own."""
    return guid + entry


def rights_key(guid: str, identifier: str) -> str:
    """Return the key of an entry of an ACL, or of an owner for the guid ""."""
    return f"{guid}/{identifier}"


def _rank(one: Annotation) -> tuple[int, bool, bytes]:
    """Return what decides between two annotations: the larger wins. With the same stamp
    a value wins against its removal."""
    return one[0], one[1] is not None, one[1] or b""


class MailboxEntry(msgspec.Struct, array_like=True, frozen=True):
    """A mailbox of a user.

    guid: 32 hex digits. name: full, decoded, `/` between levels, INBOX in capitals.
    stamp: modseq of the name. created: unix milliseconds. special_use: such as
    "\\\\Sent", or "". deleted: modseq of the deletion, 0 if it is not deleted.
    """

    guid: str
    name: str
    stamp: int
    created: int
    uidvalidity: int
    special_use: str = ""
    deleted: int = 0
    cleared: int = 0

    def join(self, other: MailboxEntry) -> MailboxEntry:
        newer = max(self, other, key=lambda entry: (entry.stamp, entry.name, msgspec.structs.astuple(entry)))
        return msgspec.structs.replace(
            newer, deleted=max(self.deleted, other.deleted), cleared=max(self.cleared, other.cleared)
        )


@dataclass(slots=True)
class RootDelta:
    """A fragment of a root.

    entries by mailbox, subscriptions by name (stamp * 2 + value), totals, highest
    modseq. modseq_floor: an upper bound of every MODSEQ that an owner who ended
    uncleanly may have shown in any mailbox of the user (the modseq floor). identity: of
    the user; "" in fragments that an earlier version wrote. annotations: a guid and an
    entry, as `annotation_key` has them, to (stamp, value); None is a removed value.
    rights: the same for entries of ACLs, with `/` and an identifier behind the guid
    (`rights_key`). Without a guid the name is that of an owner who shares something
    with the user.
    """

    entries: list[MailboxEntry] = field(default_factory=list)
    subscriptions: dict[str, int] = field(default_factory=dict)
    totals: dict[Guid, Totals] = field(default_factory=dict)
    highestmodseq: int = 0
    uidvalidity: int = 0
    modseq_floor: int = 0
    identity: str = ""
    annotations: dict[str, Annotation] = field(default_factory=dict)
    rights: dict[str, Annotation] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return a MessagePack map. Unknown fields belong to newer minor versions."""
        out: dict[str, Any] = {}
        if self.entries:
            out["entries"] = self.entries
        if self.subscriptions:
            out["subscriptions"] = self.subscriptions
        if self.totals:
            out["totals"] = self.totals
        if self.annotations:
            out["annotations"] = self.annotations
        if self.rights:
            out["rights"] = self.rights
        out["highestmodseq"] = self.highestmodseq
        out["uidvalidity"] = self.uidvalidity
        if self.modseq_floor:
            out["ahead"] = self.modseq_floor
        if self.identity:
            out["user"] = self.identity
        return msgspec.msgpack.encode(out)

    @classmethod
    def decode(cls, data: bytes | memoryview) -> RootDelta:
        """Undo `encode`. Raises ValueError on bytes of anything else."""
        try:
            raw = msgspec.msgpack.decode(data)
            return cls(
                entries=msgspec.convert(raw.get("entries", []), list[MailboxEntry]),
                subscriptions=msgspec.convert(raw.get("subscriptions", {}), dict[str, int]),
                totals={Guid(g): Totals(*t[: len(Totals._fields)]) for g, t in raw.get("totals", {}).items()},
                highestmodseq=int(raw.get("highestmodseq", 0)),
                uidvalidity=int(raw.get("uidvalidity", 0)),
                modseq_floor=int(raw.get("ahead", 0)),
                identity=msgspec.convert(raw.get("user", ""), str),
                annotations=msgspec.convert(raw.get("annotations", {}), dict[str, Annotation]),
                rights=msgspec.convert(raw.get("rights", {}), dict[str, Annotation]),
            )
        except (msgspec.MsgspecError, AttributeError, TypeError, ValueError) as exc:
            raise ValueError(f"not a root delta: {exc}") from exc


class Root:
    """A user's list of mailboxes. Only `join` changes it."""

    def __init__(self) -> None:
        self.entries: dict[Guid, MailboxEntry] = {}
        self.subscriptions: dict[str, int] = {}
        self.totals: dict[Guid, Totals] = {}
        self.annotations: dict[str, Annotation] = {}
        self.rights: dict[str, Annotation] = {}
        self.highestmodseq = 1
        self.uidvalidity = 0
        self.modseq_floor = 0
        self._identity = ""
        self._names: dict[str, MailboxEntry] | None = None

    @property
    def identity(self) -> str:
        """See the module's text. A root of an earlier version has the GUID of its
        oldest INBOX."""
        if self._identity:
            return self._identity
        inboxes = [entry for entry in self.entries.values() if entry.name == "INBOX"]
        return min(inboxes, key=lambda entry: (entry.created, entry.guid)).guid if inboxes else ""

    def join(self, delta: RootDelta) -> None:
        """Join `delta`: commutative, associative, idempotent."""
        if delta.identity:
            if self.identity not in ("", delta.identity):
                return
            self._identity = delta.identity
        for entry in delta.entries:
            guid = Guid(entry.guid)
            known = self.entries.get(guid)
            self.entries[guid] = entry if known is None else known.join(entry)
            self.highestmodseq = max(self.highestmodseq, entry.stamp, entry.deleted)
            self.uidvalidity = max(self.uidvalidity, entry.uidvalidity)
        for name, stamp in delta.subscriptions.items():
            self.subscriptions[name] = max(self.subscriptions.get(name, 0), stamp)
            self.highestmodseq = max(self.highestmodseq, stamp >> 1)
        for guid, totals in delta.totals.items():
            self.totals[guid] = max(self.totals.get(guid, Totals()), totals)
        if delta.annotations or self.annotations:
            self.annotations = self._joined(self.annotations, delta.annotations)
        if delta.rights or self.rights:
            self.rights = self._joined(self.rights, delta.rights)
        self.highestmodseq = max(self.highestmodseq, delta.highestmodseq)
        self.uidvalidity = max(self.uidvalidity, delta.uidvalidity)
        self.modseq_floor = max(self.modseq_floor, delta.modseq_floor)
        self._names = None

    def _joined(self, kept: dict[str, Annotation], delta: dict[str, Annotation]) -> dict[str, Annotation]:
        """Join registers, and drop those of deleted mailboxes."""
        for key, new in delta.items():
            old = kept.get(key)
            if old is None or _rank(new) > _rank(old):
                kept[key] = new
            self.highestmodseq = max(self.highestmodseq, new[0])
        dead = {guid for guid, entry in self.entries.items() if entry.deleted}
        return {key: one for key, one in kept.items() if key.partition("/")[0] not in dead} if dead else kept

    def annotations_of(self, guid: str) -> dict[str, bytes]:
        """Return the values of a mailbox by entry, or those of the user for ""."""
        found = {}
        for key, (_, value) in self.annotations.items():
            whose, slash, entry = key.partition("/")
            if whose == guid and value is not None:
                found[slash + entry] = value
        return found

    def names(self) -> dict[str, MailboxEntry]:
        """Live mailboxes by the name that clients see.

        If two mailboxes claim a name, the older mailbox keeps it.
        """
        if self._names is None:
            names: dict[str, MailboxEntry] = {}
            live = [entry for entry in self.entries.values() if not entry.deleted]
            for entry in sorted(live, key=lambda e: (e.created, e.guid)):
                name, digits = entry.name, 8
                while name in names:
                    name = f"{entry.name}-{entry.guid[:digits]}" if digits <= len(entry.guid) else f"{name}-"
                    digits += 8
                names[name] = entry
            self._names = names
        return self._names

    def name_of(self, guid: Guid) -> str | None:
        return next((name for name, entry in self.names().items() if entry.guid == guid), None)

    def subscribed(self, name: str) -> bool:
        return bool(self.subscriptions.get(name, 0) & 1)

    def subscribed_names(self) -> list[str]:
        return sorted(name for name, stamp in self.subscriptions.items() if stamp & 1)

    def usage(self) -> tuple[int, int]:
        """Return (octets, messages) of all live mailboxes, which the quota limits."""
        live = [self.totals.get(Guid(entry.guid), Totals()) for entry in self.entries.values() if not entry.deleted]
        return sum(t.bytes for t in live), sum(t.messages for t in live)

    def next_modseq(self, now_ms: int) -> int:
        return max(self.highestmodseq + 1, now_ms)

    def next_uidvalidity(self, now_s: int) -> int:
        """Return the UIDVALIDITY of the next mailbox.

        It grows with each new mailbox, so that a name that is used again never shows an
        old value. RFC 3501 §2.3.1.1.
        """
        return max(self.uidvalidity + 1, now_s)

    def extract(self) -> RootDelta:
        """Return the whole root, as a delta."""
        return RootDelta(
            list(self.entries.values()),
            dict(self.subscriptions),
            dict(self.totals),
            self.highestmodseq,
            self.uidvalidity,
            self.modseq_floor,
            self._identity,
            dict(self.annotations),
            dict(self.rights),
        )

    def fingerprint(self) -> tuple[object, ...]:
        return (
            tuple(sorted(msgspec.structs.astuple(entry) for entry in self.entries.values())),
            tuple(sorted(self.subscriptions.items())),
            tuple(sorted(self.totals.items())),
            tuple(sorted((key, *_rank(one)) for key, one in self.annotations.items())),
            tuple(sorted((key, *_rank(one)) for key, one in self.rights.items())),
            self.highestmodseq,
            self.uidvalidity,
        )
