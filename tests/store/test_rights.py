"""ACLs in a user's list of mailboxes: what is joined, what a crash leaves, and the
events."""

from __future__ import annotations

from pathlib import Path

import pytest
from machines import Bucket, Machine

from obox.errors import Limit, NotFound
from obox.events.event import Place
from obox.events.made import events_of
from obox.mailbox import RootDelta
from obox.mailbox.rights import ALL, changed, effective, parse, shown
from obox.objectstore import Codec, MemoryDriver
from obox.objectstore.keys import ROOT
from obox.store.log.journal import Line


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(Bucket("memory://", lambda: Codec({}, None), driver=MemoryDriver()), tmp_path / "disk")


def test_rights_of_rfc_2086() -> None:
    assert parse("cdl") == "lkxte"
    assert parse("") == ""
    assert parse("aetxkpiwsrl") == ALL
    assert shown("lr") == "lr"
    assert shown("lt") == "ltd"
    assert shown(ALL) == "lrswipkxteacd"
    assert changed("lr", "+", "s") == "lrs"
    assert changed("lrs", "-", "rx") == "ls"
    assert changed("lrs", "", "i") == "i"


def test_what_an_entry_takes_away_is_away() -> None:
    acl = {"ben": "lrs", "anyone": "lw", "authenticated": "i", "-ben": "w", "-anyone": "i", "-authenticated": "s"}
    assert effective(lambda name: acl.get(name, ""), "ben") == "lr"
    assert effective(lambda name: acl.get(name, ""), "carl") == "lw"
    assert effective(lambda name: "", "ben") == ""


async def test_an_acl_is_in_the_bucket_before_it_is_acknowledged(machine: Machine) -> None:
    async with machine.run(kill=True) as life:
        user = await life.user()
        await user.create("Work")
        await user.rights.change("Work", {"ben": "lr", "-carl": "r"})
        with pytest.raises(NotFound):
            await user.rights.change("nowhere", {"ben": "lr"})
        guid = user.entry("Work").guid
    async with machine.run() as life:
        user = await life.user()
        assert user.rights.of("Work") == {"ben": "lr", "-carl": "r"}
        assert user.rights.held(guid, "ben") == user.rights.granted("Work", "ben") == "lr"
        assert user.rights.granted("INBOX", "ben") == user.rights.granted("nowhere", "ben") == ""
        await user.rename("Work", "Renamed")
        assert user.rights.shared() == ["Renamed"]
        await user.delete("Renamed")
        assert user.rights.held(guid, "ben") == ""
        await user.create("Work")
        assert user.rights.of("Work") == {}


async def test_owners_are_bounded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obox.store.rights.OWNERS_MAX", 2)
    async with machine.run() as life:
        user = await life.user()
        for owner in ("b", "a", "b"):
            await user.rights.note_owner(owner, on=True)
        assert user.rights.owners() == ["a", "b"]
        with pytest.raises(Limit):
            await user.rights.note_owner("c", on=True)
        await user.rights.note_owner("a", on=False)
        await user.rights.note_owner("c", on=True)
        assert user.rights.owners() == ["b", "c"]
        assert user.rights.shared() == []


def test_each_entry_of_an_acl_makes_an_event() -> None:
    guid = "0" * 31 + "1"
    delta = RootDelta(rights={f"{guid}/ben": (7, b"lr"), f"{guid}/-carl": (7, None), "/anna": (7, b"")})
    found = events_of(Place("b", "boot", 3), Line("anna", [(ROOT, delta.encode())]))
    assert [(one.kind, one.mailbox, one.name, one.rights, one.stamp) for one in found] == [
        ("AclUpdated", guid, "ben", "lr", 7),
        ("AclUpdated", guid, "-carl", "", 7),
    ]
