"""The contract of a disk. It is tested for the disk of files and for the disk in
memory.

Both pass this suite, so what the tests of the cache find with a disk in memory holds
for real files.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import NamedTuple

import disks
import pytest
from disks import File, MemoryDisk

from fscache.disk import Disk, Done, FileDisk, Got, Listing, Step, Want, disk_bytes, file_bytes, name_of

KEY = "user/mailbox/1"
DATA = bytes(range(256)) * 40


class Case(NamedTuple):
    """A disk, and methods that change its files as another program does."""

    disk: Disk
    path: Path

    def put(self, key: str, data: bytes, mtime: float) -> None:
        if isinstance(self.disk, MemoryDisk):
            self.disk.by_hand(name_of(key), File(key, data, mtime))
            return
        path = disks.file_of(self.path, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A foreign file has the right length only.
        path.write_bytes(bytes(file_bytes(key, len(data))))
        os.utime(path, (mtime, mtime))

    def remove(self, key: str) -> None:
        if isinstance(self.disk, MemoryDisk):
            self.disk.by_hand(name_of(key), None)
        else:
            disks.file_of(self.path, key).unlink()

    def damage(self, key: str) -> None:
        if isinstance(self.disk, MemoryDisk):
            self.disk.files[name_of(key)].damaged = True
        else:
            path = disks.file_of(self.path, key)
            raw = bytearray(path.read_bytes())
            raw[-1] ^= 1
            path.write_bytes(raw)


class Space(NamedTuple):
    space: int


@pytest.fixture(params=["files", "memory"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    path = tmp_path / "fc"
    return Case(FileDisk(path, timeout_s=60.0) if request.param == "files" else MemoryDisk(), path)


async def opened(case: Case) -> Listing:
    return await asyncio.wrap_future(case.disk.open(lambda listing: listing, lambda: None))


def write(key: str, data: bytes, *, remove: list[str] | None = None, mtime: float = 1000.0) -> Step:
    return Step([name_of(gone) for gone in remove or ()], name_of(key), key, data, mtime)


async def test_what_was_written_is_read_and_listed_oldest_first(case: Case) -> None:
    assert await opened(case) == Listing([], "")
    disk = case.disk
    steps = [write(KEY, DATA, mtime=2000.0), write("empty", b"", mtime=1000.0)]
    assert await disk.change(steps) == [Done([], True, "")] * 2
    assert await disk.change([]) == []
    got = await disk.read(Want(KEY, name_of(KEY)))
    assert got == Got(DATA, file_bytes(KEY, len(DATA)))
    assert await disk.read(Want("empty", name_of("empty"), touch=3000.0)) == Got(b"", file_bytes("empty", 0))
    await disk.close(wait=True)
    again = Case(
        MemoryDisk(disk.files) if isinstance(disk, MemoryDisk) else FileDisk(case.path, timeout_s=60.0), case.path
    )
    listing = await opened(again)
    assert [(mtime, name) for mtime, name, _ in listing.files] == [(2000.0, name_of(KEY)), (3000.0, name_of("empty"))]
    assert [length for _, _, length in listing.files] == [file_bytes(KEY, len(DATA)), file_bytes("empty", 0)]
    await again.disk.close(wait=True)


@pytest.mark.parametrize("verified", [False, True])
async def test_ranges_are_cut_at_the_end(case: Case, verified: bool) -> None:
    await opened(case)
    await case.disk.change([write(KEY, DATA)])
    for start, end in ((0, 10), (100, 5000), (9000, 99999), (len(DATA), len(DATA) + 5), (5, 5), (0, None)):
        got = await case.disk.read(Want(KEY, name_of(KEY), start, end, verified, mtime=1000.0))
        assert got.data == DATA[start:end]
        assert got.length == file_bytes(KEY, len(DATA))
    await case.disk.close(wait=True)


async def test_a_miss_is_no_error_and_another_key_or_damage_is(case: Case) -> None:
    await opened(case)
    assert await case.disk.read(Want("absent", name_of("absent"))) == Got(None, gone=True)
    await case.disk.change([write(KEY, DATA), write("other", b"other")])
    case.damage("other")
    foreign, damaged, absent = await case.disk.read_many(
        [Want("not the key", name_of(KEY)), Want("other", name_of("other")), Want("x", name_of("x"))]
    )
    for got in (foreign, damaged):
        assert got.data is None
        assert got.error
        assert got.gone
    assert absent == Got(None, gone=True)
    assert await case.disk.read(Want(KEY, name_of(KEY))) == Got(None, gone=True), "removed"
    await case.disk.close(wait=True)


async def test_steps_run_in_order_and_removing_what_is_missing_is_no_error(case: Case) -> None:
    await opened(case)
    disk = case.disk
    await disk.change([write(KEY, DATA)])
    done = await disk.change([Step([name_of(KEY), name_of("absent")]), write(KEY, b"new", remove=["absent"])])
    assert done == [Done([], False, ""), Done([], True, "")]
    assert (await disk.read(Want(KEY, name_of(KEY)))).data == b"new"
    assert disk.reading() == set()
    assert not disk.hangs()
    await disk.close(wait=True)


async def test_other_hands_are_noticed(case: Case) -> None:
    """The disk's own changes are no disturbance. A comparison reports files that were
    added, removed or changed."""
    await opened(case)
    disk = case.disk
    await disk.change([write(key, DATA) for key in ("a", "b", "c")])
    assert await disk.changed_by_others() == set()
    case.put("new", b"new", 500.0)
    case.remove("a")
    assert await disk.changed_by_others() == {name_of("new")[:2], name_of("a")[:2]}
    assert await disk.changed_by_others() == set()
    right = disk_bytes(file_bytes("a", len(DATA)))
    known = {name_of("a"): Space(right), name_of("b"): Space(right), name_of("c"): Space(right + 4096)}
    found = await disk.compare(known, None)
    assert found.added == [(500.0, name_of("new"), file_bytes("new", 3))]
    assert found.gone == [name_of("a")]
    assert found.changed == [(name_of("c"), file_bytes("c", len(DATA)))]
    assert found.problem == ""
    some = {name_of("b")[:2]}
    found = await disk.compare({name_of("b"): Space(right)}, some)
    assert (found.gone, found.changed) == ([], [])
    assert all(name[:2] in some for _, name, _ in found.added)
    await disk.close(wait=True)


async def test_each_read_is_announced_when_it_has_ended(case: Case) -> None:
    ended = 0

    def hear() -> None:
        nonlocal ended
        ended += 1

    await asyncio.wrap_future(case.disk.open(lambda listing: None, hear))
    await case.disk.change([write(KEY, DATA)])
    await case.disk.read(Want(KEY, name_of(KEY)))
    await case.disk.read_many([Want(KEY, name_of(KEY)), Want("absent", name_of("absent"))])
    assert ended == 2
    await case.disk.close(wait=True)
