"""A value may come from a mail of a stranger. The tool prints no control characters to
a terminal, and a row of `tab` is a single line."""

from __future__ import annotations

import json

import pytest

from admintool.output import FORMATS, Output, print_message

NASTY = "a\x1b[2Jb\x9b31mc\x01d\te\r\nf\\t\x7f\u202eg\u2028h\ud800\x85\u200bz"
"""ESC, the CSI of C1, SOH, tab, CRLF, a backslash, DEL, right-to-left, a line
separator, half a surrogate, NEL."""


@pytest.mark.parametrize("format_", FORMATS)
def test_nothing_that_does_not_print_is_printed(format_: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(format_)
    output.begin(["mailbox", "more"])
    output.row({"mailbox": NASTY, "more": [NASTY, {"x": NASTY}]})
    output.end()
    text = capsys.readouterr().out
    rest = text.replace("\n", "").replace("\f", "" if format_ == "pager" else "\f")
    rest = rest.replace("\t", "") if format_ in ("tab", "pager") else rest
    assert rest.isprintable()
    if format_ == "json":
        assert json.loads(text) == [{"mailbox": NASTY, "more": [NASTY, {"x": NASTY}]}]
    elif format_ in ("tab", "table"):
        assert len(text.splitlines()) == 2
    elif format_ == "flow":
        assert len(text.splitlines()) == 1


def test_tab_gives_the_value_back(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output("tab")
    output.row({"mailbox": NASTY, "next": "ü"})
    header, row = capsys.readouterr().out.removesuffix("\n").split("\n")
    assert header == "mailbox\tnext"
    first, second = row.split("\t")
    assert first.encode("ascii").decode("unicode_escape") == NASTY
    assert second == "ü"


def test_messages_too(capsys: pytest.CaptureFixture[str]) -> None:
    print_message("no mailbox " + NASTY)
    assert capsys.readouterr().err.removesuffix("\n").isprintable()
