"""kill -9 in the middle of a verb that an administrator has started. No acknowledged
change is missing afterwards, and a second run of the verb finishes its work.

The processes are real. The moments of the kills come from a seed.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mails import simple
from patience import PATIENT_S
from processes import PASSWORD, Backend, s3_storage
from servers import S3Bucket

from obox.objectstore.keys import user_prefix
from obox.types import StorageId

KEY = "of the API"
USERS = [f"user{n:02}@example.org" for n in range(16)]
SECTIONS: dict[str, dict[str, object]] = {
    "http": {"api_key": KEY},
    "metacache": {"close_delay": "0", "upload_interval": "1h"},
}
KILL_S = 0.08
"""The latest moment of a kill. The verbs take about as long."""

State = list[tuple[str, str, int, tuple[str, ...], int]]


class Failed(Exception):
    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error)
        self.code = error["exitCode"]


def ask(backend: Backend, command: str, **params: Any) -> list[dict[str, Any]]:
    """Run a command and return its rows. Raises Failed; OSError and HTTPException if
    the process is gone."""
    connection = http.client.HTTPConnection("127.0.0.1", backend.http, timeout=PATIENT_S)
    try:
        headers = {"Authorization": "X-Dovecot-API b2YgdGhlIEFQSQ=="}
        connection.request("POST", "/doveadm/v1", json.dumps([[command, params, "t"]]), headers)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
        kind, result, _ = json.loads(text)[0]
        if kind != "doveadmResponse":
            raise Failed(result)
        return list(result)
    finally:
        connection.close()


def state(backend: Backend) -> State:
    """Return all mails of all users: user, mailbox, UID, flags, size."""
    rows = ask(backend, "fetch", allUsers=True, field=["mailbox", "uid", "flags", "size.physical"], query=["ALL"])
    return sorted(
        (row["username"], row["mailbox"], row["uid"], tuple(sorted(row["flags"].split())), row["size.physical"])
        for row in rows
    )


def flagged(backend: Backend, word: str) -> None:
    """Change flags of all users. The change is acknowledged, and no bundle has it
    yet."""
    ask(backend, "flagsAdd", allUsers=True, flag=[word], query=["MAILBOX", "INBOX", "ALL"])


def killed_within(
    backend: Backend, chance: random.Random, work: Callable[[], object], within_s: float = KILL_S
) -> bool:
    """Kill the backend while `work` waits for it. Return True if the kill cut `work`
    short."""
    cut = []

    def run() -> None:
        try:
            work()
        except (OSError, http.client.HTTPException, Failed):
            cut.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(chance.uniform(0, within_s))
    backend.kill()
    thread.join()
    return bool(cut)


def started(backend: Backend) -> None:
    """Start the backend again, and wait until it serves users."""
    backend.spawn()
    backend.wait_listening()
    deadline = time.monotonic() + PATIENT_S
    while True:
        try:
            ask(backend, "mailboxList", user=USERS[0])
            return
        except (Failed, OSError):
            assert time.monotonic() < deadline, backend.log.read_text()[-2000:]
            time.sleep(0.05)


def nothing_drifts(backend: Backend) -> None:
    row = ask(backend, "metacacheRescan")[0]
    assert row["right"], row["wrong"]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Yield a backend whose bucket is a directory, with a few mails for each user."""
    home = tmp_path_factory.mktemp("killed")
    backend = Backend(home / "first", {"url": f"file://{home}/bucket"}, "first", SECTIONS, lines())
    started(backend)
    fill(backend)
    yield backend
    if backend.process is not None and backend.process.poll() is None:
        backend.stop()


def lines() -> str:
    return "".join(f"{user}:{{PLAIN}}{PASSWORD}\n" for user in USERS)


def fill(backend: Backend) -> None:
    for n in range(3):
        assert {code for code, _ in backend.deliver(simple(n), *USERS)} == {250}
    ask(backend, "mailboxCreate", allUsers=True, mailbox=["Work"])
    ask(backend, "copy", allUsers=True, destinationMailbox="Work", query=["MAILBOX", "INBOX", "UID", "1:2"])


