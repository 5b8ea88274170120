"""THREAD and UID THREAD: ORDEREDSUBJECT and REFERENCES. RFC 5256 §3. REFS is
REFERENCES without subjects. Its threads come in the order of their newest mails.

The values of mails are those of SORT, and references (`obox.imap.known`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator, Sequence
from typing import Final

import numpy as np

from obox.imap import ast, wire
from obox.imap.ast import SortField
from obox.imap.commands.auth import enable_condstore
from obox.imap.commands.search import asks_modseq, matching
from obox.imap.commands.sort import INLINE_ROWS
from obox.imap.known import LINKS, REPLY, SENT, TEXTS, in_turns, known
from obox.imap.progress import in_progress
from obox.imap.replies import Reply, bad
from obox.imap.session import Session
from obox.mailbox import UidArray
from obox.mailbox.sorting import Numbers
from obox.mailbox.threads import STEP, References, by_subject
from obox.mailbox.values import Links

_ALGORITHMS: Final = ("ORDEREDSUBJECT", "REFERENCES", "REFS")


async def thread(session: Session, command: ast.Thread) -> Reply:
    if command.algorithm not in _ALGORITHMS:
        return bad(f"Unknown algorithm: allowed are {' '.join(_ALGORITHMS)}")
    if asks_modseq(command.key):
        enable_condstore(session)
    with in_progress(session, command):
        lists = await _threads(session, command)
    session.write(wire.line(*([b"THREAD", lists] if lists else [b"THREAD"])))
    return Reply("Thread completed")


async def _threads(session: Session, command: ast.Thread) -> bytes:
    """Return the thread-lists."""
    mailbox, view = session.need_mailbox()
    table, where, uids = mailbox.state.records(await matching(session, command.key))
    dates = table.column("internaldate")[where].astype(np.int64)
    subject, by_references = TEXTS[SortField.SUBJECT], command.algorithm != "ORDEREDSUBJECT"
    values = await known(session, uids, [subject, SENT, REPLY, *([LINKS] if by_references else [])])
    dates = values.numbers(SENT, dates)
    ranks = values.ranks(subject)
    await session.pause()
    numbers = uids if command.uid else view.seqs(uids)
    links = await in_turns(session, _linked(len(uids), values.links())) if by_references else None
    replies = values.numbers(REPLY, np.zeros(len(uids), dtype=np.int64)).astype(np.bool_).tolist()
    steps = lists_of(ranks, dates, None if command.algorithm == "REFS" else replies, links, numbers)
    inline = len(uids) <= INLINE_ROWS
    return await (in_turns(session, steps) if inline else asyncio.to_thread(_at_once, steps))


def lists_of(
    ranks: Numbers,
    dates: Numbers,
    replies: Sequence[bool] | None,
    links: References | None,
    numbers: Numbers | UidArray,
) -> Generator[None, None, bytes]:
    """Return the thread-lists, in steps. A few of the steps take time for each mail.
    replies: None, if subjects do not count."""
    if links is None:
        forest = by_subject(ranks, dates)
    else:
        by_date = np.empty(len(dates), dtype=np.int64)
        by_date[np.argsort(dates, kind="stable")] = np.arange(len(dates))
        if replies is None:
            forest = yield from links.by_newest(by_date)
        else:
            forest = yield from links.forest(by_date, ranks.tolist(), replies)
    return (yield from forest.written(numbers.tolist()))


def _at_once(steps: Generator[None, None, bytes]) -> bytes:
    """Return the result of steps, in a thread."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: bytes = end.value
            return result


def _linked(count: int, links: Iterator[Links]) -> Generator[None, None, References]:
    """Return the references among mails, in steps."""
    out = References(count)
    for at, (own, others) in enumerate(links):
        out.add(own, others)
        if not (at + 1) % STEP:
            yield
    return out
