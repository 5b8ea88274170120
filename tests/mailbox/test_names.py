"""Mailbox names and LIST patterns. The patterns are compared with a simple matcher."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obox.errors import Invalid
from obox.mailbox import names


@pytest.mark.parametrize(
    ("given_name", "want"),
    [
        ("inbox", "INBOX"),
        ("InBoX/Lists", "INBOX/Lists"),
        ("INBOX/", "INBOX"),
        ("inboxes", "inboxes"),
        ("a/inbox", "a/inbox"),
        ("a/b/", "a/b"),
        ("e\u0301t\u00e9", "\u00e9t\u00e9"),
        ("50%", "50%"),
        ("***", "***"),
        (" a ", " a "),
        ("..", ".."),
        ("#news.comp", "#news.comp"),
        ("/".join("a" * 50), "/".join("a" * 50)),
        ("ä" * 127, "ä" * 127),
    ],
)
def test_valid(given_name: str, want: str) -> None:
    assert names.check_name(given_name) == want
    assert names.check_name(want) == want


def test_inbox_has_two_cases_of_ascii_letters_alone() -> None:
    for name in ("\u0131nbox", "\u0131NBOX/Sub", "\u0130nbox", "INBO\uff38"):
        assert names.canonical(name) == name
        assert names.check_name(name) == name
        assert not names.Pattern(name).matches("INBOX")
        assert names.Pattern(name[:3] + "*").matches(name)
        assert not names.fitter(name)("INBOX")
        assert not names.is_inbox(name)
    assert names.fitter("inbox/*")("INBOX/Sub")


@given(st.text("iInNbBoOxX\u0131/ae\u0301", max_size=12))
def test_canonical_is_idempotent(name: str) -> None:
    assert names.canonical(names.canonical(name)) == names.canonical(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("/", "empty"),
        ("//", "empty level"),
        ("/a", "empty level"),
        ("a//b", "empty level"),
        ("a//", "empty level"),
        ("a\x00b", r"U\+0000"),
        ("a\r\nb", "control"),
        ("a\x7f", "control"),
        ("a\x85", "control"),
        ("a\u2028", "line end"),
        ("a\ud800", "surrogate"),
        ("a" * 256, "255 bytes"),
        ("ä" * 128, "255 bytes"),
        ("/".join(["a" * 200] * 5), "1000 bytes"),
        ("/".join("a" * 51), "50 levels"),
    ],
)
def test_invalid(name: str, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        names.check_name(name)


def test_tree() -> None:
    assert names.parents("a/b/c") == ["a", "a/b"]
    assert names.parents("a") == []
    assert names.with_children(["a/b/c", "d", "a/x"]) == {"a", "a/b"}
    assert names.is_below("a/b/c", "a")
    assert not names.is_below("ab", "a")
    assert not names.is_below("a", "a")
    assert names.moved("a/b", "a", "x/y") == "x/y/b"
    assert names.moved("a", "a", "x") == "x"
    assert names.moved("ab", "a", "x") is None
    assert sorted(["b", "a-b", "a/b", "INBOX/z", "a", "INBOX"], key=names.sort_key) == [
        "INBOX",
        "INBOX/z",
        "a",
        "a/b",
        "a-b",
        "b",
    ]


@pytest.mark.parametrize(
    ("pattern", "want"),
    [
        ("*", ["INBOX", "INBOX/Lists", "a", "a/b", "a/b/c", "in", "work"]),
        ("%", ["INBOX", "a", "in", "work"]),
        ("**", ["INBOX", "INBOX/Lists", "a", "a/b", "a/b/c", "in", "work"]),
        ("%*", ["INBOX", "INBOX/Lists", "a", "a/b", "a/b/c", "in", "work"]),
        ("%%", ["INBOX", "a", "in", "work"]),
        ("a", ["a"]),
        ("a/", []),
        ("a*", ["a", "a/b", "a/b/c"]),
        ("a/%", ["a/b"]),
        ("a/*", ["a/b", "a/b/c"]),
        ("%/%", ["INBOX/Lists", "a/b"]),
        ("*c", ["a/b/c"]),
        ("*/%", ["INBOX/Lists", "a/b", "a/b/c"]),
        ("inbox", ["INBOX"]),
        ("inb*", ["INBOX", "INBOX/Lists"]),
        ("i%", ["INBOX", "in"]),
        ("I%", ["INBOX"]),
        ("in*", ["INBOX", "INBOX/Lists", "in"]),
        ("%box", ["INBOX"]),
        ("*lists", []),
        ("*Lists", ["INBOX/Lists"]),
        ("inBox/L*s", ["INBOX/Lists"]),
        ("w%k", ["work"]),
        ("W*", []),
        ("", []),
    ],
)
def test_match(pattern: str, want: list[str]) -> None:
    known = ["INBOX", "INBOX/Lists", "a", "a/b", "a/b/c", "in", "work"]
    assert names.match(pattern, known) == dict.fromkeys(want, True)


def test_percent_shows_missing_levels() -> None:
    known = ["a/b/c", "x"]
    assert names.match("%", known) == {"x": True, "a": False}
    assert names.match("a/%", known) == {"a/b": False}
    assert names.match("*", known) == {"a/b/c": True, "x": True}
    assert names.match("*%", ["a/b"]) == {"a/b": True}
    assert names.match("*/%", known) == {"a/b/c": True, "a/b": False}


def test_many_wildcards_take_linear_time() -> None:
    name = "/".join(["a" * 200] * 4)
    begin = time.process_time()
    assert not names.Pattern("*a%" * 300 + "b").matches(name)
    assert time.process_time() - begin < 0.5


def _naive(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(_naive(pattern[1:], name[i:]) for i in range(len(name) + 1))
    if pattern[0] == "%":
        return _naive(pattern[1:], name) or (name[:1] not in ("", "/") and _naive(pattern, name[1:]))
    return name[:1] == pattern[0] and _naive(pattern[1:], name[1:])


@given(st.text("ab/*%", max_size=7), st.text("ab/", max_size=10))
def test_match_is_as_the_rfc_says(pattern: str, name: str) -> None:
    assert names.Pattern(pattern).matches(name) == _naive(pattern, name)


@given(st.text("inbox/*%", max_size=7), st.text("ab/", max_size=4))
def test_inbox_compares_without_case(pattern: str, rest: str) -> None:
    wanted = any(
        _naive(pattern, "".join(c.upper() if bits >> i & 1 else c for i, c in enumerate("inbox")) + "/" + rest)
        for bits in range(32)
    )
    if pattern[:6] == "inbox/" or pattern == "inbox":
        pattern = pattern.swapcase()
    assert names.Pattern(pattern).matches("INBOX/" + rest) == wanted


@given(st.text(max_size=30))
def test_check_name_is_idempotent(text: str) -> None:
    try:
        name = names.check_name(text)
    except Invalid:
        return
    assert names.check_name(name) == name
    assert names.Pattern(name).matches(name)
