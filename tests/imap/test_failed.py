"""What a session loses when a command fails: the selected mailbox, and the saved search
result."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import Client, serving

from obox.errors import Unavailable
from obox.imap.commands import search, sort
from obox.imap.events import BadCommand, Resets, TooBig
from obox.imap.parser import Limits, Parser
from obox.store import NewMail
from obox.types import StorageId

MAIL = b"Subject: a mail\r\n\r\nbody\r\n"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with serving(tmp_path) as running:
        user = await running.store.open_user("anna", StorageId("anna"))
        await user.append("INBOX", [NewMail(MAIL), NewMail(MAIL)])
        await user.release()
        client = await running.client(login="anna")
        await client.ok("SELECT INBOX")
        yield client


@pytest.mark.parametrize(
    "command",
    [
        'SELECT ""',
        'SELECT "&bad"',
        "EXAMINE &-&",
        'SELECT "/"',
        'EXAMINE "a\x7fb"',
        "SELECT {70000+}\r\n" + "x" * 70_000,
        "SELECT nowhere",
        "SELECT a//b",
    ],
)
async def test_a_select_that_is_answered_no_leaves_no_mailbox(client: Client, command: str) -> None:
    """RFC 3501 §6.3.1 applies both when the parser refuses the name and when the store
    does not know it."""
    lines = await client.cmd(command)
    assert lines[-1].startswith(b"NO "), lines
    assert lines[0] == b"* OK [CLOSED] Previous mailbox was closed"
    assert (await client.cmd("FETCH 1 FLAGS"))[-1] == b"BAD FETCH needs a selected mailbox"
    assert b"* 2 EXISTS" in await client.ok("SELECT INBOX")


@pytest.mark.parametrize("command", ["SELECT", "SELECT INBOX (NONSENSE)", 'SELECT "', "SELECT INBOX x", "SELECTS x"])
async def test_a_select_that_is_no_command_changes_nothing(client: Client, command: str) -> None:
    """RFC 3501 §6.3.1: NO is "select failure, now in authenticated state", BAD is
    "command unknown"."""
    assert (await client.cmd(command))[-1].startswith(b"BAD ")
    assert b"* 1 FETCH (FLAGS (\\Recent))" in await client.ok("FETCH 1 FLAGS")


@pytest.mark.parametrize(
    ("command", "left"),
    [
        ("SEARCH RETURN (SAVE) CHARSET X-NONE ALL", 0),
        ("uid search return (count SAVE) CHARSET X-NONE ALL", 0),
        ("SEARCH RETURN (MIN SAVE) SUBJECT {70000+}\r\n" + "x" * 70_000, 0),
        ("SEARCH RETURN (SAVE) SUBJECT {3+}\r\nabc TEXT {70000+}\r\n" + "x" * 70_000, 0),
        ("SEARCH RETURN (COUNT) CHARSET X-NONE ALL", 2),
        ("SEARCH CHARSET X-NONE SUBJECT SAVE", 2),
        ("SEARCH RETURN (SAVE) NONSENSE", 2),
        ("SEARCH RETURN (SAVE", 2),
    ],
)
async def test_what_a_failed_search_leaves_of_the_saved_one(client: Client, command: str, left: int) -> None:
    """NO to a SEARCH with SAVE empties `$` (RFC 5182 §2.1). BAD, and NO without SAVE,
    do not change it."""
    await client.ok("SEARCH RETURN (SAVE) ALL")
    assert (await client.cmd(command))[-1].startswith(b"BAD " if _is_bad(command) else b"NO ")
    lines = await client.ok("FETCH $ UID")
    assert len(lines) - 1 == left


@pytest.mark.parametrize("command", ["SEARCH RETURN (SAVE)", "UID SORT RETURN (COUNT SAVE) (DATE) UTF-8"])
async def test_a_bucket_that_does_not_answer_leaves_nothing_saved(
    client: Client, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def matching(*_: object) -> None:
        raise Unavailable("the bucket does not answer")

    await client.ok("SEARCH RETURN (SAVE) ALL")
    with monkeypatch.context() as patch:
        for module in (search, sort):
            patch.setattr(module, "matching", matching)
        # SEARCH without SAVE changes nothing.
        assert (await client.cmd("SEARCH ALL"))[-1].startswith(b"NO [UNAVAILABLE] ")
        assert len(await client.ok("FETCH $ UID")) - 1 == 2
        assert (await client.cmd(f"{command} ALL"))[-1].startswith(b"NO [UNAVAILABLE] ")
    assert len(await client.ok("FETCH $ UID")) - 1 == 0


def _is_bad(command: str) -> bool:
    return command.endswith(("NONSENSE", "(SAVE"))


def test_the_parser_says_what_a_refusal_resets() -> None:
    parser = Parser(Limits(literal_bytes_max=10))

    def event(line: bytes) -> object:
        parser.feed(line + b"\r\n")
        return parser.next()

    for line, want in [
        (b'a SELECT ""', Resets.MAILBOX),
        (b"a examine {99}", Resets.MAILBOX),
        (b'a STATUS "" (MESSAGES)', Resets.NOTHING),
        (b"a UID SEARCH RETURN (ALL SAVE) SUBJECT {99}", Resets.SAVED),
        (b"a SEARCH RETURN (ALL) SUBJECT {99}", Resets.NOTHING),
        (b"a SELECT x y", Resets.NOTHING),
    ]:
        found = event(line)
        assert isinstance(found, BadCommand | TooBig)
        assert found.resets is want, line


async def test_create_with_a_use_that_is_taken(client: Client) -> None:
    """RFC 6154 §3."""
    assert (await client.cmd("CREATE x (USE (\\Trash))"))[-1] == (
        b"NO [USEATTR] There is a mailbox for \\Trash already"
    )
    assert (await client.cmd("STATUS x (MESSAGES)"))[-1].startswith(b"NO [NONEXISTENT]")
    assert (await client.cmd("CREATE Sent (USE (\\Trash))"))[-1].startswith(b"NO [ALREADYEXISTS]")
    await client.ok("DELETE Trash")
    await client.ok("CREATE x (USE (\\trash))")
