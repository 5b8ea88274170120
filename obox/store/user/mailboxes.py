"""Creates, renames, deletes and lists mailboxes. `user.py` uses it."""

from __future__ import annotations

from typing import Final, Protocol

import msgspec
import structlog

from ...errors import Exists, Invalid, Limit, MailboxFull, NoPerm, NotFound
from ...mailbox import MailboxEntry, Root, RootDelta
from ...mailbox.names import INBOX, canonical, check_name, with_children
from ...objectstore import StoreError, put_once
from ...objectstore.codec import ObjectKind
from ...objectstore.keys import first_root_key, owner_of
from ...types import Guid
from ..api import MailboxInfo
from ..box.bundles import BundleMeta
from ..box.expunge import expunge_in, expunge_now, homes_of
from ..box.index import Index, Owner
from ..env import Env
from ..log.stage import Edit
from ..mails.purge import purge_last
from ..stamp import Stamp, name_of
from . import flush as _flush
from .copy import Copier, move

log = structlog.get_logger()

MAILBOXES_MAX: Final = 10_000
"""Mailboxes of a user. The root bundle is read as a whole at a cold login."""


class Lister(Owner, Protocol):
    """What a change of the list of mailboxes needs of the user."""

    def fresh(self, entry: MailboxEntry) -> Index:
        """Return a mailbox that was created just now."""

    def forget(self, guid: Guid) -> None:
        """Drop a cleared mailbox from memory and local copies."""

    async def change_root(self, delta: RootDelta, edit: Edit | None = None) -> None:
        """Stage a change of the list, with an edit that belongs to it. It is in the
        bucket on return."""


class Maker(Lister, Copier, Protocol):
    """What creating and deleting a mailbox by name needs of the user."""


def infos(root: Root) -> list[MailboxInfo]:
    """See `api.User.mailboxes`."""
    names = root.names()
    parents = with_children(names)
    subscriptions = root.subscriptions
    out = []
    for name in sorted(parents.union(names)):
        entry = names.get(name)
        subscribed = bool(subscriptions.get(name, 0) & 1)
        if entry is None:
            out.append(MailboxInfo(name, None, "", subscribed, name in parents))
        else:
            out.append(MailboxInfo(name, Guid(entry.guid), entry.special_use, subscribed, name in parents))
    out.sort(key=lambda info: info.name != "INBOX")  # stable
    return out


def first_list(env: Env) -> RootDelta:
    """Return the mailboxes of the settings, subscribed, as the whole list of a user who
    has no list."""
    now = env.now_ms()
    validity = now // 1000
    wanted = [(INBOX, ""), *((canonical(name), use) for name, use in env.settings.mailboxes)]
    entries = [
        MailboxEntry(env.random_bytes(16).hex(), name, now, now + i, validity + i, use)
        for i, (name, use) in enumerate(wanted)
    ]
    subscriptions = {name: now * 2 + 1 for name, _ in wanted}
    return RootDelta(entries, subscriptions, {}, now, validity + len(wanted), identity=entries[0].guid)


async def first(user: Lister) -> bool:
    """Write the first root bundle of a new user under its fixed name. Returns False if
    another backend was first."""
    env, delta = user.env, first_list(user.env)
    oid = env.new_oid()
    key = first_root_key(user.storage_id)
    meta = msgspec.msgpack.encode(BundleMeta())
    data = env.codec.encode(ObjectKind.BASE, owner_of(key), oid, meta, delta.encode())
    try:
        if not await put_once(env.bucket, key, data, oid, kind="index"):
            return False
    except StoreError as exc:
        raise env.unavailable("put", key, exc) from exc
    user.root.join(delta)
    user.rootbox.stamp = Stamp(heads=(name_of(key),), need_base=False)
    user.created_here = {Guid(entry.guid) for entry in delta.entries}
    log.info("user created", user=user.name, storage_id=user.storage_id)
    return True


def check_count(names: list[str]) -> None:
    """Check the number of names. Levels without a mailbox count, because LIST has a
    line for each. Raises Limit."""
    if len(names) > MAILBOXES_MAX or len(with_children(names).union(names)) > MAILBOXES_MAX:
        raise Limit(f"a user has at most {MAILBOXES_MAX} mailboxes, levels above them counted")


