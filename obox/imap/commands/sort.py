"""SORT and UID SORT, with RETURN. RFC 5256 §3, RFC 5267 §3 (ESORT), RFC 5957 (DISPLAY).

The mails that match are sorted by columns (ARRIVAL, SIZE) and by values of their
ENVELOPEs (`obox.imap.known`).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from obox.imap import ast, wire
from obox.imap.ast import SearchReturn, SortField
from obox.imap.commands.auth import enable_condstore
from obox.imap.commands.search import NOT_RESULTS, asks_modseq, joined, matching, modseq_of, updates, write_esearch
from obox.imap.contexts import begin
from obox.imap.known import SENT, TEXTS, known
from obox.imap.progress import in_progress
from obox.imap.replies import Reply, bad
from obox.imap.rows import part_of
from obox.imap.session import NO_UIDS, Session
from obox.mailbox import Table, UidArray, distinct
from obox.mailbox.sorting import Numbers, sorted_rows

INLINE_ROWS: Final = 20_000
"""At most 20,000 mails are sorted by number, or put into threads, on the loop: 5 ms.
More are sorted in a thread."""


async def sort(session: Session, command: ast.Sort) -> Reply:
    if session.contexts is not None and session.contexts.has(command.tag) and updates(command):
        return bad("The tag is in use by a search that is kept up to date")
    with_modseq = asks_modseq(command.key)
    if with_modseq:
        enable_condstore(session)
    mailbox, view = session.need_mailbox()
    modseq_before = mailbox.state.highestmodseq
    saves = command.returns is not None and SearchReturn.SAVE in command.returns
    order = partial(ordered, session, command)
    try:
        with in_progress(session, command):
            found = await order(await matching(session, command.key))
    except BaseException:
        if saves:
            session.saved = NO_UIDS
        raise
    uids: UidArray = np.sort(found)
    numbers = found if command.uid else view.seqs(found)
    if command.returns is None:
        words = [b"SORT", *joined(numbers)]
        if with_modseq and len(found):
            words.append(b"(MODSEQ %d)" % modseq_of(session, uids))
        session.write(wire.line(*words))
    else:
        if SearchReturn.UPDATE in command.returns:
            begin(session, command, found, modseq_before, order)
        _extended(session, command, uids, found, numbers, with_modseq=with_modseq)
    return Reply("Sort completed")


async def ordered(session: Session, command: ast.Sort, uids: UidArray) -> UidArray:
    """Return mails in the order of a command. Mails without a record are left out."""
    mailbox, _ = session.need_mailbox()
    table, where, uids = mailbox.state.records(uids)
    columns = await _columns(session, command, table, where, uids)
    keys = [(columns[field], reverse) for field, reverse in command.criteria]
    inline = len(uids) <= INLINE_ROWS
    rows = sorted_rows(keys, len(uids)) if inline else await asyncio.to_thread(sorted_rows, keys, len(uids))
    found: UidArray = uids[rows]
    return found


def _extended(
    session: Session,
    command: ast.Sort,
    uids: UidArray,
    found: UidArray,
    numbers: npt.NDArray[Any],
    *,
    with_modseq: bool,
) -> None:
    """Save the result or write ESEARCH. RFC 5267 §3, RFC 9394 §3.2.

    uids: what matches, ascending. found: the same in the order of the answer.
    """
    options = (command.returns or frozenset()) - NOT_RESULTS
    if SearchReturn.SAVE in (command.returns or ()):
        session.saved = uids
        if SearchReturn.PARTIAL in options and SearchReturn.COUNT not in options:
            first = found[:1] if SearchReturn.MIN in options else found[:0]
            last = found[-1:] if SearchReturn.MAX in options else found[:0]
            session.saved = distinct(np.concatenate((first, last, part_of(found, command.partial))))
        if not options:
            return
    write_esearch(session, command, options, numbers, modseq_of(session, uids) if with_modseq else 0)


# -- values ------------------------------------------------------------------------------------------------------------


async def _columns(
    session: Session, command: ast.Sort, table: Table, where: npt.NDArray[np.intp], uids: UidArray
) -> dict[SortField, Numbers]:
    """Return a number for each mail and criterion. The numbers have the order of the
    values."""
    wanted = dict.fromkeys(field for field, _ in command.criteria)
    arrival = table.column("internaldate")[where].astype(np.int64)
    out: dict[SortField, Numbers] = {}
    if SortField.ARRIVAL in wanted:
        out[SortField.ARRIVAL] = arrival
    if SortField.SIZE in wanted:
        out[SortField.SIZE] = table.column("size")[where].astype(np.int64)
    texts = {field: TEXTS[field] for field in wanted if field in TEXTS}
    criteria = [*texts.values(), *([SENT] if SortField.DATE in wanted else [])]
    if criteria:
        values = await known(session, uids, criteria)
        for field, one in texts.items():
            out[field] = values.ranks(one)
            await session.pause()
        if SortField.DATE in wanted:
            out[SortField.DATE] = values.numbers(SENT, arrival)
    return out
