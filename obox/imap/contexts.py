"""Searches whose results are kept up to date for the client: UPDATE, CONTEXT. RFC 5267.

Theory of operation. A context has the UIDs that the client counts as results, and the
MODSEQ up to which that is so. After each report to the client, the mails with a higher
MODSEQ are searched again, and the differences are sent as ADDTO and REMOVEFROM. Mails
that are expunged leave the results before the EXPUNGE is sent, while their numbers are
valid. The order of sorted mails does not depend on flags, so a mail that leaves does
not change it, and the mails are sorted again only when there are new results.

A context ends with the mailbox, by CANCELUPDATE, or with NOUPDATE if the search cannot
be kept up to date: by its keys, by a limit, or because the search fails.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from obox.errors import OboxError
from obox.imap import ast, searchkeys, wire
from obox.imap.commands.fetch import fetch
from obox.imap.meaning import Meaning, query_of, sets_in
from obox.imap.replies import Reply, no
from obox.imap.searchkeys import SearchKey
from obox.imap.session import Session
from obox.imap.sets import SequenceSet, format_set, parse_set
from obox.mailbox import UidArray, united
from obox.mailbox.search import Query
from obox.mailbox.view import Updates

CONTEXTS_MAX: Final = 8
"""Searches of a session that are kept up to date. Each is made again for each mail that
changes."""
RESULTS_MAX: Final = 200_000
"""Results of all contexts of a session: 800 kB."""
SORTED_MAX: Final = 5_000
"""Results of a sorted context. They are sorted again for new mails: some 50 ms, while
others run."""

Order = Callable[[UidArray], Awaitable[UidArray]]
"""Sorts mails."""


@dataclass(slots=True)
class Context:
    """A search that is kept up to date.

    fixed: what sets of sequence numbers, and `$`, named when the search was made. uids:
    the results, ascending. order: sorts mails; None: they are not sorted. ranked: the
    results in that order. items: what is fetched of new results.
    """

    tag: bytes
    uid: bool
    key: SearchKey
    fixed: dict[int, Query]
    uids: UidArray
    modseq: int
    order: Order | None = None
    ranked: UidArray | None = None
    items: tuple[ast.FetchItem, ...] = ()


class Contexts:
    """The contexts of a session in its selected mailbox."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._all: dict[bytes, Context] = {}

    def begin(self, command: ast.Search | ast.Sort, found: UidArray, modseq: int, order: Order | None) -> None:
        """Keep a search up to date, or write NOUPDATE. found: its results, in the order
        of the answer. modseq: that of the mailbox before the search."""
        total = len(found) + sum(len(one.uids) for one in self._all.values())
        if len(self._all) >= CONTEXTS_MAX:
            self._refuse(command.tag, f"Too many searches are kept up to date: at most {CONTEXTS_MAX}")
        elif total > RESULTS_MAX or (order is not None and len(found) > SORTED_MAX):
            self._refuse(command.tag, "The search has too many results to be kept up to date")
        elif _depends_on_time(command.key):
            self._refuse(command.tag, "OLDER and YOUNGER are not kept up to date")
        else:
            meaning = Meaning(self._session)
            fixed = {id(one): meaning.of(one) for one in sets_in(command.key) if one.sequence.saved or not one.uid}
            context = Context(command.tag, command.uid, command.key, fixed, np.sort(found), modseq, order)
            context.ranked = None if order is None else found
            context.items = tuple(map(peeking, command.items))
            self._all[command.tag] = context

    def _refuse(self, tag: bytes, reason: str) -> None:
        self._session.write(wire.status(None, "NO", reason, b"NOUPDATE " + wire.quoted(tag)))

    def has(self, tag: bytes) -> bool:
        return tag in self._all

    def cancel(self, tag: bytes) -> bool:
        """End a context. Returns whether there was one."""
        return self._all.pop(tag, None) is not None

    # -- what has changed ------------------------------------------------------------------------------------------

    def expunged(self, updates: Updates) -> None:
        """Write REMOVEFROM for results among mails whose EXPUNGE is written next."""
        vanished = updates.vanished
        seqs = np.array(updates.expunged[::-1], dtype=np.int64)
        for one in self._all.values():
            mask = np.isin(vanished, one.uids, assume_unique=True)
            if mask.any():
                self._remove(one, vanished[mask], vanished[mask] if one.uid else seqs[mask])

    async def report(self) -> None:
        """Write ADDTO and REMOVEFROM for mails that have changed since the last
        call."""
        for one in list(self._all.values()):
            try:
                await self._update(one)
            except OboxError as error:
                self.cancel(one.tag)
                self._refuse(one.tag, str(error) or "The search has failed")
            await self._session.pause()

    async def _update(self, context: Context) -> None:
        session = self._session
        mailbox, view = session.need_mailbox()
        state = mailbox.state
        if state.highestmodseq <= context.modseq:
            return
        rows = np.flatnonzero(state.modseqs > np.uint64(context.modseq))
        changed, modseqs = state.uids[rows], state.modseqs[rows]
        known = np.isin(changed, view.uids, assume_unique=True)
        # What the client does not count yet is searched once it has been reported.
        context.modseq = state.highestmodseq if known.all() else int(modseqs[~known].min()) - 1
        changed = changed[known]
        if not len(changed):
            return
        wanted = await query_of(Meaning(session, context.fixed), context.key, session.pause)
        matching = await mailbox.search(wanted, changed, autofix=session.settings.autofix_storage)
        before = np.isin(changed, context.uids, assume_unique=True)
        after = np.isin(changed, matching, assume_unique=True)
        if (gone := changed[before & ~after]).size:
            self._remove(context, gone, gone if context.uid else view.seqs(gone))
        if (new := changed[after & ~before]).size:
            await self._add(context, new)

    def _remove(self, context: Context, uids: UidArray, numbers: npt.NDArray[Any]) -> None:
        context.uids = context.uids[~np.isin(context.uids, uids, assume_unique=True)]
        if context.ranked is None:
            self._write(context, b"REMOVEFROM", [(0, format_set(numbers))])
            return
        # The last position comes first, so that each position is right when it is read.
        places = np.flatnonzero(np.isin(context.ranked, uids, assume_unique=True))[::-1]
        number_of = dict(zip(uids.tolist(), numbers.tolist(), strict=True))
        named = [(at + 1, b"%d" % number_of[uid]) for at, uid in _placed(context.ranked, places)]
        context.ranked = np.delete(context.ranked, places)
        self._write(context, b"REMOVEFROM", named)

    async def _add(self, context: Context, new: UidArray) -> None:
        total = len(new) + sum(len(one.uids) for one in self._all.values())
        if total > RESULTS_MAX or (context.order is not None and len(context.uids) + len(new) > SORTED_MAX):
            self.cancel(context.tag)
            self._refuse(context.tag, "The search has too many results to be kept up to date")
            return
        context.uids = united(context.uids, new)
        if context.items:
            await fetch(self._session, ast.Fetch(b"", True, set_of(new), context.items))
        _, view = self._session.need_mailbox()
        if context.order is None:
            self._write(context, b"ADDTO", [(0, format_set(new if context.uid else view.seqs(new)))])
            return
        context.ranked = await context.order(context.uids)
        context.uids = np.sort(context.ranked)
        places = np.flatnonzero(np.isin(context.ranked, new, assume_unique=True))
        numbers = context.ranked if context.uid else view.seqs(context.ranked)
        self._write(context, b"ADDTO", [(at + 1, b"%d" % number) for at, number in _placed(numbers, places)])

    def _write(self, context: Context, word: bytes, pairs: Sequence[tuple[int, bytes]]) -> None:
        words = [b"ESEARCH", b"(TAG %b)" % wire.quoted(context.tag)]
        if context.uid:
            words.append(b"UID")
        listed = b" ".join([b"%d %b" % pair for pair in pairs])
        self._session.write(wire.line(*words, word, b"(%b)" % listed))


