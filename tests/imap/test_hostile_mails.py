"""IMAP over mails that an attacker made. Answers come in time, memory is given back,
and no mailbox breaks."""

from __future__ import annotations

import datetime as dt
import re
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from harness import Client, Running, serving_real
from turns import turns

from obox.imap import known
from obox.imap.commands import fetch
from obox.mime import HEADER_BYTES_MAX
from obox.store import NewMail
from obox.store.api import Fields
from obox.store.user import search
from obox.store.user.mailbox import Mailbox
from obox.types import StorageId

THREADS = ("THREAD REFERENCES", "THREAD ORDEREDSUBJECT")
MARKS = ("\u0301" * 16_384 + "\u0316" * 16_384).encode()
DATES = {
    b"Fri, 31 Dec 9999 23:59:60 +0000": dt.date(9999, 12, 31),
    b"Mon, 1 Jan 0001 00:00:00 +2359": dt.date(1, 1, 1),
    b"Sat, 31 Dec 2016 23:59:60 -0500": dt.date(2016, 12, 31),
    b"31 Dec 12345 00:00:00 +0000": None,
}


async def fill(running: Running, *sources: bytes) -> Client:
    user = await running.store.open_user("anna", StorageId("anna"))
    for source in sources:
        await user.append("INBOX", [NewMail(source)])
    await user.release()
    client = await running.client(login="anna")
    await client.ok("SELECT INBOX")
    return client


def numbers(lines: list[bytes]) -> list[int]:
    return list(map(int, lines[-2].removeprefix(b"* SEARCH").split()))


async def test_one_date_breaks_no_search(tmp_path: Path) -> None:
    async with serving_real(tmp_path) as running:
        client = await fill(running, *(b"Date: " + date + b"\r\nSubject: s\r\n\r\nbody\r\n" for date in DATES))
        for asked in (dt.date(1, 1, 1), dt.date(2016, 12, 31), dt.date(2017, 1, 1), dt.date(9999, 12, 31)):
            spelled = f"{asked.day}-{asked:%b}-{asked.year:04}"
            for _ in range(2):
                assert numbers(await client.ok('SEARCH HEADER ":sent" x')) == []
                on = numbers(await client.ok(f"SEARCH SENTON {spelled}"))
                before = numbers(await client.ok(f"SEARCH SENTBEFORE {spelled}"))
                since = numbers(await client.ok(f"SEARCH SENTSINCE {spelled}"))
                days = list(enumerate(DATES.values(), 1))
                assert on == [n for n, day in days if day and day == asked]
                assert before == [n for n, day in days if day and day < asked]
                assert since == [n for n, day in days if day and day >= asked]


@pytest.mark.parametrize(
    "date",
    [
        "31-Dec-9999 23:59:60 +0000",
        "31-Dec-9999 23:59:59 -2359",
        "01-Jan-0001 00:00:00 +1400",
        "01-Jan-0001 00:00:00 -1200",
        "31-Dec-2016 23:59:60 +0000",
    ],
)
async def test_internaldates_at_the_ends_of_time(tmp_path: Path, date: str) -> None:
    mail = b"Subject: s\r\n\r\nbody\r\n"
    day, month, year = date[:11].split("-")
    async with serving_real(tmp_path) as running:
        client = await running.client(login="anna")
        await client.ok(f'APPEND INBOX "{date}" {{{len(mail)}+}}\r\n'.encode() + mail)
        await client.ok("SELECT INBOX")
        lines = await client.ok("FETCH 1 INTERNALDATE")
        shown = f"{int(day):2}{date[2:]}".replace(":60", ":59")
        assert f'"{shown}"'.encode() in lines[0]
        assert numbers(await client.ok(f"SEARCH ON {int(day)}-{month}-{year}")) == [1]
        assert numbers(await client.ok(f"SEARCH SINCE {int(day)}-{month}-{year}")) == [1]
        assert numbers(await client.ok(f"SEARCH BEFORE {int(day)}-{month}-{year}")) == []
        await client.ok("SEARCH OR OLDER 1 YOUNGER 1")


