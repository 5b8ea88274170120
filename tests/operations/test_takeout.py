"""The script at the end of docs/format.md runs as it is printed, on buckets that a real
backend wrote."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from imapclient import IMAPClient
from mails import every_kind, simple
from processes import USERS, Backend

ROOT = Path(__file__).parent.parent.parent
ANNA, BEN = USERS
SCRIPT = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/format.md").read_text(), re.M | re.S)[-1]

Mails = dict[str, dict[int, bytes]]


def bodies(client: IMAPClient) -> Mails:
    """Return the bodies by mailbox and UID. Mailboxes without mails are left out."""
    out: Mails = {}
    for flags, _, name in client.list_folders():
        if b"\\Noselect" in flags or b"\\NonExistent" in flags:
            continue
        client.select_folder(name, readonly=True)
        if uids := client.search():
            out[name] = {uid: row[b"BODY[]"] for uid, row in client.fetch(uids, ["BODY.PEEK[]"]).items()}
    return out


def take_out(tmp_path: Path, user: str, *keys: str, code: int = 0) -> tuple[Mails, Mails, str]:
    """Run the script. Return how many mails and expunged mails it found, and its
    complaints."""
    file, target = tmp_path / "takeout.py", tmp_path / f"out{secrets.token_hex(4)}"
    file.write_text(SCRIPT)
    # With -I no module of this checkout can be imported by mistake.
    program = [sys.executable, "-I", str(file), str(tmp_path / "bucket"), user, str(target), *keys]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    names = dict(line.split("\t") for line in (target / "mailboxes.txt").read_text().splitlines())
    found: tuple[Mails, Mails] = {}, {}
    for path in target.rglob("*.eml"):
        guid, *gone = path.relative_to(target).parent.parts
        found[bool(gone)].setdefault(names[guid], {})[int(path.stem)] = path.read_bytes()
    return *found, done.stderr


def live(backend: Backend) -> Mails:
    """Store mails of each kind, by each way, in each state. Return what Anna has at the
    end."""
    for mail in (simple(1), simple(2, size=900_000), simple(3)):
        assert [code for code, _ in backend.deliver(mail, ANNA, BEN)] == [250, 250]
    with backend.login() as client:
        client.create_folder("Projects/Grüße & mehr")
        client.create_folder("Gone")
        # An empty mail cannot be appended.
        for mail in filter(None, every_kind().values()):
            client.append("Drafts", mail)
        client.create_folder("Batch")
        client.multiappend("Batch", [simple(number) for number in range(60, 66)])
        client.select_folder("Batch")
        client.copy([5], "Archive")
        client.move([6], "Archive")
        client.delete_messages([2, 3])
        client.expunge()
        client.select_folder("INBOX")
        client.copy([1, 2], "Projects/Grüße & mehr")
        client.copy([1], "Gone")
        client.move([3], "Archive")
        client.copy([2], "INBOX")
        client.select_folder("Archive")
        client.copy([3], "Projects/Grüße & mehr")
        client.select_folder("Drafts")
        client.delete_messages([1, 2])
        client.expunge()
        client.delete_folder("Gone")
        client.rename_folder("Projects", "Work")
        # The journal has everything after this time.
        time.sleep(1.2)
        return bodies(client)


@pytest.mark.parametrize(("kind", "end"), [("compressed", "stop"), ("plain", "kill"), ("encrypted", "kill")])
def test_every_mail_comes_out(make: Callable[..., Backend], tmp_path: Path, kind: str, end: str) -> None:
    storage: dict[str, object] = {"url": f"file://{tmp_path}/bucket"}
    keys = []
    if kind == "plain":
        storage["compress"] = "none"
    if kind == "encrypted":
        for name, raw in (("old", secrets.token_bytes(32)), ("new", secrets.token_hex(32).encode())):
            (tmp_path / name).write_bytes(raw)
            keys.append(f"{name}={tmp_path / name}")
        storage["encryption_keys"] = {"old": str(tmp_path / "old")}
    backend = make(storage=storage)
    backend.start()
    expected = live(backend)
    # With a second key some objects are sealed under each of the two.
    if kind == "encrypted":
        assert backend.stop() == 0
        storage["encryption_keys"] = {"new": str(tmp_path / "new"), "old": str(tmp_path / "old")}
        backend.write()
        backend.start()
        assert backend.deliver(simple(50))[0][0] == 250
        with backend.login() as client:
            expected = bodies(client)
    (backend.stop if end == "stop" else backend.kill)()
    mails, expunged, _ = take_out(tmp_path, ANNA, *keys)
    assert mails == expected
    kinds = list(filter(None, every_kind().values()))
    assert expunged["Drafts"] == {1: kinds[0], 2: kinds[1]}
    assert expunged["Batch"] == {2: simple(61), 3: simple(62), 6: simple(65)}
    assert set(take_out(tmp_path, BEN, *keys)[0]["INBOX"]) == {1, 2, 3}
    if kind == "encrypted":
        mails, _, complaints = take_out(tmp_path, ANNA, keys[0], code=1)
        assert mails != expected
        assert "KeyError('new')" in complaints


def test_a_damaged_object_is_named_and_the_rest_comes_out(make: Callable[..., Backend], tmp_path: Path) -> None:
    backend = make()
    backend.start()
    for number in range(3):
        backend.deliver(simple(number))
    backend.kill()
    (second,) = tmp_path.glob("bucket/*/anna@example.org/m/*/00000002")
    data = bytearray(second.read_bytes())
    data[-1] ^= 1
    second.write_bytes(data)
    mails, _, complaints = take_out(tmp_path, ANNA, code=1)
    assert set(mails["INBOX"]) == {1, 3}
    assert complaints.count("00000002") == 1


@pytest.mark.parametrize("kind", ["plain", "sealed"])
def test_mails_of_the_first_version_come_out_too(make: Callable[..., Backend], tmp_path: Path, kind: str) -> None:
    """The bucket has version 1, or objects of both versions, or it was upgraded."""
    with tarfile.open(ROOT / f"tests/store/version-1-{kind}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    expected = json.loads((tmp_path / "expected.json").read_text())["anna"]
    storage: dict[str, object] = {"url": f"file://{tmp_path}/bucket", "delete_delay": "1000d"}
    keys = []
    if kind == "sealed":
        (tmp_path / "key").write_bytes(b"1" * 32)
        storage["encryption_keys"] = {"k1": str(tmp_path / "key")}
        keys.append(f"k1={tmp_path / 'key'}")

    def check() -> None:
        mails, _, _ = take_out(tmp_path, "anna", *keys)
        found = {
            name: {str(uid): hashlib.sha256(mail).hexdigest() for uid, mail in box.items()}
            for name, box in mails.items()
        }
        assert found == {
            name: {uid: mail["sha256"] for uid, mail in box["mails"].items()}
            for name, box in expected.items()
            if box["mails"]
        }

    check()
    backend = make(storage=storage)
    # The backend takes the journal of the killed backend over, and writes bundles.
    backend.start()
    backend.stop()
    majors = {path.read_bytes()[4] for path in tmp_path.glob("bucket/*/anna/*/*/*") if path.stat().st_size}
    assert majors == {1, 2}
    check()
    oboxadm = str(Path(sys.executable).parent / "oboxadm")
    for user in ("anna", "ben"):
        command = [oboxadm, "-c", str(backend.config), "storage", "upgrade", "-u", user, "--no-userdb-lookup"]
        subprocess.run(command, check=True, timeout=60, cwd=ROOT)
    assert {path.read_bytes()[4] for path in tmp_path.glob("bucket/*/anna/*/*/*") if path.stat().st_size} == {2}
    check()
    (victim,) = tmp_path.glob("bucket/*/ben/m/*/00000001")
    target = next(iter(tmp_path.glob("bucket/*/anna/m/*/00000005")))
    target.write_bytes(victim.read_bytes())
    mails, _, complaints = take_out(tmp_path, "anna", *keys, code=1)
    assert "00000005" in complaints
    assert 5 not in mails["INBOX"], "it is another user's"