def peeking(item: ast.FetchItem) -> ast.FetchItem:
    """Return an item that does not set \\Seen, since nobody has read the mail. RFC 5465
    §5.2."""
    if isinstance(item, ast.BodySection | ast.BinarySection):
        return msgspec.structs.replace(item, peek=True)
    if item is ast.FetchAttr.RFC822:
        return ast.BodySection(b"RFC822", peek=True)
    if item is ast.FetchAttr.RFC822_TEXT:
        return ast.BodySection(b"RFC822.TEXT", text=ast.SectionText.TEXT, peek=True)
    return item


def set_of(uids: UidArray) -> SequenceSet:
    """Return ascending UIDs as the set of a command."""
    return parse_set(format_set(uids))


def _placed(values: npt.NDArray[Any], places: npt.NDArray[np.intp]) -> list[tuple[int, int]]:
    return list(zip(places.tolist(), values[places].tolist(), strict=True))


def _depends_on_time(key: SearchKey) -> bool:
    if isinstance(key, searchkeys.Not):
        return _depends_on_time(key.key)
    if isinstance(key, searchkeys.And | searchkeys.Or):
        return any(map(_depends_on_time, key.keys))
    return isinstance(key, searchkeys.Within)


def begin(
    session: Session, command: ast.Search | ast.Sort, found: UidArray, modseq: int, order: Order | None = None
) -> None:
    """See `Contexts.begin`."""
    if session.contexts is None:
        session.contexts = Contexts(session)
    session.contexts.begin(command, found, modseq, order)


async def cancelupdate(session: Session, command: ast.CancelUpdate) -> Reply:
    contexts = session.contexts
    ended = [contexts is not None and contexts.cancel(tag) for tag in command.tags]
    return Reply("Cancelupdate completed") if all(ended) else no("There is no such search")
