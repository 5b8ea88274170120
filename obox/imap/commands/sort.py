"""SORT and UID SORT, with RETURN. RFC 5256 §3, RFC 5267 §3 (ESORT), RFC 5957 (DISPLAY).

The mails that match are sorted by columns (ARRIVAL, SIZE) and by values of their cached
ENVELOPEs. A mail whose ENVELOPE cannot be read has empty values. The work is done in
steps, and other sessions run between two steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from obox.imap import ast, wire
from obox.imap.ast import SearchReturn, SortField
from obox.imap.commands.auth import enable_condstore
from obox.imap.commands.search import asks_modseq, joined, matching, modseq_of, part_of, write_esearch
from obox.imap.progress import in_progress
from obox.imap.replies import Reply
from obox.imap.session import NO_UIDS, Session
from obox.mailbox import Table, UidArray, collated, collated_octets, distinct
from obox.mailbox.sorting import Numbers, Texts, sorted_rows
from obox.mime import parse_date
from obox.mime.collating import converted, octets
from obox.mime.readback import Envelope, first_address, read_envelope
from obox.mime.subjects import SUBJECT_BYTES_MAX, base_of
from obox.store.api import Fields

CHUNK: Final = 500
"""The ready fields of at most 500 mails are read at a time, which takes about 5 ms."""
CHUNK_BYTES: Final = 4 << 20
"""These fields have at most 4 MiB."""
INLINE_ROWS: Final = 20_000
"""At most 20,000 mails are sorted by number, or put into threads, on the loop: 5 ms.
More are sorted in a thread."""

T = TypeVar("T")
_NOTHING: Final = Envelope()


async def sort(session: Session, command: ast.Sort) -> Reply:
    with_modseq = asks_modseq(command.key)
    if with_modseq:
        enable_condstore(session)
    mailbox, view = session.need_mailbox()
    saves = command.returns is not None and SearchReturn.SAVE in command.returns
    try:
        with in_progress(session, command):
            table, where, uids = mailbox.state.records(await matching(session, command.key))
            columns = await _columns(session, command, table, where, uids)
            inline = len(uids) <= INLINE_ROWS
            keys = [(columns[field], reverse) for field, reverse in command.criteria]
            rows = sorted_rows(keys, len(uids)) if inline else await asyncio.to_thread(sorted_rows, keys, len(uids))
    except BaseException:
        if saves:
            session.saved = NO_UIDS
        raise
    found: UidArray = uids[rows]
    numbers = found if command.uid else view.seqs(found)
    if command.returns is None:
        words = [b"SORT", *joined(numbers)]
        if with_modseq and len(found):
            words.append(b"(MODSEQ %d)" % modseq_of(session, uids))
        session.write(wire.line(*words))
    else:
        _extended(session, command, uids, found, numbers, with_modseq=with_modseq)
    return Reply("Sort completed")


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
    options = (command.returns or frozenset()) - {SearchReturn.SAVE}
    if SearchReturn.SAVE in (command.returns or ()):
        session.saved = uids
        if SearchReturn.PARTIAL in options and SearchReturn.COUNT not in options:
            first = found[:1] if SearchReturn.MIN in options else found[:0]
            last = found[-1:] if SearchReturn.MAX in options else found[:0]
            session.saved = distinct(np.concatenate((first, last, part_of(found, command.partial))))
        if not options:
            return
    write_esearch(session, command, options, numbers, uids if with_modseq else None)


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
    texts = {field: Texts() for field in wanted if field in TEXT_OF}
    dates = arrival.copy() if SortField.DATE in wanted else None
    if not texts and dates is None:
        return out
    gets = [(TEXT_OF[field], texts[field].add) for field in texts]
    at = 0
    async for envelope in envelopes(session, uids):
        for get, add in gets:
            add(get(envelope))
        if dates is not None and (sent := sent_seconds(envelope)) is not None:
            dates[at] = sent
        at += 1
    if dates is not None:
        out[SortField.DATE] = dates
    for field, some in texts.items():
        out[field] = await in_turns(session, some.ranks())
    return out


async def in_turns(session: Session, steps: Generator[None, None, T]) -> T:
    """Run steps and return their result. Other tasks run between two steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await session.pause()


async def envelopes(session: Session, uids: UidArray) -> AsyncIterator[Envelope]:
    """Yield the ENVELOPE of each mail, an empty one if it cannot be read."""
    async for one in ready_fields(session, uids):
        yield _NOTHING if one is None else read_envelope(one.envelope)


async def ready_fields(session: Session, uids: UidArray) -> AsyncIterator[Fields | None]:
    """Yield the ready fields of each mail, None if it cannot be read."""
    mailbox, _ = session.need_mailbox()
    autofix = session.settings.autofix_storage
    at = 0
    while at < len(uids):
        part = uids[at : at + CHUNK].tolist()
        found = await mailbox.fields(part, autofix=autofix, bytes_max=CHUNK_BYTES)
        at += len(found)
        for one in found:
            # The values of a hostile mail take a millisecond.
            if session.out.due:
                await session.pause()
            yield one if isinstance(one, Fields) else None


def sent_seconds(envelope: Envelope) -> int | None:
    """Return the time of the Date field, in UTC."""
    date = None if envelope.date is None else parse_date(envelope.date)
    return None if date is None else date.seconds


def subject_of(envelope: Envelope) -> tuple[str, bool]:
    """Return the base subject in the form in which it compares, and whether the mail is
    a reply."""
    if envelope.subject is None:
        return "", False
    value = envelope.subject[:SUBJECT_BYTES_MAX]
    text = converted(value)
    if text is None:
        base, reply = base_of(octets(value).decode("latin-1"))
        return collated_octets(base.encode("latin-1")), reply
    base, reply = base_of(text)
    return collated(base), reply


def _subject(envelope: Envelope) -> str:
    return subject_of(envelope)[0]


def _plain(data: bytes) -> str:
    """Return what has no encoded words as it compares."""
    try:
        return collated(data.decode())
    except UnicodeDecodeError:
        return collated_octets(data)


def _mailbox(addresses: bytes) -> str:
    first = first_address(addresses)
    return "" if first is None or first.mailbox is None else _plain(first.mailbox)


def _display(addresses: bytes) -> str:
    """Return the name that a client shows for the first address. RFC 5957 §3."""
    first = first_address(addresses)
    if first is None:
        return ""
    if first.name:
        name = converted(first.name)
        if name is None:
            return collated_octets(octets(first.name))
        if name.strip():
            return collated(name.strip())
    mailbox = first.mailbox or b""
    return _plain(mailbox if first.host is None else mailbox + b"@" + first.host)


TEXT_OF: Final[dict[SortField, Callable[[Envelope], str]]] = {
    SortField.SUBJECT: _subject,
    SortField.FROM: lambda envelope: _mailbox(envelope.sender),
    SortField.TO: lambda envelope: _mailbox(envelope.to),
    SortField.CC: lambda envelope: _mailbox(envelope.cc),
    SortField.DISPLAYFROM: lambda envelope: _display(envelope.sender),
    SortField.DISPLAYTO: lambda envelope: _display(envelope.to),
}
"""The function that returns the value of a mail for each criterion."""
