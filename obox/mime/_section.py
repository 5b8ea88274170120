"""Sections: the bytes of a mail that a FETCH BODY[...] names.

Answers are offsets if the section is a contiguous range of the raw mail, so that a
caller reads only the frames that it needs. RFC 9051 §6.4.5, §9 (section-spec).
"""

from __future__ import annotations

from dataclasses import dataclass

from ._fields import header_fields
from ._scan import Part


@dataclass(frozen=True, slots=True)
class Section:
    """A parsed section-spec.

    `1.2.HEADER.FIELDS (To)` is path (1, 2), what "HEADER.FIELDS", fields (b"To",).
    what: "", "HEADER", "HEADER.FIELDS", "HEADER.FIELDS.NOT", "TEXT" or "MIME". fields:
    in any case, as the client sent them.
    """

    path: tuple[int, ...] = ()
    what: str = ""
    fields: tuple[bytes, ...] = ()


def find_part(root: Part, path: tuple[int, ...]) -> Part | None:
    """Return the part of that number, or None. The empty path is the mail itself.

    Part 1 of a message that is not multipart is its body: the result is then the
    message's own Part.
    """
    part = root
    whole = True  # part stands for a message, not for a body part
    for number in path:
        if not whole and part.message is not None:
            part, whole = part.message, True
        if part.children:
            if not 1 <= number <= len(part.children):
                return None
            part = part.children[number - 1]
        elif not whole or number != 1:
            return None
        whole = False
    return part


def section(mail: bytes, root: Part, spec: Section) -> tuple[int, int] | bytes | None:
    """Return the range of a section, or its bytes for HEADER.FIELDS and
    HEADER.FIELDS.NOT.

    None if the mail has no such section.
    """
    part = find_part(root, spec.path)
    if part is None:
        return None
    what = spec.what
    if not what:
        return (part.body_start, part.body_end) if spec.path else (part.header_start, part.body_end)
    if what == "MIME":
        return (part.header_start, part.header_end) if spec.path else None
    message = part.message if spec.path else part
    if message is None:
        return None
    if what == "HEADER":
        return message.header_start, message.header_end
    if what == "TEXT":
        return message.body_start, message.body_end
    if what in {"HEADER.FIELDS", "HEADER.FIELDS.NOT"}:
        header = mail[message.header_start : message.header_end]
        return header_fields(header, frozenset(spec.fields), what == "HEADER.FIELDS.NOT")
    return None
