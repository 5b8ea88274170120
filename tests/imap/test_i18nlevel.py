"""I18NLEVEL=1 over a socket: SEARCH, SORT and THREAD compare under i;unicode-casemap.
RFC 5255 §4, RFC 5051."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import Client, serving


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with serving(tmp_path) as running:
        yield await running.client(login="anna")


async def search(client: Client, key: bytes, text: str) -> list[int]:
    data = text.encode()
    lines = await client.ok(b"SEARCH CHARSET UTF-8 %b {%d+}\r\n%b" % (key, len(data), data))
    return [int(number) for number in lines[0].split()[2:]]


SUBJECTS = (
    b"=?utf-8?q?=D0=C0=D0=BD=D0=B4=D1=80=D0=B5=D0=B9?=",
    b"=?utf-8?q?=D1=81=D0=95=D0=A0=D0=93=D0=95=D0=99?=",
    b"=?utf-8?q?=D0=92=D0=B0=D1=81=D0=B8=D0=BB=D0=B8=FF=B9?=",
    b"=?koi8-r?q?=E1=CC=C5=CB=D3=C5=CA?=",
)
"""The example of RFC 5255 §4.6. The first and the third are not valid UTF-8."""


async def test_what_cannot_be_converted_is_sorted_behind(client: Client) -> None:
    for subject in SUBJECTS:
        await client.append("INBOX", b"Subject: Re: %b\r\nFrom: %b <a@b>\r\n\r\n" % (subject, subject))
    await client.ok("SELECT INBOX")
    assert (await client.ok("SORT (SUBJECT) UTF-8 ALL"))[0] == b"* SORT 4 2 3 1"
    assert (await client.ok("SORT (REVERSE SUBJECT) UTF-8 ALL"))[0] == b"* SORT 1 3 2 4"
    assert (await client.ok("SORT (DISPLAYFROM) UTF-8 ALL"))[0] == b"* SORT 4 2 3 1"
    assert (await client.ok("THREAD ORDEREDSUBJECT UTF-8 ALL"))[0] == b"* THREAD (1)(2)(3)(4)"


async def test_addresses_in_octets_are_sorted_behind(client: Client) -> None:
    for sender in (b"\xffa", "\u00e9".encode(), b"z", b"\xfe"):
        await client.append("INBOX", b"From: %b@x.org\r\n\r\n" % sender)
    await client.ok("SELECT INBOX")
    assert (await client.ok("SORT (FROM) UTF-8 ALL"))[0] == b"* SORT 2 3 4 1"


async def test_search_compares_capitals(client: Client) -> None:
    await client.append("INBOX", "Subject: \u0131\u00e9\u03c3\ufb01\r\n\r\n\u0130stanbul \u1e9e".encode())
    await client.ok("SELECT INBOX")
    for text in ("I\u00c9\u03a3", "ie\u0301\u03c2", "FI"):
        assert await search(client, b"SUBJECT", text) == [1], text
        assert await search(client, b"TEXT", text) == [1], text
    for text in ("i\u0307STANBUL", "\u00df"):
        assert await search(client, b"BODY", text) == [1], text
    assert await search(client, b"SUBJECT", "e\u03c3") == []


@pytest.mark.parametrize("charset", [b"x-unknown", b"us-ascii", b"iso-2022-jp"])
async def test_octets_are_searched_where_a_charset_fails(client: Client, charset: bytes) -> None:
    """The text in these octets is found, although their charset does not say so."""
    await client.append(
        "INBOX",
        b"Subject: =?%b?q?Gr=C3=BC=C3=9Fe_=FF?=\r\nContent-Type: text/plain; charset=%b\r\n\r\nK\xc3\xbcche \xff"
        % (charset, charset),
    )
    await client.ok("SELECT INBOX")
    assert await search(client, b"SUBJECT", "Gr\u00fc\u00dfe") == [1]
    assert await search(client, b"TEXT", "Gr\u00fc\u00dfe") == [1]
    assert await search(client, b"BODY", "K\u00fcche") == [1]
    assert await search(client, b"BODY", "Kuche") == []
