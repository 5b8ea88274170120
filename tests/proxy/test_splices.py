"""The bytes that pass a splice: all of them arrive in order, the memory for them is
bounded, and an end of the stream arrives too."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from members import ADDRESS, SECRET, Cluster, Member, cluster, until

from obox.auth import LINK, Forward, LinkOwner
from obox.cluster import Assigned
from obox.imap.parser import Parser
from obox.net import Connection
from obox.net import splice as splice_module
from obox.net.dialogue import USER_TIMEOUT_S, Dialogue
from obox.net.splice import BUFFER_BYTES, Splice
from obox.proxy import moves as moves_module

ROOM = 64 << 20
"""The number of bytes exceeds the kernel's buffers of two connections."""


@dataclass
class Owner:
    """A backend that accepts the trusted link, and then sends and reads what the test
    says."""

    arrived: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter, Forward]]
    port: int
    behind: bytes = b""
    """These bytes follow directly after the tagged OK."""

    async def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer, _ = await asyncio.wait_for(self.arrived.get(), 20)
        return reader, writer


async def _owner(stack: Cluster) -> Owner:
    owner = Owner(asyncio.Queue(), 0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"* OK ready\r\n")
        link = LinkOwner((SECRET,), nonce=os.urandom(32), unknown=b"", binding=b"")
        tag, _, mechanism, first = (await reader.readline()).split()
        assert mechanism == LINK.encode()
        writer.write(b"+ " + link.start(LINK, first).wire + b"\r\n")
        forward = link.step((await reader.readline()).strip())
        assert isinstance(forward, Forward)
        writer.write(tag + b" OK [CAPABILITY IMAP4rev1 X-OWNER] Logged in\r\n" + owner.behind)
        await owner.arrived.put((reader, writer, forward))

    server = await asyncio.start_server(serve, ADDRESS, 0, limit=1 << 20)
    stack.stack.callback(server.close)
    owner.port = server.sockets[0].getsockname()[1]
    stack.rows.places["b2"] = (ADDRESS, {"imap": owner.port})
    return owner


@pytest.fixture
async def proxied(tmp_path: Path) -> AsyncIterator[tuple[Member, Owner]]:
    async with cluster(tmp_path) as made:
        made.rows.own("ben", "b2")
        yield await made.member("p1", proxy=True, tls=True), await _owner(made)


def splice(member: Member) -> Splice:
    (found,) = (one for one in member.hub.registry if isinstance(one, Splice))
    return found


async def test_what_is_sent_is_not_looked_at(proxied: tuple[Member, Owner]) -> None:
    proxy, owner = proxied
    owner.behind = b"* 5 EXISTS\r\n"
    client = await proxy.client(strict=False)
    any_bytes = bytes(range(256)) * 64
    client.send(b"a LOGIN ben secret\r\n" + any_bytes)
    reader, writer = await owner.client()
    assert await reader.readexactly(len(any_bytes)) == any_bytes
    writer.write(any_bytes)
    assert await client.reader.readline() == b"a OK [CAPABILITY IMAP4rev1 X-OWNER] Logged in\r\n"
    assert await client.reader.readline() == owner.behind
    assert await client.reader.readexactly(len(any_bytes)) == any_bytes


@pytest.mark.parametrize("tls", [False, True])
async def test_a_client_that_does_not_read_stops_the_owner(proxied: tuple[Member, Owner], tls: bool) -> None:
    proxy, owner = proxied
    client = await proxy.client(login="ben", tls=tls, strict=False)
    client.reader._limit = 1  # the client's own end stops reading
    _, writer = await owner.client()
    writer.write(b"x" * ROOM)
    found = splice(proxy)
    await until(lambda: found.owner.held)
    # The limit is the high-water mark and the bytes of a single read.
    assert found.buffered_bytes <= 8 * BUFFER_BYTES
    # The owner has to wait as well.
    assert writer.transport.get_write_buffer_size() > 0
    client.reader._limit = 1 << 26
    assert len(await client.reader.readexactly(ROOM)) == ROOM
    assert not found.owner.held


async def test_an_owner_that_does_not_read_stops_the_client(proxied: tuple[Member, Owner]) -> None:
    proxy, owner = proxied
    client = await proxy.client(login="ben", strict=False)
    reader, _ = await owner.client()
    client.send(b"x" * ROOM)
    found = splice(proxy)
    await until(lambda: found.client.held)
    assert found.buffered_bytes <= 8 * BUFFER_BYTES
    assert len(await reader.readexactly(ROOM)) == ROOM
    assert not found.client.held


