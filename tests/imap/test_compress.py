"""COMPRESS=DEFLATE over a socket, RFC 4978."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import DEADLINE_S, Compressed, Running, serving

from obox.imap.connection import Connection
from obox.store.memory import MemoryStore


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running[MemoryStore]]:
    async with serving(tmp_path) as running:
        yield running


async def compressed(running: Running[MemoryStore]) -> Compressed:
    client = await running.client(login="anna")
    assert await client.cmd("COMPRESS DEFLATE") == [b"OK Compression is active"]
    found = Compressed(client)
    running.clients.append(found)
    return found


def connection(running: Running[MemoryStore]) -> Connection:
    (found,) = running.imap.context.registry
    assert isinstance(found, Connection)
    return found


async def test_everything_is_compressed(running: Running[MemoryStore]) -> None:
    client = await compressed(running)
    mail = b"Subject: x\r\n\r\n" + b"y" * 3_000_000
    await client.append("INBOX", mail)
    await client.ok("SELECT INBOX")
    lines = await client.ok("FETCH 1 BODY.PEEK[]")
    assert lines[0].endswith(mail + b")")
    client.send("i IDLE\r\n")
    assert (await client.line()).startswith(b"+ ")
    client.send("DONE\r\n")
    assert (await client.until(b"i "))[-1].startswith(b"i OK ")
    assert connection(running).bytes_in < 10_000


async def test_what_is_offered(running: Running[MemoryStore]) -> None:
    client = await running.client()
    assert b"COMPRESS=DEFLATE" not in (await client.ok("CAPABILITY"))[0].split()
    assert (await client.cmd("COMPRESS DEFLATE"))[-1].startswith(b"BAD ")
    await client.ok("LOGIN anna secret")
    assert b"COMPRESS=DEFLATE" in (await client.ok("CAPABILITY"))[0].split()
    for command in ("COMPRESS", "COMPRESS NONE", "COMPRESS DEFLATE x"):
        assert (await client.cmd(command))[-1].startswith(b"BAD ")
    await client.ok("compress deflate")
    client = Compressed(client)
    running.clients.append(client)
    words = (await client.ok("CAPABILITY"))[0].split()
    assert not {b"COMPRESS=DEFLATE", b"UNAUTHENTICATE"} & set(words)
    for command in ("COMPRESS DEFLATE", "UNAUTHENTICATE"):
        assert (await client.cmd(command))[-1].startswith(b"BAD ")
    await client.ok("NOOP")


async def test_many_commands_in_one_piece(running: Running[MemoryStore]) -> None:
    client = await compressed(running)
    client.send(b"".join(b"n%d NOOP\r\n" % number for number in range(5_000)))
    lines = await client.until(b"n4999 ")
    assert len(lines) == 5_000


async def test_input_that_inflates_a_thousandfold(running: Running[MemoryStore]) -> None:
    """It is inflated by the piece, and is subject to all limits."""
    client = await compressed(running)
    client.send(b"a NOOP " + b"x" * (100 << 20) + b"\r\nb NOOP\r\n")
    assert (await client.line()).startswith(b"a BAD Line too long")
    assert (await client.until(b"b "))[-1].startswith(b"b OK ")
    assert connection(running).parser.buffered < 100_000


@pytest.mark.parametrize("data", [b"a NOOP\r\n", b"\xff" * 100, zlib.compress(b"a NOOP\r\n")])
async def test_input_that_is_not_compressed_ends_the_connection(running: Running[MemoryStore], data: bytes) -> None:
    client = await compressed(running)
    client.writer.write(data)
    async with asyncio.timeout(DEADLINE_S):
        assert await client.line() == b""


async def test_an_idle_connection_has_no_compressor(running: Running[MemoryStore]) -> None:
    client = await compressed(running)
    await client.ok("NOOP")
    mine = connection(running)
    await asyncio.gather(*running.imap.context.hub.tasks)
    assert mine.deflated is not None
    assert mine.deflated.deflate is not None
    mine.timer_due(1.0)
    assert mine.deflated.deflate is None
    await client.ok("NOOP")


async def test_the_last_words_are_compressed(running: Running[MemoryStore]) -> None:
    client = await compressed(running)
    await client.ok("NOOP")
    running.imap.kick("anna", "Come back later")
    assert (await client.line()).startswith(b"* BYE Come back later")
    assert await client.line() == b""
