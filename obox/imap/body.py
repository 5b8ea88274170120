"""FETCH items that are cut out of a mail: sections, and how their values are sent.

A mail's bytes are sent as they were stored, with NUL. RFC 3501 §9 (CHAR8) forbids NUL
in a literal, but a mail must be read back byte for byte, and clients count a literal
instead of scanning it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from obox.store.content import Part, Section, fields_cutter, section


def literal(data: bytes) -> bytes:
    """Return a mail's bytes as a literal. No bytes are the empty string."""
    return b"{%d}\r\n%b" % (len(data), data) if data else b'""'


class Cut(NamedTuple):
    """The answer's value for an item that is cut out of a mail: `head`, and then the
    octets from `start` to `end`. source: what has these octets, or None."""

    head: bytes
    source: bytes | None = None
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Body:
    """A section.

    label: its name in the answer. spec: what to cut out of a mail. whole: the whole
    mail.
    """

    label: bytes
    spec: Section
    start: int | None = None
    count: int | None = None

    @property
    def whole(self) -> bool:
        return not self.spec.path and not self.spec.what

    @property
    def entire(self) -> bool:
        """Return whether it is the whole mail, and not only a range of its octets."""
        return self.whole and self.start is None

    @property
    def number(self) -> bool:
        """Return whether the value is a number."""
        return False

    def unknown(self, root: Part) -> bool:
        """Return whether the value cannot be made, because the transfer encoding is
        unknown."""
        return False

    @property
    def in_header(self) -> bool:
        return not self.spec.path and self.spec.what.startswith("HEADER")

    def partial(self, data: bytes) -> bytes:
        if self.start is None:
            return data
        return data[self.start : self.start + (self.count or 0)]

    def span(self, size: int) -> tuple[int, int]:
        """Return the range of a whole mail of `size` octets that is fetched."""
        if self.start is None:
            return 0, size
        start = min(self.start, size)
        return start, min(start + (self.count or 0), size)

    def of_header(self) -> Callable[[bytes], bytes]:
        """Return a function that makes the answer's value from a header block. It is
        made once for many mails."""
        what = self.spec.what
        partial = self.partial
        if what == "HEADER":
            return literal if self.start is None else lambda header: literal(partial(header))
        cut = fields_cutter(frozenset(self.spec.fields), what == "HEADER.FIELDS.NOT")
        if self.start is None:
            return lambda header: literal(cut(header))
        return lambda header: literal(partial(cut(header)))

    def of_mail(self, mail: bytes, root: Part | None) -> bytes:
        """Return the answer's value from the mail and its structure."""
        head, source, start, end = self.cut(mail, root)
        return head if source is None else head + source[start:end]

    def cut(self, mail: bytes, root: Part | None) -> Cut:
        """Return the answer's value in parts, or NIL if the mail has no such part."""
        source, start, end = self.span_of(mail, root)
        if source is None:
            return Cut(b"NIL")
        return Cut(b"{%d}\r\n" % (end - start), source, start, end) if end > start else Cut(b'""')

    def span_of(self, mail: bytes, root: Any) -> tuple[bytes | None, int, int]:
        """Return where the answer's octets are: the bytes (None if there are none),
        start, end.

        Nothing is copied out of the mail.
        """
        if self.whole:
            return mail, *self.span(len(mail))
        assert root is not None, "the plan needs the structure"
        found = section(mail, root, self.spec)
        if found is None:
            return None, 0, 0
        if isinstance(found, bytes):
            return found, *self.span(len(found))
        first, last = found
        start, end = self.span(last - first)
        return mail, first + start, first + end
