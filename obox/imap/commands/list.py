"""LIST, LSUB, NAMESPACE. RFC 3501 §6.3.8, §6.3.9; RFC 5258; RFC 5819; RFC 6154; RFC
2342; RFC 8440.

A name is judged twice: does it match a pattern, and is it selected (all names, the
subscribed, those of special use). With RECURSIVEMATCH a name that is not selected is
shown where something below it is, with CHILDINFO.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from obox.errors import NoPerm, NotFound
from obox.imap import ast, wire
from obox.imap.ast import ListReturn, ListSelect
from obox.imap.commands.status import write_status
from obox.imap.replies import Reply
from obox.imap.session import Session
from obox.loading import loaded
from obox.mailbox import names
from obox.mailbox.names import INBOX, SEPARATOR, Pattern
from obox.mailbox.rights import ALL
from obox.sharing import ROOT as SHARED
from obox.store.api import User

_SEPARATOR: Final = b'"/"'


@dataclass(slots=True)
class Entry:
    """One name: what LIST may say of it."""

    name: str
    exists: bool = False
    special_use: str = ""
    subscribed: bool = False
    has_children: bool = False
    level: bool = False
    """There are mailboxes below, whether or not it is one."""
    rights: str = ALL
    """What the session may do there."""


async def namespace(session: Session, _: ast.Namespace) -> Reply:
    others = b'(("%b/" "/"))' % SHARED.encode() if session.visitor is not None else b"NIL"
    session.write(wire.line(b"NAMESPACE", b'(("" "/"))', others, b"NIL"))
    return Reply("Namespace completed")


async def list_(session: Session, command: ast.List) -> Reply:
    if not command.extended and command.patterns == ("",):
        # RFC 3501 §6.3.8: asks for the separator and the root of the reference.
        session.write(wire.line(b"LIST", b"(\\Noselect)", _SEPARATOR, b'""'))
        return Reply("List completed")
    user = session.need_user()
    entries = await entries_of(session, user)
    patterns = await compiled(session, command.reference, command.patterns)
    select, returns = command.select, command.returns
    wants_subscribed = ListSelect.SUBSCRIBED in select
    wants_special = ListSelect.SPECIAL_USE in select
    chosen = [
        entry.name
        for entry in entries
        if (entry.subscribed or not wants_subscribed) and (entry.special_use or not wants_special)
    ]
    if not (wants_subscribed or wants_special):
        chosen = [entry.name for entry in entries if entry.exists or entry.level]
    chosen_set = set(chosen)
    matching = await matching_of(session, patterns, (entry.name for entry in entries))
    above: set[str] = set()
    if ListSelect.RECURSIVEMATCH in select:
        # RFC 5258 §3.5: a parent that matches stands for children that the patterns do
        # not show themselves.
        above = names.with_children(name for name in chosen if name not in matching)
    show_subscribed = wants_subscribed or ListReturn.SUBSCRIBED in returns
    for entry in entries:
        childinfo = entry.name in above
        if entry.name not in matching or not (childinfo or entry.name in chosen_set):
            continue
        attributes = attributes_of(entry, subscribed=show_subscribed and entry.subscribed)
        words = [b"LIST", wire.flags(attributes), _SEPARATOR, wire.mailbox(entry.name, utf8=session.utf8)]
        if childinfo and wants_subscribed:
            words.append(b'("CHILDINFO" ("SUBSCRIBED"))')
        session.write(wire.line(*words))
        if command.status and entry.exists:
            try:
                await write_status(session, entry.name, command.status)
            except (NotFound, NoPerm):
                # It was deleted meanwhile, or may not be read: RFC 5819 §2 has no line.
                pass
        if command.metadata and entry.exists:
            await loaded("obox.imap.commands.metadata")
            from obox.imap.commands.metadata import write_listed

            write_listed(session, entry.name, command.metadata)
        if ListReturn.MYRIGHTS in returns and entry.exists and session.visitor is not None:
            await loaded("obox.imap.commands.acl")
            from obox.imap.commands.acl import write_rights

            write_rights(session, entry.name, entry.rights)
        await session.pause()
    return Reply("List completed")


async def lsub(session: Session, command: ast.Lsub) -> Reply:
    """Subscribed names; a `%` that ends the pattern shows levels above them as
    \\Noselect. RFC 3501 §6.3.9."""
    user = session.need_user()
    existing = {info.name for info in user.mailboxes() if info.guid is not None}
    if session.visitor is not None:
        existing.update(await session.visitor.shared())
    await session.pause()
    subscribed = user.subscriptions()
    shown = dict.fromkeys(subscribed, True)
    patterns = await compiled(session, command.reference, (command.pattern,))
    if any(pattern.ends_in_percent for pattern in patterns):
        shown |= dict.fromkeys(names.with_children(subscribed).difference(shown), False)
    for name in sorted(await matching_of(session, patterns, shown), key=names.sort_key):
        attributes = () if shown[name] and name in existing else ("\\Noselect",)
        session.write(wire.line(b"LSUB", wire.flags(attributes), _SEPARATOR, wire.mailbox(name, utf8=session.utf8)))
        await session.pause()
    return Reply("Lsub completed")


async def compiled(session: Session, reference: str, given: Sequence[str]) -> list[Pattern]:
    """Return the patterns that are not empty, below the reference. Raises: Invalid."""
    out = []
    for pattern in given:
        if pattern:
            out.append(Pattern(_joined(reference, pattern)))
            await session.pause()
    return out


async def matching_of(session: Session, patterns: Sequence[Pattern], known: Iterable[str]) -> set[str]:
    """Return the names that a pattern matches."""
    out = set()
    for name in known:
        for pattern in patterns:
            if pattern.matches(name):
                out.add(name)
                break
        await session.pause()
    return out


def _joined(reference: str, pattern: str) -> str:
    """The reference is a prefix of the pattern unless the pattern starts at the root.
    RFC 9051 §6.3.9."""
    if not reference or pattern.startswith(SEPARATOR):
        return pattern.removeprefix(SEPARATOR) if reference else pattern
    return reference + pattern


async def entries_of(session: Session, user: User) -> list[Entry]:
    """Return all names that LIST can show: mailboxes, levels above them, and
    subscriptions to mailboxes that do not exist."""
    table: dict[str, Entry] = {}
    infos = user.mailboxes()
    await session.pause()
    for info in infos:
        exists = info.guid is not None
        table[info.name] = Entry(info.name, exists, info.special_use, info.subscribed, info.has_children)
    if session.visitor is not None:
        for name, rights in (await session.visitor.shared()).items():
            table.setdefault(name, Entry(name, exists=True, rights=rights))
    if INBOX not in table:
        table[INBOX] = Entry(INBOX, exists=True)
    for name in user.subscriptions():
        table.setdefault(name, Entry(name)).subscribed = True
    await session.pause()
    for name in names.with_children(entry.name for entry in table.values() if entry.exists):
        table.setdefault(name, Entry(name)).level = True
    await session.pause()
    for name in names.with_children(table):
        table.setdefault(name, Entry(name))
    await session.pause()
    return sorted(table.values(), key=lambda entry: names.sort_key(entry.name))


def attributes_of(entry: Entry, *, subscribed: bool) -> list[str]:
    out = []
    if not entry.exists:
        out.append("\\Noselect" if entry.level else "\\NonExistent")
    out.append("\\HasChildren" if entry.has_children or entry.level else "\\HasNoChildren")
    if subscribed:
        out.append("\\Subscribed")
    if entry.special_use:
        out.append(entry.special_use)
    return out
