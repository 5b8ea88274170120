"""Postfix as a front end: netstrings, the maps, and the real Postfix."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from members import ADDRESS, PLACES, Cluster, Member, cluster, until
from patience import PATIENT_S
from ports import free_port
from postfix_config import MAIN, MASTER

from obox.errors import Unavailable
from obox.proxy.socketmap import REQUEST_BYTES_MAX, BadRequest, Lookups, SocketmapServer, cut, netstring

USERS = "anna@example.org:{PLAIN}secret::::::\nben@example.org:{PLAIN}secret::::::\n"


def test_a_netstring_is_cut_off_whole() -> None:
    data = bytearray(b"3:a b,5:")
    assert cut(data) == b"a b"
    assert cut(data) is None
    data += b"c d e"
    assert cut(data) is None
    data += b",0:,"
    assert cut(data) == b"c d e"
    assert cut(data) == b""
    assert cut(data) is None
    assert netstring("OK ä") == b"5:OK \xc3\xa4,"


@pytest.mark.parametrize("data", [b"x", b"-1:", b"3:abcd", b"1001:", b"9999999", b":", b"GET / HTTP/1.0\r\n", b" 1:a,"])
def test_what_is_no_netstring_ends_it(data: bytes) -> None:
    with pytest.raises(BadRequest):
        cut(bytearray(data))
    assert REQUEST_BYTES_MAX == 1000


@pytest.fixture
async def proxied(tmp_path: Path) -> AsyncIterator[tuple[Cluster, Member, Member]]:
    async with cluster(tmp_path) as made:
        (tmp_path / "users").write_text(USERS)
        made.rows.own("ben@example.org", "b2")
        made.rows.own("anna@example.org", "b9")
        yield made, await made.member("p1", proxy=True), await made.member("b2")


def lookups_of(made: Cluster, member: Member) -> Lookups:
    return Lookups(lambda: made.users, member.router, lambda: ("", {}), delimiters=lambda: "+")


async def test_what_the_maps_say(proxied: tuple[Cluster, Member, Member]) -> None:
    made, proxy, b2 = proxied
    lookups = lookups_of(made, proxy)
    made.rows.places["b9"] = ("unix:/run/obox/b9", {})
    hop = f"OK lmtp:inet:[{ADDRESS}]:{b2.lmtp_port}"
    for request, answer in {
        "mailbox ben@example.org": "OK ben@example.org",
        "mailbox ben+work@example.org": "OK ben@example.org",
        "transport ben@example.org": hop,
        "transport BEN+work@EXAMPLE.org": hop,
        "transport anna@example.org": "OK lmtp:unix:/run/obox/b9/lmtp.sock",
        "mailbox nobody@example.org": "NOTFOUND ",
        "transport nobody@example.org": "NOTFOUND ",
        "transport example.org": "NOTFOUND ",
        "transport .example.org": "NOTFOUND ",
        "transport @example.org": "NOTFOUND ",
        "transport *": "NOTFOUND ",
        "mailbox ": "NOTFOUND ",
        "other ben@example.org": "PERM no such map; allowed: mailbox, transport",
    }.items():
        assert await lookups.answer(request.encode()) == answer, request
    assert (await lookups.answer(b"mailbox \xff\xff")).startswith("NOTFOUND")


async def test_trouble_is_temporary(proxied: tuple[Cluster, Member, Member]) -> None:
    made, proxy, b2 = proxied
    lookups = lookups_of(made, proxy)
    made.rows.places["b2"] = (ADDRESS, {"imap": b2.port})
    assert (await lookups.answer(b"transport ben@example.org")).startswith("TEMP ")
    proxy.router.down = True
    assert (await lookups.answer(b"transport ben@example.org")).startswith("TEMP ")

    async def account(user: str) -> None:
        raise Unavailable("no user database")

    made.users.account = account
    assert await lookups.answer(b"mailbox ben@example.org") == "TEMP no user database"


async def test_a_backend_alone_names_itself(proxied: tuple[Cluster, Member, Member]) -> None:
    made, *_ = proxied
    lookups = Lookups(lambda: made.users, None, lambda: ("mail.example.org", {"lmtp": 24}), delimiters=lambda: "+")
    assert await lookups.answer(b"transport ben@example.org") == "OK lmtp:inet:mail.example.org:24"


@asynccontextmanager
async def served(lookups: Lookups, **more: object) -> AsyncIterator[tuple[SocketmapServer, int]]:
    server = SocketmapServer(lookups, **more)
    listener = await asyncio.get_running_loop().create_server(server.connection_factory, ADDRESS, 0)
    try:
        yield server, listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await server.stop(grace_s=1.0)


async def test_a_connection_has_many_requests(proxied: tuple[Cluster, Member, Member]) -> None:
    made, proxy, _ = proxied
    async with served(lookups_of(made, proxy)) as (server, port):
        reader, writer = await asyncio.open_connection(ADDRESS, port)
        asked = netstring("mailbox ben@example.org") + netstring("mailbox x@example.org")
        for byte in asked:
            writer.write(bytes([byte]))
        answers = netstring("OK ben@example.org") + netstring("NOTFOUND ")
        assert await asyncio.wait_for(reader.readexactly(len(answers)), PATIENT_S) == answers
        assert [who.state for who in server.hub.who()] == ["socketmap"]
        writer.write(b"GET / HTTP/1.1\r\n")
        assert await asyncio.wait_for(reader.read(), PATIENT_S) == b""
        await until(lambda: not len(server.hub.registry))


async def test_strangers_are_not_answered(proxied: tuple[Cluster, Member, Member]) -> None:
    made, proxy, _ = proxied
    async with served(lookups_of(made, proxy), trusts=lambda remote: False) as (_, port):
        reader, writer = await asyncio.open_connection(ADDRESS, port)
        writer.write(netstring("mailbox ben@example.org"))
        assert await asyncio.wait_for(reader.read(), PATIENT_S) == b""


# -- the real Postfix --------------------------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[Path]:
    """Make a directory that Postfix' users can reach. They cannot reach a temporary
    directory of pytest."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@asynccontextmanager
