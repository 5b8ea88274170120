"""What a protocol may ask of the store: one narrow contract, grouped by state.

Values are plain: `bytes` of wire form are ready to be sent, UIDs are sorted numpy arrays, names are decoded strings.
Every method may raise the errors of `obox.errors` that its docstring names, and `Unavailable` when the bucket is needed
and does not answer. Methods without `async` are served from memory and make no request.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ..errors import Corrupt, NotFound, OboxError
from ..mailbox import FlagOp, State, Totals, UidArray
from ..mailbox.search import Query
from ..types import Guid, StorageId, Uid
from .mails.fields import Fields as Fields  # noqa: PLC0414 - part of the contract

Unreadable = NotFound | Corrupt
"""Why a mail that is in the index cannot be read: its object is gone (lost), or does not decode (damaged)."""


class Status(NamedTuple):
    """STATUS of a mailbox. RFC 3501 §6.3.10, RFC 7162 §3.1.1, RFC 8438 §3, RFC 9051 §6.3.11 (deleted)."""

    messages: int
    recent: int
    unseen: int
    deleted: int
    uidnext: int
    uidvalidity: int
    highestmodseq: int
    size: int

    @classmethod
    def of(cls, totals: Totals, uidvalidity: int) -> Status:
        """What the totals of a mailbox say."""
        return cls(
            messages=totals.messages,
            recent=totals.recent,
            unseen=totals.unseen,
            deleted=totals.deleted,
            uidnext=totals.uidnext,
            uidvalidity=uidvalidity,
            highestmodseq=max(totals.modseq, 1),
            size=totals.bytes,
        )


class MailboxInfo(NamedTuple):
    """One line of LIST. `guid` None: a name without a mailbox (a parent level, or a subscription to nothing)."""

    name: str
    guid: Guid | None
    special_use: str
    subscribed: bool
    has_children: bool


class Source(Protocol):
    """A mail that is not in memory; its length is its size in bytes."""

    def __len__(self) -> int: ...

    def open(self) -> AbstractAsyncContextManager[bytes]:
        """The mail's bytes, in memory until the end of the context. Raises Temporary."""

    @property
    def lost(self) -> bool:
        """It cannot be read any more."""


@dataclass(frozen=True, slots=True)
class NewMail:
    """One mail to be stored. internaldate: unix seconds, None for now; zone: minutes east of UTC."""

    source: bytes | Source
    flags: tuple[str, ...] = ()
    internaldate: int | None = None
    zone: int = 0


class Appended(NamedTuple):
    uidvalidity: int
    uids: list[Uid]


class Copied(NamedTuple):
    """COPYUID: the target's UIDVALIDITY and the UIDs there, one for each of `source`. RFC 4315 §3."""

    uidvalidity: int
    source: UidArray
    target: UidArray
    failure: OboxError | None = None
    """Why a MOVE has moved these alone, and left the others where they were."""


class Stored(NamedTuple):
    """changed: UIDs that have a new modseq; refused: UIDs beyond UNCHANGEDSINCE; modseq: the new one, 0 without
    change."""

    changed: UidArray
    refused: UidArray
    modseq: int


class Usage(NamedTuple):
    """Quota: octets and messages in use, and the limits (None: no limit)."""

    storage_bytes: int
    messages: int
    storage_bytes_max: int | None
    messages_max: int | None


