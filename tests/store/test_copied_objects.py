"""An attacker who can write to the bucket, but has no key, copies objects to places of
other users, mailboxes and UIDs. Nobody is shown what belongs elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
from machines import Bucket, Life, Machine, uids, whole
from mails import simple

from obox.errors import OboxError
from obox.objectstore import Codec, MemoryDriver
from obox.objectstore.keys import (
    bundle_key,
    hh,
    journal_key,
    mail_key,
    parse_bundle_key,
    parse_journal_key,
)
from obox.store import NewMail
from obox.types import Guid, StorageId, Uid

ANNA, BEN = StorageId("anna"), StorageId("ben")
KEY: Final = {"k1": b"1" * 32}
SECRET: Final = b"only-for-ben"
MAIL: Final = b"Subject: only-for-ben\r\n\r\nonly-for-ben\r\n"


pytestmark = pytest.mark.usefixtures("single_mails")


class Copied:
    """A bucket with the mail of Anna and Ben, as a killed backend left it.

    objects: its objects. kinds: an object of Ben for each kind. guids: Anna's
    mailboxes.
    """

    def __init__(self, sealed: bool, tmp_path: Path) -> None:
        self.codec = (lambda: Codec(KEY, "k1")) if sealed else (lambda: Codec({}, None))
        self.tmp_path = tmp_path
        self.driver = MemoryDriver()
        self.guids: dict[str, Guid] = {}

    def machine(self, driver: MemoryDriver, name: str) -> Machine:
        return Machine(Bucket("memory://", self.codec, driver=driver), self.tmp_path / name, delete_delay_s=1e10)

    async def make(self) -> None:
        """Anna and Ben get mails of their own. Then the backend is killed, so that some
        changes are in the journal alone."""
        async with self.machine(self.driver, "made").run(kill=True) as life:
            anna, ben = await life.user("anna"), await life.user("ben")
            for user, mail in ((anna, simple(1)), (ben, MAIL)):
                await user.create("Other")
                await user.append("INBOX", [NewMail(mail), NewMail(mail)])
                inbox = await user.select("INBOX")
                await user.flush(everything=True)
                await user.copy(inbox, uids(1), "Other")
                await inbox.store_flags(uids(1), "add", ["\\Seen", f"${user.name}"])
                await user.flush(everything=True)
                await user.append("INBOX", [NewMail(mail)])
                await inbox.store_flags(uids(2), "add", ["\\Flagged", f"$Late{user.name}"])
                await inbox.release()
            await life.store.journal.sync()
            self.guids = {entry.name: Guid(entry.guid) for entry in anna.root.entries.values()}
        self.objects = {key: data for key, (data, _) in self.driver.objects.items()}
        self.kinds = {
            "mail": self._one(r"/ben/m/.*00000002", 1),
            "claim": self._one(r"/ben/m/", 2),
            "base": self._one(r"/ben/x/[0-9a-f]{32}/.*base", 3),
            "root": self._one(r"/ben/x/root/.*base", 3),
            "diff": self._one(r"/ben/x/[0-9a-f]{32}/.*diff", 4),
            "cache": self._one(r"/ben/x/[0-9a-f]{32}/.*cache", 5),
            "journal": self._one(r"_journal/", 6),
        }

    def _one(self, pattern: str, kind: int) -> str:
        found = [key for key, data in self.objects.items() if re.search(pattern, key) and data and data[6] == kind]
        assert found, pattern
        return max(found)

    def targets(self) -> dict[str, str]:
        """Return the places at which Anna's backend would look."""
        inbox, other = self.guids["INBOX"], self.guids["Other"]
        journal = parse_journal_key(self.kinds["journal"])
        writer = parse_bundle_key(self.kinds["base"]).writer
        return {
            "her mail": mail_key(ANNA, inbox, Uid(1)),
            "her next UID": mail_key(ANNA, inbox, Uid(4)),
            "another mailbox": mail_key(ANNA, other, Uid(2)),
            "base of INBOX": bundle_key(ANNA, inbox, 1000, writer, "base"),
            "diff of INBOX": bundle_key(ANNA, inbox, 1000, writer, "diff"),
            "base of another writer": bundle_key(ANNA, inbox, 1000, "0" * 16, "base"),
            "fields of INBOX": bundle_key(ANNA, inbox, 1 << 32 | 9, writer, "cache"),
            "list of mailboxes": bundle_key(ANNA, "root", 1000, writer, "base"),
            "next journal object": journal_key(journal.backend, journal.boot, journal.seq + 1),
            "journal of another boot": journal_key(journal.backend, "0" * 16, journal.seq),
        }

    async def seen(self, name: str, changes: dict[str, bytes]) -> tuple[Any, bytes]:
        """Return what Anna sees after the changes, and everything as bytes. A backend
        without local state reads the bucket."""
        driver = MemoryDriver()
        driver.objects = {**self.driver.objects, **{key: (data, 1e9) for key, data in changes.items()}}
        driver.keys = sorted(driver.objects)
        async with self.machine(driver, name).run() as life:
            return await _seen(life)


