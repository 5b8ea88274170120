"""Two versions of obox serve one bucket under load, and the newer one keeps to what the
older one reads until an operator raises it.

The earlier code is that of the newest commit whose product differs. A checkout without
commits has none. Then the present code plays it (`mixed_backend.py older`), and the
test says so.
"""

from __future__ import annotations

import base64
import imaplib
import os
import re
import secrets
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from mails import simple
from mixed_backend import MARK
from patience import PATIENT_S
from processes import PASSWORD, STOP_S, USERS, Backend
from test_backends import until

from obox.cluster import Kind, Member, Orders, Settings, State, decode, encode, next_timestamp, open_lmdb
from obox.objectstore import Codec
from obox.objectstore.keys import owner_in, parse_bundle_key

ROOT = Path(__file__).parent.parent.parent
PRODUCT = ("obox", "metacache", "fscache", "admintool")
COMMITS_MAX = 200
KEY = "the key of the API"
LOAD_PAUSE_S = 0.1


def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, check=False)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """Return the product of the newest commit that differs from this tree; None: no
    commit is here."""
    try:
        commits = git("rev-list", "--first-parent", f"--max-count={COMMITS_MAX}", "HEAD").stdout.decode().split()
        for commit in commits:
            # 1: it differs; more: the commit is not whole here.
            if git("diff", "--quiet", commit, "--", *PRODUCT).returncode == 1:
                archive = git("archive", commit, *PRODUCT)
                if archive.returncode == 0:
                    path = tmp_path_factory.mktemp("earlier")
                    with tarfile.open(fileobj=BytesIO(archive.stdout)) as found:
                        found.extractall(path, filter="data")
                    print(f"earlier code: commit {commit}")
                    return path
    except OSError:
        pass  # there is no git
    print("earlier code: the present code without newer forms, since no earlier commit is here")
    return None


@dataclass
class Version(Backend):
    """A backend of some version. code: a tree of the product, None for the present
    tree; mode: of mixed_backend.py, "" for the product as it is."""

    code: Path | None = None
    mode: str = ""

    def spawn(self) -> None:
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("OBOX_", "AWS_"))}
        if self.code is not None:
            environ["PYTHONPATH"] = str(self.code)
        wrapped = [str(Path(__file__).parent / "mixed_backend.py"), self.mode]
        program = [sys.executable, *(wrapped if self.mode else ["-m", "obox.main"]), "serve", "-c", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                program, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home, env=environ
            )

    def call(self, command: str, **params: Any) -> tuple[list[dict[str, Any]], str]:
        """Run a command of the admin API. Return its rows, and what went wrong."""
        answer = httpx.post(
            f"http://127.0.0.1:{self.http}/doveadm/v1",
            json=[[command, params, "tag"]],
            headers={"Authorization": "X-Dovecot-API " + base64.b64encode(KEY.encode()).decode()},
            timeout=PATIENT_S,
        )
        assert answer.status_code == 200, answer.text
        ((kind, result, _),) = answer.json()
        return (result, "") if kind == "doveadmResponse" else (result.get("rows", []), str(result))

    def owner(self, user: str) -> str:
        """Return the backend of a user."""
        rows, error = self.call("clusterUserStatus", user=user)
        assert not error, error
        return str(rows[0]["backend"])


@pytest.fixture
def version(tmp_path: Path) -> Iterator[Callable[..., Version]]:
    """Make members of one cluster, named by their numbers."""
    secret = tmp_path / "secret"
    secret.write_text(secrets.token_hex(32) + "\n")
    secret.chmod(0o600)
    cluster = {"directory": f"lmdb://{tmp_path}/cluster", "secret_file": str(secret), "dead_after": "5s"}
    made: list[Version] = []

    def make(name: str, code: Path | None = None, mode: str = "", machine: str = "") -> Version:
        sections: dict[str, dict[str, object]] = {"cluster": dict(cluster), "http": {"api_key": KEY}}
        storage: dict[str, object] = {"url": f"file://{tmp_path}/bucket"}
        made.append(Version(tmp_path / f"machine-{machine or name}", storage, name, sections, code=code, mode=mode))
        return made[-1]

    yield make
    for one in made:
        if one.process is not None and one.process.poll() is None:
            one.kill()


