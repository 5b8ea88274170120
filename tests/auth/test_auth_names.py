"""The normal form of user names."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obox.auth import normalise
from obox.auth.names import GIVEN_BYTES_MAX
from obox.errors import Invalid


@pytest.mark.parametrize(
    ("name", "domain", "normal"),
    [
        ("Bob", "", "bob"),
        ("Bob", "Example.ORG", "bob@example.org"),
        ("bob@A.example", "b.example", "bob@a.example"),
        ("BÜCHER@x", "", "bücher@x"),
        ("bu\u0308cher@x", "", "b\u00fccher@x"),  # NFC
        # Lower case decomposes this letter. There is no composed form.
        ("\u0130stanbul", "", "i\u0307stanbul"),
        ("a b", "", "a b"),
        ("a@b@c", "", "a@b@c"),
        ("x" * 200, "", "x" * 200),
    ],
)
def test_normal_form(name: str, domain: str, normal: str) -> None:
    assert normalise(name, domain) == normal


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "empty"),
        ("a/b", "'/'"),
        ("..", "'..'"),
        ("a..b@x", "'..'"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("a\x7f", "control"),
        ("a\x85b", "control"),
        ("a\u2028b", "control"),
        ("a\ud800", "control"),
        (" bob", "space"),
        ("bob ", "space"),
        ("\u00a0bob", "space"),
        ("@x", "before"),
        ("bob@", "after"),
        ("x" * 201, "200 bytes"),
        ("ü" * 101, "200 bytes"),
    ],
)
def test_refused(name: str, text: str) -> None:
    with pytest.raises(Invalid, match=text):
        normalise(name)


def test_the_domain_counts() -> None:
    with pytest.raises(Invalid, match="200 bytes"):
        normalise("x" * 195, "example.org")
    with pytest.raises(Invalid, match="'/'"):
        normalise("bob", "a/b")


@given(st.text(max_size=60), st.sampled_from(["", "x.org", "Ü.example"]))
def test_idempotent_and_safe(name: str, domain: str) -> None:
    try:
        normal = normalise(name, domain)
    except Invalid:
        return
    assert normalise(normal, domain) == normal
    assert "/" not in normal
    assert "\0" not in normal
    assert normal.isprintable() or not normal.isascii()
    assert len(normal.encode()) <= 200


def test_names_are_measured_before_they_are_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    """NFC takes quadratic time in a run of combining characters. So NFC gets only names
    with short runs and of bounded length."""
    lengths: list[int] = []
    plain = unicodedata.normalize

    def normalize(form: str, text: str) -> str:
        lengths.append(len(text))
        return str(plain(form, text))

    monkeypatch.setattr(unicodedata, "normalize", normalize)
    for name in ("e" + "\u0301" * 31, "\u0301" * 16_384 + "\u0316" * 16_384, "\u00fc" * 301, "x" * 100_000):
        for long in (name, name + "@example.org", "bob@" + name):
            with pytest.raises(Invalid, match="user name"):
                normalise(long)
    assert max(lengths, default=0) <= GIVEN_BYTES_MAX
    # 540 bytes become 180 bytes.
    assert normalise("\u1112\u1161\u11ab" * 60) == "\ud55c" * 60
