"""What SORT and THREAD know of mails: values of ENVELOPEs, and references. They are
read once, and stay in memory between two commands (`obox.mailbox.values`).

A mail whose fields cannot be read has empty values, and the next command reads it
again. The work is done in steps, and other sessions run between two steps.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from obox.errors import Corrupt, Expunged, Limit, NotFound
from obox.imap.ast import SortField
from obox.imap.session import Session
from obox.mailbox import UidArray, collated, collated_octets, within
from obox.mailbox.sorting import CHARS_MAX, RUN, Numbers
from obox.mailbox.values import Counted, Held, Linked, Links, Ranked, Values
from obox.mime import HEADER_BYTES_MAX, header_end, header_values, parse_date
from obox.mime.collating import converted, octets
from obox.mime.readback import Envelope, first_address, read_envelope
from obox.mime.subjects import SUBJECT_BYTES_MAX, base_of
from obox.store.api import Fields

CHUNK: Final = 500
"""The ready fields of at most 500 mails are read at a time, which takes about 5 ms."""
CHUNK_BYTES: Final = 4 << 20
"""These fields have at most 4 MiB."""
REFERENCES_OF_MAIL: Final = 100
"""THREAD uses at most 100 references of a mail: the first reference and the last 99."""
_MESSAGE_ID: Final = re.compile(rb"<[^<>\s]{1,998}>")

T = TypeVar("T")


class _Mail:
    """What values are taken from. header: b"" unless a criterion needs it."""

    __slots__ = ("_subject", "envelope", "header")

    def __init__(self, envelope: Envelope, header: bytes) -> None:
        self.envelope, self.header = envelope, header
        self._subject: tuple[str, bool] | None = None

    def subject(self) -> tuple[str, bool]:
        """Return the base subject in the form in which it compares, and whether the
        mail is a reply."""
        if self._subject is None:
            self._subject = _subject_of(self.envelope)
        return self._subject


class Criterion(NamedTuple):
    """What is known of each mail. empty: makes the values of no mail. of_header:
    whether `value` needs the header, and not only the ENVELOPE."""

    name: str
    empty: Callable[[], Held]
    value: Callable[[_Mail], Any]
    of_header: bool = False


class _Once(dict[Any, Any]):
    """Texts, each of which is in memory once. chars: of all of them together."""

    chars = 0

    def __missing__(self, text: Any) -> Any:
        self.chars += len(text)
        self[text] = text
        return text


class Known:
    """The values of mails, in the order of their UIDs. readable: which of the mails
    could be read; None means all."""

    def __init__(self, uids: UidArray, held: dict[str, Held], readable: npt.NDArray[np.bool_] | None) -> None:
        self._uids, self._held, self._readable = uids, held, readable

    def ranks(self, criterion: Criterion) -> Numbers:
        """Return a number for each mail, in the order of their texts: equal for equal
        texts, and 0 for the empty text."""
        held = self._held[criterion.name]
        assert isinstance(held, Ranked)
        return self._of(np.zeros(len(self._uids), dtype=np.int64), lambda some, _: held.of(some))

    def numbers(self, criterion: Criterion, otherwise: Numbers) -> Numbers:
        """Return the number of each mail, or that of `otherwise` if it has none."""
        held = self._held[criterion.name]
        assert isinstance(held, Counted)
        return self._of(otherwise.copy(), held.of)

    def links(self) -> Iterator[Links]:
        """Yield the Message-IDs of each mail."""
        held = self._held[LINKS.name]
        assert isinstance(held, Linked)
        for at in range(0, len(self._uids), RUN):
            part = self._uids[at : at + RUN]
            if self._readable is None:
                yield from held.of(part)
                continue
            there = self._readable[at : at + RUN]
            found = iter(held.of(part[there]))
            for readable in there.tolist():
                yield next(found) if readable else (b"", ())

    def _of(self, out: Numbers, get: Callable[[UidArray, Numbers], Numbers]) -> Numbers:
        if self._readable is None:
            return get(self._uids, out)
        out[self._readable] = get(self._uids[self._readable], out[self._readable])
        return out


async def known(session: Session, uids: UidArray, criteria: Sequence[Criterion]) -> Known:
    """Return the values of mails. The fields are read of mails that no earlier command
    has asked for. Raises Limit."""
    mailbox = session.need_mailbox()[0]
    values = session.context.values
    if values is None:
        values = session.context.values = Values()
    owner = (session.need_user().storage_id, mailbox.guid)
    # What is known of too many expunged mails is forgotten.
    enough = 2 * len(mailbox.state) + CHUNK
    held: dict[str, Held] = {}
    missing = np.zeros(len(uids), dtype=np.bool_)
    for one in criteria:
        found = values.get((owner, one.name))
        held[one.name] = kept = one.empty() if found is None or len(found.uids) > enough else found
        missing |= ~within(uids, kept.uids)
    if not missing.any():
        return Known(uids, held, None)
    new = uids[missing]
    there, lists = await _read(session, new, criteria, chars=sum(one.chars for one in held.values()))
    new = new[there]
    for one, made in zip(criteria, lists, strict=True):
        fresh = ~within(new, held[one.name].uids)
        some = made if fresh.all() else [made[at] for at in np.flatnonzero(fresh).tolist()]
        held[one.name] = await in_turns(session, held[one.name].with_more(new[fresh], some))
        values.put((owner, one.name), held[one.name])
        await session.pause()
    if there.all():
        return Known(uids, held, None)
    readable = ~missing
    readable[missing] = there
    return Known(uids, held, readable)


async def _read(
    session: Session, uids: UidArray, criteria: Sequence[Criterion], *, chars: int
) -> tuple[npt.NDArray[np.bool_], list[list[Any]]]:
    """Read fields. Return which could be read, and for each criterion the values of
    these. chars: of texts that are known already. Raises Limit."""
    there = np.zeros(len(uids), dtype=np.bool_)
    lists: list[list[Any]] = [[] for _ in criteria]
    adds = [(one.value, values.append) for one, values in zip(criteria, lists, strict=True)]
    of_header = any(one.of_header for one in criteria)
    once, at = _Once(), -1
    async for fields in ready_fields(session, uids):
        at += 1
        if fields is None:
            continue
        header = await _header(session, int(uids[at]), fields) if of_header else b""
        if header is None:
            continue
        there[at] = True
        mail = _Mail(read_envelope(fields.envelope), header)
        for value, add in adds:
            made = value(mail)
            if isinstance(made, str):
                made = once[made]
            elif isinstance(made, tuple):
                made = once[made[0]], tuple([once[text] for text in made[1]])
            add(made)
        if chars + once.chars > CHARS_MAX:
            raise Limit("the texts to be compared are too long")
    return there, lists


async def _header(session: Session, uid: int, fields: Fields) -> bytes | None:
    """Return the header of a mail, None if it cannot be read."""
    header = fields.header
    if header is None:
        mailbox, _ = session.need_mailbox()
        try:
            mail = await mailbox.mail(uid, autofix=session.settings.autofix_storage)
        except (Expunged, Corrupt, NotFound):
            return None
        # One byte more is taken: the last line of a longer header is not read.
        begin = mail[: HEADER_BYTES_MAX + 1]
        header = begin[: header_end(begin)]
    return header


async def in_turns(session: Session, steps: Generator[None, None, T]) -> T:
    """Run steps and return their result. Other tasks run between two steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await session.pause()


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


