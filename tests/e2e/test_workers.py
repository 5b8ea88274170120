"""`[server] workers = 2`: one command and one port, and a worker that is killed is not missed."""

from __future__ import annotations

import imaplib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from processes import PASSWORD, Backend, lmtp
from test_cluster import until

MAIL = b"From: a@example.org\r\nSubject: hello\r\n\r\nText\r\n"
NAMES = [f"user{number}@example.org" for number in range(8)]
"""Enough that each worker has some: their groups are a hash of the name."""


class Unit:
    """A supervisor with its workers, on `backend`'s ports."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def who_serves(self, user: str) -> str:
        """The worker that a user's login went to."""
        found = [line for line in self.backend.events("imap login") if line["user"] == user]
        return str(found[-1]["worker"])

    def pid(self, worker: str) -> int:
        """The process of a worker, found by its arguments."""
        assert self.backend.process is not None
        listed = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.backend.process.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        (found,) = [line for line in listed.stdout.splitlines() if line.endswith(f" worker {worker}")]
        return int(found.split()[0])

    def deliver(self, user: str) -> None:
        assert lmtp(("127.0.0.1", self.backend.lmtp), MAIL, [user])[0][0] == 250

    def count(self, user: str) -> int:
        with imaplib.IMAP4("127.0.0.1", self.backend.imap) as client:
            client.login(user, PASSWORD)
            return int(client.select("INBOX")[1][0] or 0)

    def admin(self, *arguments: str) -> list[dict[str, Any]]:
        got = subprocess.run(
            [sys.executable, "-m", "admintool", "-c", str(self.backend.config), "-f", "json", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert got.returncode == 0, got.stderr
        return json.loads(got.stdout)  # type: ignore[no-any-return]


@pytest.fixture
def unit(make: Callable[..., Backend]) -> Iterator[Unit]:
    users = "".join(f"{name}:{{PLAIN}}{PASSWORD}\n" for name in NAMES)
    backend = make(sections={"server": {"workers": 2}}, users=users)
    backend.spawn()
    backend.wait_listening()
    yield Unit(backend)
    assert backend.process is not None
    workers = []
    for name in ("first-1", "first-2"):
        with suppress(ValueError):
            workers.append(Unit(backend).pid(name))
    if backend.process.poll() is None:
        backend.kill()
    for pid in workers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_worker_that_is_killed_is_started_again_and_keeps_its_users(unit: Unit) -> None:
    for name in NAMES:
        unit.deliver(name)
        assert unit.count(name) == 1
    served = {name: unit.who_serves(name) for name in NAMES}
    assert set(served.values()) == {"first-1", "first-2"}, "both have users"
    for worker in ("first-1", "first-2"):
        os.kill(unit.pid(worker), signal.SIGKILL)
        for name in NAMES:
            unit.deliver(name)  # at the first attempt
        for name in NAMES:
            until(lambda name=name: unit.count(name))
    assert {name: unit.count(name) for name in NAMES} == dict.fromkeys(NAMES, 3)
    assert {name: unit.who_serves(name) for name in NAMES} == served
    assert len(unit.backend.events("a worker has ended, it is started again")) == 2
    assert unit.backend.stop() == 0
    state: Path = unit.backend.state
    assert not list(state.glob("worker-*/*.sock")) or all(path.name == "notify.sock" for path in state.glob("*/*.sock"))
