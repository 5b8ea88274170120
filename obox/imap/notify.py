"""NOTIFY: a client hears of changes in mailboxes that it has not selected, and of
changes in its selected mailbox without IDLE. RFC 5465.

Theory of operation. The store says which mailbox of the user has changed
(`api.Changes`). The session notes the mailbox and wakes its connection. What is sent
follows from the state of the mailbox then: STATUS if its numbers differ from those that
were sent last, LIST if its name or subscription does. So a client that reads slowly
holds no more than a note for each mailbox. If there are too many of these notes or of
mailboxes, the client gets NOTIFICATIONOVERFLOW, and NOTIFY ends.

The first group that chooses a mailbox counts for it. The selected mailbox is reported
as its own group says, and with each command as always. Without such a group, and after
NOTIFY NONE, IDLE does not report it either (RFC 5465 §4).
"""

from __future__ import annotations

from typing import Final

from obox.errors import Limit, NotFound, OboxError
from obox.imap import ast, wire
from obox.imap.commands.fetch import fetch
from obox.imap.commands.status import write_status
from obox.imap.contexts import peeking, set_of
from obox.imap.filters import Chosen
from obox.imap.replies import Reply, bad, no
from obox.imap.session import Session
from obox.imap.updates import report, write_name
from obox.mailbox import UidArray
from obox.store.api import Status

MODSEQ_MAX: Final = 2**63 - 1

WATCHED_MAX: Final = 1_000
"""Mailboxes that the groups of a session choose."""
CHANGED_MAX: Final = 1_000
"""Mailboxes that have changed, and of which the client does not know yet."""

MESSAGES: Final = frozenset({"MESSAGENEW", "MESSAGEEXPUNGE", "FLAGCHANGE"})
NAMES: Final = frozenset({"MAILBOXNAME", "SUBSCRIPTIONCHANGE"})
VALUES: Final = frozenset({"MAILBOXMETADATACHANGE", "SERVERMETADATACHANGE"})
_SPELT: Final = (
    "MessageNew MessageExpunge FlagChange MailboxName SubscriptionChange MailboxMetadataChange ServerMetadataChange"
)
_STATUS: Final = (
    ast.StatusItem.MESSAGES,
    ast.StatusItem.UIDNEXT,
    ast.StatusItem.UIDVALIDITY,
    ast.StatusItem.UNSEEN,
)
_SELECTED: Final = ("SELECTED", "SELECTED-DELAYED")


async def notify(session: Session, command: ast.Notify) -> Reply:
    groups = command.groups or ()
    if (refusal := _refusal(groups)) is not None:
        return refusal
    notifier = Notifier(session, groups)
    try:
        await notifier.begin(status=command.status)
    except Limit as error:
        notifier.close()
        return no(str(error), "NOTIFICATIONOVERFLOW")
    except BaseException:
        notifier.close()
        raise
    if session.notify is not None:
        session.notify.close()
    session.notify = notifier
    return Reply("Notify completed")


def _refusal(groups: tuple[ast.EventGroup, ...]) -> Reply | None:
    """Return why groups cannot be served. RFC 5465 §3.1, §5."""
    if any(group.events - MESSAGES - NAMES - VALUES for group in groups):
        return no("Some of the events are unknown", f"BADEVENT ({_SPELT})")
    selected = [group for group in groups if group.filter.kind in _SELECTED]
    if len(selected) > 1:
        return bad("One group is allowed for the selected mailbox")
    if any(group.events - MESSAGES for group in selected):
        return bad("The selected mailbox has events of messages alone")
    for group in groups:
        messages = group.events & MESSAGES
        if messages and not {"MESSAGENEW", "MESSAGEEXPUNGE"} <= messages:
            return bad("MessageNew and MessageExpunge are asked for together, and FlagChange with them")
        if group.items and group not in selected:
            return bad("FETCH items are allowed for the selected mailbox alone")
    return None