async def test_marks_in_subject_and_body(tmp_path: Path) -> None:
    """Before the limit, 256 KiB took 28 s under the interpreter's lock, and 4 MB of
    U+FDFA took 580 MB of memory."""
    async with serving_real(tmp_path) as running:
        client = await fill(
            running,
            b"Subject: " + MARKS + b"\r\n\r\nzq\r\n",
            b"Subject: " + MARKS[:7_000] + b"\r\n\r\nzq\r\n",
            b"Subject: s\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + MARKS * 4 + b"\r\n",
            b"Subject: s\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + "\ufdfa".encode() * 300_000,
            b"Subject: =?utf-8?q?" + b"=EF=B7=BA" * 10_000 + b"?=\r\n\r\nzq\r\n",
        )
        with turns(mine=False) as found:
            for key in ("TEXT", "SUBJECT", "BODY"):
                assert numbers(await client.ok(f"SEARCH {key} nothing")) == []
        found.check()
        tracemalloc.start()
        try:
            assert numbers(await client.ok("SEARCH TEXT zq")) == [1, 2, 5]
            now, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert now < 10 << 20
        assert peak < 32 << 20


async def test_sections_of_a_large_mail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mail of 30 MB is parsed in a thread, and only once for all sections of a
    FETCH."""
    aside: list[bool] = []
    plain = fetch.parse

    def parse(*given: Any) -> Any:
        aside.append(threading.current_thread() is not threading.main_thread())
        return plain(*given)

    monkeypatch.setattr(fetch, "parse", parse)
    large = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"
    large += b"Content-Type: message/rfc822\r\n\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n"
    large += b"--c\r\nX-Inner: 1\r\n\r\n" + b"some text\r\n" * 2_700_000 + b"--c\r\n\r\nlast\r\n--c--\r\n--b--\r\n"
    parts = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\n" * 9_000
    async with serving_real(tmp_path) as running:
        client = await fill(running, large, parts)
        with turns(mine=False) as found:
            lines = await client.ok("FETCH 1 (BODY.PEEK[1.1.MIME] BODY.PEEK[1.2] BODY.PEEK[1.HEADER])")
            assert lines[0].endswith(
                b"BODY[1.1.MIME] {14}\r\nX-Inner: 1\r\n\r\n BODY[1.2] {4}\r\nlast BODY[1.HEADER] {45}\r\n"
                b"Content-Type: multipart/mixed; boundary=c\r\n\r\n)"
            )
            assert aside == [True]
            lines = await client.ok("FETCH 2 (BODY.PEEK[8000.MIME] BODY.PEEK[7000.MIME])")
            assert lines[0].endswith(b"BODY[8000.MIME] {2}\r\n\r\n BODY[7000.MIME] {2}\r\n\r\n)")
            assert len(aside) <= 3, "on the loop within the small budget, and then in a thread"
            assert aside[-1]
        found.check()


@pytest.mark.parametrize("item", ["HEADER.FIELDS", "HEADER.FIELDS.NOT"])
async def test_long_names_of_header_fields(tmp_path: Path, item: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []
    plain = re.compile
    header = b"X: " + b"y" * 70 + b"\r\n"
    async with serving_real(tmp_path) as running:
        client = await fill(running, b"Subject: s\r\n" + header * 50 + b"\r\nx\r\n", header * 3_000 + b"\r\nx\r\n")
        monkeypatch.setattr(re, "compile", lambda text, *flags: compiled.append(len(text)) or plain(text, *flags))
        with turns(mine=False) as found:
            refused = await client.cmd(f"FETCH 1:2 BODY.PEEK[{item} (Subject {'x' * 60_000})]")
            assert refused[-1].startswith(b"NO [LIMIT]")
            lines = await client.ok(f"FETCH 1:2 BODY.PEEK[{item} (Subject {'x' * 255})]")
            for n in range(30):
                await client.ok(f"FETCH 1:2 BODY.PEEK[{item} (x{n} y{n} z{n})]")
        assert (b"Subject: s" in lines[0]) is (item == "HEADER.FIELDS")
        assert not compiled
        found.check()


async def test_headers_too_long_to_be_kept(tmp_path: Path) -> None:
    """The server holds one such header in memory at a time, and searches it in a
    thread."""
    block = b"Subject: s%d\r\n" + b"a:\r\n" * 60_000 + b"X: z\r\n" + b"\r\n"
    async with serving_real(tmp_path) as running:
        client = await fill(running, *(block % n + b"x\r\n" for n in range(8)), b"Subject: short\r\n\r\nx\r\n")
        with turns(mine=False) as found:
            lines = await client.ok("FETCH 1:* (UID FLAGS BODY.PEEK[HEADER.FIELDS (Subject)] BODY.PEEK[HEADER]<0.7>)")
            assert len(lines) == 10
            for n, line in enumerate(lines[:8]):
                assert b"\r\nSubject: s%d\r\n\r\n" % n in line
                assert line.endswith(b"{7}\r\nSubject)")
            assert b"\r\nSubject: short\r\n\r\n" in lines[8]
            lines = await client.ok("FETCH 3 (BODY[HEADER.FIELDS.NOT (a)] BODY[TEXT])")
            assert b"\\Seen" in lines[0]
            lines = await client.ok("FETCH 1:9 BODY[HEADER.FIELDS (Subject)]")
            assert sum(b"\\Seen" in line for line in lines[:-1]) == 8
        found.check()


async def test_address_bomb(tmp_path: Path) -> None:
    fields = b"".join(name + b": " + b"a," * 9_500 + b"\r\n" for name in (b"From", b"To", b"Cc"))
    async with serving_real(tmp_path) as running:
        client = await running.client(login="anna")
        mail = b"Subject: bomb\r\n" + fields + b"\r\nx\r\n"
        nested = (fields + b"Content-Type: message/rfc822\r\n\r\n") * 60
        with turns(mine=False) as found:
            await client.append("INBOX", mail)
            await client.append("INBOX", nested)
            await client.ok("SELECT INBOX")
            lines = await client.ok("FETCH 1:2 (ENVELOPE BODYSTRUCTURE)")
            assert b'ENVELOPE (NIL "bomb" NIL NIL NIL NIL NIL NIL NIL NIL)' in lines[0]
            assert numbers(await client.ok("SEARCH OR FROM zz TO zz")) == []
        found.check()


async def test_searches_of_many_keys_let_others_in(tmp_path: Path) -> None:
    mails = [b"Subject: s%d\r\nFrom: a@b\r\n" % n + b"X: y\r\n" * 500 + b"\r\nbody\r\n" for n in range(100)]
    async with serving_real(tmp_path) as running:
        client = await fill(running, *mails)
        with turns(mine=False) as found:
            for key in ("TEXT a{}", "HEADER x-{} y", "SUBJECT t{}", "SENTON 1-Jan-{}"):
                keys = " ".join("NOT " + key.format(1000 + n) for n in range(900))
                assert len(numbers(await client.ok(f"SEARCH {keys}"))) == 100
        found.check()


async def test_a_split_boundary(tmp_path: Path) -> None:
    mail = (
        b'Content-Type: multipart/mixed; boundary*0="one"; boundary*1="two"\r\n\r\n--onetwo\r\n\r\nfirst\r\n'
        b"--onetwo\r\nContent-Type: message/global\r\n\r\nSubject: inner\r\n\r\nsecond\r\n--onetwo--\r\n"
    )
    async with serving_real(tmp_path) as running:
        client = await fill(running, mail)
        lines = await client.ok("FETCH 1 (BODY BODYSTRUCTURE BODY.PEEK[1] BODY.PEEK[2.HEADER])")
        assert (
            b'BODY (("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 5 1)' in lines[0]
            or b'"7bit" 5 0)' in lines[0]
        )
        assert b'("message" "global" NIL NIL NIL "7bit" 24)' in lines[0], "IMAP4rev1 knows no envelope of it"
        assert b"BODY[1] {5}\r\nfirst" in lines[0]
        assert b"BODY[2.HEADER] {18}\r\nSubject: inner\r\n\r\n" in lines[0]
        assert numbers(await client.ok("SEARCH BODY second")) == [1]


@pytest.mark.parametrize("size", [10, 600_000])
async def test_a_name_in_sections_is_found(tmp_path: Path, size: int) -> None:
    """The name is also found where the whole mail is ASCII. RFC 2231 §3, §4."""
    part = b"Content-Type: application/x; name*0=inv; name*1=oice\r\nContent-Disposition: attachment; %b\r\n\r\n"
    mail = (
        b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\n" + part % b"filename*=utf-8''%e2%82%ac" + b"x\r\n" * (size // 3) + b"--b--\r\n"
    )
    async with serving_real(tmp_path) as running:
        client = await fill(running, mail)
        assert numbers(await client.ok("SEARCH BODY invoice")) == [1]
        assert numbers(await client.ok("SEARCH CHARSET UTF-8 TEXT {3+}\r\n\u20ac".encode())) == [1]
        assert numbers(await client.ok("SEARCH BODY invoices")) == []


async def test_ready_fields_of_many_hostile_mails_come_by_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty mails have a BODYSTRUCTURE of 900 kB each. FETCH and SEARCH hold a few of
    them at a time, instead of a chunk of 250 or 500."""
    held: list[int] = []
    plain = Mailbox.fields

    async def fields(box: Mailbox, *given: Any, **more: Any) -> Any:
        found = await plain(box, *given, **more)
        held.append(sum(len(one.packed) for one in found if isinstance(one, Fields)))
        return found

    monkeypatch.setattr(Mailbox, "fields", fields)
    many = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\n" * 6_000
    async with serving_real(tmp_path) as running:
        client = await fill(running, *[b"Subject: %d\r\n" % at + many for at in range(30)])
        client.strict = False
        for command in (
            b"FETCH 1:* BODYSTRUCTURE",
            b"FETCH 1:* (ENVELOPE BODY[HEADER.FIELDS (Subject)])",
            b"SEARCH SUBJECT 7",
        ):
            held.clear()
            lines = await client.ok(command)
            if command.startswith(b"FETCH"):
                assert [line for line in lines if b" FETCH (" in line][29].startswith(b"* 30 FETCH (")
                assert len(lines) == 31
            else:
                assert lines[0] == b"* SEARCH 8 18 28"
            assert sum(held) > 20 << 20
            assert max(held) <= 6 << 20
        assert b"\\Seen" in (await client.ok("FETCH 30 FLAGS"))[0]


