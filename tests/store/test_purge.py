"""A single function deletes mails, claims and burnt UIDs, with the same rules for all
callers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from layers import files
from machines import Machine, Time, uids
from mails import simple

from obox.objectstore.keys import mail_prefix
from obox.store import MailStore, NewMail
from obox.store.operate import users as operate
from obox.store.user.flush import sweep
from obox.types import Guid, StorageId

pytestmark = pytest.mark.usefixtures("single_mails")

STORE = {name: path for name, path in files().items() if name.startswith("obox.store")}
LATER_S = 3 * 86400.0


def calls(path: Path, *names: str) -> list[tuple[str, str, int]]:
    """Return the calls of functions with these names: the name, the argument `kind` as
    written ("" if there is none), and the line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        kinds = [ast.unparse(one.value) for one in node.keywords if one.arg == "kind"]
        if name in names and kinds:
            found.append((name, kinds[0].strip("'\""), node.lineno))
    return found


def test_one_file_deletes_mails() -> None:
    """A DELETE names the kind of its objects. Only `Env.delete` passes on the kind that
    it is given."""
    deleting = {
        f"{name}:{line}"
        for name, path in STORE.items()
        for _, kind, line in calls(path, "delete")
        if kind not in ("index", "journal") and name not in ("obox.store.mails.purge", "obox.store.env")
    }
    assert not deleting, "obox.store.mails.purge deletes mails, and nobody else"
    assert len(calls(STORE["obox.store.mails.purge"], "delete")) == 2


def test_one_file_writes_mails() -> None:
    writing = {
        name
        for name, path in STORE.items()
        for _, kind, _ in calls(path, "put", "put_once", "find_outcome")
        if kind not in ("index", "journal", "format")
    }
    assert writing == {"obox.store.mails.put"}
    replacing = {name for name, path in STORE.items() if calls(path, "replace") and name != "obox.store.env"}
    assert replacing <= {"obox.store.operate.upgrade", "obox.store.backend.mark"}, "new envelopes of the same content"


async def objects(machine: Machine, guid: Guid) -> list[int]:
    """Return the UIDs for which a mailbox has objects."""
    prefix = mail_prefix(StorageId("anna"), guid)
    return [int(key.rpartition("/")[2], 16) for key in await machine.bucket.keys(prefix)]


async def test_who_was_suspended_deletes_nothing_that_others_have_copied(machine: Machine, tmp_path: Path) -> None:
    """The suspended backend has expunged a mail in all mailboxes, in its local copy.
    Another backend took over before the bucket had the expunge, and copied the mail."""
    clock = Time()
    silent = Machine(machine.bucket, tmp_path / "silent", journal_interval_s=1e9)
    async with silent.run(clock) as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(n)) for n in (1, 2)])
        inbox = await user.select("INBOX")
        await user.flush(everything=True)
        # Only the local copy of the first backend has this expunge.
        await inbox.expunge(uids(1))
        async with machine.renamed("second", tmp_path / "second").run() as other:
            theirs = await other.user()
            source = await theirs.select("INBOX")
            await theirs.copy(source, uids(1), "Archive")
            await theirs.flush()
            # The first backend resumes.
            clock.move(LATER_S)
            await sweep(inbox)
            assert await objects(machine, inbox.guid) == [1, 2]
            archive = await theirs.select("Archive")
            assert await archive.mail(1) == simple(1)
            await user.recheck()
            await sweep(inbox)
            assert await objects(machine, inbox.guid) == [1, 2], "the copy holds it"
            assert inbox.state.uids.tolist() == [2]


async def test_an_expunged_mail_goes_after_the_delay(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(n)) for n in (1, 2)])
        inbox = await user.select("INBOX")
        await inbox.expunge(uids(1))
        await inbox.flush()
        life.time.move(machine.settings.delete_delay_s - 60)
        await sweep(inbox)
        assert await objects(machine, inbox.guid) == [1, 2]
        life.time.move(120)
        with life.counting() as requests:
            await sweep(inbox)
        assert await objects(machine, inbox.guid) == [2]
        assert requests.count("delete", "mail") == 1
        assert requests.count("put", "journal") == 1, "the lease"


async def test_of_a_deleted_user_everything_goes(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(1))])
        guid = Guid(user.entry("INBOX").guid)
        life.users.remove(user)
        await user.release()
        assert await objects(machine, guid) == [1]
        assert await gone(life.store) >= {"mails", "local copies"}
        assert await objects(machine, guid) == []


async def gone(store: MailStore) -> set[str]:
    return {one.what async for one in operate.delete(store, StorageId("anna"))}
