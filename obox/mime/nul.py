"""Mails that come with NUL, in a form without it. RFC 3516 §4.4, §6.

A literal cannot hold NUL (RFC 3501 §9), so a client could not fetch such a mail as
BODYSTRUCTURE describes it. A part may have NUL if its transfer encoding is `binary`. It
gets base64 instead, which loses nothing. Pure.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Iterator
from typing import Final

from ._scan import Part, parse
from ._text import leaves

_FIELD: Final = re.compile(
    rb"^content-transfer-encoding[ \t]*+:[^\n]*+\n(?:[ \t]++[^\s][^\n]*+\n)*+", re.IGNORECASE | re.MULTILINE
)
_BASE64_FIELD: Final = b"Content-Transfer-Encoding: base64\r\n"
_LETTERS: Final = 76
"""Letters of a line. RFC 2045 §6.8."""
_STEP: Final = 57 * 512
"""Octets that are encoded at a time: 512 lines."""


def without_nul(mail: bytes) -> bytes | None:
    """Return the mail with its binary parts in base64, the same mail if it has no NUL,
    and None if NUL is where it cannot be encoded."""
    if b"\0" not in mail:
        return mail
    out: list[bytes] = []
    at = 0
    for part in leaves(parse(mail)):
        if mail.find(b"\0", part.body_start, part.body_end) >= 0:
            header = _header(mail, part)
            if header is None:
                return None
            out += (mail[at : part.header_start], header, *_lines(mail, part))
            at = part.body_end
    out.append(mail[at:])
    found = b"".join(out)
    return None if b"\0" in found else found


def _header(mail: bytes, part: Part) -> bytes | None:
    """Return the header of a part that will be in base64. A message or a multipart
    cannot be in base64 (RFC 2045 §6.4)."""
    if part.encoding != b"binary" or part.type in {b"message", b"multipart"}:
        return None
    header = mail[part.header_start : part.body_start]
    first = _FIELD.search(header)
    if first is None:
        return None
    return header[: first.start()] + _BASE64_FIELD + _FIELD.sub(b"", header[first.start() :])


def _lines(mail: bytes, part: Part) -> Iterator[bytes]:
    """Yield base64, some lines at a time."""
    for at in range(part.body_start, part.body_end, _STEP):
        letters = b2a_base64(mail[at : min(at + _STEP, part.body_end)], newline=False)
        yield b"".join([letters[a : a + _LETTERS] + b"\r\n" for a in range(0, len(letters), _LETTERS)])
