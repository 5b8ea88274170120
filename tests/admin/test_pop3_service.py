"""A backend with [pop3]: TLS, the administrator's view of its sessions, metrics, and
users of other backends."""

from __future__ import annotations

import asyncio
import imaplib
import poplib
import ssl
from pathlib import Path

import pytest
from adminservice import Service, mail, running, write_config
from certificates import certificate
from patience import PATIENT_S

from obox.backend import Backend
from obox.errors import Elsewhere
from obox.server.exposition import Exposition

ANNA = "anna@example.org"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    certificate(tmp_path, "one", "one.example")
    more = '[pop3]\nlisten = ["127.0.0.1:0", "127.0.0.1:0/tls"]\n[tls]\ncert = "one.pem"\nkey = "one.key"\n'
    return write_config(tmp_path, "memory://", more)


def ports(backend: Backend) -> list[int]:
    return [int(one.rpartition(":")[2].removesuffix("/tls")) for one in backend.listeners.addresses("pop3")]


def login(port: int, how: str = "clear") -> poplib.POP3:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if how == "tls":
        client: poplib.POP3 = poplib.POP3_SSL("127.0.0.1", port, timeout=PATIENT_S, context=context)
    else:
        client = poplib.POP3("127.0.0.1", port, timeout=PATIENT_S)
    if how == "stls":
        assert "STLS" in client.capa()
        client.stls(context)
    assert ("STLS" in client.capa()) is (how == "clear")
    client.user(ANNA)
    client.pass_("secret")
    return client


async def test_tls_and_what_the_administrator_sees(config: Path) -> None:
    async with running(config) as service:
        backend = service.backend
        clear, secure = ports(backend)
        await service.deliver(ANNA, [mail(1), mail(2)])
        lmtp = int(backend.listeners.addresses("lmtp")[0].rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", lmtp)
        await reader.readline()
        assert b"obox_lmtp_sessions 1.0" in Exposition(backend.metrics).text()
        writer.close()
        ways = [(clear, "clear"), (clear, "stls"), (secure, "tls")]
        clients = [await asyncio.to_thread(login, port, how) for port, how in ways]
        imap = await asyncio.to_thread(imaplib.IMAP4, "127.0.0.1", service.imap_port(), PATIENT_S)
        await asyncio.to_thread(imap.login, ANNA, "secret")
        found = {row["service"]: row["connections"] for row in await service.call("who")}
        assert found == {"imap": 1, "pop3": 3}
        rows = await service.call("who", separateConnections=True)
        assert [row["tls"] for row in rows if row["service"] == "pop3"] == [False, True, True]
        assert len({row["id"] for row in rows}) == 4, "kick chooses sessions by their numbers"
        assert b"obox_pop3_sessions 3.0" in Exposition(backend.metrics).text()
        assert b'obox_pop3_commands_total{command="PASS",result="OK"} 3.0' in Exposition(backend.metrics).text()
        await asyncio.to_thread(clients[0].dele, 1)
        assert await service.call("kick", user=ANNA) == [{"username": ANNA, "connections": 4}]
        with pytest.raises((poplib.error_proto, EOFError, ConnectionError)):
            await asyncio.to_thread(clients[0].quit)
        await until_empty(service)
        again = await asyncio.to_thread(login, clear)
        assert (await asyncio.to_thread(again.stat))[0] == 2, "a session that was ended deletes nothing"
        await asyncio.to_thread(again.quit)
        for client in clients:
            client.close()
        imap.shutdown()


async def until_empty(service: Service) -> None:
    async with asyncio.timeout(PATIENT_S):
        while await service.call("who"):  # noqa: ASYNC110 - the end of a session has no event here
            await asyncio.sleep(0.02)


async def test_a_backend_that_does_not_serve_the_user_says_so(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(config) as service:
        pop3 = service.backend.logins["pop3"]

        async def elsewhere(account: object) -> None:
            raise Elsewhere("another backend serves the user; try again")

        monkeypatch.setattr(pop3.context, "open_user", elsewhere)
        with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\] Another backend serves the user"):
            await asyncio.to_thread(login, ports(service.backend)[0])
