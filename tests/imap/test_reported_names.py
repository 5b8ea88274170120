"""A keyword must not reach a client before a FLAGS line has named it, whenever another
session brings it.

The harness's client refuses each FETCH line with a flag that no FLAGS line has named.
The tests here choose the moments.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from harness import Client, Running, serving, serving_real

from obox.errors import NotFound
from obox.imap import updates
from obox.imap.commands import fetch
from obox.imap.connection import Connection
from obox.imap.settings import ImapSettings
from obox.mailbox import uid_array
from obox.mailbox.invariants import check
from obox.store import NewMail
from obox.store.user.mailbox import Mailbox
from obox.types import StorageId

ROOT = Path(__file__).parents[2]
MAIL = b"Subject: a mail\r\n\r\nbody\r\n"
KEYWORD = b"$Label2"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving_real(tmp_path) as running:
        user = await running.store.open_user("anna", StorageId("anna"))
        await user.append("INBOX", [NewMail(MAIL)] * 5)
        await user.release()
        yield running


async def selected(running: Running, *, qresync: bool = False) -> Client:
    client = await running.client(login="anna")
    if qresync:
        await client.ok("ENABLE QRESYNC")
    await client.ok("SELECT INBOX")
    return client


async def box_of(running: Running) -> Mailbox:
    user = running.store.users["anna"] if "anna" in running.store.users else next(iter(running.store.users.values()))
    return await user.box(user.entry("INBOX").guid)


@pytest.mark.parametrize(
    "command",
    [
        "FETCH 1 FLAGS",
        "FETCH 1 (FLAGS BODY.PEEK[])",
        "FETCH 1 BODY[]",
        "FETCH 1 (BODY[HEADER] ENVELOPE)",
        "UID FETCH 1:* (FLAGS) (CHANGEDSINCE 1)",
        "STORE 1 +FLAGS (\\Flagged)",
        "STORE 1 FLAGS.SILENT (Other)",
        "STORE 2 +FLAGS.SILENT (Other)",
        "UID STORE 1 -FLAGS (\\Answered)",
        "NOOP",
        "SEARCH ALL",
        "EXPUNGE",
        "UID FETCH 1 UID",
    ],
)
@pytest.mark.parametrize("qresync", [False, True])
async def test_a_keyword_of_another_session(running: Running, command: str, qresync: bool) -> None:
    """Another session brings the keyword between two commands."""
    one, two = await selected(running), await selected(running, qresync=qresync)
    await one.ok(f"STORE 1 +FLAGS ({KEYWORD.decode()})")
    lines = await two.ok(command)
    assert KEYWORD in two.flags
    assert any(line.startswith(b"* OK [PERMANENTFLAGS (") and KEYWORD in line for line in lines)
    assert len([line for line in lines if line.startswith(b"* FLAGS")]) <= 2


async def test_in_idle(running: Running) -> None:
    one, two = await selected(running), await selected(running)
    two.send(b"i IDLE\r\n")
    await two.until(b"+ ")
    await one.ok(f"STORE 1 +FLAGS ({KEYWORD.decode()})")
    lines = await two.until(b"* 1 FETCH")
    assert lines[0].startswith(b"* FLAGS (")
    assert KEYWORD in two.fetched[-1]
    two.send(b"DONE\r\n")
    await two.until(b"i OK")


Meanwhile = Callable[[], Awaitable[None]]


@pytest.fixture
def at_each_flush(monkeypatch: pytest.MonkeyPatch) -> Callable[[Meanwhile], None]:
    """Make each chunk a single line, and run `meanwhile` whenever a chunk has been
    handed over."""
    for module, name in ((updates, "CHUNK_ROWS"), (fetch, "COLUMN_ROWS"), (fetch, "FIELD_ROWS"), (fetch, "MAIL_ROWS")):
        monkeypatch.setattr(module, name, 1)
    monkeypatch.setattr(Connection, "full", True)
    plain = Connection.flush

    def install(meanwhile: Meanwhile) -> None:
        async def flush(connection: Connection) -> None:
            await plain(connection)
            await meanwhile()

        monkeypatch.setattr(Connection, "flush", flush)

    return install


@pytest.mark.parametrize(
    "command",
    [
        "FETCH 1:5 FLAGS",
        "FETCH 1:5 (FLAGS ENVELOPE)",
        "FETCH 1:5 (FLAGS BODY.PEEK[])",
        "FETCH 1:5 BODY[TEXT]",
        "STORE 1:5 +FLAGS (\\Flagged)",
        "NOOP",
        "SELECT INBOX (QRESYNC ({validity} 1))",
    ],
)
async def test_while_a_command_writes(
    running: Running, at_each_flush: Callable[[Meanwhile], None], command: str
) -> None:
    """After each line of the answer all mails get a new keyword, also the mails of
    later lines."""
    one, two = await selected(running), await selected(running, qresync=True)
    box = await box_of(running)
    # NOOP then has something to report.
    await one.ok("STORE 1:5 +FLAGS (\\Answered)")
    brought = 0

    async def meanwhile() -> None:
        nonlocal brought
        brought += 1
        if brought <= 20:
            await box.store_flags(uid_array(range(1, 6)), "add", [f"k{brought}"])

    at_each_flush(meanwhile)
    await two.ok(command.format(validity=box.uidvalidity))
    assert brought > 1
    assert any(b"k1" in flags for flags in two.fetched) or "TEXT" in command


async def test_between_the_rows_and_the_mails(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lists of flags are made, and then the mails are read. Meanwhile a keyword
    comes, and another loses its place."""
    one, two = await selected(running), await selected(running)
    box = await box_of(running)
    await one.ok("STORE 5 +FLAGS (old)")
    for at in range(58):
        await box.store_flags(uid_array([1]), "add", [f"k{at}"])
    plain = Mailbox.mails

    async def mails(self: Mailbox, uids: list[int], **more: object) -> AsyncIterator[object]:
        await box.store_flags(uid_array([5]), "remove", ["old"])
        await box.store_flags(uid_array([4]), "add", ["new"])
        async for pair in plain(self, uids, **more):
            yield pair

    monkeypatch.setattr(Mailbox, "mails", mails)
    await two.ok("FETCH 1:5 (FLAGS BODY.PEEK[TEXT])")
    assert two.fetched[4] == b"old \\Recent" or two.fetched[4] == b"old"
    assert b"new" in two.flags
    assert b"old" not in two.flags, "told with the poll at the end"
    assert b"\\*" not in two.flags


