"""Text that is searched: slices of bounded size give the same result as the whole text,
and many strings are found in a single pass."""

from __future__ import annotations

import random
import sys
import tracemalloc
import unicodedata
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obox.mailbox import Finder, Needle, _needles, collated, normalise
from obox.mailbox._needles import normalised
from obox.text import stream_safe

MARKS = "\u0301" * 16_384 + "\u0316" * 16_384
ODD = "aA \t\u00e9\u0301\u0316\u0345\u0344\u00df\u1e9e\uac00\ufdfa\u0f73\uff9e\u00b4\u034f\U0001d16d\U0001d400\u2003"
ODD += "\u0131\U0001d6a4"

text = st.text(st.sampled_from(ODD), max_size=200)


def simply(value: str) -> str:
    """Prepare a short text as the definition says."""
    safe = stream_safe(value)
    plain = unicodedata.normalize("NFKD", safe).replace("\u0131", "i")
    out = unicodedata.normalize("NFKD", plain.casefold())
    words = " ".join(out.split())
    if not words:
        return " " if out else ""
    return (" " if out[0].isspace() else "") + words + (" " if out[-1].isspace() else "")


@settings(max_examples=300, deadline=None)
@given(text, st.lists(st.integers(0, 200), max_size=5))
def test_slices_are_the_whole(value: str, cuts: list[int]) -> None:
    assert normalise(value) == simply(value)
    bounds = sorted({0, len(value), *(min(cut, len(value)) for cut in cuts)})
    pieces = [value[a:b] for a, b in pairwise(bounds)]
    assert "".join(normalised(pieces)) == simply(value)
    plain = _needles.SLICE_CHARS
    try:
        _needles.SLICE_CHARS = 3
        assert normalise(value) == simply(value)
    finally:
        _needles.SLICE_CHARS = plain


def test_what_is_equal_in_capitals_is_equal() -> None:
    """RFC 5051 §2: a character compares as its capital. Python's `title` is the simple
    mapping where it returns a single character."""
    for number in range(sys.maxunicode + 1):
        char = chr(number)
        capital = char.title()
        if capital != char and len(capital) == 1:
            assert normalise(capital) == normalise(char), hex(number)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the texts that are passed to `unicodedata.normalize`."""
    seen: list[str] = []
    plain = unicodedata.normalize

    def normalize(form: Any, value: str) -> str:
        seen.append(value)
        return plain(form, value)

    monkeypatch.setattr(_needles.unicodedata, "normalize", normalize)
    return seen


def longest_run(value: str) -> int:
    longest = run = 0
    for char in value:
        run = run + 1 if unicodedata.combining(char) else 0
        longest = max(longest, run)
    return longest


SHORT = "\u0301" * 4_000 + "\u0316" * 4_000
"""These marks are fewer characters than a slice."""


@pytest.mark.parametrize("value", [SHORT, MARKS, "x" + MARKS, MARKS * 4, "\U0001d16d" * 20_000, "\u0344" * 20_000])
def test_runs_of_marks_are_never_normalised_whole(value: str, calls: list[str]) -> None:
    normalise(value)
    assert calls
    assert max(map(longest_run, calls)) <= 60, "30, each of which may be two"
    assert max(map(len, calls)) <= 18 * (8 * 1024 + 32)
    assert sum(map(len, calls)) <= 6 * len(value)


@pytest.mark.parametrize("value", [SHORT, "\u0301\u0316" * 5_000, "\U0001d16d" * 20_000, "\ufdfa" * 5_000])
def test_texts_to_sort_by_are_cut_and_safe_before_they_are_normalised(value: str, calls: list[str]) -> None:
    collated(value)
    assert max(map(longest_run, calls)) <= 60
    assert max(map(len, calls)) <= 2 * _needles.COLLATED_CHARS


def test_memory_is_that_of_a_slice() -> None:
    """A character that becomes 18 characters is repeated for 4 MB. The search does not
    hold the whole converted text."""
    value = "\ufdfa" * 1_300_000
    finder = Finder(["nothing of the kind"])
    tracemalloc.start()
    try:
        assert finder.found((value,)) == set()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 << 20


@settings(max_examples=200, deadline=None)
@given(st.lists(text, max_size=40), st.lists(text, max_size=5))
def test_finder(needles: list[str], pieces: list[str]) -> None:
    wanted = [normalise(needle) for needle in needles]
    whole = normalise("".join(pieces))
    assert Finder(wanted).found(pieces) == {needle for needle in wanted if needle in whole}


@pytest.mark.parametrize("count", [1, 3, 500])
def test_finder_across_windows(count: int) -> None:
    """The strings lie across the ends of slices and windows. Some of them are long."""
    rng = random.Random(count)
    value = "".join(rng.choices("abcdefgh \u00e9", k=60_000))
    whole = normalise(value)
    there = [whole[at : at + rng.choice((1, 2, 5, 50, 9_000))] for at in rng.sample(range(50_000), count)]
    absent = [needle[:-1] + "z" for needle in there]
    assert Finder([*there, *absent]).found((value,)) == set(there)


def test_a_thousand_strings_are_asked_once_each_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is normalised once. Strings whose trigrams do not occur are not searched
    for."""
    looked: list[int] = []
    plain = _needles.Filter.possible

    def possible(self: Any, value: str) -> list[str]:
        found = plain(self, value)
        looked.append(len(found))
        return found

    monkeypatch.setattr(_needles.Filter, "possible", possible)
    needles = [normalise(f"needle number {n} \u00fc") for n in range(2_000)]
    value = "The quick brown fox jumps over the lazy dog. " * 5_000
    assert Finder(needles).found((value,)) == set()
    windows = len(value) // _needles.SLICE_CHARS + 2
    assert len(looked) <= windows
    assert sum(looked) == 0


def test_needle() -> None:
    assert Needle("FOO  Bar").raw == b"foo"
    assert Needle("\u00e4").raw is None
