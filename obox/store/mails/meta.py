"""The bytes that go with a mail: its meta, and the ready fields made of it
(docs/format.md, "Mail", "Fields").

Pure except `ready_fields`, which does long work in a thread. This module knows neither
bucket nor cache.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
import structlog

from ... import mime
from ...errors import Corrupt
from ...mailbox import Delta, Rows
from ...objectstore.keys import parse_mail_key
from ..fields import Fields

log = structlog.get_logger()

INLINE_MAX: Final = 64 * 1024
"""Octets up to which a mail is parsed and compressed on the loop: about a
millisecond."""

HEADER_CACHED_MAX: Final = 8 * 1024
"""Octets of a header block that is cached. A larger block is read with its mail. 99.9 %
of mails have less."""


class MailMeta(msgspec.Struct, omit_defaults=True):
    """Metadata in a mail's object, from which the index record can be rebuilt.

    guid: the mailbox that it was delivered to; size: octets; internaldate: unix
    seconds; zone: minutes east of UTC; savedate: unix milliseconds; flags: at delivery;
    uidl: of a migrated mail (RFC 1939 §7), "" for none. A map on disk: unknown keys are
    for newer minor versions.
    """

    guid: str
    uid: int
    size: int
    internaldate: int
    zone: int
    savedate: int
    flags: tuple[str, ...] = ()
    uidl: str = ""

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> MailMeta:
        """Raises Corrupt."""
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except msgspec.MsgspecError as exc:
            raise Corrupt(f"a mail's meta does not decode: {exc}") from exc

    def row(self, oid: bytes, modseq: int) -> Rows:
        """Return the index record of this mail, new at `modseq`."""
        return Rows.one(
            self.uid,
            size=self.size,
            internaldate=self.internaldate,
            zone=self.zone,
            savedate=self.savedate,
            modseq=modseq,
            oid=oid,
            flags=self.flags,
        )


def check_meta(meta: MailMeta, key: str) -> None:
    """Raises Corrupt if a mail does not belong to the mailbox and UID of its key. A
    mail of version 1 has no other binding."""
    _, guid, uid = parse_mail_key(key)
    if (meta.guid, meta.uid) != (guid, uid):
        raise Corrupt(f"the mail of another mailbox or UID: {meta.guid}, {meta.uid}")


def check_claim(delta: Delta, uid: int) -> None:
    """Raises Corrupt if a claim, or the head of a batch, does not begin with the UID of
    its key. A claim of version 1 has no other binding."""
    ranges = delta.batches or delta.claims
    count = ranges.get(uid, 0)
    rows = [] if delta.rows is None else delta.rows.uid.tolist()
    both = len(delta.batches) + len(delta.claims)
    if both != 1 or not count or any(not uid <= one < uid + count for one in rows):
        raise Corrupt(f"the claim of other UIDs: {ranges}")
    if delta.batches and rows != list(range(uid, uid + count)):
        raise Corrupt(f"a batch of {count} mails with {len(rows)} records")


def make_fields(source: bytes) -> Fields:
    """Return the ready fields of a mail."""
    return _packed(mime.summary(source))


def quick_fields(source: bytes) -> Fields | None:
    """Return the ready fields of a mail that is small and, as nearly all mails, within
    `mime.Budget.quick`; otherwise None."""
    if len(source) > INLINE_MAX:
        return None
    try:
        summary = mime.summary(source, mime.Budget.quick())
    except Exception:  # this is a bug, which `ready_fields` logs
        return None
    return None if summary.exceeded else _packed(summary)


async def ready_fields(source: bytes, **about: object) -> Fields | None:
    """Return the ready fields of a mail, made in a thread if they take long. None means
    that a bug prevented it.

    about: names the mail in the log, which has the limits that the mail exceeds.
    """
    fields = quick_fields(source)
    if fields is not None:
        return fields
    try:
        summary = await asyncio.to_thread(mime.summary, source)
    except Exception as exc:
        log.error("ready fields could not be made", error=repr(exc), exc_info=exc, **about)
        return None
    if summary.exceeded:
        log.warning("mail exceeds the limits of its ready fields", limits=" ".join(summary.exceeded), **about)
    return _packed(summary)


def opaque_fields(source: bytes) -> Fields:
    """Return a replacement for ready fields that cannot be made: no ENVELOPE, and a
    single part of bytes."""
    body = b'"application" "octet-stream" NIL NIL NIL "7bit" %d' % len(source)
    return Fields.of(b"(" + b" ".join([b"NIL"] * 10) + b")", b"(%b)" % body, b"(%b NIL NIL NIL NIL)" % body, None)


def _packed(summary: mime.Summary) -> Fields:
    header = summary.header if len(summary.header) <= HEADER_CACHED_MAX else None
    return Fields.of(summary.envelope, summary.body, summary.bodystructure, header)
