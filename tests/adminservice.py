"""A backend in the process of the test with the admin API on its socket, and a client
for the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from patience import PATIENT_S

from obox.accounts import storage_id
from obox.admin import rows
from obox.backend import Backend
from obox.cluster import Router
from obox.config import load
from obox.store.api import NewMail

USERS = (
    "anna@example.org:{PLAIN}secret::::::quota_rule=*:storage=1M:messages=100\n"
    "ben@example.org:{PLAIN}secret:::::\n"
    "eve@other.org:{PLAIN}secret::::::disabled\n"
)
KEY = "the key: of the API"


def mail(number: int, *, sender: str = "alice@example.com", body: str = "text") -> bytes:
    return (
        f"From: {sender}\r\nTo: anna@example.org\r\nSubject: =?utf-8?q?n=C3=BAmber?= {number}\r\n"
        f"Date: Mon, 5 Jan 2026 10:0{number % 10}:00 +0100\r\n\r\n{body} {number}\r\n"
    ).encode()


class Service:
    """A running backend. `call` sends a command over the socket and returns its rows;
    `ask` returns the whole answer."""

    def __init__(self, backend: Backend, client: httpx.AsyncClient) -> None:
        self.backend = backend
        self.client = client

    async def ask(self, command: str, **params: Any) -> list[Any]:
        got = await self.client.post("/doveadm/v1", json=[[command, params, "tag"]])
        assert got.status_code == 200, got.text
        ((kind, result, tag),) = got.json()
        assert tag == "tag"
        for row in result if kind == "doveadmResponse" else result.get("rows", ()):
            assert [name for name in row if not rows.names(command, name)] == [], "columns that nobody explains"
        return [kind, result]

    async def call(self, command: str, **params: Any) -> list[dict[str, Any]]:
        kind, result = await self.ask(command, **params)
        assert kind == "doveadmResponse", result
        return list(result)

    async def refused(self, command: str, **params: Any) -> dict[str, Any]:
        """Send a command that fails. Return the whole answer."""
        kind, result = await self.ask(command, **params)
        assert kind == "error", result
        assert isinstance(result, dict), result
        return result

    async def fails(self, command: str, **params: Any) -> tuple[int, str]:
        result = await self.refused(command, **params)
        return result["exitCode"], result.get("message", "")

    async def deliver(self, user: str, mails: list[bytes], mailbox: str = "INBOX", *flags: str) -> None:
        # The test opens the user as sessions do: in the store itself.
        sid = self.backend.parts.store.env
        assert sid is not None
        opened = await self.backend.parts.store.open_user(user, storage_id(user))
        try:
            for source in mails:
                await opened.append(mailbox, [NewMail(source, flags)])
        finally:
            await opened.release()

    def imap_port(self) -> int:
        return int(self.backend.listeners.addresses("imap")[0].rpartition(":")[2])


def write_config(home: Path, url: str = "", more: str = "") -> Path:
    home.mkdir(parents=True, exist_ok=True)
    (home / "users").write_text(USERS)
    url = url or f"file://{home}/bucket"
    (home / "obox.toml").write_text(
        f'state_dir = "state"\n[storage]\nurl = "{url}"\n[imap]\nlisten = ["127.0.0.1:0"]\n'
        f'[lmtp]\nlisten = ["127.0.0.1:0"]\n[http]\nlisten = ["127.0.0.1:0"]\napi_key = "{KEY}"\n'
        f'[metacache]\nclose_delay = "0"\nmax_space = "64M"\n{more}'
    )
    return home / "obox.toml"


@asynccontextmanager
async def running(config: Path, router: Router | None = None) -> AsyncIterator[Service]:
    """Run a life of a backend. router: that of a member of a cluster."""
    backend = Backend(load(str(config)), environ={}, router=router)
    task = asyncio.create_task(backend.run(signals=False))
    socket = config.parent / "state/admin.sock"
    try:
        async with asyncio.timeout(PATIENT_S):
            while not backend.ready.is_set():
                if task.done():
                    task.result()
                await asyncio.sleep(0.01)
        transport = httpx.AsyncHTTPTransport(uds=str(socket))
        async with httpx.AsyncClient(transport=transport, base_url="http://obox", timeout=PATIENT_S) as client:
            yield Service(backend, client)
    finally:
        backend.lifecycle.stop()
        await task
