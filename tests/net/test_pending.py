"""Silent connections: a new client is served, and the oldest connection of the address
with the most connections is closed for it."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from ipaddress import ip_network
from typing import Any

import pytest
from patience import PATIENT_S
from test_listeners import LOCAL, greeting, listening, port, trusting

from obox.config import Listen
from obox.net import Certificates, Entry, Listeners, Pending, listeners


def test_who_gives_way() -> None:
    dropped: list[str] = []
    pending = Pending(total_max=5, address_max=3)

    def enter(remote: str, name: str) -> Entry:
        return pending.enter(remote, lambda: dropped.append(name))

    honest = enter("198.51.100.1", "honest")
    for number in range(4):
        # All these addresses count as the same network.
        enter(f"2001:db8::{number}", f"v6 {number}")
    assert dropped == ["v6 0"], "its own share"
    enter("192.0.2.1", "a")
    assert not dropped[1:]
    enter("192.0.2.2", "b")
    assert dropped == ["v6 0", "v6 1"], "all together: of the address with most"
    assert len(pending) == 5
    pending.leave(honest)
    pending.leave(honest)
    assert len(pending) == 4
    for number in range(20):
        enter("127.0.0.1", f"own {number}")
    assert len(pending) == 5
    assert "honest" not in dropped


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "Pending", functools.partial(Pending, total_max=8, address_max=4))


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("entry", ["tls", "tls/proxy", "proxy"])
async def test_silent_connections_keep_nobody_out(entry: str, log: Any, greeter: Any, make_cert: Any) -> None:
    cert, key = make_cert("one", "one.example")
    served = Listeners(log=log, tls=Certificates([cert], [key]).context, proxy_networks=LOCAL, proxy_timeout_s=60)
    tls, proxy = "tls" in entry, "proxy" in entry
    served.bind("imap", [Listen("127.0.0.1", 0, tls=tls, proxy=proxy)], greeter)
    header = b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 143\r\n" if proxy else b""
    how: dict[str, Any] = {"ssl": trusting(cert), "server_hostname": "one.example"} if tls else {}
    async with listening(served):
        at = port(served)
        silent = [await asyncio.open_connection("127.0.0.1", at) for _ in range(20)]
        if not tls:
            assert await greeting("127.0.0.1", at, send=header) == b"hello ('192.0.2.7', 4000)\r\n"
        elif not proxy:
            assert await greeting("127.0.0.1", at, **how) == b"hello direct\r\n"
        else:
            for _, writer in silent:
                writer.write(header)
            plain = await asyncio.to_thread(behind_proxy, at, b"PROXY TCP4 192.0.2.8 198.51.100.1 4000 143\r\n")
            assert await greeting(sock=plain, **how) == b"hello ('192.0.2.8', 4000)\r\n"
        ended = [asyncio.ensure_future(reader.read()) for reader, _ in silent]
        done, left = await asyncio.wait(ended, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 12:
            more, left = await asyncio.wait(left, timeout=5, return_when=asyncio.FIRST_COMPLETED)
            assert more, f"{len(done)} of 20 silent connections have given way"
            done |= more
        for task in left:
            task.cancel()
        for _, writer in silent:
            writer.close()
    assert any(line[1] == "pending connections dropped for new clients" for line in log.lines)


@pytest.mark.usefixtures("few")
async def test_behind_a_proxy_each_client_counts_by_itself(log: Any, greeter: Any, make_cert: Any) -> None:
    """A client begins its handshake before others that come through the same proxy, and
    ends it after them. None of them gives way for a client with fewer connections."""
    cert, key = make_cert("one", "one.example")
    served = Listeners(log=log, tls=Certificates([cert], [key]).context, proxy_networks=LOCAL, proxy_timeout_s=60)
    served.bind("imap", [Listen("127.0.0.1", 0, tls=True, proxy=True)], greeter)
    async with listening(served):
        at = port(served)
        honest = await asyncio.to_thread(behind_proxy, at, b"PROXY TCP4 192.0.2.8 198.51.100.1 4000 143\r\n")
        silent = []
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", at)
            writer.write(b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 143\r\n")
            silent.append((reader, writer))
        for reader, _ in silent[:16]:
            assert await asyncio.wait_for(_end(reader), 10) == b""
        how = {"ssl": trusting(cert), "server_hostname": "one.example"}
        assert await greeting(sock=honest, **how) == b"hello ('192.0.2.8', 4000)\r\n"
        for _, writer in silent:
            writer.close()


async def _end(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


def behind_proxy(at: int, header: bytes) -> Any:
    plain = socket.create_connection(("127.0.0.1", at))
    plain.sendall(header)
    return plain


@pytest.mark.parametrize("send", [b"", b"\x16\x03\x01"])
async def test_a_handshake_has_little_time(send: bytes, log: Any, greeter: Any, make_cert: Any) -> None:
    cert, key = make_cert("one", "one.example")
    served = Listeners(log=log, tls=Certificates([cert], [key]).context, proxy_networks=LOCAL, handshake_s=0.2)
    served.bind("imap", [Listen("127.0.0.1", 0, tls=True), Listen("127.0.0.1", 0, tls=True, proxy=True)], greeter)
    async with listening(served):
        for address, first in zip(served.addresses("imap"), (b"", b"PROXY UNKNOWN\r\n"), strict=True):
            at = int(address.partition("/")[0].rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", at)
            writer.write(first + send)
            try:
                assert await asyncio.wait_for(reader.read(), PATIENT_S) == b""
            except ConnectionResetError:
                # The server cut the connection before it read these bytes.
                pass
            writer.close()


async def test_a_handshake_that_is_rubbish_is_no_error(log: Any, greeter: Any, make_cert: Any) -> None:
    cert, key = make_cert("one", "one.example")
    served = Listeners(log=log, tls=Certificates([cert], [key]).context, proxy_networks=[ip_network("::1")])
    served.bind("imap", [Listen("127.0.0.1", 0, tls=True)], greeter)
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
    async with listening(served):
        reader, writer = await asyncio.open_connection("127.0.0.1", port(served))
        writer.write(b"a LOGIN x y\r\n" * 10)
        try:
            assert len(await asyncio.wait_for(reader.read(), 5)) <= 64, "an alert at most"
        except (ConnectionResetError, ssl.SSLError):
            pass
        writer.close()
    assert failures == []
