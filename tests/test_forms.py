"""The table of forms says what the code writes, and the gate lets nothing newer out."""

from __future__ import annotations

import offers
import pytest

from obox import forms
from obox.auth import link
from obox.forms import FORMS, OF_PROXIES, Form, Gate
from obox.objectstore import codec


def test_the_table_says_what_the_code_reads_and_writes() -> None:
    assert FORMS["envelope"].reads == codec.MAJOR
    assert FORMS["wire"].reads == link.VERSION[0]
    for name, form in FORMS.items():
        assert 0 <= form.first <= form.reads, name
    assert FORMS.keys() >= OF_PROXIES


def test_the_gate_opens_for_what_is_allowed_and_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMS, "test", Form(first=1, reads=3))
    monkeypatch.setitem(FORMS, "fresh", Form(first=0, reads=1))
    gate = Gate()
    assert (gate.writes("test"), gate.writes("fresh")) == (1, 0)
    gate.rise({"test": 2})
    assert (gate.writes("test"), gate.writes("fresh")) == (2, 0)
    gate.rise({"fresh": 1})
    gate.rise({"test": 1})
    assert (gate.writes("test"), gate.writes("fresh")) == (2, 1), "versions only rise"
    gate.rise({"test": 9, "unknown": 4})
    assert gate.writes("test") == 3, "what this code cannot write it does not write"
    with pytest.raises(KeyError):
        gate.writes("unknown")


def test_who_says_nothing_of_a_form_reads_its_first_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMS, "test", Form(first=1, reads=2))
    assert forms.beyond({"test": 1}, {}) == {}
    assert forms.beyond({"test": 2}, {}) == {"test": 2}
    assert forms.beyond({"test": 2}, {"test": 2}) == {}
    assert forms.beyond({"unknown": 1}, {"test": 2}) == {"unknown": 1}
    assert forms.above({"test": 1, "envelope": 2}, {}) == {}, "the first version needs nobody's leave"
    assert forms.above({"test": 2}, {"test": 2}) == {}
    assert forms.highest({"b": 1, "a": 3}, {"b": 2}) == {"a": 3, "b": 2}


def test_a_version_that_is_not_ready_is_read_and_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMS, "test", Form(first=1, reads=3, offers=2))
    assert forms.reads()["test"] == 3
    assert forms.offered()["test"] == 2
    assert forms.offered({"test": 1, "other": 7}) == {"test": 1, "other": 7}
    assert forms.offered()["envelope"] == FORMS["envelope"].reads
    assert offers.BY_THE_PRODUCT["mails"] == 1, "docs/packs.md, What is missing"
