"""Programs that people use: curl, mbsync, Postfix, and IMAPClient's own live test
suite.

The live suite runs beside the other tests of this module, because it sleeps for ten
seconds.
"""

from __future__ import annotations

import mailbox
import os
import pwd
import re
import shutil
import smtplib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from imapclient.livetest import MULTIPART_MESSAGE
from imapclient.response_types import Address, Envelope
from mails import every_kind, simple
from patience import PATIENT_S
from ports import free_port
from postfix_config import MAIN, MASTER
from processes import PASSWORD, START_S, USERS, Backend, everything

ANNA, BEN = USERS


PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
"""Debian keeps Postfix in sbin."""


def run(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    program = shutil.which(str(arguments[0]), path=PLACES)
    assert program is not None
    out = subprocess.run(
        [program, *map(str, arguments[1:])], capture_output=True, text=True, timeout=60, check=False, errors="replace"
    )
    if check:
        assert out.returncode == 0, (out.returncode, out.stdout[-2000:], out.stderr[-2000:])
    return out


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Make a directory that other users of the system may enter. They cannot enter a
    temporary directory of pytest."""
    path = Path(tempfile.mkdtemp(prefix="obox-e2e-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def livetest(place: Path) -> Iterator[Callable[[], str]]:
    """Start IMAPClient's live suite. The returned function waits for its end, and
    returns what it printed."""
    backend = Backend(place / "livetest", {"url": f"file://{place}/livetest/bucket"})
    backend.start()
    ini = place / "live.ini"
    ini.write_text(
        f"[DEFAULT]\nhost = 127.0.0.1\nport = {backend.imap}\nusername = {ANNA}\npassword = {PASSWORD}\n"
        "ssl = false\nstream = false\ntimeout = 30\n"
    )
    with (place / "live.out").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "imapclient.livetest", str(ini), "-v"], stdout=out, stderr=subprocess.STDOUT
        )

    def result() -> str:
        process.wait(90)
        assert [line for line in backend.events() if line["level"] in ("error", "critical")] == []
        return (place / "live.out").read_text()

    yield result
    process.kill()
    process.wait()
    backend.kill()


# -- curl ----------------------------------------------------------------------------------------------------------


@pytest.mark.needs("curl")
def test_curl_reads_and_uploads(backend: Backend, tmp_path: Path) -> None:
    url = f"imap://127.0.0.1:{backend.imap}"
    user = ("--silent", "--show-error", "--user", f"{ANNA}:{PASSWORD}")
    kinds = every_kind()
    for name in ("text", "attachments", "large"):
        (tmp_path / "mail").write_bytes(kinds[name])
        run("curl", *user, "--upload-file", tmp_path / "mail", f"{url}/INBOX")
    backend.deliver(kinds["8-bit"])
    for number, name in enumerate(("text", "attachments", "large"), 1):
        run("curl", *user, "--output", tmp_path / "got", f"{url}/INBOX;MAILINDEX={number}")
        assert (tmp_path / "got").read_bytes() == kinds[name]
        run("curl", *user, "--output", tmp_path / "got", f"{url}/INBOX;UID={number};SECTION=HEADER")
        assert (tmp_path / "got").read_bytes() == kinds[name].split(b"\r\n\r\n")[0] + b"\r\n\r\n"
    assert (
        run("curl", *user, f"{url}/INBOX?SEEN").stdout.replace("\n", "\r\n").replace("\r\r", "\r")
        == "* SEARCH 1 2 3\r\n"
    )
    assert "* STATUS" in run("curl", *user, url, "--request", "STATUS INBOX (MESSAGES)").stdout
    assert '"/" Sent' in run("curl", *user, url).stdout.replace('"Sent"', "Sent")
    assert run("curl", *user[:2], "--user", f"{ANNA}:wrong", url, check=False).returncode == 67


# -- mbsync --------------------------------------------------------------------------------------------------------


def mbsync_config(backend: Backend, path: Path) -> Path:
    version = run("mbsync", "--version").stdout
    tls = "TLSType" if re.search(r"1\.(?:[5-9]|\d\d)", version) else "SSLType"
    config = path / "mbsyncrc"
    config.write_text(
        f"IMAPAccount obox\nHost 127.0.0.1\nPort {backend.imap}\nUser {ANNA}\nPass {PASSWORD}\n"
        f"{tls} None\nAuthMechs LOGIN\n\nIMAPStore far\nAccount obox\n\n"
        f"MaildirStore near\nPath {path}/mail/\nInbox {path}/mail/INBOX\nSubFolders Verbatim\n\n"
        "Channel all\nFar :far:\nNear :near:\nPatterns *\nCreate Both\nRemove Both\nExpunge Both\nSyncState *\n"
        "CopyArrivalDate yes\n"
    )
    (path / "mail").mkdir()
    return config


def local(path: Path) -> dict[str, dict[str, str]]:
    """Return the mails of each Maildir by their unique names, with their flags and
    content."""
    out = {}
    for name in [p.parent for p in path.rglob("cur")]:
        box = mailbox.Maildir(name, create=False)
        out[str(name.relative_to(path))] = {
            key: mail.get_flags() + box.get_bytes(key).decode("latin-1") for key, mail in box.items()
        }
    return out


CHANGES = (
    "APPEND",
    "STORE",
    "UID STORE",
    "COPY",
    "UID COPY",
    "MOVE",
    "UID MOVE",
    "EXPUNGE",
    "UID EXPUNGE",
    "CREATE",
    "DELETE",
)


def changes(backend: Backend) -> float:
    """Return how many commands that change something the backend has run so far."""
    total = 0.0
    for line in backend.get("/metrics")[1].splitlines():
        match = re.match(r'obox_imap_commands_total\{command="([^"]+)",result="[^"]+"\} (.+)', line)
        if match and match[1] in CHANGES:
            total += float(match[2])
    return total


@pytest.mark.needs("mbsync")
def test_mbsync_both_ways_and_then_nothing(backend: Backend, tmp_path: Path) -> None:
    config = mbsync_config(backend, tmp_path)
    mail = tmp_path / "mail"

    def sync() -> None:
        out = run("mbsync", "--config", config, "--all", "--verbose")
        assert "error" not in (out.stdout + out.stderr).lower(), out.stdout + out.stderr

    def sync_and_nothing() -> None:
        sync()
        here, count = local(mail), changes(backend)
        with backend.login() as client:
            there = everything(client)
        sync()
        with backend.login() as client:
            assert everything(client) == there
        assert (local(mail), changes(backend)) == (here, count), "the second run does nothing"

    for number in range(5):
        backend.deliver(simple(number))
    with backend.login() as client:
        client.create_folder("Projects/Grüße")
        client.append("Projects/Grüße", simple(10), ["\\Seen", "\\Flagged"], datetime(2020, 1, 1, tzinfo=UTC))
        for kind in ("attachments", "8-bit", "NUL bytes", "broken MIME", "large header"):
            client.append("Archive", every_kind()[kind])
    sync_and_nothing()
    assert {name: len(mails) for name, mails in local(mail).items()} == {
        "INBOX": 5, "Drafts": 0, "Sent": 0, "Trash": 0, "Junk": 0, "Archive": 5, "Projects/Gr&APwA3w-e": 1,
    }  # fmt: skip

    # There are flags, an expunge and a new mail on either side.
    with backend.login() as client:
        client.select_folder("INBOX")
        client.add_flags([1], ["\\Seen", "\\Flagged"])
        client.delete_messages([2])
        client.expunge()
    backend.deliver(simple(20))
    box = mailbox.Maildir(mail / "INBOX", create=False)
    by_subject = {mail["Subject"]: key for key, mail in box.items()}
    for subject, flags in (("mail 2", "RS"), ("mail 3", "ST")):
        message = box[by_subject[subject]]
        message.set_subdir("cur")
        message.set_flags(flags)
        box[by_subject[subject]] = message
    sent = mailbox.Maildir(mail / "Sent", create=False)
    sent.add(simple(30).replace(b"\r\n", b"\n"))
    sync_and_nothing()
    with backend.login() as client:
        now = everything(client)
    inbox = {mail[3].split(b"Subject: ")[1].split(b"\r\n")[0]: mail[0] for mail in now["INBOX"][2].values()}
    assert inbox == {
        b"mail 0": [b"\\Flagged", b"\\Seen"],
        b"mail 2": [b"\\Answered", b"\\Seen"],
        b"mail 4": [],
        b"mail 20": [],
    }
    assert next(mail[3] for mail in now["Sent"][2].values()).endswith(b"Body of mail 30.\r\n")
    here = {one["Subject"]: one.get_flags() for one in mailbox.Maildir(mail / "INBOX", create=False)}
    assert here == {"mail 0": "FS", "mail 2": "RS", "mail 4": "", "mail 20": ""}

    # The machine is lost. The UIDs and UIDVALIDITY values that mbsync remembers must
    # still hold.
    backend.journal_written()
    backend.kill()
    backend.lose_state()
    backend.start()
    here = local(mail)
    sync()
    assert local(mail) == here
    assert changes(backend) == 0


# -- Postfix -------------------------------------------------------------------------------------------------------


@pytest.fixture
def postfix(place: Path, make: Callable[..., Backend]) -> Iterator[Callable[[str], int]]:
    """Start Postfix with a next hop for example.org. Return the port for mails."""
    if os.geteuid() != 0:
        pytest.skip("needs root: Postfix runs as several users")
    running: list[tuple[Path, subprocess.Popen[bytes]]] = []

    def start(lmtp: str) -> int:
        home = place / "postfix"
        for name in ("queue", "data"):
            (home / name).mkdir(parents=True)
        shutil.chown(home / "data", pwd.getpwnam("postfix").pw_uid)
        port = free_port()
        (home / "main.cf").write_text(MAIN.format(home=home, lmtp=lmtp))
        (home / "master.cf").write_text(MASTER.format(port=port))
        program = shutil.which("postfix", path=PLACES)
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(program), "-c", str(home), "start-fg"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        running.append((home, process))
        deadline = time.monotonic() + START_S
        while True:
            try:
                with smtplib.SMTP("127.0.0.1", port, timeout=PATIENT_S):
                    return port
            except OSError:
                assert time.monotonic() < deadline, (home / "log").read_text()
                assert process.poll() is None, (home / "log").read_text()
                time.sleep(0.05)

    yield start
    for home, process in running:
        run("postfix", "-c", home, "stop", check=False)
        process.wait(PATIENT_S)


def send(port: int, sender: str, mail: bytes, *recipients: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=PATIENT_S) as client:
        assert client.sendmail(sender, list(recipients), mail) == {}


def wait_for(backend: Backend, user: str, count: int) -> list[bytes]:
    """Return the mails of a user's INBOX as soon as there are `count` of them."""
    deadline = time.monotonic() + START_S
    while True:
        with backend.login(user) as client:
            mails = everything(client)["INBOX"][2]
        if len(mails) >= count:
            assert len(mails) == count
            return [mail[3] for mail in mails.values()]
        assert time.monotonic() < deadline, [mail[3][:300] for mail in mails.values()]
        time.sleep(0.1)


@pytest.mark.needs("postfix")
@pytest.mark.parametrize("way", ["unix", "inet"])
def test_postfix_delivers_by_lmtp(
    place: Path, make: Callable[..., Backend], postfix: Callable[[str], int], way: str
) -> None:
    home = place / f"machine-{way}"
    backend = Backend(home, {"url": f"file://{home}/bucket"}, sections={"server": {"unix_mode": "0666"}})
    backend.write_users(
        f"{ANNA}:{{PLAIN}}{PASSWORD}\n{BEN}:{{PLAIN}}{PASSWORD}\n"
        f"full@example.org:{{PLAIN}}{PASSWORD}::::::userdb_quota_rule=*:bytes=2000\n"
        f"closed@example.org:{{PLAIN}}{PASSWORD}::::::disabled\n"
    )
    backend.start()
    shutil.rmtree(place / "postfix", ignore_errors=True)
    port = postfix(f"unix:{backend.unix}" if way == "unix" else f"inet:127.0.0.1:{backend.lmtp}")
    try:
        mail = every_kind()["attachments"]
        send(port, "someone@example.net", mail, ANNA, BEN, "anna+lists@example.org")
        got = wait_for(backend, ANNA, 2)
        assert all(body.startswith(b"Return-Path: <someone@example.net>\r\nDelivered-To: ") for body in got)
        assert all(body.split(b"\r\n\r\n", 1)[1] == mail.split(b"\r\n\r\n", 1)[1] for body in got)
        (to_ben,) = wait_for(backend, BEN, 1)
        assert b"Delivered-To: ben@example.org\r\n" in to_ben
        if way == "inet":
            return

        # Mails that cannot be delivered bounce at once, and the bounce names the
        # reason.
        for number, (user, code) in enumerate(
            (("nobody@example.org", b"5.1.1"), ("full@example.org", b"5.2.2"), ("closed@example.org", b"5.2.1")), 2
        ):
            send(port, BEN, simple(1, size=4000), user)
            bounce = wait_for(backend, BEN, number)[-1]
            assert b"Return-Path: <>" in bounce
            assert b"Status: " + code in bounce, bounce
            assert user.encode() in bounce

        # While the backend is away, Postfix keeps the mail and delivers it later.
        backend.kill()
        send(port, "someone@example.net", simple(9), ANNA)
        time.sleep(0.5)
        backend.start()
        run("postfix", "-c", place / "postfix", "flush")
        assert wait_for(backend, ANNA, 3)[-1].endswith(simple(9).split(b"\r\n", 1)[1][-20:])
        assert [line for line in backend.events() if line["level"] in ("error", "critical")] == []
    finally:
        backend.kill()


# -- IMAPClient ----------------------------------------------------------------------------------------------------

NOT_OURS = {
    "test_subscriptions (__main__.TestGeneral": "wants SUBSCRIBE of a name without a mailbox refused; RFC 3501 §6.3.6 "
    "and RFC 9051 §6.3.7: a server MAY check that, and must not unsubscribe by itself",
    "test_small_connection_timeout_fail": "wants a TCP connection to take more than a millisecond",
    "test_small_read_timeout_fail": "wants an answer to take more than ten microseconds",
    "test_fetch (": "compares Envelope, a dataclass, with assertSequenceEqual; the test below does",
    "test_move (": "without UIDs it calls imaplib's `move`, which does not exist",
}
"""Tests of the live suite that fail for a reason that is not a fault of the server."""


def test_imapclients_live_suite(livetest: Callable[[], str]) -> None:
    out = livetest()
    results = dict(
        re.findall(r"^(test_\w+ \(\S+\)).*?\.\.\. (ok|FAIL|ERROR|skipped.*)$", out, re.MULTILINE | re.DOTALL)
    )
    failed = re.findall(r"^(?:FAIL|ERROR): (.*)$", out, re.MULTILINE)
    ran = int(re.search(r"^Ran (\d+) tests", out, re.MULTILINE)[1])
    assert ran >= 55, out
    assert [name for name in failed if not any(name.startswith(known) for known in NOT_OURS)] == [], out
    skipped = {name.split(" ")[0] for name, result in results.items() if result.startswith("skipped")}
    assert skipped <= {
        "test_xlist", "test_gmail_xlist", "test_gmail_labels", "test_gmail_search", "test_getacl", "test_uid_expunge",
        "test_sort", "test_sort_with_unicode", "test_thread", "test_thread_with_unicode",
    }, skipped  # fmt: skip


def test_envelope_as_the_live_suite_wants(backend: Backend) -> None:
    bob = (Address(b"Bob Smith", None, b"bob", b"smith.com"),)
    to = (Address(b"Some One", None, b"some", b"one.com"), Address(None, None, b"foo", b"foo.com"))
    with backend.login() as client:
        client.normalise_times = False
        client.append("INBOX", "Message-ID: <1@x>\r\n" + MULTIPART_MESSAGE)
        client.select_folder("INBOX")
        got = client.fetch([1], ["ENVELOPE"])[1][b"ENVELOPE"]
    date = datetime(2010, 3, 16, 16, 45, 32, tzinfo=UTC)
    assert got == Envelope(date, b"A multipart message", bob, bob, bob, to, None, None, None, b"<1@x>")