def _sent_seconds(envelope: Envelope) -> int | None:
    """Return the time of the Date field, in UTC."""
    date = None if envelope.date is None else parse_date(envelope.date)
    return None if date is None else date.seconds


def _subject_of(envelope: Envelope) -> tuple[str, bool]:
    """See `_Mail.subject`."""
    if envelope.subject is None:
        return "", False
    value = envelope.subject[:SUBJECT_BYTES_MAX]
    text = converted(value)
    if text is None:
        base, reply = base_of(octets(value).decode("latin-1"))
        return collated_octets(base.encode("latin-1")), reply
    base, reply = base_of(text)
    return collated(base), reply


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


def _links(mail: _Mail) -> Links:
    """Return the Message-ID of a mail, and the Message-IDs that it refers to: those of
    References, or else the first of In-Reply-To."""
    envelope = mail.envelope
    own = _MESSAGE_ID.search(envelope.message_id or b"")
    found: list[bytes] = []
    for value in header_values(mail.header, b"references")[:1]:
        found = _MESSAGE_ID.findall(value)
    if len(found) > REFERENCES_OF_MAIL:
        found = [found[0], *found[1 - REFERENCES_OF_MAIL :]]
    if not found and (one := _MESSAGE_ID.search(envelope.in_reply_to or b"")) is not None:
        found = [one[0]]
    return own[0] if own else b"", tuple(found)


TEXTS: Final = {
    field: Criterion(field.name, Ranked, value)
    for field, value in {
        SortField.SUBJECT: lambda mail: mail.subject()[0],
        SortField.FROM: lambda mail: _mailbox(mail.envelope.sender),
        SortField.TO: lambda mail: _mailbox(mail.envelope.to),
        SortField.CC: lambda mail: _mailbox(mail.envelope.cc),
        SortField.DISPLAYFROM: lambda mail: _display(mail.envelope.sender),
        SortField.DISPLAYTO: lambda mail: _display(mail.envelope.to),
    }.items()
}
"""The criteria of SORT that are texts."""
SENT: Final = Criterion("sent", Counted, lambda mail: _sent_seconds(mail.envelope))
"""The time of the Date field, in UTC."""
REPLY: Final = Criterion("reply", Counted, lambda mail: int(mail.subject()[1]))
"""1 if the subject says that the mail is a reply or forwarded."""
LINKS: Final = Criterion("links", Linked, _links, of_header=True)
