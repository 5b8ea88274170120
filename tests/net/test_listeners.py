"""Addresses of listeners: TCP, Unix sockets, and both with TLS and PROXY headers. An
address that cannot be used is named in the error."""

import asyncio
import gc
import os
import socket
import ssl
import stat
import warnings
from asyncio import AbstractServer
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from certificates import certificate
from patience import PATIENT_S

from obox.config import Listen
from obox.net import Certificates, ListenError, Listeners, TlsError, inherited_sockets

LOCAL = (ip_network("127.0.0.0/8"), ip_network("::1"))


def port(listeners: Listeners, name: str = "imap") -> int:
    return int(listeners.addresses(name)[0].split("/")[0].rpartition(":")[2])


@asynccontextmanager
async def listening(listeners: Listeners) -> AsyncIterator[Listeners]:
    async with asyncio.TaskGroup() as tasks:
        await listeners.start(tasks)
        try:
            yield listeners
        finally:
            listeners.stop()


async def greeting(*where: Any, send: bytes = b"", **how: Any) -> bytes:
    reader, writer = await (asyncio.open_unix_connection if "path" in how else asyncio.open_connection)(*where, **how)
    writer.write(send)
    try:
        return await asyncio.wait_for(reader.readline(), PATIENT_S)
    # The server refused the connection before it read these bytes.
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_tcp_accepts_between_start_and_stop(log: Any, greeter: Any) -> None:
    listeners = Listeners(log=log)
    listeners.bind("imap", [Listen("127.0.0.1", 0)], greeter)
    at = port(listeners)
    async with listening(listeners):
        assert await greeting("127.0.0.1", at) == b"hello direct\r\n"
    with pytest.raises(ConnectionRefusedError):
        await greeting("127.0.0.1", at)


async def test_v4_and_v6_on_the_same_port(log: Any, greeter: Any) -> None:
    listeners = Listeners(log=log)
    listeners.bind("imap", [Listen("0.0.0.0", 0)], greeter)
    try:
        listeners.bind("imap", [Listen("::", port(listeners))], greeter)
    except ListenError as error:
        pytest.skip(f"needs IPv6: {error}") if "no address" in str(error) else pytest.fail(str(error))
    async with listening(listeners):
        assert await greeting("::1", port(listeners)) == b"hello direct\r\n"


async def test_an_address_in_use_is_named(log: Any, greeter: Any, tmp_path: Path) -> None:
    first, second = Listeners(log=log), Listeners(log=log)
    first.bind("imap", [Listen("127.0.0.1", 0), Listen(path=tmp_path / "s")], greeter)
    try:
        for entry in (Listen("127.0.0.1", port(first)), Listen(path=tmp_path / "s")):
            with pytest.raises(ListenError) as caught:
                second.bind("lmtp", [entry], greeter)
            assert str(caught.value) == f"lmtp.listen {entry}: address in use: another process listens there"
        with pytest.raises(ListenError, match="not an address of this machine"):
            second.bind("lmtp", [Listen("192.0.2.1", 0)], greeter)
        with pytest.raises(ListenError, match="there is no certificate"):
            second.bind("imap", [Listen("127.0.0.1", 0, tls=True)], greeter)
    finally:
        first.stop()
        second.stop()


async def test_unix_socket(log: Any, greeter: Any, tmp_path: Path) -> None:
    path = tmp_path / "imap.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    listeners = Listeners(log=log, unix_mode=0o600)
    listeners.bind("imap", [Listen(path=path)], greeter)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with listening(listeners):
        assert await greeting(path=str(path)) == b"hello direct\r\n"
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(ListenError, match="exists and is not a socket"):
        listeners.bind("imap", [Listen(path=path)], greeter)
    assert path.read_text() == "mine"


async def test_a_socket_that_somebody_replaced_is_left(log: Any, greeter: Any, tmp_path: Path) -> None:
    listeners = Listeners(log=log)
    listeners.bind("imap", [Listen(path=tmp_path / "s")], greeter)
    (tmp_path / "s").rename(tmp_path / "old")
    (tmp_path / "s").write_text("other")
    async with listening(listeners):
        pass
    assert (tmp_path / "s").read_text() == "other"