CUT: dict[str, Callable[[Backend], object]] = {
    "flushall": lambda backend: ask(backend, "metacacheFlushall"),
    "clean": lambda backend: ask(backend, "metacacheClean", allUsers=True),
    "rescan": lambda backend: [ask(backend, "metacacheRescan") for _ in range(200)],
}


@pytest.mark.parametrize("what", CUT)
def test_in_the_middle_of(filled: Backend, what: str) -> None:
    chance = random.Random(what)
    cuts = 0
    for turn in range(3):
        flagged(filled, f"{what}{turn}")
        if what == "clean":
            ask(filled, "metacacheFlushall")
        expected = state(filled)
        cuts += killed_within(filled, chance, lambda: CUT[what](filled))
        started(filled)
        assert state(filled) == expected
        nothing_drifts(filled)
    assert cuts, "no kill came in time"
    ask(filled, "metacacheFlushall")
    until_done(lambda: CUT[what](filled))
    assert state(filled) == expected


def below(bucket: Path, user: str) -> list[Path]:
    """Return the files of a user that the bucket still has."""
    return [path for path in (bucket / user_prefix(StorageId(user))).rglob("*") if path.is_file()]


def test_in_the_middle_of_deleting_users(filled: Backend) -> None:
    chance = random.Random(11)
    bucket = filled.home.parent / "bucket"
    cuts = 0
    for turn in range(3):
        gone = USERS[4 * turn + 2 : 4 * turn + 5]
        flagged(filled, f"delete{turn}")
        others = [row for row in state(filled) if row[0] not in gone]
        cuts += killed_within(filled, chance, lambda gone=gone: ask(filled, "oboxUserDelete", users=gone), 0.03)
        started(filled)
        ask(filled, "oboxUserDelete", users=gone, noUserdbLookup=True)
        # The start goes on with work of the process before it. This work must not
        # restore a deleted user.
        time.sleep(0.3)
        assert [path for user in gone for path in below(bucket, user)] == []
        assert not {row["username"] for row in ask(filled, "metacacheList")} & set(gone)
        rest = [row for row in state(filled) if row[0] not in gone]
        assert rest == others
        nothing_drifts(filled)
    assert cuts, "no kill came in time"


@pytest.fixture(params=["directory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, object]:
    if request.param == "directory":
        return {"url": f"file://{tmp_path}/bucket"}
    bucket: S3Bucket = request.getfixturevalue("s3_bucket")
    return s3_storage(bucket)


def test_in_the_middle_of_a_pull(storage: dict[str, object], tmp_path: Path) -> None:
    """Kill the source or the destination, with and without --clean. At the end a third
    backend finds everything in the bucket."""
    chance = random.Random(str(storage["url"])[:4])
    source = Backend(tmp_path / "source", storage, "source", SECTIONS, lines())
    destination = Backend(tmp_path / "destination", storage, "destination", SECTIONS, lines())
    third = Backend(tmp_path / "third", storage, "third", SECTIONS, lines())
    cuts = 0
    try:
        started(source)
        fill(source)
        started(destination)

        def pull(**more: Any) -> list[dict[str, Any]]:
            where = f"127.0.0.1:{source.http}"
            return ask(destination, "metacachePull", allUsers=True, sourceBackendHost=where, **more)

        turns = [source, destination, destination] if "file" in str(storage["url"]) else [destination]
        for turn, killed in enumerate(turns):
            clean = turn != 1
            flagged(source, f"pull{turn}")
            expected = state(source)
            cuts += killed_within(killed, chance, lambda clean=clean: pull(clean=clean))
            started(killed)
            assert state(source) == expected, "the source lost something"
            until_done(pull)
            assert state(destination) == expected
            nothing_drifts(source)
            nothing_drifts(destination)
        assert cuts, "no kill came in time"
        flagged(destination, "after")
        expected = state(destination)
        assert destination.stop() == source.stop() == 0
        started(third)
        assert state(third) == expected
    finally:
        for backend in (source, destination, third):
            if backend.process is not None and backend.process.poll() is None:
                backend.kill()


def until_done(work: Callable[[], object]) -> None:
    """Repeat the work for a while if it fails. A backend that has just started may not
    be ready for all users yet, or a user may be in use."""
    deadline = time.monotonic() + 15
    while True:
        try:
            work()
            return
        except Failed as error:
            if error.code not in (2, 69, 75) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
