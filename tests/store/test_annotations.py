"""Annotations of mailboxes and of users: their limits, and that they outlive a crash, a
lost disk, a takeover, a pull, a rename. The contract of both stores is in
test_contract.py."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from machines import Bucket, Machine
from mails import simple

from obox.errors import Limit, TooBig
from obox.mailbox import RootDelta
from obox.store import NewMail, annotations

NOTE = "/private/note"


@pytest.mark.parametrize("ends", ["stop", "kill", "lose"])
async def test_a_change_outlives_the_backend(tmp_path: Path, bucket: Bucket, ends: str) -> None:
    machine = Machine(bucket, tmp_path / "disk")
    async with machine.run(kill=ends != "stop") as life:
        user = await life.user()
        await user.create("box")
        await user.annotations.change("", {NOTE: b"mine"})
        await user.annotations.change("box", {NOTE: b"a\0b", "/shared/x": b"y"})
        await user.rename("box", "other")
        await user.annotations.change("other", {"/shared/x": None})
    if ends == "lose":
        machine.lose_disk()
    for _ in range(2):
        async with machine.run() as life:
            user = await life.user()
            assert user.annotations.of("") == {NOTE: b"mine"}
            assert user.annotations.of("other") == {NOTE: b"a\0b"}
            # A mailbox of the same name is another mailbox.
            await user.delete("other")
            await user.create("other")
            assert user.annotations.of("other") == {}
            await user.annotations.change("other", {NOTE: b"a\0b"})


async def test_another_backend_has_them(tmp_path: Path, bucket: Bucket) -> None:
    first = Machine(bucket, tmp_path / "first")
    async with first.run() as life:
        user = await life.user()
        await user.annotations.change("INBOX", {NOTE: b"x"})
    async with first.renamed("second", tmp_path / "second").run() as life:
        user = await life.user()
        assert user.annotations.of("INBOX") == {NOTE: b"x"}


async def test_a_change_is_one_request_and_the_same_value_is_none(tmp_path: Path, bucket: Bucket) -> None:
    async with Machine(bucket, tmp_path / "disk").run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(1))])
        await life.quiet()
        for value, puts in ((b"x", 1), (b"x", 0), (b"y", 1)):
            with life.counting() as requests:
                await user.annotations.change("INBOX", {NOTE: value, "/private/none": None})
            assert requests.requests() == ({("put", "journal"): puts} if puts else {})
        assert list(user.root.annotations) == [user.root.names()["INBOX"].guid + NOTE]


async def test_limits(tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "ENTRIES_MAX", 3)
    monkeypatch.setattr(annotations, "VALUE_BYTES_MAX", 10)
    monkeypatch.setattr(annotations, "BYTES_MAX", 15)
    async with Machine(bucket, tmp_path / "disk").run() as life:
        user = await life.user()
        change = user.annotations.change
        with pytest.raises(TooBig):
            await change("INBOX", {NOTE: b"x" * 11})
        await change("INBOX", {NOTE: b"x" * 10, "/private/b": b"y" * 5})
        with pytest.raises(Limit):
            await change("", {"/private/c": b"z"})
        await change("INBOX", {NOTE: b"x" * 9})
        await change("", {"/private/c": b"z"})
        with pytest.raises(Limit):
            await change("", {"/private/d": b""})
        # A removed value counts as an entry, and not as bytes.
        await change("INBOX", {NOTE: None})
        with pytest.raises(Limit):
            await change("", {"/private/d": b""})
        await change("", {"/private/c": b"z" * 10})
        assert user.annotations.of("INBOX") == {"/private/b": b"y" * 5}
        # A mailbox that is deleted takes its entries along.
        await user.create("box")
        with pytest.raises(Limit):
            await change("box", {NOTE: b""})


async def test_what_has_changed_since(tmp_path: Path, bucket: Bucket) -> None:
    async with Machine(bucket, tmp_path / "disk").run() as life:
        user = await life.user()
        modseq, found = user.annotations.since(0)
        assert found == []
        await user.annotations.change("INBOX", {NOTE: b"x"})
        later, found = user.annotations.since(modseq)
        assert found == [("INBOX", NOTE)]
        await user.annotations.change("", {NOTE: b"x"})
        await user.annotations.change("INBOX", {NOTE: None})
        assert sorted(user.annotations.since(later)[1]) == [("", NOTE), ("INBOX", NOTE)]
        assert user.annotations.since(user.root.highestmodseq) == (user.root.highestmodseq, [])


def test_a_list_without_annotations_is_written_as_before() -> None:
    """An older obox reads it, and an obox that does not know the key ignores it."""
    assert "annotations" not in msgspec.msgpack.decode(RootDelta(highestmodseq=1).encode())
    made = RootDelta(annotations={NOTE: (5, b"x")}, highestmodseq=5).encode()
    raw = msgspec.msgpack.decode(made)
    assert raw["annotations"] == {NOTE: [5, b"x"]}
    assert RootDelta.decode(made).annotations == {NOTE: (5, b"x")}
    raw["later"] = 1
    assert RootDelta.decode(msgspec.msgpack.encode(raw)).highestmodseq == 5
    for bad in ({NOTE: 5}, {NOTE: [5]}, {NOTE: [5, 6]}, [1]):
        with pytest.raises(ValueError, match="not a root delta"):
            RootDelta.decode(msgspec.msgpack.encode({"annotations": bad}))
