"""Pulls that fail: cut short, damaged, without room, of a user who is gone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from machines import SID, Bucket, Machine, uids, whole
from pulling import leave, packed, pull, sent, some_mail, take, two

from metacache import MetacacheFull
from obox.errors import Corrupt, InUse, Invalid, NotFound, OboxError, Temporary, Unavailable
from obox.objectstore import Codec, ObjectKind, load_keys
from obox.objectstore.keys import ROOT, user_prefix
from obox.store.backend import upload
from obox.store.operate import users as operate
from obox.store.operate.pull import BoxMeta, End, Head, Outgoing
from obox.store.stamp import Stamp


async def test_cut_short_anywhere(machine: Machine, tmp_path: Path) -> None:
    """The pull is cut at each place. After each cut an open gives the right result, and
    a second pull brings the rest."""
    chance = random.Random(5)
    async with machine.run() as one:
        await some_mail(one)
        data = await sent(one)
        expected = await whole(one.users[0])
        cuts = [0, 3, 4, 5, len(data) - 1, *(chance.randrange(len(data)) for _ in range(8))]
        for number, cut in enumerate(cuts):
            async with machine.renamed(f"n{number}", tmp_path / str(number)).run() as other:
                with pytest.raises(Temporary, match="cut short"):
                    await take(other, data[:cut])
                assert not other.store.pulls
                if number % 2:
                    assert await whole(await other.user()) == expected
                    await leave(other)
                await take(other, data)
                assert await whole(await other.user()) == expected


async def test_a_wrong_byte_anywhere(machine: Machine, tmp_path: Path) -> None:
    chance = random.Random(6)
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        data = await sent(one)
        expected = await whole(one.users[0])
        for at in [0, 1, 4, 9, *(chance.randrange(len(data)) for _ in range(40))]:
            bad = data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
            with pytest.raises((Corrupt, Temporary, Invalid)):
                await take(other, bad, size=1 << 20)
        assert await whole(await other.user()) == expected


async def test_what_makes_no_sense_is_refused(machine: Machine, tmp_path: Path) -> None:
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        head = Head(1, other.store.bucket_id(), SID, "first", one.store.journal.boot, 1)
        end = (ObjectKind.PULL, End(1), b"")
        stamp = Stamp().encode()
        replace = msgspec.structs.replace
        guid = one.users[0].entry("INBOX").guid
        cases: list[tuple[type[OboxError], list[tuple[ObjectKind, Any, bytes]]]] = [
            (Invalid, [(ObjectKind.PULL, replace(head, major=2), b""), end]),
            (Invalid, [(ObjectKind.PULL, replace(head, bucket=b"x" * 16), b""), end]),
            (Invalid, [(ObjectKind.PULL, replace(head, boot=other.store.journal.boot), b""), end]),
            (Corrupt, [(ObjectKind.PULL, replace(head, sid="ben"), b""), end]),
            (Corrupt, [(ObjectKind.BASE, BoxMeta(ROOT, stamp), b"\x80")]),
            (Corrupt, [(ObjectKind.PULL, {"major": "one"}, b"")]),
            (Corrupt, [(ObjectKind.PULL, head, b""), (ObjectKind.BASE, BoxMeta(guid, b"rubbish"), b"\x80")]),
            (Corrupt, [(ObjectKind.PULL, head, b""), (ObjectKind.BASE, BoxMeta(guid, stamp, 7), b"\x80")]),
            (Corrupt, [(ObjectKind.PULL, head, b""), (ObjectKind.BASE, BoxMeta(guid, stamp, 0, 9), b"\x80")]),
            (Corrupt, [(ObjectKind.PULL, head, b""), (ObjectKind.BASE, BoxMeta("../x", stamp), b"\x80")]),
            (Corrupt, [(ObjectKind.PULL, head, b""), (ObjectKind.BASE, BoxMeta(guid, stamp), b"\xc1")]),
            (Corrupt, [(ObjectKind.PULL, head, b""), (ObjectKind.CACHE, BoxMeta(guid), b"\x93")]),
            (Corrupt, [(ObjectKind.PULL, head, b""), (ObjectKind.PULL, End(9), b"")]),
            (Corrupt, [(ObjectKind.PULL, head, b""), end, end]),
            (Temporary, [(ObjectKind.PULL, head, b""), (ObjectKind.PULL, End(1, "no more"), b"")]),
        ]
        for kind, parts in cases:
            with pytest.raises(kind):
                await take(other, packed(one, *parts))
        with pytest.raises(Corrupt):
            await take(other, b"\xff" * 100)
        assert other.store.env.metacache.boxes(SID) == []
        newer = [(ObjectKind.PULL, head, b""), (ObjectKind.JOURNAL, {"new": 1}, b"?"), (ObjectKind.PULL, End(2), b"")]
        await take(other, packed(one, *newer))


async def test_a_source_with_another_key(tmp_path: Path) -> None:
    def keyed(byte: bytes) -> Callable[[], Codec]:
        path = tmp_path / byte.decode()
        path.write_bytes(byte * 32)
        return lambda: Codec(load_keys({byte.decode(): str(path)}), byte.decode())

    bucket = Bucket("memory://", keyed(b"k"))
    async with two(Machine(bucket, tmp_path / "disk"), tmp_path) as (one, other):
        await some_mail(one)
        data = await sent(one)
        assert b"INBOX" not in data
        await take(other, data)
        await leave(other)
        foreign = Machine(Bucket("memory://", keyed(b"q")), tmp_path / "foreign")
        async with foreign.run() as third:
            with pytest.raises(Corrupt, match="another key"):
                await take(third, data)


async def test_the_source_fails_on_the_way(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        real, count = one.store.env.metacache.load, 0

        def load(user: str, box: str) -> Any:
            nonlocal count
            count += 1
            if count == 3:
                raise Unavailable("the disk is gone")
            return real(user, box)

        with monkeypatch.context() as patch, one.store.pulling(SID):
            outgoing = Outgoing(one.store, SID)
            await outgoing.prepare("anna", everything=False)
            patch.setattr(one.store.env.metacache, "load", load)
            data = b"".join([piece async for piece in outgoing.stream()])
        with pytest.raises(Temporary, match="the disk is gone"):
            await take(other, data)
        await pull(one, other)
        assert await whole(await other.user()) == await whole(one.users[0])


async def test_no_room(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        data = await sent(one)
        with monkeypatch.context() as patch:
            patch.setattr(other.store.env.metacache, "full", lambda: True)
            with pytest.raises(Temporary, match="no room"):
                await take(other, data)
        assert other.store.env.metacache.boxes(SID) == []


async def test_a_source_whose_disk_is_full(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source sends what it has, even what it could not write to its disk."""
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        await one.store.env.metacache.commit()

        async def full() -> None:
            raise MetacacheFull("no room")

        with monkeypatch.context() as patch:
            patch.setattr(one.store.env.metacache, "commit", full)
            data = await sent(one)
        await take(other, data)
        assert await whole(await other.user()) == await whole(one.users[0])


