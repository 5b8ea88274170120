"""Modified UTF-7, the wire form of mailbox names. RFC 3501 §5.1.3, RFC 9051 appendix A.

There is one encoding per name and only that one decodes: two spellings of a name would
be two ways past a check. Names in raw UTF-8, which RFC 3501 forbids and clients send,
decode as what they are.
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from typing import Final

from obox.errors import Invalid

_ENCODE: Final = re.compile(r"&|[^\x20-\x7e]+")
_DECODE: Final = re.compile(rb"&([A-Za-z0-9+,]*)-")


def _shift(match: re.Match[str]) -> str:
    text = match[0]
    if text == "&":
        return "&-"
    coded = b2a_base64(text.encode("utf-16-be"), newline=False)
    return "&" + coded.rstrip(b"=").replace(b"/", b",").decode("ascii") + "-"


def encode(name: str) -> bytes:
    """Return `name` in modified UTF-7."""
    return _ENCODE.sub(_shift, name).encode("ascii")


def _unshift(match: re.Match[bytes]) -> bytes:
    coded = match[1]
    if not coded:
        return b"&"
    raw = a2b_base64(coded.replace(b",", b"/") + b"=" * (-len(coded) % 4))
    return raw.decode("utf-16-be").encode()


def decode(data: bytes) -> str:
    """Return the name that `data` encodes; data with any byte above 127 is UTF-8 as it
    stands, `&` included.

    Raises: Invalid for a shift that does not end or does not decode, for half a
    surrogate pair, and for any encoding but the one `encode` gives (ASCII in base64,
    raw control characters, two shifts in a row, stray bits).
    """
    try:
        if not data.isascii():
            return data.decode()
        name = _DECODE.sub(_unshift, data).decode()
    except (Base64Error, UnicodeDecodeError):
        raise Invalid("Mailbox name is neither modified UTF-7 nor UTF-8") from None
    if encode(name) != data:
        raise Invalid("Mailbox name is not in modified UTF-7: & is written &-, control characters in base64")
    return name
