"""A second SORT or THREAD reads the fields of new mails alone."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import Client, Running, serving_real

from obox import errors
from obox.imap import known
from obox.store.user.mailbox import Mailbox


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving_real(tmp_path) as running:
        yield running


def mail(number: int, subject: str, *references: int) -> bytes:
    others = " ".join(f"<{other}@x>" for other in references)
    return (
        f"Message-ID: <{number}@x>\r\nSubject: {subject}\r\nReferences: {others}\r\n"
        f"Date: Mon, 02 Nov 2026 10:00:{number:02} +0000\r\n\r\n"
    ).encode()


async def filled(running: Running) -> Client:
    client = await running.client(login="anna")
    for number, subject in enumerate(["c", "a", "Re: b", "b"], 1):
        await client.append("INBOX", mail(number, subject, *([1] if number == 2 else [])))
    await client.ok("SELECT INBOX")
    return client


def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the UIDs whose fields are read."""
    found: list[int] = []
    plain = Mailbox.fields

    async def noting(self: Mailbox, uids: Sequence[int], **more: Any) -> object:
        found.extend(uids)
        return await plain(self, uids, **more)

    monkeypatch.setattr(Mailbox, "fields", noting)
    return found


COMMANDS = [
    ("SORT (SUBJECT) UTF-8 ALL", b"* SORT 2 3 4 1", b"* SORT 5 2 3 4 1"),
    ("SORT (REVERSE DATE) UTF-8 ALL", b"* SORT 4 3 2 1", b"* SORT 5 4 3 2 1"),
    ("SORT (FROM SUBJECT) UTF-8 ALL", b"* SORT 2 3 4 1", b"* SORT 5 2 3 4 1"),
    ("THREAD REFERENCES UTF-8 ALL", b"* THREAD (1 2)(4 3)", b"* THREAD (1 2)(4 3)(5)"),
    ("THREAD REFS UTF-8 ALL", b"* THREAD (1 2)(3)(4)", b"* THREAD (1 2)(3)(4)(5)"),
    ("THREAD ORDEREDSUBJECT UTF-8 ALL", b"* THREAD (1)(2)(3 4)", b"* THREAD (1)(2)(3 4)(5)"),
]


@pytest.mark.parametrize(("command", "before", "after"), COMMANDS)
async def test_new_mails_alone_are_read(
    real: Running, command: str, before: bytes, after: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, read = await filled(real), reads(monkeypatch)
    assert (await client.ok(command))[0] == before
    assert sorted(set(read)) == [1, 2, 3, 4]
    read.clear()
    assert (await client.ok(command))[0] == before
    assert read == []
    await client.append("INBOX", mail(5, "0"))
    await client.ok("NOOP")
    assert (await client.ok(command))[0] == after
    assert read == [5]
    await client.ok("UID STORE 1 +FLAGS.SILENT (\\Deleted)")
    await client.ok("EXPUNGE")
    read.clear()
    await client.ok(command)
    assert read == []


async def test_a_mail_that_cannot_be_read_now_is_read_later(real: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await filled(real)
    plain = Mailbox.fields

    async def failing(self: Mailbox, uids: Sequence[int], **more: Any) -> object:
        found = await plain(self, uids, **more)
        return [errors.Corrupt("damaged") if uid == 1 else one for uid, one in zip(uids, found, strict=True)]

    with monkeypatch.context() as patch:
        patch.setattr(Mailbox, "fields", failing)
        # Its subject counts as empty, and its date is that of its arrival.
        assert (await client.ok("SORT (SUBJECT) UTF-8 ALL"))[0] == b"* SORT 1 2 3 4"
        assert (await client.ok("THREAD REFERENCES UTF-8 ALL"))[0] == b"* THREAD (2)(4 3)(1)"
    assert (await client.ok("SORT (SUBJECT) UTF-8 ALL"))[0] == b"* SORT 2 3 4 1"
    assert (await client.ok("THREAD REFERENCES UTF-8 ALL"))[0] == b"* THREAD (1 2)(4 3)"


async def test_a_long_header_that_cannot_be_read_now_is_read_later(
    real: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the mail has a header that is too long for the ready fields."""
    client = await filled(real)
    await client.append("INBOX", b"X: y\r\n" * 3_000 + mail(5, "a", 1))
    await client.ok("NOOP")
    before = await client.ok("THREAD REFERENCES UTF-8 1:4")
    plain = Mailbox.mail

    async def failing(self: Mailbox, uid: int, **more: Any) -> bytes:
        raise errors.NotFound("lost")

    with monkeypatch.context() as patch:
        patch.setattr(Mailbox, "mail", failing)
        assert (await client.ok("THREAD REFERENCES UTF-8 ALL"))[0] == before[0] + b"(5)"
    assert plain is Mailbox.mail
    assert (await client.ok("THREAD REFERENCES UTF-8 ALL"))[0] == b"* THREAD (1 (2)(5))(4 3)"


async def test_what_is_known_of_expunged_mails_is_forgotten(real: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "CHUNK", 1)
    client = await filled(real)
    await client.ok("SORT (SUBJECT) UTF-8 ALL")
    await client.ok("STORE 2:4 +FLAGS.SILENT (\\Deleted)")
    await client.ok("EXPUNGE")
    read = reads(monkeypatch)
    assert (await client.ok("SORT (SUBJECT) UTF-8 ALL"))[0] == b"* SORT 1"
    assert read == [1]


async def test_mailboxes_and_users_are_apart(real: Running) -> None:
    client = await filled(real)
    other = await real.client(login="ben")
    await other.append("INBOX", mail(1, "z"))
    await other.append("INBOX", mail(2, "y"))
    await other.ok("SELECT INBOX")
    assert (await client.ok("SORT (SUBJECT) UTF-8 ALL"))[0] == b"* SORT 2 3 4 1"
    assert (await other.ok("SORT (SUBJECT) UTF-8 ALL"))[0] == b"* SORT 2 1"


async def test_the_texts_are_bounded(real: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await filled(real)
    monkeypatch.setattr(known, "CHARS_MAX", 2)
    answer = (await client.cmd("SORT (SUBJECT) UTF-8 ALL"))[-1]
    assert answer == b"NO [LIMIT] The texts to be compared are too long"
    monkeypatch.setattr(known, "CHARS_MAX", 100)
    assert (await client.ok("SORT (SUBJECT) UTF-8 ALL"))[0] == b"* SORT 2 3 4 1"