async def test_a_user_whom_the_source_has_not(machine: Machine, tmp_path: Path) -> None:
    async with two(machine, tmp_path) as (one, other):
        got = await pull(one, other)
        assert (got.mailboxes, got.seen, got.kept) == (0, 0, 0)
        assert await machine.bucket.keys(user_prefix(SID)) == [], "nobody was made"


async def test_a_user_who_was_deleted_elsewhere(machine: Machine, tmp_path: Path) -> None:
    """The user was deleted at another backend, and the source still has local
    copies."""
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        await leave(one)
        await upload.unload(one.store, SID, upload=True)
        async for _ in operate.delete(other.store, SID):
            pass
        with pytest.raises(NotFound):
            await sent(one)


async def test_deleting_and_pulling_wait_for_each_other(machine: Machine, tmp_path: Path) -> None:
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        await leave(one)
        data = await sent(one)
        for life in (one, other):
            with life.store.pulling(SID), pytest.raises(InUse, match="pulled"):
                async for _ in operate.delete(life.store, SID):
                    pass
            with life.store.barring(SID), pytest.raises(InUse, match="deleted"):
                await (sent(life) if life is one else take(life, data))
        await take(other, data)


async def test_outdated(machine: Machine, tmp_path: Path) -> None:
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        await leave(one)

        async def outdated() -> list[str]:
            outgoing = Outgoing(one.store, SID)
            await outgoing.prepare("anna", everything=False)
            return outgoing.outdated

        assert await outdated() == []
        user = await other.user()
        box = await user.select("INBOX")
        await box.store_flags(uids(11), "add", ["\\Flagged"])
        await box.release()
        assert await outdated() == []
        await user.flush()
        assert user.entry("INBOX").guid in await outdated()