async def test_sort_and_thread_of_headers_that_take_long(tmp_path: Path) -> None:
    """The mails have a name of 60,000 quoted pairs, and many mails whose dates are
    comments."""
    names = b"".join(b'%b: "%b" <a@x.org>\r\n' % (field, b'\\"' * 30_000) for field in (b"From", b"To"))
    dates = [b"Date: " + b"()" * 3_500 + b"\r\nSubject: " + b"re:" * 300 + b"\r\n\r\n%d" % at for at in range(100)]
    async with serving_real(tmp_path) as running:
        client = await fill(running, *([names + b"\r\nx"] * 3), *dates)
        with turns(mine=False) as found:
            for command in ("SORT (DATE)", "SORT (DISPLAYFROM TO SUBJECT)", *THREADS):
                await client.ok(f"{command} UTF-8 ALL")
            found.check()


async def test_the_end_of_a_long_header_is_not_looked_for_on_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SEARCH looks in a thread, and THREAD reads no more than has fields."""
    sizes: list[int] = []
    monkeypatch.setattr(known, "header_end", lambda data: sizes.append(len(data)) or len(data))
    threads: set[int] = set()
    plain = search.header_end
    monkeypatch.setattr(search, "header_end", lambda data: threads.add(threading.get_ident()) or plain(data))
    async with serving_real(tmp_path) as running:
        client = await fill(running, b"X: y\r\n" * 100_000 + b"\r\nbody")
        await client.ok("THREAD REFERENCES UTF-8 ALL")
        assert sizes == [HEADER_BYTES_MAX + 1]
        assert numbers(await client.ok("SEARCH HEADER X y TEXT body")) == [1]
    assert threads
    assert threading.get_ident() not in threads
