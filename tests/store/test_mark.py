"""`_format`: which versions a bucket's objects may have, who may serve it, and that it
stays the same bucket."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from machines import Bucket, Life, Machine
from owners import Rows, member
from test_old_envelopes import Old, finished, served

from obox.admin.parts import Admin
from obox.admin.run import Outcome
from obox.auth import Authenticator, PasswdFile
from obox.errors import ConfigError
from obox.forms import FORMS, Form
from obox.objectstore import Codec, MemoryDriver, ObjectKind
from obox.objectstore.keys import FORMAT_KEY, owner_of
from obox.store.backend import mark
from obox.store.operate import upgrade
from obox.types import Oid

KEYS = {"k1": b"1" * 32}


@pytest.fixture(params=["plain", "sealed"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    codec = Codec(KEYS, "k1" if request.param == "sealed" else None)
    return Machine(Bucket("memory://", lambda: codec, driver=MemoryDriver()), tmp_path / "disk")


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """This code reads a second version of a form that only tests register."""
    monkeypatch.setitem(FORMS, "test", Form(first=1, reads=2))


async def said(life: Life) -> dict[str, object]:
    data = await life.bucket.get(FORMAT_KEY, kind="format")
    return msgspec.msgpack.decode(life.store.env.codec.decode(data, owner_of(FORMAT_KEY)).payload)


async def test_a_backend_alone_begins_a_new_bucket_with_batches(machine: Machine) -> None:
    """An older obox does not know major 3, and does not start on it."""
    async with machine.run() as life:
        assert await said(life) == {
            "major": 3,
            "minor": 0,
            "oldest": 2,
            "forms": {"mails": 2, "sharing": 1},
            "bucket": b"",
        }
        assert life.store.env.forms.raised == {"mails": 2, "sharing": 1}


async def test_a_backend_alone_begins_a_new_bucket_with_the_newest_forms(machine: Machine, newer: None) -> None:
    async with machine.run() as life:
        assert life.store.env.forms.writes("test") == 2
        known = life.store.bucket_id()
        content = await said(life)
    assert (content["major"], content["forms"]) == (3, {"mails": 2, "sharing": 1, "test": 2})
    async with machine.run() as life:
        assert life.store.env.forms.writes("test") == 2
        assert life.store.bucket_id() == known


async def test_a_member_begins_a_new_bucket_with_what_all_can_read(machine: Machine, newer: None) -> None:
    async with member(machine, Rows()) as one:
        assert await said(one.life) == {"major": 2, "minor": 0}
        assert one.life.store.env.forms.writes("test") == 1


@pytest.mark.parametrize("known", [True, False], ids=["an older version of the form", "before the form had a name"])
async def test_a_raised_form_keeps_older_code_out_and_the_bucket_the_same(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    async with machine.run() as life:
        same = life.store.bucket_id()
        first = (await life.bucket.get(FORMAT_KEY, kind="format"))[16:32]
    monkeypatch.setitem(FORMS, "test", Form(first=1, reads=3))
    async with machine.run() as life:
        assert life.store.env.forms.writes("test") == 1, "it waits for `cluster upgrade`"
        oids = {first}
        for version in (2, 3):
            await mark.raise_forms(life.store.env, {"test": version})
            assert life.store.env.forms.writes("test") == version
            oids.add((await life.bucket.get(FORMAT_KEY, kind="format"))[16:32])
        assert len(oids) == 3, "a key seals one text under an oid"
        before = await life.bucket.get(FORMAT_KEY, kind="format")
        await mark.raise_forms(life.store.env, {"test": 2})
        assert life.store.env.forms.writes("test") == 3, "versions only rise"
        assert await life.bucket.get(FORMAT_KEY, kind="format") == before
        content = await said(life)
        assert content["major"] == 3, "code from before forms had names reads 1 and 2"
        assert content["bucket"] == same == first
    async with machine.run() as life:
        assert life.store.bucket_id() == same
        assert life.store.env.forms.writes("test") == 3
    if known:
        monkeypatch.setitem(FORMS, "test", Form(first=1, reads=2))
    else:
        monkeypatch.delitem(FORMS, "test")
    ours = 2 if known else 0
    with pytest.raises(ConfigError, match=f"may be test 3 since `cluster upgrade`, and this obox reads test {ours};"):
        async with machine.run():
            pass


async def test_an_upgrade_of_a_backend_alone_raises_the_bucket(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    users = PasswdFile(tmp_path / "users", "")
    admin = Admin(users=users, authenticator=lambda: Authenticator(users), parse_search=lambda _: None)

    async def upgraded() -> Outcome:
        outcome = Outcome()
        await outcome.gather(admin, "clusterUpgrade", {})
        return outcome

    async with machine.run() as life:
        assert (await upgraded()).message == "no backend runs here"
        admin.find_store = life.store
        assert (await upgraded()).rows[0]["result"] == "up to date"
        monkeypatch.setitem(FORMS, "test", Form(first=1, reads=2))
        (row,) = (await upgraded()).rows
        assert (row["what"], row["version"], row["result"]) == ("bucket", "mails 2, sharing 1, test 2", "raised")
        assert life.store.env.forms.writes("test") == 2
        assert (await upgraded()).rows[0]["result"] == "up to date"


async def test_a_crash_before_the_first_newer_object_changes_nothing(machine: Machine, newer: None) -> None:
    rows = Rows()
    async with member(machine, rows, kill=True) as one:
        await mark.raise_forms(one.life.store.env, {"test": 2})
    async with member(machine, rows) as one:
        assert one.life.store.env.forms.writes("test") == 2, "the bucket says so, whatever the directory says"


async def test_forms_are_raised_in_a_bucket_of_version_1(tmp_path: Path, newer: None) -> None:
    """Objects of version 1 are read until the last one is gone."""
    old = Old("sealed", tmp_path)
    async with served(old) as life:
        known = life.store.bucket_id()
        await mark.raise_forms(life.store.env, {"test": 2})
        assert (await said(life))["oldest"] == 1
        await old.check(life)
    async with served(old) as life:
        await old.check(life)
    await finished(old)
    async with served(old) as life:
        content = await said(life)
        assert (content["oldest"], content["forms"]) == (2, {"test": 2})
        assert life.store.bucket_id() == known
        assert life.store.env.codec.major_min == 2
        async for left in upgrade.finish(life.store):
            assert (left.users, left.damaged) == ({}, 0)


BAD = [b"\xc1", b"\x80", *map(msgspec.msgpack.encode, ({"major": 4}, {"major": 0}, {"major": "2"}))]


@pytest.mark.parametrize("payload", BAD)
async def test_what_is_no_format_is_refused(machine: Machine, payload: bytes) -> None:
    async with machine.run() as life:
        data = life.store.env.codec.encode(ObjectKind.FORMAT, owner_of(FORMAT_KEY), Oid(b"x" * 16), b"", payload)
        await life.bucket.replace(FORMAT_KEY, data, kind="format")
    with pytest.raises(ConfigError, match=r"^storage\.url: (_format in the bucket does not|the bucket has format)"):
        async with machine.run():
            pass
