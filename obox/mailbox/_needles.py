"""Text in the form in which SEARCH compares it, and the search for many strings in it.

Text compares as under i;unicode-casemap (RFC 5051): both sides are normalised, then the
needle is searched as a substring. A long text is processed slice by slice. No call that
holds the interpreter's lock then takes more than a few milliseconds, and at most a
slice is in memory in its normalised form, which may be 18 times as long (U+FDFA). Long
sequences of combining characters are broken up first (`obox.text`), since normalising
takes quadratic time in their length.

Invariant: the slices of `normalised`, put together, are `normalise` of the whole text,
wherever the text was cut. Pure.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from obox.text import can_begin, stream_safe

SLICE_CHARS: Final = 8 * 1024
"""A call normalises at most 8,192 characters. If each decomposes into 18, this takes 5
ms."""

COLLATED_CHARS: Final = 500
"""Characters of a text by which it is sorted."""

_LAST: Final = "\U0010ffff"
"""A noncharacter: no text begins with it."""

_FILTER_FROM: Final = 16
"""If there are at least 16 needles, a text is first checked for those that it can
contain at all.
"""
_GRAM: Final = 3
_GRAMS_MAX: Final = 64
"""Trigrams of a needle that are looked up."""
_TABLE: Final = 1 << 16


def _fold(text: str) -> str:
    """Fold case and decompose compatibility forms of a short, stream-safe text."""
    if text.isascii():
        return text.lower()
    # This is done twice: folding may compose (U+0345), and decomposing may bring
    # capitals (U+1D400).
    # A dotless i has the capital I, so under RFC 5051 it is an i.
    plain = unicodedata.normalize("NFKD", text).replace("\u0131", "i")
    return unicodedata.normalize("NFKD", plain.casefold())


def collated_octets(octets: bytes) -> str:
    """Return the form in which octets are sorted that could not be converted to text:
    behind all texts. RFC 5255 §4.6."""
    return _LAST + octets[:COLLATED_CHARS].decode("latin-1") if octets else ""


def collated(text: str) -> str:
    """Return the form in which texts are sorted: i;unicode-casemap (RFC 5051), of the
    first COLLATED_CHARS characters.

    It has capitals, as i;ascii-casemap has. Only characters whose capital is a single
    character have one: RFC 5051 §2 uses the simple mapping.
    """
    if text.isascii():
        return text[:COLLATED_CHARS].upper()
    plain = unicodedata.normalize("NFKD", stream_safe(text[:COLLATED_CHARS]))
    return unicodedata.normalize("NFKD", stream_safe("".join(map(_capital, plain[:COLLATED_CHARS]))))[:COLLATED_CHARS]


def _capital(char: str) -> str:
    capital = char.upper()
    return capital if len(capital) == 1 else char


def normalise(text: str) -> str:
    """Return `text` in the form in which it compares.

    Case is folded, compatibility forms are decomposed (RFC 5051), and each sequence of
    white space becomes one space, because a header or a paragraph may be wrapped
    anywhere. Marks are kept but separated from their letters, so that `cafe` finds
    `café`, but `café` does not find `cafe`.
    """
    if len(text) > SLICE_CHARS:
        return "".join(normalised((text,)))
    return _spaced(_fold(stream_safe(text)), False)


def _spaced(text: str, after_space: bool) -> str:
    """Replace each sequence of white space by one space, or by none at the beginning if
    a space came before.
    """
    words = text.split()
    if not words:
        return " " if text and not after_space else ""
    lead = " " if text[0].isspace() and not after_space else ""
    return f"{lead}{' '.join(words)}{' ' if text[-1].isspace() else ''}"


def normalised(texts: Iterable[str]) -> Iterator[str]:
    """Yield what `normalise` makes of the texts put together, slice by slice."""
    kept = ""
    """The end that the next characters may still change: the last starter and the marks
    behind it.
    """
    space = False
    for text in texts:
        for at in range(0, len(text), SLICE_CHARS):
            piece = stream_safe(kept + text[at : at + SLICE_CHARS])
            cut = len(piece) - 1
            # at most 31 steps, since the piece is stream-safe
            while cut > 0 and not can_begin(piece[cut]):
                cut -= 1
            kept = piece[cut:]
            if cut:
                out = _spaced(_fold(piece[:cut]), space)
                if out:
                    space = out[-1] == " "
                    yield out
    if kept:
        yield _spaced(_fold(kept), space)


class Needle:
    """A search string, normalised once.

    raw: the longest word of the needle. If a text is pure ASCII and not encoded, it can
    match only if its lower-cased bytes contain this word. None if the needle is not
    ASCII: no such text matches.
    """

    __slots__ = ("raw", "text")

    def __init__(self, value: str) -> None:
        self.text = normalise(value)
        self.raw: bytes | None = None
        if self.text.isascii():
            self.raw = max(self.text.split(), key=len, default="").encode("ascii")

    def inside(self, normalised: str) -> bool:
        return self.text in normalised


class Finder:
    """Searches for all needles of a SEARCH together, so that a text is decoded and
    normalised once.

    The cost is the length of the text. It is only a little more for many needles: a
    window of the text is first checked for the trigrams of the needles, and only
    needles with all their trigrams in it are searched for.
    """

    def __init__(self, needles: Collection[str]) -> None:
        """needles: normalised strings."""
        self._needles = list(dict.fromkeys(needles))
        self._longest = max(map(len, self._needles), default=0)
        self._filter = Filter(self._needles) if len(self._needles) >= _FILTER_FROM else None

    def found(self, texts: Iterable[str]) -> set[str]:
        """Return the needles that occur in a text. `texts` are the slices of that text,
        not yet normalised."""
        out: set[str] = set()
        slices = iter(texts)
        first, second = next(slices, ""), next(slices, None)
        if second is None and len(first) <= SLICE_CHARS:
            self._search(normalise(first), out)
            return out
        texts = (first,) if second is None else chain((first, second), slices)
        window: list[str] = []
        length = 0
        least = max(SLICE_CHARS, 2 * self._longest)
        for piece in normalised(texts):
            window.append(piece)
            length += len(piece)
            if length >= least:
                text = "".join(window)
                self._search(text, out)
                if len(out) == len(self._needles):
                    return out
                text = text[len(text) - self._longest + 1 :] if self._longest > 1 else ""
                window, length = [text], len(text)
        self._search("".join(window), out)
        return out

    def _search(self, text: str, out: set[str]) -> None:
        needles: Iterable[str] = self._needles
        if self._filter is not None:
            needles = self._filter.possible(text)
        out.update([needle for needle in needles if needle not in out and needle in text])


class Filter:
    """The needles that a text may contain: a table of hashes shows whether all their
    trigrams occur.
    """

    def __init__(self, needles: Sequence[str]) -> None:
        self._short = [needle for needle in needles if len(needle) < _GRAM]
        self._long = [needle for needle in needles if len(needle) >= _GRAM]
        grams = [_grams(needle[: _GRAMS_MAX + _GRAM - 1]) for needle in self._long]
        self._flat = np.concatenate(grams) if grams else np.empty(0, dtype=np.uint32)
        self._starts = np.cumsum([0, *map(len, grams)])[:-1]

    def possible(self, text: str) -> list[str]:
        if not self._long or len(text) < _GRAM:
            return self._short
        seen = np.zeros(_TABLE, dtype=np.bool_)
        seen[_grams(text)] = True
        there = np.logical_and.reduceat(seen[self._flat], self._starts)
        return [*self._short, *(self._long[at] for at in np.flatnonzero(there).tolist())]


def _grams(text: str) -> npt.NDArray[Any]:
    """Return a number below _TABLE for each three consecutive characters."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    mixed = codes[:-2] * np.uint32(0x9E3779B1) ^ codes[1:-1] * np.uint32(0x85EBCA6B) ^ codes[2:] * np.uint32(0xC2B2AE35)
    numbers: npt.NDArray[Any] = mixed >> np.uint32(16)
    return numbers
