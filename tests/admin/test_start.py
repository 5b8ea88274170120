"""A backend that has just been started: its clients wait for the store, and are then
served."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from adminservice import Service, running, write_config
from patience import PATIENT_S
from structlog.testing import capture_logs

from obox import parts as module
from obox.backend import Backend
from obox.config import load
from obox.store.backend import store

MAIL = b"Subject: early\r\n\r\ntext\r\n"
ANNA = "anna@example.org"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Delay the probe of the bucket until the test sets this event."""
    gate, real = asyncio.Event(), module.probe

    async def slow(*given: Any) -> Any:
        await gate.wait()
        return await real(*given)

    monkeypatch.setattr(module, "probe", slow)
    return gate


@asynccontextmanager
async def starting(home: Path, config: Path | None = None) -> AsyncIterator[Backend]:
    """Start a backend and yield when it listens. Its store may not have started yet."""
    backend = Backend(load(str(config or write_config(home))), environ={})
    listening = asyncio.Event()
    task = asyncio.create_task(backend.run(signals=False, started=lambda _: listening.set()))
    waiting = asyncio.create_task(listening.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        yield backend
    finally:
        backend.lifecycle.stop()
        await task


class Client:
    """A client that sends lines to a listener and reads the answers."""

    def __init__(self, backend: Backend, name: str) -> None:
        host, _, port = backend.listeners.addresses(name)[0].rpartition(":")
        self._where = host, int(port)

    async def __aenter__(self) -> Client:
        self._reader, self._writer = await asyncio.open_connection(*self._where)
        await self._reader.readline()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def say(self, text: bytes, *, until: bytes) -> bytes:
        """Send the text, and return the first line of the answer that begins with
        `until`."""
        self._writer.write(text)
        while True:
            line = await self._reader.readline()
            assert line, f"closed before {until!r} came"
            if line.startswith(until):
                return line

    async def login(self) -> bytes:
        return await self.say(f"a LOGIN {ANNA} secret\r\n".encode(), until=b"a ")

    async def deliver(self) -> bytes:
        await self.say(b"LHLO me\r\n", until=b"250 ")
        await self.say(b"MAIL FROM:<>\r\n", until=b"250")
        first = await self.say(f"RCPT TO:<{ANNA}>\r\n".encode(), until=b"")
        if not first.startswith(b"250"):
            return first
        await self.say(b"DATA\r\n", until=b"354")
        return await self.say(MAIL + b".\r\n", until=b"")


async def waiting(backend: Backend, *clients: asyncio.Task[Any]) -> None:
    """Wait until all clients wait for the store, or one of them has its answer."""
    while backend.parts.store.beginning.waiting < len(clients):
        await asyncio.wait(clients, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
        if any(client.done() for client in clients):
            return


async def test_logins_and_deliveries_wait_for_the_store(tmp_path: Path, answers: asyncio.Event) -> None:
    async with starting(tmp_path) as backend, Client(backend, "imap") as imap, Client(backend, "lmtp") as lmtp:
        login, delivery = asyncio.create_task(imap.login()), asyncio.create_task(lmtp.deliver())
        await waiting(backend, login, delivery)
        answers.set()
        assert (await login).startswith(b"a OK")
        assert (await delivery).startswith(b"250")


async def test_a_bucket_that_does_not_come_is_reported(
    tmp_path: Path, answers: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "OPEN_S", 0.05)
    async with starting(tmp_path) as backend, Client(backend, "imap") as imap, Client(backend, "lmtp") as lmtp:
        assert (await imap.login()).startswith(b"a NO [UNAVAILABLE]")
        assert (await lmtp.deliver()).startswith(b"451 4.3.0")


async def test_the_list_of_boots_has_the_present_boot_right_after_a_start(
    tmp_path: Path, answers: asyncio.Event
) -> None:
    """Otherwise an operator who has just restarted a backend would see the boot
    before."""
    async with starting(tmp_path) as backend:
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "state/admin.sock"))
        async with httpx.AsyncClient(transport=transport, base_url="http://obox", timeout=PATIENT_S) as client:
            asked = asyncio.create_task(Service(backend, client).call("metacacheBoots"))
            await waiting(backend, asked)
            answers.set()
            assert [row["boot"] for row in await asked] == [backend.parts.store.journal.boot]


async def test_a_stop_does_not_wait_for_those_who_wait(tmp_path: Path, answers: asyncio.Event) -> None:
    async with starting(tmp_path) as backend, Client(backend, "imap") as imap:
        login = asyncio.create_task(imap.login())
        await waiting(backend, login)
        backend.lifecycle.stop()
        assert (await login).startswith(b"a NO [UNAVAILABLE]")


async def test_a_passwd_file_that_is_not_there_is_reported_at_the_start(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    users = (tmp_path / "users").read_text()
    (tmp_path / "users").unlink()
    with capture_logs() as lines:
        async with starting(tmp_path, config) as backend, Client(backend, "imap") as imap:
            await backend.ready.wait()
            async with asyncio.timeout(PATIENT_S):
                warnings = lines[:0]
                while not warnings:
                    warnings = [line for line in lines if line["event"] == "passwd-file cannot be read"]
                    await asyncio.sleep(0.01)
            assert warnings[0]["path"] == str(tmp_path / "users")
            assert warnings[0]["error"] == "cannot be read: No such file or directory"
            assert "oboxadm user add" in warnings[0]["next_step"]
            (tmp_path / "users").write_text(users)
            assert (await imap.login()).startswith(b"a OK"), "a file that comes later is used"


async def test_a_stop_ends_a_start_that_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, gate, real = asyncio.Event(), asyncio.Event(), store.take_over

    async def slow(*given: Any) -> Any:
        begun.set()
        await gate.wait()
        return await real(*given)

    monkeypatch.setattr(store, "take_over", slow)
    with capture_logs() as lines:
        async with starting(tmp_path) as backend:
            await begun.wait()
            close = backend.parts.close

            async def late() -> None:
                gate.set()
                await asyncio.sleep(0.05)
                await close()

            monkeypatch.setattr(backend.parts, "close", late)
    assert not backend.parts.store.started
    assert [line for line in lines if line["log_level"] == "error"] == []
    assert "store ready" not in [line["event"] for line in lines]


@pytest.mark.parametrize("over_tls", [True, False])
async def test_a_client_whose_tls_ends_at_a_trusted_proxy_is_protected(tmp_path: Path, over_tls: bool) -> None:
    """The PROXY header says so; HAProxy's send-proxy-v2-ssl."""
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace('"127.0.0.1:0"', '"127.0.0.1:0/proxy"', 2))
    addresses = bytes([192, 0, 2, 7, 198, 51, 100, 1]) + struct.pack("!HH", 4000, 143)
    body = addresses + (b"\x20\x00\x05\x01\0\0\0\0" if over_tls else b"")
    header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack("!H", len(body)) + body
    async with running(config) as service:
        port = int(service.backend.listeners.addresses("imap")[0].rpartition(":")[2].removesuffix("/proxy"))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(header + b"a LOGIN ben@example.org secret\r\n")
        greeting, answer = await reader.readline(), await reader.readline()
        assert (b"LOGINDISABLED" in greeting) is not over_tls
        assert answer.startswith(b"a OK" if over_tls else b"a NO [PRIVACYREQUIRED]"), answer
        imap = service.backend.logins["imap"]
        assert [member.tls for member in imap.who()] == [over_tls]
        writer.close()