async def _seen(life: Life) -> tuple[Any, bytes]:
    said: list[object] = []
    found: Any = None
    try:
        user = await life.user("anna")
        for info in user.mailboxes():
            if info.guid is None:
                continue
            box = await user.select(info.name)
            said.append((info.name, box.state.flags.names))
            said += [getattr(one, "packed", one) for one in await box.fields(box.state.uids.tolist())]
            said += [mail async for mail in box.mails(box.state.uids.tolist())]
            await box.release()
        found = await whole(user)
        said.append(found)
    except OboxError as error:
        said.append(error)
    return found, repr(said).encode()


@pytest.fixture(params=["sealed", "plain"])
async def copied(request: pytest.FixtureRequest, tmp_path: Path) -> Copied:
    one = Copied(request.param == "sealed", tmp_path)
    await one.make()
    return one


async def test_each_kind_of_another_user_at_each_place(copied: Copied) -> None:
    """Anna sees her own mail or an error, and a mail with an error hides no other."""
    before, said = await copied.seen("before", {})
    assert SECRET not in said
    assert rows(before)["INBOX"].keys() == {1, 2, 3}
    for kind, source in copied.kinds.items():
        for place, target in copied.targets().items():
            after, said = await copied.seen(f"{kind} {place}", {target: copied.objects[source]})
            assert not re.search(rb"only-for-ben|\$ben|\$Lateben", said), (kind, place)
            if after is None:
                assert b"Corrupt" in said
                assert place not in ("her next UID", "another mailbox", "fields of INBOX")
                assert "journal" not in place
            else:
                assert rows(after) == rows(before), (kind, place)


async def test_her_own_mail_at_another_place(copied: Copied) -> None:
    """A mail that is copied to another UID or mailbox of the same user is not shown
    there."""
    before, _ = await copied.seen("before", {})
    inbox, other = copied.guids["INBOX"], copied.guids["Other"]
    first = copied.objects[mail_key(ANNA, inbox, Uid(1))]
    for name, target in {
        "next": mail_key(ANNA, inbox, Uid(4)),
        "other": mail_key(ANNA, other, Uid(2)),
        "claim": mail_key(ANNA, other, Uid(1)),
    }.items():
        after, _ = await copied.seen(name, {target: first})
        assert rows(after) == rows(before), name
    _, said = await copied.seen("replaced", {mail_key(ANNA, inbox, Uid(2)): first})
    assert b"Corrupt" in said


@pytest.mark.parametrize("form", ["base", "diff", "cache"])
async def test_an_index_object_of_another_form(copied: Copied, form: str) -> None:
    """The bundles and cache segments of a mailbox have the same owner. Their kind says
    which of them they are."""
    inbox = copied.guids["INBOX"]
    mine = [key for key in copied.objects if key.startswith(f"{hh(ANNA)}/anna/x/{inbox}/")]
    sources = {key.rsplit(".", 1)[1]: key for key in mine}
    before, _ = await copied.seen("before", {})
    for source in sources.keys() - {form}:
        version = 1 << 32 | 9 if form == "cache" else 1000
        target = bundle_key(ANNA, inbox, version, parse_bundle_key(sources[source]).writer, form)
        after, said = await copied.seen(source, {target: copied.objects[sources[source]]})
        if form == "cache":
            assert rows(after) == rows(before)
        else:
            assert after is None, (source, rows(after))
            assert b"Corrupt" in said


def rows(found: Any) -> dict[str, Any]:
    """Return the mails of `whole` by mailbox."""
    return {name: box[-1] for name, box in found.items() if name != "subscriptions"}
