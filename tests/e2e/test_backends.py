"""Two backends on one host and one bucket: a client may connect to either, and neither is needed."""

from __future__ import annotations

import imaplib
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import PASSWORD, USERS, Backend

PATIENCE_S = 60.0
MAIL = b"From: a@example.org\r\nSubject: hello\r\n\r\nText\r\n"


@pytest.fixture
def pair(make: Callable[..., Backend], tmp_path: Path) -> Iterator[tuple[Backend, Backend]]:
    """Two members of a cluster that serve."""
    secret = tmp_path / "secret"
    secret.write_text(secrets.token_hex(32) + "\n")
    secret.chmod(0o600)
    cluster = {"directory": f"lmdb://{tmp_path}/cluster", "secret_file": str(secret), "dead_after": "5s"}
    first = make(sections={"cluster": cluster})
    second = first.moved(tmp_path / "second", "second")
    second.spawn()
    first.spawn()
    yield first, second
    if second.process is not None and second.process.poll() is None:
        second.kill()


def until(work: Callable[[], object], patience_s: float = PATIENCE_S) -> float:
    """Try until it succeeds; how many seconds that took."""
    began = time.monotonic()
    while True:
        try:
            work()
        except (OSError, imaplib.IMAP4.error, AssertionError):
            if time.monotonic() - began > patience_s:
                raise
            time.sleep(0.1)
        else:
            return time.monotonic() - began


def has(backend: Backend, user: str, count: int) -> None:
    """A client at this backend sees so many mails, all of them flagged."""
    with imaplib.IMAP4("127.0.0.1", backend.imap) as client:
        client.login(user, PASSWORD)
        assert client.select("INBOX")[1] == [b"%d" % count]
        assert len(client.search(None, "FLAGGED")[1][0].split()) == count


def write(backend: Backend, user: str) -> None:
    with imaplib.IMAP4("127.0.0.1", backend.imap) as client:
        client.login(user, PASSWORD)
        assert client.append("INBOX", "(\\Flagged)", None, MAIL)[0] == "OK"  # type: ignore[arg-type]


def test_a_client_may_connect_to_either_and_a_dead_backend_is_replaced(pair: tuple[Backend, Backend]) -> None:
    first, second = pair
    for user in USERS:
        until(lambda user=user: write(first, user))
        until(lambda user=user: write(second, user))
        has(first, user, 2)
        has(second, user, 2)
    second.kill()
    for user in USERS:
        until(lambda user=user: has(first, user, 2))
        write(first, user)
    second.lose_state()
    second.start()
    for user in USERS:
        until(lambda user=user: has(second, user, 3))
        until(lambda user=user: has(first, user, 3))
    assert first.stop() == 0
    assert second.stop() == 0
