"""`obox proxy` as a process in front of two backends. Its clients do not notice that a
backend dies."""

from __future__ import annotations

import imaplib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ports import free_port
from processes import PASSWORD, USERS, Backend, lmtp
from test_backends import MAIL, pair, until

__all__ = ["pair"]


@dataclass
class Proxy:
    """The process of a proxy, and its ports."""

    process: subprocess.Popen[bytes]
    imap: int
    lmtp: int
    log: Path


@pytest.fixture
def proxy(pair: tuple[Backend, Backend], tmp_path: Path) -> Iterator[Proxy]:
    home, (first, _) = tmp_path / "proxy", pair
    home.mkdir()
    imap, port = free_port(), free_port()
    (home / "proxy.toml").write_text(
        f'state_dir = "{home}/state"\n[auth]\npasswd_file = "{first.home}/users"\n'
        f'[imap]\nlisten = ["127.0.0.1:{imap}"]\n[lmtp]\nlisten = ["127.0.0.1:{port}"]\n'
        f'[cluster]\nbackend = "proxy"\ndirectory = "lmdb://{tmp_path}/cluster"\nsecret_file = "{tmp_path}/secret"\n'
    )
    with (home / "log").open("wb") as log:
        program = [sys.executable, "-m", "obox.main", "proxy", "-c", str(home / "proxy.toml")]
        process = subprocess.Popen(program, stdout=log, stderr=log)
    yield Proxy(process, imap, port, home / "log")
    process.kill()
    process.wait()


def count(proxy: Proxy, user: str) -> int:
    with imaplib.IMAP4("127.0.0.1", proxy.imap) as client:
        client.login(user, PASSWORD)
        return int(client.select("INBOX")[1][0] or b"0")


def test_clients_of_a_proxy_get_over_a_dead_backend(pair: tuple[Backend, Backend], proxy: Proxy) -> None:
    _, second = pair
    users = list(USERS)

    def delivered() -> None:
        assert [code for code, _ in lmtp(("127.0.0.1", proxy.lmtp), MAIL, users)] == [250] * len(users)

    until(delivered)
    before = {}
    for user in users:
        until(lambda user=user: count(proxy, user))
        before[user] = count(proxy, user)
        assert before[user] >= 1
    second.kill()
    for user in users:
        until(lambda user=user: count(proxy, user))
        assert count(proxy, user) == before[user]
    until(delivered)
    for user in users:
        assert count(proxy, user) > before[user]
    proxy.process.terminate()
    assert proxy.process.wait(30) == 0, proxy.log.read_text()
    assert b"Traceback" not in proxy.log.read_bytes()
