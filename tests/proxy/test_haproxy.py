"""The real HAProxy in front of a proxy, with PROXY version 2."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from members import ADDRESS, PLACES, cluster, until
from patience import PATIENT_S
from ports import free_port
from structlog.testing import capture_logs
from test_front import config_file, directory_of_a_test, port_of, running, written

from tests.imap.harness import Client

CONFIG = """
global
    maxconn 64
defaults
    mode tcp
    timeout connect 5s
    timeout client 35m
    timeout server 35m
frontend imap
    bind {address}:{port}
    default_backend obox
backend obox
    server proxy-1 {address}:{behind} send-proxy-v2
"""


@asynccontextmanager
async def haproxy(path: Path, behind: int) -> AsyncIterator[int]:
    port, file = free_port(), path / "haproxy.cfg"
    file.write_text(CONFIG.format(address=ADDRESS, port=port, behind=behind))
    program = str(shutil.which("haproxy", path=PLACES))
    process = await asyncio.create_subprocess_exec(program, "-db", "-f", str(file))
    try:
        async with asyncio.timeout(PATIENT_S):
            while True:
                try:
                    (await asyncio.open_connection(ADDRESS, port))[1].close()
                    break
                except OSError:
                    assert process.returncode is None
                    await asyncio.sleep(0.05)
        yield port
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.needs("haproxy")
async def test_the_address_of_a_client_comes_through_haproxy_and_the_proxy(tmp_path: Path) -> None:
    """The connection goes through HAProxy, `obox proxy` and the backend. The log of the
    backend has the client's own address."""
    async with cluster(tmp_path) as made:
        made.rows.own("ben", "b2")
        b2 = await made.member("b2")
        directory = directory_of_a_test()
        await written(made.rows, directory)
        file = config_file(tmp_path)
        file.write_text(
            file.read_text().replace('[imap]\nlisten = ["127.0.0.1:0"]', '[imap]\nlisten = ["127.0.0.1:0/proxy"]')
        )
        async with running(file, directory) as front, haproxy(tmp_path, port_of(front, "imap")) as port:
            await until(lambda: front.view.settings is not None)
            reader, writer = await asyncio.open_connection(ADDRESS, port, local_addr=("127.0.0.42", 0))
            ben = Client(reader, writer)
            await ben.line()
            with capture_logs() as logs:
                await ben.ok("LOGIN ben secret")
            await ben.ok("SELECT INBOX")
            assert [(who.user, who.remote) for who in b2.imap.who()] == [("ben", "127.0.0.42")]
            assert {line["remote"] for line in logs if line["event"] in ("imap login", "imap forwarded")} == {
                "127.0.0.42"
            }
            await ben.ok("LOGOUT")
            await until(lambda: not b2.imap.who())
