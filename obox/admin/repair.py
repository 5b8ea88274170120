"""Verbs that repair indexes: force-resync, rebuild."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from msgspec import Meta

from ..accounts import Account
from .masks import Masks, matching, require_named
from .params import DryRun, Selection
from .parts import Admin
from .table import Event, user_verb


class ForceResyncParams(Selection, kw_only=True):
    mailbox_mask: Annotated[
        list[str], Meta(min_length=1, description="Mailboxes that match any of these masks; * for all")
    ]
    keep_lost: Annotated[bool, Meta(description="Only report lost mails, and do not expunge them")] = False
    skip_uids: Annotated[
        int,
        Meta(ge=0, le=1_000_000, description="Number of UIDs to skip, for a bucket that was restored from a backup"),
    ] = 0


@user_verb(
    "force-resync", ForceResyncParams, columns=("mailbox", "mails", "new", "lost", "dropped", "unknown", "uidnext")
)
async def force_resync(admin: Admin, account: Account, params: ForceResyncParams) -> AsyncIterator[Event]:
    """Make the indexes of mailboxes agree with the bucket.

    It joins all index bundles and LISTs all mails. Mails that are in no bundle are
    added. Mails whose object is gone are expunged, after a second check. The column
    unknown counts objects below the next UID that no index has; oboxadm rebuild brings
    them back. The exit code is 70 if an index does not decode, and 65 if a mailbox that
    is named without wildcards does not exist. After a restore, clients may know UIDs
    that were used since the backup. --skip-uids keeps new mails from getting those
    UIDs, so that clients do not take them for mails that they know.
    """
    from ..store.operate import repair

    async with admin.open(account) as user:
        guids = {info.name: info.guid for info in user.mailboxes() if info.guid is not None}
        for name in await matching(list(guids), params.mailbox_mask):
            done = await repair.resync(user, guids[name], keep_lost=params.keep_lost, skip_uids=params.skip_uids)
            yield {"mailbox": name, **done._asdict()}
    await require_named(list(guids), params.mailbox_mask)


class RebuildParams(Selection, kw_only=True):
    mailbox_mask: Annotated[
        list[str], Meta(description="Rebuild these mailboxes as well, although their index decodes")
    ] = msgspec.field(default_factory=list)
    dry_run: DryRun = False


@user_verb(
    "rebuild",
    RebuildParams,
    columns=("mailbox", "mails", "result", "unknown"),
    asks="Rebuild indexes from mails alone? Data that only an index has is lost.",
)
async def rebuild(admin: Admin, account: Account, params: RebuildParams) -> AsyncIterator[Event]:
    """Rebuild indexes that do not decode from mails alone, after a disaster.

    It rebuilds mailboxes whose index is damaged, and mailboxes that are missing in the
    list of mailboxes. It rebuilds others only if they are named. The user must not be
    logged in. UIDs stay the same. The column unknown says what cannot be known from the
    mails. Mails that were expunged lately may be back, and a moved mail may be in both
    mailboxes.
    """
    from ..store.operate import repair

    if params.dry_run:
        async for row in _would_rebuild(admin, account, params.mailbox_mask):
            yield row
        return
    masks = await Masks.of(params.mailbox_mask)
    async for done in repair.rebuild(admin.store, account.storage_id, account.name, masks.choose):
        yield {"mailbox": done.name, "mails": done.mails, "result": done.result, "unknown": done.unknown}


async def _would_rebuild(admin: Admin, account: Account, masks: list[str]) -> AsyncIterator[Event]:
    """Yield what rebuild would do, as far as that is known without reading every index.
    Also yield named mailboxes that do not exist."""
    from ..errors import Corrupt

    try:
        async with admin.open(account) as user:
            names = [info.name for info in user.mailboxes() if info.guid is not None]
        chosen = await Masks.of(masks)
        for name in await chosen.among(names):
            yield {"mailbox": name, "mails": None, "result": "would be rebuilt", "unknown": ""}
        for name in chosen.missing(names):
            yield {"mailbox": name, "mails": None, "result": "no such mailbox", "unknown": ""}
    except Corrupt:
        yield {"mailbox": "", "mails": None, "result": "the list of mailboxes would be rebuilt", "unknown": ""}
    result = "each index that does not decode would be rebuilt"
    yield {"mailbox": "", "mails": None, "result": result, "unknown": ""}
