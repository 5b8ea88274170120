"""THREAD and UID THREAD: ORDEREDSUBJECT and REFERENCES. RFC 5256 §3. REFS is
REFERENCES without subjects. Its threads come in the order of their newest mails.

The values come from ready fields, as for SORT. References come from the cached header;
a header that is too long to be cached is read from the mail.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Generator, Sequence
from typing import Final

import numpy as np

from obox.errors import Corrupt, Expunged, NotFound
from obox.imap import ast, wire
from obox.imap.commands.auth import enable_condstore
from obox.imap.commands.search import asks_modseq, matching
from obox.imap.commands.sort import INLINE_ROWS, in_turns, ready_fields, sent_seconds, subject_of
from obox.imap.progress import in_progress
from obox.imap.replies import Reply, bad
from obox.imap.session import Session
from obox.mailbox import UidArray
from obox.mailbox.sorting import Numbers, Texts
from obox.mailbox.threads import References, by_subject
from obox.mime import HEADER_BYTES_MAX, header_end, header_values
from obox.mime.readback import Envelope, read_envelope
from obox.store.api import Fields

REFERENCES_OF_MAIL: Final = 100
"""THREAD uses at most 100 references of a mail: the first reference and the last 99."""
_MESSAGE_ID: Final = re.compile(rb"<[^<>\s]{1,998}>")
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
    links = None if command.algorithm == "ORDEREDSUBJECT" else References(len(uids))
    subjects, replies = await _read(session, uids, dates, links)
    ranks = (await in_turns(session, subjects.ranks())) + 1
    numbers = uids if command.uid else view.seqs(uids)
    if links is not None:
        ranks -= int(subjects.has_empty)
    steps = _lists(ranks, dates, None if command.algorithm == "REFS" else replies, links, numbers)
    inline = len(uids) <= INLINE_ROWS
    return await (in_turns(session, steps) if inline else asyncio.to_thread(_at_once, steps))


def _lists(
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


async def _read(session: Session, uids: UidArray, dates: Numbers, links: References | None) -> tuple[Texts, list[bool]]:
    """Return the base subjects, and whether each mail is a reply. Put the sent dates
    into `dates`, and the references into `links`."""
    subjects, replies = Texts(), []
    at = 0
    async for fields in ready_fields(session, uids):
        envelope = Envelope() if fields is None else read_envelope(fields.envelope)
        subject, reply = subject_of(envelope)
        subjects.add(subject)
        replies.append(reply)
        if (sent := sent_seconds(envelope)) is not None:
            dates[at] = sent
        if links is not None:
            header = None if fields is None else await _header(session, int(uids[at]), fields)
            links.add(*_references(envelope, header or b""))
        at += 1
    return subjects, replies


async def _header(session: Session, uid: int, fields: Fields) -> bytes:
    header = fields.header
    if header is None:
        mailbox, _ = session.need_mailbox()
        try:
            mail = await mailbox.mail(uid, autofix=session.settings.autofix_storage)
        except (Expunged, Corrupt, NotFound):
            return b""
        # One byte more is taken: the last line of a longer header is not read.
        begin = mail[: HEADER_BYTES_MAX + 1]
        header = begin[: header_end(begin)]
    return header


def _references(envelope: Envelope, header: bytes) -> tuple[bytes, Sequence[bytes]]:
    """Return the Message-ID of a mail, and the Message-IDs that it refers to: those of
    References, or else the first of In-Reply-To."""
    own = _MESSAGE_ID.search(envelope.message_id or b"")
    found: list[bytes] = []
    for value in header_values(header, b"references")[:1]:
        found = _MESSAGE_ID.findall(value)
    if len(found) > REFERENCES_OF_MAIL:
        found = [found[0], *found[1 - REFERENCES_OF_MAIL :]]
    if not found and (one := _MESSAGE_ID.search(envelope.in_reply_to or b"")) is not None:
        found = [one[0]]
    return own[0] if own else b"", found
