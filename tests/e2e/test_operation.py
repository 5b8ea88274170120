"""What an operator sees: configuration, signals, TLS, probes, metrics, and a bucket
that does not answer for a while."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import certificate
from cryptography import x509
from imapclient import IMAPClient
from imapclient.exceptions import IMAPClientError
from mails import simple
from patience import PATIENT_S
from ports import free_port
from processes import PASSWORD, START_S, USERS, Backend, Proxy, everything, s3_storage
from servers import S3Bucket

from obox.store.env import ANSWER_S

ANNA, BEN = USERS


# -- configuration -----------------------------------------------------------------------------------------------------


def obox(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OBOX_", "XDG_"))}
    return subprocess.run(
        [sys.executable, "-m", "obox.main", *arguments],
        capture_output=True,
        text=True,
        timeout=START_S,
        env={**clean, "HOME": "/nonexistent", **environ},
        check=False,
    )


def test_config_prints_what_is_in_effect_and_masks_secrets(make: Callable[..., Backend]) -> None:
    backend = make(storage={"url": "s3://mail", "access_key_id": "AK", "secret_access_key": "do-not-show"})
    shown = obox("config", "-c", str(backend.config), OBOX_METACACHE__MAX_SPACE="128M", OBOX_HTTP__API_KEY="nor-this")
    assert shown.returncode == 0, shown.stderr
    assert "do-not-show" not in shown.stdout + shown.stderr
    assert "nor-this" not in shown.stdout + shown.stderr
    lines = {line.split(" = ")[0].strip(): line for line in shown.stdout.splitlines() if " = " in line}
    assert "128M" in lines["max_space"]
    assert "OBOX_METACACHE__MAX_SPACE" in lines["max_space"]
    assert str(backend.config) in lines["access_key_id"]


@pytest.mark.parametrize("command", ["serve", "config"])
@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ("[metacache2]\nx = 1\n", "metacache2"),
        ("[fscache]\nmax_sise = '1G'\n", "fscache.max_sise"),
        ("[fscache]\nmax_size = '1X'\n", "fscache.max_size"),
        ("[tls\n", "obox.toml"),
        ("[tls]\ncert = ['nowhere.pem']\nkey = ['nowhere.key']\n", "nowhere.pem"),
        ("[storage.encryption_keys]\nk1 = 'nowhere.key'\n", "nowhere.key"),
    ],
)
def test_a_bad_configuration_exits_78_with_one_line(
    make: Callable[..., Backend], command: str, extra: str, named: str
) -> None:
    backend = make()
    backend.write(extra)
    out = obox(command, "-c", str(backend.config))
    assert out.returncode == 78, out.stderr
    assert named in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1, out.stderr


def test_the_environment_alone_is_a_start(tmp_path: Path) -> None:
    out = obox("config", OBOX_STORAGE__URL=f"file://{tmp_path}/bucket", OBOX_STATE_DIR=str(tmp_path / "state"))
    assert out.returncode == 0, out.stderr
    assert "OBOX_STORAGE__URL" in out.stdout


def test_a_second_process_on_the_same_state_is_refused(backend: Backend) -> None:
    out = obox("serve", "-c", str(backend.config))
    assert out.returncode in (69, 78), out.stderr
    assert "state_dir" in out.stderr


# -- signals and TLS -----------------------------------------------------------------------------------------------


def test_tls_and_reload(make: Callable[..., Backend], tmp_path: Path) -> None:
    """Clients can use implicit TLS and STARTTLS. A client from another network cannot
    send a password without TLS. SIGHUP loads a new certificate, and keeps the old
    certificate if the new file is broken."""
    certificate(tmp_path, "one")
    tls, proxied = free_port(), free_port()
    backend = make()
    backend.sections = {
        "imap": {"listen": [f"127.0.0.1:{backend.imap}", f"127.0.0.1:{tls}/tls", f"127.0.0.1:{proxied}/proxy"]},
        "tls": {"cert": [str(tmp_path / "one.pem")], "key": [str(tmp_path / "one.key")]},
    }
    backend.write()
    backend.start()
    trust = ssl.create_default_context(cafile=str(tmp_path / "one.pem"))

    with IMAPClient("127.0.0.1", tls, ssl_context=trust, timeout=PATIENT_S) as client:
        assert b"STARTTLS" not in client.capabilities()
        client.login(ANNA, PASSWORD)
    with IMAPClient("127.0.0.1", backend.imap, ssl=False, timeout=PATIENT_S) as client:
        assert b"STARTTLS" in client.capabilities()
        client.starttls(trust)
        assert b"STARTTLS" not in client.capabilities()
        client.login(ANNA, PASSWORD)
        client.select_folder("INBOX")

    lines = from_elsewhere(proxied, b"a LOGIN anna@example.org secret\r\nb AUTHENTICATE PLAIN AGEAYg==\r\nc LOGOUT\r\n")
    assert b"LOGINDISABLED" in lines[0]
    assert b"AUTH=" not in lines[0]
    answers = [line for line in lines if line[:2] in (b"a ", b"b ")]
    assert [line.split()[1:3] for line in answers] == [[b"NO", b"[PRIVACYREQUIRED]"]] * 2

    def serial() -> str:
        pem = ssl.get_server_certificate(("127.0.0.1", tls))
        return str(x509.load_pem_x509_certificate(pem.encode()).serial_number)

    first = serial()
    certificate(tmp_path, "one")
    backend.signal(signal.SIGHUP)
    backend.wait_event("configuration reloaded")
    second = serial()
    assert second != first
    certificate(tmp_path, "new")
    for kind in ("pem", "key"):
        (tmp_path / f"new.{kind}").rename(tmp_path / f"one.{kind}")
    backend.wait_event("certificates renewed")
    assert serial() not in (first, second)
    second = serial()
    (tmp_path / "one.pem").write_text("broken")
    backend.wait_event("new certificates cannot be used, the old certificates stay")
    assert serial() == second
    backend.signal(signal.SIGHUP)
    backend.wait_event("reload failed, the old configuration stays", 1)
    backend.write("[nonsense]\n")
    backend.signal(signal.SIGHUP)
    assert "nonsense" in backend.wait_event("reload failed, the old configuration stays", 2)["error"]
    assert serial() == second
    with backend.login() as client:
        client.noop()
    assert backend.stop() == 0


def test_a_reload_uses_what_can_change(make: Callable[..., Backend]) -> None:
    """After SIGHUP the next clients get the new settings. The log gets its new level
    too, although its loggers have been in use since the start."""
    backend = make()
    backend.start()
    with backend.login() as old:
        assert f"APPENDLIMIT={50 << 20}".encode() in old.capabilities()
        backend.sections = {
            "quota": {"max_mail_size": "1M"},
            "log": {"level": "debug"},
            "server": {"unix_mode": "0600"},
            "auth": {"passwd_file": "others"},
        }
        (backend.home / "others").write_text(f"zoe@example.org:{{PLAIN}}{PASSWORD}\n")
        backend.write()
        assert not backend.events("imap disconnect")
        backend.signal(signal.SIGHUP)
        used = ["auth.passwd_file", "lmtp.max_mail_size", "quota.max_mail_size", "log.level"]
        assert backend.wait_event("configuration reloaded")["settings"] == used
        waits = backend.wait_event("configuration reloaded, some changes wait for a restart")
        assert (waits["level"], waits["settings"]) == ("warning", ["server.unix_mode"])
        old.noop()
    with backend.login("zoe@example.org") as new:
        assert f"APPENDLIMIT={1 << 20}".encode() in new.capabilities()
    with pytest.raises(IMAPClientError):
        backend.login().__enter__()
    assert backend.wait_event("imap disconnect")["level"] == "debug"
    assert backend.stop() == 0


def from_elsewhere(port: int, commands: bytes) -> list[bytes]:
    """Send commands as a client of another network, by the word of a proxy, and return
    the answers. The addresses are those of RFC 5737 §3."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENT_S) as sock:
        sock.sendall(b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 143\r\n" + commands)
        return sock.makefile("rb").read().splitlines()


def test_users_are_read_again_when_the_file_changes(backend: Backend) -> None:
    backend.write_users("cara@example.org:{PLAIN}secret\n")
    deadline = time.monotonic() + PATIENT_S
    while True:
        try:
            with backend.login("cara@example.org"):
                break
        except IMAPClientError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    with pytest.raises(IMAPClientError):
        backend.login(BEN).__enter__()
    assert backend.deliver(simple(1), BEN)[0][0] == 550


# -- probes and metrics --------------------------------------------------------------------------------------------


def test_a_disk_smaller_than_the_cache_is_said(make: Callable[..., Backend], tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path)
    backend = make(sections={"fscache": {"max_size": free.total + 1}})
    backend.start()
    found = backend.wait_event("cache limit exceeds the disk")
    assert (found["setting"], found["limit_bytes"], found["disk_bytes"]) == (
        "fscache.max_size",
        free.total + 1,
        free.total,
    )
    for cache in ("fscache", "metacache"):
        assert backend.metric(f"obox_{cache}_disk_total_bytes") == free.total
        assert 0 < backend.metric(f"obox_{cache}_disk_free_bytes") <= free.total


def test_probes_metrics_and_log(make: Callable[..., Backend]) -> None:
    backend = make(sections={"server": {"shutdown_timeout": "4s"}})
    backend.start()
    assert backend.get("/healthz")[0] == 200
    assert backend.get("/readyz")[0] == 200
    assert backend.get("/nowhere")[0] == 404
    logins = backend.metric('obox_logins_total{result="ok"}')
    mails = backend.metric('obox_objectstore_requests_total{op="put",kind="mail"}')
    assert [code for code, _ in backend.deliver(simple(1), ANNA, BEN)] == [250, 250]
    assert backend.metric('obox_lmtp_deliveries_total{result="ok"}') == 2
    assert backend.metric('obox_objectstore_requests_total{op="put",kind="mail"}') == mails + 2
    with backend.login() as client:
        assert backend.metric("obox_imap_sessions") == 1
        client.select_folder("INBOX")
        client.fetch([1], ["ENVELOPE", "BODYSTRUCTURE", "FLAGS", "BODY.PEEK[HEADER.FIELDS (SUBJECT)]"])
        before = backend.requests()
        client.fetch([1], ["ENVELOPE", "BODYSTRUCTURE", "FLAGS", "BODY.PEEK[]"])
        client.search(["SUBJECT", "mail"])
        after = backend.requests()
        assert {k: v for k, v in after.items() if "journal" not in k} == {
            k: v for k, v in before.items() if "journal" not in k
        }, "a warm session makes no request"
    with pytest.raises(IMAPClientError):
        backend.login(password="wrong").__enter__()
    assert backend.metric('obox_logins_total{result="ok"}') == logins + 1
    assert backend.metric('obox_logins_total{result="failed"}') == 1
    assert all(line["timestamp"].endswith("Z") for line in backend.events())
    assert PASSWORD not in backend.log.read_text()
    # The backend drains: a client that stalls keeps the process alive, and the probe
    # answers 503 meanwhile.
    with socket.create_connection(("127.0.0.1", backend.lmtp)) as stalls:
        stalls.sendall(b"LHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<anna@example.org>\r\nDATA\r\n")
        time.sleep(0.2)
        backend.signal(signal.SIGTERM)
        backend.wait_event("stopping")
        assert backend.get("/readyz")[0] == 503
        assert backend.get("/healthz")[0] == 200
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", backend.imap))
    assert backend.process is not None
    assert backend.process.wait(PATIENT_S) == 0


# -- telling at once -----------------------------------------------------------------------------------------------


@contextmanager
def idling(backend: Backend) -> Iterator[Callable[[int], list[tuple[object, ...]]]]:
    with backend.login() as client:
        client.select_folder("INBOX")
        client.idle()

        def reported(count: int) -> list[tuple[object, ...]]:
            out: list[tuple[object, ...]] = []
            deadline = time.monotonic() + PATIENT_S
            while len(out) < count and time.monotonic() < deadline:
                out += client.idle_check(timeout=1)
            return out

        yield reported
        client.idle_done()


def test_idle_reports_at_once(backend: Backend) -> None:
    """IDLE reports a delivery, and flags, keywords and an expunge of another session.
    Each wait here is shorter than every timer of obox, so the backend must have sent
    the changes at once."""
    with idling(backend) as reported, backend.login() as other:
        backend.deliver(simple(1))
        assert (1, b"EXISTS") in reported(2)
        other.select_folder("INBOX")
        other.add_flags([1], ["\\Flagged", "$New"])
        flags = reported(2)
        assert any(b"\\Flagged" in str(line).encode() and b"$New" in str(line).encode() for line in flags), flags
        other.append("INBOX", simple(2))
        assert (2, b"EXISTS") in reported(1)
        other.delete_messages([1])
        other.expunge()
        lines = reported(2)
        assert (1, b"EXPUNGE") in lines, lines


# -- a bucket that vanishes and returns ----------------------------------------------------------------------------


@pytest.fixture
def cable(s3_bucket: S3Bucket) -> Iterator[Proxy]:
    host, port = s3_bucket.server.endpoint_url.removeprefix("http://").split(":")
    proxy = Proxy((host, int(port)))
    yield proxy
    proxy.cut()


def behind(make: Callable[..., Backend], bucket: S3Bucket, cable: Proxy) -> Backend:
    storage = s3_storage(bucket, f"http://127.0.0.1:{cable.port}")
    return make(storage={**storage, "deadline": "1s"})


def test_a_bucket_that_goes_and_comes_back(make: Callable[..., Backend], s3_bucket: S3Bucket, cable: Proxy) -> None:
    """During the outage the backend serves what it has locally, and refuses what needs
    the bucket with a temporary error. Afterwards it serves everything again, and
    nothing is lost."""
    cable.join()
    backend = behind(make, s3_bucket, cable)
    backend.start()
    for number in range(3):
        assert backend.deliver(simple(number))[0][0] == 250
    with backend.login() as client:
        client.select_folder("INBOX")
        client.fetch([1, 2, 3], ["BODY.PEEK[]"])
        cable.cut()
        assert len(client.fetch([1, 2, 3], ["ENVELOPE", "BODY.PEEK[]"])) == 3
        # The synced local commit has this change, and the journal is not late yet.
        client.add_flags([1], ["\\Seen"])

        with ThreadPoolExecutor() as pool:
            # The outage begins while the PUT of this delivery is on its way.
            caught = pool.submit(backend.deliver, simple(11))
            deadline = time.monotonic() + START_S
            while backend.metric("obox_store_journal_late_seconds") <= 10:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            # From now on the backend refuses every change that could be lost. It
            # answers at once.
            begun = time.monotonic()
            for command in (
                lambda: client.append("INBOX", simple(10)),
                lambda: client.copy([1], "Archive"),
                lambda: client.create_folder("New"),
                lambda: client.remove_flags([1], ["\\Seen"]),
            ):
                with pytest.raises(IMAPClientError, match="UNAVAILABLE"):
                    command()
            code, text = backend.deliver(simple(10))[0]
            assert (code, text[:5]) == (451, b"4.3.0")
            assert time.monotonic() - begun < ANSWER_S, "five commands; one that waited would need so long alone"
            cable.join()
        assert caught.result()[0][0] in (250, 451)
        assert len(client.fetch([1, 2, 3], ["ENVELOPE", "BODY.PEEK[]"])) == 3
        deadline = time.monotonic() + START_S
        while backend.deliver(simple(12))[0][0] != 250:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        client.append("INBOX", simple(13))
        client.copy([1], "Archive")
        backend.journal_written()
        before = everything(client)
    bodies = [mail[3] for mail in before["INBOX"][2].values()]
    counts = {n: sum(body.endswith(simple(n)) for body in bodies) for n in (0, 1, 2, 10, 11, 12, 13)}
    assert counts.pop(11) in ((1,) if caught.result()[0][0] == 250 else (0, 1))
    assert counts == {0: 1, 1: 1, 2: 1, 10: 0, 12: 1, 13: 1}
    assert before["INBOX"][2][1][0] == [b"\\Seen"]
    backend.kill()
    backend.lose_state()
    backend.start()
    with backend.login() as client:
        assert everything(client) == before


def test_a_start_without_the_bucket(make: Callable[..., Backend], s3_bucket: S3Bucket, cable: Proxy) -> None:
    backend = behind(make, s3_bucket, cable)
    backend.spawn()
    backend.wait_listening()
    with pytest.raises(IMAPClientError, match="UNAVAILABLE"):
        backend.login().__enter__()
    assert backend.deliver(simple(1))[0][0] == 451
    assert backend.metric('obox_logins_total{result="unavailable"}') >= 1
    assert len([line for line in backend.events() if line["level"] == "warning"]) <= 6, "told once a minute"
    cable.join()
    deadline = time.monotonic() + START_S
    while backend.deliver(simple(2))[0][0] != 250:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with backend.login() as client:
        assert everything(client)["INBOX"][1][b"MESSAGES"] == 1
    assert backend.stop() == 0


def test_a_stop_of_a_backend_that_never_saw_its_bucket(make: Callable[..., Backend]) -> None:
    nowhere = {"endpoint_url": f"http://127.0.0.1:{free_port()}", "access_key_id": "a", "secret_access_key": "b"}
    backend = make(storage={"url": "s3://mail", **nowhere})
    backend.spawn()
    backend.wait_listening()
    assert backend.stop() == 0
    assert backend.events("drain cut short") == [], "within its limit"


def test_an_address_that_is_taken_exits_69(make: Callable[..., Backend], backend: Backend) -> None:
    other = make(storage=backend.storage, sections={"imap": {"listen": [f"127.0.0.1:{backend.imap}"]}})
    out = obox("serve", "-c", str(other.config))
    assert out.returncode == 69, out.stderr
    assert "imap.listen" in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1


def test_a_stop_without_the_bucket_loses_nothing(
    make: Callable[..., Backend], s3_bucket: S3Bucket, cable: Proxy
) -> None:
    """The stop ends within its time limit. The local state keeps the changes that could
    not be flushed."""
    cable.join()
    backend = behind(make, s3_bucket, cable)
    backend.sections = {"server": {"shutdown_timeout": "4s"}}
    backend.write()
    backend.start()
    backend.deliver(simple(1))
    with backend.login() as client:
        client.select_folder("INBOX")
        cable.cut()
        client.add_flags([1], ["\\Flagged"])
    begun = time.monotonic()
    assert backend.stop() == 0
    assert time.monotonic() - begun < 12
    cable.join()
    backend.start()
    with backend.login() as client:
        assert everything(client)["INBOX"][2][1][0] == [b"\\Flagged"]


# -- many at once --------------------------------------------------------------------------------------------------


def test_deliveries_and_sessions_at_once(backend: Backend) -> None:
    """There are four senders and two readers. Each mail is stored once, UIDs are in
    order, and the log has no error."""
    count, senders = 25, 4
    errors: list[BaseException] = []

    def send(first: int) -> None:
        try:
            for number in range(first, first + count):
                assert backend.deliver(simple(number))[0][0] == 250
        except BaseException as exc:
            errors.append(exc)

    def read() -> None:
        try:
            with backend.login() as client:
                seen = 0
                deadline = time.monotonic() + PATIENT_S
                while seen < count * senders and time.monotonic() < deadline:
                    client.select_folder("INBOX")
                    uids = client.search("ALL")
                    assert uids == sorted(uids)
                    if uids:
                        client.add_flags(uids[-3:], ["\\Seen"])
                        client.fetch(uids[-5:], ["ENVELOPE", "FLAGS"])
                    seen = len(uids)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=send, args=(n * count,)) for n in range(senders)]
    threads += [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    with backend.login() as client:
        mails = everything(client)["INBOX"][2]
    assert sorted(mails) == list(range(1, count * senders + 1))
    subjects = sorted(int(body[3].split(b"Subject: mail ")[1].split(b"\r\n")[0]) for body in mails.values())
    assert subjects == list(range(count * senders))
    assert [line for line in backend.events() if line["level"] in ("error", "critical")] == []
