"""FETCH, SEARCH and COPY of mails whose object is missing or does not decode: what a
client gets with each setting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import Client, Running, serving_real

from obox.imap.settings import FetchFailure, ImapSettings
from obox.objectstore import Unreachable
from obox.objectstore.keys import mail_key
from obox.store import NewMail
from obox.store.recent import Recent
from obox.types import StorageId, Uid

MODES: list[FetchFailure] = ["disconnect-immediately", "disconnect-after", "no-after"]
BYE = b"* BYE [CORRUPTION] Mails of UID %b are damaged or lost"
NO = b"NO [CORRUPTION] Mails of UID %b are damaged or lost"
LARGE = b"Subject: large\r\n\r\n" + bytes(range(33, 123)) * 20_000
ANNA = StorageId("anna")


def mail(number: int) -> bytes:
    return b"Subject: s%d\r\nFrom: a@x.org\r\n\r\nbody %d\r\n" % (number, number)


class Office(Running):
    """A server with Anna's INBOX, and methods that move objects without the server's
    knowledge."""

    guid: Any = None

    async def fill(self, *mails: bytes) -> None:
        user = await self.store.open_user("anna", ANNA)
        for source in mails:  # each is an object of its own
            await user.append("INBOX", [NewMail(source)])
        box = await user.select("INBOX")
        self.guid = box.guid
        # The mails are not recent, because no test here is about \Recent.
        box.take_recent()
        await box.release()
        await user.release()

    def key(self, uid: int) -> str:
        return mail_key(ANNA, self.guid, Uid(uid))

    async def forget(self, *numbers: int) -> None:
        """Drop the objects of these mails from the local caches."""
        for uid in numbers:
            await self.store.env.fscache.drop(self.key(uid))
        self.store.env.recent = Recent()

    async def lose(self, *numbers: int) -> None:
        await self.store.env.bucket.delete([self.key(uid) for uid in numbers], kind="mail")
        await self.forget(*numbers)

    async def damage(self, uid: int, change: Callable[[bytearray], None]) -> None:
        data = bytearray(await self.store.env.bucket.get(self.key(uid), kind="mail"))
        change(data)
        await self.lose(uid)
        await self.store.env.bucket.put(self.key(uid), bytes(data), kind="mail")

    async def garble(self, uid: int) -> None:
        def middle(data: bytearray) -> None:
            data[len(data) // 2] ^= 1

        await self.damage(uid, middle)

    def forget_fields(self, *numbers: int) -> None:
        self.store.env.metacache.drop_fields(ANNA, self.guid, list(numbers))

    async def selected(self, address: str = "127.0.0.1") -> Client:
        client = await self.client(login="anna", address=address)
        await client.ok("SELECT INBOX")
        return client


Open = Callable[..., AbstractAsyncContextManager[Office]]


@pytest.fixture
def office(tmp_path: Path) -> Open:
    @asynccontextmanager
    async def opened(*, remotes: dict[str, ImapSettings] | None = None, **settings: Any) -> AsyncIterator[Office]:
        """Start a server. settings: those of all clients; remotes: those of the clients
        of an address."""
        usual = ImapSettings(**settings)
        find = (remotes or {}).get
        async with serving_real(tmp_path, usual, settings_of=lambda remote: find(remote, usual)) as running:
            yield Office(running.imap, running.store, running.port, running.clients)

    return opened


async def ended(client: Client) -> bool:
    """Return whether the connection has ended, with nothing left to read."""
    return await client.line() == b"" and client.reader.at_eof()


# -- the three modes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("command", ["FETCH 1:5 (FLAGS BODY.PEEK[TEXT])", "UID FETCH 1:5 (FLAGS BODY.PEEK[TEXT])"])
async def test_what_a_lost_and_a_damaged_mail_do_to_a_fetch(office: Open, mode: FetchFailure, command: str) -> None:
    async with office(fetch_failure=mode) as here:
        await here.fill(*(mail(n) for n in range(1, 6)))
        await here.lose(2)
        await here.garble(4)
        client = await here.selected()
        client.send(f"f {command}\r\nn NOOP\r\n")
        uid = b"UID %d " if command.startswith("UID") else b""

        def whole(n: int) -> bytes:
            said = uid % n if uid else b""
            return b"* %d FETCH (%bFLAGS () BODY[TEXT] {8}\r\nbody %d\r\n)" % (n, said, n)

        def known(n: int) -> bytes:
            return b"* %d FETCH (%bFLAGS ())" % (n, uid % n if uid else b"")

        everything = [whole(1), known(2), whole(3), known(4), whole(5)]
        if mode == "no-after":
            assert await client.until(b"f ") == [*everything, b"f " + NO % b"2,4"]
            assert await client.line() == b"n OK Noop completed"
            return
        sent = everything if mode == "disconnect-after" else everything[:1]
        assert await client.until(b"* BYE") == [*sent, BYE % (b"2,4" if mode == "disconnect-after" else b"2")]
        assert await ended(client), "no tagged answer, and none to what came behind"
        again = await here.selected()
        assert (await again.ok("FETCH 1 (BODY.PEEK[TEXT])"))[0].endswith(b"body 1\r\n)")


@pytest.mark.parametrize("mode", MODES)
async def test_what_the_index_has_is_served_as_ever(office: Open, mode: FetchFailure) -> None:
    async with office(fetch_failure=mode) as here:
        await here.fill(mail(1), mail(2))
        client = await here.selected()
        asked = "FETCH 1:2 (UID FLAGS RFC822.SIZE INTERNALDATE ENVELOPE BODYSTRUCTURE BODY.PEEK[HEADER.FIELDS (From)])"
        before = await client.ok(asked)
        await here.lose(1)
        await here.garble(2)
        assert await client.ok(asked) == before
        assert len(await client.ok("FETCH 1:2 (BODY.PEEK[HEADER])")) == 3


@pytest.mark.parametrize("mode", MODES)
async def test_fields_that_would_have_to_be_made_of_a_lost_mail(office: Open, mode: FetchFailure) -> None:
    """No cache has these fields, so the answer has no line for the lost mail."""
    async with office(fetch_failure=mode) as here:
        await here.fill(*(mail(n) for n in range(1, 4)))
        await here.lose(2)
        here.forget_fields(1, 2, 3)
        client = await here.selected()
        client.send("f FETCH 1:3 (RFC822.SIZE BODY.PEEK[HEADER.FIELDS (Subject)])\r\n")
        header = b"* %d FETCH (RFC822.SIZE 38 BODY[HEADER.FIELDS (Subject)] {15}\r\nSubject: s%d\r\n\r\n)"
        lines = await client.until(b"f " if mode == "no-after" else b"* BYE")
        assert lines[-1] == (b"f " + NO if mode == "no-after" else BYE) % b"2"
        others = [header % (1, 1), header % (3, 3)]
        assert lines[:-1] == ([] if mode == "disconnect-immediately" else others)
        assert mode == "no-after" or await ended(client)


async def test_a_header_too_long_to_be_cached(office: Open) -> None:
    async with office() as here:
        await here.fill(b"Subject: x\r\nX-Long: " + b"y" * 10_000 + b"\r\n\r\nbody\r\n")
        await here.lose(1)
        client = await here.selected()
        assert await client.cmd("FETCH 1 (ENVELOPE BODY.PEEK[HEADER.FIELDS (Subject)])") == [NO % b"1"]
        assert (await client.ok("FETCH 1 ENVELOPE"))[0] == b'* 1 FETCH (ENVELOPE (NIL "x"' + b" NIL" * 8 + b"))"


async def test_no_line_has_a_part_of_what_was_asked_for(office: Open) -> None:
    """Only flags may be sent without the rest, because the server may send them at any
    time. mbsync fails on a line with a date and without a body."""
    async with office() as here:
        await here.fill(mail(1))
        await here.lose(1)
        client = await here.selected()
        assert await client.cmd("UID FETCH 1 (UID INTERNALDATE RFC822.SIZE BODY.PEEK[])") == [NO % b"1"]
        flags = b"* 1 FETCH (UID 1 FLAGS ())"
        assert await client.cmd("UID FETCH 1 (INTERNALDATE FLAGS ENVELOPE BODY.PEEK[1])") == [flags, NO % b"1"]
        assert await client.cmd("UID FETCH 1 (ENVELOPE RFC822)") == [flags.replace(b"()", b"(\\Seen)"), NO % b"1"]


async def test_seen_that_was_set_is_reported(office: Open) -> None:
    """The flag is set before the mail is read, so the client must learn of it."""
    async with office() as here:
        await here.fill(mail(1))
        await here.lose(1)
        client = await here.selected()
        await client.ok("ENABLE CONDSTORE")
        line, status = await client.cmd("FETCH 1 BODY[]")
        assert line.startswith(b"* 1 FETCH (FLAGS (\\Seen) MODSEQ (")
        assert status == NO % b"1"
        assert await client.ok("NOOP") == [b"OK Noop completed"]


# -- large mails -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_a_large_mail_that_is_lost_is_no_cut_connection(office: Open, mode: FetchFailure) -> None:
    """Until the length of its literal has been sent, a large lost mail is handled as
    any other mail, whatever its place in the line."""
    async with office(fetch_failure=mode) as here:
        await here.fill(mail(1), LARGE, mail(3))
        await here.lose(2)
        client = await here.selected()
        client.send("f UID FETCH 1:3 (UID FLAGS RFC822.SIZE BODY.PEEK[])\r\n")
        lines = await client.until(b"f " if mode == "no-after" else b"* BYE")
        assert lines[-1] == (b"f " + NO if mode == "no-after" else BYE) % b"2"
        assert [line.split()[1] for line in lines[:-1]] == ([b"1"] if mode == MODES[0] else [b"1", b"2", b"3"])
        if mode != MODES[0]:
            assert lines[1] == b"* 2 FETCH (UID 2 FLAGS ())"


@pytest.mark.parametrize("size", ["small", "large"])
async def test_parts_of_a_lost_mail(office: Open, size: str) -> None:
    source = LARGE if size == "large" else mail(1)
    async with office() as here:
        await here.fill(source)
        await here.lose(1)
        client = await here.selected()
        for part in ("", "<0.10>", f"<{len(source) - 1}.10>"):
            assert await client.cmd(f"FETCH 1 BODY.PEEK[]{part}") == [NO % b"1"]
        for section in ("TEXT", "1", "1.MIME"):
            assert await client.cmd(f"FETCH 1 BODY.PEEK[{section}]<0.5>") == [NO % b"1"]


@pytest.mark.parametrize("mode", MODES)
async def test_a_large_mail_that_breaks_in_its_literal_ends_the_connection(office: Open, mode: FetchFailure) -> None:
    """The literal cannot be completed. The server must not go on as if it were
    complete, so the connection ends with each setting."""
    async with office(fetch_failure=mode, lost_as_empty=True) as here:
        await here.fill(LARGE)

        def cut(data: bytearray) -> None:
            del data[len(data) * 3 // 4 :]

        await here.damage(1, cut)
        client = await here.selected()
        client.send("f FETCH 1 (BODY.PEEK[])\r\nn NOOP\r\n")
        head = await client.reader.readline()
        assert head == b"* 1 FETCH (BODY[] {%d}\r\n" % len(LARGE)
        rest = await client.reader.read()
        assert len(rest) < len(LARGE)
        assert LARGE.startswith(rest), "no BYE, no tag inside the literal"


# -- as empty ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_a_lost_mail_as_an_empty_one(office: Open, mode: FetchFailure) -> None:
    """The answer is OK, and each section is empty or NIL. The size and the cached
    fields stay. A damaged mail is never shown as empty."""
    async with office(fetch_failure=mode, lost_as_empty=True) as here:
        await here.fill(*(mail(n) for n in range(1, 4)))
        await here.lose(2)
        client = await here.selected()
        lines = await client.ok("FETCH 1:3 (RFC822.SIZE BODY.PEEK[])")
        assert lines[1] == b'* 2 FETCH (RFC822.SIZE 38 BODY[] "")'
        assert [line.split()[1] for line in lines[:-1]] == [b"1", b"2", b"3"]
        lines = await client.ok("FETCH 2 (RFC822.TEXT BODY.PEEK[1] BODY.PEEK[2] BODY.PEEK[]<3.5> BODY.PEEK[TEXT]<0.9>)")
        assert lines[0] == (
            b'* 2 FETCH (FLAGS (\\Seen) RFC822.TEXT "" BODY[1] "" BODY[2] NIL BODY[]<3> "" BODY[TEXT]<0> "")'
        )
        lines = await client.ok("FETCH 2 (ENVELOPE BODY.PEEK[HEADER.FIELDS (Subject)] BODY.PEEK[])")
        assert b'ENVELOPE (NIL "s2" ' in lines[0], "cached when it came"
        assert lines[0].endswith(b'BODY[HEADER.FIELDS (Subject)] {15}\r\nSubject: s2\r\n\r\n BODY[] "")')
        await here.garble(3)
        client.send("f FETCH 1:3 (BODY.PEEK[])\r\n")
        lines = await client.until(b"f " if mode == "no-after" else b"* BYE")
        assert lines[-1] == (b"f " + NO if mode == "no-after" else BYE) % b"3"


async def test_an_empty_mail_has_the_fields_of_an_empty_mail(office: Open) -> None:
    """The fields are those of an empty mail if no cache has them. They are not cached,
    because the mail may come back."""
    async with office(lost_as_empty=True) as here:
        await here.fill(mail(1), b"Subject: x\r\nX-Long: " + b"y" * 10_000 + b"\r\n\r\nbody\r\n")
        data = await here.store.env.bucket.get(here.key(1), kind="mail")
        await here.lose(1, 2)
        here.forget_fields(1)
        client = await here.selected()
        line, _ = await client.ok("FETCH 1 (RFC822.SIZE ENVELOPE BODYSTRUCTURE BODY.PEEK[HEADER.FIELDS (Subject)])")
        assert line == (
            b"* 1 FETCH (RFC822.SIZE 38 ENVELOPE (NIL NIL NIL NIL NIL NIL NIL NIL NIL NIL) BODYSTRUCTURE "
            b'("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 0 0 NIL NIL NIL NIL) '
            b"BODY[HEADER.FIELDS (Subject)] {2}\r\n\r\n)"
        )
        assert (await client.ok("FETCH 2 BODY.PEEK[HEADER]"))[0] == b'* 2 FETCH (BODY[HEADER] "")'
        await here.store.env.bucket.put(here.key(1), data, kind="mail")
        assert b'"s1"' in (await client.ok("FETCH 1 ENVELOPE"))[0]


async def test_a_large_lost_mail_as_an_empty_one(office: Open) -> None:
    async with office(lost_as_empty=True) as here:
        await here.fill(LARGE, mail(2))
        await here.lose(1)
        client = await here.selected()
        lines = await client.ok("FETCH 1:2 (UID BODY.PEEK[] BODY.PEEK[]<1000000.50>)")
        assert lines[0] == b'* 1 FETCH (UID 1 BODY[] "" BODY[]<1000000> "")'
        assert lines[1].startswith(b"* 2 FETCH (UID 2 BODY[] {38}")


# -- autofix -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_a_mail_that_is_gone_is_reported_as_expunged_where_that_is_allowed(
    office: Open, mode: FetchFailure
) -> None:
    """A FETCH by sequence numbers must not send EXPUNGE, so the next command sends it.
    A UID FETCH sends it in its own answer, and a session in IDLE gets it at once."""
    async with office(autofix_storage=True, fetch_failure=mode, lost_as_empty=True) as here:
        await here.fill(*(mail(n) for n in range(1, 6)))
        await here.lose(2, 4)
        client, idler, modern = await here.selected(), await here.selected(), await here.selected()
        await modern.ok("ENABLE QRESYNC")
        idler.send("i IDLE\r\n")
        assert (await idler.line()).startswith(b"+")
        lines = await client.cmd("FETCH 1:3 (UID BODY.PEEK[TEXT])")
        assert [line.split()[1] for line in lines[:-1]] == [b"1", b"3"]
        assert lines[-1] == b"NO [EXPUNGEISSUED] Some of the mails no longer exist"
        assert (await client.ok("NOOP"))[0] == b"* 2 EXPUNGE"
        assert (await idler.until(b"* 2 EXPUNGE"))[-1] == b"* 2 EXPUNGE"
        lines = await client.ok("UID FETCH 1:5 (BODY.PEEK[TEXT])")
        assert [line.split()[1] for line in lines[:-1]] == [b"1", b"2", b"4", b"3"]
        assert lines[-2] == b"* 3 EXPUNGE"
        assert (await idler.until(b"* 3 EXPUNGE"))[-1] == b"* 3 EXPUNGE"
        assert (await modern.ok("NOOP"))[0] == b"* VANISHED 2,4"


async def test_autofix_leaves_a_damaged_mail_to_the_mode(office: Open) -> None:
    async with office(autofix_storage=True) as here:
        await here.fill(mail(1), mail(2))
        await here.garble(1)
        client = await here.selected()
        assert (await client.cmd("FETCH 1:2 BODY.PEEK[TEXT]"))[-1] == NO % b"1"
        assert await client.ok("NOOP") == [b"OK Noop completed"]


@pytest.mark.parametrize(
    "asked", ["BODY.PEEK[]", "BODY.PEEK[]<5.7>", "ENVELOPE", "BODY.PEEK[HEADER]", "(UID RFC822.SIZE BODY.PEEK[])"]
)
async def test_autofix_by_whatever_is_asked(office: Open, asked: str) -> None:
    async with office(autofix_storage=True) as here:
        await here.fill(LARGE, mail(2))
        await here.lose(1)
        here.forget_fields(1, 2)
        client = await here.selected()
        lines = await client.ok(f"UID FETCH 1:2 {asked}")
        assert [line.split()[1] for line in lines[:-1]] == [b"2", b"1"]
        assert lines[-2] == b"* 1 EXPUNGE"


async def test_autofix_for_a_header_too_long_to_be_cached(office: Open) -> None:
    async with office(autofix_storage=True) as here:
        await here.fill(b"Subject: x\r\nX-Long: " + b"y" * 10_000 + b"\r\n\r\nbody\r\n")
        await here.lose(1)
        client = await here.selected()
        assert await client.ok("UID FETCH 1 (BODY.PEEK[HEADER])") == [b"* 1 EXPUNGE", b"OK Fetch completed"]


@pytest.mark.parametrize("autofix", [False, True])
async def test_a_search_is_not_failed_by_what_it_cannot_read(office: Open, autofix: bool) -> None:
    async with office(autofix_storage=autofix, fetch_failure="disconnect-immediately") as here:
        await here.fill(*(mail(n) for n in range(1, 5)))
        await here.lose(2)
        await here.garble(3)
        client = await here.selected()
        assert (await client.ok("SEARCH SUBJECT s2"))[0] == b"* SEARCH 2"
        assert (await client.ok("SEARCH BODY body"))[0] == b"* SEARCH 1 4"
        assert (await client.ok("SEARCH NOT BODY nothing"))[0] == b"* SEARCH 1 4"
        reported = [b"* 2 EXPUNGE"] if autofix else []
        assert (await client.ok("NOOP"))[:-1] == reported


async def test_copy_and_move_read_no_mail(office: Open) -> None:
    async with office(fetch_failure="disconnect-immediately") as here:
        await here.fill(mail(1), mail(2))
        await here.lose(1, 2)
        client = await here.selected()
        assert b"COPYUID" in (await client.ok("COPY 1 Archive"))[-1]
        assert b"* 2 EXPUNGE" in await client.ok("MOVE 2 Archive")
        assert b"MESSAGES 2" in (await client.ok("STATUS Archive (MESSAGES)"))[0]
        await client.ok("STORE 1 +FLAGS (\\Deleted)")
        assert (await client.ok("EXPUNGE"))[0] == b"* 1 EXPUNGE"


# -- by client, and what is something else -----------------------------------------------------------------------------


async def test_clients_of_two_networks_hear_different_things(office: Open) -> None:
    webmail = ImapSettings(lost_as_empty=True)
    strict = ImapSettings(fetch_failure="disconnect-immediately")
    async with office(remotes={"127.0.0.2": webmail, "127.0.0.3": strict}) as here:
        await here.fill(mail(1), mail(2))
        await here.lose(1)
        usual, reader, other = [await here.selected(f"127.0.0.{n}") for n in (1, 2, 3)]
        assert (await usual.cmd("FETCH 1:2 BODY.PEEK[TEXT]"))[-1] == NO % b"1"
        assert (await reader.ok("FETCH 1:2 BODY.PEEK[TEXT]"))[0] == b'* 1 FETCH (BODY[TEXT] "")'
        other.send("f FETCH 1:2 BODY.PEEK[TEXT]\r\n")
        assert await other.line() == BYE % b"1"
        assert await ended(other)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", ["small", "large"])
async def test_an_outage_is_no_lost_mail(
    office: Open, mode: FetchFailure, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with office(fetch_failure=mode, autofix_storage=True, lost_as_empty=True) as here:
        await here.fill(LARGE if size == "large" else mail(1), mail(2))
        await here.forget(1)
        client = await here.selected()

        def down(*_: object, **__: object) -> Awaitable[bytes]:
            raise Unreachable("no bucket")

        with monkeypatch.context() as patch:
            patch.setattr(type(here.store.env.bucket), "get", down)
            lines = await client.cmd("FETCH 1:2 (FLAGS BODY.PEEK[])")
            assert lines[-1].startswith(b"NO [UNAVAILABLE]")
        assert len(await client.ok("FETCH 1:2 (FLAGS BODY.PEEK[])")) == 3


@pytest.mark.parametrize("mode", MODES[1:])
async def test_however_many_are_lost_the_line_stays_short(office: Open, mode: FetchFailure) -> None:
    async with office(fetch_failure=mode) as here:
        await here.fill(*(mail(n) for n in range(1, 301)))
        await here.lose(*range(1, 301, 2))
        client = await here.selected()
        client.send("f FETCH 1:* BODY.PEEK[]\r\n")
        lines = await client.until(b"f NO" if mode == "no-after" else b"* BYE")
        assert len(lines) == 151
        assert len(lines[-1]) < 500
        assert lines[-1].endswith(b",97,99 and 100 more are damaged or lost")


async def test_many_sessions_find_many_lost_mails(office: Open) -> None:
    async with office(autofix_storage=True) as here:
        await here.fill(*(mail(n) for n in range(1, 201)))
        await here.lose(*range(1, 201, 2))
        clients = [await here.selected() for _ in range(4)]
        done = await asyncio.gather(*(client.ok("UID FETCH 1:* (BODY.PEEK[TEXT])") for client in clients))
        for lines in done:
            assert sum(b" EXPUNGE" in line for line in lines) == 100
            assert sum(b"BODY[TEXT]" in line for line in lines) == 100
