"""All commands use the same spelling of a mailbox's name."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import STORES, Running

from obox.errors import NoPerm
from obox.imap import utf7
from obox.store import NewMail
from obox.types import StorageId

MAIL = b"Subject: a mail\r\n\r\nbody\r\n"
DOTLESS = utf7.encode("\u0131nbox").decode()
"""`str.upper` turns this name into INBOX. IMAP does not."""


@pytest.fixture(params=STORES)
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    async with STORES[request.param](tmp_path) as running:
        yield running


async def test_what_is_below_inbox_has_one_name(running: Running) -> None:
    """RFC 3501 §5.1: a client may write INBOX in any case, also as the first level of a
    name."""
    client = await running.client(login="anna")
    await client.ok("CREATE Inbox/Sub")
    assert b"APPENDUID" in await client.append("iNBOX/Sub", MAIL)
    assert b"* STATUS INBOX/Sub (MESSAGES 1)" in await client.ok("STATUS inbox/Sub (MESSAGES)")
    await client.ok("SELECT inbox/Sub")
    await client.ok("COPY 1 Inbox/Sub")
    assert b"* 2 EXISTS" in await client.ok("EXAMINE inboX/Sub")
    await client.ok("SUBSCRIBE inbox/Sub")
    assert b'* LSUB () "/" INBOX/Sub' in await client.ok('LSUB "" inbox/*')
    assert b'* LIST (\\HasNoChildren) "/" INBOX/Sub' in await client.ok('LIST "" inbox/%')
    assert (await client.cmd("CREATE INBOX/Sub"))[-1].startswith(b"NO [ALREADYEXISTS]")
    await client.ok("UNSUBSCRIBE InBox/Sub")
    await client.ok("RENAME inbox/Sub inbox/Other")
    await client.ok("DELETE iNbOx/Other")
    assert (await client.cmd("SELECT INBOX/Other"))[-1].startswith(b"NO [NONEXISTENT]")


async def test_the_store_takes_any_spelling(running: Running) -> None:
    """LMTP and the admin API pass names on as their users write them."""
    user = await running.store.open_user("anna", StorageId("anna"))
    guid = await user.create("Inbox/Sub")
    appended = await user.append("inbox/Sub", [NewMail(MAIL)])
    assert len(appended.uids) == 1
    assert (await user.status("inbox/Sub/")).messages == 1
    box = await user.select("inbox/Sub")
    assert box.guid == guid
    await box.release()
    await user.rename("inbox/Sub", "inbox/Sub2")
    await user.delete("inbox/Sub2")
    with pytest.raises(NoPerm):
        await user.delete("inbox")
    await user.release()


async def test_only_ascii_letters_of_inbox_have_two_cases(running: Running) -> None:
    client = await running.client(login="anna")
    assert (await client.cmd(f"SELECT {DOTLESS}"))[-1].startswith(b"NO [NONEXISTENT]")
    await client.ok(f"CREATE {DOTLESS}")
    await client.append(DOTLESS, MAIL)
    assert b"* STATUS INBOX (MESSAGES 0)" in await client.ok("STATUS inbox (MESSAGES)")
    assert f'* LIST (\\HasNoChildren) "/" {DOTLESS}'.encode() in await client.ok(f'LIST "" {DOTLESS}')
    assert len([line for line in await client.ok('LIST "" inbox') if b"LIST" in line]) == 1
    await client.ok(f"DELETE {DOTLESS}")
