"""STARTTLS in IMAP: what was sent before it counts for nothing, and a handshake has
little time."""

# ruff: noqa: ASYNC110 - the server is watched from outside: there is no event to wait for

import asyncio
import ssl
from pathlib import Path

import pytest
from certificates import certificate
from harness import serving
from patience import PATIENT_S
from structlog.testing import capture_logs

from obox import net
from obox.login import starttls

MAIL = b"Subject: a mail\r\n\r\nbody\r\n"


async def test_starttls(tmp_path: Path) -> None:
    """Bytes that arrive without TLS behind STARTTLS are dropped. RFC 9051 §11.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    async with serving(tmp_path, upgrade=starttls(lambda: context)) as running:
        client = await running.client()
        assert b"STARTTLS" in (await client.ok("CAPABILITY"))[0]
        client.send(b"s STARTTLS\r\nx LOGIN anna secret\r\n")
        assert (await client.line()).startswith(b"s OK")
        await client.writer.start_tls(trusting)
        lines = await client.ok("CAPABILITY")
        assert b"STARTTLS" not in lines[0]
        assert b"AUTH=PLAIN" in lines[0]
        assert (await client.cmd("STARTTLS"))[-1].startswith(b"BAD")
        assert running.imap.who()[0].tls
        await client.ok("LOGIN anna secret")
        await client.append("INBOX", MAIL)
        await client.ok("LOGOUT")


@pytest.mark.parametrize("way", ["leaves", "says nothing", "sends rubbish"])
async def test_a_handshake_that_fails(way: str, tmp_path: Path) -> None:
    """The session ends, its address may open another session, and the log does not call
    it a bug of obox."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    async with serving(
        tmp_path, upgrade=net.starttls(lambda: context, 0.1 if way == "says nothing" else 20.0)
    ) as running:
        client = await running.client()
        assert (await client.cmd("STARTTLS"))[-1].startswith(b"OK")
        with capture_logs() as logs:
            if way == "leaves":
                client.writer.close()
            elif way == "sends rubbish":
                client.send(b"a LOGIN anna secret\r\n" * 10)
            async with asyncio.timeout(PATIENT_S):
                while running.imap.who() or running.imap.hub.tasks:
                    await asyncio.sleep(0.01)
        assert [line["event"] for line in logs] == ["imap disconnect"]


async def test_a_handshake_has_little_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obox.login.server.TLS_HANDSHAKE_S", 0.1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    async with serving(tmp_path, upgrade=starttls(lambda: context)) as running:
        client = await running.client()
        assert (await client.cmd("STARTTLS"))[-1].startswith(b"OK")
        assert await client.line() == b""
