"""SEARCH and UID SEARCH, with RETURN and `$`. RFC 9051 §6.4.4, RFC 4731, RFC 5182, RFC
7162 §3.1.5.

The keys become a query of `obox.mailbox.search`; sequence numbers and \\Recent, which
depend on the session, become sets of UIDs.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy.typing as npt

from obox.imap import ast, searchkeys, wire
from obox.imap.ast import SearchReturn
from obox.imap.commands.auth import enable_condstore
from obox.imap.meaning import Meaning, query_of, sets_in
from obox.imap.progress import in_progress
from obox.imap.replies import Reply, bad
from obox.imap.rows import part_of
from obox.imap.searchkeys import SearchKey
from obox.imap.session import NO_UIDS, Session, UidRequired
from obox.imap.sets import format_set
from obox.loading import loaded
from obox.mailbox import State, UidArray, uid_array, united

Numbers = npt.NDArray[Any]

_ALL_ONLY: Final = frozenset({SearchReturn.ALL})
NOT_RESULTS: Final = frozenset({SearchReturn.SAVE, SearchReturn.UPDATE, SearchReturn.CONTEXT})
"""Options for which a line ESEARCH has nothing."""


async def search(session: Session, command: ast.Search) -> Reply:
    if command.charset and session.utf8 and not session.rev2:  # RFC 6855 §3
        return bad("CHARSET is not allowed with UTF8=ACCEPT: strings are UTF-8")
    if command.returns is None and session.rev2:  # RFC 9051 §6.4.4
        command = msgspec.structs.replace(command, returns=_ALL_ONLY)
    if session.contexts is not None and session.contexts.has(command.tag) and updates(command):
        return bad("The tag is in use by a search that is kept up to date")
    with_modseq = asks_modseq(command.key)
    if with_modseq:
        enable_condstore(session)
    mailbox, view = session.need_mailbox()
    modseq_before = mailbox.state.highestmodseq
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
        if SearchReturn.UPDATE in command.returns:
            await loaded("obox.imap.contexts")
            from obox.imap.contexts import begin

            begin(session, command, found, modseq_before)
        answer_extended(session, command, found, numbers, state=mailbox.state if with_modseq else None)
    return Reply("Search completed")


async def matching(session: Session, key: SearchKey) -> UidArray:
    """Return the UIDs of the mails of the view that match, ascending."""
    mailbox, view = session.need_mailbox()
    if session.uidonly and any(not (one.uid or one.sequence.saved) for one in sets_in(key)):
        raise UidRequired
    wanted = await query_of(Meaning(session), key, session.pause)
    return await mailbox.search(wanted, view.uids, autofix=session.settings.autofix_storage)


def updates(command: ast.Search | ast.Sort) -> bool:
    """Return whether the results are to be kept up to date."""
    return command.returns is not None and SearchReturn.UPDATE in command.returns


def joined(numbers: Numbers) -> list[bytes]:
    return [" ".join(map(str, numbers.tolist())).encode()] if len(numbers) else []


def answer_extended(
    session: Session,
    command: ast.Search,
    found: UidArray,
    numbers: Numbers,
    *,
    state: State | None,
    source: bytes = b"",
) -> None:
    """Save the result or write ESEARCH. RFC 4731 §3.1, §3.2 (MODSEQ of MIN or MAX alone
    is that mail's).

    state: has the MODSEQs, or None for none. source: see `write_esearch`.
    """
    options = (command.returns or frozenset()) - NOT_RESULTS
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
    modseq = 0 if state is None else highest_modseq(state, picked)
    write_esearch(session, command, options, numbers, modseq, source)


def write_esearch(
    session: Session,
    command: ast.Search | ast.Sort,
    options: frozenset[SearchReturn],
    numbers: Numbers,
    modseq: int = 0,
    source: bytes = b"",
) -> None:
    """Write the line ESEARCH. MIN and MAX are the first and the last of the numbers,
    and ALL has their order. RFC 4731 §3.1, RFC 5267 §3.

    modseq: of the mails, or 0. source: what names the mailbox, in ESEARCH.
    """
    words = [b"ESEARCH", b"(TAG %b%b)" % (wire.quoted(command.tag), source)]
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
    if modseq:
        words.append(b"MODSEQ %d" % modseq)
    session.write(wire.line(*words))


def modseq_of(session: Session, uids: UidArray) -> int:
    """Return the highest MODSEQ among mails."""
    mailbox, _ = session.need_mailbox()
    return highest_modseq(mailbox.state, uids)


def highest_modseq(state: State, uids: UidArray) -> int:
    where, there = state.positions(uids)
    return int(state.modseqs[where[there]].max()) if there.any() else 0


def asks_modseq(key: SearchKey) -> bool:
    """Return whether a search has MODSEQ anywhere."""
    if isinstance(key, searchkeys.Not):
        return asks_modseq(key.key)
    if isinstance(key, searchkeys.And | searchkeys.Or):
        return any(map(asks_modseq, key.keys))
    return isinstance(key, searchkeys.ModSeqFrom)