async def test_proxy_header(log: Any, greeter: Any, tmp_path: Path) -> None:
    listeners = Listeners(log=log, proxy_networks=LOCAL, proxy_timeout_s=0.2)
    listeners.bind("imap", [Listen("127.0.0.1", 0, proxy=True), Listen(path=tmp_path / "s", proxy=True)], greeter)
    header = b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 143\r\n"
    async with listening(listeners):
        at = port(listeners)
        assert await greeting("127.0.0.1", at, send=header) == b"hello ('192.0.2.7', 4000)\r\n"
        assert await greeting(path=str(tmp_path / "s"), send=header) == b"hello ('192.0.2.7', 4000)\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", at)
        for byte in header + b"more":
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert await reader.readline() == b"hello ('192.0.2.7', 4000)\r\n"
        assert await reader.readexactly(4) == b"more", "not a byte too many was read"
        writer.close()
        assert await greeting("127.0.0.1", at, send=b"a LOGIN x y\r\n") == b""
        assert await greeting("127.0.0.1", at) == b"", "silence is cut after the timeout"
    assert [line[2]["error"] for line in log.lines] == ["no PROXY header", "no PROXY header in time"]


async def test_proxy_header_from_a_stranger(log: Any, greeter: Any) -> None:
    listeners = Listeners(log=log, proxy_networks=[ip_network("10.0.0.0/8")])
    listeners.bind("imap", [Listen("127.0.0.1", 0, proxy=True)], greeter)
    async with listening(listeners):
        assert await greeting("127.0.0.1", port(listeners)) == b""
    assert "haproxy_trusted_networks" in str(log.lines)


