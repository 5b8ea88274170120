"""Two backends write the same mailboxes while the connection between one of them and
the directory is cut. When the connection is back, both show the changes of both."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mails import simple
from processes import USERS, Backend, everything
from test_backends import PATIENCE_S, adm, answer, until

ANNA, BEN = USERS
ROUNDS = 4


@dataclass
class CutBackend(Backend):
    """A backend that cannot reach the directory while the file `cut` exists."""

    @property
    def cut(self) -> Path:
        return self.home / "cut"

    def spawn(self) -> None:
        program = [sys.executable, str(Path(__file__).parent / "cut_backend.py"), str(self.cut)]
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("OBOX_", "AWS_"))}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*program, "serve", "-c", str(self.config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home, env=environ,
            )  # fmt: skip

    def moved(self, home: Path, name: str) -> CutBackend:
        return CutBackend(home, self.storage, name, self.sections, (self.home / "users").read_text())


@pytest.fixture
def pair(storage: dict[str, object], tmp_path: Path) -> Iterator[tuple[CutBackend, CutBackend]]:
    """Start two members of a cluster that serve users."""
    secret = tmp_path / "secret"
    secret.write_text(secrets.token_hex(32) + "\n")
    secret.chmod(0o600)
    cluster = {"directory": f"lmdb://{tmp_path}/cluster", "secret_file": str(secret), "dead_after": "5s"}
    first = CutBackend(tmp_path / "one", storage, "first", {"cluster": cluster})
    second = first.moved(tmp_path / "two", "second")
    for one in (first, second):
        one.spawn()
    yield first, second
    for one in (first, second):
        if one.process is not None and one.process.poll() is None:
            one.kill()


class Answered:
    """Record what clients of both backends have seen."""

    def __init__(self) -> None:
        self.uids: dict[tuple[str, int], bytes] = {}
        """The body of the mail that has a UID. A UID with two bodies was used twice."""
        self.number = 0

    def mail(self) -> bytes:
        self.number += 1
        return simple(self.number)

    def saw(self, seen: dict[str, Any]) -> None:
        for name, found in seen.items():
            if isinstance(found, tuple):
                for uid, mail in found[2].items():
                    body = mail[3]
                    assert self.uids.setdefault((name, uid), body) == body, f"UID {uid} of {name} is used twice"


def folders(backend: Backend) -> set[str]:
    with backend.login(ANNA) as client:
        return {name for _, _, name in client.list_folders()}


def look(backend: Backend) -> dict[str, Any]:
    with backend.login(ANNA) as client:
        return everything(client)


def write(backend: Backend, answered: Answered, own: str, flag: str) -> None:
    """Deliver and append mails at the given backend, set flags, create a mailbox and
    copy a mail to it."""
    assert [code for code, _ in backend.deliver(answered.mail(), ANNA)] == [250]
    with backend.login(ANNA) as client:
        mail = answered.mail()
        done = client.append("INBOX", mail, [flag])
        uid = int(re.search(rb"APPENDUID \d+ (\d+)", done)[1])
        assert answered.uids.setdefault(("INBOX", uid), mail) == mail, f"UID {uid} was given out twice"
        if own not in {name for _, _, name in client.list_folders()}:
            client.create_folder(own)
        client.select_folder("INBOX")
        client.add_flags([1], [flag])
        client.copy([uid], own)
        client.append("Shared", answered.mail())


def check(backend: Backend, *options: str) -> list[dict[str, Any]]:
    """Return the findings of `cluster check`. Its exit code is not checked, because
    there may be findings."""
    out, _ = adm(backend, "check", *options).communicate(timeout=PATIENCE_S)
    return list(json.loads(out))


def serving(backend: Backend, groups: int) -> None:
    assert backend.metric("obox_cluster_groups") == groups


def split(source: CutBackend, other: CutBackend) -> None:
    """Make both backends serve the users of `source`. An operator sets `source`
    offline, but `source` does not see that, because it cannot reach the directory."""
    had = source.metric("obox_cluster_groups")
    source.cut.touch()
    answer(other, "backend", "update", source.name, "--status", "offline")
    until(lambda: serving(other, 64))
    assert source.metric("obox_cluster_groups") == had > 0


def live_apart(source: CutBackend, other: CutBackend, answered: Answered) -> None:
    """Write at both backends. Each backend shows only its own changes."""
    for _ in range(ROUNDS):
        write(source, answered, "Mine", "$mine")
        write(other, answered, "Theirs", "$theirs")
    with source.login(ANNA) as client:
        client.select_folder("INBOX")
        client.delete_messages([2])
        client.uid_expunge([2])
    with other.login(ANNA) as client:
        client.select_folder("INBOX")
        client.set_flags([3], ["\\Flagged"])
        client.move([4], "Theirs")
    before = look(source), look(other)
    for seen in before:
        answered.saw(seen)
    assert "Theirs" not in before[0], "it was a split brain"
    assert "Mine" not in before[1]
    source.journal_written()
    other.journal_written()
    found = {row["check"]: row for row in check(other, "--journals")}
    assert "two-writers" in found, "the bucket tells it, although the directory looks well"
    assert ANNA in found["two-writers"]["detail"]


def test_both_write_and_both_show_the_same(pair: tuple[CutBackend, CutBackend], make: Callable[..., Backend]) -> None:
    answered = Answered()
    until(lambda: pair[0].deliver(answered.mail(), ANNA)[0][0] == 250 or pytest.fail("not yet"))
    for one in pair:
        until(lambda one=one: look(one))
    (status,) = answer(pair[0], "user", "status", "-u", ANNA)
    source, other = pair if status["backend"] == "first" else pair[::-1]
    with source.login(ANNA) as client:
        client.create_folder("Shared")
        for _ in range(6):
            client.append("INBOX", answered.mail())
    answered.saw(look(source))
    split(source, other)
    live_apart(source, other, answered)

    source.cut.unlink()
    until(lambda: serving(source, 0))
    until(lambda: answer(other, "merges") or pytest.fail("no merge is told"))
    assert {row["backend"] for row in answer(other, "merges")} == {source.name}

    def same() -> None:
        assert {"Mine", "Theirs"} <= folders(source)
        assert look(source) == look(other)

    until(same)
    after = look(other)
    answered.saw(after)
    inbox = after["INBOX"][2]
    assert 2 not in inbox
    assert 4 not in inbox
    assert {"$mine", "$theirs"} <= {flag.decode() for flag in inbox[1][0]}
    assert inbox[3][0] == [b"\\Flagged"]
    assert len(after["Mine"][2]) == ROUNDS
    assert len(after["Theirs"][2]) == ROUNDS + 1
    assert len(after["Shared"][2]) == 2 * ROUNDS
    assert len(inbox) == 1 + 6 + 4 * ROUNDS - 2
    assert other.metric("obox_cluster_fences_total") == 0, "nobody was seen dying"
    for one in pair:
        assert one.stop() == 0
    alone = make(storage=source.storage, name="third")
    alone.start()
    assert look(alone) == after, "the bucket alone says the same"
