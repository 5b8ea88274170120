"""Properties of the driver of a directory."""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENT_S

from obox.objectstore import (
    AlreadyExists,
    FileDriver,
    Missing,
    Refused,
    Settings,
    StoreError,
    Unreachable,
    open_store,
)


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[FileDriver]:
    driver = FileDriver(str(tmp_path / "bucket"), rng=random.Random(1))
    yield driver
    await driver.close()


def left(tmp_path: Path) -> list[str]:
    return sorted(os.listdir(tmp_path / "bucket" / ".tmp"))


async def test_names_end_whatever_others_put_below_them(tmp_path: Path) -> None:
    """A file of another program may have any name, also a name that is last in the
    order."""
    for directory, name in (("a", "\U0010ffff\U0010ffff"), ("a", "1"), ("a0", "x"), ("a1", "\U0010ffffx"), ("b", "0")):
        (tmp_path / "j" / directory).mkdir(parents=True, exist_ok=True)
        (tmp_path / "j" / directory / name).touch()
    (tmp_path / "j" / "b0").touch()
    driver = FileDriver(str(tmp_path), rng=random.Random(1))
    scans, scandir = Counter[str](), os.scandir

    def counted(path: str) -> Any:
        scans[path] += 1
        assert scans[path] < 20, "it does not end"
        return scandir(path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "scandir", counted)
        assert await driver.list_names("j/", kind="journal") == ["a", "a0", "a1", "b"]
    await driver.close()


async def test_symbolic_links_of_others_are_listed_and_deleted(tmp_path: Path) -> None:
    """A link to itself used to make each LIST fail, so that its user could not be
    deleted."""
    (tmp_path / "u").mkdir()
    keys = [f"u/{name}" for name in ("away", "loop", "nowhere")]
    for key, target in zip(keys, ("/", "loop", "nothing"), strict=True):
        (tmp_path / key).symlink_to(target)
    driver = FileDriver(str(tmp_path), rng=random.Random(1))
    page = await driver.list_page("u/", kind="mail", after="", limit=10)
    assert [info.key for info in page.items] == keys
    for key in keys:
        with pytest.raises(StoreError):
            await driver.get(key, kind="mail")
    await driver.delete_batch(keys, kind="mail")
    assert not (tmp_path / "u").exists()
    await driver.close()


async def test_a_bucket_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """Waiting does not help here, so the error must differ from that of a store that
    does not answer."""
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        driver = FileDriver(str(root), rng=random.Random(1))
        with pytest.raises(Refused, match="Not a directory"):
            await driver.put("a/b", b"x", kind="mail")
        await driver.close()


async def test_temporary_files_are_gone_and_never_listed(directory: FileDriver, tmp_path: Path) -> None:
    await asyncio.gather(*(directory.put(f"a/{i}", b"x" * 100, kind="mail") for i in range(200)))
    with pytest.raises(AlreadyExists):
        await directory.put("a/1", b"y", kind="mail")
    assert left(tmp_path) == []
    (tmp_path / "bucket" / ".tmp" / "leftover").write_bytes(b"half")
    page = await directory.list_page("", kind="mail", after="", limit=1000)
    assert len(page.items) == 200


async def test_leftovers_of_a_crash_are_swept_when_old(tmp_path: Path) -> None:
    temp = tmp_path / "bucket" / ".tmp"
    temp.mkdir(parents=True)
    for name, age in {"old": 3700, "young": 10}.items():
        (temp / name).write_bytes(b"half")
        os.utime(temp / name, (time.time() - age,) * 2)
    driver = FileDriver(str(tmp_path / "bucket"), rng=random.Random(1))
    await driver.put("a", b"x", kind="mail")
    await driver.close()
    assert left(tmp_path) == ["young"]


