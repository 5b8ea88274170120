"""SEARCH and UID SEARCH, with RETURN and `$`. RFC 9051 §6.4.4, RFC 4731, RFC 5182, RFC
7162 §3.1.5.

The keys become a query of `obox.mailbox.search`; sequence numbers and \\Recent, which
depend on the session, become sets of UIDs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy.typing as npt

from obox.imap import ast, searchkeys, wire
from obox.imap.ast import SearchReturn
from obox.imap.commands.auth import enable_condstore
from obox.imap.objectid import oid_of
from obox.imap.progress import in_progress
from obox.imap.replies import Reply
from obox.imap.searchkeys import SearchKey
from obox.imap.session import NO_UIDS, Session, UidRequired
from obox.imap.sets import SequenceSet, format_set
from obox.mailbox import UidArray, uid_array, united
from obox.mailbox import search as query
from obox.mailbox.search import Query

Numbers = npt.NDArray[Any]

_ALL_ONLY: Final = frozenset({SearchReturn.ALL})


async def search(session: Session, command: ast.Search) -> Reply:
    with_modseq = asks_modseq(command.key)
    if with_modseq:
        enable_condstore(session)
    _, view = session.need_mailbox()
    saves = command.returns is not None and SearchReturn.SAVE in command.returns
    try:
        with in_progress(session, command):
            found = await matching(session, command.key)
    except BaseException:
        if saves:
            session.saved = NO_UIDS  # RFC 5182 §2.1: a SEARCH that fails leaves nothing
        raise
    numbers = found if command.uid else view.seqs(found)
    if command.returns is None:
        modseq = modseq_of(session, found) if with_modseq and len(found) else 0
        words = [b"SEARCH", *joined(numbers)]
        if modseq:
            words.append(b"(MODSEQ %d)" % modseq)
        session.write(wire.line(*words))
    else:
        _extended(session, command, found, numbers, with_modseq=with_modseq)
    return Reply("Search completed")


async def matching(session: Session, key: SearchKey) -> UidArray:
    """Return the UIDs of the mails of the view that match, ascending."""
    mailbox, view = session.need_mailbox()
    meaning = _Meaning(session)
    for one in _sets_in(key):
        if session.uidonly and not (one.uid or one.sequence.saved):
            raise UidRequired
        meaning.note(one)
        await session.pause()
    wanted = meaning.of(key)
    await session.pause()  # thousands of keys take some milliseconds
    return await mailbox.search(wanted, view.uids, autofix=session.settings.autofix_storage)


def joined(numbers: Numbers) -> list[bytes]:
    return [" ".join(map(str, numbers.tolist())).encode()] if len(numbers) else []


def part_of(numbers: Numbers, partial: ast.Partial | None) -> Numbers:
    """Return the results that a range names. RFC 9394 §3.1."""
    if partial is None:
        return numbers
    low, high = sorted(map(abs, partial))
    if partial[0] > 0:
        return numbers[low - 1 : high]
    count = len(numbers)
    return numbers[max(0, count - high) : max(0, count - low + 1)]


def _extended(
    session: Session,
    command: ast.Search,
    found: UidArray,
    numbers: Numbers,
    *,
    with_modseq: bool,
) -> None:
    """Save the result or write ESEARCH. RFC 4731 §3.1, §3.2 (MODSEQ of MIN or MAX alone
    is that mail's)."""
    options = (command.returns or frozenset()) - {SearchReturn.SAVE}
    picked = found
    if not options & {SearchReturn.ALL, SearchReturn.COUNT} and options:
        ends = ([0] if SearchReturn.MIN in options else []) + ([-1] if SearchReturn.MAX in options else [])
        picked = uid_array(found[ends]) if len(found) else found
        if SearchReturn.PARTIAL in options:
            picked = united(picked, part_of(found, command.partial))
    if SearchReturn.SAVE in (command.returns or ()):
        # RFC 5182 §2.4, RFC 9394 §3.2: MIN, MAX and PARTIAL alone save no more than
        # they return.
        session.saved = picked
        if not options:
            return
    write_esearch(session, command, options, numbers, picked if with_modseq else None)


def write_esearch(
    session: Session,
    command: ast.Search | ast.Sort,
    options: frozenset[SearchReturn],
    numbers: Numbers,
    of_modseq: UidArray | None,
) -> None:
    """Write the line ESEARCH. MIN and MAX are the first and the last of the numbers,
    and ALL has their order. RFC 4731 §3.1, RFC 5267 §3.

    of_modseq: the UIDs whose highest MODSEQ is returned, or None for no MODSEQ.
    """
    words = [b"ESEARCH", b"(TAG " + wire.quoted(command.tag) + b")"]
    if command.uid:
        words.append(b"UID")
    if len(numbers):
        if SearchReturn.MIN in options:
            words.append(b"MIN %d" % int(numbers[0]))
        if SearchReturn.MAX in options:
            words.append(b"MAX %d" % int(numbers[-1]))
        if SearchReturn.ALL in options:
            words.append(b"ALL " + format_set(numbers))
    if command.partial is not None:
        part = format_set(part_of(numbers, command.partial)) or b"NIL"
        words.append(b"PARTIAL (%d:%d %b)" % (*command.partial, part))
    if SearchReturn.COUNT in options:
        words.append(b"COUNT %d" % len(numbers))
    if of_modseq is not None and len(of_modseq):
        words.append(b"MODSEQ %d" % modseq_of(session, of_modseq))
    session.write(wire.line(*words))


def modseq_of(session: Session, uids: UidArray) -> int:
    """Return the highest MODSEQ among mails."""
    mailbox, _ = session.need_mailbox()
    where, there = mailbox.state.positions(uids)
    return int(mailbox.state.modseqs[where[there]].max()) if there.any() else 0


def asks_modseq(key: SearchKey) -> bool:
    """Return whether a search has MODSEQ anywhere."""
    if isinstance(key, searchkeys.Not):
        return asks_modseq(key.key)
    if isinstance(key, searchkeys.And | searchkeys.Or):
        return any(map(asks_modseq, key.keys))
    return isinstance(key, searchkeys.ModSeqFrom)


def to_query(session: Session, key: SearchKey) -> Query:
    """Return the query for a search key in this session now."""
    return _Meaning(session).of(key)


def _sets_in(key: SearchKey) -> Iterator[searchkeys.InSet]:
    if isinstance(key, searchkeys.InSet):
        yield key
    elif isinstance(key, searchkeys.Not):
        yield from _sets_in(key.key)
    elif isinstance(key, searchkeys.And | searchkeys.Or):
        for one in key.keys:
            yield from _sets_in(one)


class _Meaning:
    """What keys mean to a session. Large values that many keys of a command may ask for
    are made once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sets: dict[int, Query] = {}
        self._saved: Query | None = None
        self._recent: Query | None = None

    def note(self, key: searchkeys.InSet) -> None:
        """Resolve a set before `of` is called, because thousands of sets take 20 ms."""
        self._sets[id(key)] = self._set(key.sequence, uid=key.uid)

    def of(self, key: SearchKey) -> Query:
        match key:
            case searchkeys.InSet(sequence, uid):
                return self._sets.get(id(key)) or self._set(sequence, uid=uid)
            case searchkeys.HasFlag("\\Recent", present):
                return self.recent() if present else query.Not(self.recent())
            case searchkeys.HasFlag(flag, present):
                return query.Flag(flag, present)
            case searchkeys.Header(name, value):
                return query.Header(name, value)
            case searchkeys.Text(value, body_only):
                return query.Body(value) if body_only else query.Text(value)
            case searchkeys.Not(inner):
                return query.Not(self.of(inner))
            case searchkeys.And(keys):
                return query.And(tuple(map(self.of, keys)))
            case searchkeys.Or(keys):
                return query.Or(tuple(map(self.of, keys)))
            case searchkeys.OnDate(field, test, date):
                return query.OnDate(field, test, date)
            case searchkeys.Size(larger, size):
                return query.Larger(size) if larger else query.Smaller(size)
            case searchkeys.ModSeqFrom():
                return query.ModSeqFrom(key.modseq)
            case searchkeys.ObjectId(value, thread):
                oid = None if thread else oid_of(value)
                return query.Or(()) if oid is None else query.ObjectOid(oid)
            case searchkeys.Within(older, seconds):
                return query.Older(seconds) if older else query.Younger(seconds)
            case searchkeys.All() | searchkeys.SaveDateSupported():
                return query.All()

    def _set(self, sequence: SequenceSet, *, uid: bool) -> Query:
        if not sequence.saved:
            return query.UidSet(self._session.uid_ranges(sequence, uid=uid))
        if self._saved is None:
            self._saved = query.UidSet(self._session.saved_ranges())
        return self._saved

    def recent(self) -> Query:
        """Return the mails that are recent in this session."""
        if self._recent is None:
            _, view = self._session.need_mailbox()
            self._recent = query.UidSet(view.recent_ranges())
        return self._recent
