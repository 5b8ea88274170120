"""Somebody deletes objects of mails from the bucket of a real backend. What a client
gets depends on its address."""

from __future__ import annotations

import imaplib
import mailbox
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from imapclient import IMAPClient
from imapclient.exceptions import IMAPClientError, LoginError
from mails import simple
from patience import PATIENT_S
from ports import free_port
from processes import PASSWORD, USERS, Backend
from test_clients import mbsync_config, run

ANNA = USERS[0]
EMPTY, MENDS = "192.0.2.7", "2001:db8::9"
Make = Callable[..., Backend]


def lossy(make: Make, tmp_path: Path, mails: int, *lost: int, **imap: object) -> tuple[Backend, list[Path], int]:
    """Make a backend with mails, and move objects of Anna's INBOX away while the
    backend is stopped. Return the backend, the paths of these objects, and the port for
    connections with a PROXY header."""
    proxied = free_port()
    backend = make()
    backend.sections = {
        "imap": {"listen": [f"127.0.0.1:{backend.imap}", f"127.0.0.1:{proxied}/proxy"], **imap},
        f'remote."{EMPTY}".storage': {"fetch_lost_mails_as_empty": True},
        f'remote."{EMPTY}".auth': {"disable_plaintext_auth": False},
        'remote."2001:db8::/32"': {"storage.autofix_storage": True, "auth.disable_plaintext_auth": False},
    }
    backend.write()
    backend.start()
    for number in range(1, mails + 1):
        assert backend.deliver(simple(number))[0][0] == 250
    with backend.login() as client:
        assert client.select_folder("INBOX")[b"EXISTS"] == mails
    assert backend.stop() == 0
    files = [path for uid in lost for path in (tmp_path / "bucket").rglob(f"m/*/{uid:08x}")]
    assert len(files) == len(lost)
    for path in files:
        path.rename(path.with_name(path.name + ".away"))
    backend.lose_state()
    backend.start()
    return backend, files, proxied


class Proxied(IMAPClient):
    """A client behind a proxy whose PROXY header names `address`."""

    def __init__(self, port: int, address: str) -> None:
        self.address = address
        super().__init__("127.0.0.1", port, ssl=False, timeout=PATIENT_S)

    def _create_IMAP4(self) -> imaplib.IMAP4:
        family, near = ("TCP6", "::1") if ":" in self.address else ("TCP4", "127.0.0.1")
        header = f"PROXY {family} {self.address} {near} 40000 143\r\n".encode()

        class Behind(imaplib.IMAP4):
            def _create_socket(self, timeout: float | None) -> socket.socket:
                sock = socket.create_connection((self.host, self.port), timeout)
                sock.sendall(header)
                return sock

        return Behind(self.host, self.port, 20)


def bodies(client: IMAPClient, items: str = "BODY.PEEK[TEXT]") -> dict[int, bytes]:
    key = items.replace(".PEEK", "").encode()
    return {uid: found[key] for uid, found in client.fetch(client.search(), [items]).items() if key in found}


def test_by_the_clients_address(make: Make, tmp_path: Path) -> None:
    """Most clients get NO, and a webmail client gets an empty mail. For a client with
    autofix_storage obox expunges the lost mails. They are then gone for all clients,
    also after a restart."""
    backend, files, proxied = lossy(make, tmp_path, 4, 2, 3)
    with backend.login() as client:
        client.select_folder("INBOX")
        with pytest.raises(IMAPClientError, match=r"Mails of UID 2:3 are damaged or lost"):
            bodies(client)
        assert len(client.fetch(client.search(), ["FLAGS", "RFC822.SIZE"])) == 4

    with pytest.raises(LoginError, match="PRIVACYREQUIRED"):
        Proxied(proxied, "192.0.2.8").login(ANNA, PASSWORD)
    webmail = Proxied(proxied, EMPTY)
    webmail.login(ANNA, PASSWORD)
    webmail.select_folder("INBOX")
    found = bodies(webmail)
    assert sorted(found) == [1, 2, 3, 4]
    assert (found[2], found[3]) == (b"", b"")
    assert b"1" in found[1]

    other = Proxied(proxied, MENDS)
    other.login(ANNA, PASSWORD)
    other.select_folder("INBOX")
    assert sorted(bodies(other)) == [1, 4]
    assert other.search() == [1, 4]
    lines = [(line["uid"], line["user"], line["level"]) for line in backend.events("lost mail expunged")]
    assert lines == [(2, ANNA, "warning"), (3, ANNA, "warning")]
    webmail.noop()
    assert sorted(bodies(webmail)) == [1, 4]
    for client in (webmail, other):
        client.logout()

    backend.journal_written()
    backend.kill()
    backend.lose_state()
    backend.start()
    with backend.login() as client:
        assert client.select_folder("INBOX")[b"EXISTS"] == 2
        assert sorted(bodies(client)) == [1, 4]
    assert not any(path.exists() for path in files)


@pytest.mark.needs("mbsync")
@pytest.mark.parametrize(
    ("mode", "came"),
    [("no-after", [1, 3, 4]), ("disconnect-after", [1]), ("disconnect-immediately", [1])],
)
def test_what_mbsync_makes_of_it(make: Make, tmp_path: Path, mode: str, came: list[int]) -> None:
    """The reason why `no-after` is the default: a client that is disconnected never
    gets the mails behind the lost mail, even if it connects again."""
    backend, _, _ = lossy(make, tmp_path, 4, 2, fetch_failure=mode)
    config = mbsync_config(backend, tmp_path)
    said = False
    for _ in range(2):
        out = run("mbsync", "--config", config, "all:INBOX", check=False)
        said |= "Mails of UID 2 are damaged or lost" in out.stderr
    assert said
    subjects = [mail["Subject"] for mail in mailbox.Maildir(tmp_path / "mail/INBOX", create=False)]
    assert sorted(subjects) == [f"mail {number}" for number in came]