@dataclass
class Load:
    """Senders and clients that go on while backends move, stop and die. What was
    acknowledged is remembered."""

    backends: list[Version]
    mails: dict[str, set[int]] = field(default_factory=lambda: {user: set() for user in USERS})
    flagged: dict[str, set[int]] = field(default_factory=lambda: {user: set() for user in USERS})
    uids: dict[tuple[str, int], int] = field(default_factory=dict)
    number: int = 0
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._flagging = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._again, args=(one,)) for one in (self._send, self._flag)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    @contextmanager
    def journaled(self) -> Iterator[None]:
        """Nobody sets flags, and the journals have all that were set: a kill may lose
        those of the last second."""
        with self._flagging:
            for one in self.backends:
                one.journal_written()
            yield

    def more(self) -> None:
        """Return when more has been acknowledged, for each user."""
        before = {user: (len(self.mails[user]), len(self.flagged[user])) for user in USERS}

        def risen() -> None:
            for user, (mails, flagged) in before.items():
                assert len(self.mails[user]) > mails
                assert len(self.flagged[user]) > flagged

        until(risen)

    def _again(self, work: Callable[[str, Version], None]) -> None:
        turn = 0
        while not self._stop.wait(LOAD_PAUSE_S):
            turn += 1
            with suppress(OSError, imaplib.IMAP4.error):  # the backend is away
                work(USERS[turn % 2], self.backends[turn // 2 % 2])

    def _send(self, user: str, backend: Version) -> None:
        self.number += 1
        number = self.number
        if [code for code, _ in backend.deliver(simple(number), user)] == [250]:
            self.mails[user].add(number)

    def _flag(self, user: str, backend: Version) -> None:
        with self._flagging, imaplib.IMAP4("127.0.0.1", backend.imap) as client:
            client.login(user, PASSWORD)
            client.select("INBOX")
            unflagged = client.uid("SEARCH", "UNFLAGGED")[1][0].decode().replace(" ", ",")
            found = self.seen(client, user, unflagged) if unflagged else {}
            if found and client.uid("STORE", unflagged, "+FLAGS", "(\\Flagged)")[0] == "OK":
                self.flagged[user] |= {number for number, _ in found.values()}

    def seen(self, client: imaplib.IMAP4, user: str, uids: str = "1:*") -> dict[int, tuple[int, bool]]:
        """Return the mail's number and whether it is flagged, by UID."""
        found = {}
        _, rows = client.uid("FETCH", uids, "(FLAGS BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
        for row in rows:
            if isinstance(row, tuple):
                uid, number = int(re.search(rb"UID (\d+)", row[0])[1]), int(re.search(rb"(\d+)\s*$", row[1].strip())[1])
                found[uid] = number, b"\\Flagged" in row[0]
                if self.uids.setdefault((user, uid), number) != number:
                    self.wrong.append(f"UID {uid} of {user} is mail {number} and mail {self.uids[user, uid]}")
        return found

    def complete(self, backend: Version) -> None:
        """A client at this backend sees all that was acknowledged, once."""
        for user in USERS:
            with imaplib.IMAP4("127.0.0.1", backend.imap) as client:
                client.login(user, PASSWORD)
                client.select("INBOX")
                seen = list(self.seen(client, user).values())
            numbers = [number for number, _ in seen]
            assert sorted(set(numbers)) == sorted(numbers), "a mail is there twice"
            assert self.mails[user] <= set(numbers), "a mail is lost"
            assert self.flagged[user] <= {number for number, flagged in seen if flagged}, "a flag is lost"
        assert not self.wrong


def move(user: str, to: Version) -> None:
    """An operator moves a user."""
    rows, error = to.call("clusterUserMove", user=user, backend=to.name)
    assert rows, error

    def there() -> None:
        assert to.owner(user) == to.name

    until(there)


def start(*backends: Version) -> None:
    for one in backends:
        one.spawn()
    for one in backends:
        one.wait_listening()


def kill(load: Load, dying: Version, heir: Version) -> None:
    """One dies, and the other reads its journal."""
    with load.journaled():
        dying.kill()

    def taken() -> None:
        assert {heir.owner(user) for user in USERS} == {heir.name}

    until(taken)


def test_an_earlier_version_and_this_one_under_load(earlier: Path | None, version: Callable[..., Version]) -> None:
    old, new = version("old", earlier, "" if earlier else "older"), version("new")
    load = Load([old, new])
    start(old, new)
    with load.running():
        anna, ben = USERS
        load.more()
        move(anna, new)
        move(ben, old)
        load.more()
        kill(load, old, new)
        start(old)
        move(anna, old)
        load.more()
        kill(load, new, old)
        load.more()
    until(lambda: load.complete(old))
    for one in (old, new):
        assert not [line for line in one.events() if line["level"] == "error"]
    assert old.stop() == 0


def bundles(backend: Backend) -> list[bytes]:
    """Return the payloads of all bases and diffs in the bucket."""
    bucket, codec = Path(str(backend.storage["url"]).removeprefix("file://")), Codec({}, None)
    found = []
    for path in bucket.rglob("*"):
        if path.is_file() and path.suffix in (".base", ".diff"):
            key = str(path.relative_to(bucket))
            parse_bundle_key(key)
            owner = owner_in(key)
            assert owner is not None
            found.append(codec.decode(path.read_bytes(), owner).payload)
    return found


async def put(path: Path, kind: Kind, key: str, record: Any) -> None:
    directory = await open_lmdb(path)
    try:
        row = await directory.get(kind, key)
        await directory.put(kind, key, encode(record), next_timestamp(time.time, row))
    finally:
        await directory.close()


async def settings(path: Path) -> Settings:
    directory = await open_lmdb(path)
    try:
        (row,) = (await directory.all(Kind.SETTINGS)).values()
        return decode(row.value, Settings)
    finally:
        await directory.close()


async def test_newer_forms_are_written_only_after_an_upgrade(
    earlier: Path | None, version: Callable[..., Version], tmp_path: Path
) -> None:
    new = version("new", mode="newer")
    path = tmp_path / "cluster"
    start(new)
    await put(path, Kind.MEMBERS, "old", Member("backend", "default", "127.0.0.1", {}, {"envelope": 2, "journal": 1}))
    await put(path, Kind.ORDERS, "old", Orders(State.STANDBY))
    user = USERS[0]
    until(lambda: new.deliver(simple(1), user)[0][0] == 250 or pytest.fail("not yet"))
    rows, error = new.call("clusterUpgrade")
    assert {row["what"]: row["result"] for row in rows} == {
        "directory": "waits for the members above",
        "new": "ready",
        "old": "does not read bundle 2, sharing 1; upgrade it, or remove it",
    }
    assert "these members have an older obox: old" in error
    new.call("metacacheFlush", user=user)
    assert bundles(new)
    assert not any(payload.startswith(MARK) for payload in bundles(new)), "nobody has raised it"
    assert not (await settings(path)).forms
    await put(path, Kind.ORDERS, "old", Orders(State.OFFLINE))
    assert new.call("clusterUpgrade")[0][-1]["result"] == "raised"
    assert new.stop() == 0
    start(new)  # it reads the settings at once, and not within a minute
    new.wait_event("bucket may have newer objects, an older obox does not start on it any more")
    until(lambda: new.deliver(simple(2), user)[0][0] == 250 or pytest.fail("not yet"))
    new.call("metacacheFlush", user=user)
    assert any(payload.startswith(MARK) for payload in bundles(new))

    late, lone = version("older", mode="older"), version("earlier", earlier, "" if earlier else "older")
    # It knows no directory, so that the bucket refuses it.
    lone.sections["cluster"] = {"backend": "earlier"}
    lone.write()
    twin = version("new", mode="newer", machine="twin")
    for one in (late, lone, twin):
        one.spawn()
    for one, words in (
        (late, "members may write bundle 2"),
        (lone, "storage.url: .*bucket (has format 3|may be bundle 2)"),
    ):
        assert one.process is not None
        assert one.process.wait(STOP_S) == 78
        assert re.search(words, one.log.read_text())
    assert twin.process is not None
    assert twin.process.wait(STOP_S) == 75
    text = twin.log.read_text()
    assert f"another backend is new, at 127.0.0.1 http {new.http} imap {new.imap}" in text
    assert f"this one is at 127.0.0.1 http {twin.http} imap {twin.imap}" in text
    assert not new.events("fenced by another backend, as expected after a pause or a cut network; a new boot begins")
    with new.login() as client:
        client.select_folder("INBOX")
        assert len(client.search()) == 2
    assert new.stop() == 0
