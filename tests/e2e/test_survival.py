"""The main promise: the bucket alone is enough to restore everything, whatever happens
to the machine."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from imapclient import IMAPClient
from mails import NOT_OVER_LMTP, every_kind, simple
from patience import PATIENT_S
from processes import USERS, Backend, everything, modseqs

ANNA, BEN = USERS


def live(backend: Backend) -> None:
    """Bring mail in by LMTP and by APPEND, and then use each kind of command that
    changes something."""
    for number in range(8):
        assert backend.deliver(simple(number), ANNA, unix=number % 2 == 0)[0][0] == 250
    replies = backend.deliver(simple(50), ANNA, "nobody@example.org", BEN, "anna+detail@example.org")
    assert [code for code, _ in replies] == [250, 550, 250, 250]
    with backend.login() as client:
        date = datetime(2024, 2, 29, 12, 0, 0, tzinfo=timezone(timedelta(hours=-2, minutes=-30)))
        client.append("INBOX", simple(60), ["\\Seen", "$Work"], date)
        client.multiappend("Drafts", [simple(61), simple(62)])
        client.create_folder("Projects/obox/Grüße")
        client.create_folder("Old")
        client.create_folder("Gone")
        client.subscribe_folder("Projects/obox/Grüße")
        client.unsubscribe_folder("Junk")
        client.select_folder("INBOX")
        client.add_flags([1, 2, 3, 4], ["\\Seen", "$Work"])
        client.set_flags([2], ["\\Answered", "$Later"])
        client.remove_flags([3], ["\\Seen"])
        client.copy([1, 2, 5], "Projects/obox/Grüße")
        client.move([6, 7], "Archive")
        client.copy([8], "Gone")
        client.select_folder("Archive")
        client.copy([1], "Old")
        client.delete_messages([1])
        client.expunge()
        client.rename_folder("Projects", "Work")
        client.delete_folder("Gone")
        client.select_folder("INBOX")
        client.delete_messages([4])
        client.uid_expunge([4])


def look(backend: Backend) -> tuple[dict[str, Any], dict[str, int]]:
    with backend.login() as client:
        return everything(client), modseqs(client)


def test_killed_and_the_machine_lost(make: Callable[..., Backend], storage: dict[str, object]) -> None:
    """The machine is lost twice. The first new machine has the same name as the lost
    machine, and the second has another name."""
    backend = make(storage=storage)
    backend.start()
    live(backend)
    before, modseq = look(backend)
    assert before["INBOX"][1][b"MESSAGES"] == 8
    assert before["Work/obox/Grüße"][1][b"MESSAGES"] == 3
    backend.journal_written()
    backend.kill()
    for name in ("first", "second"):
        other = make(storage=storage, name=name)
        other.start()
        after, later = look(other)
        assert after == before
        assert all(later[box] >= value for box, value in modseq.items())
        uidnext = before["INBOX"][1][b"UIDNEXT"]
        assert other.deliver(simple(70))[0][0] == 250
        with other.login() as client:
            client.select_folder("INBOX")
            assert client.fetch([uidnext], ["BODY.PEEK[]"])[uidnext][b"BODY[]"].endswith(simple(70))
            client.add_flags([uidnext], ["$After"])
            before, modseq = everything(client), modseqs(client)
        other.journal_written()
        other.kill()


def test_killed_and_started_again_on_its_disk(backend: Backend) -> None:
    """The test does not wait until the journal is written: the synced local commit
    keeps the changes as well."""
    live(backend)
    before, _ = look(backend)
    backend.kill()
    backend.start()
    assert look(backend)[0] == before


@pytest.mark.parametrize("storage", ["seaweedfs", "encrypted"], indirect=True)
def test_every_mail_comes_back_byte_for_byte(make: Callable[..., Backend], storage: dict[str, object]) -> None:
    """APPEND returns a mail unchanged. LMTP returns it unchanged behind the two lines
    that a delivery adds."""
    backend = make(storage=storage)
    backend.start()
    kinds = every_kind()
    # An empty literal cancels APPEND (RFC 3502 §6.3.11).
    appended = {name: mail for name, mail in kinds.items() if mail}
    over_lmtp = [name for name in kinds if name not in NOT_OVER_LMTP]
    for name in over_lmtp:
        assert backend.deliver(kinds[name])[0][0] == 250, name

    def check() -> None:
        with backend.login() as client:
            client.select_folder("INBOX", readonly=True)
            for uid, name in enumerate(over_lmtp, 1):
                got = fetch(client, uid, "BODY.PEEK[]")
                head = got[: len(got) - len(kinds[name])]
                assert got.endswith(kinds[name]), name
                assert head.startswith(b"Return-Path: <sender@example.net>\r\nDelivered-To: anna@example.org\r\n"), name
                assert fetch(client, uid, "BODY.PEEK[]<10.100>") == got[10:110], name
            client.select_folder("Archive", readonly=True)
            for uid, (name, mail) in enumerate(appended.items(), 1):
                got = fetch(client, uid, "BODY.PEEK[]")
                assert got == mail, name
                header, text = fetch(client, uid, "BODY.PEEK[HEADER]"), fetch(client, uid, "BODY.PEEK[TEXT]")
                assert header + text == mail or not mail, name
                for start, count in ((0, 7), (262_140, 10), (262_144, 300_000)):
                    assert fetch(client, uid, f"BODY.PEEK[]<{start}.{count}>") == mail[start : start + count], name

    with backend.login() as client:
        for mail in appended.values():
            # `append` of imaplib changes line ends.
            client.multiappend("Archive", [mail])
    check()
    backend.kill()
    backend.lose_state()
    backend.start()
    check()


def fetch(client: IMAPClient, uid: int, what: str) -> bytes:
    """Fetch a single body part. The key of the answer may differ from the item that was
    requested."""
    (answer,) = client.fetch([uid], [what]).values()
    (body,) = (value for key, value in answer.items() if key.startswith(b"BODY["))
    return body or b""


@pytest.mark.parametrize("storage", ["file", "seaweedfs"], indirect=True)
def test_stopped_clean_needs_no_replay(make: Callable[..., Backend], storage: dict[str, object]) -> None:
    backend = make(storage=storage)
    backend.start()
    live(backend)
    before, _ = look(backend)
    assert backend.stop() == 0
    assert backend.events("drain cut short") == [], "within its limit"
    backend.lose_state()
    backend.log.write_text("")
    backend.start()
    assert backend.events("journal replayed") == []
    assert backend.events("boot fenced") == []
    requests = backend.requests()
    assert requests.get("put journal", 0) == 1, "its own first object; nothing to take over"
    assert look(backend)[0] == before


def test_stopped_while_clients_are_there(make: Callable[..., Backend]) -> None:
    """When the backend stops, a session is idle, another is in the middle of a literal,
    and a delivery stalls. The clients get half of the time limit, and the flush gets
    the other half."""
    backend = make(sections={"server": {"shutdown_timeout": "4s"}})
    backend.start()
    backend.deliver(simple(1))
    with backend.login() as client:
        client.select_folder("INBOX")
        client.idle()
        with (
            socket.create_connection(("127.0.0.1", backend.imap)) as half,
            socket.create_connection(("127.0.0.1", backend.lmtp)) as delivery,
        ):
            half.sendall(b"a LOGIN anna@example.org secret\r\nb APPEND INBOX {100}\r\nabc")
            delivery.sendall(b"LHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<anna@example.org>\r\nDATA\r\nSubject: x\r\n")
            time.sleep(0.3)
            begun = time.monotonic()
            assert backend.stop() == 0
            assert time.monotonic() - begun > 1, "clients have their half of the time"
            assert b"BYE" in half.recv(10_000)
        assert client.idle_check(timeout=1)[0][0] == b"BYE"
        client.shutdown()
        client.logout = lambda: None
    assert backend.events("drain cut short") == []
    backend.lose_state()
    backend.log.write_text("")
    backend.start()
    assert backend.events("boot fenced") == []
    assert look(backend)[0]["INBOX"][1][b"MESSAGES"] == 1


def test_a_bucket_in_memory_ends_with_its_process(make: Callable[..., Backend]) -> None:
    backend = make(storage={"url": "memory://"})
    for _ in range(2):
        backend.start()
        assert look(backend)[0]["INBOX"][1][b"MESSAGES"] == 0
        assert backend.deliver(simple(1))[0][0] == 250
        assert look(backend)[0]["INBOX"][1][b"MESSAGES"] == 1
        assert backend.stop() == 0


def test_a_directory_that_is_not_mounted_is_no_empty_bucket(backend: Backend, tmp_path: Path) -> None:
    backend.deliver(simple(1))
    assert backend.stop() == 0
    (tmp_path / "bucket").rename(tmp_path / "away")
    backend.spawn()
    assert backend.process is not None
    assert backend.process.wait(PATIENT_S) == 78
    assert "not mounted" in backend.log.read_text().splitlines()[-1]
    (tmp_path / "bucket").rename(tmp_path / "empty")
    (tmp_path / "away").rename(tmp_path / "bucket")
    backend.start()
    with backend.login() as client:
        assert everything(client)["INBOX"][1][b"MESSAGES"] == 1
