"""A name as one element of a key in the bucket, and the name back out of the element.

Invariant: `unescape(escape(name)) == name`, and no two names have one element. An
element is safe lower-case ASCII without a `/` (docs/format.md, "Keys"). This leaf does
not know whose name it is, and imports nothing of obox.

Diagnostics: ValueError only.
"""

from __future__ import annotations

import re
from functools import lru_cache

ESCAPED_BYTES_MAX = 600
"""An S3 key has 1,024 bytes. The rest of the longest key (a bundle's) takes about 150,
and the prefix of the bucket's URL may come before it."""

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789@._+-")
_UNCHANGED = re.compile(r"[a-z0-9@+-][a-z0-9@._+-]*", re.ASCII)
_ELEMENT = re.compile(r"(?:[a-z0-9@+-]|%[0-9a-f]{2})(?:[a-z0-9@._+-]|%[0-9a-f]{2})*", re.ASCII)


def escape(name: str) -> str:
    """Return name as one safe path element: lower-case ASCII, injective.

    Bytes of its UTF-8 outside [a-z0-9@._+-], and a leading `.` or `_`, become `%xx`.
    Raises: ValueError when name is empty or the result is longer than
    ESCAPED_BYTES_MAX.
    """
    if len(name) <= ESCAPED_BYTES_MAX and _UNCHANGED.fullmatch(name):
        return name
    raw = name.encode("utf-8")
    if not raw:
        raise ValueError("an empty name has no escaped form")
    parts = [chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in raw]
    if parts[0] in "._":
        parts[0] = f"%{raw[0]:02x}"
    escaped = "".join(parts)
    if len(escaped) > ESCAPED_BYTES_MAX:
        raise ValueError(f"a name of {len(escaped)} bytes when escaped; allowed: {ESCAPED_BYTES_MAX}")
    return escaped


def unescape(escaped: str) -> str:
    """Return the name that escape made this of.

    Raises: ValueError on anything that escape never makes.
    """
    element(escaped)
    raw = re.sub(r"%([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), escaped).encode("latin-1")
    name = raw.decode("utf-8")  # UnicodeDecodeError is a ValueError
    if escape(name) != escaped:
        raise ValueError(f"not an escaped name: {escaped!r}")
    return name


@lru_cache(maxsize=4096)
def element(text: str) -> str:
    """Return text if it is an escaped element, else raise ValueError."""
    if len(text) > ESCAPED_BYTES_MAX or _ELEMENT.fullmatch(text) is None:
        raise ValueError(f"not an escaped path element: {text[:80]!r}")
    return text