async def create(user: Maker, name: str, special_use: str) -> Guid:
    """See `api.User.create`."""
    name = check_name(name)
    if name in user.root.names():
        raise Exists(f"mailbox {name!r} exists already")
    check_count([*user.root.names(), name])
    if special_use and any(entry.special_use == special_use for entry in user.root.names().values()):
        raise Exists(f"there is a mailbox for {special_use} already")
    entry = _new_entry(user, name, special_use)
    user.journal.check()
    box = user.fresh(entry)
    box.unborn = True
    await user.change_root(RootDelta([entry], highestmodseq=entry.stamp, uidvalidity=entry.uidvalidity))
    box.unborn = False
    return Guid(entry.guid)


def _new_entry(user: Maker, name: str, special_use: str = "") -> MailboxEntry:
    now = user.env.now_ms()
    return MailboxEntry(
        guid=user.env.random_bytes(16).hex(),
        name=name,
        stamp=user.root.next_modseq(now),
        created=now,
        uidvalidity=user.root.next_uidvalidity(now // 1000),
        special_use=special_use,
    )


async def delete(user: Maker, name: str) -> None:
    """See `api.User.delete`. All mails are expunged and the name is removed. The index
    stays hidden while copies need its objects."""
    if canonical(name) == INBOX:
        raise NoPerm("INBOX cannot be deleted")
    entry = user.entry(name)
    box = await user.box(Guid(entry.guid))
    homes = await homes_of(box)
    user.journal.check()
    edit = user.edit()
    expunge_in(box, edit, box.state.uids, homes)
    box.deleted = True
    modseq = user.root.next_modseq(user.env.now_ms())
    box.wake()
    await user.change_root(RootDelta([msgspec.structs.replace(entry, deleted=modseq)], highestmodseq=modseq), edit)


async def rename(user: Maker, old: str, new: str) -> None:
    """See `api.User.rename`."""
    old, new = canonical(old), check_name(new)
    names = user.root.names()
    if old == INBOX:
        await _rename_inbox(user, new)
        return
    moved = {name: entry for name, entry in names.items() if name == old or name.startswith(old + "/")}
    if not moved:
        raise NotFound(f"no mailbox {old!r}")
    if new == old or new.startswith(old + "/"):
        raise Invalid(f"{old!r} cannot be renamed into itself")
    modseq = user.root.next_modseq(user.env.now_ms())
    entries = []
    for name, entry in moved.items():
        target = check_name(new + name[len(old) :])
        if target in names:
            raise Exists(f"mailbox {target!r} exists already")
        entries.append(msgspec.structs.replace(entry, name=target, stamp=modseq))
    check_count([*(name for name in names if name not in moved), *(entry.name for entry in entries)])
    await user.change_root(RootDelta(entries, highestmodseq=modseq))


async def _rename_inbox(user: Maker, new: str) -> None:
    """Move the mails of INBOX to a new mailbox. INBOX and its children stay. RFC 3501
    §6.3.5."""
    inbox = await user.box(Guid(user.entry(INBOX).guid))
    if (most := user.env.settings.mailbox_mails_max) < len(inbox.state):
        raise MailboxFull(f"a mailbox has at most {most} mails")
    await create(user, new, "")
    done = await move(user, inbox, inbox.state.uids, new)
    if done.failure is not None:
        raise done.failure


async def clear_deleted(user: Lister, entry: MailboxEntry) -> None:
    """Delete the rest of a mailbox that was deleted longer than the delay ago, once no
    copy needs it."""
    box = await user.box(Guid(entry.guid))
    homes = await homes_of(box)
    # Mails may have arrived while it was deleted, or by another writer.
    expunge_now(box, box.state.uids, homes)
    await _flush.sweep(box)
    async with box.flushing:
        if not await purge_last(box):
            return
        await box.bundles.clear_all()
        user.journal.flushed(user.storage_id, box.guid, user.journal.position(), more=False)
    user.forget(box.guid)
    modseq = user.root.next_modseq(user.env.now_ms())
    await user.change_root(RootDelta([msgspec.structs.replace(entry, cleared=1)], highestmodseq=modseq))
    log.info("objects of a deleted mailbox removed", user=user.name, mailbox=entry.name)
