"""Verbs for a user's mailboxes and their total size: mailbox …, quota …."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from ..accounts import Account
from ..errors import Exists, Invalid, NoPerm, NotFound
from ..mailbox.names import INBOX, canonical
from .masks import matching, require_named
from .params import DryRun, Selection
from .parts import Admin
from .table import Event, Row, user_verb

STATUS_FIELDS: Final = (
    "messages", "recent", "uidnext", "uidvalidity", "unseen", "highestmodseq", "vsize", "guid", "deleted"
)  # fmt: skip
TOTALS: Final = ("messages", "recent", "unseen", "vsize", "deleted")


class MailboxListParams(Selection, kw_only=True):
    mailbox_mask: Annotated[list[str], Meta(description="Only mailboxes that match a mask")] = msgspec.field(
        default_factory=list
    )
    subscriptions: Annotated[bool, Meta(description="Show subscribed names, whether the mailbox exists or not")] = False


@user_verb("mailbox list", MailboxListParams, columns=("mailbox",))
async def mailbox_list(admin: Admin, account: Account, params: MailboxListParams) -> AsyncIterator[Event]:
    """List mailboxes."""
    async with admin.open(account) as user:
        if params.subscriptions:
            names = user.subscriptions()
        else:
            names = [info.name for info in user.mailboxes() if info.guid is not None]
        for name in await matching(names, params.mailbox_mask):
            yield {"mailbox": name}


class MailboxStatusParams(Selection, kw_only=True):
    field: Annotated[list[str], Meta(description="all, or some of " + " ".join(STATUS_FIELDS))] = msgspec.field(
        default_factory=lambda: ["all"]
    )
    mailbox_mask: Annotated[list[str], Meta(description="Only mailboxes that match a mask")] = msgspec.field(
        default_factory=list
    )
    total_sum: Annotated[bool, Meta(description="Show a single row with the sums")] = False


@user_verb("mailbox status", MailboxStatusParams)
async def mailbox_status(admin: Admin, account: Account, params: MailboxStatusParams) -> AsyncIterator[Event]:
    """Show the state of mailboxes: numbers of mails, next UID, size.

    The exit code is 65 if a mailbox that is named without wildcards is not there.
    """
    wanted = [field for one in params.field for field in one.lower().split()]
    if unknown := [field for field in wanted if field not in (*STATUS_FIELDS, "all")]:
        raise Invalid(f"field {unknown[0]!r}; allowed: all {' '.join(STATUS_FIELDS)}")
    fields = [field for field in STATUS_FIELDS if "all" in wanted or field in wanted]
    if params.total_sum:
        fields = [field for field in fields if field in TOTALS]
    sums = dict.fromkeys(fields, 0)
    async with admin.open(account) as user:
        guids = {info.name: info.guid for info in user.mailboxes() if info.guid is not None}
        for name in await matching(list(guids), params.mailbox_mask):
            status = await user.status(name)
            row = {"vsize": status.size, "guid": guids[name], **status._asdict()}
            if params.total_sum:
                for field in fields:
                    sums[field] += row[field]
            else:
                yield {"mailbox": name, **{field: row[field] for field in fields}}
    if params.total_sum:
        yield sums
    await require_named(list(guids), params.mailbox_mask)


class MailboxCreateParams(Selection, kw_only=True):
    mailbox: Annotated[list[str], Meta(min_length=1, description="Names of mailboxes")]
    subscriptions: Annotated[bool, Meta(description="Subscribe them as well")] = False


@user_verb("mailbox create", MailboxCreateParams)
async def mailbox_create(admin: Admin, account: Account, params: MailboxCreateParams) -> AsyncIterator[Event]:
    """Create mailboxes.

    They are in the bucket when the command ends. The exit code is 73 if a mailbox of
    that name exists.
    """
    async with admin.open(account) as user:
        for name in params.mailbox:
            await user.create(name)
            if params.subscriptions:
                await user.subscribe(name, True)
    return
    yield {}


class MailboxDeleteParams(Selection, kw_only=True):
    mailbox: Annotated[list[str], Meta(min_length=1, description="Names of mailboxes")]
    recursive: Annotated[bool, Meta(description="Delete all mailboxes below them as well")] = False
    require_empty: Annotated[bool, Meta(description="Refuse if a mailbox has mails")] = False
    subscriptions: Annotated[bool, Meta(description="Unsubscribe them as well")] = False
    dry_run: DryRun = False


@user_verb("mailbox delete", MailboxDeleteParams, asks="Delete these mailboxes with all their mails?")
async def mailbox_delete(admin: Admin, account: Account, params: MailboxDeleteParams) -> AsyncIterator[Event]:
    """Delete mailboxes with their mails. Mailboxes below them stay unless recursive.

    Nothing is deleted if a name has no mailbox, if one is INBOX, or if a mailbox must
    be empty and is not.
    """
    async with admin.open(account) as user:
        names = [info.name for info in user.mailboxes() if info.guid is not None]
        doomed: dict[str, None] = {}
        for name in map(canonical, params.mailbox):
            below = [one for one in names if one.startswith(name + "/")] if params.recursive else []
            found = [*reversed(below), *([name] if name in names else [])]
            if not found:
                raise NotFound(f"no mailbox {name!r}")
            doomed |= dict.fromkeys(found)
        if INBOX in doomed:
            raise NoPerm("INBOX cannot be deleted")
        for one in doomed:
            messages = (await user.status(one)).messages if params.require_empty or params.dry_run else 0
            if params.require_empty and messages:
                raise Exists(f"mailbox {one!r} is not empty")
            if params.dry_run:
                yield {"mailbox": one, "messages": messages}
        if params.dry_run:
            return
        for one in doomed:
            await user.delete(one)
            if params.subscriptions:
                await user.subscribe(one, False)


class MailboxRenameParams(Selection, kw_only=True):
    mailbox: Annotated[str, Meta(description="Present name of the mailbox")]
    new_name: Annotated[str, Meta(description="New name of the mailbox")]
    subscriptions: Annotated[bool, Meta(description="Subscribe the new name instead of the old name")] = False


@user_verb("mailbox rename", MailboxRenameParams)
async def mailbox_rename(admin: Admin, account: Account, params: MailboxRenameParams) -> AsyncIterator[Event]:
    """Rename a mailbox with all below it.

    If it is INBOX, its mails move to the new mailbox instead.
    """
    async with admin.open(account) as user:
        await user.rename(params.mailbox, params.new_name)
        if params.subscriptions:
            await user.subscribe(params.mailbox, False)
            await user.subscribe(params.new_name, True)
    return
    yield {}


class MailboxSubscribeParams(Selection, kw_only=True):
    mailbox: Annotated[list[str], Meta(min_length=1, description="Names of mailboxes")]


@user_verb("mailbox subscribe", MailboxSubscribeParams)
async def mailbox_subscribe(admin: Admin, account: Account, params: MailboxSubscribeParams) -> AsyncIterator[Event]:
    """Subscribe mailboxes."""
    await _subscribe(admin, account, params.mailbox, True)
    return
    yield {}


class MailboxUnsubscribeParams(Selection, kw_only=True):
    mailbox: Annotated[list[str], Meta(min_length=1, description="Names of mailboxes")]


@user_verb("mailbox unsubscribe", MailboxUnsubscribeParams)
async def mailbox_unsubscribe(admin: Admin, account: Account, params: MailboxUnsubscribeParams) -> AsyncIterator[Event]:
    """Unsubscribe mailboxes. A name need not have a mailbox."""
    await _subscribe(admin, account, params.mailbox, False)
    return
    yield {}


async def _subscribe(admin: Admin, account: Account, names: list[str], on: bool) -> None:
    async with admin.open(account) as user:
        for name in names:
            await user.subscribe(name, on)


class QuotaGetParams(Selection, kw_only=True):
    pass


@user_verb("quota get", QuotaGetParams, columns=("quota", "type", "value", "limit", "percent"))
async def quota_get(admin: Admin, account: Account, params: QuotaGetParams) -> AsyncIterator[Event]:
    """Show how much users store and may store.

    STORAGE is in kibibytes, as in doveadm; MESSAGE is the number of mails.
    """
    async with admin.open(account) as user:
        usage = user.usage()
        yield _quota("STORAGE", (usage.storage_bytes + 1023) // 1024, usage.storage_bytes_max, 1024)
        yield _quota("MESSAGE", usage.messages, usage.messages_max, 1)


def _quota(kind: str, value: int, most: int | None, unit: int) -> Row:
    limit = None if most is None else most // unit
    percent = None if not limit else value * 100 // limit
    return {"quota": "User quota", "type": kind, "value": value, "limit": limit, "percent": percent}


class QuotaRecalcParams(Selection, kw_only=True):
    pass


@user_verb("quota recalc", QuotaRecalcParams, columns=("before_bytes", "bytes", "before_messages", "messages"))
async def quota_recalc(admin: Admin, account: Account, params: QuotaRecalcParams) -> AsyncIterator[Event]:
    """Recalculate the totals of a user from every mailbox, and store them."""
    async with admin.open(account) as user:
        before = user.usage()
        for info in user.mailboxes():
            if info.guid is not None:
                await user.box(info.guid)
        after = user.usage()
        await user.rootbox.flush()
        yield {
            "before_bytes": before.storage_bytes,
            "bytes": after.storage_bytes,
            "before_messages": before.messages,
            "messages": after.messages,
        }