async def test_a_splice_waits_for_hours_without_a_timer(proxied: tuple[Member, Owner]) -> None:
    """Only the owner limits the time of an IDLE, so the proxy needs no timer. The
    kernel notices a peer that is gone."""
    proxy, owner = proxied
    await proxy.client(login="ben", strict=False)
    await owner.client()
    found = splice(proxy)
    assert found.timer is None
    await until(lambda: not proxy.hub.tasks)
    for side in (found.client, found.owner):
        sock = side.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == USER_TIMEOUT_S * 1000
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_answers_still_come_after_the_client_has_said_all(proxied: tuple[Member, Owner]) -> None:
    proxy, owner = proxied
    client = await proxy.client(login="ben", strict=False)
    reader, writer = await owner.client()
    client.send(b"last words\r\n")
    client.writer.write_eof()
    assert await reader.read() == b"last words\r\n"
    writer.write(b"answer\r\n")
    writer.close()
    assert await client.reader.read() == b"answer\r\n"
    await until(lambda: not len(proxy.hub.registry))


async def test_the_end_of_a_client_that_is_in_the_input_with_its_login(proxied: tuple[Member, Owner]) -> None:
    proxy, owner = proxied
    client = await proxy.client(strict=False)
    client.send(b"a LOGIN ben secret\r\nb NOOP\r\n")
    client.writer.write_eof()
    reader, writer = await owner.client()
    assert await reader.read() == b"b NOOP\r\n"
    writer.write(b"b OK\r\n")
    writer.close()
    assert (await client.reader.read()).endswith(b"Logged in\r\nb OK\r\n")


@pytest.mark.parametrize("tls", [False, True])
async def test_all_that_the_owner_said_comes_before_its_end(proxied: tuple[Member, Owner], tls: bool) -> None:
    proxy, owner = proxied
    client = await proxy.client(login="ben", tls=tls, strict=False)
    _, writer = await owner.client()
    writer.write(b"x" * (8 << 20) + b"* BYE\r\n")
    writer.close()
    assert len(await client.reader.read()) == (8 << 20) + 7
    await until(lambda: not len(proxy.hub.registry))


async def test_a_client_that_is_gone_ends_its_session_at_the_owner(proxied: tuple[Member, Owner]) -> None:
    proxy, owner = proxied
    client = await proxy.client(login="ben", strict=False)
    reader, writer = await owner.client()
    client.writer.transport.abort()
    assert await reader.read() == b""
    # A backend that has nothing to answer closes the connection.
    writer.close()
    await until(lambda: not len(proxy.hub.registry))
    assert proxy.counts.open == 0


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("way", ["client", "backend", "kick"])
async def test_reference_counts_free_a_splice(proxied: tuple[Member, Owner], way: str, tls: bool) -> None:
    """A connection under TLS has a buffer of 256 KiB, and the garbage collector runs
    too seldom for many of them."""
    proxy, owner = proxied
    kinds = (Splice, splice_module.Side, Dialogue, Connection, Parser)
    gc.collect()
    gc.disable()

    def there() -> set[int]:
        # Not isinstance: weak proxies of other tests look through to what they had.
        return {id(one) for one in gc.get_objects() if type(one) in kinds}

    before = there()
    try:
        client = await proxy.client(login="ben", tls=tls, strict=False)
        _, writer = await owner.client()
        assert {type(one) for one in gc.get_objects()} >= {Splice, splice_module.Side}
        if way == "client":
            client.writer.transport.abort()
        elif way == "kick":
            proxy.imap.kick("ben")
        writer.close()
        await until(lambda: not len(proxy.hub.registry) and not proxy.hub.tasks)
        client.writer.close()
        await until(lambda: there() <= before)
    finally:
        gc.enable()


async def test_a_kick_closes_both_after_the_answer(proxied: tuple[Member, Owner]) -> None:
    proxy, owner = proxied
    client = await proxy.client(login="ben", strict=False)
    reader, writer = await owner.client()
    client.send(b"a FETCH\r\n")
    assert await reader.readline() == b"a FETCH\r\n"
    assert proxy.imap.kick("ben") == 1
    assert await reader.read() == b""
    writer.write(b"a OK\r\n")
    writer.close()
    assert await client.reader.read() == b"a OK\r\n"
    await until(lambda: not len(proxy.hub.registry))


async def test_a_stop_ends_a_splice_whose_owner_never_ends(proxied: tuple[Member, Owner]) -> None:
    proxy, owner = proxied
    client = await proxy.client(login="ben", strict=False)
    await owner.client()
    await proxy.imap.stop(grace_s=0.2)
    assert await client.reader.read() == b""
    assert not len(proxy.hub.registry)


async def test_the_splices_of_a_user_who_was_taken_over_are_closed_at_once(proxied: tuple[Member, Owner]) -> None:
    """The backend is dead or fenced: nobody waits for what it may still say."""
    proxy, owner = proxied
    clients = [await proxy.client(login="ben", strict=False) for _ in range(3)]
    ends = [await owner.client() for _ in clients]
    proxy.forwarder.moves.look()
    await asyncio.sleep(0)
    assert proxy.counts.open == 3, "nothing has changed"
    proxy.router.read["ben"] = Assigned("b3", 2, 1)
    proxy.forwarder.moves.look()
    for client in clients:
        assert await client.reader.read() == b""
    assert len(ends) == 3
    await until(lambda: not len(proxy.hub.registry))


