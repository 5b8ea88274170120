"""Text of mails as comparators get it: what a charset could not convert is compared
octet by octet. RFC 5255 §4.6.

A conversion fails if a charset is named that is unknown, or if some octets are not
valid in it. Text without a charset is read as UTF-8 or else as Windows-1252, which does
not fail. The octets are what the transfer encoding leaves.

Invariant: a search finds in the text of `searched_header` and `searched_texts`
everything that it finds in the octets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ._scan import Part
from ._text import _body_slices, _codec_of, _decoded_slices, _part_slices, runs, text_leaves, to_text

BETWEEN: Final = "\0"
"""What separates a text from its octets: no string that is searched has it."""


def _unknown(charset: bytes | None) -> bool:
    """Return whether a charset is named that converts nothing but ASCII."""
    return charset is not None and _codec_of(charset) is None


def converted(value: bytes) -> str | None:
    """Return a header value as text, or None if its conversion fails."""
    out = []
    for data, charset in runs(value):
        text = to_text(data, charset)
        if "\ufffd" in text or (not data.isascii() and _unknown(charset)):
            return None
        out.append(text)
    return "".join(out)


def octets(value: bytes) -> bytes:
    """Return the octets of a header value."""
    return b"".join([data for data, _ in runs(value)])


def searched_header(value: bytes) -> str:
    """Return a header value as text, with its octets behind it if its conversion
    fails."""
    found = converted(value)
    if found is not None:
        return found
    text = "".join([to_text(data, charset) for data, charset in runs(value)])
    return f"{text}{BETWEEN}{octets(value).decode(errors='replace')}"


def searched_texts(mail: bytes, root: Part) -> Iterator[Iterator[str]]:
    """Do `texts_of`, with the octets behind each text whose conversion fails."""
    for part in text_leaves(root):
        yield _searched_slices(mail, part)


def _searched_slices(mail: bytes, part: Part) -> Iterator[str]:
    charset = part.param(b"charset")
    fails, unknown = False, _unknown(charset)
    for piece in _part_slices(mail, part):
        fails = fails or "\ufffd" in piece or (unknown and not piece.isascii())
        yield piece
    if fails and _codec_of(charset) != "utf-8":
        yield BETWEEN
        yield from _decoded_slices(lambda: _body_slices(mail, part), "utf-8")
