"""What a protocol may use of the store: a narrow contract, grouped by state.

Values are plain: wire data is `bytes` that can be sent, UIDs are sorted numpy arrays,
names are decoded strings. Every method may raise the errors of `obox.errors` that its
docstring names, and `Unavailable` if it needs the bucket and the bucket does not
answer. Methods without `async` are served from memory and make no request.
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
from .fields import Fields as Fields  # noqa: PLC0414 - part of the contract

Unreadable = NotFound | Corrupt
"""Why a mail of the index cannot be read: its object is gone (lost), or does not decode
(damaged)."""


class Status(NamedTuple):
    """STATUS of a mailbox. RFC 3501 §6.3.10, RFC 7162 §3.1.1, RFC 8438 §3, RFC 9051
    §6.3.11 (deleted)."""

    messages: int
    recent: int
    unseen: int
    deleted: int
    uidnext: int
    uidvalidity: int
    highestmodseq: int
    size: int
    guid: Guid

    @classmethod
    def of(cls, totals: Totals, uidvalidity: int, guid: Guid) -> Status:
        """Return the status that follows from the totals of a mailbox."""
        return cls(
            messages=totals.messages,
            recent=totals.recent,
            unseen=totals.unseen,
            deleted=totals.deleted,
            uidnext=totals.uidnext,
            uidvalidity=uidvalidity,
            highestmodseq=max(totals.modseq, 1),
            size=totals.bytes,
            guid=guid,
        )


class MailboxInfo(NamedTuple):
    """A line of LIST. guid: None for a name without a mailbox (a parent level, or a
    subscription without a mailbox)."""

    name: str
    guid: Guid | None
    special_use: str
    subscribed: bool
    has_children: bool


class Source(Protocol):
    """A mail that is not in memory. Its length is its size in bytes."""

    def __len__(self) -> int: ...

    def open(self) -> AbstractAsyncContextManager[bytes]:
        """Return the mail's bytes, which are in memory until the end of the context.
        Raises Temporary."""

    @property
    def lost(self) -> bool:
        """Return whether it cannot be read any more."""


@dataclass(frozen=True, slots=True)
class NewMail:
    """A mail to be stored. internaldate: unix seconds, None for now. zone: minutes east
    of UTC."""

    source: bytes | Source
    flags: tuple[str, ...] = ()
    internaldate: int | None = None
    zone: int = 0


class Appended(NamedTuple):
    uidvalidity: int
    uids: list[Uid]


class Copied(NamedTuple):
    """COPYUID: the target's UIDVALIDITY and the UIDs there, in the order of `source`.
    RFC 4315 §3."""

    uidvalidity: int
    source: UidArray
    target: UidArray
    failure: OboxError | None = None
    """Why a MOVE has moved these alone, and left the others where they were."""


class Stored(NamedTuple):
    """changed: UIDs that have a new MODSEQ. refused: UIDs beyond UNCHANGEDSINCE.
    modseq: the new MODSEQ, 0 without a change."""

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
    """A selected mailbox. `User.select` holds it open until `release`; sessions share
    it.

    autofix, for reads of mails: whether a lost mail is looked for again, and expunged
    if it is gone. None means the store's setting.
    """

    guid: Guid
    uidvalidity: int

    @property
    def rights(self) -> str:
        """Return what the session may do: all, or the rights of another user's
        session. See `mailbox.rights`."""

    @property
    def state(self) -> State:
        """Return columns to read between awaits: uids, bits, modseqs, size, … No
        protocol changes them."""

    @property
    def deleted(self) -> bool:
        """Return whether the mailbox has been deleted while sessions have it
        selected."""

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` from the loop after every change by any session or backend.
        Returns a function that ends it."""

    def take_recent(self) -> int:
        """Return the lowest UID that no session has seen as \\Recent, and mark all from
        there on as seen (SELECT)."""

    async def fields(
        self, uids: Sequence[int], *, autofix: bool | None = None, bytes_max: int = sys.maxsize
    ) -> list[Fields | Unreadable | None]:
        """Return the ready fields for each UID, None for a mail that is gone. Mails
        whose fields are not cached are read, and their fields are cached. Here and
        below, expunged mails that are retained are read like others while their objects
        exist.

        bytes_max: about how many bytes the answer may have. The answer has at least the
        first of `uids`, and ends with the mail that reaches the limit. Ask again for
        the others.
        """

    async def mail(self, uid: int, *, autofix: bool | None = None) -> bytes:
        """Return the whole mail. Raises Expunged, NotFound (lost from the bucket),
        Corrupt."""

    def mails(
        self, uids: Sequence[int], *, autofix: bool | None = None
    ) -> AsyncIterator[tuple[int, bytes | Unreadable | None]]:
        """Yield whole mails in the order of `uids`, None for a mail that is gone. A few
        are read ahead."""

    async def part(self, uid: int, start: int, end: int, *, autofix: bool | None = None) -> bytes:
        """Return octets [start, end) of a mail. Of a large mail only the frames needed
        are read. Raises as `mail`."""

    async def search(self, query: Query, uids: UidArray, *, autofix: bool | None = None) -> UidArray:
        """Return those of `uids` that match, in order. It first compares columns, and
        then cached fields and mails only of what is left. A mail that must be read and
        cannot be read does not match."""

    async def store_flags(
        self,
        uids: UidArray,
        op: FlagOp,
        flags: Iterable[str],
        unchanged_since: int | None = None,
        *,
        committed: bool = True,
    ) -> Stored:
        """Change flags. RFC 3501 §6.4.6, RFC 7162 §3.1.3.

        committed: the change is in the synced local commit on return. With False the
        caller awaits `User.commit` before it acknowledges the change, so that several
        changes share a commit. Raises Limit (keywords).
        """

    async def expunge(self, uids: UidArray) -> UidArray:
        """Expunge and return those of `uids` that exist. The change is in the synced
        local commit on return."""

    async def release(self) -> None:
        """Note that the session has left the mailbox."""