async def test_a_backend_at_another_address_is_another_process(proxied: tuple[Member, Owner]) -> None:
    proxy, owner = proxied
    client = await proxy.client(login="ben", strict=False)
    _end = await owner.client()
    proxy.rows.places["b2"] = ("192.0.2.7", {"imap": owner.port})
    proxy.forwarder.moves.look()
    assert await client.reader.read() == b""


async def test_a_backend_that_released_a_user_may_say_its_last_words(
    proxied: tuple[Member, Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves_module, "MOVED_S", 3600.0)
    proxy, owner = proxied
    client = await proxy.client(login="ben", strict=False)
    _, writer = await owner.client()
    proxy.router.read["ben"] = Assigned("b3", 2, 1, released=True)
    for _ in range(2):
        proxy.forwarder.moves.look()
        await asyncio.sleep(0.01)
    writer.write(b"* BYE your mail moves\r\n")
    writer.close()
    assert await client.reader.read() == b"* BYE your mail moves\r\n"
    await until(lambda: not len(proxy.hub.registry))


async def test_a_backend_that_released_a_user_and_says_nothing_is_cut(
    proxied: tuple[Member, Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves_module, "MOVED_S", 0.01)
    proxy, owner = proxied
    client = await proxy.client(login="ben", strict=False)
    _end = await owner.client()
    proxy.router.read["ben"] = Assigned("b3", 2, 1, released=True)
    proxy.forwarder.moves.look()
    assert await client.reader.read() == b""


async def test_a_client_that_leaves_during_the_login_leaves_nothing(proxied: tuple[Member, Owner]) -> None:
    proxy, owner = proxied
    gate = asyncio.Event()

    async def route(sid: str) -> object:
        await gate.wait()
        return type(proxy.router).answer_of(proxy.router, sid)

    proxy.router.read["ben"] = proxy.rows.owners["ben"]
    proxy.router.route = route
    client = await proxy.client(strict=False)
    client.send(b"a LOGIN ben secret\r\n")
    await until(lambda: len(proxy.hub.tasks) == 1)
    sock = client.writer.get_extra_info("socket")
    # The client resets the connection instead of closing it.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()
    await until(lambda: not len(proxy.hub.registry))
    gate.set()
    assert owner.arrived.empty()


async def test_an_owner_that_speaks_no_imap_or_too_much(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        made.rows.own("ben", "b2")
        proxy = await made.member("p1", proxy=True)
        for greeting in (
            b"220 hello\r\n",
            b"* BYE [UNAVAILABLE] stopping\r\n",
            b"* OK " + b"x" * 70_000,
            b"* OK\r\n\xff\r\n",
        ):

            async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytes = greeting) -> None:
                writer.write(said)

            server = await asyncio.start_server(serve, ADDRESS, 0)
            made.rows.places["b2"] = (ADDRESS, {"imap": server.sockets[0].getsockname()[1]})
            client = await proxy.client()
            assert (await client.cmd("LOGIN ben secret"))[-1].startswith(b"NO [UNAVAILABLE]")
            server.close()


@pytest.mark.parametrize(
    "says",
    [
        b"b OK Logged in",
        b"+ \r\nb OK Logged in",
        b"b NO [AUTHORIZATIONFAILED] The user is disabled",
        b"b NO [LIMIT] Too many sessions",
        b"b NO [X-OBOX-REFERRAL b3 99 1] Elsewhere",
    ],
)
async def test_a_server_that_proves_nothing_gets_no_client(tmp_path: Path, says: bytes) -> None:
    """Somebody listens at the address of the owner, and does not know the secret. With
    the first answer it used to get the session of the client."""
    heard = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"* OK ready\r\n")
        heard.append(await reader.readline())
        writer.write(says + b"\r\n")
        heard.append(await reader.read())
        writer.close()

    async with cluster(tmp_path) as made:
        made.rows.own("ben", "b2")
        proxy = await made.member("p1", proxy=True)
        server = await asyncio.start_server(serve, ADDRESS, 0)
        made.rows.places["b2"] = (ADDRESS, {"imap": server.sockets[0].getsockname()[1]})
        client = await proxy.client()
        answer = (await client.cmd("LOGIN ben secret"))[-1]
        assert answer.startswith(b"NO [UNAVAILABLE] The backend of this user does not answer")
        assert all(b"secret" not in line and b"CAPABILITY" not in line for line in heard)
        assert proxy.counts.results == [("imap", "refused")]
        server.close()


async def test_a_half_splice_ends_after_a_while_of_silence(
    proxied: tuple[Member, Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has ended its side of the connection, and the backend neither answers
    nor closes."""
    monkeypatch.setattr(splice_module, "HALF_S", 0.1)
    proxy, owner = proxied
    client = await proxy.client(login="ben", strict=False)
    await owner.client()
    client.writer.write_eof()
    assert await client.reader.read() == b""
    await until(lambda: not len(proxy.hub.registry))