async def test_a_mail_that_cannot_be_read_comes_between(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mail cannot be read, so its list of flags is made again. Lines that were made
    before are still to be sent, and the keywords that they name must stay known."""
    settings = ImapSettings(fetch_failure="no-after")
    monkeypatch.setattr(running.imap.context, "settings_of", lambda remote: settings)
    one, two = await selected(running), await selected(running)
    box = await box_of(running)
    await one.ok("STORE 5 +FLAGS (old)")
    for at in range(58):
        await box.store_flags(uid_array([2]), "add", [f"k{at}"])
    plain = Mailbox.mails

    async def mails(self: Mailbox, uids: list[int], **more: object) -> AsyncIterator[object]:
        await box.store_flags(uid_array([5]), "remove", ["old"])
        await box.store_flags(uid_array([4]), "add", ["new"])
        async for uid, mail in plain(self, uids, **more):
            yield uid, NotFound("lost") if uid == 1 else mail

    monkeypatch.setattr(Mailbox, "mails", mails)
    assert (await two.cmd("FETCH 1:5 (FLAGS BODY.PEEK[TEXT])"))[-1].startswith(b"NO [CORRUPTION]")
    assert any(flags.startswith(b"old") for flags in two.fetched)


async def test_room_for_keywords_is_reported(running: Running) -> None:
    r"""`\*` says that a client may bring new keywords. RFC 3501 §7.1
    (PERMANENTFLAGS)."""
    one, two = await selected(running), await selected(running)
    lines = await one.ok(f"STORE 1 +FLAGS.SILENT ({' '.join(f'k{at}' for at in range(59))})")
    assert not any(b"\\*" in line for line in lines)
    lines = await two.ok("NOOP")
    assert any(line.startswith(b"* OK [PERMANENTFLAGS (") and b"\\*" not in line for line in lines)
    assert not any(b"\\*" in line for line in await two.ok("SELECT INBOX"))
    await one.ok("STORE 1 -FLAGS.SILENT (k7)")
    lines = await two.ok("NOOP")
    assert any(line.startswith(b"* OK [PERMANENTFLAGS (") and b"\\*" in line for line in lines)
    assert any(b"[PERMANENTFLAGS ()]" in line for line in await two.ok("EXAMINE INBOX"))


def test_one_place_makes_lists_of_flags() -> None:
    """Only `updates.flags_of` calls the function that makes lists of flags, because
    they may be sent only after the FLAGS line."""
    for path in (ROOT / "obox/imap").rglob("*.py"):
        text = re.sub(r"^(?:from|import) .*$|^def .*$|^class .*$", "", path.read_text(), flags=re.MULTILINE)
        uses = len(re.findall(r"\b(?:flag_column|FlagLists)\(", text))
        assert uses == {"updates.py": 1, "rows.py": 1}.get(path.name, 0), path


@pytest.mark.parametrize("seed", range(6))
async def test_stress(tmp_path: Path, seed: int) -> None:
    """Sessions change, expunge, fetch and listen at random. FLAGS names each keyword in
    time, and no FETCH is refused."""
    async with (serving if seed % 2 else serving_real)(tmp_path) as running:
        setup = await running.client(login="anna")
        await setup.ok("CREATE box")
        for _ in range(8):
            await setup.append("box", MAIL)
        await asyncio.gather(*(_random_session(running, random.Random(seed * 10 + at)) for at in range(5)))
        box = next(iter(running.store.users.values()))
        for mailbox in box.boxes.values():
            check(mailbox.state)


async def _random_session(running: Running, rng: random.Random) -> None:
    client = await running.client(login="anna")
    if rng.random() < 0.5:
        await client.ok("ENABLE QRESYNC")
    await client.ok("SELECT box")
    exists = 0

    def flags() -> str:
        names = [f"kw{rng.randrange(70)}" for _ in range(rng.randrange(1, 3))]
        return "(" + " ".join([*names, *(["\\Deleted"] if rng.random() < 0.3 else [])]) + ")"

    for _ in range(60):
        exists = len([1 for line in await client.ok("SEARCH ALL") for word in line.split()[2:] if word.isdigit()])
        last = max(exists, 1)
        low, high = sorted((rng.randint(1, last), rng.randint(1, last)))
        silent = rng.choice(["", ".SILENT"])
        command = rng.choice(
            [
                f"FETCH {low}:{high} (FLAGS UID)",
                f"FETCH {low}:{high} (FLAGS ENVELOPE BODY.PEEK[])",
                f"FETCH {low} BODY[TEXT]",
                f"STORE {low}:{high} {rng.choice('+-')}FLAGS{silent} {flags()}",
                f"UID FETCH {low}:* FLAGS",
                f"COPY {low}:{high} box",
                "EXPUNGE",
                "NOOP",
                "IDLE",
                "SELECT box",
                "APPEND",
            ]
        )
        if command == "APPEND":
            await client.cmd(b"APPEND box %b {%d+}\r\n%b" % (flags().encode(), len(MAIL), MAIL))
        elif command == "IDLE":
            client.send(b"idle IDLE\r\n")
            await client.until(b"+ ")
            await asyncio.sleep(rng.random() * 0.005)
            client.send(b"DONE\r\n")
            await client.until(b"idle OK")
        else:
            answer = (await client.cmd(command))[-1]
            if "FETCH" in command and not answer.startswith(b"BAD No such mail"):
                assert answer.startswith(b"OK"), (command, answer)


async def test_a_command_that_brings_too_many_keywords_is_refused_whole(running: Running) -> None:
    client = await selected(running)
    await client.ok("CREATE full")
    await client.append("full", MAIL, f"({' '.join(f'k{at}' for at in range(58))}) ")
    await client.ok("STORE 1 +FLAGS.SILENT (a)")
    await client.ok("STORE 2 +FLAGS.SILENT (b)")
    one = b"(a) {%d+}\r\n%b" % (len(MAIL), MAIL)
    two = b"(b) {%d+}\r\n%b" % (len(MAIL), MAIL)
    for command in (b"COPY 1:2 full", b"MOVE 1:2 full", b"UID COPY 1:2 full", b"APPEND full %b %b" % (one, two)):
        assert (await client.cmd(command))[-1] == b"NO [LIMIT] A mailbox holds at most 59 keywords"
    assert b"* STATUS full (MESSAGES 1 UIDNEXT 2)" in await client.ok("STATUS full (MESSAGES UIDNEXT)")
    await client.ok("COPY 1 full")
    lines = await client.ok("SELECT full")
    assert not any(b"\\*" in line for line in lines)
    assert (await client.cmd("STORE 2 +FLAGS (b)"))[-1].startswith(b"NO [LIMIT]")
    await client.ok("FETCH 1:2 FLAGS")
    assert len(client.fetched[-2].split()) >= 58
