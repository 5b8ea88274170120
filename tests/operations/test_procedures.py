"""The procedures of docs/operations.md: their commands as they are printed, and the
mail after them."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from imapclient.exceptions import IMAPClientError
from mails import simple
from manual import USER, Machine, blocks, commands
from patience import PATIENT_S

pytestmark = pytest.mark.needs("bash", "curl", "openssl")

RESTORED = "anna-restored@example.org"

Do = Callable[..., str]


@pytest.fixture
def do(served: Machine) -> Do:
    """Run the blocks of a test on the machine."""
    return lambda test, code=0: served.run(commands("operations.md", test), code)


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def bundles(machine: Machine, prefix: str = "obox") -> set[str]:
    return {key for key in machine.listed(prefix) if "/x/" in key and not key.endswith(".cache")}


def flag(machine: Machine, flag: str = "\\Flagged") -> None:
    """Change a flag. This is an important change: only the local state and the journal
    have it."""
    with machine.login() as client:
        client.select_folder("INBOX")
        client.add_flags([1], [flag])


@pytest.mark.parametrize("page", ["operations.md", "storage.md"])
def test_each_block_is_run_or_says_why_not(page: str) -> None:
    here = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for block in blocks(page):
        assert bool(block.test) != bool(block.why), block.text
        assert not block.test or f'"{block.test}"' in here, f"no test runs {block.test!r}"


def test_every_day(served: Machine, do: Do) -> None:
    """Procedures that change nothing for users run one after another on the same
    machine. Then a user is deleted."""
    before = served.see()
    trouble_is_seen(served, do)
    certificates_are_renewed(served, do)
    room_is_made(served, do)
    assert served.see() == before
    upgraded(served, do)
    replaced(served, do)
    deleted(served, do)


def trouble_is_seen(served: Machine, do: Do) -> None:
    with served.login():
        out = do("trouble")
    for word in ("obox_store_journal_late_seconds", 'op="put"', "obox_fscache_hits", "create-only", USER):
        assert word in out, word


def certificates_are_renewed(served: Machine, do: Do) -> None:
    def shown() -> str:
        return ssl.get_server_certificate(("127.0.0.1", served.tls))

    first = shown()
    served.certificate("/etc/obox/new")
    with served.login() as client:
        do("certificates")
        wait(lambda: shown() != first)
        client.noop()
    assert shown().strip() == served.path("/etc/obox/cert.pem").read_text().strip()


def room_is_made(served: Machine, do: Do) -> None:
    out = do("disk full").splitlines()
    assert out[-1].split()[-1] == "yes", "the accounts of fscache were right"


def upgraded(served: Machine, do: Do) -> None:
    flag(served)
    before, process, known = served.see(), served.pid(), bundles(served)
    assert "kept" in do("upgrade").splitlines()[-1]
    assert served.pid() != process
    assert served.see() == before
    assert known <= bundles(served)


def replaced(served: Machine, do: Do) -> None:
    flag(served, "$Later")
    before = served.see()
    # The journal has the change after this time.
    time.sleep(1.2)
    served.kill()
    assert "none" in do("lost machine").splitlines()[-1]
    assert served.see() == before


def deleted(served: Machine, do: Do) -> None:
    served.run("echo secret | oboxadm -c /etc/obox/mail1.toml user add ben@example.org")
    wait(lambda: served.deliver(simple(9), "ben@example.org") == 250)
    ben = served.see("ben@example.org")
    with served.login() as client:
        do("delete a user")
        # The session is kicked: it gets a BYE, and then the connection ends.
        with pytest.raises((IMAPClientError, OSError)):
            [client.noop() for _ in range(2)]
    assert not [key for key in served.listed() if USER in key]
    with pytest.raises(IMAPClientError):
        served.login().__enter__()
    assert served.deliver(simple(1)) == 550
    assert served.see("ben@example.org") == ben


def test_a_stop_flushes_and_a_restart_does_not(served: Machine, do: Do) -> None:
    flag(served)
    before, known = served.see(), bundles(served)
    do("maintenance without a flush")
    assert bundles(served) == known
    do("maintenance, afterwards")
    assert served.see() == before
    flag(served, "$Later")
    before, known = served.see(), bundles(served)
    do("maintenance")
    assert bundles(served) - known, "the flush"
    # The local state is not needed here.
    served.run("rm -rf /var/lib/obox/mail1")
    out = do("maintenance, afterwards")
    assert "Archive" in out
    assert served.see() == before
    do("maintenance by hand")
    served.run("systemctl is-active obox-backend@mail1", 3)


def test_the_bucket_is_restored_from_a_copy_made_while_it_was_in_use(served: Machine, do: Do) -> None:
    """Mails come and go between the two copies. What the first copy knows is there,
    mails that came later are found, and UIDs go on."""
    flag(served)
    flush, first, second = commands("operations.md", "backup").splitlines()
    served.run(f"{flush}\n{first}")
    before = served.see()
    assert served.deliver(simple(80)) == 250
    with served.login() as client:
        client.select_folder("INBOX")
        client.delete_messages([1])
        client.expunge()
    served.run(f"{flush}\n{second}")
    assert served.deliver(simple(81)) == 250, "after the copy: gone"
    with served.login() as client:
        seen = client.select_folder("INBOX")
        assert max(client.search()) == 6
    do("restore everything")
    after = served.see()
    assert after["INBOX"][2].pop(5)[3].endswith(simple(80))
    assert after["INBOX"][2] == before["INBOX"][2]
    for name in before:
        if name not in ("INBOX", "subscribed"):
            before[name][1][b"UIDNEXT"] += 10_000
    assert {name: box for name, box in after.items() if name != "INBOX"} == {
        name: box for name, box in before.items() if name != "INBOX"
    }
    assert served.deliver(simple(82)) == 250
    assert max(served.see()["INBOX"][2]) == 10_006, "not 6: that was another mail, which clients may know"
    assert served.see()["INBOX"][2][10_006][3].endswith(simple(82))
    with served.login() as client:
        client.enable("QRESYNC")
        known = b"(QRESYNC (%d %d 5:6))" % (seen[b"UIDVALIDITY"], seen[b"HIGHESTMODSEQ"])
        client._imap._command_complete("SELECT", client._imap._command("SELECT", "INBOX", known))
        assert client._imap.untagged_responses["VANISHED"] == [b"(EARLIER) 6"], "what it had of the lost days"


def test_one_user_is_restored_under_another_name(served: Machine, do: Do) -> None:
    flag(served)
    before = served.see()
    do("backup")
    # Here the accident happens.
    with served.login() as client:
        client.select_folder("INBOX")
        client.delete_messages([1, 2])
        client.expunge()
        client.delete_folder("Projects")
    now = served.see()
    out = do("restore one user")
    assert "Projects" in out
    assert served.see(RESTORED) == before
    assert served.see() == now
    assert served.deliver(simple(90), RESTORED) == 250
    served.run(f"oboxadm -c /etc/obox/mail1.toml obox user delete -y -u {RESTORED}")
    assert served.see() == now
    lost_objects_are_put_back(served, do)


def lost_objects_are_put_back(served: Machine, do: Do) -> None:
    """The user's mail lies in the backup under the same keys, and lost objects are put
    back from there."""
    assert served.deliver(simple(91)) == 250
    before = served.see()
    do("backup")
    (lost,) = (key for key in served.listed() if key.endswith("00000005") and USER in key)
    served.s3.delete_object(Bucket="mail", Key=f"obox/{lost}")
    served.run("systemctl stop obox-backend@mail1\nrm -rf /var/lib/obox/mail1\nsystemctl start obox-backend@mail1")
    served.wait_serving()
    with served.login() as client:
        client.select_folder("INBOX")
        with pytest.raises(IMAPClientError, match="lost"):
            client.fetch([5], ["BODY.PEEK[]"])
    out = do("restore lost objects")
    assert "INBOX" in out
    assert served.see() == before
    with served.login() as client:
        client.select_folder("INBOX")
        client.delete_messages([5])
        client.expunge()


def test_keys_are_rotated(machine: Machine) -> None:
    machine.certificate("/etc/obox")
    machine.path("/etc/obox/k1.key").write_text(os.urandom(32).hex())
    text = commands("operations.md", "install")
    machine.run(text.replace("\n[cluster]", 'encryption_keys = { k1 = "k1.key" }\n\n[cluster]'))
    machine.wait_serving()
    assert machine.deliver(simple(1)) == 250
    machine.run(commands("operations.md", "keys"))
    wait(lambda: machine.deliver(simple(2)) == 250)
    assert len(machine.see()["INBOX"][2]) == 2
    assert key_names(machine, "/m/") == {"00000001": b"k1", "00000002": b"k2"}
    out = machine.run(commands("operations.md", "upgrade the bucket"))
    assert set(key_names(machine, "/m/").values()) == set(key_names(machine, "/x/").values()) == {b"k2"}
    before = machine.see()
    out = machine.run(commands("operations.md", "finish the upgrade"), 65)
    assert "journal objects" in out, "those under the old key go with time"
    assert "run storage upgrade" not in out
    assert machine.see() == before


def key_names(machine: Machine, part: str) -> dict[str, bytes]:
    """Return the ids of the keys with which objects are sealed, by the last element of
    the object's key."""
    names = {}
    for key in machine.listed():
        if part in key:
            data = machine.s3.get_object(Bucket="mail", Key=f"obox/{key}")["Body"].read()
            names[key.rsplit("/", 1)[1]] = data[8:16].rstrip(b"\0")
    return names
