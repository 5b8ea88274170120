"""Unicode text from outside: what must hold before it is normalised.

`unicodedata.normalize` sorts each run of combining characters (non-starters) in quadratic time and
holds the interpreter's lock meanwhile: 32,768 of them take more than a second. UAX #15 §13 defines
Stream-Safe Text, which has at most 30 in a row; no language needs more. A name with more is refused
(`nfc_name`); text that is searched is broken up (`stream_safe`).

Invariant: this module and `obox.mailbox.search` alone call `unicodedata.normalize`, and only with
text that is bounded and stream-safe. Refuses to know: what the text is for.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Final

from obox.errors import Invalid

NONSTARTERS_MAX: Final = 30
"""Combining characters in a row. UAX #15 §13 (D3, D4)."""

_BREAK: Final = "\u034f"
"""COMBINING GRAPHEME JOINER: what UAX #15 §13 inserts to end a run, since it is a starter."""
_DECOMPOSE_TO_NONSTARTERS: Final = "\u0f73\u0f75\u0f81\uff9e\uff9f"
"""Characters that are starters themselves and whose NFKD has non-starters alone."""
_COMBINING_LAST: Final = 0x1F000
"""No combining character lies at or above it; the tests look at all of Unicode."""


@cache
def _long_run() -> re.Pattern[str]:
    """A pattern that finds each NONSTARTERS_MAX non-starters that another one follows."""
    chars = [c for c in map(chr, range(0x300, _COMBINING_LAST)) if unicodedata.combining(c)]
    one = "[" + "".join(chars) + _DECOMPOSE_TO_NONSTARTERS + "]"  # none of them has a meaning in a class
    return re.compile(f"{one}{{{NONSTARTERS_MAX}}}(?={one})")


def is_stream_safe(text: str) -> bool:
    """Whether no run of non-starters is longer than NONSTARTERS_MAX. Linear time."""
    return text.isascii() or _long_run().search(text) is None


def stream_safe(text: str) -> str:
    """The text with a grapheme joiner after each NONSTARTERS_MAX non-starters in a row.

    Linear time; the same text if it was stream-safe. UAX #15 §13 (Stream-Safe Text Process).
    """
    return text if text.isascii() else _long_run().sub(lambda run: run[0] + _BREAK, text)


def nfc_name(name: str, bytes_max: int, what: str) -> str:
    """The NFC form of a name. It is measured before it is normalised.

    bytes_max: of the name in UTF-8, as it came; NFC of a stream-safe text has at most three times
    as many (UAX #15 §17), so the caller checks its own limit once more. what: named in the error.
    Raises Invalid, with a text that may be shown to the client.
    """
    if len(name) > bytes_max or (not name.isascii() and len(name.encode("utf-8", "surrogatepass")) > bytes_max):
        raise Invalid(f"{what} is longer than {bytes_max} bytes")
    if name.isascii():
        return name
    if not is_stream_safe(name):
        raise Invalid(f"{what} has more than {NONSTARTERS_MAX} combining characters in a row")
    return unicodedata.normalize("NFC", name)


def duration(seconds: float) -> str:
    """A time as people say it: "2 s", "36 h", "1 d", "250 ms"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s" if seconds >= 1 or not seconds else f"{seconds * 1000:.3g} ms"
