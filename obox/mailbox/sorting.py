"""It orders mails by texts and numbers in steps, so that other tasks can run in
between.

Texts compare by code point in the form of `collated`. `values` gives each different
text a number. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

CHARS_MAX: Final = 64 * 1024 * 1024
"""All different texts together may have at most 64 Mi characters. The texts of 100,000
mails have a hundredth of that."""
RUN: Final = 4_096
"""At most 4,096 texts are sorted or numbered in one step: 2 ms."""
_SAMPLES: Final = 16
"""The sample has 16 texts for each part. With this number no part becomes much larger
than the others."""

Numbers = npt.NDArray[np.int64]


def in_order(texts: list[str]) -> Generator[None, None, list[str]]:
    """Return texts in order. None of them is there twice.

    A sample divides the texts into parts, so that no step has more than a few times RUN
    texts to sort, whatever their order was. Hashes choose the sample, so nobody can
    foresee it.
    """
    sample: list[str] = []
    for at in range(0, len(texts), RUN):
        sample += [text for text in texts[at : at + RUN] if not hash(text) % (RUN // _SAMPLES)]
        yield
    pivots = sorted(sample)[_SAMPLES::_SAMPLES]
    parts: list[list[str]] = [[] for _ in range(len(pivots) + 1)]
    for at in range(0, len(texts), RUN):
        for text in texts[at : at + RUN]:
            parts[bisect_right(pivots, text)].append(text)
        yield
    out: list[str] = []
    for part in parts:
        out += sorted(part)
        yield
    return out


def sorted_rows(keys: Sequence[tuple[Numbers, bool]], count: int) -> npt.NDArray[np.intp]:
    """Return the rows in order. keys: (a number for each row, whether the greatest
    comes first), the most significant first. Equal rows keep their order.
    """
    if not keys:
        return np.arange(count, dtype=np.intp)
    columns: list[Any] = [-numbers if reverse else numbers for numbers, reverse in reversed(keys)]
    return np.lexsort(columns)