class Notifier:
    """What a session has set by NOTIFY.

    pushes: whether changes of the selected mailbox are sent at once.
    """

    def __init__(self, session: Session, groups: tuple[ast.EventGroup, ...]) -> None:
        self._session = session
        self._groups = [(Chosen((one.filter,)), one.events) for one in groups if one.filter.kind not in _SELECTED]
        mine = next((one for one in groups if one.filter.kind in _SELECTED), None)
        self.pushes = mine is not None and bool(mine.events)
        self._delayed = mine is not None and mine.filter.kind == "SELECTED-DELAYED"
        self._items = () if mine is None else tuple(map(peeking, mine.items))
        self._known: dict[str, tuple[str, bool]] = {}
        """The name of each mailbox that is chosen, and whether it is subscribed."""
        self._sent: dict[str, Status] = {}
        self.changed_boxes: set[str] = set()
        self._server = any("SERVERMETADATACHANGE" in events for _, events in self._groups)
        self._annotated, _ = session.need_user().annotations.since(MODSEQ_MAX)
        """The MODSEQ up to which the client knows which annotations have changed."""
        self._list_changed = False
        self._overflow = False
        self._unwatch = session.need_user().changes.watch(self._noticed)

    def close(self) -> None:
        """Stop listening for changes."""
        self._unwatch()
        if self._session.notify is self:
            self._session.notify = None

    def _noticed(self, box: str) -> None:
        if not box:
            self._list_changed = True
        elif box not in self._known:
            return
        elif len(self.changed_boxes) < CHANGED_MAX:
            self.changed_boxes.add(box)
        else:
            self._overflow = True
        self._session.out.wake()

    @property
    def due(self) -> bool:
        """Return whether there may be something to send."""
        changed = bool(self.changed_boxes) or self._list_changed or self._overflow
        return (changed or (self.pushes and self._session.changed)) and not self._session.logged_out

    def _events(self, name: str, *, subscribed: bool) -> frozenset[str]:
        """Return the events of the first group that chooses a mailbox."""
        for chosen, events in self._groups:
            if chosen.has(name, subscribed=subscribed):
                return events
        return frozenset()

    async def begin(self, *, status: bool) -> None:
        """Note what is there. status: write STATUS of each mailbox. Raises Limit."""
        self._known = await self._list()
        if status:
            for guid in list(self._known):
                await self._write_status(guid)

    async def _list(self) -> dict[str, tuple[str, bool]]:
        """Return the mailboxes that are chosen. Raises Limit."""
        found: dict[str, tuple[str, bool]] = {}
        for one in self._session.need_user().mailboxes():
            if one.guid is not None and self._events(one.name, subscribed=one.subscribed):
                found[one.guid] = one.name, one.subscribed
            await self._session.pause()
        if len(found) > WATCHED_MAX:
            raise Limit(f"Too many mailboxes: {len(found)}; allowed: {WATCHED_MAX}")
        return found

    # -- what is sent ----------------------------------------------------------------------------------------------

    async def push(self) -> None:
        """Send what is due without a command."""
        session = self._session
        if not self.due:
            return
        await session.pause()
        if self.pushes and session.changed:
            # In IDLE a command is under way.
            await report(session, expunge=session.idling or not self._delayed)
        else:
            await self.report()

    async def report(self) -> None:
        """Write what has changed since the last call."""
        session = self._session
        if session.logged_out:
            return
        try:
            if self._list_changed:
                self._list_changed = False
                await self._write_names()
            while self.changed_boxes and not self._overflow:
                await self._write_status(self.changed_boxes.pop())
                await session.flush()
        except Limit:
            self._overflow = True
        except OboxError as error:
            session.context.log.warning("notify failed", user=session.user_name, error=str(error))
            self._overflow = True
        if self._overflow:
            self.close()
            reason = "Too many changes, or they cannot be read: NOTIFY has ended"
            session.write(wire.status(None, "OK", reason, "NOTIFICATIONOVERFLOW"))

    async def _write_status(self, guid: str) -> None:
        """Write STATUS of a mailbox if it differs from what was sent last."""
        session = self._session
        name, subscribed = self._known.get(guid, ("", False))
        events = self._events(name, subscribed=subscribed) & MESSAGES
        if not events or (session.mailbox is not None and session.mailbox.guid == guid):
            return
        try:
            status = await session.need_user().status(name)
            if not _differs(self._sent.get(guid), status, events):
                return
            items = (*_STATUS, ast.StatusItem.HIGHESTMODSEQ) if session.condstore else _STATUS
            await write_status(session, name, items)
        except NotFound:
            return  # LIST says so, if the client wants to know.
        self._sent[guid] = status
        await session.pause()

    async def _write_names(self) -> None:
        """Write LIST of mailboxes whose names or subscriptions have changed."""
        before, now = self._known, await self._list()
        self._known = now
        for guid in before.keys() | now.keys():
            old, new = before.get(guid), now.get(guid)
            if old != new:
                self._write_name(old, new)
                await self._session.pause()
        for guid in before.keys() - now.keys():
            self._sent.pop(guid, None)
            self.changed_boxes.discard(guid)
        self._write_annotated(dict(now.values()))

    def _write_annotated(self, subscribed: dict[str, bool]) -> None:
        """Write METADATA for annotations that have changed. RFC 5465 §5.6, §5.7."""
        self._annotated, found = self._session.need_user().annotations.since(self._annotated)
        entries: dict[str, list[bytes]] = {}
        for name, entry in found:
            if not name:
                wanted = self._server
            else:
                wanted = "MAILBOXMETADATACHANGE" in self._events(name, subscribed=subscribed.get(name, False))
            if wanted:
                entries.setdefault(name, []).append(wire.astring(entry.encode()))
        for name, some in entries.items():
            shown = wire.mailbox(name, utf8=self._session.utf8) if name else b'""'
            self._session.write(wire.line(b"METADATA", shown, *some))

    def _write_name(self, old: tuple[str, bool] | None, new: tuple[str, bool] | None) -> None:
        """old, new: the name and whether it is subscribed, None if it is not there or
        not chosen."""
        name, subscribed = new or old or ("", False)
        events = self._events(name, subscribed=subscribed)
        if old is not None and new is None:
            events |= self._events(old[0], subscribed=old[1])
            if "MAILBOXNAME" in events:
                write_name(self._session, old[0], attributes=("\\NonExistent",))
            return
        renamed = old is None or old[0] != name
        wanted = "MAILBOXNAME" if renamed else "SUBSCRIPTIONCHANGE"
        if wanted not in events:
            return
        given = old[0] if old is not None and old[0] != name else ""
        write_name(self._session, name, given, attributes=("\\Subscribed",) if subscribed else ())

    async def fetch(self, uids: UidArray) -> None:
        """Fetch new mails of the selected mailbox as the client wants it."""
        if self._items and len(uids):
            await fetch(self._session, ast.Fetch(b"", True, set_of(uids), self._items))


def _differs(before: Status | None, now: Status, events: frozenset[str]) -> bool:
    """Return whether a mailbox has changed in a way that is asked for."""
    if before is None:
        return True
    if (before.messages, before.uidnext) != (now.messages, now.uidnext):
        return True
    return "FLAGCHANGE" in events and before.highestmodseq != now.highestmodseq
