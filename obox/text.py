"""Unicode text from outside: what must hold before it is normalised.

`unicodedata.normalize` sorts each sequence of combining characters (non-starters) in
quadratic time and holds the interpreter's lock meanwhile: 32,768 of them take more than
a second. UAX #15 §13 defines Stream-Safe Text, which has at most 30 in a row; no
language needs more. A name with more is refused (`nfc_name`); text that is searched is
broken up (`stream_safe`).

Invariant: only this module and `obox.mailbox._needles` call `unicodedata.normalize`,
and only with text that is bounded and stream-safe. This module does not know what the
text is for.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Final

from obox.errors import Invalid

NONSTARTERS_MAX: Final = 30
"""Consecutive combining characters. UAX #15 §13 (D3, D4)."""

_BREAK: Final = "\u034f"
"""COMBINING GRAPHEME JOINER: UAX #15 §13 inserts it to end a sequence, since it is a
starter.
"""
_DECOMPOSE_TO_NONSTARTERS: Final = "\u0f73\u0f75\u0f81\uff9e\uff9f"
"""Characters that are starters themselves and whose NFKD has only non-starters."""
_COMBINING_LAST: Final = 0x1F000
"""No combining character lies at or above it; the tests check all of Unicode."""


_ASTRAL: Final = re.compile("[\U00010000-\U0010ffff]")


@cache
def _long_run(most: int) -> re.Pattern[str]:
    """Return a pattern that finds NONSTARTERS_MAX non-starters that are followed by
    another.

    most: the last non-starter that the pattern knows. A pattern for those up to U+FFFF
    is ten times as fast.
    """
    numbers = {n for n in range(0x300, min(most, _COMBINING_LAST) + 1) if unicodedata.combining(chr(n))}
    starts = [n for n in sorted(numbers) if n - 1 not in numbers]
    ends = [n for n in sorted(numbers) if n + 1 not in numbers]
    ranges = [f"{chr(a)}-{chr(b)}" for a, b in zip(starts, ends, strict=True)]
    # none of them has a meaning in a character class
    one = "[" + "".join(ranges) + _DECOMPOSE_TO_NONSTARTERS + "]"
    # The first stands alone: `re` skips quickly to a set, but not to a repeated set.
    return re.compile(f"{one}{one}{{{NONSTARTERS_MAX - 1}}}(?={one})")


def _run_in(text: str) -> re.Pattern[str]:
    rare = any(map(unicodedata.combining, set(_ASTRAL.findall(text))))
    return _long_run(_COMBINING_LAST if rare else 0xFFFF)


def is_stream_safe(text: str) -> bool:
    """Return whether no sequence of non-starters exceeds NONSTARTERS_MAX. Linear
    time."""
    return text.isascii() or _run_in(text).search(text) is None


def stream_safe(text: str) -> str:
    """Return the text with a grapheme joiner after each NONSTARTERS_MAX consecutive
    non-starters.

    Linear time; the same text if it was stream-safe. UAX #15 §13 (Stream-Safe Text
    Process).
    """
    return text if text.isascii() else _run_in(text).sub(lambda run: run[0] + _BREAK, text)


def can_begin(char: str) -> bool:
    """Return whether a text may be cut before this character, so that both sides can be
    normalised (NFKD) separately.
    """
    return not unicodedata.combining(char) and char not in _DECOMPOSE_TO_NONSTARTERS


def nfc_name(name: str, bytes_max: int, what: str) -> str:
    """Return the NFC form of a name. The name is measured before it is normalised.

    bytes_max: limit of the name in UTF-8 as it arrives. NFC of a stream-safe text has
    at most three times as many bytes (UAX #15 §17), so the caller checks its own limit
    once more. what: is named in the error. Raises Invalid, with a text that may be
    shown to the client.
    """
    if len(name) > bytes_max or (not name.isascii() and len(name.encode("utf-8", "surrogatepass")) > bytes_max):
        raise Invalid(f"{what} is longer than {bytes_max} bytes")
    if name.isascii():
        return name
    if not is_stream_safe(name):
        raise Invalid(f"{what} has more than {NONSTARTERS_MAX} combining characters in a row")
    return unicodedata.normalize("NFC", name)


def duration(seconds: float) -> str:
    """Return a time in the form that people use: "2 s", "36 h", "1 d", "250 ms"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{decimal(seconds)} s" if seconds >= 1 or not seconds else f"{decimal(seconds * 1000)} ms"


def decimal(number: float) -> str:
    """Return a number without an exponent, and with as few of three decimals as it
    needs."""
    return f"{number:.3f}".rstrip("0").rstrip(".")