class Mailbox(Protocol):
    """A selected mailbox. Held open by `User.select`, given back by `release`; many sessions share one.

    autofix, where mails are read: a lost one is looked for once more, and expunged if it is gone; None: as the store's
    settings say.
    """

    guid: Guid
    uidvalidity: int

    @property
    def state(self) -> State:
        """Columns to read between awaits: uids, bits, modseqs, size, internaldate, … Never changed by a protocol."""

    @property
    def deleted(self) -> bool:
        """The mailbox itself has been deleted under its sessions."""

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` after every change by anyone, from the loop; returns the call that ends it."""

    def take_recent(self) -> int:
        """The lowest UID that no session was told of, and claim all from there on as told (SELECT; \\Recent)."""

    async def fields(
        self, uids: Sequence[int], *, autofix: bool | None = None, bytes_max: int = sys.maxsize
    ) -> list[Fields | Unreadable | None]:
        """Ready bytes for each UID; None for one that is gone. Reads mails whose fields are not cached, and caches
        them. Mails that are expunged and retained are read like others, here and below, while their objects are there.

        bytes_max: the answer is for the first of `uids` only, at least one, and ends with the one that makes it about
        so many bytes: ask again for the others.
        """

    async def mail(self, uid: int, *, autofix: bool | None = None) -> bytes:
        """The whole mail. Raises Expunged, NotFound (lost from the bucket), Corrupt."""

    def mails(
        self, uids: Sequence[int], *, autofix: bool | None = None
    ) -> AsyncIterator[tuple[int, bytes | Unreadable | None]]:
        """Whole mails in the order of `uids`, read ahead by a few; None for one that is gone."""

    async def part(self, uid: int, start: int, end: int, *, autofix: bool | None = None) -> bytes:
        """Octets [start, end) of a mail; of a large one only the frames needed are read. Raises as `mail`."""

    async def search(self, query: Query, uids: UidArray, *, autofix: bool | None = None) -> UidArray:
        """Those of `uids` that match, in order. Columns first; cached fields, then mails, only of what is left. A mail
        that would have to be read and cannot be does not match."""

    async def store_flags(
        self, uids: UidArray, op: FlagOp, flags: Iterable[str], unchanged_since: int | None = None
    ) -> Stored:
        """Change flags; in the synced local commit on return. Raises Limit (keywords). RFC 3501 §6.4.6, RFC 7162
        §3.1.3."""

    async def expunge(self, uids: UidArray) -> UidArray:
        """Expunge those of `uids` that exist and say which; in the synced local commit on return."""

    async def release(self) -> None:
        """The session has left the mailbox."""


class User(Protocol):
    """One user's mail, shared by all of the user's sessions."""

    name: str
    storage_id: StorageId

    def mailboxes(self) -> list[MailboxInfo]:
        """Every mailbox and every parent level that has none, sorted by name, INBOX first."""

    def subscriptions(self) -> list[str]:
        """Subscribed names, also of mailboxes that do not exist. RFC 3501 §6.3.6."""

    async def create(self, name: str, special_use: str = "") -> Guid:
        """Make a mailbox; in the bucket on return. Raises Exists, Invalid, Limit. RFC 3501 §6.3.3."""

    async def delete(self, name: str) -> None:
        """Delete a mailbox; its children stay. Raises NotFound, NoPerm (INBOX). RFC 3501 §6.3.4."""

    async def rename(self, old: str, new: str) -> None:
        """Rename with all children; INBOX's mails move to a new mailbox. Raises NotFound, Exists, Invalid. RFC 3501
        §6.3.5."""

    async def subscribe(self, name: str, on: bool) -> None:
        """Subscribe or unsubscribe a name; in the bucket on return."""

    async def status(self, name: str) -> Status:
        """Raises NotFound."""

    async def select(self, name: str) -> Mailbox:
        """Open a mailbox. Raises NotFound."""

    async def append(self, name: str, mails: Sequence[NewMail]) -> Appended:
        """Store mails, all or none visible; in the bucket on return.

        Raises NotFound, OverQuota, TooBig, Limit. RFC 3501 §6.3.11, RFC 3502, RFC 4315 §3.
        """

    async def copy(self, source: Mailbox, uids: UidArray, name: str, *, move: bool = False) -> Copied:
        """COPY or MOVE those of `uids` that exist; in the bucket on return.

        A COPY is two requests, and all or nothing. A MOVE of many mails goes in parts, each of two requests.
        Raises NotFound (the target), OverQuota, Limit. RFC 3501 §6.4.7, RFC 6851.
        """

    def usage(self) -> Usage:
        """What the quota counts."""

    async def release(self) -> None:
        """The session has ended."""


class Store(Protocol):
    """All users of this backend."""

    async def open_user(
        self, name: str, storage_id: StorageId, *, quota_bytes: int | None = None, quota_messages: int | None = None
    ) -> User:
        """Open a user's mail, made at first use. Raises Unavailable."""

    def metadata(self) -> Mapping[str, object]:
        """Figures for logs and metrics."""