def trusting(*certs: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for cert in certs:
        context.load_verify_locations(cert)
    return context


async def test_tls_by_name_and_reload(log: Any, greeter: Any, make_cert: Any) -> None:
    one, two = make_cert("one", "one.example"), make_cert("two", "two.example", "*.two.example")
    certificates = Certificates([one[0], two[0]], [one[1], two[1]])
    listeners = Listeners(log=log, tls=certificates.context, proxy_networks=LOCAL)
    listeners.bind("imap", [Listen("127.0.0.1", 0, tls=True)], greeter)
    listeners.bind("both", [Listen("127.0.0.1", 0, tls=True, proxy=True)], greeter)
    async with listening(listeners):
        at = port(listeners)
        for name, cert in (("one.example", one), ("two.example", two), ("mx.two.example", two)):
            got = await greeting("127.0.0.1", at, ssl=trusting(cert[0]), server_hostname=name)
            assert got == b"hello direct\r\n"

        plain = socket.create_connection(("127.0.0.1", port(listeners, "both")))
        plain.send(b"PROXY TCP4 192.0.2.7 1.2.3.4 4000 143\r\n")
        got = await greeting(sock=plain, ssl=trusting(one[0]), server_hostname="one.example")
        assert got == b"hello ('192.0.2.7', 4000)\r\n"

        new = make_cert("new", "one.example")
        with pytest.raises(TlsError, match="does not match"):
            certificates.prepare([new[0]], [one[1]])
        with pytest.raises(TlsError, match="nowhere: No such file"):
            certificates.prepare([new[0]], [Path("/nowhere")])
        assert await greeting("127.0.0.1", at, ssl=trusting(one[0]), server_hostname="one.example")
        certificates.use(certificates.prepare([new[0]], [new[1]]))
        assert await greeting("127.0.0.1", at, ssl=trusting(new[0]), server_hostname="one.example")
        with pytest.raises(ssl.SSLCertVerificationError):
            await greeting("127.0.0.1", at, ssl=trusting(one[0]), server_hostname="one.example")
        anyone = trusting(new[0])
        anyone.check_hostname = False
        assert await greeting("127.0.0.1", at, ssl=anyone, server_hostname=""), "no name: the first"
        old = trusting(new[0])
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await greeting("127.0.0.1", at, ssl=old, server_hostname="one.example")


async def test_broken_certificates(make_cert: Any, tmp_path: Path) -> None:
    cert, key = make_cert("a", "a.example")
    (tmp_path / "rubbish").write_text("rubbish")
    for pair in ((cert, tmp_path / "rubbish"), (tmp_path / "rubbish", key)):
        with pytest.raises(TlsError, match="rubbish"):
            Certificates([pair[0]], [pair[1]])


async def test_the_first_certificate_that_expires_counts(tmp_path: Path) -> None:
    """A certificate that signed another counts too, for clients check the chain."""
    first, signer = certificate(tmp_path, "a", hours=100), certificate(tmp_path, "signer", hours=50)
    second = certificate(tmp_path, "b", hours=75)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(first[0].read_bytes() + signer[0].read_bytes())
    certificates = Certificates([second[0], chain], [second[1], first[1]])

    def left_hours() -> float:
        return certificates.figures()["certificate_expiry_seconds"] / 3600

    assert 49 < left_hours() <= 50
    certificates.use(certificates.prepare([second[0]], [second[1]]))
    assert 74 < left_hours() <= 75, "a certificate that was replaced counts no more"
    gone = certificate(tmp_path, "gone", hours=-0.5)
    certificates.use(certificates.prepare([gone[0]], [gone[1]]))
    assert -1 < left_hours() <= -0.5


async def test_inherited_sockets(log: Any, greeter: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        at = sock.getsockname()[1]
        listeners = Listeners(log=log, inherited=[sock])
        listeners.bind("imap", [Listen("127.0.0.1", at)], greeter)
        async with listening(listeners):
            assert await greeting("127.0.0.1", at) == b"hello direct\r\n"
    assert inherited_sockets({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []
    assert inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"}) == []


@pytest.mark.parametrize("kind", ["tcp", "unix", "proxy"])
async def test_before_is_called_once_a_client_has_connected(kind: str, tmp_path: Path, log: Any, greeter: Any) -> None:
    calls: list[str] = []

    async def before() -> None:
        calls.append(kind)
        if len(calls) == 1:
            raise ImportError("the modules are being replaced")

    entry = Listen(path=tmp_path / "s") if kind == "unix" else Listen("127.0.0.1", 0, proxy=kind == "proxy")
    listeners = Listeners(log=log, proxy_networks=LOCAL)
    listeners.bind("admin", [entry], greeter, before=before)
    listeners.bind("imap", [Listen("127.0.0.1", 0)], greeter)
    send = b"PROXY UNKNOWN\r\n" if kind == "proxy" else b""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("obox.net.listeners.AGAIN_S", 0.0)
        async with listening(listeners):
            assert await greeting("127.0.0.1", port(listeners)) == b"hello direct\r\n"
            assert calls == [], "nobody has connected to the other address"
            for _ in range(2):
                if kind == "unix":
                    assert (await greeting(path=str(entry.path))).startswith(b"hello")
                else:
                    assert (await greeting("127.0.0.1", port(listeners, "admin"), send=send)).startswith(b"hello")
            assert calls == [kind] * 2, "the second attempt has succeeded, and is the last"
    assert [level for level, *_ in log.lines] == ["exception"]


async def test_a_stop_ends_an_address_that_nobody_has_used(tmp_path: Path, log: Any, greeter: Any) -> None:
    async def before() -> None:
        raise AssertionError("nobody has connected")

    listeners = Listeners(log=log, proxy_networks=LOCAL)
    for entry in (Listen(path=tmp_path / "s"), Listen("127.0.0.1", 0, proxy=True), Listen("127.0.0.1", 0)):
        listeners.bind("http", [entry], greeter, before=before)
    ports = [int(one.split("/")[0].rpartition(":")[2]) for one in listeners.addresses("http")[1:]]
    async with listening(listeners):
        listeners.stop(keep=["http"])
        assert len(listeners.addresses("http")) == 3
    assert not (tmp_path / "s").exists()
    for at in ports:
        with pytest.raises(ConnectionRefusedError):
            await greeting("127.0.0.1", at)


@pytest.mark.parametrize("turns", range(4))
async def test_a_stop_in_any_turn_of_the_first_client_leaves_no_server(turns: int, log: Any, greeter: Any) -> None:
    """The client has connected, and the server is made in one of these turns."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    listeners = Listeners(log=log)

    def stop(left: int) -> None:
        if left:
            loop.call_soon(stop, left - 1)
        else:
            listeners.stop()
            stopped.set()

    async def before() -> None:
        loop.call_soon(stop, turns)

    listeners.bind("http", [Listen("127.0.0.1", 0)], greeter, before=before)
    at = port(listeners, "http")
    async with listening(listeners):
        with socket.create_connection(("127.0.0.1", at)):
            await asyncio.wait_for(stopped.wait(), PATIENT_S)
            for _ in range(5):
                await asyncio.sleep(0)
            assert not [one for one in gc.get_objects() if isinstance(one, AbstractServer) and one.is_serving()]
            with pytest.raises(ConnectionRefusedError):
                await greeting("127.0.0.1", at)