async def postfix(home: Path, maps: int) -> AsyncIterator[int]:
    """Start Postfix. It looks users and next hops up in the maps at the port `maps`.
    Yield the port of SMTP."""
    for name in ("queue", "data"):
        (home / name).mkdir(parents=True)
    shutil.chown(home / "data", pwd.getpwnam("postfix").pw_uid)
    port, at = free_port(), f"socketmap:inet:{ADDRESS}:{maps}"
    more = f"virtual_mailbox_maps = {at}:mailbox\ntransport_maps = {at}:transport\n"
    (home / "main.cf").write_text(MAIN.format(home=home, lmtp="unix:/nowhere") + more)
    (home / "master.cf").write_text(MASTER.format(port=port))
    program = str(shutil.which("postfix", path=PLACES))
    log = (home / "log").open("wb")
    process = await asyncio.create_subprocess_exec(
        program, "-c", str(home), "start-fg", stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
    )
    try:
        async with asyncio.timeout(2 * PATIENT_S):
            while True:
                try:
                    (await asyncio.open_connection(ADDRESS, port))[1].close()
                    break
                except OSError:
                    assert process.returncode is None, (home / "log").read_text()
                    await asyncio.sleep(0.05)
        yield port
    finally:
        stop = await asyncio.create_subprocess_exec(program, "-c", str(home), "stop", stdout=log, stderr=log)
        await stop.wait()
        await process.wait()
        log.close()


@pytest.mark.needs("postfix")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: Postfix runs as several users")
async def test_the_real_postfix_asks_where_a_mail_goes(proxied: tuple[Cluster, Member, Member], place: Path) -> None:
    made, proxy, b2 = proxied
    async with served(lookups_of(made, proxy)) as (_, maps), postfix(place / "postfix", maps) as port:
        reader, writer = await asyncio.open_connection(ADDRESS, port)

        async def say(line: bytes) -> bytes:
            writer.write(line + b"\r\n")
            while (answer := await asyncio.wait_for(reader.readline(), PATIENT_S))[3:4] == b"-":
                pass
            return answer

        await reader.readline()
        assert (await say(b"EHLO mta.example"))[:3] == b"250"
        assert (await say(b"MAIL FROM:<from@example.net>"))[:3] == b"250"
        assert (await say(b"RCPT TO:<nobody@example.org>"))[:3] == b"550"
        assert (await say(b"RCPT TO:<ben+work@example.org>"))[:3] == b"250"
        assert (await say(b"DATA"))[:3] == b"354"
        assert (await say(b"Subject: by Postfix\r\n\r\nhello\r\n."))[:3] == b"250"
        client = await b2.client(strict=False)
        await client.ok("LOGIN ben@example.org secret")
        for _ in range(int(PATIENT_S * 10)):
            if b"MESSAGES 1" in (await client.ok("STATUS INBOX (MESSAGES)"))[0]:
                break
            await asyncio.sleep(0.1)
        await client.ok("SELECT INBOX")
        assert b"by Postfix" in b"".join(await client.cmd("FETCH 1 BODY.PEEK[]"))
        # Postfix has connected to the owner, so no member forwarded the mail.
        assert proxy.counts.results == []
