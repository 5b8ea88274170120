"""Filters of mailboxes, which NOTIFY and ESEARCH have. RFC 5465 §6, RFC 7377 §2.2."""

from __future__ import annotations

from collections.abc import Iterable

from obox.imap.ast import Filter
from obox.imap.session import Session
from obox.mailbox.names import SEPARATOR, with_children


class Chosen:
    """The mailboxes that filters choose: a function of the name, besides the selected
    mailbox."""

    def __init__(self, filters: Iterable[Filter]) -> None:
        self.selected = self.subscribed = self.personal = False
        self._names: set[str] = set()
        self._trees: set[str] = set()
        self._parents: set[str] = set()
        for one in filters:
            self._add(one)

    def _add(self, one: Filter) -> None:
        if one.kind == "MAILBOXES":
            self._names.update(one.names)
        elif one.kind == "SUBTREE":
            self._trees.update(one.names)
        elif one.kind == "SUBTREE-ONE":
            self._names.update(one.names)
            self._parents.update(one.names)
        elif one.kind == "SUBSCRIBED":
            self.subscribed = True
        elif one.kind in ("PERSONAL", "INBOXES"):
            # A mail may be delivered to each mailbox, by the detail of its address. RFC
            # 5465 §6.3.
            self.personal = True
        else:
            self.selected = True

    def has(self, name: str, *, subscribed: bool) -> bool:
        """Return whether a mailbox is chosen."""
        if self.personal or name in self._names or (subscribed and self.subscribed):
            return True
        if self._parents and name.rpartition(SEPARATOR)[0] in self._parents:
            return True
        if not self._trees:
            return False
        return name in self._trees or not self._trees.isdisjoint(with_children((name,)))


async def existing(session: Session, chosen: Chosen) -> list[str]:
    """Return the names of the mailboxes that exist and are chosen, besides the selected
    mailbox."""
    found = []
    for one in session.need_user().mailboxes():
        if one.guid is not None and chosen.has(one.name, subscribed=one.subscribed):
            found.append(one.name)
        await session.pause()
    return found
