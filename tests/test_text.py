"""Stream-safe text (UAX #15 §13): which text may be normalised, and which names are
allowed."""

import re
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obox.errors import Invalid
from obox.text import NONSTARTERS_MAX, duration, is_stream_safe, nfc_name, stream_safe

PRODUCT = ("obox", "metacache", "fscache", "admintool")
MARKS = "\u0301\u0316\u0f73\uff9e\u3099"
some_text = st.text(st.sampled_from(MARKS + "ab\u0439\ufdfa") | st.characters(), max_size=200)


def longest_run(text: str) -> int:
    """Return the longest run of non-starters. Each character counts as the characters
    to which it decomposes."""
    longest = run = 0
    for char in text:
        decomposed = unicodedata.normalize("NFKD", char)
        run = run + 1 if all(map(unicodedata.combining, decomposed)) else 0
        longest = max(longest, run)
    return longest


def test_every_non_starter_of_unicode_counts() -> None:
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        non_starter = not char.isascii() and all(map(unicodedata.combining, unicodedata.normalize("NFKD", char)))
        assert is_stream_safe(char * (NONSTARTERS_MAX + 1)) == (not non_starter), f"U+{code:04X}"


@given(some_text)
def test_the_result_is_stream_safe_and_the_same_text_but_for_joiners(text: str) -> None:
    got = stream_safe(text)
    assert longest_run(got) <= NONSTARTERS_MAX
    assert got.replace("\u034f", "") == text.replace("\u034f", "")
    assert stream_safe(got) == got
    assert (got == text) == is_stream_safe(text) == (longest_run(text) <= NONSTARTERS_MAX)


def test_a_name_is_measured_before_it_is_normalised() -> None:
    assert nfc_name("e\u0301", 10, "x") == "\u00e9"
    for name in ("a" * 11, "\u00e9" * 6, "\ud800" * 4):
        with pytest.raises(Invalid, match="x is longer than 10 bytes"):
            nfc_name(name, 10, "x")
    with pytest.raises(Invalid, match="more than 30 combining characters in a row"):
        nfc_name("a" + "\u0301" * 31, 1000, "x")
    assert nfc_name("a" + "\u0301" * 30, 1000, "x")


def test_text_is_normalised_in_two_files_alone() -> None:
    """All other files pass text to these two, which make it stream-safe first."""
    root = Path(__file__).parents[1]
    product = [path for name in PRODUCT for path in (root / name).rglob("*.py")]
    use = re.compile(r"unicodedata\.(is_)?normali|import unicodedata as|from unicodedata")
    uses = [path for path in product if use.search(path.read_text())]
    assert {str(path.relative_to(root)) for path in uses} == {"obox/text.py", "obox/mailbox/_needles.py"}


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (0.25, "250 ms"),
        (0.0005, "0.5 ms"),
        (2, "2 s"),
        (90.5, "90.5 s"),
        (5_400, "90 min"),
        (129_600, "36 h"),
        (604_800, "7 d"),
        (1_234_567, "1234567 s"),
        (12_345.678, "12345.678 s"),
    ],
)
def test_times_have_the_unit_and_the_digits_that_people_use(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
