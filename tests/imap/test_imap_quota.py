"""QUOTA over a socket, RFC 9208."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import STORES, Passwords, Running

from obox.accounts import Quota

MAIL = b"Subject: a mail\r\n\r\n" + b"x" * 3_000


@pytest.fixture(params=STORES)
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    async with STORES[request.param](tmp_path) as running:
        yield running


def limit(running: Running, quota: Quota) -> None:
    authenticator = running.imap.context.authenticator
    assert isinstance(authenticator, Passwords)
    authenticator.quota = quota


async def test_a_user_with_limits(running: Running) -> None:
    limit(running, Quota(20_000, 3))
    client = await running.client(login="anna")
    assert (await client.ok("GETQUOTAROOT INBOX"))[:-1] == [
        b"* QUOTAROOT INBOX user",
        b"* QUOTA user (STORAGE 0 19 MESSAGE 0 3)",
    ]
    await client.append("INBOX", MAIL)
    await client.append("Sent", MAIL)
    assert (await client.ok("GETQUOTA user"))[0] == b"* QUOTA user (STORAGE 6 19 MESSAGE 2 3)"
    await client.append("INBOX", MAIL)
    client.send(b"x APPEND INBOX {%d+}\r\n%b\r\n" % (len(MAIL), MAIL))
    assert (await client.line()).startswith(b"x NO [OVERQUOTA] ")
    await client.ok("SELECT INBOX")
    assert (await client.cmd("COPY 1 Sent"))[-1].startswith(b"NO [OVERQUOTA] ")
    assert (await client.cmd("GETQUOTA other"))[-1].startswith(b"NO [NONEXISTENT] ")
    assert (await client.cmd("GETQUOTAROOT nowhere"))[-1].startswith(b"NO [NONEXISTENT] ")
    assert (await client.cmd("SETQUOTA user (STORAGE 1000)"))[-1].startswith(b"NO [NOPERM] ")


async def test_a_single_limit_is_the_only_resource(running: Running) -> None:
    limit(running, Quota(None, 7))
    client = await running.client(login="anna")
    assert (await client.ok("GETQUOTA user"))[0] == b"* QUOTA user (MESSAGE 0 7)"


async def test_a_user_without_limits_has_no_root(running: Running) -> None:
    client = await running.client(login="anna")
    assert (await client.ok("GETQUOTAROOT INBOX"))[:-1] == [b"* QUOTAROOT INBOX"]
    assert (await client.cmd("GETQUOTA user"))[-1].startswith(b"NO [NONEXISTENT] ")


async def test_what_an_expunge_would_free(running: Running) -> None:
    client = await running.client(login="anna")
    for mail in (MAIL, MAIL, b"short"):
        await client.append("INBOX", mail)
    await client.ok("SELECT INBOX")
    assert b"* STATUS Sent (DELETED-STORAGE 0)" in await client.ok("STATUS Sent (DELETED-STORAGE)")
    await client.ok("STORE 2:3 +FLAGS (\\Deleted)")
    reported = await client.ok("STATUS INBOX (DELETED DELETED-STORAGE)")
    assert b"* STATUS INBOX (DELETED 2 DELETED-STORAGE %d)" % (len(MAIL) + 5) in reported
