"""The LMTP server on real sockets, with a deliverer that keeps mails in a dict."""

from __future__ import annotations

import asyncio
import gc
import smtplib
import socket
import ssl
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import certificate
from lmtp_harness import MAIL, Client, serving
from patience import PATIENT_S
from structlog.testing import capture_logs
from turns import turns

from obox.lmtp import connection as lmtp_connection
from obox.lmtp.settings import READ_AHEAD_BYTES


async def test_mixed_recipients(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        names = ["bob+work", "no", "full", "eve", "down", "bug", "off", "slow", "crash"]
        client.write(
            b"MAIL FROM:<a@b> SIZE=99\r\n" + b"".join(b"RCPT TO:<%s@d>\r\n" % n.encode() for n in names) + b"DATA\r\n"
        )
        replies = await client.replies(11)
        assert [reply[:9] for reply in replies[1:]] == [
            "250 2.1.5",
            "550 5.1.1",
            "250 2.1.5",
            "250 2.1.5",
            "250 2.1.5",
            "250 2.1.5",
            "550 5.2.1",
            "250 2.1.5",
            "451 4.3.0",
            "354 OK, e",
        ]
        assert replies[7] == "550 5.2.1 <off@d> User is disabled"
        client.write(MAIL + b".\r\n")
        with capture_logs() as logs:
            replies = await client.replies(6)
        assert [reply[:9] for reply in replies] == [
            "250 2.0.0",
            "552 5.2.2",
            "250 2.0.0",
            "451 4.3.0",
            "451 4.3.0",
            "451 4.3.0",
        ]
        assert replies[0].startswith("250 2.0.0 <bob+work@d> ")
        assert replies[0].endswith(" Saved")
        assert replies[3].endswith("bucket does not answer")
        assert not any("secret" in reply for reply in replies)
        assert set(world.store.mails) == {"bob+work@d", "eve@d"}
        assert world.store.sizes == [99] * 9
        lines = [line for line in logs if line["event"] == "lmtp delivery"]
        assert len(lines) == 6
        assert lines[0]["queue_id"] == "Q1"
        assert lines[0]["message_id"] == "<1@x>"
        assert {line["result"] for line in lines} == {"250 2.0.0", "552 5.2.2", "451 4.3.0"}
        assert [line["recipient"] for line in logs if line["event"] == "lmtp delivery failed by a bug"] == ["bug@d"]
        assert (await client.say("QUIT")).startswith("221")
        assert await client.ended()


@pytest.mark.parametrize(
    "command", ["NOOP", "LHLO x", "MAIL FROM:<a@b>\r\nRSET", "RCPT TO:<no@d>", "BDAT 0", "BDAT 3\r\nx"]
)
async def test_pipelined_commands_let_others_run(command: str, tmp_path: Path) -> None:
    """A client sends very many commands at once."""
    async with serving(tmp_path) as world:
        client = await world.connect()
        client.write(b"MAIL FROM:<a@b>\r\nRCPT TO:<bob@d>\r\n")
        await client.replies(2)
        with capture_logs(), turns() as found:
            count = 8_000 if "RCPT" in command else 400_000 // len(command)
            client.write(f"{command}\r\n".encode() * count + b"QUIT\r\n")
            async with asyncio.timeout(PATIENT_S):
                assert (await client.reader.read()).count(b"\r\n") > count
        found.check()


async def test_pipelined_replies_that_nobody_reads(tmp_path: Path) -> None:
    """The next commands wait, and go on when the client reads the replies."""
    async with serving(tmp_path) as world:
        client = await world.connect()
        (connection,) = world.server.connections
        client.writer.transport.pause_reading()
        client.write(b"LHLO x\r\n" * 100_000 + b"QUIT\r\n")
        for _ in range(1_000):
            if connection.write_paused:
                break
            await asyncio.sleep(0.01)
        assert connection.write_paused
        await asyncio.sleep(0.1)
        assert connection.machine.buffered_bytes < 4 * READ_AHEAD_BYTES
        assert connection.unsent_bytes < 4_000_000
        client.writer.transport.resume_reading()
        async with asyncio.timeout(PATIENT_S):
            assert (await client.reader.read()).count(b"250 SMTPUTF8\r\n") == 100_000


async def test_what_is_stored(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        client.write(b"MAIL FROM:<a@b> BODY=8BITMIME\r\nRCPT TO:<bob@d>\r\nDATA\r\n")
        await client.replies(3)
        client.write(b"Return-Path: <forged@x>\r\n" + MAIL + b"..\xff\nbare\r\n.\r\n")
        saved = await client.reply()
        (source,) = world.store.mails["bob@d"]
        head, _, rest = source.partition(b"\r\n\r\nbody")
        lines = head.split(b"\r\n")
        session = world.store.envelopes[0].session_id
        assert lines[0] == b"Return-Path: <a@b>"
        assert lines[1] == b"Delivered-To: bob@d"
        assert lines[2] == b"Received: from client ([127.0.0.1])"
        assert lines[3] == b"\tby mx with LMTP"
        assert lines[4] == b"\tid " + session.encode()
        assert lines[6:] == [b"Return-Path: <forged@x>", *MAIL.split(b"\r\n")[:3]]
        assert rest == b"\r\n.\xff\nbare\r\n"
        assert session in saved
        assert world.store.envelopes[0].body == "8BITMIME"
        assert world.store.envelopes[0].size == len(MAIL) + 25 + 9


async def test_loop(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        client.write(b"MAIL FROM:<>\r\nRCPT TO:<Bob@d>\r\nRCPT TO:<eve@d>\r\nDATA\r\n")
        await client.replies(4)
        client.write(b"Delivered-To: bob@D\r\n" * 11 + MAIL + b".\r\n")
        replies = await client.replies(2)
        assert replies[0].startswith("554 5.4.6 <Bob@d>")
        assert replies[1].startswith("250 ")
        assert set(world.store.mails) == {"eve@d"}


async def test_a_mail_that_was_fetched_comes_back(tmp_path: Path) -> None:
    """A mail that was stored is delivered again, as after a fetch, a resend or a
    restore. That is not a loop."""
    async with serving(tmp_path) as world:
        client = await world.connect()
        source = MAIL
        for _ in range(10):
            client.write(b"MAIL FROM:<>\r\nRCPT TO:<bob@d>\r\nDATA\r\n")
            assert (await client.replies(3))[2].startswith("354")
            client.write(source + b".\r\n")
            assert (await client.reply()).startswith("250 ")
            source = world.store.mails["bob@d"][-1]
        assert source.count(b"Delivered-To: bob@d\r\n") == 10


async def test_idle_connections_keep_nobody_out(tmp_path: Path) -> None:
    async with serving(tmp_path, connections_max=3) as world:
        idle = [await world.connect() for _ in range(3)]
        assert (await idle[0].say("MAIL FROM:<>")).startswith("250")
        assert (await idle[1].say("NOOP")).startswith("250")
        fourth = await world.connect()
        assert (await idle[2].reply()).startswith("421 4.3.2"), "idle for longest"
        for client, line in ((idle[1], "MAIL FROM:<>"), (fourth, "MAIL FROM:<>")):
            assert (await client.say(line)).startswith("250")
        late = Client(*await asyncio.open_connection("127.0.0.1", world.port))
        assert (await late.reply()).startswith("421 4.3.2"), "the others are busy"
        late.writer.close()
        assert (await idle[0].say("RCPT TO:<bob@d>")).startswith("250")


async def test_an_address_has_so_many_connections(tmp_path: Path) -> None:
    async with serving(tmp_path, address_connections_max=2, trusted_networks=("::/0", "0.0.0.0/0")) as world:
        server, reported = world.server, []

        class Transport(asyncio.Transport):
            def write(self, data: bytes | bytearray | memoryview) -> None:
                reported.append(bytes(data))

            def close(self) -> None:
                pass

            abort = close

            def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
                pass

        for remote in ("2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1", "192.0.2.1"):
            protocol = server.connection_factory(remote=remote)
            protocol.connection_made(Transport())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert [line[:3] for line in reported] == [b"220", b"220", b"421", b"220", b"220"]
        assert server.addresses == {"2001:db8::/64": 2, "2001:db8:0:1::/64": 1, "192.0.2.1": 1}
        for connection in list(server.connections):
            connection.connection_lost(None)
        await _until(lambda: not server.connections)
        assert not server.addresses


async def test_tempfail_on_quota(tmp_path: Path) -> None:
    async with serving(tmp_path, quota_full_tempfail=True) as world:
        client = await world.connect()
        client.write(b"MAIL FROM:<>\r\nRCPT TO:<full@d>\r\nBDAT 2 LAST\r\n\r\n")
        assert (await client.replies(3))[2].startswith("452 4.2.2")


async def test_smtplib_over_both_sockets(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:

        def send(host: str, port: int) -> None:
            with smtplib.LMTP(host, port) as lmtp:
                lmtp.sendmail("a@b", ["bob@d"], MAIL)
                lmtp.sendmail("a@b", ["bob@d"], b".dot\r\n")

        await asyncio.to_thread(send, "127.0.0.1", world.port)
        await asyncio.to_thread(send, world.path, 0)
        assert len(world.store.mails["bob@d"]) == 4
        assert world.store.mails["bob@d"][1].endswith(b"\r\n.dot\r\n")
        assert [envelope.remote for envelope in world.store.envelopes] == ["127.0.0.1"] * 2 + ["unix"] * 2
        assert b"([" not in world.store.mails["bob@d"][2]


async def test_recipients_are_delivered_side_by_side(tmp_path: Path) -> None:
    async with serving(tmp_path, deliveries_parallel_max=3) as world:
        client = await world.connect()
        world.store.gate.clear()
        client.write(
            b"MAIL FROM:<>\r\n" + b"".join(b"RCPT TO:<u%d@d>\r\n" % n for n in range(8)) + b"BDAT 2 LAST\r\n\r\n"
        )
        # The replies are sent before the deliveries end.
        await client.replies(9)
        world.store.gate.set()
        replies = await client.replies(8)
        assert world.store.most == 3
        assert [f"<u{n}@d>" in replies[n] for n in range(8)] == [True] * 8


async def test_large_mails_go_through_a_file(tmp_path: Path) -> None:
    async with serving(tmp_path, spool_memory_bytes=1000, delivery_bytes_max=1 << 20) as world:
        client = await world.connect()
        body = MAIL + b"".join(b"%07d\r\n" % n for n in range(100_000))
        for how in ("data", "bdat"):
            client.write(b"MAIL FROM:<>\r\nRCPT TO:<u@d>\r\nRCPT TO:<v@d>\r\n")
            await client.replies(3)
            if how == "data":
                assert (await client.say("DATA")).startswith("354")
                client.write(body + b".\r\n")
            else:
                client.write(b"BDAT %d\r\n" % len(body[:50_000]) + body[:50_000])
                client.write(b"BDAT %d LAST\r\n" % len(body[50_000:]) + body[50_000:])
                await client.reply()
            assert [reply[:3] for reply in await client.replies(2)] == ["250", "250"]
        for address in ("u@d", "v@d"):
            assert [mail.endswith(b"\r\n" + body) for mail in world.store.mails[address]] == [True, True]
        assert list((tmp_path / "spool").iterdir()) == []
        client.write(b"MAIL FROM:<>\r\nRCPT TO:<u@d>\r\nBDAT 3 LAST\r\nx\r\n")
        assert (await client.replies(3))[2].startswith("250")
        assert world.store.mails["u@d"][2].endswith(b"\r\nx\r\n")


async def test_a_large_mail_is_not_copied_on_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def join(parts: tuple[bytes, bytes]) -> bytes:
        threads.append(threading.get_ident())
        return b"".join(parts)

    monkeypatch.setattr("obox.lmtp.session._join", join)
    async with serving(tmp_path) as world:
        client = await world.connect()
        bodies = [MAIL + b"x" * 70 + b"\r\n", MAIL + (b"x" * 70 + b"\r\n") * 20_000]
        for body in bodies:
            client.write(b"MAIL FROM:<>\r\nRCPT TO:<u@d>\r\nBDAT %d LAST\r\n" % len(body) + body)
            assert (await client.replies(3))[2].startswith("250")
        for mail, body in zip(world.store.mails["u@d"], bodies, strict=True):
            assert mail.startswith(b"Return-Path:")
            assert mail.endswith(b"\r\n" + body)
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_a_full_disk_is_temporary(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("not a directory")
    async with serving(tmp_path, spool_memory_bytes=1000) as world:
        client = await world.connect()
        client.write(b"MAIL FROM:<>\r\nRCPT TO:<u@d>\r\nBDAT 600000 LAST\r\n" + b"x" * 600_000)
        assert (await client.replies(3))[2].startswith("451 4.3.0")
        client.write(b"MAIL FROM:<>\r\nRCPT TO:<u@d>\r\nBDAT 3 LAST\r\nx\r\n")
        assert (await client.replies(3))[2].startswith("250")


async def test_untrusted(tmp_path: Path) -> None:
    async with serving(tmp_path, trusted_networks=("192.0.2.0/24", "2001:db8::/32")) as world:
        client = Client(*await asyncio.open_connection("127.0.0.1", world.port))
        assert (await client.reply()).startswith("554 5.7.1")
        assert await client.ended()
        client.writer.close()
        unix = Client(*await asyncio.open_unix_connection(world.path))
        assert (await unix.reply()).startswith("220")
        unix.writer.close()
        for remote, trusted in [
            ("192.0.2.9", True),
            ("::ffff:192.0.2.9", True),
            ("2001:db8::1%eth0", True),
            ("127.0.0.1", False),
            ("junk", False),
        ]:
            assert world.server.trusts(remote) is trusted


async def test_too_many_connections(tmp_path: Path) -> None:
    """None of the connections is idle, so a further connection is refused."""
    async with serving(tmp_path, connections_max=1) as world:
        busy = await world.connect()
        assert (await busy.say("MAIL FROM:<>")).startswith("250")
        client = Client(*await asyncio.open_connection("127.0.0.1", world.port))
        assert (await client.reply()).startswith("421 4.3.2")
        assert await client.ended()
        client.writer.close()


@pytest.mark.parametrize("where", ["command", "data"])
async def test_timeouts(tmp_path: Path, where: str) -> None:
    limits = {"command_timeout_s": 60.0, "data_timeout_s": 60.0} | {f"{where}_timeout_s": 0.02}
    async with serving(tmp_path, **limits) as world:
        client = await world.connect()
        if where == "data":
            client.write(b"MAIL FROM:<>\r\nRCPT TO:<u@d>\r\nDATA\r\n")
            await client.replies(3)
            client.write(b"x")
        assert (await client.reply()).startswith("421 4.4.2")
        assert await client.ended()
        assert world.store.mails == {}


async def test_a_delivery_that_hangs(tmp_path: Path) -> None:
    async with serving(tmp_path, delivery_timeout_s=0.02) as world:
        client = await world.connect()
        world.store.gate.clear()
        client.write(b"MAIL FROM:<>\r\nRCPT TO:<u@d>\r\nBDAT 2 LAST\r\n\r\n")
        assert (await client.replies(3))[2].startswith("451 4.3.0 <u@d>")


async def test_a_client_that_goes_away(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        # If the connection ends in the middle of a mail, nothing is stored. After the
        # end of the mail all of it is stored.
        for end in (b"", b".\r\n"):
            client = await world.connect()
            client.write(b"MAIL FROM:<>\r\nRCPT TO:<u@d>\r\nDATA\r\n")
            await client.replies(3)
            world.store.gate.clear()
            client.write(b"hi\r\n" + end)
            await client.writer.drain()
            if end:
                await _until(lambda: world.store.running > 0)
            client.writer.transport.abort()
            await asyncio.sleep(0.01)
            world.store.gate.set()
            await _until(lambda: not world.server.connections)
            assert len(world.store.mails.get("u@d", [])) == (1 if end else 0)


async def test_half_closed(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = Client(*await asyncio.open_connection("127.0.0.1", world.port))
        client.write(b"LHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<u@d>\r\nBDAT 2 LAST\r\n\r\n")
        client.writer.write_eof()
        assert [reply[:3] for reply in await client.replies(5)] == ["220", "250", "250", "250", "250"]
        assert await client.ended()
        client.writer.close()


async def test_stop_finishes_the_transaction(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        idle, busy = await world.connect(), await world.connect()
        busy.write(b"MAIL FROM:<>\r\nRCPT TO:<u@d>\r\nDATA\r\n")
        await busy.replies(3)
        stop = asyncio.create_task(world.server.stop(grace_s=5))
        assert (await idle.reply()).startswith("421 4.3.2")
        assert await idle.ended()
        busy.write(b"hi\r\n.\r\nMAIL FROM:<>\r\n")
        assert (await busy.reply()).startswith("250 2.0.0 <u@d>")
        assert (await busy.reply()).startswith("421 4.3.2")
        assert await busy.ended()
        await stop
        late = Client(*await asyncio.open_connection("127.0.0.1", world.port))
        assert (await late.reply()).startswith("421")
        late.writer.close()


async def test_stop_does_not_wait_for_ever(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        world.store.gate.clear()
        client.write(b"MAIL FROM:<>\r\nRCPT TO:<u@d>\r\nBDAT 2 LAST\r\n\r\n")
        await client.replies(2)
        await world.server.stop(grace_s=0.02)
        # There is no reply, so the sender keeps the mail.
        assert await client.ended()
        assert world.store.mails == {}


async def test_a_client_that_does_not_read(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        (connection,) = world.server.connections
        count = 60_000
        sender = asyncio.create_task(_drained(client, b"VRFY x\r\n" * count))
        for _ in range(200):
            await asyncio.sleep(0.001)
            assert connection.unsent_bytes < 3 << 20
            assert connection.machine.buffered_bytes < 1 << 20
        for _ in range(count):
            assert (await client.reply()).startswith("252")
        await sender


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came")


async def _drained(client: Client, data: bytes) -> None:
    client.write(data)
    await client.writer.drain()


async def test_starttls(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_tls.load_cert_chain(cert, key)
    client_tls = ssl.create_default_context(cafile=cert)
    async with serving(tmp_path, tls=lambda: server_tls) as world:

        def send() -> None:
            with smtplib.LMTP("127.0.0.1", world.port) as lmtp:
                lmtp.ehlo_or_helo_if_needed()
                assert lmtp.has_extn("starttls")
                lmtp.starttls(context=client_tls)
                lmtp.ehlo()
                assert not lmtp.has_extn("starttls")
                lmtp.sendmail("a@b", ["bob@d"], MAIL)

        await asyncio.to_thread(send)
        assert b"with LMTPS\r\n" in world.store.mails["bob@d"][0]
        # The client sends no TLS handshake. Its session ends, and the server goes on.
        client = await world.connect()
        assert (await client.say("STARTTLS")).startswith("220")
        client.write(b"MAIL FROM:<>\r\n" * 10)
        async with asyncio.timeout(PATIENT_S):
            await client.reader.read()
        await world.connect()


async def test_a_handshake_has_little_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmtp_connection, "TLS_HANDSHAKE_S", 0.1)
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_tls.load_cert_chain(*certificate(tmp_path))
    async with serving(tmp_path, tls=lambda: server_tls) as world:
        client = await world.connect()
        assert (await client.say("STARTTLS")).startswith("220")
        assert await client.ended()


async def test_a_command_right_behind_the_handshake(tmp_path: Path) -> None:
    """The command arrives in the same packet as the last message of the handshake. It
    is protected by TLS, so it is answered."""
    cert, key = certificate(tmp_path)
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_tls.load_cert_chain(cert, key)
    client_tls = ssl.create_default_context(cafile=cert)
    client_tls.check_hostname = False

    def talk(port: int) -> bytes:
        came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_tls.wrap_bio(came, goes)
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENT_S) as sock:
            sock.sendall(b"LHLO c\r\nSTARTTLS\r\n")
            seen = b""
            while not seen.endswith(b"220 2.0.0 Begin TLS\r\n"):
                seen += sock.recv(4096)
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    sock.sendall(goes.read())
                    came.write(sock.recv(4096))
            tls.write(b"LHLO again\r\n")
            sock.sendall(goes.read())
            answer = b""
            while not answer.endswith(b"250 SMTPUTF8\r\n"):
                try:
                    answer += tls.read(4096)
                except ssl.SSLWantReadError:
                    data = sock.recv(4096)
                    assert data, "the connection has ended"
                    came.write(data)
            return answer

    async with serving(tmp_path, tls=lambda: server_tls) as world:
        answer = await asyncio.to_thread(talk, world.port)
        assert answer.startswith(b"250-mx\r\n")
        assert b"STARTTLS" not in answer


@pytest.mark.parametrize("end", ["close", "quit", "abort", "in a mail", "stop"])
async def test_reference_counts_free_a_connection(end: str, tmp_path: Path) -> None:
    """An idle connection has no task. After its end the garbage collector finds nothing
    of it."""
    gc.collect()
    gc.disable()
    try:
        async with serving(tmp_path) as world:
            client = await world.connect()
            client.write(b"MAIL FROM:<>\r\nRCPT TO:<u@d>\r\nBDAT 2 LAST\r\n\r\n")
            assert (await client.replies(3))[2].startswith("250")
            await _until(lambda: not world.server.hub.tasks)
            (connection,) = world.server.connections
            watched = [weakref.ref(connection), weakref.ref(connection.machine)]
            del connection
            if end == "quit":
                assert (await client.say("QUIT")).startswith("221")
            elif end == "in a mail":
                client.write(b"MAIL FROM:<>\r\nRCPT TO:<u@d>\r\nBDAT 99 LAST\r\n\r\n")
                await client.replies(2)
            elif end == "stop":
                await world.server.stop(grace_s=5)
            (client.writer.transport.abort if end == "abort" else client.writer.close)()
            await _until(lambda: not world.server.connections)
            await _until(lambda: [one() for one in watched] == [None, None])
    finally:
        gc.enable()
