"""The first words of a mail, as a list of mails shows them. RFC 8970 §3.3.

The text is that of the first text/plain or text/html part that has words and is no
attachment. A mail that is encrypted has no preview. Linear time in what is read.
"""

from __future__ import annotations

import html
import re
from dataclasses import replace
from itertools import islice
from typing import Final

from ._scan import Part
from ._text import decoded, leaves, part_text, to_text

CHARS: Final = 200
"""Characters of a preview. RFC 8970 §3.3 allows 256."""
PART_BYTES: Final = 32 * 1024
"""Bytes of a part that are read: a newsletter begins with 10 kB of style sheets."""
PARTS: Final = 4
"""Parts that are looked at: a mail often has an empty text beside its HTML."""

_HIGH: Final = bytes(range(128, 256))
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]+")
_INVISIBLE: Final = re.compile("[\u00ad\u034f\u200b\ufeff]+")
"""Characters with which newsletters fill their previews up."""
_TAG: Final = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]*)")
_HIDDEN: Final = ("head", "script", "style", "title")
_END: Final = {name: re.compile(f"</{name}", re.IGNORECASE) for name in _HIDDEN}
_INLINE: Final = frozenset(("a", "abbr", "b", "code", "em", "font", "i", "s", "small", "span", "strong", "u", "wbr"))
"""Elements inside of which words go on."""


def preview(mail: bytes, root: Part) -> str:
    """Return at most CHARS characters of text, none if there is no text to be read."""
    if (root.type, root.subtype) == (b"multipart", b"encrypted"):
        return ""
    for part in islice(filter(_shown, leaves(root)), PARTS):
        text = _beginning(mail, part)
        found = _words(text_of_html(text)) if part.subtype == b"html" else _plain(text)
        if found.startswith("-----BEGIN PGP MESSAGE-----"):
            return ""
        if found:
            return found[:CHARS].rstrip()
    return ""


def _beginning(mail: bytes, part: Part) -> str:
    end = part.body_start + PART_BYTES
    if part.body_end <= end:
        return part_text(mail, part)
    data = decoded(mail, replace(part, body_end=end))
    # The last character may be cut.
    return to_text(data.rstrip(_HIGH) or data, part.param(b"charset"))


def _shown(part: Part) -> bool:
    attached = part.disposition is not None and part.disposition[0] == b"attachment"
    return part.subtype in {b"plain", b"html"} and not attached


def _words(text: str) -> str:
    return " ".join(_CONTROL.sub(" ", _INVISIBLE.sub("", text)).split())


def _plain(text: str) -> str:
    """Return what the sender has written, or else what the sender cites."""
    lines = text.splitlines()
    own = [line for line in lines if not line.startswith(">")]
    return _words("\n".join(own)) or _words("\n".join(line.lstrip("> ") for line in lines))


def text_of_html(text: str) -> str:
    """Return the text of HTML without its markup."""
    out: list[str] = []
    at = 0
    while (begin := text.find("<", at)) >= 0:
        out.append(text[at:begin])
        if text.startswith(("<!", "<?"), begin):
            mark = "-->" if text.startswith("<!--", begin) else ">"
            end = text.find(mark, begin)
            at = end + len(mark) if end >= 0 else len(text)
            continue
        tag = _TAG.match(text, begin)
        if tag is None:
            out.append("<")
            at = begin + 1
            continue
        end = text.find(">", tag.end())
        name = tag[2].lower()
        at = end + 1 if end >= 0 else len(text)
        if name in _END and not tag[1]:
            close = _END[name].search(text, at)
            at = close.start() if close is not None else len(text)
        if name not in _INLINE:
            out.append(" ")
    out.append(text[at:])
    return html.unescape("".join(out))