async def test_a_put_is_synced_before_it_returns(
    directory: FileDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the system calls is: data, name, directory, and its parents once."""
    calls: list[str] = []
    real_fsync, real_link = os.fsync, os.link

    def fsync(fd: int) -> None:
        calls.append("sync " + os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), tmp_path))
        real_fsync(fd)

    def link(source: str, target: str) -> None:
        real_link(source, target)
        calls.append("link " + os.path.relpath(target, tmp_path))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    await directory.put("u/m/1", b"x", kind="mail")
    assert re.fullmatch(r"sync bucket/\.tmp/\S+", calls[0])
    assert calls[1:] == ["link bucket/u/m/1", "sync bucket/u/m", "sync bucket/u", "sync bucket", "sync ."]
    calls.clear()
    await directory.put("u/m/2", b"x", kind="mail")
    assert calls[1:] == ["link bucket/u/m/2", "sync bucket/u/m"]
    calls.clear()
    with pytest.raises(AlreadyExists):
        await directory.put("u/m/2", b"x", kind="mail")
    # Another process may have made this directory, and may not have synced it yet.
    assert calls[1:] == ["sync bucket/u/m"]
    await directory.delete_batch(["u/m/1", "u/m/2"], kind="mail")
    assert not (tmp_path / "bucket/u").exists()
    calls.clear()
    await directory.put("u/m/1", b"x", kind="mail")
    assert calls[2:] == ["sync bucket/u/m", "sync bucket/u", "sync bucket"]


async def test_one_sync_of_the_directory_serves_a_group(directory: FileDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    await directory.put("u/first", b"x", kind="mail")
    synced: list[int] = []
    real_fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), real_fsync(fd))[1])
    await asyncio.gather(*(directory.put(f"u/{i}", b"x", kind="mail") for i in range(256)))
    assert 256 < len(synced) < 256 + 128  # each sync alone would be 512


@pytest.mark.parametrize(
    ("number", "error"), [(28, Unreachable), (5, Unreachable), (13, Refused), (30, Refused)]
)  # ENOSPC, EIO, EACCES, EROFS
async def test_errors_of_the_disk(
    directory: FileDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[StoreError]
) -> None:
    await directory.put("a/0", b"x", kind="mail")

    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fails)
        with pytest.raises(error, match="put a/1"):
            await directory.put("a/1", b"x", kind="mail")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(error):
            await directory.put("a/2", b"x", kind="mail")
    assert left(tmp_path) == []
    await directory.put("a/1", b"x", kind="mail")
    page = await directory.list_page("", kind="mail", after="", limit=9)
    assert [info.key for info in page.items] == ["a/0", "a/1"]


@pytest.mark.parametrize("mount_point", [False, True], ids=["gone", "empty mount point"])
async def test_a_directory_that_goes_is_unreachable_and_not_empty(tmp_path: Path, mount_point: bool) -> None:
    """The directory is unmounted while the store uses it. Then no object counts as
    missing, and nothing is written elsewhere. When it is mounted again, everything
    works."""
    bucket, away = tmp_path / "bucket", tmp_path / "away"
    store = open_store(Settings(f"file://{bucket}", deadline_s=PATIENT_S))
    impatient = open_store(Settings(f"file://{bucket}", deadline_s=0.2))
    assert await store.list("", kind="mail") == []
    await store.put("a/1", b"1", kind="mail")
    with pytest.raises(Missing):
        # The store has seen the bucket now.
        await impatient.get("a/0", kind="mail")
    bucket.rename(away)
    if mount_point:
        bucket.mkdir()
    for ask in (
        lambda: impatient.get("a/1", kind="mail"),
        lambda: impatient.list("a/", kind="mail"),
        lambda: impatient.put("a/2", b"2", kind="mail"),
        lambda: impatient.put("b/2", b"2", kind="mail"),
    ):
        with pytest.raises(Unreachable):
            await ask()
    await impatient.close()
    assert not mount_point or list(bucket.iterdir()) == []
    if mount_point:
        bucket.rmdir()
    away.rename(bucket)
    await asyncio.gather(*(store.put(f"c/{n}", b"2", kind="mail") for n in range(50)))
    assert await store.get("a/1", kind="mail") == b"1"
    assert len(await store.list("", kind="mail")) == 51
    await store.close()


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/..", ".tmp/x", "a/.b", "a\0b", "ä", "a\nb"])
async def test_keys_that_a_path_cannot_hold(directory: FileDriver, key: str) -> None:
    with pytest.raises(Refused):
        await directory.put(key, b"x", kind="mail")


async def test_a_key_is_not_a_directory_of_others(directory: FileDriver) -> None:
    await directory.put("a/b", b"x", kind="mail")
    for key in ("a", "a/b/c", "a/b/c/d"):
        with pytest.raises(Refused):
            await directory.put(key, b"x", kind="mail")
        with pytest.raises(Missing):
            await directory.get(key, kind="mail")
    await directory.delete_batch(["a", "a/b/c"], kind="mail")
    assert await directory.get("a/b", kind="mail") == b"x"


async def test_long_elements_and_their_order(directory: FileDriver) -> None:
    stem = "%c3%a4" * 40  # 240 bytes
    keys = sorted(
        [
            stem,
            stem + "-x/1",
            stem + "a/1",
            stem + "a/2",
            stem[:-1] + "/1",
            stem + "b" * 350,
            "z" * 241,
            "z" * 239,
            "a/1",
        ]
    )
    for key in reversed(keys):
        await directory.put(key, key.encode(), kind="mail")
    found: list[str] = []
    more = True
    while more:
        page = await directory.list_page("", kind="mail", after=found[-1] if found else "", limit=2)
        found += [info.key for info in page.items]
        more = page.next is not None
    assert found == keys
    assert [i.key for i in (await directory.list_page(stem + "a/", kind="mail", after="", limit=9)).items] == [
        stem + "a/1",
        stem + "a/2",
    ]
    for key in keys:
        assert await directory.get(key, kind="mail") == key.encode()
    await directory.delete_batch(keys, kind="mail")
    assert (await directory.list_page("", kind="mail", after="", limit=9)).items == []


async def test_list_does_not_walk_what_lies_before(directory: FileDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    await asyncio.gather(*(directory.put(f"{i:02x}/u/m/{j}", b"", kind="mail") for i in range(20) for j in range(3)))
    scanned: list[str] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (scanned.append(path), real(path))[1])
    page = await directory.list_page("", kind="mail", after="12/u/m/1", limit=2)
    assert [info.key for info in page.items] == ["12/u/m/2", "13/u/m/0"]
    # The scan visits the root, and two users.
    assert len(scanned) == 1 + 3 + 3


async def test_a_new_bucket_is_made_by_another_thread_meanwhile(
    directory: FileDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread makes the bucket after this thread has found the root missing, and
    before this thread makes it."""
    real = os.stat
    looks = 0

    def stat(path: Any, **more: Any) -> os.stat_result:
        nonlocal looks
        looks += path == str(tmp_path / "bucket")
        if looks == 1:
            (tmp_path / "bucket").mkdir()
            directory.check_root()
            raise FileNotFoundError(path)
        return real(path, **more)

    monkeypatch.setattr(os, "stat", stat)
    await directory.put("a/b", b"x", kind="mail")
    assert looks > 1
    assert await directory.get("a/b", kind="mail") == b"x"


async def test_deleting_beside_putting_loses_nothing(directory: FileDriver) -> None:
    """The directory of a deleted object is empty and is removed, while another thread
    links a file into it."""

    async def churn(name: str) -> None:
        for _ in range(60):
            await directory.put(f"d/e/{name}", b"x", kind="mail")
            assert await directory.get(f"d/e/{name}", kind="mail") == b"x"
            await directory.delete_batch([f"d/e/{name}"], kind="mail")

    await asyncio.gather(*(churn(str(i)) for i in range(4)))


def test_processes_race_for_a_key(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from obox.objectstore import AlreadyExists, Settings, open_store\n"
        "async def main():\n"
        "    store = open_store(Settings('file://' + sys.argv[1]))\n"
        "    won = 0\n"
        "    for i in range(60):\n"
        "        try:\n"
        "            await store.put(f'd/{i}', b'x', kind='mail')\n"
        "            won += 1\n"
        "        except AlreadyExists: pass\n"
        "    print(won)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "bucket")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    won = [int(process.communicate(timeout=60)[0]) for process in running]
    assert sum(won) == 60
