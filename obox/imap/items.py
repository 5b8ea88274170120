"""The items of a FETCH. RFC 9051 §6.4.5."""

from __future__ import annotations

import enum
from typing import TypeAlias

import msgspec


class FetchAttr(enum.Enum):
    """FETCH items without arguments; the value is the name in the answer.

    RFC 9051 §6.4.5, RFC 8514 (SAVEDATE), RFC 8474 (EMAILID, THREADID), RFC 8970
    (PREVIEW).
    """

    ENVELOPE = "ENVELOPE"
    FLAGS = "FLAGS"
    INTERNALDATE = "INTERNALDATE"
    RFC822 = "RFC822"
    RFC822_SIZE = "RFC822.SIZE"
    RFC822_HEADER = "RFC822.HEADER"
    RFC822_TEXT = "RFC822.TEXT"
    BODY = "BODY"
    BODYSTRUCTURE = "BODYSTRUCTURE"
    UID = "UID"
    MODSEQ = "MODSEQ"
    SAVEDATE = "SAVEDATE"
    EMAILID = "EMAILID"
    THREADID = "THREADID"
    PREVIEW = "PREVIEW"
    PREVIEW_LAZY = "PREVIEW (LAZY)"


class SectionText(enum.Enum):
    """The word of a section; ALL is `BODY[]` or, with a part, the part's content."""

    ALL = ""
    HEADER = "HEADER"
    HEADER_FIELDS = "HEADER.FIELDS"
    HEADER_FIELDS_NOT = "HEADER.FIELDS.NOT"
    TEXT = "TEXT"
    MIME = "MIME"


class BodySection(msgspec.Struct, frozen=True):
    """`BODY[section]<start.count>`.

    label: the item's name in the answer, ready: `BODY[1.HEADER.FIELDS (Subject)]<0>`.
    fields: as sent. part: part numbers, () for the whole mail. peek: do not set
    `\\Seen`. start, count: None without `<>`.
    """

    label: bytes
    part: tuple[int, ...] = ()
    text: SectionText = SectionText.ALL
    fields: tuple[bytes, ...] = ()
    peek: bool = False
    start: int | None = None
    count: int | None = None


class BinarySection(msgspec.Struct, frozen=True):
    """`BINARY[part]<start.count>`, or `BINARY.SIZE[part]` where `size`. RFC 3516 §4.2.
    The fields are those of BodySection."""

    label: bytes
    part: tuple[int, ...] = ()
    peek: bool = False
    start: int | None = None
    count: int | None = None
    size: bool = False


FetchItem: TypeAlias = FetchAttr | BodySection | BinarySection
