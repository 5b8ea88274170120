"""The layout of the bucket."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obox.escaping import ESCAPED_BYTES_MAX, escape, unescape
from obox.objectstore import keys
from obox.types import Guid, StorageId, Uid

GUID = Guid("0123456789abcdef0123456789abcdef")
SID = StorageId("anna@example.org")

names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60)
numbers = st.integers(0, 2**64 - 1)


def test_literal_keys() -> None:
    hh = keys.hh(SID)
    assert hh == "a3"
    assert keys.mail_key(SID, GUID, Uid(42)) == f"{hh}/anna@example.org/m/{GUID}/0000002a"
    assert keys.mail_prefix(SID, GUID) == f"{hh}/anna@example.org/m/{GUID}/"
    assert keys.mails_prefix(SID) == f"{hh}/anna@example.org/m/"
    assert keys.bundle_key(SID, "root", 3, "b1", "diff") == f"{hh}/anna@example.org/x/root/0000000000000003.b1.diff"
    assert keys.bundles_prefix(SID) == f"{hh}/anna@example.org/x/"
    assert keys.bundles_prefix(SID, GUID) == f"{hh}/anna@example.org/x/{GUID}/"
    assert keys.first_root_key(SID) == f"{hh}/anna@example.org/x/root/0000000000000000.first.base"
    assert keys.journal_key("b1", "7", 255) == "_journal/b1/7/00000000000000ff"
    assert [keys.journal_prefix(), keys.journal_prefix("b1"), keys.journal_prefix("b1", "7")] == [
        "_journal/",
        "_journal/b1/",
        "_journal/b1/7/",
    ]
    assert keys.FORMAT_KEY == "_format"


@given(names)
def test_escape_is_one_safe_element_and_comes_back(name: str) -> None:
    try:
        escaped = escape(name)
    except ValueError:
        assert len(name.encode()) > ESCAPED_BYTES_MAX // 3
        return
    assert set(escaped) <= set(string.ascii_lowercase + string.digits + "@._+-%")
    assert escaped[0] not in "._"
    assert len(escaped) <= ESCAPED_BYTES_MAX
    assert unescape(escaped) == name


@pytest.mark.parametrize(
    ("name", "escaped"),
    [("bob", "bob"), ("a/b", "a%2fb"), ("..", "%2e."), ("_x", "%5fx"), ("ä", "%c3%a4"), ("A", "%41"), ("50%", "50%25")],
)
def test_escape_literals(name: str, escaped: str) -> None:
    assert escape(name) == escaped


@pytest.mark.parametrize("text", ["", "A", "a/b", "%", "%4", "%4G", ".a", "_a", "%61", "%ff", "ä", "x" * 601, "a\n"])
def test_unescape_refuses_what_escape_never_makes(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        unescape(text)


@given(names.filter(lambda n: len(n.encode()) < 150), st.uuids(), st.integers(1, 2**32 - 1))
def test_mail_keys_come_back(name: str, uuid: object, uid: int) -> None:
    sid, guid = StorageId(escape(name)), Guid(str(uuid).replace("-", ""))
    key = keys.mail_key(sid, guid, Uid(uid))
    assert keys.parse_mail_key(key) == (sid, guid, uid)
    assert key.startswith(keys.mail_prefix(sid, guid))


@given(
    names.filter(lambda n: len(n.encode()) < 150),
    numbers,
    names.filter(lambda n: len(n.encode()) < 150),
    st.sampled_from(keys.FORMS),
)
def test_bundle_keys_come_back(name: str, version: int, writer: str, form: keys.Form) -> None:
    sid, writer = StorageId(escape(name)), escape(writer)
    for box in (GUID, keys.ROOT):
        key = keys.bundle_key(sid, box, version, writer, form)
        assert keys.parse_bundle_key(key) == (sid, box, version, writer, form)
        assert len(key) <= 1024


@given(names.filter(lambda n: len(n.encode()) < 150), names.filter(lambda n: len(n.encode()) < 150), numbers)
def test_journal_keys_come_back(backend: str, boot: str, seq: int) -> None:
    backend, boot = escape(backend), escape(boot)
    assert keys.parse_journal_key(keys.journal_key(backend, boot, seq)) == (backend, boot, seq)


@given(numbers, numbers)
def test_key_order_is_number_order(a: int, b: int) -> None:
    assert (keys.journal_key("b", "1", a) < keys.journal_key("b", "1", b)) == (a < b)


GOOD = [keys.mail_key(SID, GUID, Uid(1)), keys.first_root_key(SID), keys.journal_key("b", "1", 1)]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "_format",
        GOOD[0] + "0",
        GOOD[0][:-1],
        GOOD[0].upper(),
        "zz" + GOOD[0][2:],
        ("00" if GOOD[0][:2] != "00" else "01") + GOOD[0][2:],
        GOOD[0].replace("anna", "anna/b"),
        GOOD[0][:-1] + "0",  # UID 0
        GOOD[1].replace("base", "bose"),
        GOOD[1].replace("first", "_f"),
        GOOD[2] + "\n",
        GOOD[2].replace("/b/", "/B/"),
    ],
)
def test_foreign_keys_are_value_errors(key: str) -> None:
    for parse in (keys.parse_mail_key, keys.parse_bundle_key, keys.parse_journal_key):
        with pytest.raises(ValueError, match="not "):
            parse(key)


def test_a_key_of_one_sort_is_foreign_to_the_others() -> None:
    parsers = [keys.parse_mail_key, keys.parse_bundle_key, keys.parse_journal_key]
    for i, key in enumerate(GOOD):
        for j, parse in enumerate(parsers):
            if i == j:
                parse(key)
            else:
                with pytest.raises(ValueError, match="not "):
                    parse(key)


@pytest.mark.parametrize("sid", ["Anna", "a/b", "", "..", "_journal", "a b"])
def test_elements_that_were_not_escaped_are_refused(sid: str) -> None:
    with pytest.raises(ValueError, match="not an escaped"):
        keys.mail_key(StorageId(sid), GUID, Uid(1))
    with pytest.raises(ValueError, match="not an escaped"):
        keys.journal_key(sid, "1", 1)


@pytest.mark.parametrize("uid", [0, -1, 2**32])
def test_uids_out_of_range_are_refused(uid: int) -> None:
    with pytest.raises(ValueError, match="UID"):
        keys.mail_key(SID, GUID, Uid(uid))