class Changes(Protocol):
    """What has changed of a user's mail."""

    def watch(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call `listener` from the loop after each change: with the GUID of the
        mailbox, or with "" for the list of mailboxes. Returns a function that ends
        it."""


class Annotations(Protocol):
    """Annotations of mailboxes, and of the user. Entries are in lower case. RFC
    5464."""

    def of(self, name: str) -> Mapping[str, bytes]:
        """Return the values of a mailbox by entry; "" stands for the user. Raises
        NotFound."""

    def since(self, modseq: int) -> tuple[int, list[tuple[str, str]]]:
        """Return what changed after a MODSEQ of the list of mailboxes, as names and
        entries, and the present MODSEQ."""

    async def change(self, name: str, values: Mapping[str, bytes | None]) -> None:
        """Change values; None removes an entry. The change is in the bucket on return,
        all of it or nothing. Raises NotFound, Limit, TooBig."""


class Rights(Protocol):
    """The ACLs of a user's mailboxes, as the user's own backend has them. Rights are
    text (`mailbox.rights`); the owner's are not in any ACL. RFC 4314."""

    def of(self, name: str) -> Mapping[str, str]:
        """Return the ACL of a mailbox: rights by identifier. Raises NotFound."""

    def granted(self, name: str, who: str) -> str:
        """Return the rights that another user has in a mailbox now; "" also if there is
        no such mailbox."""

    def held(self, guid: str, who: str) -> str:
        """Return the same for a mailbox by its GUID."""

    def shared(self) -> list[str]:
        """Return the names of mailboxes that have an ACL."""

    def owners(self) -> list[str]:
        """Return the names of users who have shared something with this user. This is a
        hint: the owner's ACL says what is shared now."""

    async def change(self, name: str, entries: Mapping[str, str]) -> None:
        """Set the rights of identifiers; "" removes an entry. The change is in the
        bucket on return, all of it or nothing. Raises NotFound, Limit, Unavailable."""

    async def note_owner(self, owner: str, *, on: bool) -> None:
        """Add or remove an owner. The change is in the bucket on return. Raises Limit,
        Unavailable."""


class User(Protocol):
    """A user's mail, shared by all of the user's sessions."""

    @property
    def name(self) -> str: ...

    @property
    def storage_id(self) -> StorageId: ...

    @property
    def changes(self) -> Changes: ...

    @property
    def annotations(self) -> Annotations: ...

    @property
    def rights(self) -> Rights: ...

    async def commit(self) -> None:
        """Return when every change made so far is in the synced local commit. Raises
        Unavailable, Elsewhere: then nothing made since the last commit may be
        acknowledged."""

    async def current(self) -> None:
        """Return when this backend may answer for the user. Call it before each
        command.

        It waits only after a pause of this process, in which another backend may have
        taken over. Raises Unavailable, Elsewhere.
        """

    def mailboxes(self) -> list[MailboxInfo]:
        """Return every mailbox, and every parent level without a mailbox, sorted by
        name with INBOX first."""

    def subscriptions(self) -> list[str]:
        """Subscribed names, also of mailboxes that do not exist. RFC 3501 §6.3.6."""

    async def create(self, name: str, special_use: str = "") -> Guid:
        """Create a mailbox. It is in the bucket on return. Raises Exists, Invalid,
        Limit. RFC 3501 §6.3.3."""

    async def delete(self, name: str) -> None:
        """Delete a mailbox. Its children stay. Raises NotFound, NoPerm (INBOX). RFC
        3501 §6.3.4."""

    async def rename(self, old: str, new: str) -> None:
        """Rename a mailbox with all children. For INBOX, its mails move to a new
        mailbox. Raises NotFound, Exists, Invalid. RFC 3501 §6.3.5."""

    async def subscribe(self, name: str, on: bool) -> None:
        """Subscribe or unsubscribe a name. The change is in the bucket on return."""

    async def status(self, name: str) -> Status:
        """Raises NotFound."""

    async def select(self, name: str) -> Mailbox:
        """Open a mailbox. Raises NotFound."""

    async def append(
        self, name: str, mails: Sequence[NewMail], *, freed_bytes: int = 0, freed_mails: int = 0
    ) -> Appended:
        """Store mails. All become visible or none does. They are in the bucket on
        return.

        freed_bytes, freed_mails: what the caller expunges right afterwards, so that it
        does not count for the quota.

        Raises NotFound, OverQuota, TooBig, Limit. RFC 3501 §6.3.11, RFC 3502, RFC 4315
        §3.
        """

    async def copy(self, source: Mailbox, uids: UidArray, name: str, *, move: bool = False) -> Copied:
        """COPY or MOVE those of `uids` that exist. The copies are in the bucket on
        return.

        A COPY takes two requests, and copies all mails or none. A MOVE of many mails is
        made in parts of two requests each. Raises NotFound (the target), OverQuota,
        Limit. RFC 3501 §6.4.7, RFC 6851.
        """

    def usage(self) -> Usage:
        """Return what the quota counts."""

    async def release(self) -> None:
        """Note that the session has ended."""


class Store(Protocol):
    """All users of this backend."""

    async def admit(self, storage_id: StorageId) -> None:
        """Return when a user may be opened: not while another backend gets the user,
        which takes no longer than a second. Raises Elsewhere, Unavailable."""

    async def open_user(
        self,
        name: str,
        storage_id: StorageId,
        *,
        quota_bytes: int | None = None,
        quota_messages: int | None = None,
        make: bool = True,
    ) -> User:
        """Open a user's mail, which is created at the first use. Raises Unavailable.

        make: False raises NotFound for a user who has no mail yet.
        """

    def metadata(self) -> Mapping[str, object]:
        """Return numbers for logs and metrics."""
