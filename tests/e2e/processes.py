"""A real `obox serve` on free ports with directories of its own. A test can start it,
kill it, stop it, and move it to an empty machine.

A `Backend` stands for a machine. Its log is JSON on stderr, and is kept in `log` for a
test that fails. A `Proxy` stands for a cable between a backend and its bucket, which a
test can cut.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from imapclient import IMAPClient
from patience import PATIENT_S
from ports import free_port
from servers import S3Bucket

START_S = 30.0
"""The time until a backend answers. It is about a second on an idle machine."""

STOP_S = 20.0

PASSWORD = "secret"
USERS = ("anna@example.org", "ben@example.org")


def s3_storage(bucket: S3Bucket, endpoint: str = "") -> dict[str, object]:
    return {
        "url": f"{bucket.url}/mail",
        "endpoint_url": endpoint or bucket.server.endpoint_url,
        "access_key_id": bucket.server.access_key_id,
        "secret_access_key": bucket.server.secret_access_key,
        "region": bucket.server.region,
    }


def toml(value: object) -> str:
    """Format a value for TOML. The function knows the types that these configurations
    have."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


@dataclass
class Backend:
    """A backend (see the text of the module).

    storage: the [storage] settings; sections: more settings, by section.
    """

    home: Path
    storage: dict[str, object]
    name: str = "first"
    sections: dict[str, dict[str, object]] = field(default_factory=dict)
    users: str = ""
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.imap, self.lmtp, self.http = free_port(), free_port(), free_port()
        self.unix = self.home / "lmtp"
        self.log = self.home / "log"
        self.config = self.home / "obox.toml"
        self.state = self.home / "state"
        self.write_users(self.users or "".join(f"{user}:{{PLAIN}}{PASSWORD}\n" for user in USERS))
        self.write()

    def write_users(self, text: str) -> None:
        (self.home / "users").write_text(text)

    def write(self, extra: str = "") -> None:
        """Write the configuration."""
        sections: dict[str, dict[str, object]] = {
            "storage": self.storage,
            "auth": {"passwd_file": "users", "failure_delay": "100ms", "max_failure_delay": "200ms"},
            "imap": {"listen": [f"127.0.0.1:{self.imap}"]},
            "lmtp": {"listen": [f"127.0.0.1:{self.lmtp}", f"unix:{self.unix}"]},
            "http": {"listen": [f"127.0.0.1:{self.http}"]},
            "cluster": {"backend": self.name},
            "metacache": {"max_space": "64M"},
            "log": {"format": "json"},
        }
        for name, more in self.sections.items():
            sections[name] = {**sections.get(name, {}), **more}
        text = f"state_dir = {toml(str(self.state))}\n"
        for name, settings in sections.items():
            text += f"\n[{name}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in settings.items())
        self.config.write_text(text + extra)

    # -- life ------------------------------------------------------------------------------------------------------

    def spawn(self) -> None:
        """Start the process and wait for nothing."""
        program = [sys.executable, "-m", "obox.main", "serve", "-c", str(self.config)]
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("OBOX_", "AWS_"))}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                program, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home, env=environ
            )

    def start(self) -> None:
        """Start, and return when a user can log in."""
        self.spawn()
        self.wait_listening()
        deadline = time.monotonic() + START_S
        while True:
            try:
                with self.login():
                    return
            except Exception:
                if time.monotonic() > deadline:
                    raise
                self._alive()
                time.sleep(0.05)

    def wait_listening(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                assert self.get("/readyz")[0] == 200
                return
            except (OSError, http.client.HTTPException, AssertionError):
                assert time.monotonic() < deadline, self.log.read_text()[-3000:]
                self._alive()
                time.sleep(0.02)

    def _alive(self) -> None:
        assert self.process is not None
        assert self.process.poll() is None, f"exit {self.process.returncode}: {self.log.read_text()[-3000:]}"

    def kill(self) -> None:
        """Kill the process as a machine that loses its power does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(STOP_S)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def lose_state(self) -> None:
        shutil.rmtree(self.state)

    def moved(self, home: Path, name: str) -> Backend:
        """Return a backend for another machine that uses the same bucket and the same
        users."""
        return Backend(home, self.storage, name, self.sections, (self.home / "users").read_text())

    # -- what it says ----------------------------------------------------------------------------------------------

    def events(self, event: str = "") -> list[dict[str, Any]]:
        """Return the lines of the log. A line that is not JSON is a bug of obox."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if event in ("", line["event"])]

    def wait_event(self, event: str, count: int = 1) -> dict[str, Any]:
        deadline = time.monotonic() + START_S
        while len(found := self.events(event)) < count:
            assert time.monotonic() < deadline, f"no {event!r}: {self.log.read_text()[-3000:]}"
            time.sleep(0.02)
        return found[count - 1]

    def journal_written(self) -> None:
        """Return when the bucket has all acknowledged changes, and the journal has
        nothing left to write."""
        deadline = time.monotonic() + START_S
        while self.metric("obox_store_journal_late_seconds") > 0:
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=PATIENT_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """Return the value of a line of /metrics. The name includes the labels."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name}")

    def requests(self) -> dict[str, float]:
        """Return the numbers of requests to the bucket, by 'operation kind'."""
        out = {}
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith("obox_objectstore_requests_total{"):
                labels, value = line.split("{", 1)[1].split("} ")
                if float(value):
                    out[" ".join(part.split('"')[1] for part in labels.split(","))] = float(value)
        return out

    # -- clients ---------------------------------------------------------------------------------------------------

    @contextmanager
    def login(self, user: str = USERS[0], password: str = PASSWORD) -> Iterator[IMAPClient]:
        client = IMAPClient("127.0.0.1", self.imap, ssl=False, timeout=PATIENT_S)
        try:
            client.login(user, password)
            yield client
            client.logout()
        except BaseException:
            with suppress(Exception):
                client.shutdown()
            raise

    def deliver(self, mail: bytes, *users: str, unix: bool = False) -> list[tuple[int, bytes]]:
        """Deliver a mail by LMTP. Return the reply for each recipient."""
        return lmtp(str(self.unix) if unix else ("127.0.0.1", self.lmtp), mail, list(users or USERS[:1]))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Backend]]:
    """Return a function that makes backends. A backend that still runs at the end of
    the test is killed."""
    made: list[Backend] = []

    def backend(**more: Any) -> Backend:
        more.setdefault("storage", {"url": f"file://{tmp_path}/bucket"})
        one = Backend(tmp_path / f"machine{len(made)}", **more)
        made.append(one)
        return one

    yield backend
    for one in made:
        if one.process is not None and one.process.poll() is None:
            one.kill()


def lmtp(address: str | tuple[str, int], mail: bytes, recipients: list[str]) -> list[tuple[int, bytes]]:
    """Send a mail in a single LMTP transaction, and return a reply for each recipient.
    smtplib knows the greeting of LMTP and the dots, but it does not read a reply for
    each recipient (RFC 2033 §4.2)."""
    client = smtplib.LMTP(timeout=PATIENT_S) if isinstance(address, tuple) else smtplib.LMTP(address)
    replies = []
    try:
        if isinstance(address, tuple):
            client.connect(*address)
        client.ehlo("test")
        code, text = client.mail("sender@example.net")
        assert code == 250, text
        accepted = 0
        for recipient in recipients:
            code, text = client.rcpt(recipient)
            accepted += code == 250
            replies.append((code, text))
        if not accepted:
            return replies
        code, text = client.docmd("DATA")
        assert code == 354, text
        body = b"".join(b"." + line if line.startswith(b".") else line for line in mail.splitlines(keepends=True))
        # bytes.splitlines splits only at \n, \r and \r\n. str.splitlines splits at
        # further characters.
        client.send(body + b".\r\n")
        return [client.getreply() if code == 250 else (code, text) for code, text in replies]
    finally:
        client.close()


class Proxy:
    """Forward TCP connections from a free port to `target` in threads, until the test
    cuts them."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self.port = free_port()
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def join(self) -> None:
        """Listen, and forward connections."""
        listener = socket.create_server(("127.0.0.1", self.port), backlog=100)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self) -> None:
        """Refuse new connections, and break the connections that are open."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            with self._lock:
                self._open |= {client, server}
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        try:
            while True:
                for sock in select.select([client, server], [], [])[0]:
                    data = sock.recv(65536)
                    if not data:
                        return
                    other[sock].sendall(data)
        except OSError:
            return
        finally:
            with self._lock:
                self._open -= {client, server}
            client.close()
            server.close()


def everything(client: IMAPClient) -> dict[str, Any]:
    """Return all that a client can see: mailboxes, UIDs, flags, dates, bodies and
    subscriptions. HIGHESTMODSEQ is left out."""
    out: dict[str, Any] = {"subscribed": sorted(name for _, _, name in client.list_sub_folders())}
    for flags, _, name in client.list_folders():
        if b"\\Noselect" in flags or b"\\NonExistent" in flags:
            out[name] = sorted(flags)
            continue
        status = client.folder_status(name, ["MESSAGES", "UIDNEXT", "UIDVALIDITY", "UNSEEN"])
        client.select_folder(name, readonly=True)
        uids = client.search() if status[b"MESSAGES"] else []
        mails = client.fetch(uids, ["FLAGS", "INTERNALDATE", "RFC822.SIZE", "BODY.PEEK[]"]) if uids else {}
        use = sorted(
            flag for flag in flags if flag not in (b"\\HasChildren", b"\\HasNoChildren", b"\\Marked", b"\\UnMarked")
        )
        out[name] = (
            use,
            status,
            {
                uid: (
                    sorted(flag for flag in mail[b"FLAGS"] if flag != b"\\Recent"),
                    mail[b"INTERNALDATE"],
                    mail[b"RFC822.SIZE"],
                    mail[b"BODY[]"],
                )
                for uid, mail in mails.items()
            },
        )
        client.unselect_folder()
    return out


def modseqs(client: IMAPClient) -> dict[str, int]:
    return {
        name: client.folder_status(name, ["HIGHESTMODSEQ"])[b"HIGHESTMODSEQ"]
        for flags, _, name in client.list_folders()
        if b"\\Noselect" not in flags and b"\\NonExistent" not in flags
    }
