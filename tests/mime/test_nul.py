"""Mails with NUL get a form without it, which loses nothing. RFC 3516 §4.4, §6."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obox.mime import decoded, find_part, parse
from obox.mime.nul import without_nul

DATA = b"\0a\r\n\xff" * 40
TOP = b"MIME-Version: 1.0\r\n"
BINARY = b"Content-Type: image/png\r\nContent-Transfer-Encoding: binary\r\n\r\n"
MULTI = TOP + b"Content-Type: multipart/mixed; boundary=b\r\nContent-Transfer-Encoding: binary\r\n\r\n"


def part_of(mail: bytes, *path: int) -> bytes:
    part = find_part(parse(mail), path)
    assert part is not None
    return decoded(mail, part)


@pytest.mark.parametrize("mail", [b"", b"plain", TOP + BINARY + b"no NUL"])
def test_other_mails_stay_as_they_are(mail: bytes) -> None:
    assert without_nul(mail) is mail


def test_a_mail_of_one_part() -> None:
    found = without_nul(TOP + BINARY + DATA)
    assert found is not None
    assert found.startswith(TOP + b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\n")
    assert b"\0" not in found
    assert part_of(found, 1) == DATA
    assert max(map(len, found.split(b"\r\n"))) == 76


@pytest.mark.parametrize("size", [1, 56, 57, 58, 57 * 512, 57 * 512 + 1, 200_000])
def test_sizes(size: int) -> None:
    data = b"\0" + random.Random(size).randbytes(size - 1)
    found = without_nul(TOP + BINARY + data)
    assert found is not None
    assert part_of(found, 1) == data


def test_parts_of_a_multipart() -> None:
    inner = b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: binary\r\n\r\n" + TOP + BINARY + DATA
    parts = (b"\r\ntext \xff", BINARY + DATA, BINARY + b"no NUL", inner, BINARY + DATA)
    mail = MULTI + b"before\r\n" + b"".join(b"--b\r\n%b\r\n" % part for part in parts) + b"--b--\r\nafter"
    found = without_nul(mail)
    assert found is not None
    assert [part_of(found, *path) for path in ((1,), (2,), (3,), (4, 1), (5,))] == [
        *(b"text \xff", DATA, b"no NUL", DATA, DATA),
    ]
    assert found.count(b"base64") == 3
    assert found.endswith(b"--b--\r\nafter")
    assert MULTI + b"before\r\n--b\r\n\r\ntext \xff\r\n--b\r\n" in found


@pytest.mark.parametrize(
    "head",
    [
        b"content-transfer-ENCODING :\r\n binary\r\nX: y\r\n",
        b"Content-Transfer-Encoding: binary\r\nX: y\r\nContent-Transfer-Encoding: 7bit\r\n",
        b"Content-Transfer-Encoding: (a\r\n b) binary\r\nX: y\r\n",
    ],
)
def test_spellings_of_the_field(head: bytes) -> None:
    found = without_nul(TOP + head + b"\r\n" + DATA)
    assert found is not None
    assert found.lower().count(b"content-transfer") == 1
    assert b"\r\nX: y\r\n" in found
    assert part_of(found, 1) == DATA


@pytest.mark.parametrize(
    "mail",
    [
        b"X: \0\r\n\r\nbody",
        b"\r\n\0",
        b"Content-Transfer-Encoding: binary\r\n\r\n\0",
        TOP + b"Content-Transfer-Encoding: 8bit\r\n\r\n\0",
        TOP + b"Content-Transfer-Encoding: base64\r\n\r\nAAAA\0",
        MULTI + b"before \0\r\n--b\r\n" + BINARY + DATA + b"\r\n--b--\r\n",
        MULTI + b"--b\r\n" + BINARY + DATA + b"\r\n--b--\r\nafter \0",
        TOP + b"Content-Type: message/partial\r\nContent-Transfer-Encoding: binary\r\n\r\n\0",
    ],
)
def test_nul_in_other_places(mail: bytes) -> None:
    assert without_nul(mail) is None


@given(st.lists(st.sampled_from((TOP, MULTI, BINARY, b"--b\r\n", b"\0", b"\r\n", b"--b--", b" ", b":"))).map(b"".join))
def test_any_bytes(mail: bytes) -> None:
    found = without_nul(mail)
    assert found is None or b"\0" not in found
