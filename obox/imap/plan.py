"""A FETCH, compiled once: what has to be read, and which columns make a line. RFC 9051
§6.4.5, §7.5.2.

Items have three different costs, and a command reads no more than it needs: columns
(flags, size, dates, modseq, UID), cached fields (ENVELOPE, BODYSTRUCTURE, BODY,
header), and whole mails (any other section). Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final

from obox.imap import wire
from obox.imap.ast import BinarySection, BodySection, FetchAttr, FetchItem
from obox.imap.body import Body
from obox.imap.objectid import email_ids
from obox.imap.rows import FlagsOf, Where
from obox.mailbox import Table
from obox.store.api import Fields
from obox.store.content import Section


def _dates(table: Table, where: Where) -> list[bytes]:
    seconds, zones = table.column("internaldate")[where].tolist(), table.column("zone")[where].tolist()
    return list(map(wire.internaldate, seconds, zones))


def _save_dates(table: Table, where: Where) -> list[bytes]:
    saved = (table.column("savedate")[where] // 1000).tolist()
    return [wire.internaldate(seconds) if seconds else b"NIL" for seconds in saved]


COLUMNS: Final[dict[FetchAttr, tuple[bytes, Callable[[Table, Where], list[Any]]]]] = {
    FetchAttr.UID: (b"UID %d", lambda table, where: table.uids[where].tolist()),
    FetchAttr.RFC822_SIZE: (b"RFC822.SIZE %d", lambda table, where: table.column("size")[where].tolist()),
    FetchAttr.INTERNALDATE: (b"INTERNALDATE %b", _dates),
    FetchAttr.SAVEDATE: (b"SAVEDATE %b", _save_dates),
    FetchAttr.EMAILID: (b"EMAILID (%b)", lambda table, where: list(email_ids(table.column("oid")[where]))),
    FetchAttr.THREADID: (b"THREADID %b", lambda table, where: [b"NIL"] * len(where)),
    FetchAttr.MODSEQ: (b"MODSEQ (%d)", lambda table, where: table.modseqs[where].tolist()),
    FetchAttr.PREVIEW_LAZY: (b"PREVIEW %b", lambda table, where: [b"NIL"] * len(where)),
}
CACHED: Final[dict[FetchAttr, tuple[bytes, Callable[[Fields], bytes]]]] = {
    FetchAttr.ENVELOPE: (b"ENVELOPE %b", attrgetter("envelope")),
    FetchAttr.BODY: (b"BODY %b", attrgetter("body")),
    FetchAttr.BODYSTRUCTURE: (b"BODYSTRUCTURE %b", attrgetter("bodystructure")),
}


@dataclass(slots=True)
class Plan:
    """A compiled FETCH. `order`: first numbers, dates and flags, then what may have
    literals, each in the client's order. So a client that reads an answer while it
    arrives knows the mail before its first literal.
    """

    order: list[FetchAttr | Body] = field(default_factory=list)
    needs_fields: bool = False
    needs_mail: bool = False
    sets_seen: bool = False

    @property
    def short(self) -> int:
        """Return how many items are numbers, dates or flags. They are the first."""
        return sum(map(_short, self.order))

    @property
    def whole_only(self) -> bool:
        """Return whether every item that needs the mail asks for octets of the whole
        mail, which can be read piecewise."""
        return all(item.whole for item in self.order if isinstance(item, Body) and not item.in_header)

    @property
    def needs_structure(self) -> bool:
        return any(not item.whole for item in self.order if isinstance(item, Body))

    @property
    def describes(self) -> bool:
        """Return whether the structure of mails is asked for."""
        return self.has(FetchAttr.BODYSTRUCTURE) or self.has(FetchAttr.BODY)

    def has(self, item: FetchAttr) -> bool:
        return item in self.order

    def names(self) -> list[bytes]:
        """Return the items as format strings with a gap for each item."""
        out = []
        for item in self.order:
            if isinstance(item, Body):
                out.append(item.label.replace(b"%", b"%%") + b" %b")
            elif item is FetchAttr.FLAGS:
                out.append(b"FLAGS %b")
            else:
                out.append((COLUMNS.get(item) or CACHED[item])[0])
        return out

    def columns(
        self, table: Table, where: Where, flags: FlagsOf, fields: Sequence[Fields], headers: Sequence[Sequence[bytes]]
    ) -> list[Sequence[Any]]:
        """Return values for the gaps, for the rows at `where`. The plan must not need
        mails.

        headers: for each row what is cut from its header, for each item that asks for
        it.
        """
        out: list[Sequence[Any]] = []
        of_header = 0
        for item in self.order:
            if isinstance(item, Body):
                out.append([values[of_header] for values in headers])
                of_header += 1
            elif item is FetchAttr.FLAGS:
                out.append(flags(table, where))
            elif item in COLUMNS:
                out.append(COLUMNS[item][1](table, where))
            else:
                out.append(list(map(CACHED[item][1], fields)))
        return out


def _short(item: FetchAttr | Body) -> bool:
    """Return whether an item has no strings: numbers, a date or flags."""
    return not isinstance(item, Body) and item not in CACHED


_RFC822: Final = {
    FetchAttr.RFC822: (Section(), True),
    FetchAttr.RFC822_HEADER: (Section((), "HEADER"), False),
    FetchAttr.RFC822_TEXT: (Section((), "TEXT"), True),
}


_PREVIEWS: Final = (FetchAttr.PREVIEW, FetchAttr.PREVIEW_LAZY)


def rare(items: Sequence[FetchItem]) -> bool:
    """Return whether `compile_plan` needs the module `obox.imap.cuts`."""
    return any(item in _PREVIEWS or isinstance(item, BinarySection) for item in items)


def compile_plan(items: Sequence[FetchItem], *, uid: bool, modseq: bool) -> Plan:
    """uid: UID is part of each answer; modseq: MODSEQ too (CHANGEDSINCE).

    RFC 7162 §3.1.4.1.
    """
    plan = Plan()
    wanted = list(items)
    if uid and FetchAttr.UID not in wanted:
        wanted.insert(0, FetchAttr.UID)
    if modseq and FetchAttr.MODSEQ not in wanted:
        wanted.append(FetchAttr.MODSEQ)
    opened: dict[tuple[int, ...], Any] = {}
    for item in wanted:
        if isinstance(item, BodySection):
            body = Body(item.label, Section(item.part, item.text.value, item.fields), item.start, item.count)
            if body not in plan.order:  # BODY[x] and BODY.PEEK[x] are answered once
                plan.order.append(body)
            plan.sets_seen |= not item.peek
        elif isinstance(item, BinarySection):
            from obox.imap.cuts import binary

            if (cut := binary(item, opened)) not in plan.order:
                plan.order.append(cut)
            plan.sets_seen |= not (item.peek or item.size)
        elif item in _RFC822:
            spec, seen = _RFC822[item]
            plan.order.append(Body(item.value.encode(), spec))
            plan.sets_seen |= seen
        elif item not in _PREVIEWS:
            plan.order.append(item)
            plan.needs_fields |= item in CACHED
    bodies = [item for item in plan.order if isinstance(item, Body)]
    plan.needs_mail = any(not body.in_header for body in bodies)
    plan.needs_fields |= any(body.in_header for body in bodies)
    if FetchAttr.PREVIEW in wanted or (plan.needs_mail and FetchAttr.PREVIEW_LAZY in wanted):
        from obox.imap.cuts import PREVIEW

        plan.order.append(PREVIEW)
        plan.needs_mail = True
    elif FetchAttr.PREVIEW_LAZY in wanted:
        plan.order.append(FetchAttr.PREVIEW_LAZY)
    plan.order.sort(key=lambda item: (not _short(item), not (isinstance(item, Body) and item.number)))
    return plan
