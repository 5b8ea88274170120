"""FETCH items that are made of a mail and that few clients ask for.

Pure. This module is imported when such an item is fetched for the first time
(`obox.loading`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from obox.imap import wire
from obox.imap.ast import BinarySection
from obox.imap.body import Body, Cut
from obox.mime import decoded, find_part
from obox.mime.preview import preview
from obox.store.content import Part, Section


@dataclass(frozen=True, slots=True)
class Preview(Body):
    """PREVIEW. RFC 8970."""

    def cut(self, mail: bytes, root: Part | None) -> Cut:
        assert root is not None, "the plan needs the structure"
        return Cut(wire.string(preview(mail, root).encode(errors="replace")))


PREVIEW: Final = Preview(b"PREVIEW", Section((), "PREVIEW"))


_ENCODED: Final = frozenset((b"base64", b"quoted-printable"))
_PLAIN: Final = frozenset((b"7bit", b"8bit", b"binary"))


def _is_leaf(part: Part) -> bool:
    return not part.children and part.message is None


class Opened:
    """The decoded body of a part, for all items of a FETCH that ask for ranges of it:
    it is decoded once for each mail."""

    __slots__ = ("_body", "_mail")

    def __init__(self) -> None:
        self._mail, self._body = b"", b""

    def body(self, mail: bytes, part: Part) -> bytes:
        if self._mail is not mail:
            self._mail, self._body = mail, decoded(mail, part)
        return self._body


@dataclass(frozen=True, slots=True)
class Binary(Body):
    """BINARY or, where `size`, BINARY.SIZE. RFC 3516 §4.3.

    What has parts of its own is not encoded (RFC 2045 §6.4), and neither is a whole
    mail: its octets are the value. opened: shared by the items of the same part.
    """

    size: bool = False
    opened: Opened = field(default_factory=Opened, compare=False)

    @property
    def number(self) -> bool:
        return self.size

    def unknown(self, root: Part) -> bool:
        part = find_part(root, self.spec.path) if self.spec.path else None
        return part is not None and _is_leaf(part) and part.encoding not in _ENCODED | _PLAIN

    def cut(self, mail: bytes, root: Part | None) -> Cut:
        assert root is not None, "the plan needs the structure"
        source, first, last = mail, 0, len(mail)
        if self.spec.path:
            part = find_part(root, self.spec.path)
            if part is None:
                return Cut(b"0" if self.size else b"NIL")
            first, last = part.body_start, part.body_end
            if _is_leaf(part) and part.encoding in _ENCODED:
                source = self.opened.body(mail, part)
                first, last = 0, len(source)
        if self.size:
            return Cut(b"%d" % (last - first))
        start, end = self.span(last - first)
        if end <= start:
            return Cut(b'""')
        start, end = first + start, first + end
        head = b"~{%d}\r\n" if source.find(b"\0", start, end) >= 0 else b"{%d}\r\n"
        return Cut(head % (end - start), source, start, end)


def binary(item: BinarySection, opened: dict[tuple[int, ...], Opened]) -> Binary:
    """Return what a FETCH item asks for. opened: of the items before it, by part."""
    shared = opened.setdefault(item.part, Opened())
    return Binary(item.label, Section(item.part, "BINARY"), item.start, item.count, item.size, shared)
